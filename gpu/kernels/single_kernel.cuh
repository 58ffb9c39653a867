#pragma once

/** The scan for one query, by bits: the product with an integer is a sum over
 * its bits, each of which counts set bits of the code, or, times a power of
 * two, of a plane of its grid positions. A matrix instruction does so for 16
 * codes and the eight bits. At one bit nothing is decoded then; of a known
 * trellis, planes take half the instructions that bytes do. */

#include <cstdint>

#include <gpu/kernels/row_stream.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/single_dots.cuh>

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

/// available: bytes of shared memory of a block
inline StreamPlan plan_single(const DeviceLayout& layout, size_t available) {
    const size_t image = layout.dims;
    const int least = single_tiles(layout.has_trellis());
    return image < available ? plan_streams(layout, available - image, least, 1)
                             : StreamPlan();
}

/// bytes of shared memory of a block
inline size_t single_shared(
        const DeviceLayout& layout,
        const StreamPlan& streams) {
    return layout.dims + streams_size(layout, streams);
}

#ifdef __CUDACC__

/** How a warp compares the rows of its block with a query.
 * @tparam trellis  see RowDecoder */
template <int nbits, int trellis, int units>
class SingleScan {
    using Dots = SingleDots<nbits, trellis, units>;
    static constexpr int at_once = Dots::at_once;

    using Stream = RowStream<2, has_long_rows(nbits)>;

    const DeviceLayout& layout_;
    const uint32_t lane_ = threadIdx.x % 32;
    const uint32_t t_ = lane_ % 4, g_ = lane_ / 4;
    const PlaneWords<units>* const image_; ///< of the lane
    Stream stream_;

   public:
    /** By all threads of a block.
     * @param image  of the query, and behind it room for tiles, in shared
     *               memory */
    __device__ SingleScan(
            const DeviceCodes& codes,
            const uint4* image,
            int n_slots,
            const StreamArrivals& arrivals)
            : layout_(codes.layout),
              image_(reinterpret_cast<const PlaneWords<units>*>(image) + lane_),
              stream_(codes,
                      image + codes.layout.dims / 16,
                      n_slots,
                      arrivals) {}

    __device__ Stream& stream() {
        return stream_;
    }

    /** From `begin` on, by all threads of a block, when its stream has begun
     * and the image is there.
     * @param load         (row, is_valid) -> factors, of this lane's row in a
     *                     round; a round ahead
     * @param begin_round  (), by all threads
     * @param take         (row, first, dot, factors): the row, where the
     *                     warp's rows begin, and the dot product of its grid
     *                     positions, or bits, with the query
     * @param end_round    (), by all threads */
    template <class Load, class BeginRound, class Take, class EndRound>
    __device__ void run(
            uint32_t begin,
            const Load& load,
            const BeginRound& begin_round,
            const Take& take,
            const EndRound& end_round) {
        const uint32_t end = stream_.end(), round_rows = stream_.round_rows();
        // place of the lane
        uint32_t place = stream_.first_row(begin) + 8 * t_ + g_;
        uint32_t row = stream_.row_at(place);
        auto factors = load(row, stream_.is_valid(place, row));
        uint32_t next_row = stream_.row_at(place + round_rows);
        for (uint32_t round = begin; round < end; round += round_rows) {
            begin_round();
            const uint32_t first = stream_.first_row(round);
            if (first < end) {
                const uint32_t this_row = row;
                const auto of_row = factors;
                place += round_rows;
                row = next_row;
                factors = load(row, stream_.is_valid(place, row));
                next_row = stream_.row_at(place + round_rows);
                const int dot = next_dot(first + tile_rows < end);
                take(this_row, first, dot, of_row);
            }
            end_round();
        }
    }

   private:
    /// the dot product of row 8 t + g of the next two tiles, or of one
    __device__ int next_dot(bool has_second) {
        int parts[2][2];
        if constexpr (at_once == 2) {
            int slots[2];
            const uint8_t* tiles[2];
            tiles[0] = stream_.next(true, slots[0]);
            tiles[1] = stream_.next(has_second, slots[1]);
            Dots::compute_parts(layout_, image_, tiles, parts);
            stream_.copy_next(slots[0]);
            stream_.copy_next(slots[1]);
        } else {
            int of_tile[1][2] = {};
#pragma unroll 1
            for (int m = 0; m < 2; m++) {
                parts[0][0] = of_tile[0][0];
                parts[0][1] = of_tile[0][1];
                if (m == 0 || has_second) {
                    int slot;
                    Dots::compute_parts(
                            layout_,
                            image_,
                            {stream_.next(true, slot)},
                            of_tile);
                    stream_.copy_next(slot);
                }
            }
            parts[1][0] = of_tile[0][0];
            parts[1][1] = of_tile[0][1];
        }
        return Dots::dot_of_row(parts);
    }
};

template <int nbits, int trellis, int units>
__global__ void __launch_bounds__(32 * stream_warps, 1)
        single_kernel(const __grid_constant__ ScanArgs args) {
    extern __shared__ uint4 image[];
    __shared__ GroupState<1> state;
    __shared__ StreamArrivals arrivals;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    SingleScan<nbits, trellis, units> scan(
            codes, image, args.stream_tiles, arrivals);
    const ScanTask task = begin_task(args, scan.stream());
    load_images(args, task, layout.dims, image);
    begin_group(args, task, state);
    __syncthreads();

    const DeviceQueryFactors factors = state.factors[0];
    const uint32_t slope = layout.slope_of(true);
    const float sign = layout.is_l2 ? 1 : -1;
    Entry* reservoir = args.reservoirs.entries +
            size_t(task.first_reservoir) * args.reservoirs.capacity;
    ReservoirChecks<1, stream_warps> checks(
            args.reservoirs, state, reservoir, blockDim.x);
    struct RowFactors {
        float scale, offset;
    };
    const auto load = [&](uint32_t row, bool is_valid) -> RowFactors {
        is_valid = is_selected(codes, row, is_valid);
        // no comparison with NaN holds
        return {load_if(is_valid, codes.scales + row, nanf("")),
                load_if(is_valid && codes.offsets, codes.offsets + row, 0.0f)};
    };
    const auto key = [&](int dot, const RowFactors& of_row) {
        const int product = int(slope * uint32_t(dot) - factors.base);
        return key_of(product, of_row.scale, sign * of_row.offset, factors);
    };
    const auto take = [&](uint32_t row, int dot, const RowFactors& of_row) {
        const float of_this = key(dot, of_row);
        if (of_this <= state.last_key[0]) {
            take_key(args, state, reservoir, 0, row, of_this);
        }
    };
    const uint32_t offset = sink_offset(args, task, blockIdx.x);
    const uint32_t distances = query_of_sink(args, task.first_slot);
    scan.run(
            task.begin,
            load,
            [&] { checks.begin_round(); },
            [&](uint32_t row,
                uint32_t first,
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
            [&] { checks.end_round(); });
    checks.finish(args, task);
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
