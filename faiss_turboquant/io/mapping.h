#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>

#include <faiss/impl/maybe_owned_vector.h>
#include <faiss/impl/zerocopy_io.h>

namespace faiss_turboquant {

/// a file in memory, read-only, as long as this lives
class Mapping : public faiss::MaybeOwnedVectorOwner {
   public:
    /** Maps the whole file.
     * @throws faiss::FaissException for anything but a regular file */
    explicit Mapping(FILE* f);
    ~Mapping() override;

    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    uint8_t* data() const {
        return data_;
    }
    size_t size() const {
        return size_;
    }
    /// gives the memory up to the caller, who unmaps it
    uint8_t* release();

   private:
    uint8_t* data_;
    size_t size_;
};

/// reads a mapped file from the current position of f
struct MappedReader : faiss::ZeroCopyIOReader {
    FILE* f;
    std::shared_ptr<Mapping> mapping;

    explicit MappedReader(FILE* f);

    /// moves f to where the reader is
    void seek_file() const;

   private:
    MappedReader(FILE* f, std::shared_ptr<Mapping> mapping, size_t begin);
};

} // namespace faiss_turboquant
