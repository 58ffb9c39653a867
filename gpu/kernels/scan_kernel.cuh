#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/scan.h>
#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/tile_stream.cuh>
#include <gpu/kernels/wgmma.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr int tile_rows = 16; ///< of a warp in a matrix instruction

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

/** Whether one query is compared by bits: the product with an integer is a sum
 * over its bits, each of which counts set bits of the code, or, times a power
 * of two, of a plane of its grid positions. A matrix instruction does so for 16
 * codes and the eight bits. At one bit nothing is decoded then; of a known
 * trellis, planes take half the instructions that bytes do. */
constexpr bool counts_bits(int nbits, bool has_trellis, int trellis) {
    return has_trellis ? trellis >= 0 : nbits == 1;
}

/** Whether eight queries are, with a TileStream: a matrix instruction is of a
 * bit of all of them, so that each plane takes eight times as many, or of all
 * their bits, for four warps. */
constexpr bool counts_bits_of_eight(int nbits, bool has_trellis) {
    return nbits == 1 && !has_trellis;
}

/// Fragment::units with few queries, at most. Trellises are short of registers;
/// at two bits, planes of bits leave some.
constexpr int few_units(int nbits, bool has_trellis, bool is_single) {
    return !has_trellis               ? 4 / fragment_bits(nbits, false)
            : is_single && nbits == 2 ? 4
                                      : 2;
}

/// Rows of a block from one look at the reservoirs to the next, at most. There
/// may be room for more, but not in the first looks, before which thresholds
/// take in much.
constexpr int early_check_rows = 768, early_checks = 6;

struct ScanArgs {
    DeviceCodes codes;
    const uint8_t* image;
    const DeviceQueryFactors* factors;
    int n_groups;
    uint32_t slice_rows, slice_stride;
    int stream_tiles;
    ScanTasks tasks;
    // One of them, or the first and the last; the others are empty.
    Reservoirs reservoirs;
    RangeSink range;
    DistanceSink all;
    ProductSink products;
};

using ScanKernel = void (*)(ScanArgs);

/// kernels of one codec
struct ScanKernels {
    ScanKernel few[3];      ///< one tile of queries; units 1, 2, 4; or null
    ScanKernel streamed[3]; ///< the same, through a TileStream
    ScanKernel streamed_wgmma[3]; ///< likewise, see counts_bits_of_eight
    ScanKernel single[3];         ///< of one query, see counts_bits
    // for scan_products of all rows, of one plane and of two
    ScanKernel products[2][3], products_wgmma[2][3], single_products[3];
    ScanKernel many[3];     ///< 4, 8 and 16 tiles; units 1
    ScanKernel wgmma[2];    ///< 8 and 16 tiles; units 1
    ScanKernel batch[2][2]; ///< batch_groups; units 1, 2; or null
};

#ifdef __CUDACC__

__device__ inline void multiply_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint32_t b0,
        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Without a branch, and without waiting for what is loaded, which selecting
/// afterwards would.
__device__ inline float load_if(bool is_valid, const float* at, float other) {
    asm("{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "@p ld.global.nc.f32 %0, [%1];\n"
        "}"
        : "+f"(other)
        : "l"(at), "r"(uint32_t(is_valid)));
    return other;
}

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

__device__ inline void count_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint32_t b0,
        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void count_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t b) {
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

/// what a lane has of a bit plane of a query in a step
template <int units>
struct alignas(4 * units) PlaneWords {
    uint32_t words[units];
};

/** Of a step, set bits that planes of rows g (x) and g + 8 (y) share with the
 * query: sums[4 p + 2 i + j] is of plane p of row g + 8 i and bit 2 t + j.
 * @param image  of the step and the lane */
template <int units, int bit_planes, int n_sums>
__device__ inline void count_bits(
        int (&sums)[n_sums],
        const uint32_t (&x)[units][bit_planes],
        const uint32_t (&y)[units][bit_planes],
        const PlaneWords<units>& image) {
    const auto& b = image.words;
#pragma unroll
    for (int i = 0; i < units; i += 2) {
#pragma unroll
        for (int p = 0; p < bit_planes; p++) {
            int* c = sums + 4 * p;
            if constexpr (units == 1) {
                count_tile(c, x[0][p], y[0][p], b[0]);
            } else {
                count_tile(
                        c,
                        x[i][p],
                        y[i][p],
                        x[i + 1][p],
                        y[i + 1][p],
                        b[i],
                        b[i + 1]);
            }
        }
    }
}

/// the dot product of row g + 8 i from such sums, to sums[2 i]; by all lanes of
/// the row
template <int n_sums>
__device__ inline void add_bits(int (&sums)[n_sums], int t) {
    // two's complement: the highest bit is worth -128
    const int low = 1 << 2 * t, high = t == 3 ? -128 : 2 << 2 * t;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int dot = 0;
#pragma unroll
        for (int p = 0; p < n_sums / 4; p++) {
            const int* c = sums + 4 * p + 2 * i;
            dot += (c[0] * low + c[1] * high) << p;
        }
        dot += __shfl_xor_sync(0xffffffff, dot, 1);
        dot += __shfl_xor_sync(0xffffffff, dot, 2);
        sums[2 * i] = dot;
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

/// what a block knows about its queries, in shared memory
template <int group_size>
struct GroupState {
    Entry last[group_size];     ///< the last entry of interest
    float last_key[group_size]; ///< its key
    DeviceQueryFactors factors[group_size];
    int counts[group_size];       ///< of the reservoirs
    uint32_t queries[group_size]; ///< of the page
};

/// without tasks: groups of the first slice, of the next, ..
__device__ inline ScanTask task_at(
        const ScanArgs& args,
        uint32_t group_size,
        uint32_t parts,
        uint32_t index) {
    if (args.tasks.tasks) {
        return args.tasks.tasks[index];
    }
    const uint32_t group = index % args.n_groups;
    const uint32_t first_slot = group * group_size;
    const uint32_t first_reservoir = index * group_size * parts;
    if (args.codes.list.is_complete()) {
        const uint32_t n = args.codes.list.count();
        const uint32_t of_slice = round_up(
                ceil_div(n, gridDim.x / args.n_groups), uint32_t(tile_rows));
        const uint32_t begin = min(n, index / args.n_groups * of_slice);
        const uint32_t end = min(n, begin + of_slice);
        return {begin, end, first_slot, group_size, first_reservoir};
    }
    const uint32_t begin = index / args.n_groups * args.slice_stride;
    const uint32_t end = begin + min(args.slice_rows, args.codes.n - begin);
    return {begin, end, first_slot, group_size, first_reservoir};
}

/// what to add to a row for its place in a DistanceSink, modulo 2^32.
/// index: of the task
__device__ inline uint32_t sink_offset(
        const ScanArgs& args,
        const ScanTask& task,
        uint32_t index) {
    return args.codes.list.is_complete() ? 0
            : args.tasks.tasks
            ? -task.begin
            : index / args.n_groups * args.slice_rows - task.begin;
}

/// where the distances of a slot are in a DistanceSink; more than there are, if
/// they are not wanted
__device__ inline uint32_t query_of_sink(const ScanArgs& args, uint32_t slot) {
    return args.tasks.tasks ? args.tasks.probe_of_slot[slot] : slot;
}

/** Writes keys of a query to a DistanceSink.
 * @param offset  see sink_offset
 * @param query   see query_of_sink
 * @param row     of the first key
 * @param keys    of rows that are `stride` apart */
template <int stride, int n>
__device__ inline void write_distances(
        const ScanArgs& args,
        const ScanTask& task,
        uint32_t offset,
        uint32_t query,
        uint32_t row,
        const float (&keys)[n]) {
    const DistanceSink& sink = args.all;
    if (query >= sink.nq) {
        return;
    }
    float* at = sink.distances + size_t(query) * sink.rows + (offset + row);
#pragma unroll
    for (int i = 0; i < n; i++) {
        if (row + i * stride < task.end) {
            __stcs(at + i * stride,
                   sink.are_keys                     ? keys[i]
                           : args.codes.layout.is_l2 ? fmaxf(keys[i], 0.0f)
                                                     : 0.0f - keys[i]);
        }
    }
}

/// of products in a ProductSink
__device__ inline float product_factor(
        const ProductSink& sink,
        uint32_t query) {
    const uint32_t most = query < sink.nq
            ? sink.largest_level * sink.queries[query].magnitudes
            : 0;
    return float(255 - sink.zero) / float(most > 0 ? most : 1);
}

/** Writes products with a tile of rows to a ProductSink.
 * @param products  [2 i + j]: of row g + 8 i and query 2 t + j
 * @param factors   of these queries, see product_factor */
__device__ inline void write_products(
        const ProductSink& sink,
        uint32_t tile,
        const int (&products)[4],
        const float (&factors)[2]) {
    static_assert(product_rows == tile_rows);
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
    const uint32_t pairs = ProductSink::n_pairs(sink.nq);
    constexpr float integers = 1 << 23; // what is added to it is rounded
    uint32_t bytes[4];                  // and more above
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const float x =
                fmaf(float(products[c]), factors[c % 2], float(sink.zero));
        bytes[c] = __float_as_uint(fmaxf(x, 0.0f) + integers);
    }
    if (sink.largest) {
        uint32_t largest = __byte_perm(
                max(bytes[0], bytes[2]), max(bytes[1], bytes[3]), 0x5410);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
            largest = __vmaxu2(
                    largest, __shfl_xor_sync(0xffffffff, largest, lanes));
        }
        if (g == 0 && t < pairs) {
            const size_t place = size_t(tile) * pairs + t;
            if (sink.nq == 1) {
                sink.largest[place] = uint8_t(largest);
            } else {
                reinterpret_cast<uint16_t*>(sink.largest)[place] =
                        uint16_t(__byte_perm(largest, 0, 0x0020));
            }
        }
    }
    if (t >= pairs) {
        return;
    }
    const size_t at = size_t(tile * pairs + t) * (tile_rows / 2) + g;
    // the lower half of it
    const auto halves = [&](int j) {
        return __byte_perm(bytes[j], bytes[2 + j], 0x0040);
    };
    if (sink.nq == 1) {
        reinterpret_cast<uint16_t*>(sink.bytes)[at] = uint16_t(halves(0));
    } else {
        __stcs(reinterpret_cast<uint32_t*>(sink.bytes) + at,
               __byte_perm(halves(0), halves(1), 0x5410));
    }
}

/// ProductSink::best of a block. counts, entries: of its reservoirs
__device__ inline void write_best(
        const ScanArgs& args,
        const int* counts,
        const Entry* entries) {
    const uint32_t k = args.reservoirs.k;
    for (uint32_t i = threadIdx.x; i < args.products.nq * k; i += blockDim.x) {
        const uint32_t q = i / k, rank = i % k;
        args.products.best[(q * gridDim.x + blockIdx.x) * k + rank] =
                rank < counts[q]
                ? uint32_t(entries[q * args.reservoirs.capacity + rank])
                : no_row_of_list;
    }
}

/// any for an empty slot, where nothing is found
__device__ inline uint32_t query_of_slot(const ScanArgs& args, uint32_t slot) {
    if (!args.tasks.probe_of_slot) {
        return slot;
    }
    const uint32_t probe = args.tasks.probe_of_slot[slot];
    return probe == no_probe ? 0 : probe / args.tasks.nprobe;
}

__device__ inline void collect(
        const RangeSink& range,
        size_t query,
        float key,
        uint32_t row) {
    const Entry at = atomicAdd(&range.counts[query], 1ull);
    if (range.entries) {
        range.entries[range.begins[query] + at] = pack_entry(key, row);
    }
}

/** Thin out a reservoir of more than k, by a warp.
 * @param query       of the page
 * @param histogram   of the warp's own
 * @param lower_last  bool(Entry): lowers what is the last entry of interest, if
 *                    it is greater */
template <class LowerLast>
__device__ inline void thin_out_one(
        const Reservoirs& r,
        Entry* entries,
        int& count,
        uint32_t query,
        uint32_t* histogram,
        const LowerLast& lower_last) {
    const int n = count;
    const Entry last = warp_select(entries, n, r.k, histogram);
    warp_keep(entries, n, last);
    if (threadIdx.x % 32 == 0) {
        count = r.k;
        if (lower_last(last)) {
            // one of the same key may be better by its id
            atomicMin(&r.thresholds[query], last | ~uint32_t(0));
        }
    }
    __syncwarp();
}

/// thin out the reservoirs that hold more than `limit`
template <int group_size, int warps>
__device__ __noinline__ void thin_out(
        const Reservoirs& r,
        GroupState<group_size>& state,
        Entry* reservoirs,
        int limit) {
    __shared__ uint32_t histograms[std::min(warps, group_size)][radix_size];
    const int warp = threadIdx.x / 32;
    for (int q = warp; q < group_size; q += blockDim.x / 32) {
        if (state.counts[q] > limit) {
            thin_out_one(
                    r,
                    reservoirs + size_t(q) * r.capacity,
                    state.counts[q],
                    state.queries[q],
                    histograms[warp],
                    [&](Entry last) {
                        const bool is_lower = last < state.last[q];
                        if (is_lower) {
                            state.last[q] = last;
                            state.last_key[q] = entry_key(last);
                        }
                        return is_lower;
                    });
        }
    }
    __syncthreads();
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
        bool by_bits,
        int product_planes = 0>
__global__ void __launch_bounds__(
        ScanShape<group_tiles, uses_wgmma, is_streamed>::threads,
        group_tiles > 1 || is_streamed ? 1 : 2)
        scan_kernel(const __grid_constant__ ScanArgs args) {
    using Decoder = RowDecoder<nbits, trellis, units>;
    using Shape = ScanShape<group_tiles, uses_wgmma, is_streamed>;
    constexpr int group_size = Shape::group_size;
    constexpr int n_row_tiles = Shape::row_tiles;
    constexpr bool eight_by_bits = !by_bits && is_streamed &&
            counts_bits_of_eight(nbits, trellis != no_trellis);
    constexpr int n_sums = eight_by_bits ? 4 * 8
            : by_bits                    ? 4 * Decoder::bit_planes
                                         : 4 * group_tiles * Shape::chains;
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
    // Few queries have room for what they find in several rounds, after which
    // all warps wait for each other.
    const int rounds_per_check = group_tiles > 1
            ? 1
            : (args.reservoirs.capacity - round_up(2 * args.reservoirs.k, 32)) /
                    round_rows;
    const int early_rounds =
            group_tiles > 1 ? 1 : early_check_rows / round_rows;
    const int steps = layout.dims / (dims_unit * units);
    const int fragments = layout.dims / 64;
    const bool is_top_k = args.reservoirs.k > 0;
    const int tile_size = tile_rows * layout.row_size();
    TileStream stream(
            reinterpret_cast<uint8_t*>(image + group_size * layout.dims / 16) +
                    warp * args.stream_tiles * tile_size,
            arrivals[is_streamed ? warp : 0],
            is_streamed ? args.stream_tiles : 0,
            tile_size);
    ScanTask task = {};
    bool from_list = false; // then rows are places in the list
    // of rows, the second plane follows the first one
    constexpr bool has_second_plane = product_planes == 2;
    // tile i of the warp
    const auto copy_tile = [&](int slot, uint32_t i) {
        const bool is_second = has_second_plane && i % 2 == 1;
        const uint32_t round = has_second_plane ? i / 2 : i;
        const uint32_t first_row =
                task.begin + warp * warp_rows + round * round_rows;
        const uint8_t* planes = is_second ? codes.second_planes : codes.planes;
        if (first_row < task.end) {
            const uint32_t n = min(uint32_t(tile_rows), task.end - first_row);
            if (from_list) {
                stream.copy_rows(slot, n, layout.row_size(), [&](uint32_t i) {
                    const uint32_t row = codes.list.rows[first_row + i];
                    return planes +
                            size_t(min(row, codes.n - 1)) * layout.row_size();
                });
            } else {
                stream.copy(
                        slot,
                        planes + size_t(first_row) * layout.row_size(),
                        n * layout.row_size());
            }
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
    // codes are there, unlike lists
    const bool begins_early =
            product_planes > 0 || (!codes.list.rows && !args.tasks.tasks);
    if (begins_early) {
        begin_task();
    }
    wait_for_kernel_before();
    if (!begins_early) {
        from_list = group_tiles == 1 && codes.list.is_complete();
        begin_task();
    }
    const uint32_t begin = task.begin, end = task.end;
    Entry* reservoirs = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    if (codes.list.report && blockIdx.x == 0 && threadIdx.x == 0) {
        codes.list.report->by_all = codes.list.left->by_all;
        codes.list.report->by_first = codes.list.left->by_first;
    }

    const uint4* group_image = reinterpret_cast<const uint4*>(
            args.image + size_t(task.first_slot) * layout.dims);
    for (int i = threadIdx.x; i < group_size * layout.dims / 16; i += threads) {
        image[i] = group_image[i];
    }
    for (int q = threadIdx.x; q < group_size; q += threads) {
        const uint32_t slot = task.first_slot + q;
        state.factors[q] = args.factors[slot];
        state.queries[q] = query_of_slot(args, slot);
        state.counts[q] = 0;
        Entry last = no_entry;
        if (is_top_k) {
            last = *const_cast<volatile Entry*>(
                    &args.reservoirs.thresholds[state.queries[q]]);
        }
        state.last[q] = last;
        // keys that are not finite are never of interest
        state.last_key[q] = !is_top_k ? args.range.last
                : last == no_entry    ? FLT_MAX
                                      : entry_key(last);
    }
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
    DeviceQueryFactors query_factors[2];
    float product_factors[2] = {};
    bool has_odd_queries = true; // any of queries 1, 3, 5 and 7
    if constexpr (is_streamed) {
        next_factors = load_factors(begin + warp * warp_rows);
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
    if (keeps_products) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            product_factors[j] = product_factor(args.products, 2 * t + j);
        }
    }

    int rounds_to_check = early_rounds, checks = 0;
    for (uint32_t round = begin; round < end; round += round_rows) {
        // what other blocks have found meanwhile
        Entry shared_last = no_entry;
        if (is_top_k && rounds_to_check == 1 && threadIdx.x < group_size) {
            shared_last = *const_cast<volatile Entry*>(
                    &args.reservoirs.thresholds[state.queries[threadIdx.x]]);
        }

        int sums[n_row_tiles][n_sums] = {};
        const uint32_t first_row = round + warp * warp_rows;
        // the four warps of a wgmma stay together
        if (uses_wgmma ? first_row - warp % 4 * tile_rows < end
                       : first_row < end) {
            const RowFactors row_factors =
                    is_streamed ? next_factors : load_factors(first_row);
            if constexpr (is_streamed) {
                next_factors = load_factors(first_row + round_rows);
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
                const auto* planes =
                        reinterpret_cast<const PlaneWords<units>*>(image) +
                        lane;
                uint64_t descriptor = operand_descriptor(
                        shared_address(image),
                        eight_by_bits ? 8 * group_size : group_size);
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
                const auto count_step = [&](const auto& raw) {
                    uint32_t bits[2][units][Decoder::bit_planes];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        decoders[0][i].begin_step(raw[0][i], t);
#pragma unroll
                        for (int unit = 0; unit < units; unit++) {
                            decoders[0][i].decode_bits(
                                    layout, raw[0][i], unit, bits[i][unit]);
                        }
                    }
                    count_bits(sums[0], bits[0], bits[1], *planes);
                    planes += 32;
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
                            count_step(raw);
                        } else if constexpr (eight_by_bits) {
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
                add_bits(sums[0], t);
            } else if constexpr (eight_by_bits) {
                add_bits_of_eight(sums[0]);
            } else if constexpr (Shape::chains == 2) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    sums[0][c] += sums[0][4 + c];
                }
            }
            if constexpr ((by_bits && !Decoder::has_trellis) || eight_by_bits) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    sums[0][c] *= 127; // DeviceLayout::base_of
                }
            }
            // sums[m][4 q + 2 i + j] is of row g + 8 i and query 2 t + j
            const auto product_of = [&](uint32_t dot, uint32_t base) {
                return int(layout.slope * dot - base);
            };
            if constexpr (may_keep_products) {
                if (keeps_products && first_row < end) {
                    int products[4];
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        const DeviceQueryFactors& factors = is_streamed
                                ? query_factors[c % 2]
                                : state.factors[2 * t + c % 2];
                        products[c] = product_of(sums[0][c], factors.base);
                    }
                    write_products(
                            args.products,
                            first_row / tile_rows,
                            products,
                            product_factors);
                }
            }
            const float sign = layout.is_l2 ? 1 : -1;
            const auto for_each_key = [&](const auto& take) {
#pragma unroll
                for (int q = 0; q < group_tiles; q++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if (j == 1 && (by_bits || !has_odd_queries)) {
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
                                const float key = (float(product) *
                                                   row_factors.scales[m][i]) *
                                                factors.multiplier +
                                        (sign * row_factors.offsets[m][i] +
                                         factors.bias);
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
                        if (!is_top_k) {
                            collect(args.range, state.queries[query], key, row);
                            return;
                        }
                        const Entry entry = pack_entry(key, row);
                        if (entry <= state.last[query]) {
                            const int at = atomicAdd(&state.counts[query], 1);
                            reservoirs[query * args.reservoirs.capacity + at] =
                                    entry;
                        }
                    };
            if (product_planes > 0 || !args.all.distances) {
                for_each_key(take);
            } else {
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

        if (is_top_k && --rounds_to_check == 0) {
            rounds_to_check =
                    ++checks < early_checks ? early_rounds : rounds_per_check;
            const int limit =
                    args.reservoirs.limit(rounds_per_check * round_rows);
            __syncthreads();
            const int q = threadIdx.x;
            if (q < group_size && shared_last < state.last[q]) {
                state.last[q] = shared_last;
                state.last_key[q] = entry_key(shared_last);
            }
            if (__syncthreads_or(q < group_size && state.counts[q] > limit)) {
                // those that would be next, too, while the others wait
                thin_out<group_size, Shape::warps>(
                        args.reservoirs,
                        state,
                        reservoirs,
                        (args.reservoirs.k + limit) / 2);
            }
        } else {
            __syncwarp();
        }
    }

    if (is_top_k) {
        __syncthreads();
        thin_out<group_size, Shape::warps>(
                args.reservoirs, state, reservoirs, args.reservoirs.k);
        for (int q = threadIdx.x; q < task.n_slots; q += threads) {
            args.reservoirs.counts[task.first_reservoir + q] = state.counts[q];
        }
        if (may_keep_products && args.products.best) {
            write_best(args, state.counts, reservoirs);
        }
    }
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
