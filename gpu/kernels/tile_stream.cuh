#pragma once

/** Codes on their way to a warp: a ring of tiles in shared memory that copies
 * fill while the warp works. Rows follow each other in memory, so a tile is one
 * stretch of it, which is what makes it fast: measured on an H200, 4.5 TB/s,
 * against 3.7 TB/s where lanes load pieces of rows into registers. */

#include <cstdint>

#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/barrier.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr int max_stream_tiles = 8; ///< of a ring

#ifdef __CUDACC__

class TileStream {
    uint32_t ring_, arrivals_; // addresses in shared memory
    const uint8_t* tiles_;
    int n_tiles_, tile_size_;
    int copying_lanes_;
    int slot_ = 0;
    uint32_t parity_ = 0;

#if __CUDA_ARCH__ >= 900
    static constexpr bool copies_in_bulk = true;
#else
    static constexpr bool copies_in_bulk = false;
#endif

   public:
    /** By all lanes of a warp.
     * @param tiles      (n_tiles, tile_size) of the warp's own
     * @param arrivals   (n_tiles,) likewise
     * @param from_list  whether copy_rows is called */
    __device__ TileStream(
            const uint8_t* tiles,
            const uint64_t* arrivals,
            int n_tiles,
            int tile_size,
            bool from_list)
            : ring_(shared_address(tiles)),
              arrivals_(shared_address(arrivals)),
              tiles_(tiles),
              n_tiles_(n_tiles),
              tile_size_(tile_size),
              copying_lanes_(copies_in_bulk && !from_list ? 1 : 32) {
        if (threadIdx.x % 32 == 0) {
#pragma unroll 1
            for (int i = 0; i < n_tiles; i++) {
                init_barrier(arrivals_ + 8 * i, copying_lanes_);
            }
        }
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }

    /// Begins to copy into a slot that the warp has read, or not used yet.
    /// size: a multiple of 16, as is the address
    __device__ void copy(int slot, const uint8_t* from, uint32_t size) const {
        const uint32_t to = ring_ + slot * tile_size_;
        const uint32_t arrival = arrivals_ + 8 * slot;
        const int lane = threadIdx.x % 32;
        __syncwarp();
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            arrive_and_expect(arrival, size);
            stream_to_shared(to, from, size, arrival);
        } else if (copying_lanes_ > 1) {
            arrive(arrival);
        }
#else
        for (uint32_t i = lane * 16; i < size; i += 32 * 16) {
            copy_16(to + i, from + i);
        }
        arrive_after_copies(arrival);
#endif
    }

    /// What will be copied begins to come nearer.
    __device__ void prefetch(const uint8_t* from, uint32_t size) const {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32 == 0) {
            prefetch_to_l2(from, size);
        }
#endif
    }

    /** The same for n rows, up to 16, from wherever they are. Four lanes copy a
     * row: as a copy in one piece each row would take twenty instructions,
     * because lanes issue those one after another.
     * @param row  of lane i, and i + 16: the i-th row */
    __device__ void copy_rows(
            int slot,
            uint32_t n,
            const uint8_t* rows,
            uint32_t row_size,
            uint32_t row) const {
        const uint32_t arrival = arrivals_ + 8 * slot;
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t in_row = lane % 4 * 16;
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t i = lane / 4 + half * 8;
            const uint8_t* from =
                    rows + size_t(__shfl_sync(0xffffffff, row, i)) * row_size;
            const uint32_t to = ring_ + slot * tile_size_ + i * row_size;
            if (i < n) {
#pragma unroll 4
                for (uint32_t at = in_row; at < row_size; at += 4 * 16) {
                    copy_16(to + at, from + at);
                }
            }
        }
        arrive_after_copies(arrival);
    }

    /// until the tile that is next is there
    __device__ void wait() const {
        wait_for(arrivals_ + 8 * slot_, parity_);
    }

    __device__ const uint8_t* tile() const {
        return tiles_ + slot_ * tile_size_;
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
