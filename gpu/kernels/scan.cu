#include <gpu/kernels/scan.h>

#include <algorithm>

#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int threshold_threads = 128;
constexpr int merge_batch = 4; ///< entries of a thread at a time

/// what is the same for both groups
using Batch = BatchShape<batch_groups[0]>;

/// of a batch
int group_number(const ScanPlan& plan) {
    return plan.group_size() != batch_groups[0];
}

const ScanKernels& kernels_of(const DeviceLayout& layout) {
    static const ScanKernels* const scalar[] = {
            &scan_kernels_tq1,
            &scan_kernels_tq2,
            &scan_kernels_tq3,
            &scan_kernels_tq4};
    static const ScanKernels* const shipped[] = {
            &scan_kernels_tq1t,
            &scan_kernels_tq2t,
            &scan_kernels_tq3t,
            &scan_kernels_tq4t};
    static const ScanKernels* const any[] = {
            &scan_kernels_tq1t_any,
            &scan_kernels_tq2t_any,
            &scan_kernels_tq3t_any,
            &scan_kernels_tq4t_any};
    const auto& table = !layout.has_trellis() ? scalar
            : layout.shipped >= 0             ? shipped
                                              : any;
    return *table[layout.nbits - 1];
}

/// of up to eight queries, by units
const ScanKernel* few_kernels(
        const ScanKernels& kernels,
        const ScanPlan& plan) {
    if (plan.takes_rounds()) {
        const int i = plan.product_planes - 1;
        return plan.is_single ? kernels.single_products : kernels.products[i];
    }
    return plan.is_single           ? kernels.single
            : plan.uses_wgmma       ? kernels.eight_wgmma
            : plan.stream.warps > 0 ? kernels.eight
                                    : kernels.few;
}

ScanKernel kernel_of(const DeviceLayout& layout, const ScanPlan& plan) {
    const ScanKernels& kernels = kernels_of(layout);
    if (plan.is_batch) {
        return kernels.batch[group_number(plan)][plan.units / 2];
    }
    if (plan.uses_wgmma && plan.group_tiles > 1) {
        return kernels.wgmma[plan.group_tiles / 16];
    }
    switch (plan.group_tiles) {
        case 1:
            return few_kernels(kernels, plan)[plan.units / 2];
        case 4:
            return kernels.many[0];
        case 8:
            return kernels.many[1];
        default:
            return kernels.many[2];
    }
}

int threads_of(const ScanPlan& plan) {
    return plan.is_batch            ? Batch::threads
            : plan.takes_rounds()   ? threads_of_products(plan.stream.warps)
            : plan.stream.warps > 0 ? 32 * plan.stream.warps
            : plan.uses_wgmma       ? ScanShape<16, true>::threads
                                    : ScanShape<16, false>::threads;
}

unsigned cluster_size(const ScanPlan& plan) {
    return plan.is_batch ? Batch::blocks : 1;
}

size_t image_size(const DeviceLayout& layout, int group_tiles) {
    return size_t(8) * group_tiles * layout.dims;
}

/** Whether the current device runs the code for compute capability 9.0, which
 * alone has wgmma. What is newer runs that of 8.0, as does every device where
 * the library is built without the other. */
bool has_wgmma(const DeviceLayout& layout) {
    return traits_of(kernels_of(layout).wgmma[0]).capability == 90;
}

/// of a block
size_t shared_size(const DeviceLayout& layout, const ScanPlan& plan) {
    if (plan.takes_rounds()) {
        return products_shared(layout, plan.stream, plan.is_single);
    }
    if (plan.is_single) {
        return single_shared(layout, plan.stream);
    }
    if (plan.stream.warps > 0) {
        return eight_shared(layout, plan.stream);
    }
    if (plan.is_batch) {
        return group_number(plan) == 0 ? BatchShape<batch_groups[0]>::ring_size
                                       : BatchShape<batch_groups[1]>::ring_size;
    }
    return image_size(layout, plan.group_tiles);
}

/// what a block can have
int available_shared(const DeviceLayout& layout, const ScanPlan& plan) {
    return int(traits_of(kernel_of(layout, plan)).shared_memory);
}

/// a group of queries, and how long rows take with one
struct Group {
    int tiles; ///< ScanPlan::group_tiles
    bool is_batch;
    double time; ///< ms for a million rows of 1536 coordinates, on an H200
};

/// no batch
bool has_room(const DeviceLayout& layout, int group_tiles) {
    ScanPlan plan;
    plan.group_tiles = group_tiles;
    plan.uses_wgmma = group_tiles >= 8 && has_wgmma(layout);
    return int(shared_size(layout, plan)) <= available_shared(layout, plan);
}

std::vector<Group> groups_of(const DeviceLayout& layout) {
    const bool counts_bits =
            counts_bits_of_eight(layout.nbits, layout.has_trellis());
    std::vector<Group> groups = {{1, false, counts_bits ? 0.1 : 0.15}};
    for (const Group& group :
         {Group{4, false, 0.3}, {8, false, 0.42}, {16, false, 0.6}}) {
        if (has_room(layout, group.tiles)) {
            groups.push_back(group);
        }
    }
    if (has_wgmma(layout)) {
        groups.push_back({batch_groups[0] / 8, true, 0.51});
        groups.push_back({batch_groups[1] / 8, true, 0.76});
    }
    return groups;
}

/// Makes a plan for one query one by bits, if there are a kernel and room.
/// @return  whether it is
bool make_single(const DeviceLayout& layout, ScanPlan& plan) {
    if (!counts_bits(layout.nbits, layout.has_trellis(), layout.shipped)) {
        return false;
    }
    ScanPlan single = plan;
    single.is_single = single.by_bits = true;
    const int available = available_shared(layout, single);
    single.stream = single.takes_rounds()
            ? plan_products(layout, available, 1, true)
            : plan_single(layout, available);
    if (single.stream.warps == 0) {
        return false;
    }
    plan = single;
    return true;
}

/// Makes a plan for up to eight queries one with TileStreams, if there is room.
void make_eight(const DeviceLayout& layout, ScanPlan& plan) {
    ScanPlan eight = plan;
    eight.by_bits = counts_bits_of_eight(layout.nbits, layout.has_trellis());
    eight.uses_wgmma =
            eight.by_bits && has_wgmma(layout) && plan.product_planes == 0;
    eight.stream = {1, 1}; // of any kernel that has some
    const int available = available_shared(layout, eight);
    eight.stream = plan.takes_rounds()
            ? plan_products(layout, available, plan.product_planes, false)
            : plan_eight(layout, available);
    if (eight.stream.warps > 0) {
        plan = eight;
    }
}

/** What a plan is besides is_batch and group_tiles.
 * @param most_queries  of codes */
void complete(const DeviceLayout& layout, size_t most_queries, ScanPlan& plan) {
    if (plan.is_batch) {
        if (kernels_of(layout).batch[0][1] &&
            layout.dims % (2 * dims_unit) == 0) {
            plan.units = 2;
        }
        return;
    }
    if (plan.group_tiles > 1) {
        plan.uses_wgmma = plan.group_tiles >= 8 && has_wgmma(layout);
        return;
    }
    int most_units = few_units(layout.nbits, layout.has_trellis());
    if (most_queries == 1 && make_single(layout, plan)) {
        most_units = single_units(layout.nbits, layout.has_trellis());
    } else {
        make_eight(layout, plan);
    }
    while (2 * plan.units <= most_units &&
           layout.dims % (2 * plan.units * dims_unit) == 0) {
        plan.units *= 2;
    }
}

/// all slices, as ScanPlan has them
struct Slices {
    static constexpr bool orders_entries = true; ///< is_less is as integers
    static constexpr bool are_sparse = false;
    ScanPlan plan;

    __device__ uint32_t n_reservoirs(size_t) const {
        return plan.n_slices * plan.parts();
    }
    __device__ size_t reservoir(size_t q, uint32_t i) const {
        const int parts = plan.parts(), group_size = plan.group_size();
        const size_t task = i / parts * size_t(plan.n_groups) + q / group_size;
        return (task * group_size + q % group_size) * parts + i % parts;
    }
    /// of entries that are not in reservoirs, by the block
    template <class Take>
    __device__ void for_each_other(size_t, const Take&) const {}

    __device__ int64_t label(Entry entry) const {
        return uint32_t(entry);
    }
    __device__ bool is_less(Entry a, Entry b) const {
        return a < b;
    }
};

struct Tasks {
    static constexpr bool orders_entries = false;
    static constexpr bool are_sparse = true; ///< most reservoirs hold little
    ResultsOfQueries results;
    int parts; ///< of a task

    __device__ uint32_t n_reservoirs(size_t q) const {
        return results.counts[q] * parts;
    }
    __device__ size_t reservoir(size_t q, uint32_t i) const {
        return results.reservoirs[results.begins[q] + i / parts] + i % parts;
    }
    template <class Take>
    __device__ void for_each_other(size_t q, const Take& take) const {
        static_assert(merge_batch == 4);
        constexpr int ahead = 2; // on their way at a time
        const SampleOfLists& sample = results.sample;
        const int64_t* lists = sample.lists + q * sample.nprobe;
        const uint32_t n = sample.nprobe * sample.rows / 4;
        const float4* keys =
                reinterpret_cast<const float4*>(sample.keys) + q * n;
        for (uint32_t begin = 0; begin < n; begin += ahead * blockDim.x) {
            float4 loaded[ahead];
#pragma unroll
            for (int a = 0; a < ahead; a++) {
                const uint32_t i = begin + a * blockDim.x + threadIdx.x;
                const float none = nanf("");
                loaded[a] = i < n ? __ldcs(keys + i)
                                  : float4{none, none, none, none};
            }
#pragma unroll
            for (int a = 0; a < ahead; a++) {
                const float4& x = loaded[a];
                const float of_thread[] = {x.x, x.y, x.z, x.w};
                const uint32_t i = begin + a * blockDim.x + threadIdx.x;
                Entry entries[4];
#pragma unroll
                for (int b = 0; b < 4; b++) {
                    entries[b] = no_entry;
                    if (of_thread[b] <= FLT_MAX) {
                        const uint32_t place = 4 * i + b;
                        const int64_t list = lists[place / sample.rows];
                        entries[b] = pack_entry(
                                of_thread[b],
                                sample.begins[list] + place % sample.rows);
                    }
                }
                take(entries);
            }
        }
    }
    __device__ int64_t label(Entry entry) const {
        return results.ids[uint32_t(entry)];
    }
    __device__ bool is_less(Entry a, Entry b) const {
        if (a >> 32 != b >> 32 || a == no_entry || b == no_entry) {
            return a < b;
        }
        return label(a) < label(b);
    }
};

/** The k-th least of the least keys of parts of a sample: k rows are at least
 * as good. With four parts for each of the k, it is little more than the k-th
 * least of all. */
__global__ void __launch_bounds__(threshold_threads) threshold_kernel(
        const float* keys,
        uint32_t rows,
        int k,
        int parts,
        Entry* thresholds) {
    extern __shared__ Entry buffer[];
    wait_for_kernel_before();
    // neighbours are in one part
    const float4* of_query =
            reinterpret_cast<const float4*>(keys + size_t(blockIdx.x) * rows);
    for (int part = threadIdx.x; part < parts; part += threshold_threads) {
        float least = INFINITY;
#pragma unroll 8
        for (uint32_t i = part; i < rows / 4; i += parts) {
            const float4 x = __ldcs(of_query + i);
            // of those that are not NaN
            least = fminf(least, fminf(fminf(x.x, x.y), fminf(x.z, x.w)));
        }
        // others of the same key may be better by their ids
        buffer[part] =
                least <= FLT_MAX ? pack_entry(least, ~uint32_t(0)) : no_entry;
    }
    __syncthreads();
    block_sort(buffer, parts, [](Entry a, Entry b) { return a < b; });
    if (threadIdx.x == 0) {
        thresholds[blockIdx.x] = buffer[k - 1];
    }
}

/// most: entries of a reservoir
template <int threads, class Sources>
__global__ void __launch_bounds__(threads) merge_kernel(
        const __grid_constant__ Reservoirs r,
        int most,
        const __grid_constant__ Sources sources,
        bool is_l2,
        int k_out,
        int buffer_size,
        float* distances,
        int64_t* labels) {
    extern __shared__ Entry buffer[];
    __shared__ int count;
    __shared__ uint32_t histogram[radix_size];
    const size_t q = blockIdx.x;
    wait_for_kernel_before();
    const uint32_t n_reservoirs = sources.n_reservoirs(q);
    const int k = r.k;
    Entry last = r.thresholds[q];
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    if constexpr (Sources::are_sparse) {
        __shared__ uint32_t largest;
        if (threadIdx.x == 0) {
            largest = 0;
        }
        __syncthreads();
        uint32_t own = 0;
        for (uint32_t i = threadIdx.x; i < n_reservoirs; i += threads) {
            own = max(own, r.counts[sources.reservoir(q, i)]);
        }
        own = __reduce_max_sync(0xffffffff, own);
        if (threadIdx.x % 32 == 0) {
            atomicMax(&largest, own);
        }
        __syncthreads();
        most = min(most, largest);
    }
    // sorts, and keeps the k best
    const auto thin_out = [&] {
        int n = count;
        if (Sources::orders_entries && n > 2 * k && k > 0) {
            if (threadIdx.x < 32) {
                warp_keep(buffer, n, warp_select(buffer, n, k, histogram));
            }
            n = k;
            __syncthreads();
        }
        int size = 1;
        while (size < n) {
            size *= 2;
        }
        for (int i = n + threadIdx.x; i < size; i += threads) {
            buffer[i] = no_entry;
        }
        __syncthreads();
        block_sort(buffer, size, [&](Entry a, Entry b) {
            return sources.is_less(a, b);
        });
        if (k > 0 && n >= k) {
            // one of the same key may be better by its id
            last = min(last, buffer[k - 1] | ~uint32_t(0));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            count = min(n, k);
        }
        __syncthreads();
    };
    // merge_batch of them a thread
    const auto take = [&](const Entry(&loaded)[merge_batch]) {
#pragma unroll
        for (int b = 0; b < merge_batch; b++) {
            if (loaded[b] < no_entry && loaded[b] <= last) {
                buffer[atomicAdd(&count, 1)] = loaded[b];
            }
        }
        if (__syncthreads_or(count > buffer_size - merge_batch * threads)) {
            thin_out();
        }
    };
    // a sector of each reservoir, then the next one
    constexpr uint32_t of_sector = 32 / sizeof(Entry);
    const uint32_t in_reservoirs =
            n_reservoirs * round_up<uint32_t>(most, of_sector);
    for (uint32_t begin = 0; begin < in_reservoirs;
         begin += merge_batch * threads) {
        Entry loaded[merge_batch];
#pragma unroll
        for (int b = 0; b < merge_batch; b++) {
            const uint32_t i = begin + b * threads + threadIdx.x;
            loaded[b] = no_entry;
            if (i < in_reservoirs) {
                const uint32_t sector = i / of_sector;
                const uint32_t rank =
                        sector / n_reservoirs * of_sector + i % of_sector;
                const size_t reservoir =
                        sources.reservoir(q, sector % n_reservoirs);
                if (rank < r.counts[reservoir]) {
                    loaded[b] = r.entries[reservoir * r.capacity + rank];
                }
            }
        }
        take(loaded);
    }
    sources.for_each_other(q, take);
    thin_out();
    for (int i = threadIdx.x; i < k_out; i += threads) {
        const bool is_found = i < count;
        const float key = is_found ? entry_key(buffer[i]) : FLT_MAX;
        // a squared distance is not below zero, though its estimate may be
        distances[q * k_out + i] = !is_l2 ? 0.0f - key
                : is_found                ? fmaxf(key, 0.0f)
                                          : FLT_MAX;
        labels[q * k_out + i] = is_found ? sources.label(buffer[i]) : -1;
    }
}

template <int threads, class Sources>
void merge_by(
        size_t nq,
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        const Sources& sources,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream) {
    // the k best, and a batch
    int buffer_size = 2 * merge_batch * threads;
    while (buffer_size < 2 * reservoirs.k) {
        buffer_size *= 2;
    }
    const size_t shared = buffer_size * sizeof(Entry);
    const int most =
            plan.is_batch ? reservoirs.limit(Batch::part_rows) : reservoirs.k;
    run({unsigned(nq), threads, shared, stream, early},
        merge_kernel<threads, Sources>,
        reservoirs,
        most,
        sources,
        is_l2,
        k_out,
        buffer_size,
        distances,
        labels);
}

/// Of many queries, more are merged at once by fewer threads each.
template <class... Arguments>
void merge(size_t nq, const Arguments&... arguments) {
    constexpr size_t many = 1024;
    if (nq < many) {
        merge_by<512>(nq, arguments...);
    } else {
        merge_by<128>(nq, arguments...);
    }
}

void launch(const ScanArgs& args, const ScanPlan& plan, cudaStream_t stream) {
    const DeviceLayout& layout = args.codes.layout;
    unsigned tasks =
            args.tasks.tasks ? args.tasks.n : plan.n_groups * plan.n_slices;
    const unsigned cluster = cluster_size(plan);
    if (plan.is_batch && args.tasks.tasks) { // a cluster does several of them
        tasks = std::min<unsigned>(tasks, blocks_at_once(layout, plan));
    }
    run({tasks * cluster,
         threads_of(plan),
         shared_size(layout, plan),
         stream,
         early,
         cluster},
        kernel_of(layout, plan),
        args);
}

ScanArgs make_args(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors) {
    ScanArgs args;
    args.codes = codes;
    args.image = image;
    args.factors = factors;
    args.n_groups = plan.n_groups;
    args.slice_rows = plan.slice_rows;
    args.slice_stride = plan.slice_stride;
    args.stream_tiles = plan.stream.tiles;
    args.tasks = tasks;
    return args;
}

} // namespace

int blocks_at_once(const DeviceLayout& layout, const ScanPlan& plan) {
    const int blocks = blocks_at_once(
            kernel_of(layout, plan),
            threads_of(plan),
            shared_size(layout, plan));
    return blocks / int(cluster_size(plan));
}

ListScan plan_list_scan(
        const DeviceLayout& layout,
        const std::vector<uint32_t>& queries,
        const std::vector<uint32_t>& sizes) {
    ListScan best = {{}, INFINITY};
    for (const Group& group : groups_of(layout)) {
        const uint32_t group_size = 8 * group.tiles;
        uint64_t work = 0;
        for (size_t l = 0; l < queries.size(); l++) {
            work += uint64_t(sizes[l]) * ceil_div(queries[l], group_size);
        }
        const double time = group.time * double(work);
        if (time < best.time) {
            best.time = time;
            best.plan.group_tiles = group.tiles;
            best.plan.is_batch = group.is_batch;
        }
    }
    const size_t most = *std::max_element(queries.begin(), queries.end());
    complete(layout, most, best.plan);
    return best;
}

ScanPlan plan_scan(
        const DeviceLayout& layout,
        uint32_t n,
        size_t nq,
        int product_planes) {
    ScanPlan plan;
    plan.product_planes = product_planes;
    const bool may_use_wgmma = has_wgmma(layout);
    if (nq > 64 && may_use_wgmma) {
        plan.is_batch = true;
        plan.group_tiles = batch_groups[nq > batch_groups[0]] / 8;
    } else {
        // of one bit, three groups of eight are compared in less time than one
        // of more
        const bool is_in_eights = may_use_wgmma && nq > 8 && nq <= 24 &&
                counts_bits_of_eight(layout.nbits, layout.has_trellis());
        for (const int tiles : {4, 8, 16}) {
            if (!is_in_eights && nq > size_t(4 * tiles) &&
                has_room(layout, tiles)) {
                plan.group_tiles = tiles;
            }
        }
    }
    complete(layout, nq, plan);
    plan.n_groups = int(ceil_div(nq, size_t(plan.group_size())));
    if (plan.takes_rounds()) {
        const int round_rows = std::max(1, plan.stream.warps) *
                tiles_of_products(plan.is_single) * tile_rows;
        plan.n_slices = std::min<int>(
                blocks_at_once(layout, plan),
                std::max(1u, ceil_div(n, uint32_t(round_rows))));
        return plan;
    }
    // Blocks come in waves of all that run at once. Until a block's thresholds
    // are good, it works for longer: as if it had so many rows more.
    constexpr double start = 8192;
    const int at_once = blocks_at_once(layout, plan);
    const uint32_t rows = plan.is_single ? single_rows
            : plan.group_tiles == 1      ? tile_rows
                                         : max_round_rows;
    const int most = int(std::clamp<uint32_t>(
            n / rows, 1, ceil_div(4 * at_once, plan.n_groups)));
    double least = 0;
    for (int waves = ceil_div(plan.n_groups, at_once), n_slices = 0;
         n_slices < most;
         waves++) {
        n_slices = std::min(most, waves * at_once / plan.n_groups);
        const double time = waves * (double(n) / n_slices + start);
        if (plan.n_slices == 0 || time < least) {
            least = time;
            plan.n_slices = n_slices;
        }
    }
    plan.slice_rows =
            round_up(std::max(1u, ceil_div(n, uint32_t(plan.n_slices))), rows);
    plan.n_slices = int(ceil_div(n, plan.slice_rows));
    plan.slice_stride = plan.slice_rows;
    return plan;
}

int best_of_block(const ScanPlan& plan, int k) {
    // the k best may all be of one block; the best by signs alone is not always
    // the best
    const int least = k > 0 ? 8 : 0;
    const int most = best_of_warp(plan.is_single) * plan.stream.warps;
    return std::min(std::max(k, least), most);
}

ScanPlan plan_sample(const ScanPlan& plan, uint32_t n) {
    // the k-th best of one row in 64 has 64 k - 1 better ones
    constexpr uint32_t least = 2048, most = 16384, unit = max_round_rows;
    ScanPlan sample = plan;
    sample.n_slices = 0;
    if (plan.group_tiles == 1 || n < 8 * least) {
        return sample;
    }
    const uint32_t rows = std::clamp(n / 64, least, most);
    sample.n_slices = std::min<int>(plan.n_slices, rows / unit);
    sample.slice_rows = round_up(rows / sample.n_slices, unit);
    sample.slice_stride = n / sample.n_slices;
    return sample;
}

size_t reservoir_capacity(const ScanPlan& plan, int k, bool has_sample) {
    const int rows = plan.is_batch ? Batch::part_rows
            : plan.group_tiles > 1 ? max_round_rows
            // of few queries, more room gains some time: warps wait less for
            // each other
            : plan.n_groups == 1 ? 4 * early_check_rows
                                 : early_check_rows;
    return rows +
            (has_sample ? round_up(k + 16, 32) : round_up(2 * k, 32) + 32);
}

void reset_thresholds(Entry* thresholds, size_t nq, cudaStream_t stream) {
    static_assert(no_entry == ~Entry(0));
    TQ_CUDA(cudaMemsetAsync(thresholds, 0xff, nq * sizeof(Entry), stream));
}

void find_thresholds(
        const float* keys,
        uint32_t rows,
        int k,
        size_t nq,
        Entry* thresholds,
        cudaStream_t stream) {
    int parts = threshold_threads;
    while (parts < 4 * k) {
        parts *= 2;
    }
    run({unsigned(nq), threshold_threads, parts * sizeof(Entry), stream, early},
        threshold_kernel,
        keys,
        rows,
        k,
        parts,
        thresholds);
}

void scan_top_k(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const Reservoirs& reservoirs,
        cudaStream_t stream) {
    ScanArgs args = make_args(codes, plan, tasks, image, factors);
    args.reservoirs = reservoirs;
    launch(args, plan, stream);
}

void scan_range(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const RangeSink& sink,
        size_t nq,
        cudaStream_t stream) {
    TQ_CUDA(cudaMemsetAsync(
            sink.counts, 0, nq * sizeof(sink.counts[0]), stream));
    ScanArgs args = make_args(codes, plan, tasks, image, factors);
    args.range = sink;
    launch(args, plan, stream);
}

void scan_distances(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanTasks& tasks,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const DistanceSink& sink,
        cudaStream_t stream) {
    ScanArgs args = make_args(codes, plan, tasks, image, factors);
    args.all = sink;
    launch(args, plan, stream);
}

void scan_products(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const ProductSink& sink,
        cudaStream_t stream) {
    FAISS_THROW_IF_NOT(plan.product_planes == (codes.second_planes ? 2 : 1));
    FAISS_THROW_IF_NOT(plan.is_single == (sink.nq == 1));
    ScanArgs args = make_args(codes, plan, {}, image, factors);
    args.products = sink;
    launch(args, plan, stream);
}

void merge_slices(
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream) {
    const Slices slices = {plan};
    merge(nq,
          reservoirs,
          plan,
          slices,
          is_l2,
          k_out,
          distances,
          labels,
          stream);
}

void merge_tasks(
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        const ResultsOfQueries& results,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream) {
    const Tasks tasks = {results, plan.parts()};
    merge(nq, reservoirs, plan, tasks, is_l2, k_out, distances, labels, stream);
}

} // namespace gpu
} // namespace faiss_turboquant
