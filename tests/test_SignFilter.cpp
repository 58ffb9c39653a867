#include <faiss_turboquant/SignFilter.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/CodeScanner.h>
#include <faiss_turboquant/FilteredScan.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_factory.h>

#include "index_test.h"

using faiss::idx_t;
using faiss::IndexTurboQuant;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss_turboquant::SignFilter;

namespace {

std::unique_ptr<IndexTurboQuant> index_of(
        const std::string& codec,
        size_t d,
        faiss::MetricType metric,
        const std::vector<float>& x) {
    std::unique_ptr<faiss::Index> index(
            faiss_turboquant::index_factory(d, codec.c_str(), metric));
    index->add(x.size() / d, x.data());
    return std::unique_ptr<IndexTurboQuant>(
            dynamic_cast<IndexTurboQuant*>(index.release()));
}

Results search_with(
        IndexTurboQuant& index,
        int use_sign_filter,
        const std::vector<float>& x,
        idx_t k,
        const faiss::SearchParameters* params = nullptr) {
    index.use_sign_filter = use_sign_filter;
    return search(index, x, k, params);
}

void expect_same_results(
        IndexTurboQuant& index,
        const std::vector<float>& queries,
        idx_t k,
        const faiss::SearchParameters* params = nullptr) {
    EXPECT_EQ(
            search_with(index, 0, queries, k, params),
            search_with(index, 1, queries, k, params));
}

const char* const codecs[] = {
        "TQ1",
        "TQ2",
        "TQ3",
        "TQ4",
        "TQ1t",
        "TQ2t",
        "TQ3t",
        "TQ4t",
        "TQ2t10",
        "TQ1mse",
        "TQ4mse"};

} // namespace

TEST(SignFilter, ResultsAreThoseOfReadingAllCodes) {
    for (const char* codec : codecs) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (size_t d : {1, 7, 64, 65, 257}) {
                for (size_t n : {1, 63, 64, 65, 700}) {
                    SCOPED_TRACE(
                            std::string(codec) + " metric " +
                            std::to_string(metric) + " d " + std::to_string(d) +
                            " n " + std::to_string(n));
                    const auto index =
                            index_of(codec, d, metric, clustered(n, d, 1));
                    for (size_t nq : {1, 3, 6}) {
                        const auto queries = clustered(nq, d, 2);
                        expect_same_results(*index, queries, 1);
                        expect_same_results(*index, queries, 20);
                    }
                }
            }
        }
    }
}

TEST(SignFilter, ManyRuns) {
    const size_t d = 96, n = 60000;
    for (const char* codec : {"TQ2", "TQ4", "TQ2t"}) {
        // of which most codes are passed over, and most are read
        for (const auto& x : {clustered(n, d, 1), gaussian(n, d, 1)}) {
            const auto index = index_of(codec, d, METRIC_L2, x);
            for (idx_t k : {1, 10, 500}) {
                expect_same_results(*index, clustered(3, d, 2), k);
                expect_same_results(*index, gaussian(40, d, 3), k);
            }
        }
    }
}

TEST(SignFilter, EqualKeysInAnyOrder) {
    using faiss_turboquant::entry_row;
    // rows 0, 1, .. backwards, all with one key
    faiss_turboquant::Reservoir reservoir(3);
    reservoir.keeps_equal = true;
    for (uint32_t row = 500; row-- > 0;) {
        const float key = 2;
        if (key < reservoir.threshold) {
            reservoir.add(&key, &row, 1);
        }
    }
    const auto entries = reservoir.take_sorted();
    ASSERT_EQ(3u, entries.size());
    for (uint32_t row = 0; row < 3; row++) {
        EXPECT_EQ(row, entry_row(entries[row]));
    }

    // what another part has found
    std::atomic<float> last_key{std::numeric_limits<float>::infinity()};
    faiss_turboquant::SharedReservoir first(2, &last_key);
    faiss_turboquant::SharedReservoir second(2, &last_key);
    const float keys[] = {5, 1, 3};
    const uint32_t rows[] = {7, 8, 9};
    first.add(keys, rows, 1);
    first.update_threshold();
    second.update_threshold();
    EXPECT_TRUE(std::isinf(second.threshold)); // one key is not two
    first.add(keys + 1, rows + 1, 2);
    first.update_threshold();
    EXPECT_EQ(3, last_key);
    second.update_threshold();
    EXPECT_GT(second.threshold, 3);
    EXPECT_LT(second.threshold, 3.000001f);
    EXPECT_EQ(3, last_key);
}

TEST(SignFilter, EqualVectorsAreOrderedById) {
    const size_t d = 32, n = 40000;
    // each one many times
    std::vector<float> x = clustered(50, d, 1);
    for (size_t i = 50 * d; i < n * d; i++) {
        x.push_back(x[i - 50 * d]);
    }
    const auto index = index_of("TQ4", d, METRIC_L2, x);
    const int before = omp_get_max_threads();
    for (int n_threads : {1, 4}) {
        omp_set_num_threads(n_threads);
        for (idx_t k : {1, 50, 799, 800, 1000}) {
            expect_same_results(*index, clustered(3, d, 2), k);
        }
    }
    omp_set_num_threads(before);
}

TEST(SignFilter, ReadsFewCodes) {
    const size_t d = 256, n = 20000;
    const auto index = index_of("TQ4", d, METRIC_L2, clustered(n, d, 1));
    const auto& tq = index->tq;
    const auto filter = index->get_sign_filter(1);
    ASSERT_TRUE(filter);
    EXPECT_EQ(n, filter->size());

    const std::vector<float> x = clustered(1, d, 2);
    faiss_turboquant::QueryBatch batch(tq);
    batch.resize(1, /*with_signs=*/true);
    std::vector<int8_t> q(tq.rotated_dim());
    tq.prepare_query(x.data(), 0, q.data(), batch[0]);
    tq.arrange_query(q.data(), batch[0]);
    batch.signs[0] =
            filter->make_query(q.data(), batch[0].factors, index->sign_margin);
    Results found{std::vector<float>(1), std::vector<idx_t>(1)};
    const faiss_turboquant::CodeScanner scanner(
            tq, index->codes.data(), n, filter, nullptr);
    EXPECT_LT(scanner.search(batch, 1, found.D.data(), found.I.data()), n / 20);
    EXPECT_EQ(search_with(*index, 0, x, 1), found);
}

TEST(SignFilter, BoundsHoldForEveryCode) {
    // 40 000 pairs, of which one in 10^8 may fail
    const size_t n = 2000, nq = 20;
    for (const char* codec : codecs) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (size_t d : {3, 64, 200}) {
                SCOPED_TRACE(codec);
                const auto index =
                        index_of(codec, d, metric, gaussian(n, d, 1, 0.1));
                const auto& tq = index->tq;
                SignFilter filter(tq, faiss_turboquant::max_sign_planes);
                filter.extend(tq, index->codes.data(), n);
                const float sign = metric == METRIC_L2 ? 1 : -1;
                const auto queries = gaussian(nq, d, 2, 0.1);
                size_t n_below[2] = {};
                for (size_t i = 0; i < nq; i++) {
                    faiss_turboquant::PreparedQuery query;
                    std::vector<int8_t> q(tq.rotated_dim());
                    tq.prepare_query(&queries[i * d], 0, q.data(), query);
                    tq.arrange_query(q.data(), query);
                    const auto signs =
                            filter.make_query(q.data(), query.factors, 5.5);
                    // wherever the bound is made for
                    std::vector<faiss_turboquant::SignFormula> leasts[2];
                    for (const float threshold :
                         {-INFINITY,
                          -3.0f,
                          -0.3f,
                          0.0f,
                          0.3f,
                          3.0f,
                          INFINITY}) {
                        for (int planes : {1, 2}) {
                            leasts[planes - 1].push_back(filter.least(
                                    signs,
                                    planes,
                                    threshold * std::sqrt(float(d))));
                        }
                    }
                    uint16_t sums[2][faiss_turboquant::sign_block];
                    for (size_t j = 0; j < n; j++) {
                        const uint8_t* tables = signs.tables.data();
                        for (int plane : {0, 1}) {
                            filter.sum_plane(
                                    plane, &tables, 1, j / 64, sums[plane], 0);
                        }
                        const float key = sign *
                                tq.distance_to_code(
                                        query,
                                        index->codes.data() + j * tq.code_size);
                        const uint16_t sign = sums[0][j % 64];
                        const uint16_t size = sums[1][j % 64];
                        for (const auto& least : leasts[0]) {
                            EXPECT_LE(filter.key(least, j, sign, nullptr), key);
                        }
                        for (const auto& least : leasts[1]) {
                            EXPECT_LE(filter.key(least, j, sign, &size), key);
                        }
                        n_below[0] += key >
                                filter.key(
                                        signs.first.expected, j, sign, nullptr);
                        n_below[1] += key >
                                filter.key(signs.both.expected, j, sign, &size);
                    }
                }
                // what is expected is too low as often as too high
                if (d == 200) {
                    EXPECT_NEAR(0.5, double(n_below[0]) / (n * nq), 0.05);
                    EXPECT_NEAR(0.5, double(n_below[1]) / (n * nq), 0.05);
                }
            }
        }
    }
}

// Of vectors that are all about equally far, signs leave nearly half of the
// codes, and both planes a tenth.
TEST(SignFilter, SecondPlaneWhereSignsLeaveMany) {
    const size_t d = 256, n = 30000;
    const idx_t k = 10;
    const int before = omp_get_max_threads();
    omp_set_num_threads(1); // parts of the codes begin with no threshold
    for (const char* codec : codecs) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            SCOPED_TRACE(codec);
            const auto index = index_of(codec, d, metric, gaussian(n, d, 1));
            const auto& tq = index->tq;
            const auto queries = gaussian(4, d, 2);
            const Results all = search_with(*index, 0, queries, k);
            const auto part_read = [&] {
                const auto filter = index->get_sign_filter(1);
                faiss_turboquant::QueryBatch batch(tq);
                batch.resize(4, /*with_signs=*/true);
                std::vector<int8_t> q(tq.rotated_dim());
                for (size_t i = 0; i < 4; i++) {
                    tq.prepare_query(&queries[i * d], 0, q.data(), batch[i]);
                    batch.set_signs(i, q.data(), *filter, index->sign_margin);
                }
                Results found{
                        std::vector<float>(4 * k), std::vector<idx_t>(4 * k)};
                const faiss_turboquant::CodeScanner scanner(
                        tq, index->codes.data(), n, filter, nullptr);
                const size_t n_read = scanner.search(
                        batch, k, found.D.data(), found.I.data());
                EXPECT_EQ(all, found);
                return double(n_read) / (4 * n);
            };
            const auto n_planes = [&] {
                index->use_sign_filter = -1;
                return index->get_sign_filter(1)->n_planes();
            };
            EXPECT_EQ(1, n_planes());
            const double by_signs = part_read();
            for (int i = 0; i < 3; i++) {
                search(*index, gaussian(1, d, 2), k);
                EXPECT_EQ(1, n_planes());
            }
            search(*index, gaussian(1, d, 2), k);
            if (codec == std::string("TQ1") || codec == std::string("TQ1mse")) {
                EXPECT_EQ(1, n_planes()); // signs are all that there is
                EXPECT_LT(by_signs, 0.1);
                continue;
            }
            EXPECT_EQ(2, n_planes());
            EXPECT_GT(by_signs, 0.25);
            EXPECT_LT(part_read(), 0.2);
            // others have it as well
            const auto more = gaussian(700, d, 3);
            index->add(700, more.data());
            expect_same_results(*index, queries, k);
            EXPECT_EQ(2, n_planes());
            index->codes_changed();
            EXPECT_EQ(1, n_planes());
            expect_same_results(*index, queries, k);
            const Results of_more = search_with(*index, 0, queries, k);
            EXPECT_EQ(of_more, search_with(*index, 2, queries, k));
            EXPECT_EQ(2, index->get_sign_filter(1)->n_planes()); // at once
        }
    }
    omp_set_num_threads(before);
}

TEST(SignFilter, MarginTradesNeighboursForSpeed) {
    const size_t d = 128, n = 20000, nq = 20;
    const idx_t k = 10;
    const auto index = index_of("TQ4", d, METRIC_L2, gaussian(n, d, 1));
    const auto queries = gaussian(nq, d, 2);
    const Results all = search_with(*index, 0, queries, k);
    const auto n_missed = [&](double margin) {
        index->sign_margin = margin;
        size_t missed = 0;
        for (size_t q = 0; q < nq; q++) {
            const std::vector<float> one(
                    queries.begin() + q * d, queries.begin() + (q + 1) * d);
            const Results found = search_with(*index, 1, one, k);
            for (idx_t i = 0; i < k; i++) {
                missed += !std::count(
                        found.I.begin(), found.I.end(), all.I[q * k + i]);
            }
        }
        return missed;
    };
    EXPECT_EQ(0u, n_missed(5.5));
    EXPECT_GT(n_missed(0.5), 0u);
    EXPECT_LE(n_missed(3), 2u);
    index->sign_margin = 0;
    EXPECT_REFUSED(search(*index, queries, k), "sign_margin = 0");
    index->sign_margin = NAN;
    EXPECT_REFUSED(search(*index, queries, k), "sign_margin");
}

TEST(SignFilter, Selectors) {
    const size_t d = 64, n = 9000;
    const auto index = index_of("TQ3", d, METRIC_L2, clustered(n, d, 1));
    std::mt19937 rng(3);
    std::vector<idx_t> few, many;
    for (size_t i = 0; i < n; i++) {
        if (rng() % 100 == 0) {
            few.push_back(i);
        }
        if (rng() % 3) {
            many.push_back(i);
        }
    }
    faiss::IDSelectorBatch select_few(few.size(), few.data());
    faiss::IDSelectorBatch select_many(many.size(), many.data());
    faiss::IDSelectorRange range(1000, 7001);
    faiss::IDSelectorRange none(0, 0);
    for (faiss::IDSelector* sel : std::initializer_list<faiss::IDSelector*>{
                 &select_few, &select_many, &range, &none}) {
        faiss::SearchParameters params;
        params.sel = sel;
        expect_same_results(*index, clustered(2, d, 2), 10, &params);
        expect_same_results(*index, gaussian(9, d, 2), 200, &params);
    }
}

TEST(SignFilter, RangeSearch) {
    const size_t d = 48, n = 5000;
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        const auto index = index_of("TQ2", d, metric, clustered(n, d, 1));
        const auto queries = clustered(7, d, 2);
        const Results best = search_with(*index, 0, queries, 30);
        const float everything = metric == METRIC_L2 ? 1e9 : -1e9;
        for (float radius : {best.D[5], best.D[29], everything}) {
            for (idx_t n : {2, 7}) { // the latter with AVX2, not with AVX-512
                faiss::RangeSearchResult with(n), without(n);
                index->use_sign_filter = 1;
                index->range_search(n, queries.data(), radius, &with);
                index->use_sign_filter = 0;
                index->range_search(n, queries.data(), radius, &without);
                ASSERT_EQ(without.lims[n], with.lims[n]);
                ASSERT_GT(with.lims[n], 0u);
                for (size_t i = 0; i < with.lims[n]; i++) {
                    EXPECT_EQ(without.labels[i], with.labels[i]);
                    EXPECT_EQ(without.distances[i], with.distances[i]);
                }
            }
        }
    }
}

TEST(SignFilter, FollowsChangesOfTheIndex) {
    const size_t d = 40;
    const auto index = index_of("TQ4", d, METRIC_L2, clustered(100, d, 1));
    const auto queries = clustered(3, d, 2);
    const auto check = [&] { expect_same_results(*index, queries, 15); };
    check();
    for (size_t n : {1, 27, 36, 64, 3000}) { // up to a block, and past it
        const auto more = clustered(n, d, n);
        index->add(n, more.data());
        check();
    }
    index->remove_ids(faiss::IDSelectorRange(50, 2000));
    check();
    const auto other = index_of("TQ4", d, METRIC_L2, clustered(500, d, 7));
    search_with(*other, 1, queries, 1);
    index->merge_from(*other);
    check();
    EXPECT_EQ(0, other->ntotal);
    expect_same_results(*other, queries, 5);
    const auto more = clustered(500, d, 8);
    other->add(500, more.data());
    expect_same_results(*other, queries, 5);

    std::vector<idx_t> backwards(index->ntotal);
    for (size_t i = 0; i < backwards.size(); i++) {
        backwards[i] = backwards.size() - 1 - i;
    }
    index->permute_entries(backwards.data());
    check();

    const auto copy = index_of("TQ4", d, METRIC_L2, clustered(700, d, 9));
    std::copy_n(copy->codes.data(), copy->codes.size(), index->codes.data());
    index->codes_changed();
    check();
    // FAISS's own function, which says nothing, is noticed all the same
    index->faiss::IndexFlatCodes::permute_entries(backwards.data());
    check();

    index->reset();
    check();
    index->add(500, more.data());
    check();
}

TEST(SignFilter, CopiesGoTheirOwnWays) {
    const size_t d = 32;
    const auto index =
            index_of("TQ2", d, METRIC_INNER_PRODUCT, clustered(300, d, 1));
    const auto queries = clustered(2, d, 2);
    const Results before = search_with(*index, 1, queries, 5);
    std::unique_ptr<faiss::Index> clone(
            faiss_turboquant::clone_index(index.get()));
    auto& copy = dynamic_cast<IndexTurboQuant&>(*clone);
    const auto more = clustered(200, d, 3);
    copy.add(200, more.data());
    expect_same_results(copy, queries, 5);
    EXPECT_EQ(before, search_with(*index, 1, queries, 5));
    index->add(100, more.data());
    expect_same_results(*index, queries, 5);
    expect_same_results(copy, queries, 5);
}

TEST(SignFilter, IsMadeWhereItPays) {
    const size_t d = 64, n = 4096;
    const auto x = clustered(n, d, 1);
    for (const char* codec : {"TQ1", "TQ1t", "TQ2", "TQ4t"}) {
        const auto index = index_of(codec, d, METRIC_L2, x);
        EXPECT_TRUE(index->get_sign_filter(1)) << codec;
    }
    // of two parts: the setting does not make one
    for (const char* codec : {"TQ2.5", "TQ2prod", "TQ1prod"}) {
        const auto index = index_of(codec, d, METRIC_L2, x);
        index->use_sign_filter = 1;
        EXPECT_FALSE(index->get_sign_filter(1)) << codec;
        search(*index, gaussian(1, d, 2), 3);
    }
    const auto index = index_of("TQ2", d, METRIC_L2, x);
    const auto filter = index->get_sign_filter(1);
    EXPECT_TRUE(filter);
    EXPECT_EQ(filter, index->get_sign_filter(3));
    index->use_sign_filter = 0;
    EXPECT_FALSE(index->get_sign_filter(1));
    index->use_sign_filter = -1;
    index->remove_ids(faiss::IDSelectorRange(0, 1));
    EXPECT_FALSE(index->get_sign_filter(1)); // too few vectors

    IndexTurboQuant view = *index;
    view.add(1, x.data());
    EXPECT_TRUE(view.get_sign_filter(1));
    view.codes = faiss::MaybeOwnedVector<uint8_t>::create_view(
            view.codes.data(), view.codes.size(), nullptr);
    EXPECT_FALSE(view.get_sign_filter(1));
}

// With a margin that is much too small, neighbours are lost: signs are asked.
TEST(SignFilter, IsLeftForAWhileWhereSearchesDoNotGain) {
    const size_t d = 64, n = 5000;
    const auto index = index_of("TQ4", d, METRIC_L2, gaussian(n, d, 1));
    const auto query = gaussian(1, d, 2);
    const Results all = search_with(*index, 0, query, 20);
    index->use_sign_filter = -1;
    const auto asks_signs = [&] {
        index->sign_margin = 1e-3;
        return !(search(*index, query, 20) == all);
    };
    // which reads more than half of the codes
    const auto fail = [&](int times) {
        index->sign_margin = 5.5;
        for (int i = 0; i < times; i++) {
            search(*index, query, n);
        }
    };
    EXPECT_TRUE(asks_signs());
    fail(4);
    EXPECT_TRUE(asks_signs()); // and a second plane, now
    fail(3);
    EXPECT_TRUE(asks_signs()); // and gains
    fail(4);
    EXPECT_FALSE(asks_signs());
    EXPECT_TRUE(asks_signs());
    fail(5); // one of which does without
    EXPECT_TRUE(asks_signs());
    fail(6); // likewise
    EXPECT_FALSE(asks_signs());
    EXPECT_FALSE(asks_signs());
    EXPECT_TRUE(asks_signs());
    fail(4);
    index->codes_changed();
    EXPECT_TRUE(asks_signs());
    // not where it is told to ask
    fail(4 + 4);
    index->use_sign_filter = 1;
    EXPECT_TRUE(asks_signs());
    fail(10);
    index->use_sign_filter = -1;
    EXPECT_FALSE(asks_signs()); // of the four
    EXPECT_TRUE(asks_signs());
}

TEST(SignFilter, DoublesTheMemoryOfOneBitUpToALimit) {
    const size_t d = 64, n = 5000, limit = size_t(2) << 30;
    EXPECT_EQ(limit, IndexTurboQuant::max_large_filter_bytes);
    const auto x = clustered(n, d, 1);
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        const auto index = index_of("TQ1", d, metric, x);
        const size_t of_vector = metric == METRIC_L2 ? 20 : 16;
        EXPECT_EQ(0u, SignFilter::bytes(index->tq, 0, 1));
        EXPECT_EQ(64 * of_vector, SignFilter::bytes(index->tq, 1, 1));
        EXPECT_EQ(64 * of_vector, SignFilter::bytes(index->tq, 64, 1));
        const size_t largest = limit / (64 * of_vector) * 64;
        EXPECT_LE(SignFilter::bytes(index->tq, largest, 1), limit);
        EXPECT_GT(SignFilter::bytes(index->tq, largest + 1, 1), limit);

        const std::weak_ptr<const SignFilter> filter =
                index->get_sign_filter(1);
        EXPECT_FALSE(filter.expired());
        index->ntotal = largest + 1; // no code is looked at then
        EXPECT_FALSE(index->get_sign_filter(1));
        EXPECT_TRUE(filter.expired()); // its memory is given back
        index->ntotal = n;
        EXPECT_TRUE(index->get_sign_filter(1));
    }
}

TEST(SignFilter, IsGivenBackByASearchWithoutIt) {
    const size_t d = 64;
    const auto index = index_of("TQ4", d, METRIC_L2, clustered(5000, d, 1));
    const auto queries = clustered(1, d, 2);
    const std::weak_ptr<const SignFilter> filter = index->get_sign_filter(1);
    search(*index, queries, 3);
    EXPECT_FALSE(filter.expired());
    search_with(*index, 0, queries, 3);
    EXPECT_TRUE(filter.expired());
}

TEST(SignFilter, ManyThreads) {
    const size_t d = 64, n = 20000;
    const auto index = index_of("TQ4", d, METRIC_L2, clustered(n, d, 1));
    const auto queries = clustered(30, d, 2);
    const Results expected = search_with(*index, 0, queries, 10);
    index->use_sign_filter = 1;
    // all of them want it at once
    std::vector<Results> found(8);
    std::vector<std::thread> threads;
    for (Results& results : found) {
        threads.emplace_back([&] { results = search(*index, queries, 10); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const Results& results : found) {
        EXPECT_EQ(expected, results);
    }
    const int before = omp_get_max_threads();
    for (int n_threads : {1, 2, 7}) {
        omp_set_num_threads(n_threads);
        const std::vector<float> one(queries.begin(), queries.begin() + d);
        EXPECT_EQ(
                search_with(*index, 0, one, 10),
                search_with(*index, 1, one, 10));
        EXPECT_EQ(expected, search_with(*index, 1, queries, 10));
    }
    omp_set_num_threads(before);
}

TEST(SignFilter, UnusualQueriesAndVectors) {
    const size_t d = 24, n = 300;
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        std::vector<float> x = clustered(n, d, 1);
        std::fill_n(x.begin(), 5 * d, 0.0f);                    // zero vectors
        std::fill_n(x.begin() + 5 * d, 3 * d, 1e15f);           // long ones
        std::fill_n(x.begin() + 8 * d, 3 * d, 1e-20f);          // short ones
        std::copy_n(x.begin() + 20 * d, d, x.begin() + 21 * d); // equal ones
        for (const char* codec : {"TQ1", "TQ3", "TQ4t"}) {
            const auto index = index_of(codec, d, metric, x);
            std::vector<float> queries(5 * d);
            std::fill_n(queries.begin() + d, d, 1e15f);
            std::fill_n(queries.begin() + 2 * d, d, 1e-20f);
            queries[3 * d] = 1;
            std::copy_n(x.begin() + 20 * d, d, queries.begin() + 4 * d);
            for (idx_t k : {1, 7, 300, 400}) {
                for (size_t q = 0; q < 5; q++) {
                    const std::vector<float> one(
                            queries.begin() + q * d,
                            queries.begin() + (q + 1) * d);
                    expect_same_results(*index, one, k);
                }
            }
        }
    }
}
