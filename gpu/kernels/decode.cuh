#pragma once

/** From the bytes of codes to the operands of integer matrix instructions, in
 * registers.
 *
 * mma.m16n8k32 wants from the lane (row g = lane / 4, t = lane % 4) four bytes
 * of row g and of row g + 8 at a time. Which coordinates they are does not
 * matter as long as the queries use the same order, so a lane takes what a
 * load of contiguous bytes gives it. `Fragment` is that order.
 *
 * Tables are looked up by prmt, whose selector is four nibbles: a nibble holds
 * the field of one coordinate, and so eight coordinates that sit in the
 * nibbles of a word are decoded as two words. */

#include <cstdint>
#include <utility>

#include <faiss_turboquant/kernels/trellis_tables.h>
#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/bit_logic.cuh>

namespace faiss_turboquant {
namespace gpu {

/// without a trellis; with one whose taps are known at run time only
constexpr int no_trellis = -2, any_trellis = -1;

/// bits of the fields that `Fragment` counts in: 3 bits and trellises work
/// with planes of one bit
TQ_HOST_DEVICE constexpr int fragment_bits(int nbits, bool has_trellis) {
    return has_trellis || nbits == 3 ? 1 : nbits;
}

/** In a step, the four lanes of a row read 16 * bits * units contiguous bytes
 * of each plane, which is 128 * units coordinates. A lane makes 8 * units words
 * of four coordinates of them. */
struct Fragment {
    int bits;
    int units;

    /// the coordinate in byte j of a lane's word p
    TQ_HOST_DEVICE int coordinate(int dims, int step, int t, int p, int j)
            const {
        const int half_fields = 4 / bits;
        const int word = p / (2 * half_fields);
        const int a = p / 2 % half_fields;
        const int byte = (4 * step + t) * 4 * bits * units + word * 4 +
                p % 2 * 2 + j / 2;
        const int field = a + j % 2 * half_fields;
        return field * (dims * bits / 8) + byte;
    }
};

#ifdef __CUDACC__

/// four bytes of a table of eight by the nibbles of the selector's lower half
__device__ inline uint32_t look_up(
        uint32_t table0,
        uint32_t table1,
        uint32_t selector) {
    uint32_t result;
    asm("prmt.b32 %0, %1, %2, %3;"
        : "=r"(result)
        : "r"(table0), "r"(table1), "r"(selector));
    return result;
}

/// 0xff or 0x80 by the top bit of each nibble
__device__ inline uint32_t spread_top_bits(uint32_t nibbles) {
    return look_up(0x80808080, 0x80808080, nibbles);
}

/// a where mask is set, else b, in the one instruction of which the compiler
/// makes two
__device__ inline uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;"
        : "=r"(result)
        : "r"(mask), "r"(a), "r"(b));
    return result;
}

// Shifts, logic and prmt share a pipe, which is the bound of decoding. These
// two take the one for multiplications.

/// x >> 16 h
template <int h>
__device__ inline uint32_t half(uint32_t x) {
    return h == 0 ? x : __dp2a_lo(x, 0x0100u, 0u); // 0 * low + 1 * high
}

/// ~x. all_ones: DeviceLayout::all_ones
__device__ inline uint32_t invert(uint32_t x, uint32_t all_ones) {
    return x * all_ones + all_ones;
}

/** Four bytes of DeviceLayout::table by the nibbles of the half. Where the top
 * bit of a nibble is set, prmt gives the top bit of a byte eight times, which
 * is 0 here: each look-up leaves to the other one what it has not.
 * inverse: ~nibbles */
template <int h>
__device__ inline uint32_t look_up(
        const uint32_t (&table)[4],
        uint32_t nibbles,
        uint32_t inverse) {
    return look_up(table[0], table[1], half<h>(nibbles)) |
            look_up(table[2], table[3], half<h>(inverse));
}

template <class F, int... i>
__device__ inline void for_constants(std::integer_sequence<int, i...>, F f) {
    (f(std::integral_constant<int, i>()), ...);
}

/// f(i) for i from 0 to n - 1, which are constants to the compiler
template <int n, class F>
__device__ inline void for_constants(F f) {
    for_constants(std::make_integer_sequence<int, n>(), f);
}

/** Grid positions of one row of codes.
 * @tparam trellis  no_trellis, any_trellis or a row of trellis_codes
 * @tparam units    see Fragment */
template <int nbits, int trellis, int units>
struct RowDecoder {
    static constexpr bool has_trellis = trellis != no_trellis;
    static constexpr int bits = fragment_bits(nbits, has_trellis);
    /// planes that are read side by side; a plane of two bits counts as two of
    /// one, its even and its odd fields
    static constexpr int planes = bits == 1 ? nbits : 1;
    static constexpr int plane_words = bits * units; ///< of a lane, in a step
    /// of `trellis`, if that is known
    static constexpr TrellisCode known() {
        return trellis_codes[trellis >= 0 ? trellis : 0];
    }
    static constexpr int memory =
            trellis >= 0 ? known().memory : Trellis::max_memory;
    /// of what decode_bits gives
    static constexpr int bit_planes = has_trellis ? 6 : 1;
    /// words before a lane's own that the trellis looks back to
    static constexpr int back = has_trellis ? (memory + 3) / 4 : 0;

    struct alignas(plane_words % 4 == 0 ? 16 : 4 * plane_words) Raw {
        uint32_t words[planes][plane_words];
    };

    /// What a lane of a row reads in a step.
    /// row: of the row's code, in shared or, read-only, in global memory
    template <bool is_shared>
    static __device__ Raw
    load(const DeviceLayout& layout, const uint8_t* row, int step, int t) {
        const auto read = [](const auto* at) {
            return is_shared ? *at : __ldg(at);
        };
        Raw raw;
        const uint8_t* at = row + (4 * step + t) * 4 * plane_words;
        for (int p = 0; p < planes; p++) {
            if constexpr (plane_words % 4 == 0) {
                for (int i = 0; i < plane_words / 4; i++) {
                    const uint4 x =
                            read(reinterpret_cast<const uint4*>(at) + i);
                    raw.words[p][4 * i] = x.x;
                    raw.words[p][4 * i + 1] = x.y;
                    raw.words[p][4 * i + 2] = x.z;
                    raw.words[p][4 * i + 3] = x.w;
                }
            } else if constexpr (plane_words == 2) {
                const uint2 x = read(reinterpret_cast<const uint2*>(at));
                raw.words[p][0] = x.x;
                raw.words[p][1] = x.y;
            } else {
                raw.words[p][0] = read(reinterpret_cast<const uint32_t*>(at));
            }
            at += layout.plane_size();
        }
        return raw;
    }

    /// coded words of the step before, of the same lane
    uint32_t previous[units];
    /// coded words of this step behind those that come before them
    uint32_t coded[back + units];

    /// with a trellis, before the first step. last: of the last step
    __device__ void start(const Raw& last) {
        // before byte 0 come the last bytes, shifted by a bit
        for (int i = 0; i < units; i++) {
            previous[i] = last.words[0][i] << 1 & 0xfefefefe;
        }
    }

    /// before the units of a step. All lanes of a row call it
    __device__ void begin_step(const Raw& raw, int t) {
        if constexpr (has_trellis) {
            for (int h = 1; h <= back; h++) {
                // h words back is word i of j lanes back
                const int j = (h + units - 1) / units;
                const int i = units * j - h;
                const uint32_t offered =
                        t + j >= 4 ? previous[i] : raw.words[0][i];
                coded[back - h] =
                        __shfl_sync(0xffffffff, offered, (t - j) & 3, 4);
            }
            for (int i = 0; i < units; i++) {
                coded[back + i] = raw.words[0][i];
                previous[i] = raw.words[0][i];
            }
        }
    }

    /// the eight words of a unit of the step, grid positions but for one bit
    __device__ void decode(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&out)[8]) const {
        const auto& table = layout.table;
        if constexpr (has_trellis) {
            decode_trellis(layout, raw, unit, out);
        } else if constexpr (nbits == 4) {
            for (int w = 0; w < 4; w++) {
                const uint32_t x = raw.words[0][w];
                const uint32_t inverse = invert(x, layout.all_ones);
                for_constants<2>([&](auto h) {
                    out[2 * w + h] = look_up<h>(table, x, inverse);
                });
            }
        } else if constexpr (nbits == 3) {
            decode3(table, raw, unit, out);
        } else if constexpr (nbits == 2) {
            for (int w = 0; w < 2; w++) {
                for (int a = 0; a < 2; a++) {
                    const uint32_t fields =
                            raw.words[0][2 * unit + w] >> 2 * a & 0x33333333;
                    for_constants<2>([&](auto h) {
                        out[4 * w + 2 * a + h] =
                                look_up(table[0], table[0], half<h>(fields));
                    });
                }
            }
        } else {
            // not grid positions: see DeviceLayout::slope
            for (int a = 0; a < 4; a++) {
                const uint32_t x = raw.words[0][unit] << (3 - a);
                for_constants<2>([&](auto h) {
                    out[2 * a + h] = spread_top_bits(half<h>(x));
                });
            }
        }
    }

    /// the same, but grid positions at one bit, too
    __device__ void decode_positions(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&out)[8]) const {
        if constexpr (has_trellis || nbits > 1) {
            decode(layout, raw, unit, out);
        } else {
            const uint32_t table = layout.table[0];
            for (int a = 0; a < 4; a++) {
                const uint32_t fields = raw.words[0][unit] >> a & 0x11111111;
                for_constants<2>([&](auto h) {
                    out[2 * a + h] = look_up(table, table, half<h>(fields));
                });
            }
        }
    }

    /** The bits of a unit's grid positions, or, without a trellis, of its
     * fields. Of trellises, those of a known one with a grid that is known. */
    __device__ void decode_bits(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&out)[bit_planes]) const {
        if constexpr (has_trellis) {
            uint32_t index[4], signs;
            index_bits(layout, raw, unit, index, signs);
            if constexpr (shared().n > 0) {
                position_bits(index, signs, out);
            } else {
                for_constants<bit_planes>([&](auto b) {
                    constexpr uint16_t table = known_grid_bit(b);
                    out[b] = apply_table<table>(index, signs);
                });
            }
        } else {
            out[0] = raw.words[0][unit];
        }
    }

   private:
    /// for the bits of the known grid's positions; none at 3 bits
    static constexpr SharedBits shared() {
        constexpr SharedBits of_code[n_compiled_trellis_codes] = {
                {2, {0x2288, 0xfc0c}},
                {7, {0xb6b6, 0xddaa, 0x0a5a, 0x1144, 0xc33c, 0x55aa, 0xccf0}},
                {},
                {6, {0x3fcc, 0xf5aa, 0xeaea, 0x003c, 0x66cc, 0xd0d0}}};
        return of_code[trellis >= 0 ? trellis : 0];
    }

    /// bits of positions, xor signs
    static __device__ void position_bits(
            const uint32_t (&index)[4],
            uint32_t signs,
            uint32_t (&out)[bit_planes]) {
        constexpr SharedBits bits = shared();
        uint32_t words[4 + bits.n];
        for_constants<4 + bits.n>([&](auto w) {
            if constexpr (w < 4) {
                words[w] = index[w];
            } else {
                constexpr BitNode f = bits.find(bits.table_of(w), 4);
                static_assert(f.i >= 0);
                words[w] = apply_node<f.table, f.i, f.j, f.k>(words, 0);
            }
        });
        for_constants<bit_planes>([&](auto b) {
            constexpr uint16_t table = known_grid_bit(b);
            if constexpr (table == 0 || table == 0xffff) {
                out[b] = table == 0 ? signs : ~signs;
            } else {
                constexpr BitNode f = bits.find(table, 4 + bits.n);
                static_assert(f.i >= 0);
                out[b] = apply_node<f.table, f.i, f.j, f.k>(words, signs);
            }
        });
    }

    /// table of bit b of a position by index
    static constexpr uint16_t known_grid_bit(int b) {
        uint16_t table = 0;
        for (int i = 0; i < 16; i++) {
            table |= (known().grid[i] >> b & 1) << i;
        }
        return table;
    }

    __device__ void decode3(
            const uint32_t (&table)[4],
            const Raw& raw,
            int unit,
            uint32_t (&out)[8]) const {
        const uint32_t signs = raw.words[2][unit];
        for (int a = 0; a < 4; a++) {
            const uint32_t magnitudes = raw.words[a % 2][unit];
            const uint32_t bit2 = a <= 2 ? signs << (2 - a) : signs >> 1;
            const uint32_t fields = (magnitudes >> a / 2 * 2 & 0x33333333) |
                    (bit2 & 0x44444444);
            for_constants<2>([&](auto h) {
                out[2 * a + h] = look_up(table[0], table[1], half<h>(fields));
            });
        }
    }

    /// coded bits of a unit as they were k steps earlier
    __device__ uint32_t coded_before(int unit, int k) const {
        const int word = back + unit - (k + 3) / 4;
        return k % 4 == 0
                ? coded[word]
                : __funnelshift_r(
                          coded[word], coded[word + 1], 8 * (4 - k % 4));
    }

    /// parities of a unit, one bit a coordinate
    __device__ void parities(
            const DeviceLayout& layout,
            int unit,
            uint32_t (&z)[4]) const {
        constexpr TrellisCode code = known();
        for (int p = 0; p < 4; p++) {
            z[p] = 0;
        }
#pragma unroll
        for (int k = 0; k <= memory; k++) {
            const uint32_t x = coded_before(unit, k);
#pragma unroll
            for (int p = 0; p < n_parities(nbits); p++) {
                if constexpr (trellis >= 0) {
                    if (code.taps[p] >> k & 1) {
                        z[p] ^= x;
                    }
                } else {
                    z[p] ^= x & layout.taps[p][k];
                }
            }
        }
    }

    /// pairs of bits (x, y << 1): those of even places, then of odd ones
    static __device__ void pair_up(uint32_t x, uint32_t y, uint32_t (&out)[2]) {
        out[0] = select_bits(0x55555555, x, y << 1);
        out[1] = select_bits(0x55555555, x >> 1, y);
    }

    /// parities of a unit, with its signs, which are 0 if there are none
    __device__ void signed_parities(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&z)[4],
            uint32_t& signs) const {
        parities(layout, unit, z);
        signs = 0;
        if constexpr (nbits > 1) {
            constexpr TrellisCode code = known();
            signs = raw.words[1][unit];
#pragma unroll
            for (int p = 0; p < n_parities(nbits); p++) {
                if constexpr (trellis >= 0) {
                    if (code.sign_mask >> p & 1) {
                        z[p] ^= signs;
                    }
                } else {
                    z[p] ^= signs & -(layout.sign_mask >> p & 1);
                }
            }
        }
    }

    /// the four bits of the index into the grid, one bit a coordinate
    __device__ void index_bits(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&index)[4],
            uint32_t& signs) const {
        signed_parities(layout, raw, unit, index, signs);
        if constexpr (nbits == 4) {
            uint32_t high[2];
            pair_up(raw.words[2][unit], raw.words[3][unit], high);
            index[2] = high[0];
            index[3] = high[1];
        } else if constexpr (nbits == 3) {
            index[3] = raw.words[2][unit];
        }
    }

    __device__ void decode_trellis(
            const DeviceLayout& layout,
            const Raw& raw,
            int unit,
            uint32_t (&out)[8]) const {
        uint32_t z[4], signs;
        signed_parities(layout, raw, unit, z, signs);
        // a nibble of the index is two pairs of bits
        uint32_t low[2], high[2];
        pair_up(z[0], z[1], low);
        if constexpr (nbits == 4) {
            high[0] = raw.words[2][unit];
            high[1] = raw.words[3][unit];
        } else {
            pair_up(z[2], nbits == 3 ? raw.words[2][unit] : z[3], high);
        }
        for (int a = 0; a < 4; a++) {
            const uint32_t index = a < 2
                    ? select_bits(0x33333333, low[a % 2], high[a % 2] << 2)
                    : select_bits(0x33333333, low[a % 2] >> 2, high[a % 2]);
            const uint32_t inverse = invert(index, layout.all_ones);
            const uint32_t sign = signs << (3 - a);
            for_constants<2>([&](auto h) {
                const uint32_t g = look_up<h>(layout.table, index, inverse);
                out[2 * a + h] = nbits == 1
                        ? g
                        : g ^ look_up(layout.flip, layout.flip, half<h>(sign));
            });
        }
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
