#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include <cuda_runtime.h>

#include <gpu/GpuResources.h>

namespace faiss_turboquant {
namespace gpu {

/// devices that CUDA shows; 0 without a driver
int get_num_gpus();

/** The resources of every device, made when they are first asked for. It has
 * the name and the functions of FAISS's class; indexes keep the resources that
 * they were given, so this object may go before them. Several threads may use
 * it at once. */
struct StandardGpuResources {
    StandardGpuResources() = default;
    StandardGpuResources(const StandardGpuResources&) = delete;
    StandardGpuResources& operator=(const StandardGpuResources&) = delete;

    /// @throws faiss::FaissException as the constructor of GpuResources does
    std::shared_ptr<GpuResources> getResources(int device);

    /** The workspace limit of each device (see GpuResources), in bytes.
     * @throws faiss::FaissException if resources have been made already */
    void setTempMemory(size_t size);

    /** A stream of the caller's for a device; null is CUDA's default stream.
     * @throws faiss::FaissException if the resources of the device have been
     *         made already */
    void setDefaultStream(int device, cudaStream_t stream);

    cudaStream_t getDefaultStream(int device);

   private:
    std::mutex mutex_;
    size_t workspace_limit_ = GpuResources::default_workspace_limit;
    std::map<int, cudaStream_t> streams_;
    std::map<int, std::shared_ptr<GpuResources>> resources_;
};

} // namespace gpu
} // namespace faiss_turboquant
