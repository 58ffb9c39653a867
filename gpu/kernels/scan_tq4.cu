#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq4 = make_scan_kernels<4, no_trellis>();

} // namespace gpu
} // namespace faiss_turboquant
