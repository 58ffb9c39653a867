#pragma once

#include <string>
#include <vector>

namespace faiss {
struct Index;
}

namespace faiss_turboquant {

/** The indexes directly inside an index: what an IndexIDMap, IndexPreTransform
 * or IndexRefine wraps, the quantizer of an IVF index, the storage of a graph
 * index, the parts of IndexShards, IndexReplicas and IndexSplitVectors.
 *
 * Functions that look for TurboQuant inside FAISS's indexes share this one
 * list. Null pointers are left out. */
std::vector<const faiss::Index*> sub_indexes(const faiss::Index* index);

/// whether the index itself is one of this library's
bool is_turboquant(const faiss::Index* index);

/// whether it is, or holds one at any depth; false for null
bool contains_turboquant(const faiss::Index* index);

/// name of the index's class, for messages
std::string type_name(const faiss::Index* index);

} // namespace faiss_turboquant
