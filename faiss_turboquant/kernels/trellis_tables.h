#pragma once

#include <cstdint>

#include <faiss_turboquant/kernels/trellis.h>

namespace faiss_turboquant {

/// one row of the table of codes
struct TrellisCode {
    int nbits;
    int memory;
    uint16_t taps[4];
    uint8_t sign_mask;
    uint8_t grid[16];
    float step;  ///< grid step, a coordinate having variance 1
    float error; ///< mean squared error per coordinate, for large d
};

/** The codes in use. Taps and levels by tools/trellis_search.cpp, which prints
 * rows of this table. */
inline constexpr TrellisCode trellis_codes[] = {
        {1,
         8,
         {0464, 0234, 0111, 023},
         0,
         {4, 36, 42, 24, 39, 21, 27, 59, 18, 40, 49, 28, 35, 14, 23, 45},
         0.0645f,
         0.2743f},
        {2,
         8,
         {0542, 0120, 071, 0205},
         9,
         {33, 43, 34, 45, 52, 39, 47, 37, 39, 60, 37, 51, 42, 33, 44, 35},
         0.0826f,
         0.0718f},
        {3,
         8,
         {0206, 072, 0451, 0},
         3,
         {32, 33, 38, 39, 36, 37, 34, 35, 41, 42, 54, 60, 47, 50, 43, 45},
         0.0967f,
         0.0194f},
        {4,
         8,
         {0332, 0475, 0, 0},
         3,
         {32, 33, 34, 35, 36, 37, 38, 39, 41, 42, 44, 46, 48, 51, 55, 61},
         0.1004f,
         0.00584f},
};

inline constexpr int n_trellis_codes =
        sizeof(trellis_codes) / sizeof(trellis_codes[0]);

} // namespace faiss_turboquant
