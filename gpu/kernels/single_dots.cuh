#pragma once

/** Dot products of tiles of rows with one query, by bits, by a warp.
 *
 * Signs come from memory so fast that a multiprocessor can issue some 1400
 * instructions for two tiles of 1536 coordinates, and few warps issue half as
 * many. So a warp takes two tiles at a time, after which each of its lanes has
 * the product of one row: 400 instructions, where one tile after the other, a
 * row by four lanes, took 860. */

#include <cstdint>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>

namespace faiss_turboquant {
namespace gpu {

/// tiles that have to be there at a time
constexpr int single_tiles(bool has_trellis) {
    return has_trellis ? 1 : 2;
}

constexpr int single_rows = 2 * tile_rows; ///< of a warp in a round

#ifdef __CUDACC__

/// what a lane has of a bit plane of a query in a step
template <int units>
struct alignas(4 * units) PlaneWords {
    uint32_t words[units];
};

/// the row of two tiles whose dot product a lane has
struct RowOfTwoTiles {
    static constexpr int n_rows = 1;

    static __device__ uint32_t row(int) {
        return threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4;
    }
    static __device__ uint32_t query(int) {
        return 0;
    }
};

/// @tparam trellis  see RowDecoder
template <int nbits, int trellis, int units>
class SingleDots {
    using Decoder = RowDecoder<nbits, trellis, units>;
    static constexpr int planes = Decoder::bit_planes;

   public:
    static constexpr int at_once = single_tiles(Decoder::has_trellis);

    /** What the lane's bits of the query, 2 t and 2 t + 1, give for rows of
     * tiles: [tile][half] for row g of a half.
     * @param image  of the lane */
    static __device__ void compute_parts(
            const DeviceLayout& layout,
            const PlaneWords<units>* image,
            const uint8_t* const (&tiles)[at_once],
            int (&parts)[at_once][2]) {
        const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
        const int row_size = layout.row_size();
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* rows[at_once][2];
        Decoder decoders[at_once][2];
        int sums[at_once][planes][4] = {};
#pragma unroll
        for (int m = 0; m < at_once; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                rows[m][i] = tiles[m] + g * row_size + i * (8 * row_size);
                if constexpr (Decoder::has_trellis) {
                    decoders[m][i].start(Decoder::template load<true>(
                            layout, rows[m][i], steps - 1, t));
                }
            }
        }
        constexpr int step_size = 16 * Decoder::plane_words; // of a plane
#pragma unroll 1
        for (int step = 0; step < steps; step++, image += 32) {
            const auto& query = image->words;
#pragma unroll
            for (int m = 0; m < at_once; m++) {
                uint32_t bits[2][units][planes];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const auto raw = Decoder::template load<true>(
                            layout, rows[m][i], 0, t);
                    rows[m][i] += step_size;
                    decoders[m][i].begin_step(raw, t);
#pragma unroll
                    for (int unit = 0; unit < units; unit++) {
                        decoders[m][i].decode_bits(
                                layout, raw, unit, bits[i][unit]);
                    }
                }
                const auto& x = bits[0];
                const auto& y = bits[1];
#pragma unroll
                for (int u = 0; u < units; u += 2) {
#pragma unroll
                    for (int p = 0; p < planes; p++) {
                        int* c = sums[m][p];
                        if constexpr (units == 1) {
                            count_tile(c, x[0][p], y[0][p], query[0]);
                        } else {
                            count_tile(
                                    c,
                                    x[u][p],
                                    y[u][p],
                                    x[u + 1][p],
                                    y[u + 1][p],
                                    query[u],
                                    query[u + 1]);
                        }
                    }
                }
            }
        }
        // two's complement: the highest bit is worth -128
        const int low = 1 << 2 * t, high = t == 3 ? -128 : 2 << 2 * t;
#pragma unroll
        for (int m = 0; m < at_once; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                parts[m][i] = 0;
#pragma unroll
                for (int p = 0; p < planes; p++) {
                    const int* c = sums[m][p] + 2 * i;
                    parts[m][i] += (c[0] * low + c[1] * high) << p;
                }
            }
        }
    }

    /// The dot product of RowOfTwoTiles: the four lanes of a row each sum up
    /// one of their four.
    static __device__ int dot_of_row(const int (&parts)[2][2]) {
        const int t = threadIdx.x % 4;
        const bool upper = t & 2, odd = t & 1;
        int halves[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            halves[i] =
                    (upper ? parts[1][i] : parts[0][i]) +
                    __shfl_xor_sync(
                            0xffffffff, upper ? parts[0][i] : parts[1][i], 2);
        }
        return (odd ? halves[1] : halves[0]) +
                __shfl_xor_sync(0xffffffff, odd ? halves[0] : halves[1], 1);
    }
};

/// of signs, of two tiles
template <int units>
class SingleBitDots : public RowOfTwoTiles {
    using Dots = SingleDots<1, no_trellis, units>;

   public:
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[1]) {
        int parts[2][2];
        Dots::compute_parts(
                layout,
                reinterpret_cast<const PlaneWords<units>*>(image) +
                        threadIdx.x % 32,
                {tile, tile + tile_rows * layout.row_size()},
                parts);
        dots[0] = Dots::dot_of_row(parts);
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
