// AVX2 with VNNI in its VEX encoding, for CPUs without AVX-512 (Alder Lake,
// Sierra Forest and later). Highway has no such target: this is its AVX2 and
// one more instruction.

#include <faiss_turboquant/kernels/tables.h>

#if defined(__x86_64__) && __has_include(<avxvnniintrin.h>)

#include <cpuid.h>
#include <immintrin.h>

// nothing is compiled for SSE2, the baseline of x86-64
#define HWY_DISABLED_TARGETS (~(HWY_SSE2 | HWY_AVX2))
#define TQ_AVX2_VNNI
#define TQ_TARGET_STR HWY_TARGET_STR_AVX2 ",avxvnni"
#define TQ_NAMESPACE avx2_vnni

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "faiss_turboquant/kernels/simd-inl.h"
#include <hwy/foreach_target.h>

#include <faiss_turboquant/kernels/simd-inl.h>

namespace faiss_turboquant {

namespace {

bool has_avx_vnni() {
    unsigned a, b, c, d;
    constexpr unsigned avx_vnni_bit = 1u << 4;
    return (hwy::SupportedTargets() & HWY_AVX2) &&
            __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni_bit);
}

} // namespace

std::vector<const Kernels*> avx2_vnni_kernels() {
    if (!has_avx_vnni()) {
        return {};
    }
    return {&avx2_vnni::table()};
}

} // namespace faiss_turboquant

#else

namespace faiss_turboquant {

std::vector<const Kernels*> avx2_vnni_kernels() {
    return {};
}

} // namespace faiss_turboquant

#endif
