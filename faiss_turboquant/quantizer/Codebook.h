#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace faiss_turboquant {

/** Levels of a scalar quantizer on the integer grid of the kernels.
 *
 * A level is (g - 31.5) * step for a grid position g in 0..63, in units in
 * which a coordinate of a rotated unit vector, times sqrt(d), has variance 1.
 * Levels are symmetric: position 63 - g is the partner of g, so the upper
 * half is enough.
 */
struct Codebook {
    float step = 0; ///< grid step
    /// grid positions of the positive levels, ascending, each in 32..63;
    /// size 2^(nbits-1)
    std::vector<uint8_t> positions;

    float level(int g) const {
        return (static_cast<float>(g) - 31.5f) * step;
    }

    /** The Lloyd-Max quantizer of one coordinate of a uniformly random unit
     * vector in R^d (Zandieh et al., TurboQuant, 2025, equation 4; density:
     * Lemma 1), the best one whose levels lie on the grid. Uses only IEEE
     * additions, multiplications, divisions and square roots, so every
     * machine computes the same codebook.
     *
     * The step is a multiple of 2^-12, so that levels and the midpoints
     * between them are exact in float. d = 1, where a coordinate is +1 or -1
     * and has no density, gets the codebook of d = 2; any codebook does, with
     * a scale per vector.
     *
     * @param d      dimension, >= 1
     * @param nbits  1 to 4
     * @throws faiss::FaissException on any other value
     */
    static Codebook lloyd_max(size_t d, int nbits);

    /** Mean squared error on a unit vector of R^d, each coordinate taken to
     * the nearest level: d * E[(t - level(t) / sqrt(d))^2]. d = 1 as d = 2. */
    double mean_squared_error(size_t d) const;
};

} // namespace faiss_turboquant
