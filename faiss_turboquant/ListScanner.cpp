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

#include <omp.h>

#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/DirectMap.h>

#include <faiss_turboquant/BlockScan.h>
#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/QueryBatch.h>

namespace faiss_turboquant {

namespace {

using faiss::idx_t;

/// codes of a task: a long list is shared by several threads
constexpr size_t slice_codes = 32768;
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

/// for each of a few results of many queries, a lock that few share
class QueryLocks {
   public:
    std::mutex& operator[](size_t q) {
        return locks_[q % locks_.size()];
    }

   private:
    std::array<std::mutex, 256> locks_;
};

/** The k best of a query from all its lists, by key, then by label. */
class BestResults {
   public:
    /// what is not below this cannot be among the k best
    float threshold() const {
        return threshold_.load(std::memory_order_relaxed);
    }

    /// @param found         entries of a key and a row
    /// @param label_of_row  label_of_row(row)
    template <class LabelOfRow>
    void add(
            size_t k,
            const std::vector<uint64_t>& found,
            LabelOfRow label_of_row) {
        const size_t size = entries_.size(), first = labels_.size();
        entries_.resize(size + found.size());
        labels_.resize(first + found.size());
        for (size_t i = 0; i < found.size(); i++) {
            entries_[size + i] = found[i] >> 32 << 32 | (first + i);
            labels_[first + i] = label_of_row(entry_row(found[i]));
        }
        // the first threshold as soon as there is one: without it all is kept
        if (entries_.size() >= (has_threshold_ ? limit(k) : k)) {
            shrink(k);
        }
    }

    /// write(key, label) for up to k results, best first
    template <class Write>
    void write_sorted(size_t k, Write write) {
        sort();
        for (size_t i = 0; i < std::min(k, entries_.size()); i++) {
            write(entry_key(entries_[i]), label(entries_[i]));
        }
    }

   private:
    /// entries before they are thinned out
    static size_t limit(size_t k) {
        return k + k / 4 + 16;
    }

    /// labels before those of entries that are gone are dropped
    static size_t label_limit(size_t k) {
        return 4 * limit(k);
    }

    idx_t label(uint64_t entry) const {
        return labels_[entry_row(entry)];
    }

    void shrink(size_t k) {
        select_entries(entries_, k);
        const uint64_t kth = entries_[k - 1] >> 32;
        const bool has_ties = std::any_of(
                entries_.begin() + k, entries_.end(), [&](uint64_t entry) {
                    return entry >> 32 == kth;
                });
        if (has_ties) {
            sort();
        }
        entries_.resize(k);
        if (labels_.size() >= label_limit(k)) {
            drop_labels();
        }
        // one that equals the k-th best may still win by its label
        threshold_.store(
                std::nextafter(
                        entry_key(entries_[k - 1]),
                        std::numeric_limits<float>::infinity()),
                std::memory_order_relaxed);
        has_threshold_ = true;
    }

    /// all but those of the entries
    void drop_labels() {
        std::vector<idx_t> kept(entries_.size());
        for (size_t i = 0; i < kept.size(); i++) {
            kept[i] = label(entries_[i]);
            entries_[i] = entries_[i] >> 32 << 32 | i;
        }
        labels_.assign(kept.begin(), kept.end());
    }

    /// by key, then by label
    void sort() {
        sort_entries(entries_);
        for (auto begin = entries_.begin(); begin != entries_.end();) {
            const auto end =
                    std::find_if(begin + 1, entries_.end(), [&](uint64_t e) {
                        return e >> 32 != *begin >> 32;
                    });
            if (end - begin > 1) {
                std::sort(begin, end, [&](uint64_t a, uint64_t b) {
                    return label(a) < label(b);
                });
            }
            begin = end;
        }
    }

    std::vector<uint64_t> entries_; ///< of a key and a position in labels_
    std::vector<idx_t> labels_;
    std::atomic<float> threshold_{std::numeric_limits<float>::infinity()};
    bool has_threshold_ = false;
};

/** Run all tasks.
 * @param start   start(query, collector): make a collector ready
 * @param finish  finish(query, collector, label_of_row): take its results;
 *                called by several threads at a time */
template <class Collector, class Make, class Start, class Finish>
ListScanner::Stats run_tasks(
        const ListScanner& scanner,
        const Probes& probes,
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
    std::exception_ptr error;

#pragma omp parallel num_threads(nthreads) if (nthreads > 1) \
        reduction(+ : nlist, ndis, nkept)
    {
        BlockScan<Collector> scan(tq);
        QueryBatch batch(tq);
        std::vector<Collector> collectors;
        std::vector<uint32_t> rows;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < int64_t(probes.tasks.size()); t++) {
            try {
                const Task& task = probes.tasks[t];
                const uint32_t* queries = &probes.queries[task.first];
                faiss::InvertedLists::ScopedIds ids(
                        &scanner.lists, task.list_no);
                size_t n = task.end - task.begin;
                if (filter) {
                    rows.clear();
                    for_each_bit(
                            filter->select(ids.get() + task.begin, n),
                            [&](size_t i) { rows.push_back(i); });
                    n = rows.size();
                }
                nlist += task.begin == 0 ? task.n : 0;
                ndis += task.n * n;
                if (n == 0) {
                    continue;
                }
                while (collectors.size() < task.n) {
                    collectors.push_back(make());
                }
                batch.resize(task.n);
                for (size_t i = 0; i < task.n; i++) {
                    tq.prepare_residual_query(
                            rotated + queries[i] * padded,
                            scanner.rotated_centres + task.list_no * padded,
                            batch.row(i),
                            batch[i]);
                    start(queries[i], collectors[i]);
                }
                scan.start(batch, 0, task.n, collectors.data());
                faiss::InvertedLists::ScopedCodes codes(
                        &scanner.lists, task.list_no);
                scan.scan(
                        codes.get() + task.begin * tq.code_size,
                        filter ? rows.data() : nullptr,
                        n);
                for (size_t i = 0; i < task.n; i++) {
                    nkept += finish(
                            queries[i], collectors[i], [&](uint32_t row) {
                                const size_t at = task.begin + row;
                                return scanner.store_pairs
                                        ? idx_t(faiss::lo_build(
                                                  task.list_no, at))
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
    // no list gives more results than a task has codes
    const size_t k_of_task = std::min(k, slice_codes);
    const size_t max_group = std::clamp<size_t>(
            reservoir_bytes / Reservoir::bytes(k_of_task),
            1,
            group_queries(tq.rotated_dim()));
    const Probes probes = group_by_list(lists, nq, keys, nprobe, max_group);
    std::vector<BestResults> best(nq);
    QueryLocks locks;
    const Stats stats = run_tasks<Reservoir>(
            *this,
            probes,
            rotated,
            [&] { return Reservoir(k_of_task); },
            [&](size_t q, Reservoir& reservoir) {
                reservoir.restart(best[q].threshold());
            },
            [&](size_t q, Reservoir& reservoir, auto label_of_row) {
                const std::lock_guard<std::mutex> lock(locks[q]);
                best[q].add(k, reservoir.entries, label_of_row);
                return reservoir.entries.size();
            });

    std::fill_n(labels, nq * k, -1);
    std::fill_n(
            distances,
            nq * k,
            (is_l2 ? 1 : -1) * std::numeric_limits<float>::max());
    for (size_t q = 0; q < nq; q++) {
        size_t at = q * k;
        best[q].write_sorted(k, [&](float key, idx_t label) {
            distances[at] = distance_of_key(is_l2, key);
            labels[at] = label;
            at++;
        });
    }
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
            rotated,
            [&] {
                return RangeCollector{is_l2 ? radius : -radius, {}};
            },
            [](size_t, RangeCollector& collector) { collector.hits.clear(); },
            [&](size_t q, RangeCollector& collector, auto label_of_row) {
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
