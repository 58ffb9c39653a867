#pragma once

#include <map>
#include <mutex>
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

/// Lets a kernel use all the shared memory that a block can have, on the
/// current device. Always the same value, so that threads with kernels of
/// different needs do not disagree; once, because it takes as long as a launch.
/// @return  bytes, less what the kernel has in any case
template <class Kernel>
size_t allow_shared_memory(Kernel kernel) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, size_t> allowed;
    int device = 0, available = 0;
    TQ_CUDA(cudaGetDevice(&device));
    const auto key =
            std::make_pair(reinterpret_cast<const void*>(kernel), device);
    const std::lock_guard<std::mutex> lock(mutex);
    if (allowed.count(key)) {
        return allowed[key];
    }
    cudaFuncAttributes attributes;
    TQ_CUDA(cudaDeviceGetAttribute(
            &available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    TQ_CUDA(cudaFuncGetAttributes(&attributes, kernel));
    available -= int(attributes.sharedSizeBytes);
    TQ_CUDA(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, available));
    return allowed[key] = available;
}

} // namespace gpu
} // namespace faiss_turboquant
