#pragma once

/** Kernels of DeviceSignFilter: the signs of codes, as codes of one bit, and
 * lists of the rows that a search has to read when it has seen their signs. */

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include <faiss_turboquant/kernels/sign_bound.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>

namespace faiss_turboquant {
namespace gpu {

/// of a search: one tile of matrix instructions
constexpr int max_sign_queries = 8;

/// arrays of a value for each row are so long that all rows whose products lie
/// together have one
constexpr uint32_t sign_rows_unit = product_rows;

/// what is held of rows: bits, and what these tell of codes with those of the
/// planes before, see SignFilter
struct SignPlane {
    uint8_t* bits = nullptr;     ///< (n, dims / 8), as of DeviceLayout::signs
    float* scales = nullptr;     ///< (n,), of codes times beta
    float* residuals = nullptr;  ///< (n,), |r| / beta
    TileRange* ranges = nullptr; ///< (n / product_rows, rounded up)
};

/// of all rows, for the choice of a bound
struct SignStatistics {
    float least_residual, largest_residual;
    float largest_square; ///< |v|^2 / beta^2
    float scale, offset;  ///< means of a sample
};

struct SignRows {
    int n_planes = 0;
    SignPlane planes[max_sign_planes];
    SignStatistics* statistics = nullptr; ///< (n_planes,)
};

/** Write the planes of rows first .. codes.n - 1. With first = 0, the
 * statistics begin anew. */
void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        const SignRows& signs,
        cudaStream_t stream);

/// where a RowList is written
struct CandidateList {
    uint32_t* rows = nullptr; ///< (capacity,)
    uint32_t* size = nullptr; ///< (1,), 0 before
    uint32_t capacity = 0;

    RowList list() const {
        RowList list;
        list.rows = rows;
        list.size = size;
        list.capacity = capacity;
        return list;
    }
};

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

/// what planes tell about rows
struct SignKeys {
    int n_planes = 1;        ///< that have been asked
    bool are_joined = false; ///< both, with one product
    ProductSink products;    ///< with the first plane, or both
    SignRows rows;
    const float* offsets = nullptr;     ///< (n,), of codes; null for zeros
    const uint32_t* selected = nullptr; ///< as in DeviceCodes
    uint32_t n = 0;

    // how far a row's key may be from what they let expect
    int d = 0;
    bool is_l2 = false;
    double margin = 0;                           ///< in standard deviations
    const DeviceQueryFactors* factors = nullptr; ///< (nq,)
};

/** The rows that may be of interest to any of the queries, by their products.
 * @param thresholds  (nq,); null: keys up to `last` are
 * @param found       written, its size, too, which may be more than there is
 *                    room for */
void list_candidates(
        const SignKeys& signs,
        const Entry* thresholds,
        float last,
        const CandidateList& found,
        cudaStream_t stream);

/** Those of the rows of a list that may be by their second planes, too, for one
 * query; otherwise as list_candidates.
 * @param signs   of both planes, which are not joined
 * @param codes   the second planes; n and the list are what is to be read
 * @param units   of the image, see ScanPlan
 * @param image   of the query */
void refine_candidates(
        const SignKeys& signs,
        const DeviceCodes& codes,
        int units,
        const uint8_t* image,
        const Entry* thresholds,
        float last,
        const CandidateList& found,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
