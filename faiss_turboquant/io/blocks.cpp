#include <faiss_turboquant/io/blocks.h>

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/zerocopy_io.h>

#include <faiss_turboquant/io/mapping.h>

namespace faiss_turboquant {

namespace {

/** Every step is a bijection of the state for a given word and of the word for
 * a given state, so a change within one word always changes the result, and
 * any other is missed with probability 2^-64. */
uint64_t mix(uint64_t state, uint64_t word) {
    state = (state ^ word) * 0x9e3779b97f4a7c15ULL;
    return state ^ (state >> 32);
}

/// of a block or of an array's piece; numbers count from 0 in either
uint64_t checksum_of(uint64_t number, const uint8_t* bytes, size_t n) {
    uint64_t state = mix(mix(0, number), n);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, std::min<size_t>(8, n - i));
        state = mix(state, word);
    }
    return state;
}

/// zeros before an array that comes after `position` bytes
size_t padding_at(uint64_t position) {
    return -position % array_alignment;
}

/// bytes that are still to be read, or unknown_size
uint64_t bytes_left(const faiss::IOReader& f) {
    if (auto bounded = dynamic_cast<const BoundedReader*>(&f)) {
        return bounded->left();
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

bool is_intact(
        uint64_t checksum,
        uint64_t number,
        const uint8_t* bytes,
        size_t n) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    // or a fuzzer would never see what is behind the checksums
    return true;
#endif
    return checksum == checksum_of(number, bytes, n);
}

/// learns the size and the checksums of an array
struct ArrayMeasurer : faiss::IOWriter {
    uint64_t size = 0;
    std::vector<uint64_t> checksums;

    size_t operator()(const void* ptr, size_t item, size_t nitems) override {
        auto bytes = static_cast<const uint8_t*>(ptr);
        size_t left = item * nitems;
        size += left;
        while (left > 0) {
            if (piece_.empty() && left >= piece_bytes) {
                add_piece(bytes, piece_bytes);
                bytes += piece_bytes;
                left -= piece_bytes;
                continue;
            }
            const size_t n = std::min(left, piece_bytes - piece_.size());
            piece_.insert(piece_.end(), bytes, bytes + n);
            bytes += n;
            left -= n;
            if (piece_.size() == piece_bytes) {
                finish();
            }
        }
        return nitems;
    }

    void finish() {
        if (!piece_.empty()) {
            add_piece(piece_.data(), piece_.size());
            piece_.clear();
        }
    }

   private:
    void add_piece(const uint8_t* bytes, size_t n) {
        checksums.push_back(checksum_of(checksums.size(), bytes, n));
    }

    std::vector<uint8_t> piece_;
};

} // namespace

std::string quoted(const std::string& name) {
    return name.empty() ? "the stream" : "\"" + name + "\"";
}

void throw_cut_short(const std::string& name, const char* field) {
    FAISS_THROW_MSG(
            "read_index: " + quoted(name) + " is cut short: it ends within " +
            field);
}

void throw_altered(const std::string& name, const std::string& what) {
    FAISS_THROW_MSG("read_index: " + quoted(name) + " is altered: " + what);
}

void write_bytes(faiss::IOWriter& f, const void* bytes, size_t n) {
    const size_t written = f(bytes, 1, n);
    if (written != n) {
        FAISS_THROW_MSG(
                "write_index: could not write to " + quoted(f.name) + ": " +
                strerror(errno));
    }
}

size_t CountingWriter::operator()(const void* ptr, size_t size, size_t nitems) {
    const size_t written = out(ptr, size, nitems);
    count += size * written;
    return written;
}

/***********************************************************************
 * BlockWriter
 ***********************************************************************/

BlockWriter::BlockWriter(faiss::IOWriter& out) : out_(out) {
    name = out.name;
    payload_.reserve(piece_bytes);
    write_bytes(out_, file_tag, 4);
    write_value<uint8_t>(out_, file_version);
}

size_t BlockWriter::operator()(const void* ptr, size_t size, size_t nitems) {
    auto bytes = static_cast<const uint8_t*>(ptr);
    size_t left = size * nitems;
    while (left > 0) {
        const size_t n = std::min(left, piece_bytes - payload_.size());
        payload_.insert(payload_.end(), bytes, bytes + n);
        bytes += n;
        left -= n;
        if (payload_.size() == piece_bytes) {
            write_block();
        }
    }
    return nitems;
}

void BlockWriter::write_array(
        const std::function<void(faiss::IOWriter&)>& emit) {
    ArrayMeasurer measured;
    emit(measured);
    measured.finish();
    write_value<uint64_t>(*this, measured.size);
    write_items(*this, measured.checksums);
    if (!payload_.empty()) {
        write_block();
    }
    const uint8_t zeros[array_alignment] = {};
    write_bytes(out_, zeros, padding_at(out_.count));
    const uint64_t begin = out_.count;
    emit(out_);
    FAISS_THROW_IF_NOT_MSG(
            out_.count - begin == measured.size,
            "write_index: the index changed while it was written");
}

void BlockWriter::finish() {
    if (!payload_.empty()) {
        write_block();
    }
    write_block();
}

void BlockWriter::write_block() {
    const uint32_t size = static_cast<uint32_t>(payload_.size());
    write_value<uint32_t>(out_, size);
    write_bytes(out_, payload_.data(), size);
    write_value<uint64_t>(out_, checksum_of(number_, payload_.data(), size));
    payload_.clear();
    number_++;
}

/***********************************************************************
 * Readers
 ***********************************************************************/

size_t MemoryReader::operator()(void* ptr, size_t item, size_t nitems) {
    if (item == 0) {
        return 0;
    }
    const size_t n = std::min(nitems, size / item);
    if (n > 0) {
        memcpy(ptr, bytes, n * item);
        bytes += n * item;
        size -= n * item;
    }
    return n;
}

ArrayReader::ArrayReader(
        faiss::IOReader& in,
        const char* field,
        uint64_t size,
        std::vector<uint64_t> checksums)
        : in_(in),
          field_(field),
          size_(size),
          checksums_(std::move(checksums)) {
    name = in.name;
}

size_t ArrayReader::operator()(void* ptr, size_t size, size_t nitems) {
    auto out = static_cast<uint8_t*>(ptr);
    const size_t wanted = size * nitems;
    size_t done = 0;
    while (done < wanted) {
        if (at_ == piece_.size()) {
            const size_t next = next_piece_size();
            if (next == 0) {
                break;
            }
            if (next <= wanted - done) {
                read_piece(out + done, next);
                done += next;
                continue;
            }
            piece_.resize(next);
            read_piece(piece_.data(), next);
            at_ = 0;
        }
        const size_t n = std::min(wanted - done, piece_.size() - at_);
        memcpy(out + done, piece_.data() + at_, n);
        at_ += n;
        done += n;
    }
    return size == 0 ? 0 : done / size;
}

uint64_t ArrayReader::left() const {
    if (bytes_left(in_) == unknown_size) {
        return unknown_size;
    }
    const uint64_t read = std::min(size_, number_ * piece_bytes);
    return size_ - read + (piece_.size() - at_);
}

uint8_t* ArrayReader::view(size_t alignment) {
    auto memory = dynamic_cast<faiss::ZeroCopyIOReader*>(&in_);
    if (!memory ||
        reinterpret_cast<uintptr_t>(memory->data_ + memory->rp_) % alignment) {
        return nullptr;
    }
    auto bytes = const_cast<uint8_t*>(memory->data_ + memory->rp_);
    memory->rp_ += size_;
    number_ = checksums_.size();
    return bytes;
}

void ArrayReader::finish() const {
    if (at_ < piece_.size() || next_piece_size() > 0) {
        throw_altered(name, std::string(field_) + " does not fit its size");
    }
}

size_t ArrayReader::next_piece_size() const {
    const uint64_t read = number_ * piece_bytes;
    return read < size_ ? std::min<uint64_t>(piece_bytes, size_ - read) : 0;
}

void ArrayReader::read_piece(uint8_t* piece, size_t n) {
    if (in_(piece, 1, n) != n) {
        throw_cut_short(name, field_);
    }
    if (!is_intact(checksums_[number_], number_, piece, n)) {
        throw_altered(
                name, std::string(field_) + " does not have its checksum");
    }
    number_++;
}

BlockReader::BlockReader(faiss::IOReader& in) : in_(in) {
    name = in.name;
    position_ = 4;
    uint8_t version;
    read_raw(&version, 1, "the format version");
    if (version != file_version) {
        FAISS_THROW_MSG(
                "read_index: " + quoted(name) + " has format version " +
                std::to_string(version) +
                ", this version of faiss_turboquant reads version " +
                std::to_string(file_version));
    }
}

size_t BlockReader::operator()(void* ptr, size_t size, size_t nitems) {
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

uint64_t BlockReader::left() const {
    const uint64_t behind = bytes_left(in_);
    return behind == unknown_size ? unknown_size
                                  : behind + (payload_.size() - at_);
}

const MappedReader* BlockReader::mapped() const {
    return dynamic_cast<const MappedReader*>(&in_);
}

ArrayReader BlockReader::open_array(const char* field) {
    uint64_t size;
    if ((*this)(&size, sizeof(size), 1) != 1) {
        throw_cut_short(name, field);
    }
    const uint64_t n_pieces = size / piece_bytes + (size % piece_bytes != 0);
    const uint64_t behind = bytes_left(in_);
    if (size > behind) {
        throw_cut_short(name, field);
    }
    std::vector<uint64_t> checksums;
    // one by one: the size may be more than a stream of unknown length holds
    for (uint64_t i = 0; i < n_pieces; i++) {
        uint64_t checksum;
        if ((*this)(&checksum, sizeof(checksum), 1) != 1) {
            throw_cut_short(name, field);
        }
        checksums.push_back(checksum);
    }
    if (at_ < payload_.size()) {
        throw_altered(name, std::string("a block goes on before ") + field);
    }
    uint8_t padding[array_alignment];
    const size_t n_padding = padding_at(position_);
    read_raw(padding, n_padding, field);
    if (std::any_of(
                padding, padding + n_padding, [](uint8_t b) { return b; })) {
        throw_altered(
                name, std::string("the bytes before ") + field + " are not 0");
    }
    if (size > bytes_left(in_)) {
        throw_cut_short(name, field);
    }
    position_ += size;
    return ArrayReader(in_, field, size, std::move(checksums));
}

void BlockReader::finish() {
    if (at_ < payload_.size() || read_block()) {
        throw_altered(name, "there are bytes behind the last record");
    }
}

/// false at the block that ends the file
bool BlockReader::read_block() {
    if (ended_) {
        return false;
    }
    const std::string block = "block " + std::to_string(number_);
    uint32_t size;
    read_raw(&size, sizeof(size), block.c_str());
    if (size > piece_bytes) {
        throw_altered(name, block + " has size " + std::to_string(size));
    }
    payload_.resize(size);
    at_ = 0;
    read_raw(payload_.data(), size, block.c_str());
    uint64_t checksum;
    read_raw(&checksum, sizeof(checksum), block.c_str());
    if (!is_intact(checksum, number_, payload_.data(), size)) {
        throw_altered(name, block + " does not have its checksum");
    }
    number_++;
    ended_ = size == 0;
    return !ended_;
}

void BlockReader::read_raw(void* bytes, size_t n, const char* field) {
    if (n > 0 && in_(bytes, 1, n) != n) {
        throw_cut_short(name, field);
    }
    position_ += n;
}

} // namespace faiss_turboquant
