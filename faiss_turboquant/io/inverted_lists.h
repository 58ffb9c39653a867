#pragma once

#include <memory>

#include <faiss/invlists/InvertedLists.h>

#include <faiss_turboquant/io/blocks.h>

namespace faiss_turboquant {

/** Inverted lists, in one array: for each list its codes and then its ids, as
 * OnDiskInvertedLists has them, with room for as many entries as let the ids
 * start on 8 bytes. OnDiskInvertedLists in a file of their own stay there.
 *
 * @param lists  of any type that has codes, or null */
void write_inverted_lists(BlockWriter& f, const faiss::InvertedLists* lists);

/** In a mapped file OnDiskInvertedLists, read-only, over this file; otherwise
 * of the type that was written, or ArrayInvertedLists.
 * @param io_flags  those of OnDiskInvertedLists: IO_FLAG_READ_ONLY,
 *                  IO_FLAG_ONDISK_SAME_DIR, IO_FLAG_SKIP_IVF_DATA */
std::unique_ptr<faiss::InvertedLists> read_inverted_lists(
        BlockReader& f,
        size_t nlist,
        size_t code_size,
        int io_flags);

} // namespace faiss_turboquant
