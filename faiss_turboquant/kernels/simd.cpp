// The SIMD levels that are Highway targets.

#include <faiss_turboquant/kernels/targets.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "faiss_turboquant/kernels/simd-inl.h"
#include <hwy/foreach_target.h>

#include <faiss_turboquant/kernels/simd-inl.h>

namespace faiss_turboquant {

std::vector<const Kernels*> simd_kernels() {
    [[maybe_unused]] const int64_t supported = hwy::SupportedTargets();
    std::vector<const Kernels*> tables;
#if HWY_TARGETS & HWY_SSE4
    if (supported & HWY_SSE4) {
        tables.push_back(&N_SSE4::table());
    }
#endif
#if HWY_TARGETS & HWY_AVX2
    if (supported & HWY_AVX2) {
        tables.push_back(&N_AVX2::table());
    }
    for (const Kernels* table : avx2_vnni_kernels()) {
        tables.push_back(table);
    }
#endif
#if HWY_TARGETS & HWY_AVX3
    if (supported & HWY_AVX3) {
        tables.push_back(&N_AVX3::table());
    }
#endif
#if HWY_TARGETS & HWY_AVX3_DL
    if (supported & HWY_AVX3_DL) {
        tables.push_back(&N_AVX3_DL::table());
    }
#endif
#if HWY_TARGETS & HWY_NEON_WITHOUT_AES
    if (supported & HWY_NEON_WITHOUT_AES) {
        tables.push_back(&N_NEON_WITHOUT_AES::table());
    }
    for (const Kernels* table : neon_dot_kernels()) {
        tables.push_back(table);
    }
#endif
    return tables;
}

} // namespace faiss_turboquant
