#pragma once

/** Codes on their way to a warp: a ring of tiles in shared memory that copies
 * fill while the warp works. Rows follow each other in memory, so a tile is one
 * stretch of it, which is what makes it fast: measured on an H200, 4.5 TB/s,
 * against 3.7 TB/s where lanes load pieces of rows into registers. */

#include <cstdint>

#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/barrier.cuh>
#include <gpu/kernels/mma.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr int max_stream_tiles = 8; ///< of a ring

#ifdef __CUDACC__

/** @tparam copies_whole_rows  how rows of lists are copied, on compute
 *                             capability 9.0: a copy of a row takes twenty
 *                             instructions, because lanes issue those one after
 *                             another; in pieces of 16 bytes, long rows take
 *                             more time */
template <bool copies_whole_rows>
class TileStream {
    uint32_t ring_, arrivals_; // addresses in shared memory
    const uint8_t* tiles_;
    int n_tiles_;
    uint32_t row_size_;
    int copying_lanes_;
    int slot_ = 0;
    uint32_t parity_ = 0;

#if __CUDA_ARCH__ >= 900
    static constexpr bool copies_in_bulk = true;
#else
    static constexpr bool copies_in_bulk = false;
#endif

    __device__ uint32_t tile_size() const {
        return tile_rows * row_size_;
    }

#if __CUDA_ARCH__ >= 900
    /// row: of the lane
    __device__ void copy_each(int slot, uint32_t n, const uint8_t* row) const {
        const uint32_t arrival = arrivals_ + 8 * slot;
        const uint32_t lane = threadIdx.x % 32;
        if (lane == 0) {
            arrive_and_expect(arrival, n * row_size_);
        }
        __syncwarp();
        if (lane < n) {
            const uint32_t to = ring_ + slot * tile_size() + lane * row_size_;
            copy_to_shared(to, row, row_size_, arrival);
        }
    }
#endif

    /// a row by four lanes
    __device__ void copy_in_pieces(
            int slot,
            uint32_t n,
            const uint8_t* rows,
            uint32_t row) const {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t i = lane / 4 + half * 8;
            const uint8_t* from =
                    rows + size_t(__shfl_sync(0xffffffff, row, i)) * row_size_;
            const uint32_t to = ring_ + slot * tile_size() + i * row_size_;
            if (i < n) {
#pragma unroll 4
                for (uint32_t at = lane % 4 * 16; at < row_size_;
                     at += 4 * 16) {
                    copy_16(to + at, from + at);
                }
            }
        }
        arrive_after_copies(arrivals_ + 8 * slot);
    }

   public:
    /** By all lanes of a warp.
     * @param tiles      (n_tiles, 16, row_size), the warp's own
     * @param arrivals   (n_tiles,) likewise
     * @param from_list  whether copy_rows is called */
    __device__ TileStream(
            const uint8_t* tiles,
            const uint64_t* arrivals,
            int n_tiles,
            uint32_t row_size,
            bool from_list)
            : ring_(shared_address(tiles)),
              arrivals_(shared_address(arrivals)),
              tiles_(tiles),
              n_tiles_(n_tiles),
              row_size_(row_size),
              copying_lanes_(
                      copies_in_bulk && (copies_whole_rows || !from_list)
                              ? 1
                              : 32) {
        if (threadIdx.x % 32 == 0) {
#pragma unroll 1
            for (int i = 0; i < n_tiles; i++) {
                init_barrier(arrivals_ + 8 * i, copying_lanes_);
            }
        }
        fence_shared();
    }

    /** Begins to copy into a slot that the warp has read, or not used yet.
     * @param size  a multiple of 16, as is the address */
    __device__ void copy(int slot, const uint8_t* from, uint32_t size) const {
        const uint32_t to = ring_ + slot * tile_size();
        const uint32_t arrival = arrivals_ + 8 * slot;
        const int lane = threadIdx.x % 32;
        __syncwarp();
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            arrive_and_expect(arrival, size);
            stream_to_shared(to, from, size, arrival);
        } else if (!copies_whole_rows && copying_lanes_ > 1) {
            arrive(arrival);
        }
#else
        for (uint32_t i = lane * 16; i < size; i += 32 * 16) {
            copy_16(to + i, from + i);
        }
        arrive_after_copies(arrival);
#endif
    }

    /// what will be copied begins to come nearer
    __device__ void prefetch(const uint8_t* from, uint32_t size) const {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32 == 0) {
            prefetch_to_l2(from, size);
        }
#endif
    }

    /** As copy, for n rows, up to 16, from wherever they are.
     * @param row  of lane i, and i + 16: the i-th row */
    __device__ void copy_rows(
            int slot,
            uint32_t n,
            const uint8_t* rows,
            uint32_t row) const {
        __syncwarp();
#if __CUDA_ARCH__ >= 900
        if constexpr (copies_whole_rows) {
            copy_each(slot, n, rows + size_t(row) * row_size_);
        } else {
            copy_in_pieces(slot, n, rows, row);
        }
#else
        copy_in_pieces(slot, n, rows, row);
#endif
    }

    /// until the tile that is next is there
    __device__ void wait() const {
        wait_for(arrivals_ + 8 * slot_, parity_);
    }

    __device__ const uint8_t* tile() const {
        return tiles_ + slot_ * tile_size();
    }

    __device__ int slot() const {
        return slot_;
    }

    __device__ void advance() {
        if (++slot_ == n_tiles_) {
            slot_ = 0;
            parity_ ^= 1;
        }
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
