#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include <cuda_runtime.h>

#include <faiss/impl/FaissAssert.h>

/// throws a FaissException that names the call and CUDA's error
#define TQ_CUDA(call)                      \
    do {                                   \
        const cudaError_t error = (call);  \
        FAISS_THROW_IF_NOT_FMT(            \
                error == cudaSuccess,      \
                "CUDA: %s (%s) in %s",     \
                cudaGetErrorString(error), \
                cudaGetErrorName(error),   \
                #call);                    \
    } while (0)

namespace faiss_turboquant {
namespace gpu {

template <class T>
constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

template <class T>
constexpr T round_up(T a, T b) {
    return ceil_div(a, b) * b;
}

inline int current_device() {
    int device = 0;
    TQ_CUDA(cudaGetDevice(&device));
    return device;
}

/// what the runtime tells of a kernel on the current device
struct KernelTraits {
    int multiprocessors; ///< of the device
    /// compute capability that the code is for, as 10 major + minor
    int capability;
    /// bytes that a block can have besides what the kernel has in any case
    size_t shared_memory;
};

/** Asked once, because an answer takes as long as a launch. The kernel is
 * allowed all of that shared memory, always, so that threads with different
 * needs do not disagree. */
inline const KernelTraits& traits_of(const void* kernel) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, KernelTraits> known;
    const int device = current_device();
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [entry, is_new] = known.try_emplace({kernel, device});
    KernelTraits& traits = entry->second;
    if (is_new) {
        try {
            cudaFuncAttributes attributes;
            int available = 0;
            TQ_CUDA(cudaDeviceGetAttribute(
                    &traits.multiprocessors,
                    cudaDevAttrMultiProcessorCount,
                    device));
            TQ_CUDA(cudaDeviceGetAttribute(
                    &available,
                    cudaDevAttrMaxSharedMemoryPerBlockOptin,
                    device));
            TQ_CUDA(cudaFuncGetAttributes(&attributes, kernel));
            available -= int(attributes.sharedSizeBytes);
            TQ_CUDA(cudaFuncSetAttribute(
                    kernel,
                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                    available));
            traits.capability = attributes.ptxVersion;
            traits.shared_memory = available;
        } catch (...) {
            known.erase(entry);
            throw;
        }
    }
    return traits;
}

template <class... Parameters>
const KernelTraits& traits_of(void (*kernel)(Parameters...)) {
    return traits_of(reinterpret_cast<const void*>(kernel));
}

/// how many blocks of a kernel run at once on the current device; asked once,
/// too
template <class... Parameters>
int blocks_at_once(void (*kernel)(Parameters...), int threads, size_t shared) {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, int, size_t>, int> known;
    const KernelTraits& traits = traits_of(kernel);
    const std::lock_guard<std::mutex> lock(mutex);
    int& blocks =
            known[{reinterpret_cast<const void*>(kernel),
                   current_device(),
                   threads,
                   shared}];
    if (blocks == 0) {
        TQ_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                &blocks, kernel, threads, shared));
        blocks *= traits.multiprocessors;
    }
    return blocks;
}

/// where a kernel runs
struct Launch {
    dim3 blocks;
    int threads;
    size_t shared_memory; ///< dynamic
    cudaStream_t stream;
    bool is_early = false; ///< see `early`
    unsigned cluster = 1;  ///< blocks of one
};

/** Of a kernel that begins with wait_for_kernel_before: its blocks are put in
 * place while the kernel before ends (programmatic dependent launch), if its
 * code is for compute capability 9.0, which has that. */
constexpr bool early = true;

template <class... Parameters, class... Arguments>
void run(
        const Launch& launch,
        void (*kernel)(Parameters...),
        const Arguments&... arguments) {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = launch.blocks;
    config.blockDim = launch.threads;
    config.dynamicSmemBytes = launch.shared_memory;
    config.stream = launch.stream;
    config.attrs = attributes;
    const bool has_early_launch = traits_of(kernel).capability >= 90;
    if (launch.is_early && has_early_launch) {
        auto& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (launch.cluster > 1) {
        auto& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {launch.cluster, 1, 1};
    }
    TQ_CUDA(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#ifdef __CUDACC__

/// What does not change while the kernel runs; without a branch, and without
/// waiting for what is loaded, which selecting afterwards would.
template <class T>
__device__ inline T load_if(bool is_valid, const T* at, T other) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    uint32_t bits;
    memcpy(&bits, &other, sizeof(bits));
    asm("{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "@p ld.global.nc.u32 %0, [%1];\n"
        "}"
        : "+r"(bits)
        : "l"(at), "r"(uint32_t(is_valid)));
    T result;
    memcpy(&result, &bits, sizeof(bits));
    return result;
}

/// four numbers that start on 16 bytes
__device__ inline void load4(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}

/// the next kernel's blocks may be put in place
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/** Until kernels before have ended and what they have written can be read.
 * By all threads. What a kernel reads before that, the kernel before does not
 * write, and it writes nothing. The next kernel's blocks come after it, so that
 * they find all kernels ended but this one. */
__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    let_next_kernel_begin();
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
