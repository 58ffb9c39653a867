#pragma once

// Which Highway targets are compiled: to be included before Highway.

// AVX3_DL is opt-in. Zen 4 and Sapphire Rapids run the AVX3_DL code (VNNI,
// VBMI); SVE vectors have no fixed size, and Neoverse runs NEON.
#define HWY_WANT_AVX3_DL 1
#define HWY_DISABLED_TARGETS                                           \
    (HWY_SSSE3 | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_NEON_WITHOUT_AES | \
     HWY_NEON_BF16 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
