#include <gpu/GpuCloner.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <typeinfo>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexShards.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/DirectMap.h>
#include <faiss/invlists/InvertedLists.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_tree.h>
#include <gpu/GpuIndexIVFTurboQuant.h>
#include <gpu/GpuIndexTurboQuant.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

using faiss::idx_t;
using faiss::Index;
using faiss::IndexIDMap;
using faiss::IndexIDMap2;
using faiss::IndexIVFTurboQuant;
using faiss::IndexPreTransform;
using faiss::IndexRefine;
using faiss::IndexRefineFlat;
using faiss::IndexReplicas;
using faiss::IndexShards;
using faiss::IndexTurboQuant;
using faiss::gpu::GpuIndexIVFTurboQuant;
using faiss::gpu::GpuIndexTurboQuant;

using IndexPtr = std::unique_ptr<Index>;
using CloneFunction = std::function<IndexPtr(const Index*)>;

// ----------------------------------------------------------------- wrappers

// A copy of a wrapper points at the parts of the original, which it must not
// delete until it has its own.

template <class Map>
IndexPtr clone_id_map(const Map& from, const CloneFunction& clone) {
    auto to = std::make_unique<Map>(from);
    to->own_fields = false;
    to->index = clone(from.index).release();
    to->own_fields = true;
    return to;
}

IndexPtr clone_pre_transform(
        const IndexPreTransform& from,
        const CloneFunction& clone) {
    std::vector<std::unique_ptr<faiss::VectorTransform>> chain;
    for (const auto* transform : from.chain) {
        chain.emplace_back(clone_transform(transform));
    }
    auto to = std::make_unique<IndexPreTransform>(from);
    to->own_fields = false;
    to->index = clone(from.index).release();
    for (size_t i = 0; i < chain.size(); i++) {
        to->chain[i] = chain[i].release();
    }
    to->own_fields = true;
    return to;
}

template <class Refine>
IndexPtr clone_refine(const Refine& from, const CloneFunction& clone) {
    IndexPtr second(clone_index(from.refine_index));
    auto to = std::make_unique<Refine>(from);
    to->own_fields = to->own_refine_index = false;
    to->base_index = clone(from.base_index).release();
    to->refine_index = second.release();
    to->own_fields = to->own_refine_index = true;
    return to;
}

/// null if the index is no wrapper around one other that searches
IndexPtr clone_wrapper(const Index* index, const CloneFunction& clone) {
    const std::type_info& type = typeid(*index);
    if (type == typeid(IndexIDMap)) {
        return clone_id_map(static_cast<const IndexIDMap&>(*index), clone);
    }
    if (type == typeid(IndexIDMap2)) {
        return clone_id_map(static_cast<const IndexIDMap2&>(*index), clone);
    }
    if (type == typeid(IndexPreTransform)) {
        return clone_pre_transform(
                static_cast<const IndexPreTransform&>(*index), clone);
    }
    if (type == typeid(IndexRefine)) {
        return clone_refine(static_cast<const IndexRefine&>(*index), clone);
    }
    if (type == typeid(IndexRefineFlat)) {
        return clone_refine(static_cast<const IndexRefineFlat&>(*index), clone);
    }
    return nullptr;
}

/// fill an IndexShards or IndexReplicas
template <class Threaded>
IndexPtr join(std::unique_ptr<Threaded> to, std::vector<IndexPtr> parts) {
    for (const auto& part : parts) {
        to->addIndex(part.get());
    }
    for (auto& part : parts) {
        part.release();
    }
    to->own_indices = true;
    return to;
}

// ------------------------------------------------------------------- to GPUs

/// vectors `begin` to `end` of an index, which has to outlive the result
IndexTurboQuant view_of(const IndexTurboQuant& index, idx_t begin, idx_t end) {
    IndexTurboQuant view;
    view.tq = index.tq;
    view.d = index.d;
    view.metric_type = index.metric_type;
    view.metric_arg = index.metric_arg;
    view.is_trained = index.is_trained;
    view.sign_margin = index.sign_margin;
    view.code_size = index.code_size;
    view.ntotal = end - begin;
    view.codes = faiss::MaybeOwnedVector<uint8_t>::create_view(
            const_cast<uint8_t*>(index.codes.data()) + begin * index.code_size,
            view.ntotal * index.code_size,
            nullptr);
    return view;
}

/// bounds of n ranges of ids, (n + 1,), that hold as many vectors each
std::vector<idx_t> split_ids(const faiss::InvertedLists& lists, size_t n) {
    std::vector<idx_t> ids;
    for (size_t l = 0; l < lists.nlist; l++) {
        faiss::InvertedLists::ScopedIds of_list(&lists, l);
        ids.insert(
                ids.end(), of_list.get(), of_list.get() + lists.list_size(l));
    }
    using Limits = std::numeric_limits<idx_t>;
    std::vector<idx_t> bounds(n + 1, Limits::max());
    bounds[0] = Limits::min();
    auto begin = ids.begin();
    for (size_t i = 1; i < n && !ids.empty(); i++) {
        const auto nth = ids.begin() + ids.size() * i / n;
        std::nth_element(begin, nth, ids.end());
        bounds[i] = *nth;
        begin = nth;
    }
    return bounds;
}

/// a copy of the vectors with ids `first` to `last` - 1, which shares the
/// quantizer
std::unique_ptr<IndexIVFTurboQuant> with_ids_of(
        const IndexIVFTurboQuant& index,
        idx_t first,
        idx_t last) {
    auto part = std::make_unique<IndexIVFTurboQuant>(index);
    part->own_fields = part->own_invlists = false;
    part->replace_invlists(
            new faiss::ArrayInvertedLists(index.nlist, index.code_size), true);
    part->direct_map = faiss::DirectMap();
    part->ntotal = 0;
    index.copy_subset_to(
            *part, faiss::InvertedLists::SUBSET_TYPE_ID_RANGE, first, last);
    return part;
}

struct ToGpuCloner {
    std::vector<std::shared_ptr<GpuResources>> devices;
    GpuMultipleClonerOptions options;

    IndexPtr clone(const Index* index) const {
        if (auto tq = dynamic_cast<const IndexTurboQuant*>(index)) {
            return devices.size() > 1 && options.shard
                    ? shards(*tq)
                    : replicas<GpuIndexTurboQuant>(*tq);
        }
        if (auto ivf = dynamic_cast<const IndexIVFTurboQuant*>(index)) {
            return devices.size() > 1 && options.shard
                    ? shards(*ivf)
                    : replicas<GpuIndexIVFTurboQuant>(*ivf);
        }
        if (typeid(*index) == typeid(IndexShards)) {
            const auto& from = static_cast<const IndexShards&>(*index);
            return join(
                    std::make_unique<IndexShards>(
                            from.d, true, from.successive_ids),
                    in_turn(from));
        }
        if (typeid(*index) == typeid(IndexReplicas)) {
            const auto& from = static_cast<const IndexReplicas&>(*index);
            return join(std::make_unique<IndexReplicas>(from.d), in_turn(from));
        }
        IndexPtr wrapper = clone_wrapper(
                index, [this](const Index* part) { return clone(part); });
        FAISS_THROW_IF_NOT_FMT(
                wrapper,
                "index_cpu_to_gpu: a %s cannot go to the GPU, only an "
                "IndexTurboQuant or IndexIVFTurboQuant, alone or inside "
                "IndexIDMap, IndexIDMap2, IndexPreTransform, IndexRefine, "
                "IndexShards and IndexReplicas",
                type_name(index).c_str());
        return wrapper;
    }

   private:
    /// on each device one; of one device, that
    template <class GpuIndex, class CpuIndex>
    IndexPtr replicas(const CpuIndex& index) const {
        std::vector<IndexPtr> parts;
        for (const auto& device : devices) {
            parts.push_back(std::make_unique<GpuIndex>(device, index));
        }
        if (parts.size() == 1) {
            return std::move(parts[0]);
        }
        return join(std::make_unique<IndexReplicas>(index.d), std::move(parts));
    }

    IndexPtr shards(const IndexTurboQuant& index) const {
        const idx_t n = devices.size();
        std::vector<IndexPtr> parts;
        for (idx_t i = 0; i < n; i++) {
            const idx_t begin = index.ntotal * i / n;
            const idx_t end = index.ntotal * (i + 1) / n;
            parts.push_back(std::make_unique<GpuIndexTurboQuant>(
                    devices[i], view_of(index, begin, end)));
        }
        return join(
                std::make_unique<IndexShards>(index.d, true, true),
                std::move(parts));
    }

    /// by ranges of ids, so that equal distances are in the order of ids
    IndexPtr shards(const IndexIVFTurboQuant& index) const {
        const auto bounds = split_ids(*index.invlists, devices.size());
        std::vector<IndexPtr> parts;
        for (size_t i = 0; i < devices.size(); i++) {
            parts.push_back(std::make_unique<GpuIndexIVFTurboQuant>(
                    devices[i], *with_ids_of(index, bounds[i], bounds[i + 1])));
        }
        return join(
                std::make_unique<IndexShards>(index.d, true, false),
                std::move(parts));
    }

    template <class Threaded>
    std::vector<IndexPtr> in_turn(const Threaded& from) const {
        std::vector<IndexPtr> parts;
        for (int i = 0; i < from.count(); i++) {
            const ToGpuCloner one = {{devices[i % devices.size()]}, options};
            parts.push_back(one.clone(from.at(i)));
        }
        return parts;
    }
};

// ---------------------------------------------------------------- to the CPU

IndexPtr clone_to_cpu(const Index* index);

/// add the vectors of a shard to those before it
void append_shard(Index* to, Index* shard, bool successive_ids) {
    const bool has_ids = dynamic_cast<const IndexIDMap*>(to) ||
            dynamic_cast<const IndexIVFTurboQuant*>(to);
    FAISS_THROW_IF_NOT_FMT(
            successive_ids || has_ids,
            "index_gpu_to_cpu: the shards, each a %s, have the same ids: an "
            "IndexShards without successive_ids can become one index only if "
            "they are of type IndexIDMap or IndexIVFTurboQuant",
            type_name(to).c_str());
    to->merge_from(*shard, successive_ids && has_ids ? to->ntotal : 0);
}

IndexPtr merge_shards(const IndexShards& shards) {
    FAISS_THROW_IF_NOT_MSG(
            shards.count() > 0, "index_gpu_to_cpu: an IndexShards is empty");
    IndexPtr to = clone_to_cpu(shards.at(0));
    for (int i = 1; i < shards.count(); i++) {
        append_shard(
                to.get(),
                clone_to_cpu(shards.at(i)).get(),
                shards.successive_ids);
    }
    return to;
}

IndexPtr clone_to_cpu(const Index* index) {
    if (auto gpu = dynamic_cast<const GpuIndexTurboQuant*>(index)) {
        auto to = std::make_unique<IndexTurboQuant>();
        gpu->copyTo(to.get());
        return to;
    }
    if (auto gpu = dynamic_cast<const GpuIndexIVFTurboQuant*>(index)) {
        auto to = std::make_unique<IndexIVFTurboQuant>();
        gpu->copyTo(to.get());
        return to;
    }
    if (typeid(*index) == typeid(IndexShards)) {
        return merge_shards(static_cast<const IndexShards&>(*index));
    }
    if (typeid(*index) == typeid(IndexReplicas)) {
        const auto& replicas = static_cast<const IndexReplicas&>(*index);
        FAISS_THROW_IF_NOT_MSG(
                replicas.count() > 0,
                "index_gpu_to_cpu: an IndexReplicas is empty");
        return clone_to_cpu(replicas.at(0));
    }
    IndexPtr wrapper = clone_wrapper(index, clone_to_cpu);
    return wrapper ? std::move(wrapper) : IndexPtr(clone_index(index));
}

} // namespace

faiss::Index* index_cpu_to_gpu(
        StandardGpuResources* provider,
        int device,
        const faiss::Index* index) {
    return index_cpu_to_gpu_multiple({provider}, {device}, index);
}

faiss::Index* index_cpu_to_gpu_multiple(
        const std::vector<StandardGpuResources*>& providers,
        const std::vector<int>& devices,
        const faiss::Index* index,
        const GpuMultipleClonerOptions* options) {
    FAISS_THROW_IF_NOT_MSG(index, "index_cpu_to_gpu: the index is null");
    FAISS_THROW_IF_NOT_FMT(
            providers.size() == devices.size() && !devices.empty(),
            "index_cpu_to_gpu: %zd resources for %zd devices",
            providers.size(),
            devices.size());
    ToGpuCloner cloner;
    if (options) {
        cloner.options = *options;
    }
    for (size_t i = 0; i < devices.size(); i++) {
        FAISS_THROW_IF_NOT_MSG(
                providers[i], "index_cpu_to_gpu: the resources are null");
        cloner.devices.push_back(providers[i]->getResources(devices[i]));
    }
    return cloner.clone(index).release();
}

faiss::Index* index_gpu_to_cpu(const faiss::Index* index) {
    FAISS_THROW_IF_NOT_MSG(index, "index_gpu_to_cpu: the index is null");
    return clone_to_cpu(index).release();
}

} // namespace gpu
} // namespace faiss_turboquant
