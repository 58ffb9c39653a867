// The SIMD kernels, written once with Highway. simd.cpp includes this file once
// per Highway target.
//
// The bound of a batch is the multiply ports: 64 products of u6 and s8 cost two
// vpmaddubsw and one vpmaddwd on AVX2 (1.5 cycles on two ports), one vpdpbusd
// with VNNI (0.5 cycle on two ports). For one query it is memory, then the
// decoding: one shift, one mask and one table lookup per register of fields.
//
// u6 x s8 cannot saturate vpmaddubsw, 2 * 63 * 127 = 16002, and two of its
// results still fit 16 bits, so one vpmaddwd serves two of them.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <faiss_turboquant/kernels/tables.h>
#include <faiss_turboquant/kernels/trellis_tables.h>

// SSE2 and emulation have no table lookup worth having: the scalar level
// serves those machines.
#if HWY_TARGET != HWY_SSE2 && HWY_TARGET != HWY_EMU128 && \
        HWY_TARGET != HWY_SCALAR

// A target of our own, from one of Highway's, changes these two and says what
// it has.
#ifdef TQ_TARGET_STR
#undef HWY_TARGET_STR
#define HWY_TARGET_STR TQ_TARGET_STR
#else
#undef TQ_NAMESPACE
#define TQ_NAMESPACE HWY_NAMESPACE
#endif

HWY_BEFORE_NAMESPACE();
namespace faiss_turboquant {
namespace TQ_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

const hn::CappedTag<uint8_t, 64> du8;
const hn::RepartitionToWide<decltype(du8)> du16;
const hn::RepartitionToWide<decltype(du16)> du32;
const hn::RepartitionToWide<decltype(du32)> du64;
const hn::Rebind<int8_t, decltype(du8)> di8;
const hn::Rebind<int16_t, decltype(du16)> di16;
const hn::Rebind<int32_t, decltype(du32)> di32;
const hn::Rebind<float, decltype(du32)> df32;
const hn::Rebind<double, decltype(du64)> df64;
const hn::Half<decltype(df32)> df32_half;
const hn::Half<decltype(du8)> du8_half;

using U8 = hn::Vec<decltype(du8)>;
using I8 = hn::Vec<decltype(di8)>;
using I16 = hn::Vec<decltype(di16)>;
using I32 = hn::Vec<decltype(di32)>;
using F32 = hn::Vec<decltype(df32)>;
using F64 = hn::Vec<decltype(df64)>;
using M32 = hn::Mask<decltype(df32)>;

constexpr size_t N8 = HWY_MAX_LANES_D(decltype(du8));
constexpr size_t N32 = N8 / 4;
constexpr size_t N64 = N8 / 8;
constexpr size_t lanes = 32;

// ---------------------------------------------------------------- float sums

template <class D, class V>
HWY_INLINE hn::TFromD<D> add_lanes(D d, V* acc) {
    constexpr size_t n = HWY_MAX_LANES_D(D);
    size_t regs = lanes / n;
    for (; regs > 1; regs /= 2) {
        for (size_t i = 0; i < regs / 2; i++) {
            acc[i] = hn::Add(acc[i], acc[i + regs / 2]);
        }
    }
    HWY_ALIGN hn::TFromD<D> lane[n];
    hn::Store(acc[0], d, lane);
    for (size_t half = n / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; i++) {
            lane[i] += lane[i + half];
        }
    }
    return lane[0];
}

void matvec(
        const float* m,
        size_t rows,
        size_t cols,
        const float* x,
        float* y) {
    for (size_t r = 0; r < rows; r++, m += cols) {
        F32 acc[lanes / N32];
        for (F32& a : acc) {
            a = hn::Zero(df32);
        }
        size_t i = 0;
        for (; i + lanes <= cols; i += lanes) {
            for (size_t k = 0; k < lanes / N32; k++) {
                const F32 a = hn::LoadU(df32, m + i + k * N32);
                const F32 b = hn::LoadU(df32, x + i + k * N32);
                acc[k] = hn::Add(acc[k], hn::Mul(a, b));
            }
        }
        for (size_t k = 0; k < lanes / N32 && i < cols; k++, i += N32) {
            const size_t left = std::min(N32, cols - i);
            const F32 a = hn::LoadN(df32, m + i, left);
            const F32 b = hn::LoadN(df32, x + i, left);
            acc[k] = hn::Add(acc[k], hn::Mul(a, b));
        }
        y[r] = add_lanes(df32, acc);
    }
}

using HalfF32 = hn::Vec<decltype(df32_half)>;

/// The lanes of a sum in double. Products of floats are exact in double, so a
/// sum is rounded once, fused or not.
struct DoubleLanes {
    F64 acc[lanes / N64];

    HWY_INLINE DoubleLanes() {
        for (F64& v : acc) {
            v = hn::Zero(df64);
        }
    }

    HWY_INLINE void add(size_t k, HalfF32 a, HalfF32 b) {
        acc[k] = hn::MulAdd(
                hn::PromoteTo(df64, a), hn::PromoteTo(df64, b), acc[k]);
    }

    HWY_INLINE double sum() {
        return add_lanes(df64, acc);
    }
};

// in line, so that squares convert each element once
HWY_INLINE double sum_of_products(const float* a, const float* b, size_t n) {
    DoubleLanes products;
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (size_t k = 0; k < lanes / N64; k++) {
            const size_t j = i + k * N64;
            products.add(
                    k,
                    hn::LoadU(df32_half, a + j),
                    hn::LoadU(df32_half, b + j));
        }
    }
    for (size_t k = 0; k < lanes / N64 && i < n; k++, i += N64) {
        products.add(
                k,
                hn::LoadN(df32_half, a + i, n - i),
                hn::LoadN(df32_half, b + i, n - i));
    }
    return products.sum();
}

double dot(const float* a, const float* b, size_t n) {
    return sum_of_products(a, b, n);
}

double sum_of_squares(const float* x, size_t n) {
    return sum_of_products(x, x, n);
}

template <bool squared>
HWY_INLINE double subtract_and_sum(
        const float* HWY_RESTRICT a,
        const float* HWY_RESTRICT b,
        size_t n,
        float* HWY_RESTRICT difference) {
    DoubleLanes products;
    const auto subtract = [&](size_t k, HalfF32 va, HalfF32 vb) HWY_ATTR {
        const HalfF32 d = hn::Sub(va, vb);
        products.add(k, squared ? d : va, squared ? d : vb);
        return d;
    };
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (size_t k = 0; k < lanes / N64; k++) {
            const size_t j = i + k * N64;
            const HalfF32 va = hn::LoadU(df32_half, a + j);
            const HalfF32 vb = hn::LoadU(df32_half, b + j);
            hn::StoreU(subtract(k, va, vb), df32_half, difference + j);
        }
    }
    for (size_t k = 0; k < lanes / N64 && i < n; k++, i += N64) {
        const HalfF32 va = hn::LoadN(df32_half, a + i, n - i);
        const HalfF32 vb = hn::LoadN(df32_half, b + i, n - i);
        hn::StoreN(subtract(k, va, vb), df32_half, difference + i, n - i);
    }
    return products.sum();
}

double subtract(
        const float* a,
        const float* b,
        size_t n,
        bool squared,
        float* difference) {
    return squared ? subtract_and_sum<true>(a, b, n, difference)
                   : subtract_and_sum<false>(a, b, n, difference);
}

void scale(const float* x, double factor, float* y, size_t n) {
    const F64 f = hn::Set(df64, factor);
    size_t i = 0;
    for (; i + N64 <= n; i += N64) {
        const F64 v = hn::PromoteTo(df64, hn::LoadU(df32_half, x + i));
        hn::StoreU(hn::DemoteTo(df32_half, hn::Mul(v, f)), df32_half, y + i);
    }
    for (; i < n; i++) {
        y[i] = static_cast<float>(x[i] * factor);
    }
}

// ------------------------------------------------------------------ Hadamard

/// lanes i and i ^ h of each register, for h < N32
template <size_t h>
HWY_INLINE F32 butterfly_within(F32 v) {
    F32 swapped;
    if constexpr (h == 1) {
        swapped = hn::Reverse2(df32, v);
    } else if constexpr (h == 2) {
        swapped = hn::Shuffle1032(v);
    } else if constexpr (2 * h == N32) {
        swapped = hn::ConcatLowerUpper(df32, v, v);
    } else {
        static_assert(h == 4);
        swapped = hn::SwapAdjacentBlocks(v);
    }
    // upper lanes get swapped - v. The product with 1 or -1 is exact, so the
    // sum is rounded once, fused or not.
    const auto upper = hn::TestBit(
            hn::Iota(du32, 0), hn::Set(du32, static_cast<uint32_t>(h)));
    const F32 sign = hn::IfThenElse(
            hn::RebindMask(df32, upper),
            hn::Set(df32, -1.0f),
            hn::Set(df32, 1.0f));
    return hn::MulAdd(v, sign, swapped);
}

HWY_INLINE F32 butterflies_within(F32 v) {
    v = butterfly_within<1>(v);
    v = butterfly_within<2>(v);
    if constexpr (N32 > 4) {
        v = butterfly_within<4>(v);
    }
    if constexpr (N32 > 8) {
        v = butterfly_within<8>(v);
    }
    return v;
}

/// butterflies between registers h, 2 h, .. apart
template <size_t regs, size_t h = 1>
HWY_INLINE void butterflies_between(F32 (&v)[regs]) {
    if constexpr (h < regs) {
        HWY_UNROLL(8)
        for (size_t i = 0; i < regs / 2; i++) {
            const size_t j = i / h * 2 * h + i % h;
            const F32 a = v[j], b = v[j + h];
            v[j] = hn::Add(a, b);
            v[j + h] = hn::Sub(a, b);
        }
        butterflies_between<regs, 2 * h>(v);
    }
}

/** Transforms of regs * N32 elements, of all n.
 * @param load  load(i) is elements i .. i + N32 */
template <size_t regs, class Load>
void hadamard_in_registers(Load load, float* y, size_t n) {
    for (size_t i = 0; i < n; i += regs * N32) {
        F32 v[regs];
        HWY_UNROLL(16)
        for (size_t k = 0; k < regs; k++) {
            v[k] = butterflies_within(load(i + k * N32));
        }
        butterflies_between(v);
        HWY_UNROLL(16)
        for (size_t k = 0; k < regs; k++) {
            hn::StoreU(v[k], df32, y + i + k * N32);
        }
    }
}

/// half of the registers that there are
constexpr size_t hadamard_regs = N32 == 16 ? 16 : 8;

/// the transform of load(0), load(N32), ..; n a multiple of N32
template <class Load>
void hadamard_of(Load load, float* y, size_t n) {
    // The order of the stages does not change, only which of them share a
    // pass over y: as many as registers allow, then two at a time.
    size_t h = std::min(n, hadamard_regs * N32);
    switch (h / N32) {
        case 1:
            hadamard_in_registers<1>(load, y, n);
            break;
        case 2:
            hadamard_in_registers<2>(load, y, n);
            break;
        case 4:
            hadamard_in_registers<4>(load, y, n);
            break;
        case 8:
            hadamard_in_registers<8>(load, y, n);
            break;
        default:
            hadamard_in_registers<hadamard_regs>(load, y, n);
    }
    for (; 2 * h < n; h *= 4) {
        for (size_t i = 0; i < n; i += 4 * h) {
            for (size_t j = i; j < i + h; j += N32) {
                const F32 a = hn::LoadU(df32, y + j);
                const F32 b = hn::LoadU(df32, y + j + h);
                const F32 c = hn::LoadU(df32, y + j + 2 * h);
                const F32 d = hn::LoadU(df32, y + j + 3 * h);
                const F32 ab = hn::Add(a, b), a_b = hn::Sub(a, b);
                const F32 cd = hn::Add(c, d), c_d = hn::Sub(c, d);
                hn::StoreU(hn::Add(ab, cd), df32, y + j);
                hn::StoreU(hn::Add(a_b, c_d), df32, y + j + h);
                hn::StoreU(hn::Sub(ab, cd), df32, y + j + 2 * h);
                hn::StoreU(hn::Sub(a_b, c_d), df32, y + j + 3 * h);
            }
        }
    }
    if (h < n) {
        for (size_t j = 0; j < h; j += N32) {
            const F32 a = hn::LoadU(df32, y + j);
            const F32 b = hn::LoadU(df32, y + j + h);
            hn::StoreU(hn::Add(a, b), df32, y + j);
            hn::StoreU(hn::Sub(a, b), df32, y + j + h);
        }
    }
}

void hadamard(float* x, size_t n) {
    if (n < N32) {
        for (size_t h = 1; h < n; h *= 2) {
            for (size_t i = 0; i < n; i += 2 * h) {
                for (size_t j = i; j < i + h; j++) {
                    const float a = x[j], b = x[j + h];
                    x[j] = a + b;
                    x[j + h] = a - b;
                }
            }
        }
        return;
    }
    hadamard_of(
            [x](size_t i) HWY_ATTR { return hn::LoadU(df32, x + i); }, x, n);
}

/// y[i] = x[starts[i]]
void permute_elements(
        const float* x,
        const int32_t* starts,
        size_t n,
        float* y) {
    size_t i = 0;
#if HWY_TARGET <= HWY_AVX3
    for (; i + N32 <= n; i += N32) {
        const F32 v = hn::GatherIndex(df32, x, hn::LoadU(di32, starts + i));
        hn::StoreU(v, df32, y + i);
    }
#else
    // Narrower gathers are no faster than loads one by one. These are bound by
    // loads and stores, of which pairs are half as many.
    for (; i + 8 <= n; i += 8) {
        HWY_UNROLL(4)
        for (size_t k = i; k < i + 8; k += 2) {
            uint64_t both;
            std::memcpy(&both, starts + k, sizeof(both));
            uint32_t low, high;
            std::memcpy(&low, x + static_cast<uint32_t>(both), sizeof(low));
            std::memcpy(&high, x + (both >> 32), sizeof(high));
            const uint64_t pair = low | uint64_t(high) << 32;
            std::memcpy(y + k, &pair, sizeof(pair));
        }
    }
#endif
    for (; i < n; i++) {
        y[i] = x[starts[i]];
    }
}

template <size_t size>
void permute_groups(
        const float* x,
        const int32_t* starts,
        size_t n_groups,
        float* y) {
    const hn::FixedTag<float, size> d;
    for (size_t i = 0; i < n_groups; i++) {
        hn::StoreU(hn::LoadU(d, x + starts[i]), d, y + i * size);
    }
}

template <size_t size>
void rotate_groups(
        const float* x,
        const int32_t* starts,
        const float* multiplier,
        const RotationBlocks& blocks,
        float* y) {
    // Groups of a register go straight to the butterflies. To put smaller ones
    // together there costs more than the detour through memory.
    constexpr bool straight = size >= N32;
    if constexpr (size == 1) {
        permute_elements(x, starts, blocks.d, y);
    } else if constexpr (!straight) {
        permute_groups<size>(x, starts, blocks.d / size, y);
    }
    for (size_t b = 0; b < blocks.n; b++) {
        const size_t n = blocks.sizes[b];
        if constexpr (straight) {
            const auto load = [=](size_t i) HWY_ATTR {
                return hn::Mul(
                        hn::LoadU(df32, x + starts[i / size] + i % size),
                        hn::LoadU(df32, multiplier + i));
            };
            hadamard_of(load, y, n);
            starts += n / size;
        } else if (n >= N32) {
            const auto load = [=](size_t i) HWY_ATTR {
                return hn::Mul(
                        hn::LoadU(df32, y + i),
                        hn::LoadU(df32, multiplier + i));
            };
            hadamard_of(load, y, n);
        } else {
            for (size_t i = 0; i < n; i++) {
                y[i] *= multiplier[i];
            }
            hadamard(y, n);
        }
        multiplier += n;
        y += n;
    }
}

void rotation_round(
        const float* x,
        const int32_t* starts,
        size_t group,
        const float* multiplier,
        const RotationBlocks& blocks,
        float* y) {
    switch (group) {
        case 1:
            return rotate_groups<1>(x, starts, multiplier, blocks, y);
        case 2:
            return rotate_groups<2>(x, starts, multiplier, blocks, y);
        case 4:
            return rotate_groups<4>(x, starts, multiplier, blocks, y);
        case 8:
            return rotate_groups<8>(x, starts, multiplier, blocks, y);
        case 16:
            return rotate_groups<16>(x, starts, multiplier, blocks, y);
        default: {
            // one group, one block
            const auto load = [=](size_t i) HWY_ATTR {
                return hn::Mul(
                        hn::LoadU(df32, x + i),
                        hn::LoadU(df32, multiplier + i));
            };
            hadamard_of(load, y, blocks.d);
        }
    }
}

// -------------------------------------------------------------------- fields

// Shifts of bytes by way of 16-bit lanes: bits cross between bytes, so callers
// mask, or have fields that leave room.
template <int bits>
HWY_INLINE U8 shift_right(U8 v) {
    return hn::BitCast(du8, hn::ShiftRight<bits>(hn::BitCast(du16, v)));
}

template <int bits>
HWY_INLINE U8 shift_left(U8 v) {
    return hn::BitCast(du8, hn::ShiftLeft<bits>(hn::BitCast(du16, v)));
}

/// field f of the bytes of a plane of b-bit fields
template <int b, int f>
HWY_INLINE U8 get_field(U8 v) {
    const U8 mask = hn::Set(du8, static_cast<uint8_t>((1 << b) - 1));
    return hn::And(shift_right<b * f>(v), mask);
}

/// Where a register that covers bytes [i, i + N8) of a plane of m bytes
/// starts: the last one ends at m, over bytes that were covered before.
HWY_INLINE size_t chunk_start(size_t i, size_t m) {
    return std::min(i, m - N8);
}

/// fields f, f + 1, .. of bytes of a plane, each at its place
template <int b, int f = 0>
HWY_INLINE U8 pack_fields(const uint8_t* fields, size_t m) {
    const U8 field = shift_left<b * f>(hn::LoadU(du8, fields + f * m));
    if constexpr (f + 1 < 8 / b) {
        return hn::Or(field, pack_fields<b, f + 1>(fields, m));
    } else {
        return field;
    }
}

template <int b>
void pack_plane(const uint8_t* fields, size_t m, uint8_t* plane) {
    HWY_ALIGN uint8_t last[N8];
    for (size_t i = 0; i < m; i += N8) {
        const U8 packed = pack_fields<b>(fields + i, m);
        if (i + N8 <= m) {
            hn::StoreU(packed, du8, plane + i);
        } else {
            hn::Store(packed, du8, last);
            std::memcpy(plane + i, last, m - i);
        }
    }
}

/// four registers of int32 to one of int8, saturating
HWY_INLINE I8 demote(I32 a, I32 b, I32 c, I32 d) {
    const I8 v = hn::ReorderDemote2To(
            di8,
            hn::ReorderDemote2To(di16, a, b),
            hn::ReorderDemote2To(di16, c, d));
    if constexpr (N8 == 16) {
        return v;
    } else {
        // each block of 16 bytes holds four of a, of b, of c, of d
        constexpr uint32_t blocks = N8 / 16;
        const auto at = hn::Iota(du32, 0);
        const auto block = hn::And(at, hn::Set(du32, blocks - 1));
        const auto of = hn::ShiftRight<hwy::CeilLog2(blocks)>(at);
        return hn::BitCast(
                di8,
                hn::TableLookupLanes(
                        hn::BitCast(du32, v),
                        hn::IndicesFromVec(
                                du32, hn::Add(hn::ShiftLeft<2>(block), of))));
    }
}

/// floor, for what is within int32
HWY_INLINE I32 floor_to_int(F32 v) {
#if HWY_TARGET <= HWY_AVX3
    return I32{_mm512_cvt_roundps_epi32(
            v.raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
#else
    return hn::ConvertInRangeTo(di32, hn::Floor(v));
#endif
}

HWY_INLINE U8 load_grid(const CodeLayout& layout) {
    return hn::LoadDup128(du8, layout.grid);
}

void trellis_encode(
        const CodeLayout& layout,
        const float* y,
        size_t y_stride,
        size_t n,
        uint8_t* scratch,
        uint8_t* planes,
        float* sums);
void trellis_decode(
        const CodeLayout& layout,
        const uint8_t* planes,
        uint8_t* grid);
#if HWY_TARGET == HWY_AVX3_DL
size_t trellis_query_size(const CodeLayout& layout);
void arrange_trellis_query(
        const CodeLayout& layout,
        const int8_t* q,
        int8_t* out);
#endif
struct Codes;
void trellis_dot_codes(
        const CodeLayout& layout,
        const Codes& codes,
        const int8_t* query,
        int32_t sum,
        int32_t* out);
bool decodes_in_registers(const CodeLayout& layout);

/// magnitudes of coordinates: numbers of thresholds that they reach
template <int nbits>
struct Magnitudes {
    static constexpr size_t n = (size_t(1) << (nbits - 1)) - 1;
#if HWY_TARGET == HWY_AVX3_DL
    U8 low, high; ///< a table by the 128 values there are

    HWY_INLINE explicit Magnitudes(const CodeLayout& layout)
            : low(count(layout, hn::Iota(di8, 0))),
              high(count(layout, hn::Iota(di8, 64))) {}

    static HWY_INLINE U8 count(const CodeLayout& layout, I8 h) {
        I8 reached = hn::Zero(di8);
        for (size_t k = 0; k < n; k++) {
            const I8 below =
                    hn::Set(di8, static_cast<int8_t>(layout.thresholds[k] - 1));
            reached = hn::Sub(reached, hn::VecFromMask(di8, hn::Gt(h, below)));
        }
        return hn::BitCast(du8, reached);
    }

    HWY_INLINE U8 operator()(I8 h) const {
        return U8{_mm512_permutex2var_epi8(low.raw, h.raw, high.raw)};
    }
#else
    I8 below[n + 1]; ///< thresholds, less one, and one not used

    HWY_INLINE explicit Magnitudes(const CodeLayout& layout) {
        HWY_UNROLL(8)
        for (size_t k = 0; k < n; k++) {
            below[k] =
                    hn::Set(di8, static_cast<int8_t>(layout.thresholds[k] - 1));
        }
    }

    HWY_INLINE U8 operator()(I8 h) const {
        I8 reached = hn::Zero(di8);
        HWY_UNROLL(8)
        for (size_t k = 0; k < n; k++) {
            reached =
                    hn::Sub(reached, hn::VecFromMask(di8, hn::Gt(h, below[k])));
        }
        return hn::BitCast(du8, reached);
    }
#endif
};

/// @param fields  (padded,), written
template <int nbits>
void find_fields(const CodeLayout& layout, const float* y, uint8_t* fields) {
    const F32 half_steps = hn::Set(df32, layout.half_steps);
    const Magnitudes<nbits> magnitudes(layout);
    const U8 sign_bit = hn::Set(du8, uint8_t{1 << (nbits - 1)});
    const size_t padded = layout.padded_dim();
    for (size_t i = 0; i < padded; i += N8) {
        I32 t[4];
        HWY_UNROLL(4)
        for (size_t k = 0; k < 4; k++) {
            const F32 v = hn::LoadU(df32, y + i + k * N32);
            t[k] = floor_to_int(hn::Mul(v, half_steps));
        }
        const I8 signed_steps = demote(t[0], t[1], t[2], t[3]);
        const I8 sign = hn::BroadcastSignBit(signed_steps);
        const U8 magnitude = magnitudes(hn::Xor(signed_steps, sign));
        const U8 field =
                hn::Or(magnitude, hn::And(hn::BitCast(du8, sign), sign_bit));
        hn::StoreU(field, du8, fields + i);
    }
}

/// sum of y (2 g - 63)
float sum_levels(
        const CodeLayout& layout,
        const float* y,
        const uint8_t* fields) {
    const U8 grid = load_grid(layout);
    const U8 odd_levels = // 2 g - 63
            hn::Sub(hn::Add(grid, grid), hn::Set(du8, uint8_t{63}));
    F32 acc[lanes / N32];
    HWY_UNROLL(8)
    for (size_t k = 0; k < lanes / N32; k++) {
        acc[k] = hn::Zero(df32);
    }
    const size_t padded = layout.padded_dim();
    for (size_t i = 0; i < padded; i += N8) {
        HWY_ALIGN int8_t odd[N8];
        const U8 field = hn::LoadU(du8, fields + i);
        hn::Store(
                hn::BitCast(di8, hn::TableLookupBytes(odd_levels, field)),
                di8,
                odd);
        const hn::Rebind<int8_t, decltype(di32)> quarter;
        HWY_UNROLL(4)
        for (size_t k = 0; k < 4; k++) {
            const F32 level = hn::ConvertTo(
                    df32,
                    hn::PromoteTo(di32, hn::Load(quarter, odd + k * N32)));
            F32& a = acc[k % (lanes / N32)];
            a = hn::Add(a, hn::Mul(hn::LoadU(df32, y + i + k * N32), level));
        }
        if constexpr (N8 == 16) {
            // a register of bytes is half of the lanes: the next one is the
            // other half
            std::rotate(acc, acc + 4, acc + 8);
        }
    }
    return add_lanes(df32, acc);
}

float encode_fields(
        const CodeLayout& layout,
        const float* y,
        uint8_t* fields,
        uint8_t* planes) {
    // One loop after the other: a register's way to its share of the sum is so
    // long that, all in one, less than two of them are under way at a time.
    const size_t padded = layout.padded_dim();
    switch (layout.nbits) {
        case 1:
            find_fields<1>(layout, y, fields);
            break;
        case 2:
            find_fields<2>(layout, y, fields);
            break;
        case 3:
            find_fields<3>(layout, y, fields);
            break;
        default:
            find_fields<4>(layout, y, fields);
    }
    const float sum = sum_levels(layout, y, fields);
    hn::StoreU(hn::Zero(du8), du8, fields + padded);
    switch (layout.nbits) {
        case 1:
            pack_plane<1>(fields, layout.plane_size(1), planes);
            break;
        case 2:
            pack_plane<2>(fields, layout.plane_size(2), planes);
            break;
        case 3: {
            const U8 low = hn::Set(du8, uint8_t{3});
            const U8 one = hn::Set(du8, uint8_t{1});
            const size_t m2 = layout.plane_size(2);
            uint8_t* magnitudes = fields + padded + N8;
            for (size_t i = 0; i <= padded; i += N8) {
                const U8 field = hn::LoadU(du8, fields + i);
                hn::StoreU(hn::And(field, low), du8, magnitudes + i);
                hn::StoreU(
                        hn::And(shift_right<2>(field), one), du8, fields + i);
            }
            pack_plane<2>(magnitudes, m2, planes);
            pack_plane<1>(fields, layout.plane_size(1), planes + m2);
            break;
        }
        default:
            pack_plane<4>(fields, layout.plane_size(4), planes);
    }
    return sum;
}

void encode(
        const CodeLayout& layout,
        const float* y,
        size_t y_stride,
        size_t n,
        uint8_t* scratch,
        uint8_t* planes,
        float* sums) {
    if (layout.has_trellis()) {
        trellis_encode(layout, y, y_stride, n, scratch, planes, sums);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        sums[i] = encode_fields(
                layout,
                y + i * y_stride,
                scratch,
                planes + i * layout.code_size);
    }
}

#include <faiss_turboquant/kernels/fields-inl.h>

/// 3 bits are read in registers only if the fields of both planes line up
bool planes_line_up(const CodeLayout& layout) {
    if (layout.has_trellis()) {
        return decodes_in_registers(layout);
    }
    return layout.nbits != 3 || layout.d % 8 == 0;
}

/// f(fields, bytes of a plane), for codes without a trellis whose planes line
/// up
template <class F>
HWY_INLINE void with_fields(const CodeLayout& layout, F f) {
    switch (layout.nbits) {
        case 1:
            return f(PlaneFields<1>(layout), layout.plane_size(1));
        case 2:
            return f(PlaneFields<2>(layout), layout.plane_size(2));
        case 3:
            return f(ThreeBitFields(layout), layout.plane_size(1));
        default:
            return f(PlaneFields<4>(layout), layout.plane_size(4));
    }
}

/// f(decoder), with decoder(planes, grid) for codes of the layout: what is the
/// same for all of them is made once
template <class F>
HWY_INLINE void with_decoder(const CodeLayout& layout, F f) {
    if (layout.has_trellis()) {
        f([&](const uint8_t* planes, uint8_t* grid)
                  HWY_ATTR { trellis_decode(layout, planes, grid); });
    } else if (planes_line_up(layout)) {
        with_fields(layout, [&](const auto& fields, size_t m) HWY_ATTR {
            f([&](const uint8_t* planes, uint8_t* grid)
                      HWY_ATTR { decode_fields(fields, planes, m, grid); });
        });
    } else {
        // where the sign is set, g is 63 - g, which is g ^ 63
        CodeLayout flips_layout;
        flips_layout.grid[1] = 63;
        const PlaneFields<1> flips(flips_layout);
        const PlaneFields<2> magnitudes(layout);
        const size_t m = layout.plane_size(2);
        std::vector<uint8_t> flip(layout.grid_size());
        f([&](const uint8_t* planes, uint8_t* grid) HWY_ATTR {
            decode_fields(magnitudes, planes, m, grid);
            decode_fields(flips, planes + m, layout.plane_size(1), flip.data());
            for (size_t i = 0; i < layout.d; i += N8) {
                const U8 g = hn::LoadU(du8, grid + i);
                hn::StoreU(hn::Xor(g, hn::LoadU(du8, &flip[i])), du8, grid + i);
            }
        });
    }
}

void decode(const CodeLayout& layout, const uint8_t* planes, uint8_t* grid) {
    with_decoder(layout, [&](auto decoder) HWY_ATTR { decoder(planes, grid); });
}

// ------------------------------------------------------------------- queries

float quantize_query(const float* y, size_t n, int8_t* q, int32_t* sum) {
    // four, for a maximum waits for the one before
    F32 lanes_max[4];
    for (F32& v : lanes_max) {
        v = hn::Zero(df32);
    }
    for (size_t i = 0; i < n; i += N8) {
        for (int k = 0; k < 4; k++) {
            const F32 v = hn::LoadU(df32, y + i + k * N32);
            lanes_max[k] = hn::Max(lanes_max[k], hn::Abs(v));
        }
    }
    const float largest = hn::ReduceMax(
            df32,
            hn::Max(hn::Max(lanes_max[0], lanes_max[1]),
                    hn::Max(lanes_max[2], lanes_max[3])));
    const F32 factor = hn::Set(df32, largest > 0 ? 127 / largest : 0);
    I32 sums = hn::Zero(di32);
    for (size_t i = 0; i < n; i += N8) {
        I32 t[4];
        for (int k = 0; k < 4; k++) {
            t[k] = hn::NearestInt(
                    hn::Mul(hn::LoadU(df32, y + i + k * N32), factor));
            sums = hn::Add(sums, t[k]);
        }
        hn::StoreU(demote(t[0], t[1], t[2], t[3]), di8, q + i);
    }
    *sum = hn::ReduceSum(di32, sums);
    return largest;
}

/// bits of the fields that the query is arranged for
int query_field_bits(const CodeLayout& layout) {
    return layout.nbits == 3 || layout.has_trellis() ? 1 : layout.nbits;
}

/** How dot_codes reads what is left of a plane after its full registers: by
 * itself, or, where that leaves a register half empty, with several codes in
 * each register, of which each takes its part. */
struct Tails {
    size_t codes; ///< that share a register: 1, 2 or 4
    size_t n;     ///< registers of those codes; 0: nothing is left

    HWY_INLINE explicit Tails(const CodeLayout& layout) : codes(1), n(0) {
        const int b = query_field_bits(layout);
        const size_t m = layout.plane_size(b);
        const size_t left = m % N8, part = left <= 16 ? 16 : N8 / 2;
        n = left > 0;
        if (left == 0 || N8 == 16) {
            return;
        }
        if (layout.has_trellis()) {
            const bool is_pair = m > N8 || (N8 == 32 && fills(m, N8 / 2));
            codes = is_pair && left <= N8 / 2 ? 2 : 1;
        } else if (left <= part && fills(m, part)) {
            codes = N8 / part;
        } else if (N8 == 64 && b == 1 && left <= 48 && m >= 16) {
            // bits take so long that three registers in place of four pay
            codes = 4;
            n = (left + 15) / 16;
        }
    }

    /// whether a plane of m bytes can be read in parts
    static HWY_INLINE bool fills(size_t m, size_t part) {
        return m + plane_slack >= part;
    }
    /// bytes of a code in each register
    HWY_INLINE size_t part() const {
        return N8 / codes;
    }
    /// where the part of register i begins, in a plane of m bytes: parts of a
    /// plane overlap rather than go past its end
    HWY_INLINE size_t start(size_t i, size_t m) const {
        return m < part() ? 0 : std::min(m / N8 * N8 + i * part(), m - part());
    }
};

size_t query_size(const CodeLayout& layout) {
    if (!planes_line_up(layout)) {
        return layout.padded_dim();
    }
#if HWY_TARGET == HWY_AVX3_DL
    if (layout.has_trellis()) {
        return trellis_query_size(layout);
    }
#endif
    const int b = query_field_bits(layout);
    const size_t registers = layout.plane_size(b) / N8 + Tails(layout).n;
    return registers * N8 * (8 / b);
}

/// [register][field][N8], as often as there are codes that share a register,
/// and zero for bytes that an earlier register covers
void arrange_query(const CodeLayout& layout, const int8_t* q, int8_t* out) {
    if (!planes_line_up(layout)) {
        std::memcpy(out, q, layout.padded_dim());
        return;
    }
#if HWY_TARGET == HWY_AVX3_DL
    if (layout.has_trellis()) {
        arrange_trellis_query(layout, q, out);
        return;
    }
#endif
    const int b = query_field_bits(layout);
    const size_t m = layout.plane_size(b);
    std::memset(out, 0, query_size(layout));
    // bytes [i, end) of the fields, where a register's code begins at `at`
    const auto arrange = [&](size_t i, size_t end, size_t at, size_t codes) {
        for (int f = 0; f < 8 / b; f++, out += N8) {
            for (size_t k = 0; k < codes; k++) {
                std::memcpy(
                        out + k * (N8 / codes) + (i - at),
                        q + f * m + i,
                        end - i);
            }
        }
    };
    size_t i = 0;
    for (; i + N8 <= m; i += N8) {
        arrange(i, i + N8, i, 1);
    }
    const Tails tails(layout);
    for (size_t k = 0; k < tails.n; k++, i += tails.part()) {
        const size_t end = std::min(i + tails.part(), m);
        arrange(i, end, tails.start(k, m), tails.codes);
    }
}

#if HWY_TARGET == HWY_AVX3_DL || defined(TQ_AVX2_VNNI) || defined(TQ_NEON_DOT)
#define TQ_HAS_QUAD_DOT 1
#else
#define TQ_HAS_QUAD_DOT 0
#endif

/// products of u6 and s8, two neighbours added up in 16 bits
HWY_INLINE I16 multiply_pairs(U8 g, I8 q) {
#if HWY_ARCH_ARM_A64
    // 3 instructions where Highway, for any u8, takes 9
    const int8x16_t s = vreinterpretq_s8_u8(g.raw);
    const int16x8_t low = vmull_s8(vget_low_s8(s), vget_low_s8(q.raw));
    return I16{vpaddq_s16(low, vmull_high_s8(s, q.raw))};
#else
    return hn::SatWidenMulPairwiseAdd(di16, g, q);
#endif
}

/// 32-bit sums of products of u6 and s8
struct Accumulator {
    I32 sum;

    // not a default initialiser: the compiler would make that constructor
    // outside of this target
    HWY_INLINE Accumulator() : sum(hn::Zero(di32)) {}

#if TQ_HAS_QUAD_DOT
    HWY_INLINE void add(U8 g, I8 q) {
#if defined(TQ_AVX2_VNNI)
        sum = I32{_mm256_dpbusd_avx_epi32(sum.raw, g.raw, q.raw)};
#elif defined(TQ_NEON_DOT)
        sum = I32{vdotq_s32(sum.raw, vreinterpretq_s8_u8(g.raw), q.raw)};
#else
        sum = hn::SumOfMulQuadAccumulate(di32, g, q, sum);
#endif
    }
#endif

    /// products of two registers
    HWY_INLINE void add(U8 g0, I8 q0, U8 g1, I8 q1) {
        add(g0, q0, g1, q1, hn::Set(di16, int16_t{1}));
    }
    HWY_INLINE void add(U8 g0, I8 q0, U8 g1, I8 q1, [[maybe_unused]] I16 ones) {
#if TQ_HAS_QUAD_DOT
        add(g0, q0);
        add(g1, q1);
#else
        const I16 pairs =
                hn::Add(multiply_pairs(g0, q0), multiply_pairs(g1, q1));
        sum = hn::Add(sum, hn::WidenMulPairwiseAdd(di32, pairs, ones));
#endif
    }
};

#include <faiss_turboquant/kernels/dot-inl.h>
#include <faiss_turboquant/kernels/signs-inl.h>
#include <faiss_turboquant/kernels/trellis-inl.h>
#include <faiss_turboquant/kernels/trellis_dot-inl.h>

// -------------------------------------------------------------------- panels

/// v[i] dword j of each block of 16 bytes becomes v[j] dword i, i < 4
template <class V>
HWY_INLINE void transpose_blocks(V* v) {
    const hn::DFromV<V> d;
    const hn::Repartition<uint32_t, decltype(d)> d32;
    const hn::Repartition<uint64_t, decltype(d)> d64;
    const auto low = [&](V a, V b) HWY_ATTR {
        return hn::BitCast(
                d64,
                hn::InterleaveLower(
                        d32, hn::BitCast(d32, a), hn::BitCast(d32, b)));
    };
    const auto high = [&](V a, V b) HWY_ATTR {
        return hn::BitCast(
                d64,
                hn::InterleaveUpper(
                        d32, hn::BitCast(d32, a), hn::BitCast(d32, b)));
    };
    const auto ab_low = low(v[0], v[1]), ab_high = high(v[0], v[1]);
    const auto cd_low = low(v[2], v[3]), cd_high = high(v[2], v[3]);
    v[0] = hn::BitCast(d, hn::InterleaveLower(d64, ab_low, cd_low));
    v[1] = hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, cd_low));
    v[2] = hn::BitCast(d, hn::InterleaveLower(d64, ab_high, cd_high));
    v[3] = hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, cd_high));
}

/// 16 bytes of codes 0, 4, .., a block each
HWY_INLINE U8 load_blocks(const uint8_t* const* codes, size_t byte) {
#if HWY_TARGET <= HWY_AVX3
    return load_quad(
            codes[0] + byte,
            codes[4] + byte,
            codes[8] + byte,
            codes[12] + byte);
#else
    if constexpr (N8 == 32) {
        return load_pair(codes[0] + byte, codes[4] + byte);
    } else {
        return hn::LoadU(du8, codes[0] + byte);
    }
#endif
}

/// whether decode_blocks or decode_trellis_blocks can do it
bool decodes_in_blocks(const CodeLayout& layout) {
    const size_t m = layout.plane_size(query_field_bits(layout));
    return planes_line_up(layout) && Tails::fills(m, 16) && m % 4 == 0;
}

/// where blocks of 16 bytes of a plane begin: the last one ends with the plane
HWY_INLINE size_t block_start(size_t i, size_t m) {
    return m < 16 ? 0 : std::min(i, m - 16);
}
/// quads of bytes of one of them
HWY_INLINE size_t block_quads(size_t m) {
    return std::min<size_t>(4, m / 4);
}

/** A panel of codes whose planes are of whole quads of bytes, m bytes a plane.
 *
 * Four bytes of consecutive codes, side by side, hold the fields of quads of
 * the panel: the codes are transposed and not their grid positions, which are
 * 8 / b times as many bytes. */
template <class Fields>
HWY_INLINE void decode_blocks(
        const Fields& fields,
        const uint8_t* const (&codes)[panel_rows],
        size_t n,
        size_t m,
        uint8_t* panel) {
    for (size_t row = 0; row < n; row += N32) {
        for (size_t i = 0; i < m; i += 16) {
            const size_t byte = block_start(i, m);
            U8 quads[4][Fields::n_planes];
            for (size_t plane = 0; plane < Fields::n_planes; plane++) {
                U8 blocks[4];
                for (size_t k = 0; k < 4; k++) {
                    blocks[k] = load_blocks(&codes[row + k], plane * m + byte);
                }
                transpose_blocks(blocks);
                for (size_t k = 0; k < 4; k++) {
                    quads[k][plane] = blocks[k];
                }
            }
            uint8_t* out = panel + byte * panel_rows + row * 4;
            for (size_t k = 0; k < block_quads(m); k++, out += 4 * panel_rows) {
                store_fields(
                        fields,
                        Fields::of_planes(quads[k]),
                        m * panel_rows,
                        out);
            }
        }
    }
}

/// transpose_blocks for each plane
template <int nbits>
HWY_INLINE void transpose_planes(IndexPlanes (&planes)[4]) {
    const auto transpose = [&](auto plane) HWY_ATTR {
        U8 v[] = {
                plane(planes[0]),
                plane(planes[1]),
                plane(planes[2]),
                plane(planes[3])};
        transpose_blocks(v);
        HWY_UNROLL(4)
        for (size_t k = 0; k < 4; k++) {
            plane(planes[k]) = v[k];
        }
    };
    HWY_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        transpose([i](IndexPlanes& of) HWY_ATTR -> U8& { return of.bits[i]; });
    }
    if constexpr (nbits > 1) {
        transpose([](IndexPlanes& of) HWY_ATTR -> U8& { return of.signs; });
    }
}

/// The same with a trellis: what is transposed is parities and other planes
template <class Code>
HWY_INLINE void decode_trellis_blocks(
        const CodeLayout& layout,
        const uint8_t* const (&codes)[panel_rows],
        size_t n,
        uint8_t* panel) {
    const Code code(layout.trellis);
    const Constants constants;
    const Levels<Code::nbits> levels(layout, constants);
    const size_t m = layout.plane_size(1);
    const BytesBefore before(m);
    for (size_t row = 0; row < n; row += N32) {
        for (size_t i = 0; i < m; i += 16) {
            const size_t byte = block_start(i, m);
            IndexPlanes quads[4];
            HWY_UNROLL(4)
            for (size_t k = 0; k < 4; k++) {
                const uint8_t* const* of_rows = &codes[row + k];
                const auto load = [of_rows](const uint8_t* p) HWY_ATTR {
                    return load_blocks(of_rows, p - of_rows[0]);
                };
                CodedBlocks coded;
                coded.bytes = load_blocks(of_rows, byte);
                coded.before = before.get(byte, [of_rows](size_t at) HWY_ATTR {
                    return load_blocks(of_rows, at);
                });
                quads[k] = get_planes(code, coded, *of_rows + byte, m, load);
            }
            transpose_planes<Code::nbits>(quads);
            uint8_t* out = panel + byte * panel_rows + row * 4;
            for (size_t k = 0; k < block_quads(m); k++, out += 4 * panel_rows) {
                decode_indices<Code::nbits>(
                        gather_indices<Code::nbits>(quads[k], constants),
                        levels,
                        m * panel_rows,
                        out);
            }
        }
    }
}

// A transposition is shuffles, which are no faster in 512 bits.
const hn::CappedTag<int32_t, 8> quads32;
const hn::Repartition<uint8_t, decltype(quads32)> quads8;
using Quads = hn::Vec<decltype(quads32)>;
constexpr size_t NQ = HWY_MAX_LANES_D(decltype(quads32));

/// v[i] lane j becomes v[j] lane i
HWY_INLINE void transpose(Quads* v) {
    for (size_t i = 0; i < NQ; i += 4) {
        transpose_blocks(v + i);
    }
    if constexpr (NQ == 8) {
        for (size_t i = 0; i < 4; i++) {
            const Quads a = v[i], b = v[4 + i];
            v[i] = hn::ConcatLowerLower(quads32, b, a);
            v[4 + i] = hn::ConcatUpperUpper(quads32, b, a);
        }
    }
}

void decode_panel(
        const CodeLayout& layout,
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        uint8_t* scratch,
        uint8_t* panel) {
    const uint8_t* of_rows[panel_rows];
    for (size_t i = 0; i < panel_rows; i++) {
        const size_t row = std::min(i, n - 1);
        of_rows[i] = codes + (rows ? rows[row] : row) * layout.code_size;
    }
    if (decodes_in_blocks(layout)) {
        if (layout.has_trellis()) {
            with_code(layout, [&](auto* code) HWY_ATTR {
                decode_trellis_blocks<std::decay_t<decltype(*code)>>(
                        layout, of_rows, n, panel);
            });
        } else {
            with_fields(layout, [&](const auto& fields, size_t m) HWY_ATTR {
                decode_blocks(fields, of_rows, n, m, panel);
            });
        }
        return;
    }
    const size_t padded = layout.padded_dim();
    with_decoder(layout, [&](auto decoder) HWY_ATTR {
        for (size_t i = 0; i < n; i++) {
            decoder(of_rows[i], scratch + i * padded);
        }
    });
    for (size_t row = 0; row < n; row += NQ) {
        for (size_t j = 0; j < padded; j += NQ * 4) {
            Quads v[NQ];
            for (size_t k = 0; k < NQ; k++) {
                v[k] = hn::BitCast(
                        quads32,
                        hn::LoadU(quads8, scratch + (row + k) * padded + j));
            }
            transpose(v);
            for (size_t k = 0; k < NQ; k++) {
                hn::StoreU(
                        hn::BitCast(quads8, v[k]),
                        quads8,
                        panel + ((j / 4 + k) * panel_rows + row) * 4);
            }
        }
    }
}

// Accumulators are tile_panels * panel_rows / N32 * queries registers, at
// most 8 of 16 on AVX2, which leaves room for the operands of a pair of quads;
// 12 of 16 with VNNI, whose latency takes 10; 24 of 32 on AVX-512, where every
// operand is used 4 or 6 times; 16 of 32 with NEON's dot product, where 24
// would not leave room for six queries beside them.
constexpr size_t tile_panels = N8 == 64 ? 4 : 1;
constexpr size_t max_tile_queries =
        N8 == 64 ? 6 : N8 / 8 + (TQ_HAS_QUAD_DOT ? 2 : 0);

/// tile_panels panels with a tile of queries
template <size_t tile_queries>
HWY_INLINE void dot_tile(
        const uint8_t* panels,
        size_t panel_stride,
        const int8_t* queries,
        size_t query_stride,
        size_t quads,
        int32_t* out,
        size_t out_stride) {
    constexpr size_t regs = panel_rows * 4 / N8; // of a panel's quad
    constexpr size_t width = tile_panels * regs;
    // without a dot product of quads, two quads share one vpmaddwd
    constexpr size_t step = TQ_HAS_QUAD_DOT ? 1 : 2;
    Accumulator acc[tile_queries][width];
    for (size_t quad = 0; quad < quads; quad += step) {
        U8 g[step][width];
        HWY_UNROLL(8)
        for (size_t w = 0; w < width; w++) {
            const uint8_t* at =
                    panels + w / regs * panel_stride + w % regs * N8;
            HWY_UNROLL(2)
            for (size_t s = 0; s < step; s++) {
                g[s][w] = hn::LoadU(du8, at + (quad + s) * panel_rows * 4);
            }
        }
        HWY_UNROLL(8)
        for (size_t k = 0; k < tile_queries; k++) {
            I8 q[step];
            HWY_UNROLL(2)
            for (size_t s = 0; s < step; s++) {
                uint32_t bits;
                std::memcpy(
                        &bits, queries + k * query_stride + (quad + s) * 4, 4);
                q[s] = hn::BitCast(di8, hn::Set(du32, bits));
            }
            HWY_UNROLL(8)
            for (size_t w = 0; w < width; w++) {
#if TQ_HAS_QUAD_DOT
                acc[k][w].add(g[0][w], q[0]);
#else
                acc[k][w].add(g[0][w], q[0], g[1][w], q[1]);
#endif
            }
        }
    }
    // unrolled too: an accumulator with a variable index lives in memory
    HWY_UNROLL(8)
    for (size_t k = 0; k < tile_queries; k++) {
        HWY_UNROLL(8)
        for (size_t w = 0; w < width; w++) {
            hn::StoreU(acc[k][w].sum, di32, out + k * out_stride + w * N32);
        }
    }
}

/// dot_panels with at most tile_queries queries
template <size_t tile_queries>
void dot_panels_of(
        const uint8_t* panels,
        size_t panel_stride,
        size_t n_panels,
        const int8_t* queries,
        size_t n_queries,
        size_t query_stride,
        size_t quads,
        int32_t* out,
        size_t out_stride) {
    if constexpr (tile_queries > 1) {
        if (n_queries < tile_queries) {
            return dot_panels_of<tile_queries - 1>(
                    panels,
                    panel_stride,
                    n_panels,
                    queries,
                    n_queries,
                    query_stride,
                    quads,
                    out,
                    out_stride);
        }
    }
    static_assert(panel_group % tile_panels == 0);
    for (size_t p = 0; p < n_panels; p += tile_panels) {
        dot_tile<tile_queries>(
                panels + p * panel_stride,
                panel_stride,
                queries,
                query_stride,
                quads,
                out + p * panel_rows,
                out_stride);
    }
}

/** The keys of select, N32 at a time. The sign is in the multiplier and the
 * bias: negation commutes with rounding. */
struct KeyFormula {
    const I32 shift;
    const F32 multiplier, bias, sign;
    const float* offsets;

    HWY_INLINE KeyFormula(
            const QueryFactors& factors,
            const float* offsets,
            float sign)
            : shift(hn::Set(di32, 63 * factors.sum)),
              multiplier(hn::Set(df32, sign * factors.multiplier)),
              bias(hn::Set(
                      df32,
                      offsets ? factors.bias : sign * (0 + factors.bias))),
              sign(hn::Set(df32, sign)),
              offsets(offsets) {}

    HWY_INLINE F32
    operator()(const int32_t* dots, const float* scales, size_t i) const {
        const I32 dot = hn::LoadU(di32, dots + i);
        const F32 t = hn::ConvertTo(df32, hn::Sub(hn::Add(dot, dot), shift));
        const F32 product =
                hn::Mul(hn::Mul(t, hn::LoadU(df32, scales + i)), multiplier);
        if (!offsets) {
            return hn::Add(product, bias);
        }
        const F32 offset = hn::Add(hn::LoadU(df32, offsets + i), bias);
        return hn::Add(product, hn::Mul(sign, offset));
    }
};

size_t select(
        const QueryFactors& factors,
        const int32_t* dots,
        const float* scales,
        const float* offsets,
        size_t n,
        float sign,
        float threshold,
        float* keys,
        uint32_t* positions) {
    const KeyFormula key_of(factors, offsets, sign);
    const F32 limit = hn::Set(df32, threshold);
    size_t kept = 0;
    const auto keep = [&](F32 key, M32 better, size_t i) HWY_ATTR {
        const auto position =
                hn::Add(hn::Iota(du32, 0), hn::Set(du32, uint32_t(i)));
        hn::CompressStore(
                position, hn::RebindMask(du32, better), du32, positions + kept);
        kept += hn::CompressStore(key, better, df32, keys + kept);
    };
    size_t i = 0;
    for (; i + 4 * N32 <= n; i += 4 * N32) {
        F32 key[4];
        M32 better[4];
        for (size_t r = 0; r < 4; r++) {
            key[r] = key_of(dots, scales, i + r * N32);
            better[r] = hn::Lt(key[r], limit);
        }
        const auto any = hn::Or(
                hn::Or(better[0], better[1]), hn::Or(better[2], better[3]));
        if (HWY_UNLIKELY(!hn::AllFalse(df32, any))) {
            for (size_t r = 0; r < 4; r++) {
                keep(key[r], better[r], i + r * N32);
            }
        }
    }
    for (; i < n; i += N32) {
        const F32 key = key_of(dots, scales, i);
        keep(key,
             hn::And(hn::Lt(key, limit),
                     hn::FirstN(df32, std::min(N32, n - i))),
             i);
    }
    return kept;
}

constexpr SimdLevel level() {
#if HWY_TARGET == HWY_AVX3_DL
    return SimdLevel::avx512_vnni;
#elif HWY_TARGET == HWY_AVX3
    return SimdLevel::avx512;
#elif defined(TQ_AVX2_VNNI)
    return SimdLevel::avx2_vnni;
#elif HWY_TARGET == HWY_AVX2
    return SimdLevel::avx2;
#elif HWY_TARGET == HWY_SSE4
    return SimdLevel::sse4;
#elif defined(TQ_NEON_DOT)
    return SimdLevel::neon_dot;
#else
    return SimdLevel::neon;
#endif
}

const Kernels& table() {
    static const Kernels kernels = {
            level(),          hadamard,
            rotation_round,   matvec,
            sum_of_squares,   dot,
            subtract,         scale,
            encode,           decode,
            quantize_query,   query_size,
            arrange_query,    dot_codes,
            decode_panel,     max_tile_queries,
            /*quad_step=*/2,  dot_panels_of<max_tile_queries>,
            select,           pack_signs,
            fill_sign_tables, sum_signs,
            filter_signs,
    };
    return kernels;
}

#undef TQ_HAS_QUAD_DOT

} // namespace TQ_NAMESPACE
} // namespace faiss_turboquant
HWY_AFTER_NAMESPACE();

#endif // a target with SIMD
