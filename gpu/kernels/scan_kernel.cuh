#pragma once

/** The scan of up to 128 queries, or more where there is no batch_kernel. */

#include <algorithm>
#include <cstdint>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/tile_stream.cuh>
#include <gpu/kernels/wgmma.cuh>

namespace faiss_turboquant {
namespace gpu {

/** How a kernel is made. A warp takes two tiles of rows at once where there are
 * many queries, which then need fewer bytes of shared memory a row; wgmma reads
 * them once for 64 rows. */
template <int group_tiles, bool uses_wgmma, bool is_streamed>
struct ScanShape {
    /// of a block; with streams, at most, see StreamPlan
    static constexpr int warps = uses_wgmma || is_streamed ? 16 : 8;
    static constexpr int threads = 32 * warps;
    static constexpr int row_tiles = group_tiles == 1 || uses_wgmma ? 1 : 2;
    static constexpr int warp_rows = row_tiles * tile_rows;
    static constexpr int group_size = 8 * group_tiles;
    /// sums that multiplications go to in turn, lest they wait for each other
    static constexpr int chains = is_streamed ? 2 : 1;
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

/** Whether eight queries are compared by bits (see single_kernel.cuh), with a
 * TileStream: a matrix instruction is of a bit of all of them, so that each
 * plane takes eight times as many, or of all their bits, for four warps. */
constexpr bool counts_bits_of_eight(int nbits, bool has_trellis) {
    return nbits == 1 && !has_trellis;
}

/// Fragment::units with few queries, at most. Trellises are short of registers.
constexpr int few_units(int nbits, bool has_trellis) {
    return has_trellis ? 2 : 4 / fragment_bits(nbits, false);
}

#ifdef __CUDACC__

/// sums of a unit: all tiles of rows by all tiles of queries
template <int chains, int n_row_tiles, int n_sums>
__device__ inline void multiply(
        int (&sums)[n_row_tiles][n_sums],
        const uint32_t (&a)[n_row_tiles][2][8],
        const uint4* image,
        int fragments) {
    constexpr int query_tiles = n_sums / 4 / chains;
#pragma unroll
    for (int p = 0; p < 8; p += 4, image += 32) {
#pragma unroll
        for (int q = 0; q < query_tiles; q++) {
            const uint4 b = image[q * fragments * 32];
#pragma unroll
            for (int m = 0; m < n_row_tiles; m++) {
                const auto& x = a[m][0];
                const auto& y = a[m][1];
                int* c = sums[m] + 4 * q;
                multiply_tile(c, x[p], y[p], x[p + 1], y[p + 1], b.x, b.y);
                c += (chains - 1) * 4 * query_tiles;
                multiply_tile(
                        c, x[p + 2], y[p + 2], x[p + 3], y[p + 3], b.z, b.w);
            }
        }
    }
}

/** Of a step, set bits that rows g (x) and g + 8 (y) share with eight queries:
 * sums[4 b + 2 i + j] is of row g + 8 i and bit b of query 2 t + j.
 * @param image  of the step and the lane, see ImageOrder */
template <int units, int n_sums>
__device__ inline void count_bits_of_eight(
        int (&sums)[n_sums],
        const uint32_t (&x)[units],
        const uint32_t (&y)[units],
        const uint4* image) {
#pragma unroll
    for (int i = 0; i < units; i += 2) {
#pragma unroll
        for (int b = 0; b < n_sums / 4; b += units == 1 ? 4 : 2, image += 32) {
            const uint4 w = *image;
            int* c = sums + 4 * b;
            if constexpr (units == 1) {
                count_tile(c, x[0], y[0], w.x);
                count_tile(c + 4, x[0], y[0], w.y);
                count_tile(c + 8, x[0], y[0], w.z);
                count_tile(c + 12, x[0], y[0], w.w);
            } else {
                count_tile(c, x[i], y[i], x[i + 1], y[i + 1], w.x, w.y);
                count_tile(c + 4, x[i], y[i], x[i + 1], y[i + 1], w.z, w.w);
            }
        }
    }
}

/** The same of n steps by the matrix instructions of four warps. What these
 * read of codes is all loaded before the first one, into registers that are not
 * written before the last one has ended: with what comes next loaded meanwhile,
 * ptxas (13.0) let moves to the registers of codes overtake the wait.
 * @param rows     g and g + 8
 * @param queries  where the next step's bits are; moved on */
template <int n, int units, class Decoder, int n_sums>
__device__ inline void count_steps_of_eight(
        int (&sums)[n_sums],
        const DeviceLayout& layout,
        const uint8_t* const (&rows)[2],
        int step,
        int t,
        uint64_t& queries) {
    constexpr int unit_size = 64; // in units of 16 bytes
    typename Decoder::Raw raw[n][2];
#pragma unroll
    for (int s = 0; s < n; s++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            raw[s][i] =
                    Decoder::template load<true>(layout, rows[i], step + s, t);
        }
    }
    begin_wgmma();
#pragma unroll
    for (int s = 0; s < n; s++) {
        const auto& x = raw[s][0].words[0];
        const auto& y = raw[s][1].words[0];
        if constexpr (units == 1) { // of the other half, codes are 0
            wgmma_of_bits(sums, x[0], y[0], 0, 0, queries);
        } else {
#pragma unroll
            for (int i = 0; i < units; i += 2) {
                wgmma_of_bits(
                        sums,
                        x[i],
                        y[i],
                        x[i + 1],
                        y[i + 1],
                        queries + i * unit_size);
            }
        }
        queries += units * unit_size;
    }
    end_wgmma_group();
    wait_for_wgmma(sums);
}

/// the dot products from such sums, to the first four
template <int n_sums>
__device__ inline void add_bits_of_eight(int (&sums)[n_sums]) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
        int dot = -sums[n_sums - 4 + c]; // two's complement
#pragma unroll
        for (int b = n_sums / 4 - 2; b >= 0; b--) {
            dot = 2 * dot + sums[4 * b + c];
        }
        sums[c] = dot;
    }
}

/** Writes products with a tile of rows to a ProductSink of several queries.
 * @param values   [2 i + j]: of row g + 8 i and query 2 t + j, for which
 *                 `factors` are
 * @return  the largest byte of query 2 t + j, in half j */
__device__ inline uint32_t write_products(
        const ProductSink& sink,
        uint32_t tile,
        const int (&values)[4],
        const ProductFactors (&factors)[2]) {
    static_assert(product_rows == tile_rows);
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
    const uint32_t pairs = ProductSink::n_pairs(sink.nq);
    uint32_t bytes[4]; // and more above
#pragma unroll
    for (int c = 0; c < 4; c++) {
        bytes[c] = factors[c % 2].byte(values[c]);
    }
    uint32_t largest = __byte_perm(
            max(bytes[0], bytes[2]), max(bytes[1], bytes[3]), 0x5410);
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
        largest =
                __vmaxu2(largest, __shfl_xor_sync(0xffffffff, largest, lanes));
    }
    if (g == 0 && t < pairs) {
        reinterpret_cast<uint16_t*>(sink.largest)[size_t(tile) * pairs + t] =
                uint16_t(__byte_perm(largest, 0, 0x0020));
    }
    if (t < pairs) {
        const size_t at = size_t(tile * pairs + t) * (tile_rows / 2) + g;
        // the lower half of it
        const auto halves = [&](int j) {
            return __byte_perm(bytes[j], bytes[2 + j], 0x0040);
        };
        __stcs(reinterpret_cast<uint32_t*>(sink.bytes) + at,
               __byte_perm(halves(0), halves(1), 0x5410));
    }
    return largest;
}

/// @tparam product_planes  how many planes scan_products reads of all rows, so
///                         that there is nothing else to do; 0: what `args` say
template <
        int nbits,
        int trellis,
        int units,
        int group_tiles,
        bool uses_wgmma,
        bool is_streamed,
        int product_planes = 0>
__global__ void __launch_bounds__(
        ScanShape<group_tiles, uses_wgmma, is_streamed>::threads,
        group_tiles > 1 || is_streamed ? 1 : 2)
        scan_kernel(const __grid_constant__ ScanArgs args) {
    using Decoder = RowDecoder<nbits, trellis, units>;
    using Shape = ScanShape<group_tiles, uses_wgmma, is_streamed>;
    constexpr int group_size = Shape::group_size;
    constexpr int n_row_tiles = Shape::row_tiles;
    constexpr bool by_bits =
            is_streamed && counts_bits_of_eight(nbits, trellis != no_trellis);
    constexpr int n_sums = by_bits ? 4 * 8 : 4 * group_tiles * Shape::chains;
    constexpr int warp_rows = Shape::warp_rows;
    extern __shared__ uint4 image[];
    __shared__ GroupState<group_size> state;
    __shared__ uint64_t
            arrivals[is_streamed ? Shape::warps : 1][max_stream_tiles];

    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int t = lane % 4, g = lane / 4;
    const int threads = is_streamed ? blockDim.x : Shape::threads;
    const int round_rows = threads / 32 * warp_rows;
    const int steps = layout.dims / (dims_unit * units);
    const int fragments = layout.dims / 64;
    const int tile_size = tile_rows * layout.row_size();
    TileStream stream(
            reinterpret_cast<uint8_t*>(image + group_size * layout.dims / 16) +
                    warp * args.stream_tiles * tile_size,
            arrivals[is_streamed ? warp : 0],
            is_streamed ? args.stream_tiles : 0,
            tile_size,
            codes.list.rows != nullptr);
    ScanTask task = {};
    bool from_list = false; // then rows are places in the list
    // of rows, the second plane follows the first one
    constexpr bool has_second_plane = product_planes == 2;
    struct Tile { // of the warp, by number
        uint32_t first_row, n;
        const uint8_t *planes, *rows;
    };
    const auto tile_at = [&](uint32_t i) -> Tile {
        const bool is_second = has_second_plane && i % 2 == 1;
        const uint32_t round = has_second_plane ? i / 2 : i;
        Tile tile;
        tile.first_row = task.begin + warp * warp_rows + round * round_rows;
        tile.n = tile.first_row < task.end
                ? min(uint32_t(tile_rows), task.end - tile.first_row)
                : 0;
        tile.planes = is_second ? codes.second_planes : codes.planes;
        tile.rows = tile.planes + size_t(tile.first_row) * layout.row_size();
        return tile;
    };
    const auto prefetch_tile = [&](uint32_t i) {
        const Tile tile = tile_at(i);
        if (tile.n > 0) {
            stream.prefetch(tile.rows, tile.n * layout.row_size());
        }
    };
    const auto copy_tile = [&](int slot, uint32_t i) {
        const Tile tile = tile_at(i);
        if (tile.n == 0) {
            return;
        }
        if (from_list) {
            const uint32_t place =
                    min(tile.first_row + lane % tile_rows, task.end - 1);
            stream.copy_rows(
                    slot,
                    tile.n,
                    tile.planes,
                    layout.row_size(),
                    min(codes.list.rows[place], codes.n - 1));
        } else {
            stream.copy(slot, tile.rows, tile.n * layout.row_size());
        }
    };
    uint32_t n_copied = 0; // tiles
    const auto begin_task = [&] {
        task = task_at(args, group_size, 1, blockIdx.x);
        if constexpr (is_streamed) {
            for (; n_copied < args.stream_tiles; n_copied++) {
                copy_tile(n_copied, n_copied);
            }
        }
    };
    // while queries are prepared
    const auto prefetch_tiles = [&] {
        if constexpr (is_streamed) {
            for (uint32_t i = 0; i < args.stream_tiles; i++) {
                prefetch_tile(n_copied + i);
            }
        }
    };
    // codes are there, unlike lists
    const bool begins_early =
            product_planes > 0 || (!codes.list.rows && !args.tasks.tasks);
    if (begins_early) {
        begin_task();
        prefetch_tiles();
    }
    wait_for_kernel_before();
    if (!begins_early) {
        from_list = group_tiles == 1 && codes.list.is_complete();
        begin_task();
    }
    const uint32_t begin = task.begin, end = task.end;
    Entry* reservoirs = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    report_rows_left(codes.list);
    load_images(args, task, group_size * layout.dims, image);
    begin_group(args, task, state);
    if constexpr (uses_wgmma) {
        fence_image();
    }
    __syncthreads();

    const uint32_t offset = sink_offset(args, task, blockIdx.x);
    using Raw = typename Decoder::Raw;
    constexpr int ahead =
            is_streamed ? 1 : steps_ahead<Shape>(nbits, units, group_tiles);
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
                    loaded[slot][m][i] = Decoder::template load<is_streamed>(
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
    if (!is_streamed && begin < end) {
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
                if (codes.selected) {
                    is_valid = is_valid &&
                            codes.selected[row / 32] >> row % 32 & 1;
                }
                // no comparison with NaN holds
                factors.scales[m][i] =
                        load_if(is_valid, codes.scales + row, nanf(""));
                factors.offsets[m][i] = load_if(
                        is_valid && codes.offsets, codes.offsets + row, 0);
            }
        }
        return factors;
    };
    // With streams, a round is shorter than the latency of memory: the factors
    // of rows are loaded a round ahead, and those of queries once.
    RowFactors next_factors;
    TileFactors next_tile;
    const auto load_next_factors = [&](uint32_t first_row) {
        if constexpr (product_planes > 0) {
            next_tile = TileFactors(
                    args.products, first_row / tile_rows, first_row < end);
        } else {
            next_factors = load_factors(first_row);
        }
    };
    DeviceQueryFactors query_factors[2];
    bool has_odd_queries = true; // any of queries 1, 3, 5 and 7
    if constexpr (is_streamed) {
        load_next_factors(begin + warp * warp_rows);
        query_factors[0] = state.factors[2 * t];
        query_factors[1] = state.factors[2 * t + 1];
        if (has_second_plane) { // 2 s + t, of levels 3 to -3
            query_factors[0].base *= 3;
            query_factors[1].base *= 3;
        }
        has_odd_queries =
                __any_sync(0xffffffff, !isnan(query_factors[1].multiplier));
    }

    constexpr bool may_keep_products =
            group_tiles == 1 && nbits == 1 && !Decoder::has_trellis;
    const bool keeps_products =
            may_keep_products && (product_planes > 0 || args.products.bytes);
    const uint32_t slope = by_bits ? 127 * layout.slope // DeviceLayout::base_of
                                   : layout.slope;
    ProductFactors product_factors[2];
    if (keeps_products) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t query = 2 * t + j;
            const DeviceQueryFactors factors =
                    is_streamed ? query_factors[j] : state.factors[query];
            product_factors[j] = by_bits
                    ? ProductFactors(
                              args.products,
                              query,
                              factors,
                              int(slope),
                              int(factors.base))
                    : ProductFactors(args.products, query, factors, 1, 0);
        }
    }

    ReservoirChecks<group_size, Shape::warps> checks(
            args.reservoirs, state, reservoirs, round_rows);
    for (uint32_t round = begin; round < end; round += round_rows) {
        checks.begin_round();
        int sums[n_row_tiles][n_sums] = {};
        const uint32_t first_row = round + warp * warp_rows;
        // the four warps of a wgmma stay together
        if (uses_wgmma ? first_row - warp % 4 * tile_rows < end
                       : first_row < end) {
            RowFactors row_factors;
            TileFactors tile_factors;
            if constexpr (is_streamed) {
                row_factors = next_factors;
                tile_factors = next_tile;
                load_next_factors(first_row + round_rows);
            } else {
                row_factors = load_factors(first_row);
            }
#pragma unroll 1
            for (int plane = 0; plane <= int(has_second_plane); plane++) {
                if (plane > 0) {
#pragma unroll
                    for (int& sum : sums[0]) {
                        sum *= 2;
                    }
                }
                if constexpr (is_streamed) {
                    if (!uses_wgmma || first_row < end) {
                        stream.wait();
                    }
                    rows[0][0] = stream.tile() + g * layout.row_size();
                    rows[0][1] = rows[0][0] + 8 * layout.row_size();
                    if constexpr (!uses_wgmma) {
                        load_ahead(0, 0);
                    }
                }
                Decoder decoders[n_row_tiles][2];
#pragma unroll
                for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if constexpr (Decoder::has_trellis) {
                            decoders[m][i].start(
                                    Decoder::template load<is_streamed>(
                                            layout, rows[m][i], steps - 1, t));
                        }
                    }
                }
                const uint4* fragment = image + lane;
                uint64_t descriptor = operand_descriptor(
                        shared_address(image),
                        by_bits ? 8 * group_size : group_size);
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
                        if constexpr (uses_wgmma && !is_streamed) {
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
                            multiply<Shape::chains>(
                                    sums, a, fragment, fragments);
                            fragment += 2 * 32;
                        }
                    }
                };
                if constexpr (is_streamed && uses_wgmma) {
                    constexpr int at_once =
                            3; // as many as there are registers for
                    int step = 0;
#pragma unroll 1
                    for (; step + at_once <= steps; step += at_once) {
                        count_steps_of_eight<at_once, units, Decoder>(
                                sums[0], layout, rows[0], step, t, descriptor);
                    }
#pragma unroll 1
                    for (; step < steps; step++) {
                        count_steps_of_eight<1, units, Decoder>(
                                sums[0], layout, rows[0], step, t, descriptor);
                    }
                } else if constexpr (is_streamed) {
                    for (int step = 0; step < steps; step++) {
                        const Raw raw[1][2] = {
                                {loaded[0][0][0], loaded[0][0][1]}};
                        load_ahead(0, step + 1);
                        if constexpr (by_bits) {
                            count_bits_of_eight(
                                    sums[0],
                                    raw[0][0].words[0],
                                    raw[0][1].words[0],
                                    fragment);
                            fragment += units * 8 * 32 / 4;
                        } else {
                            multiply_step(raw, [] {});
                        }
                    }
                } else {
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
                }
                if constexpr (is_streamed) {
                    copy_tile(stream.slot(), n_copied++);
                    stream.advance();
                }
            }

            if constexpr (by_bits) {
                add_bits_of_eight(sums[0]);
            } else if constexpr (Shape::chains == 2) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    sums[0][c] += sums[0][4 + c];
                }
            }
            // sums[m][4 q + 2 i + j] is of row g + 8 i and query 2 t + j
            const auto product_of = [&](uint32_t dot, uint32_t base) {
                return int(slope * dot - base);
            };
            bool has_keys = product_planes > 0 ? false : !args.all.distances;
            if constexpr (may_keep_products) {
                if (keeps_products && first_row < end) {
                    int values[4]; // dot products, or products
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        values[c] = by_bits
                                ? sums[0][c]
                                : product_of(
                                          sums[0][c],
                                          state.factors[2 * t + c % 2].base);
                    }
                    const uint32_t largest = write_products(
                            args.products,
                            first_row / tile_rows,
                            values,
                            product_factors);
                    if constexpr (product_planes > 0) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            has_keys |= product_factors[j].least_key(
                                                largest >> 16 * j & 0xff,
                                                tile_factors.scale,
                                                tile_factors.offset) <=
                                    state.last_key[2 * t + j];
                        }
                        has_keys = __any_sync(0xffffffff, has_keys);
                        if (has_keys) {
                            row_factors = load_factors(first_row);
                        }
                    }
                }
            }
            const float sign = layout.is_l2 ? 1 : -1;
            const auto for_each_key = [&](const auto& take) {
#pragma unroll
                for (int q = 0; q < group_tiles; q++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if (j == 1 && !has_odd_queries) {
                            break;
                        }
                        const int query = q * 8 + 2 * t + j;
                        const DeviceQueryFactors factors = is_streamed
                                ? query_factors[j]
                                : state.factors[query];
                        const float last_key = state.last_key[query];
#pragma unroll
                        for (int m = 0; m < n_row_tiles; m++) {
#pragma unroll
                            for (int i = 0; i < 2; i++) {
                                const int product = product_of(
                                        sums[m][4 * q + 2 * i + j],
                                        factors.base);
                                const float key =
                                        key_of(product,
                                               row_factors.scales[m][i],
                                               sign * row_factors.offsets[m][i],
                                               factors);
                                take(query,
                                     first_row + m * tile_rows + i * 8 + g,
                                     key,
                                     last_key);
                            }
                        }
                    }
                }
            };
            const auto take =
                    [&](int query, uint32_t row, float key, float last_key) {
                        if (!(key <= last_key)) {
                            return;
                        }
                        row = from_list ? codes.list.rows[row] : row;
                        take_key(args, state, reservoirs, query, row, key);
                    };
            if (has_keys) {
                for_each_key(take);
            } else if (product_planes == 0) {
                for_each_key([&](int query, uint32_t row, float key, float) {
                    const uint32_t slot = task.first_slot + query;
                    write_distances<1>(
                            args,
                            task,
                            offset,
                            query_of_sink(args, slot),
                            row,
                            {key});
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
