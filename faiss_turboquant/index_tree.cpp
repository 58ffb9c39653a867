#include <faiss_turboquant/index_tree.h>

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <typeinfo>

#include <faiss/Index2Layer.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFIndependentQuantizer.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/IndexShards.h>
#include <faiss/IndexShardsIVF.h>
#include <faiss/MetaIndexes.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>

namespace faiss_turboquant {

namespace {

template <class T>
const T* as(const faiss::Index* index) {
    return dynamic_cast<const T*>(index);
}

template <class Threaded>
void append_parts(
        const Threaded* threaded,
        std::vector<const faiss::Index*>& out) {
    for (int i = 0; i < threaded->count(); i++) {
        out.push_back(threaded->at(i));
    }
}

} // namespace

std::vector<const faiss::Index*> sub_indexes(const faiss::Index* index) {
    std::vector<const faiss::Index*> out;
    if (auto map = as<faiss::IndexIDMap>(index)) {
        out = {map->index};
    } else if (auto pre = as<faiss::IndexPreTransform>(index)) {
        out = {pre->index};
    } else if (auto refine = as<faiss::IndexRefine>(index)) {
        out = {refine->base_index, refine->refine_index};
    } else if (auto minmax = as<faiss::IndexRowwiseMinMaxBase>(index)) {
        out = {minmax->index};
    } else if (auto ivf = as<faiss::IndexIVF>(index)) {
        out = {ivf->quantizer};
    } else if (auto indep = as<faiss::IndexIVFIndependentQuantizer>(index)) {
        out = {indep->quantizer, indep->index_ivf};
    } else if (auto hnsw = as<faiss::IndexHNSW>(index)) {
        out = {hnsw->storage};
    } else if (auto nsg = as<faiss::IndexNSG>(index)) {
        out = {nsg->storage};
    } else if (auto nnd = as<faiss::IndexNNDescent>(index)) {
        out = {nnd->storage};
    } else if (auto two = as<faiss::Index2Layer>(index)) {
        out = {two->q1.quantizer};
    } else if (auto multi = as<faiss::MultiIndexQuantizer2>(index)) {
        out.assign(multi->assign_indexes.begin(), multi->assign_indexes.end());
    } else if (auto split = as<faiss::IndexSplitVectors>(index)) {
        out.assign(split->sub_indexes.begin(), split->sub_indexes.end());
    } else if (auto shards = as<faiss::IndexShards>(index)) {
        append_parts(shards, out);
        if (auto shards_ivf = as<faiss::IndexShardsIVF>(index)) {
            out.push_back(shards_ivf->quantizer);
        }
    } else if (auto replicas = as<faiss::IndexReplicas>(index)) {
        append_parts(replicas, out);
    }
    out.erase(std::remove(out.begin(), out.end(), nullptr), out.end());
    return out;
}

bool is_turboquant(const faiss::Index* index) {
    return as<faiss::IndexTurboQuant>(index) != nullptr ||
            as<faiss::IndexIVFTurboQuant>(index) != nullptr;
}

bool contains_turboquant(const faiss::Index* index) {
    if (is_turboquant(index)) {
        return true;
    }
    const auto subs = sub_indexes(index);
    return std::any_of(subs.begin(), subs.end(), contains_turboquant);
}

std::string type_name(const faiss::Index* index) {
    const char* mangled = typeid(*index).name();
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> name(
            abi::__cxa_demangle(mangled, nullptr, nullptr, &status),
            &std::free);
    return status == 0 ? name.get() : mangled;
}

} // namespace faiss_turboquant
