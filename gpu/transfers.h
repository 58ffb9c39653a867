#pragma once

/** Arguments of the indexes' functions, which may be in host or device memory,
 * on their way to and from kernels. */

#include <cinttypes>
#include <cstddef>
#include <vector>

#include <cuda_runtime.h>

#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>

#include <faiss_turboquant/IdFilter.h>
#include <gpu/GpuResources.h>
#include <gpu/kernels/cuda_utils.h>
#include <gpu/kernels/encode.h>

namespace faiss_turboquant {
namespace gpu {

/// bytes of vectors or codes that pass through the workspace at a time
constexpr size_t page_bytes = size_t(64) << 20;

/// n elements, on the host or the device, in the order of the stream
template <class T>
void copy(const GpuResources& resources, const T* from, T* to, size_t n) {
    if (n > 0) {
        TQ_CUDA(cudaMemcpyAsync(
                to,
                from,
                n * sizeof(T),
                cudaMemcpyDefault,
                resources.stream()));
    }
}

template <class T>
DeviceArray<T> upload(
        const GpuResources& resources,
        const T* from,
        size_t n,
        MemoryUse use = MemoryUse::workspace) {
    DeviceArray<T> array(resources, n, use);
    copy(resources, from, array.data(), n);
    return array;
}

template <class T>
DeviceArray<T> upload(
        const GpuResources& resources,
        const std::vector<T>& from,
        MemoryUse use = MemoryUse::workspace) {
    return upload(resources, from.data(), from.size(), use);
}

/// n elements from the device. Waits.
template <class T>
std::vector<T> download(
        const GpuResources& resources,
        const T* from,
        size_t n) {
    std::vector<T> to(n);
    if (n > 0) {
        copy(resources, from, to.data(), n);
        resources.synchronize();
    }
    return to;
}

/// whether kernels on the device can use the pointer
inline bool is_on_device(const void* pointer, int device) {
    cudaPointerAttributes attributes = {};
    TQ_CUDA(cudaPointerGetAttributes(&attributes, pointer));
    return attributes.type == cudaMemoryTypeManaged ||
            (attributes.type == cudaMemoryTypeDevice &&
             attributes.device == device);
}

/// input as an array on the device: itself if it is there already
template <class T>
struct Input {
    Input(const GpuResources& resources, const T* from, size_t n) : data(from) {
        if (!is_on_device(from, resources.device)) {
            owned = upload(resources, from, n);
            data = owned.data();
        }
    }

    const T* data;
    DeviceArray<T> owned;
};

/// input as an array on the host: itself if it is there already. Waits.
template <class T>
struct HostInput {
    HostInput(const GpuResources& resources, const T* from, size_t n)
            : data(from) {
        if (n > 0 && is_on_device(from, resources.device)) {
            owned = download(resources, from, n);
            data = owned.data();
        }
    }

    const T* data;
    std::vector<T> owned;
};

/// output as an array on the device, and the way to where it belongs
template <class T>
struct Output {
    Output(const GpuResources& resources, T* to, size_t n)
            : resources(resources), to(to), data(to), n(n) {
        if (!is_on_device(to, resources.device)) {
            owned = DeviceArray<T>(resources, n);
            data = owned.data();
        }
    }

    /// host memory is written once the stream has been waited for
    void deliver() {
        if (is_elsewhere()) {
            copy(resources, data, to, n);
        }
    }
    bool is_elsewhere() const {
        return data != to;
    }

    const GpuResources& resources;
    T* to;
    T* data;
    size_t n;
    DeviceArray<T> owned;
};

/** The first rows of an input that are refused. They are read back when the
 * kernels that check have run, whatever else is in the stream by then. */
struct InputCheck {
    explicit InputCheck(const GpuResources& resources)
            : resources(resources), mailbox(resources.take_mailbox()) {
        static_assert(sizeof(Refused) <= GpuResources::Mailbox::size);
        *refused() = {no_row, no_row};
    }
    ~InputCheck() {
        if (!is_fetched) {
            cudaEventRecord(mailbox.written, resources.stream());
        }
        cudaEventSynchronize(mailbox.written); // no kernel writes any more
        resources.give_mailbox(mailbox);
    }
    InputCheck(const InputCheck&) = delete;
    InputCheck& operator=(const InputCheck&) = delete;

    /// For kernels, too: memory of the host, which they hardly ever write. That
    /// saves two copies.
    Refused* refused() const {
        return static_cast<Refused*>(mailbox.memory);
    }

    /// after the kernels that check
    void fetch() {
        TQ_CUDA(cudaEventRecord(mailbox.written, resources.stream()));
        is_fetched = true;
    }

    /// waits
    const Refused& result() const {
        TQ_CUDA(cudaEventSynchronize(mailbox.written));
        return *refused();
    }

    const GpuResources& resources;
    GpuResources::Mailbox mailbox;
    bool is_fetched = false;
};

inline void check_queries(const InputCheck& check) {
    const Refused& refused = check.result();
    FAISS_THROW_IF_NOT_FMT(
            refused.not_finite == no_row ||
                    refused.not_finite > refused.too_long,
            "TurboQuant: query %" PRIu64 " has a NaN or an infinity",
            refused.not_finite);
    FAISS_THROW_IF_NOT_FMT(
            refused.too_long == no_row,
            "TurboQuant: query %" PRIu64
            " is too long: its squared norm or its "
            "product with the centre exceeds float32",
            refused.too_long);
}

inline void check_vectors(const InputCheck& check) {
    const Refused& refused = check.result();
    FAISS_THROW_IF_NOT_FMT(
            refused.not_finite == no_row,
            "TurboQuant: vector %" PRIu64 " has a NaN or an infinity",
            refused.not_finite);
    FAISS_THROW_IF_NOT_FMT(
            refused.too_long == no_row,
            "TurboQuant: vector %" PRIu64
            " is too long: its squared norm or its "
            "product with the centre exceeds float32",
            refused.too_long);
}

/// the rows that a search may find
struct Selection {
    /// @param sel  of the rows 0 .. n - 1; null: all
    Selection(
            const GpuResources& resources,
            const faiss::IDSelector* sel,
            size_t n)
            : Selection(
                      resources,
                      sel ? IdFilter(*sel).select(n) : IdFilter::Bitmap()) {}

    /// @param sel  of the ids of the rows; null: all
    Selection(
            const GpuResources& resources,
            const faiss::IDSelector* sel,
            const std::vector<faiss::idx_t>& ids)
            : Selection(
                      resources,
                      sel ? IdFilter(*sel).select(ids.data(), ids.size())
                          : IdFilter::Bitmap()) {}

    /// in words of 32 bits; null: all rows
    const uint32_t* rows() const {
        return reinterpret_cast<const uint32_t*>(on_device.data());
    }

    IdFilter::Bitmap bitmap; ///< has to outlive the upload
    DeviceArray<uint64_t> on_device;

   private:
    Selection(const GpuResources& resources, IdFilter::Bitmap rows)
            : bitmap(std::move(rows)), on_device(upload(resources, bitmap)) {}
};

} // namespace gpu
} // namespace faiss_turboquant
