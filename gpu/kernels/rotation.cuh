#pragma once

/** The float steps of a vector, by one block. The operations on each float are
 * those of the CPU, in its order (compile with -fmad=false). */

#include <cstdint>

#include <gpu/kernels/device_layout.h>

namespace faiss_turboquant {
namespace gpu {

/// a Rotation in device memory
struct DeviceRotation {
    int d = 0;
    /// (rounds, d): where in a SharedVector each coordinate comes from, and
    /// `negated` if its sign changes
    const uint16_t* sources = nullptr;
    static constexpr uint16_t negated = 0x8000;
    /// of the multipliers of a block of size 2^b
    float magnitudes[15] = {};
    const float* matrix = nullptr; ///< (d, d) of a dense rotation, else null
};

/// where element i of a SharedVector is
TQ_HOST_DEVICE constexpr int shared_place(int i) {
    return i + (i >> 5);
}

/// floats of a SharedVector
TQ_HOST_DEVICE constexpr int shared_vector_size(int d) {
    return d + (d + 31) / 32;
}

#ifdef __CUDACC__

/** A vector in shared memory, with a gap after every 32 floats, so that threads
 * whose elements are 32 apart use different banks. */
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

/// sum of x_i^2 in double, by one warp; the result is lane 0's
__device__ inline double warp_sum_of_squares(SharedVector x, int n) {
    double sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < n; i += 32) {
        const double value = x[i];
        sum += value * value;
    }
    return add_lanes(sum);
}

/// sum of a_i b_i in double, by one warp; the result is lane 0's
template <class A, class B>
__device__ double warp_dot(A a, B b, int n) {
    double sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32) {
        sum += double(a[i]) * b[i];
    }
    return add_lanes(sum);
}

/// all stages on `radix` values
template <int radix>
__device__ void butterflies(float (&v)[radix]) {
#pragma unroll
    for (int distance = 1; distance < radix; distance *= 2) {
#pragma unroll
        for (int i = 0; i < radix; i++) {
            if ((i & distance) == 0) {
                const float a = v[i], b = v[i + distance];
                v[i] = a + b;
                v[i + distance] = a - b;
            }
        }
    }
}

/// the same on values in memory
template <int radix, int stride>
__device__ void butterflies_at(float* at) {
    float v[radix];
#pragma unroll
    for (int i = 0; i < radix; i++) {
        v[i] = at[i * stride];
    }
    butterflies(v);
#pragma unroll
    for (int i = 0; i < radix; i++) {
        at[i * stride] = v[i];
    }
}

/// on fewer than 2 radix values, which are blocks of powers of two
template <int radix, int stride>
__device__ void butterflies_of_blocks(float* at, int rows) {
    if constexpr (radix > 1) {
        if (rows & radix) {
            butterflies_at<radix, stride>(at);
            at += radix * stride;
        }
        butterflies_of_blocks<radix / 2, stride>(at, rows);
    }
}

/** The stages of distance h, 2 h .. radix / 2 * h of the Walsh-Hadamard
 * transforms of all blocks of x.
 *
 * Blocks are the powers of two in d, largest first, so stage h acts on pairs
 * in the first d / 2h * 2h coordinates. A thread has `radix` values h apart; of
 * the last group there may be fewer. */
template <int h, int radix>
__device__ void hadamard_stages(SharedVector x, int d) {
    // in memory; blocks start on a gap, or lie between two
    constexpr int stride = h < 32 ? h : shared_place(h);
    const unsigned n_items = (d + radix * h - 1) / (radix * h) * h;
    for (unsigned item = threadIdx.x; item < n_items; item += blockDim.x) {
        const int begin = item / h * radix * h;
        const int rows = (d - begin) / h;
        float* at = &x[begin + item % h];
        if (rows >= radix) {
            butterflies_at<radix, stride>(at);
        } else {
            butterflies_of_blocks<radix / 2, stride>(at, rows);
        }
    }
    __syncthreads();
}

/// up to five stages, as many as d has from h on
template <int h>
__device__ void hadamard_pass(SharedVector x, int d) {
    if (d >= 32 * h) {
        hadamard_stages<h, 32>(x, d);
    } else if (d >= 16 * h) {
        hadamard_stages<h, 16>(x, d);
    } else if (d >= 8 * h) {
        hadamard_stages<h, 8>(x, d);
    } else if (d >= 4 * h) {
        hadamard_stages<h, 4>(x, d);
    } else if (d >= 2 * h) {
        hadamard_stages<h, 2>(x, d);
    }
}

/// log2 of the size of coordinate i's block: of the powers of two in d, largest
/// first
__device__ inline int block_of(int i, int d) {
    return 31 - __clz(i ^ d);
}

/** y = P x by the block.
 * @param x      (d,) in shared memory, overwritten
 * @param y      (d,) in shared memory
 * @param scale  scale(x_i): what is rotated */
template <class Scale>
__device__ void rotate(
        const DeviceRotation& r,
        SharedVector x,
        SharedVector y,
        Scale scale) {
    const int d = r.d;
    if (r.matrix) {
        for (int i = threadIdx.x; i < d; i += blockDim.x) {
            x[i] = scale(x[i]);
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
    for (int round = 0; round < Rotation::rounds; round++) {
        const SharedVector from = round % 2 == 0 ? x : y;
        const SharedVector to = round % 2 == 0 ? y : x;
        const uint16_t* sources = r.sources + round * d;
#pragma unroll 4
        for (int i = threadIdx.x; i < d; i += blockDim.x) {
            const uint32_t source = sources[i];
            const float value = from.data[source & ~uint32_t(r.negated)];
            const float product = (round == 0 ? scale(value) : value) *
                    r.magnitudes[block_of(i, d)];
            to[i] = __uint_as_float(
                    __float_as_uint(product) ^ (source & r.negated) << 16);
        }
        __syncthreads();
        hadamard_pass<1>(to, d);
        hadamard_pass<32>(to, d);
        hadamard_pass<1024>(to, d);
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
#pragma unroll 4
    for (int i = threadIdx.x; i < r.d; i += blockDim.x) {
        const float value = __ldcs(v + i); // read once
        x[i] = centre ? value - centre[i] : value;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const double squared = warp_sum_of_squares(x, r.d);
        if (threadIdx.x == 0) {
            norm = sqrt(squared);
            factor = norm > 0 ? 1 / norm : 0;
        }
        if (centre) {
            const double product = warp_dot(x, centre, r.d);
            if (threadIdx.x == 0) {
                along = product;
            }
        }
    }
    __syncthreads();
    const double f = factor;
    rotate(r, x, y, [f](float value) { return float(value * f); });
}

constexpr double largest_float = 3.4028234663852886e38;

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
