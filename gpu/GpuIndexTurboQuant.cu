#include <gpu/GpuIndexTurboQuant.h>

#include <algorithm>
#include <cfloat>
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/search_pages.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/encode.h>
#include <gpu/kernels/scan.h>

namespace faiss {
namespace gpu {

using namespace faiss_turboquant::gpu;
using faiss_turboquant::fill_result;
using faiss_turboquant::for_each_bit;
using faiss_turboquant::get_selector;
using faiss_turboquant::IdFilter;
using faiss_turboquant::page_queries;
using faiss_turboquant::RangeHits;
using faiss_turboquant::Rotation;
using faiss_turboquant::TurboQuantizer;

namespace {

/// bytes of vectors or codes that pass through the workspace at a time
constexpr size_t page_bytes = size_t(64) << 20;

template <class T>
DeviceArray<T> upload(const GpuResources& resources, const T* from, size_t n) {
    DeviceArray<T> array(resources, n);
    if (n > 0) {
        TQ_CUDA(cudaMemcpyAsync(
                array.data(),
                from,
                n * sizeof(T),
                cudaMemcpyDefault,
                resources.stream()));
    }
    return array;
}

template <class T>
DeviceArray<T> upload(
        const GpuResources& resources,
        const std::vector<T>& from) {
    return upload(resources, from.data(), from.size());
}

/// whether kernels on the device can use the pointer
bool is_on_device(const void* pointer, int device) {
    cudaPointerAttributes attributes = {};
    TQ_CUDA(cudaPointerGetAttributes(&attributes, pointer));
    return attributes.type == cudaMemoryTypeManaged ||
            (attributes.type == cudaMemoryTypeDevice &&
             attributes.device == device);
}

/// input as an array on the device: itself if it is there already
template <class T>
struct Input {
    Input(const GpuResources& resources, const T* from, size_t n) : data(from) {
        if (!is_on_device(from, resources.device)) {
            copy = upload(resources, from, n);
            data = copy.data();
        }
    }

    const T* data;
    DeviceArray<T> copy;
};

/// output as an array on the device, and the way to where it belongs
template <class T>
struct Output {
    Output(const GpuResources& resources, T* to, size_t n)
            : resources(resources), to(to), data(to), n(n) {
        if (!is_on_device(to, resources.device)) {
            copy = DeviceArray<T>(resources, n);
            data = copy.data();
        }
    }

    /// host memory is written once the stream has been waited for
    void deliver() {
        if (data != to) {
            TQ_CUDA(cudaMemcpyAsync(
                    to,
                    data,
                    n * sizeof(T),
                    cudaMemcpyDefault,
                    resources.stream()));
        }
    }
    bool is_elsewhere() const {
        return data != to;
    }

    const GpuResources& resources;
    T* to;
    T* data;
    size_t n;
    DeviceArray<T> copy;
};

/** The first rows of an input that are refused. They are read back when the
 * kernels that check have run, whatever else is in the stream by then. */
struct InputCheck {
    explicit InputCheck(const GpuResources& resources)
            : resources(resources),
              device(resources, 1),
              mailbox(resources.take_mailbox()) {
        static_assert(sizeof(Refused) <= GpuResources::Mailbox::size);
        TQ_CUDA(cudaMemsetAsync(
                device.data(), 0xff, sizeof(Refused), resources.stream()));
    }
    ~InputCheck() {
        cudaEventSynchronize(mailbox.written); // no copy is on its way
        resources.give_mailbox(mailbox);
    }
    InputCheck(const InputCheck&) = delete;
    InputCheck& operator=(const InputCheck&) = delete;

    /// after the kernels that check
    void fetch() {
        TQ_CUDA(cudaMemcpyAsync(
                mailbox.memory,
                device.data(),
                sizeof(Refused),
                cudaMemcpyDeviceToHost,
                resources.stream()));
        TQ_CUDA(cudaEventRecord(mailbox.written, resources.stream()));
    }

    /// waits
    const Refused& result() const {
        TQ_CUDA(cudaEventSynchronize(mailbox.written));
        return *static_cast<const Refused*>(mailbox.memory);
    }

    const GpuResources& resources;
    DeviceArray<Refused> device;
    GpuResources::Mailbox mailbox;
};

void check_queries(const InputCheck& check) {
    const Refused& refused = check.result();
    FAISS_THROW_IF_NOT_FMT(
            refused.not_finite == no_row ||
                    refused.not_finite > refused.too_long,
            "TurboQuant: query %" PRIu64 " has a NaN or an infinity",
            refused.not_finite);
    FAISS_THROW_IF_NOT_FMT(
            refused.too_long == no_row,
            "TurboQuant: query %" PRIu64
            " is too long: its squared norm or its "
            "product with the centre exceeds float32",
            refused.too_long);
}

void check_vectors(const InputCheck& check) {
    const Refused& refused = check.result();
    FAISS_THROW_IF_NOT_FMT(
            refused.not_finite == no_row,
            "TurboQuant: vector %" PRIu64 " has a NaN or an infinity",
            refused.not_finite);
    FAISS_THROW_IF_NOT_FMT(
            refused.too_long == no_row,
            "TurboQuant: vector %" PRIu64
            " is too long: its squared norm or its "
            "product with the centre exceeds float32",
            refused.too_long);
}

/// the rows that a search may find
struct Selection {
    /// of an index of n rows
    Selection(
            const GpuResources& resources,
            const SearchParameters* params,
            size_t n)
            : sel(get_selector(params, "GpuIndexTurboQuant")),
              bitmap(sel ? IdFilter(*sel).select(n) : IdFilter::Bitmap()),
              on_device(upload(resources, bitmap)) {}

    /// in words of 32 bits; null: all rows
    const uint32_t* rows() const {
        return reinterpret_cast<const uint32_t*>(on_device.data());
    }

    const IDSelector* sel;
    IdFilter::Bitmap bitmap; ///< has to outlive the upload
    DeviceArray<uint64_t> on_device;
};

/// dst row i is src row rows[i]; 16 bytes at a time
__global__ void gather_rows_kernel(
        const uint4* planes,
        const float* scales,
        const float* offsets,
        const uint32_t* rows,
        size_t n,
        int row_words,
        uint4* planes_out,
        float* scales_out,
        float* offsets_out) {
    for (size_t i = blockIdx.x; i < n; i += gridDim.x) {
        const size_t row = rows[i];
        for (int j = threadIdx.x; j < row_words; j += blockDim.x) {
            planes_out[i * row_words + j] = planes[row * row_words + j];
        }
        if (threadIdx.x == 0) {
            scales_out[i] = scales[row];
            if (offsets) {
                offsets_out[i] = offsets[row];
            }
        }
    }
}

} // namespace

/// the codes, and the quantizer's tables
struct GpuIndexTurboQuant::Storage {
    Storage(const GpuResources& resources, const TurboQuantizer& tq)
            : resources(resources) {
        encoder.layout = DeviceLayout(tq);
        DeviceRotation& rotation = encoder.rotation;
        rotation.d = int(tq.d);
        matrix = upload(resources, tq.rotation.matrix());
        multipliers = upload(resources, tq.rotation.multipliers());
        rotation.matrix = matrix.data();
        rotation.multipliers = multipliers.data();
        for (int r = 0; r < Rotation::rounds; r++) {
            const auto& permutation = tq.rotation.permutation(r);
            permutations[r] = upload(resources, permutation);
            rotation.permutations[r] = permutations[r].data();
            while (!permutation.empty() &&
                   permutation.size() << rotation.group_shifts[r] < tq.d) {
                rotation.group_shifts[r]++;
            }
        }
        centre = upload(resources, tq.centre);
        encoder.centre = centre.data();
        const auto& tables = tq.layout().tables;
        costs = upload(resources, tables.costs);
        choices = upload(resources, tables.choices);
        branches = upload(resources, tables.branches);
        encoder.tables = {costs.data(), choices.data(), branches.data()};
        // the uploads read tq's memory
        resources.synchronize();
    }

    const DeviceLayout& layout() const {
        return encoder.layout;
    }
    size_t capacity() const {
        return scales.size();
    }
    float* offsets_at(size_t row) const {
        return layout().has_offset ? offsets.data() + row : nullptr;
    }
    uint8_t* planes_at(size_t row) const {
        return planes.data() + row * layout().row_size();
    }

    /// room for n rows, of which the first `used` are kept
    void reserve(size_t n, size_t used) {
        if (n <= capacity()) {
            return;
        }
        FAISS_THROW_IF_NOT_FMT(
                n <= size_t(max_ntotal),
                "GpuIndexTurboQuant: %zd vectors are more than %" PRId64,
                n,
                max_ntotal);
        const size_t row_size = layout().row_size();
        DeviceArray<uint8_t> new_planes(resources, n * row_size);
        DeviceArray<float> new_scales(resources, n);
        DeviceArray<float> new_offsets(resources, layout().has_offset ? n : 0);
        copy(planes.data(), new_planes.data(), used * row_size);
        copy(scales.data(), new_scales.data(), used);
        if (layout().has_offset) {
            copy(offsets.data(), new_offsets.data(), used);
        }
        planes = std::move(new_planes);
        scales = std::move(new_scales);
        offsets = std::move(new_offsets);
    }

    template <class T>
    void copy(const T* from, T* to, size_t n) const {
        if (n > 0) {
            TQ_CUDA(cudaMemcpyAsync(
                    to,
                    from,
                    n * sizeof(T),
                    cudaMemcpyDefault,
                    resources.stream()));
        }
    }

    /// codes as the CPU has them, from host memory
    void import(const uint8_t* codes, size_t n, size_t code_size) {
        reserve(n, 0);
        const size_t page = std::max<size_t>(1, page_bytes / code_size);
        for (size_t first = 0; first < n; first += page) {
            const size_t count = std::min(page, n - first);
            const auto bytes = upload(
                    resources, codes + first * code_size, count * code_size);
            import_codes(
                    layout(),
                    bytes.data(),
                    count,
                    planes_at(first),
                    scales.data() + first,
                    offsets_at(first),
                    resources.stream());
        }
        resources.synchronize();
    }

    /// rows first .. first + n - 1 as the CPU has them, to host memory
    void export_rows(size_t first, size_t n, size_t code_size, uint8_t* codes)
            const {
        const size_t page = std::max<size_t>(1, page_bytes / code_size);
        for (size_t done = 0; done < n; done += page) {
            const size_t count = std::min(page, n - done);
            DeviceArray<uint8_t> bytes(resources, count * code_size);
            export_codes(
                    layout(),
                    planes_at(first + done),
                    scales.data() + first + done,
                    offsets_at(first + done),
                    count,
                    bytes.data(),
                    resources.stream());
            copy(bytes.data(), codes + done * code_size, count * code_size);
        }
        resources.synchronize();
    }

    /// Encode x into the rows from `first` on, for which there is room.
    void encode_rows(const float* x, size_t n, size_t first) {
        const int d = layout().d;
        const bool on_device = is_on_device(x, resources.device);
        const size_t page = on_device
                ? n
                : std::max<size_t>(1, page_bytes / (d * sizeof(float)));
        const size_t of_block = encode_workspace_of_block(layout());
        int blocks = encode_blocks(layout(), resources.device, n);
        if (of_block > 0) {
            blocks = int(std::clamp<size_t>(
                    resources.workspace_limit / of_block, 1, blocks));
        }
        DeviceArray<uint8_t> workspace(resources, blocks * of_block);
        InputCheck check(resources);
        for (size_t done = 0; done < n; done += page) {
            const size_t count = std::min(page, n - done);
            const Input<float> input(resources, x + done * d, count * d);
            encode(encoder,
                   input.data,
                   count,
                   done,
                   planes_at(first + done),
                   scales.data() + first + done,
                   offsets_at(first + done),
                   check.device.data(),
                   workspace.data(),
                   int(std::min<size_t>(blocks, count)),
                   resources.stream());
        }
        check.fetch();
        check_vectors(check);
    }

    DeviceCodes codes(size_t n, const uint32_t* selected) const {
        DeviceCodes codes;
        codes.layout = layout();
        codes.planes = planes.data();
        codes.scales = scales.data();
        codes.offsets = offsets_at(0);
        codes.selected = selected;
        codes.n = uint32_t(n);
        return codes;
    }

    /// codes of `rows`, ascending, move to the front
    void keep_rows(const std::vector<uint32_t>& rows) {
        const size_t row_size = layout().row_size();
        const size_t page = std::max<size_t>(1, page_bytes / row_size);
        const size_t most = std::min(page, rows.size());
        DeviceArray<uint8_t> planes_out(resources, most * row_size);
        DeviceArray<float> scales_out(resources, most);
        DeviceArray<float> offsets_out(
                resources, layout().has_offset ? most : 0);
        const auto on_device = upload(resources, rows);
        for (size_t first = 0; first < rows.size(); first += page) {
            const size_t count = std::min(page, rows.size() - first);
            gather_rows_kernel<<<
                    int(std::min<size_t>(count, 65536)),
                    64,
                    0,
                    resources.stream()>>>(
                    reinterpret_cast<const uint4*>(planes.data()),
                    scales.data(),
                    offsets_at(0),
                    on_device.data() + first,
                    count,
                    int(row_size / sizeof(uint4)),
                    reinterpret_cast<uint4*>(planes_out.data()),
                    scales_out.data(),
                    offsets_out.data());
            TQ_CUDA(cudaGetLastError());
            copy(planes_out.data(), planes_at(first), count * row_size);
            copy(scales_out.data(), scales.data() + first, count);
            if (layout().has_offset) {
                copy(offsets_out.data(), offsets_at(first), count);
            }
        }
        resources.synchronize(); // `rows` has been read
    }

    const GpuResources& resources;
    Encoder encoder;
    DeviceArray<float> matrix, multipliers, centre;
    DeviceArray<int32_t> permutations[Rotation::rounds];
    DeviceArray<uint8_t> costs, choices, branches;
    DeviceArray<uint8_t> planes; ///< (capacity, row_size)
    DeviceArray<float> scales;   ///< (capacity,)
    DeviceArray<float> offsets;  ///< (capacity,) or empty
};

namespace {

/// queries made ready on the device, in the order that a plan wants
struct DeviceQueries {
    DeviceQueries(
            const GpuResources& resources,
            const Encoder& encoder,
            const ScanPlan& plan,
            const float* x,
            size_t nq,
            size_t first_row)
            : input(resources, x, nq * encoder.layout.d),
              image(resources, plan.padded_nq() * encoder.layout.dims),
              factors(resources, plan.padded_nq()),
              check(resources) {
        prepare_queries(
                encoder,
                input.data,
                nq,
                first_row,
                plan.units,
                plan.uses_wgmma ? plan.group_size() : 0,
                plan.padded_nq(),
                image.data(),
                factors.data(),
                check.device.data(),
                resources.stream());
        check.fetch();
    }

    Input<float> input;
    DeviceArray<uint8_t> image;
    DeviceArray<DeviceQueryFactors> factors;
    InputCheck check;
};

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
    storage_ = std::make_unique<Storage>(*resources_, tq);
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
    auto storage = std::make_unique<Storage>(*resources_, index->tq);
    storage->import(index->codes.data(), index->ntotal, index->code_size);
    tq = index->tq;
    storage_ = std::move(storage);
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
    index->code_size = tq.code_size;
    index->d = d;
    index->ntotal = ntotal;
    index->metric_type = metric_type;
    index->metric_arg = metric_arg;
    index->is_trained = true;
}

void GpuIndexTurboQuant::reserve(idx_t n) {
    const DeviceScope scope(resources_->device);
    storage_->reserve(n, ntotal);
}

void GpuIndexTurboQuant::train(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(
            ntotal == 0,
            "GpuIndexTurboQuant: train sets the centre and is refused once the "
            "index holds vectors; it holds %" PRId64,
            ntotal);
    const DeviceScope scope(resources_->device);
    TurboQuantizer trained = tq;
    if (n > 0 && is_on_device(x, resources_->device)) {
        std::vector<float> on_host(n * d);
        storage_->copy(x, on_host.data(), on_host.size());
        resources_->synchronize();
        trained.train(n, on_host.data());
    } else {
        trained.train(n, x);
    }
    storage_ = std::make_unique<Storage>(*resources_, trained);
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
            storage_->reserve(wanted, ntotal);
        }
    }
    storage_->encode_rows(x, n, ntotal);
    ntotal += n;
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
    const Selection selection(resources, params, ntotal);
    const DeviceCodes codes = storage_->codes(ntotal, selection.rows());
    const int k_found = int(std::min(k, ntotal));
    const size_t capacity = reservoir_capacity(k_found);
    const auto reservoir_bytes = [&](const ScanPlan& plan) {
        return plan.n_slices * plan.padded_nq() * capacity * sizeof(Entry);
    };
    bool goes_to_host = selection.sel != nullptr; // its upload has to end first

    for (idx_t first = 0; first < n;) {
        idx_t page = std::min(page_queries, n - first);
        ScanPlan plan = plan_scan(layout, ntotal, page, resources.device);
        while (page > 1 && reservoir_bytes(plan) > resources.workspace_limit) {
            page = (page + 1) / 2;
            plan = plan_scan(layout, ntotal, page, resources.device);
        }
        const DeviceQueries queries(
                resources, storage_->encoder, plan, x + first * d, page, first);
        Output<float> page_distances(
                resources, distances + first * k, page * k);
        Output<idx_t> page_labels(resources, labels + first * k, page * k);
        const size_t n_reservoirs = plan.n_slices * plan.padded_nq();
        const DeviceArray<Entry> entries(resources, n_reservoirs * capacity);
        const DeviceArray<uint32_t> counts(resources, n_reservoirs);
        const DeviceArray<Entry> thresholds(resources, plan.padded_nq());
        const Reservoirs reservoirs = {
                k_found,
                int(capacity),
                entries.data(),
                counts.data(),
                thresholds.data()};
        if (ntotal > 0) {
            scan_top_k(
                    codes,
                    plan,
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
    const Selection selection(resources, params, ntotal);
    const DeviceCodes codes = storage_->codes(ntotal, selection.rows());
    // no squared distance is below 0, even if its estimate is
    const bool is_empty = ntotal == 0 || (layout.is_l2 && !(radius > 0));
    RangeSink sink;
    sink.last = std::nextafter(layout.is_l2 ? radius : -radius, -INFINITY);

    std::vector<RangeHits> hits(n);
    for (idx_t first = 0; first < n; first += page_queries) {
        const idx_t page = std::min(page_queries, n - first);
        const ScanPlan plan = plan_scan(layout, ntotal, page, resources.device);
        const DeviceQueries queries(
                resources, storage_->encoder, plan, x + first * d, page, first);
        check_queries(queries.check);
        if (is_empty) {
            continue;
        }
        // count, then collect
        const DeviceArray<unsigned long long> device_counts(
                resources, plan.padded_nq());
        sink.counts = device_counts.data();
        const auto scan = [&] {
            scan_range(
                    codes,
                    plan,
                    queries.image.data(),
                    queries.factors.data(),
                    sink,
                    resources.stream());
        };
        sink.entries = nullptr;
        scan();
        std::vector<unsigned long long> counts(plan.padded_nq());
        storage_->copy(device_counts.data(), counts.data(), counts.size());
        resources.synchronize();

        std::vector<unsigned long long> begins(counts.size());
        size_t total = 0;
        for (size_t q = 0; q < counts.size(); q++) {
            begins[q] = total;
            total += counts[q];
        }
        const DeviceArray<Entry> entries(resources, total);
        const auto device_begins = upload(resources, begins);
        sink.entries = entries.data();
        sink.begins = device_begins.data();
        if (total > 0) {
            scan();
        }
        std::vector<Entry> all(total);
        storage_->copy(entries.data(), all.data(), total);
        resources.synchronize();
        for (idx_t q = 0; q < page; q++) {
            const auto begin = all.begin() + begins[q];
            const auto end = begin + counts[q];
            std::sort(begin, end, [](Entry a, Entry b) {
                return uint32_t(a) < uint32_t(b);
            });
            for (auto entry = begin; entry < end; entry++) {
                const float key = entry_key(*entry);
                hits[first + q].emplace_back(
                        uint32_t(*entry),
                        0.0f + (layout.is_l2 ? std::max(key, 0.0f) : -key));
            }
        }
    }
    fill_result(hits, *result);
}

void GpuIndexTurboQuant::reset() {
    const DeviceScope scope(resources_->device);
    storage_->planes = {};
    storage_->scales = {};
    storage_->offsets = {};
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
    storage_->copy(x.data(), recons, x.size());
    resources_->synchronize();
}

size_t GpuIndexTurboQuant::sa_code_size() const {
    return tq.code_size;
}

} // namespace gpu
} // namespace faiss
