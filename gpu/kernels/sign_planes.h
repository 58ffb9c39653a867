#pragma once

/** What a DeviceSignFilter holds of codes: their signs, as codes of one bit, a
 * second plane, and what these tell of codes. */

#include <cstdint>

#include <cuda_runtime.h>

#include <faiss_turboquant/kernels/sign_bound.h>
#include <gpu/kernels/scan.h>

namespace faiss_turboquant {
namespace gpu {

/// arrays of a value for each row are so long that all rows whose products lie
/// together have one
constexpr uint32_t sign_rows_unit = product_rows;

/// what is held of rows: bits, and what these tell of codes with those of the
/// planes before, see SignFilter
struct SignPlane {
    uint8_t* bits = nullptr;     ///< (n, dims / 8), as of DeviceLayout::signs
    float* scales = nullptr;     ///< (n,), of codes times beta
    float* residuals = nullptr;  ///< (n,), |r| / beta
    TileRange* ranges = nullptr; ///< (n / product_rows, rounded up)
};

/// of all rows, for the choice of a bound
struct SignStatistics {
    float least_residual, largest_residual;
    float largest_square; ///< |v|^2 / beta^2
    float scale, offset;  ///< means of a sample
};

struct SignRows {
    int n_planes = 0;
    SignPlane planes[max_sign_planes];
    SignStatistics* statistics = nullptr; ///< (n_planes,)
};

/** Write the planes of rows first .. codes.n - 1. With first = 0, the
 * statistics begin anew. */
void pack_signs(
        const DeviceCodes& codes,
        uint32_t first,
        const SignRows& signs,
        cudaStream_t stream);

} // namespace gpu
} // namespace faiss_turboquant
