#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#if defined(__has_feature)
#define HAS_ADDRESS_SANITIZER __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define HAS_ADDRESS_SANITIZER 1
#else
#define HAS_ADDRESS_SANITIZER 0
#endif
#if HAS_ADDRESS_SANITIZER
#include <sanitizer/lsan_interface.h>

/// FAISS's function leaks when a transform throws, clang's OpenMP at the end
extern "C" const char* __lsan_default_suppressions() {
    return "leak:faiss::VectorTransform::apply\nleak:libomp.so\n";
}
#endif

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <faiss/impl/zerocopy_io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/index_factory.h>
#include <faiss_turboquant/index_io.h>
#include <faiss_turboquant/index_tree.h>

#include "index_test.h"

namespace {

using faiss::Index;
using faiss::METRIC_INNER_PRODUCT;
using faiss::METRIC_L2;
using IndexPtr = std::unique_ptr<Index>;
using Bytes = std::vector<uint8_t>;

constexpr int d = 16;
constexpr int n = 80;
constexpr int k = 4;

bool has_ids(const std::string& description) {
    return description.find("IDMap") != std::string::npos;
}

/// any rotation will do: training OPQ takes seconds
void train_quickly(faiss::IndexPreTransform& pre) {
    auto& opq = dynamic_cast<faiss::OPQMatrix&>(*pre.chain[0]);
    faiss::RandomRotationMatrix rotation(opq.d_in, opq.d_out);
    rotation.init(5);
    opq.A = rotation.A;
    opq.is_orthonormal = true;
    opq.is_trained = pre.is_trained = true;
}

IndexPtr empty_index(
        const std::string& s,
        faiss::MetricType metric = METRIC_L2) {
    IndexPtr index(faiss_turboquant::index_factory(d, s.c_str(), metric));
    if (auto nsg = dynamic_cast<faiss::IndexNSG*>(index.get())) {
        nsg->build_type = 0; // the other needs more vectors
        nsg->GK = 20;
    }
    if (auto ivf = dynamic_cast<faiss::IndexIVF*>(index.get())) {
        ivf->nprobe = 2;
    }
    return index;
}

/// trained and with n vectors
IndexPtr make_index(
        const std::string& s,
        faiss::MetricType metric = METRIC_L2) {
    IndexPtr index = empty_index(s, metric);
    const auto x = gaussian(n, d, 1);
    if (s.find("OPQ") == 0) {
        train_quickly(dynamic_cast<faiss::IndexPreTransform&>(*index));
    }
    index->train(n, x.data());
    if (has_ids(s)) {
        std::vector<faiss::idx_t> ids(n);
        for (int i = 0; i < n; i++) {
            ids[i] = 5000 - i;
        }
        index->add_with_ids(n, x.data(), ids.data());
    } else {
        index->add(n, x.data());
    }
    return index;
}

Results results_of(const Index& index, int queries = 10) {
    return search(index, gaussian(queries, index.d, 2), k);
}

/// FAISS reads an IndexFlat as the subclass for its metric
std::string type_name(const Index& index) {
    return dynamic_cast<const faiss::IndexFlat*>(&index)
            ? "faiss::IndexFlat"
            : faiss_turboquant::type_name(&index);
}

/// FAISS's == compares empty ones by memcmp of null
template <class T>
bool are_equal(
        const faiss::MaybeOwnedVector<T>& a,
        const faiss::MaybeOwnedVector<T>& b) {
    return a.size() == b.size() &&
            std::equal(a.data(), a.data() + a.size(), b.data());
}

void expect_equal(
        const faiss_turboquant::TurboQuantizer& a,
        const faiss_turboquant::TurboQuantizer& b) {
    EXPECT_EQ(a.code_size, b.code_size);
    EXPECT_EQ(a.nbits, b.nbits);
    EXPECT_EQ(a.codec, b.codec);
    EXPECT_EQ(a.by_residual, b.by_residual);
    EXPECT_EQ(a.rotation.type, b.rotation.type);
    EXPECT_EQ(a.rotation.seed, b.rotation.seed);
    EXPECT_TRUE(a.codebook == b.codebook);
    EXPECT_TRUE(a.second_codebook == b.second_codebook);
    EXPECT_EQ(a.codebook.trellis_error, b.codebook.trellis_error);
    EXPECT_EQ(a.centre, b.centre);
}

void expect_equal(
        const faiss::InvertedLists& a,
        const faiss::InvertedLists& b) {
    EXPECT_EQ(a.nlist, b.nlist);
    EXPECT_EQ(a.code_size, b.code_size);
    for (size_t i = 0; i < a.nlist; i++) {
        const size_t size = a.list_size(i);
        ASSERT_EQ(size, b.list_size(i));
        faiss::InvertedLists::ScopedCodes a_codes(&a, i), b_codes(&b, i);
        faiss::InvertedLists::ScopedIds a_ids(&a, i), b_ids(&b, i);
        EXPECT_TRUE(std::equal(
                a_codes.get(),
                a_codes.get() + size * a.code_size,
                b_codes.get()));
        EXPECT_TRUE(std::equal(a_ids.get(), a_ids.get() + size, b_ids.get()));
    }
}

void expect_equal(
        const faiss::IndexIVFTurboQuant& a,
        const faiss::IndexIVFTurboQuant& b) {
    EXPECT_EQ(a.nlist, b.nlist);
    EXPECT_EQ(a.nprobe, b.nprobe);
    EXPECT_EQ(a.max_codes, b.max_codes);
    EXPECT_EQ(a.quantizer_trains_alone, b.quantizer_trains_alone);
    EXPECT_EQ(a.code_size, b.code_size);
    EXPECT_EQ(a.centre_scales, b.centre_scales);
    EXPECT_EQ(a.own_fields, b.own_fields);
    expect_equal(a.tq, b.tq);
    EXPECT_EQ(a.direct_map.type, b.direct_map.type);
    EXPECT_EQ(a.direct_map.array, b.direct_map.array);
    EXPECT_EQ(a.direct_map.hashtable, b.direct_map.hashtable);
    expect_equal(*a.invlists, *b.invlists);
}

void expect_equal(const faiss::IndexHNSW& a, const faiss::IndexHNSW& b) {
    EXPECT_EQ(a.init_level0, b.init_level0);
    EXPECT_EQ(a.keep_max_size_level0, b.keep_max_size_level0);
    EXPECT_EQ(a.own_fields, b.own_fields);
    const faiss::HNSW &p = a.hnsw, &q = b.hnsw;
    EXPECT_EQ(p.assign_probas, q.assign_probas);
    EXPECT_EQ(p.cum_nneighbor_per_level, q.cum_nneighbor_per_level);
    EXPECT_EQ(p.levels, q.levels);
    EXPECT_EQ(p.offsets, q.offsets);
    EXPECT_TRUE(are_equal(p.neighbors, q.neighbors));
    EXPECT_EQ(p.entry_point, q.entry_point);
    EXPECT_EQ(p.max_level, q.max_level);
    EXPECT_EQ(p.efConstruction, q.efConstruction);
    EXPECT_EQ(p.efSearch, q.efSearch);
    EXPECT_EQ(p.check_relative_distance, q.check_relative_distance);
    EXPECT_EQ(p.search_bounded_queue, q.search_bounded_queue);
}

void expect_equal(const faiss::IndexNSG& a, const faiss::IndexNSG& b) {
    EXPECT_EQ(a.own_fields, b.own_fields);
    EXPECT_EQ(a.is_built, b.is_built);
    EXPECT_EQ(a.GK, b.GK);
    EXPECT_EQ(a.build_type, b.build_type);
    EXPECT_EQ(a.nndescent_S, b.nndescent_S);
    EXPECT_EQ(a.nndescent_R, b.nndescent_R);
    EXPECT_EQ(a.nndescent_L, b.nndescent_L);
    EXPECT_EQ(a.nndescent_iter, b.nndescent_iter);
    const faiss::NSG &p = a.nsg, &q = b.nsg;
    EXPECT_EQ(p.ntotal, q.ntotal);
    EXPECT_EQ(p.R, q.R);
    EXPECT_EQ(p.L, q.L);
    EXPECT_EQ(p.C, q.C);
    EXPECT_EQ(p.search_L, q.search_L);
    ASSERT_EQ(p.is_built, q.is_built);
    if (p.is_built) {
        EXPECT_EQ(p.enterpoint, q.enterpoint);
        EXPECT_TRUE(std::equal(
                p.final_graph->data,
                p.final_graph->data + p.ntotal * p.R,
                q.final_graph->data));
    }
}

void expect_equal(const Index& a, const Index& b, const std::string& what) {
    EXPECT_EQ(type_name(a), type_name(b)) << what;
    EXPECT_EQ(a.d, b.d) << what;
    EXPECT_EQ(a.ntotal, b.ntotal) << what;
    EXPECT_EQ(a.is_trained, b.is_trained) << what;
    EXPECT_EQ(a.metric_type, b.metric_type) << what;
    const auto x = faiss_turboquant::sub_indexes(&a);
    const auto y = faiss_turboquant::sub_indexes(&b);
    ASSERT_EQ(x.size(), y.size()) << what;
    for (size_t i = 0; i < x.size(); i++) {
        expect_equal(*x[i], *y[i], what);
    }
    if (auto p = dynamic_cast<const faiss::IndexTurboQuant*>(&a)) {
        auto& q = dynamic_cast<const faiss::IndexTurboQuant&>(b);
        EXPECT_EQ(p->code_size, q.code_size);
        EXPECT_TRUE(are_equal(p->codes, q.codes));
        expect_equal(p->tq, q.tq);
    }
    if (auto p = dynamic_cast<const faiss::IndexIVFTurboQuant*>(&a)) {
        expect_equal(*p, dynamic_cast<const faiss::IndexIVFTurboQuant&>(b));
    }
    if (auto p = dynamic_cast<const faiss::IndexIDMap*>(&a)) {
        EXPECT_EQ(p->id_map, dynamic_cast<const faiss::IndexIDMap&>(b).id_map);
    }
    if (auto p = dynamic_cast<const faiss::IndexRefine*>(&a)) {
        EXPECT_EQ(
                p->k_factor,
                dynamic_cast<const faiss::IndexRefine&>(b).k_factor);
    }
    if (auto p = dynamic_cast<const faiss::IndexHNSW*>(&a)) {
        expect_equal(*p, dynamic_cast<const faiss::IndexHNSW&>(b));
    }
    if (auto p = dynamic_cast<const faiss::IndexNSG*>(&a)) {
        expect_equal(*p, dynamic_cast<const faiss::IndexNSG&>(b));
    }
}

#define EXPECT_CONTAINS(text, part) \
    EXPECT_NE((text).find(part), std::string::npos) << (text)

/// an empty directory, removed at the end
class Directory {
   public:
    Directory() {
        std::string pattern = testing::TempDir() + "/index_io_XXXXXX";
        path_ = mkdtemp(pattern.data());
    }
    ~Directory() {
        for (const std::string& name : names()) {
            unlink(operator()(name).c_str());
        }
        rmdir(path_.c_str());
    }
    std::string operator()(const std::string& name) const {
        return path_ + "/" + name;
    }
    std::vector<std::string> names() const {
        std::vector<std::string> out;
        DIR* dir = opendir(path_.c_str());
        while (const dirent* entry = readdir(dir)) {
            if (entry->d_name[0] != '.') {
                out.push_back(entry->d_name);
            }
        }
        closedir(dir);
        std::sort(out.begin(), out.end());
        return out;
    }

   private:
    std::string path_;
};

Bytes read_file(const std::string& path) {
    std::ifstream f(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(f), {});
}

void write_file(const std::string& path, const Bytes& bytes) {
    std::ofstream f(path, std::ios::binary);
    f.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

/// a reader of which the size is not known, in small pieces
struct StreamReader : faiss::IOReader {
    const Bytes& bytes;
    size_t at = 0;

    explicit StreamReader(const Bytes& bytes) : bytes(bytes) {
        name = "stream.tq";
    }
    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        const size_t items = std::min(nitems, (bytes.size() - at) / size);
        if (items > 0) {
            memcpy(ptr, bytes.data() + at, items * size);
        }
        at += items * size;
        return items;
    }
};

const std::vector<std::string> descriptions = {
        "TQ1",
        "TQ1t",
        "TQ2t",
        "TQ3t",
        "TQ4t",
        "TQ2t10",
        "TQ3t12",
        "TQ1t,Refine(TQ4t)",
        "TQ2mse",
        "TQ2.5",
        "TQ2.5t",
        "TQ1.5t10",
        "IVF4,TQ3mse",
        "IVF4,TQ3.5",
        "IVF4,TQ3.5t",
        "TQ1prod",
        "TQ3prod",
        "IVF4,TQ1prod",
        "IVF4,TQ4prod",
        "HNSW8,TQ3.5",
        "TQ2",
        "TQ3",
        "TQ4",
        "IDMap,TQ4",
        "TQ3,IDMap2",
        "PCA8,TQ4",
        "PCAW8,TQ4",
        "L2norm,TQ4",
        "RR,TQ4",
        "ITQ8,TQ2",
        "OPQ4_8,TQ2",
        "Pad20,TQ2",
        "TQ2,RFlat",
        "TQ1,Refine(TQ4)",
        "TQ1,Refine(Flat)",
        "TQ1,Refine(SQ8)",
        "SQ8,Refine(TQ4)",
        "IVF2,Flat,Refine(TQ4)",
        "HNSW8,Refine(TQ4)",
        "IDMap2,L2norm,PCA8,TQ1,Refine(IDMap,L2norm,TQ4)",
        "PCA8,IDMap2,TQ2",
        "HNSW8,TQ4",
        "NSG8,TQ4",
        "IDMap,HNSW8,TQ2t",
        "IVF4,TQ4",
        "IVF4,TQ2t",
        "IVF4_HNSW8,TQ3",
        "PCA8,IVF4,TQ1",
        "IVF4,TQ1,RFlat",
        "IDMap2,IVF4,TQ4",
        "IVF4(TQ4),TQ2",
        "IVF4(TQ2,Refine(TQ4)),Flat",
        "PCA8,IVF4(HNSW8,TQ4t),PQ4x4",
        "IVF4(TQ4),PQ4x4fs",
};

/** The format as index_io.h describes it, written a second time: the record
 * with its arrays in their places, and back, with checksums that fit. */
struct Plain {
    struct Array {
        size_t at;   ///< of its size in bytes, which its bytes follow
        size_t size; ///< in bytes
    };
    Bytes bytes;
    std::vector<Array> arrays;
};

constexpr size_t piece_bytes = size_t(1) << 20;

uint64_t mix(uint64_t state, uint64_t word) {
    state ^= word;
    state *= 0x9e3779b97f4a7c15ULL;
    return state ^ (state >> 32);
}

uint64_t checksum_of(uint64_t number, const uint8_t* bytes, size_t size) {
    uint64_t checksum = mix(mix(0, number), size);
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        for (size_t j = i; j < std::min(i + 8, size); j++) {
            word |= uint64_t(bytes[j]) << 8 * (j - i);
        }
        checksum = mix(checksum, word);
    }
    return checksum;
}

uint64_t uint64_at(const Bytes& bytes, size_t at) {
    uint64_t value;
    memcpy(&value, &bytes[at], sizeof(value));
    return value;
}

template <class T>
void append(Bytes& bytes, T value) {
    const auto raw = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), raw, raw + sizeof(value));
}

/// the size of a block at this place, or -1 if there is none
int64_t block_size_at(const Bytes& file, size_t at, uint64_t number) {
    uint32_t size;
    if (at + 12 > file.size()) {
        return -1;
    }
    memcpy(&size, &file[at], 4);
    const bool is_block = size <= piece_bytes &&
            at + 12 + size <= file.size() &&
            uint64_at(file, at + 4 + size) ==
                    checksum_of(number, &file[at + 4], size);
    return is_block ? int64_t(size) : -1;
}

std::vector<uint64_t> piece_checksums(const uint8_t* bytes, size_t size) {
    std::vector<uint64_t> checksums;
    for (size_t i = 0; i < size; i += piece_bytes) {
        checksums.push_back(checksum_of(
                checksums.size(), bytes + i, std::min(piece_bytes, size - i)));
    }
    return checksums;
}

/** Takes the size and checksums of an array off the end of the record: they
 * are those that fit the bytes at `begin`. */
size_t take_array_size(Bytes& record, const Bytes& file, size_t begin) {
    for (size_t pieces = 0; 8 * (pieces + 1) <= record.size(); pieces++) {
        const size_t at = record.size() - 8 * (pieces + 1);
        const uint64_t size = uint64_at(record, at);
        if (size > file.size() - begin ||
            (size + piece_bytes - 1) / piece_bytes != pieces) {
            continue;
        }
        const auto checksums = piece_checksums(file.data() + begin, size);
        if (!memcmp(&record[at] + 8, checksums.data(), 8 * pieces)) {
            record.resize(at);
            return size;
        }
    }
    ADD_FAILURE() << "no array at " << begin;
    return file.size() - begin;
}

Plain plain_of(const Bytes& file) {
    Plain plain;
    for (size_t at = 5, number = 0;;) {
        const int64_t size = block_size_at(file, at, number);
        if (size >= 0) {
            const auto payload = file.begin() + at + 4;
            plain.bytes.insert(plain.bytes.end(), payload, payload + size);
            at += 4 + size + 8;
            number++;
            if (size == 0) {
                EXPECT_EQ(at, file.size());
                return plain;
            }
        } else {
            at = (at + 63) / 64 * 64;
            const size_t n_bytes = take_array_size(plain.bytes, file, at);
            plain.arrays.push_back({plain.bytes.size(), n_bytes});
            append<uint64_t>(plain.bytes, n_bytes);
            plain.bytes.insert(
                    plain.bytes.end(),
                    file.begin() + at,
                    file.begin() + at + n_bytes);
            at += n_bytes;
        }
    }
}

/// plain.bytes may be damaged, and shorter than it was
Bytes file_of(const Plain& plain) {
    Bytes file = {'T', 'Q', 'i', 'x', 2};
    Bytes payload;
    uint64_t number = 0;
    auto write_block = [&](const uint8_t* bytes, size_t size) {
        append<uint32_t>(file, size);
        file.insert(file.end(), bytes, bytes + size);
        append(file, checksum_of(number++, bytes, size));
    };
    auto write_blocks = [&] {
        for (size_t i = 0; i < payload.size(); i += piece_bytes) {
            write_block(&payload[i], std::min(piece_bytes, payload.size() - i));
        }
        payload.clear();
    };
    auto take = [&](size_t from, size_t to) {
        to = std::min(to, plain.bytes.size());
        if (from < to) {
            payload.insert(
                    payload.end(), &plain.bytes[from], &plain.bytes[0] + to);
        }
    };
    size_t at = 0;
    for (const Plain::Array& array : plain.arrays) {
        const size_t begin = array.at + 8;
        take(at, begin);
        at = begin + array.size;
        if (begin <= plain.bytes.size()) {
            const uint8_t* bytes = plain.bytes.data() + begin;
            const size_t size =
                    std::min(array.size, plain.bytes.size() - begin);
            for (uint64_t checksum : piece_checksums(bytes, size)) {
                append(payload, checksum);
            }
            write_blocks();
            file.resize((file.size() + 63) / 64 * 64);
            file.insert(file.end(), bytes, bytes + size);
        }
    }
    take(at, plain.bytes.size());
    write_blocks();
    write_block(nullptr, 0);
    return file;
}

/// flips, overwrites, cuts or extends
void damage(Bytes& bytes, std::mt19937& random) {
    const int kind = random() % 8;
    if (kind == 0) {
        bytes.resize(random() % bytes.size());
        return;
    }
    if (kind == 1) {
        const size_t at = random() % bytes.size();
        const size_t end = std::min(bytes.size(), at + 1 + random() % 16);
        bytes.erase(bytes.begin() + at, bytes.begin() + end);
        return;
    }
    if (kind == 2) {
        // a number, such as a size, that is far too large
        const size_t at = random() % bytes.size();
        for (size_t i = at; i < std::min(bytes.size(), at + 8); i++) {
            bytes[i] = random() % 2 ? 0xff : 0x7f;
        }
        return;
    }
    const int count = kind == 3 ? 1 + random() % 8 : 1;
    for (int i = 0; i < count; i++) {
        bytes[random() % bytes.size()] ^= 1 << random() % 8;
    }
}

/// of the process, the largest so far
size_t peak_memory_bytes() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return size_t(usage.ru_maxrss) * 1024;
}

void search_damaged(const Index& index) {
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index);
    if (ivf && !ivf->invlists) {
        return;
    }
    // FAISS looks for search_L different vectors until it has found them
    auto nsg = dynamic_cast<const faiss::IndexNSG*>(&index);
    if (nsg && nsg->nsg.search_L > nsg->ntotal) {
        return;
    }
    try {
        Results results = results_of(index, 1);
    } catch (const faiss::FaissException&) {
        // for instance that the queries are not finite after a transform
    }
}

/** Reads damaged bytes, which have to make an index that can be searched or a
 * FaissException. Returns whether they make an index. */
bool survives(const Bytes& bytes, const std::string& what) {
    IndexPtr index;
    try {
        index.reset(faiss_turboquant::deserialize_index(bytes));
    } catch (const faiss::FaissException&) {
        return false;
    } catch (const std::exception& e) {
        ADD_FAILURE() << what << ": " << e.what();
        return false;
    }
    search_damaged(*index);
    return true;
}

#if HAS_ADDRESS_SANITIZER
constexpr bool measures_memory = false; // freed memory is kept for a while
#else
constexpr bool measures_memory = true;
#endif

/***********************************************************************
 * Round trips
 ***********************************************************************/

TEST(IndexIO, RoundTrips) {
    const Directory directory;
    for (const std::string& s : descriptions) {
        // FAISS's IDMap has no add(), which Refine needs
        if (s.find("Refine(IDMap") != std::string::npos) {
            continue;
        }
        for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
            const IndexPtr index = make_index(s, metric);
            const Results results = results_of(*index);
            const Bytes bytes = faiss_turboquant::serialize_index(index.get());
            auto check = [&](Index* raw) {
                const IndexPtr back(raw);
                ASSERT_NE(back, nullptr);
                expect_equal(*index, *back, s);
                EXPECT_EQ(results_of(*back), results) << s;
                EXPECT_EQ(faiss_turboquant::serialize_index(back.get()), bytes);
            };

            check(faiss_turboquant::deserialize_index(bytes));
            check(faiss_turboquant::deserialize_index(
                    bytes.data(), bytes.size()));

            const std::string path = directory("index.tq");
            faiss_turboquant::write_index(index.get(), path.c_str());
            EXPECT_EQ(read_file(path), bytes);
            check(faiss_turboquant::read_index(path.c_str()));

            StreamReader stream(bytes);
            check(faiss_turboquant::read_index(&stream));
            EXPECT_EQ(stream.at, bytes.size());

            faiss::ZeroCopyIOReader view(bytes.data(), bytes.size());
            check(faiss_turboquant::read_index(&view));
        }
    }
}

TEST(IndexIO, EmptyAndUntrained) {
    for (const std::string& s : descriptions) {
        const IndexPtr index = empty_index(s);
        const Bytes bytes = faiss_turboquant::serialize_index(index.get());
        const IndexPtr back(faiss_turboquant::deserialize_index(bytes));
        expect_equal(*index, *back, s);
        // OPQ is read as a LinearTransform, which has no train()
        if (s.find("Refine(IDMap") == std::string::npos &&
            s.find("OPQ") == std::string::npos) {
            const auto x = gaussian(n, d, 1);
            back->train(n, x.data());
            if (has_ids(s)) {
                const std::vector<faiss::idx_t> ids(n, 3);
                back->add_with_ids(n, x.data(), ids.data());
            } else {
                back->add(n, x.data());
            }
            EXPECT_EQ(back->ntotal, n) << s;
        }
    }
}

TEST(IndexIO, FieldsOfTheQuantizer) {
    for (auto type :
         {faiss_turboquant::RotationType::Hadamard,
          faiss_turboquant::RotationType::Haar}) {
        for (bool centre : {false, true}) {
            for (auto metric : {METRIC_L2, METRIC_INNER_PRODUCT}) {
                faiss::IndexTurboQuant index(d, 3, metric, type, 77);
                const auto x = gaussian(n, d, 1);
                if (centre) {
                    index.train(n, x.data());
                }
                index.add(n, x.data());
                const IndexPtr back(faiss_turboquant::deserialize_index(
                        faiss_turboquant::serialize_index(&index)));
                expect_equal(index, *back, "");
                EXPECT_EQ(results_of(*back), results_of(index));
            }
        }
    }
}

TEST(IndexIO, ManyBlocksAndPieces) {
    // several blocks and pieces, of which the last is full, short, or missing
    for (int bytes_more : {0, 1, 100000}) {
        auto flat = new faiss::IndexTurboQuant(8, 4);
        faiss::IndexIDMap2 index(flat);
        index.own_fields = true;
        const size_t count =
                ((size_t(3) << 20) + bytes_more) / flat->code_size + 1;
        std::mt19937 random(5);
        flat->ntotal = index.ntotal = count;
        flat->codes.resize(count * flat->code_size);
        for (size_t i = 0; i < flat->codes.size(); i++) {
            flat->codes[i] = random();
        }
        for (size_t i = 0; i < count; i++) {
            index.id_map.push_back(random());
        }
        const Bytes bytes = faiss_turboquant::serialize_index(&index);
        const IndexPtr back(faiss_turboquant::deserialize_index(bytes));
        expect_equal(index, *back, "");
        StreamReader stream(bytes);
        const IndexPtr streamed(faiss_turboquant::read_index(&stream));
        expect_equal(index, *streamed, "");
        EXPECT_EQ(file_of(plain_of(bytes)), bytes);
        for (size_t at = 1 << 19; at < bytes.size(); at += 1 << 20) {
            Bytes altered = bytes;
            altered[at] ^= 1;
            EXPECT_FALSE(survives(altered, ""));
        }
    }
}

TEST(IndexIO, FieldsOfInvertedFiles) {
    IndexPtr index = make_index("IVF4,TQ4", METRIC_INNER_PRODUCT);
    auto& ivf = dynamic_cast<faiss::IndexIVFTurboQuant&>(*index);
    EXPECT_FALSE(ivf.centre_scales.empty());
    ivf.nprobe = 3;
    ivf.max_codes = 4;
    ivf.quantizer_trains_alone = 2;
    for (auto type :
         {faiss::DirectMap::NoMap,
          faiss::DirectMap::Array,
          faiss::DirectMap::Hashtable}) {
        ivf.set_direct_map_type(type);
        const Bytes bytes = faiss_turboquant::serialize_index(&ivf);
        const IndexPtr back(faiss_turboquant::deserialize_index(bytes));
        expect_equal(ivf, *back, "");
        EXPECT_EQ(faiss_turboquant::serialize_index(back.get()), bytes);
        if (type != faiss::DirectMap::NoMap) {
            std::vector<float> a(d), b(d);
            ivf.reconstruct(17, a.data());
            back->reconstruct(17, b.data());
            EXPECT_EQ(a, b);
        }
    }
    // lists that are kept elsewhere
    ivf.max_codes = 0;
    ivf.set_direct_map_type(faiss::DirectMap::NoMap);
    const std::unique_ptr<faiss::InvertedLists> lists(ivf.invlists);
    ivf.own_invlists = false;
    ivf.invlists = nullptr;
    const IndexPtr back(faiss_turboquant::deserialize_index(
            faiss_turboquant::serialize_index(&ivf)));
    auto& without = dynamic_cast<faiss::IndexIVFTurboQuant&>(*back);
    EXPECT_EQ(without.invlists, nullptr);
    without.replace_invlists(lists.get(), false);
    ivf.invlists = lists.get();
    EXPECT_EQ(results_of(without), results_of(ivf));
    ivf.invlists = nullptr;
}

TEST(IndexIO, OnDiskInvertedLists) {
    const Directory directory;
    const std::string path = directory("index.tq"), file = directory("lists");
    const IndexPtr index = make_index("IVF4,TQ4");
    const Results results = results_of(*index);
    auto& ivf = dynamic_cast<faiss::IndexIVFTurboQuant&>(*index);
    auto on_disk = new faiss::OnDiskInvertedLists(
            ivf.nlist, ivf.code_size, file.c_str());
    on_disk->merge_from_1(ivf.invlists);
    ivf.replace_invlists(on_disk, true);
    on_disk->slots.emplace_back(100, 8);
    faiss_turboquant::write_index(&ivf, path.c_str());
    EXPECT_LT(read_file(path).size(), read_file(file).size());
    for (int io_flags :
         {0,
          faiss::IO_FLAG_READ_ONLY,
          faiss::IO_FLAG_ONDISK_SAME_DIR,
          faiss::IO_FLAG_MMAP,
          faiss::IO_FLAG_MMAP_IFC}) {
        const IndexPtr back(
                faiss_turboquant::read_index(path.c_str(), io_flags));
        expect_equal(ivf, *back, "");
        EXPECT_EQ(results_of(*back), results);
        auto& lists = dynamic_cast<faiss::OnDiskInvertedLists&>(
                *dynamic_cast<faiss::IndexIVF&>(*back).invlists);
        EXPECT_EQ(lists.slots.size(), on_disk->slots.size());
        EXPECT_EQ(lists.totsize, on_disk->totsize);
        EXPECT_EQ(lists.read_only, io_flags == faiss::IO_FLAG_READ_ONLY);
    }
    const IndexPtr skipped(faiss_turboquant::read_index(
            path.c_str(), faiss::IO_FLAG_SKIP_IVF_DATA));
    auto& lists = *dynamic_cast<faiss::IndexIVF&>(*skipped).invlists;
    EXPECT_EQ(lists.list_size(1), ivf.invlists->list_size(1));
    // the lists are in another directory, cut short, or gone
    const Directory other;
    const std::string moved = other("index.tq");
    write_file(moved, read_file(path));
    auto read = [&](int io_flags) {
        return message_of([&] {
            IndexPtr(faiss_turboquant::read_index(moved.c_str(), io_flags));
        });
    };
    EXPECT_EQ(read(0), "");
    EXPECT_CONTAINS(read(faiss::IO_FLAG_ONDISK_SAME_DIR), other("lists"));
    write_file(other("lists"), read_file(file));
    EXPECT_EQ(read(faiss::IO_FLAG_ONDISK_SAME_DIR), "");
    write_file(other("lists"), Bytes(100));
    EXPECT_CONTAINS(read(faiss::IO_FLAG_ONDISK_SAME_DIR), "cut short");
    unlink(file.c_str());
    EXPECT_CONTAINS(read(0), file);
    // lists that are not empty in a file that is
    on_disk->totsize = 0;
    faiss_turboquant::write_index(&ivf, moved.c_str());
    EXPECT_CONTAINS(read(0), "the capacity of a list");
}

/// FAISS's read-only lists, which FAISS does not write
TEST(IndexIO, OtherInvertedLists) {
    const IndexPtr a = make_index("IVF4,TQ4"), b = make_index("IVF4,TQ4");
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*a);
    const faiss::InvertedLists* parts[] = {
            ivf.invlists, dynamic_cast<faiss::IndexIVF&>(*b).invlists};
    faiss::HStackInvertedLists stacked(2, parts);
    const std::unique_ptr<faiss::InvertedLists> lists(ivf.invlists);
    ivf.own_invlists = false;
    ivf.invlists = &stacked;
    ivf.ntotal = 2 * n;
    const IndexPtr back(faiss_turboquant::deserialize_index(
            faiss_turboquant::serialize_index(&ivf)));
    expect_equal(ivf, *back, "");
}

TEST(IndexIO, MappedInvertedLists) {
    const Directory directory;
    const std::string path = directory("index.tq");
    for (const char* s : {"IVF4,TQ4", "IVF4,TQ1"}) {
        const IndexPtr index = make_index(s);
        const Results results = results_of(*index);
        faiss_turboquant::write_index(index.get(), path.c_str());
        for (int io_flags : {faiss::IO_FLAG_MMAP, faiss::IO_FLAG_MMAP_IFC}) {
            const IndexPtr mapped(
                    faiss_turboquant::read_index(path.c_str(), io_flags));
            auto& ivf = dynamic_cast<faiss::IndexIVF&>(*mapped);
            auto lists =
                    dynamic_cast<faiss::OnDiskInvertedLists*>(ivf.invlists);
            ASSERT_NE(lists, nullptr);
            for (size_t i = 0; i < ivf.nlist; i++) {
                EXPECT_EQ(
                        reinterpret_cast<uintptr_t>(lists->get_ids(i)) % 8, 0u);
            }
            EXPECT_EQ(results_of(*mapped), results);
        }
    }
}

TEST(IndexIO, FieldsOfGraphs) {
    IndexPtr index = make_index("HNSW8,TQ4");
    auto& hnsw = dynamic_cast<faiss::IndexHNSW&>(*index);
    hnsw.init_level0 = false;
    hnsw.keep_max_size_level0 = true;
    hnsw.hnsw.efConstruction = 17;
    hnsw.hnsw.efSearch = 19;
    hnsw.hnsw.check_relative_distance = false;
    hnsw.hnsw.search_bounded_queue = false;
    IndexPtr back(faiss_turboquant::deserialize_index(
            faiss_turboquant::serialize_index(index.get())));
    expect_equal(*index, *back, "HNSW");

    index = make_index("NSG8,TQ4");
    auto& nsg = dynamic_cast<faiss::IndexNSG&>(*index);
    nsg.GK = 9;
    nsg.build_type = 1;
    nsg.nndescent_S = 2;
    nsg.nndescent_R = 3;
    nsg.nndescent_L = 4;
    nsg.nndescent_iter = 5;
    nsg.nsg.L = 6;
    nsg.nsg.C = 7;
    nsg.nsg.search_L = 18;
    back.reset(faiss_turboquant::deserialize_index(
            faiss_turboquant::serialize_index(index.get())));
    expect_equal(*index, *back, "NSG");
}

TEST(IndexIO, GraphsWithoutStorage) {
    for (const char* s : {"HNSW8,TQ4", "NSG8,TQ4"}) {
        const IndexPtr index = make_index(s);
        const Results results = results_of(*index);
        const Bytes bytes = faiss_turboquant::serialize_index(
                index.get(), faiss::IO_FLAG_SKIP_STORAGE);
        EXPECT_LT(
                bytes.size() + n * d / 2,
                faiss_turboquant::serialize_index(index.get()).size());
        const IndexPtr back(faiss_turboquant::deserialize_index(bytes));
        EXPECT_TRUE(faiss_turboquant::sub_indexes(back.get()).empty());
        if (auto hnsw = dynamic_cast<faiss::IndexHNSW*>(back.get())) {
            hnsw->storage = dynamic_cast<faiss::IndexHNSW&>(*index).storage;
        } else {
            dynamic_cast<faiss::IndexNSG&>(*back).storage =
                    dynamic_cast<faiss::IndexNSG&>(*index).storage;
        }
        EXPECT_EQ(results_of(*back), results) << s;
    }
}

TEST(IndexIO, OrthonormalityOfTransforms) {
    const auto x = gaussian(n, d, 1);
    for (const char* s : {"PCA8,TQ4", "PCAW8,TQ4"}) {
        const IndexPtr index = make_index(s);
        const IndexPtr back(faiss_turboquant::deserialize_index(
                faiss_turboquant::serialize_index(index.get())));
        auto is_orthonormal = [](const Index& i) {
            auto& pre = dynamic_cast<const faiss::IndexPreTransform&>(i);
            return dynamic_cast<faiss::LinearTransform&>(*pre.chain[0])
                    .is_orthonormal;
        };
        EXPECT_EQ(is_orthonormal(*back), is_orthonormal(*index)) << s;
    }
}

TEST(IndexIO, SeveralIndexesInOneFile) {
    const IndexPtr a = make_index("PCA8,TQ4"), b = make_index("IVF2,Flat"),
                   c = make_index("TQ2,RFlat");
    FILE* f = tmpfile();
    for (const IndexPtr& index : {std::cref(a), std::cref(b), std::cref(c)}) {
        faiss_turboquant::write_index(index.get(), f);
    }
    rewind(f);
    for (const IndexPtr& index : {std::cref(a), std::cref(b), std::cref(c)}) {
        const IndexPtr back(faiss_turboquant::read_index(f));
        expect_equal(*index, *back, "");
        EXPECT_EQ(results_of(*back), results_of(*index));
    }
    fclose(f);
}

TEST(IndexIO, Pipe) {
    for (const char* s : {"TQ4", "Flat"}) {
        const IndexPtr index = make_index(s);
        int ends[2];
        ASSERT_EQ(pipe(ends), 0);
        FILE* in = fdopen(ends[1], "wb");
        faiss_turboquant::write_index(index.get(), in);
        fclose(in);
        FILE* out = fdopen(ends[0], "rb");
        const IndexPtr back(faiss_turboquant::read_index(out));
        fclose(out);
        expect_equal(*index, *back, s);
        EXPECT_EQ(results_of(*back), results_of(*index));
    }
}

/***********************************************************************
 * Indexes without TurboQuant inside
 ***********************************************************************/

TEST(IndexIO, OthersGoToFaiss) {
    const Directory directory;
    const std::string ours = directory("ours"), theirs = directory("theirs");
    for (const char* s :
         {"Flat",
          "IVF4,SQ8",
          "HNSW8",
          "IDMap2,PCA8,SQ8",
          "SQ8,RFlat",
          "MinMax,SQ8"}) {
        const IndexPtr index(faiss::index_factory(d, s));
        const auto x = gaussian(200, d, 1);
        index->train(200, x.data());
        faiss_turboquant::write_index(index.get(), ours.c_str());
        faiss::write_index(index.get(), theirs.c_str());
        const Bytes bytes = read_file(theirs);
        EXPECT_EQ(read_file(ours), bytes) << s;
        EXPECT_EQ(faiss_turboquant::serialize_index(index.get()), bytes) << s;

        const IndexPtr from_file(faiss_turboquant::read_index(ours.c_str()));
        expect_equal(*index, *from_file, s);
        const IndexPtr from_bytes(faiss_turboquant::deserialize_index(bytes));
        expect_equal(*index, *from_bytes, s);
        StreamReader stream(bytes);
        const IndexPtr from_stream(faiss_turboquant::read_index(&stream));
        expect_equal(*index, *from_stream, s);
        EXPECT_EQ(stream.at, bytes.size());
    }
    // a missing storage
    const Bytes null = faiss_turboquant::serialize_index(nullptr);
    EXPECT_EQ(faiss_turboquant::deserialize_index(null), nullptr);
}

TEST(IndexIO, FlagsReachFaiss) {
    const Directory directory;
    const std::string path = directory("flat");
    const IndexPtr flat = make_index("Flat");
    faiss_turboquant::write_index(flat.get(), path.c_str());

    // mapped, from a path and from a stream
    const IndexPtr mapped(faiss_turboquant::read_index(
            path.c_str(), faiss::IO_FLAG_MMAP_IFC));
    EXPECT_FALSE(dynamic_cast<faiss::IndexFlat&>(*mapped).codes.is_owned);
    EXPECT_EQ(results_of(*mapped), results_of(*flat));
    FILE* f = fopen(path.c_str(), "rb");
    const IndexPtr mapped2(
            faiss_turboquant::read_index(f, faiss::IO_FLAG_MMAP_IFC));
    fclose(f);
    EXPECT_FALSE(dynamic_cast<faiss::IndexFlat&>(*mapped2).codes.is_owned);
    EXPECT_EQ(results_of(*mapped2), results_of(*flat));

    // a view on memory
    const Bytes bytes = faiss_turboquant::serialize_index(flat.get());
    faiss::ZeroCopyIOReader view(bytes.data(), bytes.size());
    const IndexPtr viewed(faiss_turboquant::read_index(&view));
    EXPECT_FALSE(dynamic_cast<faiss::IndexFlat&>(*viewed).codes.is_owned);
    EXPECT_EQ(results_of(*viewed), results_of(*flat));

    // inverted lists on disk: FAISS asks for a FileIOReader
    const std::string ivf_path = directory("ivf");
    const IndexPtr ivf = make_index("IVF2,Flat");
    faiss_turboquant::write_index(ivf.get(), ivf_path.c_str());
    const IndexPtr on_disk(faiss_turboquant::read_index(
            ivf_path.c_str(), faiss::IO_FLAG_MMAP));
    EXPECT_EQ(results_of(*on_disk), results_of(*ivf));

    // graphs without storage
    const IndexPtr hnsw = make_index("HNSW8");
    EXPECT_LT(
            faiss_turboquant::serialize_index(
                    hnsw.get(), faiss::IO_FLAG_SKIP_STORAGE)
                    .size(),
            faiss_turboquant::serialize_index(hnsw.get()).size());
}

TEST(IndexIO, FlagsOfTurboQuant) {
    const IndexPtr index = make_index("PCA8,TQ4");
    const Bytes bytes = faiss_turboquant::serialize_index(
            index.get(), faiss::IO_FLAG_SKIP_STORAGE);
    EXPECT_CONTAINS(
            message_of([&] {
                faiss_turboquant::serialize_index(index.get(), 64);
            }),
            "0x40");
    const IndexPtr back(faiss_turboquant::deserialize_index(
            bytes, faiss::IO_FLAG_READ_ONLY));
    expect_equal(*index, *back, "");

    // only files are mapped
    for (int io_flags : {faiss::IO_FLAG_MMAP_IFC, faiss::IO_FLAG_MMAP}) {
        EXPECT_CONTAINS(
                message_of([&] {
                    faiss_turboquant::deserialize_index(bytes, io_flags);
                }),
                "IO_FLAG_MMAP");
        int ends[2];
        ASSERT_EQ(pipe(ends), 0);
        FILE* in = fdopen(ends[1], "wb");
        faiss_turboquant::write_index(index.get(), in);
        fclose(in);
        FILE* out = fdopen(ends[0], "rb");
        EXPECT_CONTAINS(
                message_of(
                        [&] { faiss_turboquant::read_index(out, io_flags); }),
                "IO_FLAG_MMAP");
        fclose(out);
    }
}

/***********************************************************************
 * Mapped files and views of memory
 ***********************************************************************/

/// of the codes of the flat indexes inside: how many are views
int count_views(const Index& index) {
    auto flat = dynamic_cast<const faiss::IndexFlatCodes*>(&index);
    int count = flat && !flat->codes.is_owned;
    for (const Index* sub : faiss_turboquant::sub_indexes(&index)) {
        count += count_views(*sub);
    }
    return count;
}

struct Viewed {
    const char* description;
    int n_views;
};

constexpr Viewed viewed[] = {
        {"TQ4", 1},
        {"TQ2t", 1},
        {"IDMap2,TQ4", 1},
        {"PCA8,TQ4", 1},
        {"TQ2,RFlat", 2},
        {"TQ1,Refine(TQ4)", 2},
        {"TQ1,Refine(SQ8)", 1},
        {"SQ8,Refine(TQ4)", 1},
        {"IDMap2,L2norm,PCA8,TQ1,RFlat", 2},
        {"IVF2,Flat,Refine(TQ4)", 1},
        {"HNSW8,Refine(TQ4)", 1},
        {"HNSW8,TQ4", 1},
        {"NSG8,TQ4", 1},
        {"IVF4,TQ4", 0}, // its lists are OnDiskInvertedLists
        {"IVF4,TQ4,RFlat", 1},
        {"PCA8,IVF4,TQ3", 0},
        {"IVF4(TQ4),Flat", 1},
};

TEST(IndexIO, MappedFiles) {
    const Directory directory;
    const std::string path = directory("index.tq");
    for (const Viewed& each : viewed) {
        const char* description = each.description;
        const int n_views = each.n_views;
        const IndexPtr index = make_index(description);
        const Results results = results_of(*index);
        faiss_turboquant::write_index(index.get(), path.c_str());
        const Bytes bytes = read_file(path);
        for (int io_flags :
             {faiss::IO_FLAG_MMAP_IFC,
              faiss::IO_FLAG_MMAP,
              faiss::IO_FLAG_MMAP_IFC | faiss::IO_FLAG_MMAP}) {
            auto check = [&](const IndexPtr& mapped) {
                expect_equal(*index, *mapped, description);
                EXPECT_EQ(count_views(*mapped), n_views) << description;
                // the file is replaced, or goes away: the mapping stays
                unlink(path.c_str());
                EXPECT_EQ(results_of(*mapped), results) << description;
                faiss_turboquant::write_index(mapped.get(), path.c_str());
                EXPECT_EQ(read_file(path), bytes) << description;
            };
            check(IndexPtr(
                    faiss_turboquant::read_index(path.c_str(), io_flags)));
            FILE* f = fopen(path.c_str(), "rb");
            IndexPtr mapped(faiss_turboquant::read_index(f, io_flags));
            EXPECT_EQ(fgetc(f), EOF); // it stands behind the index
            fclose(f);
            check(mapped);
            faiss::FileIOReader reader(path.c_str());
            check(IndexPtr(faiss_turboquant::read_index(&reader, io_flags)));
        }
    }
}

void expect_aligned_codes(const Index& index) {
    if (auto flat = dynamic_cast<const faiss::IndexTurboQuant*>(&index)) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(flat->codes.data()) % 64, 0u);
    }
    for (const Index* sub : faiss_turboquant::sub_indexes(&index)) {
        expect_aligned_codes(*sub);
    }
}

TEST(IndexIO, ArraysAreAlignedInFiles) {
    const Directory directory;
    const std::string path = directory("index.tq");
    for (const char* s : {"TQ3", "PCA8,TQ1,Refine(TQ4)"}) {
        const IndexPtr index = make_index(s);
        faiss_turboquant::write_index(index.get(), path.c_str());
        const IndexPtr mapped(faiss_turboquant::read_index(
                path.c_str(), faiss::IO_FLAG_MMAP_IFC));
        expect_aligned_codes(*mapped);
    }
}

TEST(IndexIO, SeveralMappedIndexesInOneFile) {
    const IndexPtr a = make_index("PCA8,TQ4"), b = make_index("TQ2,RFlat");
    FILE* f = tmpfile();
    fputs("something else", f);
    faiss_turboquant::write_index(a.get(), f);
    faiss_turboquant::write_index(b.get(), f);
    fseek(f, strlen("something else"), SEEK_SET);
    const IndexPtr a_back(
            faiss_turboquant::read_index(f, faiss::IO_FLAG_MMAP_IFC));
    const IndexPtr b_back(
            faiss_turboquant::read_index(f, faiss::IO_FLAG_MMAP_IFC));
    fclose(f);
    expect_equal(*a, *a_back, "");
    expect_equal(*b, *b_back, "");
    EXPECT_EQ(results_of(*a_back), results_of(*a));
    EXPECT_EQ(results_of(*b_back), results_of(*b));
}

TEST(IndexIO, ViewsOfMemory) {
    for (auto [description, n_views] : viewed) {
        const IndexPtr index = make_index(description);
        const Bytes bytes = faiss_turboquant::serialize_index(index.get());
        faiss::ZeroCopyIOReader reader(bytes.data(), bytes.size());
        const IndexPtr back(faiss_turboquant::read_index(&reader));
        EXPECT_EQ(reader.rp_, bytes.size());
        expect_equal(*index, *back, description);
        EXPECT_EQ(count_views(*back), n_views) << description;
        EXPECT_EQ(results_of(*back), results_of(*index));
    }
}

TEST(IndexIO, MappedIndexesDoNotChange) {
    const Directory directory;
    const std::string path = directory("index.tq");
    const auto x = gaussian(n, d, 1);
    const faiss::IDSelectorRange all(0, 10000);
    for (const char* s :
         {"TQ4",
          "PCA8,TQ2t",
          "IDMap2,TQ1",
          "TQ1,RFlat",
          "HNSW8,TQ4",
          "IVF4,TQ4"}) {
        const IndexPtr index = make_index(s);
        const Results results = results_of(*index);
        faiss_turboquant::write_index(index.get(), path.c_str());
        const IndexPtr mapped(faiss_turboquant::read_index(
                path.c_str(), faiss::IO_FLAG_MMAP_IFC));
        const std::vector<faiss::idx_t> ids(n, 7);
        auto expect_refused = [&](const std::function<void()>& change) {
            EXPECT_CONTAINS(message_of(change), "is refused, because");
            EXPECT_EQ(results_of(*mapped), results) << s;
            EXPECT_EQ(mapped->ntotal, n);
        };
        expect_refused([&] {
            has_ids(s) ? mapped->add_with_ids(n, x.data(), ids.data())
                       : mapped->add(n, x.data());
        });
        if (strcmp(s, "HNSW8,TQ4") == 0) {
            continue;
        }
        expect_refused([&] { mapped->reset(); });
        if (!strstr(s, "RFlat")) {
            expect_refused([&] { mapped->remove_ids(all); });
            expect_refused([&] { mapped->merge_from(*index, 0); });
            expect_refused([&] { index->merge_from(*mapped, 0); });
        }
        if (!strcmp(s, "TQ4")) {
            const Bytes codes(index->sa_code_size());
            expect_refused(
                    [&] { mapped->add_sa_codes(1, codes.data(), nullptr); });
        }
    }
}

/// what is not in an array is verified all the same
TEST(IndexIO, DamagedMappedFiles) {
    const Directory directory;
    const std::string path = directory("index.tq");
    const IndexPtr index = make_index("IDMap2,TQ1");
    const Bytes bytes = faiss_turboquant::serialize_index(index.get());
    auto read = [&](const Bytes& damaged) {
        write_file(path, damaged);
        return message_of([&] {
            const IndexPtr mapped(faiss_turboquant::read_index(
                    path.c_str(), faiss::IO_FLAG_MMAP_IFC));
            search_damaged(*mapped);
        });
    };
    EXPECT_EQ(read(bytes), "");
    for (size_t size = 0; size < bytes.size(); size++) {
        EXPECT_CONTAINS(
                read(Bytes(bytes.begin(), bytes.begin() + size)), "cut short");
    }
    size_t unnoticed = 0;
    for (size_t byte = 0; byte < bytes.size(); byte++) {
        Bytes damaged = bytes;
        damaged[byte] ^= 16;
        unnoticed += read(damaged).empty();
    }
    EXPECT_EQ(unnoticed, n * index->sa_code_size());
}

/***********************************************************************
 * Writing
 ***********************************************************************/

TEST(IndexIO, ReplacesFilesAtomically) {
    const Directory directory;
    const std::string path = directory("index.tq");
    const IndexPtr a = make_index("TQ4"), b = make_index("TQ2");
    faiss_turboquant::write_index(a.get(), path.c_str());
    const Bytes a_bytes = read_file(path);
    struct stat status;
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    const mode_t mask = umask(0);
    umask(mask);
    EXPECT_EQ(status.st_mode & 0777, 0666 & ~mask);

    // who has the old file open keeps it
    FILE* old = fopen(path.c_str(), "rb");
    ASSERT_EQ(chmod(path.c_str(), 0640), 0);
    faiss_turboquant::write_index(b.get(), path.c_str());
    const IndexPtr old_index(faiss_turboquant::read_index(old));
    fclose(old);
    expect_equal(*a, *old_index, "");
    const IndexPtr new_index(faiss_turboquant::read_index(path.c_str()));
    expect_equal(*b, *new_index, "");
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0640u);

    // a link stays a link
    const std::string link = directory("link.tq");
    ASSERT_EQ(symlink(path.c_str(), link.c_str()), 0);
    faiss_turboquant::write_index(a.get(), link.c_str());
    EXPECT_EQ(read_file(path), a_bytes);
    ASSERT_EQ(lstat(link.c_str(), &status), 0);
    EXPECT_TRUE(S_ISLNK(status.st_mode));
    EXPECT_EQ(
            directory.names(),
            (std::vector<std::string>{"index.tq", "link.tq"}));
}

TEST(IndexIO, LeavesNothingBehindOnFailure) {
    const Directory directory;
    const std::string path = directory("index.tq");
    const IndexPtr small = make_index("TQ1");
    faiss_turboquant::write_index(small.get(), path.c_str());
    const Bytes before = read_file(path);

    faiss::IndexTurboQuant large(64, 4);
    const auto x = gaussian(2000, 64, 1);
    large.add(2000, x.data());

    // files of more than 40 000 bytes fail
    rlimit old_limit;
    getrlimit(RLIMIT_FSIZE, &old_limit);
    auto old_handler = signal(SIGXFSZ, SIG_IGN);
    rlimit limit = old_limit;
    limit.rlim_cur = 40000;
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = message_of(
            [&] { faiss_turboquant::write_index(&large, path.c_str()); });
    setrlimit(RLIMIT_FSIZE, &old_limit);
    signal(SIGXFSZ, old_handler);
    EXPECT_CONTAINS(message, path);
    EXPECT_CONTAINS(message, strerror(EFBIG));
    EXPECT_EQ(directory.names(), std::vector<std::string>{"index.tq"});
    EXPECT_EQ(read_file(path), before);

    // an index that cannot be written
    faiss::IndexTurboQuant storage(d);
    faiss::IndexNNDescent graph(&storage, 4);
    const std::string other = directory("other.tq");
    EXPECT_CONTAINS(
            message_of([&] {
                faiss_turboquant::write_index(&graph, other.c_str());
            }),
            "faiss::IndexNNDescent");
    EXPECT_EQ(directory.names(), std::vector<std::string>{"index.tq"});

    const std::string missing = directory("no/such/index.tq");
    EXPECT_CONTAINS(
            message_of([&] {
                faiss_turboquant::write_index(small.get(), missing.c_str());
            }),
            missing);
    EXPECT_CONTAINS(
            message_of([&] {
                faiss_turboquant::write_index(small.get(), "/dev/full");
            }),
            strerror(ENOSPC));
    EXPECT_CONTAINS(
            message_of([&] {
                FILE* full = fopen("/dev/full", "wb");
                const std::unique_ptr<FILE, int (*)(FILE*)> close(full, fclose);
                faiss_turboquant::write_index(small.get(), full);
            }),
            strerror(ENOSPC));
}

TEST(IndexIO, InconsistentIndexesAreNotWritten) {
    auto expect_refused = [](Index& index, const char* part) {
        EXPECT_CONTAINS(
                message_of([&] { faiss_turboquant::serialize_index(&index); }),
                part);
    };
    auto flat = make_index("TQ4");
    flat->ntotal++;
    expect_refused(*flat, "codes.size()");
    flat = make_index("TQ4");
    flat->metric_type = METRIC_INNER_PRODUCT;
    expect_refused(*flat, "metric_type");
    auto map = make_index("IDMap,TQ4");
    dynamic_cast<faiss::IndexIDMap&>(*map).id_map.pop_back();
    expect_refused(*map, "id_map.size() is 79");
    auto pre = make_index("PCA8,TQ4");
    pre->d = 17;
    expect_refused(*pre, "chain[0]->d_in is 16, its input is 17");
    auto refine = make_index("TQ1,Refine(TQ4)");
    auto& parts = dynamic_cast<faiss::IndexRefine&>(*refine);
    for (float k_factor : {INFINITY, NAN, 1e30f, -1e30f}) {
        parts.k_factor = k_factor;
        expect_refused(*refine, "k_factor is not finite, or above 2^31");
    }
    parts.k_factor = 1;
    const IndexPtr refine_index(parts.refine_index);
    parts.refine_index = nullptr;
    expect_refused(*refine, "refine_index is null");
}

/// of an index that has vectors already
faiss::IndexIDMap id_map_over(Index* index) {
    faiss::IndexIDMap map;
    static_cast<Index&>(map) = *index;
    map.index = index;
    map.id_map.resize(index->ntotal);
    return map;
}

/// base_index would find ids that refine_index does not have
TEST(IndexIO, RefinedIdsAreNumbersOfVectors) {
    const IndexPtr index = make_index("IVF4,TQ1,RFlat");
    auto& refine = dynamic_cast<faiss::IndexRefine&>(*index);
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*refine.base_index);
    auto& lists = dynamic_cast<faiss::ArrayInvertedLists&>(*ivf.invlists);
    auto message = [](const Index& index) {
        return message_of([&] { faiss_turboquant::serialize_index(&index); });
    };
    EXPECT_EQ(message(refine), "");
    const size_t list_no = lists.list_size(0) > 0 ? 0 : 1;
    for (faiss::idx_t id : {n, -2}) {
        lists.ids[list_no][0] = id;
        const std::string part = "base_index has id " + std::to_string(id);
        EXPECT_CONTAINS(message(refine), part);
    }

    faiss::IndexIDMap map = id_map_over(ivf.quantizer);
    map.id_map = {0, 1, 2, 4};
    faiss::IndexTurboQuant exact(d, 4);
    exact.add(4, gaussian(4, d, 1).data());
    faiss::IndexRefine mapped(&map, &exact);
    EXPECT_CONTAINS(message(mapped), "base_index has id 4");
    map.id_map[3] = 3;
    EXPECT_EQ(message(mapped), "");
}

/// FAISS would end the process at the first search
TEST(IndexIO, StorageOfGraphsHasDistances) {
    for (const char* s : {"HNSW8,TQ4", "NSG8,TQ4"}) {
        const IndexPtr index = make_index(s);
        auto hnsw = dynamic_cast<faiss::IndexHNSW*>(index.get());
        auto nsg = dynamic_cast<faiss::IndexNSG*>(index.get());
        Index*& storage = hnsw ? hnsw->storage : nsg->storage;
        faiss::IndexIDMap map = id_map_over(storage);
        Index* const turboquant = storage;
        storage = &map;
        EXPECT_CONTAINS(
                message_of([&] {
                    faiss_turboquant::serialize_index(index.get());
                }),
                "its storage is a faiss::IndexIDMap");
        storage = turboquant;
    }
}

/***********************************************************************
 * Damaged and hostile files
 ***********************************************************************/

std::string message_of_reading(const Bytes& bytes) {
    return message_of([&] {
        const IndexPtr index(faiss_turboquant::deserialize_index(bytes));
    });
}

TEST(IndexIO, Messages) {
    const Directory directory;
    const std::string path = directory("index.tq");
    const IndexPtr index = make_index("PCA8,TQ4");
    const Bytes bytes = faiss_turboquant::serialize_index(index.get());
    auto read = [&] {
        return message_of([&] { faiss_turboquant::read_index(path.c_str()); });
    };

    EXPECT_CONTAINS(read(), path);
    write_file(path, {});
    EXPECT_CONTAINS(read(), path + "\" is cut short");
    write_file(path, Bytes(bytes.begin(), bytes.end() - 1));
    EXPECT_CONTAINS(read(), path + "\" is cut short");
    write_file(path, Bytes(bytes.begin(), bytes.begin() + 4));
    EXPECT_CONTAINS(read(), path + "\" is cut short");

    Bytes altered = bytes;
    altered[100] ^= 1;
    write_file(path, altered);
    EXPECT_CONTAINS(read(), path + "\" is altered: block 0");
    altered = bytes;
    altered[bytes.size() - 100] ^= 1;
    write_file(path, altered);
    EXPECT_CONTAINS(read(), path + "\" is altered: codes does not have");

    Bytes newer = bytes;
    newer[4] = 9;
    write_file(path, newer);
    EXPECT_CONTAINS(read(), path + "\" has format version 9");

    Bytes longer = bytes;
    longer.push_back(0);
    write_file(path, longer);
    EXPECT_CONTAINS(read(), path + "\" is altered: there are bytes behind");
    EXPECT_CONTAINS(message_of_reading(longer), "bytes behind");

    EXPECT_CONTAINS(message_of_reading({}), "cut short");
    EXPECT_THROW(
            faiss_turboquant::read_index(static_cast<FILE*>(nullptr)),
            faiss::FaissException);
    EXPECT_THROW(
            faiss_turboquant::read_index(static_cast<const char*>(nullptr)),
            faiss::FaissException);
    EXPECT_THROW(
            faiss_turboquant::read_index(
                    static_cast<faiss::IOReader*>(nullptr)),
            faiss::FaissException);
    EXPECT_THROW(
            faiss_turboquant::deserialize_index(nullptr, 10),
            faiss::FaissException);
}

TEST(IndexIO, RandomDamage) {
    const size_t before = peak_memory_bytes();
    std::mt19937 random(123);
    for (const char* s :
         {"TQ1",
          "TQ2t",
          "TQ4t",
          "TQ2mse",
          "TQ3.5",
          "TQ3.5t",
          "TQ2prod",
          "TQ4",
          "IDMap2,TQ3",
          "PCA8,TQ4",
          "L2norm,TQ2",
          "TQ1,Refine(TQ4)",
          "IDMap,RR,TQ1,Refine(TQ2)",
          "HNSW8,TQ4",
          "NSG8,TQ4"}) {
        const IndexPtr index = make_index(s);
        const Bytes bytes = faiss_turboquant::serialize_index(index.get());
        for (int i = 0; i < 1500; i++) {
            Bytes damaged = bytes;
            damage(damaged, random);
            if (damaged != bytes) {
                EXPECT_FALSE(survives(damaged, s)) << s << " " << i;
            }
        }
    }
    if (measures_memory) {
        EXPECT_LT(peak_memory_bytes() - before, size_t(64) << 20);
    }
}

TEST(IndexIO, EveryTruncationAndEveryBit) {
    const IndexPtr index = make_index("IDMap2,TQ1");
    const Bytes bytes = faiss_turboquant::serialize_index(index.get());
    for (size_t size = 0; size < bytes.size(); size++) {
        EXPECT_FALSE(survives(Bytes(bytes.begin(), bytes.begin() + size), ""));
    }
    for (size_t bit = 0; bit < bytes.size() * 8; bit++) {
        Bytes damaged = bytes;
        damaged[bit / 8] ^= 1 << bit % 8;
        EXPECT_FALSE(survives(damaged, ""));
    }
}

TEST(IndexIO, BlocksAreAsDescribed) {
    for (const char* s : {"TQ4", "IDMap,PCA8,TQ4", "TQ1,RFlat"}) {
        const IndexPtr index = make_index(s);
        const Bytes bytes = faiss_turboquant::serialize_index(index.get());
        EXPECT_EQ(file_of(plain_of(bytes)), bytes);
    }
}

/// damage that the checksums do not show: every field has to be checked
TEST(IndexIO, RandomDamageWithValidChecksums) {
    const size_t before = peak_memory_bytes();
    std::mt19937 random(321);
    int readable = 0, refused = 0;
    for (const char* s :
         {"TQ1",
          "TQ2t",
          "TQ4t",
          "TQ2mse",
          "TQ3.5",
          "TQ3.5t",
          "TQ2prod",
          "TQ4",
          "IDMap2,TQ3",
          "PCA8,TQ4",
          "ITQ8,TQ4",
          "OPQ4_8,TQ2",
          "Pad20,TQ4",
          "L2norm,TQ2",
          "TQ1,Refine(TQ4)",
          "IDMap,RR,TQ1,Refine(TQ2)",
          "HNSW8,TQ4",
          "NSG8,TQ4",
          "IVF4,TQ4",
          "IVF4,TQ1t"}) {
        const IndexPtr index = make_index(s);
        const Plain plain =
                plain_of(faiss_turboquant::serialize_index(index.get()));
        for (int i = 0; i < 500; i++) {
            Plain damaged = plain;
            damage(damaged.bytes, random);
#if HAS_ADDRESS_SANITIZER
            // FAISS's reader of ITQTransform leaks when a part of it is of
            // another type
            std::unique_ptr<__lsan::ScopedDisabler> ignore_leaks;
            if (!strncmp(s, "ITQ", 3)) {
                ignore_leaks = std::make_unique<__lsan::ScopedDisabler>();
            }
#endif
            if (survives(file_of(damaged), s)) {
                readable++;
            } else {
                refused++;
            }
        }
    }
    EXPECT_GT(readable, 100); // codes and matrices may have any content
    EXPECT_GT(refused, 1000);
    if (measures_memory) {
        EXPECT_LT(peak_memory_bytes() - before, size_t(128) << 20);
    }
}

/// the bytes of each record's fields, one after another, set to the extremes
TEST(IndexIO, ExtremeFields) {
    for (const char* s :
         {"TQ4",
          "TQ2mse",
          "TQ3.5",
          "TQ3.5t",
          "TQ2prod",
          "IDMap2,TQ1",
          "PCA8,TQ2",
          "TQ1,Refine(TQ2)",
          "HNSW8,TQ4",
          "NSG8,TQ4",
          "IVF4,TQ4",
          "IVF4,TQ1t"}) {
        const IndexPtr index = make_index(s);
        const Plain plain =
                plain_of(faiss_turboquant::serialize_index(index.get()));
        const size_t size_of_plain = plain.bytes.size();
        for (size_t at = 0; at < std::min<size_t>(size_of_plain, 300); at++) {
            for (int size : {1, 4, 8}) {
                for (uint8_t value : {0x00, 0x7f, 0xff}) {
                    Plain damaged = plain;
                    for (size_t i = at; i < std::min(size_of_plain, at + size);
                         i++) {
                        damaged.bytes[i] = value;
                    }
                    survives(file_of(damaged), s);
                }
            }
        }
    }
}

TEST(IndexIO, SizesBeyondTheFile) {
    const IndexPtr index = make_index("TQ4");
    Plain plain = plain_of(faiss_turboquant::serialize_index(index.get()));
    const size_t before = peak_memory_bytes();
    auto read_stream = [&] {
        const Bytes file = file_of(plain);
        StreamReader stream(file);
        return message_of([&] { faiss_turboquant::read_index(&stream); });
    };
    // of the codes: their count, after the tag and d, or the array's size
    const uint64_t ntotal = uint64_t(1) << 40;
    for (size_t at : {size_t(8), plain.arrays[0].at}) {
        memcpy(&plain.bytes[at], &ntotal, 8);
        EXPECT_CONTAINS(
                message_of_reading(file_of(plain)),
                "cut short: it ends within codes");
        if (at == 8) {
            EXPECT_CONTAINS(
                    read_stream(),
                    "\"stream.tq\" is altered: the size of codes is 1280");
        }
    }
    // what comes where more checksums should be is no block
    EXPECT_CONTAINS(read_stream(), "\"stream.tq\" is altered: block 1");
    EXPECT_LT(peak_memory_bytes() - before, size_t(32) << 20);
}

TEST(IndexIO, DeepNesting) {
    // one IndexIDMap in another, a million times
    const IndexPtr index = make_index("IDMap,TQ1");
    const Bytes bytes =
            plain_of(faiss_turboquant::serialize_index(index.get())).bytes;
    const size_t record = 4 + 4 + 8 + 1 + 1;
    Plain nested;
    for (int i = 0; i < 1000000; i++) {
        nested.bytes.insert(
                nested.bytes.end(), bytes.begin(), bytes.begin() + record);
    }
    EXPECT_CONTAINS(message_of_reading(file_of(nested)), "nested");
}

TEST(IndexIO, UnknownRecords) {
    const IndexPtr index = make_index("TQ4");
    const Plain plain =
            plain_of(faiss_turboquant::serialize_index(index.get()));
    Plain unknown = plain;
    unknown.bytes[2] = 'z';
    unknown.bytes[3] = '9';
    EXPECT_CONTAINS(message_of_reading(file_of(unknown)), "\"TQz9\"");
    Plain longer = plain;
    longer.bytes.push_back(0);
    EXPECT_CONTAINS(message_of_reading(file_of(longer)), "behind the last");
}

} // namespace
