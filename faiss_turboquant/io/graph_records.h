#pragma once

#include <memory>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexNSG.h>

#include <faiss_turboquant/io/blocks.h>

namespace faiss_turboquant {

/** Graph indexes without their storage, whose record follows. HNSW's offsets
 * follow from its levels; its neighbours, and those of NSG, are arrays. */

void write_hnsw(BlockWriter& f, const faiss::IndexHNSW& index);
std::unique_ptr<faiss::IndexHNSW> read_hnsw(BlockReader& f);

void write_nsg(BlockWriter& f, const faiss::IndexNSG& index);
std::unique_ptr<faiss::IndexNSG> read_nsg(BlockReader& f);

} // namespace faiss_turboquant
