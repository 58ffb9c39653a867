#include <gpu/kernels/sign_filter.h>

#include <algorithm>
#include <cfloat>

#include <faiss_turboquant/kernels/sign_bound.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/top_k.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int pack_rows = 8; ///< of a warp, which is a block
constexpr int pack_blocks = 1 << 13;
constexpr int mean_threads = 256;
constexpr uint32_t mean_rows = 1024; ///< at most
constexpr int list_threads = 256;
constexpr int list_rows = 4096; ///< of a block
/// a row that no code has
constexpr uint32_t no_row_of_list = ~uint32_t(0);

/** The signs of a row's grid positions, by a warp.
 * @param positions  (dims,), in shared memory
 * @param plane      (dims / 8,), written
 * @param sums       of magnitudes and of their squares, to all lanes */
__device__ void pack_row(
        const DeviceLayout& layout,
        const uint32_t* positions,
        uint32_t* plane,
        uint32_t (&sums)[2]) {
    const int words = layout.dims / 32; // of a plane
    uint32_t magnitudes = 0, squares = 0;
    for (int i = threadIdx.x; i < words; i += 32) {
        uint32_t packed = 0;
#pragma unroll
        for (int f = 0; f < 8; f++) {
            const int left = layout.d - 4 * (f * words + i);
            const uint32_t mask = left >= 4 ? 0xffffffff
                    : left > 0              ? (1u << 8 * left) - 1
                                            : 0;
            const uint32_t x = positions[f * words + i];
            // a level is 2 x - 63
            packed |= (x >> 5 & 0x01010101 & mask) << f;
            const uint32_t levels = __vabsdiffu4(2 * x, 0x3f3f3f3f) & mask;
            magnitudes = __dp4a(levels, 0x01010101u, magnitudes);
            squares = __dp4a(levels, levels, squares);
        }
        plane[i] = packed;
    }
    sums[0] = __reduce_add_sync(0xffffffff, magnitudes);
    sums[1] = __reduce_add_sync(0xffffffff, squares);
}

template <int nbits, int trellis>
__global__ void __launch_bounds__(32) pack_signs_kernel(
        const __grid_constant__ DeviceCodes codes,
        uint32_t first,
        const __grid_constant__ SignRows signs) {
    using Decoder = RowDecoder<nbits, trellis, 1>;
    constexpr Fragment fragment{Decoder::bits, 1};
    extern __shared__ uint4 shared[];
    const DeviceLayout& layout = codes.layout;
    const int t = threadIdx.x % 4, g = threadIdx.x / 4;
    const int steps = layout.dims / dims_unit;
    const int stride = layout.dims + 16; // rows start in different banks
    uint8_t* positions = reinterpret_cast<uint8_t*>(shared);
    float least = FLT_MAX, largest = 0;
    for (size_t begin = first + size_t(blockIdx.x) * pack_rows; begin < codes.n;
         begin += size_t(gridDim.x) * pack_rows) {
        const size_t row = min(begin + g, size_t(codes.n - 1));
        const uint8_t* code = codes.planes + row * layout.row_size();
        Decoder decoder;
        if constexpr (Decoder::has_trellis) {
            decoder.start(
                    Decoder::template load<false>(layout, code, steps - 1, t));
        }
        for (int step = 0; step < steps; step++) {
            const auto raw =
                    Decoder::template load<false>(layout, code, step, t);
            decoder.begin_step(raw, t);
            uint32_t words[8];
            decoder.decode_positions(layout, raw, 0, words);
#pragma unroll
            for (int p = 0; p < 8; p++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int c =
                            fragment.coordinate(layout.dims, step, t, p, j);
                    positions[g * stride + c] = uint8_t(words[p] >> 8 * j);
                }
            }
        }
        __syncwarp();
        for (int r = 0; r < pack_rows && begin + r < codes.n; r++) {
            uint32_t sums[2];
            pack_row(
                    layout,
                    reinterpret_cast<const uint32_t*>(positions + r * stride),
                    reinterpret_cast<uint32_t*>(
                            signs.planes + (begin + r) * layout.plane_size()),
                    sums);
            const int64_t magnitudes = sums[0], squares = sums[1];
            const double beta = double(squares) / double(magnitudes);
            const double left =
                    double(layout.d * squares - magnitudes * magnitudes);
            const float residual = float(sqrt(left / double(squares)));
            least = fminf(least, residual);
            largest = fmaxf(largest, residual);
            if (threadIdx.x == 0) {
                signs.scales[begin + r] = float(codes.scales[begin + r] * beta);
                signs.residuals[begin + r] = residual;
            }
        }
        __syncwarp();
    }
    if (threadIdx.x == 0) {
        // numbers that are not below 0 are in the order of their bits
        SignStatistics& all = *signs.statistics;
        atomicMin(
                reinterpret_cast<int*>(&all.least_residual),
                __float_as_int(least));
        atomicMax(
                reinterpret_cast<int*>(&all.largest_residual),
                __float_as_int(largest));
    }
}

using PackSigns = void (*)(const DeviceCodes, uint32_t, const SignRows);

/// scalar codes, the trellises that are known, any others
constexpr PackSigns pack_kernels[3][4] = {
        {pack_signs_kernel<1, no_trellis>,
         pack_signs_kernel<2, no_trellis>,
         pack_signs_kernel<3, no_trellis>,
         pack_signs_kernel<4, no_trellis>},
        {pack_signs_kernel<1, 0>,
         pack_signs_kernel<2, 1>,
         pack_signs_kernel<3, 2>,
         pack_signs_kernel<4, 3>},
        {pack_signs_kernel<1, any_trellis>,
         pack_signs_kernel<2, any_trellis>,
         pack_signs_kernel<3, any_trellis>,
         pack_signs_kernel<4, any_trellis>}};

/// means of rows from all over the codes, by one block
__global__ void __launch_bounds__(mean_threads) mean_kernel(
        const __grid_constant__ DeviceCodes codes,
        const __grid_constant__ SignRows signs) {
    __shared__ double sums[2][mean_threads];
    const uint32_t n = min(codes.n, mean_rows);
    double scale = 0, offset = 0;
    for (uint32_t i = threadIdx.x; i < n; i += mean_threads) {
        const size_t row = size_t(i) * codes.n / n;
        scale += signs.scales[row];
        offset += codes.offsets ? codes.offsets[row] : 0;
    }
    sums[0][threadIdx.x] = scale;
    sums[1][threadIdx.x] = offset;
    for (int half = mean_threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            sums[0][threadIdx.x] += sums[0][threadIdx.x + half];
            sums[1][threadIdx.x] += sums[1][threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        signs.statistics->scale = float(sums[0][0] / n);
        signs.statistics->offset = float(sums[1][0] / n);
    }
}

__global__ void list_reservoirs_kernel(
        Reservoirs r,
        uint32_t of_query,
        uint32_t n,
        uint32_t* rows,
        uint32_t* size) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) {
        *size = n;
    }
    if (i < n) {
        const uint32_t query = i / of_query, place = i % of_query;
        const uint32_t slice = place / r.k, rank = place % r.k;
        const size_t reservoir = size_t(slice) * max_sign_queries + query;
        rows[i] = rank < r.counts[reservoir]
                ? uint32_t(r.entries[reservoir * r.capacity + rank])
                : no_row_of_list;
    }
}

__global__ void __launch_bounds__(radix_size) select_thresholds_kernel(
        const float* keys,
        size_t stride,
        size_t n,
        int k,
        Entry* thresholds) {
    __shared__ uint32_t histogram[radix_size];
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

/** A row is of interest if, with its product as it is in a ProductSink,
 *
 *   (slope * product + shift + spread * residual) * scale +- offset <= limit.
 */
struct KeyBound {
    float slope, shift, spread, limit;
};

__device__ KeyBound bound_keys(const SignKeys& signs, int q, float threshold) {
    const DeviceQueryFactors& factors = signs.factors[q];
    const SignStatistics& statistics = *signs.rows.statistics;
    const double multiplier = factors.multiplier; // below 0
    const double squares = signs.squares[q];
    const float sign = signs.is_l2 ? 1 : -1;
    const double y =
            (double(threshold) - factors.bias - sign * statistics.offset) /
            (multiplier * statistics.scale);
    const double least = statistics.least_residual;
    const SignBound bound = sign_bound(
            {squares, sign_share(signs.d, signs.margin), 0},
            {least, statistics.largest_residual, signs.d - least * least},
            y);
    const double slope = multiplier * bound.factor;
    const int unit = 1 << signs.products.shift; // of products
    // more than rounding to floats may do to <q, s>, and, in the last line, to
    // the rest
    const double rounding = 0x1p-20 * sqrt(signs.d * squares);
    return {float(slope * unit),
            float(slope * (bound.shift + unit - 1) + multiplier * rounding),
            float(slope * bound.spread),
            float(threshold + 0x1p-20 * fabs(double(threshold)) -
                  factors.bias)};
}

/// four numbers that start on 16 bytes
__device__ void load4(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}

__global__ void __launch_bounds__(list_threads) list_candidates_kernel(
        const __grid_constant__ SignKeys signs,
        const Entry* thresholds,
        float last,
        uint32_t* rows,
        uint32_t capacity,
        uint32_t* size) {
    __shared__ KeyBound bounds[max_sign_queries];
    __shared__ uint32_t found[list_rows];
    __shared__ uint32_t count, place;
    const ProductSink& products = signs.products;
    const int q = threadIdx.x;
    if (q < products.nq) {
        const float threshold = !thresholds ? last
                : thresholds[q] == no_entry ? FLT_MAX
                                            : entry_key(thresholds[q]);
        bounds[q] = bound_keys(signs, q, threshold);
    }
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    const float sign = signs.is_l2 ? 1 : -1;
    // two threads share the rows whose products lie together: each has four of
    // either half, those of four words
    constexpr uint32_t half = product_rows / 2;
#pragma unroll
    for (int i = 0; i < list_rows; i += half * list_threads) {
        const uint32_t part = (blockIdx.x * list_rows + i) / half + threadIdx.x;
        const uint32_t first = part / 2 * product_rows + part % 2 * 4;
        if (first >= signs.n) {
            continue;
        }
        float scales[2][4], residuals[2][4], offsets[2][4] = {};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t row = first + h * half;
            load4(signs.rows.scales + row, scales[h]);
            load4(signs.rows.residuals + row, residuals[h]);
            if (signs.offsets) {
                load4(signs.offsets + row, offsets[h]);
            }
        }
        uint32_t of_interest = 0; // bit 4 h + w: row w of half h
#pragma unroll 4                  // loads of several queries at a time
        for (int j = 0; j < products.nq; j++) {
            const uint4 x = __ldcs(
                    reinterpret_cast<const uint4*>(
                            products.words + size_t(j) * (products.rows / 2)) +
                    part);
            const uint32_t words[4] = {x.x, x.y, x.z, x.w};
            const KeyBound bound = bounds[j];
#pragma unroll
            for (int h = 0; h < 2; h++) {
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    const float product = int16_t(words[w] >> 16 * h);
                    const float least =
                            (bound.slope * product +
                             (bound.shift + bound.spread * residuals[h][w])) *
                                    scales[h][w] +
                            sign * offsets[h][w];
                    of_interest |= uint32_t(least <= bound.limit)
                            << (4 * h + w);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t row = first + h * half;
            uint32_t valid = row >= signs.n ? 0
                    : signs.n - row < 4     ? (1u << (signs.n - row)) - 1
                                            : 0xf;
            if (signs.selected && valid) {
                valid &= signs.selected[row / 32] >> row % 32;
            }
            of_interest &= ~(0xfu << 4 * h) | valid << 4 * h;
        }
        if (of_interest) {
            uint32_t at = atomicAdd(&count, __popc(of_interest));
            for (; of_interest; of_interest &= of_interest - 1) {
                const uint32_t bit = __ffs(of_interest) - 1;
                found[at++] = first + bit / 4 * half + bit % 4;
            }
        }
    }
    __syncthreads();
    if (count == 0) {
        return;
    }
    if (threadIdx.x == 0) {
        place = atomicAdd(size, count);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += list_threads) {
        if (place + i < capacity) {
            rows[place + i] = found[i];
        }
    }
}

} // namespace

void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        const SignRows& signs,
        cudaStream_t stream) {
    if (first == 0) {
        // a number above all others, and 0
        TQ_CUDA(cudaMemsetAsync(
                &signs.statistics->least_residual,
                0x7f,
                sizeof(float),
                stream));
        TQ_CUDA(cudaMemsetAsync(
                &signs.statistics->largest_residual, 0, sizeof(float), stream));
    }
    const DeviceLayout& layout = codes.layout;
    const int family = !layout.has_trellis() ? 0 : layout.shipped >= 0 ? 1 : 2;
    const PackSigns kernel = pack_kernels[family][layout.nbits - 1];
    allow_shared_memory(kernel);
    const uint32_t groups = ceil_div(codes.n - first, uint32_t(pack_rows));
    const int blocks = int(std::min<uint32_t>(groups, pack_blocks));
    kernel<<<blocks, 32, pack_rows*(layout.dims + 16), stream>>>(
            codes, first, signs);
    TQ_CUDA(cudaGetLastError());
    mean_kernel<<<1, mean_threads, 0, stream>>>(codes, signs);
    TQ_CUDA(cudaGetLastError());
}

void list_reservoirs(
        const Reservoirs& reservoirs,
        int n_slices,
        size_t nq,
        uint32_t* rows,
        uint32_t* size,
        cudaStream_t stream) {
    const uint32_t of_query = uint32_t(n_slices) * reservoirs.k;
    const uint32_t n = uint32_t(nq) * of_query;
    list_reservoirs_kernel<<<
            ceil_div(n, uint32_t(list_threads)),
            list_threads,
            0,
            stream>>>(reservoirs, of_query, n, rows, size);
    TQ_CUDA(cudaGetLastError());
}

void select_thresholds(
        const float* keys,
        size_t stride,
        size_t n,
        int k,
        size_t nq,
        Entry* thresholds,
        cudaStream_t stream) {
    select_thresholds_kernel<<<int(nq), radix_size, 0, stream>>>(
            keys, stride, n, k, thresholds);
    TQ_CUDA(cudaGetLastError());
}

void list_candidates(
        const SignKeys& signs,
        const Entry* thresholds,
        float last,
        uint32_t* rows,
        uint32_t capacity,
        uint32_t* size,
        cudaStream_t stream) {
    TQ_CUDA(cudaMemsetAsync(size, 0, sizeof(*size), stream));
    list_candidates_kernel<<<
            ceil_div(signs.n, uint32_t(list_rows)),
            list_threads,
            0,
            stream>>>(signs, thresholds, last, rows, capacity, size);
    TQ_CUDA(cudaGetLastError());
}

} // namespace gpu
} // namespace faiss_turboquant
