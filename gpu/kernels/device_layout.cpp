#include <gpu/kernels/device_layout.h>

#include <algorithm>
#include <cmath>

#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/kernels/trellis_tables.h>
#include <gpu/kernels/cuda_utils.h>

namespace faiss_turboquant {
namespace gpu {

DeviceLayout::DeviceLayout(const TurboQuantizer& tq) {
    FAISS_THROW_IF_NOT_FMT(
            tq.codec == CodecType::Scaled,
            "GpuIndexTurboQuant: the codec %s is for the CPU only",
            tq.codec_name().c_str());
    FAISS_THROW_IF_NOT_FMT(
            tq.d <= size_t(max_dim),
            "GpuIndexTurboQuant: d = %zd is greater than %d",
            tq.d,
            max_dim);
    const CodeLayout& layout = tq.layout();
    d = int(layout.d);
    dims = round_up(d, dims_unit);
    nbits = layout.nbits;
    memory = layout.trellis.memory;
    is_l2 = tq.metric_type == faiss::METRIC_L2;
    has_offset = layout.has_offset;
    std::copy_n(layout.grid, 16, grid);
    std::copy_n(layout.thresholds, 7, thresholds);
    half_steps = layout.half_steps;
    half_level = tq.codebook.step / (2 * std::sqrt(double(d)));
    fill_table();
    if (!has_trellis()) {
        return;
    }
    const int row = layout.tables.shipped;
    if (row >= 0 && std::equal(grid, grid + 16, trellis_codes[row].grid)) {
        shipped = row;
    }
    sign_mask = layout.trellis.sign_mask;
    parities = layout.tables.parities;
    shift = layout.tables.shift;
    positions = layout.tables.positions;
    oldest_bit = layout.trellis.subset_of_bit(memory);
    newest_bit = layout.trellis.subset_of_bit(0);
    for (size_t p = 0; p < Trellis::max_parities; p++) {
        for (int k = 0; k < max_taps; k++) {
            taps[p][k] = -(uint32_t(layout.trellis.taps[p]) >> k & 1);
        }
    }
}

void DeviceLayout::fill_table() {
    for (int i = 0; i < 16; i++) {
        const int entry = i < 8 ? i : 23 - i;
        const bool is_partner = has_trellis() && nbits > 1;
        const uint32_t g = is_partner ? 63 - grid[entry] : grid[entry];
        table[i / 4] |= g << i % 4 * 8;
    }
    if (!has_trellis() && nbits == 1) {
        // dot = 128 sum q + 127 (sum of q where the bit is set), and division
        // by 127, which leaves no rest, is multiplication by its inverse
        uint32_t inverse = 127;
        for (int i = 0; i < 5; i++) {
            inverse *= 2 - 127 * inverse;
        }
        const uint32_t level = 2 * grid[0] - 63;
        slope = -(2 * level * inverse);
        base = -(level + 256 * level * inverse);
    }
}

DeviceLayout DeviceLayout::signs() const {
    DeviceLayout signs;
    signs.d = d;
    signs.dims = dims;
    signs.nbits = 1;
    signs.is_l2 = is_l2;
    signs.has_offset = has_offset;
    signs.half_level = half_level;
    signs.grid[0] = 31; // 2 g - 63 is -1
    signs.grid[1] = 32;
    signs.fill_table();
    return signs;
}

} // namespace gpu
} // namespace faiss_turboquant
