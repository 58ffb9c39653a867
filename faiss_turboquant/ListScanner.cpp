#include <faiss_turboquant/ListScanner.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>

#include <omp.h>

#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/DirectMap.h>
#include <hwy/cache_control.h>

#include <faiss_turboquant/Backoff.h>
#include <faiss_turboquant/BlockScan.h>
#include <faiss_turboquant/FilteredScan.h>
#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/QueryBatch.h>

namespace faiss_turboquant {

namespace {

using faiss::idx_t;

/// codes of a task, 2^slice_bits: a long list is shared by several threads
constexpr int slice_bits = 15;
constexpr size_t slice_codes = size_t(1) << slice_bits;
/// bytes of reservoirs a thread may hold
constexpr size_t reservoir_bytes = size_t(64) << 20;

/// some of the queries that probe a list, and a part of its codes
struct Task {
    size_t list_no;
    size_t begin, end; ///< codes
    size_t first, n;   ///< positions in Probes::queries
};

/// the queries of each list
struct Probes {
    std::vector<uint32_t> queries;
    std::vector<Task> tasks;
};

Probes group_by_list(
        const faiss::InvertedLists& lists,
        size_t nq,
        const idx_t* keys,
        size_t nprobe,
        size_t max_group) {
    check_keys(keys, nq * nprobe, lists.nlist, "IndexIVFTurboQuant");
    std::vector<size_t> first(lists.nlist + 1);
    for (size_t i = 0; i < nq * nprobe; i++) {
        if (keys[i] >= 0) {
            first[keys[i] + 1]++;
        }
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    Probes probes;
    probes.queries.resize(first.back());
    std::vector<size_t> at(first.begin(), first.end() - 1);
    // nearest lists first: one query then has a good threshold early
    std::vector<size_t> order;
    for (size_t p = 0; p < nprobe; p++) {
        for (size_t q = 0; q < nq; q++) {
            const idx_t key = keys[q * nprobe + p];
            if (key < 0) {
                continue;
            }
            if (at[key] == first[key]) {
                order.push_back(key);
            }
            probes.queries[at[key]++] = q;
        }
    }
    for (size_t list_no : order) {
        const size_t size = lists.list_size(list_no);
        const size_t n = first[list_no + 1] - first[list_no];
        const size_t ngroups = (n + max_group - 1) / max_group;
        for (size_t begin = 0; begin < size; begin += slice_codes) {
            for (size_t g = 0; g < ngroups; g++) {
                const size_t g0 = n * g / ngroups;
                const size_t g1 = n * (g + 1) / ngroups;
                probes.tasks.push_back(
                        {list_no,
                         begin,
                         std::min(begin + slice_codes, size),
                         first[list_no] + g0,
                         g1 - g0});
            }
        }
    }
    return probes;
}

/// have n elements read while there is other work
template <class T>
void prefetch(const T* from, size_t n) {
    for (size_t i = 0; i < n; i += 64 / sizeof(T)) {
        hwy::Prefetch(from + i);
    }
}

/// for each of a few results of many queries, a lock that few share
class QueryLocks {
   public:
    std::mutex& operator[](size_t q) {
        return locks_[q % locks_.size()];
    }

   private:
    std::array<std::mutex, 256> locks_;
};

/** The k best of each query from all its lists, by key, then by label.
 *
 * By the time that a query meets its next list, all that belongs to it has left
 * the nearer caches. So it is little: entries, with the number of a visit, that
 * is a task of the query's, in front of the row. Labels are looked up last. */
class BestResults {
   public:
    BestResults(
            const ListScanner& scanner,
            const Probes& probes,
            size_t nq,
            size_t k)
            : scanner_(scanner),
              probes_(probes),
              k_(k),
              limit_(k + k / 4 + 16),
              best_(nq) {
        std::vector<size_t> n_codes(nq), n_visits(nq);
        for (const Task& task : probes.tasks) {
            for (size_t i = 0; i < task.n; i++) {
                const uint32_t q = probes.queries[task.first + i];
                n_codes[q] += task.end - task.begin;
                n_visits[q]++;
            }
        }
        const size_t most = limit_ + k_of_task(k);
        size_t room = 0, visits = 0;
        for (size_t q = 0; q < nq; q++) {
            best_[q].first = room;
            best_[q].first_visit = visits;
            room += std::min(n_codes[q], most);
            visits += n_visits[q];
        }
        // in one piece, of which only what is used is written
        entries_.reset(new uint64_t[room]);
        visits_.reset(new uint32_t[visits]);
    }

    /// of a task, which has no more codes
    static size_t k_of_task(size_t k) {
        return std::min(k, slice_codes);
    }

    /// what is not below this cannot be among the k best
    float threshold(size_t q) const {
        return best_[q].threshold.load(std::memory_order_relaxed);
    }

    /// @param task   position in Probes::tasks
    /// @param found  entries of a key and a row of the task, k_of_task at most
    void add(size_t q, size_t task, const std::vector<uint64_t>& found) {
        Best& best = best_[q];
        if (best.n_visits == max_visits) {
            forget_visits(best);
        }
        uint64_t* end = entries_of(best) + best.size;
        const uint64_t visit = uint64_t(best.n_visits) << slice_bits;
        visits_of(best)[best.n_visits++] = static_cast<uint32_t>(task);
        for (size_t i = 0; i < found.size(); i++) {
            end[i] = found[i] | visit;
        }
        best.size += found.size();
        // the first threshold as soon as there is one: without it all is kept
        const bool has_threshold = std::isfinite(threshold(q));
        if (best.size >= (has_threshold ? limit_ : k_)) {
            shrink(best);
        }
    }

    /// what add() is going to read of a query, or the first of it
    void prefetch(size_t q) const {
        faiss_turboquant::prefetch(
                entries_of(best_[q]), std::min<size_t>(limit_, 256));
    }

    /// write(key, label) for up to k results, best first
    template <class Write>
    void write_sorted(size_t q, Write write) {
        Best& best = best_[q];
        sort(best);
        const uint64_t* entries = entries_of(best);
        for (size_t i = 0; i < std::min(k_, best.size); i++) {
            write(entry_key(entries[i]), label(best, entries[i]));
        }
    }

   private:
    /// visits that entries can number
    static constexpr size_t max_visits = size_t(1) << (32 - slice_bits);

    /// of a query
    struct Best {
        size_t first;       ///< entry
        size_t first_visit; ///< of which each is a position in Probes::tasks
        size_t size = 0;    ///< entries
        size_t n_visits = 0;
        std::atomic<float> threshold{std::numeric_limits<float>::infinity()};
    };

    uint64_t* entries_of(const Best& best) const {
        return entries_.get() + best.first;
    }
    uint32_t* visits_of(const Best& best) {
        return visits_.get() + best.first_visit;
    }

    static uint32_t visit_of(uint64_t entry) {
        return entry_row(entry) >> slice_bits;
    }

    idx_t label(const Best& best, uint64_t entry) {
        const Task& task = probes_.tasks[visits_of(best)[visit_of(entry)]];
        const size_t at = task.begin + entry_row(entry) % slice_codes;
        return scanner_.store_pairs
                ? idx_t(faiss::lo_build(task.list_no, at))
                : scanner_.lists.get_single_id(task.list_no, at);
    }

    void shrink(Best& best) {
        uint64_t* entries = entries_of(best);
        select_entries(entries, best.size, k_);
        const uint64_t kth = entries[k_ - 1] >> 32;
        bool has_ties = false;
        for (size_t i = k_; i < best.size; i++) {
            has_ties |= entries[i] >> 32 == kth;
        }
        if (has_ties) {
            sort(best);
        }
        best.size = k_;
        // one that equals the k-th best may still win by its label
        best.threshold.store(
                next_key(entry_key(entries[k_ - 1])),
                std::memory_order_relaxed);
    }

    /// all but those of the entries
    void forget_visits(Best& best) {
        uint64_t* entries = entries_of(best);
        std::vector<uint32_t> kept(best.size);
        std::transform(entries, entries + best.size, kept.begin(), visit_of);
        std::sort(kept.begin(), kept.end());
        kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
        FAISS_THROW_IF_NOT_FMT(
                kept.size() < max_visits,
                "IndexIVFTurboQuant: k = %zd results are of more than %zd "
                "lists",
                k_,
                max_visits);
        for (size_t i = 0; i < best.size; i++) {
            const auto at = std::lower_bound(
                    kept.begin(), kept.end(), visit_of(entries[i]));
            const uint64_t visit = at - kept.begin();
            entries[i] = entries[i] >> 32 << 32 | visit << slice_bits |
                    entry_row(entries[i]) % slice_codes;
        }
        uint32_t* visits = visits_of(best);
        for (size_t i = 0; i < kept.size(); i++) {
            visits[i] = visits[kept[i]];
        }
        best.n_visits = kept.size();
    }

    /// by key, then by label
    void sort(Best& best) {
        uint64_t* entries = entries_of(best);
        sort_entries(entries, best.size);
        bool has_ties = false;
        for (size_t i = 1; i < best.size; i++) {
            has_ties |= entries[i - 1] >> 32 == entries[i] >> 32;
        }
        if (!has_ties) {
            return;
        }
        for (auto begin = entries, end = begin + best.size; begin != end;) {
            const auto next = std::find_if(begin, end, [&](uint64_t entry) {
                return entry >> 32 != *begin >> 32;
            });
            if (next - begin > 1) {
                std::sort(begin, next, [&](uint64_t a, uint64_t b) {
                    return label(best, a) < label(best, b);
                });
            }
            begin = next;
        }
    }

    const ListScanner& scanner_;
    const Probes& probes_;
    size_t k_;
    size_t limit_; ///< entries before they are thinned out
    std::vector<Best> best_;
    std::unique_ptr<uint64_t[]> entries_;
    std::unique_ptr<uint32_t[]> visits_;
};

/** Which queries ask the signs of a list. Where that is optional, one for which
 * most codes of a list had to be read all the same does without in some lists
 * that follow, and so do searches after one in which it was like this. */
class SignsOfLists {
   public:
    SignsOfLists(const ListScanner& scanner, size_t nq) : scanner_(scanner) {
        ListSignFilters* filters = scanner.signs.filters;
        is_used_ =
                filters && (!is_optional() || filters->record.is_promising());
        if (is_used_) {
            most_queries_ = max_filtered_list_queries(
                    scanner.tq.d, filters->record.reads_few());
        }
        if (is_used_ && is_optional()) {
            pauses_.resize(nq, {1, longest_pause});
        }
    }

    ~SignsOfLists() {
        if (n_asked_ == 0) {
            return;
        }
        SignRecord& record = scanner_.signs.filters->record;
        if (is_optional()) {
            record.note(2 * n_gains_ >= n_asked_);
        }
        record.note_read(double(n_read_) / double(n_codes_));
    }

    /** Null: codes are read without.
     * @param queries  of the task
     * @param codes    of its list */
    std::shared_ptr<const SignFilter> get(
            const Task& task,
            const uint32_t* queries,
            const uint8_t* codes) {
        const size_t n = scanner_.lists.list_size(task.list_no);
        if (!is_used_ || task.n > most_queries_ ||
            (is_optional() && n < least_filtered_list())) {
            return nullptr;
        }
        size_t n_waiting = 0;
        for (size_t i = 0; i < task.n && is_optional(); i++) {
            const std::lock_guard<std::mutex> lock(locks_[queries[i]]);
            n_waiting += !pauses_[queries[i]].is_due();
        }
        return 2 * n_waiting > task.n ? nullptr
                                      : scanner_.signs.filters->get(
                                                scanner_.tq,
                                                task.list_no,
                                                codes,
                                                n,
                                                scanner_.signs.n_planes);
    }

    /// after n_read of n_codes of a task have been read by their signs, those
    /// of each query
    void note(
            const Task& task,
            const uint32_t* queries,
            size_t n_read,
            size_t n_codes) {
        const bool gains = 4 * n_read <= n_codes;
        n_asked_++;
        n_gains_ += gains;
        n_read_ += n_read;
        n_codes_ += n_codes;
        for (size_t i = 0; i < task.n && is_optional(); i++) {
            const std::lock_guard<std::mutex> lock(locks_[queries[i]]);
            pauses_[queries[i]].note(gains);
        }
    }

   private:
    bool is_optional() const {
        return scanner_.signs.is_optional;
    }

    static constexpr size_t longest_pause = 64; ///< in lists

    const ListScanner& scanner_;
    bool is_used_ = false;
    size_t most_queries_ = 0;     ///< of a task
    std::vector<Backoff> pauses_; ///< (nq,), where it is optional
    QueryLocks locks_;
    std::atomic<size_t> n_asked_{0}, n_gains_{0};
    std::atomic<size_t> n_read_{0}, n_codes_{0}; ///< of those that asked
};

/** Run all tasks.
 * @param start   start(query, collector): make a collector ready
 * @param finish  finish(task, i, collector, label_of_row): take the results of
 *                query i of the task; called by several threads at a time */
template <class Collector, class Make, class Start, class Finish>
ListScanner::Stats run_tasks(
        const ListScanner& scanner,
        const Probes& probes,
        size_t nq,
        const float* rotated,
        Make make,
        Start start,
        Finish finish) {
    const TurboQuantizer& tq = scanner.tq;
    const size_t padded = tq.rotated_dim();
    const auto filter =
            scanner.sel ? std::make_unique<IdFilter>(*scanner.sel) : nullptr;
    const int nthreads = std::clamp<size_t>(
            probes.tasks.size(), 1, size_t(omp_get_max_threads()));
    size_t nlist = 0, ndis = 0, nkept = 0;
    SignsOfLists signs_of_lists(scanner, nq);
    std::exception_ptr error;

#pragma omp parallel num_threads(nthreads) if (nthreads > 1) \
        reduction(+ : nlist, ndis, nkept)
    {
        BlockScan<Collector> scan(tq);
        std::optional<FilteredScan<Collector>> filtered_scan;
        QueryBatch batch(tq);
        std::vector<Collector> collectors;
        IdFilter::Bitmap selected;
        std::vector<uint32_t> rows;
        std::vector<int8_t> q(padded);
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < int64_t(probes.tasks.size()); t++) {
            try {
                const Task& task = probes.tasks[t];
                const uint32_t* queries = &probes.queries[task.first];
                faiss::InvertedLists::ScopedIds ids(
                        &scanner.lists, task.list_no);
                size_t n = task.end - task.begin;
                if (filter) {
                    selected = filter->select(ids.get() + task.begin, n);
                    n = count_bits(selected);
                }
                nlist += task.begin == 0 ? task.n : 0;
                ndis += task.n * n;
                if (n == 0) {
                    continue;
                }
                while (collectors.size() < task.n) {
                    collectors.push_back(make());
                }
                faiss::InvertedLists::ScopedCodes codes(
                        &scanner.lists, task.list_no);
                const auto signs =
                        signs_of_lists.get(task, queries, codes.get());
                batch.resize(task.n, /*with_signs=*/bool(signs));
                for (size_t i = 0; i < task.n; i++) {
                    if (i + 1 < task.n) {
                        prefetch(rotated + queries[i + 1] * padded, padded);
                    }
                    tq.prepare_residual_query(
                            rotated + queries[i] * padded,
                            scanner.rotated_centres + task.list_no * padded,
                            signs ? q.data() : batch.row(i),
                            batch[i]);
                    if (signs) {
                        batch.set_signs(
                                i, q.data(), *signs, scanner.signs.margin);
                    }
                    start(queries[i], collectors[i]);
                }
                if (signs) {
                    if (!filtered_scan) {
                        filtered_scan.emplace(tq);
                    }
                    filtered_scan->start(
                            *signs,
                            codes.get(),
                            batch,
                            0,
                            task.n,
                            collectors.data());
                    const size_t n_read = filtered_scan->scan(
                            task.begin,
                            task.end,
                            filter ? selected.data() : nullptr);
                    signs_of_lists.note(task, queries, n_read, task.n * n);
                } else {
                    if (filter) {
                        rows.clear();
                        for_each_bit(
                                selected, [&](size_t i) { rows.push_back(i); });
                    }
                    scan.start(batch, 0, task.n, collectors.data());
                    scan.scan(
                            codes.get() + task.begin * tq.code_size,
                            filter ? rows.data() : nullptr,
                            n);
                }
                for (size_t i = 0; i < task.n; i++) {
                    nkept += finish(t, i, collectors[i], [&](uint32_t row) {
                        const size_t at = task.begin + row;
                        return scanner.store_pairs
                                ? idx_t(faiss::lo_build(task.list_no, at))
                                : ids[at];
                    });
                }
            } catch (...) {
#pragma omp critical(faiss_turboquant_lists)
                error = std::current_exception();
            }
        }
    }
    if (error) {
        std::rethrow_exception(error);
    }
    return {nlist, ndis, nkept};
}

} // namespace

ListScanner::Stats ListScanner::search(
        size_t nq,
        const float* rotated,
        const idx_t* keys,
        size_t nprobe,
        size_t k,
        float* distances,
        idx_t* labels) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    const size_t k_of_task = BestResults::k_of_task(k);
    const size_t max_group = std::clamp<size_t>(
            reservoir_bytes / Reservoir::bytes(k_of_task),
            1,
            group_queries(tq.rotated_dim()));
    const Probes probes = group_by_list(lists, nq, keys, nprobe, max_group);
    BestResults best(*this, probes, nq, k);
    QueryLocks locks;
    const Stats stats = run_tasks<ListReservoir>(
            *this,
            probes,
            nq,
            rotated,
            [&] { return ListReservoir(k_of_task); },
            [&](size_t q, ListReservoir& reservoir) {
                reservoir.restart(best.threshold(q));
            },
            [&](size_t t, size_t i, ListReservoir& reservoir, auto) {
                const Task& task = probes.tasks[t];
                const uint32_t* queries = &probes.queries[task.first];
                if (i + 1 < task.n) {
                    best.prefetch(queries[i + 1]);
                }
                // else it would depend on the threshold that the list started
                // from which of equal entries it gives
                reservoir.shrink();
                const std::lock_guard<std::mutex> lock(locks[queries[i]]);
                best.add(queries[i], t, reservoir.entries);
                return reservoir.entries.size();
            });

    std::fill_n(labels, nq * k, -1);
    std::fill_n(
            distances,
            nq * k,
            (is_l2 ? 1 : -1) * std::numeric_limits<float>::max());
    for_each_query(nq, [&](idx_t q) {
        size_t at = q * k;
        best.write_sorted(q, [&](float key, idx_t label) {
            distances[at] = distance_of_key(is_l2, key);
            labels[at] = label;
            at++;
        });
    });
    return stats;
}

ListScanner::Stats ListScanner::range_search(
        size_t nq,
        const float* rotated,
        const idx_t* keys,
        size_t nprobe,
        float radius,
        RangeHits* hits) const {
    const bool is_l2 = tq.metric_type == faiss::METRIC_L2;
    for (size_t q = 0; q < nq; q++) {
        hits[q].clear();
    }
    // no squared distance is below 0, even if its estimate is
    if (is_l2 && !(radius > 0)) {
        return {};
    }
    const Probes probes = group_by_list(
            lists, nq, keys, nprobe, group_queries(tq.rotated_dim()));
    QueryLocks locks;
    const Stats stats = run_tasks<RangeCollector>(
            *this,
            probes,
            nq,
            rotated,
            [&] {
                return RangeCollector{is_l2 ? radius : -radius, {}};
            },
            [](size_t, RangeCollector& collector) { collector.hits.clear(); },
            [&](size_t t,
                size_t i,
                RangeCollector& collector,
                auto label_of_row) {
                const size_t q = probes.queries[probes.tasks[t].first + i];
                const std::lock_guard<std::mutex> lock(locks[q]);
                for (const auto& [row, key] : collector.hits) {
                    hits[q].emplace_back(
                            label_of_row(row), distance_of_key(is_l2, key));
                }
                return collector.hits.size();
            });
    for (size_t q = 0; q < nq; q++) {
        std::sort(hits[q].begin(), hits[q].end());
    }
    return stats;
}

} // namespace faiss_turboquant
