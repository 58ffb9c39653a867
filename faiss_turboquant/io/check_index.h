#pragma once

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>

namespace faiss_turboquant {

/** Invariants of indexes, checked before writing and after reading: whatever
 * passes can be searched without touching memory that it does not have.
 *
 * They concern the index itself, not what it holds, which is checked on its
 * own.
 * @throws faiss::FaissException naming the type and the fields */
void check(const faiss::IndexTurboQuant& index);
/// only that its quantizer fits
void check(const faiss::IndexIVF& index);
/// the lists may be missing
void check(const faiss::IndexIVFTurboQuant& index);
/// only that its codes are as many as its vectors
void check(const faiss::IndexFlatCodes& flat);
void check(const faiss::IndexIDMap& map);
void check(const faiss::IndexPreTransform& pre);
void check(const faiss::IndexRefine& refine);
void check(const faiss::IndexRowwiseMinMaxBase& minmax);

/// greatest efSearch, efConstruction and search_L
constexpr int max_search_width = 1 << 20;

/// with its graph; the storage may be missing (IO_FLAG_SKIP_STORAGE)
void check(const faiss::IndexHNSW& index);
void check(const faiss::IndexNSG& index);

/// whether the arrays of a transform are as large as its dimensions say
bool has_expected_sizes(const faiss::VectorTransform& vt);

} // namespace faiss_turboquant
