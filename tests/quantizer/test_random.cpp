#include <faiss_turboquant/quantizer/random.h>

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace faiss_turboquant {
namespace {

// what other implementations of xoshiro256**, seeded by splitmix64, return
TEST(Random, IsXoshiro) {
    Random random(0);
    EXPECT_EQ(random.next(), 0x99ec5f36cb75f2b4u);
    EXPECT_EQ(random.next(), 0xbf6e1f784956452au);
    EXPECT_EQ(random.next(), 0x1a5f849d4933e6e0u);
}

TEST(Random, BelowIsUniform) {
    Random random(1);
    EXPECT_EQ(random.below(1), 0u);
    constexpr uint32_t n = 7;
    constexpr int draws = 70000;
    std::vector<int> counts(n);
    for (int i = 0; i < draws; i++) {
        counts.at(random.below(n))++;
    }
    const double expected = static_cast<double>(draws) / n;
    for (int count : counts) { // six standard deviations
        EXPECT_NEAR(count, expected, 6 * std::sqrt(expected * (1 - 1.0 / n)));
    }
    // without rejection, multiples of 3 would come from two of each four
    // 32-bit numbers: half of all draws, not a third
    constexpr uint32_t large = 3u << 30;
    int multiples = 0;
    for (int i = 0; i < draws; i++) {
        const uint32_t value = random.below(large);
        ASSERT_LT(value, large);
        multiples += value % 3 == 0;
    }
    EXPECT_NEAR(multiples, draws / 3.0, 6 * std::sqrt(draws * 2.0 / 9));
}

TEST(Random, GaussianHasItsMoments) {
    Random random(2);
    constexpr int draws = 200000;
    double sums[5] = {};
    for (int i = 0; i < draws; i++) {
        const double x = random.gaussian();
        double power = 1;
        for (double& sum : sums) {
            sum += power;
            power *= x;
        }
    }
    // E x^k and its variance (2k - 1)!! - (E x^k)^2, six standard errors
    const double moments[] = {1, 0, 1, 0, 3};
    const double variances[] = {0, 1, 2, 15, 96};
    for (int k = 1; k <= 4; k++) {
        EXPECT_NEAR(
                sums[k] / draws,
                moments[k],
                6 * std::sqrt(variances[k] / draws))
                << "moment " << k;
    }
}

TEST(Random, LogarithmIsAccurate) {
    constexpr double eps = std::numeric_limits<double>::epsilon();
    EXPECT_EQ(portable_log(1), 0);
    std::vector<double> xs = {
            0x1p-106, 1e-30, 0.5, 0.7071, 0.7072, 1 - eps, 1 + eps, 2, 1e30};
    Random random(3);
    for (int i = 0; i < 1000; i++) {
        xs.push_back((random.next() >> 11) * 0x1p-53);
    }
    for (double x : xs) {
        const double expected = std::log(x);
        EXPECT_NEAR(portable_log(x), expected, 4 * eps * std::fabs(expected))
                << x;
    }
}

} // namespace
} // namespace faiss_turboquant
