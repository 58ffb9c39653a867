#include <faiss_turboquant/IdFilter.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexIDMap.h>

using faiss::IDSelector;
using faiss::idx_t;
using faiss_turboquant::for_each_bit;
using faiss_turboquant::IdFilter;

namespace {

/// what IdFilter does not know
struct EveryThird : IDSelector {
    mutable size_t asked = 0;
    bool is_member(idx_t id) const override {
#pragma omp atomic
        asked++;
        return id % 3 == 0;
    }
};

/// selectors of every type over ids up to about n, some of them outside
struct Selectors {
    std::mt19937 random;
    idx_t n;
    std::vector<idx_t> ids;
    std::vector<uint8_t> bytes;
    std::vector<idx_t> id_map;
    std::vector<std::unique_ptr<IDSelector>> all;

    Selectors(idx_t n, unsigned seed) : random(seed), n(n) {
        for (int i = 0; i < n / 5; i++) {
            ids.push_back(idx_t(random() % (2 * n + 1)) - n / 2);
        }
        for (idx_t i = 0; i < n / 16; i++) { // fewer than there are ids
            bytes.push_back(random());
        }
        id_map.resize(n);
        std::iota(id_map.begin(), id_map.end(), -n / 4);
        std::shuffle(id_map.begin(), id_map.end(), random);
        add<faiss::IDSelectorAll>();
        add<faiss::IDSelectorRange>(n / 5, n / 2);
        add<faiss::IDSelectorRange>(-5, n + 5);
        add<faiss::IDSelectorRange>(n / 2, n / 2);
        add<faiss::IDSelectorArray>(ids.size(), ids.data());
        add<faiss::IDSelectorBatch>(ids.size(), ids.data());
        add<faiss::IDSelectorBitmap>(bytes.size(), bytes.data());
        add<EveryThird>();
        for (int i = 0; i < 40; i++) {
            const IDSelector* a = any();
            const IDSelector* b = any();
            add<faiss::IDSelectorNot>(a);
            add<faiss::IDSelectorAnd>(a, b);
            add<faiss::IDSelectorOr>(a, b);
            add<faiss::IDSelectorXOr>(a, b);
        }
    }

    template <class Selector, class... Args>
    void add(Args... args) {
        all.push_back(std::make_unique<Selector>(args...));
    }

    const IDSelector* any() {
        return all[random() % all.size()].get();
    }
};

std::vector<size_t> positions(const IdFilter::Bitmap& bitmap) {
    std::vector<size_t> result;
    for_each_bit(bitmap, [&](size_t i) { result.push_back(i); });
    return result;
}

template <class IdOf>
std::vector<size_t> expected(const IDSelector& sel, size_t n, IdOf id_of) {
    std::vector<size_t> result;
    for (size_t i = 0; i < n; i++) {
        if (sel.is_member(id_of(i))) {
            result.push_back(i);
        }
    }
    return result;
}

TEST(IdFilter, SelectsWhatTheSelectorSelects) {
    for (idx_t n : {1, 63, 64, 65, 200, 1000}) {
        Selectors selectors(n, n);
        for (const auto& sel : selectors.all) {
            const IdFilter filter(*sel);
            const auto same = [](idx_t i) { return i; };
            EXPECT_EQ(positions(filter.select(n)), expected(*sel, n, same));

            const auto& ids = selectors.id_map;
            EXPECT_EQ(
                    positions(filter.select(ids.data(), n)),
                    expected(*sel, n, [&](idx_t i) { return ids[i]; }));

            // as IndexIDMap, alone and around an inverted file, has it
            const faiss::IDSelectorTranslated translated(ids, sel.get());
            const IdFilter of_map(translated);
            EXPECT_EQ(
                    positions(of_map.select(n)), expected(translated, n, same));
            std::vector<idx_t> rows(n);
            for (idx_t& row : rows) {
                row = selectors.random() % n;
            }
            EXPECT_EQ(
                    positions(of_map.select(rows.data(), n)),
                    expected(translated, n, [&](idx_t i) { return rows[i]; }));
        }
    }
    EXPECT_TRUE(IdFilter(EveryThird()).select(0).empty());
}

TEST(IdFilter, ManyIdsOnAllThreads) {
    const idx_t n = 300001;
    Selectors selectors(n, 1);
    for (const auto& sel : selectors.all) {
        // its is_member would go through the whole array each time
        if (dynamic_cast<const faiss::IDSelectorArray*>(sel.get())) {
            const faiss::IDSelectorBatch batch(
                    selectors.ids.size(), selectors.ids.data());
            EXPECT_EQ(IdFilter(*sel).select(n), IdFilter(batch).select(n));
        }
    }
    for (size_t i : {1, 2, 5, 6, 7}) {
        const IDSelector& sel = *selectors.all[i];
        EXPECT_EQ(
                positions(IdFilter(sel).select(n)),
                expected(sel, n, [](idx_t id) { return id; }));
    }
}

/// as `&&` and `||` would
TEST(IdFilter, AsksOthersOnlyWhereItDecides) {
    const EveryThird third;
    const faiss::IDSelectorRange range(10, 20);
    const faiss::IDSelectorAnd both(&range, &third);
    IdFilter(both).select(1000);
    EXPECT_EQ(third.asked, 10);
    third.asked = 0;
    const faiss::IDSelectorOr either(&range, &third);
    IdFilter(either).select(1000);
    EXPECT_EQ(third.asked, 990);
}

} // namespace
