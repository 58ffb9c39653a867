#pragma once

// What tests of indexes share.

#include <algorithm>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/Index.h>
#include <faiss/impl/FaissException.h>

/// (n, d), of independent coordinates
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

/// (n, d), around n / 20 centres: with neighbours that are much nearer than
/// most vectors
inline std::vector<float> clustered(size_t n, size_t d, unsigned seed) {
    const size_t n_centres = n / 20 + 1;
    const std::vector<float> centres = gaussian(n_centres, d, 99);
    std::vector<float> x = gaussian(n, d, seed);
    std::mt19937 rng(seed);
    for (size_t i = 0; i < n; i++) {
        const float* centre = &centres[rng() % n_centres * d];
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = centre[j] + 0.5f * x[i * d + j];
        }
    }
    return x;
}

struct Results {
    std::vector<float> D;
    std::vector<faiss::idx_t> I;

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
        faiss::idx_t k,
        const faiss::SearchParameters* params = nullptr) {
    const faiss::idx_t n = x.size() / index.d;
    Results r{std::vector<float>(n * k), std::vector<faiss::idx_t>(n * k)};
    index.search(n, x.data(), k, r.D.data(), r.I.data(), params);
    return r;
}

/// the message of the FaissException that f throws, "" if none
template <class F>
std::string message_of(F f) {
    try {
        f();
    } catch (const faiss::FaissException& e) {
        return e.what();
    }
    return "";
}

#define EXPECT_REFUSED(statement, part)                         \
    do {                                                        \
        const std::string msg = message_of([&] { statement; }); \
        EXPECT_NE(msg.find(part), std::string::npos) << msg;    \
    } while (0)
