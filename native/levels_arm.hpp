// Whether this Arm processor and its operating system have an instruction set. Each level of
// levels.cpp has those before it too.

#pragma once

namespace firstlight {

#if defined(FIRSTLIGHT_ARM_LEVELS)

// Sums of four products of bytes (SDOT, UDOT; FEAT_DotProd).
bool has_dotprod();

// Products of matrices of bytes (SMMLA, USMMLA, USDOT; FEAT_I8MM).
bool has_i8mm();

// Products of matrices of bfloat16 (BFMMLA, BFDOT; FEAT_BF16).
bool has_bf16();

#endif

}  // namespace firstlight
