#include <gpu/DeviceSignFilter.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/utils/AlignedTable.h>

#include <gpu/GpuIndexTurboQuant.h>
#include <gpu/transfers.h>

#include "gpu_test.h"

using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss::gpu::GpuIndexTurboQuant;
using faiss_turboquant::gpu::CodeStorage;
using faiss_turboquant::gpu::DeviceCodes;
using faiss_turboquant::gpu::DeviceQueryFactors;
using faiss_turboquant::gpu::DeviceSignFilter;
using faiss_turboquant::gpu::download;
using faiss_turboquant::gpu::Entry;
using faiss_turboquant::gpu::entry_key;
using faiss_turboquant::gpu::GpuResources;
using faiss_turboquant::gpu::no_entry;
using faiss_turboquant::gpu::planes_of_scan;
using faiss_turboquant::gpu::Refused;
using faiss_turboquant::gpu::RowList;
using faiss_turboquant::gpu::RowsLeft;
using faiss_turboquant::gpu::ScanPlan;
using faiss_turboquant::gpu::SignPlane;
using faiss_turboquant::gpu::SignRows;
using faiss_turboquant::gpu::SignSearch;

namespace {

/// a copy that asks so many planes of signs, whatever its size
std::unique_ptr<GpuIndexTurboQuant> filtered(
        const IndexTurboQuant& index,
        int n_planes = 1,
        std::shared_ptr<GpuResources> with = resources()) {
    auto gpu = std::make_unique<GpuIndexTurboQuant>(with, index);
    gpu->use_sign_filter = n_planes;
    return gpu;
}

void expect_same_range(
        const faiss::Index& a,
        const faiss::Index& b,
        const std::vector<float>& xq,
        float radius,
        const faiss::SearchParameters* params,
        const std::string& name) {
    const size_t nq = xq.size() / a.d;
    faiss::RangeSearchResult in_a(nq), in_b(nq);
    a.range_search(nq, xq.data(), radius, &in_a, params);
    b.range_search(nq, xq.data(), radius, &in_b, params);
    ASSERT_EQ(
            std::vector<size_t>(in_a.lims, in_a.lims + nq + 1),
            std::vector<size_t>(in_b.lims, in_b.lims + nq + 1))
            << name;
    const size_t n = in_a.lims[nq];
    EXPECT_TRUE(std::equal(in_a.labels, in_a.labels + n, in_b.labels)) << name;
    EXPECT_TRUE(std::equal(in_a.distances, in_a.distances + n, in_b.distances))
            << name;
}

} // namespace

TEST(DeviceSignFilter, HoldsTheSignsOfTheCodes) {
    for (const int memory : memories) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            for (const size_t d : {1, 7, 33, 128, 200, 384, 1000}) {
                const size_t n = 45;
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                index.add(n, gaussian(n, d, 1).data());
                CodeStorage storage(*resources(), index.tq);
                storage.reserve(n, 0);
                storage.import(index.codes.data(), n, index.code_size, 0);
                DeviceSignFilter filter(storage);
                filter.extend(20, 1);
                filter.extend(20, 2);
                filter.extend(n, 1);
                const SignRows rows = filter.rows();
                ASSERT_EQ(rows.n_planes, 2);
                const auto statistics =
                        download(*resources(), rows.statistics, 2);

                const int large = faiss_turboquant::large_magnitude(
                        index.tq.layout().half_steps, double(d));
                faiss::AlignedTable<uint8_t, 64> grid(
                        index.tq.layout().grid_size());
                for (int p = 0; p < 2; p++) {
                    SCOPED_TRACE(
                            name_of(index) + " plane " + std::to_string(p));
                    const size_t row_size = storage.layout().plane_size();
                    const SignPlane& of_plane = rows.planes[p];
                    const auto planes =
                            download(*resources(), of_plane.bits, n * row_size);
                    const auto scales =
                            download(*resources(), of_plane.scales, n);
                    const auto residuals =
                            download(*resources(), of_plane.residuals, n);
                    double sum = 0, largest_square = 0;
                    for (size_t i = 0; i < n; i++) {
                        const uint8_t* code = &index.codes[i * index.code_size];
                        faiss_turboquant::kernels().decode(
                                index.tq.layout(), code, grid.data());
                        double product = 0, norm = 0, squares = 0;
                        std::vector<uint8_t> plane(row_size);
                        for (size_t c = 0; c < d; c++) {
                            const int level = 2 * grid[c] - 63;
                            const int s = level > 0 ? 1 : -1;
                            const int t = std::abs(level) >= large ? s : -s;
                            const int u = p == 0 ? s : 2 * s + t;
                            product += u * level;
                            norm += u * u;
                            squares += level * level;
                            plane[c % row_size] |= ((p == 0 ? s : t) > 0)
                                    << c / row_size;
                        }
                        float scale = 0;
                        index.tq.load_factors(
                                code, nullptr, 1, &scale, nullptr, nullptr);
                        ASSERT_TRUE(std::equal(
                                plane.begin(),
                                plane.end(),
                                planes.begin() + i * row_size));
                        const double beta = squares / product;
                        ASSERT_EQ(scales[i], float(scale * beta));
                        const double left = norm * squares - product * product;
                        ASSERT_EQ(
                                residuals[i], float(std::sqrt(left / squares)));
                        sum += scales[i];
                        largest_square = std::max(
                                largest_square, product * product / squares);
                    }
                    const auto [least, largest] = std::minmax_element(
                            residuals.begin(), residuals.end());
                    EXPECT_EQ(statistics[p].least_residual, *least);
                    EXPECT_EQ(statistics[p].largest_residual, *largest);
                    EXPECT_FLOAT_EQ(
                            statistics[p].largest_square, largest_square);
                    EXPECT_GE(statistics[p].largest_square, largest_square);
                    EXPECT_FLOAT_EQ(statistics[p].scale, sum / n);
                }
            }
        }
    }
}

TEST(DeviceSignFilter, SearchEqualsTheCpuForRandomShapes) {
    std::mt19937 rng(1);
    const auto draw = [&](int least, int most) {
        return least + int(rng() % (most - least + 1));
    };
    for (int trial = 0; trial < 300; trial++) {
        const size_t d = draw(1, 700), n = draw(1, 8000), nq = draw(1, 9);
        const idx_t k = draw(1, draw(1, draw(1, 2048)));
        const bool is_clustered = rng() % 2;
        const auto data = [&](size_t m, unsigned seed) {
            return is_clustered ? clustered(m, d, seed) : gaussian(m, d, seed);
        };
        IndexTurboQuant index = make_index(
                d,
                draw(1, 4),
                rng() % 2 ? METRIC_L2 : METRIC_INNER_PRODUCT,
                memories[rng() % 4]);
        if (rng() % 2) {
            index.train(100, gaussian(100, d, trial, 1).data());
        }
        index.add(n, data(n, trial + 1).data());
        index.use_sign_filter = 0;
        const int n_planes = draw(1, 2);
        const auto gpu = filtered(index, n_planes);
        auto xq = data(nq, trial + 2);
        if (rng() % 4 == 0) {
            std::fill_n(xq.begin(), d, 0.0f); // as far from everything
        }
        const std::string name = name_of(index) + " nq " + std::to_string(nq) +
                " k " + std::to_string(k) + " planes " +
                std::to_string(n_planes) + " trial " + std::to_string(trial);
        const Results expected = search(index, xq, k);
        ASSERT_EQ(expected, search(*gpu, xq, k)) << name;
        const float radius = expected.D[std::min<size_t>(n, k) / 2];
        expect_same_range(index, *gpu, xq, radius, nullptr, name);

        faiss::IDSelectorRange range(n / 5, n / 5 + draw(0, n));
        faiss::SearchParameters params;
        params.sel = &range;
        ASSERT_EQ(search(index, xq, k, &params), search(*gpu, xq, k, &params))
                << name;
        expect_same_range(index, *gpu, xq, radius, &params, name);
    }
}

TEST(DeviceSignFilter, SearchEqualsTheCpuWithManyVectors) {
    for (const int memory : {0, 8}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const size_t d = nbits == 3 ? 768 : 1536, n = 50001;
            IndexTurboQuant index =
                    make_index(d, nbits, METRIC_INNER_PRODUCT, memory);
            GpuIndexTurboQuant gpu(resources(), index);
            gpu.add(n, clustered(n, d, 1).data());
            gpu.copyTo(&index);
            index.use_sign_filter = 0;
            for (const auto& xq : {clustered(8, d, 2), gaussian(8, d, 2)}) {
                for (const size_t nq : {1, 3, 8}) {
                    const std::vector<float> some(
                            xq.begin(), xq.begin() + nq * d);
                    for (const idx_t k : {1, 10, 100, 1000, 2048}) {
                        const Results expected = search(index, some, k);
                        for (const int n_planes : {1, 2}) {
                            gpu.use_sign_filter = n_planes;
                            ASSERT_EQ(expected, search(gpu, some, k))
                                    << name_of(index) << " nq " << nq << " k "
                                    << k << " planes " << n_planes;
                        }
                    }
                }
            }
        }
    }
}

// Codes above some size do not come through shared memory.
TEST(DeviceSignFilter, SearchEqualsTheCpuForLargeDimensions) {
    for (const size_t d : {3072, 6144, 16384}) {
        for (const int memory : {0, 8, 10}) {
            for (const int nbits : {1, 4}) {
                const size_t n = 600;
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                index.add(n, clustered(n, d, 1).data());
                for (const size_t nq : {1, 8}) {
                    const auto xq = clustered(nq, d, 2);
                    const Results expected = search(index, xq, 10);
                    for (const int n_planes : {1, 2}) {
                        const auto gpu = filtered(index, n_planes);
                        ASSERT_EQ(expected, search(*gpu, xq, 10))
                                << name_of(index) << " nq " << nq << " planes "
                                << n_planes;
                    }
                }
            }
        }
    }
}

TEST(DeviceSignFilter, SearchEqualsTheCpuForOrderedAndEqualVectors) {
    const size_t d = 64, n = 50000;
    const auto direction = gaussian(1, d, 1);
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (const bool equal : {false, true}) {
            const auto x = multiples(direction, n, equal);
            IndexTurboQuant index = make_index(d, 4, metric);
            index.add(n, x.data());
            for (const int n_planes : {1, 2}) {
                const auto gpu = filtered(index, n_planes);
                for (const size_t nq : {1, 7}) {
                    const auto xq = multiples(direction, nq, true);
                    for (const idx_t k : {1, 100, 2048}) {
                        EXPECT_EQ(search(index, xq, k), search(*gpu, xq, k))
                                << "equal " << equal << " nq " << nq << " k "
                                << k << " planes " << n_planes;
                    }
                }
            }
        }
    }
}

TEST(DeviceSignFilter, SearchEqualsReadingAllForVectorsOfAllLengths) {
    const size_t d = 64, n = 20000, nq = 40;
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (const int memory : {0, 8}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                const auto x = of_all_lengths(n, d, 1);
                const auto xq = of_all_lengths(nq, d, 2);
                IndexTurboQuant index = make_index(d, nbits, metric, memory);
                index.add(n, x.data());
                const auto gpu = filtered(index);
                const auto by_both = filtered(index, 2);
                const GpuIndexTurboQuant all(resources(), index);
                for (size_t q = 0; q < nq; q++) {
                    const std::vector<float> one(
                            xq.begin() + q * d, xq.begin() + (q + 1) * d);
                    for (const idx_t k : {1, 10, 600}) {
                        const Results expected = search(all, one, k);
                        ASSERT_EQ(expected, search(*gpu, one, k))
                                << name_of(index) << " k " << k << " q " << q;
                        ASSERT_EQ(expected, search(*by_both, one, k))
                                << name_of(index) << " k " << k << " q " << q;
                    }
                }
            }
        }
    }
}

// With a margin that is much too small, neighbours are lost: it is in use.
TEST(DeviceSignFilter, PassesOverCodes) {
    const size_t n = 20000;
    for (const size_t d : {128, 512}) {
        for (const int memory : {0, 8}) {
            for (const int n_planes : {1, 2}) {
                const int nbits = d == 128 ? 2 : 4;
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                index.add(n, gaussian(n, d, 1).data());
                index.use_sign_filter = 0;
                const auto gpu = filtered(index, n_planes);
                for (const size_t nq : {1, 8}) {
                    const auto xq = gaussian(nq, d, 2);
                    const Results expected = search(index, xq, 20);
                    gpu->sign_margin = 5.5;
                    EXPECT_EQ(search(*gpu, xq, 20), expected) << name_of(index);
                    gpu->sign_margin = 1e-3;
                    const Results fewer = search(*gpu, xq, 20);
                    EXPECT_NE(fewer.I, expected.I) << name_of(index);
                    faiss::RangeSearchResult some(nq), all(nq);
                    const float radius = expected.D[10];
                    gpu->range_search(nq, xq.data(), radius, &some);
                    index.range_search(nq, xq.data(), radius, &all);
                    EXPECT_LT(some.lims[nq], all.lims[nq]) << name_of(index);
                }
            }
        }
    }
}

// Of vectors that are all about equally far, the second plane leaves few of
// those that signs leave.
namespace {

/// codes with the signs of both planes
struct SignsOfCodes {
    const size_t n;
    CodeStorage storage;
    DeviceSignFilter filter;

    explicit SignsOfCodes(const IndexTurboQuant& index)
            : n(index.ntotal),
              storage(*resources(), index.tq),
              filter(storage) {
        storage.reserve(n, 0);
        storage.import(index.codes.data(), n, index.code_size, 0);
        filter.extend(n, 2);
    }

    struct Left {
        uint32_t size;              ///< rows
        std::vector<uint32_t> rows; ///< empty if there is no room for them
        float last;                 ///< key of interest, of the first query
    };

    /** Rows that a search has to read.
     * @param k     0: keys up to `last` are of interest, else the k best */
    Left left(int n_planes, const std::vector<float>& xq, int k, float last) {
        const DeviceCodes codes = storage.codes(n, nullptr);
        const size_t nq = xq.size() / codes.layout.d;
        const ScanPlan of_codes = plan_scan(codes.layout, codes.n, nq);
        const ScanPlan of_signs = plan_scan(
                codes.layout.signs(),
                codes.n,
                nq,
                planes_of_scan(nq, n_planes));
        const SignSearch search(
                *resources(),
                filter,
                n_planes,
                codes,
                of_codes,
                of_signs,
                nq,
                k,
                5.5);
        const size_t padded_nq = of_codes.padded_nq();
        const OnDevice<float> x(xq);
        const OnDevice<uint8_t> image(
                std::vector<uint8_t>(padded_nq * codes.layout.dims));
        const OnDevice<DeviceQueryFactors> factors{
                std::vector<DeviceQueryFactors>(padded_nq)};
        const OnDevice<Entry> thresholds(
                std::vector<Entry>(padded_nq, no_entry));
        const OnDevice<Refused> refused(std::vector<Refused>(1));
        prepare_queries(
                storage.encoder,
                x.data,
                nq,
                0,
                padded_nq,
                {codes.layout,
                 of_codes.image_order(),
                 image.data,
                 factors.data},
                &search.image(),
                refused.data,
                resources()->stream());
        const RowList found = k == 0
                ? search.find_candidates(last)
                : search.find_candidates(
                          image.data, factors.data, thresholds.data);
        Left result;
        result.last = k == 0
                ? last
                : entry_key(download(*resources(), thresholds.data, 1)[0]);
        result.size = download(*resources(), found.size, 1)[0];
        if (result.size <= found.capacity) {
            result.rows = download(*resources(), found.rows, result.size);
        }
        return result;
    }
};

} // namespace

TEST(DeviceSignFilter, SecondPlaneLeavesFewRows) {
    const size_t d = 512, n = 100000;
    IndexTurboQuant index = make_index(d, 4, METRIC_INNER_PRODUCT);
    index.add(n, gaussian(n, d, 1).data());
    SignsOfCodes signs(index);
    for (const size_t nq : {1, 2, 5, 8}) {
        const auto xq = gaussian(nq, d, 2);
        const Results best = search(index, xq, 10);
        const float radius = *std::max_element(best.D.begin(), best.D.end());
        std::vector<uint32_t> sizes;
        for (const int n_planes : {1, 2}) {
            const auto left = signs.left(n_planes, xq, 0, -radius);
            sizes.push_back(left.size);
            if (left.rows.empty()) {
                continue; // as many as that is no list
            }
            const std::set<uint32_t> rows(left.rows.begin(), left.rows.end());
            EXPECT_EQ(rows.size(), left.size);
            for (size_t i = 0; i < best.D.size(); i++) {
                EXPECT_TRUE(best.D[i] < radius || rows.count(best.I[i]));
            }
        }
        EXPECT_LT(sizes[0], nq == 1 ? 2 * n / 3 : n + 1);
        EXPECT_LT(sizes[1], sizes[0] / 5) << nq;
    }
}

TEST(DeviceSignFilter, ThresholdsAreNearlyThoseOfTheKBest) {
    const size_t d = 512, n = 100000, nq = 5;
    auto x = gaussian(n, d, 1);
    const auto xq = gaussian(nq, d, 2);
    // those next to the first query follow each other
    for (size_t i = 0; i < 3000; i++) {
        for (size_t j = 0; j < d; j++) {
            x[(40000 + i) * d + j] += xq[j];
        }
    }
    IndexTurboQuant index = make_index(d, 4, METRIC_INNER_PRODUCT);
    index.add(n, x.data());
    SignsOfCodes signs(index);
    for (const int k : {1, 10, 100}) {
        uint32_t of_all = 0;
        for (size_t q = 0; q < nq; q++) {
            const std::vector<float> one(
                    xq.data() + q * d, xq.data() + (q + 1) * d);
            const float last = -search(index, one, k).D.back();
            const uint32_t least = signs.left(2, one, 0, last).size;
            const auto left = signs.left(2, one, k, 0);
            EXPECT_GE(left.last, last) << k << " " << q;
            EXPECT_LE(left.size, least + least / 2 + 100) << k << " " << q;
            of_all += least;
        }
        EXPECT_LE(signs.left(2, xq, k, 0).size, of_all + of_all / 2) << k;
    }
}

TEST(DeviceSignFilter, FollowsChangesOfTheCodes) {
    const size_t d = 100, n = 9000;
    IndexTurboQuant index = make_index(d, 4, METRIC_INNER_PRODUCT);
    const auto x = clustered(n, d, 1), xq = clustered(4, d, 2);
    const auto gpu = filtered(index);
    index.use_sign_filter = 0;
    const auto expect_same = [&](const char* when) {
        EXPECT_EQ(search(index, xq, 10), search(*gpu, xq, 10)) << when;
    };
    expect_same("empty");
    for (const size_t count : {1, 7, 500, 3492, 5000}) {
        const float* from = x.data() + index.ntotal * d;
        index.add(count, from);
        gpu->add(count, from);
        expect_same("added");
    }
    const faiss::IDSelectorRange range(100, 4000);
    index.remove_ids(range);
    gpu->remove_ids(range);
    expect_same("removed");
    index.add(3000, x.data() + 100 * d);
    gpu->add(3000, x.data() + 100 * d);
    expect_same("added again");
    gpu->reserve(50000);
    expect_same("reserved");
    index.reset();
    gpu->reset();
    expect_same("reset");
    index.train(500, x.data());
    gpu->train(500, x.data());
    index.add(n, x.data());
    gpu->add(n, x.data());
    expect_same("trained");

    IndexTurboQuant other = make_index(d, 2, METRIC_L2, 8);
    other.add(n, x.data());
    other.use_sign_filter = 0;
    other.sign_margin = 4;
    gpu->copyFrom(&other);
    EXPECT_EQ(gpu->use_sign_filter, 1);
    EXPECT_EQ(gpu->sign_margin, 4);
    gpu->sign_margin = 5.5;
    EXPECT_EQ(search(other, xq, 10), search(*gpu, xq, 10));
    index.use_sign_filter = 0;
    gpu->copyTo(&index);
    EXPECT_EQ(index.use_sign_filter, 0);
    EXPECT_EQ(index.sign_margin, 5.5);
    EXPECT_EQ(search(index, xq, 10), search(*gpu, xq, 10));
}

TEST(DeviceSignFilter, WithoutRoomInTheWorkspaceCodesAreRead) {
    const size_t d = 64, n = 20000;
    IndexTurboQuant index = make_index(d, 4, METRIC_L2);
    index.add(n, gaussian(n, d, 1).data());
    index.use_sign_filter = 0;
    const auto gpu = filtered(
            index, 2, std::make_shared<GpuResources>(0, nullptr, 1000));
    const auto xq = gaussian(8, d, 2);
    gpu->sign_margin = 1e-3; // would lose neighbours
    EXPECT_EQ(search(index, xq, 10), search(*gpu, xq, 10));
}

TEST(DeviceSignFilter, PausesWhereTooManyRowsAreLeft) {
    const size_t d = 1536, n = 1000000;
    const IndexTurboQuant index = make_index(d, 4, METRIC_L2);
    CodeStorage storage(*resources(), index.tq);
    DeviceSignFilter filter(storage);
    const auto note = [&](size_t nq, bool many) {
        filter.note(nq, 1)->by_first = many ? n : n / 100;
    };
    const auto is_promising = [&](size_t nq) {
        return filter.choose_planes(n, nq, 1, true) == 1;
    };
    EXPECT_TRUE(is_promising(1));
    note(1, false);
    EXPECT_TRUE(is_promising(1));
    // twice as many searches each time
    for (int pause = 1; pause <= 8; pause *= 2) {
        note(1, true);
        EXPECT_TRUE(is_promising(2));
        EXPECT_EQ(filter.choose_planes(n, 1, 1, false), 1); // it has to
        for (int i = 0; i < pause + 1; i++) {
            EXPECT_FALSE(is_promising(1)) << pause << " " << i;
        }
        EXPECT_TRUE(is_promising(1));
    }
    note(1, false);
    EXPECT_TRUE(is_promising(1));
    note(1, true);
    EXPECT_FALSE(is_promising(1));
    EXPECT_FALSE(is_promising(1));
    EXPECT_TRUE(is_promising(1));
}

TEST(DeviceSignFilter, AsksBothPlanesAfterSearchesThatWouldHaveGained) {
    const size_t d = 1536, n = 1000000;
    const IndexTurboQuant index = make_index(d, 4, METRIC_L2);
    CodeStorage storage(*resources(), index.tq);
    DeviceSignFilter filter(storage);
    const uint32_t rows[] = {n / 100, n / 10, n / 4};
    const auto note = [&](int n_planes, int by_first, int by_all) {
        volatile RowsLeft* left = filter.note(1, n_planes);
        left->by_first = rows[by_first];
        left->by_all = rows[by_all];
    };
    const auto choose = [&](int most = 2) {
        return filter.choose_planes(n, 1, most, true);
    };
    EXPECT_EQ(choose(), 1);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++) {
            note(1, 2, 2);
            EXPECT_EQ(choose(), 1);
        }
        if (round == 0) { // not in a row
            note(1, 0, 0);
            EXPECT_EQ(choose(), 1);
        }
    }
    note(1, 2, 2);
    EXPECT_EQ(choose(), 2);
    EXPECT_EQ(choose(1), 1);
    for (int i = 0; i < 4; i++) {
        note(1, 2, 2);
        EXPECT_EQ(choose(), i < 3 ? 1 : 2);
    }
    for (int i = 0; i < 4; i++) {
        note(2, 2, 0);
        EXPECT_EQ(choose(), 2);
    }
    note(2, 2, 1); // the second one has told little
    EXPECT_EQ(choose(), 1);
}

// Of several queries, which ask both planes at once, searches do not tell what
// signs alone would leave.
TEST(DeviceSignFilter, SeveralQueriesStayWithTheirPlanes) {
    const size_t d = 1536, n = 1000000, nq = 8;
    const IndexTurboQuant index = make_index(d, 1, METRIC_L2, 8);
    CodeStorage storage(*resources(), index.tq);
    DeviceSignFilter filter(storage);
    const auto note = [&](int n_planes, uint32_t left) {
        volatile RowsLeft* rows = filter.note(nq, n_planes);
        rows->by_first = n_planes == 1 ? left : 0;
        rows->by_all = n_planes == 1 ? 0 : left;
    };
    const auto choose = [&] { return filter.choose_planes(n, nq, 2, true); };
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(choose(), 1);
        note(1, n);
    }
    // if a fortieth is left by both, signs leave all, and not eight times that
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(choose(), 2);
        note(2, n / 40);
    }
    // queries that have near neighbours
    note(2, n / 10000);
    EXPECT_EQ(choose(), 1);
    note(1, n / 500);
    EXPECT_EQ(choose(), 1);
}

TEST(DeviceSignFilter, RefusesBadInput) {
    const size_t d = 40;
    IndexTurboQuant index = make_index(d, 4, METRIC_L2);
    auto x = gaussian(20, d, 1);
    index.add(20, x.data());
    const auto gpu = filtered(index);
    auto xq = gaussian(3, d, 2);
    xq[2 * d + 5] = NAN;
    EXPECT_REFUSED(search(*gpu, xq, 3), "query 2 has a NaN");
    xq = gaussian(3, d, 2);
    gpu->sign_margin = -1;
    EXPECT_REFUSED(search(*gpu, xq, 3), "sign_margin = -1");
    gpu->sign_margin = NAN;
    EXPECT_REFUSED(search(*gpu, xq, 3), "sign_margin = nan");
}

TEST(DeviceSignFilter, SearchesInSeveralThreads) {
    const size_t d = 128, n = 20000, nq = 5;
    IndexTurboQuant index = make_index(d, 4, METRIC_L2, 8);
    index.add(n, clustered(n, d, 1).data());
    const auto gpu = filtered(index);
    std::vector<std::thread> threads;
    std::vector<int> failures(8);
    for (int t = 0; t < 8; t++) {
        threads.emplace_back([&, t] {
            const auto xq = clustered(nq, d, 100 + t);
            const Results expected = search(index, xq, 10);
            for (int i = 0; i < 20; i++) {
                failures[t] += !(search(*gpu, xq, 10) == expected);
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(failures, std::vector<int>(8));
}
