// Codes with a trellis: a part of simd-inl.h, included there once per target,
// inside the namespaces.

// ------------------------------------------------------------------- decoder

/// N8 bytes of the coded plane, and those up to 15 bytes earlier, from memory
struct CodedBytes {
    const uint8_t* at;

    template <int k>
    HWY_INLINE U8 earlier() const {
        return hn::LoadU(du8, at - k);
    }
};

/// The same where block i of `before` holds what precedes block i of `bytes`
struct CodedBlocks {
    U8 bytes, before;

    // not the compiler's own, which would be made outside of this target
    HWY_INLINE CodedBlocks() {}

    /// of one code
    /// @param before_first  what precedes the first block; the others are zero
    HWY_INLINE CodedBlocks(U8 bytes, U8 before_first) : bytes(bytes) {
        if constexpr (N8 == 16) {
            before = before_first;
        } else {
            before = hn::Or(hn::SlideUpBlocks<1>(du8, bytes), before_first);
        }
    }

    template <int k>
    HWY_INLINE U8 earlier() const {
        if constexpr (k == 0) {
            return bytes;
        } else {
            return hn::CombineShiftRightBytes<16 - k>(du8, bytes, before);
        }
    }
};

/** What precedes a block of a coded plane of m bytes. Before the first byte
 * that is the last ones, shifted left by one bit. */
class BytesBefore {
   public:
    HWY_INLINE explicit BytesBefore(size_t m) : m_(m) {
        // of 16 bytes, so many are before the first one
        const size_t n = 16 - m % 16;
        const U8 sixteen = hn::Set(du8, uint8_t{16});
        const U8 byte = hn::And(hn::Iota(du8, 0), hn::Set(du8, uint8_t{15}));
        // an index with its highest bit set gives 0
        from_first_ = hn::Sub(byte, hn::Set(du8, static_cast<uint8_t>(n)));
        const U8 moved = hn::Add(from_first_, sixteen);
        from_last_ = hn::Or(moved, shift_left<3>(hn::And(moved, sixteen)));
    }

    /// @param byte  where the block begins: m less a multiple of 16, 0, or from
    ///              16 on
    /// @param load  loads blocks of 16 bytes from there on
    template <class Load>
    HWY_INLINE U8 get(size_t byte, Load load) const {
        if (byte >= 16) {
            return load(byte - 16);
        }
        U8 last = m_ < 16 ? hn::TableLookupBytesOr0(load(0), from_first_)
                          : load(m_ - 16);
        last = hn::Add(last, last);
        if (byte == 0) {
            return last;
        }
        return hn::Or(
                hn::TableLookupBytesOr0(last, from_last_),
                hn::TableLookupBytesOr0(load(0), from_first_));
    }

   private:
    size_t m_;
    U8 from_last_, from_first_;
};

/// 16 bytes, in a register of which the others are zero
HWY_INLINE U8 load_block(const uint8_t* p) {
    const hn::CappedTag<uint8_t, 16> block;
    return hn::ZeroExtendResizeBitCast(du8, block, hn::LoadU(block, p));
}

/// the bytes of a plane from `byte` on, 0 or m - N8
HWY_INLINE CodedBlocks load_coded(const uint8_t* plane, size_t m, size_t byte) {
    const U8 bytes =
            m < N8 ? ShortLoad(m)(plane) : hn::LoadU(du8, plane + byte);
    const auto load = [=](size_t at) HWY_ATTR {
        return m < 16 ? bytes : load_block(plane + at);
    };
    return {bytes, BytesBefore(m).get(byte, load)};
}

constexpr int lowest_bit(uint32_t x) {
    int k = 0;
    for (; (x & 1) == 0; x >>= 1) {
        k++;
    }
    return k;
}

/// XOR of the bytes k earlier, for the bits k of taps
template <uint32_t taps, class Coded>
HWY_INLINE U8 parity(const Coded& coded) {
    if constexpr (taps == 0) {
        return hn::Zero(du8);
    } else {
        constexpr uint32_t more = taps & (taps - 1);
        constexpr uint32_t rest = more & (more - 1);
        const U8 first = coded.template earlier<lowest_bit(taps)>();
        if constexpr (more == 0) {
            return first;
        } else {
            const U8 second = coded.template earlier<lowest_bit(more)>();
            if constexpr (rest == 0) {
                return hn::Xor(first, second);
            } else {
                return hn::Xor3(first, second, parity<rest>(coded));
            }
        }
    }
}

template <class Coded, int k = 0>
HWY_INLINE U8 parity_of(uint32_t taps, const Coded& coded, U8 sum) {
    if (taps >> k & 1) {
        sum = hn::Xor(sum, coded.template earlier<k>());
    }
    if constexpr (k < Trellis::max_memory) {
        return parity_of<Coded, k + 1>(taps, coded, sum);
    } else {
        return sum;
    }
}

/// a trellis known when this is compiled: row `row` of the table of codes
template <int row>
struct ShippedCode {
    static constexpr const TrellisCode& code = trellis_codes[row];
    static constexpr int nbits = code.nbits;
    static constexpr int memory = code.memory;

    HWY_INLINE explicit ShippedCode(const Trellis&) {}

    /// Trellis::subset
    static constexpr int subset_of(uint32_t w) {
        const uint16_t* taps = code.taps;
        return Trellis{memory, {taps[0], taps[1], taps[2], taps[3]}}.subset(w);
    }

    template <int p, class Coded>
    HWY_INLINE U8 subset(const Coded& coded, U8 signs) const {
        U8 z = parity<code.taps[p]>(coded);
        if constexpr (code.sign_mask >> p & 1) {
            z = hn::Xor(z, signs);
        }
        return z;
    }
};

/// any trellis
template <int nbits_>
struct AnyCode {
    static constexpr int nbits = nbits_;
    static constexpr int memory = Trellis::max_memory; ///< at most
    const Trellis& trellis;

    HWY_INLINE explicit AnyCode(const Trellis& trellis) : trellis(trellis) {}

    template <int p, class Coded>
    HWY_INLINE U8 subset(const Coded& coded, U8 signs) const {
        const U8 start = trellis.sign_mask >> p & 1 ? signs : hn::Zero(du8);
        return parity_of(trellis.taps[p], coded, start);
    }
};

/** Constants of the decoder. Their values are hidden from the compiler, which
 * would make some of them anew from general registers for each chunk. */
struct Constants {
    U8 one, even_bits, even_pairs, low_nibbles;
    I16 ones;

    HWY_INLINE Constants() {
        const volatile int hidden = 1;
        const int unit = hidden;
        one = hn::Set(du8, static_cast<uint8_t>(unit));
        even_bits = hn::Set(du8, static_cast<uint8_t>(0x55 * unit));
        even_pairs = hn::Set(du8, static_cast<uint8_t>(0x33 * unit));
        low_nibbles = hn::Set(du8, static_cast<uint8_t>(0x0f * unit));
        ones = hn::Set(di16, static_cast<int16_t>(unit));
    }
};

/** Bits j + bits of a and bits j of b change places, for the j in mask. With
 * fields of `bits` bits this makes pairs of fields: those of even number in a,
 * of odd number in b. */
template <int bits>
HWY_INLINE void swap_fields(U8& a, U8& b, U8 mask) {
#if HWY_TARGET <= HWY_AVX3
    // a selection is one instruction
    const U8 even = hn::BitwiseIfThenElse(mask, a, shift_left<bits>(b));
    b = hn::BitwiseIfThenElse(mask, shift_right<bits>(a), b);
    a = even;
#else
    const U8 differ = hn::And(hn::Xor(shift_right<bits>(a), b), mask);
    b = hn::Xor(b, differ);
    a = hn::Xor(a, shift_left<bits>(differ));
#endif
}

/// indices of the levels of 8 N8 coordinates
struct Indices {
    // not the compiler's own, which would be made outside of this target
    HWY_INLINE Indices() {}

    U8 pairs[4]; ///< register i: field i in the low nibble, i + 4 in the high
    U8 signs;    ///< bit f is field f

    template <int f>
    HWY_INLINE U8 get(const Constants& constants) const {
        U8 pair = pairs[f % 4];
        if constexpr (f >= 4) {
            pair = shift_right<4>(pair);
        }
        return hn::And(pair, constants.low_nibbles);
    }
};

/// what indices are gathered from: bit f is field f
struct IndexPlanes {
    // not the compiler's own, which would be made outside of this target
    HWY_INLINE IndexPlanes() {}

    /// of an index, the lowest first; at 4 bits the last two are fields of two
    /// bits, fields of even number, then of odd number
    U8 bits[4];
    U8 signs;
};

/** @param coded  N8 bytes of the coded plane
 *  @param planes  the same bytes of the coded plane in memory
 *  @param m       bytes of a plane
 *  @param load    loads bytes of the other planes */
template <class Code, class Coded, class Load>
HWY_INLINE IndexPlanes get_planes(
        const Code& code,
        const Coded& coded,
        const uint8_t* planes,
        size_t m,
        Load load) {
    IndexPlanes of;
    constexpr int parities = n_parities(Code::nbits);
    of.signs = Code::nbits > 1 ? load(planes + m) : hn::Zero(du8);
    of.bits[0] = code.template subset<0>(coded, of.signs);
    of.bits[1] = code.template subset<1>(coded, of.signs);
    if constexpr (parities > 2) {
        of.bits[2] = code.template subset<2>(coded, of.signs);
    } else {
        of.bits[2] = load(planes + 2 * m);
    }
    if constexpr (parities > 3) {
        of.bits[3] = code.template subset<3>(coded, of.signs);
    } else {
        of.bits[3] = load(planes + (Code::nbits - 1) * m);
    }
    return of;
}

template <int nbits>
HWY_INLINE Indices
gather_indices(const IndexPlanes& planes, const Constants& constants) {
    U8 bits[] = {
            planes.bits[0], planes.bits[1], planes.bits[2], planes.bits[3]};
    swap_fields<1>(bits[0], bits[1], constants.even_bits);
    if constexpr (nbits < 4) {
        swap_fields<1>(bits[2], bits[3], constants.even_bits);
    }
    // fields 0 2 4 6 and 1 3 5 7, low and high halves of the indices
    swap_fields<2>(bits[0], bits[2], constants.even_pairs);
    swap_fields<2>(bits[1], bits[3], constants.even_pairs);
    Indices indices;
    indices.pairs[0] = bits[0];
    indices.pairs[1] = bits[1];
    indices.pairs[2] = bits[2];
    indices.pairs[3] = bits[3];
    indices.signs = planes.signs;
    return indices;
}

/// as get_planes
template <class Code, class Coded, class Load>
HWY_INLINE Indices get_indices(
        const Code& code,
        const Constants& constants,
        const Coded& coded,
        const uint8_t* planes,
        size_t m,
        Load load) {
    return gather_indices<Code::nbits>(
            get_planes(code, coded, planes, m, load), constants);
}

/** Calls use(indices, where they begin in the plane) for chunks of N8 bytes of
 * the planes, as many as begin before `end`; one that would pass m ends there,
 * over bytes that were covered before. */
template <class Code, class Use>
HWY_INLINE void for_each_chunk(
        const Code& code,
        const Constants& constants,
        const uint8_t* planes,
        size_t m,
        size_t end,
        Use use) {
    const CodedBlocks first = load_coded(planes, m, 0);
    if (m < N8) {
        use(get_indices(code, constants, first, planes, m, ShortLoad(m)), 0);
        return;
    }
    const auto load = [](const uint8_t* p)
                              HWY_ATTR { return hn::LoadU(du8, p); };
    use(get_indices(code, constants, first, planes, m, load), 0);
    for (size_t i = N8; i < end; i += N8) {
        const size_t at = chunk_start(i, m);
        if (HWY_UNLIKELY(at < 16)) {
            const CodedBlocks coded = load_coded(planes, m, at);
            use(get_indices(code, constants, coded, planes + at, m, load), at);
        } else {
            const CodedBytes coded = {planes + at};
            use(get_indices(code, constants, coded, planes + at, m, load), at);
        }
    }
}

#if HWY_TARGET == HWY_AVX3_DL

/** Grid positions of indices and signs. An index takes the low four bits of a
 * table's six, the sign one of the two above: bit 4 for fields of even number,
 * bit 5 for those of odd number, so that one shift of the sign plane serves
 * two fields. */
template <int nbits>
struct Levels {
    Table64 even, odd;
    U8 low_nibbles;

    HWY_INLINE Levels(const CodeLayout& layout, const Constants& constants)
            : low_nibbles(constants.low_nibbles) {
        // g ^ 63 is 63 - g
        const U8 grid = load_grid(layout);
        const U8 index = hn::Iota(du8, 0);
        const U8 flip = hn::Set(du8, static_cast<uint8_t>(nbits > 1 ? 63 : 0));
        const auto bit4 = hn::TestBit(index, hn::Set(du8, uint8_t{16}));
        const auto bit5 = hn::TestBit(index, hn::Set(du8, uint8_t{32}));
        even.positions = hn::Xor(grid, hn::IfThenElseZero(bit4, flip));
        odd.positions = hn::Xor(grid, hn::IfThenElseZero(bit5, flip));
    }

    template <int f>
    HWY_INLINE U8 get(const Indices& indices) const {
        U8 index = indices.pairs[f % 4];
        if constexpr (f >= 4) {
            index = shift_right<4>(index);
        }
        if constexpr (nbits > 1) {
            constexpr int up = 4 - f / 2 * 2;
            U8 signs = indices.signs;
            if constexpr (up > 0) {
                signs = shift_left<up>(signs);
            } else if constexpr (up < 0) {
                signs = shift_right<-up>(signs);
            }
            index = hn::BitwiseIfThenElse(low_nibbles, index, signs);
        }
        return f % 2 ? odd[index] : even[index];
    }
};

#else

template <int nbits>
struct Levels {
    const Constants& constants;
    U8 table, partners;

    HWY_INLINE Levels(const CodeLayout& layout, const Constants& constants)
            : constants(constants),
              table(load_grid(layout)),
              partners(hn::Sub(hn::Set(du8, uint8_t{63}), table)) {}

    template <int f>
    HWY_INLINE U8 get(const Indices& indices) const {
        const U8 index = indices.get<f>(constants);
        const U8 g = hn::TableLookupBytes(table, index);
        if constexpr (nbits == 1) {
            return g;
        } else {
            const U8 partner = hn::TableLookupBytes(partners, index);
#if HWY_TARGET <= HWY_AVX3
            const U8 bit = hn::Set(du8, static_cast<uint8_t>(1 << f));
            return hn::IfThenElse(hn::TestBit(indices.signs, bit), partner, g);
#else
            const U8 sign = shift_left<7 - f>(indices.signs);
            return hn::BitCast(
                    du8,
                    hn::IfNegativeThenElse(
                            hn::BitCast(di8, sign),
                            hn::BitCast(di8, partner),
                            hn::BitCast(di8, g)));
#endif
        }
    }
};

#endif

/// grid positions of fields f, f + 1, .., as store_fields
template <int nbits, int f = 0>
HWY_INLINE void decode_indices(
        const Indices& indices,
        const Levels<nbits>& levels,
        size_t m,
        uint8_t* out) {
    hn::StoreU(levels.template get<f>(indices), du8, out);
    if constexpr (f < 7) {
        decode_indices<nbits, f + 1>(indices, levels, m, out + m);
    }
}

template <class Code>
void decode_code(
        const CodeLayout& layout,
        const uint8_t* planes,
        uint8_t* grid) {
    const Code code(layout.trellis);
    const Constants constants;
    const size_t m = layout.plane_size(1);
    const Levels<Code::nbits> levels(layout, constants);
    for_each_chunk(
            code,
            constants,
            planes,
            m,
            m,
            [&](const Indices& indices, size_t at) HWY_ATTR {
                decode_indices<Code::nbits>(indices, levels, m, grid + at);
            });
}

/// do_it<Code>() with the code of a layout
template <int row = 0, class Do>
HWY_INLINE void with_shipped_code(int shipped, Do do_it) {
    if constexpr (row < n_compiled_trellis_codes) {
        if (shipped == row) {
            do_it(static_cast<const ShippedCode<row>*>(nullptr));
        } else {
            with_shipped_code<row + 1>(shipped, do_it);
        }
    }
}

template <class Do>
HWY_INLINE void with_code(const CodeLayout& layout, Do do_it) {
    if (layout.tables.shipped >= 0) {
        return with_shipped_code(layout.tables.shipped, do_it);
    }
    switch (layout.nbits) {
        case 1:
            return do_it(static_cast<const AnyCode<1>*>(nullptr));
        case 2:
            return do_it(static_cast<const AnyCode<2>*>(nullptr));
        case 3:
            return do_it(static_cast<const AnyCode<3>*>(nullptr));
        default:
            return do_it(static_cast<const AnyCode<4>*>(nullptr));
    }
}

/// whether the bytes that a register's bits depend on wrap around once at most
bool decodes_in_registers(const CodeLayout& layout) {
    return layout.plane_size(1) >= size_t(layout.trellis.memory);
}

void trellis_decode(
        const CodeLayout& layout,
        const uint8_t* planes,
        uint8_t* grid) {
    if (!decodes_in_registers(layout)) {
        decode_trellis_fields(layout, planes, grid);
        return;
    }
    with_code(layout, [&](auto* code) HWY_ATTR {
        decode_code<std::decay_t<decltype(*code)>>(layout, planes, grid);
    });
}

// ------------------------------------------------------------------- encoder

/** Vectors are encoded abreast, one in each block of 16 bytes of the registers.
 * Then no byte ever leaves its block, and the 16 neighbouring states in a
 * register differ in the subsets of their branches by one of up to 16
 * constants: the branch costs of all states are as many table lookups. */
constexpr size_t n_abreast = N8 / 16;
static_assert(encode_batch % n_abreast == 0);

/// rows of branch costs, of vector `first` and those after it
template <class D>
HWY_INLINE hn::Vec<D> load_costs(
        D d,
        const CodeLayout& layout,
        const uint16_t* const* positions,
        size_t t,
        size_t first = 0) {
    if constexpr (HWY_MAX_LANES_D(D) == 16) {
        const size_t position = positions[first][t];
        return hn::LoadU(
                d,
                layout.tables.costs.data() +
                        (position << layout.tables.parities));
    } else {
        const hn::Half<D> half;
        const size_t later = first + HWY_MAX_LANES_D(D) / 32;
        return hn::Combine(
                d,
                load_costs(half, layout, positions, t, later),
                load_costs(half, layout, positions, t, first));
    }
}

/// the least byte of each block, in all its bytes
HWY_INLINE U8 least_of_block(U8 v) {
    const auto halves = hn::Shuffle1032(hn::BitCast(du32, v));
    v = hn::Min(v, hn::BitCast(du8, halves));
    const auto quarters = hn::Shuffle2301(hn::BitCast(du32, v));
    v = hn::Min(v, hn::BitCast(du8, quarters));
    const auto pairs = hn::Reverse2(du16, hn::BitCast(du16, v));
    v = hn::Min(v, hn::BitCast(du8, pairs));
    return hn::Min(v, hn::Reverse2(du8, v));
}

/** The paths to 2 * 16 states of each vector: p of these are in a register,
 * from which 2p and 2p + 1 follow.
 * @param lower       path costs of p, replaced by those of 2p and 2p + 1,
 *                    first half
 * @param upper       path costs of p + states / 2; second half
 * @param from_lower  branch costs from p to 2p and to 2p + 1
 * @param from_upper  from p + states / 2
 * @param even        bits of bytes, written: 2p came from p
 * @param odd         2p + 1 came from p */
HWY_INLINE void extend_paths(
        U8& lower,
        U8& upper,
        const U8 (&from_lower)[2],
        const U8 (&from_upper)[2],
        uint8_t* even,
        uint8_t* odd) {
    const U8 a0 = hn::SaturatedAdd(lower, from_lower[0]);
    const U8 a1 = hn::SaturatedAdd(lower, from_lower[1]);
    const U8 b0 = hn::SaturatedAdd(upper, from_upper[0]);
    const U8 b1 = hn::SaturatedAdd(upper, from_upper[1]);
    const U8 least0 = hn::Min(a0, b0), least1 = hn::Min(a1, b1);
    hn::StoreMaskBits(du8, hn::Eq(least0, a0), even);
    hn::StoreMaskBits(du8, hn::Eq(least1, a1), odd);
    lower = hn::InterleaveLower(du8, least0, least1);
    upper = hn::InterleaveUpper(du8, least0, least1);
}

/** Path costs of all states after each coordinate, and where each state's path
 * came from, for any trellis. States 2p and 2p + 1 follow states p and
 * p + states / 2, so two registers of costs, of 16 p for each vector, give two
 * registers of new costs.
 *
 * @param costs      (2, states / 16, N8), scratch
 * @param decisions  (d, states / 16, N8 / 8), bits of the bytes of registers:
 *                   in register p / 16, 2p came from p; in states / 32 +
 *                   p / 16, 2p + 1 came from p; written
 * @return  the path costs at the end, (states / 16, N8), in costs */
const uint8_t* viterbi(
        const CodeLayout& layout,
        const uint16_t* const* positions,
        uint8_t* costs,
        uint8_t* decisions) {
    const Trellis& trellis = layout.trellis;
    const size_t half = size_t(1) << (trellis.memory - 5); // of the registers
    const uint8_t* branches = layout.tables.branches.data();
    const int newest = trellis.subset_of_bit(0);
    const int oldest = trellis.subset_of_bit(trellis.memory);
    // the costs of a register's branches, as places in `lookups`
    HWY_ALIGN uint8_t lookups[16 * N8]; // by subset
    uint16_t places[(1 << Trellis::max_memory) / 32][4];
    for (size_t i = 0; i < half; i++) {
        const int z = branches[16 * i];
        const int subsets[] = {z, z ^ newest, z ^ oldest, z ^ newest ^ oldest};
        for (size_t k = 0; k < 4; k++) {
            places[i][k] = static_cast<uint16_t>(subsets[k] * N8);
        }
    }
    const U8 first_branches = hn::LoadDup128(du8, branches);
    const size_t n_subsets = size_t(1) << layout.tables.parities;

    uint8_t* now = costs;
    uint8_t* next = costs + 2 * half * N8;
    std::memset(now, 255, 2 * half * N8);
    for (size_t v = 0; v < n_abreast; v++) {
        now[16 * v] = 0;
    }
    for (size_t t = 0; t < layout.d; t++) {
        const U8 row = load_costs(du8, layout, positions, t);
        for (size_t z = 0; z < n_subsets; z++) {
            const U8 subsets = hn::Xor(
                    first_branches, hn::Set(du8, static_cast<uint8_t>(z)));
            hn::Store(
                    hn::TableLookupBytes(row, subsets), du8, lookups + z * N8);
        }
        for (size_t i = 0; i < half; i++) {
            const auto branch_costs = [&](size_t k) HWY_ATTR {
                return hn::Load(du8, lookups + places[i][k]);
            };
            U8 lower = hn::Load(du8, now + i * N8);
            U8 upper = hn::Load(du8, now + (half + i) * N8);
            extend_paths(
                    lower,
                    upper,
                    {branch_costs(0), branch_costs(1)},
                    {branch_costs(2), branch_costs(3)},
                    decisions + i * (N8 / 8),
                    decisions + (half + i) * (N8 / 8));
            hn::Store(lower, du8, next + 2 * i * N8);
            hn::Store(upper, du8, next + (2 * i + 1) * N8);
        }
        decisions += half * (N8 / 4);
        if (t % trellis_period == trellis_period - 1) {
            U8 least = hn::Load(du8, next);
            for (size_t i = 1; i < 2 * half; i++) {
                least = hn::Min(least, hn::Load(du8, next + i * N8));
            }
            least = least_of_block(least);
            for (size_t i = 0; i < 2 * half; i++) {
                hn::Store(
                        hn::Sub(hn::Load(du8, next + i * N8), least),
                        du8,
                        next + i * N8);
            }
        }
        std::swap(now, next);
    }
    return now;
}

/** The same for a shipped code of memory 8: path costs stay in registers, as
 * far as there are any, and which lookups go where is known to the compiler. */
template <class Code>
struct ShippedViterbi {
    static constexpr size_t n_registers = (size_t(1) << Code::memory) / 16;
    static constexpr size_t half = n_registers / 2;
    static constexpr int newest = Code::subset_of(1);
    static constexpr int oldest = Code::subset_of(1 << Code::memory);
    static constexpr int n_subsets = 1 << n_parities(Code::nbits);

    U8 costs[n_registers];

    // a constructor of the compiler's own would be outside of this target
    HWY_INLINE ShippedViterbi() {
        const auto is_first =
                hn::Eq(hn::And(hn::Iota(du8, 0), hn::Set(du8, uint8_t{15})),
                       hn::Zero(du8));
        const U8 worst = hn::Set(du8, uint8_t{255});
        costs[0] = hn::IfThenZeroElse(is_first, worst);
        for (size_t i = 1; i < n_registers; i++) {
            costs[i] = worst;
        }
    }

    template <int z = 0>
    static HWY_INLINE void look_up(
            U8 row,
            const uint8_t* subsets,
            U8 (&lookups)[n_subsets]) {
        lookups[z] = hn::TableLookupBytes(row, hn::Load(du8, subsets + z * N8));
        if constexpr (z + 1 < n_subsets) {
            look_up<z + 1>(row, subsets, lookups);
        }
    }

    template <size_t i = 0>
    HWY_INLINE void extend(
            const U8 (&lookups)[n_subsets],
            uint8_t* decisions,
            U8 (&next)[n_registers]) const {
        constexpr int z = Code::subset_of(2 * 16 * i);
        U8 lower = costs[i], upper = costs[half + i];
        extend_paths(
                lower,
                upper,
                {lookups[z], lookups[z ^ newest]},
                {lookups[z ^ oldest], lookups[z ^ newest ^ oldest]},
                decisions + i * (N8 / 8),
                decisions + (half + i) * (N8 / 8));
        next[2 * i] = lower;
        next[2 * i + 1] = upper;
        if constexpr (i + 1 < half) {
            extend<i + 1>(lookups, decisions, next);
        }
    }

    HWY_INLINE void renormalise() {
        U8 least = costs[0];
        HWY_UNROLL(16)
        for (size_t i = 1; i < n_registers; i++) {
            least = hn::Min(least, costs[i]);
        }
        least = least_of_block(least);
        HWY_UNROLL(16)
        for (size_t i = 0; i < n_registers; i++) {
            costs[i] = hn::Sub(costs[i], least);
        }
    }

    HWY_INLINE void run(
            const CodeLayout& layout,
            const uint16_t* const* positions,
            uint8_t* decisions) {
        HWY_ALIGN uint8_t subsets[n_subsets * N8];
        const U8 first = hn::LoadDup128(du8, layout.tables.branches.data());
        for (int z = 0; z < n_subsets; z++) {
            const U8 constant = hn::Set(du8, static_cast<uint8_t>(z));
            hn::Store(hn::Xor(first, constant), du8, subsets + z * N8);
        }
        const size_t d = layout.d;
        for (size_t t = 0; t < d;) {
            const size_t end = std::min(t + trellis_period, d);
            for (; t < end; t++) {
                U8 lookups[n_subsets], next[n_registers];
                look_up(load_costs(du8, layout, positions, t),
                        subsets,
                        lookups);
                extend(lookups, decisions, next);
                HWY_UNROLL(16)
                for (size_t i = 0; i < n_registers; i++) {
                    costs[i] = next[i];
                }
                decisions += n_registers * (N8 / 8);
            }
            if (t % trellis_period == 0) {
                renormalise();
            }
        }
    }
};

template <class Code>
void shipped_viterbi(
        const CodeLayout& layout,
        const uint16_t* const* positions,
        uint8_t* costs,
        uint8_t* decisions) {
    ShippedViterbi<Code> paths;
    paths.run(layout, positions, decisions);
    for (size_t i = 0; i < paths.n_registers; i++) {
        hn::Store(paths.costs[i], du8, costs + i * N8);
    }
}

/** The first of the best states of a vector.
 * @param costs  (states / 16, N8), from the vector's block of 16 bytes on */
size_t best_state(const uint8_t* costs, size_t n_states) {
    const hn::CappedTag<uint8_t, 16> block;
    auto least = hn::Load(block, costs);
    for (size_t i = 1; i < n_states / 16; i++) {
        least = hn::Min(least, hn::Load(block, costs + i * N8));
    }
    least = hn::Set(block, hn::ReduceMin(block, least));
    size_t i = 0;
    while (hn::AllFalse(
            block, hn::Eq(hn::Load(block, costs + i * N8), least))) {
        i++;
    }
    const auto is_best = hn::Eq(hn::Load(block, costs + i * N8), least);
    return i * 16 + hn::FindKnownFirstTrue(block, is_best);
}

/** Back along the best paths, of several vectors at a time: a step waits for
 * the one before.
 * @param decisions  of each vector, the two bytes of its block first
 * @param states     where they end
 * @param coded      (encode_batch, stride), the coded bits, written
 * @tparam fixed_memory  the trellis's memory, or 0 for any */
template <int fixed_memory>
void trace_back(
        const CodeLayout& layout,
        const uint8_t* const* decisions,
        const size_t* states,
        size_t stride,
        uint8_t* coded) {
    const size_t memory = fixed_memory ? fixed_memory : layout.trellis.memory;
    const size_t half = size_t(1) << (memory - 1);
    const size_t row_size = half * n_abreast / 4;
    size_t state[encode_batch];
    std::copy_n(states, encode_batch, state);
    size_t t = layout.d;
    size_t row = t * row_size;
    while (t > memory) {
        t--;
        row -= row_size;
        HWY_UNROLL(4)
        for (size_t v = 0; v < encode_batch; v++) {
            const size_t u = state[v] & 1;
            const size_t p = state[v] >> 1;
            const size_t at = p + u * half;
            uint16_t bits;
            std::memcpy(
                    &bits,
                    decisions[v] + row + at / 16 * (N8 / 8),
                    sizeof(bits));
            const size_t from_upper = ~(bits >> (at % 16)) & 1;
            coded[v * stride + t] = static_cast<uint8_t>(u);
            state[v] = p | from_upper << (memory - 1);
        }
    }
    // the bits before the first coordinate are 0
    while (t-- > 0) {
        for (size_t v = 0; v < encode_batch; v++) {
            coded[v * stride + t] = state[v] & 1;
            state[v] >>= 1;
        }
    }
}

/** The uncoded bits of a path.
 * @param coded  (padded_dim,), the coded bits, and before them max_memory zeros
 * @param rest   (padded_dim + 64,), sign << 2 | others, zero past d, written */
HWY_INLINE void find_rest(
        const CodeLayout& layout,
        const uint16_t* positions,
        const uint8_t* coded,
        uint8_t* rest) {
    for (size_t i = 0; i < layout.d; i += N8) {
        U8 subsets = hn::Zero(du8);
        for (int k = 0; k <= layout.trellis.memory; k++) {
            const uint8_t of_bit = layout.trellis.subset_of_bit(k);
            const U8 is_set =
                    hn::Sub(hn::Zero(du8), hn::LoadU(du8, coded + i - k));
            subsets = hn::Xor(subsets, hn::And(is_set, hn::Set(du8, of_bit)));
        }
        hn::StoreU(subsets, du8, rest + i);
    }
    const int parities = layout.tables.parities;
    const uint8_t* choices = layout.tables.choices.data();
    for (size_t t = 0; t < layout.d; t++) {
        rest[t] = choices[(size_t(positions[t]) << parities) + rest[t]];
    }
    std::memset(rest + layout.d, 0, layout.padded_dim() + 64 - layout.d);
}

/// fine positions of the coordinates of y
HWY_INLINE void find_positions(
        const CodeLayout& layout,
        const float* y,
        uint16_t* positions) {
    const F32 factor = hn::Set(
            df32,
            layout.half_steps * static_cast<float>(1 << layout.tables.shift));
    const float middle = static_cast<float>(layout.tables.positions / 2);
    const F32 least = hn::Set(df32, -middle);
    const F32 greatest = hn::Set(df32, middle - 1);
    for (size_t i = 0; i < layout.padded_dim(); i += 2 * N32) {
        I32 fine[2];
        for (size_t k = 0; k < 2; k++) {
            const F32 v = hn::Floor(
                    hn::Mul(hn::LoadU(df32, y + i + k * N32), factor));
            fine[k] = hn::ConvertInRangeTo(
                    di32,
                    hn::Add(hn::Max(least, hn::Min(v, greatest)),
                            hn::Set(df32, middle)));
        }
        hn::StoreU(
                hn::OrderedDemote2To(du16, fine[0], fine[1]),
                du16,
                positions + i);
    }
}

/** The planes of a vector from its bits, in the order of the coordinates.
 * @param coded  (padded_dim + 64,), zero past d, overwritten
 * @param rest   the same */
HWY_INLINE void pack_planes(
        const CodeLayout& layout,
        uint8_t* coded,
        uint8_t* rest,
        uint8_t* planes) {
    const size_t m = layout.plane_size(1);
    pack_plane<1>(coded, m, planes);
    if (layout.nbits > 1) {
        const U8 three = hn::Set(du8, uint8_t{3});
        for (size_t i = 0; i < layout.padded_dim(); i += N8) {
            const U8 field = hn::LoadU(du8, rest + i);
            const U8 sign = hn::And(shift_right<2>(field), three);
            hn::StoreU(sign, du8, coded + i);
            hn::StoreU(hn::And(field, three), du8, rest + i);
        }
        pack_plane<1>(coded, m, planes + m);
    }
    if (layout.nbits == 3) {
        pack_plane<1>(rest, m, planes + 2 * m);
    } else if (layout.nbits == 4) {
        pack_plane<2>(rest, 2 * m, planes + 2 * m);
    }
}

/// sum of y (2 g - 63)
HWY_INLINE float sum_of_levels(
        const float* y,
        const uint8_t* grid,
        size_t padded) {
    F32 acc[lanes / N32];
    for (F32& a : acc) {
        a = hn::Zero(df32);
    }
    const hn::Rebind<uint8_t, decltype(di32)> quarter;
    for (size_t i = 0; i < padded; i += lanes) {
        for (size_t k = 0; k < lanes / N32; k++) {
            const size_t at = i + k * N32;
            const I32 g = hn::PromoteTo(di32, hn::LoadU(quarter, grid + at));
            const F32 odd = hn::ConvertTo(
                    df32, hn::Sub(hn::Add(g, g), hn::Set(di32, 63)));
            acc[k] = hn::Add(acc[k], hn::Mul(hn::LoadU(df32, y + at), odd));
        }
    }
    return add_lanes(df32, acc);
}

/** Forward through the trellis, n_abreast vectors.
 * @param costs  (2, states, n_abreast), scratch
 * @return  the path costs at the end */
const uint8_t* find_decisions(
        const CodeLayout& layout,
        const uint16_t* const* positions,
        uint8_t* costs,
        uint8_t* decisions) {
    if (layout.tables.shipped < 0) {
        return viterbi(layout, positions, costs, decisions);
    }
    with_shipped_code(layout.tables.shipped, [&](auto* code) HWY_ATTR {
        shipped_viterbi<std::decay_t<decltype(*code)>>(
                layout, positions, costs, decisions);
    });
    return costs;
}

/** The coded bits of a batch of vectors.
 * @param n        up to encode_batch
 * @param scratch  for path costs and decisions
 * @param coded    (encode_batch, stride), the first n written */
void find_paths(
        const CodeLayout& layout,
        const uint16_t* const* positions,
        size_t n,
        uint8_t* scratch,
        size_t stride,
        uint8_t* coded) {
    const size_t n_states = size_t(1) << layout.trellis.memory;
    uint8_t* costs = scratch + (-reinterpret_cast<uintptr_t>(scratch)) % N8;
    uint8_t* rows = costs + 2 * n_states * n_abreast;
    const uint8_t* decisions[encode_batch] = {};
    size_t states[encode_batch] = {};
    for (size_t v = 0; v < encode_batch; v += n_abreast) {
        if (v < n) {
            const uint8_t* last =
                    find_decisions(layout, positions + v, costs, rows);
            for (size_t k = 0; k < n_abreast; k++) {
                decisions[v + k] = rows + 2 * k;
                states[v + k] = best_state(last + 16 * k, n_states);
            }
            rows += layout.d * n_states / 8 * n_abreast;
        } else {
            // paths that nobody asks for
            std::copy_n(decisions, n_abreast, decisions + v);
            std::copy_n(states, n_abreast, states + v);
        }
    }
    if (layout.trellis.memory == 8) {
        trace_back<8>(layout, decisions, states, stride, coded);
    } else {
        trace_back<0>(layout, decisions, states, stride, coded);
    }
}

/// up to encode_batch vectors
void trellis_encode_batch(
        const CodeLayout& layout,
        const float* y,
        size_t y_stride,
        size_t n,
        uint8_t* scratch,
        uint8_t* planes,
        float* sums) {
    const size_t padded = layout.padded_dim();
    const size_t stride = padded + 64;
    // zeros before and after
    std::memset(scratch, 0, 64);
    uint8_t* coded = scratch + 64;
    uint8_t* rest = coded + encode_batch * stride;
    uint8_t* of_positions = rest + encode_batch * stride;
    uint8_t* of_paths = of_positions + 2 * encode_batch * stride;
    const uint16_t* positions[encode_batch];
    for (size_t v = 0; v < encode_batch; v++) {
        // where vectors are missing, the last one is repeated
        const size_t from = std::min(v, n - 1);
        auto* to = reinterpret_cast<uint16_t*>(of_positions) + from * stride;
        positions[v] = to;
        if (v == from) {
            find_positions(layout, y + v * y_stride, to);
            std::memset(coded + v * stride + layout.d, 0, stride - layout.d);
        }
    }
    find_paths(layout, positions, n, of_paths, stride, coded);
    for (size_t v = 0; v < n; v++) {
        uint8_t* grid = coded + v * stride;
        if (layout.nbits > 1) {
            find_rest(layout, positions[v], grid, rest + v * stride);
        }
        pack_planes(layout, grid, rest + v * stride, planes);
        trellis_decode(layout, planes, grid);
        sums[v] = sum_of_levels(y + v * y_stride, grid, padded);
        planes += layout.code_size;
    }
}

void trellis_encode(
        const CodeLayout& layout,
        const float* y,
        size_t y_stride,
        size_t n,
        uint8_t* scratch,
        uint8_t* planes,
        float* sums) {
    for (size_t i = 0; i < n; i += encode_batch) {
        trellis_encode_batch(
                layout,
                y + i * y_stride,
                y_stride,
                std::min(encode_batch, n - i),
                scratch,
                planes + i * layout.code_size,
                sums + i);
    }
}
