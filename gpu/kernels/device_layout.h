#pragma once

/** What a kernel knows about codes. Plain data, passed by value.
 *
 * The planes of a code on the device are those that CodeLayout gives a code of
 * `dims` coordinates, dims being d rounded up to a multiple of 128, with zeros
 * past d: every plane is made of whole 16-byte words and starts on one. Where
 * d is such a multiple, the bytes are the CPU's. The factors behind the planes
 * are arrays of their own, so that a code is nothing but planes. */

#include <cstddef>
#include <cstdint>

#include <faiss_turboquant/kernels/host_device.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

namespace faiss_turboquant {
namespace gpu {

/// coordinates by which the dimension of codes on the device grows
constexpr int dims_unit = 128;

/// greatest dimension: eight queries fit in shared memory
constexpr int max_dim = 16384;

constexpr int max_taps = Trellis::max_memory + 1;

struct DeviceLayout {
    int d = 0;
    int dims = 0; ///< d rounded up
    int nbits = 0;
    int memory = 0; ///< of the trellis; 0 is none
    /// TrellisTables::shipped, if the grid is that of the row, too
    int shipped = -1;
    bool is_l2 = false;
    bool has_offset = false;

    // as in CodeLayout
    uint8_t grid[16] = {};
    int8_t thresholds[8] = {};
    float half_steps = 0;
    double half_level = 0; ///< level(g) on a unit vector is (2 g - 63) times it

    /** What decoding looks up, as bytes: entries 0 .. 7, then 15 .. 8. Grid
     * positions of fields; of a trellis with signs, the partners of `grid`,
     * because `flip` is for signs that are clear. */
    uint32_t table[4] = {};
    uint32_t flip = 0x3f3f3f3f;     ///< position ^ flip is its partner
    uint32_t all_ones = 0xffffffff; ///< not known to the compiler

    /** t of QueryFactors is slope * dot - base * sum of q, modulo 2^32, dot
     * being what decoded bytes give: grid positions, but at one bit 255 for a
     * set bit and 128 for a clear one, which take one instruction for four. */
    uint32_t slope = 2;
    uint32_t base = 63;

    /// the same where at one bit a set one gives 127 and a clear one 0
    TQ_HOST_DEVICE uint32_t base_of(bool weighs_bits) const {
        return weighs_bits && !has_trellis() ? base - 128 * slope : base;
    }
    /// with base_of, where set bits are counted
    TQ_HOST_DEVICE uint32_t slope_of(bool weighs_bits) const {
        return weighs_bits && !has_trellis() ? 127 * slope : slope;
    }

    // as in Trellis and TrellisTables
    int sign_mask = 0;
    int parities = 0;
    int shift = 0;
    int positions = 0;
    int oldest_bit = 0; ///< Trellis::subset_of_bit(memory)
    int newest_bit = 0; ///< Trellis::subset_of_bit(0)
    /// all ones where bit k of the window is in parity p
    uint32_t taps[Trellis::max_parities][max_taps] = {};

    DeviceLayout() = default;
    explicit DeviceLayout(const TurboQuantizer& tq);

    /** Of the signs of these codes: one bit a coordinate, set where it is
     * positive, and levels 1 and -1 times what the scale has to hold. */
    DeviceLayout signs() const;

    /// bytes of a plane of one-bit fields
    TQ_HOST_DEVICE int plane_size() const {
        return dims / 8;
    }
    /// bytes of a code
    TQ_HOST_DEVICE int row_size() const {
        return nbits * plane_size();
    }
    TQ_HOST_DEVICE bool has_trellis() const {
        return memory > 0;
    }

   private:
    /// table, slope and base, once the grid is known
    void fill_table();
};

} // namespace gpu
} // namespace faiss_turboquant
