#pragma once

#include <cstdio>
#include <string>

namespace faiss_turboquant {

/** A file that replaces the one of its name when it is complete: written to a
 * temporary file in the same directory, which is renamed by commit() and
 * removed if that is not reached. Anything but a regular file (a pipe,
 * /dev/stdout) cannot be replaced and is written to directly. */
class AtomicFile {
   public:
    /// @throws faiss::FaissException, as commit() does, naming the file
    explicit AtomicFile(const char* fname);
    ~AtomicFile();

    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    /// to write to
    FILE* file() {
        return f_;
    }

    /// to be called once, after everything is written
    void commit();

   private:
    void throw_if(bool failed, const char* what) const;
    void sync_directory() const;

    std::string target_;
    std::string temporary_; ///< empty when there is none
    FILE* f_ = nullptr;
};

} // namespace faiss_turboquant
