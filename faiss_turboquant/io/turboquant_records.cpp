#include <faiss_turboquant/io/turboquant_records.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <faiss_turboquant/io/check_index.h>
#include <faiss_turboquant/io/fields.h>
#include <faiss_turboquant/io/inverted_lists.h>
#include <faiss_turboquant/io/records.h>

namespace faiss_turboquant {

namespace {

constexpr auto last_codec = static_cast<uint8_t>(CodecType::Prod);
constexpr auto half_bit = static_cast<uint8_t>(CodecType::HalfBit);

/// by ascending id: an index has one file, not one per order of a hash table
void write_direct_map(faiss::IOWriter& f, const faiss::DirectMap& map) {
    write_value<uint8_t>(f, map.type);
    write_vector(f, map.array);
    std::vector<std::pair<faiss::idx_t, faiss::idx_t>> entries(
            map.hashtable.begin(), map.hashtable.end());
    std::sort(entries.begin(), entries.end());
    write_vector(f, entries);
}

void read_direct_map(BoundedReader& f, faiss::DirectMap& map) {
    map.type = static_cast<faiss::DirectMap::Type>(read_within<uint8_t>(
            f, "type of the direct map", 0, faiss::DirectMap::Hashtable));
    read_vector(f, map.array, "direct map");
    std::vector<std::pair<faiss::idx_t, faiss::idx_t>> entries;
    read_vector(f, entries, "direct map");
    map.hashtable = {entries.begin(), entries.end()};
}

void write_levels(faiss::IOWriter& f, const Codebook& codebook) {
    write_value<float>(f, codebook.step);
    write_value<uint8_t>(f, codebook.positions.size());
    write_items(f, codebook.positions);
}

/// set_derived_values checks that they fit together
void read_levels(BoundedReader& f, Codebook& codebook) {
    codebook.step = read_value<float>(f, "codebook step");
    const auto npositions =
            read_within<uint8_t>(f, "codebook size", 1, Trellis::n_indices);
    read_items(f, codebook.positions, npositions, "codebook positions");
}

void write_trellis(faiss::IOWriter& f, const Codebook& codebook) {
    const Trellis& trellis = codebook.trellis;
    write_value<uint8_t>(f, trellis.memory);
    if (trellis.memory > 0) {
        write_bytes(f, trellis.taps, sizeof(trellis.taps));
        write_value<uint8_t>(f, trellis.sign_mask);
        write_value<float>(f, codebook.trellis_error);
    }
}

/// @param least_memory  0 where there may be none
void read_trellis(BoundedReader& f, Codebook& codebook, uint8_t least_memory) {
    Trellis& trellis = codebook.trellis;
    trellis.memory = read_within<uint8_t>(
            f, "trellis memory", least_memory, Trellis::max_memory);
    if (trellis.memory > 0) {
        for (uint16_t& taps : trellis.taps) {
            taps = read_value<uint16_t>(f, "trellis taps");
        }
        trellis.sign_mask = read_value<uint8_t>(f, "trellis sign mask");
        codebook.trellis_error = read_value<float>(f, "trellis error");
    }
}

} // namespace

void write_quantizer(faiss::IOWriter& f, const TurboQuantizer& tq) {
    const QuantizerFields fields = fields_of(tq);
    if (fields != QuantizerFields::Scaled) {
        write_value<uint8_t>(f, static_cast<uint8_t>(tq.codec));
    }
    write_value<uint8_t>(f, tq.nbits);
    write_value<uint8_t>(f, static_cast<uint8_t>(tq.rotation.type));
    write_value<uint64_t>(f, tq.rotation.seed);
    write_levels(f, tq.codebook);
    write_trellis(f, tq.codebook);
    if (tq.has_second_codebook()) {
        write_levels(f, tq.second_codebook);
    }
    if (fields == QuantizerFields::TwoTrellises) {
        write_trellis(f, tq.second_codebook);
    }
    write_value<uint8_t>(f, tq.has_centre());
    write_items(f, tq.centre);
    write_value<uint64_t>(f, tq.code_size);
}

void read_quantizer(
        BoundedReader& f,
        const faiss::Index& index,
        QuantizerFields fields,
        TurboQuantizer& tq) {
    if (size_t(index.d) > TurboQuantizer::max_dim) {
        throw_bad_value(f, "d", std::to_string(index.d));
    }
    tq.d = index.d;
    tq.metric_type = index.metric_type;
    const bool two_trellises = fields == QuantizerFields::TwoTrellises;
    if (two_trellises) {
        tq.codec = static_cast<CodecType>(
                read_within<uint8_t>(f, "codec type", half_bit, half_bit));
    } else if (fields == QuantizerFields::Codec) {
        tq.codec = static_cast<CodecType>(
                read_within<uint8_t>(f, "codec type", 1, last_codec));
    }
    tq.nbits = read_within<uint8_t>(f, "nbits", 1, 4);
    const auto rotation_type = static_cast<RotationType>(
            read_within<uint8_t>(f, "rotation type", 0, 1));
    const auto seed = read_value<uint64_t>(f, "seed");
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    // their matrices take a time that grows with the cube of d
    if (tq.d > 128) {
        throw_bad_value(f, "d, for a fuzzer,", std::to_string(tq.d));
    }
#endif
    tq.rotation = Rotation(rotation_type, tq.d, seed);
    read_levels(f, tq.codebook);
    read_trellis(f, tq.codebook, two_trellises);
    if (tq.has_second_codebook()) {
        read_levels(f, tq.second_codebook);
    }
    if (two_trellises) {
        read_trellis(f, tq.second_codebook, 1);
    }
    tq.centre.clear();
    if (read_bool(f, "has_centre")) {
        read_items(f, tq.centre, tq.d, "centre");
    }
    tq.set_derived_values();
    read_within<uint64_t>(f, "code_size", tq.code_size, tq.code_size);
}

void write_flat(BlockWriter& f, const faiss::IndexTurboQuant& index) {
    write_header(f, index);
    write_quantizer(f, index.tq);
    write_array(f, index.codes);
}

std::unique_ptr<faiss::IndexTurboQuant> read_flat(
        BlockReader& f,
        QuantizerFields fields) {
    auto index = std::make_unique<faiss::IndexTurboQuant>();
    read_header(f, *index);
    if (!index->is_trained) {
        throw_bad_value(f, "is_trained", "false");
    }
    read_quantizer(f, *index, fields, index->tq);
    index->code_size = index->tq.code_size;
    if (uint64_t(index->ntotal) > f.left() / index->code_size) {
        throw_cut_short(f.name, "codes");
    }
    read_array(f, index->codes, index->ntotal * index->code_size, "codes");
    check(*index);
    return index;
}

void write_ivf(
        BlockWriter& f,
        const faiss::IndexIVFTurboQuant& index,
        int io_flags) {
    write_header(f, index);
    write_value<uint64_t>(f, index.nlist);
    write_value<uint64_t>(f, index.nprobe);
    write_value<uint64_t>(f, index.max_codes);
    write_value<uint8_t>(f, index.quantizer_trains_alone);
    write_quantizer(f, index.tq);
    write_vector(f, index.centre_scales);
    write_record(f, index.quantizer, io_flags);
    write_direct_map(f, index.direct_map);
    write_inverted_lists(f, index.invlists);
}

std::unique_ptr<faiss::IndexIVFTurboQuant> read_ivf(
        BlockReader& f,
        QuantizerFields fields,
        int io_flags,
        int depth) {
    auto index = std::make_unique<faiss::IndexIVFTurboQuant>();
    index->own_fields = true;
    read_header(f, *index);
    index->nlist = read_within<uint64_t>(f, "nlist", 1, INT64_MAX);
    index->nprobe = read_value<uint64_t>(f, "nprobe");
    index->max_codes = read_value<uint64_t>(f, "max_codes");
    index->quantizer_trains_alone =
            read_within<uint8_t>(f, "quantizer_trains_alone", 0, 2);
    index->tq.by_residual = true;
    read_quantizer(f, *index, fields, index->tq);
    index->code_size = index->tq.code_size;
    read_vector(f, index->centre_scales, "centre_scales");
    index->quantizer = read_record(f, io_flags, depth).release();
    read_direct_map(f, index->direct_map);
    auto lists =
            read_inverted_lists(f, index->nlist, index->code_size, io_flags);
    index->replace_invlists(lists.release(), true);
    check(*index);
    return index;
}

} // namespace faiss_turboquant
