#pragma once

/** Random numbers that are the same on every machine: integers and IEEE
 * operations only. The standard library's distributions and logarithm are not
 * specified to the bit. Files store the seed alone, so the streams below are
 * part of the file format. */

#include <cmath>
#include <cstdint>

namespace faiss_turboquant {

/// natural logarithm of a finite x > 0, within a few units of the last place
inline double portable_log(double x) {
    int exponent;
    double m = std::frexp(x, &exponent); // exact; 0.5 <= m < 1
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    // log m = 2 atanh(z) = 2 (z + z^3 / 3 + z^5 / 5 + ..), |z| < 0.1716: the
    // first term left out is below 1e-17
    const double z = (m - 1) / (m + 1);
    const double z2 = z * z;
    double series = 0;
    for (int k = 21; k >= 1; k -= 2) {
        series = series * z2 + 1.0 / k;
    }
    return 2 * z * series + exponent * 0.69314718055994531;
}

/// xoshiro256** 1.0, seeded by splitmix64 (Blackman and Vigna, Scrambled
/// linear pseudorandom number generators, 2021)
class Random {
   public:
    explicit Random(uint64_t seed) {
        for (uint64_t& word : state_) {
            seed += 0x9e3779b97f4a7c15ULL;
            uint64_t z = seed;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
            word = z ^ (z >> 31);
        }
    }

    uint64_t next() {
        const uint64_t result = rotate_left(state_[1] * 5, 7) * 9;
        const uint64_t t = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= t;
        state_[3] = rotate_left(state_[3], 45);
        return result;
    }

    /// uniform in 0..n-1, n >= 1, without bias (Lemire, Fast random integer
    /// generation in an interval, 2019)
    uint32_t below(uint32_t n) {
        uint64_t product = (next() >> 32) * n;
        if (static_cast<uint32_t>(product) < n) {
            const uint32_t threshold = (0 - n) % n;
            while (static_cast<uint32_t>(product) < threshold) {
                product = (next() >> 32) * n;
            }
        }
        return static_cast<uint32_t>(product >> 32);
    }

    /// standard normal (Marsaglia and Bray's polar method)
    double gaussian() {
        if (has_spare_) {
            has_spare_ = false;
            return spare_;
        }
        double u, v, s;
        do {
            u = symmetric_uniform();
            v = symmetric_uniform();
            s = u * u + v * v;
        } while (s >= 1 || s == 0);
        const double factor = std::sqrt(-2 * portable_log(s) / s);
        spare_ = v * factor;
        has_spare_ = true;
        return u * factor;
    }

   private:
    static uint64_t rotate_left(uint64_t x, int k) {
        return (x << k) | (x >> (64 - k));
    }

    /// uniform on the multiples of 2^-52 in [-1, 1)
    double symmetric_uniform() {
        return static_cast<double>(next() >> 11) * 0x1p-52 - 1;
    }

    uint64_t state_[4];
    double spare_ = 0;
    bool has_spare_ = false;
};

} // namespace faiss_turboquant
