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
    int slot_ = 0;
    uint32_t parity_ = 0;

#if __CUDA_ARCH__ >= 900
    static constexpr int copying_lanes = 1;
#else
    static constexpr int copying_lanes = 32;
#endif

   public:
    /** By all lanes of a warp.
     * @param tiles     (n_tiles, tile_size) of the warp's own
     * @param arrivals  (n_tiles,) likewise */
    __device__ TileStream(
            const uint8_t* tiles,
            const uint64_t* arrivals,
            int n_tiles,
            int tile_size)
            : ring_(shared_address(tiles)),
              arrivals_(shared_address(arrivals)),
              tiles_(tiles),
              n_tiles_(n_tiles),
              tile_size_(tile_size) {
        if (threadIdx.x % 32 == 0) {
#pragma unroll 1
            for (int i = 0; i < n_tiles; i++) {
                init_barrier(arrivals_ + 8 * i, copying_lanes);
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
            copy_to_shared(to, from, size, arrival);
        }
#else
        for (uint32_t i = lane * 16; i < size; i += 32 * 16) {
            asm volatile(
                    "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i),
                    "l"(from + i)
                    : "memory");
        }
        asm volatile(
                "cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(arrival)
                : "memory");
#endif
    }

    /// The same for n rows, up to 16, from wherever they are.
    /// row_at: (i) -> the row's address
    template <class RowAt>
    __device__ void copy_rows(
            int slot,
            uint32_t n,
            uint32_t row_size,
            const RowAt& row_at) const {
        const uint32_t to = ring_ + slot * tile_size_;
        const uint32_t arrival = arrivals_ + 8 * slot;
        const uint32_t lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
        const uint8_t* row = lane < n ? row_at(lane) : nullptr;
        __syncwarp();
        if (lane == 0) {
            arrive_and_expect(arrival, n * row_size);
        }
        __syncwarp();
        if (lane < n) {
            copy_to_shared(to + lane * row_size, row, row_size, arrival);
        }
#else
        __syncwarp();
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t* row = row_at(r);
            for (uint32_t i = lane * 16; i < row_size; i += 32 * 16) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                                     to + r * row_size + i),
                             "l"(row + i)
                             : "memory");
            }
        }
        asm volatile(
                "cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(arrival)
                : "memory");
#endif
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
