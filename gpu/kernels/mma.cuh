#pragma once

/** Matrix instructions of a warp. */

#include <cstdint>

namespace faiss_turboquant {
namespace gpu {

constexpr int tile_rows = 16; ///< of codes in a matrix instruction

#ifdef __CUDACC__

__device__ inline void multiply_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint32_t b0,
        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void count_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint32_t b0,
        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void count_tile(
        int* c,
        uint32_t a0,
        uint32_t a1,
        uint32_t b) {
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

/// Sums of a unit of Fragment: all tiles of rows by all tiles of queries.
/// chains: of sums that multiplications go to in turn, lest they wait for each
/// other
template <int chains, int n_row_tiles, int n_sums>
__device__ inline void multiply(
        int (&sums)[n_row_tiles][n_sums],
        const uint32_t (&a)[n_row_tiles][2][8],
        const uint4* image,
        int fragments) {
    constexpr int query_tiles = n_sums / 4 / chains;
#pragma unroll
    for (int p = 0; p < 8; p += 4, image += 32) {
#pragma unroll
        for (int q = 0; q < query_tiles; q++) {
            const uint4 b = image[q * fragments * 32];
#pragma unroll
            for (int m = 0; m < n_row_tiles; m++) {
                const auto& x = a[m][0];
                const auto& y = a[m][1];
                int* c = sums[m] + 4 * q;
                multiply_tile(c, x[p], y[p], x[p + 1], y[p + 1], b.x, b.y);
                c += (chains - 1) * 4 * query_tiles;
                multiply_tile(
                        c, x[p + 2], y[p + 2], x[p + 3], y[p + 3], b.z, b.w);
            }
        }
    }
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
