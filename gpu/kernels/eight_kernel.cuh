#pragma once

/** The scan for up to eight queries, of codes that come through TileStreams.
 *
 * Codes of one bit are compared by bits, as with one query (see
 * single_kernel.cuh). Besides instructions it is latencies that bound this:
 * there are registers for few warps. */

#include <cstdint>
#include <type_traits>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/eight_dots.cuh>
#include <gpu/kernels/row_stream.cuh>
#include <gpu/kernels/scan_block.cuh>

namespace faiss_turboquant {
namespace gpu {

/// whether codes are compared by bits
constexpr bool counts_bits_of_eight(int nbits, bool has_trellis) {
    return nbits == 1 && !has_trellis;
}

/// Fragment::units with few queries, at most. Trellises are short of registers.
constexpr int few_units(int nbits, bool has_trellis) {
    return has_trellis ? 2 : 4 / fragment_bits(nbits, false);
}

/// available: bytes of shared memory of a block
inline StreamPlan plan_eight(const DeviceLayout& layout, size_t available) {
    const size_t images = size_t(8) * layout.dims;
    return images < available ? plan_streams(layout, available - images, 1, 4)
                              : StreamPlan();
}

/// bytes of shared memory of a block
inline size_t eight_shared(
        const DeviceLayout& layout,
        const StreamPlan& streams) {
    return size_t(8) * layout.dims + streams_size(layout, streams);
}

#ifdef __CUDACC__

/// how a warp multiplies codes. uses_wgmma: by bits
template <int nbits, int trellis, int units, bool uses_wgmma>
using EightDots = std::conditional_t<
        !counts_bits_of_eight(nbits, trellis != no_trellis),
        ByteDots<nbits, trellis, units>,
        std::conditional_t<
                uses_wgmma,
                TogetherBitDots<units>,
                BitDots<units, 8>>>;

/// @tparam uses_wgmma  by bits
template <int nbits, int trellis, int units, bool uses_wgmma = false>
__global__ void __launch_bounds__(32 * stream_warps, 1)
        eight_kernel(const __grid_constant__ ScanArgs args) {
    constexpr int group_size = 8;
    constexpr bool by_bits = counts_bits_of_eight(nbits, trellis != no_trellis);
    using Dots = EightDots<nbits, trellis, units, uses_wgmma>;
    constexpr int n_rows = Dots::n_rows, n_queries = Dots::n_queries;
    extern __shared__ uint4 image[];
    __shared__ GroupState<group_size> state;
    __shared__ StreamArrivals arrivals;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const int images_size = group_size * layout.dims;
    RowStream<1, has_long_rows(nbits)> stream(
            codes, image + images_size / 16, args.stream_tiles, arrivals);
    const ScanTask task = begin_task(args, stream);
    load_images(args, task, images_size, image);
    begin_group(args, task, state);
    if constexpr (uses_wgmma) {
        fence_shared();
    }
    __syncthreads();

    const uint32_t end = task.end, round_rows = stream.round_rows();
    const uint32_t slope = layout.slope_of(by_bits);
    const float sign = layout.is_l2 ? 1 : -1;
    Entry* reservoirs = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    DeviceQueryFactors query_factors[n_queries];
#pragma unroll
    for (int j = 0; j < n_queries; j++) {
        query_factors[j] = state.factors[Dots::query(j)];
    }
    const bool has_odd_queries = n_queries == 2 &&
            __any_sync(0xffffffff,
                       !isnan(query_factors[n_queries - 1].multiplier));
    struct RowFactors {
        float scales[n_rows], offsets[n_rows];
    };
    const auto load_factors = [&](uint32_t first) {
        RowFactors of_rows;
#pragma unroll
        for (int i = 0; i < n_rows; i++) {
            const uint32_t place = first + Dots::row(i);
            const uint32_t row = stream.row_at(place);
            const bool is_valid =
                    is_selected(codes, row, stream.is_valid(place, row));
            // no comparison with NaN holds
            of_rows.scales[i] = load_if(is_valid, codes.scales + row, nanf(""));
            of_rows.offsets[i] = load_if(
                    is_valid && codes.offsets, codes.offsets + row, 0.0f);
        }
        return of_rows;
    };
    // f(query, place, key)
    const auto for_each_key = [&](const int(&dots)[4],
                                  uint32_t first,
                                  const RowFactors& of_rows,
                                  const auto& f) {
#pragma unroll
        for (int j = 0; j < n_queries; j++) {
            if (j == 1 && !has_odd_queries) {
                break;
            }
#pragma unroll
            for (int i = 0; i < n_rows; i++) {
                const int product =
                        int(slope * dots[n_queries * i + j] -
                            query_factors[j].base);
                const float key =
                        key_of(product,
                               of_rows.scales[i],
                               sign * of_rows.offsets[i],
                               query_factors[j]);
                f(Dots::query(j), first + Dots::row(i), key);
            }
        }
    };
    const auto take = [&](uint32_t query, uint32_t place, float key) {
        if (key <= state.last_key[query]) {
            take_key(args, state, reservoirs, query, stream.row_at(place), key);
        }
    };

    const uint32_t offset = sink_offset(args, task, blockIdx.x);
    const auto write = [&](uint32_t query, uint32_t place, float key) {
        const uint32_t slot = task.first_slot + query;
        write_distances<1>(
                args, task, offset, query_of_sink(args, slot), place, {key});
    };

    RowFactors next_of_rows = load_factors(stream.first_row(task.begin));
    ReservoirChecks<group_size, stream_warps> checks(
            args.reservoirs, state, reservoirs, round_rows);
    for (uint32_t round = task.begin; round < end; round += round_rows) {
        checks.begin_round();
        const uint32_t first = stream.first_row(round);
        const bool has_rows = first < end;
        const uint32_t first_of_four = first - threadIdx.x / 32 % 4 * tile_rows;
        if (uses_wgmma ? first_of_four < end : has_rows) {
            const RowFactors of_rows = next_of_rows;
            next_of_rows = load_factors(first + round_rows);
            int slot, dots[4];
            const uint8_t* tile = stream.next(has_rows, slot);
            Dots::compute(layout, tile, image, dots);
            stream.copy_next(slot);
            if (args.all.distances) {
                for_each_key(dots, first, of_rows, write);
            } else {
                for_each_key(dots, first, of_rows, take);
            }
        }
        checks.end_round();
    }
    checks.finish(args, task);
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
