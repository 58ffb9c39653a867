#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq1t = make_scan_kernels<1, 0>();

} // namespace gpu
} // namespace faiss_turboquant
