#include <gpu/StandardGpuResources.h>

#include <faiss/impl/FaissAssert.h>

namespace faiss_turboquant {
namespace gpu {

int get_num_gpus() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError(); // it is reported by this 0, not by the next call
        return 0;
    }
    return count;
}

std::shared_ptr<GpuResources> StandardGpuResources::getResources(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& resources = resources_[device];
    if (!resources) {
        const auto stream = streams_.find(device);
        resources = std::make_shared<GpuResources>(
                device,
                stream == streams_.end() ? nullptr : stream->second,
                workspace_limit_);
    }
    return resources;
}

void StandardGpuResources::setTempMemory(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [device, resources] : resources_) {
        FAISS_THROW_IF_NOT_FMT(
                !resources,
                "StandardGpuResources: setTempMemory comes too late, device %d "
                "is in use",
                device);
    }
    workspace_limit_ = size;
}

void StandardGpuResources::setDefaultStream(int device, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    FAISS_THROW_IF_NOT_FMT(
            !resources_[device],
            "StandardGpuResources: setDefaultStream comes too late, device %d "
            "is in use",
            device);
    // GpuResources takes null for a new stream
    streams_[device] = stream ? stream : cudaStreamLegacy;
}

cudaStream_t StandardGpuResources::getDefaultStream(int device) {
    return getResources(device)->stream();
}

} // namespace gpu
} // namespace faiss_turboquant
