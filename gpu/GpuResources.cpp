#include <gpu/GpuResources.h>

#include <cstdint>

#include <gpu/kernels/cuda_utils.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// a stream, and its device, which null leaves open
struct StreamOf {
    cudaStream_t stream;
    int device;
};

void put_in_order(const StreamOf& earlier, const StreamOf& later) {
    cudaEvent_t event = nullptr;
    const auto record = [&] {
        const DeviceScope scope(earlier.device);
        TQ_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        return cudaEventRecord(event, earlier.stream);
    };
    const auto wait = [&] {
        const DeviceScope scope(later.device);
        return cudaStreamWaitEvent(later.stream, event);
    };
    cudaError_t error = record();
    if (error == cudaSuccess) {
        error = wait();
    }
    cudaEventDestroy(event); // once it has passed
    TQ_CUDA(error);
}

} // namespace

GpuResources::GpuResources(
        int device,
        cudaStream_t stream,
        size_t workspace_limit)
        : device(device), workspace_limit(workspace_limit), stream_(stream) {
    int count = 0;
    TQ_CUDA(cudaGetDeviceCount(&count));
    FAISS_THROW_IF_NOT_FMT(
            device >= 0 && device < count,
            "GpuResources: device %d is not in 0 .. %d",
            device,
            count - 1);
    int major = 0;
    TQ_CUDA(cudaDeviceGetAttribute(
            &major, cudaDevAttrComputeCapabilityMajor, device));
    FAISS_THROW_IF_NOT_FMT(
            major >= 8,
            "GpuResources: device %d has compute capability %d, 8 is needed",
            device,
            major);
    const DeviceScope scope(device);
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    TQ_CUDA(cudaMemPoolCreate(&index_pool_, &properties));
    TQ_CUDA(cudaMemPoolCreate(&workspace_pool_, &properties));
    // what is released stays at hand up to the limit
    uint64_t threshold = workspace_limit;
    TQ_CUDA(cudaMemPoolSetAttribute(
            workspace_pool_, cudaMemPoolAttrReleaseThreshold, &threshold));
    if (!stream_) {
        TQ_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        owns_stream_ = true;
    }
}

GpuResources::~GpuResources() {
    // errors of the last calls have no one left to hear them
    cudaStreamSynchronize(stream_);
    for (const Mailbox& mailbox : mailboxes_) {
        cudaEventDestroy(mailbox.written);
        cudaFreeHost(mailbox.memory);
    }
    if (owns_stream_) {
        cudaStreamDestroy(stream_);
    }
    cudaMemPoolDestroy(workspace_pool_);
    cudaMemPoolDestroy(index_pool_);
}

void* GpuResources::allocate(size_t bytes, MemoryUse use) const {
    if (bytes == 0) {
        return nullptr;
    }
    void* memory = nullptr;
    cudaMemPool_t pool =
            use == MemoryUse::index ? index_pool_ : workspace_pool_;
    const cudaError_t error =
            cudaMallocFromPoolAsync(&memory, bytes, pool, stream_);
    if (error != cudaSuccess) {
        cudaGetLastError(); // it is reported here, not at the next launch
    }
    FAISS_THROW_IF_NOT_FMT(
            error == cudaSuccess,
            "GpuResources: no %zd bytes on device %d: %s",
            bytes,
            device,
            cudaGetErrorString(error));
    return memory;
}

void GpuResources::release(void* memory) const {
    cudaFreeAsync(memory, stream_);
}

void GpuResources::synchronize() const {
    TQ_CUDA(cudaStreamSynchronize(stream_));
}

void GpuResources::wait_for(cudaStream_t other, int device) const {
    put_in_order({other, device}, {stream_, this->device});
}

void GpuResources::make_wait(cudaStream_t other, int device) const {
    put_in_order({stream_, this->device}, {other, device});
}

GpuResources::Mailbox GpuResources::take_mailbox() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (mailboxes_.empty()) {
        Mailbox mailbox;
        TQ_CUDA(cudaMallocHost(&mailbox.memory, Mailbox::size));
        TQ_CUDA(cudaEventCreateWithFlags(
                &mailbox.written, cudaEventDisableTiming));
        return mailbox;
    }
    const Mailbox mailbox = mailboxes_.back();
    mailboxes_.pop_back();
    return mailbox;
}

void GpuResources::give_mailbox(const Mailbox& mailbox) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    mailboxes_.push_back(mailbox);
}

DeviceScope::DeviceScope(int device) {
    TQ_CUDA(cudaGetDevice(&before_));
    TQ_CUDA(cudaSetDevice(device));
}

DeviceScope::~DeviceScope() {
    cudaSetDevice(before_);
}

} // namespace gpu
} // namespace faiss_turboquant
