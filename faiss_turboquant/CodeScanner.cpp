#include <faiss_turboquant/CodeScanner.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>

#include <omp.h>

#include <faiss_turboquant/BlockScan.h>

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

    /// those from begin on
    const uint8_t* codes() const {
        return scanner.codes + begin * scanner.tq.layout().code_size;
    }
};

/** The results of a query in the codes of a task, which shares thresholds with
 * other tasks. */
struct TaskReservoir : Reservoir {
    /// the k-th best key that a task has found, of all the query's tasks
    std::atomic<float>* last_key;

    TaskReservoir(size_t k, std::atomic<float>* last_key)
            : Reservoir(k), last_key(last_key) {}

    /// take over what other tasks know, and tell them
    void share_threshold() {
        shrink();
        float shared = last_key->load(std::memory_order_relaxed);
        if (entries.size() == k) {
            const float own = entry_key(
                    *std::max_element(entries.begin(), entries.end()));
            while (own < shared &&
                   !last_key->compare_exchange_weak(
                           shared, own, std::memory_order_relaxed)) {
            }
        }
        // an equal key of a smaller row may be here
        threshold = std::min(threshold, next_key(shared));
    }
};

/// what FilteredScan works in, for one run of codes and query at a time
struct RunScratch {
    using Bitmap = std::vector<uint64_t>; ///< a word for a block of signs
    static_assert(sign_block == 64, "a word of a bitmap");

    Bitmap unread; ///< codes that are to be read
    Bitmap candidates;
    std::vector<uint16_t> sums; ///< (codes,), of the signs
    std::vector<uint32_t> rows;
};

/** A query on its way through the codes of a task by their signs, a run of
 * codes at a time. Codes that look best by their signs are read first, so that
 * there is a threshold; then those that may be below it. Where these are more
 * than half of a run, reading all codes is faster: for some time it does so,
 * then tries again. */
template <class Collector>
class FilteredScan {
   public:
    /// codes of a run, whose signs the queries of a task share a cache for
    static size_t run_codes(const Task& task) {
        constexpr size_t most = 16384;
        if (task.nq == 1) {
            return most;
        }
        const size_t bytes = task.scanner.tq.d / 8;
        return std::clamp<size_t>(
                second_level_cache() / 2 / std::max<size_t>(bytes, 1) /
                        sign_block * sign_block,
                trial_codes,
                most);
    }

    FilteredScan(
            const Task& task,
            size_t q,
            Collector& collector,
            BlockScan<Collector>& scan,
            RunScratch& scratch)
            : task_(task),
              filter_(*task.scanner.filter),
              q_(q),
              collector_(collector),
              scan_(scan),
              run_(scratch) {
        if constexpr (is_reservoir) {
            collector_.keeps_equal = true;
        }
    }

    /** Codes [first, end); first is a multiple of sign_block.
     * @return  how many were read */
    size_t scan_run(size_t first, size_t end) {
        const size_t trial = std::min(end, first + trial_codes);
        if (!on_trial_ || trial == end) {
            return scan_part(first, end);
        }
        const size_t n_read = scan_part(first, trial);
        return n_read + scan_part(trial, end);
    }

   private:
    /// codes after which it is seen whether signs are of use
    static constexpr size_t trial_codes = 2048;
    /// codes that are read without a look at the signs
    static constexpr size_t first_pause = 8192, longest_pause = 1 << 20;
    /// codes that are read to have a threshold, besides as many as there are
    /// results
    static constexpr size_t more_codes = 16;
    /// else thresholds do not depend on what has been found
    static constexpr bool is_reservoir =
            std::is_base_of_v<Reservoir, Collector>;

    size_t scan_part(size_t first, size_t end) {
        first_ = first;
        end_ = end;
        find_unread();
        scan_.start(task_.queries, q_, 1, &collector_);
        share_threshold();
        if (pause_ > 0) {
            pause_ -= std::min(pause_, end - first);
            return read_all();
        }
        sum_signs();
        size_t n_read = 0;
        if constexpr (is_reservoir) {
            n_read += read_best();
        }
        size_t seen = 0, left = 0;
        run_.candidates.resize(run_.unread.size());
        for (size_t i = 0; i < run_.unread.size(); i++) {
            const uint64_t unread = run_.unread[i];
            const uint64_t candidates =
                    unread ? unread & below(query().least, i) : 0;
            run_.candidates[i] = candidates;
            seen += __builtin_popcountll(unread);
            left += __builtin_popcountll(candidates);
        }
        on_trial_ = 2 * left > seen;
        if (on_trial_) {
            pause_ = next_pause_;
            next_pause_ = std::min(2 * next_pause_, longest_pause);
            return n_read + read_all();
        }
        next_pause_ = first_pause;
        return n_read + read(run_.candidates);
    }

    const SignQuery& query() const {
        return task_.queries.signs[q_];
    }

    /// those of the run that are selected
    void find_unread() {
        run_.unread.clear();
        has_gaps_ = !task_.selected.empty();
        for (size_t i = first_; i < end_; i += sign_block) {
            const uint64_t word = has_gaps_ ? task_.selected[i / 64] : ~0ull;
            const size_t n = end_ - i;
            run_.unread.push_back(n < 64 ? word & ((1ull << n) - 1) : word);
        }
    }

    void sum_signs() {
        run_.sums.resize(run_.unread.size() * sign_block);
        for (size_t i = 0; i < run_.unread.size(); i++) {
            if (run_.unread[i]) {
                filter_.sum_signs(query(), first_ / sign_block + i, sums(i));
            }
        }
    }

    /// of block i of the run
    uint16_t* sums(size_t i) {
        return run_.sums.data() + i * sign_block;
    }

    /// of block i of the run
    uint64_t below(const SignFormula& formula, size_t i, float threshold) {
        return filter_.below(
                formula, first_ / sign_block + i, sums(i), threshold);
    }
    uint64_t below(const SignFormula& formula, size_t i) {
        return below(formula, i, collector_.threshold);
    }

    /// read the codes that look best by their signs
    size_t read_best() {
        Reservoir best(collector_.k + more_codes);
        best.threshold = collector_.threshold;
        for (size_t i = 0; i < run_.unread.size(); i++) {
            if (!run_.unread[i]) {
                continue;
            }
            uint64_t bits =
                    run_.unread[i] & below(query().expected, i, best.threshold);
            float keys[sign_block];
            uint32_t rows[sign_block];
            size_t n = 0;
            for (; bits; bits &= bits - 1, n++) {
                rows[n] = i * sign_block + __builtin_ctzll(bits);
                keys[n] = filter_.key(
                        query().expected, first_ + rows[n], run_.sums[rows[n]]);
            }
            best.add(keys, rows, n);
        }
        best.shrink();
        run_.candidates.assign(run_.unread.size(), 0);
        for (uint64_t entry : best.entries) {
            const uint32_t row = entry_row(entry);
            run_.candidates[row / 64] |= 1ull << row % 64;
            run_.unread[row / 64] &= ~(1ull << row % 64);
        }
        has_gaps_ = true;
        const size_t n_read = read(run_.candidates);
        share_threshold();
        return n_read;
    }

    void share_threshold() {
        if constexpr (is_reservoir) {
            collector_.share_threshold();
        }
    }

    size_t read_all() {
        if (has_gaps_) {
            return read(run_.unread);
        }
        for (size_t i = first_; i < end_; i += block_codes) {
            scan_.scan_block(
                    task_.codes(),
                    i - task_.begin,
                    nullptr,
                    std::min(block_codes, end_ - i));
        }
        return end_ - first_;
    }

    /// codes of the run
    size_t read(const RunScratch::Bitmap& wanted) {
        run_.rows.clear();
        for (size_t i = 0; i < wanted.size(); i++) {
            const size_t row = first_ - task_.begin + i * sign_block;
            for (uint64_t bits = wanted[i]; bits; bits &= bits - 1) {
                run_.rows.push_back(row + __builtin_ctzll(bits));
            }
        }
        scan_.scan(task_.codes(), run_.rows.data(), run_.rows.size());
        return run_.rows.size();
    }

    const Task& task_;
    const SignFilter& filter_;
    size_t q_;
    Collector& collector_;
    BlockScan<Collector>& scan_;
    RunScratch& run_;
    size_t first_ = 0, end_ = 0; ///< codes of the run
    bool has_gaps_ = false;      ///< whether some of them are not to be read
    bool on_trial_ = true;
    size_t pause_ = 0; ///< codes that are left of it
    size_t next_pause_ = first_pause;
};

/** @param collectors  (nq,)
 *  @return  codes that were read, those of each query */
template <class Collector>
size_t run_task(const Task& task, Collector* collectors) {
    BlockScan<Collector> scan(task.scanner.tq);
    if (task.queries.signs.empty()) {
        scan.start(task.queries, task.q0, task.nq, collectors);
        for_each_block(
                task.selected,
                task.begin,
                task.end,
                scan.max_block(),
                [&](uint32_t first, const uint32_t* rows, size_t n) {
                    scan.scan_block(task.codes(), first, rows, n);
                });
        return task.nq * (task.end - task.begin);
    }
    using Scan = FilteredScan<Collector>;
    RunScratch scratch;
    std::vector<Scan> scans;
    scans.reserve(task.nq);
    for (size_t q = 0; q < task.nq; q++) {
        scans.emplace_back(task, task.q0 + q, collectors[q], scan, scratch);
    }
    const size_t run = Scan::run_codes(task);
    size_t n_read = 0;
    for (size_t i = task.begin; i < task.end; i += run) {
        for (Scan& of_query : scans) {
            n_read += of_query.scan_run(i, std::min(i + run, task.end));
        }
    }
    return n_read;
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
    const size_t n_read = run_tasks<TaskReservoir>(
            *this,
            selected_,
            queries,
            grid,
            [&](size_t q) { return TaskReservoir(nresults, &last_keys[q]); },
            [&](size_t q, size_t slice, size_t, TaskReservoir& reservoir) {
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

std::vector<RangeHits> CodeScanner::range_search(
        const QueryBatch& queries,
        float radius) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    const size_t nq = queries.size();
    std::vector<RangeHits> results(nq);
    // no squared distance is below 0, even if its estimate is
    if (nq == 0 || ntotal == 0 || (is_l2 && !(radius > 0))) {
        return results;
    }
    const TaskGrid grid(nq, ntotal, group_queries(tq.rotated_dim()));
    std::vector<std::vector<std::pair<uint32_t, float>>> found(
            nq * grid.nslices);
    run_tasks<RangeCollector>(
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
