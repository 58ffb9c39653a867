// dot_codes: one query, codes decoded in registers. A part of simd-inl.h,
// included there once per target, inside the namespaces.
//
// Four codes are taken at a time. They share the loads of the query, and the
// codes that come a few kilobytes later are prefetched meanwhile: left alone,
// the hardware reads at half of the memory's bandwidth.

// ---------------------------------------------------------------------- sums
//
// Sums of products, over at most n_chunks registers of a plane.

/** 32-bit sums, of any number of products. Two of them where one instruction
 * adds them up: a chain of those would wait for its latency. */
struct LongSums {
    static constexpr size_t n_chunks = ~size_t(0);
    Accumulator even;
#if TQ_HAS_QUAD_DOT
    Accumulator odd;
#endif

    HWY_INLINE LongSums() {}
    HWY_INLINE void add(U8 g0, I8 q0, U8 g1, I8 q1) {
#if TQ_HAS_QUAD_DOT
        even.add(g0, q0);
        odd.add(g1, q1);
#else
        even.add(g0, q0, g1, q1);
#endif
    }
    HWY_INLINE void add(U8 g0, I8 q0, U8 g1, I8 q1, [[maybe_unused]] I16 ones) {
#if TQ_HAS_QUAD_DOT
        add(g0, q0, g1, q1);
#else
        even.add(g0, q0, g1, q1, ones);
#endif
    }
    HWY_INLINE I32 total() const {
#if TQ_HAS_QUAD_DOT
        return hn::Add(even.sum, odd.sum);
#else
        return even.sum;
#endif
    }
};

#if HWY_TARGET == HWY_AVX3_DL

using BitFields = PlaneFields<1>;
using BitSums = LongSums;

#else

/** A plane of bits, multiplied as they are, 0 or 1: dot_codes puts the grid
 * back. */
struct BitFields : PlaneFields<1> {
    HWY_INLINE explicit BitFields(const CodeLayout& layout)
            : PlaneFields<1>(layout) {}

    template <int f>
    HWY_INLINE U8 get(U8 bytes) const {
        return get_field<1, f>(bytes);
    }
};

#if TQ_HAS_QUAD_DOT
using BitSums = LongSums;
#else
/// 16-bit sums: products with bits are s8, and 128 pairs of them fit
struct BitSums {
    static constexpr size_t n_chunks = 16;
    I16 pairs;

    HWY_INLINE BitSums() : pairs(hn::Zero(di16)) {}
    HWY_INLINE void add(U8 g0, I8 q0, U8 g1, I8 q1) {
        pairs = hn::Add(pairs, multiply_pairs(g0, q0));
        pairs = hn::Add(pairs, multiply_pairs(g1, q1));
    }
    HWY_INLINE I32 total() const {
        return hn::WidenMulPairwiseAdd(di32, pairs, hn::Set(di16, int16_t{1}));
    }
};
#endif

#endif

// ---------------------------------------------------------------- four codes

constexpr size_t group_codes = 4;

/// bytes from a code that is read to one that is prefetched
constexpr size_t prefetch_bytes = 4096;

/// codes of one call of dot_codes
struct Codes {
    const uint8_t* codes;
    const uint32_t* rows;
    size_t n;
    size_t code_size;
    size_t ahead; ///< codes from one that is read to one that is prefetched

    HWY_INLINE Codes(
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            size_t code_size)
            : codes(codes),
              rows(rows),
              n(n),
              code_size(code_size),
              ahead(prefetch_bytes / code_size + group_codes) {}

    HWY_INLINE const uint8_t* operator[](size_t i) const {
        return codes + (rows ? rows[i] : i) * code_size;
    }
};

/// four codes, and those to prefetch meanwhile
struct CodeGroup {
    const uint8_t* at[group_codes];
    const uint8_t* later[group_codes];

    /// codes i .. i + 3
    HWY_INLINE CodeGroup(const Codes& codes, size_t i) {
        if (codes.rows) {
            const size_t last = codes.n - 1;
            for (size_t r = 0; r < group_codes; r++) {
                at[r] = codes[i + r];
                later[r] = codes[std::min(i + r + codes.ahead, last)];
            }
            return;
        }
        // the next call's codes follow these
        const size_t ahead = codes.ahead * codes.code_size;
        at[0] = codes.codes + i * codes.code_size;
        later[0] = at[0] + ahead;
        for (size_t r = 1; r < group_codes; r++) {
            at[r] = at[r - 1] + codes.code_size;
            later[r] = at[r] + ahead;
        }
    }

    HWY_INLINE void prefetch(size_t byte) const {
        HWY_UNROLL(4)
        for (size_t r = 0; r < group_codes; r++) {
            hwy::Prefetch(later[r] + byte);
        }
    }
};

/// two halves of a register, from the same place of two codes
HWY_INLINE U8 load_pair(const uint8_t* a, const uint8_t* b) {
    const hn::Half<decltype(du8)> half;
    return hn::Combine(du8, hn::LoadU(half, b), hn::LoadU(half, a));
}

#if HWY_TARGET <= HWY_AVX3
/// four quarters of a register, from the same place of four codes
HWY_INLINE U8 load_quad(
        const uint8_t* a,
        const uint8_t* b,
        const uint8_t* c,
        const uint8_t* d) {
    const hn::CappedTag<uint8_t, 16> block;
    U8 quad = hn::ResizeBitCast(du8, hn::LoadU(block, a));
    quad = hn::InsertBlock<1>(quad, hn::LoadU(block, b));
    quad = hn::InsertBlock<2>(quad, hn::LoadU(block, c));
    return hn::InsertBlock<3>(quad, hn::LoadU(block, d));
}
#endif

/// the sums of a pair to those of its codes
HWY_INLINE void add_pair(I32 pair, I32& a, I32& b) {
    const auto of_a = hn::FirstN(di32, N32 / 2);
    a = hn::Add(a, hn::IfThenElseZero(of_a, pair));
    b = hn::Add(b, hn::IfThenZeroElse(of_a, pair));
}

/// fields f, f + 1, .. of the same bytes of `count` codes, two at a time
template <int f = 0, class Fields, class Sums, size_t count>
HWY_INLINE void dot_fields(
        const Fields& fields,
        const typename Fields::Bytes (&bytes)[count],
        const int8_t* query,
        Sums (&sums)[count]) {
    const I8 q0 = hn::LoadU(di8, query + f * N8);
    const I8 q1 = hn::LoadU(di8, query + (f + 1) * N8);
    HWY_UNROLL(4)
    for (size_t r = 0; r < count; r++) {
        sums[r].add(
                fields.template get<f>(bytes[r]),
                q0,
                fields.template get<f + 1>(bytes[r]),
                q1);
    }
    if constexpr (f + 2 < Fields::n) {
        dot_fields<f + 2>(fields, bytes, query, sums);
    }
}

/// for each block of 16 bytes, the sums of the four registers' blocks
HWY_INLINE I32 add_within_blocks(const I32 (&sums)[4]) {
    const auto interleave_add = [](I32 x, I32 y) HWY_ATTR {
        return hn::Add(
                hn::InterleaveLower(di32, x, y),
                hn::InterleaveUpper(di32, x, y));
    };
    const auto ab = hn::BitCast(du64, interleave_add(sums[0], sums[1]));
    const auto cd = hn::BitCast(du64, interleave_add(sums[2], sums[3]));
    return hn::Add(
            hn::BitCast(di32, hn::InterleaveLower(du64, ab, cd)),
            hn::BitCast(di32, hn::InterleaveUpper(du64, ab, cd)));
}

#if HWY_TARGET <= HWY_AVX3
/// the same where each code has a block of one register: the sum of block r is
/// in its lane r, and the other lanes are zero
HWY_INLINE I32 add_within_quad(I32 sums) {
    sums = hn::Add(sums, hn::Shuffle2301(sums));
    sums = hn::Add(sums, hn::Shuffle1032(sums));
    const I32 lane = hn::Iota(di32, 0);
    const I32 block = hn::ShiftRight<2>(lane);
    const I32 lane_of_block = hn::And(lane, hn::Set(di32, 3));
    return hn::IfThenElseZero(hn::Eq(lane_of_block, block), sums);
}
#endif

/// out[r] = sum of lane r of the blocks
HWY_INLINE void store_sums(I32 blocks, int32_t* out) {
    if constexpr (N32 > 8) {
        blocks = hn::Add(blocks, hn::ConcatLowerUpper(di32, blocks, blocks));
    }
    if constexpr (N32 > 4) {
        blocks = hn::Add(blocks, hn::SwapAdjacentBlocks(blocks));
    }
    const hn::CappedTag<int32_t, 4> block;
    hn::StoreU(hn::ResizeBitCast(block, blocks), block, out);
}

/** Dot products of a query with planes.
 *
 * A class and not a lambda, as its like for the trellis: the compiler does not
 * inline a lambda of this size. */
template <class Fields, class Sums = LongSums>
struct PlaneDot {
    const Fields fields;
    const int8_t* query;
    const size_t m; ///< bytes of a plane
    const Tails tails;

    HWY_INLINE PlaneDot(const CodeLayout& layout, const int8_t* query)
            : fields(layout),
              query(query),
              m(layout.plane_size(query_field_bits(layout))),
              tails(layout) {}

    /// lane r of the blocks adds up to the dot product of code r
    HWY_INLINE I32 dot(const CodeGroup& group) const {
#if HWY_TARGET <= HWY_AVX3
        if (tails.codes == 4) {
            const I32 of_tails = dot_quads(group);
            if (m < N8) {
                return of_tails;
            }
            return hn::Add(of_tails, dot_registers(group));
        }
#endif
        return dot_registers(group);
    }

   private:
    using Bytes = typename Fields::Bytes;

    HWY_INLINE void prefetch(const CodeGroup& group, size_t byte) const {
        HWY_UNROLL(3)
        for (size_t plane = 0; plane < Fields::n_planes; plane++) {
            group.prefetch(plane * m + byte);
        }
    }

    static HWY_INLINE void add_totals(
            const Sums (&sums)[group_codes],
            I32 (&totals)[group_codes]) {
        HWY_UNROLL(4)
        for (size_t r = 0; r < group_codes; r++) {
            totals[r] = hn::Add(totals[r], sums[r].total());
        }
    }

    /// of registers of one code, and tails of pairs
    HWY_INLINE I32 dot_registers(const CodeGroup& group) const {
        const auto load = [](const uint8_t* p)
                                  HWY_ATTR { return hn::LoadU(du8, p); };
        I32 totals[group_codes];
        HWY_UNROLL(4)
        for (size_t r = 0; r < group_codes; r++) {
            totals[r] = hn::Zero(di32);
        }
        const int8_t* q = query;
        size_t i = 0;
        while (i + N8 <= m) {
            Sums sums[group_codes];
            for (size_t k = 0; k < Sums::n_chunks && i + N8 <= m; k++) {
                prefetch(group, i);
                const Bytes bytes[] = {
                        fields.load(group.at[0] + i, load),
                        fields.load(group.at[1] + i, load),
                        fields.load(group.at[2] + i, load),
                        fields.load(group.at[3] + i, load)};
                dot_fields(fields, bytes, q, sums);
                i += N8;
                q += N8 * Fields::n;
            }
            add_totals(sums, totals);
        }
        if (tails.codes == 2) {
            prefetch(group, i);
            const Bytes bytes[] = {
                    load_tails(group.at[0], group.at[1]),
                    load_tails(group.at[2], group.at[3])};
            Sums sums[2];
            dot_fields(fields, bytes, q, sums);
            add_pair(sums[0].total(), totals[0], totals[1]);
            add_pair(sums[1].total(), totals[2], totals[3]);
        } else if (i < m && tails.codes == 1) {
            prefetch(group, i);
            const size_t m = this->m;
            const ShortLoad load_short(m);
            const auto load_last = [&, m](const uint8_t* p) HWY_ATTR {
                return m < N8 ? load_short(p) : hn::LoadU(du8, p + m - N8);
            };
            const Bytes bytes[] = {
                    fields.load(group.at[0], load_last),
                    fields.load(group.at[1], load_last),
                    fields.load(group.at[2], load_last),
                    fields.load(group.at[3], load_last)};
            Sums sums[group_codes];
            dot_fields(fields, bytes, q, sums);
            add_totals(sums, totals);
        }
        return add_within_blocks(totals);
    }

    HWY_INLINE Bytes load_tails(const uint8_t* a, const uint8_t* b) const {
        const ptrdiff_t apart = b - a;
        return fields.load(
                a + tails.start(0, m), [apart](const uint8_t* p) HWY_ATTR {
                    return load_pair(p, p + apart);
                });
    }

#if HWY_TARGET <= HWY_AVX3
    /// of tails that four codes share registers for
    HWY_INLINE I32 dot_quads(const CodeGroup& group) const {
        const size_t full = m / N8 * N8;
        const uint8_t* const a = group.at[0];
        const ptrdiff_t b = group.at[1] - a, c = group.at[2] - a,
                        d = group.at[3] - a;
        const auto load = [b, c, d](const uint8_t* p) HWY_ATTR {
            return load_quad(p, p + b, p + c, p + d);
        };
        const int8_t* q = query + full * Fields::n;
        prefetch(group, full);
        Sums sums[1];
        for (size_t i = 0; i < tails.n; i++, q += N8 * Fields::n) {
            const Bytes bytes[] = {fields.load(a + tails.start(i, m), load)};
            dot_fields(fields, bytes, q, sums);
        }
        return add_within_quad(sums[0].total());
    }
#endif
};

/// out[i] = dot product of code i
template <class Dot>
HWY_INLINE void dot_groups(const Dot& dot, const Codes& codes, int32_t* out) {
    size_t i = 0;
    for (; i + group_codes <= codes.n; i += group_codes) {
        store_sums(dot.dot(CodeGroup(codes, i)), out + i);
    }
    if (i < codes.n) {
        // the last one again in place of those past the end
        uint32_t rows[group_codes];
        for (size_t r = 0; r < group_codes; r++) {
            const size_t row = std::min(i + r, codes.n - 1);
            rows[r] = codes.rows ? codes.rows[row] : row;
        }
        const Codes last(codes.codes, rows, group_codes, codes.code_size);
        int32_t sums[group_codes];
        store_sums(dot.dot(CodeGroup(last, 0)), sums);
        std::memcpy(out + i, sums, (codes.n - i) * sizeof(int32_t));
    }
}

/// planes that do not line up: by way of memory
void dot_decoded_codes(
        const CodeLayout& layout,
        const Codes& codes,
        const int8_t* query,
        int32_t* out) {
    std::vector<uint8_t> grid(layout.grid_size());
    with_decoder(layout, [&](auto decoder) HWY_ATTR {
        for (size_t i = 0; i < codes.n; i++) {
            decoder(codes[i], grid.data());
            Accumulator acc;
            // queries are zero past d
            for (size_t j = 0; j < layout.d; j += N8) {
                acc.add(hn::LoadU(du8, &grid[j]),
                        hn::LoadU(di8, query + j),
                        hn::Zero(du8),
                        hn::Zero(di8));
            }
            out[i] = hn::ReduceSum(di32, acc.sum);
        }
    });
}

void dot_codes(
        const CodeLayout& layout,
        const uint8_t* first,
        const uint32_t* rows,
        size_t n,
        const int8_t* query,
        int32_t sum,
        int32_t* out) {
    const Codes codes(first, rows, n, layout.code_size);
    if (!planes_line_up(layout)) {
        dot_decoded_codes(layout, codes, query, out);
    } else if (layout.has_trellis()) {
        trellis_dot_codes(layout, codes, query, sum, out);
    } else if (layout.nbits == 1) {
        dot_groups(PlaneDot<BitFields, BitSums>(layout, query), codes, out);
#if HWY_TARGET != HWY_AVX3_DL
        const int32_t zero = layout.grid[0], step = layout.grid[1] - zero;
        for (size_t i = 0; i < n; i++) {
            out[i] = zero * sum + step * out[i];
        }
#endif
    } else if (layout.nbits == 2) {
        dot_groups(PlaneDot<PlaneFields<2>>(layout, query), codes, out);
    } else if (layout.nbits == 3) {
        dot_groups(PlaneDot<ThreeBitFields>(layout, query), codes, out);
    } else {
        dot_groups(PlaneDot<PlaneFields<4>>(layout, query), codes, out);
    }
}
