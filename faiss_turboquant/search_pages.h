#pragma once

/** What the searches of all indexes share: their parameters, the size of a page
 * of queries, a loop over queries that may throw, and the result of a range
 * search. */

#include <algorithm>
#include <cstdint>
#include <exception>
#include <typeinfo>
#include <utility>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/IndexTurboQuant.h>

namespace faiss_turboquant {

/** The selector of a search in a flat index; null: all ids.
 * @param index_type  for the message
 * @throws faiss::FaissException if the parameters are those of other indexes */
inline const faiss::IDSelector* get_selector(
        const faiss::SearchParameters* params,
        const char* index_type) {
    if (!params) {
        return nullptr;
    }
    FAISS_THROW_IF_NOT_FMT(
            typeid(*params) == typeid(faiss::SearchParameters) ||
                    typeid(*params) ==
                            typeid(faiss::SearchParametersTurboQuant),
            "%s: search parameters of type %s are not supported, only "
            "SearchParameters and SearchParametersTurboQuant (sel)",
            index_type,
            typeid(*params).name());
    return params->sel;
}

/// queries prepared at a time: bounds the memory of a large batch, and the
/// time until an interrupt is noticed
constexpr faiss::idx_t page_queries = 4096;

/** f(0) .. f(n - 1), on all threads.
 * @throws what f throws for the smallest i */
template <class F>
void for_each_query(faiss::idx_t n, F f) {
    faiss::idx_t refused = n;
    std::exception_ptr error;
#pragma omp parallel for if (n > 8)
    for (faiss::idx_t i = 0; i < n; i++) {
        try {
            f(i);
        } catch (...) {
#pragma omp critical(faiss_turboquant_queries)
            if (i < refused) {
                refused = i;
                error = std::current_exception();
            }
        }
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

/// (label, distance), by ascending label
using RangeHits = std::vector<std::pair<faiss::idx_t, float>>;

/// @param hits  one a query
inline void fill_result(
        const std::vector<RangeHits>& hits,
        faiss::RangeSearchResult& result) {
    // do_allocation turns the sizes in lims into offsets
    for (size_t i = 0; i < hits.size(); i++) {
        result.lims[i] = hits[i].size();
    }
    result.do_allocation();
    for (size_t i = 0; i < hits.size(); i++) {
        size_t at = result.lims[i];
        for (const auto& [label, distance] : hits[i]) {
            result.labels[at] = label;
            result.distances[at] = distance;
            at++;
        }
    }
}

} // namespace faiss_turboquant
