#pragma once

/** The scan for one query, by bits: the product with an integer is a sum over
 * its bits, each of which counts set bits of the code, or, times a power of
 * two, of a plane of its grid positions. A matrix instruction does so for 16
 * codes and the eight bits. At one bit nothing is decoded then; of a known
 * trellis, planes take half the instructions that bytes do.
 *
 * Signs of 1536 coordinates come from memory as fast as a warp does some 200
 * instructions for two tiles of rows. So it takes two at a time, after which
 * each of its lanes has the product of one row. */

#include <cstdint>

#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/tile_stream.cuh>

namespace faiss_turboquant {
namespace gpu {

/// whether there is a kernel for codes
constexpr bool counts_bits(int nbits, bool has_trellis, int trellis) {
    return has_trellis ? trellis >= 0 : nbits == 1;
}

/// Fragment::units, at most. Trellises are short of registers; at two bits they
/// leave some.
constexpr int single_units(int nbits, bool has_trellis) {
    return !has_trellis || nbits == 2 ? 4 : 2;
}

/// tiles of a TileStream that have to be there at a time
constexpr int single_tiles(bool has_trellis) {
    return has_trellis ? 1 : 2;
}

constexpr int single_warps = 16;           ///< of a block, at most
constexpr int single_rows = 2 * tile_rows; ///< of a warp in a round

/// TileStreams for which there is room. available: bytes of shared memory
inline StreamPlan plan_single(const DeviceLayout& layout, size_t available) {
    const int room = int(available) - layout.dims; // for tiles
    const int tile_size = tile_rows * layout.row_size();
    const int least = single_tiles(layout.has_trellis());
    for (int warps = single_warps; warps > 0; warps /= 2) {
        const int tiles = room / (warps * tile_size);
        if (tiles >= least) {
            return {warps, std::min(tiles, max_stream_tiles)};
        }
    }
    return {};
}

/// bytes of shared memory of a block
inline size_t single_shared(
        const DeviceLayout& layout,
        const StreamPlan& streams) {
    return layout.dims +
            size_t(streams.warps) * streams.tiles * tile_rows *
            layout.row_size();
}

#ifdef __CUDACC__

/// what a lane has of a bit plane of a query in a step
template <int units>
struct alignas(4 * units) PlaneWords {
    uint32_t words[units];
};

/** How a warp goes through the rows of its block.
 * @tparam trellis  see RowDecoder */
template <int nbits, int trellis, int units>
class SingleScan {
    using Decoder = RowDecoder<nbits, trellis, units>;
    static constexpr int planes = Decoder::bit_planes;
    static constexpr int at_once = single_tiles(Decoder::has_trellis);

    const DeviceCodes& codes_;
    const uint32_t lane_ = threadIdx.x % 32;
    const uint32_t t_ = lane_ % 4, g_ = lane_ / 4;
    const uint32_t warp_ = threadIdx.x / 32;
    const uint32_t round_rows_ = blockDim.x;
    const PlaneWords<units>* const image_; ///< of the lane
    const int n_tiles_;                    ///< of the stream
    TileStream stream_;
    uint32_t begin_ = 0, end_ = 0;
    bool from_list_ = false; ///< then rows are places in the list
    uint32_t n_copied_ = 0;  ///< tiles of the warp, two a round
    uint32_t next_rows_[2];  ///< those of a list to be copied next, by lane

   public:
    /// as DeviceLayout::slope, of the dot products here
    static __device__ uint32_t slope(const DeviceLayout& layout) {
        return Decoder::has_trellis ? layout.slope : 127 * layout.slope;
    }

    /** By all threads of a block.
     * @param image     of the query, and behind it the tiles of all warps, in
     *                  shared memory
     * @param n_tiles   of a warp, at least single_tiles
     * @param arrivals  in shared memory */
    __device__ SingleScan(
            const DeviceCodes& codes,
            const uint4* image,
            int n_tiles,
            const uint64_t (&arrivals)[single_warps][max_stream_tiles])
            : codes_(codes),
              image_(reinterpret_cast<const PlaneWords<units>*>(image) + lane_),
              n_tiles_(n_tiles),
              stream_(reinterpret_cast<const uint8_t*>(image) +
                              codes.layout.dims +
                              size_t(warp_) * n_tiles * tile_rows *
                                      codes.layout.row_size(),
                      arrivals[warp_],
                      n_tiles,
                      tile_rows * codes.layout.row_size(),
                      codes.list.rows != nullptr) {}

    /// Begins to copy rows, or those of a list
    __device__ void begin(uint32_t begin, uint32_t end, bool from_list) {
        begin_ = begin;
        end_ = end;
        from_list_ = from_list;
        if (from_list) {
            next_rows_[0] = row_to_copy(0);
            next_rows_[1] = row_to_copy(1);
        }
        while (n_copied_ < n_tiles_) {
            copy_next(n_copied_);
        }
    }

    /// Rows behind these begin to come nearer; not of a list
    __device__ void prefetch() const {
        for (int i = 0; i < n_tiles_; i++) {
            const uint32_t first = first_of_tile(n_copied_ + i);
            if (first < end_) {
                stream_.prefetch(row_of_codes(first), size_of_tile(first));
            }
        }
    }

    /** By all threads of a block, once the image is there.
     * @param load         (row) -> factors, of this lane's row in a round; a
     *                     round ahead
     * @param begin_round  (), by all threads
     * @param take         (row, first, is_valid, dot, factors): the row,
     *                     where the warp's rows begin, whether this one is
     *                     before the end, and the dot product of its grid
     *                     positions, or bits, with the query
     * @param end_round    (), by all threads */
    template <class Load, class BeginRound, class Take, class EndRound>
    __device__ void run(
            const Load& load,
            const BeginRound& begin_round,
            const Take& take,
            const EndRound& end_round) {
        // place of the lane
        uint32_t place = begin_ + warp_ * single_rows + 8 * t_ + g_;
        uint32_t row = row_at(place);
        auto factors = load(row, is_valid(place, row));
        uint32_t next_row = row_at(place + round_rows_);
        for (uint32_t round = begin_; round < end_; round += round_rows_) {
            begin_round();
            const uint32_t first = round + warp_ * single_rows;
            if (first < end_) {
                const uint32_t this_row = row;
                const auto of_row = factors;
                row = next_row;
                factors = load(row, is_valid(place + round_rows_, row));
                next_row = row_at(place + 2 * round_rows_);
                const int dot = next_dot(first + tile_rows < end_);
                take(this_row, first, place < end_, dot, of_row);
                place += round_rows_;
            }
            end_round();
        }
    }

   private:
    __device__ uint32_t row_at(uint32_t place) const {
        return !from_list_     ? place
                : place < end_ ? codes_.list.rows[place]
                               : no_row_of_list;
    }

    /// row: that of the place
    __device__ bool is_valid(uint32_t place, uint32_t row) const {
        return place < end_ && (!from_list_ || row < codes_.n);
    }

    __device__ uint32_t first_of_tile(uint32_t i) const {
        return begin_ + warp_ * single_rows + i / 2 * round_rows_ +
                i % 2 * tile_rows;
    }

    __device__ const uint8_t* row_of_codes(uint32_t row) const {
        return codes_.planes + size_t(row) * codes_.layout.row_size();
    }

    /// first: its row, before the end
    __device__ uint32_t size_of_tile(uint32_t first) const {
        return min(uint32_t(tile_rows), end_ - first) *
                codes_.layout.row_size();
    }

    __device__ uint32_t row_to_copy(uint32_t tile) const {
        const uint32_t row = row_at(first_of_tile(tile) + lane_ % tile_rows);
        return min(row, codes_.n - 1);
    }

    __device__ void copy_next(int slot) {
        const uint32_t first = first_of_tile(n_copied_++);
        if (!from_list_) {
            if (first < end_) {
                stream_.copy(slot, row_of_codes(first), size_of_tile(first));
            }
            return;
        }
        if (first < end_) {
            const uint32_t n = min(uint32_t(tile_rows), end_ - first);
            const uint32_t row_size = codes_.layout.row_size();
            stream_.copy_rows(slot, n, codes_.planes, row_size, next_rows_[0]);
        }
        next_rows_[0] = next_rows_[1];
        next_rows_[1] = row_to_copy(n_copied_ + 1);
    }

    /** What the lane's bits of the query, 2 t and 2 t + 1, give for rows of
     * tiles: [tile][half] for row g of a half. */
    __device__ void parts_of_tiles(
            const uint8_t* const (&tiles)[at_once],
            int (&parts)[at_once][2]) const {
        const DeviceLayout& layout = codes_.layout;
        const int row_size = layout.row_size();
        const int steps = layout.dims / (dims_unit * units);
        const uint8_t* rows[at_once][2];
        Decoder decoders[at_once][2];
        int sums[at_once][planes][4] = {};
#pragma unroll
        for (int m = 0; m < at_once; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                rows[m][i] = tiles[m] + g_ * row_size + i * (8 * row_size);
                if constexpr (Decoder::has_trellis) {
                    decoders[m][i].start(Decoder::template load<true>(
                            layout, rows[m][i], steps - 1, t_));
                }
            }
        }
        constexpr int step_size = 16 * Decoder::plane_words; // of a plane
        const PlaneWords<units>* image = image_;
#pragma unroll 1
        for (int step = 0; step < steps; step++, image += 32) {
            const auto& query = image->words;
#pragma unroll
            for (int m = 0; m < at_once; m++) {
                uint32_t bits[2][units][planes];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const auto raw = Decoder::template load<true>(
                            layout, rows[m][i], 0, t_);
                    rows[m][i] += step_size;
                    decoders[m][i].begin_step(raw, t_);
#pragma unroll
                    for (int unit = 0; unit < units; unit++) {
                        decoders[m][i].decode_bits(
                                layout, raw, unit, bits[i][unit]);
                    }
                }
                const auto& x = bits[0];
                const auto& y = bits[1];
#pragma unroll
                for (int u = 0; u < units; u += 2) {
#pragma unroll
                    for (int p = 0; p < planes; p++) {
                        int* c = sums[m][p];
                        if constexpr (units == 1) {
                            count_tile(c, x[0][p], y[0][p], query[0]);
                        } else {
                            count_tile(
                                    c,
                                    x[u][p],
                                    y[u][p],
                                    x[u + 1][p],
                                    y[u + 1][p],
                                    query[u],
                                    query[u + 1]);
                        }
                    }
                }
            }
        }
        // two's complement: the highest bit is worth -128
        const int low = 1 << 2 * t_, high = t_ == 3 ? -128 : 2 << 2 * t_;
#pragma unroll
        for (int m = 0; m < at_once; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                parts[m][i] = 0;
#pragma unroll
                for (int p = 0; p < planes; p++) {
                    const int* c = sums[m][p] + 2 * i;
                    parts[m][i] += (c[0] * low + c[1] * high) << p;
                }
            }
        }
    }

    /// the dot product of row 8 t + g of the next two tiles, or of one
    __device__ int next_dot(bool has_second) {
        int parts[2][2];
        if constexpr (at_once == 2) {
            const int slot = stream_.slot();
            const uint8_t* tiles[2];
            stream_.wait();
            tiles[0] = stream_.tile();
            stream_.advance();
            if (has_second) {
                stream_.wait();
            }
            tiles[1] = stream_.tile();
            const int second_slot = stream_.slot();
            stream_.advance();
            parts_of_tiles(tiles, parts);
            copy_next(slot);
            copy_next(second_slot);
        } else {
            int of_tile[1][2] = {};
#pragma unroll 1
            for (int m = 0; m < 2; m++) {
                parts[0][0] = of_tile[0][0];
                parts[0][1] = of_tile[0][1];
                if (m == 0 || has_second) {
                    stream_.wait();
                    parts_of_tiles({stream_.tile()}, of_tile);
                    copy_next(stream_.slot());
                    stream_.advance();
                }
            }
            parts[1][0] = of_tile[0][0];
            parts[1][1] = of_tile[0][1];
        }
        // the four lanes of a row each sum up one of their four
        const bool upper = t_ & 2, odd = t_ & 1;
        int halves[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            halves[i] =
                    (upper ? parts[1][i] : parts[0][i]) +
                    __shfl_xor_sync(
                            0xffffffff, upper ? parts[0][i] : parts[1][i], 2);
        }
        const int dot = (odd ? halves[1] : halves[0]) +
                __shfl_xor_sync(0xffffffff, odd ? halves[0] : halves[1], 1);
        return dot;
    }
};

/** Writes products of one query with two tiles of rows to a ProductSink, by a
 * warp.
 * @param first  row of the first tile
 * @param dot    of row first + 8 t + g
 * @return  the largest byte of this row's tile */
__device__ inline uint32_t write_products_of_one(
        const ProductSink& sink,
        uint32_t first,
        bool is_valid,
        int dot,
        const ProductFactors& factors) {
    static_assert(product_rows == tile_rows);
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, g = lane / 4;
    const uint32_t byte = factors.byte(dot) & 0xff;
    uint32_t largest[2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        largest[m] = __reduce_max_sync(0xffffffff, t / 2 == m ? byte : 0);
    }
    if (lane == 0) {
        const uint32_t both = largest[0] | largest[1] << 8;
        reinterpret_cast<uint16_t*>(sink.largest)[first / single_rows] = both;
    }
    if (is_valid) {
        sink.bytes[ProductSink::place_of_one(first + 8 * t + g)] = byte;
    }
    return t < 2 ? largest[0] : largest[1];
}

/// @tparam keeps_products  see scan_products
template <int nbits, int trellis, int units, bool keeps_products>
__global__ void __launch_bounds__(32 * single_warps, 1)
        single_kernel(const __grid_constant__ ScanArgs args) {
    extern __shared__ uint4 image[];
    __shared__ GroupState<1> state;
    __shared__ uint64_t arrivals[single_warps][max_stream_tiles];
    constexpr int group_size = 8; // of the plan
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    SingleScan<nbits, trellis, units> scan(
            codes, image, args.stream_tiles, arrivals);
    ScanTask task;
    const auto begin_task = [&](bool from_list) {
        task = task_at(args, group_size, 1, blockIdx.x);
        scan.begin(task.begin, task.end, from_list);
    };
    // codes are there, unlike lists
    const bool begins_early =
            keeps_products || (!codes.list.rows && !args.tasks.tasks);
    if (begins_early) {
        begin_task(false);
        scan.prefetch(); // while queries are prepared
    }
    wait_for_kernel_before();
    if (!begins_early) {
        begin_task(codes.list.is_complete());
    }
    report_rows_left(codes.list);
    load_images(args, task, layout.dims, image);
    begin_group(args, task, state);
    __syncthreads();

    const DeviceQueryFactors factors = state.factors[0];
    const uint32_t slope = scan.slope(layout);
    const float sign = layout.is_l2 ? 1 : -1;
    Entry* reservoir = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    ReservoirChecks<1, single_warps> checks(
            args.reservoirs, state, reservoir, blockDim.x);
    const auto begin_round = [&] { checks.begin_round(); };
    const auto end_round = [&] { checks.end_round(); };
    struct RowFactors {
        float scale, offset;
    };
    const auto load = [&](uint32_t row, bool is_valid) -> RowFactors {
        is_valid = is_valid && codes.selects(row);
        // no comparison with NaN holds
        return {load_if(is_valid, codes.scales + row, nanf("")),
                sign *
                        load_if(is_valid && codes.offsets,
                                codes.offsets + row,
                                0)};
    };
    const auto key = [&](int dot, const RowFactors& of_row) {
        const int product = int(slope * uint32_t(dot) - factors.base);
        return key_of(product, of_row.scale, of_row.offset, factors);
    };
    const auto take = [&](uint32_t row, int dot, const RowFactors& of_row) {
        const float of_this = key(dot, of_row);
        if (of_this <= state.last_key[0]) {
            take_key(args, state, reservoir, 0, row, of_this);
        }
    };
    if constexpr (keeps_products) {
        const ProductFactors of_products(
                args.products, 0, factors, int(slope), int(factors.base));
        scan.run(
                [&](uint32_t row, bool is_valid) {
                    return TileFactors(
                            args.products, row / tile_rows, is_valid);
                },
                begin_round,
                [&](uint32_t row,
                    uint32_t first,
                    bool is_valid,
                    int dot,
                    const TileFactors& of_tile) {
                    const uint32_t largest = write_products_of_one(
                            args.products, first, is_valid, dot, of_products);
                    const float least = of_products.least_key(
                            largest, of_tile.scale, of_tile.offset);
                    if (least <= state.last_key[0]) {
                        take(row, dot, load(row, is_valid));
                    }
                },
                end_round);
    } else {
        const uint32_t offset = sink_offset(args, task, blockIdx.x);
        const uint32_t distances = query_of_sink(args, task.first_slot);
        scan.run(
                load,
                begin_round,
                [&](uint32_t row,
                    uint32_t first,
                    bool,
                    int dot,
                    const RowFactors& of_row) {
                    if (!args.all.distances) {
                        take(row, dot, of_row);
                        return;
                    }
                    const uint32_t lane = threadIdx.x % 32;
                    const uint32_t place = first + lane % 4 * 8 + lane / 4;
                    write_distances<1>(
                            args,
                            task,
                            offset,
                            distances,
                            place,
                            {key(dot, of_row)});
                },
                end_round);
    }
    checks.finish(args, task);
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
