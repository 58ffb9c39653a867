#include <faiss_turboquant/IndexTurboQuant.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <typeinfo>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/CodeScanner.h>
#include <faiss_turboquant/search_pages.h>

namespace faiss {

using faiss_turboquant::batch_queries;
using faiss_turboquant::CodecType;
using faiss_turboquant::CodeScanner;
using faiss_turboquant::fill_result;
using faiss_turboquant::for_each_query;
using faiss_turboquant::get_selector;
using faiss_turboquant::max_filtered_part;
using faiss_turboquant::page_queries;
using faiss_turboquant::PreparedCode;
using faiss_turboquant::PreparedQuery;
using faiss_turboquant::QueryBatch;
using faiss_turboquant::RangeHits;
using faiss_turboquant::RotationType;
using faiss_turboquant::SignFilter;
using faiss_turboquant::SignRecord;
using faiss_turboquant::TurboQuantizer;
using faiss_turboquant::wants_sign_filter;

namespace {

/// @param filter  that the queries will ask, or null
QueryBatch prepare_queries(
        const IndexTurboQuant& index,
        const SignFilter* filter,
        idx_t first,
        idx_t n,
        const float* x) {
    const TurboQuantizer& tq = index.tq;
    QueryBatch batch(tq);
    batch.resize(n, /*with_signs=*/filter);
    for_each_query(n, [&](idx_t i) {
        const float* query = x + (first + i) * tq.d;
        if (!filter) {
            tq.prepare_query(query, first + i, batch.row(i), batch[i]);
            return;
        }
        thread_local std::vector<int8_t> q;
        q.resize(tq.rotated_dim());
        tq.prepare_query(query, first + i, q.data(), batch[i]);
        batch.set_signs(i, q.data(), *filter, index.sign_margin);
    });
    return batch;
}

/// for n queries
CodeScanner make_scanner(
        const IndexTurboQuant& index,
        idx_t n,
        const SearchParameters* params) {
    return CodeScanner(
            index.tq,
            index.codes.data(),
            index.ntotal,
            index.get_sign_filter(n),
            get_selector(params, "IndexTurboQuant"));
}

/** Search for n queries, a page at a time, with scan(first, batch), which
 * returns how many codes were read, those of each query.
 * @param record  what searches have gained by signs */
template <class F>
void for_each_page(
        const IndexTurboQuant& index,
        const CodeScanner& scanner,
        SignRecord& record,
        idx_t n,
        const float* x,
        F scan) {
    const bool is_optional = index.use_sign_filter < 0;
    const SignFilter* filter = scanner.filter.get();
    if (filter && is_optional && !record.is_promising()) {
        filter = nullptr;
    }
    const double max_part =
            max_filtered_part(index.tq.d, n, record.n_planes(index.tq, 0));
    // many queries ask it if the first one has read few codes by it
    idx_t page = filter && n >= idx_t(batch_queries) ? 1 : page_queries;
    for (idx_t first = 0; first < n; first += page, page = page_queries) {
        page = std::min(page, n - first);
        const size_t n_read =
                scan(first, prepare_queries(index, filter, first, page, x));
        const double n_codes = double(page) * index.ntotal;
        if (filter && is_optional) {
            record.note(n_read <= n_codes / 2);
        }
        if (filter) {
            record.note_read(double(n_read) / n_codes);
        }
        if (n_read > max_part * n_codes) {
            filter = nullptr;
        }
        InterruptCallback::check();
    }
}

/// FAISS's functions end the process, or write to the mapping
void check_can_change(const IndexFlatCodes& index, const char* function) {
    FAISS_THROW_IF_NOT_FMT(
            index.codes.is_owned,
            "IndexTurboQuant: %s is refused, because the codes are a view of a "
            "mapped file or of another's memory",
            function);
}

struct TurboQuantDistanceComputer : FlatCodesDistanceComputer {
    const TurboQuantizer& tq;
    PreparedQuery query;
    bool query_is_valid = false;

    explicit TurboQuantDistanceComputer(const IndexTurboQuant& index)
            : FlatCodesDistanceComputer(index.codes.data(), index.code_size),
              tq(index.tq) {}

    /// FAISS calls this in OpenMP regions, where an exception would end the
    /// process: a query that is refused has distance NaN to everything
    void set_query(const float* x) override {
        q = x;
        try {
            tq.prepare_query(x, 0, nullptr, query);
            query_is_valid = true;
        } catch (const FaissException&) {
            query_is_valid = false;
        }
    }

    float distance_to_code(const uint8_t* code) override {
        return query_is_valid ? tq.distance_to_code(query, code) : NAN;
    }

    void distances_batch_4(
            const idx_t idx0,
            const idx_t idx1,
            const idx_t idx2,
            const idx_t idx3,
            float& dis0,
            float& dis1,
            float& dis2,
            float& dis3) override {
        float distances[4] = {NAN, NAN, NAN, NAN};
        if (query_is_valid) {
            const idx_t ids[4] = {idx0, idx1, idx2, idx3};
            tq.distances_to_4_codes(query, codes, ids, distances);
        }
        dis0 = distances[0];
        dis1 = distances[1];
        dis2 = distances[2];
        dis3 = distances[3];
    }

    /// Graphs ask for runs of pairs that share i or j; NN-descent asks from
    /// several threads at once, of one computer.
    float symmetric_dis(idx_t i, idx_t j) override {
        thread_local LastPrepared last;
        if (last.computer != serial) {
            last.computer = serial;
            last.id = last.i = -1;
        }
        if (i != last.id && j != last.id) {
            last.id = i == last.i ? i : j;
            tq.prepare_code(codes + last.id * code_size, last.prepared);
        }
        last.i = i;
        const idx_t other = i == last.id ? j : i;
        return tq.symmetric_distance(last.prepared, codes + other * code_size);
    }

   private:
    /// what a thread prepared last, and for which computer
    struct LastPrepared {
        uint64_t computer = 0;
        idx_t id = -1;
        idx_t i = -1;
        PreparedCode prepared;
    };

    static uint64_t next_serial() {
        static std::atomic<uint64_t> count{0};
        return ++count;
    }

    /// an address could be that of an earlier computer
    const uint64_t serial = next_serial();
};

} // namespace

IndexTurboQuant::IndexTurboQuant(
        idx_t d,
        int nbits,
        MetricType metric,
        RotationType rotation_type,
        uint64_t seed,
        int memory,
        CodecType codec)
        : IndexFlatCodes(0, d, metric),
          tq(d, nbits, metric, rotation_type, seed, memory, codec) {
    code_size = tq.code_size;
}

IndexTurboQuant::IndexTurboQuant() = default;

void IndexTurboQuant::train(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(
            ntotal == 0,
            "IndexTurboQuant: train sets the centre and is refused once the "
            "index holds vectors; it holds %" PRId64,
            ntotal);
    tq.train(n, x);
    code_size = tq.code_size;
}

void IndexTurboQuant::add(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "IndexTurboQuant: n = %" PRId64 " is negative", n);
    if (n == 0) {
        return;
    }
    check_can_change(*this, "add");
    const size_t before = codes.size();
    codes.resize((ntotal + n) * code_size);
    try {
        tq.compute_codes(x, codes.data() + before, n);
    } catch (...) {
        codes.resize(before);
        throw;
    }
    ntotal += n;
}

void IndexTurboQuant::add_sa_codes(
        idx_t n,
        const uint8_t* codes,
        const idx_t* xids) {
    check_can_change(*this, "add_sa_codes");
    IndexFlatCodes::add_sa_codes(n, codes, xids);
}

size_t IndexTurboQuant::remove_ids(const IDSelector& sel) {
    check_can_change(*this, "remove_ids");
    codes_changed();
    return IndexFlatCodes::remove_ids(sel);
}

void IndexTurboQuant::merge_from(Index& otherIndex, idx_t add_id) {
    check_compatible_for_merge(otherIndex);
    check_can_change(*this, "merge_from");
    // it is emptied
    check_can_change(
            static_cast<const IndexFlatCodes&>(otherIndex), "merge_from");
    IndexFlatCodes::merge_from(otherIndex, add_id);
}

void IndexTurboQuant::reset() {
    check_can_change(*this, "reset");
    codes_changed();
    IndexFlatCodes::reset();
}

void IndexTurboQuant::permute_entries(const idx_t* perm) {
    check_can_change(*this, "permute_entries");
    codes_changed();
    IndexFlatCodes::permute_entries(perm);
}

void IndexTurboQuant::codes_changed() {
    sign_filter_cache_.clear();
    sign_record_.clear();
}

std::shared_ptr<const SignFilter> IndexTurboQuant::get_sign_filter(
        idx_t n) const {
    const auto pays = [&](int n_planes) {
        return ntotal >= 4096 && codes.is_owned &&
                (2 * n_planes <= tq.nbits ||
                 SignFilter::bytes(tq, ntotal, n_planes) <=
                         max_large_filter_bytes);
    };
    if (!wants_sign_filter(
                "IndexTurboQuant", tq, use_sign_filter, sign_margin, pays(1))) {
        sign_filter_cache_.clear();
        return nullptr;
    }
    const int n_learnt = sign_record_.n_planes(tq, 0);
    if (size_t(n) >= batch_queries &&
        max_filtered_part(tq.d, n, n_learnt) == 0) {
        return nullptr;
    }
    const int n_planes = sign_record_.n_planes(tq, use_sign_filter);
    return sign_filter_cache_.get(
            tq,
            codes.data(),
            ntotal,
            use_sign_filter > 0 || pays(n_planes) ? n_planes : 1);
}

void IndexTurboQuant::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const SearchParameters* params) const {
    FAISS_THROW_IF_NOT_FMT(
            k > 0, "IndexTurboQuant: k = %" PRId64 " is not positive", k);
    const CodeScanner scanner = make_scanner(*this, n, params);
    for_each_page(
            *this,
            scanner,
            sign_record_,
            n,
            x,
            [&](idx_t first, const QueryBatch& batch) {
                return scanner.search(
                        batch, k, distances + first * k, labels + first * k);
            });
}

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
void IndexTurboQuant::search1(
        const float* x,
        ResultHandler& handler,
        SearchParameters* params) const {
    const CodeScanner scanner = make_scanner(*this, 1, params);
    scanner.search1(
            prepare_queries(*this, scanner.filter.get(), 0, 1, x), handler);
}
#endif

void IndexTurboQuant::range_search(
        idx_t n,
        const float* x,
        float radius,
        RangeSearchResult* result,
        const SearchParameters* params) const {
    const CodeScanner scanner = make_scanner(*this, n, params);
    std::vector<RangeHits> found;
    for_each_page(
            *this,
            scanner,
            sign_record_,
            n,
            x,
            [&](idx_t, const QueryBatch& batch) {
                return scanner.range_search(batch, radius, found);
            });
    fill_result(found, *result);
}

void IndexTurboQuant::sa_encode(idx_t n, const float* x, uint8_t* bytes) const {
    tq.compute_codes(x, bytes, n);
}

void IndexTurboQuant::sa_decode(idx_t n, const uint8_t* bytes, float* x) const {
    tq.decode(bytes, x, n);
}

FlatCodesDistanceComputer* IndexTurboQuant::get_FlatCodesDistanceComputer()
        const {
    return new TurboQuantDistanceComputer(*this);
}

void IndexTurboQuant::check_compatible_for_merge(
        const Index& otherIndex) const {
    const auto* other = dynamic_cast<const IndexTurboQuant*>(&otherIndex);
    FAISS_THROW_IF_NOT_FMT(
            other,
            "IndexTurboQuant: cannot merge an index of type %s",
            typeid(otherIndex).name());
    tq.check_same_codes(other->tq);
}

} // namespace faiss
