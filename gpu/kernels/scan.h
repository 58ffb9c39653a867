#pragma once

/** Search of codes for the queries of a page: of all of them, or, in inverted
 * files, of the lists that a query probes.
 *
 * A block keeps the images of a group of queries in shared memory, and goes
 * through a slice of the codes in rounds; each of its warps decodes the rows
 * that it takes into registers, as operands of integer matrix instructions,
 * and multiplies them with all queries of the group. Dot products become keys
 * in registers, and what is better than the query's threshold goes into the
 * block's reservoir of that query, which is thinned out to the k best when it
 * is full. Blocks share thresholds: the k-th best of any part of the codes is
 * no better than that of all; a sample of them gives the first.
 *
 * Of large batches on compute capability 9.0, some warps decode for others that
 * multiply, see batch_kernel.cuh.
 *
 * A scan may begin to read codes before the kernel ahead of it in the stream
 * has ended, which therefore must not be what writes them. */

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <cuda_runtime.h>

#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/top_k.cuh>

namespace faiss_turboquant {
namespace gpu {

/** Rows to be looked at in place of all, of which there may be more than there
 * was room for: then it is all of them again. */
struct RowList {
    const uint32_t* rows = nullptr; ///< (capacity,), on the device; null: all.
                                    ///< A row past the last one has no key
    /// on the device; how many there are; null: capacity
    const uint32_t* size = nullptr;
    uint32_t capacity = 0;
    /// if given, where the scan sends `left`, memory of the host
    volatile RowsLeft* report = nullptr;
    const RowsLeft* left = nullptr;

#ifdef __CUDACC__
    /// whether it has the rows
    __device__ bool is_complete() const {
        return rows && count() <= capacity;
    }
    __device__ uint32_t count() const {
        return size ? *size : capacity;
    }
#endif
};

struct DeviceCodes {
    DeviceLayout layout;
    const uint8_t* planes = nullptr;
    /// Of signs s, for several queries by bits: the second plane t of codes
    /// that are 2 s + t; else null.
    const uint8_t* second_planes = nullptr;
    const float* scales = nullptr;
    const float* offsets = nullptr;     ///< null if there are none
    const uint32_t* selected = nullptr; ///< bitmap of rows; null: all
    uint32_t n = 0;
    RowList list; ///< for up to eight queries, not in inverted files
};

/// rows that a block goes through in a round, at most
constexpr int max_round_rows = 256;

/// TileStreams of a block, or a RoundStream; no warps: lanes load rows into
/// registers
struct StreamPlan {
    int warps = 0;
    int tiles = 0; ///< of each, on their way
};

/// of a cluster of blocks with many queries: those that have reservoirs of
/// their own, see batch_kernel.cuh
constexpr int batch_parts = 4;

/** Bits of the integers of queries. Products of several with codes of one bit
 * are bounds for others, and what takes the time is multiplications, one for
 * each bit. With two planes, which leave less open, there are more than with
 * one.
 * @param product_planes    of scan_products; 0: another scan
 * @param is_single, units  see ScanPlan */
constexpr int bits_of_queries(int product_planes, bool is_single, int units) {
    return product_planes == 0 || is_single ? 8
            : product_planes == 1           ? 4
            : units == 1                    ? 8 // of fragments with four
                                            : 6;
}

/// how a page of queries is cut into blocks
struct ScanPlan {
    int units = 1;          ///< of Fragment
    bool by_bits = false;   ///< few queries, see single_kernel.cuh
    bool is_single = false; ///< by bits: groups of one query
    StreamPlan stream;
    int group_tiles = 1; ///< tiles of eight queries in a group
    bool uses_wgmma = false;
    bool is_batch = false;  ///< a cluster of blocks in place of one
    int product_planes = 0; ///< of scan_products; 0: another scan
    int n_groups = 0;
    int n_slices = 0; ///< with rounds, blocks
    uint32_t slice_rows = 0;
    uint32_t slice_stride = 0; ///< from one's begin to the next one's

    TQ_HOST_DEVICE int group_size() const {
        return 8 * group_tiles;
    }
    /// whether blocks take rounds of rows as they come to them, in place of
    /// slices, see RoundStream
    bool takes_rounds() const {
        return product_planes > 0;
    }
    ImageOrder image_order() const {
        return {units,
                by_bits,
                is_single,
                is_batch,
                uses_wgmma || is_batch ? group_size() : 0,
                bits_of_queries(product_planes, is_single, units)};
    }
    TQ_HOST_DEVICE size_t padded_nq() const {
        return size_t(n_groups) * group_size();
    }
    /// that a query has of a slice
    TQ_HOST_DEVICE int parts() const {
        return is_batch ? batch_parts : 1;
    }
    size_t n_reservoirs() const {
        return n_slices * parts() * padded_nq();
    }
};

/// Plans are for the current device. product_planes: see ScanPlan
ScanPlan plan_scan(
        const DeviceLayout& layout,
        uint32_t n,
        size_t nq,
        int product_planes = 0);

/// rows that a block has in ProductSink::best of each query, for the k best of
/// all; of none, 0
int best_of_block(const ScanPlan& plan, int k);

/** How a page is compared with a sample, for bounds of its k best to begin
 * with: n_slices is 0 where that is not worth while. */
ScanPlan plan_sample(const ScanPlan& plan, uint32_t n);

/// what a block does in inverted files: a part of a list, for a group of slots
struct ScanTask {
    uint32_t begin, end; ///< rows
    uint32_t first_slot;
    uint32_t n_slots;         ///< that have a query, before all others
    uint32_t first_reservoir; ///< of (n_slots, parts)
};

/// blocks of inverted files
struct ScanTasks {
    const ScanTask* tasks = nullptr; ///< (n,); null: as ScanPlan has it
    uint32_t n = 0;
    /// the probe whose factors and image are in a slot, or no_probe
    const uint32_t* probe_of_slot = nullptr;
    uint32_t nprobe = 1; ///< probes of a query, which follow each other
};

struct ListScan {
    ScanPlan plan;
    double time; ///< that it may take, in a unit of its own
};

/** How lists are searched for groups of slots: n_slices and slice_rows are left
 * out.
 * @param queries  that probe each list
 * @param sizes    of the lists */
ListScan plan_list_scan(
        const DeviceLayout& layout,
        const std::vector<uint32_t>& queries,
        const std::vector<uint32_t>& sizes);

/// how many blocks of a plan run at once
int blocks_at_once(const DeviceLayout& layout, const ScanPlan& plan);

/** Entries that a reservoir holds.
 * @param k           at most max_k
 * @param has_sample  which leaves little to find */
size_t reservoir_capacity(const ScanPlan& plan, int k, bool has_sample = false);

constexpr int max_k = 2048;

struct Reservoirs {
    int k = 0;
    int capacity = 0;
    Entry* entries = nullptr;    ///< (tasks, n_slots, parts, capacity)
    uint32_t* counts = nullptr;  ///< (tasks, n_slots, parts)
    Entry* thresholds = nullptr; ///< (nq,): the last entry of interest, which
                                 ///< becomes less while blocks find others

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

/// every distance; of a RowList, in its order
struct DistanceSink {
    /// (nq, rows); in inverted files (probes, rows), of each task from its
    /// first row on
    float* distances = nullptr;
    uint32_t nq = 0;       ///< or probes
    uint32_t rows = 0;     ///< of all slices, or more; of a task
    bool are_keys = false; ///< in place of distances
};

/// rows whose products lie together
constexpr uint32_t product_rows = 16;

/// what the factors of the rows whose products lie together are between
struct TileRange {
    float least_scale, largest_scale;
    float largest_residual;
    float least_offset; ///< with the sign that it has in a key
};

/// a row that no code has
constexpr uint32_t no_row_of_list = ~uint32_t(0);

/// of a search by signs: one tile of matrix instructions
constexpr int max_sign_queries = 8;

/** Dot products of the integers of up to eight queries with codes of one bit,
 * whose levels are 1 and -1, or two. They are kept as bytes: with M the sum of
 * the magnitudes of the query's integers times the largest level, what no
 * product exceeds, a byte x is of a product up to
 *
 *   (x + 1/2) * M / 255
 *
 * and more than this less M / 255, unless x is 0. */
struct ProductSink {
    /// [tile of product_rows][query][row]: bytes
    uint8_t* products = nullptr;
    uint32_t nq = 0;
    int largest_level = 1;
    const QuerySums* queries = nullptr; ///< (nq,)
    /// [tile][query], of one or max_sign_queries: the largest byte
    uint8_t* largest = nullptr;
    /// (nq, n_slices, n_best): if given, rows that may be the best that a block
    /// has come by, by the keys that products let expect, and no_row_of_list
    /// where there are fewer
    uint32_t* best = nullptr;
    uint32_t n_best = 0; ///< see best_of_block
    /// (1,), 0 before: the rounds that have been taken
    uint32_t* next_round = nullptr;
    const TileRange* ranges = nullptr; ///< of tiles

    /// of n rows; tiles are written in twos
    static constexpr size_t n_tiles(size_t n) {
        return 2 * ((n + 2 * product_rows - 1) / (2 * product_rows));
    }
    /// bytes of `largest`, of n rows
    static constexpr size_t largest_size(size_t n, size_t nq) {
        return n_tiles(n) * (nq > 1 ? max_sign_queries : 1);
    }
    /// of `products`
    static constexpr size_t size(size_t n, size_t nq) {
        return n_tiles(n) * product_rows * nq;
    }
};

/// thresholds (nq,) that exclude nothing
void reset_thresholds(Entry* thresholds, size_t nq, cudaStream_t stream);

/** Thresholds from the keys of a sample.
 * @param keys        (nq, rows), by scan_distances
 * @param thresholds  (nq,), written */
void find_thresholds(
        const float* keys,
        uint32_t rows,
        int k,
        size_t nq,
        Entry* thresholds,
        cudaStream_t stream);

/// the k best of each slice, or task
void scan_top_k(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const Reservoirs& reservoirs,
        cudaStream_t stream);

/// @param nq  counts
void scan_range(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const RangeSink& sink,
        size_t nq,
        cudaStream_t stream);

void scan_distances(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const DistanceSink& sink,
        cudaStream_t stream);

/** Products of all rows with codes of one bit, not of inverted files.
 * @param codes       scales, and offsets if there are any, of product_rows more
 *                    than there are rows, or as many
 * @param plan        by bits, with its product_planes; of one query, is_single
 */
void scan_products(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const ProductSink& sink,
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

/// keys of the first rows of the lists that queries probe
struct SampleOfLists {
    const float* keys = nullptr; ///< (nq, nprobe, rows); NaN where there is no
                                 ///< row. Null: there is no sample
    uint32_t rows = 0;
    uint32_t nprobe = 0;
    const int64_t* lists = nullptr;   ///< (nq, nprobe)
    const uint32_t* begins = nullptr; ///< of lists
};

/// where the results of queries are
struct ResultsOfQueries {
    /// (nq,) of each query in `reservoirs`
    const uint32_t *begins, *counts;
    const uint32_t* reservoirs; ///< of the first part
    SampleOfLists sample;
    const int64_t* ids; ///< of rows
};

/// the k best of all tasks, by key, then by id; otherwise as merge_slices
void merge_tasks(
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        const ResultsOfQueries& results,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
