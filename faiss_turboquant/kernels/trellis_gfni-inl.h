// One query against codes with a trellis, by products of bit matrices (GFNI).
// A part of trellis_dot-inl.h.
//
// Eight bytes of a plane are an 8 x 8 matrix of bits, of eight consecutive
// coordinates in each of eight fields. Transposed, it has a byte for each
// field, whose bits are the coordinates. All parities of two coordinates, which
// are two indices, are then eight linear functions of the bits of that byte and
// of the one before: products with two matrices. So nothing is gathered bit by
// bit, and no 64 bits need those beside them but for the byte before, which
// lets codes share a register.
//
// The query is arranged in the order in which coordinates come out, which is
// free. Sixty-four of them make a slot, eight slots a chunk:
//
//   nbits < 4: byte 8 j + k of slot f is coordinate 8 j + slot_coordinate[f]
//              of field k
//   nbits 4: byte i is coordinate i of field f. The plane of two bits is more
//            easily left as it is; parities are transposed back

/// where each slot's coordinate is among eight, so that signs have few places
constexpr int slot_coordinate[8] = {3, 2, 7, 6, 1, 0, 5, 4};

/// the matrix whose product with a byte has the parity of rows[i] and the byte
/// in bit i
constexpr uint64_t bit_matrix(const uint8_t (&rows)[8]) {
    uint64_t matrix = 0;
    for (int i = 0; i < 8; i++) {
        matrix |= uint64_t{rows[i]} << (8 * (7 - i));
    }
    return matrix;
}

/** Matrices for parities, by windows: w = 0 are transposed bytes, bit i of
 * which is coordinate 7 - i; w > 0 are those of 8 w coordinates earlier. */
struct ParityMatrices {
    static constexpr int max_windows = 3;
    uint64_t of[4][max_windows] = {};

    constexpr ParityMatrices(
            const uint16_t (&taps)[4],
            int nbits,
            int n_windows) {
        for (int r = 0; r < (nbits == 4 ? 2 : 4); r++) {
            for (int w = 0; w < n_windows; w++) {
                of[r][w] = nbits == 4 ? of_plane(taps[r], w)
                                      : of_pair(taps, nbits, r, w, n_windows);
            }
        }
    }

   private:
    static constexpr uint8_t row(uint32_t taps, int coordinate, int window) {
        return static_cast<uint8_t>(taps << (7 - coordinate) >> (8 * window));
    }

    /// one parity of eight coordinates, coordinate i in bit i
    static constexpr uint64_t of_plane(uint16_t taps, int window) {
        uint8_t rows[8] = {};
        for (int i = 0; i < 8; i++) {
            rows[i] = row(taps, i, window);
        }
        return bit_matrix(rows);
    }

    /// the indices of slots r, in the low nibble, and r + 4
    static constexpr uint64_t of_pair(
            const uint16_t (&taps)[4],
            int nbits,
            int r,
            int window,
            int n_windows) {
        uint8_t rows[8] = {};
        for (int half = 0; half < 2; half++) {
            const int coordinate = slot_coordinate[r + 4 * half];
            const int parities = n_parities(nbits);
            for (int p = 0; p < parities; p++) {
                rows[4 * half + p] = row(taps[p], coordinate, window);
            }
            // get_indices puts others where bits of a window are not needed
            if (nbits == 3 && window == (r < 2 ? 0 : n_windows - 1)) {
                rows[4 * half + parities] = 1
                        << ((r < 2 ? 3 : 11) - coordinate);
            }
        }
        return bit_matrix(rows);
    }
};

template <class Code>
constexpr int n_windows = 1 + (Code::memory + 7) / 8;

template <int row>
HWY_INLINE const ParityMatrices& parity_matrices(const ShippedCode<row>&) {
    using Code = ShippedCode<row>;
    static constexpr ParityMatrices matrices(
            Code::code.taps, Code::nbits, n_windows<Code>);
    return matrices;
}

template <int nbits>
HWY_INLINE ParityMatrices parity_matrices(const AnyCode<nbits>& code) {
    return {code.trellis.taps, nbits, n_windows<AnyCode<nbits>>};
}

HWY_INLINE U8 repeat(uint64_t word) {
    return hn::BitCast(du8, hn::Set(du64, word));
}

/// 64 bits each of matrices times the bytes in the same 64 bits
HWY_INLINE U8 multiply_bits(U8 matrices, U8 bytes) {
    return U8{_mm512_gf2p8affine_epi64_epi8(bytes.raw, matrices.raw, 0)};
}

/// bits[i] of each byte in its bit i
template <int... bits>
HWY_INLINE U8 permute_bits(U8 bytes) {
    static_assert(sizeof...(bits) == 8);
    constexpr uint64_t matrix =
            bit_matrix({static_cast<uint8_t>(1 << bits)...});
    return multiply_bits(repeat(matrix), bytes);
}

/// bit k of byte 7 - i of each 64 bits in bit i of byte k
HWY_INLINE U8 transpose_bits(U8 bytes) {
    return multiply_bits(bytes, repeat(0x8040201008040201));
}

/// what Levels is for fields, in another order of bits
template <int nbits>
struct SlotLevels {
    /// by place of the index (low bits, high bits), then r: slots r and r + 4
    /// of a pair, which differ in where the sign is (bit r % 2 of two) and at 4
    /// bits in the order of the index's bits
    static constexpr int n_orders = nbits == 4 ? 4 : 2;
    Table64 tables[2][n_orders];
    U8 low_nibbles;

    HWY_INLINE explicit SlotLevels(const CodeLayout& layout)
            : low_nibbles(hn::Set(du8, uint8_t{15})) {
        make_table<0, 0>(
                load_grid(layout), hn::Set(du8, layout.trellis.sign_mask));
    }

    template <int slot>
    HWY_INLINE U8
    get(const U8 (&pairs)[4], [[maybe_unused]] const U8 (&signs)[2]) const {
        constexpr int r = slot % 4;
        U8 index = pairs[r];
        if constexpr (slot < 4) {
            if constexpr (nbits > 1) {
                index = hn::BitwiseIfThenElse(low_nibbles, index, signs[r / 2]);
            }
        } else {
            if constexpr (nbits > 1) {
                index = hn::BitwiseIfThenElse(
                        low_nibbles, signs[1 - r / 2], index);
            }
            index = shift_right<2>(index);
        }
        return tables[slot / 4][r % n_orders][index];
    }

   private:
    /// where bit i of the index is in the nibble of pair r
    static constexpr int place(int r, int i) {
        if (nbits < 4) {
            return i;
        }
        const bool swapped = r % 2 && i < 2;
        return (swapped ? 1 - i : i) ^ (r < 2 ? 2 : 0);
    }

    /// of the addresses of a table, the index without what the sign changes
    static constexpr uint64_t index_matrix(int half, int r) {
        uint8_t rows[8] = {};
        for (int i = 0; i < 4; i++) {
            rows[i] = static_cast<uint8_t>(1 << (2 * half + place(r, i)));
        }
        return bit_matrix(rows);
    }

    template <int half, int r>
    HWY_INLINE void make_table(U8 grid, U8 sign_mask) {
        constexpr uint64_t matrix = index_matrix(half, r);
        const U8 address = hn::Iota(du8, 0);
        const U8 index = multiply_bits(repeat(matrix), address);
        U8& table = tables[half][r].positions;
        if constexpr (nbits == 1) {
            table = hn::TableLookupBytes(grid, index);
        } else {
            constexpr int sign = 1 << (half ? r % 2 : 4 + r % 2);
            const auto negative = hn::TestBit(
                    address, hn::Set(du8, static_cast<uint8_t>(sign)));
            const U8 flip = hn::Set(du8, uint8_t{63}); // g ^ 63 is 63 - g
            table = hn::Xor(
                    hn::TableLookupBytes(
                            grid,
                            hn::Xor(index,
                                    hn::IfThenElseZero(negative, sign_mask))),
                    hn::IfThenElseZero(negative, flip));
        }
        if constexpr (r + 1 < n_orders) {
            make_table<half, r + 1>(grid, sign_mask);
        } else if constexpr (half == 0) {
            make_table<1, 0>(grid, sign_mask);
        }
    }
};

/** How a code's m bytes of a plane meet registers: chunks that are its own,
 * then up to three blocks of 16 bytes that end with the plane, or one that ends
 * a little past it, for which four codes lie abreast, one in each block of a
 * register. */
struct TrellisChunks {
    size_t m;
    size_t n; ///< the last one may begin over bytes of the one before
    size_t n_blocks = 0;

    HWY_INLINE explicit TrellisChunks(const CodeLayout& layout)
            : m(layout.plane_size(1)), n((m + N8 - 1) / N8) {
        const size_t blocks = (m % N8 + 15) / 16;
        const bool fit =
                m > N8 || m % 16 == 0 || (m < 16 && m + plane_slack >= 16);
        if (blocks % 4 > 0 && fit) {
            n--;
            n_blocks = blocks;
        }
    }

    /// the first byte of the blocks
    size_t tail() const {
        return n > 0 ? m - 16 * n_blocks : 0;
    }
    size_t query_size() const {
        return (n + n_blocks) * 8 * N8;
    }
};

/// v[i] byte 8 j + k becomes v[k] byte 8 j + i
HWY_INLINE void transpose_bytes(U8 (&v)[8]) {
    const auto swap = [&](auto distance, uint64_t mask) HWY_ATTR {
        constexpr int n = decltype(distance)::value;
        const auto low = hn::Set(du64, mask);
        for (int i = 0; i < 8; i++) {
            if ((i & n) == 0) {
                const auto a = hn::BitCast(du64, v[i]);
                const auto b = hn::BitCast(du64, v[i + n]);
                const auto a_up = hn::ShiftRight<8 * n>(a);
                const auto b_up = hn::ShiftLeft<8 * n>(b);
                v[i] = hn::BitCast(du8, hn::BitwiseIfThenElse(low, a, b_up));
                v[i + n] =
                        hn::BitCast(du8, hn::BitwiseIfThenElse(low, a_up, b));
            }
        }
    };
    swap(std::integral_constant<int, 4>(), 0x00000000ffffffff);
    swap(std::integral_constant<int, 2>(), 0x0000ffff0000ffff);
    swap(std::integral_constant<int, 1>(), 0x00ff00ff00ff00ff);
}

size_t trellis_query_size(const CodeLayout& layout) {
    return TrellisChunks(layout).query_size();
}

/** The slots of N8 bytes of a plane, or of a block, which all blocks get.
 * @param at     the first byte
 * @param start  bytes before are zero: an earlier chunk has them
 * @param out    (8, N8), written */
template <size_t width>
void arrange_slots(
        const CodeLayout& layout,
        const int8_t* q,
        size_t at,
        size_t start,
        int8_t* out) {
    const size_t m = layout.plane_size(1);
    const auto used = hn::AndNot(
            hn::FirstN(di8, start - at),
            hn::FirstN(di8, std::min(width, m - at)));
    U8 v[8];
    for (size_t f = 0; f < 8; f++) {
        v[f] = hn::BitCast(du8, hn::MaskedLoad(used, di8, q + f * m + at));
    }
    if (layout.nbits < 4) {
        transpose_bytes(v);
    }
    for (size_t f = 0; f < 8; f++) {
        U8 slot = v[layout.nbits < 4 ? slot_coordinate[f] : f];
        if constexpr (width == 16) {
            slot = hn::BroadcastBlock<0>(slot);
        }
        hn::StoreU(hn::BitCast(di8, slot), di8, out + f * N8);
    }
}

/// [chunk or block][slot][N8]
void arrange_trellis_query(
        const CodeLayout& layout,
        const int8_t* q,
        int8_t* out) {
    const TrellisChunks chunks(layout);
    const size_t m = chunks.m;
    size_t start = 0;
    for (size_t i = 0; i < chunks.n; i++) {
        const size_t at = m < N8 ? 0 : chunk_start(start, m);
        arrange_slots<N8>(layout, q, at, start, out);
        out += 8 * N8;
        start += N8;
    }
    for (size_t at = chunks.tail(); at < m; at += 16) {
        arrange_slots<16>(layout, q, at, std::max(at, start), out);
        out += 8 * N8;
    }
}

/// dot products of one query with codes of one kind
template <class Code>
class TrellisDot {
   public:
    HWY_INLINE TrellisDot(const CodeLayout& layout, const int8_t* query)
            : query_(query),
              chunks_(layout),
              before_(chunks_.m),
              levels_(layout) {
        const Code code(layout.trellis);
        const ParityMatrices& matrices = parity_matrices(code);
        for (int r = 0; r < n_matrices; r++) {
            for (int w = 0; w < windows; w++) {
                matrices_[r][w] = repeat(matrices.of[r][w]);
            }
        }
    }

    /// lane r of the blocks adds up to that of code r
    HWY_INLINE I32 dot(const CodeGroup& group) const {
        I32 sum = hn::Zero(di32);
        if (chunks_.n_blocks > 0) {
            sum = add_within_quad(dot_blocks(group));
        }
        if (chunks_.n > 0) {
            I32 sums[group_codes];
            for (size_t r = 0; r < group_codes; r++) {
                sums[r] = dot_chunks(group.at[r], group.later[r]);
            }
            sum = hn::Add(sum, add_within_blocks(sums));
        }
        return sum;
    }

    /// sum of g q from the sum of what dot() added
    static int32_t grid_sum(int32_t added, int32_t) {
        return added;
    }

   private:
    static constexpr int nbits = Code::nbits;
    static constexpr int windows = n_windows<Code>;
    static constexpr int n_matrices = nbits == 4 ? 2 : 4;

    /// N8 bytes of each plane
    struct Bytes {
        HWY_INLINE Bytes() {}
        U8 coded[n_windows<Code>]; ///< those w words earlier
        U8 signs;
        U8 others[2];
    };

    /// all but the earlier coded bytes
    /// @param load  bytes so far from a chunk's first byte of the coded plane
    template <class Load>
    HWY_INLINE Bytes load_bytes(Load load) const {
        const ptrdiff_t m = chunks_.m;
        Bytes bytes;
        bytes.coded[0] = load(0);
        if constexpr (nbits > 1) {
            bytes.signs = load(m);
        }
        if constexpr (nbits > 2) {
            bytes.others[0] = load(2 * m);
        }
        if constexpr (nbits > 3) {
            bytes.others[1] = load(3 * m);
        }
        return bytes;
    }

    /// the chunks that are the code's own
    /// @param later  a code to prefetch
    HWY_INLINE I32
    dot_chunks(const uint8_t* planes, const uint8_t* later) const {
        const size_t m = chunks_.m;
        const int8_t* q = query_;
        LongSums sums;
        for (size_t i = 0; i < chunks_.n; i++, q += 8 * N8) {
            HWY_UNROLL(4)
            for (int plane = 0; plane < nbits; plane++) {
                hwy::Prefetch(later + plane * m + i * N8);
            }
            Bytes bytes;
            if (i == 0) {
                bytes = load_bytes([&](ptrdiff_t offset) HWY_ATTR {
                    return m < N8 ? hn::LoadN(du8, planes + offset, m)
                                  : hn::LoadU(du8, planes + offset);
                });
                set_first_windows(planes, bytes);
            } else {
                const uint8_t* at = planes + chunk_start(i * N8, m);
                const auto load = [at](ptrdiff_t offset) HWY_ATTR {
                    return hn::LoadU(du8, at + offset);
                };
                bytes = load_bytes(load);
                HWY_UNROLL(2)
                for (int w = 1; w < windows; w++) {
                    bytes.coded[w] = load(-8 * w);
                }
            }
            add_products(bytes, q, sums);
        }
        return sums.total();
    }

    /// the earlier words of the first bytes: before byte 0 come the last bytes
    /// shifted left by one bit
    HWY_INLINE void set_first_windows(const uint8_t* planes, Bytes& bytes)
            const {
        const size_t m = chunks_.m;
        U8 last; // 16 bytes, in each block
        if (HWY_LIKELY(m >= 16)) {
            last = hn::LoadDup128(du8, planes + m - 16);
        } else {
            HWY_ALIGN uint8_t copy[16] = {};
            std::memcpy(copy + 16 - m, planes, m);
            last = hn::LoadDup128(du8, copy);
        }
        const U8 before = hn::Add(last, last), first = bytes.coded[0];
        bytes.coded[1] = U8{_mm512_alignr_epi64(first.raw, before.raw, 7)};
        if constexpr (windows > 2) {
            bytes.coded[2] = U8{_mm512_alignr_epi64(first.raw, before.raw, 6)};
        }
    }

    /// 16 bytes of each code, from the same place
    static HWY_INLINE U8
    load_blocks_of(const CodeGroup& group, ptrdiff_t offset) {
        return load_quad(
                group.at[0] + offset,
                group.at[1] + offset,
                group.at[2] + offset,
                group.at[3] + offset);
    }

    /// sums of the products of the blocks, each code's in its block
    HWY_INLINE I32 dot_blocks(const CodeGroup& group) const {
        const ptrdiff_t m = chunks_.m;
        const int8_t* q = query_ + chunks_.n * 8 * N8;
        const ptrdiff_t tail = chunks_.tail();
        HWY_UNROLL(4)
        for (int plane = 0; plane < nbits; plane++) {
            group.prefetch(plane * m + tail);
        }
        U8 before = before_.get(tail, [&](ptrdiff_t offset) HWY_ATTR {
            return load_blocks_of(group, offset);
        });
        LongSums products;
        for (ptrdiff_t at = tail; at < m; at += 16, q += 8 * N8) {
            Bytes bytes = load_bytes([&, at](ptrdiff_t offset) HWY_ATTR {
                return load_blocks_of(group, at + offset);
            });
            const U8 block = bytes.coded[0];
            bytes.coded[1] = hn::CombineShiftRightBytes<8>(du8, block, before);
            if constexpr (windows > 2) {
                bytes.coded[2] = before;
            }
            before = block;
            add_products(bytes, q, products);
        }
        return products.total();
    }

    HWY_INLINE void add_products(
            const Bytes& bytes,
            const int8_t* q,
            LongSums& sums) const {
        U8 pairs[4], signs[2];
        if constexpr (nbits == 4) {
            get_indices_by_planes(bytes, pairs, signs);
        } else {
            get_indices(bytes, pairs, signs);
        }
        add_slots(pairs, signs, q, sums);
    }

    template <int f = 0>
    HWY_INLINE void add_slots(
            const U8 (&pairs)[4],
            const U8 (&signs)[2],
            const int8_t* q,
            LongSums& sums) const {
        sums.add(
                levels_.template get<f>(pairs, signs),
                hn::LoadU(di8, q + f * N8),
                levels_.template get<f + 1>(pairs, signs),
                hn::LoadU(di8, q + (f + 1) * N8));
        if constexpr (f < 6) {
            add_slots<f + 2>(pairs, signs, q, sums);
        }
    }

    /// row r of matrices times windows
    HWY_INLINE U8 multiply_windows(int r, const U8 (&bytes)[windows]) const {
        const U8 a = multiply_bits(matrices_[r][0], bytes[0]);
        const U8 b = multiply_bits(matrices_[r][1], bytes[1]);
        if constexpr (windows == 2) {
            return hn::Xor(a, b);
        } else {
            return hn::Xor3(a, b, multiply_bits(matrices_[r][2], bytes[2]));
        }
    }

    HWY_INLINE void get_indices(
            const Bytes& bytes,
            U8 (&pairs)[4],
            U8 (&signs)[2]) const {
        U8 early[windows], late[windows]; // coordinates 0 .. 3 and 4 .. 7
        HWY_UNROLL(3)
        for (int w = 0; w < windows; w++) {
            early[w] = late[w] = transpose_bits(bytes.coded[w]);
        }
        if constexpr (nbits == 3) {
            // 0 .. 3 in bits 3 .. 0, 4 .. 7 in bits 7 .. 4
            const U8 others = transpose_bits(hn::BitCast(
                    du8, hn::Shuffle2301(hn::BitCast(du32, bytes.others[0]))));
            const U8 low = levels_.low_nibbles;
            early[0] = hn::BitwiseIfThenElse(low, others, early[0]);
            U8& last = late[windows - 1];
            last = hn::BitwiseIfThenElse(low, last, others);
        }
        pairs[0] = multiply_windows(0, early);
        pairs[1] = multiply_windows(1, early);
        pairs[2] = multiply_windows(2, late);
        pairs[3] = multiply_windows(3, late);
        if constexpr (nbits > 1) {
            signs[0] = transpose_bits(bytes.signs);
            signs[1] = permute_bits<4, 5, 6, 7, 0, 1, 2, 3>(signs[0]);
        }
    }

    /// fields 0 .. 3 in the low nibbles, 4 .. 7 in the high ones
    HWY_INLINE void get_indices_by_planes(
            const Bytes& bytes,
            U8 (&pairs)[4],
            U8 (&signs)[2]) const {
        // byte k is field (7 - k) ^ 2: transposed back, bit k is field k ^ 2
        const U8 fields = repeat(0x0408010240801020);
        U8 coded[windows];
        HWY_UNROLL(3)
        for (int w = 0; w < windows; w++) {
            coded[w] = multiply_bits(bytes.coded[w], fields);
        }
        const U8 z0 = transpose_bits(multiply_windows(0, coded));
        const U8 z1 = permute_bits<1, 0, 3, 2, 5, 4, 7, 6>(
                transpose_bits(multiply_windows(1, coded)));
        // both parities of fields 2 0 6 4, and of 3 1 7 5
        const U8 even_bits = hn::Set(du8, uint8_t{0x55});
        const U8 even = hn::BitwiseIfThenElse(even_bits, z0, z1);
        const U8 odd = hn::BitwiseIfThenElse(even_bits, z1, z0);
        const U8 even_pairs = hn::Set(du8, uint8_t{0x33});
        pairs[0] = hn::BitwiseIfThenElse(even_pairs, bytes.others[0], even);
        pairs[1] = hn::BitwiseIfThenElse(even_pairs, bytes.others[1], odd);
        pairs[2] = hn::BitwiseIfThenElse(even_pairs, even, bytes.others[0]);
        pairs[3] = hn::BitwiseIfThenElse(even_pairs, odd, bytes.others[1]);
        // bits 0, 1, 6 and 7 are not looked at
        signs[0] = permute_bits<0, 0, 6, 7, 0, 1, 0, 0>(bytes.signs);
        signs[1] = permute_bits<0, 0, 4, 5, 2, 3, 0, 0>(bytes.signs);
    }

    const int8_t* query_;
    const TrellisChunks chunks_;
    const BytesBefore before_;
    const SlotLevels<nbits> levels_;
    U8 matrices_[n_matrices][windows];
};
