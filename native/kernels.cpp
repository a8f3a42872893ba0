// All kernels of one instruction level. The build compiles this file once for each level, with
// FIRSTLIGHT_TABLE naming the table that it defines.
//
// Everything but the table stands in an unnamed namespace, and no template or inline function of
// the standard library is used. Otherwise the linker, which keeps one copy of equal symbols, could
// take a copy with instructions that an older machine lacks.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernel_table.hpp"
#include "thread_pool.hpp"

// For what stands in the innermost loops, and for lambdas that do (before their body): there a
// call, or a sum that goes through memory, costs several times what the arithmetic does.
#if defined(__GNUC__) || defined(__clang__)
#define FIRSTLIGHT_INLINE inline __attribute__((always_inline))
#define FIRSTLIGHT_INLINED __attribute__((always_inline))
// For loops that fill the registers, which those of a caller would push out.
#define FIRSTLIGHT_APART __attribute__((noinline))
#define FIRSTLIGHT_FETCH(address) __builtin_prefetch(address)
// Into the second-level cache only: the first has few places for lines on their way.
#define FIRSTLIGHT_FETCH_FAR(address) __builtin_prefetch(address, 0, 2)
// What will be written.
#define FIRSTLIGHT_FETCH_OUT(address) __builtin_prefetch(address, 1)
#if defined(__clang__)
#define FIRSTLIGHT_UNROLL _Pragma("unroll")
#else
#define FIRSTLIGHT_UNROLL _Pragma("GCC unroll 16")
#endif
// Memory that is read after this is not read before: it would wait in registers that others need.
#define FIRSTLIGHT_IN_ORDER asm volatile("" ::: "memory")
#else
#define FIRSTLIGHT_UNROLL
#define FIRSTLIGHT_IN_ORDER
#define FIRSTLIGHT_INLINE inline
#define FIRSTLIGHT_INLINED
#define FIRSTLIGHT_APART inline
#define FIRSTLIGHT_FETCH(address) (void)(address)
#define FIRSTLIGHT_FETCH_FAR(address) (void)(address)
#define FIRSTLIGHT_FETCH_OUT(address) (void)(address)
#endif

namespace firstlight {

extern const KernelTable FIRSTLIGHT_TABLE;

namespace {

#include "sharing.inl"

#include "vectors.inl"

#include "bytes.inl"

#include "functions.inl"

#include "float8.inl"

#include "codes.inl"

#include "block_formats.inl"

#include "k_quants.inl"

#include "table_formats.inl"

#include "float4.inl"

#include "decoding.inl"

#include "float8_scales.inl"

#include "float4_scales.inl"

#include "products.inl"

#include "linear_tasks.inl"

#include "bfloat16.inl"

#include "transpose.inl"

#include "tiles.inl"

#include "bfloat16_products.inl"

#include "bfloat16_groups.inl"

#include "bfloat16_linear.inl"

#include "bfloat16_tiles.inl"

#include "float8_products.inl"

#include "float8_linear.inl"

#include "packed_layout.inl"

#include "linear.inl"

#include "packed_codes.inl"

#include "packed_formats.inl"

#include "packed_tables.inl"

#include "packing.inl"

#include "group_dots.inl"

#include "mixed16.inl"

#include "step_lines.inl"

#include "panel_strips.inl"

#include "fixed16.inl"

#include "packed_linear.inl"

#include "linear_group.inl"

#include "elementwise.inl"

#include "gated_linear.inl"

#include "heads.inl"

#include "attention_entries.inl"

#include "attention_products.inl"

#include "attention.inl"

#include "bfloat16_attention.inl"

#include "attention_tasks.inl"

#include "entry_values.inl"

#include "listed_attention.inl"

#include "entry_choice.inl"

#include "pooling.inl"

#include "ceilings.inl"

}  // namespace

const KernelTable FIRSTLIGHT_TABLE = {
    kBfloat16Products,
    kFloat8Products,
    linear,
    gated_linear,
    embed,
    pack,
    rms_norm,
    elementwise,
    rotary,
    stream_write,
    attention,
    listed_attention,
    choose_entries,
    pool_runs,
    prepare_heads,
    join_residual,
    read_memory,
    multiply_add_f32,
    multiply_add_bf16,
    multiply_add_int8,
};

}  // namespace firstlight
