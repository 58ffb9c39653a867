#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

const ScanKernels scan_kernels_tq2t = make_scan_kernels<2, 1>();

} // namespace gpu
} // namespace faiss_turboquant
