#pragma once

/** What the searches of all indexes share: their parameters, the size of a page
 * of queries, a loop over queries that may throw, and their results. */

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <exception>
#include <typeinfo>
#include <utility>
#include <vector>

#include <faiss/IndexIVF.h>
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

/** The parameters of a search in inverted files, or null.
 * @param index_type  for the message
 * @throws faiss::FaissException if they are those of other indexes */
inline const faiss::IVFSearchParameters* get_ivf_parameters(
        const faiss::SearchParameters* params,
        const char* index_type) {
    if (!params) {
        return nullptr;
    }
    FAISS_THROW_IF_NOT_FMT(
            typeid(*params) == typeid(faiss::IVFSearchParameters),
            "%s: search parameters of type %s are not supported, only "
            "SearchParametersIVF",
            index_type,
            typeid(*params).name());
    return static_cast<const faiss::IVFSearchParameters*>(params);
}

/** Lists that a search looks into for each query.
 * @param nprobe  of the index
 * @throws faiss::FaissException if that is 0 */
inline size_t get_nprobe(
        const faiss::IVFSearchParameters* params,
        size_t nprobe,
        size_t nlist,
        const char* index_type) {
    const size_t wanted = params ? params->nprobe : nprobe;
    FAISS_THROW_IF_NOT_FMT(wanted > 0, "%s: nprobe is 0", index_type);
    return std::min(nlist, wanted);
}

/// @throws faiss::FaissException if a key is not below nlist
inline void check_keys(
        const faiss::idx_t* keys,
        size_t n,
        size_t nlist,
        const char* index_type) {
    for (size_t i = 0; i < n; i++) {
        FAISS_THROW_IF_NOT_FMT(
                keys[i] < faiss::idx_t(nlist),
                "%s: list %" PRId64 " of %zd is probed",
                index_type,
                keys[i],
                nlist);
    }
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

/// what a caller sees of a key. An L2 estimate can fall below zero, a squared
/// distance cannot. No -0.
inline float distance_of_key(bool is_l2, float key) {
    return 0.0f + (is_l2 ? std::max(key, 0.0f) : -key);
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
