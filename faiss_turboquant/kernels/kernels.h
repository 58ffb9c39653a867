#pragma once

/** The kernels, one table of functions per SIMD level.
 *
 * The scalar level (scalar.cpp) is the reference: short, complete, readable.
 * Every other level returns the same integers and the same floats, bit for
 * bit: integer sums are exact in any order, and float sums run in 32 lanes,
 * element i in lane i % 32, lanes then added as a binary tree of halves (16,
 * 8, 4, 2, 1).
 */

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <faiss_turboquant/kernels/sign_bound.h>
#include <faiss_turboquant/kernels/trellis.h>

namespace faiss_turboquant {

struct Kernels;

/// vectors that Kernels::encode takes at a time where there is a trellis: with
/// fewer, each takes longer
constexpr size_t encode_batch = 4;

/** Where the bits of a code are.
 *
 * A plane of b-bit fields (b = 1, 2, 4) over d coordinates takes
 * m = ceil(d * b / 8) bytes, and field f of byte i holds coordinate f * m + i:
 * a register of any width loads contiguous bytes, and one shift and mask
 * yields contiguous coordinates. A code is one magnitude plane (nbits = 1 has
 * none) and one sign plane, except that 2 and 4 bits hold the sign in the top
 * bit of the field:
 *
 *   nbits 1: plane of 1 (sign)
 *   nbits 2: plane of 2 (sign << 1 | magnitude)
 *   nbits 3: plane of 2 (magnitude), then plane of 1 (sign)
 *   nbits 4: plane of 4 (sign << 3 | magnitude)
 *
 * The sign is 1 for a negative coordinate. The grid position of a field is
 * positions[magnitude], or its partner 63 - positions[magnitude] if the sign
 * is set.
 *
 * With a trellis all planes are of 8 * ceil(d / 8) coordinates, so that their
 * bytes line up, those past d zero, and time is the number of the coordinate.
 * The coded bit k steps earlier is then the same bit of the byte k bytes
 * earlier, and before byte 0 come the last bytes shifted left by one bit:
 *
 *   nbits 1: plane of 1 (coded)
 *   nbits 2: plane of 1 (coded), plane of 1 (sign)
 *   nbits 3: plane of 1 (coded), plane of 1 (sign), plane of 1 (others)
 *   nbits 4: plane of 1 (coded), plane of 1 (sign), plane of 2 (others)
 */
struct CodeLayout {
    size_t d = 0;
    int nbits = 0;
    size_t code_size = 0; ///< stride of the codes: planes and factors
    bool has_offset = false;
    /// grid position of each field value, 2^nbits used; the field of 3 bits is
    /// sign << 2 | magnitude
    uint8_t grid[16] = {};
    /// field magnitude = number of thresholds <= h, where h is the magnitude
    /// of a coordinate in half grid steps, rounded down; 2^(nbits-1) - 1 used
    int8_t thresholds[7] = {};
    /// a coordinate of a rotated unit vector, times this, is in half grid
    /// steps: 2 sqrt(d) / step
    float half_steps = 0;
    /// with a trellis, grid is by the trellis's index, and tables take the
    /// place of thresholds
    Trellis trellis;
    TrellisTables tables;

    bool has_trellis() const {
        return trellis.memory > 0;
    }
    /// bytes of a plane of b-bit fields
    size_t plane_size(int b) const {
        return (d * b + 7) / 8;
    }
    /// bytes of all planes
    size_t packed_size() const {
        if (has_trellis()) {
            return nbits * plane_size(1);
        }
        return nbits == 3 ? plane_size(2) + plane_size(1) : plane_size(nbits);
    }
    /// fields per byte of a plane of b-bit fields is 8 / b; this is the number
    /// of coordinates that every padded buffer has room for
    size_t padded_dim() const {
        return (d + 63) / 64 * 64;
    }
    /// bytes that grid positions are decoded into: registers of a plane's last
    /// field end past them
    size_t grid_size() const {
        return padded_dim() + 64;
    }
    /// bytes that decode_panel works in
    size_t panel_scratch_size() const;
    /// quads of dimensions that dot_panels multiplies
    size_t panel_quads(const Kernels& kernels) const;
    /// bytes that encode works in
    size_t scratch_size() const {
        const size_t fields = 2 * (padded_dim() + 64);
        if (!has_trellis()) {
            return fields;
        }
        // fine positions, two sets of path costs, a decision per state and
        // coordinate
        const size_t states = size_t(1) << trellis.memory;
        const size_t of_vector = 2 * fields + 2 * states + d * states / 8;
        return encode_batch * of_vector + 2 * 64; // to begin on a line
    }
};

/** Turns an integer dot product into a distance, in this order:
 *
 *   t = 2 * sum_i g_i q_i - 63 * sum_i q_i                (exact, int32)
 *   distance = (float(t) * scale) * multiplier + (offset + bias)
 *
 * with scale and offset from the code (offset 0 where there is none). */
struct QueryFactors {
    int32_t sum = 0;      ///< sum of q
    float multiplier = 0; ///< half of step times the query's own scale, times
                          ///< -2 for L2
    float bias = 0;       ///< |q - c|^2 for L2; <q, c> for inner product with
                          ///< a centre, else 0
};

enum class SimdLevel {
    scalar,
    sse4,
    avx2,
    avx2_vnni,
    avx512,
    avx512_vnni,
    amx,
    neon,
    neon_dot
};

/// bytes past a code's planes that may be read: those of a factor
constexpr size_t plane_slack = 4;

/// rows (codes) of a panel, see Kernels::decode_panel
constexpr size_t panel_rows = 16;
inline size_t CodeLayout::panel_scratch_size() const {
    return (panel_rows - 1) * padded_dim() + grid_size();
}
/// no dot_panels reads more panels at once
constexpr size_t panel_group = 4;

/// elements past the n that it is given that Kernels::select may read, and
/// past those that it keeps that it may write
constexpr size_t select_slack = 16;

/// codes of a block of signs. Code i is byte 2 i of the block's rows for
/// i < 32, and byte 2 (i - 32) + 1 for the others: sums of 16 bits then have
/// consecutive codes.
constexpr size_t sign_block = 64;
constexpr size_t sign_place(size_t i) {
    return 2 * (i % (sign_block / 2)) + i / (sign_block / 2);
}
/// bytes of a code whose table entries are added in 8 bits
constexpr size_t sign_step = 4;
/// so no entry is larger
constexpr int max_sign_entry = 255 / (2 * sign_step);
/// queries that Kernels::sum_signs is asked for together
constexpr size_t sign_queries = 4;
/// bits of the fraction of Kernels::fill_sign_tables' factor, and of half
constexpr int sign_fraction = 16, half_fraction = 4;
/// covers the rounding of keys
constexpr float sign_slack = 1.0f / (1 << 20);

/// of both planes
constexpr int32_t weigh_sums(uint16_t signs, uint16_t sizes) {
    return 2 * signs + sizes;
}

/** From a sum of table entries, or of weighted ones, to a key, as
 * Kernels::select has them:
 *
 *   (float(sum) * slope + (shift + spread * residual)) * scale
 *       + (offset + bias)
 *
 * less sign_slack times the absolute value of the last term. */
struct SignFormula {
    float slope = 0;
    float shift = 0;
    float spread = 0;
    float bias = 0;
};

/// what is known of codes besides their planes, (blocks, sign_block)
struct SignFactors {
    const float* scales;
    const float* residuals; ///< what planes leave of a code, see SignFilter
    const float* offsets;   ///< or null for zeros
};

inline float sign_key(
        const SignFormula& formula,
        int32_t sum,
        float scale,
        float residual,
        float offset) {
    const float shift = formula.shift + formula.spread * residual;
    const float product =
            (static_cast<float>(sum) * formula.slope + shift) * scale;
    const float base = offset + formula.bias;
    return product + (base - std::fabs(base) * sign_slack);
}

/// what Kernels::rotation_round transforms
struct RotationBlocks {
    const size_t* sizes; ///< (n,), powers of two that add up to d
    size_t n;
    size_t d;
};

struct Kernels {
    SimdLevel level;

    /** Walsh-Hadamard transform in place, natural order, not normalised.
     * @param x  (n,), n a power of two */
    void (*hadamard)(float* x, size_t n);

    /** A round of a rotation: permutes x by groups of elements, multiplies,
     * y[i * size + j] = x[starts[i] + j] * multiplier[i * size + j],
     * and transforms consecutive blocks of y as `hadamard` does.
     * @param starts      (d / size,), where the groups are in x
     * @param size        1, 2, 4, 8 or 16, which divides all blocks; or d, a
     *                    power of two from 64 on, which is one group and one
     *                    block
     * @param multiplier  (d,)
     * @param y           (d,), written; not x, unless size is d */
    void (*rotation_round)(
            const float* x,
            const int32_t* starts,
            size_t size,
            const float* multiplier,
            const RotationBlocks& blocks,
            float* y);

    /** y = M x, each row a sum in 32 lanes.
     * @param m  (rows, cols) */
    void (*matvec)(
            const float* m,
            size_t rows,
            size_t cols,
            const float* x,
            float* y);

    /// sum of x_i^2 in double, 32 lanes. x: (n,)
    double (*sum_of_squares)(const float* x, size_t n);

    /// sum of a_i b_i in double, 32 lanes
    double (*dot)(const float* a, const float* b, size_t n);

    /** difference = a - b, on the way to
     * @return  squared: its sum_of_squares, else dot(a, b) */
    double (*subtract)(
            const float* a,
            const float* b,
            size_t n,
            bool squared,
            float* difference);

    /// y_i = float(x_i * factor), the product in double
    void (*scale)(const float* x, double factor, float* y, size_t n);

    /** Encode rotated unit vectors.
     * @param y         n vectors, (padded_dim,), zero past d, y_stride floats
     *                  apart
     * @param scratch   (scratch_size,)
     * @param planes    n times (packed_size,), code_size apart, written;
     *                  plane_slack bytes past each may be read
     * @param sums      (n,), sum_i y_i (2 g_i - 63), float sums in 32 lanes,
     *                  written */
    void (*encode)(
            const CodeLayout& layout,
            const float* y,
            size_t y_stride,
            size_t n,
            uint8_t* scratch,
            uint8_t* planes,
            float* sums);

    /** Grid positions of a code.
     * @param planes  (packed_size,), and plane_slack bytes more
     * @param grid    (grid_size,), written up to d; the rest is unspecified */
    void (*decode)(
            const CodeLayout& layout,
            const uint8_t* planes,
            uint8_t* grid);

    /** Quantize a rotated query: q_i = y_i * (127 / max |y|), rounded to
     * nearest even.
     * @param y    (padded_dim,), zero past d
     * @param q    (padded_dim,), written
     * @param sum  written: sum of q_i
     * @return  max |y| */
    float (*quantize_query)(const float* y, size_t n, int8_t* q, int32_t* sum);

    /// bytes of a query in the order in which dot_codes reads it
    size_t (*query_size)(const CodeLayout& layout);

    /** Put a quantized query in the order in which dot_codes reads it.
     * @param q    (padded_dim,)
     * @param out  (query_size,), written */
    void (*arrange_query)(
            const CodeLayout& layout,
            const int8_t* q,
            int8_t* out);

    /** Integer dot products of one query with n codes.
     * @param codes  codes, code_size apart
     * @param rows   (n,) rows of codes to take; null for 0, 1, .. n - 1
     * @param query  from arrange_query
     * @param sum    sum of the query's q_i
     * @param out    (n,), sum_i g_i q_i, written */
    void (*dot_codes)(
            const CodeLayout& layout,
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            const int8_t* query,
            int32_t sum,
            int32_t* out);

    /** Decode up to panel_rows codes into a panel: [padded_dim / 4][row][4]
     * grid positions, so that a register holds four coordinates of
     * consecutive codes and a query's four coordinates are broadcast to it.
     * @param rows     as in dot_codes
     * @param n        1 to panel_rows; the other rows are unspecified
     * @param scratch  (panel_scratch_size,)
     * @param panel    (panel_rows * padded_dim,), written */
    void (*decode_panel)(
            const CodeLayout& layout,
            const uint8_t* codes,
            const uint32_t* rows,
            size_t n,
            uint8_t* scratch,
            uint8_t* panel);

    /// the most queries of a tile
    size_t tile_queries;
    /// dot_panels takes this many quads of dimensions at a time
    size_t quad_step;

    /** Integer dot products of panels with a tile of queries.
     * @param panels        panels, panel_stride bytes apart; those up to the
     *                      next multiple of panel_group are read too
     * @param queries       (n_queries, quads * 4), quantized, zero past d,
     *                      query_stride bytes apart; up to tile_queries of
     *                      them are read
     * @param n_queries     1 to tile_queries
     * @param quads         CodeLayout::panel_quads
     * @param out           (tile_queries, n_panels * panel_rows), rows
     *                      out_stride apart, those of the queries written, and
     *                      so is what belongs to the panels up to the next
     *                      multiple of panel_group; other rows may be */
    void (*dot_panels)(
            const uint8_t* panels,
            size_t panel_stride,
            size_t n_panels,
            const int8_t* queries,
            size_t n_queries,
            size_t query_stride,
            size_t quads,
            int32_t* out,
            size_t out_stride);

    /** Distances of n codes from their dot products, and those among them
     * that beat a threshold.
     * Arrays that it reads go on up to the next multiple of select_slack.
     * @param dots       (n,)
     * @param scales     (n,)
     * @param offsets    (n,), or null for zeros
     * @param sign       +1 if small distances are better, -1 if large ones
     * @param threshold  keep sign * distance < threshold
     * @param keys       (n + select_slack,), the kept sign * distance, written
     * @param positions  (n + select_slack,), their positions, ascending,
     *                   written
     * @return  how many were kept */
    size_t (*select)(
            const QueryFactors& factors,
            const int32_t* dots,
            const float* scales,
            const float* offsets,
            size_t n,
            float sign,
            float threshold,
            float* keys,
            uint32_t* positions);

    /** The planes of signs of a code, whose levels are 2 grid[i] - 63.
     * @param grid    (padded_dim,), up to d
     * @param large   the least magnitude of a level that is large
     * @param signs   (ceil(d / 8),), stride bytes apart, written: bit i of
     *                byte j is set if level 8 j + i is above 0
     * @param sizes   likewise, or null: set if it is above 0 and large, or
     *                neither
     * @return  of the code */
    LevelSums (*pack_signs)(
            const uint8_t* grid,
            size_t d,
            uint8_t large,
            uint8_t* signs,
            uint8_t* sizes,
            size_t stride);

    /** Tables for sum_signs: for all signs of four coordinates, the sum of the
     * |q_i| that agree with them, and half / 2^half_fraction, times factor /
     * 2^sign_fraction, rounded down.
     * @param q       (4 n,), quantized
     * @param factor  such that no entry is above max_sign_entry
     * @param half    of a step between entries
     * @param tables  (n, 16), written */
    void (*fill_sign_tables)(
            const int8_t* q,
            size_t n,
            int16_t factor,
            int16_t half,
            uint8_t* tables);

    /** Sums of table entries, by a plane of a block of codes.
     * @param block        (n_bytes, sign_block), from pack_signs; what follows
     *                     it is prefetched
     * @param tables       (n_queries,), each (n_bytes, 2, 16), entries up to
     *                     max_sign_entry by the low and the high half of a
     *                     byte; no sum of entries is above 65535
     * @param n_queries    sign_queries at a time are fastest
     * @param n_bytes      a multiple of sign_step
     * @param sums         (n_queries, sign_block), written
     * @param sums_stride  from the sums of one query to those of the next */
    void (*sum_signs)(
            const uint8_t* block,
            const uint8_t* const* tables,
            size_t n_queries,
            size_t n_bytes,
            uint16_t* sums,
            size_t sums_stride);

    /** Leaves those codes of blocks whose key, by their planes, is below a
     * threshold.
     * @param signs  (n_blocks, sign_block), from sum_signs
     * @param sizes  likewise, of the second plane; null: of one plane
     * @param left   (n_blocks,), of each block a bit for each code, which is
     *               cleared where its key is not below
     * @return  how many are left */
    size_t (*filter_signs)(
            const SignFormula& formula,
            const uint16_t* signs,
            const uint16_t* sizes,
            const SignFactors& codes,
            size_t n_blocks,
            float threshold,
            uint64_t* left);
};

inline size_t CodeLayout::panel_quads(const Kernels& kernels) const {
    const size_t step = 4 * kernels.quad_step;
    return (d + step - 1) / step * kernels.quad_step;
}

/// one distance: what select computes
inline float distance_from_dot(
        const QueryFactors& factors,
        int32_t dot,
        float scale,
        float offset) {
    const int32_t t = 2 * dot - 63 * factors.sum;
    return (static_cast<float>(t) * scale) * factors.multiplier +
            (offset + factors.bias);
}

/// levels that this build has and this CPU runs, scalar first
std::vector<SimdLevel> available_levels();

/// the name of the enumerator
const char* level_name(SimdLevel level);

/** The level in use: the best available one, or the one that the environment
 * variable TQ_SIMD_LEVEL names.
 * @throws faiss::FaissException if that is unknown or not available */
SimdLevel current_level();

/// the kernels of the current level
const Kernels& kernels();

/// @throws faiss::FaissException if the level is not available
const Kernels& kernels(SimdLevel level);

} // namespace faiss_turboquant
