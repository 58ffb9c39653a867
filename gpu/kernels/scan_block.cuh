#pragma once

/** What blocks of all scans have in common: their arguments, the part of the
 * codes that is theirs, and what becomes of keys. */

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/scan.h>
#include <gpu/kernels/mma.cuh>

namespace faiss_turboquant {
namespace gpu {

/// rows that a block goes through before it looks at its reservoirs at first
constexpr int early_check_rows = 768;

struct ScanArgs {
    DeviceCodes codes;
    const uint8_t* image;
    const DeviceQueryFactors* factors;
    int n_groups;
    uint32_t slice_rows, slice_stride;
    int stream_tiles;
    ScanTasks tasks;
    // One of them, or the first and the last; the others are empty.
    Reservoirs reservoirs;
    RangeSink range;
    DistanceSink all;
    ProductSink products;
};

using ScanKernel = void (*)(ScanArgs);

#ifdef __CUDACC__

/// of a row that is valid; without a branch
__device__ inline bool is_selected(
        const DeviceCodes& codes,
        uint32_t row,
        bool is_valid) {
    const uint32_t word =
            load_if(is_valid && codes.selected,
                    codes.selected + row / 32,
                    ~uint32_t(0));
    return is_valid & (word >> row % 32 & 1);
}

/// what a block knows about its queries, in shared memory
template <int group_size>
struct GroupState {
    Entry last[group_size];     ///< the last entry of interest
    float last_key[group_size]; ///< its key
    DeviceQueryFactors factors[group_size];
    int counts[group_size];       ///< of the reservoirs
    uint32_t queries[group_size]; ///< of the page
};

/// without tasks: groups of the first slice, of the next, ..
__device__ inline ScanTask task_at(
        const ScanArgs& args,
        uint32_t group_size,
        uint32_t parts,
        uint32_t index) {
    if (args.tasks.tasks) {
        return args.tasks.tasks[index];
    }
    const uint32_t group = index % args.n_groups;
    const uint32_t first_slot = group * group_size;
    const uint32_t first_reservoir = index * group_size * parts;
    if (args.codes.list.is_complete()) {
        const uint32_t n = args.codes.list.count();
        const uint32_t of_slice = round_up(
                ceil_div(n, gridDim.x / args.n_groups), uint32_t(tile_rows));
        const uint32_t begin = min(n, index / args.n_groups * of_slice);
        const uint32_t end = min(n, begin + of_slice);
        return {begin, end, first_slot, group_size, first_reservoir};
    }
    const uint32_t begin = index / args.n_groups * args.slice_stride;
    const uint32_t end = begin + min(args.slice_rows, args.codes.n - begin);
    return {begin, end, first_slot, group_size, first_reservoir};
}

/// what a search by signs has left goes to the host. By all threads
__device__ inline void report_rows_left(const RowList& list) {
    if (list.report && blockIdx.x == 0 && threadIdx.x == 0) {
        list.report->by_all = list.left->by_all;
        list.report->by_first = list.left->by_first;
    }
}

/** Begins a block's task, of a group of eight slots or less, and the stream of
 * its rows: while queries are prepared, if all that it reads is there already.
 * By all threads; kernels before have ended afterwards. */
template <class Stream>
__device__ inline ScanTask begin_task(const ScanArgs& args, Stream& stream) {
    constexpr int group_size = 8;
    ScanTask task;
    const auto begin = [&](bool from_list) {
        task = task_at(args, group_size, 1, blockIdx.x);
        stream.begin(task.begin, task.end, from_list);
    };
    // codes are there, unlike lists
    const bool is_early = !args.codes.list.rows && !args.tasks.tasks;
    if (is_early) {
        begin(false);
        stream.prefetch();
    }
    wait_for_kernel_before();
    if (!is_early) {
        begin(args.codes.list.is_complete());
    }
    report_rows_left(args.codes.list);
    return task;
}

/// what to add to a row for its place in a DistanceSink, modulo 2^32.
/// index: of the task
__device__ inline uint32_t sink_offset(
        const ScanArgs& args,
        const ScanTask& task,
        uint32_t index) {
    return args.codes.list.is_complete() ? 0
            : args.tasks.tasks
            ? -task.begin
            : index / args.n_groups * args.slice_rows - task.begin;
}

/// where the distances of a slot are in a DistanceSink; more than there are, if
/// they are not wanted
__device__ inline uint32_t query_of_sink(const ScanArgs& args, uint32_t slot) {
    return args.tasks.tasks ? args.tasks.probe_of_slot[slot] : slot;
}

/** Writes keys of a query to a DistanceSink.
 * @param offset  see sink_offset
 * @param query   see query_of_sink
 * @param row     of the first key
 * @param keys    of rows that are `stride` apart */
template <int stride, int n>
__device__ inline void write_distances(
        const ScanArgs& args,
        const ScanTask& task,
        uint32_t offset,
        uint32_t query,
        uint32_t row,
        const float (&keys)[n]) {
    const DistanceSink& sink = args.all;
    if (query >= sink.nq) {
        return;
    }
    float* at = sink.distances + size_t(query) * sink.rows + (offset + row);
#pragma unroll
    for (int i = 0; i < n; i++) {
        if (row + i * stride < task.end) {
            __stcs(at + i * stride,
                   sink.are_keys                     ? keys[i]
                           : args.codes.layout.is_l2 ? fmaxf(keys[i], 0.0f)
                                                     : 0.0f - keys[i]);
        }
    }
}

/// any for an empty slot, where nothing is found
__device__ inline uint32_t query_of_slot(const ScanArgs& args, uint32_t slot) {
    if (!args.tasks.probe_of_slot) {
        return slot;
    }
    const uint32_t probe = args.tasks.probe_of_slot[slot];
    return probe == no_probe ? 0 : probe / args.tasks.nprobe;
}

__device__ inline void collect(
        const RangeSink& range,
        size_t query,
        float key,
        uint32_t row) {
    const Entry at = atomicAdd(&range.counts[query], 1ull);
    if (range.entries) {
        range.entries[range.begins[query] + at] = pack_entry(key, row);
    }
}

/** Thin out a reservoir of more than k, by a warp.
 * @param query       of the page
 * @param histogram   of the warp's own
 * @param lower_last  bool(Entry): lowers what is the last entry of interest, if
 *                    it is greater */
template <class LowerLast>
__device__ inline void thin_out_one(
        const Reservoirs& r,
        Entry* entries,
        int& count,
        uint32_t query,
        uint32_t* histogram,
        const LowerLast& lower_last) {
    const int n = count;
    const Entry last = warp_select(entries, n, r.k, histogram);
    warp_keep(entries, n, last);
    if (threadIdx.x % 32 == 0) {
        count = r.k;
        if (lower_last(last)) {
            // one of the same key may be better by its id
            atomicMin(&r.thresholds[query], last | ~uint32_t(0));
        }
    }
    __syncwarp();
}

/// thin out the reservoirs that hold more than `limit`
template <int group_size, int warps>
__device__ __noinline__ void thin_out(
        const Reservoirs& r,
        GroupState<group_size>& state,
        Entry* reservoirs,
        int limit) {
    __shared__ uint32_t histograms[std::min(warps, group_size)][radix_size];
    const int warp = threadIdx.x / 32;
    for (int q = warp; q < group_size; q += blockDim.x / 32) {
        if (state.counts[q] > limit) {
            thin_out_one(
                    r,
                    reservoirs + size_t(q) * r.capacity,
                    state.counts[q],
                    state.queries[q],
                    histograms[warp],
                    [&](Entry last) {
                        const bool is_lower = last < state.last[q];
                        if (is_lower) {
                            state.last[q] = last;
                            state.last_key[q] = entry_key(last);
                        }
                        return is_lower;
                    });
        }
    }
    __syncthreads();
}

/// By all threads, which meet before they read any of it.
template <int group_size>
__device__ inline void begin_group(
        const ScanArgs& args,
        const ScanTask& task,
        GroupState<group_size>& state) {
    for (int q = threadIdx.x; q < group_size; q += blockDim.x) {
        const uint32_t slot = task.first_slot + q;
        state.factors[q] = args.factors[slot];
        state.queries[q] = query_of_slot(args, slot);
        state.counts[q] = 0;
        const bool is_top_k = args.reservoirs.k > 0;
        Entry last = no_entry;
        if (is_top_k) {
            last = *const_cast<volatile Entry*>(
                    &args.reservoirs.thresholds[state.queries[q]]);
        }
        state.last[q] = last;
        // keys that are not finite are never of interest
        state.last_key[q] = !is_top_k ? args.range.last
                : last == no_entry    ? FLT_MAX
                                      : entry_key(last);
    }
}

/** Images of queries, by some threads of a block, which meet before they read
 * any of it.
 * @param size     bytes
 * @param threads  the first ones, which call this */
__device__ inline void load_images(
        const uint8_t* from,
        int size,
        uint4* images,
        uint32_t threads) {
    for (int i = threadIdx.x; i < size / 16; i += threads) {
        images[i] = reinterpret_cast<const uint4*>(from)[i];
    }
}

/// Those of a task's slots, by all threads, likewise.
__device__ inline void load_images(
        const ScanArgs& args,
        const ScanTask& task,
        int size,
        uint4* images) {
    const size_t first = size_t(task.first_slot) * args.codes.layout.dims;
    load_images(args.image + first, size, images, blockDim.x);
}

/// A row's key: all kernels compute it by these steps, as the CPU does.
/// offset: with its sign
__device__ inline float key_of(
        int product,
        float scale,
        float offset,
        const DeviceQueryFactors& factors) {
    return (float(product) * scale) * factors.multiplier +
            (offset + factors.bias);
}

/// What becomes of a key that is not above state.last_key.
/// entries: of the block's reservoirs
template <int group_size>
__device__ inline void take_key(
        const ScanArgs& args,
        GroupState<group_size>& state,
        Entry* entries,
        int query,
        uint32_t row,
        float key) {
    if (args.reservoirs.k == 0) {
        collect(args.range, state.queries[query], key, row);
        return;
    }
    const Entry entry = pack_entry(key, row);
    if (entry <= state.last[query]) {
        const int at = atomicAdd(&state.counts[query], 1);
        entries[query * args.reservoirs.capacity + at] = entry;
    }
}

/** Looks of a block at its reservoirs, after as many rounds as these have room
 * for what is found: all its warps wait for each other. With few queries that
 * is several rounds, but fewer at first, when thresholds take in much. */
template <int group_size, int warps>
class ReservoirChecks {
    const Reservoirs& reservoirs_;
    GroupState<group_size>& state_;
    Entry* entries_;
    const int round_rows_;
    int early_rounds_ = 1, late_rounds_ = 1;
    int rounds_left_, checks_ = 0;
    Entry shared_last_ = no_entry; ///< what other blocks have found meanwhile

    static constexpr int early_checks = 6;

   public:
    /// entries: of the block
    __device__ ReservoirChecks(
            const Reservoirs& reservoirs,
            GroupState<group_size>& state,
            Entry* entries,
            int round_rows)
            : reservoirs_(reservoirs),
              state_(state),
              entries_(entries),
              round_rows_(round_rows) {
        if (group_size <= 8) {
            const int most =
                    reservoirs.capacity - round_up(2 * reservoirs.k, 32);
            early_rounds_ = early_check_rows / round_rows;
            late_rounds_ = most / round_rows;
        }
        rounds_left_ = early_rounds_;
    }

    /// by all threads, as is end_round
    __device__ void begin_round() {
        shared_last_ = no_entry;
        if (reservoirs_.k > 0 && rounds_left_ == 1 &&
            threadIdx.x < group_size) {
            shared_last_ = *const_cast<volatile Entry*>(
                    &reservoirs_.thresholds[state_.queries[threadIdx.x]]);
        }
    }

    __device__ void end_round() {
        if (reservoirs_.k == 0 || --rounds_left_ > 0) {
            __syncwarp();
            return;
        }
        rounds_left_ = ++checks_ < early_checks ? early_rounds_ : late_rounds_;
        const int limit = reservoirs_.limit(late_rounds_ * round_rows_);
        __syncthreads();
        const int q = threadIdx.x;
        if (q < group_size && shared_last_ < state_.last[q]) {
            state_.last[q] = shared_last_;
            state_.last_key[q] = entry_key(shared_last_);
        }
        if (__syncthreads_or(q < group_size && state_.counts[q] > limit)) {
            // those that would be next, too, while the others wait
            thin_out<group_size, warps>(
                    reservoirs_, state_, entries_, (reservoirs_.k + limit) / 2);
        }
    }

    /// Leaves the k best of each query. By all threads
    __device__ void finish(const ScanArgs& args, const ScanTask& task) {
        if (reservoirs_.k == 0) {
            return;
        }
        __syncthreads();
        thin_out<group_size, warps>(
                reservoirs_, state_, entries_, reservoirs_.k);
        const int n = min(group_size, int(task.n_slots));
        for (int q = threadIdx.x; q < n; q += blockDim.x) {
            reservoirs_.counts[task.first_reservoir + q] = state_.counts[q];
        }
    }
};

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
