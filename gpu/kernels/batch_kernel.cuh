#pragma once

/** The scan of more than 64 queries on compute capability 9.0.
 *
 * A third of a block's warps decode codes into shared memory, the others
 * multiply them there with a group of queries, whose images pass through shared
 * memory, too: a ring of stages of 128 coordinates. Two blocks, a cluster, go
 * through different rows for the same queries, of which each fetches one half
 * for both.
 *
 * Four warps that multiply are a part of the block: a part has sixty-four rows
 * of a round, reservoirs of its own, and does not wait for the other part.
 *
 * In inverted files a cluster does one task after another, and those warps that
 * decode go on to the next one while the others still look at keys. */

#include <cfloat>
#include <cstdint>
#include <type_traits>

#include <gpu/kernels/barrier.cuh>
#include <gpu/kernels/decode.cuh>
#include <gpu/kernels/scan_block.cuh>
#include <gpu/kernels/wgmma.cuh>

namespace faiss_turboquant {
namespace gpu {

/// queries of a block
constexpr int batch_groups[] = {128, 256};

template <int group_size>
struct BatchShape {
    static constexpr int blocks = 2; ///< of a cluster
    static constexpr int parts = batch_parts / blocks;
    static constexpr int part_rows = 64;
    static constexpr int block_rows = parts * part_rows;
    static constexpr int round_rows = blocks * block_rows; ///< of a cluster
    static constexpr int multiplying_warps = 4 * parts;
    static constexpr int decoding_warps = 4;
    static constexpr int warp_rows = block_rows / decoding_warps;
    static constexpr int threads = 32 * (multiplying_warps + decoding_warps);
    // Registers of a thread move from warps that decode to those that multiply.
    // All together are no more than a block starts with, which is a multiple of
    // 8 for each thread; otherwise warps would wait for ever.
    static constexpr int start_registers = 65536 / threads / 8 * 8;
    static constexpr int decoding_registers = 120;
    static constexpr int multiplying_registers =
            (start_registers * threads -
             decoding_registers * 32 * decoding_warps) /
            (32 * multiplying_warps);
    // of a stage
    /// rows that codes have room for: their words lie in different banks then
    static constexpr int padded_rows = block_rows + 2;
    static constexpr int codes_size = padded_rows * dims_unit;
    static constexpr int queries_size = group_size * dims_unit;
    static constexpr int stage_size = codes_size + queries_size;
    static_assert(multiplying_registers % 8 == 0);
    static constexpr int stages = 196 * 1024 / stage_size;
    static constexpr int ring_size = stages * stage_size;
};

#ifdef TQ_HAS_WGMMA

// What a dot product is before anything is added to it. As a float, a sum that
// starts here is 1.5 * 2^23 and the dot product, or more than that from 2^22
// on: it can be compared with a bound without conversion.
constexpr int lifted_zero = 0x4b400000;
constexpr float lifted_zero_value = 12582912;

/// relative, more than all that is rounded on the way to a key or a bound
constexpr float bound_margin = 1.0f / (1 << 19);

/// within these bounds, products of two numbers are finite and not rounded away
__device__ inline bool is_moderate(float x) {
    return fabsf(x) >= 1e-18f && fabsf(x) <= 1e18f;
}

/** A key is of interest only if
 *     dot >= row.shift * per_key + row.inverse_scale * level + origin
 * for what is lifted. It is not exact, but for none of interest it fails. NaN
 * where nothing can be told, so that the comparison has to be "not less". */
struct QueryBound {
    float level, origin;
};

/// of a query, per unit of keys, in dot products
__device__ inline float per_key(const DeviceQueryFactors& factors) {
    const float x = fabsf(factors.multiplier); // it is not positive
    return isnan(x) ? 0 : is_moderate(x) ? __fdividef(0.5f, x) : nanf("");
}

__device__ inline QueryBound query_bound(
        const DeviceQueryFactors& factors,
        float last_key,
        int dims) {
    if (isnan(factors.multiplier)) {
        return {0, INFINITY};
    }
    const float bias = factors.bias, per = per_key(factors);
    const float base = 0.5f * float(int(factors.base));
    const float origin = lifted_zero_value + base -
            bound_margin * (lifted_zero_value + fabsf(base)) -
            // of |2 dot - base|, which is less than 2 * 63 * 127 a coordinate
            bound_margin * 16002 * dims;
    if (last_key >= 1e37f) {
        return {-INFINITY, origin};
    }
    const float level = (bias - last_key) * per -
            bound_margin * (fabsf(bias) + fabsf(last_key)) * per;
    return {level, fabsf(level) <= 1e18f ? origin : nanf("")};
}

/// of a row
struct RowBound {
    float inverse_scale, shift;

    __device__ RowBound(float scale, float signed_offset) {
        const float inverse = __fdividef(1, scale);
        const float x = signed_offset * inverse;
        inverse_scale = inverse;
        shift = x - bound_margin * fabsf(x);
        if (isnan(scale)) { // nothing is ever found there
            inverse_scale = 0;
            shift = 1e37f;
        } else if (!is_moderate(scale) || !(fabsf(x) <= 1e18f)) {
            inverse_scale = nanf("");
        }
    }
};

/// numbers[i], of registers
template <int n>
__device__ __forceinline__ int one_of(const int* numbers, int i) {
    if constexpr (n == 1) {
        return numbers[0];
    } else {
        const int low = one_of<n / 2>(numbers, i);
        const int high = one_of<n / 2>(numbers + n / 2, i);
        return i & n / 2 ? high : low;
    }
}

/// what a part of a block knows about a task's queries
template <int group_size>
struct PartState {
    alignas(16) QueryBound bounds[group_size];
    alignas(8) float per_key[group_size];
    Entry last[group_size]; ///< the last entry of interest
    DeviceQueryFactors factors[group_size];
    uint32_t queries[group_size]; ///< of the page, or of the DistanceSink
    int counts[group_size];       ///< of the reservoirs
};

template <int group_size>
struct BatchState {
    PartState<group_size> parts[BatchShape<group_size>::parts];
    uint64_t filled[BatchShape<group_size>::stages];
    uint64_t emptied[BatchShape<group_size>::stages];
};

/** Where a thread is in the ring of stages. A stage is [16 coordinates][row][16
 * bytes] of codes, then [16 coordinates][query][16 bytes]. */
template <int group_size>
class StageRing {
    using Shape = BatchShape<group_size>;
    uint32_t stages_, filled_, emptied_; // addresses in shared memory
    int slot_ = 0;
    uint32_t parity_ = 0;

   public:
    __device__ StageRing(const uint4* stages, BatchState<group_size>& state)
            : stages_(shared_address(stages)),
              filled_(shared_address(state.filled)),
              emptied_(shared_address(state.emptied)) {}

    /// by one thread of each block
    __device__ void init() const {
        for (int i = 0; i < Shape::stages; i++) {
            // and one for the queries
            init_barrier(filled_ + 8 * i, Shape::decoding_warps + 1);
            init_barrier(
                    emptied_ + 8 * i, Shape::blocks * Shape::multiplying_warps);
        }
        publish_barriers();
    }

    __device__ int slot() const {
        return slot_;
    }
    __device__ uint32_t codes() const {
        return stages_ + slot_ * Shape::stage_size;
    }
    __device__ uint32_t queries() const {
        return codes() + Shape::codes_size;
    }
    __device__ void advance() {
        if (++slot_ == Shape::stages) {
            slot_ = 0;
            parity_ ^= 1;
        }
    }

    __device__ void wait_until_filled() const {
        wait_for(filled_ + 8 * slot_, parity_);
    }
    __device__ void wait_until_emptied() const {
        wait_for(emptied_ + 8 * slot_, parity_ ^ 1);
    }
    __device__ void arrive_filled() const {
        arrive(filled_ + 8 * slot_);
    }
    /// by each warp that multiplies; other blocks fill this one's stages, too
    __device__ void arrive_emptied(int slot) const {
        const int lane = threadIdx.x % 32;
        if (lane < Shape::blocks) {
            arrive_in_block(emptied_ + 8 * slot, lane);
        }
    }

    /// begins to copy this block's share. from: of the stage's queries
    __device__ void copy_queries(const uint8_t* from, int block) const {
        constexpr int share = Shape::queries_size / Shape::blocks;
        const uint32_t barrier = filled_ + 8 * slot_;
        arrive_and_expect(barrier, Shape::queries_size);
        copy_to_blocks(
                queries() + block * share,
                from + block * share,
                share,
                barrier,
                Shape::blocks);
    }
};

/// what the warps do that decode, for a task
template <int nbits, int trellis, int units, int group_size>
__device__ __forceinline__ void decode_batch(
        const ScanArgs& args,
        const ScanTask& task,
        int block,
        int warp,
        StageRing<group_size>& ring) {
    using Shape = BatchShape<group_size>;
    using Decoder = RowDecoder<nbits, trellis, units>;
    using Raw = typename Decoder::Raw;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const int lane = threadIdx.x % 32;
    const int t = lane % 4, g = lane / 4;
    const int steps = layout.dims / (dims_unit * units);
    const uint8_t* queries = args.image + size_t(task.first_slot) * layout.dims;
    const uint32_t end = task.end;
    const bool copies_queries = warp == 0 && lane == 0;
    constexpr int n_rows = Shape::warp_rows / 8; // of a thread: g, g + 8, ..
    // Two stages are loaded at a time, also if a step is one: that, of planes
    // of one bit, would be half of what comes from memory.
    constexpr int steps_at_once = 2 / units;

    const uint8_t* rows[n_rows];
    Raw loaded[steps_at_once][n_rows], next[steps_at_once][n_rows];
    Raw last[n_rows];
    const auto set_rows = [&](uint32_t first_row) {
#pragma unroll
        for (int i = 0; i < n_rows; i++) {
            const uint32_t row = min(first_row + i * 8 + g, end - 1);
            rows[i] = codes.planes + size_t(row) * layout.row_size();
            if constexpr (Decoder::has_trellis) {
                last[i] = Decoder::template load<false>(
                        layout, rows[i], steps - 1, t);
            }
        }
        const uint32_t next_row = first_row + Shape::round_rows;
        if (lane == 0 && next_row < end) {
            prefetch_to_l2(
                    codes.planes + size_t(next_row) * layout.row_size(),
                    min(uint32_t(Shape::warp_rows), end - next_row) *
                            layout.row_size());
        }
    };
    const auto load_steps = [&](int step) {
#pragma unroll
        for (int i = 0; i < n_rows; i++) {
#pragma unroll
            for (int s = 0; s < steps_at_once; s++) {
                if (s == 0 || step + s < steps) {
                    next[s][i] = Decoder::template load<false>(
                            layout, rows[i], step + s, t);
                }
            }
        }
    };
    const auto take_loaded = [&] {
#pragma unroll
        for (int s = 0; s < steps_at_once; s++) {
#pragma unroll
            for (int i = 0; i < n_rows; i++) {
                loaded[s][i] = next[s][i];
            }
        }
    };

    Decoder decoders[n_rows];
    // odd: a constant, 0 or 1
    const auto decode_stage = [&](int stage, auto odd) {
        const auto& raw = loaded[odd % steps_at_once];
        constexpr int unit = odd % units;
        ring.wait_until_emptied();
        if (copies_queries) {
            ring.copy_queries(
                    queries + size_t(stage) * Shape::queries_size, block);
        }
        const uint32_t to = ring.codes() +
                (t * Shape::padded_rows + warp * Shape::warp_rows + g) * 16;
        if (unit == 0) {
#pragma unroll
            for (int i = 0; i < n_rows; i++) {
                decoders[i].begin_step(raw[i], t);
            }
        }
#pragma unroll
        for (int i = 0; i < n_rows; i++) {
            uint32_t words[8];
            decoders[i].decode_positions(layout, raw[i], unit, words);
#pragma unroll
            for (int p = 0; p < 8; p += 4) {
                store_shared(
                        to + (p * Shape::padded_rows + i * 8) * 16,
                        {words[p], words[p + 1], words[p + 2], words[p + 3]});
            }
        }
        fence_shared();
        __syncwarp();
        if (lane == 0) {
            ring.arrive_filled();
        }
        ring.advance();
    };

    const int stages = steps * units;
    uint32_t first_row =
            task.begin + block * Shape::block_rows + warp * Shape::warp_rows;
    set_rows(first_row);
    load_steps(0);
    for (uint32_t round = task.begin; round < end; round += Shape::round_rows) {
        if constexpr (Decoder::has_trellis) {
#pragma unroll
            for (int i = 0; i < n_rows; i++) {
                decoders[i].start(last[i]);
            }
        }
        for (int pair = 0; pair < stages; pair += 2) {
            take_loaded();
            decode_stage(pair, std::integral_constant<int, 0>());
            if (pair + 2 < stages) {
                load_steps((pair + 2) / units);
            } else if (round + Shape::round_rows < end) {
                first_row += Shape::round_rows;
                set_rows(first_row);
                load_steps(0);
            }
            if (pair + 1 < stages) {
                decode_stage(pair + 1, std::integral_constant<int, 1>());
            }
        }
    }
}

/// what the warps do that multiply.
/// index: of the task
template <int group_size>
__device__ __forceinline__ void multiply_batch(
        const ScanArgs& args,
        const ScanTask& task,
        uint32_t index,
        int block,
        int warp,
        StageRing<group_size>& ring,
        BatchState<group_size>& state,
        uint32_t* histogram) {
    using Shape = BatchShape<group_size>;
    constexpr int n_sums = group_size / 2;
    constexpr int part_threads = 128;
    /// queries of a thread, outside of products
    constexpr int own_queries =
            group_size > part_threads ? group_size / part_threads : 1;
    const DeviceCodes& codes = args.codes;
    const DeviceLayout& layout = codes.layout;
    const Reservoirs& r = args.reservoirs;
    const int lane = threadIdx.x % 32;
    const int t = lane % 4, g = lane / 4;
    const int part = warp / 4, thread = warp % 4 * 32 + lane;
    PartState<group_size>& own = state.parts[part];
    const int steps = layout.dims / dims_unit;
    const uint32_t end = task.end;
    const bool is_top_k = r.k > 0;
    const float sign = layout.is_l2 ? 1 : -1;
    // of query 0, of this part of the cluster
    const uint32_t first_reservoir =
            task.first_reservoir + block * Shape::parts + part;
    const auto reservoir_of = [&](int q) {
        return first_reservoir + uint32_t(q) * batch_parts;
    };
    const auto entries_of = [&](int q) {
        return r.entries + size_t(reservoir_of(q)) * r.capacity;
    };

    const auto set_last = [&](int q, Entry last) {
        own.last[q] = last;
        own.bounds[q] =
                query_bound(own.factors[q], entry_key(last), layout.dims);
    };
    const auto for_own_queries = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < own_queries; i++) {
            const int q = thread + i * part_threads;
            if (group_size >= part_threads || q < group_size) {
                f(i, q);
            }
        }
    };

    synchronize_warps<part_threads>(1 + part); // with the task before
    for_own_queries([&](int, int q) {
        const uint32_t slot = task.first_slot + q;
        const DeviceQueryFactors factors = args.factors[slot];
        own.factors[q] = factors;
        own.per_key[q] = per_key(factors);
        own.queries[q] = args.all.distances ? query_of_sink(args, slot)
                                            : query_of_slot(args, slot);
        own.last[q] = no_entry;
        own.counts[q] = 0;
        own.bounds[q] = query_bound(
                factors, is_top_k ? FLT_MAX : args.range.last, layout.dims);
    });
    synchronize_warps<part_threads>(1 + part);

    for (uint32_t round = task.begin; round < end; round += Shape::round_rows) {
        const uint32_t first_row = round + block * Shape::block_rows +
                part * Shape::part_rows + warp % 4 * tile_rows;
        float scales[2], offsets[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t row = first_row + i * 8 + g;
            const bool is_valid = row < end &&
                    (!codes.selected ||
                     codes.selected[row / 32] >> row % 32 & 1);
            // no comparison with NaN holds
            scales[i] = is_valid ? codes.scales[row] : nanf("");
            offsets[i] =
                    is_valid && codes.offsets ? sign * codes.offsets[row] : 0;
        }
        // what others have found meanwhile
        Entry shared_last[own_queries];
        if (is_top_k) {
            for_own_queries([&](int i, int q) {
                shared_last[i] = *const_cast<volatile Entry*>(
                        &r.thresholds[own.queries[q]]);
            });
        }

        int sums[n_sums];
#pragma unroll
        for (int i = 0; i < n_sums; i++) {
            sums[i] = lifted_zero;
        }
        int previous = 0;
        for (int step = 0; step < steps; step++) {
            ring.wait_until_filled();
            uint64_t rows = operand_descriptor(
                    ring.codes() + part * Shape::part_rows * 16,
                    Shape::padded_rows);
            uint64_t queries = operand_descriptor(ring.queries(), group_size);
            begin_wgmma();
#pragma unroll
            for (int p = 0; p < dims_unit; p += 32) {
                wgmma(sums, rows, queries);
                rows += 2 * Shape::padded_rows; // of 16 bytes
                queries += 2 * group_size;
            }
            end_wgmma_group();
            if (step > 0) {
                wait_for_wgmma_before_last();
                ring.arrive_emptied(previous);
            }
            previous = ring.slot();
            ring.advance();
        }
        wait_for_wgmma(sums);
        ring.arrive_emptied(previous);

        const auto key_of = [&](int query, int i, int lifted) {
            const DeviceQueryFactors factors = own.factors[query];
            const int sum = 2 * (lifted - lifted_zero) - int(factors.base);
            const float scale = i == 0 ? scales[0] : scales[1];
            const float offset = i == 0 ? offsets[0] : offsets[1];
            return (float(sum) * scale) * factors.multiplier +
                    (offset + factors.bias);
        };
        if (args.all.distances) {
#pragma unroll
            for (int s = 0; s < n_sums; s += s % 2 ? 3 : 1) {
                const int query = s / 4 * 8 + 2 * t + s % 2;
                write_distances<8>(
                        args,
                        task,
                        sink_offset(args, task, index),
                        own.queries[query],
                        first_row + g,
                        {key_of(query, 0, sums[s]),
                         key_of(query, 1, sums[s + 2])});
            }
            continue;
        }

        if (is_top_k) {
            for_own_queries([&](int i, int q) {
                if (shared_last[i] < own.last[q]) {
                    set_last(q, shared_last[i]);
                }
            });
            synchronize_warps<part_threads>(1 + part);
        }
        const int limit = r.limit(Shape::part_rows);
        bool is_over = false;
        const auto take = [&](int query, int i, int lifted) {
            const float key = key_of(query, i, lifted);
            const uint32_t row = first_row + i * 8 + g;
            if (!is_top_k) {
                if (key <= args.range.last) {
                    collect(args.range, own.queries[query], key, row);
                }
                return;
            }
            const Entry entry = pack_entry(key, row);
            // keys that are not finite are never of interest
            if (key <= FLT_MAX && entry <= own.last[query]) {
                const int at = atomicAdd(&own.counts[query], 1);
                entries_of(query)[at] = entry;
                is_over |= at >= limit;
            }
        };
        const RowBound bounds[2] = {
                {scales[0], offsets[0]}, {scales[1], offsets[1]}};
        // Which sums may be of interest, without branches: few are, and they
        // are found in one place afterwards. The last sum is in the lowest bit.
        uint32_t is_less[n_sums / 32];
#pragma unroll
        for (int q = 0; q < group_size / 8; q++) {
            const int pair = q * 4 + t;
            const float4 of_queries =
                    reinterpret_cast<const float4*>(own.bounds)[pair];
            const float2 per_keys =
                    reinterpret_cast<const float2*>(own.per_key)[pair];
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const RowBound& row = bounds[s / 2];
                const float least = __fmaf_rn(
                        row.shift,
                        s % 2 ? per_keys.y : per_keys.x,
                        __fmaf_rn(
                                row.inverse_scale,
                                s % 2 ? of_queries.z : of_queries.x,
                                s % 2 ? of_queries.w : of_queries.y));
                // the sign, which is clear of NaN
                const float rest = __int_as_float(sums[4 * q + s]) - least;
                uint32_t& word = is_less[q / 8];
                word = __funnelshift_l(
                        __float_as_uint(rest), q % 8 + s == 0 ? 0 : word, 1);
            }
        }
#pragma unroll
        for (int w = 0; w < n_sums / 32; w++) {
#pragma unroll 1
            for (uint32_t rest = ~is_less[w]; rest != 0;) {
                const int bit = 31 - __clz(rest);
                rest &= ~(1u << bit);
                const int s = 31 - bit;
                take((w * 8 + s / 4) * 8 + 2 * t + s % 2,
                     s / 2 % 2,
                     one_of<32>(sums + 32 * w, s));
            }
        }

        if (is_top_k && synchronize_warps_or<part_threads>(1 + part, is_over)) {
            // those that would be next, too, while the others wait
            const int most = (r.k + limit) / 2;
            for (int q = warp % 4; q < group_size; q += 4) {
                if (own.counts[q] > most) {
                    thin_out_one(
                            r,
                            entries_of(q),
                            own.counts[q],
                            own.queries[q],
                            histogram,
                            [&](Entry last) {
                                if (last < own.last[q]) {
                                    set_last(q, last);
                                    return true;
                                }
                                return false;
                            });
                }
            }
            synchronize_warps<part_threads>(1 + part);
        }
    }
    if (is_top_k) {
        for_own_queries([&](int, int q) {
            if (q < task.n_slots) {
                r.counts[reservoir_of(q)] = own.counts[q];
            }
        });
    }
}

#endif // TQ_HAS_WGMMA

#ifdef __CUDACC__

template <int nbits, int trellis, int units, int group_size>
__global__ void __launch_bounds__(BatchShape<group_size>::threads, 1)
        batch_kernel(const __grid_constant__ ScanArgs args) {
#ifdef TQ_HAS_WGMMA
    using Shape = BatchShape<group_size>;
    extern __shared__ uint4 image[];
    __shared__ BatchState<group_size> state;
    __shared__ uint32_t histograms[Shape::multiplying_warps][radix_size];
    // known to be the same for all lanes
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    wait_for_kernel_before();
    const int block = block_of_cluster();
    StageRing<group_size> ring(image, state);
    if (threadIdx.x == 0) {
        ring.init();
    }
    __syncthreads();
    synchronize_cluster();
    // some warps may be ahead of others by tasks
    const uint32_t clusters = gridDim.x / Shape::blocks;
    const auto for_each_task = [&](const auto& f) {
        const uint32_t n = args.tasks.tasks ? args.tasks.n : clusters;
        for (uint32_t i = blockIdx.x / Shape::blocks; i < n; i += clusters) {
            f(task_at(args, group_size, batch_parts, i), i);
        }
    };
    if (warp >= Shape::multiplying_warps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(
                Shape::decoding_registers));
        for_each_task([&](const ScanTask& task, uint32_t) {
            decode_batch<nbits, trellis, units>(
                    args, task, block, warp - Shape::multiplying_warps, ring);
        });
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(
                Shape::multiplying_registers));
        for_each_task([&](const ScanTask& task, uint32_t i) {
            multiply_batch(
                    args, task, i, block, warp, ring, state, histograms[warp]);
        });
    }
    // until nothing comes into this block's memory any more
    synchronize_cluster();
#endif
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
