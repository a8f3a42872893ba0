#include "levels.hpp"

#include "levels_arm.hpp"

#if defined(FIRSTLIGHT_X86_LEVELS)
#include <cpuid.h>
#endif
#if defined(FIRSTLIGHT_X86_LEVELS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace firstlight {

extern const KernelTable kernels_baseline;
#if defined(FIRSTLIGHT_X86_LEVELS)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx2_vnni;
#if defined(FIRSTLIGHT_EMULATED_VNNI)
extern const KernelTable kernels_avx2_vnni_emulated;
#endif
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_vnni;
extern const KernelTable kernels_avx512_bf16;
extern const KernelTable kernels_amx;
#if defined(FIRSTLIGHT_EMULATED_TILES)
extern const KernelTable kernels_amx_emulated;
#endif
#endif
#if defined(FIRSTLIGHT_ARM_LEVELS)
extern const KernelTable kernels_dotprod;
extern const KernelTable kernels_i8mm;
extern const KernelTable kernels_bf16;
#endif

namespace {

#if defined(FIRSTLIGHT_X86_LEVELS)

// __builtin_cpu_supports also asks whether the operating system keeps the registers. Some compilers
// do not know its name for F16C, so that bit (leaf 1, ECX 29) is read directly.
bool has_avx2() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & 1u << 29)) return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// Leaf 7, subleaf 1, EAX 4. The instructions use the registers that AVX2 does.
bool has_avx2_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

// With permutations of bytes, which decode fp8. Of the processors with this bfloat16 only Cooper Lake
// lacks them.
bool has_avx512_bf16() {
    return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vbmi");
}

// Whether the operating system keeps the tiles' state and lets this process use them. Linux wants
// to be asked once, for all threads, because the state makes their signal frames larger. Source:
// the kernel's Documentation/arch/x86/xstate.rst.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & 1u << 27)) return false;  // OSXSAVE
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 1u << 17 | 1u << 18;
    if ((low & kTileState) != kTileState) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// Leaf 7, EDX 22 (bfloat16), 24 (tiles) and 25 (int8).
bool has_amx() {
    static const bool found = [] {
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        constexpr unsigned kWanted = 1u << 22 | 1u << 24 | 1u << 25;
        return has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
               (edx & kWanted) == kWanted && may_use_tiles();
    }();
    return found;
}

#endif

bool always() { return true; }

struct LevelEntry {
    Level level;
    bool (*runs_here)();
};

// In order of preference, the last that runs here is taken.
const LevelEntry kLevels[] = {
    {{"baseline", &kernels_baseline}, always},
#if defined(FIRSTLIGHT_X86_LEVELS)
#if defined(FIRSTLIGHT_EMULATED_TILES)
    {{"amx_emulated", &kernels_amx_emulated}, has_avx512_vnni},
#endif
#if defined(FIRSTLIGHT_EMULATED_VNNI)
    {{"avx2_vnni_emulated", &kernels_avx2_vnni_emulated}, has_avx512_vnni},
#endif
    {{"avx2", &kernels_avx2}, has_avx2},
    {{"avx2_vnni", &kernels_avx2_vnni}, has_avx2_vnni},
    {{"avx512", &kernels_avx512}, has_avx512},
    {{"avx512_vnni", &kernels_avx512_vnni}, has_avx512_vnni},
    {{"avx512_bf16", &kernels_avx512_bf16}, has_avx512_bf16},
    {{"amx", &kernels_amx}, has_amx},
#endif
#if defined(FIRSTLIGHT_ARM_LEVELS)
    {{"dotprod", &kernels_dotprod}, has_dotprod},
    {{"i8mm", &kernels_i8mm}, has_i8mm},
    {{"bf16", &kernels_bf16}, has_bf16},
#endif
};

}  // namespace

int level_count() { return static_cast<int>(sizeof kLevels / sizeof kLevels[0]); }

Level level(int index) { return kLevels[index].level; }

bool runs_here(int index) { return kLevels[index].runs_here(); }

std::string processor_name() {
    std::string name;
#if defined(FIRSTLIGHT_X86_LEVELS)
    // Extended leaves 2 to 4 hold 16 characters each, padded with zeros.
    for (unsigned leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
        unsigned registers[4] = {};
        __get_cpuid(leaf, &registers[0], &registers[1], &registers[2], &registers[3]);
        name.append(reinterpret_cast<const char*>(registers), sizeof registers);
    }
    name.resize(name.find_last_not_of(std::string(" \0", 2)) + 1);
#endif
    return name;
}

}  // namespace firstlight
