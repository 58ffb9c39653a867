#pragma once

#include <vector>

#include <faiss/Index.h>

#include <gpu/StandardGpuResources.h>

/** FAISS's functions between CPU and GPU, for TurboQuant indexes alone or at
 * any depth inside IndexIDMap, IndexIDMap2, IndexPreTransform, IndexRefine,
 * IndexShards and IndexReplicas.
 *
 * The IndexTurboQuant or IndexIVFTurboQuant moves (of the latter, the coarse
 * quantizer only if it is an IndexTurboQuant, too); what is around it is copied
 * and stays on the CPU: ids, transforms, the second stage of IndexRefine. The
 * caller deletes what is returned, which owns all its parts. */

namespace faiss_turboquant {
namespace gpu {

/** Of one index on one device. The parts of an IndexShards or IndexReplicas go
 * there all.
 * @throws faiss::FaissException for any other type, by its name; or if there is
 *         no room on the device */
faiss::Index* index_cpu_to_gpu(
        StandardGpuResources* provider,
        int device,
        const faiss::Index* index);

struct GpuMultipleClonerOptions {
    /// each device holds a part of the vectors (IndexShards), instead of all of
    /// them and searching for a part of the queries (IndexReplicas)
    bool shard = false;
};

/** Of one index on several devices: an IndexTurboQuant or IndexIVFTurboQuant
 * becomes an IndexShards or IndexReplicas of one index a device; shards of an
 * IndexIVFTurboQuant have all its lists, and of each the vectors in a range of
 * ids. The parts of an IndexShards or IndexReplicas go to the devices in turn.
 * With one device it is index_cpu_to_gpu. As of FAISS's IndexShards, vectors
 * can be added to shards of an IndexTurboQuant only while they are empty.
 * @param providers  one for each device; the same one may serve several
 * @param options    null: the defaults */
faiss::Index* index_cpu_to_gpu_multiple(
        const std::vector<StandardGpuResources*>& providers,
        const std::vector<int>& devices,
        const faiss::Index* index,
        const GpuMultipleClonerOptions* options = nullptr);

/** The way back. An IndexShards becomes one index with all vectors, an
 * IndexReplicas one of its parts. What is on the CPU already is copied.
 * @throws faiss::FaissException for types that clone_index refuses, and for an
 *         IndexShards whose parts would have the same ids in one index */
faiss::Index* index_gpu_to_cpu(const faiss::Index* index);

} // namespace gpu
} // namespace faiss_turboquant
