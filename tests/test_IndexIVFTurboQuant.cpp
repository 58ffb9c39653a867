#include <faiss_turboquant/IndexIVFTurboQuant.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include <gtest/gtest.h>
#include <omp.h>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_factory.h>

#include "index_test.h"

using faiss::idx_t;
using faiss::IndexIVFTurboQuant;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss::SearchParametersIVF;

namespace {

constexpr size_t nlist = 11;

/// points around a few centres that are far from the origin
std::vector<float> clusters(size_t n, size_t d, unsigned seed) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> centres(nlist * d);
    for (float& v : centres) {
        v = 1 + normal(random);
    }
    random.seed(seed);
    std::vector<float> x(n * d);
    for (size_t i = 0; i < n; i++) {
        const size_t centre = random() % nlist;
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = centres[centre * d + j] + 0.7f * normal(random);
        }
    }
    return x;
}

/// what of a codec its constructor takes
struct Codec {
    int nbits;
    int memory;
    faiss_turboquant::CodecType type = faiss_turboquant::CodecType::Scaled;
};

struct Fixture {
    faiss::IndexFlat quantizer;
    std::vector<float> xb;
    std::vector<float> xq;
    IndexIVFTurboQuant index;

    Fixture(size_t d, int nbits, faiss::MetricType metric, size_t nb = 700)
            : Fixture(d, Codec{nbits, 0}, metric, nb) {}

    Fixture(size_t d, Codec codec, faiss::MetricType metric, size_t nb = 700)
            : quantizer(d, metric),
              xb(clusters(nb, d, 1)),
              xq(clusters(60, d, 2)),
              index(&quantizer,
                    d,
                    nlist,
                    codec.nbits,
                    metric,
                    true,
                    faiss_turboquant::RotationType::Hadamard,
                    1,
                    codec.memory,
                    codec.type) {
        index.cp.min_points_per_centroid = 1;
        index.train(nb, xb.data());
        index.add(nb, xb.data());
        index.nprobe = 4;
    }
};

std::vector<float> row(const std::vector<float>& x, size_t d, size_t i) {
    return {x.begin() + i * d, x.begin() + (i + 1) * d};
}

/// every (distance, id) in the lists that are probed, one code at a time, best
/// first
std::vector<std::pair<float, idx_t>> one_by_one(
        const IndexIVFTurboQuant& index,
        const float* x,
        const faiss::IDSelector* sel = nullptr) {
    std::vector<idx_t> keys(index.nprobe);
    std::vector<float> coarse(index.nprobe);
    index.quantizer->search(1, x, index.nprobe, coarse.data(), keys.data());
    std::unique_ptr<faiss::InvertedListScanner> scanner(
            index.get_InvertedListScanner());
    scanner->set_query(x);
    std::vector<std::pair<float, idx_t>> found;
    for (idx_t key : keys) {
        scanner->set_list(key, 0);
        for (size_t i = 0; i < index.invlists->list_size(key); i++) {
            const idx_t id = index.invlists->get_single_id(key, i);
            if (!sel || sel->is_member(id)) {
                found.emplace_back(
                        scanner->distance_to_code(
                                index.invlists->get_single_code(key, i)),
                        id);
            }
        }
    }
    const bool is_l2 = index.metric_type == METRIC_L2;
    std::sort(found.begin(), found.end(), [&](const auto& a, const auto& b) {
        return a.first != b.first ? (a.first < b.first) == is_l2
                                  : a.second < b.second;
    });
    return found;
}

Results brute_force(
        const IndexIVFTurboQuant& index,
        const std::vector<float>& x,
        idx_t k,
        const faiss::IDSelector* sel = nullptr) {
    const bool is_l2 = index.metric_type == METRIC_L2;
    Results r;
    for (size_t q = 0; q < x.size() / index.d; q++) {
        auto found = one_by_one(index, &x[q * index.d], sel);
        found.resize(
                k, {(is_l2 ? 1 : -1) * std::numeric_limits<float>::max(), -1});
        for (const auto& [distance, id] : found) {
            r.D.push_back(is_l2 ? std::max(distance, 0.0f) : distance);
            r.I.push_back(id);
        }
    }
    return r;
}

} // namespace

class IvfCodec : public testing::TestWithParam<
                         std::tuple<size_t, Codec, faiss::MetricType>> {
   protected:
    Fixture f{
            std::get<0>(GetParam()),
            std::get<1>(GetParam()),
            std::get<2>(GetParam())};
};

/// unbiased over rotations, of which this is one: not for a few dimensions
class IvfAccuracy : public IvfCodec {};

TEST_P(IvfCodec, SearchEqualsOneByOne) {
    for (idx_t k : {1, 10, 100, 1000}) {
        EXPECT_EQ(search(f.index, f.xq, k), brute_force(f.index, f.xq, k)) << k;
    }
}

TEST_P(IvfCodec, BatchesDoNotMatter) {
    const size_t d = f.index.d;
    const Results all = search(f.index, f.xq, 5);
    for (size_t n : {1, 3, 7}) {
        for (size_t q = 0; q + n <= 20; q += n) {
            const std::vector<float> some(
                    f.xq.begin() + q * d, f.xq.begin() + (q + n) * d);
            const Results r = search(f.index, some, 5);
            EXPECT_TRUE(
                    std::equal(r.D.begin(), r.D.end(), all.D.begin() + q * 5));
            EXPECT_TRUE(
                    std::equal(r.I.begin(), r.I.end(), all.I.begin() + q * 5));
        }
    }
}

TEST_P(IvfCodec, RangeSearchEqualsOneByOne) {
    const bool is_l2 = f.index.metric_type == METRIC_L2;
    const size_t nq = f.xq.size() / f.index.d;
    for (size_t rank : {0, 5, 50}) {
        const float radius = one_by_one(f.index, f.xq.data())[rank].first;
        faiss::RangeSearchResult result(nq);
        f.index.range_search(nq, f.xq.data(), radius, &result);
        for (size_t q = 0; q < nq; q++) {
            std::set<std::pair<idx_t, float>> expected;
            for (const auto& [distance, id] :
                 one_by_one(f.index, &f.xq[q * f.index.d])) {
                if (is_l2 ? distance < radius : distance > radius) {
                    expected.insert(
                            {id, is_l2 ? std::max(distance, 0.0f) : distance});
                }
            }
            std::vector<std::pair<idx_t, float>> found;
            for (size_t i = result.lims[q]; i < result.lims[q + 1]; i++) {
                found.emplace_back(result.labels[i], result.distances[i]);
            }
            EXPECT_EQ(
                    found,
                    (std::vector<std::pair<idx_t, float>>(
                            expected.begin(), expected.end())));
        }
    }
}

/// the mean error of the estimates is within a few standard errors of 0
TEST_P(IvfAccuracy, EstimatesAreUnbiased) {
    const size_t d = f.index.d;
    const bool is_l2 = f.index.metric_type == METRIC_L2;
    double sum = 0, squares = 0, spread = 0;
    size_t n = 0;
    for (size_t q = 0; q < f.xq.size() / d; q++) {
        const auto found = one_by_one(f.index, &f.xq[q * d]);
        double mean = 0;
        for (const auto& [distance, id] : found) {
            double exact = 0;
            for (size_t j = 0; j < d; j++) {
                const double a = f.xq[q * d + j], b = f.xb[id * d + j];
                exact += is_l2 ? (a - b) * (a - b) : a * b;
            }
            sum += distance - exact;
            squares += (distance - exact) * (distance - exact);
            mean += exact / found.size();
            n++;
        }
        spread += std::fabs(mean);
    }
    // errors of one query's codes are not independent: 700 codes and 60
    // queries count as a few hundred
    EXPECT_LT(std::fabs(sum / n), 5 * std::sqrt(squares / n / 200));
    EXPECT_LT(std::sqrt(squares / n), spread / (f.xq.size() / d));
}

TEST_P(IvfAccuracy, ReconstructionIsNear) {
    const size_t d = f.index.d;
    f.index.make_direct_map();
    double error = 0, error_of_centroids = 0;
    std::vector<float> decoded(d), centroid(d);
    for (size_t i = 0; i < 300; i++) {
        f.index.reconstruct(i, decoded.data());
        idx_t key;
        f.quantizer.assign(1, &f.xb[i * d], &key);
        f.quantizer.reconstruct(key, centroid.data());
        for (size_t j = 0; j < d; j++) {
            const double x = f.xb[i * d + j];
            error += (x - decoded[j]) * (x - decoded[j]);
            error_of_centroids += (x - centroid[j]) * (x - centroid[j]);
        }
    }
    const int nbits = std::get<1>(GetParam()).nbits;
    EXPECT_LT(error, error_of_centroids * (nbits == 1 ? 0.5 : 0.1));
}

const auto half_bit = faiss_turboquant::CodecType::HalfBit;
const auto prod = faiss_turboquant::CodecType::Prod;
const auto codecs = testing::Values(
        Codec{1, 0},
        Codec{4, 0},
        Codec{1, 8},
        Codec{4, 8},
        Codec{3, 0, half_bit},
        Codec{2, 8, half_bit},
        Codec{1, 0, prod},
        Codec{4, 0, prod});
// those that tell most of what the centroids leave
const auto accurate_codecs = testing::Values(
        Codec{1, 0},
        Codec{4, 0},
        Codec{1, 8},
        Codec{4, 8},
        Codec{3, 0, half_bit},
        Codec{3, 8, half_bit},
        Codec{4, 0, prod});
const auto metrics = testing::Values(METRIC_L2, METRIC_INNER_PRODUCT);

INSTANTIATE_TEST_SUITE_P(
        Codecs,
        IvfCodec,
        testing::Combine(testing::Values(1, 20, 72, 130), codecs, metrics));
INSTANTIATE_TEST_SUITE_P(
        Codecs,
        IvfAccuracy,
        testing::Combine(
                testing::Values(20, 72, 130),
                accurate_codecs,
                metrics));

TEST(IndexIVFTurboQuant, ThreadsDoNotMatter) {
    Fixture f(40, 3, METRIC_L2, 3000);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const Results one = search(f.index, f.xq, 10);
    const Results single = search(f.index, row(f.xq, 40, 0), 10);
    omp_set_num_threads(4);
    EXPECT_EQ(search(f.index, f.xq, 10), one);
    EXPECT_EQ(search(f.index, row(f.xq, 40, 0), 10), single);
    omp_set_num_threads(threads);
}

/// duplicates: equal distances, ordered by id, in and across lists
TEST(IndexIVFTurboQuant, EqualDistancesAreOrderedById) {
    Fixture f(24, 2, METRIC_L2);
    const std::vector<float> x = row(f.xb, 24, 3);
    for (int i = 0; i < 50; i++) {
        f.index.add(1, x.data());
    }
    const Results r = search(f.index, x, 20);
    EXPECT_EQ(r.I[0], 3);
    for (int i = 1; i < 20; i++) {
        EXPECT_EQ(r.D[i], r.D[0]);
        EXPECT_EQ(r.I[i], 699 + i);
    }
}

/// the same where no list alone decides: lists whose centres are equal
TEST(IndexIVFTurboQuant, EqualDistancesOfManyListsAreOrderedById) {
    constexpr size_t d = 24, nlist = 8, n = 400;
    const auto centre = gaussian(1, d, 1), x = gaussian(1, d, 2);
    faiss::IndexFlatL2 quantizer(d);
    std::vector<float> xb;
    std::vector<idx_t> keys;
    for (size_t i = 0; i < nlist; i++) {
        quantizer.add(1, centre.data());
    }
    IndexIVFTurboQuant index(&quantizer, d, nlist, 2, METRIC_L2);
    index.is_trained = true;
    index.nprobe = nlist;
    for (size_t i = 0; i < n; i++) {
        xb.insert(xb.end(), x.begin(), x.end());
        keys.push_back((5 * i + 3) % nlist);
    }
    index.add_core(n, xb.data(), nullptr, keys.data());
    for (size_t k : {1, 5, 100, 300}) {
        const Results r = search(index, x, k);
        for (size_t i = 0; i < k; i++) {
            EXPECT_EQ(r.D[i], r.D[0]);
            EXPECT_EQ(r.I[i], idx_t(i)) << k;
        }
    }
}

/// ids that are in no order in the lists: of equal codes of a list, the k
/// stored first are candidates, of which the least ids are taken
TEST(IndexIVFTurboQuant, EqualDistancesOfUnorderedIds) {
    constexpr size_t d = 24, nlist = 4, n = 4000, k = 150;
    const auto different = gaussian(40, d, 1), xq = gaussian(70, d, 2);
    faiss::IndexFlatL2 quantizer(d);
    quantizer.add(nlist, gaussian(nlist, d, 3).data());
    IndexIVFTurboQuant index(&quantizer, d, nlist, 3, METRIC_INNER_PRODUCT);
    index.is_trained = true;
    index.nprobe = nlist;
    std::vector<float> xb;
    std::vector<idx_t> ids(n), lists(n);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(4));
    for (size_t i = 0; i < n; i++) {
        const auto x = row(different, d, i / 100);
        xb.insert(xb.end(), x.begin(), x.end());
        lists[i] = i / 100 % 3; // one list is empty
    }
    index.add_core(n, xb.data(), ids.data(), lists.data());

    const Results r = search(index, xq, k);
    std::unique_ptr<faiss::InvertedListScanner> scanner(
            index.get_InvertedListScanner());
    for (size_t q = 0; q < 70; q++) {
        std::vector<std::pair<float, idx_t>> all;
        scanner->set_query(&xq[q * d]);
        for (size_t l = 0; l < nlist; l++) {
            const size_t size = index.invlists->list_size(l);
            std::vector<std::pair<float, idx_t>> of_list; // of rows
            scanner->set_list(l, 0);
            for (size_t i = 0; i < size; i++) {
                const uint8_t* code =
                        index.invlists->get_codes(l) + i * index.code_size;
                of_list.emplace_back(-scanner->distance_to_code(code), i);
            }
            std::sort(of_list.begin(), of_list.end());
            of_list.resize(std::min(size, k));
            for (const auto& [distance, i] : of_list) {
                all.emplace_back(distance, index.invlists->get_ids(l)[i]);
            }
        }
        std::sort(all.begin(), all.end());
        for (size_t i = 0; i < k; i++) {
            EXPECT_EQ(r.D[q * k + i], -all[i].first);
            EXPECT_EQ(r.I[q * k + i], all[i].second) << q << " " << i;
        }
        const Results alone = search(index, row(xq, d, q), k);
        EXPECT_TRUE(std::equal(
                alone.I.begin(), alone.I.end(), r.I.begin() + q * k));
    }
}

/// more than the lists that a result can have the number of, and a list that is
/// cut into tasks
TEST(IndexIVFTurboQuant, SearchOfAHundredThousandLists) {
    constexpr size_t d = 8, nlist = (1 << 17) + 3000, n = nlist + 40000;
    constexpr size_t nq = 5, k = 50;
    const auto centres = gaussian(nlist, d, 1);
    const auto xb = gaussian(n, d, 2), xq = gaussian(nq, d, 3);
    faiss::IndexFlatIP quantizer(d);
    quantizer.add(nlist, centres.data());
    IndexIVFTurboQuant index(&quantizer, d, nlist, 2, METRIC_INNER_PRODUCT);
    index.is_trained = true;
    std::vector<idx_t> lists(n, 77);
    std::iota(lists.begin(), lists.begin() + nlist, 0);
    index.add_core(n, xb.data(), nullptr, lists.data());

    const auto search_lists = [&](size_t begin, size_t end) {
        faiss::SearchParametersIVF params;
        params.nprobe = end - begin;
        std::vector<idx_t> keys(nq * params.nprobe);
        const std::vector<float> distances(keys.size());
        for (size_t i = 0; i < keys.size(); i++) {
            keys[i] = begin + i % params.nprobe;
        }
        Results r{std::vector<float>(nq * k), std::vector<idx_t>(nq * k)};
        index.search_preassigned(
                nq,
                xq.data(),
                k,
                keys.data(),
                distances.data(),
                r.D.data(),
                r.I.data(),
                false,
                &params);
        return r;
    };
    const Results a = search_lists(0, nlist / 2);
    const Results b = search_lists(nlist / 2, nlist);
    const Results all = search_lists(0, nlist);
    for (size_t q = 0; q < nq; q++) {
        std::vector<std::pair<float, idx_t>> expected, found;
        for (size_t i = q * k; i < (q + 1) * k; i++) {
            expected.emplace_back(-a.D[i], a.I[i]);
            expected.emplace_back(-b.D[i], b.I[i]);
            found.emplace_back(-all.D[i], all.I[i]);
        }
        std::sort(expected.begin(), expected.end());
        expected.resize(k);
        EXPECT_EQ(found, expected) << q;
    }
}

/// FAISS's loop over queries, taken for max_codes, finds the same
TEST(IndexIVFTurboQuant, MaxCodes) {
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        Fixture f(33, 4, metric);
        SearchParametersIVF params;
        params.nprobe = 4;
        params.max_codes = 1000000;
        EXPECT_EQ(
                search(f.index, f.xq, 10, &params), search(f.index, f.xq, 10));
        // one list at most, however many are probed
        params.max_codes = 1;
        const Results few = search(f.index, f.xq, 10, &params);
        params.max_codes = 0;
        params.nprobe = 1;
        const Results first = search(f.index, f.xq, 10, &params);
        size_t same = 0;
        for (size_t q = 0; q < f.xq.size() / 33; q++) {
            EXPECT_EQ(few.I[q * 10 + 1], -1);
            idx_t key;
            f.quantizer.assign(1, &f.xq[q * 33], &key);
            same += few.I[q * 10] == f.index.invlists->get_single_id(key, 0);
        }
        EXPECT_EQ(same, f.xq.size() / 33);
        EXPECT_FALSE(few == first);
    }
}

TEST(IndexIVFTurboQuant, Selectors) {
    for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        Fixture f(50, 4, metric);
        const faiss::IDSelectorRange range(100, 300, true);
        const std::vector<idx_t> ids = {1, 5, 600, 699};
        const faiss::IDSelectorBatch few(ids.size(), ids.data());
        const faiss::IDSelectorNot others(&range);
        for (const faiss::IDSelector* sel :
             std::initializer_list<const faiss::IDSelector*>{
                     &range, &few, &others}) {
            SearchParametersIVF params;
            params.nprobe = f.index.nprobe;
            params.sel = const_cast<faiss::IDSelector*>(sel);
            const Results expected = brute_force(f.index, f.xq, 10, sel);
            EXPECT_EQ(search(f.index, f.xq, 10, &params), expected);
            params.max_codes = 1000000; // FAISS's loop
            EXPECT_EQ(search(f.index, f.xq, 10, &params), expected);
        }
    }
}

TEST(IndexIVFTurboQuant, StorePairs) {
    Fixture f(20, 4, METRIC_L2);
    const size_t nq = f.xq.size() / 20;
    std::vector<idx_t> keys(nq * 4);
    std::vector<float> coarse(nq * 4);
    f.quantizer.search(nq, f.xq.data(), 4, coarse.data(), keys.data());
    Results pairs{std::vector<float>(nq * 5), std::vector<idx_t>(nq * 5)};
    f.index.search_preassigned(
            nq,
            f.xq.data(),
            5,
            keys.data(),
            coarse.data(),
            pairs.D.data(),
            pairs.I.data(),
            true);
    const Results r = search(f.index, f.xq, 5);
    EXPECT_EQ(pairs.D, r.D);
    for (size_t i = 0; i < r.I.size(); i++) {
        EXPECT_EQ(
                f.index.invlists->get_single_id(
                        faiss::lo_listno(pairs.I[i]),
                        faiss::lo_offset(pairs.I[i])),
                r.I[i]);
    }
}

TEST(IndexIVFTurboQuant, SignsFirstFindTheSame) {
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (const Codec codec : {Codec{1, 0}, {2, 8}, {3, 0}, {4, 0}}) {
            for (const size_t d : {70, 200}) {
                Fixture f(d, codec, metric, 6000);
                f.index.use_sign_filter = 1;
                const faiss::IDSelectorRange most(500, 5900, true);
                const faiss::IDSelectorRange few(3000, 3020);
                for (const faiss::IDSelector* sel :
                     std::initializer_list<const faiss::IDSelector*>{
                             nullptr, &most, &few}) {
                    SearchParametersIVF params;
                    params.nprobe = f.index.nprobe;
                    params.sel = const_cast<faiss::IDSelector*>(sel);
                    for (const size_t nq : {1, 3}) {
                        const std::vector<float> xq(
                                f.xq.begin(), f.xq.begin() + nq * d);
                        for (const idx_t k : {1, 10, 300, 7000}) {
                            EXPECT_EQ(
                                    search(f.index, xq, k, &params),
                                    brute_force(f.index, xq, k, sel))
                                    << codec.nbits << " bits, d " << d << " k "
                                    << k << " nq " << nq;
                        }
                    }
                }
                faiss::RangeSearchResult with(1), without(1);
                const float radius =
                        search(f.index, row(f.xq, d, 0), 200).D[199];
                f.index.range_search(1, f.xq.data(), radius, &with);
                f.index.use_sign_filter = 0;
                f.index.range_search(1, f.xq.data(), radius, &without);
                ASSERT_EQ(with.lims[1], without.lims[1]);
                EXPECT_GT(with.lims[1], 190u);
                for (size_t i = 0; i < with.lims[1]; i++) {
                    EXPECT_EQ(with.labels[i], without.labels[i]);
                    EXPECT_EQ(with.distances[i], without.distances[i]);
                }
            }
        }
    }
}

TEST(IndexIVFTurboQuant, SignsFirstInBatches) {
    const size_t d = 520;
    for (const Codec codec : {Codec{1, 0}, {2, 8}, {4, 0}}) {
        Fixture f(d, codec, METRIC_L2, 8000);
        for (const idx_t k : {1, 10, 300}) {
            f.index.use_sign_filter = 0;
            const Results all = search(f.index, f.xq, k);
            for (const int setting : {1, -1}) {
                f.index.use_sign_filter = setting;
                EXPECT_EQ(all, search(f.index, f.xq, k))
                        << codec.nbits << " bits, k " << k;
            }
        }
        // with a margin that is much too small, neighbours are lost, unless
        // signs are all there is
        if (codec.nbits > 1 &&
            faiss_turboquant::max_filtered_list_queries(d, true) >= 60) {
            f.index.use_sign_filter = 1;
            f.index.sign_margin = 1e-3;
            const Results some = search(f.index, f.xq, 10);
            f.index.use_sign_filter = 0;
            EXPECT_FALSE(some == search(f.index, f.xq, 10));
        }
    }
}

// With a margin that is much too small, neighbours are lost: signs are asked.
TEST(IndexIVFTurboQuant, SignsFirstByDefault) {
    const size_t d = 128;
    Fixture f(d, 4, METRIC_L2, 16000);
    const auto is_exact = [&](size_t nq, idx_t k = 20) {
        const std::vector<float> xq(f.xq.begin(), f.xq.begin() + nq * d);
        return search(f.index, xq, k) == brute_force(f.index, xq, k);
    };
    f.index.sign_margin = 1e-3;
    f.index.nprobe = nlist; // so many queries of a list
    EXPECT_TRUE(is_exact(12));
    EXPECT_FALSE(is_exact(1));
    EXPECT_FALSE(is_exact(3));
    // a dozen if signs have left few codes before, and there is VNNI
    EXPECT_EQ(
            is_exact(12),
            faiss_turboquant::max_filtered_list_queries(d, true) < 12);
    EXPECT_TRUE(is_exact(60));
    f.index.use_sign_filter = 0;
    EXPECT_TRUE(is_exact(1));
    f.index.use_sign_filter = 1;
    EXPECT_FALSE(is_exact(1));
    f.index.sign_margin = 5.5;
    EXPECT_TRUE(is_exact(1));

    // more memory than an index may take without being told to
    f.index.sign_margin = 1e-3;
    f.index.use_sign_filter = -1;
    EXPECT_FALSE(is_exact(1));
    const idx_t ntotal = f.index.ntotal;
    f.index.ntotal = idx_t(1) << 27;
    EXPECT_TRUE(is_exact(1));
    f.index.use_sign_filter = 1;
    EXPECT_FALSE(is_exact(1));
    f.index.ntotal = ntotal;

    // lists that are not large
    Fixture small(d, 4, METRIC_L2, 700);
    small.index.sign_margin = 1e-3;
    const auto count_exact = [&] {
        size_t n = 0;
        for (size_t q = 0; q < 60; q++) {
            const auto xq = row(small.xq, d, q);
            n += search(small.index, xq, 5) == brute_force(small.index, xq, 5);
        }
        return n;
    };
    EXPECT_EQ(count_exact(), 60u);
    small.index.use_sign_filter = 1;
    EXPECT_LT(count_exact(), 60u);
    small.index.sign_margin = NAN;
    EXPECT_THROW(
            search(small.index, row(small.xq, d, 0), 5), faiss::FaissException);
}

TEST(IndexIVFTurboQuant, SignsFollowChanges) {
    const size_t d = 100;
    Fixture f(d, 4, METRIC_INNER_PRODUCT, 3000);
    f.index.use_sign_filter = 1;
    const auto expect_exact = [&](const char* when) {
        for (size_t q = 0; q < 5; q++) {
            const auto xq = row(f.xq, d, q);
            EXPECT_EQ(search(f.index, xq, 10), brute_force(f.index, xq, 10))
                    << when;
        }
    };
    expect_exact("added");
    f.index.add(700, clusters(700, d, 3).data());
    expect_exact("added more");
    const faiss::IDSelectorRange range(100, 1300);
    f.index.remove_ids(range);
    const auto more = clusters(1200, d, 4);
    f.index.add(1200, more.data()); // as many as before
    expect_exact("removed and added");
    Fixture g(d, 4, METRIC_INNER_PRODUCT, 3000);
    f.index.merge_from(g.index, f.index.ntotal);
    expect_exact("merged");
    f.index.reset();
    expect_exact("reset");
    f.index.add(3000, g.xb.data());
    expect_exact("filled again");
    f.index.make_direct_map();
    std::vector<idx_t> ids(500);
    std::iota(ids.begin(), ids.end(), 0);
    f.index.update_vectors(500, ids.data(), more.data());
    expect_exact("updated");
    IndexIVFTurboQuant copy(f.index);
    copy.own_invlists = false;
    EXPECT_EQ(
            search(copy, row(f.xq, d, 0), 10),
            search(f.index, row(f.xq, d, 0), 10));
    // other lists, unknown to the index
    faiss::ArrayInvertedLists others(nlist, f.index.code_size);
    f.index.replace_invlists(&others, false);
    f.index.ntotal = 0;
    f.index.direct_map.clear();
    f.index.add(2000, clusters(2000, d, 5).data());
    expect_exact("replaced");
}

TEST(IndexIVFTurboQuant, RemoveUpdateMergeCopy) {
    Fixture f(30, 4, METRIC_INNER_PRODUCT);
    const size_t d = 30;
    const Results before = search(f.index, f.xq, 10);

    // two halves merged are the whole
    Fixture empty(30, 4, METRIC_INNER_PRODUCT);
    empty.index.reset();
    IndexIVFTurboQuant half(
            &f.quantizer,
            d,
            nlist,
            4,
            METRIC_INNER_PRODUCT,
            true,
            faiss_turboquant::RotationType::Hadamard,
            1);
    EXPECT_TRUE(half.is_trained);
    half.centre_scales = f.index.centre_scales;
    half.nprobe = 4;
    half.add(300, f.xb.data());
    IndexIVFTurboQuant other(half);
    other.own_invlists = false;
    other.replace_invlists(
            new faiss::ArrayInvertedLists(nlist, half.code_size), true);
    other.ntotal = 0;
    other.add(400, f.xb.data() + 300 * d);
    half.merge_from(other, 300);
    EXPECT_EQ(half.ntotal, 700);
    EXPECT_EQ(other.ntotal, 0);
    EXPECT_EQ(search(half, f.xq, 10), before);

    // what is removed is not found, all else is
    const faiss::IDSelectorRange range(0, 350);
    const faiss::IDSelectorNot rest(&range);
    const Results without = brute_force(f.index, f.xq, 10, &rest);
    EXPECT_EQ(f.index.remove_ids(range), 350);
    EXPECT_EQ(f.index.ntotal, 350);
    EXPECT_EQ(search(f.index, f.xq, 10), without);

    // updated vectors take the place of others
    half.make_direct_map();
    std::vector<idx_t> ids = {5, 77};
    half.update_vectors(2, ids.data(), f.xb.data() + 500 * d);
    std::vector<float> a(d), b(d);
    half.reconstruct(77, a.data());
    half.reconstruct(501, b.data());
    EXPECT_EQ(a, b);
}

TEST(IndexIVFTurboQuant, MergeRefusesOtherCodes) {
    Fixture f(16, 4, METRIC_L2);
    auto refuses = [&](int nbits, faiss::MetricType metric, uint64_t seed) {
        IndexIVFTurboQuant other(
                &f.quantizer,
                16,
                nlist,
                nbits,
                metric,
                true,
                faiss_turboquant::RotationType::Hadamard,
                seed);
        try {
            f.index.check_compatible_for_merge(other);
        } catch (const faiss::FaissException&) {
            return true;
        }
        return false;
    };
    EXPECT_FALSE(refuses(4, METRIC_L2, 1));
    EXPECT_TRUE(refuses(3, METRIC_L2, 1));
    EXPECT_TRUE(refuses(4, METRIC_INNER_PRODUCT, 1));
    EXPECT_TRUE(refuses(4, METRIC_L2, 2));
    EXPECT_THROW(
            f.index.check_compatible_for_merge(f.quantizer),
            faiss::FaissException);
}

TEST(IndexIVFTurboQuant, StandaloneCodec) {
    Fixture f(30, 4, METRIC_L2);
    const size_t size = f.index.sa_code_size();
    EXPECT_EQ(size, f.index.code_size + 1);
    EXPECT_EQ(f.index.code_size, 15 + 8);
    std::vector<uint8_t> codes(700 * size);
    f.index.sa_encode(700, f.xb.data(), codes.data());
    std::vector<float> decoded(700 * 30), reconstructed(700 * 30);
    f.index.sa_decode(700, codes.data(), decoded.data());
    f.index.reconstruct_n(0, 700, reconstructed.data());
    EXPECT_EQ(decoded, reconstructed);

    const Results before = search(f.index, f.xq, 10);
    f.index.reset();
    EXPECT_EQ(f.index.ntotal, 0);
    f.index.add_sa_codes(700, codes.data(), nullptr);
    EXPECT_EQ(search(f.index, f.xq, 10), before);
}

/// vectors that the quantizer gives no list are left as zeros
TEST(IndexIVFTurboQuant, EncodeWithoutList) {
    Fixture f(30, 4, METRIC_L2);
    const size_t size = f.index.code_size;
    std::vector<idx_t> keys = {-1, 3, 4, -1, -1, 5};
    std::vector<uint8_t> some(6 * size, 1), one(size);
    f.index.encode_vectors(6, f.xb.data(), keys.data(), some.data());
    for (size_t i = 0; i < 6; i++) {
        const std::vector<uint8_t> code(
                some.begin() + i * size, some.begin() + (i + 1) * size);
        if (keys[i] < 0) {
            EXPECT_EQ(code, std::vector<uint8_t>(size));
        } else {
            f.index.encode_vectors(1, &f.xb[i * 30], &keys[i], one.data());
            EXPECT_EQ(code, one);
        }
    }
}

TEST(IndexIVFTurboQuant, Refusals) {
    Fixture f(30, 4, METRIC_L2);
    std::vector<float> x = f.xb;
    x[200 * 30 + 7] = NAN;
    EXPECT_THROW(f.index.add(700, x.data()), faiss::FaissException);
    EXPECT_EQ(f.index.ntotal, 700);
    std::vector<float> q = row(f.xq, 30, 0);
    q[3] = std::numeric_limits<float>::infinity();
    EXPECT_THROW(search(f.index, q, 5), faiss::FaissException);
    EXPECT_THROW(search(f.index, f.xq, 0), faiss::FaissException);

    faiss::SearchParameters plain;
    EXPECT_THROW(search(f.index, f.xq, 5, &plain), faiss::FaissException);
    faiss::IVFPQSearchParameters other;
    EXPECT_THROW(search(f.index, f.xq, 5, &other), faiss::FaissException);
    SearchParametersIVF params;
    params.max_codes = 5;
    faiss::RangeSearchResult result(1);
    EXPECT_THROW(
            f.index.range_search(1, f.xq.data(), 1, &result, &params),
            faiss::FaissException);
    params.max_codes = 0;
    params.nprobe = 0;
    EXPECT_REFUSED(search(f.index, f.xq, 5, &params), "nprobe is 0");
    EXPECT_REFUSED(
            f.index.range_search(1, f.xq.data(), 1, &result, &params),
            "nprobe is 0");
}

/// before the lists are prefetched, which does not check
TEST(IndexIVFTurboQuant, ListsThatAreNotThere) {
    Fixture f(30, 4, METRIC_L2);
    f.quantizer.add(1, f.xq.data());
    const std::vector<float> q = row(f.xq, 30, 0);
    EXPECT_REFUSED(search(f.index, q, 5), "list 11 of 11");
    faiss::RangeSearchResult result(1);
    EXPECT_REFUSED(
            f.index.range_search(1, q.data(), 1, &result), "list 11 of 11");
}

/// a copy and an index that is trained again do not use old centres
TEST(IndexIVFTurboQuant, RotatedCentresFollow) {
    Fixture f(30, 4, METRIC_L2);
    search(f.index, f.xq, 5);
    f.index.reset();
    f.quantizer.reset();
    const auto shifted = clusters(700, 30, 9);
    f.index.train(700, shifted.data());
    f.index.add(700, f.xb.data());
    EXPECT_EQ(search(f.index, f.xq, 5), brute_force(f.index, f.xq, 5));
    const IndexIVFTurboQuant fresh(f.index);
    const_cast<IndexIVFTurboQuant&>(fresh).own_invlists = false;
    const auto expected = fresh.rotated_centres();
    const auto rotated = f.index.rotated_centres();
    EXPECT_TRUE(std::equal(
            expected->data(),
            expected->data() + expected->size(),
            rotated->data(),
            rotated->data() + rotated->size()));

    // by hand, without train()
    f.index.reset();
    f.quantizer.reset();
    f.quantizer.add(nlist, f.xb.data());
    f.index.add(700, f.xb.data());
    EXPECT_EQ(search(f.index, f.xq, 5), brute_force(f.index, f.xq, 5));
}

/// for the inner product, centroids have length 1, but centres are near means
TEST(IndexIVFTurboQuant, CentreScales) {
    Fixture l2(30, 4, METRIC_L2);
    EXPECT_TRUE(l2.index.centre_scales.empty());
    Fixture f(30, 4, METRIC_INNER_PRODUCT);
    ASSERT_EQ(f.index.centre_scales.size(), nlist);
    std::vector<idx_t> keys(700);
    f.quantizer.assign(700, f.xb.data(), keys.data());
    for (size_t l = 0; l < nlist; l++) {
        double sum = 0;
        size_t n = 0;
        std::vector<float> centroid(30);
        f.quantizer.reconstruct(l, centroid.data());
        for (size_t i = 0; i < 700; i++) {
            if (keys[i] == idx_t(l)) {
                for (size_t j = 0; j < 30; j++) {
                    sum += f.xb[i * 30 + j] * centroid[j];
                }
                n++;
            }
        }
        EXPECT_NEAR(f.index.centre_scales[l], n ? sum / n : 1, 1e-4);
    }
    // they stay with the vectors
    const std::vector<float> before = f.index.centre_scales;
    f.index.train(100, f.xb.data());
    EXPECT_EQ(f.index.centre_scales, before);
    // another training set, other scales: no merge
    IndexIVFTurboQuant other(f.index);
    other.own_invlists = false;
    other.ntotal = 0;
    other.train(100, f.xb.data());
    EXPECT_NE(other.centre_scales, before);
    EXPECT_THROW(
            f.index.check_compatible_for_merge(other), faiss::FaissException);
}

TEST(IndexIVFTurboQuant, FactoryAndClone) {
    const auto xb = clusters(700, 32, 1);
    const auto xq = clusters(20, 32, 2);
    for (const char* description :
         {"IVF11,TQ4",
          "IVF11,TQ1t",
          "IVF11_HNSW8,TQ2",
          "IVF11(PQ8x2),TQ4",
          "PCA16,IVF11,TQ3",
          "IVF11,TQ2,RFlat",
          "IVF11,TQ1,Refine(TQ4)",
          "IDMap2,IVF11,TQ4"}) {
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            std::unique_ptr<faiss::Index> index(
                    faiss_turboquant::index_factory(32, description, metric));
            index->train(700, xb.data());
            std::vector<idx_t> ids(700);
            for (int i = 0; i < 700; i++) {
                ids[i] = i;
            }
            if (std::string(description).find("IDMap") == 0) {
                index->add_with_ids(700, xb.data(), ids.data());
            } else {
                index->add(700, xb.data());
            }
            const Results r = search(*index, xq, 5);
            std::unique_ptr<faiss::Index> copy(
                    faiss_turboquant::clone_index(index.get()));
            index.reset();
            EXPECT_EQ(search(*copy, xq, 5), r) << description;
        }
    }
}
