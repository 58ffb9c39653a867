#include <faiss_turboquant/io/graph_records.h>

#include <algorithm>
#include <string>
#include <vector>

#include <faiss_turboquant/io/fields.h>

namespace faiss_turboquant {

namespace {

/// where each vertex's neighbours begin, and where the last one's end
std::vector<size_t> offsets_of(BlockReader& f, const faiss::HNSW& hnsw) {
    const std::vector<int>& ends = hnsw.cum_nneighbor_per_level;
    std::vector<size_t> offsets = {0};
    for (int level : hnsw.levels) {
        if (level < 0 || size_t(level) >= ends.size() || ends[level] < 0) {
            throw_bad_value(f, "the level of a vertex", std::to_string(level));
        }
        offsets.push_back(offsets.back() + ends[level]);
    }
    return offsets;
}

void read_nsg_graph(BlockReader& f, faiss::NSG& nsg) {
    nsg.enterpoint = read_value<int32_t>(f, "enterpoint");
    // FAISS counts in int
    const uint64_t n = uint64_t(nsg.ntotal) * nsg.R;
    if (n > INT32_MAX) {
        throw_bad_value(f, "the number of neighbors", std::to_string(n));
    }
    faiss::MaybeOwnedVector<int32_t> neighbors;
    read_array(f, neighbors, n, "neighbors");
    nsg.final_graph =
            std::make_shared<faiss::nsg::Graph<int32_t>>(nsg.ntotal, nsg.R);
    std::copy_n(neighbors.data(), n, nsg.final_graph->data);
}

} // namespace

void write_hnsw(BlockWriter& f, const faiss::IndexHNSW& index) {
    const faiss::HNSW& hnsw = index.hnsw;
    write_header(f, index);
    write_value<uint8_t>(f, index.init_level0);
    write_value<uint8_t>(f, index.keep_max_size_level0);
    write_vector(f, hnsw.assign_probas);
    write_items(f, hnsw.cum_nneighbor_per_level);
    write_value<int32_t>(f, hnsw.entry_point);
    write_value<int32_t>(f, hnsw.max_level);
    write_value<int32_t>(f, hnsw.efConstruction);
    write_value<int32_t>(f, hnsw.efSearch);
    write_value<uint8_t>(f, hnsw.check_relative_distance);
    write_value<uint8_t>(f, hnsw.search_bounded_queue);
    write_items(f, hnsw.levels);
    write_array(f, hnsw.neighbors);
}

std::unique_ptr<faiss::IndexHNSW> read_hnsw(BlockReader& f) {
    auto index = std::make_unique<faiss::IndexHNSW>();
    faiss::HNSW& hnsw = index->hnsw;
    read_header(f, *index);
    index->init_level0 = read_bool(f, "init_level0");
    index->keep_max_size_level0 = read_bool(f, "keep_max_size_level0");
    read_vector(f, hnsw.assign_probas, "assign_probas");
    read_items(
            f,
            hnsw.cum_nneighbor_per_level,
            hnsw.assign_probas.size() + 1,
            "cum_nneighbor_per_level");
    hnsw.entry_point = read_value<int32_t>(f, "entry_point");
    hnsw.max_level = read_value<int32_t>(f, "max_level");
    hnsw.efConstruction = read_value<int32_t>(f, "efConstruction");
    hnsw.efSearch = read_value<int32_t>(f, "efSearch");
    hnsw.check_relative_distance = read_bool(f, "check_relative_distance");
    hnsw.search_bounded_queue = read_bool(f, "search_bounded_queue");
    read_items(f, hnsw.levels, index->ntotal, "levels");
    hnsw.offsets = offsets_of(f, hnsw);
    read_array(f, hnsw.neighbors, hnsw.offsets.back(), "neighbors");
    return index;
}

void write_nsg(BlockWriter& f, const faiss::IndexNSG& index) {
    const faiss::NSG& nsg = index.nsg;
    write_header(f, index);
    write_value<int32_t>(f, index.GK);
    write_value<uint8_t>(f, index.build_type);
    write_value<int32_t>(f, index.nndescent_S);
    write_value<int32_t>(f, index.nndescent_R);
    write_value<int32_t>(f, index.nndescent_L);
    write_value<int32_t>(f, index.nndescent_iter);
    write_value<int32_t>(f, nsg.R);
    write_value<int32_t>(f, nsg.L);
    write_value<int32_t>(f, nsg.C);
    write_value<int32_t>(f, nsg.search_L);
    write_value<uint8_t>(f, nsg.is_built);
    if (nsg.is_built) {
        write_value<int32_t>(f, nsg.enterpoint);
        f.write_array([&](faiss::IOWriter& out) {
            write_bytes(
                    out,
                    nsg.final_graph->data,
                    size_t(nsg.ntotal) * nsg.R * sizeof(int32_t));
        });
    }
}

std::unique_ptr<faiss::IndexNSG> read_nsg(BlockReader& f) {
    auto index = std::make_unique<faiss::IndexNSG>();
    faiss::NSG& nsg = index->nsg;
    read_header(f, *index);
    if (index->ntotal > INT32_MAX) {
        throw_bad_value(f, "ntotal", std::to_string(index->ntotal));
    }
    index->GK = read_value<int32_t>(f, "GK");
    index->build_type = read_within<uint8_t>(f, "build_type", 0, 1);
    index->nndescent_S = read_value<int32_t>(f, "nndescent_S");
    index->nndescent_R = read_value<int32_t>(f, "nndescent_R");
    index->nndescent_L = read_value<int32_t>(f, "nndescent_L");
    index->nndescent_iter = read_value<int32_t>(f, "nndescent_iter");
    nsg.R = read_within<int32_t>(f, "R", 1, INT32_MAX);
    nsg.L = read_value<int32_t>(f, "L");
    nsg.C = read_value<int32_t>(f, "C");
    nsg.search_L = read_value<int32_t>(f, "search_L");
    nsg.is_built = index->is_built = read_bool(f, "is_built");
    nsg.ntotal = nsg.is_built ? index->ntotal : 0;
    if (nsg.is_built) {
        read_nsg_graph(f, nsg);
    }
    return index;
}

} // namespace faiss_turboquant
