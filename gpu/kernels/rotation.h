#pragma once

/** How a Hadamard rotation goes through shared memory.
 *
 * Blocks are powers of two. A warp transforms a part at a time: 1024
 * coordinates of a block, or a whole block of fewer. Each lane has `count` of
 * the 32 * count coordinates in registers, at first neighbours, for the stages
 * of small distances, then coordinates 32 apart, for the others. What is less
 * than 32 coordinates long is the last part, with one coordinate a lane. */

#include <cstdint>
#include <vector>

#include <faiss_turboquant/quantizer/Rotation.h>
#include <gpu/kernels/device_layout.h>

namespace faiss_turboquant {
namespace gpu {

/// coordinates of the greatest part
constexpr int max_part = 1024;

/// a Rotation in device memory
struct DeviceRotation {
    int d = 0;
    const uint32_t* sources = nullptr; ///< source_words, for each round
    /// whether four neighbours come from four neighbours, in each round
    bool by_fours[Rotation::rounds] = {};
    /// of the multipliers of a block of size 2^b
    float magnitudes[15] = {};
    const float* matrix = nullptr; ///< (d, d) of a dense rotation, else null
};

/** Where element i of a SharedVector is. The words of four elements change
 * their places in a row of 32, lest a column of them is in few banks. */
TQ_HOST_DEVICE constexpr int shared_place(int i) {
    return i ^ (i >> 3 & 0x1c);
}

/// floats of a SharedVector
TQ_HOST_DEVICE constexpr int shared_vector_size(int d) {
    return (d + dims_unit - 1) / dims_unit * dims_unit;
}

/// words of source_words
TQ_HOST_DEVICE constexpr int source_words_size(int d) {
    return (d + 3) / 4 * 4;
}

/// the first of the words of a part
TQ_HOST_DEVICE constexpr int first_source_word(
        int begin,
        int count,
        bool by_fours,
        int d) {
    return !by_fours     ? begin
            : count >= 4 ? begin / 4
                         : d / 128 * 32 + begin % 128;
}

/// word k of n of a lane, from there on: lanes load up to four at a time
TQ_HOST_DEVICE constexpr int source_word_at(int n, int lane, int k) {
    const int width = n < 4 ? n : 4;
    return (k / width * 32 + lane) * width + k % width;
}

bool moves_by_fours(const Rotation& rotation, int round);

/** Where the coordinates of a round come from: 4 * shared_place, the bytes from
 * the start of a SharedVector, and in the highest bit whether the sign changes.
 * In parts with four or more coordinates a lane of a round that moves by fours,
 * a word is of four coordinates, with their signs from the highest bit
 * downwards. */
std::vector<uint32_t> source_words(const Rotation& rotation, int round);

} // namespace gpu
} // namespace faiss_turboquant
