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
 *   (sum of slopes[p] * x_p + shift + spread * residual) * scale +- offset
 *       <= limit.
 */
struct KeyBound {
    float slopes[max_sign_planes];
    float shift, spread, limit;

    /// offset: with its sign
    template <int n>
    __device__ bool keeps(
            const float (&products)[n],
            float residual,
            float scale,
            float offset) const {
        float sum = fmaf(spread, residual, shift);
#pragma unroll
        for (int p = 0; p < n; p++) {
            sum = fmaf(slopes[p], products[p], sum);
        }
        return fmaf(sum, scale, offset) <= limit;
    }

    /// Whether it keeps any row of a tile, or maybe none; of one product a row.
    /// product: the largest. Each step is no more than with any of the rows,
    /// because slopes and spread are not above 0.
    __device__ bool may_keep(float product, const TileRange& range) const {
        const float least =
                fmaf(slopes[0],
                     product,
                     fmaf(spread, range.largest_residual, shift));
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
    result.slopes[0] = float(of_byte);
    shift += of_byte * 0.501; // a half, and what rounding may do
    result.slopes[1] = has_two ? float(slope) : 0;
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

/// four numbers that start on 16 bytes
__device__ void load4(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}

/// What a lane knows of the rows whose products it loads at a time: two lanes
/// share those that lie together, each has four of either half.
template <int pair>
struct RowsOfLane {
    static constexpr uint32_t half = product_rows / 2;
    static constexpr int max_pairs = max_sign_queries / pair;
    // [pair of queries][lane of the two][row][query][half]
    using Products = std::conditional_t<pair == 1, uint2, uint4>;

    Products products[pair == 1 ? 1 : max_pairs];
    float scales[2][4], residuals[2][4], offsets[2][4];

    /// row w of half h
    static __device__ uint32_t row(uint32_t part, int h, int w = 0) {
        return part / 2 * product_rows + part % 2 * 4 + h * half + w;
    }

    /// part: of all rows
    __device__ void load(const SignKeys& signs, uint32_t part) {
        if (row(part, 0) >= signs.n) {
            return;
        }
        const ProductSink& sink = signs.products;
        const int n_pairs = ProductSink::n_pairs(sink.nq);
        const Products* at = reinterpret_cast<const Products*>(sink.bytes) +
                size_t(part / 2 * n_pairs) * 2 + part % 2;
#pragma unroll
        for (int p = 0; p < int(std::size(products)); p++) {
            if (p < n_pairs) {
                products[p] = __ldcs(at + 2 * p);
            }
        }
        const SignPlane& plane = signs.rows.planes[signs.n_planes - 1];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            load4(plane.scales + row(part, h), scales[h]);
            load4(plane.residuals + row(part, h), residuals[h]);
            if (signs.offsets) {
                load4(signs.offsets + row(part, h), offsets[h]);
            }
        }
    }

    /// bit 4 h + w: whether any query keeps row w of half h
    __device__ uint32_t of_interest(
            const SignKeys& signs,
            uint32_t part,
            const KeyBound* bounds) const {
        if (row(part, 0) >= signs.n) {
            return 0;
        }
        const int n_pairs = ProductSink::n_pairs(signs.products.nq);
        const float sign = !signs.offsets ? 0 : signs.is_l2 ? 1 : -1;
        uint32_t kept = 0;
#pragma unroll
        for (int p = 0; p < int(std::size(products)); p++) {
            if (p >= n_pairs) {
                break;
            }
            uint32_t words[2 * pair];
            memcpy(words, &products[p], sizeof(words));
#pragma unroll
            for (int j = 0; j < pair; j++) {
                const KeyBound bound = bounds[pair * p + j];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int h = i / 4, w = i % 4;
                    const int byte = (w * pair + j) * 2 + h;
                    const float product[] = {
                            float_of_byte(words[byte / 4], byte % 4)};
                    const bool is_kept = bound.keeps(
                            product,
                            residuals[h][w],
                            scales[h][w],
                            signs.offsets ? sign * offsets[h][w] : 0);
                    kept |= uint32_t(is_kept) << i;
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t first = row(part, h);
            uint32_t valid = first >= signs.n ? 0
                    : signs.n - first < 4     ? (1u << (signs.n - first)) - 1
                                              : 0xf;
            if (signs.selected && valid) {
                valid &= signs.selected[first / 32] >> first % 32;
            }
            kept &= ~(0xfu << 4 * h) | valid << 4 * h;
        }
        return kept;
    }
};

/// by one product a row. pair: queries whose products lie together
template <int pair>
__global__ void __launch_bounds__(list_threads, list_blocks)
        list_candidates_kernel(
                const __grid_constant__ SignKeys signs,
                const Entry* thresholds,
                float last,
                CandidateList list) {
    constexpr int warps = list_threads / 32;
    constexpr uint32_t at_once = 16; // tiles whose rows are looked at
    __shared__ ListState state;
    __shared__ uint32_t waiting_by_warp[warps][at_once + 32]; // tiles
    auto& found = state.begin(signs, thresholds, last);
    const KeyBound* bounds = state.bounds;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t* waiting = waiting_by_warp[warp];

    const auto may_be_of_interest = [&](uint32_t tile) {
        const ProductSink& products = signs.products;
        const uint32_t n_pairs = ProductSink::n_pairs(products.nq);
        const TileRange range = products.ranges[tile];
        using Bytes = std::conditional_t<pair == 1, uint8_t, uint16_t>;
        const Bytes* largest =
                reinterpret_cast<const Bytes*>(products.largest) +
                size_t(tile) * n_pairs;
        bool is_kept = false;
        for (uint32_t p = 0; p < n_pairs; p++) {
            const uint32_t bytes = largest[p];
#pragma unroll
            for (int j = 0; j < pair; j++) {
                is_kept |= bounds[pair * p + j].may_keep(
                        float_of_byte(bytes, j), range);
            }
        }
        return is_kept;
    };
    // by all lanes, two of which share a tile
    const auto look_at = [&](const uint32_t* tiles, uint32_t n) {
        if (lane / 2 < n) {
            using Rows = RowsOfLane<pair>;
            const uint32_t part = 2 * tiles[lane / 2] + lane % 2;
            Rows rows;
            rows.load(signs, part);
            uint32_t kept = rows.of_interest(signs, part, bounds);
            if (kept) {
                uint32_t* to = found.add(__popc(kept));
                for (; kept; kept &= kept - 1) {
                    const uint32_t bit = __ffs(kept) - 1;
                    *to++ = Rows::row(part, bit / 4, bit % 4);
                }
            }
        }
        found.make_room(list);
    };
    const uint32_t n_tiles = ceil_div(signs.n, product_rows);
    const uint32_t stride = gridDim.x * list_threads;
    uint32_t n_waiting = 0;
    for (uint32_t begin = (blockIdx.x * warps + warp) * 32; begin < n_tiles;
         begin += stride) {
        const uint32_t tile = begin + lane;
        const bool is_kept = tile < n_tiles && may_be_of_interest(tile);
        const uint32_t keepers = __ballot_sync(0xffffffff, is_kept);
        if (is_kept) {
            const uint32_t before = keepers & ((1u << lane) - 1);
            waiting[n_waiting + __popc(before)] = tile;
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
    for (int i = threadIdx.x; i < layout.dims / 16; i += blockDim.x) {
        shared[i] = reinterpret_cast<const uint4*>(image)[i];
    }
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
                        is_valid
                                ? signs.products
                                          .bytes[ProductSink::place_of_one(row)]
                                : 0u};
            },
            [] {},
            [&](uint32_t row,
                uint32_t,
                bool,
                int dot,
                const RowFactors& of_row) {
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
    const auto kernel = signs.products.nq == 1 ? list_candidates_kernel<1>
                                               : list_candidates_kernel<2>;
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
