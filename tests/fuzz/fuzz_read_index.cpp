/** Whatever read_index accepts can be searched, written and read again. */

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include <faiss/Index.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>
#include <faiss/impl/zerocopy_io.h>

#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_io.h>
#include <faiss_turboquant/index_tree.h>

namespace {

using IndexPtr = std::unique_ptr<faiss::Index>;

/// does not tell how much is left
struct Reader : faiss::IOReader {
    const uint8_t* bytes;
    size_t left;

    Reader(const uint8_t* bytes, size_t size) : bytes(bytes), left(size) {
        name = "fuzzed";
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        const size_t n = size == 0 ? 0 : std::min(nitems, left / size);
        if (n > 0) {
            memcpy(ptr, bytes, n * size);
        }
        bytes += n * size;
        left -= n * size;
        return n;
    }
};

std::vector<uint8_t> written(const faiss::Index& index) {
    faiss::VectorIOWriter writer;
    faiss_turboquant::write_index(&index, &writer);
    return std::move(writer.data);
}

/** FAISS's own limits: it takes memory for k * k_factor results, and looks for
 * search_L different vectors until it has found them. */
bool can_search(const faiss::Index& index) {
    auto nsg = dynamic_cast<const faiss::IndexNSG*>(&index);
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index);
    auto refine = dynamic_cast<const faiss::IndexRefine*>(&index);
    if (index.d > 1 << 16 ||
        (nsg && (!nsg->is_built || nsg->nsg.search_L > nsg->ntotal)) ||
        (ivf && !ivf->invlists) || (refine && !(refine->k_factor < 1000))) {
        return false;
    }
    const auto parts = faiss_turboquant::sub_indexes(&index);
    return std::all_of(parts.begin(), parts.end(), [](auto part) {
        return can_search(*part);
    });
}

void search(const faiss::Index& index) {
    if (!can_search(index)) {
        return;
    }
    const size_t nq = 2, k = 3;
    std::vector<float> xq(nq * index.d, 0.25f), distances(nq * k);
    std::vector<faiss::idx_t> labels(nq * k);
    index.search(nq, xq.data(), k, distances.data(), labels.data());
}

void range_search(const faiss::Index& index) {
    if (!can_search(index)) {
        return;
    }
    std::vector<float> xq(index.d, 0.25f);
    faiss::RangeSearchResult result(1);
    index.range_search(1, xq.data(), 1.5, &result);
}

/// an exception is an answer
template <class F>
void attempt(F f) {
    try {
        f();
    } catch (const faiss::FaissException&) {
    }
}

} // namespace

/// FAISS's function leaks when a transform throws, as one does that is not
/// trained
extern "C" const char* __lsan_default_suppressions() {
    return "leak:faiss::VectorTransform::apply\n";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
    // the rest goes to FAISS's own reader
    if (size < 4 || memcmp(bytes, "TQix", 4) != 0) {
        return -1;
    }
    attempt([&] {
        Reader reader(bytes, size);
        IndexPtr(faiss_turboquant::read_index(&reader));
    });
    IndexPtr index;
    attempt([&] {
        faiss::VectorIOReader reader;
        reader.data.assign(bytes, bytes + size);
        index.reset(faiss_turboquant::read_index(&reader));
    });
    if (!index) {
        return 0;
    }
    attempt([&] { search(*index); });
    attempt([&] { range_search(*index); });
    attempt([&] {
        faiss::ZeroCopyIOReader view(bytes, size);
        search(*IndexPtr(faiss_turboquant::read_index(&view)));
    });
    attempt([&] {
        std::vector<float> x(index->d);
        index->reconstruct(0, x.data());
    });
    const std::vector<uint8_t> once = written(*index);
    const IndexPtr clone(faiss_turboquant::clone_index(index.get()));
    FAISS_THROW_IF_NOT(written(*clone) == once);
    Reader reader(once.data(), once.size());
    const IndexPtr back(faiss_turboquant::read_index(&reader));
    FAISS_THROW_IF_NOT(written(*back) == once);
    return 0;
}
