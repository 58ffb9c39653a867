#include <faiss_turboquant/io/check_index.h>

#include <algorithm>
#include <cmath>
#include <string>

#include <faiss/IndexFlat.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include <faiss_turboquant/index_tree.h>

namespace faiss_turboquant {

namespace {

using faiss::idx_t;
using faiss::Index;

[[noreturn]] void throw_inconsistent(
        const Index& index,
        const std::string& what) {
    FAISS_THROW_MSG(type_name(&index) + " is inconsistent: " + what);
}

template <class A, class B>
void check_equal(
        const Index& index,
        const char* a_name,
        A a,
        const char* b_name,
        B b) {
    if (!(a == static_cast<A>(b))) {
        throw_inconsistent(
                index,
                std::string(a_name) + " is " + std::to_string(a) + ", " +
                        b_name + " is " + std::to_string(b));
    }
}

void check_sub_index(const Index& index, const Index* sub, const char* name) {
    if (!sub) {
        throw_inconsistent(index, std::string(name) + " is null");
    }
    const std::string prefix = std::string(name) + "->";
    check_equal(
            index,
            "ntotal",
            index.ntotal,
            (prefix + "ntotal").c_str(),
            sub->ntotal);
    check_equal(
            index,
            "metric_type",
            static_cast<int>(index.metric_type),
            (prefix + "metric_type").c_str(),
            static_cast<int>(sub->metric_type));
    if (index.is_trained && !sub->is_trained) {
        throw_inconsistent(
                index, std::string("it is trained, ") + name + " is not");
    }
}

void check_sub_index_and_d(
        const Index& index,
        const Index* sub,
        const char* name) {
    check_sub_index(index, sub, name);
    check_equal(
            index, "d", index.d, (std::string(name) + "->d").c_str(), sub->d);
}

void check_quantizer(
        const Index& index,
        const TurboQuantizer& tq,
        bool by_residual) {
    check_equal(index, "d", index.d, "tq.d", tq.d);
    check_equal(
            index,
            "metric_type",
            static_cast<int>(index.metric_type),
            "tq.metric_type",
            static_cast<int>(tq.metric_type));
    check_equal(
            index,
            "tq.by_residual",
            tq.by_residual,
            "that of the type",
            by_residual);
    if (by_residual && tq.has_centre()) {
        throw_inconsistent(index, "tq has a centre beside those of the lists");
    }
}

/// an entry is a list and a place in it, or -1
void check_direct_map_entry(const faiss::IndexIVF& index, idx_t entry) {
    const bool is_valid = entry == -1 ||
            (entry >= 0 && index.invlists &&
             faiss::lo_listno(entry) < index.nlist &&
             faiss::lo_offset(entry) <
                     index.invlists->list_size(faiss::lo_listno(entry)));
    if (!is_valid) {
        throw_inconsistent(
                index, "the direct map has " + std::to_string(entry));
    }
}

void check_direct_map(const faiss::IndexIVF& index) {
    for (idx_t entry : index.direct_map.array) {
        check_direct_map_entry(index, entry);
    }
    for (auto [id, entry] : index.direct_map.hashtable) {
        check_direct_map_entry(index, entry);
    }
}

/// ids that a search of IndexRefine's base_index looks up in refine_index
void check_ids(const Index& index, const idx_t* ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < -1 || ids[i] >= index.ntotal) {
            throw_inconsistent(
                    index, "base_index has id " + std::to_string(ids[i]));
        }
    }
}

void check_ids_of_lists(const Index& index, const faiss::InvertedLists& lists) {
    auto on_disk = dynamic_cast<const faiss::OnDiskInvertedLists*>(&lists);
    if (on_disk && !on_disk->ptr) {
        return; // IO_FLAG_SKIP_IVF_DATA
    }
    for (size_t i = 0; i < lists.nlist; i++) {
        faiss::InvertedLists::ScopedIds ids(&lists, i);
        check_ids(index, ids.get(), lists.list_size(i));
    }
}

/// whatever a search of sub returns has to be the number of a vector
void check_labels(const Index& index, const Index* sub) {
    if (auto map = dynamic_cast<const faiss::IndexIDMap*>(sub)) {
        check_ids(index, map->id_map.data(), map->id_map.size());
    } else if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(sub)) {
        check_labels(index, pre->index);
    } else if (auto refine = dynamic_cast<const faiss::IndexRefine*>(sub)) {
        check_labels(index, refine->base_index);
    } else if (
            auto minmax =
                    dynamic_cast<const faiss::IndexRowwiseMinMaxBase*>(sub)) {
        check_labels(index, minmax->index);
    } else if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(sub)) {
        if (ivf->invlists) {
            check_ids_of_lists(index, *ivf->invlists);
        }
    }
}

/// of any vector by its number, without an exception
bool computes_distances(const Index* storage) {
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(storage)) {
        return computes_distances(pre->index);
    }
    if (auto refine = dynamic_cast<const faiss::IndexRefine*>(storage)) {
        return computes_distances(refine->refine_index);
    }
    return dynamic_cast<const faiss::IndexFlatCodes*>(storage);
}

/// of a graph, which FAISS searches in a parallel region, where an exception
/// of the storage would end the process
void check_storage(const Index& index, const Index* storage) {
    check_sub_index_and_d(index, storage, "storage");
    if (!computes_distances(storage)) {
        throw_inconsistent(index, "its storage is a " + type_name(storage));
    }
}

bool linear_has_expected_sizes(const faiss::LinearTransform& linear) {
    if (linear.A.empty() && !linear.is_trained) {
        return true;
    }
    return linear.A.size() == size_t(linear.d_in) * linear.d_out &&
            (!linear.have_bias || linear.b.size() == size_t(linear.d_out));
}

/// a search takes memory for as many candidates
void check_search_width(const Index& index, const char* name, int width) {
    if (width < 1 || width > max_search_width) {
        throw_inconsistent(
                index, std::string(name) + " is " + std::to_string(width));
    }
}

/// of a vertex at a level: neighbors are there, at that level too
void check_hnsw_neighbors(
        const faiss::IndexHNSW& index,
        size_t vertex,
        int level) {
    const faiss::HNSW& hnsw = index.hnsw;
    size_t begin, end;
    hnsw.neighbor_range(vertex, level, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        const int32_t to = hnsw.neighbors[i];
        const bool is_valid = to == -1 ||
                (to >= 0 && to < index.ntotal && hnsw.levels[to] > level);
        if (!is_valid) {
            throw_inconsistent(
                    index,
                    "vertex " + std::to_string(vertex) + " has neighbor " +
                            std::to_string(to) + " at level " +
                            std::to_string(level));
        }
    }
}

void check_hnsw_levels(const faiss::IndexHNSW& index) {
    const faiss::HNSW& hnsw = index.hnsw;
    const std::vector<int>& ends = hnsw.cum_nneighbor_per_level;
    check_equal(
            index,
            "cum_nneighbor_per_level.size()",
            ends.size(),
            "assign_probas.size() + 1",
            hnsw.assign_probas.size() + 1);
    if (ends[0] != 0 || !std::is_sorted(ends.begin(), ends.end())) {
        throw_inconsistent(index, "cum_nneighbor_per_level is not ascending");
    }
    check_equal(
            index, "ntotal", index.ntotal, "levels.size()", hnsw.levels.size());
    check_equal(
            index,
            "ntotal + 1",
            index.ntotal + 1,
            "offsets.size()",
            hnsw.offsets.size());
    check_equal(index, "offsets[0]", hnsw.offsets[0], "the first", 0);
    for (idx_t i = 0; i < index.ntotal; i++) {
        const int level = hnsw.levels[i];
        if (level < 1 || size_t(level) >= ends.size()) {
            throw_inconsistent(
                    index,
                    "vertex " + std::to_string(i) + " has " +
                            std::to_string(level) + " levels");
        }
        check_equal(
                index,
                "an offset",
                hnsw.offsets[i + 1],
                "the end of the neighbors before",
                hnsw.offsets[i] + ends[level]);
    }
    check_equal(
            index,
            "neighbors.size()",
            hnsw.neighbors.size(),
            "the last offset",
            hnsw.offsets.back());
}

void check_nsg_graph(const faiss::IndexNSG& index) {
    const faiss::NSG& nsg = index.nsg;
    check_equal(index, "ntotal", index.ntotal, "nsg.ntotal", nsg.ntotal);
    check_equal(index, "ntotal", index.ntotal, "graph.N", nsg.final_graph->N);
    check_equal(index, "nsg.R", nsg.R, "graph.K", nsg.final_graph->K);
    if (nsg.enterpoint < 0 || nsg.enterpoint >= nsg.ntotal) {
        throw_inconsistent(
                index, "enterpoint is " + std::to_string(nsg.enterpoint));
    }
    const int32_t* begin = nsg.final_graph->data;
    const int32_t* end = begin + size_t(nsg.ntotal) * nsg.R;
    const int32_t* largest = std::max_element(begin, end);
    if (largest != end && *largest >= nsg.ntotal) {
        throw_inconsistent(index, "a neighbor is " + std::to_string(*largest));
    }
}

} // namespace

void check(const faiss::IndexFlatCodes& flat) {
    check_equal(
            flat,
            "codes.size()",
            flat.codes.size(),
            "ntotal * code_size",
            flat.ntotal * flat.code_size);
}

void check(const faiss::IndexTurboQuant& index) {
    check_quantizer(index, index.tq, false);
    check_equal(
            index,
            "code_size",
            index.code_size,
            "tq.code_size",
            index.tq.code_size);
    check(static_cast<const faiss::IndexFlatCodes&>(index));
}

void check(const faiss::IndexIVF& index) {
    if (!index.quantizer) {
        throw_inconsistent(index, "quantizer is null");
    }
    check_equal(index, "d", index.d, "quantizer->d", index.quantizer->d);
    if (index.is_trained) {
        check_equal(
                index,
                "nlist",
                index.nlist,
                "quantizer->ntotal",
                index.quantizer->ntotal);
    }
}

void check(const faiss::IndexIVFTurboQuant& index) {
    check_quantizer(index, index.tq, true);
    check_equal(
            index,
            "code_size",
            index.code_size,
            "tq.code_size",
            index.tq.code_size);
    check(static_cast<const faiss::IndexIVF&>(index));
    if (!index.centre_scales.empty()) {
        check_equal(
                index,
                "nlist",
                index.nlist,
                "centre_scales.size()",
                index.centre_scales.size());
    }
    if (index.invlists) {
        check_equal(
                index,
                "nlist",
                index.nlist,
                "invlists->nlist",
                index.invlists->nlist);
        check_equal(
                index,
                "code_size",
                index.code_size,
                "invlists->code_size",
                index.invlists->code_size);
    }
    check_direct_map(index);
}

void check(const faiss::IndexIDMap& map) {
    check_sub_index_and_d(map, map.index, "index");
    check_equal(map, "ntotal", map.ntotal, "id_map.size()", map.id_map.size());
}

bool has_expected_sizes(const faiss::VectorTransform& vt) {
    using namespace faiss;
    if (vt.d_in < 1 || vt.d_out < 1) {
        return false;
    }
    if (auto linear = dynamic_cast<const LinearTransform*>(&vt)) {
        return linear_has_expected_sizes(*linear);
    }
    if (auto remap = dynamic_cast<const RemapDimensionsTransform*>(&vt)) {
        return remap->map.size() == size_t(vt.d_out) &&
                std::all_of(
                        remap->map.begin(), remap->map.end(), [&](int from) {
                            return from >= -1 && from < vt.d_in;
                        });
    }
    if (dynamic_cast<const NormalizationTransform*>(&vt)) {
        return vt.d_in == vt.d_out;
    }
    if (auto centre = dynamic_cast<const CenteringTransform*>(&vt)) {
        return vt.d_in == vt.d_out &&
                (!vt.is_trained || centre->mean.size() == size_t(vt.d_in));
    }
    if (auto itq = dynamic_cast<const ITQTransform*>(&vt)) {
        return !vt.is_trained ||
                (itq->mean.size() == size_t(vt.d_in) &&
                 itq->pca_then_itq.d_in == vt.d_in &&
                 itq->pca_then_itq.d_out == vt.d_out &&
                 itq->pca_then_itq.is_trained &&
                 linear_has_expected_sizes(itq->pca_then_itq));
    }
    return false;
}

void check(const faiss::IndexPreTransform& pre) {
    int d = pre.d;
    bool is_trained = true;
    for (size_t i = 0; i < pre.chain.size(); i++) {
        const faiss::VectorTransform& vt = *pre.chain[i];
        const std::string name = "chain[" + std::to_string(i) + "]";
        check_equal(pre, (name + "->d_in").c_str(), vt.d_in, "its input", d);
        if (!has_expected_sizes(vt)) {
            throw_inconsistent(pre, name + " has arrays of a wrong size");
        }
        d = vt.d_out;
        is_trained = is_trained && vt.is_trained;
    }
    if (pre.is_trained && !is_trained) {
        throw_inconsistent(pre, "it is trained, its chain is not");
    }
    check_sub_index(pre, pre.index, "index");
    check_equal(pre, "index->d", pre.index->d, "its input", d);
}

void check(const faiss::IndexRefine& refine) {
    check_sub_index_and_d(refine, refine.base_index, "base_index");
    check_sub_index_and_d(refine, refine.refine_index, "refine_index");
    if (dynamic_cast<const faiss::IndexRefineFlat*>(&refine) &&
        !dynamic_cast<const faiss::IndexFlat*>(refine.refine_index)) {
        throw_inconsistent(refine, "refine_index is not an IndexFlat");
    }
    // FAISS makes an integer of k * k_factor, which has to fit
    if (!(std::abs(refine.k_factor) <= 0x1p31f)) {
        throw_inconsistent(refine, "k_factor is not finite, or above 2^31");
    }
    check_labels(refine, refine.base_index);
}

void check(const faiss::IndexRowwiseMinMaxBase& minmax) {
    check_sub_index_and_d(minmax, minmax.index, "index");
}

void check(const faiss::IndexHNSW& index) {
    const faiss::HNSW& hnsw = index.hnsw;
    check_search_width(index, "efSearch", hnsw.efSearch);
    check_search_width(index, "efConstruction", hnsw.efConstruction);
    check_hnsw_levels(index);
    for (idx_t i = 0; i < index.ntotal; i++) {
        for (int level = 0; level < hnsw.levels[i]; level++) {
            check_hnsw_neighbors(index, i, level);
        }
    }
    const idx_t entry = hnsw.entry_point;
    if (entry < -1 || entry >= index.ntotal ||
        (entry == -1) != (index.ntotal == 0)) {
        throw_inconsistent(index, "entry_point is " + std::to_string(entry));
    }
    check_equal(
            index,
            "max_level",
            hnsw.max_level,
            "that of entry_point",
            entry == -1 ? -1 : hnsw.levels[entry] - 1);
    if (index.storage) {
        check_storage(index, index.storage);
    }
}

void check(const faiss::IndexNSG& index) {
    check_equal(
            index,
            "is_built",
            index.is_built,
            "nsg.is_built",
            index.nsg.is_built);
    check_search_width(index, "search_L", index.nsg.search_L);
    if (index.is_built) {
        check_nsg_graph(index);
    }
    if (index.storage) {
        check_storage(index, index.storage);
    }
}

} // namespace faiss_turboquant
