#pragma once

/** How inverted files are searched for the queries of a page: the tasks of
 * blocks, and where the queries of each list and the results of each query
 * are. */

#include <cstddef>
#include <cstdint>
#include <vector>

#include <gpu/GpuResources.h>
#include <gpu/kernels/scan.h>

namespace faiss_turboquant {
namespace gpu {

/// how few queries that probe few lists are searched for
struct DirectPlan {
    DirectPlan(const DeviceLayout& layout, size_t n_probes);

    ScanPlan plan;
    uint32_t n_slices; ///< of a list
};

/// where the queries of a list are, and what they are compared with
struct ListPlace {
    uint32_t first_slot, first_reservoir;
    uint32_t n_queries;
    uint32_t n_slices; ///< tasks of a group
};

/// how the queries of a page are grouped by the lists that they probe
struct GroupedPlan {
    /** @param begins   of lists, in rows
     *  @param sizes    likewise
     *  @param queries  that probe each list that is not empty
     *  @param nprobe   0: there is to be no sample */
    GroupedPlan(
            const DeviceLayout& layout,
            const std::vector<uint32_t>& begins,
            const std::vector<uint32_t>& sizes,
            const std::vector<uint32_t>& queries,
            size_t nprobe);

    size_t n_reservoirs() const {
        return n_listed * plan.parts();
    }

    /// up to so many lists; of more, their sample would take longer to look
    /// through than it gains
    static constexpr size_t most_sampled = 128;

    ScanPlan plan;
    /// of each list, which give thresholds for the others; 0: there is none
    uint32_t sample_rows = 0;
    std::vector<ListPlace> places; ///< (nlist,)
    std::vector<ScanTask> sample, tasks;
    size_t n_slots = 0;
    size_t n_listed = 0; ///< (task, query)
};

/** Into how many pages queries are cut: such that groups of them are full,
 * because others take as long.
 * @param sizes    of lists
 * @param queries  that probe each list
 * @param least    pages that there have to be */
double choose_pages(
        const DeviceLayout& layout,
        const std::vector<uint32_t>& sizes,
        const std::vector<uint32_t>& queries,
        double least);

/** How many queries probe each list that is not empty. Waits.
 * @param keys     (n,) on the device
 * @param sizes    (nlist,) of lists, on the device
 * @param queries  (nlist,) on the device, written, too */
std::vector<uint32_t> count_queries(
        const GpuResources& resources,
        const int64_t* keys,
        size_t n,
        const uint32_t* sizes,
        size_t nlist,
        uint32_t* queries);

/// of probes on the device
struct ProbeParts {
    ScanTask* tasks;
    uint32_t* probe_of_slot;
    // as in ResultsOfQueries
    uint32_t *begins, *counts, *reservoirs;
};

/// what a search of lists needs on the device
struct DeviceProbes {
    /** Of queries that lists are grouped for.
     * @param keys     (nq, nprobe) on the device; negative ones are skipped
     * @param sizes    of lists, on the device
     * @param queries  (nlist,) likewise, that probe each list: 0 afterwards */
    DeviceProbes(
            const GpuResources& resources,
            const GroupedPlan& grouped,
            const int64_t* keys,
            size_t nq,
            size_t nprobe,
            const uint32_t* sizes,
            uint32_t* queries);

    /** Without a look at the keys on the host: a list is not shared by queries.
     * @param keys    (nq, nprobe) on the device, less than the number of lists;
     *                negative ones are skipped
     * @param begins  of lists, on the device
     * @param sizes   likewise */
    DeviceProbes(
            const GpuResources& resources,
            const DirectPlan& direct,
            const int64_t* keys,
            size_t nq,
            size_t nprobe,
            const uint32_t* begins,
            const uint32_t* sizes);

    ProbeParts parts() const {
        return {tasks(), at(1), at(2), at(3), at(4)};
    }
    ScanTasks scan_tasks() const {
        return {tasks(), uint32_t(n_tasks), at(1), nprobe};
    }
    /// of the first rows of lists, see GroupedPlan
    ScanTasks sample_tasks() const {
        return {tasks() + n_tasks, uint32_t(n_sample), at(1), nprobe};
    }
    /// whether the host has to wait before this goes
    bool is_uploaded() const {
        return !words.empty();
    }

    ScanPlan plan;
    const int64_t* keys;
    uint32_t nprobe;
    size_t n_sample = 0, n_tasks, n_slots, n_reservoirs;
    uint32_t sample_rows = 0;

   private:
    /** Room for what ProbeParts has, in its order.
     * @param first     words of the tasks, and what else is before the slots
     * @param n_listed  reservoirs of all queries */
    void allocate(
            const GpuResources& resources,
            size_t first,
            size_t nq,
            size_t n_listed);
    template <class T>
    void append(const std::vector<T>& from);
    uint32_t* at(int part) const {
        return on_device.data() + begins_of_parts[part];
    }
    ScanTask* tasks() const {
        return reinterpret_cast<ScanTask*>(at(0));
    }

    std::vector<uint32_t> words; ///< has to outlive the upload
    std::vector<size_t> begins_of_parts;
    DeviceArray<uint32_t> on_device;
};

} // namespace gpu
} // namespace faiss_turboquant
