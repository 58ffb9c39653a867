#include <gpu/GpuResources.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include <gpu/kernels/cuda_utils.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// a stream, and its device, which null leaves open
struct StreamOf {
    cudaStream_t stream;
    int device;
};

/// Arrays of the workspace have few different sizes, up to an eighth more than
/// is wanted.
size_t size_to_keep(size_t bytes) {
    size_t step = 256;
    while (16 * step <= bytes) {
        step *= 2;
    }
    return round_up(bytes, step);
}

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
    give_back(0);
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
    const bool is_index = use == MemoryUse::index;
    const cudaMemPool_t pool = is_index ? index_pool_ : workspace_pool_;
    const size_t size = is_index ? bytes : size_to_keep(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!is_index) {
        const auto found =
                std::find_if(kept_.rbegin(), kept_.rend(), [&](const Kept& k) {
                    return k.bytes == size;
                });
        if (found != kept_.rend()) {
            void* memory = found->memory;
            kept_.erase(std::next(found).base());
            return memory;
        }
        give_back(workspace_limit - std::min(workspace_limit, size));
    }
    void* memory = nullptr;
    const auto try_pool = [&] {
        const cudaError_t error =
                cudaMallocFromPoolAsync(&memory, size, pool, stream_);
        if (error != cudaSuccess) {
            cudaGetLastError(); // it is reported here, not at the next launch
        }
        return error;
    };
    cudaError_t error = try_pool();
    if (error == cudaErrorMemoryAllocation) {
        give_back(0);
        synchronize();
        TQ_CUDA(cudaMemPoolTrimTo(workspace_pool_, 0));
        error = try_pool();
    }
    if (error == cudaSuccess && !is_index) {
        held_bytes_ += size;
    }
    FAISS_THROW_IF_NOT_FMT(
            error == cudaSuccess,
            "GpuResources: no %zd bytes on device %d: %s",
            bytes,
            device,
            cudaGetErrorString(error));
    return memory;
}

void GpuResources::release(void* memory, size_t bytes, MemoryUse use) const {
    if (use == MemoryUse::index) {
        cudaFreeAsync(memory, stream_);
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    // what is issued from now on may use it: the stream is one
    kept_.push_back({size_to_keep(bytes), memory});
    give_back(workspace_limit);
}

void GpuResources::give_back(size_t most) const {
    auto kept = kept_.begin();
    for (; kept != kept_.end() && held_bytes_ > most; ++kept) {
        cudaFreeAsync(kept->memory, stream_);
        held_bytes_ -= kept->bytes;
    }
    kept_.erase(kept_.begin(), kept);
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
