#pragma once

/** Dot products of a tile of rows with eight queries, by a warp, whose lanes
 * have four of them each. */

#include <cstdint>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/wgmma.cuh>

namespace faiss_turboquant {
namespace gpu {

#ifdef __CUDACC__

/// a lane's dot products, [2 i + j]: of two rows i with two queries j
struct RowsByPairs {
    static constexpr int n_rows = 2, n_queries = 2;

    static __device__ uint32_t row(int i) {
        return threadIdx.x % 32 / 4 + 8 * i;
    }
    static __device__ uint32_t query(int j) {
        return threadIdx.x % 4 * 2 + j;
    }
};

/// the same, [i]: of four rows that follow each other with one query
struct RowsOfQuery {
    static constexpr int n_rows = 4, n_queries = 1;

    static __device__ uint32_t row(int i) {
        return threadIdx.x % 4 * 4 + i;
    }
    static __device__ uint32_t query(int) {
        return threadIdx.x % 32 / 4;
    }
};

/// a lane's sums over the bits of its queries' integers, which are two's
/// complements: [b] those of bit b
template <int bits, class SumOfBit>
__device__ inline int sum_of_bits(const SumOfBit& sum) {
    int dot = -sum(bits - 1);
#pragma unroll
    for (int b = bits - 2; b >= 0; b--) {
        dot = 2 * dot + sum(b);
    }
    return dot;
}

/** Of codes of one bit. A matrix instruction is of two bits of all queries with
 * eight rows: these are its second operand, whose registers are what a load
 * gives; as the first one, with two halves of a tile side by side, they would
 * have to be moved.
 * @tparam bits  of queries' integers, even */
template <int units, int bits>
class BitDots : public RowsOfQuery {
    using Decoder = RowDecoder<1, no_trellis, units>;
    static constexpr int step_size = 16 * units; ///< of a row
    static constexpr int pairs = bits / 2;
    static_assert(bits % 2 == 0);

   public:
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[4]) {
        const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
        // [h][p][2 r + j]: of row 4 t + 2 h + j and bit 2 p + r
        int sums[2][pairs][4] = {};
        const int steps = layout.dims / (dims_unit * units);
        // column g of h: rows of four lanes, of which each has two columns
        const uint8_t* codes = tile + (g / 2 * 4 + g % 2) * layout.row_size();
        const int two_rows = 2 * layout.row_size();
        image += lane;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            typename Decoder::Raw rows[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                rows[h] = Decoder::template load<true>(
                        layout, codes + h * two_rows, 0, t);
            }
            codes += step_size;
            count(sums, rows, image);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            dots[i] = sum_of_bits<bits>([&](int b) {
                return sums[i / 2][b / 2][b % 2 * 2 + i % 2];
            });
        }
    }

   private:
    /// a step; image is moved on
    static __device__ void count(
            int (&sums)[2][pairs][4],
            const typename Decoder::Raw (&rows)[2],
            const uint4*& image) {
        if constexpr (units == 1) { // with four bits in what a lane loads
            static_assert(pairs % 2 == 0);
#pragma unroll
            for (int p = 0; p < pairs; p += 2, image += 32) {
                const uint4 w = *image;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const auto& x = rows[h].words[0];
                    count_tile(sums[h][p], w.x, w.y, x[0]);
                    count_tile(sums[h][p + 1], w.z, w.w, x[0]);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < units; i += 2) {
#pragma unroll
                for (int p = 0; p < pairs; p++, image += 32) {
                    const uint4 w = *image;
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const auto& x = rows[h].words[0];
                        int* c = sums[h][p];
                        count_tile(c, w.x, w.y, w.z, w.w, x[i], x[i + 1]);
                    }
                }
            }
        }
    }
};

/// The same by four warps, each of which has a tile, for integers of 8 bits.
/// Rows are the first operand, which alone may be in registers.
template <int units>
class TogetherBitDots : public RowsByPairs {
    using Decoder = RowDecoder<1, no_trellis, units>;
    static constexpr int step_size = 16 * units; ///< of a row
    static constexpr int bits = 8;

   public:
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[4]) {
        // [4 b + c]: of dot product c and bit b
        int sums[4 * bits];
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* codes = tile + row(0) * layout.row_size();
        uint64_t queries = operand_descriptor(shared_address(image), 64);
        constexpr int at_once = 3; // as many as there are registers for
        bool adds = false;
        int step = 0;
#pragma unroll 1
        for (; step + at_once <= steps; step += at_once) {
            count_together<at_once>(sums, layout, codes, queries, adds);
        }
#pragma unroll 1
        for (; step < steps; step++) {
            count_together<1>(sums, layout, codes, queries, adds);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            dots[c] = sum_of_bits<bits>([&](int b) { return sums[4 * b + c]; });
        }
    }

   private:
    struct Words { ///< of either row
        typename Decoder::Raw x, y;
    };
    static __device__ Words
    load(const DeviceLayout& layout, const uint8_t* codes) {
        const int t = threadIdx.x % 4;
        return {Decoder::template load<true>(layout, codes, 0, t),
                Decoder::template load<true>(
                        layout, codes + 8 * layout.row_size(), 0, t)};
    }

    /** n steps by four warps. What these read of codes is all loaded before
     * the first instruction, into registers that are not written before the
     * last one has ended: with what comes next loaded meanwhile, ptxas (13.0)
     * let moves to the registers of codes overtake the wait.
     * @param codes, queries  moved on
     * @param adds            to sums; set */
    template <int n>
    static __device__ void count_together(
            int (&sums)[4 * bits],
            const DeviceLayout& layout,
            const uint8_t*& codes,
            uint64_t& queries,
            bool& adds) {
        constexpr int unit_size = 64; // in units of 16 bytes
        Words words[n];
#pragma unroll
        for (int s = 0; s < n; s++) {
            words[s] = load(layout, codes + s * step_size);
        }
        codes += n * step_size;
        begin_wgmma();
#pragma unroll
        for (int s = 0; s < n; s++) {
            const auto& x = words[s].x.words[0];
            const auto& y = words[s].y.words[0];
            if constexpr (units == 1) { // of the other half, codes are 0
                wgmma_of_bits(sums, x[0], y[0], 0, 0, queries, adds);
                adds = true;
            } else {
#pragma unroll
                for (int i = 0; i < units; i += 2) {
                    wgmma_of_bits(
                            sums,
                            x[i],
                            y[i],
                            x[i + 1],
                            y[i + 1],
                            queries + i * unit_size,
                            adds);
                    adds = true;
                }
            }
            queries += units * unit_size;
        }
        end_wgmma_group();
        wait_for_wgmma(sums);
    }
};

/// of what codes decode to, in bytes
template <int nbits, int trellis, int units>
class ByteDots : public RowsByPairs {
    using Decoder = RowDecoder<nbits, trellis, units>;

   public:
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[4]) {
        constexpr int chains = 2;
        const uint32_t lane = threadIdx.x % 32, t = lane % 4;
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* const rows[2] = {
                tile + row(0) * layout.row_size(),
                tile + row(1) * layout.row_size()};
        typename Decoder::Raw loaded[2];
        const auto load = [&](int step) {
            if (step < steps) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    loaded[i] = Decoder::template load<true>(
                            layout, rows[i], step, t);
                }
            }
        };
        load(0);
        Decoder decoders[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if constexpr (Decoder::has_trellis) {
                decoders[i].start(Decoder::template load<true>(
                        layout, rows[i], steps - 1, t));
            }
        }
        int sums[1][4 * chains] = {};
        const uint4* fragment = image + lane;
        for (int step = 0; step < steps; step++) {
            const typename Decoder::Raw raw[2] = {loaded[0], loaded[1]};
            load(step + 1);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                decoders[i].begin_step(raw[i], t);
            }
#pragma unroll
            for (int unit = 0; unit < units; unit++) {
                uint32_t a[1][2][8];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    decoders[i].decode(layout, raw[i], unit, a[0][i]);
                }
                multiply<chains>(sums, a, fragment, 0);
                fragment += 2 * 32;
            }
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            dots[c] = sums[0][c] + sums[0][4 + c];
        }
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
