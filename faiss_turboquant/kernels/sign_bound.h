#pragma once

/** What the planes of SignFilter tell of a code, and how much they leave open
 * of its product with a query: on the CPU and the GPU. */

#include <cmath>
#include <cstdint>

#include <faiss_turboquant/kernels/host_device.h>

namespace faiss_turboquant {

/** There is one plane of signs or two, of which the second one tells large
 * magnitudes from small ones. Its bits are signs themselves: t = s where the
 * magnitude is large, else -s. With one plane a code is taken for its signs s,
 * with two for 2 s + t, levels of 3, 1, -1 and -3: the uniform quantizer that
 * has the least error of normal deviates begins the large ones at 0.996 (Max,
 * Quantizing for minimum distortion, 1960). */
constexpr int max_sign_planes = 2;

/** The least large magnitude.
 * @param half_steps  of the codes' layout: of a coordinate that is as large as
 *                    sqrt(d) of them are */
inline uint8_t large_magnitude(double half_steps, double d) {
    return static_cast<uint8_t>(std::lround(0.996 * half_steps / std::sqrt(d)));
}

/// of a code's levels 2 g - 63
struct LevelSums {
    int32_t magnitudes, squares;
    int32_t large_magnitudes, n_large; ///< of those that are large
};

/// a code v as its planes have it, u: v = beta u + r
struct SignApproximation {
    double beta;
    double residual; ///< |r| / beta
    double square;   ///< |v|^2 / beta^2

    TQ_HOST_DEVICE SignApproximation(
            const LevelSums& sums,
            int64_t d,
            int n_planes) {
        // <v, u> and |u|^2
        int64_t product = sums.magnitudes, norm = d;
        if (n_planes == 2) {
            product += 2 * int64_t(sums.large_magnitudes);
            norm += 8 * int64_t(sums.n_large); // 3^2 instead of 1
        }
        const double squares = sums.squares;
        beta = squares / double(product);
        square = double(product) * double(product) / squares;
        // exactly 0 where v is a multiple of u
        const int64_t rest = norm * sums.squares - product * product;
        residual = std::sqrt(double(rest) / squares);
    }
};

/// a query as its bound has it
struct SignBoundQuery {
    double squares = 0;  ///< |q|^2
    double share = 0;    ///< see sign_share
    double rounding = 0; ///< of <q, u>: with the probability of the margin
};

/// of codes, see SignFilter
struct SignResiduals {
    double least, largest; ///< |r| / beta
    double largest_square; ///< |v|^2 / beta^2
};

/** <q, v> / beta <= factor * (<q, u> + shift + spread * |r| / beta) with the
 * probability of the margin. */
struct SignBound {
    double factor, shift, spread;
};

/// The part of |q| |r| that <q, r> exceeds with the probability of a margin in
/// standard deviations. d: dimension
TQ_HOST_DEVICE inline double sign_share(double d, double margin) {
    const double share = margin / std::sqrt((d > 2 ? d : 2) - 1);
    return share < 1 ? share : 1; // no coordinate of a unit vector is greater
}

/** The bound that is nearest for a code with <q, v> / beta = y, and holds for
 * any. */
TQ_HOST_DEVICE inline SignBound sign_bound(
        const SignBoundQuery& query,
        const SignResiduals& residuals,
        double y) {
    // With y = <q, v> / beta, w = |v| / beta and a residual rho = |r| / beta,
    // <q, u> is y less at most
    //   g(y) = sqrt(share^2 rho^2 (|q|^2 - y^2 / w^2) + rounding^2),
    // no more than with the largest w of any code. That is concave in y, so its
    // tangents are bounds for any y: linear, as is wanted. Of the slope -s the
    // tangent is h - s y, with
    //   h^2 = (share^2 rho^2 |q|^2 + rounding^2)
    //         (1 + s^2 w^2 / (share^2 rho^2)),
    // and h is convex in rho: linear between the least and the largest, or, if
    // these are far apart, no more than that of the largest.
    const double w2 = residuals.largest_square;
    const double most = 0.999 * std::sqrt(w2 * query.squares);
    y = !(y > 0) ? 0 : y < most ? y : most; // 0 where it is not a number
    const double rounding2 = query.rounding * query.rounding;
    const auto spread2 = [&](double residual) {
        return query.share * query.share * residual * residual;
    };
    const double at_largest = spread2(residuals.largest);
    const double g =
            std::sqrt(at_largest * (query.squares - y * y / w2) + rounding2);
    const double s = g > 0 ? at_largest * y / (w2 * g) : 0;
    const auto h = [&](double residual) {
        const double x = spread2(residual);
        // s is 0 where x may be
        return std::sqrt(
                (x * query.squares + rounding2) *
                (1 + (s > 0 ? s * s * w2 / x : 0)));
    };
    const double least = residuals.least < residuals.largest / 4
            ? residuals.largest
            : residuals.least;
    const double h_least = h(least), range = residuals.largest - least;
    const double spread =
            range > 0 ? (h(residuals.largest) - h_least) / range : 0;
    // <q, u> + h >= (1 + s) y of the code
    return {1 / (1 + s), h_least - spread * least, spread};
}

} // namespace faiss_turboquant
