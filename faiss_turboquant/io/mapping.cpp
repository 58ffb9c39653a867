#include <faiss_turboquant/io/mapping.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include <faiss/impl/FaissAssert.h>

namespace faiss_turboquant {

namespace {

size_t position_of(FILE* f) {
    const off_t at = ftello(f);
    FAISS_THROW_IF_NOT_FMT(
            at >= 0,
            "read_index: io_flags has IO_FLAG_MMAP or IO_FLAG_MMAP_IFC, but "
            "the stream cannot be mapped: %s",
            strerror(errno));
    return at;
}

} // namespace

Mapping::Mapping(FILE* f) {
    struct stat status;
    FAISS_THROW_IF_NOT_MSG(
            fstat(fileno(f), &status) == 0 && S_ISREG(status.st_mode),
            "read_index: io_flags has IO_FLAG_MMAP or IO_FLAG_MMAP_IFC, but "
            "what is read is not a regular file");
    size_ = status.st_size;
    void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fileno(f), 0);
    FAISS_THROW_IF_NOT_FMT(
            data != MAP_FAILED,
            "read_index: could not map the file: %s",
            strerror(errno));
    data_ = static_cast<uint8_t*>(data);
}

Mapping::~Mapping() {
    if (data_) {
        munmap(data_, size_);
    }
}

uint8_t* Mapping::release() {
    uint8_t* data = data_;
    data_ = nullptr;
    return data;
}

MappedReader::MappedReader(FILE* f)
        : MappedReader(f, std::make_shared<Mapping>(f), position_of(f)) {}

MappedReader::MappedReader(
        FILE* f,
        std::shared_ptr<Mapping> mapping,
        size_t begin)
        : ZeroCopyIOReader(mapping->data(), mapping->size()),
          f(f),
          mapping(std::move(mapping)) {
    rp_ = begin;
}

void MappedReader::seek_file() const {
    FAISS_THROW_IF_NOT_FMT(
            fseeko(f, rp_, SEEK_SET) == 0,
            "read_index: could not seek in the file: %s",
            strerror(errno));
}

} // namespace faiss_turboquant
