// Times of GpuIndexTurboQuant, one JSON object a line; bench_gpu.py runs it.
//
//     gpu_bench CODEC METRIC D N K NQ... [--rank R] [--signs S...]
//
// K = 0 is for scores alone. CODEC as in factory strings (TQ4, TQ2t, TQ1t10).
// S are values of use_sign_filter, -1 if none are given. Vectors, queries and
// results are on the device. A time is the median of several, of a whole call
// and what it has put on the stream.
//
// Coordinates are independent and standard normal, but for those from number R
// on, which are 0: of D and more there are none. Only angles between vectors
// count, for which it does not matter which subspace of R dimensions they are
// in. With R = D nothing is near anything; neighbours among text embeddings are
// about as much nearer than other vectors as with R = D / 12 (of the glosses
// that bench_all has, signs leave the same share of codes).

#include <gpu/GpuIndexTurboQuant.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <gpu/kernels/cuda_utils.h>

namespace {

using faiss::idx_t;
using faiss::gpu::GpuIndexTurboQuant;
using faiss_turboquant::gpu::DeviceArray;
using faiss_turboquant::gpu::GpuResources;

constexpr size_t chunk = 100000; ///< vectors added at a time

/// what vectors are like
struct Data {
    size_t d, rank;
};

/// standard normal numbers by Box and Muller, from a counter
__global__ void fill_gaussian_kernel(
        float* x,
        size_t n,
        Data data,
        uint64_t seed) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
         i += size_t(gridDim.x) * blockDim.x) {
        if (i % data.d >= data.rank) {
            x[i] = 0;
            continue;
        }
        uint64_t z = (i + seed) * 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        z ^= z >> 31;
        const float unit = 1 / 4294967296.0f;
        const float a = (uint32_t(z) + 0.5f) * unit;
        const float b = (uint32_t(z >> 32) + 0.5f) * unit;
        x[i] = sqrtf(-2 * logf(a)) * cospif(2 * b);
    }
}

void fill_gaussian(const DeviceArray<float>& x, Data data, uint64_t seed) {
    fill_gaussian_kernel<<<1024, 256>>>(x.data(), x.size(), data, seed);
    TQ_CUDA(cudaDeviceSynchronize());
}

/// warm_up: repetitions before those that count
template <class F>
double median_ms(int warm_up, int repetitions, F f) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> times;
    for (int i = -warm_up; i < repetitions; i++) {
        const auto start = Clock::now();
        f();
        TQ_CUDA(cudaDeviceSynchronize());
        if (i >= 0) {
            times.push_back(std::chrono::duration<double, std::milli>(
                                    Clock::now() - start)
                                    .count());
        }
    }
    std::nth_element(
            times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
}

/// the numbers that follow an option; it and they are taken away
std::vector<int> take_option(
        std::vector<std::string>& arguments,
        const std::string& name,
        int otherwise) {
    const auto option = std::find(arguments.begin(), arguments.end(), name);
    std::vector<int> values;
    auto end = option;
    if (option != arguments.end()) {
        while (++end != arguments.end() && end->substr(0, 2) != "--") {
            values.push_back(std::stoi(*end));
        }
        arguments.erase(option, end);
    }
    return values.empty() ? std::vector<int>{otherwise} : values;
}

} // namespace

int main(int argc, char** argv) {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    const int rank = take_option(arguments, "--rank", 1 << 30)[0];
    const std::vector<int> signs = take_option(arguments, "--signs", -1);
    if (arguments.size() < 6 || arguments[0].substr(0, 2) != "TQ") {
        std::fprintf(
                stderr,
                "gpu_bench CODEC METRIC D N K NQ... [--rank R] "
                "[--signs S...]\n");
        return 2;
    }
    const std::string codec = arguments[0];
    const int nbits = codec.at(2) - '0';
    const int memory = codec.size() == 3 ? 0
            : codec.size() == 4          ? 8
                                         : std::stoi(codec.substr(4));
    const auto metric = arguments[1] == "L2" ? faiss::METRIC_L2
                                             : faiss::METRIC_INNER_PRODUCT;
    const size_t d = std::stoul(arguments[2]), n = std::stoul(arguments[3]);
    const idx_t k = std::stol(arguments[4]);
    const Data data = {d, std::min<size_t>(d, rank)};

    const auto resources = std::make_shared<GpuResources>();
    GpuIndexTurboQuant index(
            resources,
            d,
            nbits,
            metric,
            faiss_turboquant::RotationType::Hadamard,
            1,
            memory);
    const DeviceArray<float> x(*resources, chunk * d);
    resources->synchronize();
    fill_gaussian(x, data, 1);
    // into an index that has room
    constexpr int add_repetitions = 5, warm_up = 2;
    index.reserve((add_repetitions + warm_up) * chunk);
    const double add_ms = median_ms(
            warm_up, add_repetitions, [&] { index.add(chunk, x.data()); });
    std::printf(
            "{\"codec\": \"%s\", \"what\": \"add\", \"d\": %zd, \"n\": %zd, "
            "\"ms\": %.4f}\n",
            codec.c_str(),
            d,
            chunk,
            add_ms);
    index.reset();
    index.reserve(n);
    while (size_t(index.ntotal) < n) {
        fill_gaussian(x, data, 1 + index.ntotal * d);
        index.add(std::min(chunk, n - index.ntotal), x.data());
    }
    for (size_t i = 5; i < arguments.size(); i++) {
        const size_t nq = std::stoul(arguments[i]);
        const DeviceArray<float> xq(*resources, nq * d);
        const DeviceArray<float> distances(*resources, nq * k);
        const DeviceArray<idx_t> labels(*resources, nq * k);
        resources->synchronize();
        fill_gaussian(xq, data, uint64_t(1) << 60);
        const DeviceArray<float> scores(*resources, k == 0 ? nq * n : 0);
        resources->synchronize();
        for (const int use_sign_filter : signs) {
            index.use_sign_filter = use_sign_filter;
            // an index learns by a few searches what signs are worth
            const double ms = median_ms(8, nq > 64 ? 5 : 20, [&] {
                if (k == 0) {
                    index.compute_distances(nq, xq.data(), scores.data());
                } else {
                    index.search(
                            nq, xq.data(), k, distances.data(), labels.data());
                }
            });
            std::printf(
                    "{\"codec\": \"%s\", \"what\": \"%s\", \"d\": %zd, "
                    "\"n\": %zd, \"k\": %zd, \"nq\": %zd, \"rank\": %zd, "
                    "\"use_sign_filter\": %d, \"ms\": %.4f, "
                    "\"code_size\": %zd}\n",
                    codec.c_str(),
                    k == 0 ? "scores" : "search",
                    d,
                    n,
                    size_t(k),
                    nq,
                    data.rank,
                    use_sign_filter,
                    ms,
                    index.sa_code_size());
            std::fflush(stdout);
        }
    }
}
