#include <faiss_turboquant/quantizer/Sketch.h>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

#include "../awkward_sizes.h"

namespace {

using faiss_turboquant::Sketch;

/// column j of S
std::vector<float> column(const Sketch& sketch, size_t j) {
    std::vector<float> x(sketch.d()), y(sketch.d());
    x[j] = 1;
    sketch.apply(x.data(), y.data());
    return y;
}

TEST(Sketch, EntriesAreStandardNormalOverTheRootOfD) {
    const size_t d = 300;
    const Sketch sketch(d, 7);
    double sum = 0, squares = 0, fourth_powers = 0;
    for (size_t j = 0; j < d; j++) {
        for (float entry : column(sketch, j)) {
            const double e = entry * std::sqrt(double(d));
            sum += e;
            squares += e * e;
            fourth_powers += e * e * e * e;
        }
    }
    // five standard errors of the means of n values, whose variances are 1, 2
    // and 96
    const double n = d * d;
    EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
    EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
    EXPECT_NEAR(fourth_powers / n, 3, 5 * std::sqrt(96 / n));
}

TEST(Sketch, TransposeIsTheTranspose) {
    for (size_t d : awkward_sizes) {
        const Sketch sketch(d, 1);
        const size_t i = d / 3, j = d / 2;
        std::vector<float> x(d), y(d, 0.5f);
        x[i] = 2;
        sketch.add_transpose(x.data(), y.data());
        EXPECT_EQ(y[j], 0.5f + 2 * column(sketch, j)[i]) << d;
    }
}

TEST(Sketch, SeedsAndCopies) {
    const Sketch a(20, 1), same(20, 1), other(20, 2), copy(a);
    EXPECT_EQ(column(a, 3), column(same, 3));
    EXPECT_EQ(column(a, 3), column(copy, 3));
    EXPECT_NE(column(a, 3), column(other, 3));
    EXPECT_EQ(copy.d(), 20u);
    EXPECT_EQ(copy.seed(), 1u);
}

// Part of the file format: the matrix is not stored, but drawn again.
TEST(Sketch, IsFrozen) {
    const Sketch sketch(3, 42);
    EXPECT_EQ(
            column(sketch, 0),
            (std::vector<float>{
                    0x1.114106p-2f, 0x1.c6b48ap-2f, -0x1.934158p-2f}));
    EXPECT_EQ(
            column(sketch, 2),
            (std::vector<float>{
                    -0x1.b5ab44p-3f, 0x1.39007ep+0f, -0x1.a1bf24p-1f}));
}

TEST(Sketch, RefusesOtherDimensions) {
    EXPECT_THROW(Sketch(0, 1), faiss::FaissException);
    EXPECT_THROW(Sketch(Sketch::max_dim + 1, 1), faiss::FaissException);
}

} // namespace
