#include <gpu/GpuIndexTurboQuant.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include "gpu_test.h"

using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using faiss::gpu::GpuIndexTurboQuant;
using faiss_turboquant::RotationType;
using faiss_turboquant::gpu::GpuResources;

namespace {

/// an empty index on the GPU with the parameters of one on the CPU
std::unique_ptr<GpuIndexTurboQuant> empty_like(const IndexTurboQuant& index) {
    IndexTurboQuant empty = index;
    empty.reset();
    return std::make_unique<GpuIndexTurboQuant>(resources(), empty);
}

using ::codes_of;

std::vector<uint8_t> codes_of(const GpuIndexTurboQuant& index) {
    IndexTurboQuant copy;
    index.copyTo(&copy);
    EXPECT_EQ(copy.ntotal, index.ntotal);
    return codes_of(copy);
}

} // namespace

TEST(GpuIndexTurboQuant, CopyFromAndCopyToKeepEveryByte) {
    for (const int memory : memories) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            for (const size_t d : {1, 7, 8, 33, 100, 128, 200, 384, 1000}) {
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                index.add(37, gaussian(37, d, 1).data());
                const GpuIndexTurboQuant gpu(resources(), index);
                EXPECT_EQ(codes_of(index), codes_of(gpu)) << name_of(index);
            }
        }
    }
}

TEST(GpuIndexTurboQuant, AddWritesTheCodesOfTheCpu) {
    for (const int memory : memories) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                for (const size_t d :
                     {1, 2, 8, 33, 64, 65, 100, 128, 257, 384, 768, 1536}) {
                    const size_t n = d > 300 ? 40 : 150;
                    IndexTurboQuant index =
                            make_index(d, nbits, metric, memory);
                    const auto gpu = empty_like(index);
                    auto x = gaussian(n, d, d);
                    std::fill_n(x.begin() + d, d, 0.0f); // a zero vector
                    index.add(n, x.data());
                    gpu->add(n - 10, x.data());
                    gpu->add(10, x.data() + (n - 10) * d);
                    EXPECT_EQ(codes_of(index), codes_of(*gpu))
                            << name_of(index);
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, AddWritesTheCodesOfTheCpuForOtherRotations) {
    for (const size_t d : {40, 100, 256}) {
        IndexTurboQuant index(d, 4, METRIC_L2, RotationType::Haar, 3);
        const auto x = gaussian(50, d, 1);
        const auto gpu = empty_like(index);
        index.add(50, x.data());
        gpu->add(50, x.data());
        EXPECT_EQ(codes_of(index), codes_of(*gpu)) << d;
    }
}

TEST(GpuIndexTurboQuant, AddWritesTheCodesOfTheCpuForLargeDimensions) {
    for (const size_t d :
         {1000, 1024, 1540, 2048, 2500, 2560, 3072, 3584, 4095, 16384}) {
        for (const int memory : {0, 8}) {
            IndexTurboQuant index = make_index(d, 3, METRIC_L2, memory);
            const auto x = gaussian(12, d, 1);
            const auto gpu = empty_like(index);
            index.add(12, x.data());
            gpu->add(12, x.data());
            EXPECT_EQ(codes_of(index), codes_of(*gpu)) << name_of(index);
            EXPECT_EQ(search(index, x, 3), search(*gpu, x, 3))
                    << name_of(index);
        }
    }
}

TEST(GpuIndexTurboQuant, AddWritesTheCodesOfTheCpuForManyVectors) {
    // more than 32 for each warp that there is room for
    const size_t n = 200000;
    for (const size_t d : {72, 128}) {
        IndexTurboQuant index = make_index(d, 2);
        const auto x = gaussian(n, d, 1);
        const auto gpu = empty_like(index);
        index.add(n, x.data());
        gpu->add(n, x.data());
        EXPECT_TRUE(codes_of(index) == codes_of(*gpu)) << d;
    }
}

TEST(GpuIndexTurboQuant, ComputeDistancesEqualsASearchForAll) {
    for (const int memory : {0, 8, 10}) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                for (const size_t d : {33, 128, 384}) {
                    for (const size_t n : {1, 129, 2001}) {
                        IndexTurboQuant index =
                                make_index(d, nbits, metric, memory);
                        index.add(n, gaussian(n, d, n).data());
                        const GpuIndexTurboQuant gpu(resources(), index);
                        for (const size_t nq : {1, 9, 33, 70, 130}) {
                            const auto xq = gaussian(nq, d, 99);
                            const auto found = search(index, xq, n);
                            std::vector<float> expected(nq * n);
                            for (size_t i = 0; i < nq * n; i++) {
                                expected[i / n * n + found.I[i]] = found.D[i];
                            }
                            std::vector<float> distances(nq * n, -1);
                            gpu.compute_distances(
                                    nq, xq.data(), distances.data());
                            ASSERT_EQ(distances, expected)
                                    << name_of(index) << " nq " << nq;
                        }
                    }
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, ComputeDistancesOnTheDeviceInPages) {
    const size_t d = 100, n = 150, nq = 5000; // of 4096
    IndexTurboQuant index = make_index(d, 4);
    index.add(n, gaussian(n, d, 1).data());
    const auto xq = gaussian(nq, d, 2);
    const GpuIndexTurboQuant gpu(resources(), index);
    std::vector<float> expected(nq * n);
    gpu.compute_distances(nq, xq.data(), expected.data());
    const OnDevice<float> queries(xq), distances(nq * n);
    gpu.compute_distances(nq, queries.data, distances.data);
    resources()->synchronize();
    EXPECT_EQ(distances.to_host(nq * n), expected);
    // a workspace for the distances of three queries
    const auto small =
            std::make_shared<GpuResources>(0, nullptr, 3 * n * sizeof(float));
    const GpuIndexTurboQuant in_small(small, index);
    std::vector<float> in_pages(40 * n);
    in_small.compute_distances(40, xq.data(), in_pages.data());
    expected.resize(40 * n);
    EXPECT_EQ(in_pages, expected);
}

TEST(GpuIndexTurboQuant, ComputeDistancesRefusesQueriesThatAreNotFinite) {
    const size_t d = 100;
    GpuIndexTurboQuant gpu(resources(), d);
    auto xq = gaussian(5, d, 2);
    gpu.compute_distances(5, xq.data(), nullptr); // of no vectors
    gpu.add(5, xq.data());
    xq[3 * d + 7] = std::numeric_limits<float>::infinity();
    std::vector<float> distances(25);
    try {
        gpu.compute_distances(5, xq.data(), distances.data());
        FAIL() << "nothing was thrown";
    } catch (const faiss::FaissException& e) {
        EXPECT_NE(e.msg.find("query 3"), std::string::npos) << e.msg;
    }
}

TEST(GpuIndexTurboQuant, SearchEqualsTheCpu) {
    for (const int memory : memories) {
        for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                for (const size_t d : {1, 8, 33, 100, 128, 256, 384, 512}) {
                    for (const size_t n : {1, 17, 129, 3000}) {
                        IndexTurboQuant index =
                                make_index(d, nbits, metric, memory);
                        index.add(n, gaussian(n, d, n).data());
                        const GpuIndexTurboQuant gpu(resources(), index);
                        for (const size_t nq : {1, 9, 33, 70}) {
                            const auto xq = gaussian(nq, d, 99);
                            for (const idx_t k : {1, 10, 150}) {
                                ASSERT_EQ(
                                        search(index, xq, k),
                                        search(gpu, xq, k))
                                        << name_of(index) << " nq " << nq
                                        << " k " << k;
                            }
                        }
                    }
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, SearchEqualsTheCpuWithManyVectors) {
    for (const int memory : {0, 8}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const size_t d = nbits == 3 ? 768 : 1536, n = 60000;
            IndexTurboQuant index =
                    make_index(d, nbits, METRIC_INNER_PRODUCT, memory);
            const auto gpu = empty_like(index);
            gpu->add(n, gaussian(n, d, 1).data());
            gpu->copyTo(&index);
            for (const size_t nq : {1, 5, 20, 100, 140, 300}) {
                const auto xq = gaussian(nq, d, 99);
                for (const idx_t k : {1, 10, 100}) {
                    ASSERT_EQ(search(index, xq, k), search(*gpu, xq, k))
                            << name_of(index) << " nq " << nq << " k " << k;
                }
            }
            const auto xq = gaussian(3, d, 98);
            for (const idx_t k : {1000, 2047, 2048}) {
                ASSERT_EQ(search(index, xq, k), search(*gpu, xq, k))
                        << name_of(index) << " k " << k;
            }
        }
    }
}

// How many warps share a block depends on the size of a code, and from some
// size on codes do not come through shared memory.
TEST(GpuIndexTurboQuant, SearchEqualsTheCpuForLargeDimensions) {
    for (const size_t d : {1536, 3072, 6144, 16384}) {
        for (const int memory : {0, 8, 10}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                const size_t n = 300;
                IndexTurboQuant index = make_index(d, nbits, METRIC_L2, memory);
                index.add(n, gaussian(n, d, 1).data());
                const GpuIndexTurboQuant gpu(resources(), index);
                for (const size_t nq : {1, 8, 130}) {
                    const auto xq = gaussian(nq, d, 2);
                    ASSERT_EQ(search(index, xq, 10), search(gpu, xq, 10))
                            << name_of(index) << " nq " << nq;
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, SearchEqualsTheCpuForRandomShapes) {
    std::mt19937 rng(1);
    const auto draw = [&](int least, int most) {
        return least + int(rng() % (most - least + 1));
    };
    for (int trial = 0; trial < 150; trial++) {
        const size_t d = draw(1, 700), n = draw(1, 5000), nq = draw(1, 200);
        const idx_t k = draw(1, draw(1, 2048));
        IndexTurboQuant index = make_index(
                d,
                draw(1, 4),
                rng() % 2 ? METRIC_L2 : METRIC_INNER_PRODUCT,
                memories[rng() % 4]);
        if (rng() % 2) {
            index.train(100, gaussian(100, d, trial, 1).data());
        }
        const auto gpu = empty_like(index);
        const auto x = gaussian(n, d, trial, 1);
        index.add(n, x.data());
        gpu->add(n, x.data());
        ASSERT_EQ(codes_of(index), codes_of(*gpu)) << name_of(index);
        const auto xq = gaussian(nq, d, trial + 1, 1);
        ASSERT_EQ(search(index, xq, k), search(*gpu, xq, k))
                << name_of(index) << " nq " << nq << " k " << k;
    }
}

// What is found first is worst, so that every block of rows beats the
// thresholds; and many equal distances, of which the lowest ids win.
TEST(GpuIndexTurboQuant, SearchEqualsTheCpuForOrderedAndEqualVectors) {
    const size_t d = 64, n = 50000;
    const auto direction = gaussian(1, d, 1);
    for (const bool equal : {false, true}) {
        const auto x = multiples(direction, n, equal);
        IndexTurboQuant index = make_index(d, 4, METRIC_INNER_PRODUCT);
        index.add(n, x.data());
        const GpuIndexTurboQuant gpu(resources(), index);
        for (const size_t nq : {1, 40, 140}) {
            const auto xq = multiples(direction, nq, true);
            for (const idx_t k : {1, 100, 2048}) {
                EXPECT_EQ(search(index, xq, k), search(gpu, xq, k))
                        << "equal " << equal << " nq " << nq << " k " << k;
            }
        }
    }
}

// In a batch, what cannot be of interest is found out from bounds, which have
// to hold for numbers of all sizes.
TEST(GpuIndexTurboQuant, SearchEqualsTheCpuForVectorsOfAllLengths) {
    const size_t d = 64, n = 20000, nq = 150;
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        for (const int memory : {0, 8}) {
            for (int nbits = 1; nbits <= 4; nbits++) {
                const auto x = of_all_lengths(n, d, 1);
                const auto xq = of_all_lengths(nq, d, 2);
                IndexTurboQuant index = make_index(d, nbits, metric, memory);
                index.add(n, x.data());
                const GpuIndexTurboQuant gpu(resources(), index);
                for (const idx_t k : {1, 10, 600}) {
                    ASSERT_EQ(search(index, xq, k), search(gpu, xq, k))
                            << name_of(index) << " k " << k;
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, SearchesOnlySelectedIds) {
    const size_t d = 100, n = 20000;
    IndexTurboQuant index = make_index(d, 2);
    index.add(n, gaussian(n, d, 1).data());
    const GpuIndexTurboQuant gpu(resources(), index);
    std::vector<idx_t> few = {0, 31, 32, 1000, 19999};
    faiss::IDSelectorRange range(70, 3001);
    faiss::IDSelectorBatch batch(few.size(), few.data());
    faiss::IDSelectorRange none(n, n + 5);
    for (faiss::IDSelector* sel :
         {static_cast<faiss::IDSelector*>(&range),
          static_cast<faiss::IDSelector*>(&batch),
          static_cast<faiss::IDSelector*>(&none)}) {
        faiss::SearchParameters params;
        params.sel = sel;
        faiss::SearchParametersTurboQuant own;
        own.sel = sel;
        for (const size_t nq : {11, 140}) {
            const auto xq = gaussian(nq, d, 2);
            EXPECT_EQ(
                    search(index, xq, 10, &params),
                    search(gpu, xq, 10, &params));
            EXPECT_EQ(search(index, xq, 10, &own), search(gpu, xq, 10, &own));
        }
    }
}

TEST(GpuIndexTurboQuant, RangeSearchEqualsTheCpu) {
    const size_t d = 64, n = 6000;
    for (const auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
        IndexTurboQuant index = make_index(d, 4, metric);
        index.add(n, gaussian(n, d, 1).data());
        const GpuIndexTurboQuant gpu(resources(), index);
        faiss::IDSelectorRange range(70, 3001);
        faiss::SearchParameters selected;
        selected.sel = &range;
        for (const size_t nq : {1, 20, 100, 140}) {
            const auto xq = gaussian(nq, d, 2);
            for (const float radius : {-1.0f, 0.0f, 20.0f, 110.0f, 1e30f}) {
                for (const auto* params :
                     {static_cast<faiss::SearchParameters*>(nullptr),
                      &selected}) {
                    faiss::RangeSearchResult a(nq), b(nq);
                    index.range_search(nq, xq.data(), radius, &a, params);
                    gpu.range_search(nq, xq.data(), radius, &b, params);
                    ASSERT_EQ(
                            std::vector<size_t>(a.lims, a.lims + nq + 1),
                            std::vector<size_t>(b.lims, b.lims + nq + 1))
                            << radius;
                    const size_t total = a.lims[nq];
                    EXPECT_TRUE(
                            std::equal(a.labels, a.labels + total, b.labels));
                    EXPECT_TRUE(std::equal(
                            a.distances, a.distances + total, b.distances));
                }
            }
        }
    }
}

TEST(GpuIndexTurboQuant, RemoveIdsEqualsTheCpu) {
    const size_t d = 96, n = 4000;
    IndexTurboQuant index = make_index(d, 3);
    const auto x = gaussian(n, d, 1);
    index.add(n, x.data());
    GpuIndexTurboQuant gpu(resources(), index);
    std::vector<idx_t> ids;
    for (idx_t i = 0; i < idx_t(n); i += 1 + i % 7) {
        ids.push_back(i);
    }
    const faiss::IDSelectorBatch batch(ids.size(), ids.data());
    EXPECT_EQ(index.remove_ids(batch), gpu.remove_ids(batch));
    EXPECT_EQ(codes_of(index), codes_of(gpu));
    index.add(100, x.data());
    gpu.add(100, x.data());
    EXPECT_EQ(codes_of(index), codes_of(gpu));
    EXPECT_EQ(gpu.remove_ids(faiss::IDSelectorAll()), size_t(index.ntotal));
    EXPECT_EQ(gpu.ntotal, 0);
    EXPECT_EQ(search(gpu, x, 2).I, std::vector<idx_t>(2 * n, -1));
}

TEST(GpuIndexTurboQuant, ReconstructEqualsTheCpu) {
    for (const int memory : {0, 8}) {
        const size_t d = 100, n = 300;
        IndexTurboQuant index = make_index(d, 2, METRIC_L2, memory);
        index.train(50, gaussian(50, d, 3, 1).data());
        index.add(n, gaussian(n, d, 1, 1).data());
        const GpuIndexTurboQuant gpu(resources(), index);
        std::vector<float> a(n * d), b(n * d);
        index.reconstruct_n(0, n, a.data());
        gpu.reconstruct_n(0, n, b.data());
        EXPECT_EQ(a, b);
        OnDevice<float> one(d);
        gpu.reconstruct(17, one.data);
        EXPECT_EQ(
                std::vector<float>(a.begin() + 17 * d, a.begin() + 18 * d),
                one.to_host(d));
        EXPECT_REFUSED(gpu.reconstruct(n, b.data()), "300");
        EXPECT_REFUSED(gpu.reconstruct(-1, b.data()), "-1");
    }
}

TEST(GpuIndexTurboQuant, CopyToAndCopyFromReplaceWhatWasThere) {
    IndexTurboQuant small = make_index(24, 2, METRIC_INNER_PRODUCT);
    small.add(9, gaussian(9, 24, 1).data());
    IndexTurboQuant used = make_index(100, 4, METRIC_L2, 8);
    used.train(20, gaussian(20, 100, 2).data());
    used.add(30, gaussian(30, 100, 2).data());
    GpuIndexTurboQuant gpu(resources(), used);
    gpu.copyFrom(&small);
    EXPECT_EQ(codes_of(gpu), codes_of(small));
    gpu.copyTo(&used);
    EXPECT_EQ(used.d, 24);
    EXPECT_EQ(used.metric_type, METRIC_INNER_PRODUCT);
    EXPECT_EQ(codes_of(used), codes_of(small));
    const auto xq = gaussian(4, 24, 5);
    EXPECT_EQ(search(used, xq, 3), search(small, xq, 3));
    EXPECT_EQ(search(gpu, xq, 3), search(small, xq, 3));
    gpu.reset();
    EXPECT_EQ(gpu.ntotal, 0);
    gpu.add(9, gaussian(9, 24, 1).data());
    EXPECT_EQ(codes_of(gpu), codes_of(small));
}

TEST(GpuIndexTurboQuant, TakesAndGivesMemoryOfTheDevice) {
    const size_t d = 100, n = 2000, nq = 9;
    const idx_t k = 5;
    IndexTurboQuant index = make_index(d, 4);
    const auto x = gaussian(n, d, 1, 2), xq = gaussian(nq, d, 2, 2);
    const OnDevice<float> device_x(x), device_xq(xq), D(nq * k);
    const OnDevice<idx_t> I(nq * k);
    const auto gpu = empty_like(index);
    index.train(n, x.data());
    gpu->train(n, device_x.data);
    index.add(n, x.data());
    gpu->add(n, device_x.data);
    EXPECT_EQ(codes_of(index), codes_of(*gpu));
    gpu->search(nq, device_xq.data, k, D.data, I.data);
    resources()->synchronize();
    EXPECT_EQ(
            search(index, xq, k),
            (Results{D.to_host(nq * k), I.to_host(nq * k)}));
}

TEST(GpuIndexTurboQuant, TakesAndGivesMemoryOfAnotherDevice) {
    const size_t d = 100, n = 2000, nq = 9;
    const idx_t k = 5;
    IndexTurboQuant index = make_index(d, 4);
    const auto x = gaussian(n, d, 1, 2), xq = gaussian(nq, d, 2, 2);
    index.add(n, x.data());
    for (const auto& [device, of_arrays] :
         {std::pair(0, last_device()), std::pair(last_device(), 0)}) {
        ASSERT_EQ(cudaSetDevice(of_arrays), cudaSuccess);
        const OnDevice<float> device_x(x), device_xq(xq), D(nq * k);
        const OnDevice<idx_t> I(nq * k);
        const auto there = std::make_shared<GpuResources>(device);
        GpuIndexTurboQuant gpu(there, make_index(d, 4));
        gpu.add(n, device_x.data);
        EXPECT_EQ(codes_of(index), codes_of(gpu));
        gpu.search(nq, device_xq.data, k, D.data, I.data);
        there->synchronize();
        EXPECT_EQ(
                search(index, xq, k),
                (Results{D.to_host(nq * k), I.to_host(nq * k)}));
        int current = -1;
        ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
        EXPECT_EQ(current, of_arrays);
    }
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST(GpuIndexTurboQuant, RefusesBadInputAndStaysAsItWas) {
    const size_t d = 40;
    IndexTurboQuant index = make_index(d, 4);
    auto x = gaussian(20, d, 1);
    index.add(20, x.data());
    GpuIndexTurboQuant gpu(resources(), index);
    const auto good = x;
    x[7 * d + 3] = NAN;
    x[9 * d] = INFINITY;
    EXPECT_REFUSED(gpu.add(20, x.data()), "vector 7 has a NaN");
    EXPECT_REFUSED(search(gpu, x, 3), "query 7 has a NaN");
    x = good;
    x[5 * d] = 1e30f;
    EXPECT_REFUSED(gpu.add(20, x.data()), "vector 5 is too long");
    EXPECT_REFUSED(search(gpu, x, 3), "query 5 is too long");
    EXPECT_REFUSED(gpu.add(-1, x.data()), "-1");
    EXPECT_REFUSED(gpu.train(20, good.data()), "20");
    EXPECT_EQ(codes_of(index), codes_of(gpu));

    std::vector<float> D(3000);
    std::vector<idx_t> I(3000);
    EXPECT_REFUSED(gpu.search(1, good.data(), 0, D.data(), I.data()), "k = 0");
    EXPECT_REFUSED(
            gpu.search(1, good.data(), 2049, D.data(), I.data()), "2049");
    struct Other : faiss::SearchParameters {
    } other;
    EXPECT_REFUSED(search(gpu, good, 1, &other), "Other");
    EXPECT_REFUSED(GpuIndexTurboQuant(resources(), 20000, 1), "20000");
    EXPECT_REFUSED(GpuIndexTurboQuant(resources(), 0), "d = 0");
    EXPECT_REFUSED(GpuIndexTurboQuant(nullptr, 8), "null");
    const IndexTurboQuant prod(
            8,
            2,
            METRIC_L2,
            RotationType::Hadamard,
            1,
            0,
            faiss_turboquant::CodecType::Prod);
    EXPECT_REFUSED(GpuIndexTurboQuant(resources(), prod), "TQ2prod");
    EXPECT_REFUSED(gpu.copyFrom(&prod), "TQ2prod");
    EXPECT_REFUSED(GpuResources(1000), "1000");
    EXPECT_REFUSED(gpu.reserve(idx_t(1) << 33), "8589934592");
    EXPECT_EQ(search(index, good, 3), search(gpu, good, 3));
}

TEST(GpuIndexTurboQuant, SearchesPageByPageWithinTheLimitOfTheWorkspace) {
    const size_t d = 64, n = 20000, nq = 600;
    IndexTurboQuant index = make_index(d, 4);
    index.add(n, gaussian(n, d, 1).data());
    const auto tight =
            std::make_shared<GpuResources>(0, nullptr, size_t(32) << 20);
    const GpuIndexTurboQuant gpu(tight, index);
    const auto xq = gaussian(nq, d, 2);
    EXPECT_EQ(search(index, xq, 500), search(gpu, xq, 500));
}

TEST(GpuIndexTurboQuant, SearchesOnSeveralStreamsAndThreads) {
    const size_t d = 128, n = 20000, nq = 50;
    IndexTurboQuant index = make_index(d, 4, METRIC_L2, 8);
    index.add(n, gaussian(n, d, 1).data());
    const GpuIndexTurboQuant one(resources(), index);
    const GpuIndexTurboQuant two(
            std::make_shared<GpuResources>(last_device()), index);
    std::vector<std::thread> threads;
    std::vector<int> failures(8);
    for (int t = 0; t < 8; t++) {
        threads.emplace_back([&, t] {
            const auto xq = gaussian(nq, d, 100 + t);
            const Results expected = search(index, xq, 10);
            for (int i = 0; i < 20; i++) {
                failures[t] += !(search(t % 2 ? one : two, xq, 10) == expected);
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(failures, std::vector<int>(8));
}
