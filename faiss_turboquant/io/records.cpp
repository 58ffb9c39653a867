#include <faiss_turboquant/io/records.h>

#include <cstring>
#include <string>
#include <typeinfo>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/VectorTransform.h>
#include <faiss/clone_index.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>

#include <faiss_turboquant/index_tree.h>
#include <faiss_turboquant/io/check_index.h>
#include <faiss_turboquant/io/fields.h>
#include <faiss_turboquant/io/graph_records.h>
#include <faiss_turboquant/io/turboquant_records.h>

namespace faiss_turboquant {

// write_X and read_X mirror one another. A new index type needs a pair, a line
// in write_record and one in read_record.

namespace {

using faiss::fourcc;
using faiss::Index;

/// deeper than any sensible index, shallow enough for any stack
constexpr int max_depth = 32;

/** FAISS's reader takes the memory that the file asks for. So the index that
 * stands most often beside TurboQuant has a record of its own. */
const faiss::IndexFlat* as_plain_flat(const Index* index) {
    const bool is_plain = index &&
            (typeid(*index) == typeid(faiss::IndexFlat) ||
             typeid(*index) == typeid(faiss::IndexFlatL2) ||
             typeid(*index) == typeid(faiss::IndexFlatIP)) &&
            index->metric_type <= faiss::METRIC_L2;
    return is_plain ? static_cast<const faiss::IndexFlat*>(index) : nullptr;
}

void write_plain_flat(BlockWriter& f, const faiss::IndexFlat& flat) {
    check(static_cast<const faiss::IndexFlatCodes&>(flat));
    write_header(f, flat);
    write_array(f, flat.codes);
}

/// @param is_view  whether its vectors may stay in the file
std::unique_ptr<Index> read_plain_flat(BlockReader& f, bool is_view) {
    faiss::IndexFlat header;
    read_header(f, header);
    std::unique_ptr<faiss::IndexFlat> flat;
    if (header.metric_type == faiss::METRIC_L2) {
        flat = std::make_unique<faiss::IndexFlatL2>(header.d);
    } else {
        flat = std::make_unique<faiss::IndexFlatIP>(header.d);
    }
    flat->is_trained = header.is_trained;
    flat->ntotal = header.ntotal;
    if (uint64_t(flat->ntotal) > f.left() / flat->code_size) {
        throw_cut_short(f.name, "vectors");
    }
    const uint64_t size = flat->ntotal * flat->code_size;
    read_array(f, flat->codes, size, "vectors", is_view);
    return flat;
}

/// names of the records of flat indexes and of inverted files, by what they
/// tell
struct RecordNames {
    const char* flat;
    const char* ivf;
    QuantizerFields fields;
};

constexpr RecordNames record_names[] = {
        {"TQfl", "TQIv", QuantizerFields::Scaled},
        {"TQfc", "TQIc", QuantizerFields::Codec},
        {"TQft", "TQIt", QuantizerFields::TwoTrellises},
};

const RecordNames& names_of(const TurboQuantizer& tq) {
    return record_names[static_cast<int>(fields_of(tq))];
}

/// FAISS would map inverted lists, but only of a file of its own
int without_mapping(int io_flags) {
    const bool map_lists =
            (io_flags & faiss::IO_FLAG_MMAP) == faiss::IO_FLAG_MMAP;
    return io_flags & ~faiss::IO_FLAG_MMAP_IFC &
            ~(map_lists ? faiss::IO_FLAG_MMAP : 0);
}

void write_by_faiss(BlockWriter& f, const Index* index, int io_flags) {
    f.write_array([&](faiss::IOWriter& out) {
        faiss::write_index(index, &out, io_flags);
    });
}

std::unique_ptr<Index> read_by_faiss(BlockReader& f, int io_flags) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    // its reader takes the memory that a file asks for, and more
    FAISS_THROW_MSG("read_index: indexes of FAISS's are not fuzzed");
#endif
    ArrayReader array = f.open_array("an index of FAISS's");
    std::unique_ptr<Index> index(
            faiss::read_index(&array, without_mapping(io_flags)));
    array.finish();
    return index;
}

void write_id_map(BlockWriter& f, const faiss::IndexIDMap& map, int io_flags) {
    write_header(f, map);
    write_record(f, map.index, io_flags);
    write_items(f, map.id_map);
}

std::unique_ptr<Index> read_id_map(
        BlockReader& f,
        std::unique_ptr<faiss::IndexIDMap> map,
        int io_flags,
        int depth) {
    map->own_fields = true;
    read_header(f, *map);
    map->index = read_record(f, io_flags, depth).release();
    read_items(f, map->id_map, map->ntotal, "id_map");
    check(*map);
    if (auto map2 = dynamic_cast<faiss::IndexIDMap2*>(map.get())) {
        map2->construct_rev_map();
    }
    return map;
}

/** For FAISS's reader of transforms, which allocates what the file says and
 * leaks it when it throws: puts zeros in place of what is missing or makes no
 * sense, and remembers that it did. In the records of transforms a single
 * 8-byte number is the length of an array of 4-byte elements, and a single
 * byte is a bool. */
struct TransformReader : MemoryReader {
    using MemoryReader::MemoryReader;
    bool is_valid = true;

    size_t operator()(void* ptr, size_t item, size_t nitems) override {
        const size_t n = MemoryReader::operator()(ptr, item, nitems);
        bool is_good = n == nitems;
        if (is_good && item == 8 && n == 1) {
            uint64_t length;
            memcpy(&length, ptr, sizeof(length));
            is_good = length <= left() / 4;
        } else if (is_good && item == 1 && n == 1) {
            is_good = *static_cast<uint8_t*>(ptr) <= 1;
        }
        if (!is_good) {
            memset(ptr, 0, item * nitems);
            is_valid = false;
        }
        return nitems;
    }
};

void write_pre_transform(
        BlockWriter& f,
        const faiss::IndexPreTransform& pre,
        int io_flags) {
    write_header(f, pre);
    write_value<uint32_t>(f, pre.chain.size());
    for (const faiss::VectorTransform* vt : pre.chain) {
        faiss::VectorIOWriter bytes;
        faiss::write_VectorTransform(vt, &bytes);
        write_vector(f, bytes.data);
    }
    write_record(f, pre.index, io_flags);
}

std::unique_ptr<faiss::VectorTransform> read_transform(BlockReader& f) {
    std::vector<uint8_t> bytes;
    read_vector(f, bytes, "a vector transform");
    TransformReader reader(bytes.data(), bytes.size());
    reader.name = f.name;
    std::unique_ptr<faiss::VectorTransform> vt(
            faiss::read_VectorTransform(&reader));
    if (!reader.is_valid || reader.left() != 0) {
        throw_altered(f.name, "a vector transform does not fit its size");
    }
    // FAISS determines this before it knows the dimensions
    auto linear = dynamic_cast<faiss::LinearTransform*>(vt.get());
    if (linear && !linear->A.empty() && has_expected_sizes(*linear)) {
        linear->set_is_orthonormal();
    }
    return vt;
}

std::unique_ptr<Index> read_pre_transform(
        BlockReader& f,
        int io_flags,
        int depth) {
    auto pre = std::make_unique<faiss::IndexPreTransform>();
    pre->own_fields = true;
    read_header(f, *pre);
    // the chain grows with what was read: no size to check
    const auto n = read_value<uint32_t>(f, "number of vector transforms");
    for (uint32_t i = 0; i < n; i++) {
        auto vt = read_transform(f);
        pre->chain.push_back(vt.get());
        vt.release();
    }
    pre->index = read_record(f, io_flags, depth).release();
    check(*pre);
    return pre;
}

void write_refine(
        BlockWriter& f,
        const faiss::IndexRefine& refine,
        int io_flags) {
    write_header(f, refine);
    write_value<float>(f, refine.k_factor);
    write_record(f, refine.base_index, io_flags);
    // FAISS ends the process when a view is to change: a view only where a
    // TurboQuant index refuses that first
    auto flat = as_plain_flat(refine.refine_index);
    if (flat && contains_turboquant(refine.base_index)) {
        write_value<uint32_t>(f, fourcc("TQFv"));
        write_plain_flat(f, *flat);
    } else {
        write_record(f, refine.refine_index, io_flags);
    }
}

std::unique_ptr<Index> read_refine(
        BlockReader& f,
        std::unique_ptr<faiss::IndexRefine> refine,
        int io_flags,
        int depth) {
    refine->own_fields = refine->own_refine_index = true;
    read_header(f, *refine);
    refine->k_factor = read_value<float>(f, "k_factor");
    refine->base_index = read_record(f, io_flags, depth).release();
    refine->refine_index = read_record(f, io_flags, depth).release();
    check(*refine);
    return refine;
}

void write_min_max(
        BlockWriter& f,
        const faiss::IndexRowwiseMinMaxBase& minmax,
        int io_flags) {
    write_header(f, minmax);
    write_record(f, minmax.index, io_flags);
}

std::unique_ptr<Index> read_min_max(
        BlockReader& f,
        std::unique_ptr<faiss::IndexRowwiseMinMaxBase> minmax,
        int io_flags,
        int depth) {
    minmax->own_fields = true;
    read_header(f, *minmax);
    minmax->index = read_record(f, io_flags, depth).release();
    check(*minmax);
    return minmax;
}

/** A graph index whose storage is TurboQuant is an IndexHNSW or IndexNSG
 * itself: FAISS's subclasses expect a storage of their own type. */
template <class Graph>
const Graph* as_graph(const Index* index) {
    return typeid(*index) == typeid(Graph) ? static_cast<const Graph*>(index)
                                           : nullptr;
}

template <class Graph>
void write_storage(BlockWriter& f, const Graph& graph, int io_flags) {
    const bool is_skipped = io_flags & faiss::IO_FLAG_SKIP_STORAGE;
    write_record(f, is_skipped ? nullptr : graph.storage, io_flags);
}

template <class Graph>
std::unique_ptr<Index> with_storage(
        BlockReader& f,
        std::unique_ptr<Graph> graph,
        int io_flags,
        int depth) {
    graph->storage = read_record(f, io_flags, depth).release();
    graph->own_fields = graph->storage != nullptr;
    check(*graph);
    return graph;
}

/// An inverted file of FAISS's, by FAISS but for its quantizer
void write_ivf_of_faiss(
        BlockWriter& f,
        const faiss::IndexIVF& ivf,
        int io_flags) {
    // of FAISS's clone of an inverted file this is the part that shares
    // quantizer and lists
    const std::unique_ptr<faiss::IndexIVF> copy(
            faiss::Cloner().clone_IndexIVF(&ivf));
    if (!copy) {
        FAISS_THROW_MSG(
                "write_index: TurboQuant as the quantizer of " +
                type_name(&ivf) + " cannot be written");
    }
    faiss::IndexFlat stand_in(ivf.d, ivf.metric_type);
    copy->quantizer = &stand_in;
    copy->own_fields = copy->own_invlists = false;
    write_by_faiss(f, copy.get(), io_flags);
    write_record(f, ivf.quantizer, io_flags);
}

/// The tables of PQ depend on the quantizer, which FAISS's reader had not.
template <class IvfPq>
void precompute_table(faiss::IndexIVF& ivf, int io_flags) {
    auto pq = dynamic_cast<IvfPq*>(&ivf);
    if (pq && !(io_flags & faiss::IO_FLAG_SKIP_PRECOMPUTE_TABLE)) {
        pq->use_precomputed_table = 0;
        pq->precompute_table();
    }
}

std::unique_ptr<Index> read_ivf_of_faiss(
        BlockReader& f,
        int io_flags,
        int depth) {
    std::unique_ptr<Index> index =
            read_by_faiss(f, io_flags | faiss::IO_FLAG_SKIP_PRECOMPUTE_TABLE);
    auto ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
    if (!ivf) {
        throw_altered(f.name, "an inverted file is of another type");
    }
    delete ivf->quantizer;
    ivf->quantizer = nullptr;
    ivf->quantizer = read_record(f, io_flags, depth).release();
    check(*ivf);
    precompute_table<faiss::IndexIVFPQ>(*ivf, io_flags);
    precompute_table<faiss::IndexIVFPQFastScan>(*ivf, io_flags);
    return index;
}

} // namespace

void write_record(BlockWriter& f, const Index* index, int io_flags) {
    using namespace faiss;
    auto tag = [&](const char* name) {
        write_value<uint32_t>(f, fourcc(name));
    };
    if (auto plain = as_plain_flat(index)) {
        tag("TQFl");
        write_plain_flat(f, *plain);
    } else if (!contains_turboquant(index)) {
        tag("TQfa");
        write_by_faiss(f, index, io_flags);
    } else if (auto flat = dynamic_cast<const IndexTurboQuant*>(index)) {
        check(*flat);
        tag(names_of(flat->tq).flat);
        write_flat(f, *flat);
    } else if (auto ivf = dynamic_cast<const IndexIVFTurboQuant*>(index)) {
        check(*ivf);
        tag(names_of(ivf->tq).ivf);
        write_ivf(f, *ivf, io_flags);
    } else if (auto ivf = dynamic_cast<const IndexIVF*>(index)) {
        check(*ivf);
        tag("TQIq");
        write_ivf_of_faiss(f, *ivf, io_flags);
    } else if (auto map = dynamic_cast<const IndexIDMap*>(index)) {
        check(*map);
        tag(dynamic_cast<const IndexIDMap2*>(index) ? "TQM2" : "TQMp");
        write_id_map(f, *map, io_flags);
    } else if (auto pre = dynamic_cast<const IndexPreTransform*>(index)) {
        check(*pre);
        tag("TQPT");
        write_pre_transform(f, *pre, io_flags);
    } else if (auto refine = dynamic_cast<const IndexRefine*>(index)) {
        check(*refine);
        tag(dynamic_cast<const IndexRefineFlat*>(index)               ? "TQRF"
                    : dynamic_cast<const IndexRefinePanorama*>(index) ? "TQRP"
                                                                      : "TQRe");
        write_refine(f, *refine, io_flags);
    } else if (
            auto minmax = dynamic_cast<const IndexRowwiseMinMaxBase*>(index)) {
        check(*minmax);
        tag(dynamic_cast<const IndexRowwiseMinMaxFP16*>(index) ? "TQMh"
                                                               : "TQMf");
        write_min_max(f, *minmax, io_flags);
    } else if (auto hnsw = as_graph<IndexHNSW>(index)) {
        check(*hnsw);
        tag("TQHN");
        write_hnsw(f, *hnsw);
        write_storage(f, *hnsw, io_flags);
    } else if (auto nsg = as_graph<IndexNSG>(index)) {
        check(*nsg);
        tag("TQNS");
        write_nsg(f, *nsg);
        write_storage(f, *nsg, io_flags);
    } else {
        FAISS_THROW_MSG(
                "write_index: TurboQuant inside " + type_name(index) +
                " cannot be written");
    }
}

std::unique_ptr<Index> read_record(BlockReader& f, int io_flags, int depth) {
    using namespace faiss;
    if (++depth > max_depth) {
        throw_altered(
                f.name,
                "indexes are nested more than " + std::to_string(max_depth) +
                        " deep");
    }
    const auto tag = read_value<uint32_t>(f, "the name of a record");
    auto is = [&](const char* name) { return tag == fourcc(name); };
    for (const RecordNames& names : record_names) {
        if (is(names.flat)) {
            return read_flat(f, names.fields);
        }
        if (is(names.ivf)) {
            return read_ivf(f, names.fields, io_flags, depth);
        }
    }
    if (is("TQfa")) {
        return read_by_faiss(f, io_flags);
    } else if (is("TQFl")) {
        return read_plain_flat(f, false);
    } else if (is("TQFv")) {
        return read_plain_flat(f, true);
    } else if (is("TQIq")) {
        return read_ivf_of_faiss(f, io_flags, depth);
    } else if (is("TQMp")) {
        return read_id_map(f, std::make_unique<IndexIDMap>(), io_flags, depth);
    } else if (is("TQM2")) {
        return read_id_map(f, std::make_unique<IndexIDMap2>(), io_flags, depth);
    } else if (is("TQPT")) {
        return read_pre_transform(f, io_flags, depth);
    } else if (is("TQRe")) {
        return read_refine(f, std::make_unique<IndexRefine>(), io_flags, depth);
    } else if (is("TQRF")) {
        return read_refine(
                f, std::make_unique<IndexRefineFlat>(), io_flags, depth);
    } else if (is("TQRP")) {
        return read_refine(
                f, std::make_unique<IndexRefinePanorama>(), io_flags, depth);
    } else if (is("TQMf")) {
        return read_min_max(
                f, std::make_unique<IndexRowwiseMinMax>(), io_flags, depth);
    } else if (is("TQMh")) {
        return read_min_max(
                f, std::make_unique<IndexRowwiseMinMaxFP16>(), io_flags, depth);
    } else if (is("TQHN")) {
        return with_storage(f, read_hnsw(f), io_flags, depth);
    } else if (is("TQNS")) {
        return with_storage(f, read_nsg(f), io_flags, depth);
    }
    FAISS_THROW_MSG(
            "read_index: " + quoted(f.name) + " has a record \"" +
            fourcc_inv_printable(tag) +
            "\", which is not known to this version of faiss_turboquant");
}

} // namespace faiss_turboquant
