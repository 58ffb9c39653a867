#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss_turboquant/kernels/trellis.h>

namespace faiss_turboquant {

/** Levels of a quantizer, scalar or with a trellis, on the integer grid of the
 * kernels.
 *
 * A level is (g - 31.5) * step for a grid position g in 0..63, in units in
 * which a coordinate of a rotated unit vector, times sqrt(d), has variance 1.
 * Levels are symmetric: position 63 - g is the partner of g, so the upper
 * half is enough.
 */
struct Codebook {
    float step = 0; ///< grid step
    /// grid positions of the positive levels, ascending, each in 32..63;
    /// size 2^(nbits-1). With a trellis: by the trellis's index, in any order
    /// and not all different; at 1 bit those of all levels; size 16
    std::vector<uint8_t> positions;
    Trellis trellis;         ///< memory 0 if the codebook is scalar
    float trellis_error = 0; ///< mean squared error per coordinate, for large d

    bool operator==(const Codebook& other) const {
        return step == other.step && positions == other.positions &&
                trellis == other.trellis;
    }

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

    /** The two levels +-sqrt(pi / 2) that stand for the signs of a sketch S r
     * (quantizer/Sketch.h): <S q, levels> estimates <q, r> / |r| without bias
     * (Zandieh, Daliri, Han: QJL, 2024, lemma 3.2). */
    static Codebook sketch_signs();

    /** Trellis-coded levels: the same for every d.
     * @param nbits   1 to 4
     * @param memory  the trellis has 2^memory states; one of the memories in
     *                kernels/trellis_tables.h
     * @throws faiss::FaissException on any other value */
    static Codebook trellis_coded(int nbits, int memory);

    /** Mean squared error on a unit vector of R^d, each coordinate taken to
     * the nearest level: d * E[(t - level(t) / sqrt(d))^2]. d = 1 as d = 2.
     * With a trellis: measured. */
    double mean_squared_error(size_t d) const;
};

} // namespace faiss_turboquant
