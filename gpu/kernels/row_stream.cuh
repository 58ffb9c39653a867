#pragma once

/** The way of a warp through the rows of its block, of which there is a
 * TileStream. */

#include <algorithm>
#include <cstdint>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/scan.h>
#include <gpu/kernels/mma.cuh>
#include <gpu/kernels/tile_stream.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr int stream_warps = 16; ///< of a block, at most

/// TileStream::copies_whole_rows, of codes
constexpr bool has_long_rows(int nbits) {
    return nbits > 2;
}

/** TileStreams of a block for which there is room: of many warps, which hide
 * latencies better than many tiles of each.
 * @param available  bytes of shared memory, without images of queries
 * @param least      tiles of each
 * @param fewest     warps */
inline StreamPlan plan_streams(
        const DeviceLayout& layout,
        size_t available,
        int least,
        int fewest) {
    const int tile_size = tile_rows * layout.row_size();
    for (int warps = stream_warps; warps >= fewest; warps /= 2) {
        const int tiles = int(available) / (warps * tile_size);
        if (tiles >= least) {
            return {warps, std::min(tiles, max_stream_tiles)};
        }
    }
    return {};
}

/// bytes of shared memory of a block's TileStreams
inline size_t streams_size(
        const DeviceLayout& layout,
        const StreamPlan& streams) {
    return size_t(streams.warps) * streams.tiles * tile_rows *
            layout.row_size();
}

#ifdef __CUDACC__

/// barriers of a block's TileStreams, in shared memory
using StreamArrivals = uint64_t[stream_warps][max_stream_tiles];

/** Of a round of the block, each warp has some tiles of rows that follow each
 * other.
 * @tparam tiles              of a warp in a round
 * @tparam copies_whole_rows  see TileStream */
template <int tiles, bool copies_whole_rows>
class RowStream {
    const DeviceCodes& codes_;
    const uint32_t lane_ = threadIdx.x % 32;
    const uint32_t first_of_warp_ = threadIdx.x / 32 * (tiles * tile_rows);
    const uint32_t round_rows_ = blockDim.x / 32 * (tiles * tile_rows);
    const int n_slots_;
    TileStream<copies_whole_rows> stream_;
    uint32_t begin_ = 0, end_ = 0;
    bool from_list_ = false; ///< then rows are places in the list
    uint32_t n_copied_ = 0;  ///< tiles
    /// those of a list to be copied next, by lane
    uint32_t next_rows_[tiles] = {};

   public:
    /** By all threads of a block.
     * @param shared   room for the tiles of all warps
     * @param n_slots  of a warp */
    __device__ RowStream(
            const DeviceCodes& codes,
            const uint4* shared,
            int n_slots,
            const StreamArrivals& arrivals)
            : codes_(codes),
              n_slots_(n_slots),
              stream_(reinterpret_cast<const uint8_t*>(shared) +
                              size_t(threadIdx.x / 32) * n_slots * tile_rows *
                                      codes.layout.row_size(),
                      arrivals[threadIdx.x / 32],
                      n_slots,
                      codes.layout.row_size(),
                      codes.list.rows != nullptr) {}

    /// Begins to copy rows, or those of a list.
    __device__ void begin(uint32_t begin, uint32_t end, bool from_list) {
        begin_ = begin;
        end_ = end;
        from_list_ = from_list;
        if (from_list) {
#pragma unroll
            for (int m = 0; m < tiles; m++) {
                next_rows_[m] = row_to_copy(m);
            }
        }
        while (n_copied_ < n_slots_) {
            copy_next(n_copied_);
        }
    }

    /// Rows behind these begin to come nearer; not of a list
    __device__ void prefetch() const {
        for (int i = 0; i < n_slots_; i++) {
            const uint32_t first = first_of_tile(n_copied_ + i);
            if (first < end_) {
                stream_.prefetch(tile_of_codes(first), size_of_tile(first));
            }
        }
    }

    __device__ uint32_t end() const {
        return end_;
    }
    __device__ uint32_t round_rows() const {
        return round_rows_;
    }
    /// of the warp. round: the first row of the block's
    __device__ uint32_t first_row(uint32_t round) const {
        return round + first_of_warp_;
    }

    /// of a place, which may be past the end
    __device__ uint32_t row_at(uint32_t place) const {
        return load_if(
                from_list_ && place < end_,
                codes_.list.rows + place,
                from_list_ ? no_row_of_list : place);
    }

    /// row: that of the place
    __device__ bool is_valid(uint32_t place, uint32_t row) const {
        return place < end_ & (!from_list_ | row < codes_.n);
    }

    /// Until the warp's next tile is there, if it has any rows, and on to the
    /// one behind. slot: written, where the tile is
    __device__ const uint8_t* next(bool has_rows, int& slot) {
        if (has_rows) {
            stream_.wait();
        }
        const uint8_t* tile = stream_.tile();
        slot = stream_.slot();
        stream_.advance();
        return tile;
    }

    /// in place of a tile that has been read
    __device__ void copy_next(int slot) {
        const uint32_t i = n_copied_++;
        const uint32_t first = first_of_tile(i);
        if (!from_list_) {
            if (first < end_) {
                stream_.copy(slot, tile_of_codes(first), size_of_tile(first));
            }
            return;
        }
        if (first < end_) {
            stream_.copy_rows(
                    slot,
                    min(uint32_t(tile_rows), end_ - first),
                    codes_.planes,
                    next_rows_[0]);
        }
#pragma unroll
        for (int m = 1; m < tiles; m++) {
            next_rows_[m - 1] = next_rows_[m];
        }
        next_rows_[tiles - 1] = row_to_copy(i + tiles);
    }

   private:
    /// i: of the warp's tiles
    __device__ uint32_t first_of_tile(uint32_t i) const {
        return begin_ + first_of_warp_ + i / tiles * round_rows_ +
                i % tiles * tile_rows;
    }

    /// first: its row
    __device__ const uint8_t* tile_of_codes(uint32_t first) const {
        return codes_.planes + size_t(first) * codes_.layout.row_size();
    }

    /// likewise, before the end
    __device__ uint32_t size_of_tile(uint32_t first) const {
        return min(uint32_t(tile_rows), end_ - first) *
                codes_.layout.row_size();
    }

    __device__ uint32_t row_to_copy(uint32_t i) const {
        const uint32_t row = row_at(first_of_tile(i) + lane_ % tile_rows);
        return min(row, codes_.n - 1);
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
