#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include <faiss_turboquant/Backoff.h>
#include <gpu/CodeStorage.h>
#include <gpu/GpuResources.h>
#include <gpu/kernels/sign_filter.h>

namespace faiss_turboquant {
namespace gpu {

/// Several queries ask both planes of all rows at once: signs leave most rows
/// to one of them.
constexpr bool joins_planes(size_t nq) {
    return nq > 1;
}
constexpr int planes_of_scan(size_t nq, int n_planes) {
    return joins_planes(nq) ? n_planes : 1;
}

/** What a search takes, in bytes that memory gives in the time, measured on an
 * H200. */
struct SignSearchCost {
    SignSearchCost(const DeviceLayout& layout, size_t n, size_t nq);

    /// with so many rows left
    double with_one_plane(double left) const {
        return first + left * listed_code;
    }
    double with_both_planes(double left_by_first, double left) const {
        return first + second + left_by_first * listed_sizes +
                left * listed_code;
    }

    double all;          ///< of a search that reads all codes
    double first;        ///< signs of all rows, and kernels between scans
    double second;       ///< the second plane of all rows, or kernels
    double listed_sizes; ///< the second plane of a row of a list, or 0
    double listed_code;
};

/** The signs of the coordinates of the codes in a CodeStorage, which a search
 * for few queries reads instead of most codes: what SignFilter is on the CPU,
 * with the same bound (sign_bound), and likewise with a second plane where
 * signs leave many rows. Planes are codes of one bit, so that the kernels of
 * these compute products with them. Offsets are those of the codes.
 *
 * Several threads may search at once; all of them issue their work on one
 * stream. */
class DeviceSignFilter {
   public:
    /// storage: outlives it
    explicit DeviceSignFilter(const CodeStorage& storage);
    ~DeviceSignFilter();
    DeviceSignFilter(const DeviceSignFilter&) = delete;
    DeviceSignFilter& operator=(const DeviceSignFilter&) = delete;

    /** Take the rows that are new, to have n, and have room for as many as the
     * storage.
     * @param n_planes  at least
     * @throws faiss::FaissException if there is no memory */
    void extend(size_t n, int n_planes);

    /// the same, where it takes no more than half of the memory that is free.
    /// @return  false if there is too little, or was before
    bool try_extend(size_t n, int n_planes);

    /// after any change of the codes but adding behind the others
    void clear();

    /** How many planes a search for so many queries should ask: both after a
     * few in a row that would have gained by the second one.
     * @param most              planes
     * @param may_do_without    0 is an answer, too: for a while, when a search
     *                          before has had too many rows left */
    int choose_planes(size_t n, size_t nq, int most, bool may_do_without);

    /// By a search: where it has to tell how many rows it has left, in memory
    /// of the host.
    volatile RowsLeft* note(size_t nq, int n_planes);

    /// on the device; they stay where they are while no codes are added
    SignRows rows();

   private:
    SignRows rows_locked() const;
    size_t bytes_of_row() const; ///< and plane
    void take_rows(size_t n, int n_planes);
    void release();

    static constexpr size_t longest_pause = 256; ///< in searches
    /// searches in a row after which there is a second plane
    static constexpr int patience = 4;
    /// as Record::times, before that is known
    static constexpr double hoped_for = 16;

    /// of searches for so many queries
    struct Record {
        int n_planes = 1; ///< of the last one
        Backoff pause{1, longest_pause};
        /// By how many times as many rows signs leave as both planes do, where
        /// these are asked together: from the last search by signs alone, if
        /// `by_first` is not 0, and the next one.
        double times = hoped_for;
        double by_first = 0;
    };

    /// as of SignPlane
    struct Plane {
        DeviceArray<uint8_t> bits;
        DeviceArray<float> scales, residuals;
        DeviceArray<TileRange> ranges;
    };

    const CodeStorage& storage_;
    int n_planes_ = 0;
    Plane planes_[max_sign_planes];
    DeviceArray<SignStatistics> statistics_; ///< (max_sign_planes,)
    size_t size_ = 0;
    static constexpr size_t never = ~size_t(0);
    /// rows for which there was no memory: with one plane, with both
    size_t refused_[max_sign_planes] = {never, never};

    std::mutex mutex_;
    /// searches in a row that would have gained by a second plane, up to
    /// patience
    int n_wanting_ = 0;
    Record records_[max_sign_queries];
    GpuResources::Mailbox mailbox_;
    volatile RowsLeft* left_; ///< (max_sign_queries,) in the mailbox
};

/** A page of queries that asks a DeviceSignFilter before it reads codes, all of
 * it in the order of the stream, without waiting:
 *
 * 1. the signs of all rows are read, which gives their products with queries
 * and rows that may be the best by the keys that these let expect;
 * 2. the codes of these are read: the k-th best of their keys is a threshold;
 * 3. rows whose key may be below it are listed;
 * 4. with a second plane, that of these rows is read, and those that may be
 * below it still are listed.
 *
 * For several queries, both planes are read in the first step. */
class SignSearch {
   public:
    /** @param filter     has n_planes planes of codes.n rows
     *  @param codes      to be searched
     *  @param plan       of a scan of the codes
     *  @param sign_plan  of a scan of their signs, for products of
     *                    planes_of_scan
     *  @param nq         up to max_sign_queries
     *  @param k          0: of a range search
     *  @param margin     in standard deviations */
    SignSearch(
            const GpuResources& resources,
            DeviceSignFilter& filter,
            int n_planes,
            const DeviceCodes& codes,
            const ScanPlan& plan,
            const ScanPlan& sign_plan,
            size_t nq,
            int k,
            double margin);

    /// whose codes are read for thresholds
    static size_t best_rows(const ScanPlan& sign_plan, size_t nq, int k);

    /// bytes that one works in, besides reservoirs
    static size_t workspace(
            const ScanPlan& sign_plan,
            int n_planes,
            size_t n,
            size_t nq,
            int k);

    /// queries as they have to be prepared besides
    const QueryImage& image() const {
        return image_;
    }

    /** The rows that a search for the k best has to read.
     * @param image       of the queries, for codes
     * @param factors     likewise
     * @param thresholds  (nq,), written */
    RowList find_candidates(
            const uint8_t* image,
            const DeviceQueryFactors* factors,
            Entry* thresholds) const;

    /// those that a search for keys up to `last` has to read
    RowList find_candidates(float last) const;

   private:
    RowList list_candidates(const Entry* thresholds, float last) const;
    DeviceCodes plane(int p) const;
    /// products of all rows, and for the k best rows that may be among them
    void scan() const;
    ProductSink products() const;
    bool are_joined() const {
        return n_planes_ > n_scans_;
    }

    /// for what the scan of a plane leaves
    CandidateList candidates(int plane) const;

    const GpuResources& resources_;
    DeviceSignFilter& filter_;
    const int n_planes_;
    const int n_scans_; ///< of planes: 1 if they are joined
    const SignRows rows_;
    const DeviceCodes codes_;
    const ScanPlan plan_, sign_plan_;
    const size_t nq_;
    const int k_;
    const double margin_;
    DeviceArray<uint8_t> image_data_;
    DeviceArray<DeviceQueryFactors> factors_;
    DeviceArray<QuerySums> sums_;
    QueryImage image_;
    DeviceArray<uint8_t> products_, largest_; ///< see ProductSink
    /// (list_capacity,) of each scan
    DeviceArray<uint32_t> candidates_[max_sign_planes];
    DeviceArray<RowsLeft> left_;
    DeviceArray<uint32_t> next_round_; ///< see ProductSink

    DeviceArray<uint32_t> best_rows_; ///< by their signs, see ProductSink
    DeviceArray<float> best_keys_;    ///< (nq, best_rows)
};

} // namespace gpu
} // namespace faiss_turboquant
