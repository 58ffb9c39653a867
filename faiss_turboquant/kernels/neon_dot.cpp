// NEON with the dot products of four bytes that ARMv8.2 added (Cortex-A76,
// Neoverse N1, Apple M1 and later). Of Highway's targets only one with bfloat16
// promises them, and Highway 1.2 does not use them: this is its NEON and one
// more instruction.

#include <faiss_turboquant/kernels/tables.h>

#if defined(__aarch64__)
// without AES instructions it would be the baseline of AArch64, whose functions
// cannot be given another instruction
#define HWY_DISABLED_TARGETS (~(HWY_NEON | HWY_EMU128 | HWY_SCALAR))
#include <hwy/detect_targets.h>
#endif

// clang before 17 has only what its flags promise
#if defined(__aarch64__) && (HWY_TARGETS & HWY_NEON) && \
        (HWY_HAVE_RUNTIME_DISPATCH || defined(__ARM_FEATURE_DOTPROD))

#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define TQ_NEON_DOT
#if defined(__clang__)
#define TQ_TARGET_STR HWY_TARGET_STR_NEON "+dotprod"
#else
// for GCC the intrinsic belongs to this architecture
#define TQ_TARGET_STR "arch=armv8.2-a+dotprod" HWY_TARGET_STR_NEON
#endif
#define TQ_NAMESPACE neon_dot

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "faiss_turboquant/kernels/simd-inl.h"
#include <hwy/foreach_target.h>

#include <faiss_turboquant/kernels/simd-inl.h>

namespace faiss_turboquant {

namespace {

bool has_dot_product() {
#if defined(__ARM_FEATURE_DOTPROD)
    return true; // so the compiler was told
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}

} // namespace

std::vector<const Kernels*> neon_dot_kernels() {
    if (!(hwy::SupportedTargets() & HWY_NEON) || !has_dot_product()) {
        return {};
    }
    return {&neon_dot::table()};
}

} // namespace faiss_turboquant

#else

namespace faiss_turboquant {

std::vector<const Kernels*> neon_dot_kernels() {
    return {};
}

} // namespace faiss_turboquant

#endif
