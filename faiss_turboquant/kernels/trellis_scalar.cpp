// The reference for codes with a trellis. Every other level must equal it, bit
// for bit.

#include <algorithm>
#include <cmath>
#include <cstring>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/kernels/trellis_tables.h>

namespace faiss_turboquant {

namespace {

constexpr uint8_t greatest_cost = 255;

int grid_position(
        const Trellis& trellis,
        int nbits,
        const uint8_t* grid,
        int subset,
        int choice) {
    if (nbits == 1) {
        return grid[subset];
    }
    const int sign = choice >> 2;
    const int others = choice & 3;
    const int index = (subset ^ (sign ? trellis.sign_mask : 0)) |
            others << n_parities(nbits);
    return sign ? 63 - grid[index] : grid[index];
}

/** Path costs are eight bits and must hold the spread between the best and the
 * worst state. A quarter of the error per coordinate as a unit costs 0.1 % of
 * the error; a seventh, where bad states saturate, 0.6 %. */
double cost_unit(int nbits, float step) {
    // mean squared error per coordinate in squared steps
    constexpr double errors[] = {0, 0.27, 0.072, 0.0193, 0.0057};
    return errors[nbits] / (double(step) * step) / 4;
}

} // namespace

bool Trellis::operator==(const Trellis& other) const {
    return memory == other.memory && sign_mask == other.sign_mask &&
            std::equal(taps, taps + max_parities, other.taps);
}

bool is_supported(const Trellis& trellis, int nbits) {
    if (trellis.memory < Trellis::min_memory ||
        trellis.memory > Trellis::max_memory) {
        return false;
    }
    const int parities = n_parities(nbits);
    for (int p = 0; p < int(Trellis::max_parities); p++) {
        const bool used = p < parities;
        if (trellis.taps[p] >> (used ? trellis.memory + 1 : 0)) {
            return false;
        }
    }
    return trellis.sign_mask >> parities == 0 &&
            (nbits > 1 || trellis.sign_mask == 0);
}

TrellisTables make_trellis_tables(
        const Trellis& trellis,
        int nbits,
        const uint8_t* grid,
        float step) {
    TrellisTables tables;
    // a position's width must be small beside the error: the more bits, the
    // finer
    tables.shift = nbits == 4 ? 3 : nbits == 3 ? 2 : 1;
    const int fine = 2 << tables.shift; // positions per grid step
    tables.positions = 128 * fine;
    tables.parities = n_parities(nbits);
    const int n_subsets = 1 << tables.parities;
    const int n_choices = nbits == 1 ? 1 : 8;
    tables.costs.resize(tables.positions * n_subsets + 16);
    tables.choices.resize(tables.positions * n_subsets);
    // distances are from the middle of a position, in halves of it
    const int64_t unit = std::max<int64_t>(
            1,
            static_cast<int64_t>(
                    std::floor(cost_unit(nbits, step) * (4 * fine * fine))));
    for (int i = 0; i < tables.positions; i++) {
        const int64_t y = 2 * i + 1 - tables.positions;
        int64_t errors[16];
        for (int z = 0; z < n_subsets; z++) {
            int64_t least = INT64_MAX;
            for (int choice = 0; choice < n_choices; choice++) {
                if (nbits > 1 && (choice & 3) >> (nbits - 2)) {
                    continue; // so many other bits there are not
                }
                const int g = grid_position(trellis, nbits, grid, z, choice);
                const int64_t e = y - int64_t(2 * g - 63) * fine;
                if (e * e < least) {
                    least = e * e;
                    tables.choices[i * n_subsets + z] = choice;
                }
            }
            errors[z] = least;
        }
        const int64_t least = *std::min_element(errors, errors + n_subsets);
        for (int z = 0; z < n_subsets; z++) {
            // what every path pays does not matter
            const int64_t cost = (errors[z] - least + unit / 2) / unit;
            tables.costs[i * n_subsets + z] = static_cast<uint8_t>(
                    std::min<int64_t>(cost, greatest_cost));
        }
    }
    tables.branches.resize(size_t(1) << trellis.memory);
    for (size_t state = 0; state < tables.branches.size(); state++) {
        tables.branches[state] =
                static_cast<uint8_t>(trellis.subset(2 * state));
    }
    for (int i = 0; i < n_compiled_trellis_codes; i++) {
        const TrellisCode& code = trellis_codes[i];
        if (code.nbits == nbits && code.memory == trellis.memory &&
            code.sign_mask == trellis.sign_mask &&
            std::equal(code.taps, code.taps + 4, trellis.taps)) {
            tables.shipped = i;
        }
    }
    return tables;
}

void encode_trellis_fields(
        const CodeLayout& layout,
        const float* y,
        uint8_t* planes) {
    const Trellis& trellis = layout.trellis;
    const TrellisTables& tables = layout.tables;
    const size_t n_states = size_t(1) << trellis.memory;
    const float factor =
            layout.half_steps * static_cast<float>(1 << tables.shift);
    const float half = static_cast<float>(tables.positions / 2);

    std::vector<uint8_t> subsets(2 * n_states);
    for (size_t w = 0; w < subsets.size(); w++) {
        subsets[w] = static_cast<uint8_t>(trellis.subset(w));
    }

    std::vector<int> positions(layout.d);
    std::vector<uint8_t> from_upper(layout.d * n_states);
    // the path starts in state 0; other states are as bad as can be
    std::vector<uint8_t> costs(n_states, greatest_cost), next(n_states);
    costs[0] = 0;
    for (size_t t = 0; t < layout.d; t++) {
        const float fine = std::floor(y[t] * factor);
        positions[t] =
                static_cast<int>(std::clamp(fine, -half, half - 1) + half);
        const uint8_t* branch_costs =
                tables.costs.data() + (positions[t] << tables.parities);
        for (size_t state = 0; state < n_states; state++) {
            // the bit that goes out of the window is 0 or 1
            const size_t lower = state >> 1, upper = lower | n_states >> 1;
            const int u = state & 1;
            const auto cost = [&](size_t from) {
                const int z = subsets[2 * from | u];
                return std::min<int>(
                        costs[from] + branch_costs[z], greatest_cost);
            };
            const int a = cost(lower), b = cost(upper);
            next[state] = static_cast<uint8_t>(std::min(a, b));
            from_upper[t * n_states + state] = b < a;
        }
        if (t % trellis_period == trellis_period - 1) {
            const uint8_t least = *std::min_element(next.begin(), next.end());
            for (uint8_t& cost : next) {
                cost -= least;
            }
        }
        costs.swap(next);
    }

    // back from the first of the best states
    size_t state = std::min_element(costs.begin(), costs.end()) - costs.begin();
    const size_t m = layout.plane_size(1);
    std::memset(planes, 0, layout.packed_size());
    for (size_t t = layout.d; t-- > 0;) {
        // the bits before the first coordinate are 0
        const size_t bit = t < size_t(trellis.memory)
                ? 0
                : from_upper[t * n_states + state];
        const size_t w = state | bit << trellis.memory;
        const int choice =
                tables.choices[(positions[t] << tables.parities) + subsets[w]];
        const size_t at = t % m, field = t / m;
        planes[at] |= (w & 1) << field;
        if (layout.nbits > 1) {
            planes[m + at] |= (choice >> 2) << field;
        }
        if (layout.nbits == 3) {
            planes[2 * m + at] |= (choice & 1) << field;
        }
        if (layout.nbits == 4) {
            // a plane of two bits over 8 m coordinates
            planes[2 * m + t % (2 * m)] |= (choice & 3) << (t / (2 * m) * 2);
        }
        state = w >> 1;
    }
}

void decode_trellis_fields(
        const CodeLayout& layout,
        const uint8_t* planes,
        uint8_t* grid) {
    const Trellis& trellis = layout.trellis;
    const size_t m = layout.plane_size(1);
    uint32_t w = 0;
    for (size_t t = 0; t < layout.d; t++) {
        const size_t at = t % m, field = t / m;
        w = w << 1 | (planes[at] >> field & 1);
        int choice = 0;
        if (layout.nbits > 1) {
            choice = (planes[m + at] >> field & 1) << 2;
        }
        if (layout.nbits == 3) {
            choice |= planes[2 * m + at] >> field & 1;
        }
        if (layout.nbits == 4) {
            choice |= planes[2 * m + t % (2 * m)] >> (t / (2 * m) * 2) & 3;
        }
        grid[t] = static_cast<uint8_t>(grid_position(
                trellis, layout.nbits, layout.grid, trellis.subset(w), choice));
    }
}

} // namespace faiss_turboquant
