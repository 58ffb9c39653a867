#include <faiss_turboquant/IdFilter.h>

#include <algorithm>
#include <cstring>
#include <typeinfo>

#include <faiss/IndexIDMap.h>

namespace faiss_turboquant {

using faiss::IDSelector;
using faiss::idx_t;

struct IdFilter::Ids {
    const idx_t* ids; ///< (n,); null: 0 .. n - 1
    size_t n;

    idx_t operator[](size_t i) const {
        return ids ? ids[i] : idx_t(i);
    }
};

namespace {

using Bitmap = IdFilter::Bitmap;

size_t words_of(size_t n) {
    return (n + 63) / 64;
}

/// the first n positions
Bitmap all_of(size_t n) {
    Bitmap bitmap(words_of(n), ~uint64_t(0));
    if (n % 64 != 0) {
        bitmap.back() = (uint64_t(1) << n % 64) - 1;
    }
    return bitmap;
}

/// f(word) for all words, on all threads if they are many
template <class F>
void for_each_word(const Bitmap& bitmap, F f) {
#pragma omp parallel for if (bitmap.size() > 2000)
    for (int64_t word = 0; word < int64_t(bitmap.size()); word++) {
        f(word);
    }
}

/// a = f(a, b), word by word
template <class F>
void combine(Bitmap& a, const Bitmap& b, F f) {
    for (size_t word = 0; word < a.size(); word++) {
        a[word] = f(a[word], b[word]);
    }
}

/// test(i) for all n positions, without branches
template <class F>
void keep_where(Bitmap& bitmap, size_t n, F test) {
    for_each_word(bitmap, [&](size_t word) {
        const size_t begin = word * 64, size = std::min<size_t>(64, n - begin);
        uint64_t bits = 0;
        for (size_t i = 0; i < size; i++) {
            bits |= uint64_t(test(begin + i)) << i;
        }
        bitmap[word] &= bits;
    });
}

/// test(i) for the bitmap's own positions only
template <class F>
void keep_where_costly(Bitmap& bitmap, F test) {
    for_each_word(bitmap, [&](size_t word) {
        uint64_t kept = 0;
        for (uint64_t bits = bitmap[word]; bits; bits &= bits - 1) {
            const int i = __builtin_ctzll(bits);
            kept |= uint64_t(test(word * 64 + i)) << i;
        }
        bitmap[word] = kept;
    });
}

/// positions begin .. end - 1
void keep_range(Bitmap& bitmap, size_t n, idx_t begin, idx_t end) {
    const size_t first = std::clamp<idx_t>(begin, 0, n);
    const size_t last = std::clamp<idx_t>(end, 0, n);
    if (first >= last) {
        std::fill(bitmap.begin(), bitmap.end(), 0);
        return;
    }
    std::fill_n(bitmap.begin(), first / 64, 0);
    bitmap[first / 64] &= ~uint64_t(0) << first % 64;
    const size_t last_word = (last - 1) / 64;
    bitmap[last_word] &= ~uint64_t(0) >> (63 - (last - 1) % 64);
    std::fill(bitmap.begin() + last_word + 1, bitmap.end(), 0);
}

/// positions that are among the ids
template <class Container>
void keep_listed(Bitmap& bitmap, size_t n, const Container& ids) {
    Bitmap listed(bitmap.size());
    for (idx_t id : ids) {
        if (id >= 0 && id < idx_t(n)) {
            listed[id / 64] |= uint64_t(1) << id % 64;
        }
    }
    combine(bitmap, listed, [](uint64_t a, uint64_t b) { return a & b; });
}

/// bytes of a bitmap in FAISS's order, which is this one's
void keep_bytes(Bitmap& bitmap, const uint8_t* bytes, size_t n_bytes) {
    Bitmap other(bitmap.size());
    if (n_bytes > 0) {
        memcpy(other.data(), bytes, std::min(n_bytes, other.size() * 8));
    }
    combine(bitmap, other, [](uint64_t a, uint64_t b) { return a & b; });
}

struct ArrayView {
    const faiss::IDSelectorArray& array;
    const idx_t* begin() const {
        return array.ids;
    }
    const idx_t* end() const {
        return array.ids + array.n;
    }
};

} // namespace

IdFilter::Bitmap IdFilter::select(size_t n) const {
    return select(nullptr, n);
}

IdFilter::Bitmap IdFilter::select(const idx_t* ids, size_t n) const {
    Bitmap bitmap = all_of(n);
    keep(sel_, {ids, n}, bitmap);
    return bitmap;
}

const faiss::IDSelectorBatch& IdFilter::batch_of(
        const faiss::IDSelectorArray& array) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& batch = batches_[&array];
    if (!batch) {
        batch = std::make_unique<faiss::IDSelectorBatch>(array.n, array.ids);
    }
    return *batch;
}

/// clear the bits of ids that are not selected
void IdFilter::keep(const IDSelector& sel, const Ids& ids, Bitmap& bitmap)
        const {
    const size_t n = ids.n;
    if (dynamic_cast<const faiss::IDSelectorAll*>(&sel)) {
        return;
    }
    if (auto both = dynamic_cast<const faiss::IDSelectorAnd*>(&sel)) {
        keep(*both->lhs, ids, bitmap);
        keep(*both->rhs, ids, bitmap);
        return;
    }
    if (auto either = dynamic_cast<const faiss::IDSelectorOr*>(&sel)) {
        Bitmap rest = bitmap;
        keep(*either->lhs, ids, bitmap);
        combine(rest, bitmap, [](uint64_t a, uint64_t b) { return a & ~b; });
        keep(*either->rhs, ids, rest);
        combine(bitmap, rest, [](uint64_t a, uint64_t b) { return a | b; });
        return;
    }
    if (auto one = dynamic_cast<const faiss::IDSelectorXOr*>(&sel)) {
        Bitmap other = bitmap;
        keep(*one->lhs, ids, bitmap);
        keep(*one->rhs, ids, other);
        combine(bitmap, other, [](uint64_t a, uint64_t b) { return a ^ b; });
        return;
    }
    if (auto inverse = dynamic_cast<const faiss::IDSelectorNot*>(&sel)) {
        Bitmap refused = bitmap;
        keep(*inverse->sel, ids, refused);
        combine(bitmap, refused, [](uint64_t a, uint64_t b) { return a & ~b; });
        return;
    }
    if (auto range = dynamic_cast<const faiss::IDSelectorRange*>(&sel)) {
        const idx_t begin = range->imin, end = range->imax;
        if (!ids.ids) {
            keep_range(bitmap, n, begin, end);
        } else {
            const uint64_t size = std::max(begin, end) - begin;
            keep_where(bitmap, n, [&](size_t i) {
                return uint64_t(ids.ids[i]) - uint64_t(begin) < size;
            });
        }
        return;
    }
    if (auto bits = dynamic_cast<const faiss::IDSelectorBitmap*>(&sel)) {
        if (!ids.ids) {
            keep_bytes(bitmap, bits->bitmap, bits->n);
        } else {
            keep_where(bitmap, n, [&](size_t i) {
                const uint64_t id = ids.ids[i];
                return id / 8 < bits->n && bits->bitmap[id / 8] >> id % 8 & 1;
            });
        }
        return;
    }
    if (auto array = dynamic_cast<const faiss::IDSelectorArray*>(&sel)) {
        if (!ids.ids) {
            keep_listed(bitmap, n, ArrayView{*array});
        } else {
            keep(batch_of(*array), ids, bitmap);
        }
        return;
    }
    if (auto batch = dynamic_cast<const faiss::IDSelectorBatch*>(&sel)) {
        if (!ids.ids) {
            keep_listed(bitmap, n, batch->set);
        } else {
            // as its is_member does
            const uint8_t* bloom = batch->bloom.data();
            const idx_t mask = batch->mask;
            keep_where(bitmap, n, [&](size_t i) {
                const idx_t hash = ids.ids[i] & mask;
                return bloom[hash >> 3] >> (hash & 7) & 1;
            });
            keep_where_costly(bitmap, [&](size_t i) {
                return batch->set.count(ids.ids[i]);
            });
        }
        return;
    }
    if (typeid(sel) == typeid(faiss::IDSelectorTranslated)) {
        auto& map = static_cast<const faiss::IDSelectorTranslated&>(sel);
        if (!ids.ids && map.id_map.size() >= n) {
            keep(*map.sel, {map.id_map.data(), n}, bitmap);
            return;
        }
        std::vector<idx_t> mapped(n);
        for_each_bit(bitmap, [&](size_t i) { mapped[i] = map.id_map[ids[i]]; });
        keep(*map.sel, {mapped.data(), n}, bitmap);
        return;
    }
    keep_where_costly(bitmap, [&](size_t i) { return sel.is_member(ids[i]); });
}

} // namespace faiss_turboquant
