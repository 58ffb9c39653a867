#pragma once

#include <memory>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/io/blocks.h>

namespace faiss_turboquant {

/// what a record tells of a quantizer; each kind of records has its name
enum class QuantizerFields {
    Scaled,       ///< those of CodecType::Scaled
    Codec,        ///< which codec it is, too
    TwoTrellises, ///< and, of CodecType::HalfBit, the trellis of each part
};

inline QuantizerFields fields_of(const TurboQuantizer& tq) {
    return tq.codec == CodecType::Scaled ? QuantizerFields::Scaled
            : tq.second_codebook.trellis.memory > 0
            ? QuantizerFields::TwoTrellises
            : QuantizerFields::Codec;
}

/// the fields of the quantizer that are not derived from others
void write_quantizer(faiss::IOWriter& f, const TurboQuantizer& tq);

/** @param index      of which d and metric_type are the quantizer's
 *  @param fields     fields_of what was written
 *  @param tq         with its by_residual
 *  @throws faiss::FaissException as read_index does */
void read_quantizer(
        BoundedReader& f,
        const faiss::Index& index,
        QuantizerFields fields,
        TurboQuantizer& tq);

void write_flat(BlockWriter& f, const faiss::IndexTurboQuant& index);
std::unique_ptr<faiss::IndexTurboQuant> read_flat(
        BlockReader& f,
        QuantizerFields fields);

void write_ivf(
        BlockWriter& f,
        const faiss::IndexIVFTurboQuant& index,
        int io_flags);
std::unique_ptr<faiss::IndexIVFTurboQuant> read_ivf(
        BlockReader& f,
        QuantizerFields fields,
        int io_flags,
        int depth);

} // namespace faiss_turboquant
