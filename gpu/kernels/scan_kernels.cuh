#pragma once

/** The kernels of all codecs, each codec's from a file of its own. */

#include <gpu/kernels/batch_kernel.cuh>
#include <gpu/kernels/scan_kernel.cuh>

namespace faiss_turboquant {
namespace gpu {

#ifdef __CUDACC__

/// kernels that only keep products of several queries
template <int nbits, int trellis, int units, int planes>
constexpr void add_products(ScanKernels& kernels) {
    kernels.products[planes - 1][units / 2] =
            scan_kernel<nbits, trellis, units, 1, false, true, false, planes>;
    kernels.products_wgmma[planes - 1][units / 2] =
            scan_kernel<nbits, trellis, units, 1, true, true, false, planes>;
}

/// kernels for one tile of queries
template <int nbits, int trellis, int units>
constexpr void add_few(ScanKernels& kernels) {
    constexpr bool has_trellis = trellis != no_trellis;
    constexpr int i = units / 2;
    if constexpr (units <= few_units(nbits, has_trellis, false)) {
        kernels.few[i] =
                scan_kernel<nbits, trellis, units, 1, false, false, false>;
        kernels.streamed[i] =
                scan_kernel<nbits, trellis, units, 1, false, true, false>;
        if constexpr (counts_bits_of_eight(nbits, has_trellis)) {
            kernels.streamed_wgmma[i] =
                    scan_kernel<nbits, trellis, units, 1, true, true, false>;
            add_products<nbits, trellis, units, 1>(kernels);
            add_products<nbits, trellis, units, 2>(kernels);
            kernels.single_products[i] =
                    scan_kernel<nbits, trellis, units, 1, false, true, true, 1>;
        }
    }
    if constexpr (
            counts_bits(nbits, has_trellis, trellis) &&
            units <= few_units(nbits, has_trellis, true)) {
        kernels.single[i] =
                scan_kernel<nbits, trellis, units, 1, false, true, true>;
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
    kernels.many[0] = scan_kernel<nbits, trellis, 1, 4, false, false, false>;
    kernels.many[1] = scan_kernel<nbits, trellis, 1, 8, false, false, false>;
    kernels.many[2] = scan_kernel<nbits, trellis, 1, 16, false, false, false>;
    kernels.wgmma[0] = scan_kernel<nbits, trellis, 1, 8, true, false, false>;
    kernels.wgmma[1] = scan_kernel<nbits, trellis, 1, 16, true, false, false>;
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
