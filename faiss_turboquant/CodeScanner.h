#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/Index.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/ResultHandler.h>

#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/QueryBatch.h>
#include <faiss_turboquant/SignFilter.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>
#include <faiss_turboquant/search_pages.h>

namespace faiss_turboquant {

/** Exhaustive search of an array of codes, on all threads: one query is
 * spread over slices of the codes, many queries over groups of queries.
 *
 * Results do not depend on the number of threads or on the SIMD level: the
 * order is by distance, then by id. Queries that have `signs` read the codes
 * that the filter leaves (SignFilter.h), others read all. */
struct CodeScanner {
    const TurboQuantizer& tq;
    const uint8_t* codes;
    size_t ntotal;
    /// of these codes, or null: they are all read
    std::shared_ptr<const SignFilter> filter;

    /** @param codes  (ntotal, tq.code_size)
     *  @param sel    null: all ids */
    CodeScanner(
            const TurboQuantizer& tq,
            const uint8_t* codes,
            size_t ntotal,
            std::shared_ptr<const SignFilter> filter,
            const faiss::IDSelector* sel);

    /** @param distances  (nq, k), written, best first
     *  @param labels     (nq, k), written; -1 past the last result
     *  @return  codes that were read, those of each query */
    size_t search(
            const QueryBatch& queries,
            size_t k,
            float* distances,
            faiss::idx_t* labels) const;

    /** All codes with a distance below radius (L2) or above it (inner
     * product).
     * @param results  one more for each query: (id, distance), by ascending id
     * @return  codes that were read, those of each query */
    size_t range_search(
            const QueryBatch& queries,
            float radius,
            std::vector<RangeHits>& results) const;

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
    /** Give a handler every code that beats its threshold, by ascending id, on
     * the calling thread. */
    void search1(const QueryBatch& query, faiss::ResultHandler& handler) const;
#endif

   private:
    /// selected ids as a bitmap; empty when there is no selector
    IdFilter::Bitmap selected_;
};

} // namespace faiss_turboquant
