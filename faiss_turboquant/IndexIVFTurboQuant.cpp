#include <faiss_turboquant/IndexIVFTurboQuant.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <typeinfo>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/OnDiskInvertedLists.h>
#include <faiss/utils/utils.h>

#include <faiss_turboquant/BlockScan.h>
#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/ListScanner.h>

namespace faiss {

using faiss_turboquant::BlockScan;
using faiss_turboquant::check_keys;
using faiss_turboquant::CodecType;
using faiss_turboquant::distance_of_key;
using faiss_turboquant::fill_result;
using faiss_turboquant::for_each_bit;
using faiss_turboquant::for_each_query;
using faiss_turboquant::get_ivf_parameters;
using faiss_turboquant::get_nprobe;
using faiss_turboquant::IdFilter;
using faiss_turboquant::ListScanner;
using faiss_turboquant::page_queries;
using faiss_turboquant::PreparedQuery;
using faiss_turboquant::RangeHits;
using faiss_turboquant::RotationType;
using faiss_turboquant::SignFilter;
using faiss_turboquant::TurboQuantizer;
using faiss_turboquant::wants_sign_filter;

namespace {

constexpr const char* index_type = "IndexIVFTurboQuant"; ///< for messages

/// vectors whose centres are gathered at a time
constexpr idx_t page_vectors = 1024;

/// FAISS's loops over vectors would end the process
void check_can_change(const InvertedLists* lists, const char* function) {
    auto on_disk = dynamic_cast<const OnDiskInvertedLists*>(lists);
    const bool is_read_only = (on_disk && on_disk->read_only) ||
            dynamic_cast<const ReadOnlyInvertedLists*>(lists);
    FAISS_THROW_IF_NOT_FMT(
            !is_read_only,
            "IndexIVFTurboQuant: %s is refused, because the inverted lists are "
            "read-only (of a mapped file, or stacked)",
            function);
}

bool is_finite(const float* x, size_t d) {
    // the exponents of NaN and infinity are all ones
    constexpr uint32_t exponent = 0x7f800000;
    uint32_t found = 0;
    for (size_t i = 0; i < d; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        found |= (bits & exponent) == exponent;
    }
    return found == 0;
}

/// P x of n queries, (n, rotated_dim)
AlignedTableTightAlloc<float, 64> rotate_queries(
        const TurboQuantizer& tq,
        idx_t first,
        idx_t n,
        const float* x) {
    const size_t padded = tq.rotated_dim();
    AlignedTableTightAlloc<float, 64> rotated(n * padded);
    for_each_query(n, [&](idx_t i) {
        tq.rotate_query(
                x + (first + i) * tq.d, first + i, rotated.data() + i * padded);
    });
    return rotated;
}

/// FAISS's heap of results
template <bool is_l2>
struct HeapCollector {
    size_t k;
    float* distances;
    idx_t* labels;
    const idx_t* ids;
    idx_t list_no;
    bool store_pairs;
    size_t nupdates = 0;
    float threshold = 0;

    void update_threshold() {
        threshold = is_l2 ? distances[0] : -distances[0];
    }

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            if (!(keys[i] < threshold)) {
                continue;
            }
            const float distance = distance_of_key(is_l2, keys[i]);
            const idx_t label =
                    store_pairs ? lo_build(list_no, rows[i]) : ids[rows[i]];
            if (is_l2) {
                maxheap_replace_top(k, distances, labels, distance, label);
            } else {
                minheap_replace_top(k, distances, labels, distance, label);
            }
            update_threshold();
            nupdates++;
        }
    }
};

/// FAISS's list of hits
struct HitCollector {
    RangeQueryResult& result;
    bool is_l2;
    const idx_t* ids;
    idx_t list_no;
    bool store_pairs;
    float threshold;

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            result.add(
                    distance_of_key(is_l2, keys[i]),
                    store_pairs ? lo_build(list_no, rows[i]) : ids[rows[i]]);
        }
    }
};

/// one query, list by list, for FAISS's own loops
struct TurboQuantListScanner : InvertedListScanner {
    const TurboQuantizer& tq;
    std::shared_ptr<const IndexIVFTurboQuant::RotatedCentres> rotated_centres;
    AlignedTableTightAlloc<float, 64> rotated;
    bool query_is_valid = false;
    PreparedQuery query;
    std::unique_ptr<const IdFilter> filter; ///< null: all ids

    TurboQuantListScanner(
            const IndexIVFTurboQuant& index,
            bool store_pairs,
            const IDSelector* sel)
            : InvertedListScanner(store_pairs, sel),
              tq(index.tq),
              rotated_centres(index.rotated_centres()),
              rotated(tq.rotated_dim()),
              filter(sel ? std::make_unique<IdFilter>(*sel) : nullptr) {
        code_size = index.code_size;
        keep_max = index.metric_type == METRIC_INNER_PRODUCT;
    }

    /// FAISS calls this in OpenMP regions, where an exception would end the
    /// process: a query that is refused finds nothing
    void set_query(const float* x) override {
        try {
            tq.rotate_query(x, 0, rotated.data());
            query_is_valid = true;
        } catch (const FaissException&) {
            query_is_valid = false;
        }
    }

    void set_list(idx_t list_no, float /*coarse_dis*/) override {
        this->list_no = list_no;
        if (query_is_valid) {
            tq.prepare_residual_query(
                    rotated.data(),
                    rotated_centres->data() + list_no * rotated.size(),
                    nullptr,
                    query);
        }
    }

    float distance_to_code(const uint8_t* code) const override {
        return query_is_valid ? tq.distance_to_code(query, code) : NAN;
    }

    size_t scan_codes(
            size_t n,
            const uint8_t* codes,
            const idx_t* ids,
            float* distances,
            idx_t* labels,
            size_t k) const override {
        return keep_max
                ? scan_to_heap<false>(n, codes, ids, distances, labels, k)
                : scan_to_heap<true>(n, codes, ids, distances, labels, k);
    }

    void scan_codes_range(
            size_t n,
            const uint8_t* codes,
            const idx_t* ids,
            float radius,
            RangeQueryResult& result) const override {
        if (!keep_max && !(radius > 0)) {
            return; // no squared distance is below 0, even if its estimate is
        }
        HitCollector collector{
                result,
                !keep_max,
                ids,
                list_no,
                store_pairs,
                keep_max ? -radius : radius};
        scan(n, codes, ids, collector);
    }

   private:
    template <bool is_l2>
    size_t scan_to_heap(
            size_t n,
            const uint8_t* codes,
            const idx_t* ids,
            float* distances,
            idx_t* labels,
            size_t k) const {
        HeapCollector<is_l2> collector{
                k, distances, labels, ids, list_no, store_pairs};
        collector.update_threshold();
        scan(n, codes, ids, collector);
        return collector.nupdates;
    }

    template <class Collector>
    void scan(
            size_t n,
            const uint8_t* codes,
            const idx_t* ids,
            Collector& collector) const {
        if (!query_is_valid) {
            return;
        }
        std::vector<uint32_t> rows;
        if (filter) {
            std::vector<idx_t> pairs;
            if (store_pairs) {
                for (size_t i = 0; i < n; i++) {
                    pairs.push_back(lo_build(list_no, i));
                }
                ids = pairs.data();
            }
            for_each_bit(filter->select(ids, n), [&](size_t i) {
                rows.push_back(i);
            });
            n = rows.size();
        }
        BlockScan<Collector> block_scan(tq);
        block_scan.start(query, collector);
        block_scan.scan(codes, filter ? rows.data() : nullptr, n);
    }
};

void add_stats(
        IndexIVFStats* stats,
        idx_t nq,
        const ListScanner::Stats& of_search) {
    if (!stats) {
        stats = &indexIVF_stats;
    }
    stats->nq += nq;
    stats->nlist += of_search.nlist;
    stats->ndis += of_search.ndis;
    stats->nheap_updates += of_search.nkept;
}

} // namespace

IndexIVFTurboQuant::IndexIVFTurboQuant(
        Index* quantizer,
        size_t d,
        size_t nlist,
        int nbits,
        MetricType metric,
        bool own_invlists,
        RotationType rotation_type,
        uint64_t seed,
        int memory,
        CodecType codec)
        : IndexIVF(quantizer, d, nlist, 0, metric, own_invlists),
          tq(d, nbits, metric, rotation_type, seed, memory, codec) {
    tq.by_residual = true;
    tq.set_derived_values();
    code_size = tq.code_size;
    if (own_invlists) {
        invlists->code_size = code_size;
    }
}

IndexIVFTurboQuant::IndexIVFTurboQuant() {
    tq.by_residual = true;
}

void IndexIVFTurboQuant::Cache::clear() {
    const std::lock_guard<std::mutex> lock(mutex);
    rotated_centres.reset();
    sign_filters.clear();
}

std::shared_ptr<const IndexIVFTurboQuant::RotatedCentres> IndexIVFTurboQuant::
        rotated_centres() const {
    const std::lock_guard<std::mutex> lock(cache_.mutex);
    if (cache_.rotated_centres) {
        return cache_.rotated_centres;
    }
    FAISS_THROW_IF_NOT_FMT(
            quantizer->ntotal == idx_t(nlist),
            "IndexIVFTurboQuant: the quantizer has %" PRId64
            " centroids, the index %zd lists",
            quantizer->ntotal,
            nlist);
    const size_t padded = tq.rotated_dim();
    auto rotated = std::make_shared<RotatedCentres>(nlist * padded);
    std::vector<float> centres(page_vectors * d);
    for (idx_t i0 = 0; i0 < idx_t(nlist); i0 += page_vectors) {
        const idx_t n = std::min<idx_t>(page_vectors, nlist - i0);
        for (idx_t i = 0; i < n; i++) {
            float* centre = &centres[i * d];
            get_centre(i0 + i, centre);
            const double squared =
                    std::inner_product(centre, centre + d, centre, 0.0);
            FAISS_THROW_IF_NOT_FMT(
                    squared <= std::numeric_limits<float>::max(),
                    "IndexIVFTurboQuant: the centre of list %" PRId64
                    " has a NaN or an infinity, or its squared norm exceeds "
                    "float32",
                    i0 + i);
        }
#pragma omp parallel for if (n > 8)
        for (idx_t i = 0; i < n; i++) {
            tq.rotate(&centres[i * d], rotated->data() + (i0 + i) * padded);
        }
    }
    cache_.rotated_centres = rotated;
    return rotated;
}

void IndexIVFTurboQuant::centres_changed() {
    cache_.clear();
}

void IndexIVFTurboQuant::train(idx_t n, const float* x) {
    cache_.clear();
    // there is nothing to train on residuals, which IndexIVF::train computes
    train_q1(n, x, verbose, metric_type);
    if (metric_type == METRIC_INNER_PRODUCT && ntotal == 0) {
        train_centre_scales(n, x);
    }
    is_trained = true;
}

/** The multiple of the centroid that is nearest to the mean m of the list's
 * vectors is <m, c> / |c|^2. */
void IndexIVFTurboQuant::train_centre_scales(idx_t n, const float* x) {
    size_t n_used = n;
    const TransformedVectors used(
            x,
            fvecs_maybe_subsample(
                    d,
                    &n_used,
                    nlist * cp.max_points_per_centroid,
                    x,
                    verbose,
                    cp.seed));
    std::vector<idx_t> keys(n_used);
    quantizer->assign(n_used, used.x, keys.data());
    std::vector<double> products(nlist), squares(nlist);
    std::vector<float> centroid(d);
    for (size_t i = 0; i < n_used; i++) {
        if (keys[i] < 0) {
            continue;
        }
        quantizer->reconstruct(keys[i], centroid.data());
        for (int j = 0; j < d; j++) {
            products[keys[i]] += double(used.x[i * d + j]) * centroid[j];
            squares[keys[i]] += double(centroid[j]) * centroid[j];
        }
    }
    centre_scales.assign(nlist, 1);
    for (size_t l = 0; l < nlist; l++) {
        const double scale = products[l] / squares[l];
        if (std::isfinite(scale)) {
            centre_scales[l] = static_cast<float>(scale);
        }
    }
}

void IndexIVFTurboQuant::get_centre(idx_t list_no, float* centre) const {
    quantizer->reconstruct(list_no, centre);
    if (!centre_scales.empty()) {
        for (int j = 0; j < d; j++) {
            centre[j] *= centre_scales[list_no];
        }
    }
}

void IndexIVFTurboQuant::reset() {
    check_can_change(invlists, "reset");
    cache_.clear();
    IndexIVF::reset();
}

void IndexIVFTurboQuant::add_with_ids(
        idx_t n,
        const float* x,
        const idx_t* xids) {
    check_can_change(invlists, "add");
    idx_t refused = n;
#pragma omp parallel for reduction(min : refused) if (n > 100)
    for (idx_t i = 0; i < n; i++) {
        if (!is_finite(x + i * d, d)) {
            refused = std::min(refused, i);
        }
    }
    FAISS_THROW_IF_NOT_FMT(
            refused == n,
            "IndexIVFTurboQuant: vector %" PRId64 " has a NaN or an infinity",
            refused);
    if (ntotal == 0) {
        cache_.clear(); // the quantizer may have been replaced
    }
    IndexIVF::add_with_ids(n, x, xids);
}

void IndexIVFTurboQuant::add_sa_codes(
        idx_t n,
        const uint8_t* codes,
        const idx_t* xids) {
    check_can_change(invlists, "add_sa_codes");
    IndexIVF::add_sa_codes(n, codes, xids);
}

size_t IndexIVFTurboQuant::remove_ids(const IDSelector& sel) {
    check_can_change(invlists, "remove_ids");
    cache_.sign_filters.clear();
    return IndexIVF::remove_ids(sel);
}

void IndexIVFTurboQuant::update_vectors(
        int n,
        const idx_t* ids,
        const float* x) {
    check_can_change(invlists, "update_vectors");
    cache_.sign_filters.clear();
    IndexIVF::update_vectors(n, ids, x);
}

void IndexIVFTurboQuant::merge_from(Index& otherIndex, idx_t add_id) {
    check_compatible_for_merge(otherIndex);
    check_can_change(invlists, "merge_from");
    // it is emptied
    check_can_change(
            static_cast<const IndexIVF&>(otherIndex).invlists, "merge_from");
    IndexIVF::merge_from(otherIndex, add_id);
}

void IndexIVFTurboQuant::encode_vectors(
        idx_t n,
        const float* x,
        const idx_t* list_nos,
        uint8_t* codes,
        bool include_listno) const {
    const size_t coarse_size = include_listno ? coarse_code_size() : 0;
    const size_t stride = coarse_size + code_size;
    std::vector<float> centres(std::min(n, page_vectors) * d);
    std::vector<uint8_t> page(std::min(n, page_vectors) * code_size);
    memset(codes, 0, n * stride);
    for (idx_t i0 = 0; i0 < n;) {
        // a run of vectors that have a list
        idx_t i1 = i0;
        while (i1 < std::min(n, i0 + page_vectors) && list_nos[i1] >= 0) {
            get_centre(list_nos[i1], &centres[(i1 - i0) * d]);
            i1++;
        }
        tq.compute_residual_codes(
                x + i0 * d, centres.data(), page.data(), i1 - i0);
        for (idx_t i = i0; i < i1; i++) {
            uint8_t* code = codes + i * stride;
            if (include_listno) {
                encode_listno(list_nos[i], code);
            }
            memcpy(code + coarse_size, &page[(i - i0) * code_size], code_size);
        }
        // one that has none is left as zeros
        i0 = i1 < n && list_nos[i1] < 0 ? i1 + 1 : i1;
    }
}

void IndexIVFTurboQuant::decode_vectors(
        idx_t n,
        const uint8_t* codes,
        const idx_t* list_nos,
        float* x) const {
    tq.decode(codes, x, n);
    std::vector<float> centre(d);
    for (idx_t i = 0; i < n; i++) {
        get_centre(list_nos[i], centre.data());
        for (int j = 0; j < d; j++) {
            x[i * d + j] += centre[j];
        }
    }
}

void IndexIVFTurboQuant::sa_decode(idx_t n, const uint8_t* bytes, float* x)
        const {
    const size_t coarse_size = coarse_code_size();
    std::vector<idx_t> list_nos(n);
    std::vector<uint8_t> codes(n * code_size);
    for (idx_t i = 0; i < n; i++) {
        const uint8_t* from = bytes + i * (coarse_size + code_size);
        list_nos[i] = decode_listno(from);
        memcpy(&codes[i * code_size], from + coarse_size, code_size);
    }
    decode_vectors(n, codes.data(), list_nos.data(), x);
}

void IndexIVFTurboQuant::reconstruct_from_offset(
        int64_t list_no,
        int64_t offset,
        float* recons) const {
    const InvertedLists::ScopedCodes code(invlists, list_no, offset);
    const idx_t list = list_no;
    decode_vectors(1, code.codes, &list, recons);
}

void IndexIVFTurboQuant::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const SearchParameters* params_in) const {
    FAISS_THROW_IF_NOT_FMT(
            k > 0, "IndexIVFTurboQuant: k = %" PRId64 " is not positive", k);
    const IVFSearchParameters* params =
            get_ivf_parameters(params_in, index_type);
    const size_t nprobe = get_nprobe(params, this->nprobe, nlist, index_type);
    for (idx_t first = 0; first < n; first += page_queries) {
        const idx_t page = std::min(page_queries, n - first);
        const double start = getmillisecs();
        const Probes probes = find_probes(page, x + first * d, nprobe, params);
        search_preassigned(
                page,
                x + first * d,
                k,
                probes.keys.data(),
                probes.distances.data(),
                distances + first * k,
                labels + first * k,
                false,
                params,
                &indexIVF_stats);
        indexIVF_stats.search_time += getmillisecs() - start;
    }
}

IndexIVFTurboQuant::Probes IndexIVFTurboQuant::find_probes(
        idx_t n,
        const float* x,
        size_t nprobe,
        const IVFSearchParameters* params) const {
    const double start = getmillisecs();
    Probes probes;
    probes.keys.resize(n * nprobe);
    probes.distances.resize(n * nprobe);
    quantizer->search(
            n,
            x,
            nprobe,
            probes.distances.data(),
            probes.keys.data(),
            params ? params->quantizer_params : nullptr);
    indexIVF_stats.quantization_time += getmillisecs() - start;
    // prefetching takes them for granted
    check_keys(probes.keys.data(), probes.keys.size(), nlist, index_type);
    invlists->prefetch_lists(probes.keys.data(), probes.keys.size());
    return probes;
}

void IndexIVFTurboQuant::search_preassigned(
        idx_t n,
        const float* x,
        idx_t k,
        const idx_t* assign,
        const float* centroid_dis,
        float* distances,
        idx_t* labels,
        bool store_pairs,
        const IVFSearchParameters* params,
        IndexIVFStats* stats) const {
    FAISS_THROW_IF_NOT_FMT(
            k > 0, "IndexIVFTurboQuant: k = %" PRId64 " is not positive", k);
    const IDSelector* sel = params ? params->sel : nullptr;
    FAISS_THROW_IF_NOT_MSG(
            !(sel && store_pairs),
            "IndexIVFTurboQuant: a selector and store_pairs cannot be "
            "combined");
    const size_t nprobe = get_nprobe(params, this->nprobe, nlist, index_type);
    const bool by_query = needs_faiss_loop(params) ||
            (params ? params->max_codes : max_codes) != 0;
    const auto rotated_centres = this->rotated_centres();
    const ListScanner scanner{
            tq,
            *invlists,
            rotated_centres->data(),
            sel,
            store_pairs,
            get_signs()};
    for (idx_t first = 0; first < n; first += page_queries) {
        const idx_t page = std::min(page_queries, n - first);
        const auto rotated = rotate_queries(tq, first, page, x);
        if (!by_query) {
            add_stats(
                    stats,
                    page,
                    scanner.search(
                            page,
                            rotated.data(),
                            assign + first * nprobe,
                            nprobe,
                            k,
                            distances + first * k,
                            labels + first * k));
        }
        InterruptCallback::check();
    }
    if (by_query) {
        IndexIVF::search_preassigned(
                n,
                x,
                k,
                assign,
                centroid_dis,
                distances,
                labels,
                store_pairs,
                params,
                stats);
    }
}

faiss_turboquant::ListSigns IndexIVFTurboQuant::get_signs() const {
    const bool pays = dynamic_cast<const ArrayInvertedLists*>(invlists) &&
            SignFilter::bytes(tq, ntotal, 1) <= max_sign_filter_bytes;
    auto& filters = cache_.sign_filters;
    if (!wants_sign_filter(
                index_type, tq, use_sign_filter, sign_margin, pays)) {
        filters.clear();
        return {};
    }
    filters.resize(invlists->nlist);
    const int n_planes = filters.record.n_planes(tq, use_sign_filter);
    const bool is_optional = use_sign_filter < 0;
    const bool has_room = !is_optional ||
            SignFilter::bytes(tq, ntotal, n_planes) <= max_sign_filter_bytes;
    return {&filters, has_room ? n_planes : 1, sign_margin, is_optional};
}

bool IndexIVFTurboQuant::needs_faiss_loop(
        const IVFSearchParameters* params) const {
    return invlists->use_iterator ||
            (params && params->inverted_list_context) ||
            (parallel_mode & PARALLEL_MODE_NO_HEAP_INIT);
}

void IndexIVFTurboQuant::range_search(
        idx_t nx,
        const float* x,
        float radius,
        RangeSearchResult* result,
        const SearchParameters* params_in) const {
    const IVFSearchParameters* params =
            get_ivf_parameters(params_in, index_type);
    const size_t nprobe = get_nprobe(params, this->nprobe, nlist, index_type);
    const double start = getmillisecs();
    const Probes probes = find_probes(nx, x, nprobe, params);
    range_search_preassigned(
            nx,
            x,
            radius,
            probes.keys.data(),
            probes.distances.data(),
            result,
            false,
            params,
            &indexIVF_stats);
    indexIVF_stats.search_time += getmillisecs() - start;
}

void IndexIVFTurboQuant::range_search_preassigned(
        idx_t nx,
        const float* x,
        float radius,
        const idx_t* keys,
        const float* coarse_dis,
        RangeSearchResult* result,
        bool store_pairs,
        const IVFSearchParameters* params,
        IndexIVFStats* stats) const {
    FAISS_THROW_IF_NOT_MSG(
            !params || params->max_codes == 0,
            "IndexIVFTurboQuant: range_search does not support max_codes");
    if (needs_faiss_loop(params)) {
        IndexIVF::range_search_preassigned(
                nx,
                x,
                radius,
                keys,
                coarse_dis,
                result,
                store_pairs,
                params,
                stats);
        return;
    }
    const size_t nprobe = get_nprobe(params, this->nprobe, nlist, index_type);
    const auto rotated_centres = this->rotated_centres();
    const ListScanner scanner{
            tq,
            *invlists,
            rotated_centres->data(),
            params ? params->sel : nullptr,
            store_pairs,
            get_signs()};
    std::vector<RangeHits> hits(nx);
    for (idx_t first = 0; first < nx; first += page_queries) {
        const idx_t page = std::min(page_queries, nx - first);
        add_stats(
                stats,
                page,
                scanner.range_search(
                        page,
                        rotate_queries(tq, first, page, x).data(),
                        keys + first * nprobe,
                        nprobe,
                        radius,
                        hits.data() + first));
        InterruptCallback::check();
    }
    fill_result(hits, *result);
}

InvertedListScanner* IndexIVFTurboQuant::get_InvertedListScanner(
        bool store_pairs,
        const IDSelector* sel,
        const IVFSearchParameters* /*params*/) const {
    return new TurboQuantListScanner(*this, store_pairs, sel);
}

void IndexIVFTurboQuant::check_compatible_for_merge(
        const Index& otherIndex) const {
    const auto* other = dynamic_cast<const IndexIVFTurboQuant*>(&otherIndex);
    FAISS_THROW_IF_NOT_FMT(
            other,
            "IndexIVFTurboQuant: cannot merge an index of type %s",
            typeid(otherIndex).name());
    tq.check_same_codes(other->tq);
    FAISS_THROW_IF_NOT_MSG(
            other->centre_scales == centre_scales,
            "IndexIVFTurboQuant: cannot merge an index with other "
            "centre_scales (train() sets them)");
    IndexIVF::check_compatible_for_merge(otherIndex);
}

} // namespace faiss
