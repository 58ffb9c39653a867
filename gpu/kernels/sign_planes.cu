#include <gpu/kernels/sign_planes.h>

#include <algorithm>
#include <cfloat>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/decode.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int pack_rows = 8; ///< of a warp, which is a block
constexpr int pack_blocks = 1 << 13;
constexpr int mean_threads = 256;
constexpr uint32_t mean_rows = 1024; ///< at most

/** The planes of a row's grid positions, by a warp.
 * @param positions  (dims,), in shared memory
 * @param large      what magnitudes are from here on, in each byte
 * @param signs      (dims / 8,), written
 * @param sizes      likewise, see SignFilter; null: not wanted
 * @return  to all lanes */
__device__ LevelSums pack_row(
        const DeviceLayout& layout,
        const uint32_t* positions,
        uint32_t large,
        uint32_t* signs,
        uint32_t* sizes) {
    constexpr int ones = 0x01010101;
    const int words = layout.dims / 32; // of a plane
    LevelSums sums = {};
    for (int i = threadIdx.x; i < words; i += 32) {
        uint32_t packed_signs = 0, packed_sizes = 0;
#pragma unroll
        for (int f = 0; f < 8; f++) {
            const int left = layout.d - 4 * (f * words + i);
            const uint32_t mask = left >= 4 ? 0xffffffff
                    : left > 0              ? (1u << 8 * left) - 1
                                            : 0;
            const uint32_t x = positions[f * words + i];
            const uint32_t levels = __vabsdiffu4(2 * x, 0x3f3f3f3f) & mask;
            const uint32_t is_large = __vcmpgeu4(levels, large);
            packed_signs |= (x >> 5 & ones & mask) << f;
            packed_sizes |= (~(x >> 5 ^ is_large) & ones & mask) << f;
            const auto add = [](uint32_t a, int b, int32_t& sum) {
                sum = __dp4a(int(a), b, sum);
            };
            add(levels, ones, sums.magnitudes);
            add(levels, int(levels), sums.squares);
            add(levels & is_large, ones, sums.large_magnitudes);
            sums.n_large += __popc(is_large & ones);
        }
        signs[i] = packed_signs;
        if (sizes) {
            sizes[i] = packed_sizes;
        }
    }
    return {__reduce_add_sync(0xffffffff, sums.magnitudes),
            __reduce_add_sync(0xffffffff, sums.squares),
            __reduce_add_sync(0xffffffff, sums.large_magnitudes),
            __reduce_add_sync(0xffffffff, sums.n_large)};
}

template <int nbits, int trellis>
__global__ void __launch_bounds__(32) pack_signs_kernel(
        const __grid_constant__ DeviceCodes codes,
        uint32_t first,
        uint32_t large,
        const __grid_constant__ SignRows signs) {
    using Decoder = RowDecoder<nbits, trellis, 1>;
    constexpr Fragment fragment{Decoder::bits, 1};
    extern __shared__ uint4 shared[];
    const DeviceLayout& layout = codes.layout;
    const int t = threadIdx.x % 4, g = threadIdx.x / 4;
    const int steps = layout.dims / dims_unit;
    const int stride = layout.dims + 16; // rows start in different banks
    uint8_t* positions = reinterpret_cast<uint8_t*>(shared);
    struct {
        float least = FLT_MAX, largest = 0, largest_square = 0;
    } ranges[max_sign_planes];
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
            const auto bits = [&](int p) {
                return reinterpret_cast<uint32_t*>(
                        signs.planes[p].bits +
                        (begin + r) * layout.plane_size());
            };
            const LevelSums sums = pack_row(
                    layout,
                    reinterpret_cast<const uint32_t*>(positions + r * stride),
                    large,
                    bits(0),
                    signs.n_planes > 1 ? bits(1) : nullptr);
#pragma unroll
            for (int p = 0; p < max_sign_planes; p++) {
                if (p == signs.n_planes) {
                    break;
                }
                const SignApproximation code(sums, layout.d, p + 1);
                const float residual = float(code.residual);
                auto& range = ranges[p];
                range.least = fminf(range.least, residual);
                range.largest = fmaxf(range.largest, residual);
                range.largest_square = fmaxf(
                        range.largest_square, __double2float_ru(code.square));
                if (threadIdx.x == 0) {
                    const SignPlane& plane = signs.planes[p];
                    plane.scales[begin + r] =
                            float(codes.scales[begin + r] * code.beta);
                    plane.residuals[begin + r] = residual;
                }
            }
        }
        __syncwarp();
    }
    if (threadIdx.x == 0) {
        // numbers that are not below 0 are in the order of their bits
        const auto bits = [](float& x) { return reinterpret_cast<int*>(&x); };
#pragma unroll
        for (int p = 0; p < max_sign_planes; p++) {
            if (p == signs.n_planes) {
                break;
            }
            auto& range = ranges[p];
            SignStatistics& all = signs.statistics[p];
            atomicMin(bits(all.least_residual), *bits(range.least));
            atomicMax(bits(all.largest_residual), *bits(range.largest));
            atomicMax(bits(all.largest_square), *bits(range.largest_square));
        }
    }
}

using PackSigns =
        void (*)(const DeviceCodes, uint32_t, uint32_t, const SignRows);

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

/// means of rows from all over the codes, by a block for each plane
__global__ void __launch_bounds__(mean_threads) mean_kernel(
        const __grid_constant__ DeviceCodes codes,
        const __grid_constant__ SignRows signs) {
    __shared__ double sums[2][mean_threads];
    const uint32_t n = min(codes.n, mean_rows);
    const SignPlane& plane = signs.planes[blockIdx.x];
    double scale = 0, offset = 0;
    for (uint32_t i = threadIdx.x; i < n; i += mean_threads) {
        const size_t row = size_t(i) * codes.n / n;
        scale += plane.scales[row];
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
        SignStatistics& statistics = signs.statistics[blockIdx.x];
        statistics.scale = float(sums[0][0] / n);
        statistics.offset = float(sums[1][0] / n);
    }
}

/// from a tile on
__global__ void __launch_bounds__(mean_threads) range_kernel(
        const __grid_constant__ DeviceCodes codes,
        const __grid_constant__ SignRows signs,
        uint32_t first) {
    const SignPlane& plane = signs.planes[blockIdx.y];
    const uint32_t tile = first + blockIdx.x * blockDim.x + threadIdx.x;
    const size_t begin = size_t(tile) * product_rows;
    const size_t end = min(begin + product_rows, size_t(codes.n));
    if (begin >= end) {
        return;
    }
    const float sign = codes.layout.is_l2 ? 1 : -1;
    TileRange range = {FLT_MAX, 0, 0, codes.offsets ? FLT_MAX : 0};
    for (size_t row = begin; row < end; row++) {
        const float scale = plane.scales[row];
        range.least_scale = fminf(range.least_scale, scale);
        range.largest_scale = fmaxf(range.largest_scale, scale);
        range.largest_residual =
                fmaxf(range.largest_residual, plane.residuals[row]);
        if (codes.offsets) {
            range.least_offset =
                    fminf(range.least_offset, sign * codes.offsets[row]);
        }
    }
    plane.ranges[tile] = range;
}

} // namespace

void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        const SignRows& signs,
        cudaStream_t stream) {
    if (first == 0) {
        for (int p = 0; p < signs.n_planes; p++) {
            SignStatistics* of_plane = signs.statistics + p;
            TQ_CUDA(cudaMemsetAsync(of_plane, 0, sizeof(*of_plane), stream));
            // a number above all others
            TQ_CUDA(cudaMemsetAsync(
                    &of_plane->least_residual, 0x7f, sizeof(float), stream));
        }
    }
    const DeviceLayout& layout = codes.layout;
    const int family = !layout.has_trellis() ? 0 : layout.shipped >= 0 ? 1 : 2;
    const PackSigns kernel = pack_kernels[family][layout.nbits - 1];
    const uint32_t groups = ceil_div(codes.n - first, uint32_t(pack_rows));
    const uint32_t blocks = std::min<uint32_t>(groups, pack_blocks);
    const uint32_t large = large_magnitude(layout.half_steps, layout.d);
    const size_t shared = pack_rows * (layout.dims + 16);
    run({blocks, 32, shared, stream},
        kernel,
        codes,
        first,
        large * 0x01010101u,
        signs);
    run({unsigned(signs.n_planes), mean_threads, 0, stream},
        mean_kernel,
        codes,
        signs);
    const uint32_t first_tile = first / product_rows;
    const uint32_t tiles = ceil_div(codes.n, product_rows) - first_tile;
    const dim3 range_blocks(
            ceil_div(tiles, uint32_t(mean_threads)), signs.n_planes);
    run({range_blocks, mean_threads, 0, stream},
        range_kernel,
        codes,
        signs,
        first_tile);
}

} // namespace gpu
} // namespace faiss_turboquant
