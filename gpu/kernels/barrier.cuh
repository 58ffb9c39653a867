#pragma once

/** Barriers in shared memory, on which threads and copies in the background
 * meet, of a block and of a pair of blocks (Hopper's clusters). A barrier goes
 * through phases, of parity 0, 1, 0, ..; a phase ends when all that is expected
 * of it has come. */

#include <cstdint>

namespace faiss_turboquant {
namespace gpu {

#ifdef __CUDACC__

__device__ inline uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

__device__ inline void store_shared(uint32_t to, uint4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(x.x),
                 "r"(x.y),
                 "r"(x.z),
                 "r"(x.w)
                 : "memory");
}

/// The thread's stores to shared memory, and barriers that it has made, become
/// visible to what works in the background there, copies and matrix
/// instructions of four warps.
__device__ inline void fence_shared() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// arrivals: of a phase
__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier),
                 "r"(arrivals)
                 : "memory");
}

/// whether the phase of that parity has ended
__device__ inline bool has_ended(uint32_t barrier, uint32_t parity) {
    uint32_t result;
    asm volatile(
            "{\n"
            ".reg .pred ended;\n"
#if __CUDA_ARCH__ >= 900
            "mbarrier.try_wait.parity.shared::cta.b64 "
#else
            "mbarrier.test_wait.parity.shared.b64 "
#endif
            "ended, [%1], %2;\n"
            "selp.u32 %0, 1, 0, ended;\n"
            "}"
            : "=r"(result)
            : "r"(barrier), "r"(parity)
            : "memory");
    return result;
}

__device__ inline void wait_for(uint32_t barrier, uint32_t parity) {
    while (!has_ended(barrier, parity)) {
    }
}

/// begins to copy 16 bytes
__device__ inline void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                 "l"(from)
                 : "memory");
}

/// arrives when what the thread has begun to copy so is there
__device__ inline void arrive_after_copies(uint32_t barrier) {
    asm volatile(
            "cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier)
            : "memory");
}

__device__ inline void arrive(uint32_t barrier) {
    asm volatile(
            "{\n"
            ".reg .b64 state;\n"
            "mbarrier.arrive.shared.b64 state, [%0];\n"
            "}" ::"r"(barrier)
            : "memory");
}

#if __CUDA_ARCH__ >= 900

/// an arrival after which `bytes` of copies are expected, too
__device__ inline void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                         barrier),
                 "r"(bytes)
                 : "memory");
}

/// at the barrier of this address in a block of the cluster
__device__ inline void arrive_in_block(uint32_t barrier, int block) {
    asm volatile(
            "{\n"
            ".reg .b32 there;\n"
            "mapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
            "}" ::"r"(barrier),
            "r"(block)
            : "memory");
}

/// barriers that a thread has made can be used by copies and by other blocks
__device__ inline void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// begins a copy to the same address in each block of the cluster; `barrier` of
/// each is told how much has come. Sizes and addresses: multiples of 16
__device__ inline void copy_to_blocks(
        uint32_t to,
        const void* from,
        uint32_t size,
        uint32_t barrier,
        int blocks) {
    asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
            "l"(from),
            "r"(size),
            "r"(barrier),
            "h"(uint16_t((1 << blocks) - 1))
            : "memory");
}

/// the same for this block
__device__ inline void copy_to_shared(
        uint32_t to,
        const void* from,
        uint32_t size,
        uint32_t barrier) {
    asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1], %2, [%3];" ::"r"(to),
            "l"(from),
            "r"(size),
            "r"(barrier)
            : "memory");
}

/// the same for what is read once, so that it does not drive other things out
/// of the second-level cache
__device__ inline void stream_to_shared(
        uint32_t to,
        const void* from,
        uint32_t size,
        uint32_t barrier) {
    asm volatile(
            "{\n"
            ".reg .b64 policy;\n"
            "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".L2::cache_hint [%0], [%1], %2, [%3], policy;\n"
            "}" ::"r"(to),
            "l"(from),
            "r"(size),
            "r"(barrier)
            : "memory");
}

/// begins to fetch into the second-level cache
__device__ inline void prefetch_to_l2(const void* from, uint32_t size) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(size)
                 : "memory");
}

__device__ inline int block_of_cluster() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ inline void synchronize_cluster() {
    asm volatile(
            "barrier.cluster.arrive.release.aligned;\n"
            "barrier.cluster.wait.acquire.aligned;" ::
                    : "memory");
}

#endif

/// some warps of a block wait for each other. id: 1 .. 15
template <int threads>
__device__ inline void synchronize_warps(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

__device__ inline void synchronize_warps(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// the same; whether the condition holds for any thread
template <int threads>
__device__ inline bool synchronize_warps_or(int id, bool condition) {
    uint32_t result;
    asm volatile(
            "{\n"
            ".reg .pred p, any;\n"
            "setp.ne.u32 p, %1, 0;\n"
            "barrier.red.or.pred any, %2, %3, p;\n"
            "selp.u32 %0, 1, 0, any;\n"
            "}"
            : "=r"(result)
            : "r"(uint32_t(condition)), "r"(id), "n"(threads)
            : "memory");
    return result;
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
