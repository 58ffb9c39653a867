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

/// rows of lists are read by fours: arrays of a value for each are as long
constexpr uint32_t sign_rows_unit = 4;

/** The signs of rows first .. codes.n - 1.
 * @param planes    (n, dims / 8), of which these rows are written; as of
 *                  DeviceLayout::signs
 * @param scales    (n,), likewise: scales of codes times beta, see SignFilter
 * @param residual  (1,): the largest |r|^2 / beta^2 of any row, raised */
void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        uint8_t* planes,
        float* scales,
        double* residual,
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
    const float* keys = nullptr; ///< (nq, stride), those that they let expect;
                                 ///< NaN where a row is not selected
    size_t stride = 0;           ///< a multiple of sign_rows_unit
    size_t nq = 0;               ///< up to max_sign_queries
    const float* scales = nullptr; ///< (n,), from pack_signs
    uint32_t n = 0;

    // how far from them a row's key may be
    int d = 0;
    double margin = 0; ///< in standard deviations
    const double* residual = nullptr;
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
