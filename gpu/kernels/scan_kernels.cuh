#pragma once

/** The kernels of all codecs, each codec's from a file of its own. */

#include <gpu/kernels/batch_kernel.cuh>
#include <gpu/kernels/eight_kernel.cuh>
#include <gpu/kernels/products_kernel.cuh>
#include <gpu/kernels/scan_kernel.cuh>
#include <gpu/kernels/single_kernel.cuh>

namespace faiss_turboquant {
namespace gpu {

/// kernels of one codec
struct ScanKernels {
    // by units of 1, 2 and 4; or null
    ScanKernel few[3]; ///< up to eight queries
    // the same through TileStreams; by matrix instructions of four warps
    ScanKernel eight[3], eight_wgmma[3];
    ScanKernel single[3]; ///< one query
    // for scan_products, of one plane and of two
    ScanKernel products[2][3], single_products[3];
    ScanKernel many[3];     ///< 4, 8 and 16 tiles; units 1
    ScanKernel wgmma[2];    ///< 8 and 16 tiles; units 1
    ScanKernel batch[2][2]; ///< batch_groups; units 1, 2; or null
};

#ifdef __CUDACC__

/// kernels by bits of up to eight queries
template <int nbits, int trellis, int units>
constexpr void add_eight_by_bits(ScanKernels& kernels) {
    constexpr int i = units / 2;
    kernels.eight_wgmma[i] = eight_kernel<nbits, trellis, units, true>;
    kernels.products[0][i] = products_kernel<units, 1>;
    kernels.products[1][i] = products_kernel<units, 2>;
    kernels.single_products[i] = products_kernel<units, 1, true>;
}

/// kernels for one tile of queries, and for one query
template <int nbits, int trellis, int units>
constexpr void add_few(ScanKernels& kernels) {
    constexpr bool has_trellis = trellis != no_trellis;
    constexpr int i = units / 2;
    if constexpr (units <= few_units(nbits, has_trellis)) {
        kernels.few[i] = scan_kernel<nbits, trellis, units, 1, false>;
        kernels.eight[i] = eight_kernel<nbits, trellis, units>;
        if constexpr (counts_bits_of_eight(nbits, has_trellis)) {
            add_eight_by_bits<nbits, trellis, units>(kernels);
        }
    }
    if constexpr (
            counts_bits(nbits, has_trellis, trellis) &&
            units <= single_units(nbits, has_trellis)) {
        kernels.single[i] = single_kernel<nbits, trellis, units>;
    }
}

/// kernels for batch_groups[i]
template <int nbits, int trellis, int i>
constexpr void add_batch(ScanKernels& kernels) {
    constexpr int group = batch_groups[i];
    kernels.batch[i][0] = batch_kernel<nbits, trellis, 1, group>;
    // planes of one bit are read in pieces of full sectors
    if constexpr (trellis >= 0 || (trellis == no_trellis && nbits == 3)) {
        kernels.batch[i][1] = batch_kernel<nbits, trellis, 2, group>;
    }
}

/// kernels of a codec, for a file of its own
template <int nbits, int trellis>
constexpr ScanKernels make_scan_kernels() {
    ScanKernels kernels = {};
    add_few<nbits, trellis, 1>(kernels);
    add_few<nbits, trellis, 2>(kernels);
    add_few<nbits, trellis, 4>(kernels);
    kernels.many[0] = scan_kernel<nbits, trellis, 1, 4, false>;
    kernels.many[1] = scan_kernel<nbits, trellis, 1, 8, false>;
    kernels.many[2] = scan_kernel<nbits, trellis, 1, 16, false>;
    kernels.wgmma[0] = scan_kernel<nbits, trellis, 1, 8, true>;
    kernels.wgmma[1] = scan_kernel<nbits, trellis, 1, 16, true>;
    add_batch<nbits, trellis, 0>(kernels);
    add_batch<nbits, trellis, 1>(kernels);
    return kernels;
}

#endif // __CUDACC__

extern const ScanKernels scan_kernels_tq1, scan_kernels_tq2, scan_kernels_tq3,
        scan_kernels_tq4;
/// trellises of memory 8, with taps known to the compiler
extern const ScanKernels scan_kernels_tq1t, scan_kernels_tq2t,
        scan_kernels_tq3t, scan_kernels_tq4t;
/// any other trellis
extern const ScanKernels scan_kernels_tq1t_any, scan_kernels_tq2t_any,
        scan_kernels_tq3t_any, scan_kernels_tq4t_any;

} // namespace gpu
} // namespace faiss_turboquant
