/** faiss::index_factory, read_index, write_index and clone_index that know
 * TurboQuant, for programs that were written for FAISS alone: linked before
 * FAISS, or named in LD_PRELOAD, this library's definitions are found first.
 *
 * They are those of namespace faiss_turboquant, which hand everything without
 * TurboQuant to FAISS's own. For these, which have the same names, the linker
 * gives the plugin the functions __wrap_<symbol> (option --wrap), which look
 * for the next definition after this library: no call comes back here. */

#include <dlfcn.h>

#include <faiss/clone_index.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <faiss_turboquant/clone_index.h>
#include <faiss_turboquant/index_factory.h>
#include <faiss_turboquant/index_io.h>

namespace {

using faiss::Index;
using faiss::IOReader;
using faiss::IOWriter;
using faiss::MetricType;

template <class Function>
Function* find_next(const char* symbol) {
    void* found = dlsym(RTLD_NEXT, symbol);
    FAISS_THROW_IF_NOT_FMT(
            found,
            "faiss_turboquant_preload: there is no FAISS behind it: %s",
            dlerror());
    return reinterpret_cast<Function*>(found);
}

} // namespace

/// FAISS's own function of this symbol
#define FAISS_OWN(symbol, result, name, parameters, arguments)         \
    result name parameters asm("__wrap_" symbol);                      \
    result name parameters {                                           \
        static const auto next = find_next<result parameters>(symbol); \
        return next arguments;                                         \
    }

FAISS_OWN(
        "_ZN5faiss13index_factoryEiPKcNS_10MetricTypeEb",
        Index*,
        own_index_factory,
        (int d, const char* description, MetricType metric, bool own_invlists),
        (d, description, metric, own_invlists))
FAISS_OWN(
        "_ZN5faiss10read_indexEPKci",
        Index*,
        own_read_index_of_path,
        (const char* fname, int io_flags),
        (fname, io_flags))
FAISS_OWN(
        "_ZN5faiss10read_indexEP8_IO_FILEi",
        Index*,
        own_read_index_of_file,
        (FILE * f, int io_flags),
        (f, io_flags))
FAISS_OWN(
        "_ZN5faiss10read_indexEPNS_8IOReaderEi",
        Index*,
        own_read_index,
        (IOReader * reader, int io_flags),
        (reader, io_flags))
FAISS_OWN(
        "_ZN5faiss11write_indexEPKNS_5IndexEPKci",
        void,
        own_write_index_to_path,
        (const Index* index, const char* fname, int io_flags),
        (index, fname, io_flags))
FAISS_OWN(
        "_ZN5faiss11write_indexEPKNS_5IndexEP8_IO_FILEi",
        void,
        own_write_index_to_file,
        (const Index* index, FILE* f, int io_flags),
        (index, f, io_flags))
FAISS_OWN(
        "_ZN5faiss11write_indexEPKNS_5IndexEPNS_8IOWriterEi",
        void,
        own_write_index,
        (const Index* index, IOWriter* writer, int io_flags),
        (index, writer, io_flags))
FAISS_OWN(
        "_ZN5faiss11clone_indexEPKNS_5IndexE",
        Index*,
        own_clone_index,
        (const Index* index),
        (index))

#pragma GCC visibility push(default)

namespace faiss {

Index* index_factory(
        int d,
        const char* description,
        MetricType metric,
        bool own_invlists) {
    return faiss_turboquant::index_factory(
            d, description, metric, own_invlists);
}

Index* read_index(const char* fname, int io_flags) {
    return faiss_turboquant::read_index(fname, io_flags);
}

Index* read_index(FILE* f, int io_flags) {
    return faiss_turboquant::read_index(f, io_flags);
}

Index* read_index(IOReader* reader, int io_flags) {
    return faiss_turboquant::read_index(reader, io_flags);
}

void write_index(const Index* index, const char* fname, int io_flags) {
    faiss_turboquant::write_index(index, fname, io_flags);
}

void write_index(const Index* index, FILE* f, int io_flags) {
    faiss_turboquant::write_index(index, f, io_flags);
}

void write_index(const Index* index, IOWriter* writer, int io_flags) {
    faiss_turboquant::write_index(index, writer, io_flags);
}

Index* clone_index(const Index* index) {
    return faiss_turboquant::clone_index(index);
}

} // namespace faiss

#pragma GCC visibility pop
