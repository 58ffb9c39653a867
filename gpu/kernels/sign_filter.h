#pragma once

/** Kernels of a search that asks a DeviceSignFilter: lists of the rows that it
 * has to read when it has seen their signs. */

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>
#include <gpu/kernels/sign_planes.h>

namespace faiss_turboquant {
namespace gpu {

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
