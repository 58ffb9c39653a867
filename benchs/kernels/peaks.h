#pragma once

#include <cstddef>
#include <cstdint>

#include <faiss_turboquant/kernels/kernels.h>

/// What the machine can do at most: the yardsticks of bench_kernels.
namespace peaks {

/** Multiply-adds of u6 x s8 in registers, with no loads at all.
 * @param level   a level that this CPU runs
 * @param rounds  how often to go through the registers
 * @return  products computed; 0 at levels without a SIMD file */
size_t multiply(faiss_turboquant::SimdLevel level, size_t rounds);

/** Read bytes with the widest loads of the CPU.
 * @return  something that depends on all of them */
uint64_t read(const uint8_t* bytes, size_t n);

} // namespace peaks
