#include <gpu/GpuIndexIVFTurboQuant.h>

#include <algorithm>
#include <cinttypes>
#include <numeric>
#include <typeinfo>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/IdFilter.h>
#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/search_pages.h>
#include <gpu/CodeStorage.h>
#include <gpu/GpuIndexTurboQuant.h>
#include <gpu/ListProbes.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/range_hits.h>
#include <gpu/transfers.h>

namespace faiss {
namespace gpu {

using namespace faiss_turboquant::gpu;
using faiss_turboquant::check_keys;
using faiss_turboquant::clone_index;
using faiss_turboquant::fill_result;
using faiss_turboquant::for_each_bit;
using faiss_turboquant::get_ivf_parameters;
using faiss_turboquant::get_nprobe;
using faiss_turboquant::IdFilter;
using faiss_turboquant::page_queries;
using faiss_turboquant::RangeHits;
using faiss_turboquant::TurboQuantizer;

namespace {

constexpr const char* index_type = "GpuIndexIVFTurboQuant"; ///< for messages

__global__ void scatter_ids_kernel(
        const int64_t* from,
        const uint32_t* rows,
        size_t n,
        int64_t* ids) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
        ids[rows[i]] = from[i];
    }
}

const IVFSearchParameters* check_params(const SearchParameters* params) {
    const auto* ivf = get_ivf_parameters(params, index_type);
    FAISS_THROW_IF_NOT_MSG(
            !ivf || ivf->max_codes == 0,
            "GpuIndexIVFTurboQuant: max_codes is not supported");
    return ivf;
}

/** Where the vectors of each list are. The rows of a list follow each other in
 * the order in which they were added, then there is room for more. */
struct Lists {
    explicit Lists(size_t nlist) : begins(nlist), sizes(nlist), rooms(nlist) {}

    /// f(list, row) for each vector
    template <class F>
    void for_each_row(F f) const {
        for (size_t l = 0; l < sizes.size(); l++) {
            for (uint32_t i = 0; i < sizes[l]; i++) {
                f(l, begins[l] + i);
            }
        }
    }

    std::vector<uint32_t> begins, sizes, rooms; ///< (nlist,), in rows
    std::vector<idx_t> ids; ///< of rows; unspecified where there is no vector
};

/// the rows of the vectors of each list
std::vector<std::vector<uint32_t>> rows_of_lists(const Lists& lists) {
    std::vector<std::vector<uint32_t>> rows(lists.sizes.size());
    lists.for_each_row([&](size_t l, uint32_t row) { rows[l].push_back(row); });
    return rows;
}

} // namespace

/// all but what Index has
struct GpuIndexIVFTurboQuant::State {
    State(const GpuResources& resources,
          std::unique_ptr<IndexIVFTurboQuant> parameters)
            : resources(resources),
              parameters(std::move(parameters)),
              storage(resources, this->parameters->tq),
              lists(this->parameters->nlist),
              device_begins(
                      resources,
                      this->parameters->nlist,
                      MemoryUse::index),
              device_sizes(
                      resources,
                      this->parameters->nlist,
                      MemoryUse::index) {}

    /// after a change of where they are, or of their sizes
    void upload_lists() {
        const size_t nlist = lists.sizes.size();
        copy(resources, lists.begins.data(), device_begins.data(), nlist);
        copy(resources, lists.sizes.data(), device_sizes.data(), nlist);
    }

    /// @param index  one whose centres are those of `parameters`
    void upload_centres(const IndexIVFTurboQuant& index) {
        const size_t d = index.d, dims = storage.layout().dims;
        const auto padded = index.rotated_centres();
        const size_t stride = index.tq.rotated_dim();
        std::vector<float> rotated(index.nlist * dims), plain(index.nlist * d);
        for (size_t l = 0; l < index.nlist; l++) {
            std::copy_n(padded->data() + l * stride, d, &rotated[l * dims]);
            index.get_centre(l, &plain[l * d]);
        }
        rotated_centres = upload(resources, rotated, MemoryUse::index);
        centres = upload(resources, plain, MemoryUse::index);
        resources.synchronize();
    }

    /** Rearrange rows.
     * @param rows   of each list, those to keep, in their new order
     * @param rooms  of each list, at least so many */
    void rearrange(
            const std::vector<std::vector<uint32_t>>& rows,
            std::vector<uint32_t> rooms) {
        const size_t nlist = rows.size();
        Lists to(nlist);
        size_t total = 0;
        for (size_t l = 0; l < nlist; l++) {
            to.begins[l] = uint32_t(total);
            to.sizes[l] = uint32_t(rows[l].size());
            total += rooms[l];
            FAISS_THROW_IF_NOT_FMT(
                    total < CodeStorage::max_rows,
                    "GpuIndexIVFTurboQuant: %zd vectors are too many",
                    total);
        }
        to.rooms = std::move(rooms);
        // one more, for vectors that have no list
        to.ids.resize(total + 1, -1);
        std::vector<uint32_t> sources(total + 1, CodeStorage::no_source);
        for (size_t l = 0; l < nlist; l++) {
            for (size_t i = 0; i < rows[l].size(); i++) {
                sources[to.begins[l] + i] = rows[l][i];
                to.ids[to.begins[l] + i] = lists.ids[rows[l][i]];
            }
        }
        DeviceArray<int64_t> ids = upload(resources, to.ids, MemoryUse::index);
        storage.rearrange(sources);
        lists = std::move(to);
        device_ids = std::move(ids);
        upload_lists();
    }

    /// room for so many vectors in each list
    void make_room(const std::vector<uint32_t>& sizes) {
        bool has_room = !lists.ids.empty();
        std::vector<uint32_t> rooms = lists.rooms;
        for (size_t l = 0; l < sizes.size(); l++) {
            has_room &= sizes[l] <= rooms[l];
            rooms[l] = std::max(rooms[l], sizes[l]);
        }
        if (has_room) {
            return;
        }
        // grow in proportion if there is room for it
        std::vector<uint32_t> more = rooms;
        for (size_t l = 0; l < sizes.size(); l++) {
            if (lists.sizes[l] > 0 && sizes[l] > lists.rooms[l]) {
                more[l] += rooms[l] / 4 + 1;
            }
        }
        const auto rows = rows_of_lists(lists);
        try {
            rearrange(rows, more);
        } catch (const FaissException&) {
            rearrange(rows, rooms);
        }
    }

    const GpuResources& resources;
    std::unique_ptr<IndexIVFTurboQuant> parameters;
    CodeStorage storage;
    Lists lists;
    DeviceArray<int64_t> device_ids;                   ///< Lists::ids
    DeviceArray<uint32_t> device_begins, device_sizes; ///< likewise
    // once they are known
    DeviceArray<float> centres;         ///< (nlist, d)
    DeviceArray<float> rotated_centres; ///< (nlist, dims)
};

/// a page of queries on its way to the kernels
struct GpuIndexIVFTurboQuant::Search {
    /// x: on the device
    Search(const State& state,
           const float* x,
           size_t nq,
           size_t first_row,
           DeviceProbes probes_in)
            : state(state),
              probes(std::move(probes_in)),
              rotated(state.resources, nq * layout().dims),
              image(state.resources, probes.n_slots * layout().dims),
              factors(state.resources, probes.n_slots),
              check(state.resources) {
        const cudaStream_t stream = state.resources.stream();
        rotate_queries(
                state.storage.encoder,
                x,
                nq,
                first_row,
                rotated.data(),
                check.refused(),
                stream);
        check.fetch();
        if (is_empty()) {
            return;
        }
        prepare_residual_queries(
                layout(),
                {rotated.data(),
                 state.rotated_centres.data(),
                 probes.keys,
                 probes.nprobe,
                 probes.parts().probe_of_slot},
                probes.n_slots,
                probes.plan.image_order(),
                image.data(),
                factors.data(),
                stream);
    }

    const DeviceLayout& layout() const {
        return state.storage.layout();
    }
    /// whether there is nothing to scan
    bool is_empty() const {
        return probes.n_slots == 0;
    }

    /** What is of interest at first: as far as the first rows of the lists
     * tell, if they are a sample.
     * @param keys        (nq, nprobe, sample_rows), written
     * @param thresholds  (nq,), written */
    SampleOfLists begin_thresholds(
            const DeviceCodes& codes,
            int k,
            size_t nq,
            const DeviceArray<float>& keys,
            const DeviceArray<Entry>& thresholds) const {
        const cudaStream_t stream = state.resources.stream();
        const uint32_t rows = probes.sample_rows;
        if (rows == 0 || is_empty()) {
            reset_thresholds(thresholds.data(), nq, stream);
            return {};
        }
        // NaN, where a list has no row
        TQ_CUDA(cudaMemsetAsync(
                keys.data(), 0xff, keys.size() * sizeof(float), stream));
        scan_distances(
                codes,
                probes.plan,
                probes.sample_tasks(),
                image.data(),
                factors.data(),
                {keys.data(), uint32_t(nq * probes.nprobe), rows, true},
                stream);
        find_thresholds(
                keys.data(),
                probes.nprobe * rows,
                k,
                nq,
                thresholds.data(),
                stream);
        return {keys.data(),
                rows,
                probes.nprobe,
                probes.keys,
                state.device_begins.data()};
    }

    const State& state;
    DeviceProbes probes;
    DeviceArray<float> rotated;
    DeviceArray<uint8_t> image;
    DeviceArray<DeviceQueryFactors> factors;
    InputCheck check;
};

GpuIndexIVFTurboQuant::GpuIndexIVFTurboQuant(
        std::shared_ptr<Resources> resources,
        Index* quantizer,
        idx_t d,
        idx_t nlist,
        int nbits,
        MetricType metric,
        faiss_turboquant::RotationType rotation_type,
        uint64_t seed,
        int memory)
        : Index(d, metric), resources_(std::move(resources)) {
    FAISS_THROW_IF_NOT_MSG(
            resources_, "GpuIndexIVFTurboQuant: the resources are null");
    FAISS_THROW_IF_NOT_MSG(
            quantizer, "GpuIndexIVFTurboQuant: the quantizer is null");
    const DeviceScope scope(resources_->device);
    set_state(std::make_unique<State>(
            *resources_,
            std::make_unique<IndexIVFTurboQuant>(
                    quantizer,
                    d,
                    nlist,
                    nbits,
                    metric,
                    true,
                    rotation_type,
                    seed,
                    memory)));
}

GpuIndexIVFTurboQuant::GpuIndexIVFTurboQuant(
        std::shared_ptr<Resources> resources,
        const IndexIVFTurboQuant& index)
        : Index(index.d, index.metric_type), resources_(std::move(resources)) {
    FAISS_THROW_IF_NOT_MSG(
            resources_, "GpuIndexIVFTurboQuant: the resources are null");
    copyFrom(&index);
}

GpuIndexIVFTurboQuant::~GpuIndexIVFTurboQuant() = default;

int GpuIndexIVFTurboQuant::getDevice() const {
    return resources_->device;
}

std::shared_ptr<GpuResources> GpuIndexIVFTurboQuant::getResources() const {
    return resources_;
}

const IndexIVFTurboQuant& GpuIndexIVFTurboQuant::parameters() const {
    return *state_->parameters;
}

size_t GpuIndexIVFTurboQuant::get_list_size(idx_t list_no) const {
    FAISS_THROW_IF_NOT_FMT(
            list_no >= 0 && list_no < idx_t(parameters().nlist),
            "GpuIndexIVFTurboQuant: there is no list %" PRId64,
            list_no);
    return state_->lists.sizes[list_no];
}

void GpuIndexIVFTurboQuant::set_state(std::unique_ptr<State> state) {
    state_ = std::move(state);
    const IndexIVFTurboQuant& parameters = *state_->parameters;
    d = parameters.d;
    metric_type = parameters.metric_type;
    metric_arg = parameters.metric_arg;
    is_trained = parameters.is_trained;
    nprobe = parameters.nprobe;
    ntotal = 0;
}

void GpuIndexIVFTurboQuant::copyFrom(const IndexIVFTurboQuant* index) {
    FAISS_THROW_IF_NOT_MSG(index, "GpuIndexIVFTurboQuant: the index is null");
    const DeviceScope scope(resources_->device);
    std::unique_ptr<Index> quantizer;
    if (auto tq = dynamic_cast<const IndexTurboQuant*>(index->quantizer)) {
        quantizer = std::make_unique<GpuIndexTurboQuant>(resources_, *tq);
    } else {
        quantizer.reset(clone_index(index->quantizer));
    }
    const TurboQuantizer& tq = index->tq;
    auto parameters = std::make_unique<IndexIVFTurboQuant>(
            quantizer.get(),
            index->d,
            index->nlist,
            tq.nbits,
            index->metric_type,
            true,
            tq.rotation.type,
            tq.rotation.seed,
            tq.memory(),
            tq.codec);
    quantizer.release();
    parameters->own_fields = true;
    parameters->tq = tq;
    parameters->centre_scales = index->centre_scales;
    parameters->cp = index->cp;
    parameters->quantizer_trains_alone = index->quantizer_trains_alone;
    parameters->is_trained = index->is_trained;
    parameters->metric_arg = index->metric_arg;
    parameters->nprobe = index->nprobe;
    auto state = std::make_unique<State>(*resources_, std::move(parameters));
    if (index->is_trained) {
        state->upload_centres(*index);
    }

    const InvertedLists& from = *index->invlists;
    std::vector<uint32_t> sizes(index->nlist);
    for (size_t l = 0; l < index->nlist; l++) {
        const size_t size = from.list_size(l);
        FAISS_THROW_IF_NOT_FMT(
                size < CodeStorage::max_rows,
                "GpuIndexIVFTurboQuant: list %zd has %zd vectors",
                l,
                size);
        sizes[l] = uint32_t(size);
    }
    state->make_room(sizes);
    Lists& lists = state->lists;
    for (size_t l = 0; l < index->nlist; l++) {
        if (sizes[l] == 0) {
            continue;
        }
        InvertedLists::ScopedCodes codes(&from, l);
        InvertedLists::ScopedIds ids(&from, l);
        state->storage.import(
                codes.get(), sizes[l], index->code_size, lists.begins[l]);
        std::copy_n(ids.get(), sizes[l], &lists.ids[lists.begins[l]]);
    }
    lists.sizes = sizes;
    state->upload_lists();
    copy(*resources_,
         lists.ids.data(),
         state->device_ids.data(),
         lists.ids.size());
    resources_->synchronize();
    set_state(std::move(state));
    ntotal = index->ntotal;
}

void GpuIndexIVFTurboQuant::copyTo(IndexIVFTurboQuant* index) const {
    FAISS_THROW_IF_NOT_MSG(index, "GpuIndexIVFTurboQuant: the index is null");
    const DeviceScope scope(resources_->device);
    const IndexIVFTurboQuant& from = parameters();
    std::unique_ptr<Index> quantizer;
    if (auto gpu = dynamic_cast<const GpuIndexTurboQuant*>(from.quantizer)) {
        auto on_cpu = std::make_unique<IndexTurboQuant>();
        gpu->copyTo(on_cpu.get());
        quantizer = std::move(on_cpu);
    } else {
        quantizer.reset(clone_index(from.quantizer));
    }
    const Lists& lists = state_->lists;
    auto invlists =
            std::make_unique<ArrayInvertedLists>(from.nlist, from.code_size);
    for (size_t l = 0; l < from.nlist; l++) {
        const size_t n = lists.sizes[l];
        if (n == 0) {
            continue;
        }
        std::vector<uint8_t> codes(n * from.code_size);
        state_->storage.export_rows(
                lists.begins[l], n, from.code_size, codes.data());
        invlists->add_entries(l, n, &lists.ids[lists.begins[l]], codes.data());
    }
    if (index->own_fields) {
        delete index->quantizer;
    }
    index->quantizer = quantizer.release();
    index->own_fields = true;
    index->tq = from.tq;
    index->code_size = from.code_size;
    index->centre_scales = from.centre_scales;
    index->centres_changed();
    index->nlist = from.nlist;
    index->cp = from.cp;
    index->quantizer_trains_alone = from.quantizer_trains_alone;
    index->replace_invlists(invlists.release(), true);
    index->direct_map = DirectMap();
    index->d = d;
    index->metric_type = metric_type;
    index->metric_arg = metric_arg;
    index->is_trained = is_trained;
    index->nprobe = nprobe;
    index->ntotal = ntotal;
}

void GpuIndexIVFTurboQuant::train(idx_t n, const float* x) {
    const DeviceScope scope(resources_->device);
    const HostInput on_host(*resources_, x, n * d);
    IndexIVFTurboQuant& parameters = *state_->parameters;
    // it decides what train may change
    parameters.ntotal = ntotal;
    parameters.train(n, on_host.data);
    parameters.ntotal = 0;
    state_->upload_centres(parameters);
    is_trained = true;
}

/** The lists that are nearest to vectors, (n, nprobe).
 * @param x  (n, d), on the host or the device */
std::vector<idx_t> GpuIndexIVFTurboQuant::find_lists(
        idx_t n,
        const float* x,
        size_t nprobe,
        const SearchParameters* quantizer_params) const {
    const Index& quantizer = *parameters().quantizer;
    std::vector<idx_t> keys(n * nprobe);
    std::vector<float> distances(keys.size());
    const auto search = [&](const float* from) {
        quantizer.search(
                n,
                from,
                nprobe,
                distances.data(),
                keys.data(),
                quantizer_params);
    };
    if (dynamic_cast<const GpuIndexTurboQuant*>(&quantizer)) {
        search(x);
    } else {
        search(HostInput(*resources_, x, n * d).data);
    }
    check_keys(keys.data(), keys.size(), parameters().nlist, index_type);
    return keys;
}

void GpuIndexIVFTurboQuant::add(idx_t n, const float* x) {
    add_with_ids(n, x, nullptr);
}

void GpuIndexIVFTurboQuant::add_with_ids(
        idx_t n,
        const float* x,
        const idx_t* xids) {
    FAISS_THROW_IF_NOT_MSG(
            is_trained, "GpuIndexIVFTurboQuant: the index is not trained");
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "GpuIndexIVFTurboQuant: n = %" PRId64 " is negative", n);
    if (n == 0) {
        return;
    }
    const DeviceScope scope(resources_->device);
    if (ntotal == 0) {
        // the quantizer may have been trained, or replaced, elsewhere
        state_->parameters->centres_changed();
        state_->upload_centres(parameters());
    }
    const std::vector<idx_t> keys = find_lists(n, x, 1, nullptr);
    std::vector<uint32_t> sizes = state_->lists.sizes;
    for (const idx_t key : keys) {
        if (key >= 0) {
            sizes[key]++;
        }
    }
    state_->make_room(sizes);

    Lists& lists = state_->lists;
    std::vector<uint32_t> next = lists.sizes;
    // of vectors without a list: the last row
    std::vector<uint32_t> rows(n, uint32_t(lists.ids.size() - 1));
    std::vector<uint32_t> list_nos(n);
    for (idx_t i = 0; i < n; i++) {
        if (keys[i] >= 0) {
            list_nos[i] = uint32_t(keys[i]);
            rows[i] = lists.begins[keys[i]] + next[keys[i]]++;
        }
    }
    const auto device_rows = upload(*resources_, rows);
    const auto device_list_nos = upload(*resources_, list_nos);
    const CodeStorage::Placement placement = {
            device_rows.data(), device_list_nos.data(), state_->centres.data()};
    state_->storage.encode_rows(x, n, 0, &placement);

    std::vector<idx_t> ids(n);
    for (idx_t i = 0; i < n; i++) {
        ids[i] = xids ? xids[i] : ntotal + i;
    }
    const auto new_ids = upload(*resources_, ids);
    constexpr int threads = 256;
    const unsigned blocks = ceil_div<idx_t>(n, threads);
    run({blocks, threads, 0, resources_->stream()},
        scatter_ids_kernel,
        new_ids.data(),
        device_rows.data(),
        size_t(n),
        state_->device_ids.data());
    resources_->synchronize();
    for (idx_t i = 0; i < n; i++) {
        lists.ids[rows[i]] = ids[i];
    }
    lists.sizes = sizes;
    state_->upload_lists();
    ntotal += n;
}

/// the same on the device.
/// input: x, on the device
DeviceArray<idx_t> GpuIndexIVFTurboQuant::find_lists_on_device(
        idx_t n,
        const float* x,
        const float* input,
        size_t nprobe,
        const SearchParameters* quantizer_params) const {
    DeviceArray<idx_t> keys(*resources_, n * nprobe);
    const auto* quantizer =
            dynamic_cast<const GpuIndexTurboQuant*>(parameters().quantizer);
    if (quantizer && quantizer->getResources() == resources_ &&
        quantizer->ntotal == idx_t(parameters().nlist)) {
        const DeviceArray<float> distances(*resources_, n * nprobe);
        quantizer->search(
                n,
                input,
                nprobe,
                distances.data(),
                keys.data(),
                quantizer_params);
    } else {
        const auto on_host = find_lists(n, x, nprobe, quantizer_params);
        copy(*resources_, on_host.data(), keys.data(), on_host.size());
        resources_->synchronize();
    }
    return keys;
}

/** Whether queries are few enough to be searched for one by one, without
 * looking on the host at the lists that they probe. */
bool GpuIndexIVFTurboQuant::is_direct(idx_t n, size_t nprobe) const {
    constexpr size_t most_probes = 4096;
    const size_t n_probes = n * nprobe;
    return ntotal > 0 && n_probes <= most_probes &&
            (n == 1 || n_probes <= parameters().nlist);
}

template <class F>
void GpuIndexIVFTurboQuant::for_each_page(
        idx_t n,
        const float* x,
        int k,
        const IVFSearchParameters* params,
        F f) const {
    FAISS_THROW_IF_NOT_MSG(
            is_trained, "GpuIndexIVFTurboQuant: the index is not trained");
    const size_t nprobe =
            get_nprobe(params, this->nprobe, parameters().nlist, index_type);
    const DeviceLayout& layout = state_->storage.layout();
    // the coarse quantizer has some of it, too
    const size_t limit = resources_->workspace_limit / 4 * 3;
    const auto size_of = [&](const ScanPlan& plan,
                             size_t n_slots,
                             size_t n_reservoirs,
                             bool has_sample) {
        const size_t capacity =
                k > 0 ? reservoir_capacity(plan, k, has_sample) : 0;
        return n_reservoirs * (capacity * sizeof(Entry) + sizeof(uint32_t)) +
                n_slots * (layout.dims + sizeof(DeviceQueryFactors));
    };
    // x and keys: of queries first .. first + nq - 1, on the device
    const auto search_directly =
            [&](const float* x, const idx_t* keys, idx_t first, idx_t nq) {
                const DirectPlan direct(layout, nq * nprobe);
                const size_t n_slots = nq * nprobe * direct.plan.group_size();
                const size_t n_reservoirs = nq * nprobe * direct.n_slices;
                if (direct.plan.stream.warps == 0 ||
                    size_of(direct.plan, n_slots, n_reservoirs, false) >
                            limit) {
                    return false;
                }
                DeviceProbes probes(
                        *resources_,
                        direct,
                        keys,
                        nq,
                        nprobe,
                        state_->device_begins.data(),
                        state_->device_sizes.data());
                f(first, nq, Search(*state_, x, nq, first, std::move(probes)));
                return true;
            };
    // of them, as many as there is room for; how many these were
    const auto search_grouped = [&](const float* x,
                                    const idx_t* keys,
                                    idx_t first,
                                    idx_t nq) {
        const DeviceArray<uint32_t> queries(*resources_, parameters().nlist);
        for (;;) {
            const auto of_lists = count_queries(
                    *resources_,
                    keys,
                    nq * nprobe,
                    state_->device_sizes.data(),
                    parameters().nlist,
                    queries.data());
            const GroupedPlan grouped(
                    layout,
                    state_->lists.begins,
                    state_->lists.sizes,
                    of_lists,
                    k > 0 ? nprobe : 0);
            const size_t size = size_of(grouped.plan,
                                        grouped.n_slots,
                                        grouped.n_reservoirs(),
                                        grouped.sample_rows > 0) +
                    nq * nprobe * grouped.sample_rows * sizeof(float);
            if (nq > 1 && size > limit) {
                const double pages = choose_pages(
                        layout,
                        state_->lists.sizes,
                        of_lists,
                        double(size) / limit);
                nq = std::max<idx_t>(1, nq / pages);
                continue;
            }
            DeviceProbes probes(
                    *resources_,
                    grouped,
                    keys,
                    nq,
                    nprobe,
                    state_->device_sizes.data(),
                    queries.data());
            f(first, nq, Search(*state_, x, nq, first, std::move(probes)));
            return nq;
        }
    };
    // The more queries, the more of them share a list.
    constexpr idx_t most_queries = 4 * page_queries;
    const size_t probe_size = sizeof(idx_t) + sizeof(float);
    const idx_t most = std::clamp<idx_t>(
            limit / 4 / (nprobe * probe_size), 1, most_queries);
    const idx_t page = ceil_div(n, ceil_div(std::max<idx_t>(1, n), most));
    for (idx_t begin = 0; begin < n; begin += page) {
        const idx_t end = std::min(n, begin + page);
        const Input<float> input(*resources_, x + begin * d, (end - begin) * d);
        const DeviceArray<idx_t> keys = find_lists_on_device(
                end - begin,
                x + begin * d,
                input.data,
                nprobe,
                params ? params->quantizer_params : nullptr);
        idx_t size = end - begin;
        for (idx_t first = begin; first < end; first += size) {
            size = std::min(size, end - first);
            const float* rest = input.data + (first - begin) * d;
            const idx_t* keys_of_rest = keys.data() + (first - begin) * nprobe;
            if (!is_direct(size, nprobe) ||
                !search_directly(rest, keys_of_rest, first, size)) {
                size = search_grouped(rest, keys_of_rest, first, size);
            }
        }
    }
}

void GpuIndexIVFTurboQuant::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const SearchParameters* params_in) const {
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && k <= max_k,
            "GpuIndexIVFTurboQuant: k = %" PRId64 " is not in 1 .. %" PRId64,
            k,
            max_k);
    const IVFSearchParameters* params = check_params(params_in);
    const GpuResources& resources = *resources_;
    const DeviceScope scope(resources.device);
    const Selection selection(
            resources, params ? params->sel : nullptr, state_->lists.ids);
    const int k_found = int(std::min(k, ntotal));
    for_each_page(
            n,
            x,
            k_found,
            params,
            [&](idx_t first, idx_t page, const Search& search) {
                const DeviceProbes& probes = search.probes;
                const size_t capacity = reservoir_capacity(
                        probes.plan, k_found, probes.sample_rows > 0);
                const DeviceArray<Entry> entries(
                        resources, probes.n_reservoirs * capacity);
                const DeviceArray<uint32_t> counts(
                        resources, probes.n_reservoirs);
                const DeviceArray<Entry> thresholds(resources, page);
                const Reservoirs reservoirs = {
                        k_found,
                        int(capacity),
                        entries.data(),
                        counts.data(),
                        thresholds.data()};
                const DeviceArray<float> sample_keys(
                        resources, page * probes.nprobe * probes.sample_rows);
                Output<float> page_distances(
                        resources, distances + first * k, page * k);
                Output<idx_t> page_labels(
                        resources, labels + first * k, page * k);
                const DeviceCodes codes =
                        state_->storage.codes(0, selection.rows());
                const SampleOfLists sample = search.begin_thresholds(
                        codes, k_found, page, sample_keys, thresholds);
                if (probes.n_tasks > 0) {
                    scan_top_k(
                            codes,
                            probes.plan,
                            probes.scan_tasks(),
                            search.image.data(),
                            search.factors.data(),
                            reservoirs,
                            resources.stream());
                }
                const ProbeParts parts = probes.parts();
                merge_tasks(
                        reservoirs,
                        probes.plan,
                        {parts.begins,
                         parts.counts,
                         parts.reservoirs,
                         sample,
                         state_->device_ids.data()},
                        page,
                        metric_type == METRIC_L2,
                        int(k),
                        page_distances.data,
                        page_labels.data,
                        resources.stream());
                page_distances.deliver();
                page_labels.deliver();
                // what was uploaded, and goes with the page, has been read
                if (search.probes.is_uploaded() || selection.rows() ||
                    page_distances.is_elsewhere() ||
                    page_labels.is_elsewhere()) {
                    resources.synchronize();
                }
                check_queries(search.check);
            });
}

void GpuIndexIVFTurboQuant::range_search(
        idx_t n,
        const float* x,
        float radius,
        RangeSearchResult* result,
        const SearchParameters* params_in) const {
    const IVFSearchParameters* params = check_params(params_in);
    const GpuResources& resources = *resources_;
    const DeviceScope scope(resources.device);
    const Selection selection(
            resources, params ? params->sel : nullptr, state_->lists.ids);
    const bool is_l2 = metric_type == METRIC_L2;
    std::vector<RangeHits> hits(n);
    for_each_page(
            n,
            x,
            0, // nothing but what is within the radius
            params,
            [&](idx_t first, idx_t page, const Search& search) {
                check_queries(search.check);
                // no squared distance is below 0, even if its estimate is
                if (search.is_empty() || (is_l2 && !(radius > 0))) {
                    return;
                }
                const auto of_page = collect_hits(
                        resources,
                        is_l2,
                        radius,
                        page,
                        [&](const RangeSink& sink) {
                            scan_range(
                                    state_->storage.codes(0, selection.rows()),
                                    search.probes.plan,
                                    search.probes.scan_tasks(),
                                    search.image.data(),
                                    search.factors.data(),
                                    sink,
                                    page,
                                    resources.stream());
                        });
                for (idx_t q = 0; q < page; q++) {
                    for (const auto& [row, distance] : of_page[q]) {
                        hits[first + q].emplace_back(
                                state_->lists.ids[row], distance);
                    }
                    std::sort(hits[first + q].begin(), hits[first + q].end());
                }
            });
    fill_result(hits, *result);
}

void GpuIndexIVFTurboQuant::reset() {
    const DeviceScope scope(resources_->device);
    state_->storage.clear();
    state_->lists = Lists(parameters().nlist);
    state_->device_ids = {};
    ntotal = 0;
}

size_t GpuIndexIVFTurboQuant::remove_ids(const IDSelector& sel) {
    const DeviceScope scope(resources_->device);
    const Lists& lists = state_->lists;
    std::vector<bool> is_selected(lists.ids.size());
    for_each_bit(
            IdFilter(sel).select(lists.ids.data(), lists.ids.size()),
            [&](size_t row) { is_selected[row] = true; });
    std::vector<std::vector<uint32_t>> kept(lists.sizes.size());
    size_t removed = 0;
    lists.for_each_row([&](size_t l, uint32_t row) {
        if (is_selected[row]) {
            removed++;
        } else {
            kept[l].push_back(row);
        }
    });
    if (removed > 0) {
        std::vector<uint32_t> rooms(kept.size());
        for (size_t l = 0; l < kept.size(); l++) {
            rooms[l] = uint32_t(kept[l].size());
        }
        state_->rearrange(kept, rooms);
        ntotal -= removed;
    }
    return removed;
}

void GpuIndexIVFTurboQuant::reconstruct(idx_t key, float* recons) const {
    const DeviceScope scope(resources_->device);
    const Lists& lists = state_->lists;
    idx_t list_no = -1;
    uint32_t row = 0;
    lists.for_each_row([&](idx_t l, uint32_t r) {
        if (lists.ids[r] == key) {
            list_no = l;
            row = r;
        }
    });
    FAISS_THROW_IF_NOT_FMT(
            list_no >= 0,
            "GpuIndexIVFTurboQuant: there is no vector %" PRId64,
            key);
    std::vector<uint8_t> code(parameters().code_size);
    state_->storage.export_rows(row, 1, code.size(), code.data());
    std::vector<float> x(d);
    parameters().decode_vectors(1, code.data(), &list_no, x.data());
    copy(*resources_, x.data(), recons, x.size());
    resources_->synchronize();
}

} // namespace gpu
} // namespace faiss
