#pragma once

/** The float steps of a vector, by a warp or a block. The operations on each
 * float are those of the CPU, in its order (compile with -fmad=false). A fused
 * operation stands for two where the product is exact. */

#include <cstdint>
#include <type_traits>

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

/// where coordinate i of the input goes
__device__ inline float& input_at(
        const DeviceRotation& r,
        SharedVector x,
        int i) {
    return *reinterpret_cast<float*>(
            reinterpret_cast<char*>(x.data) + r.words[input_word_at(i)]);
}

/// lanes as a binary tree of halves; all have the result, for a + b is b + a
template <class T>
__device__ T add_lanes(T x) {
    for (int half = 16; half > 0; half /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, half);
    }
    return x;
}

/// sum of a_i b_i in double, by one warp; all have the result
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
__device__ void load_run_words(const uint32_t* words, uint32_t (&w)[n]) {
    constexpr int width = n < 4 ? n : 4;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < n; k += width) {
        const uint32_t* at = words + run_word_at(n, lane, k);
        if constexpr (width == 4) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(at));
            w[k] = four.x;
            w[k + 1] = four.y;
            w[k + 2] = four.z;
            w[k + 3] = four.w;
        } else if constexpr (width == 2) {
            const uint2 two = __ldg(reinterpret_cast<const uint2*>(at));
            w[k] = two.x;
            w[k + 1] = two.y;
        } else {
            w[k] = __ldg(at);
        }
    }
}

__device__ inline float flip_sign(float x, uint32_t highest_bit) {
    return __uint_as_float(__float_as_uint(x) ^ (highest_bit & 0x80000000));
}

/// n floats, as many at a time as can be
template <int n>
__device__ void load_floats(const char* from, float* v) {
    constexpr int width = n < 4 ? n : 4;
#pragma unroll
    for (int i = 0; i < n; i += width) {
        const char* at = from + i * sizeof(float);
        if constexpr (width == 4) {
            const float4 four = *reinterpret_cast<const float4*>(at);
            v[i] = four.x;
            v[i + 1] = four.y;
            v[i + 2] = four.z;
            v[i + 3] = four.w;
        } else if constexpr (width == 2) {
            const float2 two = *reinterpret_cast<const float2*>(at);
            v[i] = two.x;
            v[i + 1] = two.y;
        } else {
            v[i] = *reinterpret_cast<const float*>(at);
        }
    }
}

template <int count, int run>
__device__ void gather_runs(
        const uint32_t* words,
        const char* from,
        float (&v)[count]) {
    uint32_t w[count / run];
    load_run_words(words, w);
#pragma unroll
    for (int k = 0; k < count / run; k++) {
        load_floats<run>(from + (w[k] & place_mask), v + k * run);
#pragma unroll
        for (int j = 0; j < run; j++) {
            v[k * run + j] = flip_sign(v[k * run + j], w[k] << sign_shift(j));
        }
    }
}

/** The coordinates of a part as a round begins, with its signs.
 * @param words   run_words of the part
 * @param run     DeviceRotation::run, which the compiler may know
 * @param from    where the round begins
 * @param factor  in the first round, what coordinates are multiplied with
 *                before */
template <int count, class Run>
__device__ void gather(
        const uint32_t* words,
        Run run,
        const float* from,
        int round,
        double factor,
        float (&v)[count]) {
    const char* bytes = reinterpret_cast<const char*>(from);
    if (run == 16) {
        gather_runs<count, run_in_part(count, 16)>(words, bytes, v);
    } else if (run == 4) {
        gather_runs<count, run_in_part(count, 4)>(words, bytes, v);
    } else {
        gather_runs<count, 1>(words, bytes, v);
    }
    if (round == 0) { // a branch, lest all rounds convert
#pragma unroll
        for (int i = 0; i < count; i++) {
            v[i] = float(v[i] * factor);
        }
    }
}

template <int count>
__device__ void multiply_all(float (&v)[count], float magnitude) {
#pragma unroll
    for (int i = 0; i < count; i++) {
        v[i] *= magnitude;
    }
}

/** The stages of a part, but for distances from max_part on. On return the lane
 * has coordinates 32 apart.
 * @param words  run_words of the part
 * @param to     in shared memory: where the part is, overwritten
 * @param n      coordinates of a part of one a lane */
template <int count, class Run>
__device__ void transform_part(
        const uint32_t* words,
        Run run,
        float* to,
        int n,
        float (&v)[count]) {
    const int lane = threadIdx.x % 32;
    butterflies(v);
    butterflies_of_lanes(v, n);
    if constexpr (count > 1) {
        // neighbours are in one row
        float* row = to + shared_place(lane * count);
        if constexpr (has_lane_order(count)) {
            const uint32_t* of_lanes =
                    words + 32 * count / run_in_part(count, run);
            row = reinterpret_cast<float*>(
                    reinterpret_cast<char*>(to) + __ldg(of_lanes + lane));
        }
        if constexpr (count >= 4) {
#pragma unroll
            for (int k = 0; k < count; k += 4) {
                *reinterpret_cast<float4*>(row + k) =
                        make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
            }
        } else {
#pragma unroll
            for (int k = 0; k < count; k++) {
                row[k] = v[k];
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < count; i++) {
            v[i] = to[shared_place(32 * i) + lane];
        }
        butterflies(v);
    }
}

/// coordinates 32 apart, to where the part is
template <int count>
__device__ void store_part(float* to, int n, const float (&v)[count]) {
    const int lane = threadIdx.x % 32;
    if (count > 1 || lane < n) {
#pragma unroll
        for (int i = 0; i < count; i++) {
            to[shared_place(32 * i) + lane] = v[i];
        }
    }
}

// ------------------------------------------------------- vectors of a warp

/// distances from max_part on: whole parts are blocks of their powers of two
template <int n, int radix = 16>
__device__ void butterflies_of_parts(float (*parts)[32]) {
    if constexpr (radix > 1) {
        if constexpr ((n & radix) != 0) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                float v[radix];
#pragma unroll
                for (int p = 0; p < radix; p++) {
                    v[p] = parts[p][i];
                }
                butterflies(v);
#pragma unroll
                for (int p = 0; p < radix; p++) {
                    parts[p][i] = v[p];
                }
            }
            butterflies_of_parts<n - radix, radix / 2>(parts + radix);
        } else {
            butterflies_of_parts<n, radix / 2>(parts);
        }
    }
}

/** A vector in the registers of a warp.
 * @tparam n         whole parts
 * @tparam smallest  d is a multiple: 512, 128 or 1 */
template <int n, int smallest>
struct WarpVector {
    /** The magnitude of a block of 1024 is 2^-5. Where there is such a block,
     * it goes without, and the others have 2^5 times theirs: in each round all
     * coordinates are that many times as large, and rounded as they were. */
    static constexpr int whole_block = n % 2 == 1 ? 10 : -1;
    static constexpr float round_unit = n % 2 == 1 ? 32 : 1;
    static constexpr float unit = round_unit * round_unit * round_unit;
    static_assert(Rotation::rounds == 3);

    float whole[n > 0 ? n : 1][32];
    float v16[16], v8[8], v4[4], v2[2], v1[1], rest[1];

    /// f(coordinates of the lane in a part, its begin, block_of), in order
    template <class F>
    __device__ void for_each_part(int d, F f) {
#pragma unroll
        for (int p = 0; p < n; p++) {
            f(whole[p], p * max_part, block_of(p * max_part, n * max_part));
        }
        if (d & 512) {
            f(v16, d & -1024, 9);
        }
        if constexpr (smallest < 512) {
            if (d & 256) {
                f(v8, d & -512, 8);
            }
            if (d & 128) {
                f(v4, d & -256, 7);
            }
        }
        if constexpr (smallest < 128) {
            if (d & 64) {
                f(v2, d & -128, 6);
            }
            if (d & 32) {
                f(v1, d & -64, 5);
            }
            if (d % 32 != 0) {
                const int i = (d & -32) + threadIdx.x % 32;
                f(rest, d & -32, block_of(min(i, d - 1), d));
            }
        }
    }
};

/** y = P x by a warp.
 * @param run     of r, which the compiler may know
 * @param x       (d,) in shared memory, where input_words say, overwritten
 * @param factor  what x is multiplied with before
 * @param y       coordinates 32 apart of each part, times WarpVector::unit */
template <int n, int smallest, class Run>
__device__ void rotate(
        const DeviceRotation& r,
        Run run,
        SharedVector x,
        double factor,
        WarpVector<n, smallest>& y) {
    using Vector = WarpVector<n, smallest>;
    const int d = r.d;
    const uint32_t* words = r.words + input_words_size(d);
#pragma unroll 1
    for (int round = 0; round < Rotation::rounds; round++) {
        const uint32_t* of_round = words;
        y.for_each_part(d, [&](auto& v, int, int block) {
            constexpr int count = sizeof(v) / sizeof(float);
            gather(words, run, x.data, round, factor, v);
            if (block != Vector::whole_block) {
                multiply_all(v, r.magnitudes[block] * Vector::round_unit);
            }
            words += run_words_of_part(count, run);
        });
        __syncwarp();
        y.for_each_part(d, [&](auto& v, int begin, int) {
            constexpr int count = sizeof(v) / sizeof(float);
            transform_part(
                    of_round, run, x.data + shared_place(begin), d - begin, v);
            of_round += run_words_of_part(count, run);
        });
        butterflies_of_parts<n>(y.whole);
        if (round + 1 < Rotation::rounds) {
            y.for_each_part(d, [&](auto& v, int begin, int) {
                store_part(x.data + shared_place(begin), d - begin, v);
            });
        }
        __syncwarp();
    }
}

// ------------------------------------------------------ vectors of a block

/// f(coordinates of a lane, begin) for the parts of less than `part`
template <int part, class F>
__device__ void for_each_small_part(int d, F f) {
    if constexpr (part > 512) {
        if (d & 512) {
            f(std::integral_constant<int, 16>(), d & -1024);
        }
    }
    if constexpr (part > 256) {
        if (d & 256) {
            f(std::integral_constant<int, 8>(), d & -512);
        }
    }
    if constexpr (part > 128) {
        if (d & 128) {
            f(std::integral_constant<int, 4>(), d & -256);
        }
    }
    if (d & 64) {
        f(std::integral_constant<int, 2>(), d & -128);
    }
    if (d & 32) {
        f(std::integral_constant<int, 1>(), d & -64);
    }
    if (d % 32 != 0) {
        f(std::integral_constant<int, 1>(), d & -32);
    }
}

/// a round for one part, by a warp
template <int count>
__device__ void transform_part(
        const DeviceRotation& r,
        int round,
        int begin,
        const uint32_t* words,
        const float* from,
        float* to,
        double factor) {
    const int of_block =
            count > 1 ? begin : min(begin + int(threadIdx.x) % 32, r.d - 1);
    const float magnitude = r.magnitudes[block_of(of_block, r.d)];
    float v[count];
    gather(words, r.run, from, round, factor, v);
    multiply_all(v, magnitude);
    transform_part(words, r.run, to + shared_place(begin), r.d - begin, v);
    store_part(to + shared_place(begin), r.d - begin, v);
}

/// the stages of distance `part` and more on n parts, at one place of each
template <int part, int radix = 16>
__device__ void transform_column(float* at, int n) {
    if constexpr (radix > 1) {
        if (n & radix) {
            float v[radix];
#pragma unroll
            for (int i = 0; i < radix; i++) {
                v[i] = at[shared_place(i * part)];
            }
            butterflies(v);
#pragma unroll
            for (int i = 0; i < radix; i++) {
                at[shared_place(i * part)] = v[i];
            }
            at += shared_place(radix * part);
        }
        transform_column<part, radix / 2>(at, n);
    }
}

/// a round of the rotation, by the block. greatest: DeviceRotation::part
template <int greatest>
__device__ void transform(
        const DeviceRotation& r,
        int round,
        const float* from,
        float* to,
        double factor) {
    constexpr int count = greatest / 32;
    const int d = r.d, n = d / greatest;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint32_t* words = r.words + input_words_size(d) +
            round * run_words_size(d, greatest, r.run);
    for (int part = warp; part < n; part += warps) {
        const uint32_t* of_part =
                words + part * run_words_of_part(count, r.run);
        transform_part<count>(
                r, round, part * greatest, of_part, from, to, factor);
    }
    words += n * run_words_of_part(count, r.run);
    // the others in turn, too
    int part = n;
    const auto take = [&](auto count, int begin) {
        if (part++ % warps == warp) {
            transform_part<decltype(count)::value>(
                    r, round, begin, words, from, to, factor);
        }
        words += run_words_of_part(count, r.run);
    };
    for_each_small_part<greatest>(d, take);
    __syncthreads();
    if (n > 1) {
        for (int i = threadIdx.x; i < greatest; i += blockDim.x) {
            transform_column<greatest>(to + shared_place(i), n);
        }
        __syncthreads();
    }
}

/** y = P x by the block.
 * @param r       whose parts are part_of_block
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
        const float* from = round % 2 == 0 ? x.data : y.data;
        float* to = round % 2 == 0 ? y.data : x.data;
        if (r.part == max_part) {
            transform<max_part>(r, round, from, to, factor);
        } else {
            transform<short_part>(r, round, from, to, factor);
        }
    }
}

/// What a rotation by the block reads besides the vector, each piece of it
/// when it is done with the one before: all of it at once.
__device__ inline void prefetch_words(const DeviceRotation& r) {
    if (r.matrix) {
        return;
    }
    const int n = input_words_size(r.d) +
            Rotation::rounds * run_words_size(r.d, r.part, r.run);
    constexpr int line = 128 / sizeof(uint32_t);
    for (int i = threadIdx.x * line; i < n; i += blockDim.x * line) {
        asm volatile("prefetch.global.L1 [%0];" ::"l"(r.words + i));
    }
}

/// past the first-level cache, which has better uses
__device__ inline float load_once(const float* at) {
    float x;
    asm("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(x) : "l"(at));
    return x;
}

/** v - centre by a warp.
 * @param v        (d,) in global memory
 * @param centre   (d,), or null
 * @param x        (d,) in shared memory, written where input_words say
 * @param squared  |v - centre|^2; the sum of the lane
 * @param product  <v - centre, centre>, if there is a centre; of the lane */
__device__ inline void load_difference(
        const DeviceRotation& r,
        const float* v,
        const float* centre,
        SharedVector x,
        double& squared,
        double& product) {
    constexpr int batch = 16; // rows of 32 on their way at a time
    const int lane = threadIdx.x % 32;
    char* bytes = reinterpret_cast<char*>(x.data);
    squared = product = 0;
    const auto take = [&](int begin, const auto& is_inside) {
        const float* const from = v + begin + lane;
        const uint4* const words =
                reinterpret_cast<const uint4*>(r.words + begin) + lane;
        float values[batch];
        uint4 places[batch / 4];
#pragma unroll
        for (int b = 0; b < batch; b++) {
            values[b] = is_inside(begin + 32 * b + lane)
                    ? load_once(from + 32 * b)
                    : 0;
        }
#pragma unroll
        for (int b = 0; b < batch / 4; b++) {
            if (is_inside(begin + 128 * b)) {
                places[b] = __ldg(words + 32 * b);
            }
        }
        if (centre) {
            const float* const centre_from = centre + begin + lane;
#pragma unroll
            for (int b = 0; b < batch; b++) {
                const float c = is_inside(begin + 32 * b + lane)
                        ? centre_from[32 * b]
                        : 0;
                values[b] -= c;
                product = fma(double(values[b]), double(c), product);
            }
        }
        const auto store = [&](uint32_t place, float value) {
            *reinterpret_cast<float*>(bytes + place) = value;
        };
#pragma unroll
        for (int b = 0; b < batch / 4; b++) {
            if (is_inside(begin + 128 * b)) {
                store(places[b].x, values[4 * b]);
                store(places[b].y, values[4 * b + 1]);
                store(places[b].z, values[4 * b + 2]);
                store(places[b].w, values[4 * b + 3]);
            }
        }
#pragma unroll
        for (int b = 0; b < batch; b++) {
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
}

/** The rotated unit direction of v - centre, by the block.
 * @param r       whose parts are part_of_block
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
        double squared, product;
        load_difference(r, v, centre, x, squared, product);
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
