#include <faiss_turboquant/quantizer/Rotation.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <faiss/impl/FaissException.h>
#include <gtest/gtest.h>

#include <faiss_turboquant/quantizer/Codebook.h>
#include <faiss_turboquant/quantizer/random.h>

namespace faiss_turboquant {
namespace {

using Vector = std::vector<float>;

// unit roundoff
constexpr double u = std::numeric_limits<float>::epsilon() / 2;

Vector rotated(const Rotation& rotation, const Vector& x) {
    Vector y(rotation.d);
    rotation.apply(x.data(), y.data());
    return y;
}

Vector rotated_back(const Rotation& rotation, const Vector& y) {
    Vector x(rotation.d);
    rotation.apply_transpose(y.data(), x.data());
    return x;
}

Vector gaussian_vector(size_t d, uint64_t seed) {
    Random random(seed);
    Vector x(d);
    for (float& value : x) {
        value = static_cast<float>(random.gaussian());
    }
    return x;
}

double norm(const Vector& x) {
    double sum = 0;
    for (double value : x) {
        sum += value * value;
    }
    return std::sqrt(sum);
}

double distance(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) {
        sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    }
    return std::sqrt(sum);
}

/** Bound of |computed P x - P x| / |x|.
 *
 * Hadamard: three rounds of a rounded multiplier, a product and log2(d) sums,
 * each with an error of at most u times the result; orthogonal steps carry
 * errors on without growth; 1 % for terms of second order.
 *
 * Dense: each entry and product is rounded, and a sum of d terms in any order
 * has at most d - 1 roundings on the way: (d + 1) u sum_j |p_ij x_j| <=
 * (d + 1) u |x| per coordinate by Cauchy-Schwarz, sqrt(d) times that in all. */
double error_bound(RotationType type, size_t d) {
    if (type == RotationType::Hadamard && d > Rotation::max_small_dim) {
        return 1.01 * Rotation::rounds * (2 + std::log2(double(d))) * u;
    }
    return 1.01 * (d + 1) * std::sqrt(double(d)) * u;
}

std::string name(RotationType type, size_t d) {
    return (type == RotationType::Haar ? "Haar, d = " : "Hadamard, d = ") +
            std::to_string(d);
}

void check_orthogonal(RotationType type, size_t d) {
    SCOPED_TRACE(name(type, d));
    const Rotation rotation(type, d, 17);
    const double bound = error_bound(type, d);
    for (uint64_t seed = 0; seed < 3; seed++) {
        const Vector x = gaussian_vector(d, 1000 + seed);
        const Vector y = rotated(rotation, x);
        EXPECT_NEAR(norm(y), norm(x), bound * norm(x));
        EXPECT_LE(distance(rotated_back(rotation, y), x), 2 * bound * norm(x));
        EXPECT_LE(
                distance(rotated(rotation, rotated_back(rotation, x)), x),
                2 * bound * norm(x));
    }
}

TEST(Rotation, HadamardIsOrthogonal) {
    for (size_t d : {1,   2,   3,   7,    8,    31,   32,   33,   63,
                     64,  65,  96,  100,  127,  128,  200,  255,  256,
                     257, 384, 768, 1000, 1023, 1536, 3072, 4097, 65536}) {
        check_orthogonal(RotationType::Hadamard, d);
    }
}

TEST(Rotation, HaarIsOrthogonal) {
    for (size_t d : {1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 100, 257, 384}) {
        check_orthogonal(RotationType::Haar, d);
    }
}

TEST(Rotation, TransposeIsTheTranspose) {
    for (RotationType type : {RotationType::Hadamard, RotationType::Haar}) {
        for (size_t d : {1, 3, 33, 65, 96, 100, 128, 200}) {
            SCOPED_TRACE(name(type, d));
            const Rotation rotation(type, d, 5);
            // one entry at a time, where no sum rounds in a dense matrix
            for (size_t i = 0; i < d; i += 7) {
                for (size_t j = 0; j < d; j += 5) {
                    Vector a(d), b(d);
                    a[i] = 1;
                    b[j] = 1;
                    EXPECT_NEAR(
                            rotated(rotation, a)[j],
                            rotated_back(rotation, b)[i],
                            2 * error_bound(type, d));
                }
            }
        }
    }
}

TEST(Rotation, DependsOnSeedAlone) {
    for (RotationType type : {RotationType::Hadamard, RotationType::Haar}) {
        for (size_t d : {3, 64, 96, 128, 257}) {
            SCOPED_TRACE(name(type, d));
            const Vector x = gaussian_vector(d, 1);
            const Vector y = rotated(Rotation(type, d, 1), x);
            EXPECT_EQ(rotated(Rotation(type, d, 1), x), y);
            const Vector other = rotated(Rotation(type, d, 2), x);
            EXPECT_GT(distance(other, y), 0.1 * norm(x));
        }
    }
}

TEST(Rotation, SmallDimensionsAreDense) {
    for (size_t d : {1, 2, 33, 64}) {
        const Vector x = gaussian_vector(d, 1);
        EXPECT_EQ(
                rotated(Rotation(RotationType::Hadamard, d, 9), x),
                rotated(Rotation(RotationType::Haar, d, 9), x));
    }
}

TEST(Rotation, ThreadsShareOne) {
    const Rotation large(RotationType::Hadamard, 1000, 3);
    const Rotation small(RotationType::Hadamard, 100, 3);
    const Vector x = gaussian_vector(1000, 1);
    const Vector expected_large = rotated(large, x);
    const Vector expected_small = rotated(small, x);
    std::vector<int> wrong(4);
    std::vector<std::thread> threads;
    for (size_t t = 0; t < wrong.size(); t++) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 50; i++) {
                wrong[t] += rotated(small, x) != expected_small;
                wrong[t] += rotated(large, x) != expected_large;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(wrong, std::vector<int>(wrong.size()));
}

/// unit vectors that a poor transform would leave far from random
std::map<std::string, Vector> worst_cases(size_t d) {
    std::map<std::string, Vector> inputs;
    const auto add = [&](const char* input, auto value) {
        Vector x(d);
        for (size_t i = 0; i < d; i++) {
            x[i] = static_cast<float>(value(i));
        }
        const double length = norm(x);
        for (float& coordinate : x) {
            coordinate = static_cast<float>(coordinate / length);
        }
        inputs[input] = x;
    };
    add("one-hot, first", [](size_t i) { return i == 0; });
    add("one-hot, middle", [d](size_t i) { return i == d / 2; });
    add("one-hot, last", [d](size_t i) { return i == d - 1; });
    add("two-hot", [](size_t i) { return i < 2; });
    add("constant", [](size_t) { return 1; });
    add("alternating", [](size_t i) { return i % 2 ? -1 : 1; });
    add("Hadamard row", [](size_t i) {
        size_t bits = i & 0x2a5b;
        bool odd = false;
        for (; bits > 0; bits &= bits - 1) {
            odd = !odd;
        }
        return odd ? -1 : 1;
    });
    return inputs;
}

/// mean and standard error of independent samples
struct Samples {
    double n = 0, sum = 0, sum_of_squares = 0;

    void add(double x) {
        n++;
        sum += x;
        sum_of_squares += x * x;
    }
    double mean() const {
        return sum / n;
    }
    double standard_error() const {
        const double variance = sum_of_squares / n - mean() * mean();
        return std::sqrt(std::max(variance, 0.0) / (n - 1));
    }
};

/** Rotated worst cases against the Haar measure, over seeds: each coordinate
 * has mean 0 and variance 1/d, the fourth moment is 3 / (d (d + 2)), and the
 * error of each codebook is what the density of a coordinate says, up to
 * `allowance` times itself. */
void check_moments(
        RotationType type,
        size_t d,
        size_t n_seeds,
        double allowance = 0) {
    SCOPED_TRACE(name(type, d));
    std::vector<Codebook> codebooks;
    for (int nbits = 1; nbits <= 4; nbits++) {
        codebooks.push_back(Codebook::lloyd_max(d, nbits));
    }
    struct Statistics {
        std::vector<double> sums, sums_of_squares; // per coordinate
        Samples kurtosis;
        Samples errors[4];
    };
    const std::map<std::string, Vector> inputs = worst_cases(d);
    std::map<std::string, Statistics> all;
    Vector y(d);
    for (size_t seed = 0; seed < n_seeds; seed++) {
        const Rotation rotation(type, d, seed);
        for (const auto& [input, x] : inputs) {
            Statistics& statistics = all[input];
            statistics.sums.resize(d);
            statistics.sums_of_squares.resize(d);
            rotation.apply(x.data(), y.data());
            double fourth = 0;
            for (size_t i = 0; i < d; i++) {
                y[i] *= std::sqrt(static_cast<float>(d));
                const double square = double(y[i]) * y[i];
                statistics.sums[i] += y[i];
                statistics.sums_of_squares[i] += square;
                fourth += square * square;
            }
            statistics.kurtosis.add(fourth / d);
            for (size_t b = 0; b < codebooks.size(); b++) {
                const Codebook& codebook = codebooks[b];
                double sum = 0;
                for (size_t i = 0; i < d; i++) {
                    const float magnitude = std::fabs(y[i]);
                    float least = HUGE_VALF;
                    for (int g : codebook.positions) {
                        least = std::min(
                                least,
                                std::fabs(magnitude - codebook.level(g)));
                    }
                    sum += double(least) * least;
                }
                statistics.errors[b].add(sum / d);
            }
        }
    }

    const double n = n_seeds;
    for (const auto& [input, statistics] : all) {
        SCOPED_TRACE(input);
        // Chance of a false alarm per coordinate, for Gaussian coordinates:
        // 6.5 standard deviations of a mean, 1e-10; Chernoff's bound for n
        // times the sample variance, chi-squared with n degrees of freedom,
        // e^-25
        double farthest_mean = 0, worst_variance = 0;
        for (size_t i = 0; i < d; i++) {
            farthest_mean =
                    std::max(farthest_mean, std::fabs(statistics.sums[i] / n));
            const double v = statistics.sums_of_squares[i] / n;
            worst_variance =
                    std::max(worst_variance, n / 2 * (v - 1 - std::log(v)));
        }
        EXPECT_LT(farthest_mean, 6.5 / std::sqrt(n));
        EXPECT_LT(worst_variance, 25);
        // five standard errors over the seeds, and float rounding
        const double rounding = 4 * error_bound(type, d);
        const double kurtosis = 3.0 * d / (d + 2);
        EXPECT_NEAR(
                statistics.kurtosis.mean(),
                kurtosis,
                5 * statistics.kurtosis.standard_error() +
                        kurtosis * (allowance + rounding));
        for (size_t b = 0; b < codebooks.size(); b++) {
            const double error = codebooks[b].mean_squared_error(d);
            EXPECT_NEAR(
                    statistics.errors[b].mean(),
                    error,
                    5 * statistics.errors[b].standard_error() +
                            error * allowance + rounding)
                    << "nbits = " << b + 1;
        }
    }
}

TEST(Rotation, HadamardOfWorstCasesIsLikeHaar) {
    for (size_t d : {96, 100, 200, 384, 768, 1536, 3072}) {
        check_moments(RotationType::Hadamard, d, 300000 / d);
    }
}

// Few signs, and blocks that mix a few coordinates only: the documented 2 %.
TEST(Rotation, HadamardOfAwkwardSizesIsCloseToHaar) {
    for (size_t d : {65, 66, 72, 127, 128, 255, 256, 257, 1000, 1023}) {
        check_moments(RotationType::Hadamard, d, 200000 / d, 0.02);
    }
}

TEST(Rotation, HaarOfWorstCasesIsUniform) {
    for (size_t d : {2, 3, 8, 33, 64}) {
        check_moments(RotationType::Haar, d, 100000 / d);
    }
}

TEST(Rotation, BothSignsInOneDimension) {
    Samples samples;
    for (uint64_t seed = 0; seed < 1000; seed++) {
        const float y =
                rotated(Rotation(RotationType::Hadamard, 1, seed), {2.f})[0];
        EXPECT_EQ(std::fabs(y), 2);
        samples.add(y);
    }
    EXPECT_NEAR(samples.mean(), 0, 6 * samples.standard_error());
}

/// 64-bit FNV-1a hash of the bits
uint64_t hash(const Vector& x) {
    uint64_t h = 0xcbf29ce484222325;
    for (float value : x) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        for (int i = 0; i < 4; i++) {
            h = (h ^ (bits >> 8 * i & 0xff)) * 0x100000001b3;
        }
    }
    return h;
}

// Files store the seed alone: these results are part of the file format.
TEST(Rotation, GoldenValues) {
    struct Golden {
        RotationType type;
        size_t d;
        uint64_t hash;
        float first;
    };
    const Golden golden[] = {
            {RotationType::Hadamard, 33, 0x5f84d1aca5abdc8a, -0x1.1dd948p+6f},
            {RotationType::Hadamard, 96, 0x73044b1a366cc369, -0x1.0df31ep+5f},
            {RotationType::Hadamard, 128, 0x48ad9ab368a9d9f3, -0x1.e9fb18p+4f},
            {RotationType::Hadamard, 200, 0x3b99a616d32761f5, 0x1.66288ap+3f},
            {RotationType::Hadamard, 384, 0xf293e3b9160104d6, 0x1.011484p+5f},
            {RotationType::Hadamard, 768, 0x57f768b8da12aa63, 0x1.2b399cp+5f},
            {RotationType::Hadamard, 1000, 0xdc66245bfeac5f80, 0x1.8d16d2p+4f},
            {RotationType::Hadamard, 1536, 0x5e939c2b632bf1e3, 0x1.43fd1p+5f},
            {RotationType::Haar, 3, 0x4ce4cad01f1481c2, -0x1.5b6ac8p+2f},
            {RotationType::Haar, 100, 0xdc06f51cc504d66b, 0x1.3695fcp+5f},
            {RotationType::Haar, 257, 0x855c4adc27f1e81c, -0x1.86e3b8p+1f},
    };
    for (const Golden& expected : golden) {
        SCOPED_TRACE(name(expected.type, expected.d));
        Vector x(expected.d);
        for (size_t i = 0; i < x.size(); i++) {
            x[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50);
        }
        const Vector y = rotated(Rotation(expected.type, expected.d, 12345), x);
        EXPECT_EQ(hash(y), expected.hash) << std::hex << hash(y);
        EXPECT_EQ(y[0], expected.first) << std::hexfloat << y[0];
    }
}

TEST(Rotation, RefusesBadArguments) {
    EXPECT_THROW(Rotation(RotationType::Hadamard, 0, 1), faiss::FaissException);
    EXPECT_THROW(
            Rotation(RotationType::Hadamard, size_t(1) << 31, 1),
            faiss::FaissException);
    EXPECT_THROW(
            Rotation(static_cast<RotationType>(2), 8, 1),
            faiss::FaissException);
    try {
        Rotation(RotationType::Haar, 4097, 1);
        FAIL() << "no exception";
    } catch (const faiss::FaissException& e) {
        EXPECT_NE(std::string(e.what()).find("d = 4097"), std::string::npos)
                << e.what();
    }
}

} // namespace
} // namespace faiss_turboquant
