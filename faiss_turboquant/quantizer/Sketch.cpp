#include <faiss_turboquant/quantizer/Sketch.h>

#include <cmath>
#include <mutex>
#include <vector>

#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/random.h>

namespace faiss_turboquant {

namespace {

/// so that the stream is not that of the rotation with the same seed
constexpr uint64_t seed_offset = 0x736b65746368ULL;

} // namespace

struct Sketch::Matrix {
    std::once_flag once;
    std::vector<float> entries;
};

Sketch::Sketch(size_t d, uint64_t seed)
        : d_(d), seed_(seed), matrix_(std::make_shared<Matrix>()) {
    FAISS_THROW_IF_NOT_FMT(
            d >= 1 && d <= max_dim,
            "a sketch multiplies by a dense matrix and serves d from 1 to "
            "%zu, got d = %zu",
            max_dim,
            d);
}

const float* Sketch::matrix() const {
    std::call_once(matrix_->once, [&] {
        Random random(seed_ + seed_offset);
        const double deviation = 1 / std::sqrt(double(d_));
        matrix_->entries.resize(d_ * d_);
        for (float& entry : matrix_->entries) {
            entry = static_cast<float>(deviation * random.gaussian());
        }
    });
    return matrix_->entries.data();
}

void Sketch::apply(const float* x, float* y) const {
    kernels().matvec(matrix(), d_, d_, x, y);
}

void Sketch::add_transpose(const float* y, float* x) const {
    const float* row = matrix();
    for (size_t i = 0; i < d_; i++, row += d_) {
        for (size_t j = 0; j < d_; j++) {
            x[j] += y[i] * row[j];
        }
    }
}

} // namespace faiss_turboquant
