#pragma once

#include <faiss/Index.h>

namespace faiss {
struct VectorTransform;
}

namespace faiss_turboquant {

/** faiss::clone_index, for TurboQuant indexes as well, alone or at any depth
 * inside FAISS's own: IndexIDMap, IndexIDMap2, IndexPreTransform with any of
 * the factory's transforms, IndexRefine and its subclasses,
 * IndexRowwiseMinMax, IVF and graph indexes.
 *
 * An index without TurboQuant inside is cloned by FAISS.
 *
 * @return a deep copy that owns all its parts; the caller deletes it
 * @throws faiss::FaissException for types that FAISS does not clone either,
 *         IndexShards and IndexReplicas among them, and for null */
faiss::Index* clone_index(const faiss::Index* index);

/// a copy of a vector transform, of any type that clone_index clones
faiss::VectorTransform* clone_transform(
        const faiss::VectorTransform* transform);

} // namespace faiss_turboquant
