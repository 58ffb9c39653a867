// Blocks of signs: what of a code a query reads first. A part of simd-inl.h,
// included there once per target, inside the namespaces.
//
// Per byte and register two table lookups and two additions of 8 bits; the sums
// of four bytes are widened together. With two masks and a shift, which queries
// share, that is 7.5 instructions for the eight coordinates of 64 codes with
// AVX-512, 5.3 of four queries each: a third of what a product with each sign
// takes.

LevelSums pack_signs(
        const uint8_t* grid,
        size_t d,
        uint8_t large,
        uint8_t* signs,
        uint8_t* sizes,
        size_t stride) {
    const U8 middle = hn::Set(du8, uint8_t{32});
    const I8 ones = hn::Set(di8, int8_t{1});
    Accumulator sum, sum_of_squares, sum_of_large;
    size_t n_large = 0;
    constexpr size_t reg_bytes = N8 / 8;
    for (size_t i = 0; i < d; i += N8) {
        // grid has room up to the next multiple of 64
        const U8 g = hn::LoadU(du8, grid + i);
        const auto valid = hn::FirstN(du8, std::min(N8, d - i));
        const auto store = [&](auto mask, uint8_t* bits) HWY_ATTR {
            uint8_t packed[reg_bytes < 8 ? 8 : reg_bytes];
            hn::StoreMaskBits(du8, hn::And(mask, valid), packed);
            for (size_t byte = 0; byte < reg_bytes && i + 8 * byte < d;
                 byte++) {
                bits[(i / 8 + byte) * stride] = packed[byte];
            }
        };
        const I8 level = hn::BitCast(
                di8, hn::Sub(hn::Add(g, g), hn::Set(du8, uint8_t{63})));
        const U8 magnitude =
                hn::IfThenElseZero(valid, hn::BitCast(du8, hn::Abs(level)));
        const auto is_positive = hn::Ge(g, middle);
        const auto is_large =
                hn::And(hn::Ge(magnitude, hn::Set(du8, large)), valid);
        store(is_positive, signs);
        if (sizes) {
            store(hn::Not(hn::Xor(is_positive, is_large)), sizes);
        }
        const U8 none = hn::Zero(du8);
        sum.add(magnitude, ones, none, ones);
        sum_of_squares.add(magnitude, hn::BitCast(di8, magnitude), none, ones);
        sum_of_large.add(
                hn::IfThenElseZero(is_large, magnitude), ones, none, ones);
        n_large += hn::CountTrue(du8, is_large);
    }
    return {hn::ReduceSum(di32, sum.sum),
            hn::ReduceSum(di32, sum_of_squares.sum),
            hn::ReduceSum(di32, sum_of_large.sum),
            static_cast<int32_t>(n_large)};
}

void fill_sign_tables(
        const int8_t* q,
        size_t n,
        int16_t factor,
        int16_t half,
        uint8_t* tables) {
    const hn::CappedTag<int16_t, 16> d16;
    const hn::Rebind<uint8_t, decltype(d16)> d8;
    constexpr size_t lanes = HWY_MAX_LANES_D(decltype(d16));
    const auto factors = hn::Set(d16, factor);
    for (size_t part = 0; part < 16; part += lanes) {
        // the signs of an entry are the bits of its number
        const auto number = hn::Iota(d16, static_cast<int16_t>(part));
        const auto has = [&](int j) HWY_ATTR {
            return hn::VecFromMask(
                    d16,
                    hn::TestBit(
                            number,
                            hn::Set(d16, static_cast<int16_t>(1 << j))));
        };
        const auto has0 = has(0), has1 = has(1), has2 = has(2), has3 = has(3);
        for (size_t i = 0; i < n; i++) {
            constexpr int unit = 1 << half_fraction;
            const int16_t q0 = q[4 * i] * unit, q1 = q[4 * i + 1] * unit,
                          q2 = q[4 * i + 2] * unit, q3 = q[4 * i + 3] * unit;
            // those of negative coordinates, then those whose bit is set
            const int16_t none = half - std::min<int16_t>(q0, 0) -
                    std::min<int16_t>(q1, 0) - std::min<int16_t>(q2, 0) -
                    std::min<int16_t>(q3, 0);
            const auto sum01 =
                    hn::Add(hn::And(hn::Set(d16, q0), has0),
                            hn::And(hn::Set(d16, q1), has1));
            const auto sum23 =
                    hn::Add(hn::And(hn::Set(d16, q2), has2),
                            hn::And(hn::Set(d16, q3), has3));
            const auto sum = hn::Add(hn::Add(sum01, sum23), hn::Set(d16, none));
            static_assert(sign_fraction == 16, "the high half of a product");
            const auto entries =
                    hn::ShiftRight<half_fraction>(hn::MulHigh(sum, factors));
            hn::StoreU(hn::DemoteTo(d8, entries), d8, tables + 16 * i + part);
        }
    }
}

using U16 = hn::Vec<decltype(du16)>;
constexpr size_t N16 = N8 / 2;

/// bytes from a row of a block that is read to one that is prefetched
constexpr size_t sign_prefetch = 4096;

/// Queries that share the loads and the halves of bytes. With AVX2 their sums
/// of 8 bits take half of the registers, and those of 16 bits are in memory.
constexpr size_t sign_pass = N8 == 16 ? 1 : sign_queries;

/** A sum that is done before the next one begins. GCC makes trees of the
 * additions otherwise, and keeps more entries than there are registers. */
HWY_INLINE U8 in_order(U8 sum) {
#if (HWY_COMPILER_GCC || HWY_COMPILER_CLANG) && HWY_ARCH_X86
    asm("" : "+v"(sum.raw));
#endif
    return sum;
}

/// sum_signs of `count` queries
template <size_t count>
HWY_INLINE void sum_signs_of(
        const uint8_t* block,
        const uint8_t* const* tables,
        size_t n_bytes,
        uint16_t* sums,
        size_t sums_stride) {
    constexpr size_t regs = sign_block / N8;
    // sums of 16 bits: those of codes in odd bytes, and, with what these add
    // from above the eighth bit, of codes in even bytes
    U16 odd[count][regs], all[count][regs];
    HWY_UNROLL(4)
    for (size_t q = 0; q < count; q++) {
        HWY_UNROLL(4)
        for (size_t r = 0; r < regs; r++) {
            odd[q][r] = all[q][r] = hn::Zero(du16);
        }
    }
    for (size_t byte = 0; byte < n_bytes; byte += sign_step) {
        U8 sum[count][regs];
        HWY_UNROLL(4)
        for (size_t s = 0; s < sign_step; s++) {
            const uint8_t* row = block + (byte + s) * sign_block;
            hwy::Prefetch(row + sign_prefetch);
            U8 low_bits[regs], high_bits[regs];
            HWY_UNROLL(4)
            for (size_t r = 0; r < regs; r++) {
                const U8 bits = hn::LoadU(du8, row + r * N8);
                low_bits[r] = get_field<4, 0>(bits);
                high_bits[r] = get_field<4, 1>(bits);
            }
            HWY_UNROLL(4)
            for (size_t q = 0; q < count; q++) {
                const uint8_t* table = tables[q] + (byte + s) * 32;
                const U8 low = hn::LoadDup128(du8, table);
                const U8 high = hn::LoadDup128(du8, table + 16);
                HWY_UNROLL(4)
                for (size_t r = 0; r < regs; r++) {
                    const U8 entries =
                            hn::Add(hn::TableLookupBytes(low, low_bits[r]),
                                    hn::TableLookupBytes(high, high_bits[r]));
                    sum[q][r] = in_order(
                            s == 0 ? entries : hn::Add(sum[q][r], entries));
                }
            }
        }
        HWY_UNROLL(4)
        for (size_t q = 0; q < count; q++) {
            HWY_UNROLL(4)
            for (size_t r = 0; r < regs; r++) {
                const U16 words = hn::BitCast(du16, sum[q][r]);
                all[q][r] = hn::Add(all[q][r], words);
                odd[q][r] = hn::Add(odd[q][r], hn::ShiftRight<8>(words));
            }
        }
    }
    HWY_UNROLL(4)
    for (size_t q = 0; q < count; q++, sums += sums_stride) {
        HWY_UNROLL(4)
        for (size_t r = 0; r < regs; r++) {
            const U16 even = hn::Sub(all[q][r], hn::ShiftLeft<8>(odd[q][r]));
            hn::StoreU(even, du16, sums + r * N16);
            hn::StoreU(odd[q][r], du16, sums + sign_block / 2 + r * N16);
        }
    }
}

void sum_signs(
        const uint8_t* block,
        const uint8_t* const* tables,
        size_t n_queries,
        size_t n_bytes,
        uint16_t* sums,
        size_t sums_stride) {
    size_t q = 0;
    for (; q + sign_pass <= n_queries; q += sign_pass) {
        sum_signs_of<sign_pass>(
                block,
                tables + q,
                n_bytes,
                sums + q * sums_stride,
                sums_stride);
    }
    for (; q < n_queries; q++) {
        sum_signs_of<1>(
                block,
                tables + q,
                n_bytes,
                sums + q * sums_stride,
                sums_stride);
    }
}

size_t filter_signs(
        const SignFormula& formula,
        const uint16_t* signs,
        const uint16_t* sizes,
        const SignFactors& codes,
        size_t n_blocks,
        float threshold,
        uint64_t* left) {
    const hn::Rebind<uint16_t, decltype(di32)> half;
    const F32 slope = hn::Set(df32, formula.slope);
    const F32 common_shift = hn::Set(df32, formula.shift);
    const F32 spread = hn::Set(df32, formula.spread);
    const F32 bias = hn::Set(df32, formula.bias);
    const F32 limit = hn::Set(df32, threshold);
    size_t n_left = 0;
    for (size_t block = 0; block < n_blocks; block++) {
        if (!left[block]) {
            continue;
        }
        uint64_t below = 0;
        for (size_t j = 0; j < sign_block; j += N32) {
            const size_t i = block * sign_block + j;
            I32 sum = hn::PromoteTo(di32, hn::LoadU(half, signs + i));
            if (sizes) {
                const I32 of_sizes =
                        hn::PromoteTo(di32, hn::LoadU(half, sizes + i));
                sum = hn::Add(hn::Add(sum, sum), of_sizes);
            }
            const F32 residual = hn::LoadU(df32, codes.residuals + i);
            const F32 shift = hn::Add(common_shift, hn::Mul(spread, residual));
            const F32 product = hn::Mul(
                    hn::Add(hn::Mul(hn::ConvertTo(df32, sum), slope), shift),
                    hn::LoadU(df32, codes.scales + i));
            const F32 base = codes.offsets
                    ? hn::Add(hn::LoadU(df32, codes.offsets + i), bias)
                    : bias;
            const F32 slack = hn::Mul(hn::Abs(base), hn::Set(df32, sign_slack));
            const F32 least = hn::Add(product, hn::Sub(base, slack));
            uint64_t bits = 0;
            hn::StoreMaskBits(
                    df32,
                    hn::Lt(least, limit),
                    reinterpret_cast<uint8_t*>(&bits));
            below |= bits << j;
        }
        left[block] &= below;
        n_left += hwy::PopCount(left[block]);
    }
    return n_left;
}
