#pragma once

#include <memory>

#include <faiss/Index.h>

#include <faiss_turboquant/io/blocks.h>

namespace faiss_turboquant {

/** Writes an index, with those inside it, as a record of index_io.h.
 * @throws faiss::FaissException for TurboQuant inside a type that has no
 *         record, and for an index that is not consistent (check_index.h) */
void write_record(BlockWriter& f, const faiss::Index* index, int io_flags);

/** @param depth  of the record; 0 is the file's own
 *  @return null where FAISS writes a missing index */
std::unique_ptr<faiss::Index> read_record(
        BlockReader& f,
        int io_flags,
        int depth = 0);

} // namespace faiss_turboquant
