#pragma once

/** The scan of many queries, and of few where rows are too long for
 * eight_kernel.cuh. Lanes load pieces of rows into registers. */

#include <algorithm>
#include <cstdint>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/wgmma.cuh>

namespace faiss_turboquant {
namespace gpu {

/** How a kernel is made. A warp takes two tiles of rows at once where there are
 * many queries, which then need fewer bytes of shared memory a row; wgmma reads
 * them once for 64 rows. */
template <int group_tiles, bool uses_wgmma>
struct ScanShape {
    static constexpr int warps = uses_wgmma ? 16 : 8;
    static constexpr int threads = 32 * warps;
    static constexpr int row_tiles = group_tiles == 1 || uses_wgmma ? 1 : 2;
    static constexpr int warp_rows = row_tiles * tile_rows;
    static constexpr int group_size = 8 * group_tiles;
};

/// Steps that are loaded ahead, for the latency of memory is that of several.
/// With many queries, codes of one bit or two are bound by multiplications.
template <class Shape>
constexpr int steps_ahead(int nbits, int units, int group_tiles) {
    const int words = nbits * units; // of a row
    if (group_tiles == 1) {
        return words > 8 ? 1 : 16 / words;
    }
    if (words < 3) {
        return 1;
    }
    const int sums = 4 * group_tiles * Shape::row_tiles;
    const int registers = (Shape::threads > 256 ? 56 : 88) - sums;
    return std::clamp(registers / (2 * Shape::row_tiles * words), 1, 3);
}

#ifdef __CUDACC__

template <int nbits, int trellis, int units, int group_tiles, bool uses_wgmma>
__global__ void __launch_bounds__(
        ScanShape<group_tiles, uses_wgmma>::threads,
        group_tiles > 1 ? 1 : 2)
        scan_kernel(const __grid_constant__ ScanArgs args) {
    using Decoder = RowDecoder<nbits, trellis, units>;
    using Shape = ScanShape<group_tiles, uses_wgmma>;
    constexpr int group_size = Shape::group_size;
    constexpr int n_row_tiles = Shape::row_tiles;
    constexpr int n_sums = 4 * group_tiles;
    constexpr int warp_rows = Shape::warp_rows;
    extern __shared__ uint4 image[];
    __shared__ GroupState<group_size> state;

    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int t = lane % 4, g = lane / 4;
    constexpr int round_rows = Shape::warps * warp_rows;
    const int steps = layout.dims / (dims_unit * units);
    const int fragments = layout.dims / 64;
    wait_for_kernel_before();
    const ScanTask task = task_at(args, group_size, 1, blockIdx.x);
    // then rows are places in the list
    const bool from_list = group_tiles == 1 && codes.list.is_complete();
    const uint32_t begin = task.begin, end = task.end;
    Entry* reservoirs = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    report_rows_left(codes.list);
    load_images(args, task, group_size * layout.dims, image);
    begin_group(args, task, state);
    if constexpr (uses_wgmma) {
        fence_shared();
    }
    __syncthreads();

    const uint32_t offset = sink_offset(args, task, blockIdx.x);
    using Raw = typename Decoder::Raw;
    constexpr int ahead = steps_ahead<Shape>(nbits, units, group_tiles);
    // what is loaded of the rows of the next steps
    Raw loaded[ahead][n_row_tiles][2];
    const uint8_t* rows[n_row_tiles][2];
    const auto set_rows = [&](uint32_t first_row) {
#pragma unroll
        for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t row =
                        min(first_row + m * tile_rows + i * 8 + g, end - 1);
                if (from_list) {
                    row = min(codes.list.rows[row], codes.n - 1);
                }
                rows[m][i] = codes.planes + size_t(row) * layout.row_size();
            }
        }
    };
    const auto load_ahead = [&](int slot, int step) {
        if (step < steps) {
#pragma unroll
            for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    loaded[slot][m][i] = Decoder::template load<false>(
                            layout, rows[m][i], step, t);
                }
            }
        }
    };
    const auto begin_rows = [&](uint32_t first_row) {
        set_rows(first_row);
#pragma unroll
        for (int s = 0; s < ahead; s++) {
            load_ahead(s, s);
        }
    };
    if (begin < end) {
        begin_rows(begin + warp * warp_rows);
    }

    struct RowFactors {
        float scales[n_row_tiles][2], offsets[n_row_tiles][2];
    };
    const auto load_factors = [&](uint32_t first_row) {
        RowFactors factors;
#pragma unroll
        for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t row = first_row + m * tile_rows + i * 8 + g;
                bool is_valid = row < end;
                if (from_list && is_valid) {
                    row = codes.list.rows[row];
                    is_valid = row < codes.n;
                }
                is_valid = is_selected(codes, row, is_valid);
                // no comparison with NaN holds
                factors.scales[m][i] =
                        load_if(is_valid, codes.scales + row, nanf(""));
                factors.offsets[m][i] = load_if(
                        is_valid && codes.offsets, codes.offsets + row, 0.0f);
            }
        }
        return factors;
    };
    const float sign = layout.is_l2 ? 1 : -1;
    ReservoirChecks<group_size, Shape::warps> checks(
            args.reservoirs, state, reservoirs, round_rows);
    for (uint32_t round = begin; round < end; round += round_rows) {
        checks.begin_round();
        int sums[n_row_tiles][n_sums] = {};
        const uint32_t first_row = round + warp * warp_rows;
        // the four warps of a wgmma stay together
        if (uses_wgmma ? first_row - warp % 4 * tile_rows < end
                       : first_row < end) {
            const RowFactors row_factors = load_factors(first_row);
            Decoder decoders[n_row_tiles][2];
#pragma unroll
            for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if constexpr (Decoder::has_trellis) {
                        decoders[m][i].start(Decoder::template load<false>(
                                layout, rows[m][i], steps - 1, t));
                    }
                }
            }
            const uint4* fragment = image + lane;
            uint64_t descriptor =
                    operand_descriptor(shared_address(image), group_size);
            // load_next: into `raw`, which has been decoded then
            const auto multiply_step = [&](const auto& raw,
                                           const auto& load_next) {
#pragma unroll
                for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        decoders[m][i].begin_step(raw[m][i], t);
                    }
                }
#pragma unroll
                for (int unit = 0; unit < units; unit++) {
                    uint32_t a[n_row_tiles][2][8];
#pragma unroll
                    for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            decoders[m][i].decode(
                                    layout, raw[m][i], unit, a[m][i]);
                        }
                    }
                    if constexpr (uses_wgmma) {
                        begin_wgmma();
#pragma unroll
                        for (int p = 0; p < 8; p += 2) {
                            wgmma(sums[0],
                                  a[0][0][p],
                                  a[0][1][p],
                                  a[0][0][p + 1],
                                  a[0][1][p + 1],
                                  descriptor);
                            descriptor += 2 * group_size; // of 16 bytes
                        }
                        end_wgmma_group();
                        load_next(); // while they work
                        wait_for_wgmma(sums[0]);
                    } else {
                        multiply<1>(sums, a, fragment, fragments);
                        fragment += 2 * 32;
                    }
                }
            };
            // a slot is filled again as soon as it has been read
            for (int step = 0; step < steps; step += ahead) {
#pragma unroll
                for (int s = 0; s < ahead; s++) {
                    if (step + s < steps) {
                        const auto load_next = [&] {
                            load_ahead(s, step + s + ahead);
                        };
                        if constexpr (uses_wgmma) {
                            multiply_step(loaded[s], load_next);
                        } else {
                            multiply_step(loaded[s], [] {});
                            load_next();
                        }
                    }
                }
            }
            // the memory is busy while keys are computed
            if (round + round_rows < end) {
                begin_rows(first_row + round_rows);
            }

            // sums[m][4 q + 2 i + j] is of row g + 8 i and query 2 t + j;
            // f(query, place, key)
            const auto for_each_key = [&](const auto& f) {
#pragma unroll
                for (int q = 0; q < 2 * group_tiles; q++) {
                    const int query = q / 2 * 8 + 2 * t + q % 2;
                    const DeviceQueryFactors factors = state.factors[query];
#pragma unroll
                    for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const uint32_t dot =
                                    sums[m][q / 2 * 4 + 2 * i + q % 2];
                            const float key = key_of(
                                    int(layout.slope * dot - factors.base),
                                    row_factors.scales[m][i],
                                    sign * row_factors.offsets[m][i],
                                    factors);
                            f(query,
                              first_row + m * tile_rows + i * 8 + g,
                              key);
                        }
                    }
                }
            };
            if (args.all.distances) {
                for_each_key([&](int query, uint32_t place, float key) {
                    const uint32_t slot = task.first_slot + query;
                    write_distances<1>(
                            args,
                            task,
                            offset,
                            query_of_sink(args, slot),
                            place,
                            {key});
                });
            } else {
                for_each_key([&](int query, uint32_t place, float key) {
                    if (key <= state.last_key[query]) {
                        const uint32_t row =
                                from_list ? codes.list.rows[place] : place;
                        take_key(args, state, reservoirs, query, row, key);
                    }
                });
            }
        }
        checks.end_round();
    }
    checks.finish(args, task);
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
