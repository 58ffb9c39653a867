#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq1t_any = make_scan_kernels<1, any_trellis>();

} // namespace gpu
} // namespace faiss_turboquant
