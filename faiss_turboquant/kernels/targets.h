#pragma once

// Which Highway targets are compiled: to be included before Highway.

// AVX3_DL is opt-in. Zen 4 and Sapphire Rapids run the AVX3_DL code (VNNI,
// VBMI); SVE vectors have no fixed size, and Neoverse runs NEON. No kernel uses
// AES: NEON without it is on every AArch64 CPU.
#define HWY_WANT_AVX3_DL 1
#ifdef FAISS_TURBOQUANT_SANITIZERS
// They make compilers ten times as slow: the two that most machines run.
#define FAISS_TURBOQUANT_LEFT_OUT (HWY_SSE4 | HWY_AVX3)
#else
#define FAISS_TURBOQUANT_LEFT_OUT 0
#endif
#define HWY_DISABLED_TARGETS                                                \
    (FAISS_TURBOQUANT_LEFT_OUT | HWY_SSSE3 | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | \
     HWY_NEON | HWY_NEON_BF16 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 |          \
     HWY_SVE2_128)
