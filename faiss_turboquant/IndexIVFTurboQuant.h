#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/utils/AlignedTable.h>

#include <faiss_turboquant/ListScanner.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

namespace faiss {

/** Inverted file of TurboQuant codes of residuals.
 *
 * A vector x is encoded as IndexTurboQuant encodes it with the centre c of its
 * list as its centre, so only the coarse quantizer is trained. A query is
 * centred on each list as well: <q, x> = <q - c, x - c> + <x - c, c> + <q, c>,
 * so that the error is proportional to |q - c| |x - c|. It is rotated once; a
 * list costs a subtraction of the rotated centre and a quantization to int8.
 * Codes take 8 bytes beside the bit planes, with both metrics.
 *
 * The rotated centres (nlist x d float32) are computed by the first search and
 * kept until the next train(), reset() or centres_changed().
 *
 * search() and range_search() use all threads for one query as for many, and
 * queries that probe the same list share the decoding of its codes. Results do
 * not depend on the batch, the number of threads or the SIMD level; equal
 * distances are ordered by id. parallel_mode, which says how FAISS's own
 * inverted files are cut up for threads, is of no effect, except with
 * max_codes, inverted_list_context, lists that are read by iterators, and
 * PARALLEL_MODE_NO_HEAP_INIT, where FAISS's own loop runs, query by query.
 */
struct IndexIVFTurboQuant : IndexIVF {
    faiss_turboquant::TurboQuantizer tq; ///< by_residual

    /** Whether the queries that probe a list, if they are few (up to 12, or 24
     * with AVX2; without VNNI and from d = 512 on, any number), first read the
     * signs of its codes, and then those codes alone that can be among the
     * results, as those of IndexTurboQuant do. It takes d / 8 + 12 bytes a
     * vector more in memory, and where there is a second bit d / 8 + 8 besides,
     * from the first such search of a list on until one that does without.
     *
     *   -1: with lists in memory, of 512 vectors or more (with AVX-512, 1024),
     *       while it takes at most max_sign_filter_bytes for all lists
     *    0: never
     *    1: with any lists, and any codes but those of two parts
     *    2: the same, with the second bit from the beginning
     *
     * Searches that FAISS's own loop does (see below) read all codes. Not
     * written to files. */
    int use_sign_filter = -1;

    /// 2 GiB: 35 million vectors of 384 dimensions, 10 million of 1536
    static constexpr size_t max_sign_filter_bytes = size_t(2) << 30;

    /// as of IndexTurboQuant
    double sign_margin = 5.5;

    /** The centre of list l is centre_scales[l] times its centroid; empty: the
     * centroid. train() sets this for the inner product, where k-means leaves
     * centroids of length 1, which are not the means of their lists. */
    std::vector<float> centre_scales;

    /** @param quantizer  maps vectors to lists; must be able to reconstruct
     *  @param d          dimension, 1 to TurboQuantizer::max_dim
     *  @param nlist      number of lists
     *  @param nbits      bits per coordinate, 1 to 4
     *  @param metric     METRIC_L2 or METRIC_INNER_PRODUCT
     *  @param rotation_type, seed, memory, codec  as for IndexTurboQuant
     *  @throws FaissException on any other value */
    IndexIVFTurboQuant(
            Index* quantizer,
            size_t d,
            size_t nlist,
            int nbits = 4,
            MetricType metric = METRIC_L2,
            bool own_invlists = true,
            faiss_turboquant::RotationType rotation_type =
                    faiss_turboquant::RotationType::Hadamard,
            uint64_t seed = faiss_turboquant::TurboQuantizer::default_seed,
            int memory = 0,
            faiss_turboquant::CodecType codec =
                    faiss_turboquant::CodecType::Scaled);

    IndexIVFTurboQuant();

    /** Trains the coarse quantizer, and centre_scales while there are no
     * vectors.
     * @param x  (n, d) */
    void train(idx_t n, const float* x) override;

    void reset() override;

    /** As IndexIVF, but a vector that is not finite is refused, by its row,
     * before any is added.
     * @param x     (n, d)
     * @param xids  (n,), or null for ntotal, ntotal + 1, .. */
    void add_with_ids(idx_t n, const float* x, const idx_t* xids) override;

    // refused, as adding is, when the lists are read-only (read_index of a
    // mapped file, OnDiskInvertedLists with IO_FLAG_READ_ONLY)
    void add_sa_codes(idx_t n, const uint8_t* codes, const idx_t* xids)
            override;
    size_t remove_ids(const IDSelector& sel) override;
    void update_vectors(int n, const idx_t* ids, const float* x) override;
    void merge_from(Index& otherIndex, idx_t add_id) override;

    void encode_vectors(
            idx_t n,
            const float* x,
            const idx_t* list_nos,
            uint8_t* codes,
            bool include_listno = false) const override;

    void decode_vectors(
            idx_t n,
            const uint8_t* codes,
            const idx_t* list_nos,
            float* x) const override;

    void sa_decode(idx_t n, const uint8_t* bytes, float* x) const override;

    /** k nearest neighbours of each query in its nprobe nearest lists.
     * @param x          (n, d)
     * @param distances  (n, k), written: ascending for L2, descending for
     *                   inner product
     * @param labels     (n, k), written; -1 past the last result
     * @param params     null or SearchParametersIVF; any other type is
     *                   refused */
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const SearchParameters* params = nullptr) const override;

    void search_preassigned(
            idx_t n,
            const float* x,
            idx_t k,
            const idx_t* assign,
            const float* centroid_dis,
            float* distances,
            idx_t* labels,
            bool store_pairs,
            const IVFSearchParameters* params = nullptr,
            IndexIVFStats* stats = nullptr) const override;

    /// results of a query by ascending id. max_codes is refused
    void range_search_preassigned(
            idx_t nx,
            const float* x,
            float radius,
            const idx_t* keys,
            const float* coarse_dis,
            RangeSearchResult* result,
            bool store_pairs = false,
            const IVFSearchParameters* params = nullptr,
            IndexIVFStats* stats = nullptr) const override;

    void range_search(
            idx_t nx,
            const float* x,
            float radius,
            RangeSearchResult* result,
            const SearchParameters* params = nullptr) const override;

    InvertedListScanner* get_InvertedListScanner(
            bool store_pairs = false,
            const IDSelector* sel = nullptr,
            const IVFSearchParameters* params = nullptr) const override;

    void reconstruct_from_offset(int64_t list_no, int64_t offset, float* recons)
            const override;

    /// refuses other centres, nbits, metric or rotation, by name
    void check_compatible_for_merge(const Index& otherIndex) const override;

    using RotatedCentres = AlignedTableTightAlloc<float, 64>;
    /** Rotated centres, padded with zeros: (nlist, rotated_dim). Computed when
     * first asked for. */
    std::shared_ptr<const RotatedCentres> rotated_centres() const;

    /// Forget them. To be called by those who change the quantizer's
    /// centroids, or their order, or centre_scales, other than by train().
    void centres_changed();

    /// what the vectors of a list are encoded relative to
    /// @param centre  (d,), written
    void get_centre(idx_t list_no, float* centre) const;

   private:
    void train_centre_scales(idx_t n, const float* x);
    /// the lists that a search looks into, (n, nprobe), nearest first
    struct Probes {
        std::vector<idx_t> keys;
        std::vector<float> distances;
    };
    /// @throws FaissException if the quantizer names a list that is not there
    Probes find_probes(
            idx_t n,
            const float* x,
            size_t nprobe,
            const IVFSearchParameters* params) const;
    /// what searches ask before they read codes
    faiss_turboquant::ListSigns get_signs() const;
    /// whether a search is of a kind that only FAISS's own loop knows
    bool needs_faiss_loop(const IVFSearchParameters* params) const;

    /// shared by searches; a copy of the index computes its own
    struct Cache {
        std::mutex mutex;
        std::shared_ptr<const RotatedCentres> rotated_centres;
        faiss_turboquant::ListSignFilters sign_filters;

        Cache() = default;
        Cache(const Cache&) {}
        Cache& operator=(const Cache&) {
            clear();
            return *this;
        }
        void clear();
    };
    mutable Cache cache_;
};

} // namespace faiss
