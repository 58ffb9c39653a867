#pragma once

#include <memory>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/io/blocks.h>

namespace faiss_turboquant {

/// whether a record says which codec it has; without, it is
/// CodecType::Scaled. Records of the two kinds have different names.
inline bool has_codec_field(const TurboQuantizer& tq) {
    return tq.codec != CodecType::Scaled;
}

/// the fields of the quantizer that are not derived from others
void write_quantizer(faiss::IOWriter& f, const TurboQuantizer& tq);

/** @param index      of which d and metric_type are the quantizer's
 *  @param has_codec  has_codec_field of what was written
 *  @param tq         with its by_residual
 *  @throws faiss::FaissException as read_index does */
void read_quantizer(
        BoundedReader& f,
        const faiss::Index& index,
        bool has_codec,
        TurboQuantizer& tq);

void write_flat(BlockWriter& f, const faiss::IndexTurboQuant& index);
std::unique_ptr<faiss::IndexTurboQuant> read_flat(
        BlockReader& f,
        bool has_codec);

void write_ivf(
        BlockWriter& f,
        const faiss::IndexIVFTurboQuant& index,
        int io_flags);
std::unique_ptr<faiss::IndexIVFTurboQuant> read_ivf(
        BlockReader& f,
        bool has_codec,
        int io_flags,
        int depth);

} // namespace faiss_turboquant
