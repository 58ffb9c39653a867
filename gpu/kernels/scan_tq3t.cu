#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq3t = make_scan_kernels<3, 2>();

} // namespace gpu
} // namespace faiss_turboquant
