#pragma once

/** The results of a range search on the device, counted and then collected. */

#include <algorithm>
#include <cmath>
#include <vector>

#include <faiss_turboquant/search_pages.h>
#include <gpu/kernels/scan.h>
#include <gpu/transfers.h>

namespace faiss_turboquant {
namespace gpu {

/// of the keys that are within a radius, the greatest
inline float last_key(bool is_l2, float radius) {
    return std::nextafter(is_l2 ? radius : -radius, -INFINITY);
}

/** (row, distance) of each query, by ascending row.
 * @param nq    counts of a RangeSink
 * @param scan  scan(sink): issue scan_range */
template <class Scan>
std::vector<RangeHits> collect_hits(
        const GpuResources& resources,
        bool is_l2,
        float radius,
        size_t nq,
        Scan scan) {
    RangeSink sink;
    sink.last = last_key(is_l2, radius);
    const DeviceArray<unsigned long long> device_counts(resources, nq);
    sink.counts = device_counts.data();
    scan(sink);
    const auto counts = download(resources, device_counts.data(), nq);

    std::vector<unsigned long long> begins(nq);
    size_t total = 0;
    for (size_t q = 0; q < nq; q++) {
        begins[q] = total;
        total += counts[q];
    }
    std::vector<RangeHits> hits(nq);
    if (total == 0) {
        return hits;
    }
    const DeviceArray<Entry> entries(resources, total);
    const auto device_begins = upload(resources, begins);
    sink.entries = entries.data();
    sink.begins = device_begins.data();
    scan(sink);
    auto all = download(resources, entries.data(), total);
    for (size_t q = 0; q < nq; q++) {
        const auto begin = all.begin() + begins[q];
        const auto end = begin + counts[q];
        std::sort(begin, end, [](Entry a, Entry b) {
            return uint32_t(a) < uint32_t(b);
        });
        for (auto entry = begin; entry < end; entry++) {
            hits[q].emplace_back(
                    uint32_t(*entry),
                    distance_of_key(is_l2, entry_key(*entry)));
        }
    }
    return hits;
}

} // namespace gpu
} // namespace faiss_turboquant
