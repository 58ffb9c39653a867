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

/** The signs of the coordinates of the codes in a CodeStorage, which a search
 * for few queries reads instead of most codes: what SignFilter is on the CPU,
 * with the same bound (sign_bound). They are codes of one bit, so that the
 * kernels of these compute the keys that signs let expect. Offsets are those of
 * the codes.
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
     * storage. @throws faiss::FaissException if there is no memory */
    void extend(size_t n);

    /// the same, where it takes no more than half of the memory that is free.
    /// @return  false if there is too little, or was before
    bool try_extend(size_t n);

    /// after any change of the codes but adding behind the others
    void clear();

    /** Whether a search for so many queries is likely to gain: for a while it
     * is not, when one before has had too many rows left. */
    bool is_promising(size_t nq);

    /** At the end of a search, how many rows the signs have left.
     * @param size  on the device
     * @param most  with more, it has not gained */
    void note(size_t nq, const uint32_t* size, uint32_t most);

    /// the signs of n rows; selected: as in DeviceCodes
    DeviceCodes codes(size_t n, const uint32_t* selected) const;

    /// on the device
    SignRows rows() const {
        return {planes_.data(),
                scales_.data(),
                residuals_.data(),
                statistics_.data()};
    }

   private:
    size_t bytes_of_row() const;
    void take_rows(size_t n);
    void release();

    static constexpr size_t longest_pause = 256; ///< in searches
    /// of searches for so many queries
    struct Record {
        uint32_t most = ~uint32_t(0); ///< of the last one
        Backoff pause{1, longest_pause};
    };

    const CodeStorage& storage_;
    // as of SignRows
    DeviceArray<uint8_t> planes_;
    DeviceArray<float> scales_, residuals_;
    DeviceArray<SignStatistics> statistics_;
    size_t size_ = 0;
    size_t refused_ = 0; ///< rows for which there was no memory

    std::mutex mutex_;
    Record records_[max_sign_queries + 1];
    GpuResources::Mailbox mailbox_;
    /// (max_sign_queries + 1,) in the mailbox: rows that the last search had
    /// left
    volatile uint32_t* left_;
};

/** A page of queries that asks a DeviceSignFilter before it reads codes, all of
 * it in the order of the stream, without waiting:
 *
 * 1. the signs of all rows are read, which gives their products with queries
 * and the best of each slice by the keys that these let expect;
 * 2. the codes of these are read: the k-th best of their keys is a threshold;
 * 3. rows whose key may be below it are listed. */
class SignSearch {
   public:
    /** @param filter     has codes.n rows
     *  @param codes      to be searched
     *  @param plan       of a scan of the codes
     *  @param sign_plan  of a scan of their signs
     *  @param nq         up to max_sign_queries
     *  @param k          0: of a range search
     *  @param margin     in standard deviations */
    SignSearch(
            const GpuResources& resources,
            DeviceSignFilter& filter,
            const DeviceCodes& codes,
            const ScanPlan& plan,
            const ScanPlan& sign_plan,
            size_t nq,
            int k,
            double margin);

    /** With how many rows left a search takes as long as one that reads all
     * of them, or less than 0. */
    static double break_even(const DeviceLayout& layout, size_t n, size_t nq);

    /// bytes that one works in, besides reservoirs
    static size_t workspace(
            const ScanPlan& sign_plan,
            size_t n,
            size_t nq,
            int k);

    /// queries as they have to be prepared besides
    const QueryImage& image() const {
        return image_;
    }

    /// of all scans
    size_t n_reservoirs() const {
        return std::max(plan_.n_reservoirs(), sign_plan_.n_reservoirs());
    }

    /** The rows that a search for the k best has to read.
     * @param image       of the queries, for codes
     * @param factors     likewise
     * @param reservoirs  n_reservoirs() of them, which it works in; thresholds
     *                    are written */
    RowList find_candidates(
            const uint8_t* image,
            const DeviceQueryFactors* factors,
            const Reservoirs& reservoirs) const;

    /// those that a search for keys up to `last` has to read
    RowList find_candidates(float last) const;

    /// at its end
    void note_outcome() const;

   private:
    RowList list_candidates(const Entry* thresholds, float last) const;
    /// for the k best of each slice besides, where k is not 0
    void scan_signs(const Reservoirs& reservoirs) const;
    ProductSink products() const;

    const GpuResources& resources_;
    DeviceSignFilter& filter_;
    const DeviceCodes codes_, signs_;
    const ScanPlan plan_, sign_plan_;
    const size_t nq_;
    const int k_;
    const double margin_;
    DeviceArray<uint8_t> image_data_;
    DeviceArray<DeviceQueryFactors> factors_;
    DeviceArray<uint32_t> squares_;
    QueryImage image_;
    DeviceArray<uint32_t> products_;    ///< of signs, see ProductSink
    DeviceArray<uint32_t> rows_, size_; ///< candidates

    // the best by their signs, (nq, slices * k)
    DeviceArray<uint32_t> best_rows_, best_size_;
    DeviceArray<float> best_keys_; ///< (nq, best_rows)
};

} // namespace gpu
} // namespace faiss_turboquant
