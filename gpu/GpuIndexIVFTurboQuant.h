#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/Index.h>
#include <faiss/IndexIVF.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <gpu/GpuResources.h>

namespace faiss {
namespace gpu {

/** IndexIVFTurboQuant with its lists on a GPU: the same codes, and the same
 * ids and distances, bit for bit.
 *
 * The coarse quantizer is any index. One on the CPU searches there, so that
 * queries on the device are copied to the host first; a GpuIndexTurboQuant
 * ("IVF4096(TQ4),TQ4") searches on the device.
 *
 * As of a GpuIndexTurboQuant, vectors, queries and results may be in host
 * memory or on the device, work is issued on the stream of the resources, and
 * searches may run in several threads at once, but nothing beside a call that
 * changes the index. A search for so many queries that lists have several of
 * them, or with a coarse quantizer elsewhere, waits for the lists that they
 * probe. */
struct GpuIndexIVFTurboQuant : Index {
    using Resources = faiss_turboquant::gpu::GpuResources;

    /// greatest k of a search
    static constexpr idx_t max_k = 2048;

    /// lists that a search looks into for each query
    size_t nprobe = 1;

    /** Without vectors; otherwise as IndexIVFTurboQuant, d up to 16384.
     * @param quantizer  not owned */
    GpuIndexIVFTurboQuant(
            std::shared_ptr<Resources> resources,
            Index* quantizer,
            idx_t d,
            idx_t nlist,
            int nbits = 4,
            MetricType metric = METRIC_L2,
            faiss_turboquant::RotationType rotation_type =
                    faiss_turboquant::RotationType::Hadamard,
            uint64_t seed = faiss_turboquant::TurboQuantizer::default_seed,
            int memory = 0);

    /// a copy of an index on the CPU, whose codec is CodecType::Scaled
    GpuIndexIVFTurboQuant(
            std::shared_ptr<Resources> resources,
            const IndexIVFTurboQuant& index);

    ~GpuIndexIVFTurboQuant() override;

    int getDevice() const;
    std::shared_ptr<Resources> getResources() const;

    /** Take the parameters and vectors of an index on the CPU in place of one's
     * own, with a copy of its quantizer: if that is an IndexTurboQuant, a
     * GpuIndexTurboQuant. On an exception this is unchanged. */
    void copyFrom(const IndexIVFTurboQuant* index);

    /// give them to an index on the CPU, in place of its own
    void copyTo(IndexIVFTurboQuant* index) const;

    /// the index on the CPU that this is as, without its vectors
    const IndexIVFTurboQuant& parameters() const;

    /// vectors of a list
    size_t get_list_size(idx_t list_no) const;

    /// as IndexIVFTurboQuant
    void train(idx_t n, const float* x) override;

    /// on an exception the index is unchanged
    void add(idx_t n, const float* x) override;

    /** The same.
     * @param xids  (n,) in host memory, or null: ntotal, ntotal + 1, .. */
    void add_with_ids(idx_t n, const float* x, const idx_t* xids) override;

    /** k is 1 to max_k; otherwise as IndexIVFTurboQuant.
     * @param params  null or SearchParametersIVF (nprobe, sel,
     *                quantizer_params; max_codes is refused) */
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const SearchParameters* params = nullptr) const override;

    /// results of a query by ascending id
    void range_search(
            idx_t n,
            const float* x,
            float radius,
            RangeSearchResult* result,
            const SearchParameters* params = nullptr) const override;

    void reset() override;

    size_t remove_ids(const IDSelector& sel) override;

    /** Looks through all ids.
     * @param recons  (d,), on the host or the device */
    void reconstruct(idx_t key, float* recons) const override;

   private:
    struct State;
    struct Search;

    void set_state(std::unique_ptr<State> state);
    std::vector<idx_t> find_lists(
            idx_t n,
            const float* x,
            size_t nprobe,
            const SearchParameters* quantizer_params) const;
    faiss_turboquant::gpu::DeviceArray<idx_t> find_lists_on_device(
            idx_t n,
            const float* x,
            const float* input,
            size_t nprobe,
            const SearchParameters* quantizer_params) const;
    bool is_direct(idx_t n, size_t nprobe) const;
    /// f(first, n, Search) for pages of queries that fit in the workspace.
    /// k: results of a query; 0: all within a radius
    template <class F>
    void for_each_page(
            idx_t n,
            const float* x,
            int k,
            const IVFSearchParameters* params,
            F f) const;

    std::shared_ptr<Resources> resources_;
    std::unique_ptr<State> state_;
};

} // namespace gpu
} // namespace faiss
