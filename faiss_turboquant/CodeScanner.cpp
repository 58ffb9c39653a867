#include <faiss_turboquant/CodeScanner.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <omp.h>
#include <unistd.h>

#include <faiss/utils/AlignedTable.h>

namespace faiss_turboquant {

namespace {

/// codes between two looks at the thresholds
constexpr size_t block_codes = 256;
/// the same while there is no threshold
constexpr size_t first_codes = 64;
/// the most queries that share the decoding of a panel, which costs about as
/// much as two to eight of them
constexpr size_t max_group_queries = 768;
/// fewer queries than this are faster one by one, without panels
constexpr size_t batch_queries = 4;
/// a slice of fewer codes is not worth a thread
constexpr size_t slice_codes = 4096;
/// bytes of reservoirs a thread may hold
constexpr size_t reservoir_bytes = size_t(64) << 20;

size_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) {
        return bytes;
    }
#endif
    return size_t(512) << 10;
}

/** Queries of a group, and codes of a batch, that fit in the second-level cache
 * together, d bytes each. Every tile of queries meets every panel of the
 * batch. */
size_t group_queries(size_t d) {
    return std::clamp<size_t>(
            second_level_cache() / 10 * 3 / d / 32 * 32, 32, max_group_queries);
}
size_t batch_codes(size_t d) {
    return std::clamp<size_t>(
            second_level_cache() / 4 / d / 64 * 64, 64, block_codes);
}

/** A key and a row as one integer, ordered by key, then by row. */
uint64_t pack_entry(float key, uint32_t row) {
    key += 0.0f; // -0 becomes 0
    uint32_t bits;
    std::memcpy(&bits, &key, sizeof(bits));
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;
    return uint64_t(bits) << 32 | row;
}

float entry_key(uint64_t entry) {
    uint32_t bits = entry >> 32;
    bits ^= bits >> 31 ? 0x80000000 : 0xffffffff;
    float key;
    std::memcpy(&key, &bits, sizeof(key));
    return key;
}

uint32_t entry_row(uint64_t entry) {
    return static_cast<uint32_t>(entry);
}

/// what a caller sees of a key. An L2 estimate can fall below zero, a squared
/// distance cannot. No -0.
float distance_of_key(bool is_l2, float key) {
    return 0.0f + (is_l2 ? std::max(key, 0.0f) : -key);
}

/** The k smallest of the entries it is given, rows ascending. Entries are
 * collected and thinned out in bulk, not kept in order. */
struct Reservoir {
    size_t k;
    size_t limit; ///< entries before they are thinned out
    std::vector<uint64_t> entries;
    float threshold = std::numeric_limits<float>::infinity();

    explicit Reservoir(size_t k) : k(k), limit(std::max(2 * k, k + 64)) {}

    /// bytes that it grows to
    static size_t bytes(size_t k) {
        return (Reservoir(k).limit + block_codes) * sizeof(uint64_t);
    }

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            entries.push_back(pack_entry(keys[i], rows[i]));
        }
        // the first threshold as soon as there is one: without it all is kept
        const bool has_threshold = std::isfinite(threshold);
        if (entries.size() >= (has_threshold ? limit : k + 1)) {
            shrink();
        }
    }

    void shrink() {
        if (entries.size() <= k) {
            return;
        }
        const auto kth = entries.begin() + (k - 1);
        std::nth_element(entries.begin(), kth, entries.end());
        threshold = entry_key(*kth);
        entries.resize(k);
    }

    std::vector<uint64_t> take_sorted() {
        shrink();
        std::sort(entries.begin(), entries.end());
        return std::move(entries);
    }
};

/// all entries under a fixed threshold
struct RangeCollector {
    float threshold;
    std::vector<std::pair<uint32_t, float>> hits;

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            hits.emplace_back(rows[i], keys[i]);
        }
    }
};

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
/// passes entries on to FAISS's handler
struct HandlerCollector {
    faiss::ResultHandler& handler;
    bool is_l2;
    faiss::idx_t first_id;
    float threshold;

    HandlerCollector(
            faiss::ResultHandler& handler,
            bool is_l2,
            faiss::idx_t first_id)
            : handler(handler), is_l2(is_l2), first_id(first_id) {
        follow_handler();
    }

    void follow_handler() {
        threshold = is_l2 ? handler.threshold : -handler.threshold;
    }

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            if (keys[i] < threshold) {
                handler.add_result(
                        distance_of_key(is_l2, keys[i]), first_id + rows[i]);
                follow_handler();
            }
        }
    }
};
#endif

/** Scans one slice of codes for one group of queries. */
template <class Collector>
struct SliceScan {
    const Kernels& k;
    const TurboQuantizer& tq;
    const CodeLayout& layout;
    const PreparedQuery* queries;
    size_t nq;
    std::vector<Collector>& collectors;
    float sign;

    std::vector<float> scales, offsets, keys;
    std::vector<int32_t> dots;
    std::vector<uint32_t> kept;

    // of batches only
    size_t tile_size = 0;
    size_t panel_stride = 0;
    faiss::AlignedTable<int8_t, 64> tiles; ///< tile_queries queries each
    faiss::AlignedTable<uint8_t, 64> scratch, panels;

    SliceScan(
            const TurboQuantizer& tq,
            const PreparedQuery* queries,
            size_t nq,
            std::vector<Collector>& collectors)
            : k(kernels()),
              tq(tq),
              layout(tq.layout()),
              queries(queries),
              nq(nq),
              collectors(collectors),
              sign(tq.metric_type == faiss::METRIC_L2 ? 1.0f : -1.0f),
              scales(block_codes),
              offsets(layout.has_offset ? block_codes : 0),
              keys(block_codes + select_slack),
              dots(block_codes),
              kept(block_codes + select_slack) {
        if (is_batch()) {
            prepare_batch();
        }
    }

    bool is_batch() const {
        return nq >= batch_queries;
    }

    size_t max_block() const {
        return is_batch() ? batch_codes(layout.padded_dim()) : block_codes;
    }

    void prepare_batch() {
        tile_size = layout.tile_size(k);
        tiles.resize((nq + k.tile_queries - 1) / k.tile_queries * tile_size);
        std::vector<const int8_t*> of_tile;
        for (size_t q0 = 0; q0 < nq; q0 += k.tile_queries) {
            of_tile.clear();
            for (size_t q = q0; q < std::min(q0 + k.tile_queries, nq); q++) {
                of_tile.push_back(queries[q].q.data());
            }
            k.arrange_tile(
                    of_tile.data(),
                    of_tile.size(),
                    layout.panel_quads(k),
                    tiles.data() + q0 / k.tile_queries * tile_size);
        }
        panel_stride = panel_rows * layout.padded_dim();
        scratch.resize(panel_stride);
        panels.resize(max_block() * layout.padded_dim());
        dots.resize(k.tile_queries * block_codes);
    }

    /** @param codes  the slice
     *  @param first  row of the slice that the block starts at
     *  @param rows   rows of the block's codes, or null for n from first on */
    void scan_block(
            const uint8_t* codes,
            uint32_t first,
            const uint32_t* rows,
            size_t n) {
        if (!rows) {
            codes += first * layout.code_size;
        }
        if (is_batch()) {
            decode_panels(codes, rows, n);
            load_factors(codes, rows, n);
            const int8_t* tile = tiles.data();
            for (size_t q0 = 0; q0 < nq; q0 += k.tile_queries) {
                k.dot_panels(
                        panels.data(),
                        panel_stride,
                        (n + panel_rows - 1) / panel_rows,
                        tile,
                        layout.panel_quads(k),
                        dots.data(),
                        block_codes);
                tile += tile_size;
                for (size_t q = q0; q < std::min(q0 + k.tile_queries, nq);
                     q++) {
                    select(q, &dots[(q - q0) * block_codes], first, rows, n);
                }
            }
            return;
        }
        for (size_t q = 0; q < nq; q++) {
            k.dot_codes(
                    layout,
                    codes,
                    rows,
                    n,
                    queries[q].arranged.data(),
                    queries[q].factors.sum,
                    dots.data());
            if (q == 0) {
                // behind the dot products, which have prefetched the codes
                load_factors(codes, rows, n);
            }
            select(q, dots.data(), first, rows, n);
        }
    }

    void load_factors(const uint8_t* codes, const uint32_t* rows, size_t n) {
        tq.load_factors(
                codes,
                rows,
                n,
                scales.data(),
                layout.has_offset ? offsets.data() : nullptr);
    }

    /// what of a block is better than the query's threshold to its collector
    void select(
            size_t q,
            const int32_t* query_dots,
            uint32_t first,
            const uint32_t* rows,
            size_t n) {
        Collector& collector = collectors[q];
        for (size_t begin = 0; begin < n;) {
            // without a threshold, a few first, to have one for the rest
            const size_t end = std::isfinite(collector.threshold)
                    ? n
                    : std::min(n, begin + first_codes);
            const size_t nkept = k.select(
                    queries[q].factors,
                    query_dots + begin,
                    scales.data() + begin,
                    layout.has_offset ? offsets.data() + begin : nullptr,
                    end - begin,
                    sign,
                    collector.threshold,
                    keys.data(),
                    kept.data());
            for (size_t i = 0; i < nkept; i++) {
                const uint32_t row = begin + kept[i];
                kept[i] = rows ? rows[row] : first + row;
            }
            collector.add(keys.data(), kept.data(), nkept);
            begin = end;
        }
    }

    void decode_panels(const uint8_t* codes, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i += panel_rows) {
            k.decode_panel(
                    layout,
                    rows ? codes : codes + i * layout.code_size,
                    rows ? rows + i : nullptr,
                    std::min(panel_rows, n - i),
                    scratch.data(),
                    panels.data() + i / panel_rows * panel_stride);
        }
    }
};

/// rows [begin, end) of the codes that are selected, a block at a time
template <class F>
void for_each_block(
        const std::vector<uint64_t>& selected,
        size_t begin,
        size_t end,
        size_t max_block,
        F scan_block) {
    if (selected.empty()) {
        for (size_t i = begin; i < end; i += max_block) {
            scan_block(i - begin, nullptr, std::min(max_block, end - i));
        }
        return;
    }
    std::vector<uint32_t> rows;
    rows.reserve(max_block);
    for (size_t word = begin / 64; word * 64 < end; word++) {
        for (uint64_t bits = selected[word]; bits; bits &= bits - 1) {
            const size_t id = word * 64 + __builtin_ctzll(bits);
            if (id < begin || id >= end) {
                continue;
            }
            rows.push_back(id - begin);
            if (rows.size() == max_block) {
                scan_block(0, rows.data(), rows.size());
                rows.clear();
            }
        }
    }
    if (!rows.empty()) {
        scan_block(0, rows.data(), rows.size());
    }
}

/// the selected codes of [begin, end) for nq queries and their collectors
template <class Collector>
void scan_slice(
        const CodeScanner& scanner,
        const std::vector<uint64_t>& selected,
        const PreparedQuery* queries,
        size_t nq,
        size_t begin,
        size_t end,
        std::vector<Collector>& collectors) {
    SliceScan<Collector> scan(scanner.tq, queries, nq, collectors);
    const uint8_t* codes =
            scanner.codes + begin * scanner.tq.layout().code_size;
    for_each_block(
            selected,
            begin,
            end,
            scan.max_block(),
            [&](uint32_t first, const uint32_t* rows, size_t n) {
                scan.scan_block(codes, first, rows, n);
            });
}

/// how (queries, codes) are cut into tasks
struct TaskGrid {
    size_t group_size = 0; ///< queries of a task
    size_t ngroups = 0;
    size_t slice_size = 0; ///< codes of a task
    size_t nslices = 0;
    int nthreads = 1;

    TaskGrid(size_t nq, size_t ntotal, size_t max_group) {
        ngroups = (nq + max_group - 1) / max_group;
        group_size = (nq + ngroups - 1) / ngroups;
        ngroups = (nq + group_size - 1) / group_size;
        nthreads = omp_get_max_threads();
        // several tasks a thread, so that none waits long for the last one
        size_t wanted = nthreads == 1 ? 1 : 8 * nthreads;
        wanted = (wanted + ngroups - 1) / ngroups;
        nslices = std::clamp<size_t>(ntotal / slice_codes, 1, wanted);
        // rows of a slice are 32-bit
        nslices = std::max(nslices, (ntotal >> 32) + 1);
        slice_size = (ntotal + nslices - 1) / nslices;
        nthreads = std::min<size_t>(nthreads, ngroups * nslices);
    }

    size_t size() const {
        return ngroups * nslices;
    }
};

/** Run every task of the grid. make() makes the collector of a query, and
 * take(query, slice, first id, collector) takes it back. */
template <class Collector, class Make, class Take>
void run_tasks(
        const CodeScanner& scanner,
        const std::vector<uint64_t>& selected,
        const std::vector<PreparedQuery>& queries,
        const TaskGrid& grid,
        Make make,
        Take take) {
#pragma omp parallel for schedule(dynamic, 1) \
        num_threads(grid.nthreads) if (grid.nthreads > 1)
    for (int64_t task = 0; task < int64_t(grid.size()); task++) {
        const size_t slice = task % grid.nslices;
        const size_t q0 = task / grid.nslices * grid.group_size;
        const size_t nq = std::min(grid.group_size, queries.size() - q0);
        const size_t begin = slice * grid.slice_size;
        const size_t end = std::min(begin + grid.slice_size, scanner.ntotal);
        std::vector<Collector> collectors;
        for (size_t q = 0; q < nq; q++) {
            collectors.push_back(make());
        }
        scan_slice(
                scanner,
                selected,
                queries.data() + q0,
                nq,
                begin,
                end,
                collectors);
        for (size_t q = 0; q < nq; q++) {
            take(q0 + q, slice, begin, collectors[q]);
        }
    }
}

} // namespace

CodeScanner::CodeScanner(
        const TurboQuantizer& tq,
        const uint8_t* codes,
        size_t ntotal,
        const faiss::IDSelector* sel)
        : tq(tq), codes(codes), ntotal(ntotal), sel(sel) {
    if (!sel) {
        return;
    }
    selected_.resize((ntotal + 63) / 64 + 1);
#pragma omp parallel for if (ntotal > 100000)
    for (int64_t word = 0; word < int64_t((ntotal + 63) / 64); word++) {
        uint64_t bits = 0;
        for (size_t i = word * 64; i < std::min<size_t>(ntotal, word * 64 + 64);
             i++) {
            bits |= uint64_t(sel->is_member(i)) << (i % 64);
        }
        selected_[word] = bits;
    }
}

void CodeScanner::search(
        const std::vector<PreparedQuery>& queries,
        size_t k,
        float* distances,
        faiss::idx_t* labels) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    const size_t nq = queries.size();
    const size_t nresults = std::min(k, ntotal);
    std::fill_n(labels, nq * k, -1);
    std::fill_n(
            distances,
            nq * k,
            (is_l2 ? 1 : -1) * std::numeric_limits<float>::max());
    if (nresults == 0 || nq == 0) {
        return;
    }
    const size_t max_group = std::clamp<size_t>(
            reservoir_bytes / Reservoir::bytes(nresults),
            1,
            group_queries(tq.layout().padded_dim()));
    const TaskGrid grid(nq, ntotal, max_group);
    std::vector<std::vector<uint64_t>> found(nq * grid.nslices);
    run_tasks<Reservoir>(
            *this,
            selected_,
            queries,
            grid,
            [&] { return Reservoir(nresults); },
            [&](size_t q, size_t slice, size_t, Reservoir& reservoir) {
                found[q * grid.nslices + slice] = reservoir.take_sorted();
            });

#pragma omp parallel for num_threads( \
        grid.nthreads) if (nq * nresults * grid.nslices > 10000)
    for (int64_t q = 0; q < int64_t(nq); q++) {
        std::vector<std::pair<float, faiss::idx_t>> merged;
        for (size_t slice = 0; slice < grid.nslices; slice++) {
            for (uint64_t entry : found[q * grid.nslices + slice]) {
                merged.emplace_back(
                        entry_key(entry),
                        slice * grid.slice_size + entry_row(entry));
            }
        }
        const size_t n = std::min(nresults, merged.size());
        if (grid.nslices > 1) {
            std::partial_sort(merged.begin(), merged.begin() + n, merged.end());
        }
        for (size_t i = 0; i < n; i++) {
            distances[q * k + i] = distance_of_key(is_l2, merged[i].first);
            labels[q * k + i] = merged[i].second;
        }
    }
}

std::vector<std::vector<std::pair<faiss::idx_t, float>>> CodeScanner::
        range_search(const std::vector<PreparedQuery>& queries, float radius)
                const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    const size_t nq = queries.size();
    std::vector<std::vector<std::pair<faiss::idx_t, float>>> results(nq);
    // no squared distance is below 0, even if its estimate is
    if (nq == 0 || ntotal == 0 || (is_l2 && !(radius > 0))) {
        return results;
    }
    const TaskGrid grid(nq, ntotal, group_queries(tq.layout().padded_dim()));
    std::vector<std::vector<std::pair<uint32_t, float>>> found(
            nq * grid.nslices);
    run_tasks<RangeCollector>(
            *this,
            selected_,
            queries,
            grid,
            [&] {
                return RangeCollector{is_l2 ? radius : -radius, {}};
            },
            [&](size_t q, size_t slice, size_t, RangeCollector& collector) {
                found[q * grid.nslices + slice] = std::move(collector.hits);
            });
    for (size_t q = 0; q < nq; q++) {
        for (size_t slice = 0; slice < grid.nslices; slice++) {
            for (const auto& [row, key] : found[q * grid.nslices + slice]) {
                results[q].emplace_back(
                        slice * grid.slice_size + row,
                        distance_of_key(is_l2, key));
            }
        }
    }
    return results;
}

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
void CodeScanner::search1(
        const PreparedQuery& query,
        faiss::ResultHandler& handler) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    // rows of a slice are 32-bit
    const size_t slice_size = size_t(1) << 31;
    for (size_t begin = 0; begin < ntotal; begin += slice_size) {
        std::vector<HandlerCollector> collectors = {
                HandlerCollector(handler, is_l2, begin)};
        scan_slice(
                *this,
                selected_,
                &query,
                1,
                begin,
                std::min(begin + slice_size, ntotal),
                collectors);
    }
}
#endif

} // namespace faiss_turboquant
