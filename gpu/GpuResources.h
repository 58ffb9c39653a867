#pragma once

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace faiss_turboquant {
namespace gpu {

/// what memory is for: what a call works in is kept for the next one
enum class MemoryUse { workspace, index };

/** A device, a stream, and memory in the stream's order, from pools. Work of
 * an index is issued on this stream. Indexes may share one, and several threads
 * may use it at once; what they issue then runs in turn. */
struct GpuResources {
    /** @param device           its number
     *  @param stream           not owned; null: a new one that does not wait
     *                          for the default stream
     *  @param workspace_limit  a search goes through its queries in pages that
     *                          need no more bytes than this besides the codes
     *                          (a page has one query at least); so much memory
     *                          is kept for later calls, too
     *  @throws faiss::FaissException if there is no such device, or it is older
     *          than compute capability 8.0 */
    explicit GpuResources(
            int device = 0,
            cudaStream_t stream = nullptr,
            size_t workspace_limit = default_workspace_limit);
    ~GpuResources();
    GpuResources(const GpuResources&) = delete;
    GpuResources& operator=(const GpuResources&) = delete;

    static constexpr size_t default_workspace_limit = size_t(1536) << 20;

    const int device;
    const size_t workspace_limit;

    cudaStream_t stream() const {
        return stream_;
    }

    /// null for 0 bytes. @throws faiss::FaissException if there is no room
    void* allocate(size_t bytes, MemoryUse use = MemoryUse::workspace) const;
    /// the arguments of `allocate`, and what it has returned
    void release(void* memory, size_t bytes, MemoryUse use) const;

    void synchronize() const;

    /** What is issued from now on waits for what is on another stream by now.
     * @param device  of the other stream; null is the device's default one */
    void wait_for(cudaStream_t other, int device) const;

    /// What is put on another stream from now on waits for what is issued by
    /// now.
    void make_wait(cudaStream_t other, int device) const;

    /// a little page-locked memory, and an event that says when it is written
    struct Mailbox {
        static constexpr size_t size = 64;
        void* memory = nullptr;
        cudaEvent_t written = nullptr;
    };
    Mailbox take_mailbox() const;
    void give_mailbox(const Mailbox& mailbox) const;

   private:
    struct Kept {
        size_t bytes;
        void* memory;
    };

    /// to the pool, the oldest first, until no more than so many bytes are held
    void give_back(size_t most) const;

    cudaStream_t stream_ = nullptr;
    bool owns_stream_ = false;
    // of one, the codes would be counted in what is kept
    cudaMemPool_t workspace_pool_ = nullptr;
    cudaMemPool_t index_pool_ = nullptr;
    mutable std::mutex mutex_;
    // A search takes some twenty arrays, for which a pool takes as long as a
    // small one.
    mutable std::vector<Kept> kept_; ///< in the order in which they came
    mutable size_t held_bytes_ = 0;  ///< of the workspace: in use, and kept
    // making one takes longer than many a search
    mutable std::vector<Mailbox> mailboxes_;
};

/// makes a device current, and what was before at its end
struct DeviceScope {
    explicit DeviceScope(int device);
    ~DeviceScope();
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

   private:
    int before_ = 0;
};

/// an array on the device, not initialised
template <class T>
struct DeviceArray {
    DeviceArray() = default;
    DeviceArray(
            const GpuResources& resources,
            size_t size,
            MemoryUse use = MemoryUse::workspace)
            : resources_(&resources),
              use_(use),
              data_(static_cast<T*>(resources.allocate(size * sizeof(T), use))),
              size_(size) {}
    DeviceArray(DeviceArray&& other) noexcept {
        swap(other);
    }
    DeviceArray& operator=(DeviceArray&& other) noexcept {
        swap(other);
        return *this;
    }
    ~DeviceArray() {
        if (data_) {
            resources_->release(data_, size_ * sizeof(T), use_);
        }
    }

    T* data() const {
        return data_;
    }
    size_t size() const {
        return size_;
    }

   private:
    void swap(DeviceArray& other) {
        std::swap(resources_, other.resources_);
        std::swap(use_, other.use_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

    const GpuResources* resources_ = nullptr;
    MemoryUse use_ = MemoryUse::workspace;
    T* data_ = nullptr;
    size_t size_ = 0;
};

} // namespace gpu
} // namespace faiss_turboquant
