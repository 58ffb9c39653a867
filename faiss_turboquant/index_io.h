#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <faiss/Index.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>

namespace faiss_turboquant {

/** FAISS's index I/O, for TurboQuant indexes as well, alone or at any depth
 * inside IndexIDMap, IndexIDMap2, IndexPreTransform, IndexRefine,
 * IndexRefineFlat, IndexRefinePanorama, IndexRowwiseMinMax,
 * IndexRowwiseMinMaxFP16 and IndexIVFTurboQuant, as the storage of IndexHNSW
 * and IndexNSG, and as the quantizer of those inverted files of FAISS's that
 * clone_index can clone. An index without TurboQuant inside is written and
 * read by FAISS, byte for byte the same.
 *
 * Format (numbers little-endian):
 *
 *   file:   "TQix", version (1 byte, 2), blocks and arrays
 *   block:  payload size (uint32, at most 2^20), payload, checksum (uint64)
 *   array:  zeros up to the next multiple of 64 bytes from the start of the
 *           file, then the bytes as they are in memory
 *
 * A block of size 0 ends the file. A block's checksum covers its number, size
 * and payload, and is verified before any of the payload is used. The payloads
 * together are one record, which starts with four characters that name its
 * layout: "TQfl" for IndexTurboQuant, others for the wrappers, whose records
 * hold those of their sub-indexes. "TQFl" and "TQFv" are IndexFlat, of which
 * the latter may be mapped, and "TQfa" stands before an array that is any other
 * sub-index in FAISS's own format.
 *
 * A block ends where the record comes to an array, of which it has the size
 * (uint64) and the checksums (uint64) of its pieces of 2^20 bytes, the last
 * of what is left. The codes are an array, and a graph's neighbours. Reading
 * verifies a piece before any of it is used; mapping does not.
 */

/** Written to a temporary file in the same directory that is renamed at the
 * end: an existing file is replaced by a complete one or not at all. A process
 * that is killed leaves its temporary file, <fname>.tmp.<pid>.<number>.
 * (An index without TurboQuant inside: as FAISS does it.)
 *
 * @param io_flags  0 or faiss::IO_FLAG_SKIP_STORAGE
 * @throws faiss::FaissException when the file cannot be written, for TurboQuant
 *         inside an index type that is not listed above, for another flag */
void write_index(
        const faiss::Index* index,
        const char* fname,
        int io_flags = 0);

/// To the current position of f, which is flushed.
void write_index(const faiss::Index* index, FILE* f, int io_flags = 0);

void write_index(
        const faiss::Index* index,
        faiss::IOWriter* writer,
        int io_flags = 0);

/** Allocates no more than the file can fill: sizes are compared with the
 * bytes left, or, in a stream of unknown length, memory grows with what was
 * read.
 *
 * With IO_FLAG_MMAP or IO_FLAG_MMAP_IFC (either does, when there is TurboQuant
 * inside) the file is mapped to memory, and the following are views of it, at
 * any depth: the codes of IndexTurboQuant, the vectors of an IndexFlat that
 * refines its results, the neighbours of IndexHNSW, and inverted lists, which
 * become OnDiskInvertedLists. Their checksums are not verified, and codes are
 * not read before they are searched. Changing such an index (add, remove_ids,
 * merge_from, reset) is refused, with two exceptions in FAISS's code:
 * IndexRefine adds to base_index first, which is refused if that holds
 * TurboQuant; reset() of IndexHNSW ends the process. Everything else is read
 * and verified. The file may be replaced (write_index does), but not be
 * changed, as long as the index or a clone of it lives.
 *
 * @param io_flags  passed on to FAISS
 * @return the index, of the types that were written; the caller deletes it
 * @throws faiss::FaissException for a file that is cut short, altered, of a
 *         newer format, or followed by other bytes */
faiss::Index* read_index(const char* fname, int io_flags = 0);

/// From the current position of f; bytes behind the index are left there.
faiss::Index* read_index(FILE* f, int io_flags = 0);

/** Bytes behind the index are left in the reader. The arrays of an index from
 * a faiss::ZeroCopyIOReader are views of its memory, which has to outlive the
 * index; otherwise as with IO_FLAG_MMAP_IFC, which takes a
 * faiss::FileIOReader here. */
faiss::Index* read_index(faiss::IOReader* reader, int io_flags = 0);

/// what write_index would write
std::vector<uint8_t> serialize_index(
        const faiss::Index* index,
        int io_flags = 0);

/// the inverse of serialize_index; throws as read_index of a file does
faiss::Index* deserialize_index(
        const std::vector<uint8_t>& bytes,
        int io_flags = 0);

/// @param bytes  (size,); copied from, not kept
faiss::Index* deserialize_index(
        const uint8_t* bytes,
        size_t size,
        int io_flags = 0);

} // namespace faiss_turboquant
