#pragma once

/** The scan of signs for up to eight queries, which keeps products. Several
 * queries have fewer bits than eight (bits_of_queries), so that a warp can do
 * its multiplications alone: four together would wait for the slowest at each
 * tile. Warps do not wait for each other until the end: instead of reservoirs,
 * each lane has the best of its rows. */

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <gpu/kernels/eight_dots.cuh>
#include <gpu/kernels/round_stream.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/single_dots.cuh>

namespace faiss_turboquant {
namespace gpu {

/// of a block, that multiply, at most
constexpr int warps_of_products(int planes, bool is_single) {
    return planes == 1 && !is_single ? 20 : 16; // of fewer registers
}

/// of a block, of which one warp copies
constexpr int threads_of_products(int warps) {
    return 32 * (warps + 1);
}

/// of a warp in a round
constexpr int tiles_of_products(bool is_single) {
    return is_single ? 2 : 1;
}

/// rows for ProductSink::best that a warp has of a query
constexpr int best_of_warp(bool is_single) {
    return is_single ? 8 : 4;
}

/// bytes of shared memory of a block for images of queries
TQ_HOST_DEVICE inline size_t images_of_products(
        const DeviceLayout& layout,
        bool is_single) {
    return size_t(is_single ? 1 : 8) * layout.dims;
}

/// available: bytes of shared memory of a block
inline StreamPlan plan_products(
        const DeviceLayout& layout,
        size_t available,
        int planes,
        bool is_single) {
    const size_t images = images_of_products(layout, is_single);
    return images < available ? plan_stages(
                                        layout,
                                        available - images,
                                        warps_of_products(planes, is_single),
                                        tiles_of_products(is_single))
                              : StreamPlan();
}

/// bytes of shared memory of a block
inline size_t products_shared(
        const DeviceLayout& layout,
        const StreamPlan& streams,
        bool is_single) {
    return images_of_products(layout, is_single) +
            stages_size(layout, streams, tiles_of_products(is_single));
}

#ifdef __CUDACC__

/** How the dot products of bits with a query become bytes in a ProductSink, and
 * how much they tell of keys. They become 256 times as much at first, and a
 * half of a byte more, which is the byte in bits 8 to 15: by bytes alone, many
 * rows would seem as good as the best. */
struct ProductFactors {
    float slope, shift; ///< of dot products, for what `fixed` gives
    float to_key;       ///< of what `product_of` gives

    /// of_one: DeviceLayout::slope_of
    __device__ ProductFactors(
            const ProductSink& sink,
            uint32_t query,
            const DeviceQueryFactors& factors,
            uint32_t of_one) {
        // what a product of 1 becomes
        const uint32_t most = query < sink.nq
                ? sink.largest_level * sink.queries[query].magnitudes
                : 0;
        const float unit = 256 * 255.0f / float(most > 0 ? most : 1);
        slope = float(int(of_one)) * unit;
        shift = zero - float(int(factors.base)) * unit;
        to_key = factors.multiplier / unit;
    }

    /// A float whose lowest 16 bits are it; products below 0 are as 0.
    __device__ uint32_t fixed(int dot) const {
        return __float_as_uint(fmaxf(fmaf(float(dot), slope, shift), integers));
    }

    /// about what it was, times what makes it so
    static __device__ float product_of(uint32_t fixed) {
        return __uint_as_float(fixed) - zero;
    }

   private:
    static constexpr float integers = 1 << 23; // what is added to it is rounded
    static constexpr float zero = integers + 128;
};

/** Writes products of a tile of rows with several queries, by a warp, each lane
 * those of RowsOfQuery.
 * @param first  row of the tile
 * @param fixed  of the lane's rows, see ProductFactors */
__device__ inline void write_products(
        const ProductSink& sink,
        uint32_t first,
        const uint32_t (&fixed)[4]) {
    static_assert(product_rows == tile_rows);
    const uint32_t tile = first / tile_rows;
    const uint32_t query = RowsOfQuery::query(0), t = threadIdx.x % 4;
    uint32_t largest = max(max(fixed[0], fixed[1]), max(fixed[2], fixed[3]));
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        largest = max(largest, __shfl_xor_sync(0xffffffff, largest, lanes));
    }
    if (query < sink.nq) {
        // byte 1 of each
        const uint32_t bytes = __byte_perm(
                __byte_perm(fixed[0], fixed[1], 0x0051),
                __byte_perm(fixed[2], fixed[3], 0x0051),
                0x5410);
        const size_t place = size_t(tile) * sink.nq + query;
        __stcs(reinterpret_cast<uint32_t*>(sink.products) + place * 4 + t,
               bytes);
        if (t == 0) {
            sink.largest[tile * max_sign_queries + query] =
                    uint8_t(largest >> 8);
        }
    }
}

/// those of two tiles with one query, each lane that of RowOfTwoTiles
__device__ inline void write_products(
        const ProductSink& sink,
        uint32_t first,
        const uint32_t (&fixed)[1]) {
    const uint32_t row = RowOfTwoTiles::row(0);
    uint32_t largest[2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const bool is_of_tile = row / tile_rows == m;
        largest[m] = __reduce_max_sync(0xffffffff, is_of_tile ? fixed[0] : 0);
    }
    if (threadIdx.x % 32 == 0) {
        reinterpret_cast<uint16_t*>(sink.largest)[first / single_rows] =
                uint16_t(__byte_perm(largest[0], largest[1], 0x0051));
    }
    sink.products[first + row] = uint8_t(fixed[0] >> 8);
}

/** The row of a lane that may be the best for its query, by the key that its
 * product lets expect: the greater the score, the better. */
struct BestOfLane {
    float score = -INFINITY;
    uint32_t row = no_row_of_list;

    /// of the row that is given
    __device__ void take(float other_score, uint32_t other_row) {
        const bool is_better = other_score > score;
        score = is_better ? other_score : score;
        row = is_better ? other_row : row;
    }

    /// of rows that follow each other: which it is takes the place of the
    /// lowest bits, so that it is found in fewer instructions
    template <int n>
    __device__ void take(const float (&scores)[n], uint32_t first) {
        if constexpr (n == 1) {
            take(scores[0], first);
        } else {
            float best = -INFINITY;
#pragma unroll
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t bits = __float_as_uint(scores[i]);
                best = fmaxf(best, __uint_as_float((bits & ~(n - 1)) | i));
            }
            take(best, first | (__float_as_uint(best) & (n - 1)));
        }
    }
};

/** ProductSink::best of a block, by the warps that have multiplied. From now
 * on, what has been read of stages is theirs.
 * @param shared  where they were: room for best_of_warp of each query */
template <bool is_single>
__device__ inline void write_best(
        const ProductSink& sink,
        BestOfLane best,
        void* shared,
        int threads) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n = threads / 32 * best_of_warp(is_single);
    float* const scores = static_cast<float*>(shared);
    uint32_t* const rows = static_cast<uint32_t*>(shared) +
            n * (is_single ? 1 : max_sign_queries);
    int place = lane / 4 * n + warp * 4 + lane % 4;
    if constexpr (is_single) { // of four lanes
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
            best.take(
                    __shfl_xor_sync(0xffffffff, best.score, lanes),
                    __shfl_xor_sync(0xffffffff, best.row, lanes));
        }
        place = warp * 8 + lane / 4;
    }
    synchronize_warps(1, threads); // all have read the last stage
    if (!is_single || lane % 4 == 0) {
        scores[place] = best.score;
        rows[place] = best.row;
    }
    synchronize_warps(1, threads);
    for (int i = threadIdx.x; i < int(sink.nq) * n; i += threads) {
        const int query = i / n;
        const float score = scores[i];
        uint32_t rank = 0;
        for (int j = query * n; j < (query + 1) * n; j += 4) {
            float others[4];
            load4(scores + j, others);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                rank += others[k] > score || (others[k] == score && j + k < i);
            }
        }
        if (rank < sink.n_best) {
            const uint32_t slice = query * gridDim.x + blockIdx.x;
            sink.best[size_t(slice) * sink.n_best + rank] = rows[i];
        }
    }
}

/// how a warp multiplies signs
template <int units, int planes, bool is_single>
using ProductDots = std::conditional_t<
        is_single,
        SingleBitDots<units>,
        BitDots<units, bits_of_queries(planes, false, units)>>;

/** @tparam planes     of codes, see scan_products
 *  @tparam is_single  of one query */
template <int units, int planes, bool is_single = false>
__global__ void __launch_bounds__(
        threads_of_products(warps_of_products(planes, is_single)),
        1) products_kernel(const __grid_constant__ ScanArgs args) {
    using Dots = ProductDots<units, planes, is_single>;
    constexpr int n_rows = Dots::n_rows; // of a lane
    constexpr int tiles = tiles_of_products(is_single);
    constexpr int bits = bits_of_queries(planes, is_single, units);
    constexpr int image_bits = is_single ? bits : 8 * bits; // of a coordinate
    extern __shared__ uint4 image[];
    __shared__ StageState stages;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const ProductSink& sink = args.products;
    uint4* const ring =
            image + images_of_products(layout, is_single) / sizeof(uint4);
    RoundStream<planes, tiles> stream(codes, stages, ring, args.stream_tiles);
    if (stream.copies()) {
        stream.copy(sink.next_round);
        return;
    }
    wait_for_kernel_before();
    const int threads = blockDim.x - 32;
    load_images(args.image, image_bits * layout.dims / 8, image, threads);
    const uint32_t query = Dots::query(0);
    DeviceQueryFactors factors = args.factors[query];
    factors.base *= planes == 2 ? 3 : 1; // 2 s + t, levels 3 to -3
    const ProductFactors of_products(
            sink, query, factors, layout.slope_of(true));
    const float of_offset = (layout.is_l2 ? 1 : -1) / of_products.to_key;
    BestOfLane best;
    synchronize_warps(1, threads);
    for (;;) {
        uint32_t first = stream.wait();
        if (stream.is_end()) {
            break;
        }
        int dots[n_rows] = {};
        float scales[n_rows], offsets[n_rows];
#pragma unroll 1
        for (int plane = 0; plane < planes; plane++) {
            if (plane > 0) {
                first = stream.wait();
            }
            if (first < codes.n) {
                int of_plane[n_rows];
                stream.load_factors(Dots::row(0), scales, offsets);
                Dots::compute(layout, stream.tile(), image, of_plane);
#pragma unroll
                for (int i = 0; i < n_rows; i++) {
                    dots[i] = 2 * dots[i] + of_plane[i];
                }
            }
            stream.release();
        }
        if (first >= codes.n) {
            continue;
        }
        uint32_t fixed[n_rows];
        float scores[n_rows];
#pragma unroll
        for (int i = 0; i < n_rows; i++) {
            fixed[i] = of_products.fixed(dots[i]);
            scores[i] =
                    fmaf(of_products.product_of(fixed[i]),
                         scales[i],
                         of_offset * offsets[i]);
        }
        write_products(sink, first, fixed);
        if (codes.selected || first + tiles * tile_rows > codes.n) {
#pragma unroll
            for (int i = 0; i < n_rows; i++) {
                const uint32_t row = first + Dots::row(i);
                if (!is_selected(codes, row, row < codes.n)) {
                    scores[i] = -INFINITY;
                }
            }
        }
        best.take(scores, first + Dots::row(0));
    }
    if (sink.best) {
        write_best<is_single>(sink, best, ring, threads);
    }
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
