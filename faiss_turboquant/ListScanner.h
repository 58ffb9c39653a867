#pragma once

#include <cstddef>
#include <cstdint>

#include <faiss/impl/IDSelector.h>
#include <faiss/invlists/InvertedLists.h>

#include <faiss_turboquant/SignFilter.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>
#include <faiss_turboquant/search_pages.h>

namespace faiss_turboquant {

/// Queries that probe a list ask its signs which codes to read, unless they are
/// so many that panels are faster.
struct ListSigns {
    ListSignFilters* filters = nullptr; ///< null: all codes are read
    int n_planes = 0;                   ///< of each
    double margin = 0;                  ///< as of SignFilter::make_query
    /// only where that is likely to be faster
    bool is_optional = true;
};

/** Search of inverted lists of residual codes, on all threads. Queries that
 * probe the same list share the decoding of its codes.
 *
 * Results do not depend on the number of threads, on the SIMD level or on what
 * other queries are in the batch. The order is by distance, then by id; where
 * equal distances compete for the last place within one list, the one stored
 * first wins. */
struct ListScanner {
    const TurboQuantizer& tq;
    const faiss::InvertedLists& lists;
    const float* rotated_centres; ///< (nlist, rotated_dim)
    const faiss::IDSelector* sel; ///< null: all ids
    bool store_pairs; ///< labels are lo_build(list, row) instead of ids
    ListSigns signs;

    /// what a search has read
    struct Stats {
        size_t nlist = 0; ///< lists, once for each query
        size_t ndis = 0;  ///< distances
        size_t nkept = 0; ///< results of single lists
    };

    /** @param rotated    (nq, rotated_dim), from TurboQuantizer::rotate_query
     *  @param keys       (nq, nprobe), lists to probe, nearest first; negative
     *                    ones are skipped
     *  @param distances  (nq, k), written, best first
     *  @param labels     (nq, k), written; -1 past the last result */
    Stats search(
            size_t nq,
            const float* rotated,
            const faiss::idx_t* keys,
            size_t nprobe,
            size_t k,
            float* distances,
            faiss::idx_t* labels) const;

    /** All codes with a distance below radius (L2) or above it (inner
     * product).
     * @param hits  (nq,), written */
    Stats range_search(
            size_t nq,
            const float* rotated,
            const faiss::idx_t* keys,
            size_t nprobe,
            float radius,
            RangeHits* hits) const;
};

} // namespace faiss_turboquant
