#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq4t = make_scan_kernels<4, 3>();

} // namespace gpu
} // namespace faiss_turboquant
