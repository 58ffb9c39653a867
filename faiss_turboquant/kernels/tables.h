#pragma once

#include <vector>

#include <faiss_turboquant/kernels/kernels.h>

namespace faiss_turboquant {

/// the reference level
const Kernels& scalar_kernels();

/// the SIMD levels that this build has and this CPU runs, narrowest first
std::vector<const Kernels*> simd_kernels();

/// the level avx2_vnni, if the CPU has it
std::vector<const Kernels*> avx2_vnni_kernels();

/// the level neon_dot, if the CPU has it
std::vector<const Kernels*> neon_dot_kernels();

/// a table that does batches on AMX and the rest as `base` does, if `base` is
/// avx512_vnni and the machine has AMX
std::vector<const Kernels*> amx_kernels(const Kernels& base);

} // namespace faiss_turboquant
