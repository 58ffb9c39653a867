#pragma once

// What tests on the GPU share.

#include <memory>
#include <vector>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <faiss_turboquant/IndexTurboQuant.h>
#include <gpu/GpuResources.h>
#include <gpu/StandardGpuResources.h>

#include "../index_test.h"

using faiss::idx_t;
using faiss::IndexTurboQuant;

/// of all tests that need none of their own
inline std::shared_ptr<faiss_turboquant::gpu::GpuResources> resources() {
    static const auto shared =
            std::make_shared<faiss_turboquant::gpu::GpuResources>();
    return shared;
}

/// another one than device 0, where there are several
inline int last_device() {
    return faiss_turboquant::gpu::get_num_gpus() - 1;
}

inline std::vector<uint8_t> codes_of(const IndexTurboQuant& index) {
    return std::vector<uint8_t>(
            index.codes.data(), index.codes.data() + index.codes.size());
}

template <class T>
struct OnDevice {
    explicit OnDevice(size_t n) {
        EXPECT_EQ(cudaMalloc(&data, n * sizeof(T)), cudaSuccess);
    }
    explicit OnDevice(const std::vector<T>& from) : OnDevice(from.size()) {
        EXPECT_EQ(
                cudaMemcpy(
                        data,
                        from.data(),
                        from.size() * sizeof(T),
                        cudaMemcpyHostToDevice),
                cudaSuccess);
    }
    ~OnDevice() {
        cudaFree(data);
    }
    std::vector<T> to_host(size_t n) const {
        std::vector<T> to(n);
        EXPECT_EQ(
                cudaMemcpy(
                        to.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost),
                cudaSuccess);
        return to;
    }
    T* data = nullptr;
};
