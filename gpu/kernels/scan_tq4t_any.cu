#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq4t_any = make_scan_kernels<4, any_trellis>();

} // namespace gpu
} // namespace faiss_turboquant
