#include <faiss_turboquant/index_io.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/zerocopy_io.h>

#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/index_tree.h>

namespace faiss_turboquant {

namespace {

using faiss::fourcc;
using faiss::Index;

constexpr char file_tag[] = "TQix";
constexpr uint8_t file_version = 1;
constexpr size_t block_bytes = size_t(1) << 20;
/// deeper than any sensible index, shallow enough for any stack
constexpr int max_depth = 32;

/***********************************************************************
 * Blocks
 ***********************************************************************/

/** Every step is a bijection of the state for a given word and of the word for
 * a given state, so a change within one word always changes the result, and
 * any other is missed with probability 2^-64. */
uint64_t mix(uint64_t state, uint64_t word) {
    state = (state ^ word) * 0x9e3779b97f4a7c15ULL;
    return state ^ (state >> 32);
}

uint64_t block_checksum(uint64_t number, const std::vector<uint8_t>& payload) {
    uint64_t state = mix(mix(0, number), payload.size());
    for (size_t i = 0; i < payload.size(); i += 8) {
        uint64_t word = 0;
        memcpy(&word,
               payload.data() + i,
               std::min<size_t>(8, payload.size() - i));
        state = mix(state, word);
    }
    return state;
}

std::string quoted(const std::string& name) {
    return name.empty() ? "the stream" : "\"" + name + "\"";
}

void write_bytes(faiss::IOWriter& f, const void* bytes, size_t n) {
    const size_t written = f(bytes, 1, n);
    if (written != n) {
        FAISS_THROW_MSG(
                "write_index: could not write to " + quoted(f.name) + ": " +
                strerror(errno));
    }
}

/// collects what is written into blocks
class BlockWriter : public faiss::IOWriter {
   public:
    explicit BlockWriter(faiss::IOWriter& out) : out_(out) {
        name = out.name;
        payload_.reserve(block_bytes);
    }

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        auto bytes = static_cast<const uint8_t*>(ptr);
        size_t left = size * nitems;
        while (left > 0) {
            const size_t n = std::min(left, block_bytes - payload_.size());
            payload_.insert(payload_.end(), bytes, bytes + n);
            bytes += n;
            left -= n;
            if (payload_.size() == block_bytes) {
                write_block();
            }
        }
        return nitems;
    }

    /// to be called once, after everything else
    void finish() {
        if (!payload_.empty()) {
            write_block();
        }
        write_block();
    }

   private:
    void write_block() {
        const uint32_t size = static_cast<uint32_t>(payload_.size());
        const uint64_t checksum = block_checksum(number_, payload_);
        write_bytes(out_, &size, sizeof(size));
        write_bytes(out_, payload_.data(), size);
        write_bytes(out_, &checksum, sizeof(checksum));
        payload_.clear();
        number_++;
    }

    faiss::IOWriter& out_;
    std::vector<uint8_t> payload_;
    uint64_t number_ = 0;
};

struct MemoryReader : faiss::IOReader {
    const uint8_t* bytes;
    size_t left;

    MemoryReader(const uint8_t* bytes, size_t size)
            : bytes(bytes), left(size) {}

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        if (size == 0) {
            return 0;
        }
        const size_t n = std::min(nitems, left / size);
        if (n > 0) {
            memcpy(ptr, bytes, n * size);
            bytes += n * size;
            left -= n * size;
        }
        return n;
    }
};

constexpr uint64_t unknown_size = UINT64_MAX;

/// bytes that are still to be read, or unknown_size
uint64_t bytes_left(const faiss::IOReader& f) {
    if (auto memory = dynamic_cast<const MemoryReader*>(&f)) {
        return memory->left;
    }
    if (auto vector = dynamic_cast<const faiss::VectorIOReader*>(&f)) {
        return vector->data.size() - std::min(vector->rp, vector->data.size());
    }
    if (auto view = dynamic_cast<const faiss::ZeroCopyIOReader*>(&f)) {
        return view->total_ - std::min(view->rp_, view->total_);
    }
    if (auto file = dynamic_cast<const faiss::FileIOReader*>(&f)) {
        struct stat status;
        const off_t at = ftello(file->f);
        if (at >= 0 && fstat(::fileno(file->f), &status) == 0 &&
            S_ISREG(status.st_mode)) {
            return std::max<off_t>(status.st_size - at, 0);
        }
    }
    return unknown_size;
}

[[noreturn]] void throw_cut_short(const std::string& name, const char* field) {
    FAISS_THROW_MSG(
            "read_index: " + quoted(name) + " is cut short: it ends within " +
            field);
}

[[noreturn]] void throw_altered(
        const std::string& name,
        const std::string& what) {
    FAISS_THROW_MSG("read_index: " + quoted(name) + " is altered: " + what);
}

/// hands out the payloads of verified blocks
class BlockReader : public faiss::IOReader {
   public:
    explicit BlockReader(faiss::IOReader& in) : in_(in) {
        name = in.name;
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        auto out = static_cast<uint8_t*>(ptr);
        const size_t wanted = size * nitems;
        size_t done = 0;
        while (done < wanted) {
            if (at_ == payload_.size() && !read_block()) {
                break;
            }
            const size_t n = std::min(wanted - done, payload_.size() - at_);
            memcpy(out + done, payload_.data() + at_, n);
            at_ += n;
            done += n;
        }
        return size == 0 ? 0 : done / size;
    }

    /// to be called once, after everything else
    void finish() {
        if (at_ < payload_.size() || read_block()) {
            throw_altered(name, "there are bytes behind the last record");
        }
    }

    /// an upper bound
    uint64_t left() const {
        const uint64_t behind = bytes_left(in_);
        return behind == unknown_size ? unknown_size
                                      : behind + (payload_.size() - at_);
    }

   private:
    /// false at the block that ends the file
    bool read_block() {
        if (ended_) {
            return false;
        }
        uint32_t size;
        read_raw(&size, sizeof(size));
        if (size > block_bytes) {
            throw_altered(
                    name,
                    "block " + std::to_string(number_) + " has size " +
                            std::to_string(size));
        }
        payload_.resize(size);
        at_ = 0;
        read_raw(payload_.data(), size);
        uint64_t checksum;
        read_raw(&checksum, sizeof(checksum));
        if (checksum != block_checksum(number_, payload_)) {
            throw_altered(
                    name,
                    "block " + std::to_string(number_) +
                            " does not have its checksum");
        }
        number_++;
        ended_ = size == 0;
        return !ended_;
    }

    void read_raw(void* bytes, size_t n) {
        if (in_(bytes, 1, n) != n) {
            throw_cut_short(name, ("block " + std::to_string(number_)).c_str());
        }
    }

    faiss::IOReader& in_;
    std::vector<uint8_t> payload_;
    size_t at_ = 0;
    uint64_t number_ = 0;
    bool ended_ = false;
};

/***********************************************************************
 * Fields
 ***********************************************************************/

template <class T>
void write_value(faiss::IOWriter& f, T value) {
    static_assert(std::is_arithmetic_v<T>);
    write_bytes(f, &value, sizeof(value));
}

template <class T>
T read_value(BlockReader& f, const char* field) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value;
    if (f(&value, sizeof(value), 1) != 1) {
        throw_cut_short(f.name, field);
    }
    return value;
}

[[noreturn]] void throw_bad_value(
        const BlockReader& f,
        const char* field,
        const std::string& value) {
    throw_altered(f.name, std::string(field) + " is " + value);
}

/// an integer from lowest to highest
template <class T>
T read_within(
        BlockReader& f,
        const char* field,
        uint64_t lowest,
        uint64_t highest) {
    const T value = read_value<T>(f, field);
    if (value < lowest || value > highest) {
        throw_bad_value(f, field, std::to_string(value));
    }
    return value;
}

bool read_bool(BlockReader& f, const char* field) {
    return read_within<uint8_t>(f, field, 0, 1) == 1;
}

/** @param vector  std::vector or faiss::MaybeOwnedVector of arithmetic values,
 *                 resized to n */
template <class Vector>
void read_vector(
        BlockReader& f,
        Vector& vector,
        uint64_t n,
        const char* field) {
    const size_t item = sizeof(*vector.data());
    const uint64_t left = f.left();
    if (n > left / item) {
        throw_cut_short(f.name, field);
    }
    const uint64_t step = left == unknown_size ? block_bytes / item : n;
    for (uint64_t done = 0; done < n;) {
        const uint64_t part = std::min(step, n - done);
        vector.resize(done + part);
        if (f(vector.data() + done, item, part) != part) {
            throw_cut_short(f.name, field);
        }
        done += part;
    }
}

/// the fields that every index has
void write_header(faiss::IOWriter& f, const Index& index) {
    write_value<uint32_t>(f, index.d);
    write_value<uint64_t>(f, index.ntotal);
    write_value<uint8_t>(f, index.is_trained);
    write_value<uint8_t>(f, index.metric_type);
}

void read_header(BlockReader& f, Index& index) {
    index.d = read_within<uint32_t>(f, "d", 1, INT32_MAX);
    index.ntotal = read_within<uint64_t>(f, "ntotal", 0, INT64_MAX);
    index.is_trained = read_bool(f, "is_trained");
    index.metric_type = read_within<uint8_t>(f, "metric_type", 0, 1)
            ? faiss::METRIC_L2
            : faiss::METRIC_INNER_PRODUCT;
}

/***********************************************************************
 * Invariants, checked before writing and after reading
 ***********************************************************************/

[[noreturn]] void throw_inconsistent(
        const Index& index,
        const std::string& what) {
    FAISS_THROW_MSG(type_name(&index) + " is inconsistent: " + what);
}

template <class A, class B>
void check_equal(
        const Index& index,
        const char* a_name,
        A a,
        const char* b_name,
        B b) {
    if (!(a == static_cast<A>(b))) {
        throw_inconsistent(
                index,
                std::string(a_name) + " is " + std::to_string(a) + ", " +
                        b_name + " is " + std::to_string(b));
    }
}

void check_sub_index(const Index& index, const Index* sub, const char* name) {
    if (!sub) {
        throw_inconsistent(index, std::string(name) + " is null");
    }
    const std::string prefix = std::string(name) + "->";
    check_equal(
            index,
            "ntotal",
            index.ntotal,
            (prefix + "ntotal").c_str(),
            sub->ntotal);
    check_equal(
            index,
            "metric_type",
            static_cast<int>(index.metric_type),
            (prefix + "metric_type").c_str(),
            static_cast<int>(sub->metric_type));
    if (index.is_trained && !sub->is_trained) {
        throw_inconsistent(
                index, std::string("it is trained, ") + name + " is not");
    }
}

void check_sub_index_and_d(
        const Index& index,
        const Index* sub,
        const char* name) {
    check_sub_index(index, sub, name);
    check_equal(
            index, "d", index.d, (std::string(name) + "->d").c_str(), sub->d);
}

void check(const faiss::IndexTurboQuant& index) {
    const TurboQuantizer& tq = index.tq;
    check_equal(index, "d", index.d, "tq.d", tq.d);
    check_equal(
            index,
            "metric_type",
            static_cast<int>(index.metric_type),
            "tq.metric_type",
            static_cast<int>(tq.metric_type));
    check_equal(
            index, "code_size", index.code_size, "tq.code_size", tq.code_size);
    check_equal(
            index,
            "codes.size()",
            index.codes.size(),
            "ntotal * code_size",
            index.ntotal * index.code_size);
}

void check(const faiss::IndexIDMap& map) {
    check_sub_index_and_d(map, map.index, "index");
    check_equal(map, "ntotal", map.ntotal, "id_map.size()", map.id_map.size());
}

bool has_expected_sizes(const faiss::LinearTransform& linear) {
    if (linear.A.empty() && !linear.is_trained) {
        return true;
    }
    return linear.A.size() == size_t(linear.d_in) * linear.d_out &&
            (!linear.have_bias || linear.b.size() == size_t(linear.d_out));
}

/// whether applying vt touches only memory that it has
bool has_expected_sizes(const faiss::VectorTransform& vt) {
    using namespace faiss;
    if (vt.d_in < 1 || vt.d_out < 1) {
        return false;
    }
    if (auto linear = dynamic_cast<const LinearTransform*>(&vt)) {
        return has_expected_sizes(*linear);
    }
    if (auto remap = dynamic_cast<const RemapDimensionsTransform*>(&vt)) {
        return remap->map.size() == size_t(vt.d_out) &&
                std::all_of(
                        remap->map.begin(), remap->map.end(), [&](int from) {
                            return from >= -1 && from < vt.d_in;
                        });
    }
    if (dynamic_cast<const NormalizationTransform*>(&vt)) {
        return vt.d_in == vt.d_out;
    }
    if (auto centre = dynamic_cast<const CenteringTransform*>(&vt)) {
        return vt.d_in == vt.d_out &&
                (!vt.is_trained || centre->mean.size() == size_t(vt.d_in));
    }
    if (auto itq = dynamic_cast<const ITQTransform*>(&vt)) {
        return !vt.is_trained ||
                (itq->mean.size() == size_t(vt.d_in) &&
                 itq->pca_then_itq.d_in == vt.d_in &&
                 itq->pca_then_itq.d_out == vt.d_out &&
                 itq->pca_then_itq.is_trained &&
                 has_expected_sizes(itq->pca_then_itq));
    }
    return false;
}

void check(const faiss::IndexPreTransform& pre) {
    int d = pre.d;
    bool is_trained = true;
    for (size_t i = 0; i < pre.chain.size(); i++) {
        const faiss::VectorTransform& vt = *pre.chain[i];
        const std::string name = "chain[" + std::to_string(i) + "]";
        check_equal(pre, (name + "->d_in").c_str(), vt.d_in, "its input", d);
        if (!has_expected_sizes(vt)) {
            throw_inconsistent(pre, name + " has arrays of a wrong size");
        }
        d = vt.d_out;
        is_trained = is_trained && vt.is_trained;
    }
    if (pre.is_trained && !is_trained) {
        throw_inconsistent(pre, "it is trained, its chain is not");
    }
    check_sub_index(pre, pre.index, "index");
    check_equal(pre, "index->d", pre.index->d, "its input", d);
}

void check(const faiss::IndexRefine& refine) {
    check_sub_index_and_d(refine, refine.base_index, "base_index");
    check_sub_index_and_d(refine, refine.refine_index, "refine_index");
    if (dynamic_cast<const faiss::IndexRefineFlat*>(&refine) &&
        !dynamic_cast<const faiss::IndexFlat*>(refine.refine_index)) {
        throw_inconsistent(refine, "refine_index is not an IndexFlat");
    }
    if (!std::isfinite(refine.k_factor)) {
        throw_inconsistent(refine, "k_factor is not finite");
    }
}

void check(const faiss::IndexRowwiseMinMaxBase& minmax) {
    check_sub_index_and_d(minmax, minmax.index, "index");
}

/***********************************************************************
 * Records: write_X and read_X mirror one another. A new index type needs a
 * pair, a line in write_record and one in read_record.
 ***********************************************************************/

void write_record(BlockWriter& f, const Index* index, int io_flags);
std::unique_ptr<Index> read_record(BlockReader& f, int io_flags, int depth);

void write_flat(BlockWriter& f, const faiss::IndexTurboQuant& index) {
    const TurboQuantizer& tq = index.tq;
    write_header(f, index);
    write_value<uint8_t>(f, tq.nbits);
    write_value<uint8_t>(f, static_cast<uint8_t>(tq.rotation.type));
    write_value<uint64_t>(f, tq.rotation.seed);
    write_value<float>(f, tq.codebook.step);
    write_value<uint8_t>(f, tq.codebook.positions.size());
    write_bytes(f, tq.codebook.positions.data(), tq.codebook.positions.size());
    const Trellis& trellis = tq.codebook.trellis;
    write_value<uint8_t>(f, trellis.memory);
    if (trellis.memory > 0) {
        write_bytes(f, trellis.taps, sizeof(trellis.taps));
        write_value<uint8_t>(f, trellis.sign_mask);
        write_value<float>(f, tq.codebook.trellis_error);
    }
    write_value<uint8_t>(f, tq.has_centre());
    write_bytes(f, tq.centre.data(), tq.centre.size() * sizeof(float));
    write_value<uint64_t>(f, index.code_size);
    write_bytes(f, index.codes.data(), index.codes.size());
}

std::unique_ptr<Index> read_flat(BlockReader& f) {
    auto index = std::make_unique<faiss::IndexTurboQuant>();
    TurboQuantizer& tq = index->tq;
    read_header(f, *index);
    if (size_t(index->d) > TurboQuantizer::max_dim) {
        throw_bad_value(f, "d", std::to_string(index->d));
    }
    if (!index->is_trained) {
        throw_bad_value(f, "is_trained", "false");
    }
    tq.d = index->d;
    tq.metric_type = index->metric_type;
    tq.nbits = read_within<uint8_t>(f, "nbits", 1, 4);
    const auto rotation_type = static_cast<RotationType>(
            read_within<uint8_t>(f, "rotation type", 0, 1));
    const auto seed = read_value<uint64_t>(f, "seed");
    tq.rotation = Rotation(rotation_type, tq.d, seed);
    tq.codebook.step = read_value<float>(f, "codebook step");
    // set_derived_values checks that the codebook fits together
    const auto npositions =
            read_within<uint8_t>(f, "codebook size", 1, Trellis::n_indices);
    read_vector(f, tq.codebook.positions, npositions, "codebook positions");
    Trellis& trellis = tq.codebook.trellis;
    trellis.memory =
            read_within<uint8_t>(f, "trellis memory", 0, Trellis::max_memory);
    if (trellis.memory > 0) {
        for (uint16_t& taps : trellis.taps) {
            taps = read_value<uint16_t>(f, "trellis taps");
        }
        trellis.sign_mask = read_value<uint8_t>(f, "trellis sign mask");
        tq.codebook.trellis_error = read_value<float>(f, "trellis error");
    }
    tq.centre.clear();
    if (read_bool(f, "has_centre")) {
        read_vector(f, tq.centre, tq.d, "centre");
    }
    tq.set_derived_values();
    index->code_size =
            read_within<uint64_t>(f, "code_size", tq.code_size, tq.code_size);
    if (uint64_t(index->ntotal) > f.left() / index->code_size) {
        throw_cut_short(f.name, "codes");
    }
    read_vector(f, index->codes, index->ntotal * index->code_size, "codes");
    check(*index);
    return index;
}

void write_id_map(BlockWriter& f, const faiss::IndexIDMap& map, int io_flags) {
    write_header(f, map);
    write_record(f, map.index, io_flags);
    write_bytes(f, map.id_map.data(), map.id_map.size() * sizeof(faiss::idx_t));
}

std::unique_ptr<Index> read_id_map(
        BlockReader& f,
        std::unique_ptr<faiss::IndexIDMap> map,
        int io_flags,
        int depth) {
    map->own_fields = true;
    read_header(f, *map);
    map->index = read_record(f, io_flags, depth).release();
    read_vector(f, map->id_map, map->ntotal, "id_map");
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

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        const size_t n = MemoryReader::operator()(ptr, size, nitems);
        bool is_good = n == nitems;
        if (is_good && size == 8 && n == 1) {
            uint64_t length;
            memcpy(&length, ptr, sizeof(length));
            is_good = length <= left / 4;
        } else if (is_good && size == 1 && n == 1) {
            is_good = *static_cast<uint8_t*>(ptr) <= 1;
        }
        if (!is_good) {
            memset(ptr, 0, size * nitems);
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
        write_value<uint64_t>(f, bytes.data.size());
        write_bytes(f, bytes.data.data(), bytes.data.size());
    }
    write_record(f, pre.index, io_flags);
}

std::unique_ptr<faiss::VectorTransform> read_transform(BlockReader& f) {
    const auto size = read_value<uint64_t>(f, "size of a vector transform");
    std::vector<uint8_t> bytes;
    read_vector(f, bytes, size, "a vector transform");
    TransformReader reader(bytes.data(), bytes.size());
    reader.name = f.name;
    std::unique_ptr<faiss::VectorTransform> vt(
            faiss::read_VectorTransform(&reader));
    if (!reader.is_valid || reader.left != 0) {
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
    write_record(f, refine.refine_index, io_flags);
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

void write_record(BlockWriter& f, const Index* index, int io_flags) {
    using namespace faiss;
    auto tag = [&](const char* name) {
        write_value<uint32_t>(f, fourcc(name));
    };
    if (!contains_turboquant(index)) {
        tag("TQfa");
        faiss::write_index(index, &f, io_flags);
    } else if (auto flat = dynamic_cast<const IndexTurboQuant*>(index)) {
        check(*flat);
        tag("TQfl");
        write_flat(f, *flat);
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
    if (is("TQfa")) {
        return std::unique_ptr<Index>(faiss::read_index(&f, io_flags));
    } else if (is("TQfl")) {
        return read_flat(f);
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
    }
    FAISS_THROW_MSG(
            "read_index: " + quoted(f.name) + " has a record \"" +
            fourcc_inv_printable(tag) +
            "\", which is not known to this version of faiss_turboquant");
}

/***********************************************************************
 * Files
 ***********************************************************************/

void write_tagged(const Index* index, faiss::IOWriter& f, int io_flags) {
    FAISS_THROW_IF_NOT_FMT(
            (io_flags & ~faiss::IO_FLAG_SKIP_STORAGE) == 0,
            "write_index: io_flags is 0x%x, only IO_FLAG_SKIP_STORAGE is "
            "supported",
            io_flags);
    write_bytes(f, file_tag, 4);
    write_value<uint8_t>(f, file_version);
    BlockWriter blocks(f);
    write_record(blocks, index, io_flags);
    blocks.finish();
}

/// reads what follows file_tag
std::unique_ptr<Index> read_tagged(faiss::IOReader& f, int io_flags) {
    const bool map_lists =
            (io_flags & faiss::IO_FLAG_MMAP) == faiss::IO_FLAG_MMAP;
    const bool map_codes = (io_flags & faiss::IO_FLAG_MMAP_IFC) != 0;
    FAISS_THROW_IF_NOT_FMT(
            !map_lists && !map_codes,
            "read_index: io_flags has %s, which TurboQuant indexes do not "
            "support",
            map_codes ? "IO_FLAG_MMAP_IFC" : "IO_FLAG_MMAP");
    uint8_t version;
    if (f(&version, 1, 1) != 1) {
        throw_cut_short(f.name, "the format version");
    }
    if (version != file_version) {
        FAISS_THROW_MSG(
                "read_index: " + quoted(f.name) + " has format version " +
                std::to_string(version) +
                ", this version of faiss_turboquant reads version " +
                std::to_string(file_version));
    }
    BlockReader blocks(f);
    auto index = read_record(blocks, io_flags, 0);
    blocks.finish();
    return index;
}

/// the first four bytes of an index
struct Tag {
    char bytes[4];

    explicit Tag(faiss::IOReader& f) {
        if (f(bytes, 1, 4) != 4) {
            throw_cut_short(f.name, "its first four bytes");
        }
    }
    bool is_ours() const {
        return memcmp(bytes, file_tag, 4) == 0;
    }
};

/// gives the tag out once more, then reads on from f
struct ReplayReader : faiss::IOReader {
    Tag tag;
    faiss::IOReader& f;
    size_t at = 0;

    ReplayReader(const Tag& tag, faiss::IOReader& f) : tag(tag), f(f) {
        name = f.name;
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        return replay(tag, at, ptr, size, nitems, f);
    }

    int filedescriptor() override {
        return f.filedescriptor();
    }

    static size_t replay(
            const Tag& tag,
            size_t& at,
            void* ptr,
            size_t size,
            size_t nitems,
            faiss::IOReader& f) {
        if (at == 4) {
            return f(ptr, size, nitems);
        }
        const size_t wanted = size * nitems;
        const size_t n = std::min(wanted, 4 - at);
        memcpy(ptr, tag.bytes + at, n);
        at += n;
        size_t done = n;
        if (done < wanted) {
            done += f(static_cast<char*>(ptr) + n, 1, wanted - n);
        }
        return size == 0 ? 0 : done / size;
    }
};

/// the same for files, which FAISS recognises by the reader's class
struct ReplayFileReader : faiss::FileIOReader {
    Tag tag;
    faiss::FileIOReader& file;
    size_t at = 0;

    ReplayFileReader(const Tag& tag, faiss::FileIOReader& file)
            : FileIOReader(file.f), tag(tag), file(file) {
        name = file.name;
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        return ReplayReader::replay(tag, at, ptr, size, nitems, file);
    }
};

/// reads with FAISS an index whose tag was taken off already
Index* read_by_faiss(const Tag& tag, faiss::IOReader& f, int io_flags) {
    // FAISS makes views on what this one holds, so it must see it itself
    if (auto view = dynamic_cast<faiss::ZeroCopyIOReader*>(&f)) {
        view->rp_ -= 4;
        return faiss::read_index(&f, io_flags);
    }
    if (auto file = dynamic_cast<faiss::FileIOReader*>(&f)) {
        ReplayFileReader replay(tag, *file);
        return faiss::read_index(&replay, io_flags);
    }
    ReplayReader replay(tag, f);
    return faiss::read_index(&replay, io_flags);
}

/** A file that replaces the one of its name when it is complete. Anything but
 * a regular file (a pipe, /dev/stdout) cannot be replaced and is written to
 * directly. */
class AtomicFile {
   public:
    explicit AtomicFile(const char* fname) : target_(fname) {
        struct stat status;
        const bool exists = stat(fname, &status) == 0;
        if (exists && !S_ISREG(status.st_mode)) {
            f_ = fopen(fname, "wb");
            throw_if(!f_, "open");
            return;
        }
        if (exists) {
            // keep symbolic links, and protected files as they are
            const std::unique_ptr<char, decltype(&free)> path(
                    realpath(fname, nullptr), &free);
            throw_if(!path || access(fname, W_OK) != 0, "open");
            target_ = path.get();
        }
        static std::atomic<unsigned> counter{0};
        int fd;
        do {
            temporary_ = target_ + ".tmp." + std::to_string(getpid()) + "." +
                    std::to_string(counter++);
            fd =
                    open(temporary_.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                         0666);
        } while (fd < 0 && errno == EEXIST);
        if (fd < 0) {
            temporary_.clear();
        }
        throw_if(fd < 0, "open");
        f_ = fdopen(fd, "wb");
        const bool ok = f_ && (!exists || fchmod(fd, status.st_mode) == 0);
        if (!ok) {
            const int error = errno;
            f_ ? fclose(f_) : close(fd);
            unlink(temporary_.c_str());
            errno = error;
        }
        throw_if(!ok, "open");
    }

    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    ~AtomicFile() {
        if (f_) {
            fclose(f_);
        }
        if (!temporary_.empty()) {
            unlink(temporary_.c_str());
        }
    }

    FILE* file() {
        return f_;
    }

    void commit() {
        throw_if(fflush(f_) != 0, "write");
        throw_if(!temporary_.empty() && fsync(fileno(f_)) != 0, "write");
        FILE* f = f_;
        f_ = nullptr;
        throw_if(fclose(f) != 0, "write");
        if (temporary_.empty()) {
            return;
        }
        throw_if(rename(temporary_.c_str(), target_.c_str()) != 0, "replace");
        temporary_.clear();
        sync_directory();
    }

   private:
    void throw_if(bool failed, const char* what) const {
        if (failed) {
            FAISS_THROW_MSG(
                    std::string("write_index: could not ") + what + " \"" +
                    target_ + "\" for writing: " + strerror(errno));
        }
    }

    /** So that the new name survives a crash of the machine. The file is
     * complete already: a file system that cannot do this is no error. */
    void sync_directory() const {
        const size_t slash = target_.rfind('/');
        const std::string directory = slash == std::string::npos ? "."
                : slash == 0                                     ? "/"
                             : target_.substr(0, slash);
        const int fd = open(directory.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            (void)fsync(fd);
            close(fd);
        }
    }

    std::string target_;
    std::string temporary_;
    FILE* f_ = nullptr;
};

} // namespace

void write_index(const Index* index, faiss::IOWriter* writer, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(writer, "write_index: writer is null");
    if (!contains_turboquant(index)) {
        faiss::write_index(index, writer, io_flags);
        return;
    }
    write_tagged(index, *writer, io_flags);
}

void write_index(const Index* index, FILE* f, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(f, "write_index: f is null");
    if (!contains_turboquant(index)) {
        faiss::write_index(index, f, io_flags);
        return;
    }
    faiss::FileIOWriter writer(f);
    write_tagged(index, writer, io_flags);
    FAISS_THROW_IF_NOT_FMT(
            fflush(f) == 0,
            "write_index: could not write to the stream: %s",
            strerror(errno));
}

void write_index(const Index* index, const char* fname, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(fname, "write_index: fname is null");
    if (!contains_turboquant(index)) {
        faiss::write_index(index, fname, io_flags);
        return;
    }
    AtomicFile file(fname);
    faiss::FileIOWriter writer(file.file());
    writer.name = fname;
    write_tagged(index, writer, io_flags);
    file.commit();
}

Index* read_index(faiss::IOReader* reader, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(reader, "read_index: reader is null");
    // a mapped file only serves to let FAISS make views; its class is in no
    // installed header
    if (!strcmp(typeid(*reader).name(), "N5faiss18MappedFileIOReaderE")) {
        return faiss::read_index(reader, io_flags);
    }
    const Tag tag(*reader);
    if (!tag.is_ours()) {
        return read_by_faiss(tag, *reader, io_flags);
    }
    return read_tagged(*reader, io_flags).release();
}

Index* read_index(FILE* f, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(f, "read_index: f is null");
    faiss::FileIOReader reader(f);
    if (io_flags & faiss::IO_FLAG_MMAP_IFC) {
        // FAISS maps the file itself, from its beginning
        const off_t at = ftello(f);
        const bool ours = Tag(reader).is_ours();
        FAISS_THROW_IF_NOT_FMT(
                at >= 0 && fseeko(f, at, SEEK_SET) == 0,
                "read_index: io_flags has IO_FLAG_MMAP_IFC, but the stream "
                "cannot be mapped: %s",
                strerror(errno));
        if (!ours) {
            return faiss::read_index(f, io_flags);
        }
    }
    return faiss_turboquant::read_index(&reader, io_flags);
}

Index* read_index(const char* fname, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(fname, "read_index: fname is null");
    faiss::FileIOReader reader(fname);
    const Tag tag(reader);
    if (!tag.is_ours()) {
        return io_flags & faiss::IO_FLAG_MMAP_IFC
                ? faiss::read_index(fname, io_flags)
                : read_by_faiss(tag, reader, io_flags);
    }
    auto index = read_tagged(reader, io_flags);
    if (fgetc(reader.f) != EOF) {
        throw_altered(fname, "there are bytes behind the index");
    }
    return index.release();
}

std::vector<uint8_t> serialize_index(const Index* index, int io_flags) {
    faiss::VectorIOWriter writer;
    faiss_turboquant::write_index(index, &writer, io_flags);
    return std::move(writer.data);
}

Index* deserialize_index(const uint8_t* bytes, size_t size, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(
            bytes || size == 0, "deserialize_index: bytes is null");
    MemoryReader reader(bytes, size);
    const Tag tag(reader);
    if (!tag.is_ours()) {
        return read_by_faiss(tag, reader, io_flags);
    }
    auto index = read_tagged(reader, io_flags);
    if (reader.left != 0) {
        throw_altered(reader.name, "there are bytes behind the index");
    }
    return index.release();
}

Index* deserialize_index(const std::vector<uint8_t>& bytes, int io_flags) {
    return faiss_turboquant::deserialize_index(
            bytes.data(), bytes.size(), io_flags);
}

} // namespace faiss_turboquant
