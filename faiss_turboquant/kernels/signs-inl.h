// Blocks of signs: what of a code a query reads first. A part of simd-inl.h,
// included there once per target, inside the namespaces.
//
// Per byte and register two table lookups, each with its share of a mask and a
// shift, and two additions of 8 bits; the sums of four bytes are widened
// together. That is 7.5 instructions for the eight coordinates of 64 codes with
// AVX-512, a third of what a product with each sign takes.

void pack_signs(
        const uint8_t* grid,
        size_t d,
        uint8_t* bits,
        size_t stride,
        int32_t* magnitudes,
        int32_t* squares) {
    const U8 middle = hn::Set(du8, uint8_t{32});
    const I8 ones = hn::Set(di8, int8_t{1});
    Accumulator sum, sum_of_squares;
    for (size_t i = 0; i < d; i += N8) {
        // grid has room up to the next multiple of 64
        const U8 g = hn::LoadU(du8, grid + i);
        const auto valid = hn::FirstN(du8, std::min(N8, d - i));
        uint8_t packed[N8 / 8 < 8 ? 8 : N8 / 8];
        hn::StoreMaskBits(du8, hn::And(hn::Ge(g, middle), valid), packed);
        for (size_t byte = 0; byte < N8 / 8 && i + 8 * byte < d; byte++) {
            bits[(i / 8 + byte) * stride] = packed[byte];
        }
        const I8 level = hn::BitCast(
                di8, hn::Sub(hn::Add(g, g), hn::Set(du8, uint8_t{63})));
        const U8 magnitude =
                hn::IfThenElseZero(valid, hn::BitCast(du8, hn::Abs(level)));
        const U8 none = hn::Zero(du8);
        sum.add(magnitude, ones, none, ones);
        sum_of_squares.add(magnitude, hn::BitCast(di8, magnitude), none, ones);
    }
    *magnitudes = hn::ReduceSum(di32, sum.sum);
    *squares = hn::ReduceSum(di32, sum_of_squares.sum);
}

using U16 = hn::Vec<decltype(du16)>;
constexpr size_t N16 = N8 / 2;

/// bytes from a row of a block that is read to one that is prefetched
constexpr size_t sign_prefetch = 4096;

void sum_signs(
        const uint8_t* block,
        const uint8_t* tables,
        size_t n_bytes,
        uint16_t* sums) {
    constexpr size_t regs = sign_block / N8;
    // sums of 16 bits: those of codes in odd bytes, and, with what these add
    // from above the eighth bit, of codes in even bytes
    U16 odd[regs], all[regs];
    for (size_t r = 0; r < regs; r++) {
        odd[r] = all[r] = hn::Zero(du16);
    }
    for (size_t byte = 0; byte < n_bytes; byte += sign_step) {
        U8 sum[regs];
        HWY_UNROLL(4)
        for (size_t s = 0; s < sign_step; s++) {
            const uint8_t* row = block + (byte + s) * sign_block;
            const uint8_t* table = tables + (byte + s) * 32;
            hwy::Prefetch(row + sign_prefetch);
            const U8 low = hn::LoadDup128(du8, table);
            const U8 high = hn::LoadDup128(du8, table + 16);
            HWY_UNROLL(4)
            for (size_t r = 0; r < regs; r++) {
                const U8 bits = hn::LoadU(du8, row + r * N8);
                const U8 entries = hn::Add(
                        hn::TableLookupBytes(low, get_field<4, 0>(bits)),
                        hn::TableLookupBytes(high, get_field<4, 1>(bits)));
                sum[r] = s == 0 ? entries : hn::Add(sum[r], entries);
            }
        }
        HWY_UNROLL(4)
        for (size_t r = 0; r < regs; r++) {
            const U16 words = hn::BitCast(du16, sum[r]);
            all[r] = hn::Add(all[r], words);
            odd[r] = hn::Add(odd[r], hn::ShiftRight<8>(words));
        }
    }
    for (size_t r = 0; r < regs; r++) {
        const U16 even = hn::Sub(all[r], hn::ShiftLeft<8>(odd[r]));
        hn::StoreU(even, du16, sums + r * N16);
        hn::StoreU(odd[r], du16, sums + sign_block / 2 + r * N16);
    }
}

uint64_t filter_signs(
        const SignFormula& formula,
        const uint16_t* sums,
        const float* scales,
        const float* offsets,
        float threshold) {
    const hn::Rebind<uint16_t, decltype(di32)> half;
    const F32 slope = hn::Set(df32, formula.slope);
    const F32 shift = hn::Set(df32, formula.shift);
    const F32 bias = hn::Set(df32, formula.bias);
    const F32 limit = hn::Set(df32, threshold);
    uint64_t below = 0;
    for (size_t i = 0; i < sign_block; i += N32) {
        const I32 sum = hn::PromoteTo(di32, hn::LoadU(half, sums + i));
        const F32 product = hn::Mul(
                hn::Add(hn::Mul(hn::ConvertTo(df32, sum), slope), shift),
                hn::LoadU(df32, scales + i));
        const F32 base =
                offsets ? hn::Add(hn::LoadU(df32, offsets + i), bias) : bias;
        const F32 slack = hn::Mul(hn::Abs(base), hn::Set(df32, sign_slack));
        const F32 least = hn::Add(product, hn::Sub(base, slack));
        uint64_t bits = 0;
        hn::StoreMaskBits(
                df32, hn::Lt(least, limit), reinterpret_cast<uint8_t*>(&bits));
        below |= bits << i;
    }
    return below;
}
