#include <gpu/GpuIndexTurboQuant.h>

#include <algorithm>
#include <cinttypes>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/search_pages.h>
#include <gpu/CodeStorage.h>
#include <gpu/DeviceSignFilter.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>
#include <gpu/range_hits.h>
#include <gpu/transfers.h>

namespace faiss {
namespace gpu {

using namespace faiss_turboquant::gpu;
using faiss_turboquant::fill_result;
using faiss_turboquant::for_each_bit;
using faiss_turboquant::get_selector;
using faiss_turboquant::IdFilter;
using faiss_turboquant::page_queries;
using faiss_turboquant::RangeHits;
using faiss_turboquant::TurboQuantizer;

namespace {

/// queries made ready on the device, in the order that a plan wants
struct DeviceQueries {
    /// of_signs: if given, asked before codes.
    /// thresholds: (plan.padded_nq(),), written; null: not wanted
    DeviceQueries(
            const GpuResources& resources,
            const Encoder& encoder,
            const ScanPlan& plan,
            const float* x,
            size_t nq,
            size_t first_row,
            std::unique_ptr<SignSearch> of_signs = nullptr,
            Entry* thresholds = nullptr)
            : signs(std::move(of_signs)),
              input(resources, x, nq * encoder.layout.d),
              image(resources, plan.padded_nq() * encoder.layout.dims),
              factors(resources, plan.padded_nq()),
              check(resources) {
        prepare_queries(
                encoder,
                input.data,
                nq,
                first_row,
                plan.padded_nq(),
                {encoder.layout,
                 plan.image_order(),
                 image.data(),
                 factors.data(),
                 nullptr,
                 thresholds},
                signs ? &signs->image() : nullptr,
                check.refused(),
                resources.stream());
        check.fetch();
    }

    std::unique_ptr<SignSearch> signs;
    Input<float> input;
    DeviceArray<uint8_t> image;
    DeviceArray<DeviceQueryFactors> factors;
    InputCheck check;
};

/// where there are many queries, what is of interest in a search as far as a
/// sample of the codes tells
void begin_thresholds(
        const GpuResources& resources,
        const DeviceCodes& codes,
        const ScanPlan& plan,
        const DeviceQueries& queries,
        int k,
        const DeviceArray<Entry>& thresholds) {
    const cudaStream_t stream = resources.stream();
    const ScanPlan sample = plan_sample(plan, codes.n);
    if (sample.n_slices == 0) {
        return;
    }
    const uint32_t rows = sample.n_slices * sample.slice_rows;
    const size_t nq = thresholds.size();
    const DeviceArray<float> keys(resources, nq * rows);
    scan_distances(
            codes,
            sample,
            {},
            queries.image.data(),
            queries.factors.data(),
            {keys.data(), uint32_t(nq), rows, true},
            stream);
    find_thresholds(keys.data(), rows, k, nq, thresholds.data(), stream);
}

} // namespace

GpuIndexTurboQuant::GpuIndexTurboQuant(
        std::shared_ptr<Resources> resources,
        idx_t d,
        int nbits,
        MetricType metric,
        faiss_turboquant::RotationType rotation_type,
        uint64_t seed,
        int memory)
        : Index(d, metric),
          resources_(std::move(resources)),
          tq(d, nbits, metric, rotation_type, seed, memory) {
    FAISS_THROW_IF_NOT_MSG(
            resources_, "GpuIndexTurboQuant: the resources are null");
    const DeviceScope scope(resources_->device);
    set_storage(std::make_unique<CodeStorage>(*resources_, tq));
}

GpuIndexTurboQuant::GpuIndexTurboQuant(
        std::shared_ptr<Resources> resources,
        const IndexTurboQuant& index)
        : Index(index.d, index.metric_type), resources_(std::move(resources)) {
    FAISS_THROW_IF_NOT_MSG(
            resources_, "GpuIndexTurboQuant: the resources are null");
    copyFrom(&index);
}

GpuIndexTurboQuant::~GpuIndexTurboQuant() = default;

int GpuIndexTurboQuant::getDevice() const {
    return resources_->device;
}

std::shared_ptr<GpuResources> GpuIndexTurboQuant::getResources() const {
    return resources_;
}

void GpuIndexTurboQuant::copyFrom(const IndexTurboQuant* index) {
    FAISS_THROW_IF_NOT_MSG(index, "GpuIndexTurboQuant: the index is null");
    const DeviceScope scope(resources_->device);
    auto storage = std::make_unique<CodeStorage>(*resources_, index->tq);
    storage->reserve(index->ntotal, 0);
    storage->import(index->codes.data(), index->ntotal, index->code_size, 0);
    tq = index->tq;
    set_storage(std::move(storage));
    sign_margin = index->sign_margin;
    d = index->d;
    ntotal = index->ntotal;
    metric_type = index->metric_type;
    metric_arg = index->metric_arg;
    is_trained = true;
}

void GpuIndexTurboQuant::copyTo(IndexTurboQuant* index) const {
    FAISS_THROW_IF_NOT_MSG(index, "GpuIndexTurboQuant: the index is null");
    const DeviceScope scope(resources_->device);
    std::vector<uint8_t> codes(ntotal * tq.code_size);
    storage_->export_rows(0, ntotal, tq.code_size, codes.data());
    index->tq = tq;
    index->codes = MaybeOwnedVector<uint8_t>(std::move(codes));
    index->codes_changed();
    index->sign_margin = sign_margin;
    index->code_size = tq.code_size;
    index->d = d;
    index->ntotal = ntotal;
    index->metric_type = metric_type;
    index->metric_arg = metric_arg;
    index->is_trained = true;
}

void GpuIndexTurboQuant::set_storage(std::unique_ptr<CodeStorage> storage) {
    auto filter = std::make_unique<DeviceSignFilter>(*storage);
    sign_filter_ = std::move(filter);
    storage_ = std::move(storage);
}

void GpuIndexTurboQuant::reserve(idx_t n) {
    const DeviceScope scope(resources_->device);
    try {
        storage_->reserve(n, ntotal);
    } catch (const FaissException&) {
        // without signs, which a search makes again if there is room for them
        sign_filter_->clear();
        storage_->reserve(n, ntotal);
    }
}

void GpuIndexTurboQuant::train(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(
            ntotal == 0,
            "GpuIndexTurboQuant: train sets the centre and is refused once the "
            "index holds vectors; it holds %" PRId64,
            ntotal);
    const DeviceScope scope(resources_->device);
    TurboQuantizer trained = tq;
    trained.train(n, HostInput(*resources_, x, n * d).data);
    set_storage(std::make_unique<CodeStorage>(*resources_, trained));
    tq = trained;
}

void GpuIndexTurboQuant::add(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "GpuIndexTurboQuant: n = %" PRId64 " is negative", n);
    if (n == 0) {
        return;
    }
    const DeviceScope scope(resources_->device);
    const size_t wanted = ntotal + n;
    if (wanted > storage_->capacity()) {
        // grow in proportion if there is room for it
        const size_t more = std::min<size_t>(
                max_ntotal, std::max<size_t>(wanted, ntotal + ntotal / 2));
        try {
            storage_->reserve(more, ntotal);
        } catch (const FaissException&) {
            reserve(wanted);
        }
    }
    storage_->encode_rows(x, n, ntotal);
    ntotal += n;
}

std::unique_ptr<SignSearch> GpuIndexTurboQuant::make_sign_search(
        const DeviceCodes& codes,
        const ScanPlan& plan,
        size_t nq,
        int k) const {
    FAISS_THROW_IF_NOT_FMT(
            sign_margin > 0,
            "GpuIndexTurboQuant: sign_margin = %g is not positive",
            sign_margin);
    if (use_sign_filter == 0 || codes.n == 0 || nq > max_sign_queries) {
        return nullptr;
    }
    const DeviceLayout& layout = codes.layout;
    const bool may_do_without = use_sign_filter < 0;
    const SignSearchCost cost(layout, codes.n, nq);
    if (may_do_without && cost.with_one_plane(codes.n / 16.0) > cost.all) {
        return nullptr;
    }
    const auto plan_signs = [&](int n_planes) {
        const int planes = planes_of_scan(nq, n_planes);
        return plan_scan(layout.signs(), codes.n, nq, planes);
    };
    ScanPlan sign_plan = plan_signs(1);
    if (!sign_plan.by_bits) { // there is no room for the queries
        return nullptr;
    }
    const auto has_room = [&](int n_planes) {
        const size_t bytes =
                SignSearch::workspace(sign_plan, n_planes, codes.n, nq, k) +
                (k > 0 ? plan.n_reservoirs() * reservoir_capacity(plan, k) *
                                 sizeof(Entry)
                       : 0);
        return bytes <= resources_->workspace_limit;
    };
    if (!has_room(1)) {
        return nullptr;
    }
    // the codes that are read for a threshold may be as many as are left
    if (may_do_without &&
        SignSearch::best_rows(sign_plan, nq, k) > codes.n / 8) {
        return nullptr;
    }
    const int most = has_room(2) ? 2 : 1;
    int n_planes = use_sign_filter > 1
            ? most
            : sign_filter_->choose_planes(codes.n, nq, most, may_do_without);
    if (n_planes == 0) {
        return nullptr;
    }
    if (n_planes > 1 && !sign_filter_->try_extend(codes.n, n_planes)) {
        n_planes = 1;
    }
    if (!may_do_without) {
        sign_filter_->extend(codes.n, n_planes);
    } else if (!sign_filter_->try_extend(codes.n, n_planes)) {
        return nullptr;
    }
    if (planes_of_scan(nq, n_planes) > 1) {
        sign_plan = plan_signs(n_planes);
    }
    return std::make_unique<SignSearch>(
            *resources_,
            *sign_filter_,
            n_planes,
            codes,
            plan,
            sign_plan,
            nq,
            k,
            sign_margin);
}

void GpuIndexTurboQuant::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const SearchParameters* params) const {
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && k <= max_k,
            "GpuIndexTurboQuant: k = %" PRId64 " is not in 1 .. %" PRId64,
            k,
            max_k);
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "GpuIndexTurboQuant: n = %" PRId64 " is negative", n);
    if (n == 0) {
        return;
    }
    const DeviceScope scope(resources_->device);
    const GpuResources& resources = *resources_;
    const DeviceLayout& layout = storage_->layout();
    const Selection selection(
            resources, get_selector(params, "GpuIndexTurboQuant"), ntotal);
    const DeviceCodes codes = storage_->codes(ntotal, selection.rows());
    const int k_found = int(std::min(k, ntotal));
    const auto bytes_of = [&](const ScanPlan& plan) {
        const ScanPlan sample = plan_sample(plan, uint32_t(ntotal));
        const size_t sample_rows = sample.n_slices * sample.slice_rows;
        return plan.n_reservoirs() * reservoir_capacity(plan, k_found) *
                sizeof(Entry) +
                plan.padded_nq() * sample_rows * sizeof(float);
    };
    bool goes_to_host =
            selection.rows() != nullptr; // its upload has to end first

    for (idx_t first = 0; first < n;) {
        idx_t page = std::min(page_queries, n - first);
        ScanPlan plan = plan_scan(layout, ntotal, page);
        while (page > 1 && bytes_of(plan) > resources.workspace_limit) {
            page = (page + 1) / 2;
            plan = plan_scan(layout, ntotal, page);
        }
        const DeviceArray<Entry> thresholds(resources, plan.padded_nq());
        const DeviceQueries queries(
                resources,
                storage_->encoder,
                plan,
                x + first * d,
                page,
                first,
                make_sign_search(codes, plan, page, k_found),
                thresholds.data());
        Output<float> page_distances(
                resources, distances + first * k, page * k);
        Output<idx_t> page_labels(resources, labels + first * k, page * k);
        const size_t n_reservoirs = plan.n_reservoirs();
        const size_t capacity = reservoir_capacity(plan, k_found);
        const DeviceArray<Entry> entries(resources, n_reservoirs * capacity);
        const DeviceArray<uint32_t> counts(resources, n_reservoirs);
        const Reservoirs reservoirs = {
                k_found,
                int(capacity),
                entries.data(),
                counts.data(),
                thresholds.data()};
        if (ntotal > 0) {
            DeviceCodes of_interest = codes;
            if (queries.signs) {
                of_interest.list = queries.signs->find_candidates(
                        queries.image.data(),
                        queries.factors.data(),
                        thresholds.data());
            } else {
                begin_thresholds(
                        resources, codes, plan, queries, k_found, thresholds);
            }
            scan_top_k(
                    of_interest,
                    plan,
                    {},
                    queries.image.data(),
                    queries.factors.data(),
                    reservoirs,
                    resources.stream());
        }
        merge_slices(
                reservoirs,
                plan,
                page,
                layout.is_l2,
                int(k),
                page_distances.data,
                page_labels.data,
                resources.stream());
        page_distances.deliver();
        page_labels.deliver();
        goes_to_host |=
                page_distances.is_elsewhere() || page_labels.is_elsewhere();
        check_queries(queries.check);
        first += page;
    }
    if (goes_to_host) {
        resources.synchronize();
    }
}

void GpuIndexTurboQuant::range_search(
        idx_t n,
        const float* x,
        float radius,
        RangeSearchResult* result,
        const SearchParameters* params) const {
    const DeviceScope scope(resources_->device);
    const GpuResources& resources = *resources_;
    const DeviceLayout& layout = storage_->layout();
    const Selection selection(
            resources, get_selector(params, "GpuIndexTurboQuant"), ntotal);
    const DeviceCodes codes = storage_->codes(ntotal, selection.rows());
    // no squared distance is below 0, even if its estimate is
    const bool is_empty = ntotal == 0 || (layout.is_l2 && !(radius > 0));
    std::vector<RangeHits> hits(n);
    for (idx_t first = 0; first < n; first += page_queries) {
        const idx_t page = std::min(page_queries, n - first);
        const ScanPlan plan = plan_scan(layout, ntotal, page);
        const DeviceQueries queries(
                resources,
                storage_->encoder,
                plan,
                x + first * d,
                page,
                first,
                is_empty ? nullptr : make_sign_search(codes, plan, page, 0));
        check_queries(queries.check);
        if (is_empty) {
            continue;
        }
        DeviceCodes of_interest = codes;
        if (queries.signs) {
            of_interest.list = queries.signs->find_candidates(
                    last_key(layout.is_l2, radius));
        }
        auto of_page = collect_hits(
                resources,
                layout.is_l2,
                radius,
                plan.padded_nq(),
                [&](const RangeSink& sink) {
                    scan_range(
                            of_interest,
                            plan,
                            {},
                            queries.image.data(),
                            queries.factors.data(),
                            sink,
                            plan.padded_nq(),
                            resources.stream());
                });
        std::move(
                of_page.begin(), of_page.begin() + page, hits.begin() + first);
    }
    fill_result(hits, *result);
}

void GpuIndexTurboQuant::compute_distances(
        idx_t n,
        const float* x,
        float* distances) const {
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "GpuIndexTurboQuant: n = %" PRId64 " is negative", n);
    if (n == 0) {
        return;
    }
    const DeviceScope scope(resources_->device);
    const GpuResources& resources = *resources_;
    const DeviceCodes codes = storage_->codes(ntotal, nullptr);
    // on their way to the host, distances are in the workspace
    const bool on_device = is_on_device(distances, resources.device);
    const size_t bytes = std::max<size_t>(1, ntotal * sizeof(float));
    const idx_t most = on_device
            ? page_queries
            : std::clamp<idx_t>(
                      resources.workspace_limit / bytes, 1, page_queries);
    for (idx_t first = 0; first < n; first += most) {
        const idx_t page = std::min(most, n - first);
        const ScanPlan plan = plan_scan(codes.layout, ntotal, page);
        const DeviceQueries queries(
                resources, storage_->encoder, plan, x + first * d, page, first);
        Output<float> of_page(
                resources, distances + first * ntotal, page * ntotal);
        if (ntotal > 0) {
            scan_distances(
                    codes,
                    plan,
                    {},
                    queries.image.data(),
                    queries.factors.data(),
                    {of_page.data, uint32_t(page), uint32_t(ntotal), false},
                    resources.stream());
        }
        of_page.deliver();
        check_queries(queries.check);
    }
    if (!on_device) {
        resources.synchronize();
    }
}

void GpuIndexTurboQuant::reset() {
    const DeviceScope scope(resources_->device);
    storage_->clear();
    sign_filter_->clear();
    ntotal = 0;
}

size_t GpuIndexTurboQuant::remove_ids(const IDSelector& sel) {
    const DeviceScope scope(resources_->device);
    std::vector<uint32_t> kept;
    const IDSelectorNot others(&sel);
    for_each_bit(IdFilter(others).select(ntotal), [&](size_t i) {
        kept.push_back(uint32_t(i));
    });
    const size_t removed = ntotal - kept.size();
    if (removed > 0) {
        storage_->keep_rows(kept);
        sign_filter_->clear();
        ntotal = kept.size();
    }
    return removed;
}

void GpuIndexTurboQuant::reconstruct(idx_t key, float* recons) const {
    reconstruct_n(key, 1, recons);
}

void GpuIndexTurboQuant::reconstruct_n(idx_t i0, idx_t ni, float* recons)
        const {
    FAISS_THROW_IF_NOT_FMT(
            ni >= 0 && i0 >= 0 && i0 + ni <= ntotal,
            "GpuIndexTurboQuant: ids %" PRId64 " .. %" PRId64
            " are not in 0 .. %" PRId64,
            i0,
            i0 + ni - 1,
            ntotal - 1);
    const DeviceScope scope(resources_->device);
    std::vector<uint8_t> codes(ni * tq.code_size);
    storage_->export_rows(i0, ni, tq.code_size, codes.data());
    std::vector<float> x(ni * d);
    tq.decode(codes.data(), x.data(), ni);
    copy(*resources_, x.data(), recons, x.size());
    resources_->synchronize();
}

size_t GpuIndexTurboQuant::sa_code_size() const {
    return tq.code_size;
}

} // namespace gpu
} // namespace faiss
