#include <gpu/ListProbes.h>

#include <algorithm>
#include <cmath>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/transfers.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/** Tasks of lists that queries probe, one query a group: n_slices for each
 * probe, some of them empty. One thread for each of n probes. */
__global__ void make_tasks_kernel(
        const int64_t* keys,
        uint32_t n,
        uint32_t nprobe,
        uint32_t n_slices,
        uint32_t group_size,
        const uint32_t* begins,
        const uint32_t* sizes,
        ProbeParts parts) {
    constexpr uint32_t unit = 64; // rows; fewer would leave warps without
    const uint32_t probe = blockIdx.x * blockDim.x + threadIdx.x;
    if (probe >= n) {
        return;
    }
    const int64_t key = keys[probe];
    const uint32_t list = uint32_t(key < 0 ? 0 : key);
    const uint32_t size = key < 0 ? 0 : sizes[list];
    const uint32_t rows = round_up(ceil_div(size, n_slices), unit);
    for (uint32_t s = 0; s < n_slices; s++) {
        const uint32_t task = probe * n_slices + s;
        parts.tasks[task] = {
                begins[list] + min(s * rows, size),
                begins[list] + min((s + 1) * rows, size),
                probe * group_size,
                1,
                task};
        parts.reservoirs[task] = task;
    }
    for (uint32_t i = 0; i < group_size; i++) {
        parts.probe_of_slot[probe * group_size + i] =
                i == 0 && size > 0 ? probe : no_probe;
    }
    if (probe % nprobe == 0) {
        parts.begins[probe / nprobe] = probe * n_slices;
        parts.counts[probe / nprobe] = nprobe * n_slices;
    }
}

/// The queries of each list. One thread for each of n probes.
/// counts: (nlist,), 0 before
__global__ void count_queries_kernel(
        const int64_t* keys,
        uint32_t n,
        const uint32_t* sizes,
        uint32_t* counts) {
    const uint32_t probe = blockIdx.x * blockDim.x + threadIdx.x;
    if (probe < n) {
        const int64_t key = keys[probe];
        if (key >= 0 && sizes[key] > 0) {
            atomicAdd(&counts[key], 1);
        }
    }
}

/** Puts each probe in a slot of its list, in any order, and notes where its
 * results will be. One warp for each query.
 * @param task_parts  reservoirs of a task and a query
 * @param left        (nlist,): queries of each list, 0 afterwards
 * @param n_listed    (1,), 0 before: what all queries have in `reservoirs`
 * @param parts       probe_of_slot is no_probe everywhere before */
__global__ void place_probes_kernel(
        const int64_t* keys,
        uint32_t nq,
        uint32_t nprobe,
        const uint32_t* sizes,
        const ListPlace* places,
        uint32_t group_size,
        uint32_t task_parts,
        uint32_t* left,
        uint32_t* n_listed,
        ProbeParts parts) {
    const uint32_t q = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const uint32_t lane = threadIdx.x % 32;
    if (q >= nq) {
        return;
    }
    const auto is_probed = [&](int64_t key) {
        return key >= 0 && sizes[key] > 0;
    };
    const int64_t* of_query = keys + size_t(q) * nprobe;
    uint32_t count = 0;
    for (uint32_t p = lane; p < nprobe; p += 32) {
        const int64_t key = of_query[p];
        count += is_probed(key) ? places[key].n_slices : 0;
    }
    uint32_t before = count; // of the query's, in the lanes up to this one
    for (uint32_t lanes = 1; lanes < 32; lanes *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffff, before, lanes);
        before += lane >= lanes ? other : 0;
    }
    uint32_t begin = 0;
    if (lane == 31) {
        begin = atomicAdd(n_listed, before);
        parts.begins[q] = begin;
        parts.counts[q] = before;
    }
    begin = __shfl_sync(0xffffffff, begin, 31) + before - count;
    for (uint32_t p = lane; p < nprobe; p += 32) {
        const int64_t key = of_query[p];
        if (!is_probed(key)) {
            continue;
        }
        const ListPlace place = places[key];
        const uint32_t i = atomicSub(&left[key], 1) - 1;
        parts.probe_of_slot[place.first_slot + i] = q * nprobe + p;
        // all groups before are full
        const uint32_t in_group = i % group_size, first = i - in_group;
        const uint32_t of_group = min(group_size, place.n_queries - first);
        const uint32_t before_group = first * place.n_slices;
        for (uint32_t s = 0; s < place.n_slices; s++) {
            parts.reservoirs[begin++] = place.first_reservoir +
                    (before_group + s * of_group + in_group) * task_parts;
        }
    }
}

} // namespace

DirectPlan::DirectPlan(const DeviceLayout& layout, size_t n_probes)
        : plan(plan_list_scan(layout, {1}, {1}).plan),
          n_slices(uint32_t(ceil_div<size_t>(
                  2 * blocks_at_once(layout, plan),
                  n_probes))) {}

GroupedPlan::GroupedPlan(
        const DeviceLayout& layout,
        const std::vector<uint32_t>& begins,
        const std::vector<uint32_t>& sizes,
        const std::vector<uint32_t>& queries,
        size_t nprobe)
        : plan(plan_list_scan(layout, queries, sizes).plan),
          places(queries.size()) {
    const uint32_t group_size = plan.group_size();
    size_t work = 0;
    for (size_t l = 0; l < queries.size(); l++) {
        work += size_t(ceil_div(queries[l], group_size)) * sizes[l];
    }
    // short enough that all multiprocessors have a part
    const size_t slice_rows = round_up<size_t>(
            work / (2 * blocks_at_once(layout, plan)) + 1, max_round_rows);
    if (plan.is_batch && nprobe > 0 && nprobe <= most_sampled) {
        sample_rows = max_round_rows;
    }

    for (size_t l = 0; l < queries.size(); l++) {
        const uint32_t sampled = std::min(sizes[l], sample_rows);
        const size_t begin = begins[l] + sampled;
        const size_t end = begins[l] + sizes[l];
        places[l] = {
                uint32_t(n_slots),
                uint32_t(n_reservoirs()),
                queries[l],
                uint32_t(ceil_div(end - begin, slice_rows))};
        for (uint32_t q = 0; q < queries[l]; q += group_size) {
            const uint32_t n = std::min(group_size, queries[l] - q);
            const auto task = [&](size_t first, size_t last) {
                return ScanTask{
                        uint32_t(first),
                        uint32_t(last),
                        uint32_t(n_slots),
                        n,
                        uint32_t(n_reservoirs())};
            };
            if (sampled > 0) {
                sample.push_back(task(begin - sampled, begin));
            }
            for (size_t row = begin; row < end; row += slice_rows) {
                tasks.push_back(task(row, std::min(row + slice_rows, end)));
                n_listed += n;
            }
            n_slots += group_size;
        }
    }
}

double choose_pages(
        const DeviceLayout& layout,
        const std::vector<uint32_t>& sizes,
        const std::vector<uint32_t>& queries,
        double least) {
    double best = 0, best_time = 0;
    for (const double more : {1.03, 1.2, 1.4, 1.7, 2.0}) {
        const double pages = least * more;
        std::vector<uint32_t> of_page(queries.size());
        for (size_t l = 0; l < queries.size(); l++) {
            const double mean = queries[l] / pages;
            of_page[l] = uint32_t(mean + std::sqrt(mean) + 0.5);
        }
        const double time = pages * plan_list_scan(layout, of_page, sizes).time;
        if (best == 0 || time < best_time) {
            best = pages;
            best_time = time;
        }
    }
    return best;
}

std::vector<uint32_t> count_queries(
        const GpuResources& resources,
        const int64_t* keys,
        size_t n,
        const uint32_t* sizes,
        size_t nlist,
        uint32_t* queries) {
    const cudaStream_t stream = resources.stream();
    TQ_CUDA(cudaMemsetAsync(queries, 0, nlist * sizeof(uint32_t), stream));
    constexpr size_t threads = 256;
    run({unsigned(ceil_div(n, threads)), threads, 0, stream},
        count_queries_kernel,
        keys,
        uint32_t(n),
        sizes,
        queries);
    return download(resources, queries, nlist);
}

void DeviceProbes::allocate(
        const GpuResources& resources,
        size_t first,
        size_t nq,
        size_t n_listed) {
    size_t n_words = 0;
    for (const size_t part : {first, n_slots, nq, nq, n_listed}) {
        begins_of_parts.push_back(n_words);
        n_words += part;
    }
    on_device = DeviceArray<uint32_t>(resources, n_words);
}

template <class T>
void DeviceProbes::append(const std::vector<T>& from) {
    static_assert(sizeof(T) % sizeof(uint32_t) == 0);
    const auto* data = reinterpret_cast<const uint32_t*>(from.data());
    words.insert(
            words.end(),
            data,
            data + from.size() * (sizeof(T) / sizeof(uint32_t)));
}

DeviceProbes::DeviceProbes(
        const GpuResources& resources,
        const GroupedPlan& grouped,
        const int64_t* keys,
        size_t nq,
        size_t nprobe,
        const uint32_t* sizes,
        uint32_t* queries)
        : plan(grouped.plan),
          keys(keys),
          nprobe(uint32_t(nprobe)),
          n_sample(grouped.sample.size()),
          n_tasks(grouped.tasks.size()),
          n_slots(grouped.n_slots),
          n_reservoirs(grouped.n_reservoirs()),
          sample_rows(grouped.sample_rows) {
    append(grouped.tasks);
    append(grouped.sample);
    append(grouped.places);
    const size_t uploaded = words.size();
    allocate(resources, uploaded + 1, nq, grouped.n_listed);
    copy(resources, words.data(), on_device.data(), uploaded);
    const cudaStream_t stream = resources.stream();
    uint32_t* n_listed = on_device.data() + uploaded;
    TQ_CUDA(cudaMemsetAsync(n_listed, 0, sizeof(uint32_t), stream));
    TQ_CUDA(cudaMemsetAsync(
            parts().probe_of_slot, 0xff, n_slots * sizeof(uint32_t), stream));
    const auto* places =
            reinterpret_cast<const ListPlace*>(tasks() + n_tasks + n_sample);
    constexpr unsigned threads = 128, of_block = threads / 32;
    run({unsigned(ceil_div<size_t>(nq, of_block)), threads, 0, stream},
        place_probes_kernel,
        keys,
        uint32_t(nq),
        uint32_t(nprobe),
        sizes,
        places,
        uint32_t(plan.group_size()),
        uint32_t(plan.parts()),
        queries,
        n_listed,
        parts());
}

DeviceProbes::DeviceProbes(
        const GpuResources& resources,
        const DirectPlan& direct,
        const int64_t* keys,
        size_t nq,
        size_t nprobe,
        const uint32_t* begins,
        const uint32_t* sizes)
        : plan(direct.plan),
          keys(keys),
          nprobe(uint32_t(nprobe)),
          n_tasks(nq * nprobe * direct.n_slices),
          n_slots(nq * nprobe * plan.group_size()),
          n_reservoirs(n_tasks) {
    const size_t task_words = sizeof(ScanTask) / sizeof(uint32_t);
    allocate(resources, n_tasks * task_words, nq, n_tasks);
    constexpr int threads = 128;
    const unsigned blocks = ceil_div<size_t>(nq * nprobe, threads);
    run({blocks, threads, 0, resources.stream()},
        make_tasks_kernel,
        keys,
        uint32_t(nq * nprobe),
        uint32_t(nprobe),
        direct.n_slices,
        uint32_t(plan.group_size()),
        begins,
        sizes,
        parts());
}

} // namespace gpu
} // namespace faiss_turboquant
