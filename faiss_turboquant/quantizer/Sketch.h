#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace faiss_turboquant {

/** The Gaussian matrix S of a Johnson-Lindenstrauss sketch of which the signs
 * are kept (Zandieh, Daliri, Han: QJL, 2024, definition 3.1; TurboQuant's
 * Algorithm 2), the same for the same (d, seed) on every machine. Its entries
 * are independent, with variance 1/d, so that |S x| is about |x|.
 *
 * The matrix takes 4 d^2 bytes. It is drawn when first used, and copies share
 * it.
 */
class Sketch {
   public:
    /// greatest d, as of a dense rotation: the matrix takes 64 MiB
    static constexpr size_t max_dim = 4096;

    Sketch() = default;

    /** @param d     dimension, 1 to max_dim
     *  @param seed  any value
     *  @throws faiss::FaissException on any other value */
    Sketch(size_t d, uint64_t seed);

    size_t d() const {
        return d_;
    }
    uint64_t seed() const {
        return seed_;
    }

    /// y = S x. x and y: (d,), may not overlap. Thread-safe.
    void apply(const float* x, float* y) const;

    /// x += S^T y. x and y: (d,), may not overlap. Thread-safe.
    void add_transpose(const float* y, float* x) const;

   private:
    struct Matrix;

    /// (d, d), row major
    const float* matrix() const;

    size_t d_ = 0;
    uint64_t seed_ = 0;
    std::shared_ptr<Matrix> matrix_;
};

} // namespace faiss_turboquant
