// The fields of codes without a trellis, decoded in registers. A part of
// simd-inl.h, included there once per target, inside the namespaces.
//
// A plane of n fields a byte, or n_planes that line up: Bytes is a register of
// its bytes (of each plane), get<f>() the grid positions of field f.
// load() loads Bytes, of_planes() puts them together.

/** Loads planes of m bytes, fewer than a register has; bytes past m are
 * unspecified. Without masks for bytes, hn::LoadN takes dozens of
 * instructions. */
class ShortLoad {
   public:
    HWY_INLINE explicit ShortLoad(size_t m) : m_(m) {
        up_ =
                hn::Add(hn::Iota(du8_half, 0),
                        hn::Set(du8_half, static_cast<uint8_t>(N8 - m)));
    }

    HWY_INLINE U8 operator()(const uint8_t* p) const {
#if HWY_TARGET > HWY_AVX3
        if (m_ + plane_slack >= N8) {
            return hn::LoadU(du8, p);
        }
        if (N8 == 32 && m_ + plane_slack >= N8 / 2) {
            const auto low = hn::LoadU(du8_half, p);
            if (m_ <= N8 / 2) {
                return hn::ZeroExtendVector(du8, low);
            }
            // bytes from N8 / 2 on, of the last ones
            const auto last = hn::LoadU(du8_half, p + m_ - N8 / 2);
            return hn::Combine(du8, hn::TableLookupBytes(last, up_), low);
        }
#endif
        return hn::LoadN(du8, p, m_);
    }

   private:
    size_t m_;
    /// byte N8 / 2 + j of the plane is byte N8 - m + j of its last N8 / 2
    hn::Vec<decltype(du8_half)> up_;
};

#if HWY_TARGET == HWY_AVX3_DL

/** Grid positions by six bits of an index; vpermb ignores the other two. Bits
 * that do not belong to the field repeat the table, so nothing is masked. */
struct Table64 {
    U8 positions; ///< by the 64 values of the index

    // not the compiler's own, which would be made outside of this target
    HWY_INLINE Table64() {}

    HWY_INLINE U8 operator[](U8 index) const {
        return U8{_mm512_permutexvar_epi8(index.raw, positions.raw)};
    }
};

/// a plane of b-bit fields
template <int b>
struct PlaneFields {
    using Bytes = U8;
    static constexpr int n = 8 / b;
    static constexpr size_t n_planes = 1;

    /// fields in the low six bits have a table each
    static constexpr int n_tables = 6 / b;
    /// what brings the others there
    static constexpr int shift = b == 4 ? 4 : 2;
    Table64 tables[n_tables];

    HWY_INLINE explicit PlaneFields(const CodeLayout& layout) {
        make_tables(load_grid(layout));
    }

    template <class Load>
    HWY_INLINE U8 load(const uint8_t* at, Load load_bytes) const {
        return load_bytes(at);
    }

    static HWY_INLINE U8 of_planes(const U8 (&planes)[1]) {
        return planes[0];
    }

    template <int f>
    HWY_INLINE U8 get(U8 bytes) const {
        if constexpr (f < n_tables) {
            return tables[f][bytes];
        } else {
            return tables[f - shift / b][shift_right<shift>(bytes)];
        }
    }

   private:
    template <int f = 0>
    HWY_INLINE void make_tables(U8 grid) {
        const U8 field = get_field<b, f>(hn::Iota(du8, 0));
        tables[f].positions = hn::TableLookupBytes(grid, field);
        if constexpr (f + 1 < n_tables) {
            make_tables<f + 1>(grid);
        }
    }
};

#else

template <int b>
struct PlaneFields {
    using Bytes = U8;
    static constexpr int n = 8 / b;
    static constexpr size_t n_planes = 1;

    U8 table;

    HWY_INLINE explicit PlaneFields(const CodeLayout& layout)
            : table(load_grid(layout)) {}

    template <class Load>
    HWY_INLINE U8 load(const uint8_t* at, Load load_bytes) const {
        return load_bytes(at);
    }

    static HWY_INLINE U8 of_planes(const U8 (&planes)[1]) {
        return planes[0];
    }

    template <int f>
    HWY_INLINE U8 get(U8 bytes) const {
        return hn::TableLookupBytes(table, get_field<b, f>(bytes));
    }
};

#endif

/** 3 bits, d a multiple of 8: byte i of the sign plane goes with bytes i and
 * m + i of the magnitude plane, sign field f with magnitude field f / 2 of the
 * first (f even) or the second (f odd). */
struct ThreeBitFields {
    struct Bytes {
        HWY_INLINE Bytes() {}
        U8 magnitudes[2];
        U8 signs;
    };
    static constexpr int n = 8;
    static constexpr size_t n_planes = 3;

    size_t m; ///< bytes of the sign plane

    template <class Load>
    HWY_INLINE Bytes load(const uint8_t* at, Load load_bytes) const {
        const U8 planes[] = {
                load_bytes(at), load_bytes(at + m), load_bytes(at + 2 * m)};
        return of_planes(planes);
    }

    static HWY_INLINE Bytes of_planes(const U8 (&planes)[3]) {
        Bytes bytes;
        bytes.magnitudes[0] = planes[0];
        bytes.magnitudes[1] = planes[1];
        bytes.signs = planes[2];
        return bytes;
    }

#if HWY_TARGET == HWY_AVX3_DL
    /// by place of the magnitude (bits 0, 2 or 4) and parity of the field
    Table64 tables[3][2];

    HWY_INLINE explicit ThreeBitFields(const CodeLayout& layout)
            : m(layout.plane_size(1)) {
        const U8 grid = load_grid(layout);
        make_table<0, 0>(grid);
        make_table<0, 1>(grid);
        make_table<1, 0>(grid);
        make_table<1, 1>(grid);
        make_table<2, 0>(grid);
        make_table<2, 1>(grid);
    }

    /// where the sign is, beside a magnitude in bits 2 place
    static constexpr int sign_bit(int place, int odd) {
        return (place == 1 ? 4 : 2) + odd;
    }

    template <int place, int odd>
    HWY_INLINE void make_table(U8 grid) {
        const U8 index = hn::Iota(du8, 0);
        const U8 magnitude = get_field<2, place>(index);
        const U8 sign = get_field<1, sign_bit(place, odd)>(index);
        tables[place][odd].positions = hn::TableLookupBytes(
                grid, hn::Or(magnitude, shift_left<2>(sign)));
    }

    template <int f>
    HWY_INLINE U8 get(const Bytes& bytes) const {
        constexpr int place = f < 6 ? f / 2 : 2;
        constexpr int up = sign_bit(place, f % 2) - f;
        U8 magnitude = bytes.magnitudes[f % 2], signs = bytes.signs;
        if constexpr (f >= 6) {
            magnitude = shift_right<2>(magnitude);
        }
        if constexpr (up > 0) {
            signs = shift_left<up>(signs);
        } else if constexpr (up < 0) {
            signs = shift_right<-up>(signs);
        }
        const U8 mask = hn::Set(du8, static_cast<uint8_t>(3 << (2 * place)));
        return tables[place][f % 2]
                     [hn::BitwiseIfThenElse(mask, magnitude, signs)];
    }
#else
    U8 table;

    HWY_INLINE explicit ThreeBitFields(const CodeLayout& layout)
            : m(layout.plane_size(1)), table(load_grid(layout)) {}

    template <int f>
    HWY_INLINE U8 get(const Bytes& bytes) const {
        U8 sign;
        if constexpr (f < 2) {
            sign = shift_left<2 - f>(bytes.signs);
        } else {
            sign = shift_right<f - 2>(bytes.signs);
        }
        const U8 magnitude = get_field<2, f / 2>(bytes.magnitudes[f % 2]);
        return hn::TableLookupBytes(
                table,
                hn::Or(magnitude, hn::And(sign, hn::Set(du8, uint8_t{4}))));
    }
#endif
};

/// fields f, f + 1, .. of some bytes, a register each, m apart
template <int f = 0, class Fields>
HWY_INLINE void store_fields(
        const Fields& fields,
        const typename Fields::Bytes& bytes,
        size_t m,
        uint8_t* out) {
    hn::StoreU(fields.template get<f>(bytes), du8, out);
    if constexpr (f + 1 < Fields::n) {
        store_fields<f + 1>(fields, bytes, m, out + m);
    }
}

/// Grid positions of a plane of m bytes, in the order of the coordinates. Where
/// m is less than a register has, each field is stored over what the one before
/// left past its end.
template <class Fields>
HWY_INLINE void decode_fields(
        const Fields& fields,
        const uint8_t* plane,
        size_t m,
        uint8_t* grid) {
    if (m < N8) {
        store_fields(fields, fields.load(plane, ShortLoad(m)), m, grid);
        return;
    }
    const auto load = [](const uint8_t* p)
                              HWY_ATTR { return hn::LoadU(du8, p); };
    for (size_t i = 0; i < m; i += N8) {
        const size_t at = chunk_start(i, m);
        store_fields(fields, fields.load(plane + at, load), m, grid + at);
    }
}
