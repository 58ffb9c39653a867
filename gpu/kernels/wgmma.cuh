#pragma once

/** Hopper's matrix instructions for a group of four warps: 64 rows of codes,
 * each warp's sixteen in its registers as for its own instructions, by a group
 * of queries in shared memory. The sums lie as these have them. */

#include <cstdint>

namespace faiss_turboquant {
namespace gpu {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TQ_HAS_WGMMA 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "the code for compute capability 9.0 is that of 90a"
#endif

#ifdef __CUDACC__

/// before the first instruction, and after registers of operands have changed
__device__ inline void begin_wgmma() {
#ifdef TQ_HAS_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

/// those issued since the last call are a group
__device__ inline void end_wgmma_group() {
#ifdef TQ_HAS_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// waits until only the last group is at work
__device__ inline void wait_for_wgmma_before_last() {
#ifdef TQ_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
#endif
}

/// waits until all groups have come to their end
template <int n>
__device__ inline void wait_for_wgmma(int (&sums)[n]) {
#ifdef TQ_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < n; i++) {
        asm volatile("" : "+r"(sums[i])::"memory"); // not read before
    }
#endif
}

/** Where 32 bytes of each of n queries, or codes, are: [2][query][16 bytes].
 * @param address  in shared memory, a multiple of 16 */
__device__ inline uint64_t operand_descriptor(uint32_t address, int n) {
    const uint64_t next_coordinates = n; // in units of 16 bytes
    const uint64_t next_rows = 8;
    return (address >> 4 & 0x3fff) | next_coordinates << 16 | next_rows << 32;
}

// The sums of an instruction, which come first among its operands: their names,
// and what they are.
#define TQ_NAMES_32                            \
    "%0, %1, %2, %3, %4, %5, %6, %7"           \
    ", %8, %9, %10, %11, %12, %13, %14, %15"   \
    ", %16, %17, %18, %19, %20, %21, %22, %23" \
    ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TQ_NAMES_64                            \
    TQ_NAMES_32                                \
    ", %32, %33, %34, %35, %36, %37, %38, %39" \
    ", %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55" \
    ", %56, %57, %58, %59, %60, %61, %62, %63"
#define TQ_NAMES_128                                   \
    TQ_NAMES_64                                        \
    ", %64, %65, %66, %67, %68, %69, %70, %71"         \
    ", %72, %73, %74, %75, %76, %77, %78, %79"         \
    ", %80, %81, %82, %83, %84, %85, %86, %87"         \
    ", %88, %89, %90, %91, %92, %93, %94, %95"         \
    ", %96, %97, %98, %99, %100, %101, %102, %103"     \
    ", %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119" \
    ", %120, %121, %122, %123, %124, %125, %126, %127"
#define TQ_SUMS(i)                                                          \
    "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3]), \
            "+r"(sums[i + 4]), "+r"(sums[i + 5]), "+r"(sums[i + 6]),        \
            "+r"(sums[i + 7])
#define TQ_SUMS_32 TQ_SUMS(0), TQ_SUMS(8), TQ_SUMS(16), TQ_SUMS(24)
#define TQ_SUMS_64 \
    TQ_SUMS_32, TQ_SUMS(32), TQ_SUMS(40), TQ_SUMS(48), TQ_SUMS(56)
#define TQ_SUMS_128                                                 \
    TQ_SUMS_64, TQ_SUMS(64), TQ_SUMS(72), TQ_SUMS(80), TQ_SUMS(88), \
            TQ_SUMS(96), TQ_SUMS(104), TQ_SUMS(112), TQ_SUMS(120)

/// sums += bits that codes share with queries, of 256 coordinates: of bit b of
/// eight queries, four sums from 4 b on. adds: otherwise they begin with 0
__device__ inline void wgmma_of_bits(
        int (&sums)[32],
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint64_t queries,
        bool adds) {
#ifdef TQ_HAS_WGMMA
    asm volatile(
            "{\n"
            ".reg .pred adds;\n"
            "setp.ne.u32 adds, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k256.s32.b1.b1.and.popc {" TQ_NAMES_32
            "}, {%32, %33, %34, %35}, %36, adds;\n"
            "}"
            : TQ_SUMS_32
            : "r"(a0),
              "r"(a1),
              "r"(a2),
              "r"(a3),
              "l"(queries),
              "r"(uint32_t(adds)));
#endif
}

/// sums += codes x queries, 64 queries
__device__ inline void wgmma(
        int (&sums)[32],
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint64_t queries) {
#ifdef TQ_HAS_WGMMA
    asm volatile(
            "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {" TQ_NAMES_32
            "}, {%32, %33, %34, %35}, %36, 1;"
            : TQ_SUMS_32
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(queries));
#endif
}

/// sums += codes x queries, 128 queries
__device__ inline void wgmma(
        int (&sums)[64],
        uint32_t a0,
        uint32_t a1,
        uint32_t a2,
        uint32_t a3,
        uint64_t queries) {
#ifdef TQ_HAS_WGMMA
    asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {" TQ_NAMES_64
            "}, {%64, %65, %66, %67}, %68, 1;"
            : TQ_SUMS_64
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(queries));
#endif
}

/// sums += codes x queries, both in shared memory, 128 queries
__device__ inline void wgmma(
        int (&sums)[64],
        uint64_t codes,
        uint64_t queries) {
#ifdef TQ_HAS_WGMMA
    asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {" TQ_NAMES_64
            "}, %64, %65, 1;"
            : TQ_SUMS_64
            : "l"(codes), "l"(queries));
#endif
}

/// sums += codes x queries, both in shared memory, 256 queries
__device__ inline void wgmma(
        int (&sums)[128],
        uint64_t codes,
        uint64_t queries) {
#ifdef TQ_HAS_WGMMA
    asm volatile(
            "wgmma.mma_async.sync.aligned.m64n256k32.s32.u8.s8 {" TQ_NAMES_128
            "}, %128, %129, 1;"
            : TQ_SUMS_128
            : "l"(codes), "l"(queries));
#endif
}

#undef TQ_NAMES_32
#undef TQ_NAMES_64
#undef TQ_NAMES_128
#undef TQ_SUMS
#undef TQ_SUMS_32
#undef TQ_SUMS_64
#undef TQ_SUMS_128

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
