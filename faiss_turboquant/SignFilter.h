#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include <faiss/utils/AlignedTable.h>

#include <faiss_turboquant/Backoff.h>
#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/kernels/sign_bound.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

namespace faiss_turboquant {

/// A query as a SignFilter is asked about it.
struct SignQuery {
    /// (bytes of a code's signs, 2, 16), for Kernels::sum_signs
    faiss::AlignedTable<uint8_t, 64> tables;
    double multiplier = 0; ///< of <q, u> in keys, without the code's scale

    /// of the codes as one plane or more tell of them
    struct Planes {
        SignFormula expected; ///< to the key that these let expect
        SignBoundQuery bound; ///< for SignFilter::least
    };
    Planes first, both;
};

/** The signs of the coordinates of codes, in blocks that a query reads instead
 * of most codes: one bit a coordinate and a factor or two a code say that a
 * code is not among the results, or that it has to be read. Where they leave
 * too many, a second bit, with factors of its own, tells large magnitudes from
 * small ones.
 *
 * With v the levels of a code and u what planes of bits tell of them, their
 * signs, or see max_sign_planes, v = beta u + r, where beta = |v|^2 / <v, u>.
 * The planes give <q, u>. What they leave of <q, v> is <q, r>, and r is
 * orthogonal to v, in a direction that is random by the rotation: with p the
 * part of q that is orthogonal to v, <q, r> is |p| |r| times a coordinate of a
 * random unit vector, of standard deviation 1 / sqrt(d - 1). A code is passed
 * over where its distance would have to be better than its planes say by more
 * than `margin` standard deviations: the bound of Gao and Long, RaBitQ, SIGMOD
 * 2024, section 3.2. Of a code that is near enough, p is short: at a cosine of
 * 0.8, |p| is 0.6 |q|. So a search returns what it returns when it reads every
 * code, but that it misses a neighbour with a probability below that of a
 * normal deviate above margin: 1e-3 at 3, 3e-5 at 4, 2e-8 at 5.5. |r| is 0.60
 * |v| with signs, 0.34 |v| with both planes.
 *
 * In memory only: it is made from codes, of any codec with one part. */
class SignFilter {
   public:
    /// @param n_planes  up to max_planes(tq)
    SignFilter(const TurboQuantizer& tq, int n_planes);

    /// whether it can be made of these codes
    static bool supports(const TurboQuantizer& tq) {
        return tq.parts().size() == 1 && !tq.has_sketch();
    }

    /// of one magnitude, signs tell everything
    static int max_planes(const TurboQuantizer& tq) {
        return tq.nbits == 1 && !tq.layout().has_trellis() ? 1
                                                           : max_sign_planes;
    }

    /// memory that it takes for so many codes
    static size_t bytes(const TurboQuantizer& tq, size_t ntotal, int n_planes);

    /** Take codes size() .. ntotal - 1.
     * @param codes  (ntotal, tq.code_size) */
    void extend(const TurboQuantizer& tq, const uint8_t* codes, size_t ntotal);

    /// codes in it
    size_t size() const {
        return size_;
    }

    int n_planes() const {
        return n_planes_;
    }

    /// whether code number i could be this one
    bool agrees(const TurboQuantizer& tq, const uint8_t* code, size_t i) const;

    /// @param q        (rotated_dim,), the quantized query, from prepare_query
    /// @param factors  of the query
    /// @param margin   standard deviations, above 0
    SignQuery make_query(
            const int8_t* q,
            const QueryFactors& factors,
            double margin) const;

    /** To a key that a code's own is not below, and near to it where that is
     * near the threshold.
     * @param n_planes  whose sums it is for */
    SignFormula least(const SignQuery& query, int n_planes, float threshold)
            const;

    /** @param plane   number of the plane
     *  @param tables  (n,), of queries
     *  @param sums    (n, sign_block), for filter() and key(), written
     *  @param stride  from the sums of one query to those of the next */
    void sum_plane(
            int plane,
            const uint8_t* const* tables,
            size_t n,
            size_t block,
            uint16_t* sums,
            size_t stride) const {
        kernels().sum_signs(
                planes_[plane].bits[block * n_bytes_].bytes,
                tables,
                n,
                n_bytes_,
                sums,
                stride);
    }

    /** Leaves those codes of blocks whose key is below a threshold.
     * @param formula  of the query
     * @param block    number of the first one
     * @param signs    (n_blocks, sign_block), sums of the first plane
     * @param sizes    of the second one, or null: the formula is of one plane
     * @param left     (n_blocks,), as of Kernels::filter_signs
     * @return  how many are left */
    size_t filter(
            const SignFormula& formula,
            size_t block,
            const uint16_t* signs,
            const uint16_t* sizes,
            size_t n_blocks,
            float threshold,
            uint64_t* left) const {
        const size_t first = block * sign_block;
        const Plane& plane = planes_[sizes ? 1 : 0];
        return kernels().filter_signs(
                formula,
                signs,
                sizes,
                {plane.scales.data() + first,
                 plane.residuals.data() + first,
                 offsets_.empty() ? nullptr : offsets_.data() + first},
                n_blocks,
                threshold,
                left);
    }

    /// of code number i, whose sums are given, that of sizes or null
    float key(
            const SignFormula& formula,
            size_t i,
            uint16_t sign,
            const uint16_t* size) const {
        const Plane& plane = planes_[size ? 1 : 0];
        return sign_key(
                formula,
                size ? weigh_sums(sign, *size) : sign,
                plane.scales[i],
                plane.residuals[i],
                offsets_.empty() ? 0 : offsets_[i]);
    }

   private:
    struct alignas(64) Row {
        uint8_t bytes[sign_block];
    };

    /// and what it tells of codes, with those before it
    struct Plane {
        std::vector<Row> bits; ///< (blocks, n_bytes)
        /// (blocks, sign_block), scale of the code times beta
        std::vector<float> scales;
        std::vector<float> residuals; ///< (blocks, sign_block), |r| / beta
        double sum_of_scales = 0;
        SignResiduals range = {std::numeric_limits<double>::max(), 0, 0};
    };

    size_t d_;
    size_t n_bytes_; ///< of a code's signs, with padding
    uint8_t large_;  ///< see large_magnitude
    float sign_;     ///< of distances, as keys have it
    int n_planes_;
    size_t size_ = 0;
    Plane planes_[max_sign_planes];
    /// (blocks, sign_block), sign * offset; empty where codes have none
    std::vector<float> offsets_;
    double sum_of_offsets_ = 0;
};

/** With how large a part of the codes left n queries at a time still find their
 * results sooner by a SignFilter than in panels, which they decode together; 0:
 * they never do.
 * @param n_planes  that are asked of most codes */
double max_filtered_part(size_t d, size_t n, int n_planes);

/** Whether the settings of an index are to use one.
 * @param setting  use_sign_filter of the index
 * @param margin   sign_margin
 * @param pays     what a negative setting stands for
 * @throws faiss::FaissException if the margin is not above 0 */
bool wants_sign_filter(
        const char* index_type,
        const TurboQuantizer& tq,
        int setting,
        double margin,
        bool pays);

/// From how many codes on a list is read sooner by its signs: preparing a query
/// for these takes some microseconds.
size_t least_filtered_list();

/// By how many queries at a time a list is read by its signs at most: more read
/// it in panels. reads_few: of the index's SignRecord
size_t max_filtered_list_queries(size_t d, bool reads_few);

/** The SignFilter of an index. Made and extended by the first search that wants
 * it; any number of threads may. */
class SignFilterCache {
   public:
    SignFilterCache() = default;
    SignFilterCache(const SignFilterCache& other);
    SignFilterCache& operator=(const SignFilterCache& other);

    /** @param codes  (ntotal, tq.code_size); since the last call, codes may
     *                have been added behind the others
     *  @param n_planes  at least
     *  @param looks  whether it is looked at one of these if they are what
     *                they were
     *  @return  of these codes */
    std::shared_ptr<const SignFilter> get(
            const TurboQuantizer& tq,
            const uint8_t* codes,
            size_t ntotal,
            int n_planes,
            bool looks = true);

    /// after any other change of the codes
    void clear();

   private:
    bool has_other_codes(const TurboQuantizer& tq, const uint8_t* codes);

    mutable std::mutex mutex_;
    std::shared_ptr<SignFilter> filter_;
    uint64_t looks_ = 0;
};

/** What searches of an index gain by signs. After a few in a row for which
 * these have left many codes, there is to be a second plane; after a few in a
 * row that have not gained, some do without. Several threads may ask; a copy
 * knows nothing. */
class SignRecord {
   public:
    SignRecord() = default;
    SignRecord(const SignRecord&) {}
    SignRecord& operator=(const SignRecord&) {
        clear();
        return *this;
    }

    /// whether the next search, which may do without, is to ask them
    bool is_promising();

    /// at the end of such a search, if it has asked
    void note(bool gains);

    /// at the end of any search that has asked: how many codes it has read
    void note_read(double part);

    /// whether signs alone have left the last search few codes
    bool reads_few();

    /// that a SignFilter of such codes is to have. setting: use_sign_filter, or
    /// 0 for those that searches have found to be worth while
    int n_planes(const TurboQuantizer& tq, int setting);

    void clear();

   private:
    static constexpr Backoff at_first{1, 256, 3};
    /// searches in a row after which there is a second plane
    static constexpr int patience = 4;

    std::mutex mutex_;
    Backoff backoff_ = at_first; ///< in searches
    int n_read_many_ = 0;        ///< searches, up to patience
    double part_read_ = 1; ///< of the last search before there were as many
};

/// The part of codes left by signs from which a second plane makes up for its
/// own time, which is that of reading a tenth of them.
constexpr double part_for_second_plane = 1.0 / 4;

/** Those of inverted lists. */
class ListSignFilters {
   public:
    SignRecord record;

    /// for so many lists. Others may not use it at the same time, unless there
    /// are as many already
    void resize(size_t nlist);

    /// @param codes  (n, tq.code_size), of the list; as of SignFilterCache
    std::shared_ptr<const SignFilter> get(
            const TurboQuantizer& tq,
            size_t list_no,
            const uint8_t* codes,
            size_t n,
            int n_planes);

    /// after any change of codes but adding behind the others
    void clear();

   private:
    /// a look costs as much as some hundred codes
    static constexpr uint64_t look_period = 16;

    std::mutex mutex_;
    std::vector<SignFilterCache> of_lists_;
    std::atomic<uint64_t> n_asked_{0};
};

} // namespace faiss_turboquant
