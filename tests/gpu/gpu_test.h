#pragma once

// What tests on the GPU share.

#include <algorithm>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

#include <faiss_turboquant/IndexTurboQuant.h>

using faiss::idx_t;
using faiss::IndexTurboQuant;

inline std::vector<float> gaussian(
        size_t n,
        size_t d,
        unsigned seed,
        float mean = 0) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(mean);
    std::vector<float> x(n * d);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

inline std::vector<uint8_t> codes_of(const IndexTurboQuant& index) {
    return std::vector<uint8_t>(
            index.codes.data(), index.codes.data() + index.codes.size());
}

struct Results {
    std::vector<float> D;
    std::vector<idx_t> I;

    bool operator==(const Results& other) const {
        return D == other.D && I == other.I;
    }
};

inline void PrintTo(const Results& r, std::ostream* os) {
    for (size_t i = 0; i < std::min<size_t>(r.D.size(), 20); i++) {
        *os << r.I[i] << ":" << r.D[i] << " ";
    }
}

inline Results search(
        const faiss::Index& index,
        const std::vector<float>& x,
        idx_t k,
        const faiss::SearchParameters* params = nullptr) {
    const idx_t n = x.size() / index.d;
    Results r{std::vector<float>(n * k), std::vector<idx_t>(n * k)};
    index.search(n, x.data(), k, r.D.data(), r.I.data(), params);
    return r;
}

template <class F>
std::string message_of(F f) {
    try {
        f();
    } catch (const faiss::FaissException& e) {
        return e.msg;
    }
    return "";
}

#define EXPECT_REFUSED(statement, part)                         \
    do {                                                        \
        const std::string msg = message_of([&] { statement; }); \
        EXPECT_NE(msg.find(part), std::string::npos) << msg;    \
    } while (0)

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
