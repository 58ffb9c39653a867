#include <faiss_turboquant/IndexTurboQuant.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include <gtest/gtest.h>
#include <omp.h>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/ResultHandler.h>

#include <faiss_turboquant/index_factory.h>

#include "awkward_sizes.h"
#include "index_test.h"

using faiss::idx_t;
using faiss::IndexTurboQuant;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;

namespace {

IndexTurboQuant make_index(
        size_t d,
        int nbits,
        faiss::MetricType metric,
        int memory) {
    return IndexTurboQuant(
            d,
            nbits,
            metric,
            faiss_turboquant::RotationType::Hadamard,
            1,
            memory);
}

/// what search has to return: every distance, sorted by distance, then id
Results brute_force(
        const IndexTurboQuant& index,
        const std::vector<float>& x,
        idx_t k,
        const faiss::IDSelector* sel = nullptr) {
    const bool is_l2 = index.metric_type == METRIC_L2;
    Results r;
    std::unique_ptr<faiss::DistanceComputer> dc(index.get_distance_computer());
    for (size_t q = 0; q < x.size() / index.d; q++) {
        dc->set_query(x.data() + q * index.d);
        std::vector<std::pair<float, idx_t>> all;
        for (idx_t i = 0; i < index.ntotal; i++) {
            if (!sel || sel->is_member(i)) {
                all.emplace_back(is_l2 ? (*dc)(i) : -(*dc)(i), i);
            }
        }
        std::sort(all.begin(), all.end());
        for (idx_t i = 0; i < k; i++) {
            if (i < idx_t(all.size())) {
                const float key = all[i].first;
                r.D.push_back(is_l2 ? std::max(key, 0.0f) : -key);
                r.I.push_back(all[i].second);
            } else {
                r.D.push_back(
                        (is_l2 ? 1 : -1) * std::numeric_limits<float>::max());
                r.I.push_back(-1);
            }
        }
    }
    return r;
}

IndexTurboQuant index_of(
        const char* codec,
        size_t d,
        faiss::MetricType metric) {
    const std::unique_ptr<faiss::Index> index(
            faiss_turboquant::index_factory(d, codec, metric));
    return dynamic_cast<IndexTurboQuant&>(*index);
}

/// codecs other than those of make_index
const char* const other_codecs[] = {
        "TQ1mse",
        "TQ2mse",
        "TQ3mse",
        "TQ4mse",
        "TQ1.5",
        "TQ2.5",
        "TQ3.5",
        "TQ1.5t",
        "TQ2.5t",
        "TQ3.5t",
        "TQ2.5t10",
        "TQ1prod",
        "TQ2prod",
        "TQ3prod",
        "TQ4prod"};

} // namespace

TEST(IndexTurboQuant, SearchEqualsBruteForce) {
    for (auto [metric, memory] :
         {std::pair(METRIC_L2, 0),
          std::pair(METRIC_INNER_PRODUCT, 0),
          std::pair(METRIC_L2, 8)}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            for (size_t d : {1, 8, 33, 100, 257}) {
                for (size_t n : {1, 17, 65, 600}) {
                    IndexTurboQuant index =
                            make_index(d, nbits, metric, memory);
                    EXPECT_TRUE(index.is_trained);
                    index.add(n, gaussian(n, d, n).data());
                    // around the switch from single queries to batches, and
                    // around the number of queries of a tile
                    for (size_t nq : {1, 3, 4, 5, 13}) {
                        const auto xq = gaussian(nq, d, 99);
                        for (idx_t k : {1, 10, 1000}) {
                            EXPECT_EQ(
                                    brute_force(index, xq, k),
                                    search(index, xq, k))
                                    << "memory " << memory << " d " << d
                                    << " nbits " << nbits << " n " << n
                                    << " nq " << nq << " k " << k;
                        }
                    }
                }
            }
        }
    }
}

TEST(IndexTurboQuant, SearchOfOtherCodecsEqualsBruteForce) {
    for (const char* codec : other_codecs) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (size_t d : awkward_sizes) {
                const size_t n = 300;
                IndexTurboQuant index = index_of(codec, d, metric);
                if (d % 2) {
                    index.train(n, gaussian(n, d, 3).data());
                }
                index.add(n, gaussian(n, d, n).data());
                faiss::IDSelectorRange range(20, 100);
                faiss::SearchParameters params;
                params.sel = &range;
                for (size_t nq : {1, 5, 40}) {
                    const auto xq = gaussian(nq, d, 99);
                    EXPECT_EQ(brute_force(index, xq, 10), search(index, xq, 10))
                            << codec << " d " << d << " nq " << nq;
                    EXPECT_EQ(
                            brute_force(index, xq, 10, &range),
                            search(index, xq, 10, &params))
                            << codec << " d " << d << " nq " << nq;
                }
            }
        }
    }
}

TEST(IndexTurboQuant, ThreadsDoNotChangeResults) {
    const size_t d = 40, n = 30000;
    const int before = omp_get_max_threads();
    IndexTurboQuant index(d, 2, METRIC_L2);
    index.add(n, gaussian(n, d, 1).data());
    for (size_t nq : {1, 7, 300}) {
        const auto xq = gaussian(nq, d, 2);
        omp_set_num_threads(1);
        const Results one = search(index, xq, 20);
        for (int threads : {2, 3, 8}) {
            omp_set_num_threads(threads);
            EXPECT_EQ(one, search(index, xq, 20)) << threads;
        }
    }
    omp_set_num_threads(before);
}

TEST(IndexTurboQuant, EqualDistancesAreOrderedById) {
    const size_t d = 16, n = 9000;
    const auto one = gaussian(1, d, 1);
    IndexTurboQuant index(d, 4, METRIC_INNER_PRODUCT);
    for (size_t i = 0; i < n; i++) {
        index.add(1, one.data());
    }
    const Results r = search(index, one, 50);
    for (idx_t i = 0; i < 50; i++) {
        EXPECT_EQ(i, r.I[i]);
    }
}

TEST(IndexTurboQuant, EstimatesAreCloseToExactDistances) {
    const size_t d = 384, n = 500, nq = 20;
    const auto xb = gaussian(n, d, 1), xq = gaussian(nq, d, 2);
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (bool trained : {false, true}) {
            IndexTurboQuant index(d, 4, metric);
            faiss::IndexFlat exact(d, metric);
            if (trained) {
                index.train(n, xb.data());
            }
            index.add(n, xb.data());
            exact.add(n, xb.data());
            std::unique_ptr<faiss::DistanceComputer> a(
                    index.get_distance_computer()),
                    b(exact.get_distance_computer());
            double error = 0;
            for (size_t q = 0; q < nq; q++) {
                a->set_query(xq.data() + q * d);
                b->set_query(xq.data() + q * d);
                for (size_t i = 0; i < n; i++) {
                    error += std::pow((*a)(i) - (*b)(i), 2);
                }
            }
            // error of <q, x>: |q|^2 |x|^2 0.0095 / d = 0.0095 d, plus that of
            // the int8 query; of a squared distance: 4 times that
            const double expected = 0.0095 * d * (metric == METRIC_L2 ? 4 : 1);
            EXPECT_NEAR(error / (n * nq) / expected, 1.0, 0.15);
        }
    }
}

TEST(IndexTurboQuant, CentreHelpsDataWithAMean) {
    const size_t d = 64, n = 4000, nq = 100, k = 10;
    const auto xb = gaussian(n, d, 1, 3.0f), xq = gaussian(nq, d, 2, 3.0f);
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        faiss::IndexFlat exact(d, metric);
        exact.add(n, xb.data());
        const Results truth = search(exact, xq, k);
        const auto recall = [&](const faiss::Index& index) {
            const Results r = search(index, xq, k);
            size_t hits = 0;
            for (size_t i = 0; i < nq * k; i++) {
                const auto begin = truth.I.begin() + i / k * k;
                hits += std::count(begin, begin + k, r.I[i]);
            }
            return double(hits) / (nq * k);
        };
        IndexTurboQuant plain(d, 2, metric), trained(d, 2, metric);
        trained.train(n, xb.data());
        plain.add(n, xb.data());
        trained.add(n, xb.data());
        EXPECT_GT(recall(trained), recall(plain) + 0.1);
    }
}

TEST(IndexTurboQuant, CodeSize) {
    for (size_t d : awkward_sizes) {
        for (int nbits : {1, 2, 4}) {
            const size_t packed = (d * nbits + 7) / 8;
            IndexTurboQuant ip(d, nbits, METRIC_INNER_PRODUCT);
            IndexTurboQuant l2(d, nbits, METRIC_L2);
            EXPECT_EQ(packed + 4, ip.sa_code_size());
            EXPECT_EQ(packed + 8, l2.sa_code_size());
            ip.train(1, gaussian(1, d, 1).data());
            EXPECT_EQ(packed + 8, ip.sa_code_size());
        }
        // a plane of 2 bits and a plane of 1
        IndexTurboQuant ip(d, 3, METRIC_INNER_PRODUCT);
        EXPECT_EQ((d + 3) / 4 + (d + 7) / 8 + 4, ip.sa_code_size());
    }
}

TEST(IndexTurboQuant, Selectors) {
    const size_t d = 50, n = 1000;
    IndexTurboQuant index(d, 3, METRIC_L2);
    index.add(n, gaussian(n, d, 1).data());
    std::vector<idx_t> ids = {3, 5, 999, 64, 63, 128};
    faiss::IDSelectorRange range(100, 227);
    faiss::IDSelectorBatch batch(ids.size(), ids.data());
    faiss::IDSelectorNot inverse(&range);
    faiss::IDSelectorRange none(n, n + 5);
    for (const faiss::IDSelector* sel :
         {static_cast<const faiss::IDSelector*>(&range),
          static_cast<const faiss::IDSelector*>(&batch),
          static_cast<const faiss::IDSelector*>(&inverse),
          static_cast<const faiss::IDSelector*>(&none)}) {
        faiss::SearchParameters params;
        params.sel = const_cast<faiss::IDSelector*>(sel);
        for (size_t nq : {1, 9}) {
            const auto xq = gaussian(nq, d, 3);
            EXPECT_EQ(
                    brute_force(index, xq, 20, sel),
                    search(index, xq, 20, &params));
        }
    }
}

TEST(IndexTurboQuant, RangeSearch) {
    const size_t d = 30, n = 700;
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        IndexTurboQuant index(d, 4, metric);
        index.add(n, gaussian(n, d, 1).data());
        for (size_t nq : {1, 6}) {
            const auto xq = gaussian(nq, d, 3);
            const float radius = metric == METRIC_L2 ? 50.0f : 3.0f;
            faiss::RangeSearchResult result(nq);
            index.range_search(nq, xq.data(), radius, &result);
            std::unique_ptr<faiss::DistanceComputer> dc(
                    index.get_distance_computer());
            size_t at = 0;
            for (size_t q = 0; q < nq; q++) {
                EXPECT_EQ(at, result.lims[q]);
                dc->set_query(xq.data() + q * d);
                for (size_t i = 0; i < n; i++) {
                    const float dis = (*dc)(i);
                    if (metric == METRIC_L2 ? dis < radius : dis > radius) {
                        ASSERT_LT(at, result.lims[nq]);
                        EXPECT_EQ(idx_t(i), result.labels[at]);
                        EXPECT_EQ(dis, result.distances[at]);
                        at++;
                    }
                }
            }
            EXPECT_EQ(at, result.lims[nq]);
            EXPECT_GT(at, 0u);
            EXPECT_LT(at, nq * n);
        }
    }
}

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
TEST(IndexTurboQuant, Search1) {
    struct Collect : faiss::ResultHandler {
        std::vector<std::pair<idx_t, float>> results;
        bool add_result(float distance, idx_t id) override {
            results.emplace_back(id, distance);
            return false;
        }
    };
    const size_t d = 30, n = 700;
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        IndexTurboQuant index(d, 4, metric);
        index.add(n, gaussian(n, d, 1).data());
        const auto xq = gaussian(1, d, 3);
        const float radius = metric == METRIC_L2 ? 50.0f : 3.0f;
        faiss::IDSelectorRange range(100, 500);
        faiss::SearchParameters params;
        params.sel = &range;
        Collect collect;
        collect.threshold = radius;
        index.search1(xq.data(), collect, &params);
        faiss::RangeSearchResult result(1);
        index.range_search(1, xq.data(), radius, &result, &params);
        ASSERT_EQ(result.lims[1], collect.results.size());
        EXPECT_GT(result.lims[1], 0u);
        for (size_t i = 0; i < result.lims[1]; i++) {
            EXPECT_EQ(result.labels[i], collect.results[i].first);
            EXPECT_EQ(result.distances[i], collect.results[i].second);
        }
    }
}
#endif

TEST(IndexTurboQuant, RemoveMergeAndSaCodes) {
    const size_t d = 20, n = 300;
    const auto xb = gaussian(n, d, 1), xq = gaussian(7, d, 2);
    IndexTurboQuant whole(d, 2), first(d, 2), second(d, 2);
    whole.add(n, xb.data());
    first.add(100, xb.data());
    second.add(n - 100, xb.data() + 100 * d);
    first.merge_from(second);
    EXPECT_EQ(0, second.ntotal);
    EXPECT_EQ(search(whole, xq, 9), search(first, xq, 9));

    IndexTurboQuant copied(d, 2);
    copied.add_sa_codes(n, whole.codes.data(), nullptr);
    EXPECT_EQ(search(whole, xq, 9), search(copied, xq, 9));

    EXPECT_EQ(50u, copied.remove_ids(faiss::IDSelectorRange(0, 50)));
    IndexTurboQuant rest(d, 2);
    rest.add(n - 50, xb.data() + 50 * d);
    EXPECT_EQ(search(rest, xq, 9), search(copied, xq, 9));

    copied.reset();
    EXPECT_EQ(0, copied.ntotal);
    EXPECT_EQ(-1, search(copied, xq, 1).I[0]);
}

TEST(IndexTurboQuant, MergeRefusals) {
    const size_t d = 20;
    const auto xb = gaussian(50, d, 1);
    IndexTurboQuant index(d, 2);
    IndexTurboQuant bits(d, 3), metric(d, 2, METRIC_INNER_PRODUCT),
            dim(d + 1, 2),
            seed(d, 2, METRIC_L2, faiss_turboquant::RotationType::Hadamard, 5),
            haar(d, 2, METRIC_L2, faiss_turboquant::RotationType::Haar),
            scalar = make_index(d, 2, METRIC_L2, 0),
            trellis = make_index(d, 2, METRIC_L2, 8), centre(d, 2),
            mse = index_of("TQ2mse", d, METRIC_L2);
    centre.train(50, xb.data());
    faiss::IndexFlat flat(d);
    EXPECT_REFUSED(index.merge_from(bits), "nbits = 3");
    EXPECT_REFUSED(index.merge_from(metric), "metric");
    EXPECT_REFUSED(index.merge_from(dim), "d = 21");
    EXPECT_REFUSED(index.merge_from(seed), "rotation");
    EXPECT_REFUSED(index.merge_from(haar), "rotation");
    EXPECT_REFUSED(scalar.merge_from(trellis), "codebook");
    EXPECT_REFUSED(index.merge_from(centre), "centre");
    EXPECT_REFUSED(index.merge_from(mse), "codec TQ2mse into codec TQ2");
    EXPECT_REFUSED(index.merge_from(flat), "IndexFlat");
}

TEST(IndexTurboQuant, ReconstructionError) {
    // 1 - cos^2: Lloyd-Max, Zandieh et al., table in section 3.1; trellis,
    // kernels/trellis_tables.h
    const double expected[2][4] = {
            {0.3634, 0.1175, 0.0345, 0.0095},
            {0.2743, 0.0718, 0.0195, 0.00585}};
    const size_t d = 200, n = 400;
    const auto xb = gaussian(n, d, 1);
    for (int nbits = 1; nbits <= 4; nbits++) {
        for (int memory : {0, 8}) {
            for (bool trained : {false, true}) {
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                if (trained) {
                    index.train(n, xb.data());
                }
                index.add(n, xb.data());
                std::vector<float> y(n * d);
                index.reconstruct_n(0, n, y.data());
                double error = 0, norm = 0;
                for (size_t i = 0; i < n * d; i++) {
                    error += std::pow(xb[i] - y[i], 2);
                    norm += std::pow(xb[i], 2);
                }
                EXPECT_NEAR(
                        error / norm / expected[memory > 0][nbits - 1], 1, 0.04)
                        << nbits << " " << memory;
            }
        }
    }
}

TEST(IndexTurboQuant, SymmetricDistance) {
    const size_t d = 256, n = 100;
    const auto xb = gaussian(n, d, 1, 0.5f);
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (bool trained : {false, true}) {
            IndexTurboQuant index(d, 4, metric);
            if (trained) {
                index.train(n, xb.data());
            }
            index.add(n, xb.data());
            faiss::IndexFlat exact(d, metric);
            exact.add(n, xb.data());
            std::unique_ptr<faiss::DistanceComputer> a(
                    index.get_distance_computer()),
                    b(exact.get_distance_computer());
            for (size_t i = 1; i < n; i++) {
                EXPECT_EQ(a->symmetric_dis(0, i), a->symmetric_dis(i, 0));
                // six standard deviations of the two codes' errors
                EXPECT_NEAR(
                        b->symmetric_dis(0, i),
                        a->symmetric_dis(0, i),
                        6 * std::sqrt(2 * 0.0095 * d * 1.6 * 4));
            }
        }
    }
}

/// in batches of four, and pairs in any order: as one by one
TEST(IndexTurboQuant, DistanceComputerOrder) {
    const size_t d = 70, n = 60;
    const auto xb = gaussian(n, d, 1);
    for (const char* codec :
         {"TQ3", "TQ3t", "TQ3mse", "TQ2.5", "TQ2.5t", "TQ1prod", "TQ3prod"}) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            IndexTurboQuant index = index_of(codec, d, metric);
            index.train(n, xb.data());
            index.add(n, xb.data());
            std::unique_ptr<faiss::DistanceComputer> dc(
                    index.get_distance_computer());
            std::mt19937 random(3);
            for (int round = 0; round < 200; round++) {
                const idx_t a[4] = {
                        idx_t(random() % n),
                        idx_t(random() % n),
                        idx_t(random() % n),
                        idx_t(random() % n)};
                dc->set_query(&xb[a[3] * d]);
                float r[4];
                dc->distances_batch_4(
                        a[0], a[1], a[2], a[3], r[0], r[1], r[2], r[3]);
                for (int i = 0; i < 4; i++) {
                    EXPECT_EQ(r[i], (*dc)(a[i]));
                }
                for (auto [i, j] :
                     {std::pair(a[0], a[1]),
                      std::pair(a[2], a[1]),
                      std::pair(a[2], a[3]),
                      std::pair(a[2], a[2])}) {
                    std::unique_ptr<faiss::DistanceComputer> fresh(
                            index.get_distance_computer());
                    EXPECT_EQ(
                            dc->symmetric_dis(i, j),
                            fresh->symmetric_dis(i, j));
                }
            }
            std::vector<float> bad(d, NAN);
            dc->set_query(bad.data());
            float r[4];
            dc->distances_batch_4(0, 1, 2, 3, r[0], r[1], r[2], r[3]);
            EXPECT_TRUE(std::isnan(r[0]) && std::isnan(r[3]));
        }
    }
}

// as NN-descent, which builds the graphs of NSG, does
TEST(IndexTurboQuant, DistanceComputerGivesPairsToManyThreads) {
    const size_t d = 40, n = 200;
    const auto xb = gaussian(n, d, 1);
    IndexTurboQuant index = make_index(d, 4, METRIC_L2, 0);
    index.add(n, xb.data());
    std::unique_ptr<faiss::DistanceComputer> dc(index.get_distance_computer());
    std::vector<float> expected(n * n);
    for (size_t i = 0; i < n * n; i++) {
        expected[i] = dc->symmetric_dis(i / n, i % n);
    }
    for (int round = 0; round < 20; round++) {
        dc.reset(index.get_distance_computer());
        std::vector<float> found(n * n);
#pragma omp parallel for num_threads(8) schedule(dynamic, 1)
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < n; j++) {
                found[i * n + j] = dc->symmetric_dis(i, j);
            }
        }
        EXPECT_EQ(found, expected);
    }
}

TEST(IndexTurboQuant, ZeroVectorsAndScales) {
    const size_t d = 24;
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        IndexTurboQuant index(d, 4, metric);
        auto xb = gaussian(3, d, 1);
        std::fill_n(xb.begin(), d, 0.0f);
        for (size_t j = 0; j < d; j++) {
            xb[2 * d + j] *= 1e-30f;
        }
        index.add(3, xb.data());
        std::vector<float> x(d);
        index.reconstruct(0, x.data());
        EXPECT_EQ(std::vector<float>(d, 0.0f), x);
        index.reconstruct(2, x.data());
        for (size_t j = 0; j < d; j++) {
            // five times the codes' error
            EXPECT_NEAR(xb[2 * d + j], x[j], 5e-31);
        }
        const Results r = search(index, std::vector<float>(d, 0.0f), 3);
        EXPECT_EQ(0, r.D[0]);
        EXPECT_TRUE(std::isfinite(r.D[2]));
    }
}

TEST(IndexTurboQuant, BadInputIsRefused) {
    const size_t d = 12;
    EXPECT_REFUSED(IndexTurboQuant(0, 4), "d = 0");
    EXPECT_REFUSED(IndexTurboQuant(-3, 4), "d = -3");
    EXPECT_REFUSED(IndexTurboQuant(100000, 4), "d = 100000");
    EXPECT_REFUSED(IndexTurboQuant(d, 0), "nbits = 0");
    EXPECT_REFUSED(IndexTurboQuant(d, 5), "nbits = 5");
    EXPECT_REFUSED(
            IndexTurboQuant(
                    d,
                    2,
                    METRIC_L2,
                    faiss_turboquant::RotationType::Hadamard,
                    1,
                    8,
                    faiss_turboquant::CodecType::Mse),
            "does not go with a trellis");
    EXPECT_REFUSED(
            IndexTurboQuant(
                    d,
                    2,
                    METRIC_L2,
                    faiss_turboquant::RotationType::Hadamard,
                    1,
                    0,
                    faiss_turboquant::CodecType(77)),
            "codec type 77");
    for (int memory : {0, 8}) {
        EXPECT_REFUSED(
                IndexTurboQuant(
                        d,
                        4,
                        METRIC_L2,
                        faiss_turboquant::RotationType::Hadamard,
                        1,
                        memory,
                        faiss_turboquant::CodecType::HalfBit),
                "half a bit more goes with nbits = 1 to 3");
    }
    faiss_turboquant::TurboQuantizer two_trellises(
            d,
            2,
            METRIC_L2,
            faiss_turboquant::RotationType::Hadamard,
            1,
            8,
            faiss_turboquant::CodecType::HalfBit);
    two_trellises.second_codebook =
            faiss_turboquant::Codebook::trellis_coded(2, 10);
    EXPECT_REFUSED(two_trellises.set_derived_values(), "memory 8 and 10");
    EXPECT_REFUSED(
            IndexTurboQuant(
                    4097,
                    2,
                    METRIC_L2,
                    faiss_turboquant::RotationType::Hadamard,
                    1,
                    0,
                    faiss_turboquant::CodecType::Prod),
            "4097");
    EXPECT_REFUSED(IndexTurboQuant(d, 4, faiss::METRIC_L1), "metric");

    auto xb = gaussian(10, d, 1);
    IndexTurboQuant index(d, 4);
    index.add(10, xb.data());
    const Results before = search(index, xb, 3);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        auto x = xb;
        x[4 * d + 7] = bad;
        x[8 * d] = bad;
        EXPECT_REFUSED(index.add(10, x.data()), "vector 4");
        EXPECT_REFUSED(search(index, x, 3), "query 4");
        EXPECT_REFUSED(IndexTurboQuant(d, 4).train(10, x.data()), "vector 4");
        faiss::RangeSearchResult result(10);
        EXPECT_REFUSED(index.range_search(10, x.data(), 1, &result), "query 4");
    }
    // no exception here: FAISS sets queries in OpenMP regions
    std::unique_ptr<faiss::DistanceComputer> dc(index.get_distance_computer());
    const std::vector<float> nan(d, NAN);
    dc->set_query(nan.data());
    EXPECT_TRUE(std::isnan((*dc)(0)));
    dc->set_query(xb.data());
    EXPECT_FALSE(std::isnan((*dc)(0)));
    auto x = xb;
    x[3 * d] = 1e25f;
    EXPECT_REFUSED(index.add(10, x.data()), "vector 3");
    EXPECT_REFUSED(search(index, x, 3), "query 3");
    EXPECT_REFUSED(search(index, xb, 0), "k = 0");
    EXPECT_REFUSED(index.train(10, xb.data()), "holds 10");
    EXPECT_REFUSED(IndexTurboQuant(d, 4).train(0, xb.data()), "n > 0");
    faiss::SearchParametersIVF ivf;
    EXPECT_REFUSED(search(index, xb, 3, &ivf), "SearchParametersIVF");
    EXPECT_EQ(10, index.ntotal);
    EXPECT_EQ(10 * index.code_size, index.codes.size());
    EXPECT_EQ(before, search(index, xb, 3));
}
