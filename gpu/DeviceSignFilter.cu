#include <gpu/DeviceSignFilter.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <faiss/impl/FaissAssert.h>

#include <gpu/kernels/cuda_utils.h>
#include <gpu/transfers.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// Rows for which a list has room. If more are left, all are read.
uint32_t list_capacity(size_t n) {
    return uint32_t(std::max<size_t>(1, 3 * n / 4));
}

/// of planes
int n_scans(size_t nq, int n_planes) {
    return n_planes / planes_of_scan(nq, n_planes);
}

} // namespace

SignSearchCost::SignSearchCost(
        const DeviceLayout& layout,
        size_t n,
        size_t nq) {
    // Short rows, signs of several queries and trellises, which have a faster
    // way for one query, are bound by instructions.
    const bool is_one = nq == 1;
    const double plane = layout.plane_size();
    const double planes = !layout.has_trellis() ? layout.nbits
            : is_one ? std::max<double>(layout.nbits, 3.2)
                     : 5.5;
    const double code = std::max(240.0, planes * plane);
    const double products = 2 * nq; // written and read
    const double signs = products + 12 +
            (is_one ? std::max(140.0, 1.05 * plane)
                    : std::max(165.0, 1.05 * plane));
    const double listed = 1.2; // a row of a list, against one of many
    all = code * n;
    first = signs * n + 150e6;
    if (joins_planes(nq)) {
        second = (signs - products - 12) * n;
        listed_sizes = 0;
    } else {
        second = 120e6;
        listed_sizes = listed * signs + products;
    }
    listed_code = listed * code;
}

DeviceSignFilter::DeviceSignFilter(const CodeStorage& storage)
        : storage_(storage),
          mailbox_(storage.resources.take_mailbox()),
          left_(static_cast<RowsLeft*>(mailbox_.memory)) {
    static_assert(
            sizeof(RowsLeft[max_sign_queries]) <= GpuResources::Mailbox::size);
    std::memset(mailbox_.memory, 0, GpuResources::Mailbox::size);
}

DeviceSignFilter::~DeviceSignFilter() {
    // nothing is on its way to it any more
    cudaStreamSynchronize(storage_.resources.stream());
    storage_.resources.give_mailbox(mailbox_);
}

void DeviceSignFilter::extend(size_t n, int n_planes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    take_rows(n, n_planes);
}

bool DeviceSignFilter::try_extend(size_t n, int n_planes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t capacity = storage_.capacity();
    size_t& refused = refused_[n_planes - 1];
    if (refused == capacity) {
        return false;
    }
    const bool has_room = n <= planes_[0].scales.size();
    if (n_planes > n_planes_ || !has_room) {
        const int more = has_room ? n_planes - n_planes_ : n_planes;
        size_t available = 0, all = 0;
        TQ_CUDA(cudaMemGetInfo(&available, &all));
        if (more * bytes_of_row() * capacity > available / 2) {
            refused = capacity;
            return false;
        }
    }
    try {
        take_rows(n, n_planes);
        return true;
    } catch (const faiss::FaissException&) {
        refused = capacity;
        return false;
    }
}

size_t DeviceSignFilter::bytes_of_row() const {
    return storage_.layout().plane_size() + 2 * sizeof(float) +
            sizeof(TileRange) / product_rows;
}

void DeviceSignFilter::take_rows(size_t n, int n_planes) {
    const GpuResources& resources = storage_.resources;
    constexpr MemoryUse use = MemoryUse::index;
    if (n > planes_[0].scales.size()) {
        n_planes = std::max(n_planes, n_planes_);
        // where there is no room beside the old ones, they have to be made anew
        release();
    }
    if (n_planes > n_planes_) {
        if (statistics_.size() == 0) {
            statistics_ = DeviceArray<SignStatistics>(
                    resources, max_sign_planes, use);
        }
        const size_t capacity =
                round_up(storage_.capacity(), size_t(sign_rows_unit));
        const size_t plane_size = storage_.layout().plane_size();
        // others may be in use by searches of other threads
        Plane more[max_sign_planes];
        for (int p = n_planes_; p < n_planes; p++) {
            const size_t tiles = capacity / product_rows;
            more[p] = {
                    DeviceArray<uint8_t>(resources, capacity * plane_size, use),
                    DeviceArray<float>(resources, capacity, use),
                    DeviceArray<float>(resources, capacity, use),
                    DeviceArray<TileRange>(resources, tiles, use)};
        }
        for (int p = n_planes_; p < n_planes; p++) {
            planes_[p] = std::move(more[p]);
        }
        n_planes_ = n_planes;
        size_ = 0;
    }
    if (size_ < n) {
        pack_signs(
                storage_.codes(n, nullptr),
                uint32_t(size_),
                rows_locked(),
                resources.stream());
        size_ = n;
    }
}

void DeviceSignFilter::clear() {
    release();
    std::fill_n(refused_, max_sign_planes, never);
}

void DeviceSignFilter::release() {
    for (Plane& plane : planes_) {
        plane = {};
    }
    n_planes_ = 0;
    size_ = 0;
}

int DeviceSignFilter::choose_planes(
        size_t n,
        size_t nq,
        int most,
        bool may_do_without) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Record& record = records_[nq - 1];
    if (may_do_without && !record.pause.is_due()) {
        return 0;
    }
    if (refused_[1] == storage_.capacity()) {
        most = 1;
    }
    volatile RowsLeft& left = left_[nq - 1];
    double by_first = left.by_first, by_all = left.by_all;
    if (by_first == 0 && by_all == 0) { // not known
        return std::min(most, record.n_planes);
    }
    const SignSearchCost cost(storage_.layout(), n, nq);
    const bool has_both = record.n_planes > 1;
    if (!has_both) {
        record.by_first = by_first;
        by_all = by_first / hoped_for;
    } else if (by_first == 0) {
        if (record.by_first > 0) { // of the search before
            record.times = std::max(hoped_for, record.by_first / by_all);
            record.by_first = 0;
        }
        by_first = std::min<double>(n, by_all * record.times);
    }
    const double with_one = cost.with_one_plane(by_first);
    const double with_both = cost.with_both_planes(by_first, by_all);
    const bool wants_both =
            most > 1 && with_both < std::min(with_one, cost.all);
    n_wanting_ = wants_both ? std::min(n_wanting_ + 1, patience) : 0;
    const bool may_ask_both = n_planes_ > 1 || n_wanting_ == patience;
    const int n_planes = wants_both && may_ask_both ? 2 : 1;
    if (may_do_without) {
        const double last = has_both ? with_both : with_one;
        const bool gains = last <= cost.all || (wants_both && !has_both);
        record.pause.note(gains);
        if (!gains) {
            left.by_first = left.by_all = 0; // until the next one has ended
            return 0;
        }
    }
    return n_planes;
}

volatile RowsLeft* DeviceSignFilter::note(size_t nq, int n_planes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    records_[nq - 1].n_planes = n_planes;
    return left_ + (nq - 1);
}

SignRows DeviceSignFilter::rows() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return rows_locked();
}

SignRows DeviceSignFilter::rows_locked() const {
    SignRows rows;
    rows.n_planes = n_planes_;
    for (int p = 0; p < n_planes_; p++) {
        const Plane& plane = planes_[p];
        rows.planes[p] = {
                plane.bits.data(),
                plane.scales.data(),
                plane.residuals.data(),
                plane.ranges.data()};
    }
    rows.statistics = statistics_.data();
    return rows;
}

CandidateList SignSearch::candidates(int plane) const {
    const auto& rows = candidates_[plane];
    RowsLeft* left = left_.data();
    const bool by_all = plane + 1 == n_scans_ && n_planes_ > 1;
    return {rows.data(),
            by_all ? &left->by_all : &left->by_first,
            uint32_t(rows.size())};
}

SignSearch::SignSearch(
        const GpuResources& resources,
        DeviceSignFilter& filter,
        int n_planes,
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanPlan& sign_plan,
        size_t nq,
        int k,
        double margin)
        : resources_(resources),
          filter_(filter),
          n_planes_(n_planes),
          n_scans_(n_scans(nq, n_planes)),
          rows_(filter.rows()),
          codes_(codes),
          plan_(plan),
          sign_plan_(sign_plan),
          nq_(nq),
          k_(k),
          margin_(margin),
          image_data_(resources, plan.padded_nq() * codes.layout.dims),
          factors_(resources, plan.padded_nq()),
          sums_(resources, plan.padded_nq()),
          products_(resources, ProductSink::size(codes.n, nq)),
          largest_(resources, ProductSink::largest_size(codes.n, nq)),
          left_(resources, 1),
          next_round_(resources, 1),
          best_rows_(resources, best_rows(sign_plan_, nq, k)),
          best_keys_(resources, nq * best_rows_.size()) {
    image_ = {
            codes.layout.signs(),
            sign_plan_.image_order(),
            image_data_.data(),
            factors_.data(),
            sums_.data(),
            nullptr,
            left_.data(),
            next_round_.data()};
    for (int p = 0; p < n_scans_; p++) {
        candidates_[p] =
                DeviceArray<uint32_t>(resources, list_capacity(codes.n));
    }
}

size_t SignSearch::best_rows(const ScanPlan& sign_plan, size_t nq, int k) {
    return nq * sign_plan.n_slices * best_of_block(sign_plan, k);
}

size_t SignSearch::workspace(
        const ScanPlan& sign_plan,
        int n_planes,
        size_t n,
        size_t nq,
        int k) {
    const size_t best = best_rows(sign_plan, nq, k);
    return n_scans(nq, n_planes) * list_capacity(n) * sizeof(uint32_t) +
            ProductSink::size(n, nq) + ProductSink::largest_size(n, nq) +
            best * (sizeof(uint32_t) + nq * sizeof(float));
}

DeviceCodes SignSearch::plane(int p) const {
    DeviceCodes signs = codes_;
    signs.layout = image_.layout;
    signs.planes = rows_.planes[p].bits;
    signs.scales = rows_.planes[p].scales;
    return signs;
}

void SignSearch::scan() const {
    DeviceCodes signs = plane(0);
    if (are_joined()) {
        signs.second_planes = rows_.planes[1].bits;
        signs.scales = rows_.planes[1].scales;
    }
    scan_products(
            signs,
            sign_plan_,
            image_.image,
            image_.factors,
            products(),
            resources_.stream());
}

ProductSink SignSearch::products() const {
    ProductSink sink;
    sink.products = products_.data();
    sink.nq = uint32_t(nq_);
    sink.largest_level = are_joined() ? 3 : 1;
    sink.queries = sums_.data();
    sink.largest = largest_.data();
    if (k_ > 0) {
        sink.best = best_rows_.data();
        sink.n_best = best_of_block(sign_plan_, k_);
    }
    sink.next_round = next_round_.data();
    sink.ranges = rows_.planes[are_joined() ? 1 : 0].ranges;
    return sink;
}

RowList SignSearch::find_candidates(
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        Entry* thresholds) const {
    const cudaStream_t stream = resources_.stream();
    scan();
    const uint32_t n_best = uint32_t(best_rows_.size());
    DeviceCodes best = codes_;
    best.list.rows = best_rows_.data();
    best.list.capacity = n_best;
    // each block has few of these rows; with fewer warps it leaves room for one
    // of the next kernel, which is there at once then
    ScanPlan best_plan = plan_;
    constexpr int warps = 8, tiles = 2;
    if (best_plan.stream.warps > warps) {
        best_plan.stream = {warps, std::min(tiles, best_plan.stream.tiles)};
    }
    scan_distances(
            best,
            best_plan,
            {},
            image,
            factors,
            {best_keys_.data(), uint32_t(nq_), n_best, true},
            stream);
    // a query's own rows follow those of the queries before
    select_thresholds(
            best_keys_.data(),
            n_best + n_best / nq_,
            n_best / nq_,
            k_,
            nq_,
            thresholds,
            stream);
    return list_candidates(thresholds, 0);
}

RowList SignSearch::find_candidates(float last) const {
    scan();
    return list_candidates(nullptr, last);
}

RowList SignSearch::list_candidates(const Entry* thresholds, float last) const {
    const cudaStream_t stream = resources_.stream();
    SignKeys keys;
    keys.n_planes = are_joined() ? n_planes_ : 1;
    keys.are_joined = are_joined();
    keys.products = products();
    keys.rows = rows_;
    keys.offsets = codes_.offsets;
    keys.selected = codes_.selected;
    keys.n = codes_.n;
    keys.d = codes_.layout.d;
    keys.is_l2 = codes_.layout.is_l2;
    keys.margin = margin_;
    keys.factors = factors_.data();
    CandidateList found = candidates(0);
    gpu::list_candidates(keys, thresholds, last, found, stream);
    if (n_scans_ > 1) {
        DeviceCodes second = plane(1);
        second.list = found.list();
        keys.n_planes = 2;
        found = candidates(1);
        refine_candidates(
                keys,
                second,
                sign_plan_.units,
                image_.image,
                thresholds,
                last,
                found,
                stream);
    }
    RowList list = found.list();
    list.report = filter_.note(nq_, n_planes_);
    list.left = left_.data();
    return list;
}

} // namespace gpu
} // namespace faiss_turboquant
