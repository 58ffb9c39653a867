#pragma once

/** The float steps of a vector, by one block. The operations on each float are
 * those of the CPU, in its order (compile with -fmad=false). A fused operation
 * stands for two where the product is exact. */

#include <cstdint>

#include <gpu/kernels/rotation.h>

namespace faiss_turboquant {
namespace gpu {

/// a vector in shared memory, with room up to a multiple of dims_unit
struct SharedVector {
    float* data;

    __device__ float& operator[](int i) const {
        return data[shared_place(i)];
    }
};

/// lanes as a binary tree of halves; the result is lane 0's
template <class T>
__device__ T add_lanes(T x) {
    for (int half = 16; half > 0; half /= 2) {
        x += __shfl_down_sync(0xffffffff, x, half);
    }
    return x;
}

/// sum of a_i b_i in double, by one warp; the result is lane 0's
template <class A, class B>
__device__ double warp_dot(A a, B b, int n) {
    double sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32) {
        sum = fma(double(a[i]), double(b[i]), sum);
    }
    return add_lanes(sum);
}

/// log2 of the size of coordinate i's block: of the powers of two in d, largest
/// first
__device__ inline int block_of(int i, int d) {
    return 31 - __clz(i ^ d);
}

// ------------------------------------------------- Walsh-Hadamard transforms

/// the stages of distance 1, 2 .. n / 2
template <int n>
__device__ void butterflies(float (&v)[n]) {
#pragma unroll
    for (int distance = 1; distance < n; distance *= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            if ((i & distance) == 0) {
                const float a = v[i], b = v[i + distance];
                v[i] = a + b;
                v[i + distance] = a - b;
            }
        }
    }
}

/** The stages of distance `count` .. 16 where lanes have `count` neighbours.
 * @param n  of 32 coordinates, if count is 1: blocks are the powers of two in
 *           it, largest first */
template <int count>
__device__ void butterflies_of_lanes(float (&v)[count], int n) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = count; distance < 32; distance *= 2) {
        const int other_lane = distance / count;
        const bool is_in_block = count > 1 || lane < (n & -2 * distance);
        const float sign = lane & other_lane ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < count; i++) {
            const float other = __shfl_xor_sync(0xffffffff, v[i], other_lane);
            if (is_in_block) {
                v[i] = fmaf(sign, v[i], other); // a + b or a - b
            }
        }
    }
}

/// n words of the lane, of those of a part
template <int n>
__device__ void load_source_words(const uint32_t* words, uint32_t (&w)[n]) {
    const int lane = threadIdx.x % 32;
    if constexpr (n >= 4) {
#pragma unroll
        for (int k = 0; k < n; k += 4) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(
                    words + source_word_at(n, lane, k)));
            w[k] = four.x;
            w[k + 1] = four.y;
            w[k + 2] = four.z;
            w[k + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < n; k++) {
            w[k] = __ldg(words + source_word_at(n, lane, k));
        }
    }
}

__device__ inline float flip_sign(float x, uint32_t highest_bit) {
    return __uint_as_float(__float_as_uint(x) ^ (highest_bit & 0x80000000));
}

/// coordinates of a part with the signs of the round
template <int count>
__device__ void gather(
        const uint32_t* words,
        bool by_fours,
        const float* from,
        float (&v)[count]) {
    const char* bytes = reinterpret_cast<const char*>(from);
    if constexpr (count >= 4) {
        if (by_fours) {
            uint32_t w[count / 4];
            load_source_words(words, w);
#pragma unroll
            for (int k = 0; k < count / 4; k++) {
                const float4 four = *reinterpret_cast<const float4*>(
                        bytes + (w[k] & 0x0fffffff));
                v[4 * k] = flip_sign(four.x, w[k]);
                v[4 * k + 1] = flip_sign(four.y, w[k] << 1);
                v[4 * k + 2] = flip_sign(four.z, w[k] << 2);
                v[4 * k + 3] = flip_sign(four.w, w[k] << 3);
            }
            return;
        }
    }
    uint32_t w[count];
    load_source_words(words, w);
#pragma unroll
    for (int k = 0; k < count; k++) {
        v[k] = flip_sign(
                *reinterpret_cast<const float*>(bytes + (w[k] & 0x7fffffff)),
                w[k]);
    }
}

/** A round of the rotation but for distances from max_part on, for one part, by
 * a warp.
 * @param from    where the round begins
 * @param to      (d,), the coordinates of the part are written
 * @param factor  in the first round, what coordinates are multiplied with
 *                before */
template <int count>
__device__ void transform_part(
        const DeviceRotation& r,
        int round,
        int begin,
        const float* from,
        float* to,
        double factor) {
    const int lane = threadIdx.x % 32, d = r.d;
    const int n = count > 1 ? 32 * count : min(32, d - begin);
    const bool by_fours = r.by_fours[round];
    float v[count] = {};
    if (count > 1 || lane < n) {
        gather(r.sources + round * source_words_size(d) +
                       first_source_word(begin, count, by_fours, d),
               by_fours,
               from,
               v);
        const float magnitude =
                r.magnitudes[block_of(count == 1 ? begin + lane : begin, d)];
        if (round == 0) { // a branch, lest all rounds convert
#pragma unroll
            for (int i = 0; i < count; i++) {
                v[i] = float(v[i] * factor);
            }
        }
#pragma unroll
        for (int i = 0; i < count; i++) {
            v[i] *= magnitude;
        }
    }
    __syncwarp();
    butterflies(v);
    butterflies_of_lanes(v, n);

    // places in a row differ by exclusive or
    const int first = shared_place(begin + lane * count);
    if constexpr (count >= 4) {
#pragma unroll
        for (int k = 0; k < count; k += 4) {
            *reinterpret_cast<float4*>(to + (first ^ k)) =
                    make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
        }
    } else if (lane < n) {
#pragma unroll
        for (int k = 0; k < count; k++) {
            to[first ^ k] = v[k];
        }
    }
    if constexpr (count > 1) {
        __syncwarp();
        const int column = shared_place(begin + lane) - begin;
        float* rows = to + begin;
#pragma unroll
        for (int i = 0; i < count; i++) {
            v[i] = rows[i * 32 + (column ^ i % 8 * 4)];
        }
        butterflies(v);
#pragma unroll
        for (int i = 0; i < count; i++) {
            rows[i * 32 + (column ^ i % 8 * 4)] = v[i];
        }
    }
}

/// the stages of distance max_part and more on n parts, at one place of each
template <int radix>
__device__ void transform_column(float* at, int n) {
    if constexpr (radix > 1) {
        if (n & radix) {
            float v[radix];
#pragma unroll
            for (int i = 0; i < radix; i++) {
                v[i] = at[i * max_part];
            }
            butterflies(v);
#pragma unroll
            for (int i = 0; i < radix; i++) {
                at[i * max_part] = v[i];
            }
            at += radix * max_part;
        }
        transform_column<radix / 2>(at, n);
    }
}

/// a round of the rotation, by the block
__device__ inline void transform(
        const DeviceRotation& r,
        int round,
        const float* from,
        float* to,
        double factor) {
    const int d = r.d, n = d / max_part;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int part = warp; part < n; part += warps) {
        transform_part<32>(r, round, part * max_part, from, to, factor);
    }
    // the others in turn, too
    int part = n;
    const auto is_mine = [&] { return part++ % warps == warp; };
    const auto begin_of = [&](int size) { return d & -2 * size; };
    if (d & 512 && is_mine()) {
        transform_part<16>(r, round, begin_of(512), from, to, factor);
    }
    if (d & 256 && is_mine()) {
        transform_part<8>(r, round, begin_of(256), from, to, factor);
    }
    if (d & 128 && is_mine()) {
        transform_part<4>(r, round, begin_of(128), from, to, factor);
    }
    if (d & 64 && is_mine()) {
        transform_part<2>(r, round, begin_of(64), from, to, factor);
    }
    if (d & 32 && is_mine()) {
        transform_part<1>(r, round, begin_of(32), from, to, factor);
    }
    if (d % 32 != 0 && is_mine()) {
        transform_part<1>(r, round, begin_of(16), from, to, factor);
    }
    __syncthreads();
    if (n > 1) {
        for (int i = threadIdx.x; i < max_part; i += blockDim.x) {
            transform_column<16>(to + i, n);
        }
        __syncthreads();
    }
}

/** y = P x by the block.
 * @param x       (d,) in shared memory, overwritten
 * @param y       (d,) in shared memory
 * @param factor  what x is multiplied with before */
__device__ inline void rotate(
        const DeviceRotation& r,
        SharedVector x,
        SharedVector y,
        double factor) {
    const int d = r.d;
    if (r.matrix) {
        for (int i = threadIdx.x; i < d; i += blockDim.x) {
            x[i] = float(x[i] * factor);
        }
        __syncthreads();
        for (int row = threadIdx.x / 32; row < d; row += blockDim.x / 32) {
            float sum = 0;
            for (int i = threadIdx.x % 32; i < d; i += 32) {
                sum += r.matrix[size_t(row) * d + i] * x[i];
            }
            sum = add_lanes(sum);
            if (threadIdx.x % 32 == 0) {
                y[row] = sum;
            }
        }
        __syncthreads();
        return;
    }
    static_assert(Rotation::rounds % 2 == 1, "the result must end up in y");
#pragma unroll 1
    for (int round = 0; round < Rotation::rounds; round++) {
        transform(
                r,
                round,
                round % 2 == 0 ? x.data : y.data,
                round % 2 == 0 ? y.data : x.data,
                factor);
    }
}

/** The rotated unit direction of v - centre.
 * @param v       (d,) in global memory
 * @param centre  (d,), or null
 * @param x       (d,) in shared memory, overwritten
 * @param y       (d,) in shared memory: the result
 * @param norm    shared: |v - centre|; y is unspecified if it is not finite
 * @param along   shared: <v - centre, centre>, if there is a centre */
__device__ inline void rotate_direction(
        const DeviceRotation& r,
        const float* v,
        const float* centre,
        SharedVector x,
        SharedVector y,
        double& norm,
        double& along) {
    __shared__ double factor; // of which a division is not made by each thread
    if (threadIdx.x < 32) {   // who has the elements can add their squares
        constexpr int batch = 16; // rows of 32 on their way at a time
        const int lane = threadIdx.x;
        double squared = 0, product = 0;
        const auto take = [&](int begin, const auto& is_inside) {
            float values[batch];
#pragma unroll
            for (int b = 0; b < batch; b++) {
                const int i = begin + 32 * b + lane;
                values[b] = is_inside(i) ? __ldcs(v + i) : 0; // read once
            }
            if (centre) {
#pragma unroll
                for (int b = 0; b < batch; b++) {
                    const int i = begin + 32 * b + lane;
                    const float c = is_inside(i) ? centre[i] : 0;
                    values[b] -= c;
                    product = fma(double(values[b]), double(c), product);
                }
            }
#pragma unroll
            for (int b = 0; b < batch; b++) {
                if (is_inside(begin + 32 * b + lane)) {
                    // shared_place, of which the compiler then knows enough
                    x.data[begin + 32 * b + (lane ^ b % 8 * 4)] = values[b];
                }
                const double value = values[b];
                squared = fma(value, value, squared);
            }
        };
        int begin = 0;
        for (; begin + 32 * batch <= r.d; begin += 32 * batch) {
            take(begin, [](int) { return true; });
        }
        if (begin < r.d) {
            take(begin, [&](int i) { return i < r.d; });
        }
        squared = add_lanes(squared);
        if (centre) {
            product = add_lanes(product);
        }
        if (threadIdx.x == 0) {
            norm = sqrt(squared);
            factor = norm > 0 ? 1 / norm : 0;
            along = product;
        }
    }
    __syncthreads();
    rotate(r, x, y, factor);
}

constexpr double largest_float = 3.4028234663852886e38;

} // namespace gpu
} // namespace faiss_turboquant
