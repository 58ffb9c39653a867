#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq3t_any = make_scan_kernels<3, any_trellis>();

} // namespace gpu
} // namespace faiss_turboquant
