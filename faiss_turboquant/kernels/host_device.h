#pragma once

/// a function that kernels on a GPU call, too
#ifdef __CUDACC__
#define TQ_HOST_DEVICE __host__ __device__
#else
#define TQ_HOST_DEVICE
#endif
