// The storage formats that the kernels decode, by name.

#pragma once

#include <cstdint>

#include "kernel_table.hpp"

namespace firstlight {

// A storage format as the kernels know it.
struct FormatInfo {
    const char* name;
    BlockFormat code;
    int64_t block_values, block_bytes;
};

inline constexpr FormatInfo kFormats[] = {
    {"f32", BlockFormat::f32, 1, 4},        {"f16", BlockFormat::f16, 1, 2},
    {"bf16", BlockFormat::bf16, 1, 2},      {"f8_e4m3", BlockFormat::f8_e4m3, 1, 1},
    {"e2m1", BlockFormat::e2m1, 16, 8},
    {"q4_0", BlockFormat::q4_0, 32, 18},
    {"q4_1", BlockFormat::q4_1, 32, 20},    {"q5_0", BlockFormat::q5_0, 32, 22},
    {"q5_1", BlockFormat::q5_1, 32, 24},    {"q8_0", BlockFormat::q8_0, 32, 34},
    {"q2_k", BlockFormat::q2_k, 256, 84},   {"q3_k", BlockFormat::q3_k, 256, 110},
    {"q4_k", BlockFormat::q4_k, 256, 144},  {"q5_k", BlockFormat::q5_k, 256, 176},
    {"q6_k", BlockFormat::q6_k, 256, 210},  {"iq4_nl", BlockFormat::iq4_nl, 32, 18},
    {"iq4_xs", BlockFormat::iq4_xs, 256, 136}, {"mxfp4", BlockFormat::mxfp4, 32, 17},
    {"nvfp4", BlockFormat::nvfp4, 64, 36},
};

}  // namespace firstlight
