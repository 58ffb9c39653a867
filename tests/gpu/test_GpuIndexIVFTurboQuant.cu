#include <gpu/GpuIndexIVFTurboQuant.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexShards.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/index_factory.h>
#include <gpu/GpuCloner.h>
#include <gpu/GpuIndexTurboQuant.h>

#include "gpu_test.h"

using faiss::IndexIVFTurboQuant;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss::SearchParametersIVF;
using faiss::gpu::GpuIndexIVFTurboQuant;
using faiss_turboquant::gpu::GpuResources;

namespace {

using IvfPtr = std::unique_ptr<IndexIVFTurboQuant>;

/// with lists of very different lengths, some of them empty
std::vector<float> clusters(size_t n, size_t d, unsigned seed) {
    std::vector<float> x = gaussian(n, d, seed, 1);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] += 3 * std::sin(float(i * i % 23 * (j + 1)));
        }
    }
    return x;
}

/// trained, and empty
IvfPtr make_ivf(
        const std::string& description,
        size_t d,
        faiss::MetricType metric = METRIC_L2) {
    std::unique_ptr<faiss::Index> index(
            faiss_turboquant::index_factory(d, description.c_str(), metric));
    auto& ivf = dynamic_cast<IndexIVFTurboQuant&>(*index);
    ivf.cp.min_points_per_centroid = 1;
    const size_t n = 40 * ivf.nlist;
    ivf.train(n, clusters(n, d, 3).data());
    index.release();
    return IvfPtr(&ivf);
}

struct List {
    std::vector<uint8_t> codes;
    std::vector<idx_t> ids;

    bool operator==(const List& other) const {
        return codes == other.codes && ids == other.ids;
    }
};

std::vector<List> lists_of(const IndexIVFTurboQuant& index) {
    std::vector<List> lists(index.nlist);
    for (size_t l = 0; l < index.nlist; l++) {
        const size_t n = index.invlists->list_size(l);
        faiss::InvertedLists::ScopedCodes codes(index.invlists, l);
        faiss::InvertedLists::ScopedIds ids(index.invlists, l);
        lists[l].codes.assign(codes.get(), codes.get() + n * index.code_size);
        lists[l].ids.assign(ids.get(), ids.get() + n);
    }
    return lists;
}

std::vector<List> lists_of(const GpuIndexIVFTurboQuant& index) {
    IndexIVFTurboQuant copy;
    index.copyTo(&copy);
    EXPECT_EQ(copy.ntotal, index.ntotal);
    return lists_of(copy);
}

struct RangeResults {
    std::vector<size_t> lims;
    std::vector<idx_t> labels;
    std::vector<float> distances;

    bool operator==(const RangeResults& other) const {
        return lims == other.lims && labels == other.labels &&
                distances == other.distances;
    }
};

RangeResults range_search(
        const faiss::Index& index,
        const std::vector<float>& x,
        float radius,
        const faiss::SearchParameters* params = nullptr) {
    const size_t n = x.size() / index.d;
    faiss::RangeSearchResult result(n);
    index.range_search(n, x.data(), radius, &result, params);
    const size_t total = result.lims[n];
    return {{result.lims, result.lims + n + 1},
            {result.labels, result.labels + total},
            {result.distances, result.distances + total}};
}

std::string name_of(const IndexIVFTurboQuant& index) {
    return index.tq.codec_name() + " metric " +
            std::to_string(int(index.metric_type)) + " d " +
            std::to_string(index.d) + " nlist " + std::to_string(index.nlist);
}

} // namespace

TEST(GpuIndexIVFTurboQuant, CopyFromAndCopyToKeepEveryList) {
    for (const char* codec : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ2t", "TQ4t10"}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (const size_t d : {7, 64, 200}) {
                const auto index =
                        make_ivf(std::string("IVF13,") + codec, d, metric);
                index->add(500, clusters(500, d, 1).data());
                const GpuIndexIVFTurboQuant gpu(resources(), *index);
                EXPECT_EQ(gpu.ntotal, 500);
                EXPECT_EQ(lists_of(*index), lists_of(gpu)) << name_of(*index);
                for (size_t l = 0; l < index->nlist; l++) {
                    EXPECT_EQ(gpu.get_list_size(l), index->get_list_size(l));
                }
            }
        }
    }
}

TEST(GpuIndexIVFTurboQuant, AddWritesTheListsOfTheCpu) {
    for (const char* codec : {"TQ1", "TQ3", "TQ4", "TQ2t"}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (const size_t d : {8, 100, 384}) {
                const auto index =
                        make_ivf(std::string("IVF9,") + codec, d, metric);
                GpuIndexIVFTurboQuant gpu(resources(), *index);
                const auto x = clusters(700, d, 1);
                std::vector<idx_t> ids(700);
                for (idx_t i = 0; i < 700; i++) {
                    ids[i] = 10000 - 3 * i;
                }
                // in parts, so that lists outgrow their room
                size_t done = 0;
                for (const size_t n : {1, 50, 3, 300, 346}) {
                    index->add_with_ids(n, &x[done * d], &ids[done]);
                    const OnDevice<float> on_device(std::vector<float>(
                            x.begin() + done * d, x.begin() + (done + n) * d));
                    gpu.add_with_ids(
                            n,
                            n % 2 ? on_device.data : &x[done * d],
                            &ids[done]);
                    done += n;
                    EXPECT_EQ(lists_of(*index), lists_of(gpu))
                            << name_of(*index) << " " << done;
                }
                index->add(20, x.data());
                gpu.add(20, x.data());
                EXPECT_EQ(lists_of(*index), lists_of(gpu));
            }
        }
    }
}

TEST(GpuIndexIVFTurboQuant, SearchEqualsTheCpu) {
    for (const char* codec :
         {"TQ1", "TQ2", "TQ3", "TQ4", "TQ1t", "TQ2t", "TQ4t", "TQ3t12"}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (const size_t d : {8, 100, 384, 512}) {
                const auto index =
                        make_ivf(std::string("IVF20,") + codec, d, metric);
                index->add(3000, clusters(3000, d, 1).data());
                GpuIndexIVFTurboQuant gpu(resources(), *index);
                for (const size_t nprobe : {1, 3, 20, 50}) {
                    index->nprobe = gpu.nprobe = nprobe;
                    for (const size_t nq : {1, 7, 60}) {
                        const auto xq = clusters(nq, d, 2);
                        for (const idx_t k : {1, 10, 300}) {
                            EXPECT_EQ(search(*index, xq, k), search(gpu, xq, k))
                                    << name_of(*index) << " nprobe " << nprobe
                                    << " nq " << nq << " k " << k;
                        }
                    }
                }
            }
        }
    }
}

/// groups of all sizes, and results in the memory of the device
TEST(GpuIndexIVFTurboQuant, SearchEqualsTheCpuForLargeBatches) {
    const size_t d = 256, nq = 3000;
    for (const char* codec : {"TQ1", "TQ4", "TQ2t"}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            const auto index =
                    make_ivf(std::string("IVF30,") + codec, d, metric);
            index->add(50000, clusters(50000, d, 1).data());
            GpuIndexIVFTurboQuant gpu(resources(), *index);
            const auto xq = clusters(nq, d, 2);
            const OnDevice<float> device_xq(xq);
            for (const size_t nprobe : {1, 8, 30}) {
                index->nprobe = gpu.nprobe = nprobe;
                for (const idx_t k : {1, 20, 300}) {
                    const Results expected = search(*index, xq, k);
                    const OnDevice<float> D(nq * k);
                    const OnDevice<idx_t> I(nq * k);
                    gpu.search(nq, device_xq.data, k, D.data, I.data);
                    EXPECT_EQ(
                            expected,
                            (Results{D.to_host(nq * k), I.to_host(nq * k)}))
                            << name_of(*index) << " nprobe " << nprobe << " k "
                            << k;
                }
            }
        }
    }
}

/// of lists that are longer and shorter than their sample, with other ids
TEST(GpuIndexIVFTurboQuant, LargeBatchesOfSelectedVectors) {
    const size_t d = 64, n = 20000, nq = 2000;
    const auto index = make_ivf("IVF100(TQ4),TQ3", d);
    std::vector<idx_t> ids(n);
    for (size_t i = 0; i < n; i++) {
        ids[i] = idx_t(i * 7919 % n) + 5;
    }
    index->add_with_ids(n, clusters(n, d, 1).data(), ids.data());
    GpuIndexIVFTurboQuant gpu(resources(), *index);
    const auto xq = clusters(nq, d, 2);
    faiss::IDSelectorRange selector(100, n / 3);
    SearchParametersIVF params;
    params.sel = &selector;
    for (const size_t nprobe : {3, 40, 100}) {
        params.nprobe = index->nprobe = gpu.nprobe = nprobe;
        for (const idx_t k : {10, 200}) {
            EXPECT_EQ(
                    search(*index, xq, k, &params), search(gpu, xq, k, &params))
                    << nprobe << " k " << k;
            EXPECT_EQ(search(*index, xq, k), search(gpu, xq, k))
                    << nprobe << " k " << k;
        }
    }
}

/// pages, because the workspace is small
TEST(GpuIndexIVFTurboQuant, SearchesInPages) {
    const auto small =
            std::make_shared<GpuResources>(0, nullptr, size_t(1) << 20);
    const auto index = make_ivf("IVF30,TQ4", 64);
    index->add(5000, clusters(5000, 64, 1).data());
    GpuIndexIVFTurboQuant gpu(small, *index);
    index->nprobe = gpu.nprobe = 9;
    for (const size_t nq : {500, 3000}) {
        const auto xq = clusters(nq, 64, 2);
        EXPECT_EQ(search(*index, xq, 100), search(gpu, xq, 100));
        EXPECT_EQ(range_search(*index, xq, 300), range_search(gpu, xq, 300));
    }
}

/// equal distances are in the order of ids, in which they were not added
TEST(GpuIndexIVFTurboQuant, SearchEqualsTheCpuForEqualVectors) {
    const size_t d = 64;
    const auto index = make_ivf("IVF5,TQ2", d);
    const auto some = clusters(40, d, 1);
    std::vector<float> x;
    std::vector<idx_t> ids;
    for (idx_t i = 0; i < 2000; i++) {
        const auto from = some.begin() + i % 40 * d;
        x.insert(x.end(), from, from + d);
        ids.push_back(i * 7919 % 2003);
    }
    index->add_with_ids(2000, x.data(), ids.data());
    GpuIndexIVFTurboQuant gpu(resources(), *index);
    index->nprobe = gpu.nprobe = 5;
    const auto xq = clusters(30, d, 2);
    for (const idx_t k : {50, 100, 1000}) {
        EXPECT_EQ(search(*index, xq, k), search(gpu, xq, k)) << k;
    }
}

TEST(GpuIndexIVFTurboQuant, RangeSearchEqualsTheCpu) {
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        const auto index = make_ivf("IVF12,TQ4", 100, metric);
        index->add(2000, clusters(2000, 100, 1).data());
        GpuIndexIVFTurboQuant gpu(resources(), *index);
        index->nprobe = gpu.nprobe = 4;
        const auto xq = clusters(50, 100, 2);
        size_t most = 0;
        for (const float radius : {-10.f, 0.f, 200.f, 500.f, 1000.f}) {
            const RangeResults expected = range_search(*index, xq, radius);
            EXPECT_EQ(expected, range_search(gpu, xq, radius)) << radius;
            most = std::max(most, expected.labels.size());
        }
        EXPECT_GT(most, 1000);
    }
}

TEST(GpuIndexIVFTurboQuant, SearchParameters) {
    const auto index = make_ivf("IVF12,TQ4", 64);
    index->add(3000, clusters(3000, 64, 1).data());
    const GpuIndexIVFTurboQuant gpu(resources(), *index);
    const auto xq = clusters(40, 64, 2);
    const faiss::IDSelectorRange range(100, 180);
    const std::vector<idx_t> some = {5, 77, 1234, 99999};
    const faiss::IDSelectorArray array(some.size(), some.data());
    const faiss::IDSelectorNot others(&range);
    SearchParametersIVF params;
    for (const size_t nprobe : {1, 6, 100}) {
        params.nprobe = nprobe;
        for (const faiss::IDSelector* sel :
             {static_cast<const faiss::IDSelector*>(nullptr),
              static_cast<const faiss::IDSelector*>(&range),
              static_cast<const faiss::IDSelector*>(&array),
              static_cast<const faiss::IDSelector*>(&others)}) {
            params.sel = const_cast<faiss::IDSelector*>(sel);
            EXPECT_EQ(
                    search(*index, xq, 9, &params),
                    search(gpu, xq, 9, &params));
            EXPECT_EQ(
                    range_search(*index, xq, 300, &params),
                    range_search(gpu, xq, 300, &params));
        }
    }
}

TEST(GpuIndexIVFTurboQuant, RemoveIdsAndReset) {
    const auto index = make_ivf("IVF12,TQ3", 48);
    const auto x = clusters(1000, 48, 1);
    index->add(1000, x.data());
    GpuIndexIVFTurboQuant gpu(resources(), *index);
    index->nprobe = gpu.nprobe = 3;
    const auto xq = clusters(20, 48, 2);
    const faiss::IDSelectorRange range(100, 700);
    EXPECT_EQ(index->remove_ids(range), gpu.remove_ids(range));
    EXPECT_EQ(gpu.ntotal, 400);
    // a list on the CPU puts its last vectors in the place of those removed
    index->nprobe = gpu.nprobe = 12;
    EXPECT_EQ(search(*index, xq, 10), search(gpu, xq, 10));
    EXPECT_EQ(gpu.remove_ids(range), 0u);
    index->add(300, x.data());
    gpu.add(300, x.data());
    EXPECT_EQ(search(*index, xq, 10), search(gpu, xq, 10));
    gpu.reset();
    index->reset();
    EXPECT_EQ(gpu.ntotal, 0);
    EXPECT_EQ(search(*index, xq, 10), search(gpu, xq, 10));
    index->add(1000, x.data());
    gpu.add(1000, x.data());
    EXPECT_EQ(lists_of(*index), lists_of(gpu));
}

TEST(GpuIndexIVFTurboQuant, Reconstruct) {
    const auto index = make_ivf("IVF12,TQ4", 48, METRIC_INNER_PRODUCT);
    index->add(500, clusters(500, 48, 1).data());
    index->make_direct_map();
    const GpuIndexIVFTurboQuant gpu(resources(), *index);
    std::vector<float> expected(48), found(48);
    for (const idx_t key : {0, 17, 499}) {
        index->reconstruct(key, expected.data());
        gpu.reconstruct(key, found.data());
        EXPECT_EQ(expected, found);
    }
    EXPECT_REFUSED(gpu.reconstruct(500, found.data()), "no vector 500");
}

/// the coarse quantizer on the device as well
TEST(GpuIndexIVFTurboQuant, QuantizerOnTheDevice) {
    const size_t d = 128, nq = 50;
    const auto index = make_ivf("IVF40(TQ4),TQ4", d);
    GpuIndexIVFTurboQuant gpu(resources(), *index);
    EXPECT_TRUE(dynamic_cast<faiss::gpu::GpuIndexTurboQuant*>(
            gpu.parameters().quantizer));
    const auto x = clusters(4000, d, 1);
    const OnDevice<float> device_x(x);
    index->add(4000, x.data());
    gpu.add(4000, device_x.data);
    EXPECT_EQ(lists_of(*index), lists_of(gpu));
    index->nprobe = gpu.nprobe = 5;
    const auto xq = clusters(nq, d, 2);
    const OnDevice<float> device_xq(xq);
    const OnDevice<float> D(nq * 10);
    const OnDevice<idx_t> I(nq * 10);
    gpu.search(nq, device_xq.data, 10, D.data, I.data);
    EXPECT_EQ(
            search(*index, xq, 10),
            (Results{D.to_host(nq * 10), I.to_host(nq * 10)}));
    IndexIVFTurboQuant back;
    gpu.copyTo(&back);
    EXPECT_EQ(search(*index, xq, 10), search(back, xq, 10));
}

/// lists of few queries are found and searched without the host
TEST(GpuIndexIVFTurboQuant, FewQueriesWithTheQuantizerOnTheDevice) {
    for (const char* codec : {"TQ1", "TQ4", "TQ2t", "TQ3"}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            const size_t d = 72, nlist = 40;
            const auto index =
                    make_ivf(std::string("IVF40(TQ4),") + codec, d, metric);
            SCOPED_TRACE(name_of(*index));
            GpuIndexIVFTurboQuant gpu(resources(), *index);
            const auto expect_same = [&](const faiss::SearchParameters* params =
                                                 nullptr) {
                for (const size_t nq : {1, 2, 13}) {
                    const auto xq = clusters(nq, d, 7 + nq);
                    for (const idx_t k : {1, 10, 300}) {
                        EXPECT_EQ(
                                search(*index, xq, k, params),
                                search(gpu, xq, k, params))
                                << nq << " queries, k = " << k;
                    }
                }
            };
            index->nprobe = gpu.nprobe = 3;
            expect_same(); // nothing
            const auto x = clusters(5000, d, 1);
            for (const size_t n : {20, 5000}) { // most lists empty, and not
                index->add(n, x.data());
                gpu.add(n, x.data());
                expect_same();
            }
            index->nprobe = gpu.nprobe = nlist;
            expect_same();
            index->nprobe = gpu.nprobe = 2;
            faiss::IDSelectorRange range(100, 900);
            SearchParametersIVF params;
            params.sel = &range;
            params.nprobe = 4;
            expect_same(&params);
            const auto xq = clusters(3, d, 5);
            const float radius = search(*index, xq, 20).D[19];
            EXPECT_EQ(
                    range_search(*index, xq, radius),
                    range_search(gpu, xq, radius));
            index->remove_ids(range);
            gpu.remove_ids(range);
            expect_same();
            auto bad = xq;
            bad[d + 1] = NAN;
            EXPECT_REFUSED(search(gpu, bad, 5), "query 1");
            GpuIndexIVFTurboQuant copy(resources(), *index);
            EXPECT_EQ(search(*index, xq, 9), search(copy, xq, 9));
            index->reset();
            gpu.reset();
            expect_same();
        }
    }
}

TEST(GpuIndexIVFTurboQuant, TrainsAsTheCpu) {
    const size_t d = 64;
    const auto x = clusters(900, d, 1);
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        faiss::IndexFlat cpu_quantizer(d, metric), gpu_quantizer(d, metric);
        IndexIVFTurboQuant index(&cpu_quantizer, d, 10, 4, metric);
        GpuIndexIVFTurboQuant gpu(
                resources(), &gpu_quantizer, d, 10, 4, metric);
        EXPECT_FALSE(gpu.is_trained);
        EXPECT_REFUSED(gpu.add(900, x.data()), "not trained");
        EXPECT_REFUSED(search(gpu, x, 1), "not trained");
        const OnDevice<float> device_x(x);
        index.train(900, x.data());
        gpu.train(900, device_x.data);
        index.add(900, x.data());
        gpu.add(900, device_x.data);
        index.nprobe = gpu.nprobe = 4;
        EXPECT_EQ(search(index, x, 5), search(gpu, x, 5));
        EXPECT_EQ(index.centre_scales, gpu.parameters().centre_scales);
        // another quantizer, by hand
        gpu.reset();
        index.reset();
        const auto centroids = clusters(10, d, 9);
        for (faiss::IndexFlat* quantizer : {&cpu_quantizer, &gpu_quantizer}) {
            quantizer->reset();
            quantizer->add(10, centroids.data());
        }
        index.add(900, x.data());
        gpu.add(900, x.data());
        EXPECT_EQ(search(index, x, 5), search(gpu, x, 5));
    }
}

TEST(GpuIndexIVFTurboQuant, Cloner) {
    faiss_turboquant::gpu::StandardGpuResources provider;
    const size_t d = 96;
    const auto x = clusters(1500, d, 1), xq = clusters(20, d, 2);
    for (const char* description :
         {"IVF10,TQ4",
          "IDMap2,IVF10,TQ2",
          "PCA32,IVF10,TQ4",
          "IVF10,TQ1,RFlat"}) {
        std::unique_ptr<faiss::Index> index(
                faiss_turboquant::index_factory(d, description));
        index->train(1500, x.data());
        std::vector<idx_t> ids(1500);
        for (idx_t i = 0; i < 1500; i++) {
            ids[i] = 2 * i + 1;
        }
        if (std::string(description).find("IDMap") == 0) {
            index->add_with_ids(1500, x.data(), ids.data());
        } else {
            index->add(1500, x.data());
        }
        std::unique_ptr<faiss::Index> gpu(
                faiss_turboquant::gpu::index_cpu_to_gpu(
                        &provider, 0, index.get()));
        EXPECT_EQ(search(*index, xq, 5), search(*gpu, xq, 5)) << description;
        std::unique_ptr<faiss::Index> back(
                faiss_turboquant::gpu::index_gpu_to_cpu(gpu.get()));
        EXPECT_EQ(search(*index, xq, 5), search(*back, xq, 5)) << description;

        for (const bool shard : {false, true}) {
            SCOPED_TRACE(shard ? "shards" : "replicas");
            faiss_turboquant::gpu::GpuMultipleClonerOptions options;
            options.shard = shard;
            std::unique_ptr<faiss::Index> parts(
                    faiss_turboquant::gpu::index_cpu_to_gpu_multiple(
                            {&provider, &provider, &provider},
                            {0, last_device(), 0},
                            index.get(),
                            &options));
            EXPECT_EQ(parts->ntotal, index->ntotal);
            EXPECT_EQ(search(*index, xq, 5), search(*parts, xq, 5));
            back.reset(faiss_turboquant::gpu::index_gpu_to_cpu(parts.get()));
            EXPECT_EQ(search(*index, xq, 5), search(*back, xq, 5));
        }
    }
}

TEST(GpuIndexIVFTurboQuant, ShardsHaveRangesOfIds) {
    faiss_turboquant::gpu::StandardGpuResources provider;
    const size_t d = 64, n = 900;
    // equal vectors, so that results are in the order of ids
    auto x = clusters(n / 3, d, 1);
    const auto once = x;
    x.insert(x.end(), once.begin(), once.end());
    x.insert(x.end(), once.begin(), once.end());
    const auto index = make_ivf("IVF10(TQ4),TQ4", d);
    index->nprobe = 4;
    std::vector<idx_t> ids(n);
    for (size_t i = 0; i < n; i++) {
        ids[i] = 3 * i;
    }
    index->add_with_ids(n, x.data(), ids.data());
    const auto lists = lists_of(*index);
    faiss_turboquant::gpu::GpuMultipleClonerOptions options;
    options.shard = true;
    const std::unique_ptr<faiss::Index> sharded(
            faiss_turboquant::gpu::index_cpu_to_gpu_multiple(
                    {&provider, &provider},
                    {0, last_device()},
                    index.get(),
                    &options));
    auto& shards = dynamic_cast<faiss::IndexShards&>(*sharded);
    ASSERT_EQ(shards.count(), 2);
    for (int i = 0; i < 2; i++) {
        auto& part = dynamic_cast<GpuIndexIVFTurboQuant&>(*shards.at(i));
        EXPECT_EQ(part.getDevice(), i == 0 ? 0 : last_device());
        EXPECT_EQ(part.ntotal, n / 2);
        EXPECT_EQ(part.nprobe, 4);
        for (const List& list : lists_of(part)) {
            for (const idx_t id : list.ids) {
                EXPECT_EQ(id >= ids[n / 2], i == 1);
            }
        }
    }
    EXPECT_EQ(lists_of(*index), lists);
    const auto xq = clusters(20, d, 2);
    EXPECT_EQ(search(*index, xq, 10), search(shards, xq, 10));
}

TEST(GpuIndexIVFTurboQuant, Refusals) {
    const auto index = make_ivf("IVF10,TQ4", 64);
    auto x = clusters(200, 64, 1);
    index->add(200, x.data());
    GpuIndexIVFTurboQuant gpu(resources(), *index);
    const auto before = lists_of(gpu);
    x[30 * 64 + 5] = NAN;
    EXPECT_REFUSED(gpu.add(200, x.data()), "vector 30");
    EXPECT_EQ(gpu.ntotal, 200);
    EXPECT_EQ(lists_of(gpu), before);
    EXPECT_REFUSED(search(gpu, x, 5), "query 30");
    EXPECT_REFUSED(search(gpu, x, 0), "k = 0");
    EXPECT_REFUSED(search(gpu, x, 2049), "k = 2049");
    faiss::SearchParameters plain;
    EXPECT_REFUSED(search(gpu, x, 5, &plain), "SearchParametersIVF");
    SearchParametersIVF params;
    params.max_codes = 7;
    EXPECT_REFUSED(search(gpu, x, 5, &params), "max_codes");
    params.max_codes = 0;
    params.nprobe = 0;
    EXPECT_REFUSED(search(gpu, x, 5, &params), "nprobe is 0");
    EXPECT_REFUSED(gpu.get_list_size(10), "no list 10");
    const auto prod = make_ivf("IVF10,TQ4prod", 64);
    EXPECT_REFUSED(GpuIndexIVFTurboQuant(resources(), *prod), "TQ4prod");
    EXPECT_REFUSED(
            GpuIndexIVFTurboQuant(nullptr, *index), "resources are null");
}
