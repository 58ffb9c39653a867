#pragma once

/** Kernels of DeviceSignFilter: the signs of codes, as codes of one bit, and
 * lists of the rows that a search has to read when it has seen their signs. */

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>

namespace faiss_turboquant {
namespace gpu {

/// of a search: one tile of matrix instructions
constexpr int max_sign_queries = 8;

/// arrays of a value for each row are so long that all rows whose products lie
/// together have one
constexpr uint32_t sign_rows_unit = product_rows;

/// of all rows, for the choice of a bound
struct SignStatistics {
    float least_residual, largest_residual;
    float scale, offset; ///< means of a sample
};

/// what is held of rows, see SignFilter
struct SignRows {
    uint8_t* planes = nullptr;  ///< (n, dims / 8), as of DeviceLayout::signs
    float* scales = nullptr;    ///< (n,), of codes times beta
    float* residuals = nullptr; ///< (n,), |r| / beta
    SignStatistics* statistics = nullptr; ///< (1,)
};

/** Write the signs of rows first .. codes.n - 1. With first = 0, the statistics
 * begin anew. */
void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        const SignRows& signs,
        cudaStream_t stream);

/** Rows that are in reservoirs, each query's apart.
 * @param nq    up to max_sign_queries
 * @param rows  (nq, n_slices * k), written: past a reservoir's rows, those that
 *              have no key
 * @param size  (1,), written: of all */
void list_reservoirs(
        const Reservoirs& reservoirs,
        int n_slices,
        size_t nq,
        uint32_t* rows,
        uint32_t* size,
        cudaStream_t stream);

/** What is of interest, from keys of some rows: the k-th least, and whatever
 * has the same key.
 * @param keys        (n,) of the first query
 * @param stride      from the keys of one query to those of the next
 * @param thresholds  (nq,), written: no_entry where there are fewer keys */
void select_thresholds(
        const float* keys,
        size_t stride,
        size_t n,
        int k,
        size_t nq,
        Entry* thresholds,
        cudaStream_t stream);

/// what signs tell about rows
struct SignKeys {
    ProductSink products;
    SignRows rows;
    const float* offsets = nullptr;     ///< (n,), of codes; null for zeros
    const uint32_t* selected = nullptr; ///< as in DeviceCodes
    uint32_t n = 0;

    // how far a row's key may be from what they let expect
    int d = 0;
    bool is_l2 = false;
    double margin = 0;                           ///< in standard deviations
    const DeviceQueryFactors* factors = nullptr; ///< (nq,)
    const uint32_t* squares = nullptr;           ///< (nq,), of QueryImage
};

/** The rows that may be of interest to any of the queries.
 * @param thresholds  (nq,); null: keys up to `last` are
 * @param rows        (capacity,), written
 * @param size        (1,), written: how many there are, which may be more */
void list_candidates(
        const SignKeys& signs,
        const Entry* thresholds,
        float last,
        uint32_t* rows,
        uint32_t capacity,
        uint32_t* size,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
