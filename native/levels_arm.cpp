#include "levels_arm.hpp"

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace firstlight {
namespace {

#if defined(__linux__)

// Bits of the auxiliary vector (Linux, arch/arm64/include/uapi/asm/hwcap.h). Written out, since
// the header of an older system lacks some.
constexpr unsigned long kSumsOfProducts = 1ul << 20;    // AT_HWCAP, ASIMDDP
constexpr unsigned long kByteMatrices = 1ul << 13;      // AT_HWCAP2, I8MM
constexpr unsigned long kBfloat16Products = 1ul << 14;  // AT_HWCAP2, BF16

bool dotprod() { return getauxval(AT_HWCAP) & kSumsOfProducts; }
bool i8mm() { return getauxval(AT_HWCAP2) & kByteMatrices; }
bool bf16() { return getauxval(AT_HWCAP2) & kBfloat16Products; }

#elif defined(__APPLE__)

// An older system lacks the name, which means no.
bool system_says(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool dotprod() { return system_says("hw.optional.arm.FEAT_DotProd"); }
bool i8mm() { return system_says("hw.optional.arm.FEAT_I8MM"); }
bool bf16() { return system_says("hw.optional.arm.FEAT_BF16"); }

#else

bool dotprod() { return false; }
bool i8mm() { return false; }
bool bf16() { return false; }

#endif

}  // namespace

bool has_dotprod() { return dotprod(); }

bool has_i8mm() { return has_dotprod() && i8mm(); }

bool has_bf16() { return has_i8mm() && bf16(); }

}  // namespace firstlight
