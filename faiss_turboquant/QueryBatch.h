#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss/utils/AlignedTable.h>

#include <faiss_turboquant/SignFilter.h>
#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

namespace faiss_turboquant {

/// fewer queries than this are faster one by one, without panels
constexpr size_t batch_queries = 4;

/** Queries that are searched for together: with their quantized coordinates in
 * rows, from which Kernels::dot_panels takes tiles of them, or, where they are
 * few, arranged one by one. */
class QueryBatch {
   public:
    explicit QueryBatch(const TurboQuantizer& tq)
            // one line more keeps the rows of a tile out of one set of the
            // cache
            : tq_(tq), stride_(tq.rotated_dim() + 64) {}

    /** Make room; what there was is lost.
     * @param with_signs  for queries that ask a SignFilter, one by one */
    void resize(size_t n, bool with_signs = false) {
        n_ = n;
        signs.resize(with_signs ? n : 0);
        if (queries_.size() < n) {
            queries_.resize(n);
        }
        // the last query may begin a tile
        const size_t rows = n + kernels().tile_queries - 1;
        if (has_rows() && rows_.size() < rows * stride_) {
            rows_.resize(rows * stride_);
        }
    }

    size_t size() const {
        return n_;
    }

    /// else the queries have `arranged`
    bool has_rows() const {
        return n_ >= batch_queries && signs.empty();
    }

    /// (rotated_dim,), the quantized coordinates of query i, or null: the q of
    /// TurboQuantizer::prepare_query
    int8_t* row(size_t i) {
        return has_rows() ? rows_.data() + i * stride_ : nullptr;
    }
    const int8_t* row(size_t i) const {
        return has_rows() ? rows_.data() + i * stride_ : nullptr;
    }

    /// bytes from one row to the next
    size_t stride() const {
        return stride_;
    }

    /// Query i, which has been prepared but for its coordinates, will ask a
    /// SignFilter.
    /// @param q       (rotated_dim,), from TurboQuantizer::prepare_query
    /// @param margin  as of SignFilter::make_query
    void set_signs(
            size_t i,
            const int8_t* q,
            const SignFilter& filter,
            double margin) {
        tq_.arrange_query(q, queries_[i]);
        signs[i] = filter.make_query(q, queries_[i].factors, margin);
    }

    /// of each query, where a SignFilter is asked; else empty
    std::vector<SignQuery> signs;

    PreparedQuery& operator[](size_t i) {
        return queries_[i];
    }
    const PreparedQuery& operator[](size_t i) const {
        return queries_[i];
    }

   private:
    const TurboQuantizer& tq_;
    size_t n_ = 0;
    size_t stride_;
    std::vector<PreparedQuery> queries_;
    faiss::AlignedTable<int8_t, 64> rows_;
};

} // namespace faiss_turboquant
