#pragma once

/** Search of all codes for all queries of a page.
 *
 * A block keeps the images of a group of queries in shared memory, and goes
 * through a slice of the codes in rounds; each of its warps decodes the rows
 * that it takes into registers, as operands of integer matrix instructions,
 * and multiplies them with all queries of the group. Dot products become keys
 * in registers, and what is better than the query's threshold goes into the
 * block's reservoir of that query, which is thinned out to the k best when it
 * is full. Blocks share thresholds: the k-th best of any part of the codes is
 * no better than that of all. */

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/top_k.cuh>

namespace faiss_turboquant {
namespace gpu {

struct DeviceCodes {
    DeviceLayout layout;
    const uint8_t* planes = nullptr;
    const float* scales = nullptr;
    const float* offsets = nullptr;     ///< null if there are none
    const uint32_t* selected = nullptr; ///< bitmap of rows; null: all
    uint32_t n = 0;
};

/// how a page of queries is cut into blocks
struct ScanPlan {
    int units = 1;       ///< of Fragment
    int group_tiles = 1; ///< tiles of eight queries in a group
    bool uses_wgmma = false;
    int n_groups = 0;
    int n_slices = 0;
    uint32_t slice_rows = 0;

    TQ_HOST_DEVICE int group_size() const {
        return 8 * group_tiles;
    }
    TQ_HOST_DEVICE size_t padded_nq() const {
        return size_t(n_groups) * group_size();
    }
};

ScanPlan plan_scan(
        const DeviceLayout& layout,
        uint32_t n,
        size_t nq,
        int device);

/// Entries that a reservoir holds. k: at most max_k
size_t reservoir_capacity(int k);

constexpr int max_k = 2048;

struct Reservoirs {
    int k = 0;
    int capacity = 0;
    Entry* entries = nullptr;    ///< (n_slices, padded_nq, capacity)
    uint32_t* counts = nullptr;  ///< (n_slices, padded_nq)
    Entry* thresholds = nullptr; ///< (padded_nq,): the last entry of interest

    /// entries from which a reservoir is thinned out before the next rows: the
    /// sooner, the fewer entries are taken in by old thresholds
    TQ_HOST_DEVICE int limit(int rows) const {
        const int soon = 2 * k + 32, latest = capacity - rows;
        return soon < latest ? soon : latest;
    }
};

/// everything with a key up to `last`
struct RangeSink {
    float last = 0;
    unsigned long long* counts = nullptr;       ///< (padded_nq,)
    const unsigned long long* begins = nullptr; ///< (padded_nq,)
    Entry* entries = nullptr;                   ///< null: only count
};

/// the k best of each slice
void scan_top_k(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const Reservoirs& reservoirs,
        cudaStream_t stream);

void scan_range(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const RangeSink& sink,
        cudaStream_t stream);

/** The k best of all slices.
 * @param distances  (nq, k_out), written: the k best, then worst values
 * @param labels     (nq, k_out), written: -1 past the last result */
void merge_slices(
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
