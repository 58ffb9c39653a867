#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexShards.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissException.h>

#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_factory.h>
#include <faiss_turboquant/index_io.h>
#include <faiss_turboquant/index_tree.h>

#include "index_test.h"

namespace {

using IndexPtr = std::unique_ptr<faiss::Index>;

constexpr int d = 16;
constexpr int n = 200;
constexpr int k = 4;

Results results_of(const faiss::Index& index) {
    return search(index, gaussian(20, d, 2), k);
}

void fill(faiss::Index& index, bool with_ids) {
    const auto x = gaussian(n, d, 1);
    index.train(n, x.data());
    if (with_ids) {
        std::vector<faiss::idx_t> ids(n);
        for (int i = 0; i < n; i++) {
            ids[i] = 5000 - i;
        }
        index.add_with_ids(n, x.data(), ids.data());
    } else {
        index.add(n, x.data());
    }
}

/// the pointers of an index and of all inside it
std::vector<const faiss::Index*> all_indexes(const faiss::Index* index) {
    std::vector<const faiss::Index*> out = {index};
    for (size_t i = 0; i < out.size(); i++) {
        for (const faiss::Index* sub : faiss_turboquant::sub_indexes(out[i])) {
            out.push_back(sub);
        }
    }
    return out;
}

void expect_deep_copy(IndexPtr index, const std::string& what) {
    IndexPtr copy(faiss_turboquant::clone_index(index.get()));
    const auto a = all_indexes(index.get()), b = all_indexes(copy.get());
    ASSERT_EQ(a.size(), b.size()) << what;
    for (size_t i = 0; i < a.size(); i++) {
        EXPECT_NE(a[i], b[i]) << what;
        EXPECT_EQ(
                faiss_turboquant::type_name(a[i]),
                faiss_turboquant::type_name(b[i]))
                << what;
        EXPECT_EQ(a[i]->d, b[i]->d) << what;
        EXPECT_EQ(a[i]->ntotal, b[i]->ntotal) << what;
        EXPECT_EQ(a[i]->is_trained, b[i]->is_trained) << what;
        EXPECT_EQ(a[i]->metric_type, b[i]->metric_type) << what;
    }
    const Results before = results_of(*index);
    EXPECT_EQ(results_of(*copy), before) << what;
    copy->reset();
    EXPECT_EQ(results_of(*index), before) << what << ": the copy is not deep";
    copy.reset(faiss_turboquant::clone_index(index.get()));
    index.reset();
    EXPECT_EQ(results_of(*copy), before) << what << ": the copy is not deep";
}

TEST(CloneIndex, FactoryIndexes) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        for (const char* s :
             {"TQ1",
              "TQ2t",
              "TQ2mse",
              "TQ2.5",
              "TQ2.5t",
              "TQ1prod",
              "TQ3prod",
              "TQ4",
              "IDMap,TQ4",
              "TQ3,IDMap2",
              "PCA8,TQ4",
              "L2norm,TQ4",
              "RR,TQ4",
              "ITQ8,TQ2",
              "Pad20,TQ2",
              "L2norm,PCAWR8,TQ4",
              "TQ2,RFlat",
              "TQ1,Refine(TQ4)",
              "TQ1,Refine(SQ8)",
              "SQ8,Refine(TQ4)",
              "HNSW8,Refine(TQ4)",
              "IDMap2,PCA8,TQ1,Refine(L2norm,TQ4)"}) {
            IndexPtr index(faiss_turboquant::index_factory(d, s, metric));
            fill(*index, std::string(s).find("IDMap") != std::string::npos);
            expect_deep_copy(std::move(index), s);
        }
    }
    IndexPtr index(faiss_turboquant::index_factory(
            d, "TQ2,RefinePanorama(FlatL2Panorama4_1)"));
    fill(*index, false);
    expect_deep_copy(std::move(index), "panorama");
}

TEST(CloneIndex, Untrained) {
    IndexPtr index(faiss_turboquant::index_factory(d, "IDMap2,PCA8,TQ4"));
    IndexPtr copy(faiss_turboquant::clone_index(index.get()));
    EXPECT_FALSE(copy->is_trained);
    fill(*copy, true);
    EXPECT_EQ(copy->ntotal, n);
    EXPECT_EQ(index->ntotal, 0);
}

TEST(CloneIndex, Centering) {
    auto pre = std::make_unique<faiss::IndexPreTransform>(
            new faiss::CenteringTransform(d), new faiss::IndexTurboQuant(d));
    pre->own_fields = true;
    fill(*pre, false);
    expect_deep_copy(std::move(pre), "CenteringTransform");
}

TEST(CloneIndex, Codec) {
    for (const char* s : {"MinMax,TQ4", "MinMaxFP16,TQ4"}) {
        IndexPtr index(faiss_turboquant::index_factory(d, s));
        IndexPtr copy(faiss_turboquant::clone_index(index.get()));
        ASSERT_NE(copy, nullptr);
        EXPECT_EQ(
                faiss_turboquant::type_name(copy.get()),
                faiss_turboquant::type_name(index.get()));
        const auto x = gaussian(n, d, 1);
        std::vector<uint8_t> a(n * index->sa_code_size()), b(a.size());
        index->sa_encode(n, x.data(), a.data());
        index.reset();
        copy->sa_encode(n, x.data(), b.data());
        EXPECT_EQ(a, b);
    }
}

/// graph and IVF indexes that a user builds around TurboQuant by hand
TEST(CloneIndex, GraphsAndIVF) {
    auto hnsw = std::make_unique<faiss::IndexHNSW>(
            new faiss::IndexTurboQuant(d), 8);
    hnsw->own_fields = true;
    fill(*hnsw, false);
    expect_deep_copy(std::move(hnsw), "IndexHNSW");

    auto nsg =
            std::make_unique<faiss::IndexNSG>(new faiss::IndexTurboQuant(d), 8);
    nsg->own_fields = true;
    fill(*nsg, false);
    IndexPtr nsg_copy(faiss_turboquant::clone_index(nsg.get()));
    const Results before = results_of(*nsg);
    nsg.reset();
    EXPECT_EQ(results_of(*nsg_copy), before);

    auto ivf = std::make_unique<faiss::IndexIVFFlat>(
            new faiss::IndexTurboQuant(d), d, 5);
    ivf->own_fields = true;
    fill(*ivf, false);
    expect_deep_copy(std::move(ivf), "IndexIVFFlat");
}

TEST(CloneIndex, OthersGoToFaiss) {
    faiss::IndexFlatL2 flat(d);
    fill(flat, false);
    IndexPtr copy(faiss_turboquant::clone_index(&flat));
    EXPECT_NE(dynamic_cast<faiss::IndexFlatL2*>(copy.get()), nullptr);
    EXPECT_EQ(results_of(*copy), results_of(flat));
}

TEST(CloneIndex, Refused) {
    EXPECT_THROW(faiss_turboquant::clone_index(nullptr), faiss::FaissException);
    faiss::IndexTurboQuant part(d);
    faiss::IndexShards shards(d);
    shards.add_shard(&part);
    EXPECT_TRUE(faiss_turboquant::contains_turboquant(&shards));
    EXPECT_THROW(faiss_turboquant::clone_index(&shards), faiss::FaissException);
}

} // namespace
