// dot_codes for codes with a trellis. A part of simd-inl.h, included there once
// per target, inside the namespaces.

#if HWY_TARGET == HWY_AVX3_DL

#include <faiss_turboquant/kernels/trellis_gfni-inl.h>

#else

/** Levels of fields f, f + 1, .. times the query. The sign goes to the query,
 * and the table holds 2 g - 63, which is odd in the sign. */
template <int nbits>
struct LevelProducts {
    const Constants& constants;
    U8 table;

    HWY_INLINE LevelProducts(
            const CodeLayout& layout,
            const Constants& constants)
            : constants(constants), table(load_grid(layout)) {
        if constexpr (nbits > 1) {
            table = hn::Sub(hn::Add(table, table), hn::Set(du8, uint8_t{63}));
        }
    }

    template <int f>
    HWY_INLINE I8 with_sign(I8 q, U8 signs) const {
        if constexpr (nbits == 1) {
            return q;
        } else {
#if HWY_TARGET <= HWY_AVX3
            const U8 bit = hn::Set(du8, static_cast<uint8_t>(1 << f));
            const auto negative = hn::RebindMask(di8, hn::TestBit(signs, bit));
            return hn::MaskedSubOr(q, negative, hn::Zero(di8), q);
#else
            // bit f to the top; the lowest bit, set, keeps the byte from being
            // zero
            U8 sign;
            if constexpr (f == 0) {
                sign = hn::Or(shift_left<7>(signs), constants.one);
            } else {
                sign = shift_left<7 - f>(hn::Or(signs, constants.one));
            }
            return hn::IfNegativeThenNegOrUndefIfZero(
                    hn::BitCast(di8, sign), q);
#endif
        }
    }

    template <int f = 0>
    HWY_INLINE void add(
            const Indices& indices,
            const int8_t* query,
            LongSums& sums) const {
        const I8 q0 = hn::LoadU(di8, query + f * N8);
        const I8 q1 = hn::LoadU(di8, query + (f + 1) * N8);
        sums.add(
                hn::TableLookupBytes(table, indices.get<f>(constants)),
                with_sign<f>(q0, indices.signs),
                hn::TableLookupBytes(table, indices.get<f + 1>(constants)),
                with_sign<f + 1>(q1, indices.signs),
                constants.ones);
        if constexpr (f < 6) {
            add<f + 2>(indices, query, sums);
        }
    }
};

/// CodedBytes of a pair
struct PairedCodedBytes {
    const uint8_t* a;
    const uint8_t* b;

    template <int k>
    HWY_INLINE U8 earlier() const {
        return load_pair(a - k, b - k);
    }
};

/// dot products of one query with codes of one kind
template <class Code>
struct TrellisDot {
    const int8_t* query;
    const Code code;
    const Constants constants;
    const LevelProducts<Code::nbits> products;
    const size_t m;
    const size_t tail;   ///< where the tail of a pair begins, or m
    const size_t packed; ///< bytes of all planes
    const BytesBefore before;

    HWY_INLINE TrellisDot(const CodeLayout& layout, const int8_t* query)
            : query(query),
              code(layout.trellis),
              products(layout, constants),
              m(layout.plane_size(1)),
              tail(Tails(layout).codes == 2 ? m / N8 * N8 : m),
              packed(layout.packed_size()),
              before(m) {}

    /// lane r of the blocks adds up to that of code r
    HWY_INLINE I32 dot(const CodeGroup& group) const {
        I32 sums[group_codes];
        for (size_t r = 0; r < group_codes; r++) {
            for (size_t byte = 0; byte < packed; byte += 64) {
                hwy::Prefetch(group.later[r] + byte);
            }
            sums[r] = tail > 0 ? dot_code(group.at[r]) : hn::Zero(di32);
        }
        if (tail < m) {
            add_tails(group.at[0], group.at[1], sums[0], sums[1]);
            add_tails(group.at[2], group.at[3], sums[2], sums[3]);
        }
        return add_within_blocks(sums);
    }

    /// sum of g q from the sum of what dot() added
    static int32_t grid_sum(int32_t added, int32_t query_sum) {
        return Code::nbits == 1 ? added : (added + 63 * query_sum) / 2;
    }

   private:
    /// all but the tail of a pair
    HWY_INLINE I32 dot_code(const uint8_t* planes) const {
        LongSums sums;
        const int8_t* q = query;
        for_each_chunk(
                code,
                constants,
                planes,
                m,
                tail,
                [&](const Indices& indices, size_t) HWY_ATTR {
                    products.add(indices, q, sums);
                    q += 8 * N8;
                });
        return sums.total();
    }

    /// adds the tails of two codes to their sums
    HWY_INLINE void add_tails(
            const uint8_t* a,
            const uint8_t* b,
            I32& sum_a,
            I32& sum_b) const {
        const ptrdiff_t apart = b - a;
        const auto load = [apart](const uint8_t* p)
                                  HWY_ATTR { return load_pair(p, p + apart); };
        Indices indices;
        if (tail > 0) {
            const size_t at = m - N8 / 2;
            const PairedCodedBytes coded = {a + at, b + at};
            indices = get_indices(code, constants, coded, a + at, m, load);
        } else {
            CodedBlocks coded;
            coded.bytes = load(a);
            coded.before = before.get(
                    0, [&](size_t at) HWY_ATTR { return load(a + at); });
            indices = get_indices(code, constants, coded, a, m, load);
        }
        LongSums sums;
        products.add(indices, query + tail * 8, sums);
        add_pair(sums.total(), sum_a, sum_b);
    }
};

#endif

template <class Code>
void dot_with_codes(
        const CodeLayout& layout,
        const Codes& codes,
        const int8_t* query,
        int32_t sum,
        int32_t* out) {
    dot_groups(TrellisDot<Code>(layout, query), codes, out);
    for (size_t i = 0; i < codes.n; i++) {
        out[i] = TrellisDot<Code>::grid_sum(out[i], sum);
    }
}

void trellis_dot_codes(
        const CodeLayout& layout,
        const Codes& codes,
        const int8_t* query,
        int32_t sum,
        int32_t* out) {
    with_code(layout, [&](auto* code) HWY_ATTR {
        dot_with_codes<std::decay_t<decltype(*code)>>(
                layout, codes, query, sum, out);
    });
}
