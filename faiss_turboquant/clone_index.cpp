#include <faiss_turboquant/clone_index.h>

#include <memory>
#include <typeinfo>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/VectorTransform.h>
#include <faiss/clone_index.h>
#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/index_tree.h>

namespace faiss_turboquant {

namespace {

/** FAISS's cloner walks into most wrappers through the virtual clone_Index;
 * here are TurboQuant itself and the cases that FAISS's cloner would cut
 * short: graph indexes, whose storage it clones without the virtual call,
 * IndexRowwiseMinMax, for which it returns null, IndexRefinePanorama, which
 * it turns into an IndexRefine, and the transforms without a matrix. */
struct TurboQuantCloner : faiss::Cloner {
    faiss::Index* clone_Index(const faiss::Index* index) override {
        using namespace faiss;
        if (auto tq = dynamic_cast<const IndexTurboQuant*>(index)) {
            return new IndexTurboQuant(*tq);
        }
        if (!contains_turboquant(index)) {
            return faiss::clone_index(index);
        }
        // a subclass (IndexHNSWFlat, ...) expects a storage of its own type
        if (typeid(*index) == typeid(IndexHNSW)) {
            return clone_graph(static_cast<const IndexHNSW&>(*index));
        }
        if (typeid(*index) == typeid(IndexNSG)) {
            return clone_graph(static_cast<const IndexNSG&>(*index));
        }
        if (auto refine = dynamic_cast<const IndexRefinePanorama*>(index)) {
            return clone_refine_panorama(*refine);
        }
        if (auto fp32 = dynamic_cast<const IndexRowwiseMinMax*>(index)) {
            return clone_min_max(*fp32);
        }
        if (auto fp16 = dynamic_cast<const IndexRowwiseMinMaxFP16*>(index)) {
            return clone_min_max(*fp16);
        }
        return Cloner::clone_Index(index);
    }

    faiss::IndexIVF* clone_IndexIVF(const faiss::IndexIVF* ivf) override {
        if (auto tq = dynamic_cast<const faiss::IndexIVFTurboQuant*>(ivf)) {
            return new faiss::IndexIVFTurboQuant(*tq);
        }
        return Cloner::clone_IndexIVF(ivf);
    }

    faiss::VectorTransform* clone_VectorTransform(
            const faiss::VectorTransform* vt) override {
        using namespace faiss;
        if (auto norm = dynamic_cast<const NormalizationTransform*>(vt)) {
            return new NormalizationTransform(*norm);
        }
        if (auto centre = dynamic_cast<const CenteringTransform*>(vt)) {
            return new CenteringTransform(*centre);
        }
        if (auto itq = dynamic_cast<const ITQTransform*>(vt)) {
            return new ITQTransform(*itq);
        }
        return Cloner::clone_VectorTransform(vt);
    }

   private:
    template <class Graph>
    faiss::Index* clone_graph(const Graph& graph) {
        auto copy = std::make_unique<Graph>(graph);
        copy->own_fields = false;
        copy->storage = clone_Index(graph.storage);
        copy->own_fields = true;
        return copy.release();
    }

    faiss::Index* clone_refine_panorama(
            const faiss::IndexRefinePanorama& refine) {
        auto copy = std::make_unique<faiss::IndexRefinePanorama>(refine);
        copy->own_fields = copy->own_refine_index = false;
        copy->base_index = clone_Index(refine.base_index);
        copy->own_fields = true;
        copy->refine_index = clone_Index(refine.refine_index);
        copy->own_refine_index = true;
        return copy.release();
    }

    template <class MinMax>
    faiss::Index* clone_min_max(const MinMax& index) {
        auto copy = std::make_unique<MinMax>(index);
        copy->own_fields = false;
        copy->index = clone_Index(index.index);
        copy->own_fields = true;
        return copy.release();
    }
};

} // namespace

faiss::Index* clone_index(const faiss::Index* index) {
    FAISS_THROW_IF_NOT_MSG(index, "clone_index: index is null");
    return TurboQuantCloner().clone_Index(index);
}

faiss::VectorTransform* clone_transform(
        const faiss::VectorTransform* transform) {
    return TurboQuantCloner().clone_VectorTransform(transform);
}

} // namespace faiss_turboquant
