#pragma once

/** Rounds of rows on their way to a block: one of its warps copies what the
 * others, which have a tile each, read. Rows of a round follow each other in
 * memory. Blocks take rounds as they come to them, because multiprocessors are
 * not equally fast: where each had as many rows as any other, the slowest took
 * 7 % longer than all on average (H200, 8 queries). */

#include <algorithm>
#include <cstdint>

#include <gpu/kernels/scan.h>
#include <gpu/kernels/barrier.cuh>
#include <gpu/kernels/mma.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr int max_stages = 8; ///< of rounds that are on their way, of a plane

/// of a row in shared memory, with its scale and offset
TQ_HOST_DEVICE inline uint32_t staged_row_size(const DeviceLayout& layout) {
    return layout.row_size() + 2 * sizeof(float);
}

/// bytes of shared memory of a block
inline size_t stages_size(
        const DeviceLayout& layout,
        const StreamPlan& streams,
        int tiles) {
    return size_t(streams.warps) * streams.tiles * (tiles * tile_rows) *
            staged_row_size(layout);
}

/** Stages of a block for which there is room, `StreamPlan::tiles` of them.
 * @param available  bytes of shared memory, without images of queries
 * @param most       warps
 * @param tiles      of a warp in a round */
inline StreamPlan plan_stages(
        const DeviceLayout& layout,
        size_t available,
        int most,
        int tiles) {
    for (const int least : {3, 2}) {
        for (int warps = most; warps > 0; warps--) {
            const int stages =
                    int(available / stages_size(layout, {warps, 1}, tiles));
            if (stages >= least) {
                return {warps, std::min(stages, max_stages)};
            }
        }
    }
    return {};
}

#ifdef __CUDACC__

/// what the warps of a block tell each other about stages, in shared memory
struct StageState {
    uint64_t full[max_stages], empty[max_stages]; ///< barriers
    uint32_t first[max_stages]; ///< row, or one past the end of all
};

/** @tparam planes  of codes that a round has, one after the other, with the
 *                  last of which its factors come: DeviceCodes::planes, and
 *                  second_planes if it is 2
 *  @tparam tiles   of a warp in a round */
template <int planes, int tiles>
class RoundStream {
    static constexpr uint32_t rows_of_warp = tiles * tile_rows;

    const DeviceCodes& codes_;
    StageState& state_;
    const uint8_t* const ring_;
    const int n_stages_;
    const uint32_t row_size_, round_rows_;
    const uint32_t lane_ = threadIdx.x % 32, warp_ = threadIdx.x / 32;
    int stage_ = 0;
    uint32_t parity_ = 0;

   public:
    /** By all threads of a block, the last warp of which copies; they meet
     * before they go on.
     * @param ring  stages_size bytes of shared memory */
    __device__ RoundStream(
            const DeviceCodes& codes,
            StageState& state,
            const uint4* ring,
            int n_stages)
            : codes_(codes),
              state_(state),
              ring_(reinterpret_cast<const uint8_t*>(ring)),
              n_stages_(n_stages),
              row_size_(codes.layout.row_size()),
              round_rows_((blockDim.x / 32 - 1) * rows_of_warp) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < n_stages; i++) {
                init_barrier(shared_address(&state.full[i]), full_arrivals);
                init_barrier(
                        shared_address(&state.empty[i]), blockDim.x / 32 - 1);
            }
            fence_shared();
        }
        __syncthreads();
    }

    __device__ bool copies() const {
        return warp_ == blockDim.x / 32 - 1;
    }

    /** Copies all rounds that the block takes, by the last warp.
     * @param next_round  of those that are not the block's from the beginning;
     *                    may be read when kernels before have ended */
    __device__ void copy(uint32_t* next_round) {
#if __CUDA_ARCH__ >= 900
        if (lane_ > 0) { // copies of whole stages
            return;
        }
#endif
        const uint32_t n_own = n_stages_ / planes, blocks = gridDim.x;
        uint32_t next = 0; // taken ahead: it takes long until it is known
        for (uint32_t i = 0;; i++) {
            if (i == n_own) {
                prefetch((n_own * blocks + blockIdx.x) * round_rows_);
                wait_for_kernel_before();
                next = take_round(next_round);
            }
            uint32_t round = i * blocks + blockIdx.x;
            if (i >= n_own) {
                round = n_own * blocks + next;
                next = take_round(next_round);
            }
            const uint32_t first = min(round, n_rounds()) * round_rows_;
            if (first >= codes_.n) {
                copy_stage(i * planes, codes_.n, codes_.planes, false);
                return;
            }
            for (int plane = 0; plane < planes; plane++) {
                copy_stage(
                        i * planes + plane,
                        first,
                        plane == 0 ? codes_.planes : codes_.second_planes,
                        plane == planes - 1);
            }
        }
    }

    // by the other warps

    /// Until the next stage is there.
    /// @return  the first row of the warp; past the end where there is none
    __device__ uint32_t wait() const {
        wait_for(shared_address(&state_.full[stage_]), parity_);
        return state_.first[stage_] + warp_ * rows_of_warp;
    }
    /// whether the stage that is there is none
    __device__ bool is_end() const {
        return state_.first[stage_] >= codes_.n;
    }

    /// of the warp, the first
    __device__ const uint8_t* tile() const {
        return stage() + warp_ * rows_of_warp * row_size_;
    }
    /// of n rows, row being the first in the tile, or in two
    template <int n>
    __device__ void load_factors(
            uint32_t row,
            float (&scales)[n],
            float (&offsets)[n]) const {
        const float* factors = reinterpret_cast<const float*>(
                                       stage() + round_rows_ * row_size_) +
                warp_ * rows_of_warp + row;
        load(factors, scales);
        if (codes_.offsets) {
            load(factors + round_rows_, offsets);
        } else {
#pragma unroll
            for (float& offset : offsets) {
                offset = 0;
            }
        }
    }

    /// The warp has read its tile; on to the next stage.
    __device__ void release() {
        __syncwarp();
        if (lane_ == 0) {
            arrive(shared_address(&state_.empty[stage_]));
        }
        advance();
    }

   private:
#if __CUDA_ARCH__ >= 900
    static constexpr int full_arrivals = 1;
#else
    static constexpr int full_arrivals = 1 + 32;
#endif

    static __device__ void load(const float* from, float (&to)[4]) {
        load4(from, to);
    }
    static __device__ void load(const float* from, float (&to)[1]) {
        to[0] = *from;
    }

    __device__ const uint8_t* stage() const {
        return ring_ + stage_ * round_rows_ * staged_row_size(codes_.layout);
    }
    __device__ uint32_t n_rounds() const {
        return ceil_div(codes_.n, round_rows_);
    }
    __device__ void advance() {
        if (++stage_ == n_stages_) {
            stage_ = 0;
            parity_ ^= 1;
        }
    }

    static __device__ uint32_t take_round(uint32_t* next_round) {
#if __CUDA_ARCH__ >= 900
        return atomicAdd(next_round, 1);
#else
        uint32_t round = 0;
        if (threadIdx.x % 32 == 0) {
            round = atomicAdd(next_round, 1);
        }
        return __shfl_sync(0xffffffff, round, 0);
#endif
    }

    /// rows that will be copied, maybe by another block, begin to come nearer
    __device__ void prefetch(uint32_t first) const {
#if __CUDA_ARCH__ >= 900
        if (first < codes_.n) {
            const uint32_t n = min(round_rows_, codes_.n - first);
            prefetch_to_l2(
                    codes_.planes + size_t(first) * row_size_, n * row_size_);
        }
#endif
    }

    /** Copies the next stage, when all have read what it is in place of.
     * @param i      stages before
     * @param first  row; n: only that there are no more */
    __device__ void copy_stage(
            uint32_t i,
            uint32_t first,
            const uint8_t* rows,
            bool has_factors) {
        const uint32_t full = shared_address(&state_.full[stage_]);
        if (i >= n_stages_) {
            wait_for(shared_address(&state_.empty[stage_]), parity_ ^ 1);
        }
        const uint32_t n = min(round_rows_, codes_.n - first);
        const uint32_t size = n * row_size_;
        // those of whole tiles are there
        const uint32_t factors_size = has_factors
                ? round_up(n, uint32_t(tile_rows)) * uint32_t(sizeof(float))
                : 0;
        const bool has_offsets = has_factors && codes_.offsets;
        const uint32_t to = shared_address(stage());
        const uint32_t scales = to + round_rows_ * row_size_;
        const uint32_t offsets = scales + round_rows_ * sizeof(float);
        const uint8_t* from = rows + size_t(first) * row_size_;
        if (lane_ == 0) {
            state_.first[stage_] = first;
        }
#if __CUDA_ARCH__ >= 900
        arrive_and_expect(
                full, size + factors_size + (has_offsets ? factors_size : 0));
        if (size > 0) {
            copy_to_shared(to, from, size, full);
        }
        if (factors_size > 0) {
            copy_to_shared(scales, codes_.scales + first, factors_size, full);
        }
        if (has_offsets) {
            copy_to_shared(offsets, codes_.offsets + first, factors_size, full);
        }
#else
        if (lane_ == 0) {
            arrive(full);
        }
        copy_by_lanes(to, from, size);
        copy_by_lanes(scales, codes_.scales + first, factors_size);
        copy_by_lanes(
                offsets,
                codes_.offsets + first,
                has_offsets ? factors_size : 0);
        arrive_after_copies(full);
#endif
        advance();
    }

    __device__ void copy_by_lanes(uint32_t to, const void* from, uint32_t size)
            const {
        for (uint32_t at = lane_ * 16; at < size; at += 32 * 16) {
            copy_16(to + at, static_cast<const uint8_t*>(from) + at);
        }
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
