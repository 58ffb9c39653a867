#pragma once

// What tests on the GPU share.

#include <cmath>
#include <memory>
#include <string>
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

/// of trellises that a test goes through; 0 is none
constexpr int memories[] = {0, 8, 10, 12};

inline IndexTurboQuant make_index(
        size_t d,
        int nbits,
        faiss::MetricType metric = faiss::METRIC_L2,
        int memory = 0) {
    return IndexTurboQuant(
            d,
            nbits,
            metric,
            faiss_turboquant::RotationType::Hadamard,
            1,
            memory);
}

inline std::string name_of(const IndexTurboQuant& index) {
    return "nbits " + std::to_string(index.tq.nbits) + " memory " +
            std::to_string(index.tq.memory()) + " metric " +
            std::to_string(int(index.metric_type)) + " d " +
            std::to_string(index.d) + " n " + std::to_string(index.ntotal);
}

/// (n, d), of lengths from 1e-20 to 1e15, and 0
inline std::vector<float> of_all_lengths(size_t n, size_t d, unsigned seed) {
    std::vector<float> x = gaussian(n, d, seed);
    for (size_t i = 0; i < n; i++) {
        const int exponent = int(i % 37) - 20;
        const float factor =
                i % 37 == 36 ? 0 : std::pow(10.0f, float(exponent));
        for (size_t j = i * d; j < (i + 1) * d; j++) {
            x[j] *= factor;
        }
    }
    return x;
}

/// (n, d), multiples of a direction, (d,): equal, or from 1 to 2 times it
inline std::vector<float> multiples(
        const std::vector<float>& direction,
        size_t n,
        bool equal) {
    std::vector<float> x;
    x.reserve(n * direction.size());
    for (size_t i = 0; i < n; i++) {
        for (const float v : direction) {
            x.push_back(v * (equal ? 1 : 1 + float(i) / n));
        }
    }
    return x;
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
