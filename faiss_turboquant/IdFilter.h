#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include <faiss/MetricType.h>
#include <faiss/impl/IDSelector.h>

namespace faiss_turboquant {

/** A faiss::IDSelector asked for many ids at a time: by its type, a few
 * operations for 64 ids instead of a virtual call each, at any depth of
 * IDSelectorNot, And, Or, XOr and what IndexIDMap makes of it. A selector of
 * another type is asked for each id that the others leave to it.
 *
 * Several threads may use it at once, if they may use the selector. */
class IdFilter {
   public:
    /// bit i % 64 of word i / 64 is position i; there are none past the last
    using Bitmap = std::vector<uint64_t>;

    /// @param sel  has to live as long
    explicit IdFilter(const faiss::IDSelector& sel) : sel_(sel) {}

    /// the selected ones of the ids 0 .. n - 1
    Bitmap select(size_t n) const;

    /// @return  the positions of those that are selected
    Bitmap select(const faiss::idx_t* ids, size_t n) const;

   private:
    struct Ids;

    void keep(const faiss::IDSelector& sel, const Ids& ids, Bitmap& bitmap)
            const;
    const faiss::IDSelectorBatch& batch_of(
            const faiss::IDSelectorArray& array) const;

    const faiss::IDSelector& sel_;
    mutable std::mutex mutex_;
    /// made when first asked: an array is slow to look up in
    mutable std::map<
            const faiss::IDSelectorArray*,
            std::unique_ptr<faiss::IDSelectorBatch>>
            batches_;
};

/// f(first + i) for the bits i of a word, ascending
template <class F>
void for_each_bit(uint64_t word, size_t first, F f) {
    for (; word; word &= word - 1) {
        f(first + __builtin_ctzll(word));
    }
}

/// f(i) for the positions of a bitmap's bits, ascending
template <class F>
void for_each_bit(const IdFilter::Bitmap& bitmap, F f) {
    for (size_t i = 0; i < bitmap.size(); i++) {
        for_each_bit(bitmap[i], i * 64, f);
    }
}

inline size_t count_bits(const IdFilter::Bitmap& bitmap) {
    size_t n = 0;
    for (uint64_t word : bitmap) {
        n += __builtin_popcountll(word);
    }
    return n;
}

} // namespace faiss_turboquant
