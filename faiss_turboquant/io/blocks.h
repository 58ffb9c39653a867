#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include <faiss/impl/io.h>

namespace faiss_turboquant {

struct MappedReader;

/** The outer layer of the file format, which index_io.h describes: blocks and
 * arrays, from which records (records.h) are made. */

constexpr char file_tag[] = "TQix";
constexpr uint8_t file_version = 2;
/// largest payload of a block; size of an array's pieces but the last
constexpr size_t piece_bytes = size_t(1) << 20;
/// of arrays, from the first byte of the file
constexpr size_t array_alignment = 64;

/// "name" or, for a reader or writer without a name, the stream
std::string quoted(const std::string& name);

[[noreturn]] void throw_cut_short(const std::string& name, const char* field);

[[noreturn]] void throw_altered(
        const std::string& name,
        const std::string& what);

/// throws when f takes fewer than n bytes
void write_bytes(faiss::IOWriter& f, const void* bytes, size_t n);

template <class T>
void write_value(faiss::IOWriter& f, T value) {
    static_assert(std::is_arithmetic_v<T>);
    write_bytes(f, &value, sizeof(value));
}

/// @param items  std::vector or faiss::MaybeOwnedVector of plain values
template <class Vector>
void write_items(faiss::IOWriter& f, const Vector& items) {
    write_bytes(f, items.data(), items.size() * sizeof(*items.data()));
}

/// writes to another writer and counts the bytes
struct CountingWriter : faiss::IOWriter {
    faiss::IOWriter& out;
    uint64_t count = 0;

    explicit CountingWriter(faiss::IOWriter& out) : out(out) {
        name = out.name;
    }
    size_t operator()(const void* ptr, size_t size, size_t nitems) override;
};

/// writes the file's first bytes, then collects what is written into blocks
class BlockWriter : public faiss::IOWriter {
   public:
    explicit BlockWriter(faiss::IOWriter& out);

    size_t operator()(const void* ptr, size_t size, size_t nitems) override;

    /** An array of the bytes that `emit` writes, with its size before it.
     * @param emit  called twice and has to write the same both times: the
     *              checksums stand before the bytes */
    void write_array(const std::function<void(faiss::IOWriter&)>& emit);

    /// to be called once, after everything else
    void finish();

   private:
    void write_block();

    CountingWriter out_;
    std::vector<uint8_t> payload_;
    uint64_t number_ = 0;
};

constexpr uint64_t unknown_size = UINT64_MAX;

/// a reader that knows how much there is to read
struct BoundedReader : faiss::IOReader {
    /// an upper bound on the bytes that are still to be read, or unknown_size
    virtual uint64_t left() const = 0;
};

struct MemoryReader : BoundedReader {
    const uint8_t* bytes;
    size_t size;

    MemoryReader(const uint8_t* bytes, size_t size)
            : bytes(bytes), size(size) {}

    size_t operator()(void* ptr, size_t size, size_t nitems) override;
    uint64_t left() const override {
        return size;
    }
};

/// hands out the bytes of one array, each piece verified before any of it
class ArrayReader : public BoundedReader {
   public:
    /// @param checksums  of its pieces
    ArrayReader(
            faiss::IOReader& in,
            const char* field,
            uint64_t size,
            std::vector<uint64_t> checksums);

    size_t operator()(void* ptr, size_t size, size_t nitems) override;
    uint64_t left() const override;

    /// of the array
    uint64_t size() const {
        return size_;
    }

    /** The whole array in the memory that the file is mapped to or is read
     * from (faiss::ZeroCopyIOReader), not verified. To be called instead of
     * reading.
     * @return null for another source, or an address that is not a multiple
     *         of `alignment`: read it then */
    uint8_t* view(size_t alignment);

    /// to be called once, after everything else
    void finish() const;

   private:
    void read_piece(uint8_t* piece, size_t n);
    size_t next_piece_size() const;

    faiss::IOReader& in_;
    const char* field_;
    uint64_t size_;
    std::vector<uint64_t> checksums_;
    std::vector<uint8_t> piece_;
    size_t at_ = 0;     ///< in piece_
    size_t number_ = 0; ///< of the next piece
};

/// hands out the payloads of verified blocks, and arrays
class BlockReader : public BoundedReader {
   public:
    /// @param in  behind the file's tag
    explicit BlockReader(faiss::IOReader& in);

    size_t operator()(void* ptr, size_t size, size_t nitems) override;
    uint64_t left() const override;

    /// the array that stands next; read it to its end before anything else
    ArrayReader open_array(const char* field);

    /// the source when it is a mapped file, else null
    const MappedReader* mapped() const;

    /// to be called once, after everything else
    void finish();

   private:
    bool read_block();
    void read_raw(void* bytes, size_t n, const char* field);

    faiss::IOReader& in_;
    std::vector<uint8_t> payload_;
    size_t at_ = 0; ///< in payload_
    uint64_t number_ = 0;
    /// bytes of the file that were read, arrays included
    uint64_t position_ = 0;
    bool ended_ = false;
};

} // namespace faiss_turboquant
