#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace faiss_turboquant {

/// how random directions are spread over the coordinates
enum class RotationType : uint8_t {
    /// signs, permutations and block Hadamard transforms, O(d log d)
    Hadamard = 0,
    /// a dense matrix drawn from the Haar measure, O(d^2)
    Haar = 1,
};

/** A random orthogonal transform P of R^d, the same for the same (type, d,
 * seed) on every machine.
 *
 * Hadamard: `rounds` times, permute the coordinates, flip signs, and apply the
 * Walsh-Hadamard transform to consecutive blocks whose sizes are the powers of
 * two in the binary expansion of d, largest first (d = 200: 128, 64, 8). The
 * permutation carries every block's energy to all blocks in proportion to
 * their sizes, so that no padding is needed for any d. After the first round,
 * groups of up to 16 coordinates move together (as long as that leaves 64
 * groups), which is several times faster; the first moves them one by one,
 * lest neighbours in the input stay neighbours. When d is a power of two there
 * is one block and no permutation is needed. (Ailon and Chazelle, STOC 2006,
 * for one round; Andoni et al., NeurIPS 2015, section 4, for three.) The mean
 * squared error of a quantized one-hot vector is within 2 % of that after a
 * Haar rotation for every d, and indistinguishable for most.
 *
 * Up to d = max_small_dim a dense matrix costs no more and takes their place:
 * the coordinates that so few signs can give are multiples of a coarse unit,
 * which costs up to 16 % of the error of 4 bits at d = 32.
 *
 * Haar: the orthogonal factor of a Gaussian matrix.
 */
struct Rotation {
    static constexpr int rounds = 3;
    /// greatest d at which both types are a dense matrix
    static constexpr size_t max_small_dim = 64;
    /// greatest d of a Haar rotation: its matrix takes 4 d^2 bytes (64 MiB)
    /// and a time of order d^3 to draw
    static constexpr size_t max_haar_dim = 4096;

    RotationType type = RotationType::Hadamard;
    size_t d = 0;
    uint64_t seed = 0;

    Rotation() = default;

    /** @param type  how to rotate
     *  @param d     dimension, 1 to 2^31 - 1; at most max_haar_dim for Haar
     *  @param seed  any value
     *  @throws faiss::FaissException on any other value */
    Rotation(RotationType type, size_t d, uint64_t seed);

    /// y = P x. x and y: (d,), may not overlap. Thread-safe.
    void apply(const float* x, float* y) const;

    /// x = P^T y. x and y: (d,), may not overlap. Thread-safe.
    void apply_transpose(const float* y, float* x) const;

    // What apply() does, for other implementations of it. Dense: y = M x.
    // Hadamard: in each round, groups of d / n_groups coordinates are gathered
    // and multiplied, then the blocks transformed.

    /// M, (d, d), row major; empty for a Hadamard rotation
    const std::vector<float>& matrix() const {
        return matrix_;
    }
    /// (rounds, d)
    const std::vector<float>& multipliers() const {
        return multipliers_;
    }
    /// (n_groups,): where a group comes from; empty for the identity
    const std::vector<int32_t>& permutation(int round) const {
        return permutations_[round];
    }

   private:
    void draw_hadamard();
    void draw_haar();
    void transform_blocks(float* x) const;

    /// sizes of the Hadamard blocks, descending powers of two that sum to d
    std::vector<size_t> blocks_;
    /// (rounds, d): sign times 1/sqrt(size of the block)
    std::vector<float> multipliers_;
    /// per round (n_groups,): group i of the result, d / n_groups coordinates,
    /// comes from coordinate permutations_[round][i] onwards; empty when there
    /// is one block
    std::vector<int32_t> permutations_[rounds];
    /// (d, d), row major, for the dense rotation, else empty
    std::vector<float> matrix_;
};

} // namespace faiss_turboquant
