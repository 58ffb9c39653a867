#include <faiss_turboquant/io/AtomicFile.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <faiss/impl/FaissAssert.h>

namespace faiss_turboquant {

AtomicFile::AtomicFile(const char* fname) : target_(fname) {
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

AtomicFile::~AtomicFile() {
    if (f_) {
        fclose(f_);
    }
    if (!temporary_.empty()) {
        unlink(temporary_.c_str());
    }
}

void AtomicFile::commit() {
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

void AtomicFile::throw_if(bool failed, const char* what) const {
    if (failed) {
        FAISS_THROW_MSG(
                std::string("write_index: could not ") + what + " \"" +
                target_ + "\" for writing: " + strerror(errno));
    }
}

/** So that the new name survives a crash of the machine. The file is complete
 * already: a file system that cannot do this is no error. */
void AtomicFile::sync_directory() const {
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

} // namespace faiss_turboquant
