#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss_turboquant/quantizer/TurboQuantizer.h>
#include <gpu/GpuResources.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>

namespace faiss_turboquant {
namespace gpu {

/// Rows of codes on a device, and the quantizer's tables.
struct CodeStorage {
    /// greatest number of rows
    static constexpr size_t max_rows = (size_t(1) << 32) - 4096;

    CodeStorage(const GpuResources& resources, const TurboQuantizer& tq);

    const DeviceLayout& layout() const {
        return encoder.layout;
    }
    size_t capacity() const {
        return scales.size();
    }

    /// room for n rows, of which the first `used` are kept
    void reserve(size_t n, size_t used);

    /// without rows
    void clear();

    /// codes as the CPU has them, from host memory, into the rows from `first`
    /// on, for which there is room
    void import(const uint8_t* codes, size_t n, size_t code_size, size_t first);

    /// rows first .. first + n - 1 as the CPU has them, to host memory
    void export_rows(size_t first, size_t n, size_t code_size, uint8_t* codes)
            const;

    /// where vectors go, and what they are encoded relative to, on the device
    struct Placement {
        const uint32_t* rows;  ///< (n,)
        const uint32_t* lists; ///< (n,)
        const float* centres;  ///< (lists, d)
    };

    /** Encode into rows for which there is room.
     * @param x          (n, d), in host memory or on the device
     * @param first      the first row
     * @param placement  if given, in place of `first` and the encoder's centre
     * @throws faiss::FaissException naming the first vector that is refused */
    void encode_rows(
            const float* x,
            size_t n,
            size_t first,
            const Placement* placement = nullptr);

    /// @param selected  as in DeviceCodes
    DeviceCodes codes(size_t n, const uint32_t* selected) const;

    /// codes of `rows`, ascending, move to the front
    void keep_rows(const std::vector<uint32_t>& rows);

    static constexpr uint32_t no_source = ~uint32_t(0);

    /// row i becomes what was row sources[i], or unspecified if there is none
    void rearrange(const std::vector<uint32_t>& sources);

    const GpuResources& resources;
    Encoder encoder;

   private:
    float* offsets_at(size_t row) const {
        return layout().has_offset ? offsets.data() + row : nullptr;
    }
    uint8_t* planes_at(size_t row) const {
        return planes.data() + row * layout().row_size();
    }

    /// codes without the tables
    struct Rows {
        DeviceArray<uint8_t> planes; ///< (n, row_size)
        DeviceArray<float> scales;   ///< (n,)
        DeviceArray<float> offsets;  ///< (n,), or longer, or empty
    };
    Rows make_rows(size_t n) const;
    void replace(Rows rows);
    /// @param sources  (n,) on the device
    void gather(const uint32_t* sources, size_t n, const Rows& to) const;

    DeviceArray<float> matrix, centre;
    DeviceArray<uint32_t> words, words_by_block; ///< of the rotation
    DeviceArray<uint8_t> costs, choices, branches;
    DeviceArray<uint8_t> planes; ///< (capacity, row_size)
    DeviceArray<float> scales;   ///< (capacity,)
    DeviceArray<float> offsets;  ///< (capacity,) or empty
};

} // namespace gpu
} // namespace faiss_turboquant
