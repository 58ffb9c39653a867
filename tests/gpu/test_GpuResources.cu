#include <gpu/StandardGpuResources.h>

#include <vector>

#include <gpu/GpuIndexTurboQuant.h>

#include "gpu_test.h"

using faiss::gpu::GpuIndexTurboQuant;
using faiss_turboquant::gpu::get_num_gpus;
using faiss_turboquant::gpu::GpuResources;
using faiss_turboquant::gpu::MemoryUse;
using faiss_turboquant::gpu::StandardGpuResources;

namespace {

struct Stream {
    Stream() {
        EXPECT_EQ(
                cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                cudaSuccess);
    }
    ~Stream() {
        cudaStreamDestroy(stream);
    }
    cudaStream_t stream = nullptr;
};

/// copies after so many clock cycles, from which is seen who does not wait
__global__ void copy_late(const float* from, float* to, int n, int64_t cycles) {
    const int64_t start = clock64();
    while (clock64() - start < cycles) {
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        to[i] = from[i];
    }
}

constexpr int64_t late = 100000000; ///< some 50 ms

} // namespace

TEST(StandardGpuResources, MakesThoseOfADeviceOnce) {
    ASSERT_GE(get_num_gpus(), 1);
    StandardGpuResources provider;
    provider.setTempMemory(size_t(64) << 20);
    const auto resources = provider.getResources(0);
    EXPECT_EQ(resources, provider.getResources(0));
    EXPECT_EQ(resources->device, 0);
    EXPECT_EQ(resources->workspace_limit, size_t(64) << 20);
    EXPECT_EQ(provider.getDefaultStream(0), resources->stream());
    EXPECT_REFUSED(provider.setTempMemory(1), "device 0 is in use");
    EXPECT_REFUSED(provider.setDefaultStream(0, nullptr), "device 0 is in use");
    EXPECT_REFUSED(provider.getResources(1000), "1000");
}

TEST(StandardGpuResources, TakesAStreamOfTheCallers) {
    const Stream mine;
    StandardGpuResources provider;
    provider.setDefaultStream(0, mine.stream);
    EXPECT_EQ(provider.getResources(0)->stream(), mine.stream);
    StandardGpuResources other;
    other.setDefaultStream(0, nullptr);
    EXPECT_EQ(other.getDefaultStream(0), cudaStreamLegacy);

    const size_t d = 96, n = 3000, nq = 5;
    IndexTurboQuant index = make_index(d, 4);
    index.add(n, gaussian(n, d, 1).data());
    const auto xq = gaussian(nq, d, 2);
    for (const auto& resources :
         {provider.getResources(0), other.getResources(0)}) {
        GpuIndexTurboQuant gpu(resources, index);
        for (const int use_sign_filter : {0, 2}) {
            gpu.use_sign_filter = use_sign_filter;
            EXPECT_EQ(search(index, xq, 7), search(gpu, xq, 7));
        }
    }
}

TEST(GpuResources, KeepsWhatACallHasWorkedInForTheNextOne) {
    constexpr auto use = MemoryUse::workspace;
    const GpuResources resources(0, nullptr, 1 << 20);
    const auto take = [&](size_t bytes) {
        return resources.allocate(bytes, use);
    };
    void* first = take(1000);
    void* second = take(1000);
    EXPECT_NE(first, second);
    resources.release(first, 1000, use);
    void* smaller = take(900); // by less than an eighth
    EXPECT_EQ(smaller, first);
    void* third = take(1000);
    EXPECT_NE(third, first);
    EXPECT_NE(third, second);
    EXPECT_EQ(take(0), nullptr);
    for (void* memory : {first, second, third}) {
        resources.release(memory, 1000, use);
    }
    // more than may be kept
    const size_t large = size_t(3) << 20;
    void* too_much = take(large);
    resources.release(too_much, large, use);
}

TEST(GpuResources, KeepsTheOrderOfStreams) {
    const size_t d = 64, n = 500, nq = 3;
    const idx_t k = 4;
    IndexTurboQuant index(d, 4);
    index.add(n, gaussian(n, d, 1).data());
    const auto xq = gaussian(nq, d, 2);
    const auto expected = search(index, xq, k);

    const auto resources = std::make_shared<GpuResources>();
    const GpuIndexTurboQuant gpu(resources, index);
    const OnDevice<float> source(xq), queries(gaussian(nq, d, 3));
    const OnDevice<float> D(nq * k), copy(nq * k);
    const OnDevice<idx_t> I(nq * k);
    const Stream mine;
    copy_late<<<1, 128, 0, mine.stream>>>(
            source.data, queries.data, nq * d, late);
    resources->wait_for(mine.stream, 0);
    gpu.search(nq, queries.data, k, D.data, I.data);
    // and the other way round
    copy_late<<<1, 32, 0, resources->stream()>>>(D.data, D.data, 0, late);
    gpu.search(nq, queries.data, k, D.data, I.data);
    resources->make_wait(mine.stream, 0);
    copy_late<<<1, 32, 0, mine.stream>>>(D.data, copy.data, nq * k, 0);
    ASSERT_EQ(cudaStreamSynchronize(mine.stream), cudaSuccess);
    EXPECT_EQ((Results{copy.to_host(nq * k), I.to_host(nq * k)}), expected);
}
