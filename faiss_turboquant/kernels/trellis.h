#pragma once

/** Trellis-coded quantization (Marcellin and Fischer, 1990; Ungerboeck, 1982),
 * in a form that decodes without walking the trellis.
 *
 * Coordinate t has one coded bit u_t. Parities of the last memory + 1 coded
 * bits,
 *
 *   z_p(t) = parity(w_t & taps[p]),  bit k of w_t = u_{t-k}, 0 before the
 *                                    first coordinate
 *
 * (4 of them at 1 and 2 bits, 3 at 3 bits, 2 at 4 bits; a tap of 0 is a parity
 * that is always 0, and the entries of grid it would choose are not used),
 * and the nbits - 1 uncoded bits, a sign and nbits - 2 others, choose the
 * level:
 *
 *   index = (z ^ (sign ? sign_mask : 0)) | others << number of parities
 *   grid position = sign ? 63 - grid[index] : grid[index]
 *
 * With nbits = 1 there is no sign and grid holds all positions. The encoder is
 * Viterbi's algorithm over 2^memory states.
 *
 * Any basis of the space of parities that taps span gives the same codes, with
 * the entries of grid at other places and another sign_mask: the tables hold
 * the basis that takes the fewest XORs.
 */

#include <cstddef>
#include <cstdint>
#include <vector>

namespace faiss_turboquant {

struct Trellis {
    static constexpr int min_memory = 8;
    static constexpr int max_memory = 12;
    static constexpr size_t max_parities = 4;
    static constexpr size_t n_indices = 16; ///< entries of grid

    int memory = 0; ///< bits of the state; 0 is no trellis
    uint16_t taps[max_parities] = {};
    uint8_t sign_mask = 0; ///< parities that the sign inverts

    /// parities of the memory + 1 coded bits w, the newest in bit 0
    constexpr int subset(uint32_t w) const {
        int z = 0;
        for (size_t p = 0; p < max_parities; p++) {
            uint32_t x = w & taps[p];
            x ^= x >> 8;
            x ^= x >> 4;
            z |= (0x6996 >> (x & 15) & 1) << p;
        }
        return z;
    }

    /// what is in `subset` less what is in it for bit k of w cleared
    int subset_of_bit(int k) const {
        return subset(uint32_t(1) << k);
    }

    bool operator==(const Trellis& other) const;
    bool operator!=(const Trellis& other) const {
        return !(*this == other);
    }
};

constexpr int n_parities(int nbits) {
    return nbits <= 2 ? 4 : nbits == 3 ? 3 : 2;
}

/// whether kernels can work with this trellis at nbits bits per coordinate
bool is_supported(const Trellis& trellis, int nbits);

/** What the encoder knows about the alphabet: for each position of a
 * coordinate on a fine grid, the cost of each subset in 8 bits, and the
 * uncoded bits of its nearest level. Integers throughout, so that every SIMD
 * level finds the same path. */
struct TrellisTables {
    int parities = 0;  ///< of a code with so many bits
    int shift = 0;     ///< positions per half grid step are 2^shift
    int positions = 0; ///< of the fine grid, an even number
    /// (positions, 2^parities), and 16 bytes more
    std::vector<uint8_t> costs;
    /// (positions, 2^parities): sign << 2 | others
    std::vector<uint8_t> choices;
    /// (2^memory,): subset of the state's bits, shifted by one: w = 2 * state
    std::vector<uint8_t> branches;
    /// row of `trellis_codes` that a kernel was compiled for, or -1
    int shipped = -1;
};

/// path costs are reduced by the least of them after so many coordinates
constexpr size_t trellis_period = 8;

/** @param grid  grid positions by index, (n_indices,)
 *  @param step  grid step: sets how costs are rounded */
TrellisTables make_trellis_tables(
        const Trellis& trellis,
        int nbits,
        const uint8_t* grid,
        float step);

struct CodeLayout;

/// the specification of Kernels::encode and decode for codes with a trellis
void encode_trellis_fields(
        const CodeLayout& layout,
        const float* y,
        uint8_t* planes);
void decode_trellis_fields(
        const CodeLayout& layout,
        const uint8_t* planes,
        uint8_t* grid);

} // namespace faiss_turboquant
