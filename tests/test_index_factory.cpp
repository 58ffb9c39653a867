#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <typeinfo>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissException.h>
#include <faiss/index_factory.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/index_factory.h>
#include <faiss_turboquant/index_tree.h>

#include "index_test.h"

namespace {

using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;

using IndexPtr = std::unique_ptr<faiss::Index>;

/// classes, dimensions and flags of an index and all inside it
std::string describe(const faiss::Index* index, const std::string& leaf_type) {
    std::string type = faiss_turboquant::type_name(index);
    // FAISS has classes of their own for scalar quantizers inside these
    for (const auto& [from, to] :
         {std::pair(
                  "faiss::IndexIVFScalarQuantizer",
                  "faiss::IndexIVFTurboQuant"),
          std::pair("faiss::IndexHNSWSQ", "faiss::IndexHNSW"),
          std::pair("faiss::IndexNSGSQ", "faiss::IndexNSG")}) {
        if (type == from) {
            type = to;
        }
    }
    if (type == leaf_type) {
        type = "LEAF";
    }
    std::string text = type + "<d=" + std::to_string(index->d) +
            " metric=" + std::to_string(index->metric_type) +
            " trained=" + std::to_string(index->is_trained) +
            " n=" + std::to_string(index->ntotal);
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
        for (const faiss::VectorTransform* vt : pre->chain) {
            text += std::string(" ") + typeid(*vt).name() + ":" +
                    std::to_string(vt->d_in) + "->" + std::to_string(vt->d_out);
        }
    }
    if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(index)) {
        text += " nlist=" + std::to_string(ivf->nlist) +
                " alone=" + std::to_string(ivf->quantizer_trains_alone) +
                " owns=" + std::to_string(ivf->own_fields) +
                std::to_string(ivf->own_invlists) +
                " spherical=" + std::to_string(ivf->cp.spherical) +
                " nprobe=" + std::to_string(ivf->nprobe);
    }
    if (auto hnsw = dynamic_cast<const faiss::IndexHNSW*>(index)) {
        text += " M=" + std::to_string(hnsw->hnsw.nb_neighbors(1)) +
                " owns=" + std::to_string(hnsw->own_fields);
    }
    if (auto nsg = dynamic_cast<const faiss::IndexNSG*>(index)) {
        text += " R=" + std::to_string(nsg->nsg.R) +
                " owns=" + std::to_string(nsg->own_fields) +
                " build=" + std::to_string(nsg->build_type);
    }
    text += ">(";
    for (const faiss::Index* sub : faiss_turboquant::sub_indexes(index)) {
        text += describe(sub, leaf_type) + " ";
    }
    return text + ")";
}

std::string message_of(
        int d,
        const char* description,
        faiss::MetricType metric = METRIC_L2) {
    return ::message_of([&] {
        IndexPtr index(faiss_turboquant::index_factory(d, description, metric));
    });
}

TEST(IndexFactory, Codecs) {
    for (int d : {1, 7, 64, 100}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
                const std::string name = "TQ" + std::to_string(nbits);
                IndexPtr index(faiss_turboquant::index_factory(
                        d, name.c_str(), metric));
                auto tq = dynamic_cast<faiss::IndexTurboQuant*>(index.get());
                ASSERT_NE(tq, nullptr) << name;
                EXPECT_EQ(tq->d, d);
                EXPECT_EQ(tq->tq.nbits, nbits);
                EXPECT_EQ(tq->metric_type, metric);
                EXPECT_TRUE(tq->is_trained);
                EXPECT_EQ(tq->ntotal, 0);
            }
        }
    }
}

TEST(IndexFactory, NamesOfCodecs) {
    for (const char* name :
         {"TQ1",
          "TQ4",
          "TQ2t",
          "TQ3t10",
          "TQ4t12",
          "TQ1mse",
          "TQ4mse",
          "TQ1.5",
          "TQ2.5",
          "TQ3.5",
          "TQ1.5t",
          "TQ2.5t10",
          "TQ3.5t12",
          "TQ1prod",
          "TQ3prod"}) {
        IndexPtr flat(faiss_turboquant::index_factory(16, name));
        EXPECT_EQ(
                name,
                dynamic_cast<faiss::IndexTurboQuant&>(*flat).tq.codec_name());
        const std::string description = std::string("IVF4,") + name;
        IndexPtr ivf(faiss_turboquant::index_factory(16, description.c_str()));
        EXPECT_EQ(
                name,
                dynamic_cast<faiss::IndexIVFTurboQuant&>(*ivf).tq.codec_name());
    }
}

/// with another leaf in TurboQuant's place FAISS builds the same tree
TEST(IndexFactory, WrappersAreThoseOfFaiss) {
    const std::vector<std::string> forms = {
            "IDMap,@",
            "IDMap2,@",
            "@,IDMap",
            "@,IDMap2",
            "PCA8,@",
            "PCAW8,@",
            "PCAR8,@",
            "PCAWR8,@",
            "L2norm,@",
            "L2Norm,@",
            "RR,@",
            "RR24,@",
            "ITQ,@",
            "ITQ8,@",
            "OPQ4,@",
            "OPQ4_8,@",
            "Pad32,@",
            "L2norm,PCA8,RR12,@",
            "@,RFlat",
            "@,Refine(@)",
            "@,Refine(SQ8)",
            "@,Refine(Flat)",
            "PQ4x4,Refine(@)",
            "IVF4,Flat,Refine(@)",
            "HNSW8,Refine(@)",
            "@,RefinePanorama(FlatL2Panorama4)",
            "PCA8,@,RFlat",
            "IDMap2,PCA8,@",
            "PCA8,@,IDMap2",
            "PCA8,IDMap2,@",
            "IDMap,PCA8,@,RFlat",
            "@,Refine(@),IDMap2",
            "@,Refine(PCA8,@)",
            "@,Refine(SQfp16)",
            "SQbf16,Refine(PCA8,@)",
            "MinMax,@",
            "MinMaxFP16,@",
            "IVF16,@",
            "IVF16_HNSW8,@",
            "IVF16(PQ8),@",
            "IVF16(RCQ2x4),@",
            "IVF16(@),@",
            "IVF16(@,Refine(@)),Flat",
            "IVF16(HNSW8,@),PQ4x4",
            "IVF16(IVF4,@,RFlat),@",
            "IMI2x4,@",
            "OPQ4_8,IVF16,@",
            "PCA8,IVF16,@,RFlat",
            "@,Refine(IVF16,@)",
            "IDMap2,IVF16,@",
            "HNSW8,@",
            "HNSW8_@",
            "HNSW,@",
            "PCA8,HNSW8,@",
            "IDMap,HNSW8,@",
            "HNSW8,@,RFlat",
            "NSG8,@",
            "NSG,@",
            "PCA8,NSG8,@",
    };
    // trained from birth, as TurboQuant is; not in the forms
    const std::string leaf = "SQ8_direct_signed";
    const IndexPtr leaf_index(faiss::index_factory(16, leaf.c_str()));
    const std::string leaf_type = faiss_turboquant::type_name(leaf_index.get());

    for (const std::string& form : forms) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            if (metric == METRIC_INNER_PRODUCT &&
                (form.find("FlatL2") != std::string::npos ||
                 form.find("IMI") != std::string::npos)) {
                continue;
            }
            auto with = [&](const std::string& codec) {
                std::string s = form;
                size_t at;
                while ((at = s.find('@')) != std::string::npos) {
                    s.replace(at, 1, codec);
                }
                return s;
            };
            const IndexPtr expected(
                    faiss::index_factory(16, with(leaf).c_str(), metric));
            const IndexPtr index(faiss_turboquant::index_factory(
                    16, with("TQ3").c_str(), metric));
            // FAISS's factory leaves these without an owner
            if (auto panorama = dynamic_cast<faiss::IndexRefinePanorama*>(
                        expected.get())) {
                panorama->own_fields = panorama->own_refine_index = true;
            }
            std::string want = describe(expected.get(), leaf_type);
            std::string got = describe(index.get(), "faiss::IndexTurboQuant");
            // scalar quantizers of the forms themselves
            for (std::string* s : {&want, &got}) {
                size_t at;
                while ((at = s->find(leaf_type)) != std::string::npos) {
                    s->replace(at, leaf_type.size(), "LEAF");
                }
            }
            EXPECT_EQ(got, want) << form;
            EXPECT_TRUE(faiss_turboquant::contains_turboquant(index.get()));
        }
    }
}

TEST(IndexFactory, EachCodecInItsPlace) {
    const IndexPtr index(faiss_turboquant::index_factory(
            16, "PCA8,TQ1,Refine(L2norm,TQ4),IDMap"));
    auto map = dynamic_cast<faiss::IndexIDMap*>(index.get());
    ASSERT_NE(map, nullptr);
    EXPECT_TRUE(map->own_fields);
    auto refine = dynamic_cast<faiss::IndexRefine*>(map->index);
    ASSERT_NE(refine, nullptr);
    EXPECT_TRUE(refine->own_fields);
    EXPECT_TRUE(refine->own_refine_index);
    auto nbits_behind_transform = [](const faiss::Index& i) {
        auto& pre = dynamic_cast<const faiss::IndexPreTransform&>(i);
        EXPECT_TRUE(pre.own_fields);
        return dynamic_cast<faiss::IndexTurboQuant&>(*pre.index).tq.nbits;
    };
    EXPECT_EQ(nbits_behind_transform(*refine->base_index), 1);
    EXPECT_EQ(nbits_behind_transform(*refine->refine_index), 4);
}

TEST(IndexFactory, PanoramaOwnsItsParts) {
    IndexPtr index(faiss_turboquant::index_factory(
            16, "TQ2,RefinePanorama(FlatL2Panorama4)"));
    auto refine = dynamic_cast<faiss::IndexRefinePanorama*>(index.get());
    ASSERT_NE(refine, nullptr);
    EXPECT_TRUE(refine->own_fields);
    EXPECT_TRUE(refine->own_refine_index);
}

TEST(IndexFactory, BuiltIndexesSearch) {
    const int d = 16, n = 300, k = 5;
    std::vector<float> x(n * d);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& v : x) {
        v = normal(random);
    }
    std::vector<faiss::idx_t> ids(n);
    for (int i = 0; i < n; i++) {
        ids[i] = 1000 + 7 * i;
    }
    for (const char* s :
         {"TQ4",
          "L2norm,TQ4",
          "RR,TQ4",
          "PCA16,TQ4",
          "TQ2,RFlat",
          "TQ2,Refine(TQ4)",
          "SQ8,Refine(TQ4)",
          "TQ2,RefinePanorama(FlatL2Panorama4_1)"}) {
        IndexPtr index(faiss_turboquant::index_factory(d, s));
        index->train(n, x.data());
        index->add(n, x.data());
        EXPECT_EQ(index->ntotal, n) << s;
        std::vector<float> distances(n * k);
        std::vector<faiss::idx_t> labels(n * k);
        index->search(n, x.data(), k, distances.data(), labels.data());
        int found = 0;
        for (int i = 0; i < n; i++) {
            found += std::count(
                    labels.begin() + i * k, labels.begin() + (i + 1) * k, i);
        }
        EXPECT_GT(found, n * 9 / 10) << s;
    }
    for (const char* s : {"IDMap,TQ4", "PCA16,IDMap2,TQ4", "TQ4,IDMap2"}) {
        IndexPtr index(faiss_turboquant::index_factory(d, s));
        index->train(n, x.data());
        index->add_with_ids(n, x.data(), ids.data());
        std::vector<float> distances(n);
        std::vector<faiss::idx_t> labels(n);
        index->search(n, x.data(), 1, distances.data(), labels.data());
        int found = 0;
        for (int i = 0; i < n; i++) {
            found += labels[i] == ids[i];
        }
        EXPECT_GT(found, n * 9 / 10) << s;
    }
}

TEST(IndexFactory, OthersGoToFaiss) {
    for (const char* s :
         {"Flat", "IVF16,PQ4", "HNSW8,SQ8", "IDMap,PCA8,SQfp16", "RaBitQ4"}) {
        const IndexPtr expected(faiss::index_factory(16, s));
        const IndexPtr index(faiss_turboquant::index_factory(16, s));
        EXPECT_EQ(describe(index.get(), ""), describe(expected.get(), ""));
    }
    EXPECT_NO_THROW(IndexPtr(
            faiss_turboquant::index_factory(16, "Flat", faiss::METRIC_L1)));
    // own_invlists is passed on
    IndexPtr ivf(faiss_turboquant::index_factory(
            16, "IVF16,Flat", METRIC_L2, false));
    EXPECT_EQ(dynamic_cast<faiss::IndexIVF&>(*ivf).invlists, nullptr);
    EXPECT_NE(message_of(16, "Nonsense").find("Nonsense"), std::string::npos);
}

TEST(IndexFactory, UnknownCodecs) {
    struct Case {
        const char* description;
        const char* word;
        const char* nearest;
    };
    for (const Case& c : std::vector<Case>{
                 {"TQ", "\"TQ\"", "TQ1, TQ2, TQ3, TQ4"},
                 {"TQ0", "\"TQ0\"", "TQ1, TQ2, TQ3, TQ4"},
                 {"TQ5", "\"TQ5\"", "TQ1, TQ2, TQ3, TQ4"},
                 {"TQ04", "\"TQ04\"", "nearest valid: TQ4"},
                 {"TQ5t", "\"TQ5t\"", "TQ1t, TQ2t, TQ3t, TQ4t"},
                 {"TQ2t9", "\"TQ2t9\"", "nearest valid: TQ2t"},
                 {"TQ4.5", "\"TQ4.5\"", "nearest valid: TQ1.5, TQ2.5, TQ3.5"},
                 {"TQ2.5t9", "\"TQ2.5t9\"", "nearest valid: TQ2.5t"},
                 {"TQ5mse", "\"TQ5mse\"", "TQ1mse, TQ2mse, TQ3mse, TQ4mse"},
                 {"TQ3tmse", "\"TQ3tmse\"", "nearest valid: TQ3mse"},
                 {"TQ2tprod", "\"TQ2tprod\"", "nearest valid: TQ2prod"},
                 {"TQ2.5prod", "\"TQ2.5prod\"", "nearest valid: TQ2prod"},
                 {"tq4", "\"tq4\"", "nearest valid: TQ4"},
                 {"TQ4 ", "\"TQ4 \"", "nearest valid: TQ4"},
                 {"Polar2", "\"Polar2\"", "TQ2"},
                 {"TurboQuant4", "\"TurboQuant4\"", "TQ4"},
                 {"PCA8,TQ7,RFlat", "\"TQ7\"", "TQ1, TQ2, TQ3, TQ4"},
                 {"TQ1,Refine(TQ9)", "\"TQ9\"", "TQ1, TQ2, TQ3, TQ4"},
         }) {
        const std::string message = message_of(16, c.description);
        EXPECT_NE(message.find(c.word), std::string::npos)
                << c.description << ": " << message;
        EXPECT_NE(message.find(c.nearest), std::string::npos) << message;
        EXPECT_NE(
                message.find("\"" + std::string(c.description) + "\""),
                std::string::npos)
                << message;
    }
}

TEST(IndexFactory, PlacesThatTakeNoCodec) {
    for (const char* s :
         {"IVF16x4fsr,TQ4",
          "HNSW8,TQ4,Flat",
          "TQ4,Flat",
          "Nonsense,TQ4",
          "TQ4,",
          ",TQ4",
          "TQ4)",
          "(TQ4",
          "TQ1,TQ2",
          "TQ1,Refine(TQ4",
          "PCA99999999999,TQ4"}) {
        const std::string message = message_of(16, s);
        EXPECT_NE(message.find("\"" + std::string(s) + "\""), std::string::npos)
                << s << ": " << message;
        EXPECT_NE(message.find("valid forms: TQ4"), std::string::npos)
                << message;
        for (const char* internal : {"SQbf16", "SQfp16", "SQ8_direct"}) {
            EXPECT_EQ(message.find(internal), std::string::npos) << message;
        }
    }
    const std::string message = message_of(16, "TQ1,SQbf16,SQfp16,SQ8_direct");
    EXPECT_NE(message.find("told apart"), std::string::npos) << message;
}

TEST(IndexFactory, BadArguments) {
    EXPECT_NE(message_of(0, "TQ4").find("got 0"), std::string::npos);
    EXPECT_NE(message_of(-3, "PCA8,TQ4").find("got -3"), std::string::npos);
    EXPECT_NE(message_of(1 << 20, "TQ4").find("1048576"), std::string::npos);
    EXPECT_NE(
            message_of(1 << 20, "IDMap,TQ4,RFlat").find("1048576"),
            std::string::npos);
    EXPECT_NE(message_of(16, nullptr).find("description"), std::string::npos);
    const std::string message = message_of(16, "TQ4", faiss::METRIC_L1);
    EXPECT_NE(message.find("metric"), std::string::npos);
    EXPECT_NE(message.find("got 2"), std::string::npos);
    // only the codec's own dimension is limited
    IndexPtr index(faiss_turboquant::index_factory(1 << 17, "PCA64,TQ4"));
    EXPECT_EQ(index->d, 1 << 17);
}

} // namespace
