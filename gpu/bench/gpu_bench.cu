// Times of GpuIndexTurboQuant, one JSON object a line; bench_gpu.py runs it.
//
//     gpu_bench CODEC METRIC D N K NQ...
//
// K = 0 is for scores alone. CODEC as in factory strings (TQ4, TQ2t, TQ1t10).
// Vectors, queries and results are on the device. A time is the median of
// several, of a whole call and what it has put on the stream.

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

/// standard normal numbers by Box and Muller, from a counter
__global__ void fill_gaussian_kernel(float* x, size_t n, uint64_t seed) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
         i += size_t(gridDim.x) * blockDim.x) {
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

void fill_gaussian(const DeviceArray<float>& x, uint64_t seed) {
    fill_gaussian_kernel<<<1024, 256>>>(x.data(), x.size(), seed);
    TQ_CUDA(cudaDeviceSynchronize());
}

template <class F>
double median_ms(int repetitions, F f) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> times;
    for (int i = -2; i < repetitions; i++) { // two to warm up
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

} // namespace

int main(int argc, char** argv) {
    if (argc < 7 || std::string(argv[1]).substr(0, 2) != "TQ") {
        std::fprintf(stderr, "gpu_bench CODEC METRIC D N K NQ...\n");
        return 2;
    }
    const std::string codec = argv[1];
    const int nbits = codec.at(2) - '0';
    const int memory = codec.size() == 3 ? 0
            : codec.size() == 4          ? 8
                                         : std::atoi(codec.c_str() + 4);
    const auto metric = std::string(argv[2]) == "L2"
            ? faiss::METRIC_L2
            : faiss::METRIC_INNER_PRODUCT;
    const size_t d = std::atoll(argv[3]), n = std::atoll(argv[4]);
    const idx_t k = std::atoll(argv[5]);

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
    fill_gaussian(x, 1);
    // into an index that has room
    constexpr int add_repetitions = 5, warm_up = 2;
    index.reserve((add_repetitions + warm_up) * chunk);
    const double add_ms =
            median_ms(add_repetitions, [&] { index.add(chunk, x.data()); });
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
        fill_gaussian(x, 1 + index.ntotal * d);
        index.add(std::min(chunk, n - index.ntotal), x.data());
    }
    for (int i = 6; i < argc; i++) {
        const size_t nq = std::atoll(argv[i]);
        const DeviceArray<float> xq(*resources, nq * d);
        const DeviceArray<float> distances(*resources, nq * k);
        const DeviceArray<idx_t> labels(*resources, nq * k);
        resources->synchronize();
        fill_gaussian(xq, uint64_t(1) << 60);
        const DeviceArray<float> scores(*resources, k == 0 ? nq * n : 0);
        resources->synchronize();
        const double ms = median_ms(nq > 64 ? 5 : 20, [&] {
            if (k == 0) {
                index.compute_distances(nq, xq.data(), scores.data());
            } else {
                index.search(nq, xq.data(), k, distances.data(), labels.data());
            }
        });
        std::printf(
                "{\"codec\": \"%s\", \"what\": \"%s\", \"d\": %zd, "
                "\"n\": %zd, \"k\": %zd, \"nq\": %zd, \"ms\": %.4f, "
                "\"code_size\": %zd}\n",
                codec.c_str(),
                k == 0 ? "scores" : "search",
                d,
                n,
                size_t(k),
                nq,
                ms,
                index.sa_code_size());
        std::fflush(stdout);
    }
}
