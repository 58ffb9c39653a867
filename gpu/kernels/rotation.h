#pragma once

/** How a Hadamard rotation goes through shared memory.
 *
 * Blocks are powers of two. A warp transforms a part at a time: `part`
 * coordinates of a block, or a whole block of fewer. Each lane has `count` of
 * the 32 * count coordinates in registers, at first neighbours, for the stages
 * of small distances, then coordinates 32 apart, for the others. What is less
 * than 32 coordinates long is the last part, with one coordinate a lane.
 *
 * The first round's permutation, which moves coordinates one by one, is made
 * where a vector is written to shared memory; those of the others, which move
 * runs of coordinates, where it is read. */

#include <cstdint>
#include <vector>

#include <faiss_turboquant/quantizer/Rotation.h>
#include <gpu/kernels/device_layout.h>

namespace faiss_turboquant {
namespace gpu {

/// coordinates of the greatest part that a warp transforms
constexpr int max_part = 1024;

/// the same where a block of threads takes a short vector, all of whose warps
/// shall have one
constexpr int short_part = 128;

/// Coordinates of the greatest part where a block takes a vector. The stages
/// between parts are made by each thread in registers, which hold coordinates
/// of 31 parts.
TQ_HOST_DEVICE constexpr int part_of_block(int d) {
    return d < 32 * short_part ? short_part : max_part;
}

/// a Rotation in device memory
struct DeviceRotation {
    int d = 0;
    int part = max_part; ///< coordinates of the greatest one
    /// rotation_words: input_words, then run_words of each round
    const uint32_t* words = nullptr;
    int run = 1; ///< coordinates that move together: 16, 4 or 1
    /// of the multipliers of a block of size 2^b
    float magnitudes[15] = {};
    const float* matrix = nullptr; ///< (d, d) of a dense rotation, else null
};

/** Where element i of a SharedVector is. Rows of 32 are 4 apart, so that
 * neither a row nor a column is in few banks. */
TQ_HOST_DEVICE constexpr int shared_place(int i) {
    return i + i / 32 * 4;
}

/// floats of a SharedVector
TQ_HOST_DEVICE constexpr int shared_vector_size(int d) {
    return shared_place((d + dims_unit - 1) / dims_unit * dims_unit);
}

/// the word of input_words that belongs to coordinate i: a lane has every 32nd
/// coordinate, and loads four words at a time
TQ_HOST_DEVICE constexpr int input_word_at(int i) {
    return (i / 128 * 32 + i % 32) * 4 + i / 32 % 4;
}

/// size of input_words
TQ_HOST_DEVICE constexpr int input_words_size(int d) {
    return (d + dims_unit - 1) / dims_unit * dims_unit;
}

/// coordinates of a run in a part with `count` coordinates a lane
TQ_HOST_DEVICE constexpr int run_in_part(int count, int run) {
    return run < count ? run : count;
}

/// whether lanes take coordinates of such a part in an order of their own
TQ_HOST_DEVICE constexpr bool has_lane_order(int count) {
    return count >= 8; // four floats a lane of eight are served at a time
}

/// words of such a part in run_words: of its runs, then of its lanes
TQ_HOST_DEVICE constexpr int run_words_of_part(int count, int run) {
    return 32 * count / run_in_part(count, run) +
            (has_lane_order(count) ? 32 : 0);
}

/// word k of n of a lane in them: lanes load up to four at a time
TQ_HOST_DEVICE constexpr int run_word_at(int n, int lane, int k) {
    const int width = n < 4 ? n : 4;
    return (k / width * 32 + lane) * width + k % width;
}

/// size of run_words. part: of the greatest
TQ_HOST_DEVICE constexpr int run_words_size(int d, int part, int run) {
    int size = d / part * run_words_of_part(part / 32, run);
    for (int count = part / 64; count > 0; count /= 2) {
        size += d & 32 * count ? run_words_of_part(count, run) : 0;
    }
    return size + (d % 32 != 0 ? run_words_of_part(1, run) : 0);
}

/// of run_words: bytes from the start of a SharedVector
constexpr uint32_t place_mask = 0x1fffc;
/// and where the sign of coordinate j of a run is, from the highest bit on
TQ_HOST_DEVICE constexpr int sign_shift(int j) {
    return j < 15 ? j : 31;
}

/// the greatest DeviceRotation::run of a Hadamard rotation
int run_of(const Rotation& rotation);

/** What DeviceRotation::words point to.
 *
 * input_words say where coordinates of the input go before the first round, in
 * bytes from the start of a SharedVector.
 *
 * run_words, for each part of a round: where the runs of coordinates of each
 * lane come from, place_mask, and whether their signs change, sign_shift; then,
 * if has_lane_order, where they are in the part, in bytes.
 *
 * Which lane takes which coordinates of a part, and where the input goes, is
 * such that banks of shared memory seldom conflict.
 * @param part  as of DeviceRotation
 * @param run   likewise, of a Hadamard rotation; a dense one has input_words
 *              alone */
std::vector<uint32_t> rotation_words(
        const Rotation& rotation,
        int part,
        int run);

} // namespace gpu
} // namespace faiss_turboquant
