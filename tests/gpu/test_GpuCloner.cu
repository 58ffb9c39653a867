#include <gpu/GpuCloner.h>

#include <memory>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexShards.h>

#include <faiss_turboquant/index_factory.h>
#include <faiss_turboquant/index_io.h>
#include <gpu/GpuIndexTurboQuant.h>

#include "gpu_test.h"

using faiss::Index;
using faiss::IndexIDMap;
using faiss::IndexReplicas;
using faiss::IndexShards;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss::gpu::GpuIndexTurboQuant;
using faiss_turboquant::gpu::GpuMultipleClonerOptions;
using faiss_turboquant::gpu::index_cpu_to_gpu;
using faiss_turboquant::gpu::index_cpu_to_gpu_multiple;
using faiss_turboquant::gpu::index_gpu_to_cpu;
using faiss_turboquant::gpu::StandardGpuResources;

namespace {

constexpr idx_t d = 40, n = 3001, nq = 12, k = 7;

StandardGpuResources* provider() {
    static StandardGpuResources shared;
    return &shared;
}

using IndexPtr = std::unique_ptr<Index>;

std::vector<idx_t> some_ids(size_t count, idx_t first) {
    std::vector<idx_t> ids(count);
    for (size_t i = 0; i < count; i++) {
        ids[i] = first + 3 * i;
    }
    return ids;
}

/// trained, with vectors, and ids of their own where the index takes them
IndexPtr filled(
        const std::string& description,
        faiss::MetricType metric = METRIC_L2,
        size_t count = n,
        idx_t first_id = 1000) {
    IndexPtr index(
            faiss_turboquant::index_factory(d, description.c_str(), metric));
    const auto x = gaussian(count, d, 1 + first_id);
    if (!index->is_trained) {
        index->train(count, x.data());
    }
    if (description.find("IDMap") == std::string::npos) {
        index->add(count, x.data());
    } else {
        index->add_with_ids(count, x.data(), some_ids(count, first_id).data());
    }
    return index;
}

std::vector<uint8_t> bytes_of(const Index& index) {
    return faiss_turboquant::serialize_index(&index);
}

void expect_same_results(const Index& a, const Index& b) {
    EXPECT_EQ(a.ntotal, b.ntotal);
    const auto xq = gaussian(nq, d, 99);
    EXPECT_EQ(search(a, xq, k), search(b, xq, k));
}

template <class T>
const T& as(const Index* index) {
    return dynamic_cast<const T&>(*index);
}

GpuMultipleClonerOptions sharded() {
    GpuMultipleClonerOptions options;
    options.shard = true;
    return options;
}

/// shards or replicas of an index on the CPU
template <class Threaded>
IndexPtr joined(std::vector<IndexPtr> parts, std::unique_ptr<Threaded> to) {
    for (auto& part : parts) {
        to->addIndex(part.release());
    }
    to->own_indices = true;
    return to;
}

std::vector<IndexPtr> two_parts(const std::string& description) {
    std::vector<IndexPtr> parts;
    parts.push_back(filled(description, METRIC_L2, 500, 1000));
    parts.push_back(filled(description, METRIC_L2, 700, 9000));
    return parts;
}

const std::vector<std::string> descriptions = {
        "TQ4",
        "TQ2t",
        "IDMap,TQ3",
        "TQ1,IDMap2",
        "PCA16,TQ4",
        "L2norm,TQ2",
        "ITQ16,TQ4t",
        "TQ2,RFlat",
        "TQ1,Refine(TQ4)",
        "IDMap,PCA16,TQ4,RFlat"};

} // namespace

TEST(GpuCloner, IndexesInsideOthersGiveTheResultsOfTheCpu) {
    for (const auto& description : descriptions) {
        SCOPED_TRACE(description);
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            const IndexPtr cpu = filled(description, metric);
            const auto before = bytes_of(*cpu);
            const IndexPtr gpu(index_cpu_to_gpu(provider(), 0, cpu.get()));
            expect_same_results(*cpu, *gpu);
            const IndexPtr back(index_gpu_to_cpu(gpu.get()));
            EXPECT_EQ(bytes_of(*back), before);
            EXPECT_EQ(bytes_of(*cpu), before);
        }
    }
}

TEST(GpuCloner, TheIndexInsideIsOnTheDeviceAndTheRestIsNot) {
    const IndexPtr cpu = filled("TQ1,Refine(TQ4)");
    const IndexPtr gpu(index_cpu_to_gpu(provider(), 0, cpu.get()));
    const auto& refine = as<faiss::IndexRefine>(gpu.get());
    EXPECT_EQ(as<GpuIndexTurboQuant>(refine.base_index).getDevice(), 0);
    EXPECT_NE(dynamic_cast<IndexTurboQuant*>(refine.refine_index), nullptr);
}

TEST(GpuCloner, TheCopyLivesOnItsOwn) {
    IndexPtr gpu;
    IndexPtr cpu = filled("IDMap,PCA16,TQ4");
    const IndexPtr same = filled("IDMap,PCA16,TQ4");
    {
        StandardGpuResources short_lived;
        gpu.reset(index_cpu_to_gpu(&short_lived, 0, cpu.get()));
    }
    cpu.reset();
    expect_same_results(*same, *gpu);
    const auto x = gaussian(10, d, 5);
    const auto ids = some_ids(10, 50000);
    same->add_with_ids(10, x.data(), ids.data());
    gpu->add_with_ids(10, x.data(), ids.data());
    expect_same_results(*same, *gpu);
    const faiss::IDSelectorRange range(1000, 4000);
    EXPECT_EQ(same->remove_ids(range), gpu->remove_ids(range));
    expect_same_results(*same, *gpu);
}

// Where there is one device, resources of it stand for those of several.

TEST(GpuCloner, ReplicasGiveTheResultsOfTheCpu) {
    for (const auto& description : descriptions) {
        SCOPED_TRACE(description);
        StandardGpuResources other;
        const IndexPtr cpu = filled(description);
        const IndexPtr gpu(index_cpu_to_gpu_multiple(
                {provider(), &other}, {0, last_device()}, cpu.get()));
        expect_same_results(*cpu, *gpu);
        const IndexPtr back(index_gpu_to_cpu(gpu.get()));
        EXPECT_EQ(bytes_of(*back), bytes_of(*cpu));
    }
    const IndexPtr cpu = filled("TQ4");
    const IndexPtr gpu(index_cpu_to_gpu_multiple(
            {provider(), provider()}, {0, last_device()}, cpu.get()));
    EXPECT_EQ(as<IndexReplicas>(gpu.get()).count(), 2);
    const auto x = gaussian(10, d, 5);
    cpu->add(10, x.data());
    gpu->add(10, x.data());
    expect_same_results(*cpu, *gpu);
}

TEST(GpuCloner, ShardsGiveTheResultsOfTheCpu) {
    const auto options = sharded();
    for (const auto& description : descriptions) {
        SCOPED_TRACE(description);
        StandardGpuResources other;
        const IndexPtr cpu = filled(description);
        const IndexPtr gpu(index_cpu_to_gpu_multiple(
                {provider(), &other, provider()},
                {0, last_device(), 0},
                cpu.get(),
                &options));
        expect_same_results(*cpu, *gpu);
        const IndexPtr back(index_gpu_to_cpu(gpu.get()));
        EXPECT_EQ(bytes_of(*back), bytes_of(*cpu));
    }
    const IndexPtr cpu = filled("TQ4");
    const IndexPtr gpu(index_cpu_to_gpu_multiple(
            {provider(), provider()}, {0, last_device()}, cpu.get(), &options));
    const auto& shards = as<IndexShards>(gpu.get());
    ASSERT_EQ(shards.count(), 2);
    EXPECT_EQ(as<GpuIndexTurboQuant>(shards.at(1)).getDevice(), last_device());
    EXPECT_EQ(shards.at(0)->ntotal, n / 2);
    EXPECT_EQ(shards.at(1)->ntotal, n - n / 2);
}

TEST(GpuCloner, ShardsTakeVectorsOnceAsInFaiss) {
    const IndexTurboQuant empty(d, 4);
    const auto options = sharded();
    const IndexPtr gpu(index_cpu_to_gpu_multiple(
            {provider(), provider()}, {0, last_device()}, &empty, &options));
    const IndexPtr cpu = filled("TQ4");
    gpu->add(n, gaussian(n, d, 1001).data());
    expect_same_results(*cpu, *gpu);
    EXPECT_REFUSED(gpu->add(1, gaussian(1, d, 1).data()), "single pass");
}

TEST(GpuCloner, ShardsOfTheCpuGoPartByPart) {
    for (const bool successive_ids : {false, true}) {
        const IndexPtr cpu =
                joined(two_parts(successive_ids ? "TQ4" : "IDMap,TQ4"),
                       std::make_unique<IndexShards>(d, true, successive_ids));
        const IndexPtr gpu(index_cpu_to_gpu(provider(), 0, cpu.get()));
        EXPECT_EQ(as<IndexShards>(gpu.get()).count(), 2);
        expect_same_results(*cpu, *gpu);
        const IndexPtr back(index_gpu_to_cpu(gpu.get()));
        expect_same_results(*cpu, *back);
    }
}

TEST(GpuCloner, ReplicasOfTheCpuGoPartByPart) {
    std::vector<IndexPtr> parts;
    parts.push_back(filled("TQ4"));
    parts.push_back(filled("TQ4"));
    const IndexPtr cpu =
            joined(std::move(parts), std::make_unique<IndexReplicas>());
    const IndexPtr gpu(index_cpu_to_gpu_multiple(
            {provider(), provider()}, {0, last_device()}, cpu.get()));
    const auto& replicas = as<IndexReplicas>(gpu.get());
    ASSERT_EQ(replicas.count(), 2);
    EXPECT_NE(dynamic_cast<const GpuIndexTurboQuant*>(replicas.at(1)), nullptr);
    expect_same_results(*cpu, *gpu);
}

TEST(GpuCloner, RefusesOtherIndexesByName) {
    for (const std::string description : {"Flat", "SQ8", "IVF8,Flat"}) {
        for (const std::string wrapper : {"", "IDMap,", "PCA16,"}) {
            IndexPtr index = filled(wrapper + description);
            EXPECT_REFUSED(
                    index_cpu_to_gpu(provider(), 0, index.get()),
                    "cannot go to the GPU");
        }
    }
    const IndexPtr flat = filled("IDMap,Flat");
    EXPECT_REFUSED(
            index_cpu_to_gpu(provider(), 0, flat.get()), "faiss::IndexFlat");
    const IndexPtr gpu(index_cpu_to_gpu(provider(), 0, filled("TQ4").get()));
    EXPECT_REFUSED(
            index_cpu_to_gpu(provider(), 0, gpu.get()), "GpuIndexTurboQuant");
    const IndexTurboQuant large(20000, 1);
    EXPECT_REFUSED(index_cpu_to_gpu(provider(), 0, &large), "20000");
    for (const char* codec : {"TQ3mse", "TQ2.5t"}) {
        const std::string description = std::string("IDMap,") + codec;
        const std::unique_ptr<faiss::Index> other(
                faiss_turboquant::index_factory(8, description.c_str()));
        EXPECT_REFUSED(index_cpu_to_gpu(provider(), 0, other.get()), codec);
    }
    EXPECT_REFUSED(index_cpu_to_gpu(provider(), 0, nullptr), "null");
    EXPECT_REFUSED(index_cpu_to_gpu(nullptr, 0, &large), "null");
    EXPECT_REFUSED(index_cpu_to_gpu(provider(), 99, gpu.get()), "device 99");
    EXPECT_REFUSED(
            index_cpu_to_gpu_multiple({provider()}, {0, 0}, &large),
            "1 resources for 2 devices");
    EXPECT_REFUSED(
            index_cpu_to_gpu_multiple({}, {}, &large),
            "0 resources for 0 devices");
}

// ------------------------------------------------- what needs no GPU to be run

TEST(CpuCloner, MergesShards) {
    const auto x = gaussian(500, d, 1001), y = gaussian(700, d, 9001);
    IndexTurboQuant all(d, 4);
    all.add(500, x.data());
    all.add(700, y.data());
    const IndexPtr shards =
            joined(two_parts("TQ4"), std::make_unique<IndexShards>(d));
    const IndexPtr merged(index_gpu_to_cpu(shards.get()));
    EXPECT_EQ(codes_of(as<IndexTurboQuant>(merged.get())), codes_of(all));
    expect_same_results(*merged, *shards);
}

TEST(CpuCloner, MergesShardsWithIds) {
    for (const bool successive_ids : {false, true}) {
        for (const std::string description : {"IDMap,TQ4", "TQ4,IDMap2"}) {
            const IndexPtr shards = joined(
                    two_parts(description),
                    std::make_unique<IndexShards>(d, true, successive_ids));
            const IndexPtr merged(index_gpu_to_cpu(shards.get()));
            expect_same_results(*merged, *shards);
        }
    }
}

TEST(CpuCloner, RefusesShardsWithTheSameIds) {
    const IndexPtr shards = joined(
            two_parts("TQ4"), std::make_unique<IndexShards>(d, true, false));
    EXPECT_REFUSED(index_gpu_to_cpu(shards.get()), "faiss::IndexTurboQuant");
    const IndexShards none(d);
    EXPECT_REFUSED(index_gpu_to_cpu(&none), "empty");
    EXPECT_REFUSED(index_gpu_to_cpu(nullptr), "null");
}

TEST(CpuCloner, CopiesWhatIsOnTheCpu) {
    for (const std::string description : {"TQ4", "IDMap,TQ2,RFlat", "Flat"}) {
        const IndexPtr index = filled(description);
        const IndexPtr copy(index_gpu_to_cpu(index.get()));
        EXPECT_NE(copy.get(), index.get());
        EXPECT_EQ(bytes_of(*copy), bytes_of(*index));
    }
}
