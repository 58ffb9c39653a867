#pragma once

#include <faiss/IndexFlatCodes.h>

#include <faiss_turboquant/SignFilter.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

namespace faiss {

/// parameters of a search: `sel`, as in SearchParameters, which may be used
/// instead
struct SearchParametersTurboQuant : SearchParameters {};

/** Flat index on TurboQuant codes: no training, one rotation and one table
 * lookup per coordinate.
 *
 * The index is trained from birth. Calling train() all the same sets a centre
 * (the mean of the training vectors), which improves recall on data with a
 * large mean and costs 4 bytes a vector for the inner product, none for L2.
 *
 * Distances are computed in integers: every SIMD level returns the same ids
 * and the same distances, and equal distances are ordered by id. An L2 estimate
 * below zero is ordered as it is and shown as zero.
 */
struct IndexTurboQuant : IndexFlatCodes {
    faiss_turboquant::TurboQuantizer tq;

    /** Whether searches for few queries (without AMX, for any number) first
     * read the signs of all codes, and then those codes alone that can be among
     * the results. That is up to six times as fast where queries have
     * neighbours that are much nearer than most vectors, as embeddings do.
     * Where signs have left a few searches more than a quarter of the codes, as
     * of vectors that are all about equally far, one bit more a coordinate
     * tells large ones from small ones. Where few searches gain, few try. It
     * takes d / 8 + 8 bytes a vector more in memory (+ 4 where codes have an
     * offset), and as much for the second bit, from the first such search on
     * until one that does without.
     *
     *   -1: with codes that are this index's own (not a view of a mapped file),
     *       from 4096 vectors on; where these bits are more than half of those
     *       of the codes, while they take at most max_large_filter_bytes
     *    0: never
     *    1: with any codes but those of two parts (TQ2.5, TQ3.5, TQ2prod ..)
     *    2: the same, with the second bit from the beginning
     *
     * Not written to files. */
    int use_sign_filter = -1;

    /// 2 GiB: of signs alone 38 million vectors of 384 dimensions, 10 million
    /// of 1536
    static constexpr size_t max_large_filter_bytes = size_t(2) << 30;

    /** How far from what its signs say a distance may be, in standard
     * deviations, for a code to be read. A neighbour is missed with a
     * probability below that of a normal deviate above this, 2e-8: results are
     * those of reading every code. Less is faster and less exact (3: one
     * neighbour in 1000), above all where all vectors are about equally far.
     * Not written to files. */
    double sign_margin = 5.5;

    /** @param d       dimension, 1 to TurboQuantizer::max_dim
     *  @param nbits   bits per coordinate, 1 to 4
     *  @param metric  METRIC_L2 or METRIC_INNER_PRODUCT
     *  @param rotation_type  Hadamard: O(d log d); Haar: dense, O(d^2)
     *  @param seed    of the rotation; indexes merge only if they share it
     *  @param memory  0: one level per coordinate; 8: trellis-coded with 2^8
     *                 states, a smaller error at the same size and search
     *                 speed, and slower to add
     *  @param codec   how a vector is made from its code
     *  @throws FaissException on any other value */
    explicit IndexTurboQuant(
            idx_t d,
            int nbits = 4,
            MetricType metric = METRIC_L2,
            faiss_turboquant::RotationType rotation_type =
                    faiss_turboquant::RotationType::Hadamard,
            uint64_t seed = faiss_turboquant::TurboQuantizer::default_seed,
            int memory = 0,
            faiss_turboquant::CodecType codec =
                    faiss_turboquant::CodecType::Scaled);

    IndexTurboQuant();

    /** Optional. Sets the centre to the mean of x.
     * @param x  (n, d)
     * @throws FaissException if the index already holds vectors */
    void train(idx_t n, const float* x) override;

    /** @param x  (n, d); on an exception the index is unchanged
     *  @throws FaissException if the codes are a view of a mapped file or of
     *          another's memory (read_index), as everything that changes the
     *          codes does */
    void add(idx_t n, const float* x) override;
    void add_sa_codes(idx_t n, const uint8_t* codes, const idx_t* xids)
            override;
    size_t remove_ids(const IDSelector& sel) override;
    void merge_from(Index& otherIndex, idx_t add_id = 0) override;
    void reset() override;

    /// vector perm[i] becomes number i. perm: (ntotal,)
    void permute_entries(const idx_t* perm);

    /** k nearest neighbours of each query. Results past ntotal, or past the
     * selected ids, have label -1.
     * @param x          (n, d)
     * @param distances  (n, k), written: ascending for L2, descending for
     *                   inner product
     * @param labels     (n, k), written
     * @param params     null, SearchParameters or SearchParametersTurboQuant;
     *                   any other type is refused */
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const SearchParameters* params = nullptr) const override;

#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
    /** One query, for a result handler of the caller's.
     * @param x  (d,) */
    void search1(
            const float* x,
            ResultHandler& handler,
            SearchParameters* params = nullptr) const override;
#endif

    /** All vectors with a distance below radius (L2) or a similarity above it
     * (inner product), by ascending id. */
    void range_search(
            idx_t n,
            const float* x,
            float radius,
            RangeSearchResult* result,
            const SearchParameters* params = nullptr) const override;

    void sa_encode(idx_t n, const float* x, uint8_t* bytes) const override;
    void sa_decode(idx_t n, const uint8_t* bytes, float* x) const override;

    FlatCodesDistanceComputer* get_FlatCodesDistanceComputer() const override;

    /// refuses another nbits, metric, rotation or centre, by name
    void check_compatible_for_merge(const Index& otherIndex) const override;

    /** To be called by those who change `codes` by other means than the
     * functions of this class, except for adding behind the others: what
     * searches have derived from them is made again. */
    void codes_changed();

    /// what a search for n queries asks before it reads codes, or null
    std::shared_ptr<const faiss_turboquant::SignFilter> get_sign_filter(
            idx_t n) const;

   private:
    mutable faiss_turboquant::SignFilterCache sign_filter_cache_;
    mutable faiss_turboquant::SignRecord sign_record_;
};

} // namespace faiss
