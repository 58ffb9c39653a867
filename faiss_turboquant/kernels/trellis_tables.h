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
         {0701, 0264, 0122, 0212},
         0,
         {4, 34, 27, 49, 47, 25, 39, 20, 36, 14, 59, 29, 24, 43, 16, 38},
         0.0636801273f,
         0.27396f},
        {2,
         8,
         {071, 0132, 0504, 0213},
         5,
         {33, 39, 43, 51, 42, 61, 34, 37, 51, 43, 37, 34, 39, 33, 49, 44},
         0.0810443014f,
         0.07135f},
        {3,
         8,
         {0160, 0312, 0611, 0},
         3,
         {32, 37, 34, 40, 36, 33, 38, 35, 40, 50, 43, 61, 47, 42, 54, 45},
         0.0915168375f,
         0.01927f},
        {4,
         8,
         {0366, 0631, 0, 0},
         1,
         {32, 35, 34, 33, 36, 39, 38, 37, 40, 46, 44, 42, 48, 61, 55, 51},
         0.103886589f,
         0.00581f},
        {1,
         10,
         {0122, 01144, 02203, 01402},
         0,
         {4, 36, 27, 59, 34, 14, 49, 29, 39, 21, 42, 24, 18, 40, 23, 45},
         0.0645412579f,
         0.26875f},
        {2,
         10,
         {01114, 01202, 0410, 02123},
         6,
         {33, 41, 47, 37, 35, 43, 60, 39, 42, 33, 36, 50, 45, 33, 39, 52},
         0.0832146779f,
         0.06979f},
        {3,
         10,
         {0434, 01102, 03445, 0},
         3,
         {32, 33, 38, 39, 36, 37, 34, 35, 41, 41, 54, 61, 47, 50, 43, 45},
         0.0912157744f,
         0.01893f},
        {4,
         10,
         {01476, 02343, 0, 0},
         3,
         {32, 33, 34, 35, 36, 37, 38, 39, 40, 42, 44, 46, 48, 51, 55, 61},
         0.103831813f,
         0.00575f},
        {1,
         12,
         {04246, 010213, 02416, 01544},
         0,
         {2, 48, 34, 25, 20, 47, 39, 24, 38, 29, 15, 61, 39, 24, 16, 43},
         0.0611423142f,
         0.26531f},
        {2,
         12,
         {010462, 06105, 02241, 012054},
         5,
         {33, 44, 47, 39, 37, 60, 41, 34, 34, 42, 52, 37, 39, 50, 44, 33},
         0.0827331692f,
         0.06880f},
        {3,
         12,
         {03036, 06502, 014075, 0},
         1,
         {32, 39, 38, 33, 36, 35, 34, 37, 40, 61, 54, 42, 47, 45, 43, 50},
         0.0930570215f,
         0.01872f},
        {4,
         12,
         {05456, 014365, 0, 0},
         3,
         {32, 33, 34, 35, 36, 37, 38, 39, 40, 42, 44, 46, 48, 51, 55, 61},
         0.105063371f,
         0.00571f},
};

/// the first codes, those of memory 8, have kernels with taps known to the
/// compiler, which is what makes compilation slow; the others share kernels
/// that read taps at run time
inline constexpr int n_compiled_trellis_codes = 4;

} // namespace faiss_turboquant
