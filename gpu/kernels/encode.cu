#include <gpu/kernels/encode.h>

#include <algorithm>
#include <iterator>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/rotation.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// of a block where each has a vector of scalar codes, and where there is less
/// room
constexpr int vector_warps = 16, large_vector_warps = 12;
/// of a block with one vector of scalar codes
constexpr int min_block_threads = 128, max_block_threads = 512;
constexpr int query_threads = 256; ///< at most
/// of many queries, of which blocks wait for one warp each at times
constexpr int many_queries = 1024, many_queries_threads = 128;
/// of a block where there are many of them
constexpr int residual_threads = 256; ///< at most
/// words of decisions that the way back through a trellis has at hand
constexpr int decision_words = 2048;

int trellis_threads(const DeviceLayout& layout) {
    return std::min(512, 1 << (layout.memory - 1));
}

__device__ void refuse(uint64_t& first, uint64_t row) {
    atomicMin(reinterpret_cast<unsigned long long*>(&first), row);
}

/// scale and offset, once norm, <u, v> and <x - c, c> are known; by one thread
__device__ void write_factors(
        const DeviceLayout& layout,
        double norm,
        float product,
        double along,
        size_t row,
        uint64_t input_row,
        float* scales,
        float* offsets,
        Refused* refused) {
    if (!isfinite(norm)) {
        refuse(refused->not_finite, input_row);
        return;
    }
    const double offset =
            layout.is_l2 ? norm * norm : (layout.has_offset ? along : 0);
    if (norm * norm > largest_float || fabs(offset) > largest_float) {
        refuse(refused->too_long, input_row);
    }
    scales[row] = norm > 0 ? float(norm / (product * layout.half_level)) : 0.0f;
    if (offsets) {
        offsets[row] = float(offset);
    }
}

/** A plane of b-bit fields, by a group of threads.
 * @param fields  (dims,), aligned to 16 bytes: bits `shift` and up of each byte
 * @param plane   (dims b / 8,), written */
template <int b>
__device__ void pack_plane(
        int thread,
        int threads,
        const uint8_t* fields,
        int dims,
        int shift,
        uint8_t* plane) {
    constexpr uint32_t mask = ((1 << b) - 1) * 0x01010101;
    const int n = dims * b / 128; // of 16 bytes
    const uint4* from = reinterpret_cast<const uint4*>(fields);
#pragma unroll 1
    for (int i = thread; i < n; i += threads) {
        uint4 packed = {};
#pragma unroll
        for (int f = 0; f < 8 / b; f++) {
            const uint4 of_plane = from[f * n + i];
            packed.x |= (of_plane.x >> shift & mask) << f * b;
            packed.y |= (of_plane.y >> shift & mask) << f * b;
            packed.z |= (of_plane.z >> shift & mask) << f * b;
            packed.w |= (of_plane.w >> shift & mask) << f * b;
        }
        reinterpret_cast<uint4*>(plane)[i] = packed;
    }
}

// ------------------------------------------------------------ scalar codes

/// into the second-level cache, by a group of threads
__device__ void prefetch_row(
        int thread,
        int threads,
        const float* x,
        size_t row,
        size_t n,
        int d) {
    constexpr int line = 32; // floats
    if (row < n) {
        for (int i = thread * line; i < d; i += threads * line) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(x + row * d + i));
        }
    }
}

/// of half steps from 0, from -64 to 63 and once more 63: no threshold is
/// farther away
constexpr int n_cells = 129;

/// sign << (nbits - 1) | magnitude of the level `h` half steps from 0
__device__ int field_at(const DeviceLayout& layout, int h) {
    const int sign = h < 0;
    const int distance = sign ? ~h : h;
    int magnitude = 0;
    for (int i = 0; i < (1 << (layout.nbits - 1)) - 1; i++) {
        magnitude += distance >= layout.thresholds[i];
    }
    return sign << (layout.nbits - 1) | magnitude;
}

/** The level next to a number of half steps and its field, which is in bits of
 * the float that are zero for all levels. */
struct Cell {
    static constexpr uint32_t field_mask = 15;

    uint32_t bits;

    __device__ float level() const {
        return __uint_as_float(bits & ~field_mask);
    }
    /// in its lowest bits; the others of a byte are zero, too
    __device__ uint8_t field() const {
        return bits;
    }
};

/// each lane has its own, in a bank that no other lane asks
struct Cells {
    Cell cells[n_cells][32];

    /// by the block
    __device__ void fill(const DeviceLayout& layout) {
        const int lane = threadIdx.x % 32;
        for (int i = threadIdx.x; i < round_up(n_cells, 32); i += blockDim.x) {
            const int field = field_at(layout, min(i, n_cells - 2) - 64);
            const float level = 2 * layout.grid[field] - 63;
            const uint32_t bits = __float_as_uint(level) | field;
            for (int k = 0; k < 32; k++) {
                const uint32_t of_row = __shfl_sync(0xffffffff, bits, k);
                if (i - lane + k < n_cells) {
                    cells[i - lane + k][lane] = {of_row};
                }
            }
        }
    }

    /// of floor(half_steps), or the first or the last
    __device__ Cell at(float half_steps) const {
        // from 0 to 1; rounding down never passes a multiple of 1 / 128
        float place;
        asm("fma.rm.sat.f32 %0, %1, 0f3C000000, 0f3F000000;"
            : "=f"(place)
            : "f"(half_steps));
        // a float with a step of 1 / 128: its lowest bits are the row
        constexpr float base = 1 << 16;
        constexpr uint32_t bits_of_base = 0x47800000, row_size = 128;
        const uint32_t at_lane =
                threadIdx.x % 32 * sizeof(Cell) - bits_of_base * row_size;
        const uint32_t row = __float_as_uint(__fadd_rd(place, base));
        return *reinterpret_cast<const Cell*>(
                reinterpret_cast<const char*>(cells) +
                (row * row_size + at_lane));
    }
};

/// planes of fields, by a group of threads
__device__ void pack_fields(
        int thread,
        int threads,
        const DeviceLayout& layout,
        const uint8_t* fields,
        uint8_t* code) {
    const int nbits = layout.nbits, dims = layout.dims;
    if (nbits == 1) {
        pack_plane<1>(thread, threads, fields, dims, 0, code);
    } else if (nbits == 4) {
        pack_plane<4>(thread, threads, fields, dims, 0, code);
    } else {
        pack_plane<2>(thread, threads, fields, dims, 0, code);
    }
    if (nbits == 3) {
        uint8_t* plane = code + 2 * layout.plane_size();
        pack_plane<1>(thread, threads, fields, dims, 2, plane);
    }
}

/// the fields of four cells, one in each byte
__device__ uint32_t join_fields(const Cell* cells) {
    return __byte_perm(
            __byte_perm(cells[0].bits, cells[1].bits, 0x0040),
            __byte_perm(cells[2].bits, cells[3].bits, 0x0040),
            0x5410);
}

/// byte j of lane i, of four lanes, to byte i of lane j
__device__ uint32_t transpose_bytes(uint32_t x) {
    const int lane = threadIdx.x;
    const uint32_t second = __shfl_xor_sync(0xffffffff, x, 2);
    x = __byte_perm(x, second, lane & 2 ? 0x3276 : 0x5410);
    const uint32_t first = __shfl_xor_sync(0xffffffff, x, 1);
    return __byte_perm(x, first, lane & 1 ? 0x3715 : 0x6240);
}

/** A plane of b-bit fields, by a warp, whose lanes have coordinates 32 apart.
 * @tparam rows  of 32 coordinates
 * @param words  in each byte the field of a coordinate, its bits `shift` and up
 * @param plane  (rows, 4 b), written */
template <int b, int rows, int n>
__device__ void pack_plane_of_rows(
        const uint32_t (&words)[n],
        int shift,
        uint8_t* plane) {
    constexpr uint32_t mask = ((1 << b) - 1) * 0x01010101;
    constexpr int of_plane = rows * b / 8; // rows of 32 bytes
    const int lane = threadIdx.x % 32;
    // after four lanes have changed columns for rows
    uint8_t* to = plane + lane % 4 * 32 + lane / 4 * 4;
#pragma unroll
    for (int row = 0; row < of_plane; row += 4) {
        uint32_t packed = 0;
#pragma unroll
        for (int f = 0; f < 8 / b; f++) {
            const int first = f * of_plane + row; // an even number
            uint32_t fields = words[first / 4];
            if (first % 4 != 0) {
                fields = __funnelshift_r(
                        fields, words[min(first / 4 + 1, n - 1)], 16);
            }
            packed |= (fields >> shift & mask) << f * b;
        }
        packed = transpose_bytes(packed);
        if (row + 4 <= of_plane || lane % 4 < of_plane - row) {
            *reinterpret_cast<uint32_t*>(to + 32 * row) = packed;
        }
    }
}

/// all planes of a code
template <int rows, int n>
__device__ void pack_rows(
        const DeviceLayout& layout,
        const uint32_t (&words)[n],
        uint8_t* code) {
    const int nbits = layout.nbits;
    if (nbits == 1) {
        pack_plane_of_rows<1, rows>(words, 0, code);
    } else if (nbits == 4) {
        pack_plane_of_rows<4, rows>(words, 0, code);
    } else {
        pack_plane_of_rows<2, rows>(words, 0, code);
    }
    if (nbits == 3) {
        uint8_t* plane = code + 2 * layout.plane_size();
        pack_plane_of_rows<1, rows>(words, 2, plane);
    }
}

/// what write_factors needs of the vectors of a warp: they are written 32 at a
/// time, because a division takes as long for all lanes as for one
struct PendingFactors {
    size_t rows[32];
    double norms[32], alongs[32];
    float products[32];
};

/** A vector a warp, whose parts are all in registers between two exchanges, so
 * that one buffer in shared memory is enough. Some warps get on faster than
 * others, so each takes the next of the block's vectors when it is done.
 * @tparam n         of parts of max_part in d
 * @tparam smallest  of WarpVector
 * @tparam run       of DeviceRotation, or 0 for any
 * @tparam warps     of a block, which has a multiprocessor */
template <int n, int smallest, int run, int warps>
__global__ void __launch_bounds__(32 * warps, 1) encode_vectors_kernel(
        Encoder encoder,
        const float* x,
        size_t count,
        uint64_t first_row,
        uint8_t* planes,
        float* scales,
        float* offsets,
        Refused* refused) {
    extern __shared__ float shared[];
    __shared__ Cells cells;
    __shared__ PendingFactors pending_of_warp[warps];
    __shared__ uint32_t n_taken;
    const DeviceLayout& layout = encoder.layout;
    const DeviceRotation& rotation = encoder.rotation;
    const int d = layout.d;
    const int lane = threadIdx.x % 32;
    // the compiler shall know that it is the same in a warp
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const SharedVector work{shared + warp * shared_vector_size(d)};
    uint8_t* fields = reinterpret_cast<uint8_t*>(work.data);
    cells.fill(layout);
    if (threadIdx.x == 0) {
        n_taken = 0;
    }
    __syncthreads();
    PendingFactors& pending = pending_of_warp[warp];
    int n_pending = 0;
    // what take_one gives is of the first lane
    const auto take_one = [&] {
        return lane == 0 ? atomicAdd(&n_taken, 1) : 0;
    };
    const auto row_of_taken = [&](uint32_t taken) {
        const uint32_t i = __shfl_sync(0xffffffff, taken, 0);
        return blockIdx.x + size_t(i) * gridDim.x;
    };
    size_t row = row_of_taken(take_one()), next_row = row_of_taken(take_one());
    while (row < count) {
        const uint32_t taken = take_one(); // of the row after the next
        prefetch_row(lane, 32, x, next_row, count, d);
        double squared, along;
        load_difference(
                rotation,
                x + row * d,
                encoder.centre_of(row),
                work,
                squared,
                along);
        const double norm = sqrt(add_lanes(squared));
        if (encoder.centre) {
            along = add_lanes(along);
        }
        __syncwarp();
        const double factor = norm > 0 ? 1 / norm : 0;
        WarpVector<n, smallest> y;
        if constexpr (run > 0) {
            const std::integral_constant<int, run> known;
            rotate(rotation, known, work, factor, y);
        } else {
            rotate(rotation, rotation.run, work, factor, y);
        }
        constexpr float unit = decltype(y)::unit;
        const float half_steps = layout.half_steps / unit;
        float product = 0;
        uint8_t* const code = planes + encoder.row_of(row) * layout.row_size();
        // take: of the nearest cells of some coordinates, the first row's
        const auto quantize = [&](const auto& take) {
            y.for_each_part(d, [&](auto& v, int begin, int) {
                constexpr int of_lane = sizeof(v) / sizeof(float);
                constexpr int batch = of_lane < 8 ? of_lane : 8;
                if (of_lane > 1 || begin + lane < d) {
#pragma unroll
                    for (int i = 0; i < of_lane; i += batch) {
                        Cell near[batch];
#pragma unroll
                        for (int j = 0; j < batch; j++) {
                            near[j] = cells.at(v[i + j] * half_steps);
                        }
                        take(near, begin + 32 * i);
#pragma unroll
                        for (int j = 0; j < batch; j++) {
                            product += v[i + j] * near[j].level();
                        }
                    }
                }
            });
        };
        if constexpr (smallest == 512) {
            uint32_t words[8 * n + 4];
            int word = 0; // the compiler knows it
            quantize([&](const auto& near, int) {
                words[word++] = join_fields(near);
                words[word++] = join_fields(near + 4);
            });
            if (d & 512) {
                pack_rows<32 * n + 16>(layout, words, code);
            } else {
                pack_rows<32 * n>(layout, words, code);
            }
        } else {
            quantize([&](const auto& near, int begin) {
#pragma unroll
                for (int j = 0; j < int(std::size(near)); j++) {
                    fields[begin + 32 * j + lane] = near[j].field();
                }
            });
            for (int i = d + lane; i < layout.dims; i += 32) {
                fields[i] = 0;
            }
            __syncwarp();
            pack_fields(lane, 32, layout, fields, code);
        }
        product = add_lanes(product) / unit;
        if (lane == 0) {
            pending.rows[n_pending] = row;
            pending.norms[n_pending] = norm;
            pending.alongs[n_pending] = along;
            pending.products[n_pending] = product;
        }
        n_pending++;
        __syncwarp();
        if (n_pending == 32 || next_row >= count) {
            if (lane < n_pending) {
                const size_t i = pending.rows[lane];
                write_factors(
                        layout,
                        pending.norms[lane],
                        pending.products[lane],
                        pending.alongs[lane],
                        encoder.row_of(i),
                        first_row + i,
                        scales,
                        offsets,
                        refused);
            }
            n_pending = 0;
            __syncwarp();
        }
        row = next_row;
        next_row = row_of_taken(taken);
    }
}

/// a vector a block: what does not fit in the registers of a warp, and dense
/// rotations
__global__ void __launch_bounds__(max_block_threads) encode_vector_kernel(
        Encoder encoder,
        const float* x,
        size_t n,
        uint64_t first_row,
        uint8_t* planes,
        float* scales,
        float* offsets,
        Refused* refused) {
    extern __shared__ float shared[];
    __shared__ double norm, along;
    __shared__ Cells cells;
    const DeviceLayout& layout = encoder.layout;
    const int d = layout.d;
    const int size = shared_vector_size(d);
    const SharedVector work{shared}, y{shared + size};
    uint8_t* fields = reinterpret_cast<uint8_t*>(shared); // after the rotation
    cells.fill(layout);
    for (size_t row = blockIdx.x; row < n; row += gridDim.x) {
        prefetch_row(threadIdx.x, blockDim.x, x, row + gridDim.x, n, d);
        rotate_direction(
                encoder.rotation_by_block,
                x + row * d,
                encoder.centre_of(row),
                work,
                y,
                norm,
                along);
        for (int i = threadIdx.x; i < layout.dims; i += blockDim.x) {
            Cell cell = {0};
            if (i < d) {
                cell = cells.at(y[i] * layout.half_steps);
                y[i] *= cell.level();
            }
            fields[i] = cell.field();
        }
        __syncthreads();
        const size_t to = encoder.row_of(row);
        pack_fields(
                threadIdx.x,
                blockDim.x,
                layout,
                fields,
                planes + to * layout.row_size());
        if (threadIdx.x < 32) {
            float product = 0;
#pragma unroll 4
            for (int i = threadIdx.x; i < d; i += 32) {
                product += y[i];
            }
            product = add_lanes(product);
            if (threadIdx.x == 0) {
                write_factors(
                        layout,
                        norm,
                        product,
                        along,
                        to,
                        first_row + row,
                        scales,
                        offsets,
                        refused);
            }
        }
        __syncthreads();
    }
}

// ------------------------------------------------- codes with a trellis

/** Viterbi's algorithm. Costs are bytes that saturate, reduced by the least of
 * them every trellis_period coordinates.
 *
 * States 2 j and 2 j + 1 follow j and j + n_states / 2. Decisions are bits:
 * those of states 2 j in word j / 32 * 2 of a coordinate, those of 2 j + 1 in
 * the word after.
 *
 * @param positions  (d,) on the fine grid
 * @param costs      (2, n_states), scratch
 * @param decisions  (d, n_states / 32), written
 * @return  the first of the best states */
__device__ int viterbi(
        const DeviceLayout& layout,
        const uint8_t* branches,
        const uint8_t* branch_costs,
        const uint16_t* positions,
        uint8_t* costs,
        uint32_t* decisions) {
    __shared__ uint32_t least_of_warp[16];
    __shared__ uint32_t best;
    const int n_states = 1 << layout.memory;
    const int half = n_states / 2;
    const int n_warps = blockDim.x / 32;
    uint8_t* current = costs;
    uint8_t* next = costs + n_states;
    for (int s = threadIdx.x; s < n_states; s += blockDim.x) {
        current[s] = s == 0 ? 0 : 255;
    }
    if (threadIdx.x == 0) {
        best = ~0u;
    }
    __syncthreads();
    for (int t = 0; t < layout.d; t++) {
        const uint8_t* cost = branch_costs + (positions[t] << layout.parities);
        uint32_t reduce = 0;
        if (t > 0 && t % trellis_period == 0) {
            reduce = 255;
            for (int w = 0; w < n_warps; w++) {
                reduce = min(reduce, least_of_warp[w]);
            }
        }
        uint32_t least = 255;
        for (int j = threadIdx.x; j < half; j += blockDim.x) {
            const uint32_t lower = current[j] - reduce;
            const uint32_t upper = current[j + half] - reduce;
            const int z = branches[j];
            const uint32_t a0 = min(lower + cost[z], 255);
            const uint32_t b0 = min(upper + cost[z ^ layout.oldest_bit], 255);
            const int z1 = z ^ layout.newest_bit;
            const uint32_t a1 = min(lower + cost[z1], 255);
            const uint32_t b1 = min(upper + cost[z1 ^ layout.oldest_bit], 255);
            const uint32_t cost0 = min(a0, b0), cost1 = min(a1, b1);
            reinterpret_cast<uint16_t*>(next)[j] = cost0 | cost1 << 8;
            least = min(least, min(cost0, cost1));
            const uint32_t even = __ballot_sync(0xffffffff, b0 < a0);
            const uint32_t odd = __ballot_sync(0xffffffff, b1 < a1);
            if (threadIdx.x % 32 == 0) {
                reinterpret_cast<uint2*>(
                        decisions + size_t(t) * n_states / 32)[j / 32] =
                        make_uint2(even, odd);
            }
        }
        if (t % trellis_period == trellis_period - 1) {
            least = __reduce_min_sync(0xffffffff, least);
            if (threadIdx.x % 32 == 0) {
                least_of_warp[threadIdx.x / 32] = least;
            }
        }
        __syncthreads();
        uint8_t* swapped = current;
        current = next;
        next = swapped;
    }
    for (int s = threadIdx.x; s < n_states; s += blockDim.x) {
        atomicMin(&best, uint32_t(current[s]) << 16 | s);
    }
    __syncthreads();
    return best & 0xffff;
}

/** Back along the best path.
 * @param window  scratch of decision_words
 * @param path    (d,), written: the last memory + 1 coded bits */
__device__ void trace_back(
        const DeviceLayout& layout,
        const uint32_t* decisions,
        int state,
        uint32_t* window,
        uint16_t* path) {
    const int words = (1 << layout.memory) / 32;
    const int at_hand = decision_words / words;
    for (int end = layout.d; end > 0; end -= at_hand) {
        const int begin = max(0, end - at_hand);
        for (int i = threadIdx.x; i < (end - begin) * words; i += blockDim.x) {
            window[i] = decisions[size_t(begin) * words + i];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int t = end - 1; t >= begin; t--) {
                const int word = state >> 6 << 1 | (state & 1);
                // the bits before the first coordinate are 0
                const int bit = t < layout.memory
                        ? 0
                        : window[(t - begin) * words + word] >>
                                        (state >> 1 & 31) &
                                1;
                const int w = state | bit << layout.memory;
                path[t] = w;
                state = w >> 1;
            }
        }
        __syncthreads();
    }
}

/// sum of y_i (2 g_i - 63) in 32 lanes, by one warp; the result is lane 0's
template <class Position>
__device__ float level_product(SharedVector y, int d, Position position) {
    float sum = 0;
    for (int i = threadIdx.x % 32; i < d; i += 32) {
        sum += y[i] * float(2 * position(i) - 63);
    }
    return add_lanes(sum);
}

/// parities of the last memory + 1 coded bits
__device__ int subset_of(
        const DeviceLayout& layout,
        const uint8_t* branches,
        int w) {
    // branches are by the state before: w without its newest bit
    const int state = w >> 1 & ((1 << layout.memory) - 1);
    return branches[state] ^ (w & 1 ? layout.newest_bit : 0);
}

__device__ int trellis_position(
        const DeviceLayout& layout,
        int subset,
        int choice) {
    const int sign = choice >> 2, others = choice & 3;
    const int index = (subset ^ (sign ? layout.sign_mask : 0)) |
            others << layout.parities;
    return sign ? 63 - layout.grid[index] : layout.grid[index];
}

__global__ void encode_trellis_kernel(
        Encoder encoder,
        const float* x,
        size_t n,
        uint64_t first_row,
        uint8_t* planes,
        float* scales,
        float* offsets,
        Refused* refused,
        uint8_t* workspace,
        size_t workspace_of_block) {
    extern __shared__ float shared[];
    __shared__ double norm, along;
    const DeviceLayout& layout = encoder.layout;
    const int d = layout.d, dims = layout.dims;
    const int costs_size = layout.positions << layout.parities;
    // in the place of work, once it is done: fine positions and the path, then,
    // as the window is done, too, choices of the path
    const int size = shared_vector_size(d);
    const SharedVector y{shared}, work{shared + size};
    uint16_t* positions = reinterpret_cast<uint16_t*>(work.data);
    uint16_t* path = positions + dims;
    uint8_t* choices = reinterpret_cast<uint8_t*>(path + dims);
    uint32_t* window = reinterpret_cast<uint32_t*>(shared + 2 * size);
    static_assert(
            2 * sizeof(uint16_t) * max_dim + max_dim <=
                    shared_vector_size(max_dim) * sizeof(float) +
                            decision_words * sizeof(uint32_t),
            "choices end within the window");
    uint8_t* costs = reinterpret_cast<uint8_t*>(window + decision_words);
    uint8_t* branches = costs + (2 << layout.memory);
    uint8_t* branch_costs = branches + (1 << layout.memory);
    uint32_t* decisions = reinterpret_cast<uint32_t*>(
            workspace + blockIdx.x * workspace_of_block);
    for (int i = threadIdx.x; i < costs_size; i += blockDim.x) {
        branch_costs[i] = encoder.tables.costs[i];
    }
    for (int i = threadIdx.x; i < 1 << layout.memory; i += blockDim.x) {
        branches[i] = encoder.tables.branches[i];
    }
    const float factor = layout.half_steps * float(1 << layout.shift);
    const float half = float(layout.positions / 2);

    for (size_t row = blockIdx.x; row < n; row += gridDim.x) {
        rotate_direction(
                encoder.rotation_by_block,
                x + row * d,
                encoder.centre_of(row),
                work,
                y,
                norm,
                along);
        for (int i = threadIdx.x; i < d; i += blockDim.x) {
            const float fine = floorf(y[i] * factor);
            positions[i] = int(fminf(fmaxf(fine, -half), half - 1) + half);
        }
        __syncthreads();
        const int state = viterbi(
                layout, branches, branch_costs, positions, costs, decisions);
        trace_back(layout, decisions, state, window, path);
        for (int i = threadIdx.x; i < dims; i += blockDim.x) {
            // coded bit, then what encode calls the choice
            choices[i] = 0;
            if (i < d) {
                const int z = subset_of(layout, branches, path[i]);
                const int choice =
                        encoder.tables
                                .choices[(positions[i] << layout.parities) + z];
                choices[i] = choice << 1 | (path[i] & 1);
            }
        }
        __syncthreads();
        // coded bits, signs, and what else is chosen
        const int m = layout.plane_size();
        const size_t to = encoder.row_of(row);
        uint8_t* code = planes + to * layout.row_size();
        pack_plane<1>(threadIdx.x, blockDim.x, choices, dims, 0, code);
        if (layout.nbits >= 2) {
            pack_plane<1>(threadIdx.x, blockDim.x, choices, dims, 3, code + m);
        }
        if (layout.nbits == 3) {
            pack_plane<1>(
                    threadIdx.x, blockDim.x, choices, dims, 1, code + 2 * m);
        } else if (layout.nbits == 4) {
            pack_plane<2>(
                    threadIdx.x, blockDim.x, choices, dims, 1, code + 2 * m);
        }
        if (threadIdx.x < 32) {
            const float product = level_product(y, d, [&](int i) {
                return trellis_position(
                        layout,
                        subset_of(layout, branches, path[i]),
                        choices[i] >> 1);
            });
            if (threadIdx.x == 0) {
                write_factors(
                        layout,
                        norm,
                        product,
                        along,
                        to,
                        first_row + row,
                        scales,
                        offsets,
                        refused);
            }
        }
        __syncthreads();
    }
}

size_t trellis_shared_size(const DeviceLayout& layout) {
    return 2 * shared_vector_size(layout.d) * sizeof(float) +
            decision_words * sizeof(uint32_t) + (size_t(3) << layout.memory) +
            (size_t(layout.positions) << layout.parities);
}

// ---------------------------------------------------------------- launches

/// how scalar codes are made
struct ScalarLaunch {
    using Kernel = decltype(&encode_vector_kernel);

    Kernel kernel = nullptr;
    int threads = 0;
    size_t shared = 0;

    explicit ScalarLaunch(const Encoder& encoder) {
        const int d = encoder.layout.d;
        const size_t vector = shared_vector_size(d) * sizeof(float);
        const int n = d / max_part;
        if (!encoder.rotation.matrix) {
            kernel = of_warps(n, d);
        }
        if (kernel) {
            const size_t warps = std::min<size_t>(
                    n < 3 ? vector_warps : large_vector_warps,
                    traits_of(kernel).shared_memory / vector);
            threads = int(32 * warps);
            shared = warps * vector;
        } else {
            kernel = encode_vector_kernel;
            threads = std::clamp(32 * n, min_block_threads, max_block_threads);
            shared = 2 * vector;
        }
    }

    /// null where a vector does not fit in the registers of a warp
    static Kernel of_warps(int n, int d) {
        if (d % 512 == 0) {
            switch (n) {
                case 1:
                    return encode_vectors_kernel<1, 512, 16, vector_warps>;
                case 2:
                    return encode_vectors_kernel<2, 512, 16, vector_warps>;
                case 3:
                    return encode_vectors_kernel<
                            3,
                            512,
                            16,
                            large_vector_warps>;
            }
        }
        if (n == 0 && d % 128 == 0) {
            return encode_vectors_kernel<0, 128, 4, vector_warps>;
        }
        switch (n) {
            case 0:
                return encode_vectors_kernel<0, 1, 0, vector_warps>;
            case 1:
                return encode_vectors_kernel<1, 1, 0, vector_warps>;
            default:
                return nullptr;
        }
    }
};

// -------------------------------------------------------------- queries

__device__ inline float largest_of_lanes(float x) {
    for (int half = 16; half > 0; half /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, half));
    }
    return x;
}

/// where the words of a query go in the image
struct QueryWords {
    uint32_t* words;
    int group_size, in_tile;
    bool is_single, by_lanes;

    __device__ QueryWords(
            const DeviceLayout& layout,
            uint8_t* image,
            const ImageOrder& order,
            size_t q)
            : group_size(order.group_size),
              is_single(order.is_single),
              by_lanes(order.is_batch) {
        const int tile = is_single ? 1 : group_size ? group_size : 8;
        in_tile = int(q % tile);
        words = reinterpret_cast<uint32_t*>(image) +
                (q - in_tile) * (layout.dims / 4);
    }

    /// i = (fragment * 4 + t) * 4 + word, or, of a single query, as it is
    __device__ uint32_t& operator[](int i) const {
        if (is_single) {
            return words[i];
        }
        if (group_size == 0) {
            return words[i / 16 * 128 + in_tile * 16 + i % 16];
        }
        const int t = i / 4 % 4, word = i % 4;
        const int outer = by_lanes ? t : word, inner = by_lanes ? word : t;
        return words[((i / 16 * 4 + outer) * group_size + in_tile) * 4 + inner];
    }

    /// those of i = 4 quad and on
    __device__ void write(int quad, const uint4& four) const {
        uint32_t* to = &(*this)[4 * quad];
        if (group_size == 0 || by_lanes) {
            *reinterpret_cast<uint4*>(to) = four;
        } else {
            to[0] = four.x;
            to[4 * group_size] = four.y;
            to[8 * group_size] = four.z;
            to[12 * group_size] = four.w;
        }
    }
};

/// a query that nothing is ever near, by the block
__device__ void write_empty_query(
        const DeviceLayout& layout,
        const QueryWords& words,
        DeviceQueryFactors& factors) {
    for (int i = threadIdx.x; i < layout.dims / 4; i += blockDim.x) {
        words[i] = 0;
    }
    if (threadIdx.x == 0) {
        factors = {0, nanf(""), 0};
    }
}

/// the words of a quantized query in four bytes each, by some threads
__device__ void write_fragments(
        uint32_t thread,
        uint32_t threads,
        const DeviceLayout& layout,
        const ImageOrder& order,
        const int8_t* quantized,
        const QueryWords& words) {
    const int units = order.units;
    const int bits = fragment_bits(layout.nbits, layout.has_trellis());
    const Fragment fragments{bits, units};
    const int dims = layout.dims;
    // of four bytes in the code of a field, those of two words
    const auto four_from = [&](int coordinate) {
        return *reinterpret_cast<const uint32_t*>(quantized + coordinate);
    };
    for (int quad = thread; quad < dims / 16; quad += threads) {
        const int fragment = quad / 4, t = quad % 4;
        const int step = fragment / (2 * units);
        const int first = fragment % (2 * units) * 4;
        uint32_t four[4];
#pragma unroll
        for (int p = 0; p < 4; p += 2) {
            const uint32_t even = four_from(
                    fragments.coordinate(dims, step, t, first + p, 0));
            const uint32_t odd = four_from(
                    fragments.coordinate(dims, step, t, first + p, 1));
            four[p] = __byte_perm(even, odd, 0x5140);
            four[p + 1] = __byte_perm(even, odd, 0x7362);
        }
        words.write(quad, {four[0], four[1], four[2], four[3]});
    }
}

/// the bits of a quantized query as codes of one bit, by some warps
__device__ void write_bit_planes(
        uint32_t thread,
        uint32_t threads,
        const DeviceLayout& layout,
        const ImageOrder& order,
        const int8_t* quantized,
        const QueryWords& words) {
    const int lane = threadIdx.x % 32;
    const int units = order.units, bits = order.bits;
    const int of_step = 4 * units; // words of a plane
    // where bit b of word i goes
    const auto place = [&](int i, int b) {
        const int step = i / of_step, in_step = i % of_step;
        if (order.is_single) {
            return (step * bits + b) * of_step + in_step;
        }
        const int t = in_step / units, unit = step * units + in_step % units;
        int word; // of the lane
        if (order.group_size || units == 1) {
            word = unit * bits + b;
        } else {
            word = unit / 2 * (2 * bits) + b / 2 * 4 + unit % 2 * 2 + b % 2;
        }
        return (word / 4 * 4 + t) * 4 + word % 4;
    };
    for (int i = thread / 32; i < layout.dims / 32; i += threads / 32) {
        // of bit `lane` of word i in a code
        const int c = lane % 8 * layout.plane_size() + 4 * i + lane / 8;
        const int value = quantized[c];
        uint32_t word = 0;
#pragma unroll
        for (int b = 0; b < 8; b++) { // of the upper ones, copies of the sign
            const uint32_t plane = __ballot_sync(0xffffffff, value >> b & 1);
            word = lane == b ? plane : word;
        }
        if (lane < bits) {
            words[place(i, lane)] = word;
        }
    }
}

/// the image of a quantized query, by some warps
__device__ void write_image(
        uint32_t thread,
        uint32_t threads,
        const DeviceLayout& layout,
        const ImageOrder& order,
        const int8_t* quantized,
        const QueryWords& words) {
    if (order.by_bits) {
        write_bit_planes(thread, threads, layout, order, quantized, words);
    } else {
        write_fragments(thread, threads, layout, order, quantized, words);
    }
}

/// of a query, for keys of codes
constexpr float largest_integer = ImageOrder().largest_integer();

/** Coordinates as integers, in bytes.
 * @param factor  times which they are up to the largest integer */
__device__ inline uint32_t quantize_four(const float4& x, float factor) {
    // to the nearest integer, in the lowest byte
    const auto quantize = [&](float x) {
        constexpr float integers = 3 << 22; // what is added to it is rounded
        return __float_as_uint(__fadd_rn(__fmul_rn(x, factor), integers));
    };
    return __byte_perm(
            __byte_perm(quantize(x.x), quantize(x.y), 0x0040),
            __byte_perm(quantize(x.z), quantize(x.w), 0x0040),
            0x5410);
}

/// four bytes of 1
constexpr int ones = 0x01010101;

/** @param length  of the query, which has been divided by it
 *  @param step    of a coordinate, which is one of an integer
 *  @param sum     of the integers
 *  @param bias    of the query's distances */
__device__ DeviceQueryFactors query_factors(
        const DeviceLayout& layout,
        const ImageOrder& order,
        double length,
        double step,
        int sum,
        double bias) {
    const double multiplier = length * step * layout.half_level;
    const uint32_t base = order.is_batch ? DeviceLayout().base
                                         : layout.base_of(order.by_bits);
    const float sign = layout.is_l2 ? 1 : -1;
    // rounding is symmetric, so the sign may go in first
    return {base * uint32_t(sum),
            sign * float(layout.is_l2 ? -2 * multiplier : multiplier),
            sign * float(bias)};
}

/** Quantize a rotated query and write it, by the block.
 * @param y          (d,)
 * @param quantized  (dims,), scratch
 * @param length     of the query that y is the direction of
 * @param bias       of its distances
 * @param sums       null: not wanted */
__device__ void write_query(
        const DeviceLayout& layout,
        const ImageOrder& order,
        SharedVector y,
        int8_t* quantized,
        double length,
        double bias,
        const QueryWords& words,
        DeviceQueryFactors& factors,
        QuerySums* sums) {
    __shared__ float largest_of_warp[query_threads / 32];
    // of integers; with q those of eight bits, w those that are written
    struct Sums {
        int sum, magnitudes;
        int qq, qw, ww; // scalar products
    };
    __shared__ Sums total;
    const int d = layout.d, dims = layout.dims;
    float largest = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        largest = fmaxf(largest, fabsf(y[i]));
    }
    largest = largest_of_lanes(largest);
    if (threadIdx.x % 32 == 0) {
        largest_of_warp[threadIdx.x / 32] = largest;
    }
    if (threadIdx.x == 0) {
        total = {};
    }
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; w++) {
        largest = fmaxf(largest, largest_of_warp[w]);
    }
    const auto factor = [&](int integer) {
        return largest > 0 ? float(integer) / largest : 0;
    };
    const float factor_of_q = factor(largest_integer);
    const float factor_of_w = factor(order.largest_integer());
    Sums partial = {};
    for (int i = threadIdx.x; i < dims / 4; i += blockDim.x) {
        const int left = d - 4 * i;
        float4 x = reinterpret_cast<const float4&>(y[4 * i]);
        x = {left > 0 ? x.x : 0,
             left > 1 ? x.y : 0,
             left > 2 ? x.z : 0,
             left > 3 ? x.w : 0};
        const int w = int(quantize_four(x, factor_of_w));
        reinterpret_cast<int*>(quantized)[i] = w;
        partial.sum = __dp4a(w, ones, partial.sum);
        if (sums) {
            const int q = int(quantize_four(x, factor_of_q));
            partial.magnitudes =
                    __dp4a(int(__vabs4(w)), ones, partial.magnitudes);
            partial.qq = __dp4a(q, q, partial.qq);
            partial.qw = __dp4a(q, w, partial.qw);
            partial.ww = __dp4a(w, w, partial.ww);
        }
    }
    const auto add = [](int& total, int of_lane) {
        const int of_warp = __reduce_add_sync(0xffffffff, of_lane);
        if (threadIdx.x % 32 == 0) {
            atomicAdd(&total, of_warp);
        }
    };
    add(total.sum, partial.sum);
    if (sums) {
        add(total.magnitudes, partial.magnitudes);
        add(total.qq, partial.qq);
        add(total.qw, partial.qw);
        add(total.ww, partial.ww);
    }
    __syncthreads();
    write_image(threadIdx.x, blockDim.x, layout, order, quantized, words);
    if (threadIdx.x == 0) {
        double step = double(largest) / largest_integer;
        if (sums) {
            const double qq = total.qq, qw = total.qw;
            const bool is_zero = total.qq == 0;
            step *= is_zero ? 1 : qq / qw;
            const double squares = is_zero ? 0 : qw * qw / qq;
            *sums = {
                    uint32_t(total.magnitudes),
                    float(squares),
                    float(sqrt(fmax(total.ww - squares, 0.0)))};
        }
        factors = query_factors(layout, order, length, step, total.sum, bias);
    }
}

__global__ void __launch_bounds__(query_threads) prepare_queries_kernel(
        Encoder encoder,
        const float* x,
        size_t nq,
        uint64_t first_row,
        const __grid_constant__ QueryImage first_image,
        const __grid_constant__ QueryImage second_image,
        Refused* refused) {
    extern __shared__ float shared[];
    __shared__ double norm, along;
    const QueryImage& image = blockIdx.y == 0 ? first_image : second_image;
    const DeviceLayout& layout = image.layout;
    const int d = layout.d;
    const size_t q = blockIdx.x;
    const int size = shared_vector_size(d);
    const SharedVector work{shared}, y{shared + size};
    const QueryWords words(layout, image.image, image.order, q);
    prefetch_words(encoder.rotation_by_block);
    let_next_kernel_begin();
    if (threadIdx.x == 0) {
        if (image.thresholds) {
            image.thresholds[q] = no_entry;
        }
        if (image.left && q == 0) {
            *image.left = {};
        }
        if (image.next_round && q == 0) {
            *image.next_round = 0;
        }
    }
    if (q >= nq) {
        write_empty_query(layout, words, image.factors[q]);
        return;
    }
    const float* query = x + q * d;
    rotate_direction(
            encoder.rotation_by_block,
            query,
            encoder.centre,
            work,
            y,
            norm,
            along);
    double bias = 0; // of the first thread
    if (threadIdx.x == 0) {
        if (!isfinite(norm)) {
            refuse(refused->not_finite, first_row + q);
        }
        if (layout.is_l2) {
            bias = norm * norm;
        } else if (encoder.centre) {
            for (int j = 0; j < d; j++) {
                bias += double(query[j]) * encoder.centre[j];
            }
        }
        if (!(fabs(bias) <= largest_float && norm * norm <= largest_float)) {
            refuse(refused->too_long, first_row + q);
        }
    }
    write_query(
            layout,
            image.order,
            y,
            reinterpret_cast<int8_t*>(shared + 2 * size),
            norm,
            bias,
            words,
            image.factors[q],
            image.sums ? image.sums + q : nullptr);
}

__global__ void __launch_bounds__(query_threads) rotate_queries_kernel(
        Encoder encoder,
        const float* x,
        uint64_t first_row,
        float* rotated,
        Refused* refused) {
    extern __shared__ float shared[];
    const int d = encoder.layout.d;
    const SharedVector work{shared}, y{shared + shared_vector_size(d)};
    const size_t q = blockIdx.x;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        input_at(encoder.rotation_by_block, work, i) = x[q * d + i];
    }
    __syncthreads();
    rotate(encoder.rotation_by_block, work, y, 1);
    const int dims = encoder.layout.dims;
    for (int i = threadIdx.x; i < dims; i += blockDim.x) {
        rotated[q * dims + i] = i < d ? y[i] : 0;
    }
    if (threadIdx.x < 32) {
        const double squared = warp_dot(y, y, d);
        if (threadIdx.x == 0 && !(squared <= largest_float)) {
            refuse(refused->not_finite, first_row + q);
        }
    }
}

/** Shared memory of a block: the centre, then a query of each warp, which start
 * in different banks. */
struct ResidualVectors {
    uint32_t dims;

    TQ_HOST_DEVICE uint32_t stride() const { ///< in fours
        return dims / 4 + 1;
    }
    TQ_HOST_DEVICE size_t size(uint32_t warps) const {
        return (1 + warps) * stride() * sizeof(float4);
    }
};

/** A warp for each slot. Slots of a block follow each other, and are of one
 * list; what is in one is in those before, too. */
template <bool is_l2>
__global__ void __launch_bounds__(residual_threads) prepare_residual_kernel(
        const __grid_constant__ DeviceLayout layout,
        const __grid_constant__ ResidualQueries queries,
        const __grid_constant__ ImageOrder order,
        uint8_t* image,
        DeviceQueryFactors* factors) {
    extern __shared__ float4 vectors[];
    const uint32_t dims = layout.dims;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t warps = blockDim.x / 32;
    const uint32_t stride = ResidualVectors{dims}.stride();
    const uint32_t first_slot = blockIdx.x * warps;
    const uint32_t first_probe = queries.probe_of_slot[first_slot];
    if (first_probe == no_probe) {
        return;
    }
    const float4* centre = reinterpret_cast<const float4*>(
            queries.centres + queries.lists[first_probe] * dims);
    for (uint32_t i = threadIdx.x; i < dims / 4; i += blockDim.x) {
        vectors[i] = centre[i];
    }
    __syncthreads();
    const auto integers_of = [&](uint32_t warp) {
        return vectors + (1 + warp) * stride;
    };
    const uint32_t probe = queries.probe_of_slot[first_slot + warp];
    if (probe != no_probe) {
        const size_t query = probe / queries.nprobe;
        const float* x = queries.rotated + query * dims;
        const float* centre_of_lane =
                reinterpret_cast<const float*>(vectors) + lane;
        float4* own = integers_of(warp);
        float* y = reinterpret_cast<float*>(own);
        float largest = 0;
        double sum = 0;
        constexpr uint32_t batch = 16; // rows of 32 on their way at a time
        const auto take = [&](uint32_t begin, const auto& is_inside) {
            const float* const from = x + begin + lane;
            const float* const c = centre_of_lane + begin;
            float* const to = y + begin + lane;
            float values[batch];
#pragma unroll
            for (uint32_t b = 0; b < batch; b++) {
                values[b] =
                        is_inside(begin + 32 * b) ? __ldg(from + 32 * b) : 0;
            }
#pragma unroll
            for (uint32_t b = 0; b < batch; b++) {
                if (is_inside(begin + 32 * b)) {
                    const float of_centre = c[32 * b];
                    const float difference = values[b] - of_centre;
                    to[32 * b] = difference;
                    largest = fmaxf(largest, fabsf(difference));
                    const double first = is_l2 ? difference : values[b];
                    const double second = is_l2 ? difference : of_centre;
                    sum = fma(first, second, sum);
                }
            }
        };
        uint32_t begin = 0;
        for (; begin + 32 * batch <= dims; begin += 32 * batch) {
            take(begin, [](uint32_t) { return true; });
        }
        if (begin < dims) {
            take(begin, [&](uint32_t i) { return i < dims; });
        }
        largest = largest_of_lanes(largest);
        sum = add_lanes(sum);
        const float factor = largest > 0 ? largest_integer / largest : 0;
        int integers = 0; // their sum
        for (uint32_t i = lane; i < dims / 4; i += 32) {
            __syncwarp();
            const uint32_t four = quantize_four(own[i], factor);
            integers = __dp4a(int(four), ones, integers);
            __syncwarp(); // in place of what all lanes have read
            reinterpret_cast<uint32_t*>(own)[i] = four;
        }
        integers = __reduce_add_sync(0xffffffff, integers);
        if (lane == 0) {
            const double step = double(largest) / largest_integer;
            factors[first_slot + warp] =
                    query_factors(layout, order, 1, step, integers, sum);
        }
    }
    __syncthreads();
    // pieces of slots lie side by side, and so do threads that write them
    const bool is_by_warp = order.by_bits;
    const uint32_t place = is_by_warp ? warp : threadIdx.x % warps;
    const uint32_t slot = first_slot + place;
    if (queries.probe_of_slot[slot] != no_probe) {
        write_image(
                is_by_warp ? lane : threadIdx.x / warps,
                32,
                layout,
                order,
                reinterpret_cast<const int8_t*>(integers_of(place)),
                QueryWords(layout, image, order, slot));
    }
}

// ----------------------------------------------------------- conversion

/// a plane of b-bit fields, and where it is in a code
struct Plane {
    int b;
    int cpu_begin, cpu_size;
    int begin, size;
};

struct Planes {
    Plane planes[3];
    int count = 0;
    int cpu_size = 0; ///< bytes of all
    int size = 0;

    void append(int d, int dims, int b) {
        const int m = ceil_div(d * b, 8), device_m = dims * b / 8;
        planes[count++] = {b, cpu_size, m, size, device_m};
        cpu_size += m;
        size += device_m;
    }
};

Planes planes_of(const DeviceLayout& layout) {
    Planes planes;
    const int nbits = layout.nbits;
    if (layout.has_trellis()) {
        const int d = round_up(layout.d, 8);
        planes.append(d, layout.dims, 1);
        if (nbits >= 2) {
            planes.append(d, layout.dims, 1);
        }
        if (nbits >= 3) {
            planes.append(d, layout.dims, nbits - 2);
        }
    } else if (nbits == 3) {
        planes.append(layout.d, layout.dims, 2);
        planes.append(layout.d, layout.dims, 1);
    } else {
        planes.append(layout.d, layout.dims, nbits);
    }
    return planes;
}

/// byte i of a plane of `to_size` bytes, from one of `from_size` bytes
__device__ uint8_t repack_byte(
        const uint8_t* from,
        int from_size,
        int to_size,
        int b,
        int i,
        int d) {
    uint32_t byte = 0;
    for (int f = 0; f < 8 / b; f++) {
        const int c = f * to_size + i;
        if (c < d) {
            const uint32_t field =
                    from[c % from_size] >> c / from_size * b & ((1 << b) - 1);
            byte |= field << f * b;
        }
    }
    return byte;
}

__device__ float load_float(const uint8_t* bytes) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        bits |= uint32_t(bytes[i]) << 8 * i;
    }
    return __uint_as_float(bits);
}

__device__ void store_float(float x, uint8_t* bytes) {
    for (int i = 0; i < 4; i++) {
        bytes[i] = __float_as_uint(x) >> 8 * i;
    }
}

__global__ void import_codes_kernel(
        Planes planes,
        int d,
        const uint8_t* codes,
        size_t n,
        size_t code_size,
        uint8_t* out,
        float* scales,
        float* offsets) {
    for (size_t row = blockIdx.x; row < n; row += gridDim.x) {
        const uint8_t* code = codes + row * code_size;
        for (int p = 0; p < planes.count; p++) {
            const Plane& plane = planes.planes[p];
            for (int i = threadIdx.x; i < plane.size; i += blockDim.x) {
                out[row * planes.size + plane.begin + i] = repack_byte(
                        code + plane.cpu_begin,
                        plane.cpu_size,
                        plane.size,
                        plane.b,
                        i,
                        d);
            }
        }
        if (threadIdx.x == 0) {
            scales[row] = load_float(code + planes.cpu_size);
            if (offsets) {
                offsets[row] = load_float(code + planes.cpu_size + 4);
            }
        }
    }
}

__global__ void export_codes_kernel(
        Planes planes,
        int d,
        const uint8_t* rows,
        const float* scales,
        const float* offsets,
        size_t n,
        size_t code_size,
        uint8_t* codes) {
    for (size_t row = blockIdx.x; row < n; row += gridDim.x) {
        uint8_t* code = codes + row * code_size;
        for (int p = 0; p < planes.count; p++) {
            const Plane& plane = planes.planes[p];
            for (int i = threadIdx.x; i < plane.cpu_size; i += blockDim.x) {
                code[plane.cpu_begin + i] = repack_byte(
                        rows + row * planes.size + plane.begin,
                        plane.size,
                        plane.cpu_size,
                        plane.b,
                        i,
                        d);
            }
        }
        if (threadIdx.x == 0) {
            store_float(scales[row], code + planes.cpu_size);
            if (offsets) {
                store_float(offsets[row], code + planes.cpu_size + 4);
            }
        }
    }
}

int conversion_blocks(size_t n) {
    return int(std::min<size_t>(n, 65536));
}

int threads_of_query(size_t nq) {
    return nq < many_queries ? query_threads : many_queries_threads;
}

} // namespace

size_t encode_workspace_of_block(const DeviceLayout& layout) {
    return layout.has_trellis() ? (size_t(layout.d) << layout.memory) / 8 : 0;
}

int encode_blocks(const Encoder& encoder, size_t n) {
    const DeviceLayout& layout = encoder.layout;
    size_t blocks;
    if (layout.has_trellis()) {
        blocks = blocks_at_once(
                encode_trellis_kernel,
                trellis_threads(layout),
                trellis_shared_size(layout));
    } else {
        const ScalarLaunch scalar(encoder);
        blocks = blocks_at_once(scalar.kernel, scalar.threads, scalar.shared);
    }
    return int(std::min(n, blocks));
}

void encode(
        const Encoder& encoder,
        const float* x,
        size_t n,
        uint64_t first_row,
        uint8_t* planes,
        float* scales,
        float* offsets,
        Refused* refused,
        uint8_t* workspace,
        int blocks,
        cudaStream_t stream) {
    const DeviceLayout& layout = encoder.layout;
    if (layout.has_trellis()) {
        run({blocks,
             trellis_threads(layout),
             trellis_shared_size(layout),
             stream},
            encode_trellis_kernel,
            encoder,
            x,
            n,
            first_row,
            planes,
            scales,
            offsets,
            refused,
            workspace,
            encode_workspace_of_block(layout));
    } else {
        const ScalarLaunch scalar(encoder);
        run({blocks, scalar.threads, scalar.shared, stream},
            scalar.kernel,
            encoder,
            x,
            n,
            first_row,
            planes,
            scales,
            offsets,
            refused);
    }
}

void prepare_queries(
        const Encoder& encoder,
        const float* x,
        size_t nq,
        uint64_t first_row,
        size_t padded_nq,
        const QueryImage& image,
        const QueryImage* of_signs,
        Refused* refused,
        cudaStream_t stream) {
    const DeviceLayout& layout = encoder.layout;
    const size_t shared =
            2 * shared_vector_size(layout.d) * sizeof(float) + layout.dims;
    // one after the other would take longer than to rotate twice
    const dim3 blocks(padded_nq, of_signs ? 2 : 1);
    run({blocks, threads_of_query(nq), shared, stream},
        prepare_queries_kernel,
        encoder,
        x,
        nq,
        first_row,
        image,
        of_signs ? *of_signs : image,
        refused);
}

void rotate_queries(
        const Encoder& encoder,
        const float* x,
        size_t nq,
        uint64_t first_row,
        float* rotated,
        Refused* refused,
        cudaStream_t stream) {
    const size_t shared =
            2 * shared_vector_size(encoder.layout.d) * sizeof(float);
    run({unsigned(nq), threads_of_query(nq), shared, stream},
        rotate_queries_kernel,
        encoder,
        x,
        first_row,
        rotated,
        refused);
}

void prepare_residual_queries(
        const DeviceLayout& layout,
        const ResidualQueries& queries,
        size_t n_slots,
        const ImageOrder& order,
        uint8_t* image,
        DeviceQueryFactors* factors,
        cudaStream_t stream) {
    // NaN, where there is no query
    TQ_CUDA(cudaMemsetAsync(factors, 0xff, n_slots * sizeof(*factors), stream));
    const auto kernel = layout.is_l2 ? prepare_residual_kernel<true>
                                     : prepare_residual_kernel<false>;
    const ResidualVectors vectors = {uint32_t(layout.dims)};
    const size_t available = traits_of(kernel).shared_memory;
    unsigned warps = residual_threads / 32;
    while (vectors.size(warps) > available) {
        warps /= 2;
    }
    run({unsigned(n_slots / warps),
         int(32 * warps),
         vectors.size(warps),
         stream},
        kernel,
        layout,
        queries,
        order,
        image,
        factors);
}

void import_codes(
        const DeviceLayout& layout,
        const uint8_t* codes,
        size_t n,
        uint8_t* planes,
        float* scales,
        float* offsets,
        cudaStream_t stream) {
    const Planes list = planes_of(layout);
    const size_t code_size = list.cpu_size + (offsets ? 8 : 4);
    import_codes_kernel<<<conversion_blocks(n), 128, 0, stream>>>(
            list, layout.d, codes, n, code_size, planes, scales, offsets);
    TQ_CUDA(cudaGetLastError());
}

void export_codes(
        const DeviceLayout& layout,
        const uint8_t* planes,
        const float* scales,
        const float* offsets,
        size_t n,
        uint8_t* codes,
        cudaStream_t stream) {
    const Planes list = planes_of(layout);
    const size_t code_size = list.cpu_size + (offsets ? 8 : 4);
    export_codes_kernel<<<conversion_blocks(n), 128, 0, stream>>>(
            list, layout.d, planes, scales, offsets, n, code_size, codes);
    TQ_CUDA(cudaGetLastError());
}

} // namespace gpu
} // namespace faiss_turboquant
