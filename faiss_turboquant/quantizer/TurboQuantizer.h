#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <faiss/MetricType.h>
#include <faiss/impl/Quantizer.h>
#include <faiss/utils/AlignedTable.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/Codebook.h>
#include <faiss_turboquant/quantizer/Rotation.h>
#include <faiss_turboquant/quantizer/Sketch.h>

namespace faiss_turboquant {

/** A query made ready for the integer kernels: rotated, quantized to int8,
 * with the float factors that turn an integer dot product into a distance. */
struct PreparedQuery {
    /// in the order of Kernels::dot_codes, part after part
    faiss::AlignedTable<int8_t, 64> arranged;
    QueryFactors factors;
    QueryFactors second; ///< for the second part of codes that have two
};

/** A code made ready to be compared with others: its levels in the place of a
 * query's coordinates. */
struct PreparedCode {
    /// 2 g - 63 in the order of Kernels::dot_codes
    faiss::AlignedTable<int8_t, 64> arranged;
    int32_t sums[2] = {}; ///< of these, for each part
    /// in the place of these where there is a sketch: P (x - c), (d,) and
    /// padded
    std::vector<float> decoded;
    float scale = 0;
    float offset = 0;
};

/** Coordinates of a rotated vector whose levels are of one codebook, and where
 * their planes are in a code. */
struct CodePart {
    CodeLayout layout;     ///< code_size and has_offset are of the whole code
    double half_level = 0; ///< level(g) of a unit vector is (2 g - 63) times it
    size_t coordinate = 0; ///< of the rotated vector, where the part begins
    size_t byte = 0;       ///< of a code, where its planes begin
};

/// how a vector is made from its code
enum class CodecType : uint8_t {
    /// TQ1 .. TQ4, TQ1t .. TQ4t: the levels times the estimator scale
    Scaled = 0,
    /// TQ1mse .. TQ4mse: the levels times the norm (Zandieh et al.,
    /// TurboQuant, 2025, Algorithm 1)
    Mse = 1,
    /// TQ1.5 .. TQ3.5, TQ1.5t .. TQ3.5t: as Scaled, with nbits + 1 bits for the
    /// first half of the rotated coordinates and nbits for the others
    HalfBit = 2,
    /// TQ1prod .. TQ4prod: nbits - 1 bits as Mse, and the signs of a sketch of
    /// what they leave (Zandieh et al., TurboQuant, 2025, Algorithm 2)
    Prod = 3,
};

/** Codes of TurboQuant with the estimator scale of EDEN and RaBitQ.
 *
 * A vector x is encoded as the quantized direction of P (x - c), for a
 * rotation P and a centre c (0 until train() sets it), followed by one to
 * three float32 factors:
 *
 *   [bit planes, packed_size bytes][scale][second scale][offset]
 *
 * of which the last two only where there are such.
 *
 * scale is |x - c| / <u, v>, where u is the rotated unit direction and v the
 * chosen levels, so that scale * <P (q - c), v> estimates <q - c, x - c>
 * without bias over rotations (Vargaftik et al., EDEN, ICML 2022, section 4;
 * Gao and Long, RaBitQ, SIGMOD 2024, section 3.2). offset is |x - c|^2 for L2
 * and <x - c, c> for inner product with a centre.
 *
 * The levels are the Lloyd-Max centroids of the coordinate density
 * (Zandieh et al., TurboQuant, 2025, section 3.1), on an integer grid, or those
 * of a trellis code (kernels/trellis.h), whose error is smaller and whose
 * encoder is slower.
 *
 * That is CodecType::Scaled. With CodecType::Mse scale is |x - c|, so that a
 * vector is |x - c| P^T v + c as the paper's Algorithm 1 has it: inner products
 * fall short by the mean squared error. With CodecType::HalfBit a code has two
 * parts, with a codebook each, and is Scaled otherwise.
 *
 * With CodecType::Prod the first part is that of Mse at nbits - 1 bits, and the
 * second one the signs of S r, for the residual r = u - v and a Gaussian S that
 * the seed of the rotation gives (quantizer/Sketch.h). An inner product is
 * estimated as scale * (<q', v> + sqrt(pi / 2) |r| <S q', sign(S r)> / sqrt(d))
 * with q' = P (q - c), which is unbiased over S; behind scale stands another
 * factor, scale * |r|. At one bit there are no levels, r is u, and the sketch
 * is the only part (QJL).
 */
struct TurboQuantizer : faiss::Quantizer {
    /// bits per coordinate, 1 to 4; with HalfBit 1 to 3, and half a bit more
    int nbits = 4;
    CodecType codec = CodecType::Scaled;
    faiss::MetricType metric_type = faiss::METRIC_L2;
    Rotation rotation;         ///< P
    Codebook codebook;         ///< levels, for this d and nbits
    Codebook second_codebook;  ///< of the second part, else without levels
    std::vector<float> centre; ///< c, size d; empty when there is none
    /// the caller keeps a centre for each code (a centroid of an inverted file)
    bool by_residual = false;

    TurboQuantizer() = default;

    /** @param d       dimension of the vectors, 1 to max_dim
     *  @param nbits   bits per coordinate, 1 to 4
     *  @param metric  METRIC_L2 or METRIC_INNER_PRODUCT
     *  @param memory  0 for scalar levels, else a trellis of 2^memory states
     *                 (Codebook::trellis_coded)
     *  @param codec   a trellis goes with Scaled and HalfBit only; with the
     *                 latter each part has one
     *  @throws faiss::FaissException on any other value */
    TurboQuantizer(
            size_t d,
            int nbits,
            faiss::MetricType metric,
            RotationType rotation_type = RotationType::Hadamard,
            uint64_t seed = default_seed,
            int memory = 0,
            CodecType codec = CodecType::Scaled);

    /// largest dimension: keeps integer dot products within 32 bits
    static constexpr size_t max_dim = 65536;
    static constexpr uint64_t default_seed = 0x7475726271ULL;

    /// the trellis has 2^memory states; 0 is no trellis
    int memory() const {
        return codebook.trellis.memory;
    }
    /// the factory string of such codes: "TQ4", "TQ2t", "TQ4t12", "TQ3.5t"
    std::string codec_name() const;
    /// whether second_codebook is of use
    bool has_second_codebook() const {
        return codec == CodecType::HalfBit || has_second_scale();
    }
    /// whether codes hold the signs of a sketch, in their last part
    bool has_sketch() const {
        return codec == CodecType::Prod;
    }
    /// whether scale is that of EDEN and RaBitQ, of which estimates are
    /// unbiased
    bool has_estimator_scale() const {
        return codec == CodecType::Scaled || codec == CodecType::HalfBit;
    }
    /// whether the second part of codes has a scale of its own
    bool has_second_scale() const {
        return codec == CodecType::Prod && nbits > 1;
    }
    bool has_centre() const {
        return !centre.empty();
    }
    /// whether codes carry an offset after the scale
    bool has_offset() const {
        return metric_type == faiss::METRIC_L2 || has_centre() || by_residual;
    }
    /// bytes of the bit planes alone: code_size less the factors
    size_t packed_size() const {
        return packed_size_;
    }

    /** Set code_size and the derived tables from d, nbits, codec, metric_type,
     * rotation.type, rotation.seed, the codebooks and centre. Used after
     * reading these from a file.
     * @throws faiss::FaissException when they do not fit together */
    void set_derived_values();

    /** Optional: sets the centre to the mean of x.
     * @param x  (n, d); n >= 1, finite */
    void train(size_t n, const float* x) override;

    /** @param x      (n, d), finite
     *  @param codes  (n, code_size), written
     *  @throws faiss::FaissException naming the first row that is not
     *          finite; codes are then unspecified */
    void compute_codes(const float* x, uint8_t* codes, size_t n) const override;

    /** The same for vectors that have centres of their own.
     * @param centres  (n, d), finite */
    void compute_residual_codes(
            const float* x,
            const float* centres,
            uint8_t* codes,
            size_t n) const;

    /** Reconstruct: the point along P^T v that is nearest to x - c, plus c (if
     * by_residual: not plus c, which the caller has). With Mse and Prod what
     * the paper's algorithms make of a code.
     * @param codes  (n, code_size)
     *  @param x      (n, d), written */
    void decode(const uint8_t* codes, float* x, size_t n) const override;

    /** Prepare one query.
     * @param x  (d,), finite (checked; `row` names it in the exception)
     * @param q  (rotated_dim,), the quantized coordinates in their own order,
     *           written, for batches; if null, query.arranged is */
    void prepare_query(
            const float* x,
            size_t row,
            int8_t* q,
            PreparedQuery& query) const;

    /// query.arranged from the q that prepare_query has written
    void arrange_query(const int8_t* q, PreparedQuery& query) const {
        arrange(q, query.arranged);
    }

    /** P x, part by part: each begins at its CodePart::coordinate and is padded
     * with zeros to a multiple of 64. Where there is a sketch, P x as one, then
     * S P x, for the part of the sketch.
     * @param x        (d,)
     * @param rotated  (rotated_dim,), written */
    void rotate(const float* x, float* rotated) const;

    /// floats of a rotated vector with its padding
    size_t rotated_dim() const;

    /** rotate(), for prepare_residual_query.
     * @param x        (d,), finite (checked; `row` names it in the exception)
     * @param rotated  (rotated_dim,), written */
    void rotate_query(const float* x, size_t row, float* rotated) const;

    /** Prepare a rotated query for the codes of one centre: a subtraction and a
     * quantization.
     * @param rotated         (rotated_dim,), from rotate_query
     * @param rotated_centre  (rotated_dim,), from rotate
     * @param q               as in prepare_query */
    void prepare_residual_query(
            const float* rotated,
            const float* rotated_centre,
            int8_t* q,
            PreparedQuery& query) const;

    /// distance or similarity of one code, the same value a search returns
    float distance_to_code(const PreparedQuery& query, const uint8_t* code)
            const;

    /** The same of four codes.
     * @param rows       (4,) rows of codes to take
     * @param distances  (4,), written */
    void distances_to_4_codes(
            const PreparedQuery& query,
            const uint8_t* codes,
            const faiss::idx_t* rows,
            float* distances) const;

    void prepare_code(const uint8_t* code, PreparedCode& prepared) const;

    /// distance or similarity between two encoded vectors
    float symmetric_distance(const PreparedCode& code1, const uint8_t* code2)
            const;

    /** The floats behind the planes of n codes.
     * @param codes    codes, code_size apart
     * @param rows     (n,) rows of codes to take; null for 0, 1, .. n - 1
     * @param scales         (n,), written
     * @param second_scales  (n,), written, or null if there are none
     * @param offsets        (n,), written, or null if there are none */
    void load_factors(
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            float* scales,
            float* second_scales,
            float* offsets) const;

    /** The integer dot products of one part of codes, as Kernels::dot_codes.
     * @param query  with `arranged` */
    void dot_codes(
            size_t part,
            const PreparedQuery& query,
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            int32_t* out) const;

    /// the parts of a code, one or two
    const std::vector<CodePart>& parts() const {
        return parts_;
    }
    /// the code layout the kernels work on, of the first part
    const CodeLayout& layout() const {
        return parts_[0].layout;
    }

    /// @throws faiss::FaissException that says how other makes other codes
    void check_same_codes(const TurboQuantizer& other) const;

   private:
    void encode_rows(
            const float* x,
            const float* centres,
            size_t centre_stride,
            uint8_t* codes,
            size_t n) const;
    void rotate_coordinates(const float* x, float* rotated) const;
    void apply_sketch(float* rotated) const;
    struct EncodeWorkspace;
    void rotate_row(
            const float* x,
            const float* centre,
            size_t i,
            EncodeWorkspace& work) const;
    void encode_rotated(size_t n, EncodeWorkspace& work, uint8_t* codes) const;
    void encode_with_sketch(size_t i, EncodeWorkspace& work, uint8_t* code)
            const;
    double symmetric_product(
            const PreparedCode& code1,
            const uint8_t* code2,
            float scale2) const;
    void decode_rotated(const uint8_t* code, float* levels, float* rotated)
            const;
    void quantize_query(
            const float* rotated,
            double length,
            int8_t* q,
            PreparedQuery& query) const;
    void arrange(const int8_t* q, faiss::AlignedTable<int8_t, 64>& arranged)
            const;
    /// where a part begins in `arranged` of queries and codes
    size_t arranged_at(size_t part) const;
    void distances_to_codes(
            const PreparedQuery& query,
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            float* distances) const;

    size_t plain_dim() const;

    std::vector<CodePart> parts_{CodePart()};
    size_t packed_size_ = 0;
    Sketch sketch_;             ///< S, where it is of use
    double expected_error_ = 0; ///< |u - v|^2 on average
    double squared_centre_ = 0; ///< |c|^2
};

} // namespace faiss_turboquant
