#include "peaks.h"

#include <faiss_turboquant/kernels/targets.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchs/kernels/peaks.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace peaks {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

const hn::CappedTag<uint8_t, 64> du8;
const hn::Rebind<int8_t, decltype(du8)> di8;
const hn::RepartitionToWide<decltype(di8)> di16;
const hn::RepartitionToWide<decltype(di16)> di32;

/// hides a register's value from the compiler, which would take the loop apart
template <class V>
HWY_INLINE void hide(V& v) {
#if HWY_ARCH_X86
    asm volatile("" : "+x"(v.raw));
#else
    asm volatile("" : "+w"(v.raw));
#endif
}

#if HWY_TARGET != HWY_AVX3_DL
/// as the kernels do it
HWY_INLINE hn::Vec<decltype(di16)> multiply_pairs(
        hn::Vec<decltype(du8)> g,
        hn::Vec<decltype(di8)> q) {
#if HWY_ARCH_ARM_A64
    const int8x16_t s = vreinterpretq_s8_u8(g.raw);
    const int16x8_t low = vmull_s8(vget_low_s8(s), vget_low_s8(q.raw));
    return hn::Vec<decltype(di16)>{vpaddq_s16(low, vmull_high_s8(s, q.raw))};
#else
    return hn::SatWidenMulPairwiseAdd(di16, g, q);
#endif
}
#endif

size_t multiply(size_t rounds) {
    constexpr size_t chains = 12;
    auto g = hn::Set(du8, uint8_t{63});
    auto q = hn::Set(di8, int8_t{-1});
    [[maybe_unused]] const auto ones = hn::Set(di16, int16_t{1});
    hn::Vec<decltype(di32)> acc[chains];
    // every loop unrolled: an array with a variable index lives in memory
    HWY_UNROLL(12)
    for (size_t k = 0; k < chains; k++) {
        acc[k] = hn::Zero(di32);
    }
    for (size_t i = 0; i < rounds; i++) {
        HWY_UNROLL(12)
        for (size_t k = 0; k < chains; k++) {
#if HWY_TARGET == HWY_AVX3_DL
            acc[k] = hn::SumOfMulQuadAccumulate(di32, g, q, acc[k]);
            hide(acc[k]);
#else
            auto first = multiply_pairs(g, q);
            hide(first);
            hide(q); // else both are the same product, computed once
            auto second = multiply_pairs(g, q);
            hide(second);
            acc[k] =
                    hn::Add(acc[k],
                            hn::WidenMulPairwiseAdd(
                                    di32, hn::Add(first, second), ones));
            hide(acc[k]);
#endif
        }
    }
    HWY_UNROLL(12)
    for (size_t k = 1; k < chains; k++) {
        acc[0] = hn::Add(acc[0], acc[k]);
    }
    hide(acc[0]);
    const size_t registers = HWY_TARGET == HWY_AVX3_DL ? 1 : 2;
    return rounds * chains * registers * hn::Lanes(du8);
}

uint64_t read(const uint8_t* bytes, size_t n) {
    const size_t width = hn::Lanes(du8);
    constexpr size_t streams = 8;
    hn::Vec<decltype(du8)> acc[streams];
    HWY_UNROLL(8)
    for (size_t k = 0; k < streams; k++) {
        acc[k] = hn::Zero(du8);
    }
    for (size_t i = 0; i + streams * width <= n; i += streams * width) {
        HWY_UNROLL(8)
        for (size_t k = 0; k < streams; k++) {
            acc[k] = hn::Xor(acc[k], hn::LoadU(du8, bytes + i + k * width));
        }
    }
    HWY_UNROLL(8)
    for (size_t k = 1; k < streams; k++) {
        acc[0] = hn::Xor(acc[0], acc[k]);
    }
    return hn::ReduceSum(
            hn::Repartition<uint64_t, decltype(du8)>(),
            hn::BitCast(hn::Repartition<uint64_t, decltype(du8)>(), acc[0]));
}

} // namespace HWY_NAMESPACE
} // namespace peaks
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace peaks {

using faiss_turboquant::SimdLevel;

size_t multiply(SimdLevel level, size_t rounds) {
    switch (level) {
#if HWY_TARGETS & HWY_SSE4
        case SimdLevel::sse4:
            return N_SSE4::multiply(rounds);
#endif
#if HWY_TARGETS & HWY_AVX2
        case SimdLevel::avx2:
        case SimdLevel::avx2_vnni: // in units of it: 1 is what avx2 can do
            return N_AVX2::multiply(rounds);
#endif
#if HWY_TARGETS & HWY_AVX3
        case SimdLevel::avx512:
            return N_AVX3::multiply(rounds);
#endif
#if HWY_TARGETS & HWY_AVX3_DL
        case SimdLevel::avx512_vnni:
        case SimdLevel::amx: // in units of it: 1 is what avx512_vnni can do
            return N_AVX3_DL::multiply(rounds);
#endif
#if HWY_TARGETS & HWY_NEON_WITHOUT_AES
        case SimdLevel::neon:
        case SimdLevel::neon_dot: // in units of it: 1 is what neon can do
            return N_NEON_WITHOUT_AES::multiply(rounds);
#endif
        default:
            return 0;
    }
}

HWY_EXPORT(read);

uint64_t read(const uint8_t* bytes, size_t n) {
    return HWY_DYNAMIC_DISPATCH(read)(bytes, n);
}

} // namespace peaks

#endif
