#include <faiss_turboquant/quantizer/Codebook.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <faiss/impl/FaissException.h>
#include <gtest/gtest.h>

namespace faiss_turboquant {
namespace {

constexpr double pi = 3.14159265358979323846;

/** The positive half of an unconstrained Lloyd-Max quantizer, by Lloyd's
 * iteration on the density of a coordinate times sqrt(d) with the C library's
 * own functions. With t = sin(a) the density is cos(a)^(d-2) da. */
struct LloydMax {
    explicit LloydMax(size_t d, int nbits) : d(d) {
        // where more than 1e-20 of the mass lies
        end = std::asin(std::min(1.0, 9.5 / std::sqrt(double(d))));
        normaliser = std::lgamma(0.5 * d) - std::lgamma(0.5 * (d - 1)) -
                0.5 * std::log(pi) + std::log(2.0);
        const size_t n = size_t(1) << (nbits - 1);
        for (size_t i = 0; i < n; i++) {
            levels.push_back(std::min(2.5, std::sqrt(d)) * (i + 0.5) / n);
        }
        for (double change = 1; change > 1e-7;) {
            change = 0;
            for (size_t i = 0; i < n; i++) {
                const double level = moment(i, 1) / moment(i, 0);
                change = std::max(change, std::fabs(level - levels[i]));
                levels[i] = level;
            }
        }
    }

    /// E[|X|^power; |X| is nearest to level i]
    double moment(size_t i, int power) const {
        return integral(i, [power](double x) { return std::pow(x, power); });
    }

    double mean_squared_error() const {
        double sum = 0;
        for (size_t i = 0; i < levels.size(); i++) {
            const double level = levels[i];
            sum += integral(
                    i, [level](double x) { return (x - level) * (x - level); });
        }
        return sum;
    }

    /// Simpson's rule over the cell of level i
    template <class F>
    double integral(size_t i, F f) const {
        constexpr int n = 400;
        const double a = i == 0 ? 0 : angle(levels[i - 1] + levels[i]);
        const double b =
                i + 1 == levels.size() ? end : angle(levels[i] + levels[i + 1]);
        const double h = (b - a) / n;
        double sum = 0;
        for (int k = 0; k <= n; k++) {
            const double t = a + k * h;
            const double weight = k == 0 || k == n ? 1 : k % 2 ? 4 : 2;
            sum += weight * f(std::sqrt(double(d)) * std::sin(t)) *
                    std::exp(normaliser) *
                    std::pow(std::max(0.0, std::cos(t)), double(d - 2));
        }
        return sum * h / 3;
    }

    double angle(double twice_x) const {
        return std::min(
                end,
                std::asin(std::min(1.0, twice_x / 2 / std::sqrt(double(d)))));
    }

    size_t d;
    double end;
    double normaliser;
    std::vector<double> levels;
};

std::string where(size_t d, int nbits) {
    return "d = " + std::to_string(d) + ", nbits = " + std::to_string(nbits);
}

TEST(Codebook, LevelsAreAscendingAndInTheUpperHalf) {
    for (size_t d : {1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 96, 200, 1536, 65536}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            SCOPED_TRACE(where(d, nbits));
            const Codebook codebook = Codebook::lloyd_max(d, nbits);
            ASSERT_EQ(codebook.positions.size(), 1u << (nbits - 1));
            EXPECT_GT(codebook.step, 0);
            int before = 31;
            for (int g : codebook.positions) {
                EXPECT_GT(g, before);
                EXPECT_LE(g, 63);
                before = g;
                EXPECT_EQ(codebook.level(63 - g), -codebook.level(g));
                EXPECT_GT(codebook.level(g), 0);
            }
        }
    }
}

TEST(Codebook, StepIsExactInFewBits) {
    for (size_t d : {1, 7, 200, 1536, 65536}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const float units = Codebook::lloyd_max(d, nbits).step * 4096;
            EXPECT_EQ(units, std::floor(units)) << where(d, nbits);
            EXPECT_LT(units, 8192) << where(d, nbits);
        }
    }
}

// Zandieh et al., TurboQuant, 2025, section 3.1
TEST(Codebook, ErrorIsThatOfThePaper) {
    const double table[] = {0.3634, 0.1175, 0.0345, 0.0095};
    for (size_t d : {200, 1536, 3072}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const double error =
                    Codebook::lloyd_max(d, nbits).mean_squared_error(d);
            EXPECT_NEAR(error, table[nbits - 1], 0.02 * table[nbits - 1])
                    << where(d, nbits);
        }
    }
}

// The grid costs at most 0.2 % of the error at 1 to 3 bits, 0.9 % at 4 bits
// and 1.2 % at 4 bits and d < 32. More is not to be had at 4 bits from a
// symmetric choice among 64 positions: the search is exhaustive in positions,
// and steps 16 times finer gain less than 0.001 %.
TEST(Codebook, GridCostsLittle) {
    for (size_t d : {3, 4, 5, 8, 11, 96, 200, 1536, 65536}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const double cost = nbits < 4 ? 0.0025 : d < 32 ? 0.0125 : 0.0095;
            const double best = LloydMax(d, nbits).mean_squared_error();
            const double error =
                    Codebook::lloyd_max(d, nbits).mean_squared_error(d);
            EXPECT_GE(error, best * (1 - 1e-6)) << where(d, nbits);
            EXPECT_LE(error, best * (1 + cost)) << where(d, nbits);
        }
    }
}

// the closed form of mean_squared_error against integration of the definition
TEST(Codebook, MeanSquaredErrorIsTheIntegral) {
    for (size_t d : {2, 3, 4, 7, 33, 1000}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            const Codebook codebook = Codebook::lloyd_max(d, nbits);
            LloydMax integrals(d, 1);
            integrals.levels.clear();
            for (int g : codebook.positions) {
                integrals.levels.push_back(codebook.level(g));
            }
            EXPECT_NEAR(
                    codebook.mean_squared_error(d),
                    integrals.mean_squared_error(),
                    1e-8)
                    << where(d, nbits);
        }
    }
}

// no other choice of one position, nor a neighbouring step, does better
TEST(Codebook, IsALocalOptimum) {
    for (size_t d : {3, 96, 1536}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            SCOPED_TRACE(where(d, nbits));
            const Codebook best = Codebook::lloyd_max(d, nbits);
            const double error = best.mean_squared_error(d);
            for (float change : {-1 / 4096.f, 1 / 4096.f}) {
                Codebook other = best;
                other.step += change;
                EXPECT_GT(other.mean_squared_error(d), error);
            }
            for (size_t i = 0; nbits > 1 && i < best.positions.size(); i++) {
                const int low = i == 0 ? 32 : best.positions[i - 1] + 1;
                const int high = i + 1 == best.positions.size()
                        ? 63
                        : best.positions[i + 1] - 1;
                for (int g = low; g <= high; g++) {
                    Codebook other = best;
                    other.positions[i] = static_cast<uint8_t>(g);
                    EXPECT_GE(other.mean_squared_error(d), error);
                }
            }
        }
    }
}

// Part of the file format: a codebook is not stored, but computed again.
TEST(Codebook, GoldenValues) {
    struct Golden {
        size_t d;
        int nbits;
        int step; // in units of 2^-12
        std::vector<uint8_t> positions;
    };
    const std::vector<Golden> golden = {
            {1536, 1, 6537, {32}},
            {1536, 2, 217, {40, 60}},
            {1536, 3, 298, {35, 42, 50, 61}},
            {1536, 4, 377, {33, 36, 39, 42, 45, 49, 54, 61}},
            {200, 2, 196, {41, 63}},
            {384, 4, 375, {33, 36, 39, 42, 45, 49, 54, 61}},
            {3, 4, 296, {33, 36, 39, 42, 45, 48, 51, 54}},
            {1, 4, 191, {34, 38, 42, 46, 50, 54, 58, 61}},
            {65536, 4, 377, {33, 36, 39, 42, 45, 49, 54, 61}},
    };
    for (const Golden& expected : golden) {
        SCOPED_TRACE(where(expected.d, expected.nbits));
        const Codebook codebook =
                Codebook::lloyd_max(expected.d, expected.nbits);
        EXPECT_EQ(codebook.step * 4096, expected.step);
        EXPECT_EQ(codebook.positions, expected.positions);
    }
}

TEST(Codebook, RefusesBadArguments) {
    EXPECT_THROW(Codebook::lloyd_max(0, 4), faiss::FaissException);
    EXPECT_THROW(Codebook::lloyd_max(8, 0), faiss::FaissException);
    EXPECT_THROW(Codebook::lloyd_max(8, 5), faiss::FaissException);
    EXPECT_THROW(Codebook().mean_squared_error(8), faiss::FaissException);
}

} // namespace
} // namespace faiss_turboquant
