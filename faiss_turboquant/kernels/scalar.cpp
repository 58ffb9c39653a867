// The reference kernels. Every other level must equal them, bit for bit.

#include <algorithm>
#include <cmath>
#include <cstring>

#include <faiss_turboquant/kernels/tables.h>

namespace faiss_turboquant {

namespace {

constexpr size_t lanes = 32;

template <class T>
T add_lanes(T* lane) {
    for (size_t half = lanes / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; i++) {
            lane[i] += lane[i + half];
        }
    }
    return lane[0];
}

void hadamard(float* x, size_t n) {
    for (size_t h = 1; h < n; h *= 2) {
        for (size_t i = 0; i < n; i += 2 * h) {
            for (size_t j = i; j < i + h; j++) {
                const float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
        }
    }
}

void rotation_round(
        const float* x,
        const int32_t* starts,
        size_t size,
        const float* multiplier,
        const RotationBlocks& blocks,
        float* y) {
    for (size_t i = 0; i < blocks.d; i++) {
        y[i] = x[starts[i / size] + i % size] * multiplier[i];
    }
    for (size_t b = 0; b < blocks.n; b++) {
        hadamard(y, blocks.sizes[b]);
        y += blocks.sizes[b];
    }
}

void matvec(
        const float* m,
        size_t rows,
        size_t cols,
        const float* x,
        float* y) {
    for (size_t r = 0; r < rows; r++) {
        float lane[lanes] = {};
        for (size_t i = 0; i < cols; i++) {
            lane[i % lanes] += m[r * cols + i] * x[i];
        }
        y[r] = add_lanes(lane);
    }
}

double dot(const float* a, const float* b, size_t n) {
    double lane[lanes] = {};
    for (size_t i = 0; i < n; i++) {
        lane[i % lanes] += static_cast<double>(a[i]) * b[i];
    }
    return add_lanes(lane);
}

double sum_of_squares(const float* x, size_t n) {
    return dot(x, x, n);
}

double subtract(
        const float* a,
        const float* b,
        size_t n,
        bool squared,
        float* difference) {
    for (size_t i = 0; i < n; i++) {
        difference[i] = a[i] - b[i];
    }
    return squared ? sum_of_squares(difference, n) : dot(a, b, n);
}

void scale(const float* x, double factor, float* y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] = static_cast<float>(x[i] * factor);
    }
}

/// field j of a plane of b-bit fields
int get_field(const uint8_t* plane, size_t m, int b, size_t j) {
    return plane[j % m] >> (j / m * b) & ((1 << b) - 1);
}

void set_field(uint8_t* plane, size_t m, int b, size_t j, int value) {
    plane[j % m] |= value << (j / m * b);
}

void decode(const CodeLayout& layout, const uint8_t* planes, uint8_t* grid);

float encode_with_trellis(
        const CodeLayout& layout,
        const float* y,
        uint8_t* planes) {
    encode_trellis_fields(layout, y, planes);
    std::vector<uint8_t> grid(layout.padded_dim());
    decode(layout, planes, grid.data());
    float lane[lanes] = {};
    for (size_t i = 0; i < layout.d; i++) {
        lane[i % lanes] += y[i] * static_cast<float>(2 * grid[i] - 63);
    }
    return add_lanes(lane);
}

float encode_vector(const CodeLayout& layout, const float* y, uint8_t* planes) {
    if (layout.has_trellis()) {
        return encode_with_trellis(layout, y, planes);
    }
    const int nbits = layout.nbits;
    const int nthresholds = (1 << (nbits - 1)) - 1;
    const size_t m1 = layout.plane_size(1), m2 = layout.plane_size(2);
    const size_t m = layout.plane_size(nbits);
    std::memset(planes, 0, layout.packed_size());
    float lane[lanes] = {};
    for (size_t i = 0; i < layout.d; i++) {
        const float t = std::floor(y[i] * layout.half_steps);
        const int h = static_cast<int>(std::clamp(t, -128.0f, 127.0f));
        const int sign = h < 0;
        const int magnitude = std::count_if(
                layout.thresholds,
                layout.thresholds + nthresholds,
                [&](int8_t threshold) { return (sign ? ~h : h) >= threshold; });
        if (nbits == 3) {
            set_field(planes, m2, 2, i, magnitude);
            set_field(planes + m2, m1, 1, i, sign);
        } else {
            set_field(planes, m, nbits, i, sign << (nbits - 1) | magnitude);
        }
        const int g = layout.grid[sign << (nbits - 1) | magnitude];
        lane[i % lanes] += y[i] * static_cast<float>(2 * g - 63);
    }
    return add_lanes(lane);
}

void encode(
        const CodeLayout& layout,
        const float* y,
        size_t y_stride,
        size_t n,
        uint8_t* /*scratch*/,
        uint8_t* planes,
        float* sums) {
    for (size_t i = 0; i < n; i++) {
        sums[i] = encode_vector(
                layout, y + i * y_stride, planes + i * layout.code_size);
    }
}

void decode(const CodeLayout& layout, const uint8_t* planes, uint8_t* grid) {
    if (layout.has_trellis()) {
        decode_trellis_fields(layout, planes, grid);
        return;
    }
    const int nbits = layout.nbits;
    const size_t m1 = layout.plane_size(1), m2 = layout.plane_size(2);
    const size_t m = layout.plane_size(nbits);
    for (size_t i = 0; i < layout.d; i++) {
        const int field = nbits == 3 ? get_field(planes + m2, m1, 1, i) << 2 |
                        get_field(planes, m2, 2, i)
                                     : get_field(planes, m, nbits, i);
        grid[i] = layout.grid[field];
    }
}

float quantize_query(const float* y, size_t n, int8_t* q, int32_t* sum) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) {
        largest = std::max(largest, std::fabs(y[i]));
    }
    const float factor = largest > 0 ? 127 / largest : 0;
    *sum = 0;
    for (size_t i = 0; i < n; i++) {
        q[i] = static_cast<int8_t>(std::nearbyint(y[i] * factor));
        *sum += q[i];
    }
    return largest;
}

size_t query_size(const CodeLayout& layout) {
    return layout.padded_dim();
}

void arrange_query(const CodeLayout& layout, const int8_t* q, int8_t* out) {
    std::copy_n(q, layout.padded_dim(), out);
}

void dot_codes(
        const CodeLayout& layout,
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        const int8_t* query,
        int32_t /*sum*/,
        int32_t* out) {
    std::vector<uint8_t> grid(layout.padded_dim());
    for (size_t i = 0; i < n; i++) {
        const size_t row = rows ? rows[i] : i;
        decode(layout, codes + row * layout.code_size, grid.data());
        int32_t total = 0;
        for (size_t j = 0; j < layout.d; j++) {
            total += grid[j] * query[j];
        }
        out[i] = total;
    }
}

void decode_panel(
        const CodeLayout& layout,
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        uint8_t* scratch,
        uint8_t* panel) {
    for (size_t i = 0; i < n; i++) {
        const size_t row = rows ? rows[i] : i;
        decode(layout, codes + row * layout.code_size, scratch);
        for (size_t j = 0; j < layout.d; j++) {
            panel[(j / 4 * panel_rows + i) * 4 + j % 4] = scratch[j];
        }
    }
}

void dot_panels(
        const uint8_t* panels,
        size_t panel_stride,
        size_t n_panels,
        const int8_t* query,
        size_t /*n_queries*/,
        size_t /*query_stride*/,
        size_t quads,
        int32_t* out,
        size_t /*out_stride*/) {
    for (size_t i = 0; i < n_panels * panel_rows; i++) {
        const uint8_t* panel = panels + i / panel_rows * panel_stride;
        int32_t total = 0;
        for (size_t j = 0; j < quads * 4; j++) {
            const size_t at = (j / 4 * panel_rows + i % panel_rows) * 4 + j % 4;
            total += panel[at] * query[j];
        }
        out[i] = total;
    }
}

size_t select(
        const QueryFactors& factors,
        const int32_t* dots,
        const float* scales,
        const float* offsets,
        size_t n,
        float sign,
        float threshold,
        float* keys,
        uint32_t* positions) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        const float offset = offsets ? offsets[i] : 0;
        const float key =
                sign * distance_from_dot(factors, dots[i], scales[i], offset);
        if (key < threshold) {
            keys[kept] = key;
            positions[kept] = i;
            kept++;
        }
    }
    return kept;
}

LevelSums pack_signs(
        const uint8_t* grid,
        size_t d,
        uint8_t large,
        uint8_t* signs,
        uint8_t* sizes,
        size_t stride) {
    LevelSums sums = {};
    for (size_t i = 0; i < d; i += 8) {
        int sign_bits = 0, size_bits = 0;
        for (size_t j = 0; j < std::min<size_t>(8, d - i); j++) {
            const int32_t level = 2 * grid[i + j] - 63;
            const int32_t magnitude = std::abs(level);
            const bool is_large = magnitude >= large;
            sign_bits |= (level > 0) << j;
            size_bits |= ((level > 0) == is_large) << j;
            sums.magnitudes += magnitude;
            sums.squares += level * level;
            sums.large_magnitudes += is_large ? magnitude : 0;
            sums.n_large += is_large;
        }
        signs[i / 8 * stride] = static_cast<uint8_t>(sign_bits);
        if (sizes) {
            sizes[i / 8 * stride] = static_cast<uint8_t>(size_bits);
        }
    }
    return sums;
}

void fill_sign_tables(
        const int8_t* q,
        size_t n,
        int16_t factor,
        int16_t half,
        uint8_t* tables) {
    for (size_t i = 0; i < n; i++, q += 4, tables += 16) {
        for (int signs = 0; signs < 16; signs++) {
            int32_t sum = 0;
            for (int j = 0; j < 4; j++) {
                sum += std::max(signs >> j & 1 ? q[j] : -q[j], 0);
            }
            sum = (sum << half_fraction) + half;
            tables[signs] = sum * factor >> (sign_fraction + half_fraction);
        }
    }
}

void sum_signs(
        const uint8_t* block,
        const uint8_t* const* tables,
        size_t n_queries,
        size_t n_bytes,
        uint16_t* sums,
        size_t sums_stride) {
    for (size_t q = 0; q < n_queries; q++) {
        for (size_t i = 0; i < sign_block; i++) {
            uint16_t& sum = sums[q * sums_stride + i];
            sum = 0;
            for (size_t byte = 0; byte < n_bytes; byte++) {
                const uint8_t bits = block[byte * sign_block + sign_place(i)];
                const uint8_t* table = tables[q] + byte * 32;
                sum += table[bits & 15] + table[16 + (bits >> 4)];
            }
        }
    }
}

size_t filter_signs(
        const SignFormula& formula,
        const uint16_t* signs,
        const uint16_t* sizes,
        const SignFactors& codes,
        size_t n_blocks,
        float threshold,
        uint64_t* left) {
    size_t n_left = 0;
    for (size_t i = 0; i < n_blocks * sign_block; i++) {
        const float key = sign_key(
                formula,
                sizes ? weigh_sums(signs[i], sizes[i]) : signs[i],
                codes.scales[i],
                codes.residuals[i],
                codes.offsets ? codes.offsets[i] : 0);
        uint64_t& word = left[i / sign_block];
        word &= ~(uint64_t(!(key < threshold)) << i % sign_block);
        n_left += word >> i % sign_block & 1;
    }
    return n_left;
}

} // namespace

const Kernels& scalar_kernels() {
    static const Kernels table = {
            SimdLevel::scalar,
            hadamard,
            rotation_round,
            matvec,
            sum_of_squares,
            dot,
            subtract,
            scale,
            encode,
            decode,
            quantize_query,
            query_size,
            arrange_query,
            dot_codes,
            decode_panel,
            /*tile_queries=*/1,
            /*quad_step=*/2,
            dot_panels,
            select,
            pack_signs,
            fill_sign_tables,
            sum_signs,
            filter_signs,
    };
    return table;
}

} // namespace faiss_turboquant
