#include <faiss_turboquant/CodeScanner.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include <omp.h>

#include <faiss_turboquant/BlockScan.h>
#include <faiss_turboquant/FilteredScan.h>

namespace faiss_turboquant {

namespace {

/// a slice of fewer codes is not worth a thread
constexpr size_t slice_codes = 4096;
/// bytes of reservoirs a thread may hold
constexpr size_t reservoir_bytes = size_t(64) << 20;

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

/// rows [begin, end) of the codes that are selected, a block at a time
template <class F>
void for_each_block(
        const IdFilter::Bitmap& selected,
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

/// queries and codes of a task
struct Task {
    const CodeScanner& scanner;
    const IdFilter::Bitmap& selected;
    const QueryBatch& queries;
    size_t q0, nq;     ///< queries [q0, q0 + nq)
    size_t begin, end; ///< codes; begin is a multiple of sign_block
};

/** @param collectors  (nq,); they get numbers of codes less task.begin
 *  @return  codes that were read, those of each query */
template <class Collector>
size_t run_task(const Task& task, Collector* collectors) {
    const CodeScanner& scanner = task.scanner;
    if (!task.queries.signs.empty()) {
        FilteredScan<Collector> scan(scanner.tq);
        scan.start(
                *scanner.filter,
                scanner.codes,
                task.queries,
                task.q0,
                task.nq,
                collectors);
        const bool all = task.selected.empty();
        return scan.scan(
                task.begin,
                task.end,
                all ? nullptr : task.selected.data() + task.begin / sign_block);
    }
    BlockScan<Collector> scan(scanner.tq);
    scan.start(task.queries, task.q0, task.nq, collectors);
    const uint8_t* codes =
            scanner.codes + task.begin * scanner.tq.layout().code_size;
    for_each_block(
            task.selected,
            task.begin,
            task.end,
            scan.max_block(),
            [&](uint32_t first, const uint32_t* rows, size_t n) {
                scan.scan_block(codes, first, rows, n);
            });
    return task.nq * (task.end - task.begin);
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
        // a slice begins with a block of signs
        slice_size = (ntotal + nslices - 1) / nslices;
        slice_size = (slice_size + sign_block - 1) / sign_block * sign_block;
        nslices = (ntotal + slice_size - 1) / slice_size;
        nthreads = std::min<size_t>(nthreads, ngroups * nslices);
    }

    size_t size() const {
        return ngroups * nslices;
    }
};

/** Run every task of the grid. make(query) makes the collector of a query, and
 * take(query, slice, first id, collector) takes it back.
 * @return  codes that were read, those of each query */
template <class Collector, class Make, class Take>
size_t run_tasks(
        const CodeScanner& scanner,
        const IdFilter::Bitmap& selected,
        const QueryBatch& queries,
        const TaskGrid& grid,
        Make make,
        Take take) {
    size_t n_read = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : n_read) \
        num_threads(grid.nthreads) if (grid.nthreads > 1)
    for (int64_t number = 0; number < int64_t(grid.size()); number++) {
        const size_t slice = number % grid.nslices;
        const size_t q0 = number / grid.nslices * grid.group_size;
        const size_t nq = std::min(grid.group_size, queries.size() - q0);
        const size_t begin = slice * grid.slice_size;
        const size_t end = std::min(begin + grid.slice_size, scanner.ntotal);
        std::vector<Collector> collectors;
        for (size_t q = 0; q < nq; q++) {
            collectors.push_back(make(q0 + q));
        }
        n_read += run_task(
                {scanner, selected, queries, q0, nq, begin, end},
                collectors.data());
        for (size_t q = 0; q < nq; q++) {
            take(q0 + q, slice, begin, collectors[q]);
        }
    }
    return n_read;
}

} // namespace

CodeScanner::CodeScanner(
        const TurboQuantizer& tq,
        const uint8_t* codes,
        size_t ntotal,
        std::shared_ptr<const SignFilter> filter,
        const faiss::IDSelector* sel)
        : tq(tq),
          codes(codes),
          ntotal(ntotal),
          filter(std::move(filter)),
          selected_(sel ? IdFilter(*sel).select(ntotal) : IdFilter::Bitmap()) {}

size_t CodeScanner::search(
        const QueryBatch& queries,
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
        return 0;
    }
    const size_t max_group = std::clamp<size_t>(
            reservoir_bytes / Reservoir::bytes(nresults),
            1,
            group_queries(tq.rotated_dim()));
    const TaskGrid grid(nq, ntotal, max_group);
    std::vector<std::vector<uint64_t>> found(nq * grid.nslices);
    std::vector<std::atomic<float>> last_keys(nq);
    for (auto& last_key : last_keys) {
        last_key = std::numeric_limits<float>::infinity();
    }
    const size_t n_read = run_tasks<SharedReservoir>(
            *this,
            selected_,
            queries,
            grid,
            [&](size_t q) { return SharedReservoir(nresults, &last_keys[q]); },
            [&](size_t q, size_t slice, size_t, SharedReservoir& reservoir) {
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
    return n_read;
}

size_t CodeScanner::range_search(
        const QueryBatch& queries,
        float radius,
        std::vector<RangeHits>& results) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    const size_t nq = queries.size();
    const size_t before = results.size();
    results.resize(before + nq);
    // no squared distance is below 0, even if its estimate is
    if (nq == 0 || ntotal == 0 || (is_l2 && !(radius > 0))) {
        return 0;
    }
    const TaskGrid grid(nq, ntotal, group_queries(tq.rotated_dim()));
    std::vector<std::vector<std::pair<uint32_t, float>>> found(
            nq * grid.nslices);
    const size_t n_read = run_tasks<RangeCollector>(
            *this,
            selected_,
            queries,
            grid,
            [&](size_t) {
                return RangeCollector{is_l2 ? radius : -radius, {}};
            },
            [&](size_t q, size_t slice, size_t, RangeCollector& collector) {
                found[q * grid.nslices + slice] = std::move(collector.hits);
            });
    for (size_t q = 0; q < nq; q++) {
        for (size_t slice = 0; slice < grid.nslices; slice++) {
            for (const auto& [row, key] : found[q * grid.nslices + slice]) {
                results[before + q].emplace_back(
                        slice * grid.slice_size + row,
                        distance_of_key(is_l2, key));
            }
        }
    }
    return n_read;
}

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
void CodeScanner::search1(
        const QueryBatch& query,
        faiss::ResultHandler& handler) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    // rows of a slice are 32-bit
    const size_t slice_size = size_t(1) << 31;
    for (size_t begin = 0; begin < ntotal; begin += slice_size) {
        HandlerCollector collector(handler, is_l2, begin);
        run_task(
                {*this,
                 selected_,
                 query,
                 0,
                 1,
                 begin,
                 std::min(begin + slice_size, ntotal)},
                &collector);
    }
}
#endif

} // namespace faiss_turboquant
