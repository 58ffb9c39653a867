#pragma once

/** The scan for up to eight queries, of codes that come through TileStreams.
 *
 * Codes of one bit are compared by bits, as with one query (see
 * single_kernel.cuh): a matrix instruction of a warp is of a bit of all
 * queries, one of four warps of all their bits. Besides instructions it is
 * latencies that bound this: there are registers for few warps. Where products
 * are kept, queries have fewer bits than eight (bits_of_products), and warps
 * work each for itself: four would wait for the slowest at each tile. */

#include <cstdint>
#include <type_traits>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/row_stream.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/wgmma.cuh>

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

/// whether factors come with a tile: loads into registers, a tile ahead, wait
/// for each other
constexpr bool has_factors_of_eight(int product_planes) {
    return product_planes > 0;
}

/// of a block, at most
constexpr int warps_of_eight(int product_planes) {
    return product_planes == 1 ? product_warps : stream_warps;
}

/// available: bytes of shared memory of a block
inline StreamPlan plan_eight(
        const DeviceLayout& layout,
        size_t available,
        int product_planes) {
    const size_t images = size_t(8) * layout.dims;
    return images < available ? plan_streams(
                                        layout,
                                        available - images,
                                        1,
                                        4,
                                        warps_of_eight(product_planes),
                                        has_factors_of_eight(product_planes))
                              : StreamPlan();
}

/// bytes of shared memory of a block
inline size_t eight_shared(
        const DeviceLayout& layout,
        const StreamPlan& streams,
        int product_planes) {
    const bool has_factors = has_factors_of_eight(product_planes);
    return size_t(8) * layout.dims + streams_size(layout, streams, has_factors);
}

#ifdef __CUDACC__

/** Dot products of the bits of tiles with eight queries.
 * @tparam bits        of queries' integers
 * @tparam uses_wgmma  four warps work together, and bits is 8 */
template <int units, int bits, bool uses_wgmma>
class BitDots {
    static_assert(!uses_wgmma || bits == 8);
    using Decoder = RowDecoder<1, no_trellis, units>;
    static constexpr int step_size = 16 * units; ///< of a row

   public:
    /** The tile's, by a warp.
     * @param dots  [2 i + j]: of row g + 8 i and query 2 t + j */
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[4]) {
        const uint32_t lane = threadIdx.x % 32;
        // [4 b + 2 i + j]: of row g + 8 i and bit b of query 2 t + j
        int sums[4 * bits];
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* row = tile + lane / 4 * layout.row_size();
        if constexpr (uses_wgmma) {
            uint64_t queries = operand_descriptor(shared_address(image), 64);
            constexpr int at_once = 3; // as many as there are registers for
            bool adds = false;
            int step = 0;
#pragma unroll 1
            for (; step + at_once <= steps; step += at_once) {
                count_together<at_once>(sums, layout, row, queries, adds);
            }
#pragma unroll 1
            for (; step < steps; step++) {
                count_together<1>(sums, layout, row, queries, adds);
            }
        } else {
#pragma unroll
            for (int& sum : sums) {
                sum = 0;
            }
            image += lane;
#pragma unroll 1
            for (int step = 0; step < steps; step++) {
                count(sums, layout, row, image);
            }
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int dot = -sums[4 * (bits - 1) + c]; // two's complement
#pragma unroll
            for (int b = bits - 2; b >= 0; b--) {
                dot = 2 * dot + sums[4 * b + c];
            }
            dots[c] = dot;
        }
    }

   private:
    struct Words { ///< of row g, and of row g + 8
        typename Decoder::Raw x, y;
    };
    static __device__ Words
    load(const DeviceLayout& layout, const uint8_t* row) {
        const int t = threadIdx.x % 4;
        return {Decoder::template load<true>(layout, row, 0, t),
                Decoder::template load<true>(
                        layout, row + 8 * layout.row_size(), 0, t)};
    }

    /// a step; row and image are moved on
    static __device__ void count(
            int (&sums)[4 * bits],
            const DeviceLayout& layout,
            const uint8_t*& row,
            const uint4*& image) {
        const Words words = load(layout, row);
        const auto& x = words.x.words[0];
        const auto& y = words.y.words[0];
        row += step_size;
#pragma unroll
        for (int i = 0; i < units; i += 2) {
#pragma unroll
            for (int b = 0; b < bits; b += units == 1 ? 4 : 2, image += 32) {
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

    /** n steps by four warps. What these read of codes is all loaded before
     * the first instruction, into registers that are not written before the
     * last one has ended: with what comes next loaded meanwhile, ptxas (13.0)
     * let moves to the registers of codes overtake the wait.
     * @param row, queries  moved on
     * @param adds          to sums; set */
    template <int n>
    static __device__ void count_together(
            int (&sums)[4 * bits],
            const DeviceLayout& layout,
            const uint8_t*& row,
            uint64_t& queries,
            bool& adds) {
        constexpr int unit_size = 64; // in units of 16 bytes
        Words words[n];
#pragma unroll
        for (int s = 0; s < n; s++) {
            words[s] = load(layout, row + s * step_size);
        }
        row += n * step_size;
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

/// the same of what the bytes of codes decode to
template <int nbits, int trellis, int units>
class ByteDots {
    using Decoder = RowDecoder<nbits, trellis, units>;

   public:
    static __device__ void compute(
            const DeviceLayout& layout,
            const uint8_t* tile,
            const uint4* image,
            int (&dots)[4]) {
        constexpr int chains = 2;
        const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* const rows[2] = {
                tile + g * layout.row_size(),
                tile + (g + 8) * layout.row_size()};
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

/** Writes products of a tile of rows with several queries, by a warp.
 * @param products  [2 i + j]: of row g + 8 i and query 2 t + j
 * @param units     ProductFactors::unit_of, of these queries */
__device__ inline void write_products(
        const ProductSink& sink,
        uint32_t tile,
        const float (&products)[4],
        const float (&units)[2]) {
    static_assert(product_rows == tile_rows);
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
    uint32_t fixed[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        fixed[c] = ProductFactors::fixed(products[c], units[c % 2]);
    }
    // of query 2 t + j, in half j
    uint32_t largest = __byte_perm(
            max(fixed[0], fixed[2]), max(fixed[1], fixed[3]), 0x5410);
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
        largest =
                __vmaxu2(largest, __shfl_xor_sync(0xffffffff, largest, lanes));
    }
    const uint32_t n_pairs = ProductSink::n_pairs(sink.nq);
    if (t < n_pairs) {
        const uint32_t pair = tile * n_pairs + t;
        if (lane < 4) {
            reinterpret_cast<uint16_t*>(sink.largest)[pair] =
                    uint16_t(__byte_perm(largest, 0, 0x0031));
        }
        // the lower half of it
        const auto halves = [&](int j) {
            return __byte_perm(fixed[j], fixed[2 + j], 0x0051);
        };
        __stcs(reinterpret_cast<uint32_t*>(sink.bytes) +
                       size_t(pair) * (tile_rows / 2) + g,
               __byte_perm(halves(0), halves(1), 0x5410));
    }
}

/** @tparam uses_wgmma      by bits
 *  @tparam product_planes  of scan_products; 0: another scan */
template <
        int nbits,
        int trellis,
        int units,
        bool uses_wgmma = false,
        int product_planes = 0>
__global__ void __launch_bounds__(32 * warps_of_eight(product_planes), 1)
        eight_kernel(const __grid_constant__ ScanArgs args) {
    constexpr int group_size = 8;
    constexpr bool by_bits = counts_bits_of_eight(nbits, trellis != no_trellis);
    constexpr bool keeps_products = product_planes > 0;
    constexpr bool has_second_plane = product_planes == 2;
    extern __shared__ uint4 image[];
    __shared__ GroupState<group_size> state;
    __shared__ StreamArrivals arrivals;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const int images_size = group_size * layout.dims;
    constexpr int planes = 1 + has_second_plane;
    constexpr bool has_factors = has_factors_of_eight(product_planes);
    RowStream<1, has_long_rows(nbits), planes, has_factors> stream(
            codes, image + images_size / 16, args.stream_tiles, arrivals);
    const ScanTask task = begin_task(args, keeps_products, stream);
    load_images(args, task, images_size, image);
    begin_group(args, task, state);
    if constexpr (uses_wgmma) {
        fence_image();
    }
    __syncthreads();

    const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
    const uint32_t end = task.end, round_rows = stream.round_rows();
    const uint32_t slope = layout.slope_of(by_bits);
    const float sign = layout.is_l2 ? 1 : -1;
    Entry* reservoirs = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    // of query 2 t + j
    DeviceQueryFactors query_factors[2];
    float product_units[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        query_factors[j] = state.factors[2 * t + j];
        // 2 s + t, levels 3 to -3
        query_factors[j].base *= has_second_plane ? 3 : 1;
        if constexpr (keeps_products) {
            product_units[j] =
                    ProductFactors::unit_of(args.products, 2 * t + j);
        }
    }
    const bool has_odd_queries =
            __any_sync(0xffffffff, !isnan(query_factors[1].multiplier));
    struct RowFactors { // of rows g and g + 8
        float scales[2], offsets[2];
    };
    const auto load_factors = [&](uint32_t first) {
        RowFactors of_rows;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t place = first + 8 * i + g;
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
    // <q, v> of dots[2 i + j]
    const auto product_of = [&](const int(&dots)[4], int i, int j) {
        return int(slope * dots[2 * i + j] - query_factors[j].base);
    };
    const auto key_at =
            [&](int product, const RowFactors& of_rows, int i, int j) {
                return key_of(
                        product,
                        of_rows.scales[i],
                        sign * of_rows.offsets[i],
                        query_factors[j]);
            };
    // f(query, place, key)
    const auto for_each_key = [&](const int(&dots)[4],
                                  uint32_t first,
                                  const RowFactors& of_rows,
                                  const auto& f) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (j == 1 && !has_odd_queries) {
                break;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float key = key_at(product_of(dots, i, j), of_rows, i, j);
                f(2 * t + j, first + 8 * i + g, key);
            }
        }
    };
    const auto take = [&](int query, uint32_t place, float key) {
        if (key <= state.last_key[query]) {
            take_key(args, state, reservoirs, query, stream.row_at(place), key);
        }
    };

    const uint32_t offset = sink_offset(args, task, blockIdx.x);
    const auto write = [&](int query, uint32_t place, float key) {
        const uint32_t slot = task.first_slot + query;
        write_distances<1>(
                args, task, offset, query_of_sink(args, slot), place, {key});
    };

    RowFactors next_of_rows;
    const auto load_ahead = [&](uint32_t first) {
        if constexpr (!keeps_products) {
            next_of_rows = load_factors(first);
        }
    };
    load_ahead(stream.first_row(task.begin));
    constexpr int bits = bits_of_products(product_planes, units);
    using Dots = std::conditional_t<
            by_bits,
            BitDots<units, bits, uses_wgmma>,
            ByteDots<nbits, trellis, units>>;
    ReservoirChecks<group_size, warps_of_eight(product_planes)> checks(
            args.reservoirs, state, reservoirs, round_rows);
    for (uint32_t round = task.begin; round < end; round += round_rows) {
        checks.begin_round();
        const uint32_t first = stream.first_row(round);
        const bool has_rows = first < end;
        const uint32_t first_of_four = first - threadIdx.x / 32 % 4 * tile_rows;
        if (uses_wgmma ? first_of_four < end : has_rows) {
            RowFactors of_rows = next_of_rows;
            load_ahead(first + round_rows);
            int dots[4] = {};
#pragma unroll 1
            for (int plane = 0; plane < planes; plane++) {
                int slot, of_plane[4];
                const uint8_t* tile = stream.next(has_rows, slot);
                if constexpr (keeps_products) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        of_rows.scales[i] = stream.scale(tile, g + 8 * i);
                        of_rows.offsets[i] = stream.offset(tile, g + 8 * i);
                    }
                }
                Dots::compute(layout, tile, image, of_plane);
                stream.copy_next(slot);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    dots[c] = 2 * dots[c] + of_plane[c];
                }
            }
            if constexpr (keeps_products) {
                float products[4], keys[4];
                bool is_of_interest = false;
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int i = c / 2, j = c % 2;
                    const int product = product_of(dots, i, j);
                    products[c] = float(product);
                    keys[c] = key_at(product, of_rows, i, j);
                    is_of_interest |= keys[c] <= state.last_key[2 * t + j];
                }
                write_products(
                        args.products,
                        first / tile_rows,
                        products,
                        product_units);
                if (__any_sync(0xffffffff, is_of_interest)) {
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        const uint32_t row = first + c / 2 * 8 + g;
                        if (is_selected(codes, row, row < end)) {
                            take(2 * t + c % 2, row, keys[c]);
                        }
                    }
                }
            } else if (args.all.distances) {
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
