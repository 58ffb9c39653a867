#include <gpu/kernels/sign_filter.h>

#include <algorithm>
#include <cfloat>
#include <type_traits>

#include <faiss_turboquant/kernels/sign_bound.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/single_kernel.cuh>
#include <gpu/kernels/top_k.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int list_threads = 256;
/// that run at once on a multiprocessor. There are no more: bounds take each as
/// long as some rows
constexpr int list_blocks = 3;

__global__ void __launch_bounds__(radix_size) select_thresholds_kernel(
        const float* keys,
        size_t stride,
        size_t n,
        int k,
        Entry* thresholds) {
    __shared__ uint32_t histogram[radix_size];
    wait_for_kernel_before();
    const float* of_query = keys + blockIdx.x * stride;
    uint32_t prefix = 0;
    for (int shift = 32 - radix_bits; shift >= 0; shift -= radix_bits) {
        histogram[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 8
        for (size_t i = threadIdx.x; i < n; i += radix_size) {
            const float key = __ldg(of_query + i);
            const Entry bits = pack_entry(key, 0) >> 32;
            if (key <= FLT_MAX && bits >> (shift + radix_bits) == prefix) {
                atomicAdd(&histogram[bits >> shift & (radix_size - 1)], 1);
            }
        }
        __syncthreads();
        const RadixDigit found = find_digit(histogram, k); // by every warp
        if (found.digit < 0) {
            if (threadIdx.x == 0) {
                thresholds[blockIdx.x] = no_entry;
            }
            return;
        }
        prefix = prefix << radix_bits | found.digit;
        k = found.rest;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        // one of the same key may be better by its id
        thresholds[blockIdx.x] = Entry(prefix) << 32 | ~uint32_t(0);
    }
}

/** A row is of interest if, with the byte x_0 of its product and that with the
 * second plane, x_1, if it is not in the former,
 *
 *   (slope * x_0 + second_slope * x_1 + shift + spread * residual) * scale
 *       +- offset <= limit.
 */
struct alignas(16) KeyBound { // most need four of these, one load
    float slope, shift, spread, limit;
    float second_slope;

    /// offset: with its sign
    template <int n>
    __device__ bool keeps(
            const float (&products)[n],
            float residual,
            float scale,
            float offset) const {
        static_assert(n <= 2);
        float sum = fmaf(spread, residual, shift);
        sum = fmaf(slope, products[0], sum);
        if constexpr (n > 1) {
            sum = fmaf(second_slope, products[1], sum);
        }
        return fmaf(sum, scale, offset) <= limit;
    }

    /// Whether it keeps any row of a tile, or maybe none; of one product a row.
    /// product: the largest. Each step is no more than with any of the rows,
    /// because slope and spread are not above 0.
    __device__ bool may_keep(float product, const TileRange& range) const {
        const float least = fmaf(
                slope, product, fmaf(spread, range.largest_residual, shift));
        const float scale = least < 0 ? range.largest_scale : range.least_scale;
        return fmaf(least, scale, range.least_offset) <= limit;
    }
};

__device__ KeyBound bound_keys(const SignKeys& signs, int q, float threshold) {
    const DeviceQueryFactors& factors = signs.factors[q];
    const SignStatistics& statistics =
            signs.rows.statistics[signs.n_planes - 1];
    const QuerySums& sums = signs.products.queries[q];
    const double multiplier = factors.multiplier; // below 0
    const double squares = sums.squares;
    const double share = sign_share(signs.d, signs.margin);
    // |u|^2 of the code that has the largest
    const double most_of_signs = statistics.largest_square +
            double(statistics.largest_residual) * statistics.largest_residual;
    const float sign = signs.is_l2 ? 1 : -1;
    const double y =
            (double(threshold) - factors.bias - sign * statistics.offset) /
            (multiplier * statistics.scale);
    const SignBound bound = sign_bound(
            {squares, share, share * sums.rest * sqrt(most_of_signs)},
            {statistics.least_residual,
             statistics.largest_residual,
             statistics.largest_square},
            y);
    const double slope = multiplier * bound.factor;
    // more than rounding to floats may do to <q, u>, and, in the last line, to
    // the rest
    const double rounding =
            (2 * signs.n_planes - 1) * 0x1p-20 * sqrt(signs.d * squares);
    double shift = slope * bound.shift + multiplier * rounding;
    KeyBound result = {};
    // <q, u> is <q, s>, or 2 <q, s> + <q, t>, the one product or the other, or
    // two of them
    const bool has_two = signs.n_planes > 1 && !signs.are_joined;
    const double most = double(sums.magnitudes) * signs.products.largest_level;
    const double of_byte = slope * (has_two ? 2 : 1) * most / 255;
    result.slope = float(of_byte);
    shift += of_byte * 0.501; // a half, and what rounding may do
    result.second_slope = has_two ? float(slope) : 0;
    result.shift = float(shift);
    result.spread = float(slope * bound.spread);
    result.limit =
            float(threshold + 0x1p-20 * fabs(double(threshold)) - factors.bias);
    return result;
}

/// by all threads of a block. bounds: (n,), which past the last query no row
/// keeps
__device__ void bound_all_keys(
        const SignKeys& signs,
        const Entry* thresholds,
        float last,
        KeyBound* bounds,
        uint32_t n) {
    const uint32_t q = threadIdx.x;
    if (q < signs.products.nq) {
        const float threshold = !thresholds ? last
                : thresholds[q] == no_entry ? FLT_MAX
                                            : entry_key(thresholds[q]);
        bounds[q] = bound_keys(signs, q, threshold);
    } else if (q < n) {
        bounds[q] = {};
        bounds[q].limit = -INFINITY;
    }
}

/// Rows that a warp finds, which go to a list together.
/// @tparam most  that may be added between two calls of `make_room`
template <uint32_t most>
class FoundRows {
    static constexpr uint32_t size = 4 * most;
    uint32_t rows_[size], count_;

   public:
    __device__ void clear() {
        if (threadIdx.x % 32 == 0) {
            count_ = 0;
        }
        __syncwarp();
    }

    /// room for n, of a lane. @return  where they go
    __device__ uint32_t* add(uint32_t n) {
        return rows_ + atomicAdd(&count_, n);
    }

    /// by all lanes
    __device__ void make_room(const CandidateList& list) {
        __syncwarp();
        const uint32_t n = count_;
        __syncwarp(); // before any lane adds more
        if (n > size - most) {
            deliver(list);
        }
    }

    /// likewise
    __device__ void deliver(const CandidateList& list) {
        __syncwarp();
        const uint32_t lane = threadIdx.x % 32, n = count_;
        uint32_t place = 0;
        if (lane == 0 && n > 0) {
            place = atomicAdd(list.size, n);
        }
        place = __shfl_sync(0xffffffff, place, 0);
        for (uint32_t i = lane; i < n; i += 32) {
            if (place + i < list.capacity) {
                list.rows[place + i] = rows_[i];
            }
        }
        __syncwarp();
        clear();
    }
};

/// what a block that lists rows by one product has in shared memory
struct ListState {
    KeyBound bounds[max_sign_queries];
    FoundRows<256> found[list_threads / 32]; ///< of each warp

    /// By all threads: once earlier kernels have ended. @return  of the warp
    __device__ FoundRows<256>& begin(
            const SignKeys& signs,
            const Entry* thresholds,
            float last) {
        auto& of_warp = found[threadIdx.x / 32];
        of_warp.clear();
        wait_for_kernel_before();
        bound_all_keys(signs, thresholds, last, bounds, max_sign_queries);
        __syncthreads();
        return of_warp;
    }
};

__device__ float float_of_byte(uint32_t word, uint32_t byte) {
    constexpr float integers = 1 << 23;
    const uint32_t bits =
            __byte_perm(word, __float_as_uint(integers), 0x7440 | byte);
    return __uint_as_float(bits) - integers;
}

/// the largest bytes of a tile's products
template <int max_queries>
class LargestOfTile {
    using Bytes = std::conditional_t<max_queries == 1, uint8_t, uint2>;
    static_assert(sizeof(Bytes) == max_queries);
    uint32_t words_[(max_queries + 3) / 4] = {};

   public:
    __device__ void load(const ProductSink& sink, uint32_t tile) {
        const Bytes bytes = reinterpret_cast<const Bytes*>(sink.largest)[tile];
        memcpy(words_, &bytes, sizeof(bytes));
    }
    __device__ float of_query(int q) const {
        return float_of_byte(words_[q / 4], q % 4);
    }
};

/// What a lane knows of half the rows of a tile.
class RowsOfLane {
    static constexpr int n = product_rows / 2;

    const uint32_t half_; ///< of those of all tiles
    uint32_t queries_;    ///< bits
    uint2 products_;      ///< of the first of them, a byte each row
    float scales_[n], residuals_[n], offsets_[n];

   public:
    /** @param half     maybe past the end
     *  @param queries  bits of those to which the tile may be of interest */
    __device__ RowsOfLane(
            const SignKeys& signs,
            uint32_t half,
            uint32_t queries)
            : half_(half), queries_(row(0) < signs.n ? queries : 0) {
        if (queries_ == 0) {
            return;
        }
        load_products(signs.products);
        const SignPlane& plane = signs.rows.planes[signs.n_planes - 1];
        load8(plane.scales + row(0), scales_);
        load8(plane.residuals + row(0), residuals_);
        if (signs.offsets) {
            load8(signs.offsets + row(0), offsets_);
        }
    }

    __device__ uint32_t row(int i) const {
        return half_ * n + i;
    }

    /// bit i: whether any of the queries keeps row i. Once
    __device__ uint32_t
    of_interest(const SignKeys& signs, const KeyBound* bounds) {
        const float sign = !signs.offsets ? 0 : signs.is_l2 ? 1 : -1;
        uint32_t kept = 0;
        while (queries_) {
            const KeyBound bound = bounds[__ffs(queries_) - 1];
            const uint2 bytes = products_;
            queries_ &= queries_ - 1;
            if (queries_) {
                load_products(signs.products);
            }
#pragma unroll
            for (int i = 0; i < n; i++) {
                const float product[] = {
                        float_of_byte(i < 4 ? bytes.x : bytes.y, i % 4)};
                const bool is_kept = bound.keeps(
                        product,
                        residuals_[i],
                        scales_[i],
                        signs.offsets ? sign * offsets_[i] : 0);
                kept |= uint32_t(is_kept) << i;
            }
        }
        if (kept == 0) {
            return 0;
        }
        const uint32_t left = signs.n - row(0);
        kept &= left < n ? (1u << left) - 1 : 0xff;
        if (signs.selected) {
            kept &= signs.selected[row(0) / 32] >> row(0) % 32;
        }
        return kept;
    }

   private:
    __device__ void load_products(const ProductSink& sink) {
        const size_t place =
                size_t(half_ / 2) * sink.nq + (__ffs(queries_) - 1);
        products_ =
                __ldcs(reinterpret_cast<const uint2*>(sink.products) +
                       2 * place + half_ % 2);
    }

    static __device__ void load8(const float* from, float (&to)[n]) {
        load4(from, reinterpret_cast<float(&)[4]>(to[0]));
        load4(from + 4, reinterpret_cast<float(&)[4]>(to[4]));
    }
};

struct TileOfInterest {
    uint32_t tile;
    uint32_t queries; ///< bits
};

/// What is known of some tiles, up to 32, comes nearer, by a warp.
template <int max_queries>
__device__ void prefetch_tiles(
        const ProductSink& sink,
        uint32_t first,
        uint32_t n) {
    constexpr uint32_t line = 128;
    const uint32_t at = threadIdx.x % 32 * line;
    const auto prefetch = [&](const void* of_tiles, uint32_t size) {
        if (at < n * size) {
            const uint8_t* from = static_cast<const uint8_t*>(of_tiles) +
                    size_t(first) * size + at;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
        }
    };
    prefetch(sink.ranges, sizeof(TileRange));
    prefetch(sink.largest, max_queries);
}

/// by one product a row
template <int max_queries>
__global__ void __launch_bounds__(list_threads, list_blocks)
        list_candidates_kernel(
                const __grid_constant__ SignKeys signs,
                const Entry* thresholds,
                float last,
                CandidateList list) {
    constexpr int warps = list_threads / 32;
    constexpr uint32_t at_once = 16; // tiles whose rows are looked at
    __shared__ ListState state;
    __shared__ TileOfInterest waiting_by_warp[warps][at_once + 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t n_tiles = ceil_div(signs.n, product_rows);
    const uint32_t first = (blockIdx.x * warps + warp) * 32;
    const uint32_t stride = gridDim.x * list_threads;
    for (uint32_t begin = first; begin < n_tiles; begin += stride) {
        prefetch_tiles<max_queries>(
                signs.products, begin, min(32u, n_tiles - begin));
    }
    auto& found = state.begin(signs, thresholds, last);
    const KeyBound* bounds = state.bounds;
    TileOfInterest* waiting = waiting_by_warp[warp];

    // to which queries a tile may be of interest
    const auto queries_of = [&](uint32_t tile) {
        const TileRange range = signs.products.ranges[tile];
        LargestOfTile<max_queries> largest;
        largest.load(signs.products, tile);
        uint32_t queries = 0;
#pragma unroll
        for (int q = 0; q < max_queries; q++) {
            if (q < signs.products.nq) {
                const bool may_keep =
                        bounds[q].may_keep(largest.of_query(q), range);
                queries |= uint32_t(may_keep) << q;
            }
        }
        return queries;
    };
    // by all lanes, two of which share a tile
    const auto look_at = [&](const TileOfInterest* tiles, uint32_t n) {
        if (lane / 2 < n) {
            const TileOfInterest& of_lane = tiles[lane / 2];
            RowsOfLane rows(
                    signs, 2 * of_lane.tile + lane % 2, of_lane.queries);
            uint32_t kept = rows.of_interest(signs, bounds);
            if (kept) {
                uint32_t* to = found.add(__popc(kept));
                for (; kept; kept &= kept - 1) {
                    *to++ = rows.row(__ffs(kept) - 1);
                }
            }
        }
        found.make_room(list);
    };
    uint32_t n_waiting = 0;
    for (uint32_t begin = first; begin < n_tiles; begin += stride) {
        const uint32_t tile = begin + lane;
        const uint32_t queries = tile < n_tiles ? queries_of(tile) : 0;
        const uint32_t keepers = __ballot_sync(0xffffffff, queries != 0);
        if (queries) {
            const uint32_t before = keepers & ((1u << lane) - 1);
            waiting[n_waiting + __popc(before)] = {tile, queries};
        }
        n_waiting += __popc(keepers);
        __syncwarp();
        for (; n_waiting >= at_once; n_waiting -= at_once) {
            look_at(waiting + n_waiting - at_once, at_once);
        }
    }
    look_at(waiting, n_waiting);
    found.deliver(list);
}

/// what a block of a refine_kernel has in shared memory, at its beginning
struct RefineState {
    KeyBound bound;
    FoundRows<32> found[stream_warps]; ///< of each warp
    StreamArrivals arrivals;
};

/// see refine_candidates
template <int units>
__global__ void __launch_bounds__(32 * stream_warps, 1) refine_kernel(
        const __grid_constant__ SignKeys signs,
        const __grid_constant__ DeviceCodes codes,
        const uint8_t* image,
        int stream_tiles,
        const Entry* thresholds,
        float last,
        CandidateList list) {
    extern __shared__ uint4 shared[];
    __shared__ RefineState state;
    const DeviceLayout& layout = codes.layout;
    const SignPlane& plane = signs.rows.planes[1];
    SingleScan<1, no_trellis, units> scan(
            codes, shared, stream_tiles, state.arrivals);
    auto& found = state.found[threadIdx.x / 32];
    found.clear();
    wait_for_kernel_before();
    const bool is_listed = codes.list.is_complete();
    const uint32_t n = is_listed ? codes.list.count() : codes.n;
    const uint32_t of_block =
            round_up(ceil_div(n, gridDim.x), uint32_t(single_rows));
    const uint32_t begin = min(n, blockIdx.x * of_block);
    scan.stream().begin(begin, min(n, begin + of_block), is_listed);
    bound_all_keys(signs, thresholds, last, &state.bound, 1);
    load_images(image, layout.dims, shared, blockDim.x);
    __syncthreads();

    const KeyBound bound = state.bound;
    const uint32_t slope = layout.slope_of(true);
    const uint32_t base = signs.factors[0].base;
    const float sign = signs.is_l2 ? 1 : -1;
    struct RowFactors {
        float scale, residual, offset;
        uint32_t product; ///< with the first plane
    };
    scan.run(
            begin,
            [&](uint32_t row, bool is_valid) -> RowFactors {
                is_valid = is_selected(codes, row, is_valid);
                // no comparison with NaN holds
                return {load_if(is_valid, plane.scales + row, nanf("")),
                        load_if(is_valid, plane.residuals + row, 0.0f),
                        load_if(is_valid && codes.offsets,
                                codes.offsets + row,
                                0.0f),
                        is_valid ? signs.products.products[row] : 0u};
            },
            [] {},
            [&](uint32_t row, uint32_t, int dot, const RowFactors& of_row) {
                const int product = int(slope * uint32_t(dot) - base);
                const float products[] = {
                        float_of_byte(of_row.product, 0), float(product)};
                if (bound.keeps(
                            products,
                            of_row.residual,
                            of_row.scale,
                            sign * of_row.offset)) {
                    *found.add(1) = row;
                }
                found.make_room(list);
            },
            [] {});
    found.deliver(list);
}

using RefineKernel = void (*)(
        const SignKeys,
        const DeviceCodes,
        const uint8_t*,
        int,
        const Entry*,
        float,
        CandidateList);

/// of 1, 2 and 4 units
constexpr RefineKernel refine_kernels[] = {
        refine_kernel<1>,
        refine_kernel<2>,
        refine_kernel<4>};

} // namespace

void select_thresholds(
        const float* keys,
        size_t stride,
        size_t n,
        int k,
        size_t nq,
        Entry* thresholds,
        cudaStream_t stream) {
    run({unsigned(nq), radix_size, 0, stream, early},
        select_thresholds_kernel,
        keys,
        stride,
        n,
        k,
        thresholds);
}

void list_candidates(
        const SignKeys& signs,
        const Entry* thresholds,
        float last,
        const CandidateList& found,
        cudaStream_t stream) {
    const auto kernel = signs.products.nq == 1
            ? list_candidates_kernel<1>
            : list_candidates_kernel<max_sign_queries>;
    // tiles, of which some have to be looked at row by row
    constexpr uint32_t of_block = product_rows / 2 * list_threads;
    const uint32_t blocks = std::min<uint32_t>(
            ceil_div(signs.n, of_block),
            blocks_at_once(kernel, list_threads, 0));
    run({blocks, list_threads, 0, stream, early},
        kernel,
        signs,
        thresholds,
        last,
        found);
}

void refine_candidates(
        const SignKeys& signs,
        const DeviceCodes& codes,
        int units,
        const uint8_t* image,
        const Entry* thresholds,
        float last,
        const CandidateList& found,
        cudaStream_t stream) {
    const RefineKernel kernel = refine_kernels[units / 2];
    const StreamPlan streams =
            plan_single(codes.layout, traits_of(kernel).shared_memory);
    const int threads = 32 * streams.warps;
    const size_t shared = single_shared(codes.layout, streams);
    const uint32_t blocks = std::min<uint32_t>(
            ceil_div(codes.n, uint32_t(threads)),
            blocks_at_once(kernel, threads, shared));
    run({blocks, threads, shared, stream, early},
        kernel,
        signs,
        codes,
        image,
        streams.tiles,
        thresholds,
        last,
        found);
}

} // namespace gpu
} // namespace faiss_turboquant
