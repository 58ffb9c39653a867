#pragma once

/** The inner part of every search on the CPU: runs of codes against a group of
 * queries, with what is found handed to a collector a query. */

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include <unistd.h>

#include <faiss/utils/AlignedTable.h>
#include <hwy/cache_control.h>
#include <hwy/contrib/sort/vqsort.h>

#include <faiss_turboquant/QueryBatch.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>
#include <faiss_turboquant/search_pages.h>

namespace faiss_turboquant {

/// codes between two looks at the thresholds
constexpr size_t block_codes = 256;
/// the same while there is no threshold
constexpr size_t first_codes = 64;
/// the most queries that share the decoding of a panel, which costs about as
/// much as two to eight of them
constexpr size_t max_group_queries = 768;

inline size_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) {
        return bytes;
    }
#endif
    return size_t(512) << 10;
}

/** Queries of a group, and codes of a batch, that fit in the second-level cache
 * together, d bytes each. Every tile of queries meets every panel of the
 * batch. */
inline size_t group_queries(size_t d) {
    return std::clamp<size_t>(
            second_level_cache() / 10 * 3 / d / 32 * 32, 32, max_group_queries);
}
inline size_t batch_codes(size_t d) {
    return std::clamp<size_t>(
            second_level_cache() / 4 / d / 64 * 64, 64, block_codes);
}

/** A key and a row as one integer, ordered by key, then by row. */
inline uint64_t pack_entry(float key, uint32_t row) {
    key += 0.0f; // -0 becomes 0
    uint32_t bits;
    std::memcpy(&bits, &key, sizeof(bits));
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;
    return uint64_t(bits) << 32 | row;
}

inline float entry_key(uint64_t entry) {
    uint32_t bits = entry >> 32;
    bits ^= bits >> 31 ? 0x80000000 : 0xffffffff;
    float key;
    std::memcpy(&key, &bits, sizeof(key));
    return key;
}

inline uint32_t entry_row(uint64_t entry) {
    return static_cast<uint32_t>(entry);
}

/// the least key above another
inline float next_key(float key) {
    return std::nextafter(key, std::numeric_limits<float>::infinity());
}

/// put the k smallest of n entries, all different, first
inline void select_entries(uint64_t* entries, size_t n, size_t k) {
    hwy::VQSelect(entries, n, k - 1, hwy::SortAscending());
}

inline void sort_entries(uint64_t* entries, size_t n) {
    hwy::VQSort(entries, n, hwy::SortAscending());
}

/** The k smallest of the entries it is given, rows ascending or, with
 * keeps_equal, in any order. Entries are collected and thinned out in bulk, not
 * kept in order. */
struct Reservoir {
    size_t k;
    size_t limit; ///< entries before they are thinned out
    /// whether keys that equal the last of k are below the threshold: a smaller
    /// row may still come
    bool keeps_equal = false;
    std::vector<uint64_t> entries;
    float threshold = std::numeric_limits<float>::infinity();

    explicit Reservoir(size_t k) : k(k), limit(std::max(2 * k, k + 64)) {}

    /// empty it; only what is below this threshold is wanted from now on
    void restart(float new_threshold) {
        keeps_equal = false;
        entries.clear();
        threshold = new_threshold;
    }

    /// the k-th best key, infinity if there are fewer
    float last_key() {
        shrink();
        return entries.size() < k
                ? std::numeric_limits<float>::infinity()
                : entry_key(*std::max_element(entries.begin(), entries.end()));
    }

    /// bytes that it grows to
    static size_t bytes(size_t k) {
        return (Reservoir(k).limit + block_codes) * sizeof(uint64_t);
    }

    void add(const float* keys, const uint32_t* rows, size_t n) {
        const size_t size = entries.size();
        entries.resize(size + n);
        for (size_t i = 0; i < n; i++) {
            entries[size + i] = pack_entry(keys[i], rows[i]);
        }
        // the first threshold as soon as there is one: without it all is kept
        const bool has_threshold = std::isfinite(threshold);
        if (entries.size() >= (has_threshold ? limit : k + 1)) {
            shrink();
        }
    }

    void shrink() {
        if (entries.size() <= k) {
            return;
        }
        select_entries(entries.data(), entries.size(), k);
        const float last = entry_key(entries[k - 1]);
        threshold = std::min(threshold, keeps_equal ? next_key(last) : last);
        entries.resize(k);
    }

    std::vector<uint64_t> take_sorted() {
        shrink();
        sort_entries(entries.data(), entries.size());
        return std::move(entries);
    }
};

/// all entries under a fixed threshold
struct RangeCollector {
    float threshold;
    std::vector<std::pair<uint32_t, float>> hits;

    void add(const float* keys, const uint32_t* rows, size_t n) {
        for (size_t i = 0; i < n; i++) {
            hits.emplace_back(rows[i], keys[i]);
        }
    }
};

/** Scans runs of codes for a group of queries: start() says for which, then
 * scan_block() as often as there are blocks. */
template <class Collector>
class BlockScan {
   public:
    explicit BlockScan(const TurboQuantizer& tq)
            : k(kernels()),
              tq(tq),
              layout(tq.layout()),
              sign(tq.metric_type == faiss::METRIC_L2 ? 1.0f : -1.0f),
              parts(tq.parts().size()),
              scales(block_codes),
              second_scales(tq.has_second_scale() ? block_codes : 0),
              offsets(layout.has_offset ? block_codes : 0),
              keys(block_codes + select_slack),
              with_second(parts.size() > 1 ? block_codes : 0),
              kept(block_codes + select_slack) {
        for (Part& part : parts) {
            part.dots.resize(block_codes);
        }
    }

    /** @param batch       whose queries [first, first + nq) are searched for
     *  @param collectors  (nq,), have a threshold and add(keys, rows, n)
     *  Both are used until the next start. */
    void start(
            const QueryBatch& batch,
            size_t first,
            size_t nq,
            Collector* collectors) {
        queries = &batch[first];
        query_rows = batch.row(first);
        query_stride = batch.stride();
        this->nq = nq;
        this->collectors = collectors;
        if (is_batch()) {
            make_panels();
        }
    }

    /// the same of one query with `arranged`
    void start(const PreparedQuery& query, Collector& collector) {
        queries = &query;
        query_rows = nullptr;
        nq = 1;
        collectors = &collector;
    }

    /// the most codes of a block
    size_t max_block() const {
        return is_batch() ? batch_codes(tq.rotated_dim()) : block_codes;
    }

    /** A whole run, however long.
     *  @param codes  the run of codes
     *  @param rows   (n,) the rows of it to scan, or null for all, 0 .. n - 1
     */
    void scan(const uint8_t* codes, const uint32_t* rows, size_t n) {
        const size_t step = max_block();
        for (size_t i = 0; i < n; i += step) {
            scan_block(
                    codes, i, rows ? rows + i : nullptr, std::min(step, n - i));
        }
    }

    /** @param codes  the run of codes
     *  @param first  row of the run that the block starts at
     *  @param rows   rows of the block's codes, or null for n from first on */
    void scan_block(
            const uint8_t* codes,
            uint32_t first,
            const uint32_t* rows,
            size_t n) {
        if (!rows) {
            codes += first * layout.code_size;
        }
        if (is_batch()) {
            for (size_t p = 0; p < parts.size(); p++) {
                decode_panels(p, codes, rows, n);
            }
            load_factors(codes, rows, n);
            // tiles of like sizes: a tile of few costs more for each
            size_t tiles = (nq + k.tile_queries - 1) / k.tile_queries;
            for (size_t begin = 0, end; begin < nq; begin = end, tiles--) {
                end = begin + (nq - begin) / tiles;
                for (size_t p = 0; p < parts.size(); p++) {
                    dot_panels(p, begin, end, n);
                }
                for (size_t q = begin; q < end; q++) {
                    select(q, (q - begin) * block_codes, first, rows, n);
                }
            }
            return;
        }
        for (size_t q = 0; q < nq; q++) {
            for (size_t p = 0; p < parts.size(); p++) {
                tq.dot_codes(
                        p, queries[q], codes, rows, n, parts[p].dots.data());
            }
            if (q == 0) {
                // behind the dot products, which have prefetched the codes
                load_factors(codes, rows, n);
            }
            select(q, 0, first, rows, n);
        }
    }

   private:
    bool is_batch() const {
        return query_rows;
    }

    /// what belongs to one part of the codes
    struct Part {
        std::vector<int32_t> dots;

        // of batches only
        size_t panel_stride = 0;
        faiss::AlignedTable<uint8_t, 64> scratch, panels;
    };

    void make_panels() {
        for (size_t p = 0; p < parts.size(); p++) {
            const size_t padded = tq.parts()[p].layout.padded_dim();
            Part& part = parts[p];
            part.panel_stride = panel_rows * padded;
            part.scratch.resize(tq.parts()[p].layout.panel_scratch_size());
            part.panels.resize(max_block() * padded);
            part.dots.resize(k.tile_queries * block_codes);
        }
    }

    void load_factors(const uint8_t* codes, const uint32_t* rows, size_t n) {
        tq.load_factors(
                codes,
                rows,
                n,
                scales.data(),
                tq.has_second_scale() ? second_scales.data() : nullptr,
                layout.has_offset ? offsets.data() : nullptr);
    }

    /// what of a block is better than the query's threshold to its collector
    /// @param at  of the dot products of the query
    void select(
            size_t q,
            size_t at,
            uint32_t first,
            const uint32_t* rows,
            size_t n) {
        Collector& collector = collectors[q];
        const int32_t* query_dots = parts[0].dots.data() + at;
        const float* query_offsets =
                layout.has_offset ? offsets.data() : nullptr;
        if (parts.size() > 1) {
            add_second_part(q, parts[1].dots.data() + at, n);
            query_offsets = with_second.data();
        }
        for (size_t begin = 0; begin < n;) {
            // without a threshold, a few first, to have one for the rest
            const size_t end = std::isfinite(collector.threshold)
                    ? n
                    : std::min(n, begin + first_codes);
            const size_t nkept = k.select(
                    queries[q].factors,
                    query_dots + begin,
                    scales.data() + begin,
                    query_offsets ? query_offsets + begin : nullptr,
                    end - begin,
                    sign,
                    collector.threshold,
                    keys.data(),
                    kept.data());
            for (size_t i = 0; i < nkept; i++) {
                const uint32_t row = begin + kept[i];
                kept[i] = rows ? rows[row] : first + row;
            }
            collector.add(keys.data(), kept.data(), nkept);
            begin = end;
        }
    }

    /// the offsets of codes of two parts: what the second part adds to them
    void add_second_part(size_t q, const int32_t* second_dots, size_t n) {
        const auto& of_second = tq.has_second_scale() ? second_scales : scales;
        for (size_t i = 0; i < n; i++) {
            with_second[i] = distance_from_dot(
                    queries[q].second,
                    second_dots[i],
                    of_second[i],
                    layout.has_offset ? offsets[i] : 0);
        }
    }

    void decode_panels(
            size_t p,
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n) {
        const CodePart& of_code = tq.parts()[p];
        Part& part = parts[p];
        codes += of_code.byte;
        for (size_t i = 0; i < n; i += panel_rows) {
            if (p == 0) {
                // the hardware does not see far enough ahead in sixteen rows
                const size_t next = std::min(i + panel_rows, n);
                prefetch(codes, rows, next, std::min(next + panel_rows, n));
            }
            k.decode_panel(
                    of_code.layout,
                    rows ? codes : codes + i * layout.code_size,
                    rows ? rows + i : nullptr,
                    std::min(panel_rows, n - i),
                    part.scratch.data(),
                    part.panels.data() + i / panel_rows * part.panel_stride);
        }
    }

    /// codes [begin, end) of a block
    void prefetch(
            const uint8_t* codes,
            const uint32_t* rows,
            size_t begin,
            size_t end) {
        for (size_t i = begin; i < end; i++) {
            const uint8_t* code =
                    codes + (rows ? rows[i] : i) * layout.code_size;
            for (size_t byte = 0; byte < layout.code_size; byte += 64) {
                hwy::Prefetch(code + byte);
            }
        }
    }

    /// of n codes, in panels, with the tile of queries [begin, end)
    void dot_panels(size_t p, size_t begin, size_t end, size_t n) {
        const CodePart& of_code = tq.parts()[p];
        Part& part = parts[p];
        k.dot_panels(
                part.panels.data(),
                part.panel_stride,
                (n + panel_rows - 1) / panel_rows,
                query_rows + begin * query_stride + of_code.coordinate,
                end - begin,
                query_stride,
                of_code.layout.panel_quads(k),
                part.dots.data(),
                block_codes);
    }

    const Kernels& k;
    const TurboQuantizer& tq;
    const CodeLayout& layout;
    float sign;
    const PreparedQuery* queries = nullptr;
    const int8_t* query_rows = nullptr; ///< null: queries are arranged
    size_t query_stride = 0;
    size_t nq = 0;
    Collector* collectors = nullptr;

    std::vector<Part> parts;
    std::vector<float> scales, second_scales, offsets, keys;
    std::vector<float> with_second; ///< offsets, where there are two parts
    std::vector<uint32_t> kept;
};

} // namespace faiss_turboquant
