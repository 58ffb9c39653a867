#pragma once

/** The scan of codes by their signs, for queries one by one. */

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include <faiss_turboquant/Backoff.h>
#include <faiss_turboquant/BlockScan.h>
#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/QueryBatch.h>
#include <faiss_turboquant/SignFilter.h>

namespace faiss_turboquant {

/// the results of a query in a list
struct ListReservoir : Reservoir {
    using Reservoir::Reservoir;

    /// make the threshold as good as it can be
    void update_threshold() {
        threshold = std::min(threshold, next_key(last_key()));
    }
};

/** The results of a query in a part of the codes. Parts share what they know.
 */
struct SharedReservoir : Reservoir {
    /// the k-th best key that any part has found
    std::atomic<float>* shared_key;

    SharedReservoir(size_t k, std::atomic<float>* shared_key)
            : Reservoir(k), shared_key(shared_key) {}

    /// tell the other parts, and take over what they know
    void update_threshold() {
        const float own = last_key();
        float shared = shared_key->load(std::memory_order_relaxed);
        while (own < shared &&
               !shared_key->compare_exchange_weak(
                       shared, own, std::memory_order_relaxed)) {
        }
        // an equal key of a smaller row may be here
        threshold = std::min(threshold, next_key(shared));
    }
};

/** Takes queries through codes by their signs, a run of codes at a time. Codes
 * that look best by their signs are read first, so that there is a threshold;
 * then those that may be below it. Where these are many and the filter has a
 * second plane, they have to be below it by that, too. Where they are more than
 * half of a run, reading all codes is faster: for some time it does so, then
 * tries again. */
template <class Collector>
class FilteredScan {
   public:
    explicit FilteredScan(const TurboQuantizer& tq) : tq_(tq), scan_(tq) {}

    /** @param filter      of all codes
     *  @param codes       all of them
     *  @param queries     whose [first, first + nq) are searched for
     *  @param collectors  (nq,), as of BlockScan
     *  All are used until the next start. */
    void start(
            const SignFilter& filter,
            const uint8_t* codes,
            const QueryBatch& queries,
            size_t first,
            size_t nq,
            Collector* collectors) {
        filter_ = &filter;
        codes_ = codes;
        queries_ = &queries;
        first_query_ = first;
        collectors_ = collectors;
        states_.assign(nq, State());
        max_run_ = nq == 1 ? longest_run : shared_run(tq_.d);
        if constexpr (is_reservoir) {
            for (size_t q = 0; q < nq; q++) {
                collectors[q].keeps_equal = true;
            }
        }
    }

    /** Codes [begin, end); begin is a multiple of sign_block. Collectors get
     * their numbers less begin.
     * @param selected  a bitmap of these codes; null: all
     * @return  how many were read, those of each query */
    size_t scan(size_t begin, size_t end, const uint64_t* selected) {
        begin_ = begin;
        selected_ = selected;
        const size_t blocks = (end - begin + sign_block - 1) / sign_block;
        stride_ = std::min(max_run_, blocks * sign_block);
        size_t n_read = 0;
        for (first_ = begin; first_ < end; first_ = end_) {
            end_ = std::min(end, first_ + run_codes());
            select_run();
            const bool is_sparse = n_selected_ < few_codes * of_run_.size();
            std::vector<size_t> asking;
            for (size_t q = 0; q < states_.size(); q++) {
                Backoff& pause = states_[q].pause;
                if (pause.left() == 0 && !is_sparse) {
                    asking.push_back(q);
                    continue;
                }
                pause.pass(end_ - first_);
                start(q);
                n_read += read_all();
            }
            for (size_t i = 0; i < asking.size(); i += sign_queries) {
                const size_t n = std::min(sign_queries, asking.size() - i);
                sum_plane(0, &asking[i], n, all_sums_);
                for (size_t j = 0; j < n; j++) {
                    sums_ = all_sums_.data() + j * stride_;
                    n_read += scan_run(asking[i + j]);
                }
            }
        }
        return n_read;
    }

   private:
    /// a word for a block of signs
    using Bitmap = IdFilter::Bitmap;
    static_assert(sign_block == 64, "a word of a bitmap");

    /// codes of a run
    static constexpr size_t longest_run = 16384;
    /// of one after which it is seen whether signs are of use
    static constexpr size_t trial_run = 2048;
    /// codes that are read without a look at the signs
    static constexpr size_t first_pause = 4096, longest_pause = 1 << 20;
    /// of a block, that are read sooner than the block's signs
    static constexpr size_t few_codes = 16;
    /// codes that are read to have a threshold, besides as many as there are
    /// results
    static constexpr size_t more_codes = 16;
    /// else thresholds do not depend on what has been found
    static constexpr bool is_reservoir =
            std::is_base_of_v<Reservoir, Collector>;

    /// of a query
    struct State {
        bool on_trial = true;
        bool asks_sizes = false; ///< of each run from its beginning
        Backoff pause{first_pause, longest_pause};
    };

    /// codes whose signs fit in the second-level cache, for queries to share
    static size_t shared_run(size_t d) {
        return std::clamp(
                second_level_cache() / 2 / (d / 8 + 1) / sign_block *
                        sign_block,
                trial_run,
                longest_run);
    }

    size_t run_codes() const {
        size_t n = max_run_;
        for (const State& state : states_) {
            if (state.pause.left() > 0) {
                n = std::min(n, state.pause.left());
            } else if (state.on_trial) {
                n = std::min(n, trial_run);
            }
        }
        return n;
    }

    /// those of the run that are selected
    void select_run() {
        n_selected_ = 0;
        of_run_.clear();
        for (size_t i = first_; i < end_; i += sign_block) {
            const uint64_t word =
                    selected_ ? selected_[(i - begin_) / 64] : ~0ull;
            const size_t n = end_ - i;
            of_run_.push_back(n < 64 ? word & ((1ull << n) - 1) : word);
            n_selected_ += __builtin_popcountll(of_run_.back());
        }
    }

    /// of n queries, whose numbers are given
    void sum_plane(
            int plane,
            const size_t* numbers,
            size_t n,
            std::vector<uint16_t>& sums) {
        const uint8_t* tables[sign_queries];
        for (size_t i = 0; i < n; i++) {
            tables[i] = query(numbers[i]).tables.data();
        }
        sums.resize(n * stride_);
        for (size_t i = 0; i < of_run_.size(); i++) {
            if (of_run_[i]) {
                filter_->sum_plane(
                        plane,
                        tables,
                        n,
                        first_ / sign_block + i,
                        sums.data() + i * sign_block,
                        stride_);
            }
        }
    }

    /// begin with query q
    void start(size_t q) {
        q_ = q;
        unread_ = of_run_;
        has_gaps_ = selected_;
        scan_.start(*queries_, first_query_ + q, 1, &collectors_[q]);
        update_threshold();
    }

    size_t scan_run(size_t q) {
        start(q);
        State& state = states_[q];
        sizes_ = nullptr;
        if (state.asks_sizes) {
            sum_sizes();
        }
        size_t n_read = 0;
        if constexpr (is_reservoir) {
            n_read += read_best();
        }
        const size_t n_unread = n_selected_ - n_read;
        left_ = unread_;
        size_t n_left = pass_over();
        if (!sizes_ && filter_->n_planes() > 1 &&
            double(n_left) > part_for_second_plane * double(n_unread)) {
            state.asks_sizes = 2 * n_left > n_unread;
            sum_sizes();
            n_left = pass_over();
        }
        state.on_trial = 2 * n_left > n_unread;
        state.pause.note(!state.on_trial);
        return n_read + (state.on_trial ? read_all() : read(left_));
    }

    void sum_sizes() {
        sum_plane(1, &q_, 1, size_sums_);
        sizes_ = size_sums_.data();
    }

    /// of those that are left, the codes that are not below the threshold
    /// @return  how many are left then
    size_t pass_over() {
        const float threshold = collectors_[q_].threshold;
        const SignFormula least =
                filter_->least(query(q_), sizes_ ? 2 : 1, threshold);
        return filter_->filter(
                least,
                first_ / sign_block,
                sums_,
                sizes_,
                left_.size(),
                threshold,
                left_.data());
    }

    const SignQuery& query(size_t q) const {
        return queries_->signs[first_query_ + q];
    }

    /// read the codes that look best by their planes
    size_t read_best() {
        const SignFormula& expected =
                (sizes_ ? query(q_).both : query(q_).first).expected;
        Reservoir best(collectors_[q_].k + more_codes);
        best.threshold = collectors_[q_].threshold;
        for (size_t i = 0; i < unread_.size(); i++) {
            uint64_t bits = unread_[i];
            const size_t n_below = filter_->filter(
                    expected,
                    first_ / sign_block + i,
                    sums_ + i * sign_block,
                    sizes_ ? sizes_ + i * sign_block : nullptr,
                    1,
                    best.threshold,
                    &bits);
            if (n_below == 0) {
                continue;
            }
            float keys[sign_block];
            uint32_t rows[sign_block];
            size_t n = 0;
            for (; bits; bits &= bits - 1, n++) {
                const uint32_t row = i * sign_block + __builtin_ctzll(bits);
                rows[n] = row;
                keys[n] = filter_->key(
                        expected,
                        first_ + row,
                        sums_[row],
                        sizes_ ? &sizes_[row] : nullptr);
            }
            best.add(keys, rows, n);
        }
        best.shrink();
        best_.assign(unread_.size(), 0);
        for (uint64_t entry : best.entries) {
            const uint32_t row = entry_row(entry);
            best_[row / 64] |= 1ull << row % 64;
            unread_[row / 64] &= ~(1ull << row % 64);
        }
        has_gaps_ = true;
        const size_t n_read = read(best_);
        update_threshold();
        return n_read;
    }

    void update_threshold() {
        if constexpr (is_reservoir) {
            collectors_[q_].update_threshold();
        }
    }

    size_t read_all() {
        if (has_gaps_) {
            return read(unread_);
        }
        for (size_t i = first_; i < end_; i += block_codes) {
            scan_.scan_block(
                    codes_ + begin_ * tq_.code_size,
                    i - begin_,
                    nullptr,
                    std::min(block_codes, end_ - i));
        }
        return end_ - first_;
    }

    /// codes of the run
    size_t read(const Bitmap& wanted) {
        rows_.clear();
        for (size_t i = 0; i < wanted.size(); i++) {
            for_each_bit(
                    wanted[i],
                    first_ - begin_ + i * sign_block,
                    [&](size_t row) { rows_.push_back(row); });
        }
        scan_.scan(codes_ + begin_ * tq_.code_size, rows_.data(), rows_.size());
        return rows_.size();
    }

    const TurboQuantizer& tq_;
    BlockScan<Collector> scan_;

    // from start
    const SignFilter* filter_ = nullptr;
    const uint8_t* codes_ = nullptr;
    const QueryBatch* queries_ = nullptr;
    size_t first_query_ = 0;
    Collector* collectors_ = nullptr;
    std::vector<State> states_;
    size_t max_run_ = 0;

    size_t begin_ = 0;
    const uint64_t* selected_ = nullptr; ///< codes from begin on
    size_t first_ = 0, end_ = 0;         ///< codes of the run
    Bitmap of_run_;                      ///< those that are selected
    size_t n_selected_ = 0;
    size_t stride_ = 0;              ///< from sums of a query to the next's
    std::vector<uint16_t> all_sums_; ///< (up to sign_queries, stride), of signs

    // of the query that is at it
    size_t q_ = 0;
    const uint16_t* sums_ = nullptr;  ///< codes of the run
    const uint16_t* sizes_ = nullptr; ///< of the second plane; null: not asked
    std::vector<uint16_t> size_sums_;
    Bitmap unread_;         ///< codes that are to be read
    bool has_gaps_ = false; ///< whether these are not all
    Bitmap best_, left_;
    std::vector<uint32_t> rows_; ///< to be read, less begin_
};

} // namespace faiss_turboquant
