#include <faiss_turboquant/quantizer/Codebook.h>

#include <algorithm>
#include <cmath>
#include <string>

#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/kernels/trellis_tables.h>

namespace faiss_turboquant {

namespace {

constexpr int first_position = 32; // of a positive level
constexpr int n_positions = 32;
constexpr double inverse_step_unit = 4096; // steps are multiples of 2^-12

/// x^n by repeated squaring: std::pow differs between C libraries
double power(double x, size_t n) {
    double result = 1;
    for (; n > 0; n >>= 1) {
        if (n & 1) {
            result *= x;
        }
        x *= x;
    }
    return result;
}

/** Distribution of |X|, X = sqrt(d) t, t one coordinate of a uniformly random
 * unit vector in R^d.
 *
 * The density of t is proportional to (1 - t^2)^((d-3)/2), singular or with
 * singular derivatives at the ends when d is even or small. t = sin(a) makes
 * it cos(a)^(d-2) da, and u = tan(a/2) makes that rational, smooth over the
 * whole range, and free of half-integer powers:
 *
 *   t = 2u / (1 + u^2),  cos(a) = (1 - u^2) / (1 + u^2),
 *   da = 2 / (1 + u^2) du,  u = t / (1 + cos(a))
 */
class CoordinateDistribution {
   public:
    explicit CoordinateDistribution(size_t dim)
            : d_(std::max<size_t>(dim, 2)),
              sqrt_d_(std::sqrt(static_cast<double>(d_))) {
        // beyond x = 9 lies less than 1e-18 of the mass, whatever d
        const double t_max = std::min(1.0, 9 / sqrt_d_);
        h_ = t_max / (1 + std::sqrt(1 - t_max * t_max)) / n_intervals;

        // cumulative integral by Simpson's rule
        density_.resize(n_intervals + 1);
        cumulative_.resize(n_intervals + 1);
        density_[0] = density(0);
        cumulative_[0] = 0;
        for (int i = 0; i < n_intervals; i++) {
            const double middle = density((i + 0.5) * h_);
            density_[i + 1] = density((i + 1) * h_);
            cumulative_[i + 1] = cumulative_[i] +
                    (density_[i] + 4 * middle + density_[i + 1]) * h_ / 6;
        }
        const double total = cumulative_[n_intervals];
        for (int i = 0; i <= n_intervals; i++) {
            density_[i] /= total;
            cumulative_[i] /= total;
        }
        mean_ = sqrt_d_ / (static_cast<double>(d_ - 1) * total);
    }

    /// E|X|
    double mean() const {
        return mean_;
    }

    /** E max(x - |X|, 0) = x P(|X| < x) - E[|X|; |X| < x], for x >= 0. */
    double mean_shortfall(double x) const {
        const double t = x / sqrt_d_;
        if (t >= 1) {
            return x - mean_;
        }
        const double cosine = std::sqrt(1 - t * t);
        const double where = t / (1 + cosine) / h_;
        if (where >= n_intervals) {
            return x - mean_;
        }
        // P(|X| < x): cubic Hermite interpolation, slopes being known
        const int i = static_cast<int>(where);
        const double f = where - i;
        const double rise = cumulative_[i + 1] - cumulative_[i];
        const double slope0 = density_[i] * h_, slope1 = density_[i + 1] * h_;
        const double bend = slope0 + slope1 - 2 * rise;
        const double mass = cumulative_[i] +
                f * (slope0 + f * (rise - slope0 - bend + f * bend));
        // E[|X|; |X| < x]: t cos(a)^(d-2) da has a primitive
        return x * mass - mean_ * (1 - power(cosine, d_ - 1));
    }

   private:
    static constexpr int n_intervals = 512;

    double density(double u) const {
        const double denominator = 1 + u * u;
        return 2 / denominator * power((1 - u * u) / denominator, d_ - 2);
    }

    size_t d_;
    double sqrt_d_;
    double h_;                       ///< table step in u
    double mean_;                    ///< E|X|
    std::vector<double> density_;    ///< of u, at u = i h
    std::vector<double> cumulative_; ///< P(u < i h)
};

/* With positive levels l_1 < .. < l_n and thresholds T_i = (l_i + l_{i+1}) / 2
 * between them, the mean squared error of |X| (E X^2 being 1) is
 *
 *   1 - 2 l_n E|X| + l_n^2 - 2 sum_i (l_{i+1} - l_i) shortfall(T_i)
 *
 * as the terms of the threshold T_i, (l_i^2 - l_{i+1}^2) P(|X| < T_i)
 * - 2 (l_i - l_{i+1}) E[|X|; |X| < T_i], have l_{i+1} - l_i as a factor. */

/// 1 - 2 l_n E|X| + l_n^2
double error_above(double last_level, double mean) {
    return 1 + last_level * (last_level - 2 * mean);
}

} // namespace

Codebook Codebook::lloyd_max(size_t d, int nbits) {
    FAISS_THROW_IF_NOT_FMT(d >= 1, "d must be at least 1, got %zu", d);
    FAISS_THROW_IF_NOT_FMT(
            nbits >= 1 && nbits <= 4, "nbits must be 1 to 4, got %d", nbits);
    const CoordinateDistribution distribution(d);
    const double mean = distribution.mean();
    Codebook codebook;

    if (nbits == 1) {
        // One level suits any position. The first has 2 g - 63 = 1, which
        // keeps integer dot products below 2^24, exact in float.
        codebook.positions = {first_position};
        codebook.step = static_cast<float>(
                std::floor(2 * mean * inverse_step_unit + 0.5) /
                inverse_step_unit);
        return codebook;
    }

    // For each step, the best positions by dynamic programming over the
    // levels from the lowest to the highest. The error as a function of the
    // step has many local minima, hence the search through all steps between
    // the least that still reaches the highest level (about 2.8 at 4 bits) and
    // one too coarse. Strict comparisons: the first of equals wins.
    const int n_levels = 1 << (nbits - 1);
    constexpr int least_step = 160, greatest_step = 512;
    double best_error = HUGE_VAL;
    for (int s = least_step; s <= greatest_step; s++) {
        const double step = s / inverse_step_unit;
        // level of index m is (m + 1/2) step; indices m and n have the
        // threshold (m + n + 1) step / 2 between them
        double shortfall[2 * n_positions];
        for (int i = 0; i < 2 * n_positions; i++) {
            shortfall[i] = distribution.mean_shortfall(i * step / 2);
        }
        // gain[n]: greatest sum of (l_{i+1} - l_i) / step * shortfall(T_i) of
        // l + 1 levels of which n is the highest; previous[l][n]: the next
        // lower one in it
        double gain[n_positions] = {};
        uint8_t previous[8][n_positions];
        for (int l = 1; l < n_levels; l++) {
            for (int n = n_positions - 1; n >= l; n--) {
                double best = -1;
                for (int m = l - 1; m < n; m++) {
                    const double value =
                            gain[m] + (n - m) * shortfall[m + n + 1];
                    if (value > best) {
                        best = value;
                        previous[l][n] = static_cast<uint8_t>(m);
                    }
                }
                gain[n] = best;
            }
        }
        int last = -1;
        for (int n = n_levels - 1; n < n_positions; n++) {
            const double error =
                    error_above((n + 0.5) * step, mean) - 2 * step * gain[n];
            if (error < best_error) {
                best_error = error;
                last = n;
            }
        }
        if (last >= 0) {
            codebook.step = static_cast<float>(step);
            codebook.positions.resize(n_levels);
            for (int l = n_levels - 1; l >= 0; l--) {
                codebook.positions[l] =
                        static_cast<uint8_t>(first_position + last);
                last = l > 0 ? previous[l][last] : last;
            }
        }
    }
    return codebook;
}

Codebook Codebook::sketch_signs() {
    Codebook codebook;
    codebook.positions = {first_position};
    codebook.step = 2.5066282746f; // the level is half a step
    return codebook;
}

Codebook Codebook::trellis_coded(int nbits, int memory) {
    FAISS_THROW_IF_NOT_FMT(
            nbits >= 1 && nbits <= 4, "nbits must be 1 to 4, got %d", nbits);
    std::string memories;
    for (const TrellisCode& code : trellis_codes) {
        if (code.nbits != nbits) {
            continue;
        }
        if (code.memory == memory) {
            Codebook codebook;
            codebook.step = code.step;
            codebook.trellis_error = code.error;
            codebook.trellis.memory = memory;
            std::copy_n(code.taps, 4, codebook.trellis.taps);
            codebook.trellis.sign_mask = code.sign_mask;
            codebook.positions.assign(
                    code.grid, code.grid + Trellis::n_indices);
            return codebook;
        }
        memories +=
                (memories.empty() ? "" : ", ") + std::to_string(code.memory);
    }
    FAISS_THROW_FMT(
            "no trellis with memory %d at %d bits; there are: %s",
            memory,
            nbits,
            memories.c_str());
}

double Codebook::mean_squared_error(size_t d) const {
    FAISS_THROW_IF_NOT_FMT(d >= 1, "d must be at least 1, got %zu", d);
    FAISS_THROW_IF_NOT_MSG(!positions.empty(), "the codebook has no levels");
    if (trellis.memory > 0) {
        // the first coordinates, when few states can be reached, are worse:
        // within 1 % from d = 64 on
        return trellis_error * (1 + 0.7 * trellis.memory / double(d));
    }
    const CoordinateDistribution distribution(d);
    double error = error_above(level(positions.back()), distribution.mean());
    for (size_t i = 0; i + 1 < positions.size(); i++) {
        const double low = level(positions[i]);
        const double high = level(positions[i + 1]);
        error -= 2 * (high - low) *
                distribution.mean_shortfall((low + high) / 2);
    }
    return error;
}

} // namespace faiss_turboquant
