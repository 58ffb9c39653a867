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

size_t best_rows(const ScanPlan& sign_plan, size_t nq, int k) {
    return nq * sign_plan.n_slices * k;
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
                    : std::max(195.0, 1.2 * plane));
    const double listed = 1.2; // a row of a list, against one of many
    all = code * n;
    first = signs * n + 200e6;
    second = 120e6;
    listed_sizes = listed * signs + products;
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
    return storage_.layout().plane_size() + 2 * sizeof(float);
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
            more[p] = {
                    DeviceArray<uint8_t>(resources, capacity * plane_size, use),
                    DeviceArray<float>(resources, capacity, use),
                    DeviceArray<float>(resources, capacity, use)};
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
    const double by_first = left.by_first, by_all = left.by_all;
    if (by_first == 0) { // not known
        return std::min(most, record.n_planes);
    }
    const SignSearchCost cost(storage_.layout(), n, nq);
    const bool has_both = record.n_planes > 1;
    const double with_one = cost.with_one_plane(by_first);
    constexpr double hoped_for = 1.0 / 8; // of those that signs leave
    const double with_both = cost.with_both_planes(
            by_first, has_both ? by_all : by_first * hoped_for);
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
            left.by_first = 0; // until the next one has ended
            return 0;
        }
    }
    return n_planes;
}

void DeviceSignFilter::note(
        size_t nq,
        int n_planes,
        const uint32_t* by_first,
        const uint32_t* by_all) {
    const std::lock_guard<std::mutex> lock(mutex_);
    records_[nq - 1].n_planes = n_planes;
    const auto send = [&](volatile uint32_t& to, const uint32_t* from) {
        TQ_CUDA(cudaMemcpyAsync(
                const_cast<uint32_t*>(&to),
                from,
                sizeof(*from),
                cudaMemcpyDeviceToHost,
                storage_.resources.stream()));
    };
    if (n_planes > 1) {
        send(left_[nq - 1].by_all, by_all);
    }
    send(left_[nq - 1].by_first, by_first);
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
                plane.bits.data(), plane.scales.data(), plane.residuals.data()};
    }
    rows.statistics = statistics_.data();
    return rows;
}

CandidateList SignSearch::Candidates::list() const {
    return {rows.data(), size.data(), uint32_t(rows.size())};
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
          best_rows_(resources, best_rows(sign_plan_, nq, k)),
          best_size_(resources, 1),
          best_keys_(resources, nq * best_rows_.size()) {
    image_ = {
            codes.layout.signs(),
            sign_plan_.image_order(),
            image_data_.data(),
            factors_.data(),
            sums_.data()};
    for (int p = 0; p < n_planes; p++) {
        products_[p] =
                DeviceArray<uint8_t>(resources, ProductSink::size(codes.n, nq));
        candidates_[p] = {
                DeviceArray<uint32_t>(resources, list_capacity(codes.n)),
                DeviceArray<uint32_t>(resources, 1)};
    }
}

size_t SignSearch::workspace(
        const ScanPlan& sign_plan,
        int n_planes,
        size_t n,
        size_t nq,
        int k) {
    const size_t best = best_rows(sign_plan, nq, k);
    const size_t of_plane =
            ProductSink::size(n, nq) + list_capacity(n) * sizeof(uint32_t);
    return n_planes * of_plane + best * (sizeof(uint32_t) + nq * sizeof(float));
}

ProductSink SignSearch::products(int plane) const {
    // where signs say that a row is worse than most, sizes do not change that
    const int zero = plane == 0 ? 0 : 128;
    return {products_[plane].data(), uint32_t(nq_), zero, sums_.data()};
}

void SignSearch::scan_plane(
        int plane,
        const RowList& list,
        const Reservoirs& reservoirs) const {
    DeviceCodes signs = codes_;
    signs.layout = image_.layout;
    signs.planes = rows_.planes[plane].bits;
    signs.scales = rows_.planes[plane].scales;
    signs.list = list;
    scan_products(
            signs,
            sign_plan_,
            image_.image,
            image_.factors,
            products(plane),
            reservoirs,
            resources_.stream());
}

RowList SignSearch::find_candidates(
        const uint8_t* image,
        const DeviceQueryFactors* factors,
        const Reservoirs& reservoirs) const {
    const cudaStream_t stream = resources_.stream();
    Entry* thresholds = reservoirs.thresholds;
    reset_thresholds(thresholds, plan_.padded_nq(), stream);
    scan_plane(0, {}, reservoirs);
    list_reservoirs(
            reservoirs,
            sign_plan_.n_slices,
            nq_,
            best_rows_.data(),
            best_size_.data(),
            stream);
    const uint32_t n_best = uint32_t(best_rows_.size());
    DeviceCodes best = codes_;
    best.list = {best_rows_.data(), best_size_.data(), n_best};
    scan_distances(
            best,
            plan_,
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
    scan_plane(0, {}, {});
    return list_candidates(nullptr, last);
}

RowList SignSearch::list_candidates(const Entry* thresholds, float last) const {
    SignKeys keys;
    keys.rows = rows_;
    keys.offsets = codes_.offsets;
    keys.selected = codes_.selected;
    keys.n = codes_.n;
    keys.d = codes_.layout.d;
    keys.is_l2 = codes_.layout.is_l2;
    keys.margin = margin_;
    keys.factors = factors_.data();
    for (int p = 0; p < n_planes_; p++) {
        if (p > 0) {
            scan_plane(p, keys.list, {});
        }
        keys.n_planes = p + 1;
        keys.products[p] = products(p);
        const CandidateList found = candidates_[p].list();
        gpu::list_candidates(
                keys, thresholds, last, found, resources_.stream());
        keys.list = found.list();
    }
    return keys.list;
}

void SignSearch::note_outcome() const {
    filter_.note(
            nq_,
            n_planes_,
            candidates_[0].size.data(),
            candidates_[n_planes_ - 1].size.data());
}

} // namespace gpu
} // namespace faiss_turboquant
