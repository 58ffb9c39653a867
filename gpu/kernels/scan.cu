#include <gpu/kernels/scan.h>

#include <algorithm>

#include <gpu/kernels/scan_kernels.cuh>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int merge_threads = 512;
constexpr int threshold_threads = 256;
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
    if (plan.product_planes > 0) {
        const int i = plan.product_planes - 1;
        return plan.is_single     ? kernels.single_products
                : plan.uses_wgmma ? kernels.products_wgmma[i]
                                  : kernels.products[i];
    }
    return plan.is_single           ? kernels.single
            : plan.uses_wgmma       ? kernels.streamed_wgmma
            : plan.stream.warps > 0 ? kernels.streamed
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
            : plan.stream.warps > 0 ? 32 * plan.stream.warps
            : plan.uses_wgmma       ? ScanShape<16, true, false>::threads
                                    : ScanShape<16, false, false>::threads;
}

unsigned cluster_size(const ScanPlan& plan) {
    return plan.is_batch ? Batch::blocks : 1;
}

size_t image_size(const DeviceLayout& layout, int group_tiles) {
    return size_t(8) * group_tiles * layout.dims;
}

int tile_size(const DeviceLayout& layout) {
    return tile_rows * layout.row_size();
}

/** Whether the current device runs the code for compute capability 9.0, which
 * alone has wgmma. What is newer runs that of 8.0, as does every device where
 * the library is built without the other. */
bool has_wgmma(const DeviceLayout& layout) {
    return traits_of(kernels_of(layout).wgmma[0]).capability == 90;
}

/// of a block
size_t shared_size(const DeviceLayout& layout, const ScanPlan& plan) {
    if (plan.is_batch) {
        return group_number(plan) == 0 ? BatchShape<batch_groups[0]>::ring_size
                                       : BatchShape<batch_groups[1]>::ring_size;
    }
    return image_size(layout, plan.group_tiles) +
            size_t(plan.stream.warps) * plan.stream.tiles * tile_size(layout);
}

/// what a block can have
int available_shared(const DeviceLayout& layout, const ScanPlan& plan) {
    return int(traits_of(kernel_of(layout, plan)).shared_memory);
}

/// Many warps hide latencies better than many tiles of each.
StreamPlan plan_stream(const DeviceLayout& layout, const ScanPlan& plan) {
    ScanPlan streamed = plan;
    for (const int warps : {16, 8, 4}) {
        streamed.stream = {warps, 0};
        const int room = available_shared(layout, streamed) -
                int(shared_size(layout, streamed));
        const int tiles = room / (warps * tile_size(layout));
        if (tiles > 0) {
            return {warps, std::min(tiles, max_stream_tiles)};
        }
    }
    return {};
}

/// all slices, as ScanPlan has them
struct Slices {
    static constexpr bool orders_entries = true; ///< is_less is as integers
    ScanPlan plan;

    __device__ int count(size_t) const {
        return plan.n_slices * plan.parts();
    }
    __device__ size_t reservoir(size_t q, int i) const {
        const int parts = plan.parts(), group_size = plan.group_size();
        const size_t block = i / parts * size_t(plan.n_groups) + q / group_size;
        return (block * parts + i % parts) * group_size + q % group_size;
    }
    __device__ int64_t label(Entry entry) const {
        return uint32_t(entry);
    }
    __device__ bool is_less(Entry a, Entry b) const {
        return a < b;
    }
};

struct Tasks {
    static constexpr bool orders_entries = false;
    ReservoirsOfQueries of_queries;

    __device__ int count(size_t q) const {
        return of_queries.begins[q + 1] - of_queries.begins[q];
    }
    __device__ size_t reservoir(size_t q, int i) const {
        return of_queries.reservoirs[of_queries.begins[q] + i];
    }
    __device__ int64_t label(Entry entry) const {
        return of_queries.ids[uint32_t(entry)];
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

template <class Sources>
__global__ void __launch_bounds__(merge_threads) merge_kernel(
        Reservoirs r,
        int most, // entries of a reservoir
        Sources sources,
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
    Entry last = r.thresholds[q];
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    // sorts, and keeps the k best
    const auto thin_out = [&] {
        int n = count;
        if (Sources::orders_entries && n > 2 * r.k && r.k > 0) {
            if (threadIdx.x < 32) {
                warp_keep(buffer, n, warp_select(buffer, n, r.k, histogram));
            }
            n = r.k;
            __syncthreads();
        }
        int size = 1;
        while (size < n) {
            size *= 2;
        }
        for (int i = n + threadIdx.x; i < size; i += merge_threads) {
            buffer[i] = no_entry;
        }
        __syncthreads();
        block_sort(buffer, size, [&](Entry a, Entry b) {
            return sources.is_less(a, b);
        });
        if (r.k > 0 && n >= r.k) {
            // one of the same key may be better by its id
            last = min(last, buffer[r.k - 1] | ~uint32_t(0));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            count = min(n, r.k);
        }
        __syncthreads();
    };
    const int total = sources.count(q) * most;
    for (int begin = 0; begin < total; begin += merge_batch * merge_threads) {
        Entry loaded[merge_batch];
#pragma unroll
        for (int b = 0; b < merge_batch; b++) {
            loaded[b] = no_entry;
            const int i = begin + b * merge_threads + threadIdx.x;
            if (i < total) {
                const int rank = i % most;
                const size_t reservoir = sources.reservoir(q, i / most);
                if (rank < r.counts[reservoir]) {
                    loaded[b] = r.entries[reservoir * r.capacity + rank];
                }
            }
        }
#pragma unroll
        for (int b = 0; b < merge_batch; b++) {
            if (loaded[b] < no_entry && loaded[b] <= last) {
                buffer[atomicAdd(&count, 1)] = loaded[b];
            }
        }
        if (__syncthreads_or(
                    count > buffer_size - merge_batch * merge_threads)) {
            thin_out();
        }
    }
    thin_out();
    for (int i = threadIdx.x; i < k_out; i += merge_threads) {
        const bool is_found = i < count;
        const float key = is_found ? entry_key(buffer[i]) : FLT_MAX;
        // a squared distance is not below zero, though its estimate may be
        distances[q * k_out + i] = !is_l2 ? 0.0f - key
                : is_found                ? fmaxf(key, 0.0f)
                                          : FLT_MAX;
        labels[q * k_out + i] = is_found ? sources.label(buffer[i]) : -1;
    }
}

template <class Sources>
void merge(
        const Reservoirs& reservoirs,
        const ScanPlan& plan,
        const Sources& sources,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream) {
    // the k best, and a batch
    int buffer_size = 2 * merge_batch * merge_threads;
    while (buffer_size < 2 * reservoirs.k) {
        buffer_size *= 2;
    }
    const size_t shared = buffer_size * sizeof(Entry);
    const int most =
            plan.is_batch ? reservoirs.limit(Batch::part_rows) : reservoirs.k;
    run({unsigned(nq), merge_threads, shared, stream, early},
        merge_kernel<Sources>,
        reservoirs,
        most,
        sources,
        is_l2,
        k_out,
        buffer_size,
        distances,
        labels);
}

void launch(const ScanArgs& args, const ScanPlan& plan, cudaStream_t stream) {
    const DeviceLayout& layout = args.codes.layout;
    const unsigned tasks =
            args.tasks.tasks ? args.tasks.n : plan.n_groups * plan.n_slices;
    const unsigned cluster = cluster_size(plan);
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

ScanPlan plan_list_scan(
        const DeviceLayout& layout,
        double queries_of_list,
        size_t most_queries) {
    const bool may_use_wgmma = has_wgmma(layout);
    ScanPlan plan;
    for (const int tiles : {4, 8, 16}) {
        ScanPlan larger;
        larger.group_tiles = tiles;
        larger.uses_wgmma = tiles >= 8 && may_use_wgmma;
        if (queries_of_list > 4 * tiles &&
            int(shared_size(layout, larger)) <=
                    available_shared(layout, larger)) {
            plan = larger;
        }
    }
    if (plan.group_tiles > 1) {
        return plan;
    }
    plan.stream = plan_stream(layout, plan);
    if (plan.stream.warps > 0) {
        plan.is_single = most_queries == 1 &&
                counts_bits(layout.nbits, layout.has_trellis(), layout.shipped);
        plan.by_bits = plan.is_single ||
                counts_bits_of_eight(layout.nbits, layout.has_trellis());
        plan.uses_wgmma = plan.by_bits && !plan.is_single && may_use_wgmma;
    }
    const int most_units =
            few_units(layout.nbits, layout.has_trellis(), plan.is_single);
    while (2 * plan.units <= most_units &&
           layout.dims % (2 * plan.units * dims_unit) == 0) {
        plan.units *= 2;
    }
    return plan;
}

ScanPlan plan_scan(const DeviceLayout& layout, uint32_t n, size_t nq) {
    ScanPlan plan;
    const bool may_use_wgmma = has_wgmma(layout);
    // of one bit, three groups of eight are compared in less time than one of
    // more
    const bool is_in_eights = may_use_wgmma && nq > 8 && nq <= 24 &&
            counts_bits_of_eight(layout.nbits, layout.has_trellis());
    if (nq > 64 && may_use_wgmma) {
        plan.is_batch = true;
        plan.group_tiles = batch_groups[nq > batch_groups[0]] / 8;
        if (kernels_of(layout).batch[0][1] &&
            layout.dims % (2 * dims_unit) == 0) {
            plan.units = 2;
        }
    } else {
        const size_t of_group = is_in_eights ? 8 : nq;
        plan = plan_list_scan(layout, double(of_group), nq);
    }
    plan.n_groups = int(ceil_div(nq, size_t(plan.group_size())));
    // Blocks come in waves of all that run at once. Until a block's thresholds
    // are good, it works for longer: as if it had so many rows more.
    constexpr double start = 8192;
    const int at_once = blocks_at_once(layout, plan);
    const uint32_t rows = plan.group_tiles == 1 ? tile_rows : max_round_rows;
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

size_t reservoir_capacity(int k, bool is_ample) {
    return round_up(2 * k, 32) + (is_ample ? 2 : 1) * early_check_rows;
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
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const DistanceSink& sink,
        cudaStream_t stream) {
    ScanArgs args = make_args(codes, plan, {}, image, factors);
    args.all = sink;
    launch(args, plan, stream);
}

void scan_products(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const ProductSink& sink,
        const Reservoirs& reservoirs,
        cudaStream_t stream) {
    ScanArgs args = make_args(codes, plan, {}, image, factors);
    args.products = sink;
    args.reservoirs = reservoirs;
    args.range.last = -INFINITY; // no key is of interest
    ScanPlan of_products = plan;
    if (plan.stream.warps > 0 && !codes.list.rows) {
        of_products.product_planes = codes.second_planes ? 2 : 1;
    }
    launch(args, of_products, stream);
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
    merge(reservoirs,
          plan,
          slices,
          nq,
          is_l2,
          k_out,
          distances,
          labels,
          stream);
}

void merge_tasks(
        const Reservoirs& reservoirs,
        const ReservoirsOfQueries& of_queries,
        size_t nq,
        bool is_l2,
        int k_out,
        float* distances,
        int64_t* labels,
        cudaStream_t stream) {
    const Tasks tasks = {of_queries};
    merge(reservoirs, {}, tasks, nq, is_l2, k_out, distances, labels, stream);
}

} // namespace gpu
} // namespace faiss_turboquant
