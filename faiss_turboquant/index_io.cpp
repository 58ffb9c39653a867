#include <faiss_turboquant/index_io.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <typeinfo>
#include <utility>

#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/zerocopy_io.h>

#include <faiss_turboquant/index_tree.h>
#include <faiss_turboquant/io/AtomicFile.h>
#include <faiss_turboquant/io/blocks.h>
#include <faiss_turboquant/io/mapping.h>
#include <faiss_turboquant/io/records.h>

namespace faiss_turboquant {

namespace {

using faiss::Index;

void write_tagged(const Index* index, faiss::IOWriter& f, int io_flags) {
    FAISS_THROW_IF_NOT_FMT(
            (io_flags & ~faiss::IO_FLAG_SKIP_STORAGE) == 0,
            "write_index: io_flags is 0x%x, only IO_FLAG_SKIP_STORAGE is "
            "supported",
            io_flags);
    BlockWriter blocks(f);
    write_record(blocks, index, io_flags);
    blocks.finish();
}

bool wants_mapping(int io_flags) {
    return (io_flags & faiss::IO_FLAG_MMAP) == faiss::IO_FLAG_MMAP ||
            (io_flags & faiss::IO_FLAG_MMAP_IFC) != 0;
}

/// reads what follows file_tag
std::unique_ptr<Index> read_blocks(faiss::IOReader& f, int io_flags) {
    BlockReader blocks(f);
    auto index = read_record(blocks, io_flags);
    blocks.finish();
    if (!index) {
        throw_altered(f.name, "there is no index");
    }
    return index;
}

/// the same, with arrays that stay in the file where io_flags wants that
std::unique_ptr<Index> read_tagged(faiss::IOReader& f, int io_flags) {
    // memory is viewed in any case, as FAISS does it
    const bool is_memory = dynamic_cast<faiss::ZeroCopyIOReader*>(&f);
    if (!wants_mapping(io_flags) || is_memory) {
        return read_blocks(f, io_flags);
    }
    auto file = dynamic_cast<faiss::FileIOReader*>(&f);
    FAISS_THROW_IF_NOT_MSG(
            file,
            "read_index: io_flags has IO_FLAG_MMAP or IO_FLAG_MMAP_IFC, but "
            "what is read is not a file");
    MappedReader mapped(file->f);
    mapped.name = file->name;
    auto index = read_blocks(mapped, io_flags);
    mapped.seek_file();
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
    if (reader.left() != 0) {
        throw_altered(reader.name, "there are bytes behind the index");
    }
    return index.release();
}

Index* deserialize_index(const std::vector<uint8_t>& bytes, int io_flags) {
    return faiss_turboquant::deserialize_index(
            bytes.data(), bytes.size(), io_flags);
}

} // namespace faiss_turboquant
