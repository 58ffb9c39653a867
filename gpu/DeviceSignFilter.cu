#include <gpu/DeviceSignFilter.h>

#include <algorithm>

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

DeviceSignFilter::DeviceSignFilter(const CodeStorage& storage)
        : storage_(storage),
          mailbox_(storage.resources.take_mailbox()),
          left_(static_cast<uint32_t*>(mailbox_.memory)) {
    static_assert(
            sizeof(uint32_t[max_sign_queries + 1]) <=
            GpuResources::Mailbox::size);
    std::fill_n(left_, max_sign_queries + 1, 0);
}

DeviceSignFilter::~DeviceSignFilter() {
    // nothing is on its way to it any more
    cudaStreamSynchronize(storage_.resources.stream());
    storage_.resources.give_mailbox(mailbox_);
}

void DeviceSignFilter::extend(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    take_rows(n);
}

bool DeviceSignFilter::try_extend(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t capacity = storage_.capacity();
    if (refused_ == capacity) {
        return false;
    }
    if (n > scales_.size()) {
        size_t available = 0, all = 0;
        TQ_CUDA(cudaMemGetInfo(&available, &all));
        if (bytes_of_row() * capacity > available / 2) {
            refused_ = capacity;
            return false;
        }
    }
    try {
        take_rows(n);
        return true;
    } catch (const faiss::FaissException&) {
        refused_ = capacity;
        return false;
    }
}

size_t DeviceSignFilter::bytes_of_row() const {
    return storage_.layout().plane_size() + 2 * sizeof(float);
}

void DeviceSignFilter::take_rows(size_t n) {
    const GpuResources& resources = storage_.resources;
    if (n > scales_.size()) {
        // where there is no room beside the old ones, they have to be made anew
        release();
        constexpr MemoryUse use = MemoryUse::index;
        const size_t capacity =
                round_up(storage_.capacity(), size_t(sign_rows_unit));
        DeviceArray<uint8_t> planes(
                resources, capacity * storage_.layout().plane_size(), use);
        DeviceArray<float> scales(resources, capacity, use);
        DeviceArray<float> residuals(resources, capacity, use);
        statistics_ = DeviceArray<SignStatistics>(resources, 1, use);
        planes_ = std::move(planes);
        scales_ = std::move(scales);
        residuals_ = std::move(residuals);
    }
    if (size_ < n) {
        pack_signs(
                storage_.codes(n, nullptr),
                uint32_t(size_),
                rows(),
                resources.stream());
        size_ = n;
    }
}

void DeviceSignFilter::clear() {
    release();
    refused_ = 0;
}

void DeviceSignFilter::release() {
    planes_ = {};
    scales_ = {};
    residuals_ = {};
    size_ = 0;
}

bool DeviceSignFilter::is_promising(size_t nq) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Record& record = records_[nq];
    if (!record.pause.is_due()) {
        return false;
    }
    const uint32_t left = left_[nq];
    if (left == 0) {
        return true; // not known
    }
    const bool gains = left <= record.most;
    record.pause.note(gains);
    if (!gains) {
        left_[nq] = 0; // until the next one has ended
    }
    return gains;
}

void DeviceSignFilter::note(size_t nq, const uint32_t* size, uint32_t most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    records_[nq].most = most;
    TQ_CUDA(cudaMemcpyAsync(
            const_cast<uint32_t*>(left_ + nq),
            size,
            sizeof(*size),
            cudaMemcpyDeviceToHost,
            storage_.resources.stream()));
}

DeviceCodes DeviceSignFilter::codes(size_t n, const uint32_t* selected) const {
    DeviceCodes signs = storage_.codes(n, selected);
    signs.layout = storage_.layout().signs();
    signs.planes = planes_.data();
    signs.scales = scales_.data();
    return signs;
}

SignSearch::SignSearch(
        const GpuResources& resources,
        DeviceSignFilter& filter,
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const ScanPlan& sign_plan,
        size_t nq,
        int k,
        double margin)
        : resources_(resources),
          filter_(filter),
          codes_(codes),
          signs_(filter.codes(codes.n, codes.selected)),
          plan_(plan),
          sign_plan_(sign_plan),
          nq_(nq),
          k_(k),
          margin_(margin),
          image_data_(resources, plan.padded_nq() * codes.layout.dims),
          factors_(resources, plan.padded_nq()),
          squares_(resources, plan.padded_nq()),
          products_(resources, nq * round_up(codes.n, product_rows) / 2),
          rows_(resources, list_capacity(codes.n)),
          size_(resources, 1),
          best_rows_(resources, best_rows(sign_plan_, nq, k)),
          best_size_(resources, 1),
          best_keys_(resources, nq * best_rows_.size()) {
    image_ = {
            signs_.layout,
            sign_plan_.image_order(),
            image_data_.data(),
            factors_.data(),
            squares_.data()};
}

double SignSearch::break_even(const DeviceLayout& layout, size_t n, size_t nq) {
    // In bytes that memory gives in the time, measured on an H200. Short rows,
    // signs of several queries and trellises, which have a faster way for one
    // query, are bound by instructions.
    const bool is_one = nq == 1;
    const double plane = layout.plane_size();
    const double planes = !layout.has_trellis() ? layout.nbits
            : is_one ? std::max<double>(layout.nbits, 3.2)
                     : 5.5;
    const double code = std::max(240.0, planes * plane);
    const double products = 4 * nq; // written and read
    const double signs = products + 12 +
            (is_one ? std::max(140.0, 1.05 * plane)
                    : std::max(195.0, 1.2 * plane));
    const double kernels = 180e6; // what is between scans of signs and codes
    const double listed = 1.2;    // a row of a list, against one of many
    return ((code - signs) * n - kernels) / (listed * code);
}

size_t SignSearch::workspace(
        const ScanPlan& sign_plan,
        size_t n,
        size_t nq,
        int k) {
    const size_t best = best_rows(sign_plan, nq, k);
    return nq * round_up(n, size_t(product_rows)) * sizeof(uint16_t) +
            list_capacity(n) * sizeof(uint32_t) +
            best * (sizeof(uint32_t) + nq * sizeof(float));
}

ProductSink SignSearch::products() const {
    return {products_.data(),
            uint32_t(nq_),
            round_up(codes_.n, product_rows),
            ProductSink::shift_of(codes_.layout.d)};
}

void SignSearch::scan_signs(const Reservoirs& reservoirs) const {
    scan_products(
            signs_,
            sign_plan_,
            image_.image,
            image_.factors,
            products(),
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
    scan_signs(reservoirs);
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
    scan_signs({});
    return list_candidates(nullptr, last);
}

RowList SignSearch::list_candidates(const Entry* thresholds, float last) const {
    SignKeys keys;
    keys.products = products();
    keys.rows = filter_.rows();
    keys.offsets = codes_.offsets;
    keys.selected = codes_.selected;
    keys.n = codes_.n;
    keys.d = codes_.layout.d;
    keys.is_l2 = codes_.layout.is_l2;
    keys.margin = margin_;
    keys.factors = factors_.data();
    keys.squares = squares_.data();
    const uint32_t capacity = uint32_t(rows_.size());
    gpu::list_candidates(
            keys,
            thresholds,
            last,
            rows_.data(),
            capacity,
            size_.data(),
            resources_.stream());
    return {rows_.data(), size_.data(), capacity};
}

void SignSearch::note_outcome() const {
    const double most = break_even(codes_.layout, codes_.n, nq_);
    filter_.note(
            nq_,
            size_.data(),
            uint32_t(std::clamp<double>(most, 0, rows_.size())));
}

} // namespace gpu
} // namespace faiss_turboquant
