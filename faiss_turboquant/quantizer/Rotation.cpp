#include <faiss_turboquant/quantizer/Rotation.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/AlignedTable.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/random.h>

namespace faiss_turboquant {

namespace {

/// scratch of n floats, reused by later calls on the same thread
float* scratch_floats(size_t n) {
    thread_local faiss::AlignedTable<float, 64> buffer;
    if (buffer.size() < n) {
        buffer.resize(n);
    }
    return buffer.data();
}

/// the transpose of a round's permutation and multiplication
void permute_back(
        const float* y,
        const int32_t* starts,
        const float* multiplier,
        size_t n_groups,
        size_t size,
        float* x) {
    for (size_t i = 0; i < n_groups; i++) {
        for (size_t j = 0; j < size; j++) {
            x[starts[i] + j] = y[i * size + j] * multiplier[i * size + j];
        }
    }
}

constexpr size_t max_group_size = 16;
constexpr size_t min_groups = 64;

} // namespace

Rotation::Rotation(RotationType type, size_t d, uint64_t seed)
        : type(type), d(d), seed(seed) {
    FAISS_THROW_IF_NOT_FMT(
            d >= 1 && d <= std::numeric_limits<int32_t>::max(),
            "d must be 1 to 2^31 - 1, got %zu",
            d);
    switch (type) {
        case RotationType::Hadamard:
            if (d <= max_small_dim) {
                draw_haar();
            } else {
                draw_hadamard();
            }
            return;
        case RotationType::Haar:
            FAISS_THROW_IF_NOT_FMT(
                    d <= max_haar_dim,
                    "a Haar rotation is a dense matrix and serves d up to "
                    "%zu, got d = %zu; use a Hadamard rotation",
                    max_haar_dim,
                    d);
            draw_haar();
            return;
    }
    FAISS_THROW_FMT("unknown rotation type %d", static_cast<int>(type));
}

void Rotation::draw_hadamard() {
    Random random(seed);
    size_t size = 1;
    while (size <= d / 2) {
        size *= 2;
    }
    for (; size > 0; size /= 2) {
        if (d & size) {
            blocks_.push_back(size);
        }
    }
    size_t greatest_group = 1;
    while (greatest_group < max_group_size && d % (2 * greatest_group) == 0 &&
           d / (2 * greatest_group) >= min_groups) {
        greatest_group *= 2;
    }
    multipliers_.resize(rounds * d);
    for (int r = 0; r < rounds; r++) {
        if (blocks_.size() > 1) { // Fisher-Yates
            const size_t group_size = r == 0 ? 1 : greatest_group;
            std::vector<int32_t>& permutation = permutations_[r];
            for (size_t start = 0; start < d; start += group_size) {
                permutation.push_back(static_cast<int32_t>(start));
            }
            for (size_t i = permutation.size() - 1; i > 0; i--) {
                const uint32_t j = random.below(static_cast<uint32_t>(i + 1));
                std::swap(permutation[i], permutation[j]);
            }
        }
        float* multiplier = &multipliers_[r * d];
        for (const size_t block : blocks_) {
            const float magnitude = static_cast<float>(
                    1 / std::sqrt(static_cast<double>(block)));
            for (size_t i = 0; i < block; i++) {
                *multiplier++ = random.next() >> 63 ? -magnitude : magnitude;
            }
        }
    }
}

/* Householder's QR decomposition of a Gaussian matrix, without the matrix:
 * after the reflections of columns 0..k-1 the rest of column k is again
 * Gaussian and independent of them, so it is drawn when it is needed (Stewart,
 * The efficient generation of random orthogonal matrices, SIAM J. Numer. Anal.
 * 17, 1980). Q = H_0 H_1 .. H_{d-1} D, where H_k maps its Gaussian vector to a
 * multiple of the unit vector e_k and D makes the diagonal of R positive,
 * without which Q would not be Haar distributed. */
void Rotation::draw_haar() {
    Random random(seed);
    // H_k = I - v v^T, v zero before k; row k of the packed triangle holds the
    // rest of v
    std::vector<double> reflections(d * (d + 1) / 2);
    const auto reflection = [&](size_t k) {
        return &reflections[k * d - k * (k - 1) / 2];
    };
    std::vector<double> signs(d);
    for (size_t k = 0; k < d; k++) {
        double* v = reflection(k);
        const size_t length = d - k;
        double squared_norm = 0;
        for (size_t i = 0; i < length; i++) {
            v[i] = random.gaussian();
            squared_norm += v[i] * v[i];
        }
        // the image of v is -sign(v_0) |v| e_k: v - image has no cancellation
        const double norm = std::sqrt(squared_norm);
        const bool negative = v[0] < 0;
        signs[k] = negative ? 1 : -1;
        const double scale =
                1 / std::sqrt(squared_norm + norm * std::fabs(v[0]));
        v[0] += negative ? -norm : norm;
        for (size_t i = 0; i < length; i++) {
            v[i] *= scale;
        }
    }

    // Multiply from the right, H_{d-1} D first, so that H_k meets a matrix
    // that is still diagonal above row k. Columns are independent: a strip of
    // them stays in cache through all reflections, and its width, known to the
    // compiler, vectorises without any change in the order of operations.
    constexpr size_t width = 32;
    matrix_.resize(d * d);
    std::vector<double> columns(d * width); // (d, width)
    for (size_t begin = 0; begin < d; begin += width) {
        const size_t end = std::min(d, begin + width);
        std::fill(columns.begin(), columns.end(), 0.0);
        for (size_t j = begin; j < end; j++) {
            columns[j * width + j - begin] = signs[j];
        }
        for (size_t k = end; k-- > 0;) {
            const double* v = reflection(k);
            double products[width] = {};
            for (size_t i = k; i < d; i++) {
                for (size_t j = 0; j < width; j++) {
                    products[j] += v[i - k] * columns[i * width + j];
                }
            }
            for (size_t i = k; i < d; i++) {
                for (size_t j = 0; j < width; j++) {
                    columns[i * width + j] -= v[i - k] * products[j];
                }
            }
        }
        for (size_t i = 0; i < d; i++) {
            for (size_t j = begin; j < end; j++) {
                matrix_[i * d + j] =
                        static_cast<float>(columns[i * width + j - begin]);
            }
        }
    }
}

void Rotation::transform_blocks(float* x) const {
    const auto hadamard = kernels().hadamard;
    for (const size_t block : blocks_) {
        hadamard(x, block);
        x += block;
    }
}

void Rotation::apply(const float* x, float* y) const {
    if (!matrix_.empty()) {
        kernels().matvec(matrix_.data(), d, d, x, y);
        return;
    }
    const RotationBlocks blocks = {blocks_.data(), blocks_.size(), d};
    if (blocks.n == 1) {
        const int32_t start = 0;
        for (int r = 0; r < rounds; r++) {
            kernels().rotation_round(
                    r == 0 ? x : y, &start, d, &multipliers_[r * d], blocks, y);
        }
        return;
    }
    // x -> y -> scratch -> y
    static_assert(rounds == 3, "the result must end up in y");
    float* scratch = scratch_floats(d);
    const float* from = x;
    for (int r = 0; r < rounds; r++) {
        float* to = r == 1 ? scratch : y;
        const std::vector<int32_t>& permutation = permutations_[r];
        kernels().rotation_round(
                from,
                permutation.data(),
                d / permutation.size(),
                &multipliers_[r * d],
                blocks,
                to);
        from = to;
    }
}

void Rotation::apply_transpose(const float* y, float* x) const {
    if (!matrix_.empty()) {
        std::fill_n(x, d, 0.f);
        for (size_t i = 0; i < d; i++) {
            const float* row = &matrix_[i * d];
            for (size_t j = 0; j < d; j++) {
                x[j] += y[i] * row[j];
            }
        }
        return;
    }
    if (blocks_.size() == 1) {
        std::memcpy(x, y, d * sizeof(float));
        for (int r = rounds - 1; r >= 0; r--) {
            const float* multiplier = &multipliers_[r * d];
            transform_blocks(x);
            for (size_t i = 0; i < d; i++) {
                x[i] *= multiplier[i];
            }
        }
        return;
    }
    // y -> scratch -> x -> scratch -> x
    float* from = scratch_floats(d);
    float* to = x;
    std::memcpy(from, y, d * sizeof(float));
    for (int r = rounds - 1; r >= 0; r--) {
        const std::vector<int32_t>& permutation = permutations_[r];
        const size_t n_groups = permutation.size();
        transform_blocks(from);
        permute_back(
                from,
                permutation.data(),
                &multipliers_[r * d],
                n_groups,
                d / n_groups,
                to);
        std::swap(from, to);
    }
}

} // namespace faiss_turboquant
