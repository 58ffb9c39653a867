#pragma once

/** Entries and the selection of the least of them. An entry is a key and a row
 * as one integer, ordered by key, then by row, as on the CPU. */

#include <cstdint>
#include <cstring>

#include <gpu/kernels/device_layout.h>

namespace faiss_turboquant {
namespace gpu {

using Entry = unsigned long long;

constexpr Entry no_entry = ~Entry(0);

TQ_HOST_DEVICE inline float entry_key(Entry entry) {
    uint32_t bits = uint32_t(entry >> 32);
    bits ^= bits >> 31 ? 0x80000000 : 0xffffffff;
    float key;
    memcpy(&key, &bits, sizeof(key));
    return key;
}

#ifdef __CUDACC__

__device__ inline Entry pack_entry(float key, uint32_t row) {
    uint32_t bits = __float_as_uint(key + 0.0f); // -0 becomes 0
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;
    return Entry(bits) << 32 | row;
}

constexpr int radix_bits = 8;
constexpr int radix_size = 1 << radix_bits;

/// f(entry) for all of n entries, by one warp; loads are issued in batches
template <class F>
__device__ void warp_for_each(const Entry* entries, int n, F f) {
    constexpr int batch = 8;
    for (int begin = threadIdx.x % 32; begin < n; begin += 32 * batch) {
        Entry loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const int at = begin + 32 * i;
            loaded[i] = at < n ? entries[at] : no_entry;
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            if (begin + 32 * i < n) {
                f(loaded[i]);
            }
        }
    }
}

struct RadixDigit {
    int digit; ///< -1: there is none
    int rest;  ///< of k, less what is in digits before
    int count; ///< that have it
};

/// The digit in which the count passes k, by one warp.
/// histogram: (radix_size,)
__device__ inline RadixDigit find_digit(const uint32_t* histogram, int k) {
    constexpr int per_lane = radix_size / 32;
    const int lane = threadIdx.x % 32;
    int counts[per_lane], sum = 0;
    for (int i = 0; i < per_lane; i++) {
        counts[i] = histogram[lane * per_lane + i];
        sum += counts[i];
    }
    int before = sum; // inclusive, then exclusive, scan
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffff, before, distance);
        before += lane >= distance ? other : 0;
    }
    before -= sum;
    RadixDigit found = {-1, 0, 0};
    for (int i = 0; i < per_lane; i++) {
        if (before < k && k <= before + counts[i]) {
            found = {lane * per_lane + i, k - before, counts[i]};
        }
        before += counts[i];
    }
    const int owner = __ffs(__ballot_sync(0xffffffff, found.digit >= 0)) - 1;
    found.digit = __shfl_sync(0xffffffff, found.digit, owner);
    found.rest = __shfl_sync(0xffffffff, found.rest, owner);
    found.count = __shfl_sync(0xffffffff, found.count, owner);
    return found;
}

/** The k-th least of n different entries, by one warp: digit by digit from the
 * first bit in which they differ, until one is left.
 * @param histogram  (radix_size,) of the warp's own, in shared memory */
__device__ inline Entry warp_select(
        const Entry* entries,
        int n,
        int k,
        uint32_t* histogram) {
    const int lane = threadIdx.x % 32;
    const auto or_of_lanes = [](Entry x) {
        return Entry(__reduce_or_sync(0xffffffff, uint32_t(x >> 32))) << 32 |
                __reduce_or_sync(0xffffffff, uint32_t(x));
    };
    Entry ones = 0, zeros = 0;
    warp_for_each(entries, n, [&](Entry entry) {
        ones |= entry;
        zeros |= ~entry;
    });
    const Entry differ = or_of_lanes(ones) & or_of_lanes(zeros);
    if (differ == 0) { // n is 1
        return entries[0];
    }
    int shift = 64 - __clzll(differ); // bits not decided yet
    Entry prefix = shift == 64 ? 0 : entries[0] >> shift;
    while (shift > 0) {
        const int bits = min(shift, radix_bits);
        const int next = shift - bits;
        for (int i = lane; i < radix_size; i += 32) {
            histogram[i] = 0;
        }
        __syncwarp();
        warp_for_each(entries, n, [&](Entry entry) {
            if (shift == 64 || entry >> shift == prefix) {
                atomicAdd(&histogram[(entry >> next) & ((1 << bits) - 1)], 1);
            }
        });
        __syncwarp();
        const RadixDigit digit = find_digit(histogram, k);
        k = digit.rest;
        prefix = (shift == 64 ? 0 : prefix << bits) | digit.digit;
        shift = next;
        __syncwarp();
        if (digit.count == 1 && shift > 0) {
            Entry found = 0;
            warp_for_each(entries, n, [&](Entry entry) {
                found |= entry >> shift == prefix ? entry : 0;
            });
            return or_of_lanes(found);
        }
    }
    return prefix;
}

/// Keep the entries up to `last`, in their order, by one warp.
/// @return  how many they are
__device__ inline int warp_keep(Entry* entries, int n, Entry last) {
    const int lane = threadIdx.x % 32;
    int kept = 0;
    for (int begin = 0; begin < n; begin += 32) {
        const Entry entry = begin + lane < n ? entries[begin + lane] : no_entry;
        const bool keep = begin + lane < n && entry <= last;
        const uint32_t keepers = __ballot_sync(0xffffffff, keep);
        if (keep) {
            entries[kept + __popc(keepers & ((1u << lane) - 1))] = entry;
        }
        kept += __popc(keepers);
        __syncwarp();
    }
    return kept;
}

/// in the order of less(a, b), by the block. n: a power of two
template <class Less>
__device__ inline void block_sort(Entry* entries, int n, Less less) {
    for (int size = 2; size <= n; size *= 2) {
        for (int distance = size / 2; distance > 0; distance /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
                const int a = (i / distance) * 2 * distance + i % distance;
                const int b = a + distance;
                const Entry x = entries[a], y = entries[b];
                const bool ascends = (a & size) == 0;
                if (ascends ? less(y, x) : less(x, y)) {
                    entries[a] = y;
                    entries[b] = x;
                }
            }
            __syncthreads();
        }
    }
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
