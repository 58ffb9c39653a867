#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include <gpu/kernels/device_layout.h>
#include <gpu/kernels/rotation.h>
#include <gpu/kernels/top_k.cuh>

namespace faiss_turboquant {
namespace gpu {

constexpr uint64_t no_row = ~uint64_t(0);

/// the first rows of an input that are refused, or no_row
struct Refused {
    uint64_t not_finite;
    uint64_t too_long;
};

/// TrellisTables in device memory
struct DeviceTrellisTables {
    const uint8_t* costs = nullptr;
    const uint8_t* choices = nullptr;
    const uint8_t* branches = nullptr;
};

struct Encoder {
    DeviceLayout layout;
    DeviceRotation rotation;          ///< by warps
    DeviceRotation rotation_by_block; ///< see part_of_block
    const float* centre = nullptr;    ///< (d,) on the device, or null
    DeviceTrellisTables tables;

    // of vectors in inverted files, else null
    const uint32_t* lists = nullptr; ///< (n,): `centre` is (lists, d) then
    const uint32_t* rows = nullptr;  ///< (n,): where the code of each goes

    TQ_HOST_DEVICE const float* centre_of(size_t i) const {
        return lists ? centre + size_t(lists[i]) * layout.d : centre;
    }
    TQ_HOST_DEVICE size_t row_of(size_t i) const {
        return rows ? rows[i] : i;
    }
};

/// bytes in which encode works for one block, and blocks that it has use for
size_t encode_workspace_of_block(const DeviceLayout& layout);
int encode_blocks(const Encoder& encoder, size_t n);

/** @param x          (n, d)
 *  @param first_row  of the input, for `refused`
 *  @param planes     (rows, row_size), of which n are written, as the two
 * others
 *  @param scales     (rows,)
 *  @param offsets    (rows,); null if the codes have none
 *  @param workspace  blocks times encode_workspace_of_block bytes */
void encode(
        const Encoder& encoder,
        const float* x,
        size_t n,
        uint64_t first_row,
        uint8_t* planes,
        float* scales,
        float* offsets,
        Refused* refused,
        uint8_t* workspace,
        int blocks,
        cudaStream_t stream);

/// what turns a dot product into a key, the better the smaller: the distance
/// for L2, its negative for the inner product
struct DeviceQueryFactors {
    uint32_t base; ///< DeviceLayout::base_of times the sum of q
    float multiplier;
    float bias;
};

/** The order of queries in an image, four words of each lane being a fragment
 * of `Fragment`. For the matrix instructions of a warp: [eight
 * queries][fragment][query][lane of the row][word]. For those of four warps:
 * [group][fragment][word][query][lane of the row], or, in batches,
 * [group][fragment][lane of the row][query][word]. By bits, a query is eight
 * codes of one bit, those of bit b of its integers, in the order in which lanes
 * read codes: [query][step][b][lane of the row][word of `units`], or, of eight
 * queries, the words of a lane in fragments [step][unit][b], or [step][pair of
 * units][pair of bits][unit of the pair][bit of the pair] where a matrix
 * instruction of a warp takes two units. */
struct ImageOrder {
    int units = 1;          ///< of Fragment
    bool by_bits = false;   ///< see ScanPlan
    bool is_single = false; ///< likewise
    bool is_batch = false;  ///< likewise
    int group_size = 0;     ///< 0 for the first order
    int bits = 8;           ///< of integers; by bits maybe fewer

    /// the greatest magnitude of a query's integers
    TQ_HOST_DEVICE constexpr int largest_integer() const {
        return (1 << (bits - 1)) - 1;
    }
};

/** Of a query whose integers, w, have fewer bits than those that codes' keys
 * have, q. With c = |q|^2 / <q, w>, the rest q - c w is orthogonal to q, as are
 * the residuals of codes (see SignApproximation). */
struct QuerySums {
    uint32_t magnitudes; ///< of w
    float squares;       ///< |q|^2 / c^2
    float rest;          ///< |q - c w| / c
};

/// rows that a search by signs has left; 0: not known
struct RowsLeft {
    uint32_t by_first; ///< plane, if it has been asked alone
    uint32_t by_all;   ///< planes, if it has asked both
};

/// queries as they are compared with codes of a layout, and what else a search
/// begins with
struct QueryImage {
    DeviceLayout layout;
    ImageOrder order;
    // written; null where it is not wanted
    uint8_t* image = nullptr;              ///< (padded_nq, dims)
    DeviceQueryFactors* factors = nullptr; ///< (padded_nq,)
    QuerySums* sums = nullptr;             ///< (padded_nq,)
    Entry* thresholds = nullptr;    ///< (padded_nq,): which exclude nothing
    RowsLeft* left = nullptr;       ///< (1,): none
    uint32_t* next_round = nullptr; ///< (1,): 0, see ProductSink
};

/** Rotate and quantize queries. Queries past nq are such that nothing is ever
 * near them.
 * @param x          (nq, d)
 * @param padded_nq  multiple of 8, and of group_size
 * @param image      of the encoder's layout
 * @param of_signs   if given, another one */
void prepare_queries(
        const Encoder& encoder,
        const float* x,
        size_t nq,
        uint64_t first_row,
        size_t padded_nq,
        const QueryImage& image,
        const QueryImage* of_signs,
        Refused* refused,
        cudaStream_t stream);

/** P x of queries.
 * @param x        (nq, d)
 * @param rotated  (nq, dims), written, with zeros past d */
void rotate_queries(
        const Encoder& encoder,
        const float* x,
        size_t nq,
        uint64_t first_row,
        float* rotated,
        Refused* refused,
        cudaStream_t stream);

/// of an empty slot
constexpr uint32_t no_probe = ~uint32_t(0);

/// queries relative to the centres of lists that they probe, one in each slot
struct ResidualQueries {
    const float* rotated; ///< (nq, dims), by rotate_queries
    const float* centres; ///< (lists, dims), likewise
    const int64_t* lists; ///< (nq, nprobe)
    uint32_t nprobe;
    /// place in `lists`, or no_probe. Slots of a group, or eight, are of one
    /// list, and empty ones come last
    const uint32_t* probe_of_slot;
};

/** The rest of what prepare_queries does. Nothing is ever near what is in an
 * empty slot, of which the image is not written.
 * @param n_slots  multiple of 8, and of group_size */
void prepare_residual_queries(
        const DeviceLayout& layout,
        const ResidualQueries& queries,
        size_t n_slots,
        const ImageOrder& order,
        uint8_t* image,
        DeviceQueryFactors* factors,
        cudaStream_t stream);

/** Between codes as the CPU has them and codes on the device. Nothing is
 * written past d.
 * @param codes    (n, code_size)
 * @param planes   (n, row_size)
 * @param offsets  null if the codes have none */
void import_codes(
        const DeviceLayout& layout,
        const uint8_t* codes,
        size_t n,
        uint8_t* planes,
        float* scales,
        float* offsets,
        cudaStream_t stream);
void export_codes(
        const DeviceLayout& layout,
        const uint8_t* planes,
        const float* scales,
        const float* offsets,
        size_t n,
        uint8_t* codes,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
