#pragma once

#include <cstdint>
#include <memory>

#include <faiss/Index.h>

#include <faiss_turboquant/IndexTurboQuant.h>
#include <gpu/GpuResources.h>

namespace faiss_turboquant {
namespace gpu {
struct CodeStorage;
struct DeviceCodes;
struct ScanPlan;
class DeviceSignFilter;
class SignSearch;
} // namespace gpu
} // namespace faiss_turboquant

namespace faiss {
namespace gpu {

/** IndexTurboQuant with its codes on a GPU: the same codes, and the same ids
 * and distances, bit for bit.
 *
 * Vectors, queries and results may be in host memory or on the device; which,
 * is found out from the pointer. Work is issued on the stream of the resources,
 * and inputs on the device have to be ready on it. Before it returns, a call
 * waits until its input has been checked, and for results that go to the host;
 * results on the device are in the stream's order.
 *
 * Searches may run in several threads at once; nothing else may run beside a
 * call that changes the index. It needs nothing but a CPU build of FAISS. */
struct GpuIndexTurboQuant : Index {
    using Resources = faiss_turboquant::gpu::GpuResources;

    /// greatest k of a search
    static constexpr idx_t max_k = 2048;
    /// greatest number of vectors
    static constexpr idx_t max_ntotal = (idx_t(1) << 32) - 4096;

    /** Whether searches for up to eight queries first read the signs of all
     * codes, and then those codes alone that can be among the results, as those
     * of IndexTurboQuant do, and a second bit likewise. It takes d / 8 + 9
     * bytes more on the device for each vector that there is room for, from the
     * first such search on, as much for the second bit after a few that would
     * have gained by it, and a byte or two for each vector and query of the
     * workspace.
     *
     *   -1: where it takes no more than half of the memory that is free and
     *       reading few codes makes up for reading signs (one query: from 0.3
     *       million vectors of 1536 dimensions on at four bits, 0.5 at three
     *       and with smaller trellis codes, 1.1 at two; of 768 dimensions 0.7,
     *       1.3 and 2.2), but not for some searches after one that had to read
     *       many codes all the same
     *    0: never
     *    1: if it fits into the workspace
     *    2: the same, with the second bit from the beginning
     *
     * copyFrom and copyTo leave it, on either side, as it is. */
    int use_sign_filter = -1;

    /// as of IndexTurboQuant; copyFrom and copyTo copy it
    double sign_margin = 5.5;

    /// an empty index; parameters as of IndexTurboQuant, d up to 16384
    GpuIndexTurboQuant(
            std::shared_ptr<Resources> resources,
            idx_t d,
            int nbits = 4,
            MetricType metric = METRIC_L2,
            faiss_turboquant::RotationType rotation_type =
                    faiss_turboquant::RotationType::Hadamard,
            uint64_t seed = faiss_turboquant::TurboQuantizer::default_seed,
            int memory = 0);

    /// a copy of an index on the CPU, whose codec is CodecType::Scaled
    GpuIndexTurboQuant(
            std::shared_ptr<Resources> resources,
            const IndexTurboQuant& index);

    ~GpuIndexTurboQuant() override;

    int getDevice() const;
    std::shared_ptr<Resources> getResources() const;

    /// take the parameters and vectors of an index on the CPU in place of
    /// one's own. On an exception this is unchanged.
    void copyFrom(const IndexTurboQuant* index);

    /// give them to an index on the CPU, in place of its own
    void copyTo(IndexTurboQuant* index) const;

    const faiss_turboquant::TurboQuantizer& quantizer() const {
        return tq;
    }

    /// room for so many vectors in all
    void reserve(idx_t n);

    /// Optional. Sets the centre to the mean of x, as IndexTurboQuant does.
    void train(idx_t n, const float* x) override;

    /// on an exception the index is unchanged
    void add(idx_t n, const float* x) override;

    /// k is 1 to max_k; otherwise as IndexTurboQuant
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const SearchParameters* params = nullptr) const override;

    void range_search(
            idx_t n,
            const float* x,
            float radius,
            RangeSearchResult* result,
            const SearchParameters* params = nullptr) const override;

    /** Scores alone: the distances of all vectors, with the bits of those that
     * a search returns.
     * @param x          (n, d), on the host or the device
     * @param distances  (n, ntotal), on the host or the device, written:
     * squared L2 distances, or inner products
     * @throws faiss::FaissException naming the first query that is not finite
     */
    void compute_distances(idx_t n, const float* x, float* distances) const;

    void reset() override;

    size_t remove_ids(const IDSelector& sel) override;

    /// recons: (d,), on the host or the device
    void reconstruct(idx_t key, float* recons) const override;

    /// recons: (ni, d), on the host or the device
    void reconstruct_n(idx_t i0, idx_t ni, float* recons) const override;

    size_t sa_code_size() const override;

   private:
    /// in place of what there is
    void set_storage(
            std::unique_ptr<faiss_turboquant::gpu::CodeStorage> storage);

    /** What a page of queries asks before it reads codes, or null.
     * @param codes  to be searched
     * @param plan   of their scan
     * @param k      0: of a range search */
    std::unique_ptr<faiss_turboquant::gpu::SignSearch> make_sign_search(
            const faiss_turboquant::gpu::DeviceCodes& codes,
            const faiss_turboquant::gpu::ScanPlan& plan,
            size_t nq,
            int k) const;

    std::shared_ptr<Resources> resources_;
    faiss_turboquant::TurboQuantizer tq;
    std::unique_ptr<faiss_turboquant::gpu::CodeStorage> storage_;
    std::unique_ptr<faiss_turboquant::gpu::DeviceSignFilter> sign_filter_;
};

} // namespace gpu
} // namespace faiss
