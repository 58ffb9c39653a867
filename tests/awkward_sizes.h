#pragma once

#include <cstddef>

/// dimensions and counts around the widths that kernels step by
constexpr size_t awkward_sizes[] = {1,   2,   3,   7,   8,   9,   15, 16,  17,
                                    31,  32,  33,  63,  64,  65,  96, 100, 127,
                                    128, 129, 200, 255, 256, 257, 384};
