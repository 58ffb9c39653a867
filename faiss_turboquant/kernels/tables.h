#pragma once

#include <vector>

#include <faiss_turboquant/kernels/kernels.h>

namespace faiss_turboquant {

/// the reference level
const Kernels& scalar_kernels();

/// the SIMD levels that this build has and this CPU runs, narrowest first
std::vector<const Kernels*> simd_kernels();

} // namespace faiss_turboquant
