#include <faiss_turboquant/quantizer/TurboQuantizer.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include <faiss/impl/FaissAssert.h>
#include <hwy/cache_control.h>

namespace faiss_turboquant {

namespace {

/// floats of padded buffers, and bytes of arranged ones, are multiples of this
constexpr size_t padding = 64;

size_t round_up(size_t n) {
    return (n + padding - 1) / padding * padding;
}

using AlignedFloats = faiss::AlignedTable<float, 64>;

/// buffers of a vector on its way through the float steps
struct Workspace {
    AlignedFloats difference; ///< x - c, where there is a c
    AlignedFloats direction;  ///< its unit vector
    /// (batch, rotated_dim), of that: TurboQuantizer::rotate
    AlignedFloats rotated;

    explicit Workspace(const TurboQuantizer& tq, size_t batch = 1)
            : difference(tq.d),
              direction(tq.d),
              rotated(batch * tq.rotated_dim()) {}
};

/** difference, where there is a centre, and direction of x.
 * @param centre  c, or null for 0
 * @return |x - c|, in double; not finite if x is not */
double find_direction(
        const TurboQuantizer& tq,
        const float* x,
        const float* centre,
        Workspace& work) {
    const Kernels& k = kernels();
    const float* difference = centre ? work.difference.data() : x;
    const double squared = centre
            ? k.subtract(x, centre, tq.d, true, work.difference.data())
            : k.sum_of_squares(x, tq.d);
    const double norm = std::sqrt(squared);
    if (std::isfinite(norm)) {
        // a zero vector has no direction: zeros encode, and estimate, as zero
        const double factor = norm > 0 ? 1 / norm : 0;
        k.scale(difference, factor, work.direction.data(), tq.d);
    }
    return norm;
}

/// have the row after this one read while this one is rotated
void prefetch_next_row(const float* x, size_t d) {
    constexpr size_t line = 64 / sizeof(float);
    for (size_t i = d; i < 2 * d; i += line) {
        hwy::Prefetch(x + i);
    }
}

/// of a trellis, which its name does not mention
constexpr int usual_memory = 8;

constexpr double largest_float = std::numeric_limits<float>::max();

struct Factors {
    float scale = 0;
    float second_scale = 0;
    float offset = 0;
};

Factors read_factors(const TurboQuantizer& tq, const uint8_t* code) {
    Factors factors;
    const uint8_t* from = code + tq.packed_size();
    std::memcpy(&factors.scale, from, sizeof(float));
    if (tq.has_second_scale()) {
        from += sizeof(float);
        std::memcpy(&factors.second_scale, from, sizeof(float));
    }
    if (tq.has_offset()) {
        std::memcpy(&factors.offset, from + sizeof(float), sizeof(float));
    }
    return factors;
}

void write_factors(
        const TurboQuantizer& tq,
        const Factors& factors,
        uint8_t* code) {
    uint8_t* to = code + tq.packed_size();
    const auto write = [&](float factor) {
        std::memcpy(to, &factor, sizeof(float));
        to += sizeof(float);
    };
    write(factors.scale);
    if (tq.has_second_scale()) {
        write(factors.second_scale);
    }
    if (tq.has_offset()) {
        write(factors.offset);
    }
}

/// far beyond any grid's for coordinates of variance 1
constexpr double least_step = 1.0 / 4096, greatest_step = 4096;

/// @throws faiss::FaissException unless it is one of so many bits
void check_codebook(const Codebook& codebook, int nbits) {
    const Trellis& trellis = codebook.trellis;
    const bool has_trellis = trellis.memory != 0;
    FAISS_THROW_IF_NOT_FMT(
            !has_trellis || is_supported(trellis, nbits),
            "TurboQuant: no trellis of memory %d, or not with these taps, at "
            "%d bits",
            trellis.memory,
            nbits);
    const size_t nlevels =
            has_trellis ? Trellis::n_indices : size_t(1) << (nbits - 1);
    FAISS_THROW_IF_NOT_FMT(
            codebook.positions.size() == nlevels,
            "TurboQuant: the codebook has %zd positive levels, not %zd",
            codebook.positions.size(),
            nlevels);
    FAISS_THROW_IF_NOT_FMT(
            codebook.step >= least_step && codebook.step <= greatest_step,
            "TurboQuant: the codebook's step %g is not in %g .. %g",
            codebook.step,
            least_step,
            greatest_step);
    FAISS_THROW_IF_NOT_FMT(
            !has_trellis ||
                    (codebook.trellis_error > 0 && codebook.trellis_error < 1),
            "TurboQuant: the error of the trellis is %g",
            codebook.trellis_error);
    for (size_t i = 0; i < nlevels; i++) {
        // with a trellis in any order, and at 1 bit of either sign
        const int lowest = has_trellis ? (nbits == 1 ? 0 : 32)
                : i == 0               ? 32
                                       : codebook.positions[i - 1] + 1;
        FAISS_THROW_IF_NOT_FMT(
                codebook.positions[i] >= lowest && codebook.positions[i] <= 63,
                "TurboQuant: grid position %d of level %zd is not in %d .. 63",
                codebook.positions[i],
                i,
                lowest);
    }
}

CodeLayout make_layout(
        const Codebook& codebook,
        int nbits,
        size_t n_coordinates,
        size_t d) {
    CodeLayout layout;
    layout.d = n_coordinates;
    layout.nbits = nbits;
    if (codebook.trellis.memory != 0) {
        std::copy(
                codebook.positions.begin(),
                codebook.positions.end(),
                layout.grid);
        layout.trellis = codebook.trellis;
        layout.tables = make_trellis_tables(
                codebook.trellis, nbits, layout.grid, codebook.step);
    } else {
        const size_t half = size_t(1) << (nbits - 1);
        for (size_t i = 0; i < std::size(layout.grid); i++) {
            layout.grid[i] = i < half ? codebook.positions[i]
                    : i < 2 * half    ? 63 - codebook.positions[i - half]
                                      : 0;
        }
        for (size_t i = 0; i + 1 < half; i++) {
            // the midpoint of two levels, in half steps
            layout.thresholds[i] = static_cast<int8_t>(
                    codebook.positions[i] + codebook.positions[i + 1] - 63);
        }
    }
    layout.half_steps =
            static_cast<float>(2 * std::sqrt(double(d)) / codebook.step);
    return layout;
}

/// a part of the codes of tq, but for its place in a code
CodePart make_part(
        const TurboQuantizer& tq,
        const Codebook& codebook,
        int nbits,
        size_t n_coordinates,
        size_t coordinate) {
    check_codebook(codebook, nbits);
    CodePart part;
    part.layout = make_layout(codebook, nbits, n_coordinates, tq.d);
    part.half_level = codebook.step / (2 * std::sqrt(double(tq.d)));
    part.coordinate = coordinate;
    return part;
}

/// leave of a rotated vector what the levels of its code do not tell
void subtract_levels(
        const CodePart& part,
        const uint8_t* code,
        float* rotated) {
    thread_local std::vector<uint8_t> grid;
    grid.resize(part.layout.grid_size());
    kernels().decode(part.layout, code + part.byte, grid.data());
    for (size_t i = 0; i < part.layout.d; i++) {
        rotated[i] -= static_cast<float>((2 * grid[i] - 63) * part.half_level);
    }
}

} // namespace

/// buffers of vectors that are encoded together
struct TurboQuantizer::EncodeWorkspace : Workspace {
    const Kernels& k;
    std::vector<double> norms; ///< |x - c|
    std::vector<double> offsets;
    std::vector<float> sums;      ///< from Kernels::encode
    std::vector<double> products; ///< <u, v>
    std::vector<uint8_t> scratch; ///< of Kernels::encode

    EncodeWorkspace(const TurboQuantizer& tq, const Kernels& k, size_t batch)
            : Workspace(tq, batch),
              k(k),
              norms(batch),
              offsets(batch),
              sums(batch),
              products(batch) {
        for (const CodePart& part : tq.parts()) {
            const size_t size = part.layout.scratch_size();
            scratch.resize(std::max(scratch.size(), size));
        }
    }
};

TurboQuantizer::TurboQuantizer(
        size_t d,
        int nbits,
        faiss::MetricType metric,
        RotationType rotation_type,
        uint64_t seed,
        int memory,
        CodecType codec)
        : faiss::Quantizer(d), nbits(nbits), codec(codec), metric_type(metric) {
    FAISS_THROW_IF_NOT_FMT(
            d >= 1 && d <= max_dim,
            "TurboQuant: d = %zd is not in 1 .. %zd",
            d,
            max_dim);
    FAISS_THROW_IF_NOT_FMT(
            nbits >= 1 && nbits <= 4,
            "TurboQuant: nbits = %d is not in 1 .. 4",
            nbits);
    rotation = Rotation(rotation_type, d, seed);
    const auto levels = [&](int bits) {
        return memory == 0 ? Codebook::lloyd_max(d, bits)
                           : Codebook::trellis_coded(bits, memory);
    };
    if (codec == CodecType::HalfBit) {
        codebook = levels(std::min(nbits + 1, 4));
        second_codebook = levels(nbits);
    } else if (memory != 0) {
        codebook = levels(nbits);
    } else if (codec == CodecType::Prod && nbits == 1) {
        codebook = Codebook::sketch_signs();
    } else if (codec == CodecType::Prod) {
        codebook = Codebook::lloyd_max(d, nbits - 1);
        second_codebook = Codebook::sketch_signs();
    } else {
        codebook = levels(nbits);
    }
    set_derived_values();
}

void TurboQuantizer::set_derived_values() {
    FAISS_THROW_IF_NOT_FMT(
            d >= 1 && d <= max_dim,
            "TurboQuant: d = %zd is not in 1 .. %zd",
            d,
            max_dim);
    FAISS_THROW_IF_NOT_FMT(
            nbits >= 1 && nbits <= 4,
            "TurboQuant: nbits = %d is not in 1 .. 4",
            nbits);
    FAISS_THROW_IF_NOT_FMT(
            codec <= CodecType::Prod,
            "TurboQuant: there is no codec type %d",
            int(codec));
    FAISS_THROW_IF_NOT_FMT(
            codec != CodecType::HalfBit || nbits <= 3,
            "TurboQuant: half a bit more goes with nbits = 1 to 3, not %d",
            nbits);
    FAISS_THROW_IF_NOT_FMT(
            metric_type == faiss::METRIC_L2 ||
                    metric_type == faiss::METRIC_INNER_PRODUCT,
            "TurboQuant: metric %d is neither METRIC_L2 nor "
            "METRIC_INNER_PRODUCT",
            int(metric_type));
    FAISS_THROW_IF_NOT_FMT(
            rotation.d == d,
            "TurboQuant: the rotation has d = %zd, not %zd",
            rotation.d,
            d);
    FAISS_THROW_IF_NOT_FMT(
            centre.empty() || centre.size() == d,
            "TurboQuant: the centre has d = %zd, not %zd",
            centre.size(),
            d);
    for (float c : centre) {
        FAISS_THROW_IF_NOT_MSG(
                std::isfinite(c), "TurboQuant: the centre is not finite");
    }
    FAISS_THROW_IF_NOT_FMT(
            memory() == 0 || has_estimator_scale(),
            "TurboQuant: codec type %d does not go with a trellis",
            int(codec));
    FAISS_THROW_IF_NOT_FMT(
            codec != CodecType::HalfBit ||
                    second_codebook.trellis.memory == memory(),
            "TurboQuant: the trellises of the two parts have memory %d and %d",
            memory(),
            second_codebook.trellis.memory);
    std::vector<CodePart> parts;
    if (codec == CodecType::HalfBit) {
        const size_t half = (d + 1) / 2;
        parts.push_back(make_part(*this, codebook, nbits + 1, half, 0));
        parts.push_back(make_part(
                *this, second_codebook, nbits, d - half, round_up(half)));
        // levels are those of a vector of d coordinates, and each part begins a
        // path through its trellis
        const auto total_error = [&](const Codebook& levels, size_t n) {
            return double(n) *
                    levels.mean_squared_error(
                            memory() > 0 ? std::max<size_t>(n, 1) : d);
        };
        expected_error_ = (total_error(codebook, half) +
                           total_error(second_codebook, d - half)) /
                double(d);
    } else if (codec == CodecType::Prod && nbits == 1) {
        parts.push_back(make_part(*this, codebook, 1, d, round_up(d)));
    } else if (codec == CodecType::Prod) {
        parts.push_back(make_part(*this, codebook, nbits - 1, d, 0));
        parts.push_back(make_part(*this, second_codebook, 1, d, round_up(d)));
    } else {
        parts.push_back(make_part(*this, codebook, nbits, d, 0));
        expected_error_ = codebook.mean_squared_error(d);
    }
    if (parts.back().layout.d == 0) {
        parts.pop_back(); // d = 1 has no second half
    }
    if (!has_sketch()) {
        sketch_ = Sketch();
    } else if (sketch_.d() != d || sketch_.seed() != rotation.seed) {
        sketch_ = Sketch(d, rotation.seed);
    }
    squared_centre_ = 0;
    for (float c : centre) {
        squared_centre_ += double(c) * c;
    }
    packed_size_ = 0;
    for (CodePart& part : parts) {
        part.byte = packed_size_;
        packed_size_ += part.layout.packed_size();
    }
    const size_t n_factors = 1 + has_second_scale() + has_offset();
    code_size = packed_size_ + n_factors * sizeof(float);
    for (CodePart& part : parts) {
        part.layout.code_size = code_size;
        part.layout.has_offset = has_offset();
    }
    parts_ = std::move(parts);
}

std::string TurboQuantizer::codec_name() const {
    std::string name = "TQ" + std::to_string(nbits);
    if (codec == CodecType::HalfBit) {
        name += ".5";
    }
    if (codec == CodecType::Mse) {
        return name + "mse";
    }
    if (codec == CodecType::Prod) {
        return name + "prod";
    }
    switch (memory()) {
        case 0:
            return name;
        case usual_memory:
            return name + "t";
        default:
            return name + "t" + std::to_string(memory());
    }
}

size_t TurboQuantizer::rotated_dim() const {
    const CodePart& last = parts_.back();
    return last.coordinate + last.layout.padded_dim();
}

/// of these, what holds P x
size_t TurboQuantizer::plain_dim() const {
    return has_sketch() ? round_up(d) : rotated_dim();
}

void TurboQuantizer::rotate(const float* x, float* rotated) const {
    rotate_coordinates(x, rotated);
    if (has_sketch()) {
        apply_sketch(rotated);
    }
}

/** The same without the sketch.
 * @param rotated  (rotated_dim,), plain_dim of them written */
void TurboQuantizer::rotate_coordinates(const float* x, float* rotated) const {
    rotation.apply(x, rotated);
    float* end = rotated + d;
    if (codec == CodecType::HalfBit && parts_.size() == 2) {
        // the padding of the first part goes between the two
        float* second = rotated + parts_[1].coordinate;
        std::copy_backward(
                rotated + parts_[0].layout.d, end, second + parts_[1].layout.d);
        std::fill(rotated + parts_[0].layout.d, second, 0.0f);
        end = second + parts_[1].layout.d;
    }
    std::fill(end, rotated + plain_dim(), 0.0f);
}

/// @param rotated  (rotated_dim,), plain_dim of them read, the others written
void TurboQuantizer::apply_sketch(float* rotated) const {
    float* to = rotated + parts_.back().coordinate;
    sketch_.apply(rotated, to);
    std::fill(to + d, rotated + rotated_dim(), 0.0f);
}

void TurboQuantizer::train(size_t n, const float* x) {
    FAISS_THROW_IF_NOT_MSG(n > 0, "TurboQuant: train needs n > 0 vectors");
    std::vector<double> sum(d);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            const float value = x[i * d + j];
            FAISS_THROW_IF_NOT_FMT(
                    std::isfinite(value),
                    "TurboQuant: training vector %zd is not finite",
                    i);
            sum[j] += value;
        }
    }
    centre.resize(d);
    for (size_t j = 0; j < d; j++) {
        centre[j] = static_cast<float>(sum[j] / double(n));
    }
    set_derived_values();
}

void TurboQuantizer::compute_codes(const float* x, uint8_t* codes, size_t n)
        const {
    encode_rows(x, has_centre() ? centre.data() : nullptr, 0, codes, n);
}

void TurboQuantizer::compute_residual_codes(
        const float* x,
        const float* centres,
        uint8_t* codes,
        size_t n) const {
    encode_rows(x, centres, d, codes, n);
}

/** @param centres        null, or the first row's centre
 *  @param centre_stride  floats from one row's centre to the next one's; 0 if
 *                        they share it */
void TurboQuantizer::encode_rows(
        const float* x,
        const float* centres,
        size_t centre_stride,
        uint8_t* codes,
        size_t n) const {
    const Kernels& k = kernels(); // may throw: before the parallel region
    const size_t batch = layout().has_trellis() ? encode_batch : 1;
    const size_t n_batches = (n + batch - 1) / batch;
    size_t not_finite = n, too_long = n;

#pragma omp parallel if (n > 8)
    {
        EncodeWorkspace work(*this, k, batch);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < int64_t(n_batches); b++) {
            const size_t begin = b * batch;
            const size_t count = std::min(batch, n - begin);
            for (size_t i = 0; i < count; i++) {
                const size_t row = begin + i;
                rotate_row(
                        x + row * d,
                        centres ? centres + row * centre_stride : nullptr,
                        i,
                        work);
                const double norm = work.norms[i];
                if (!std::isfinite(norm)) {
#pragma omp critical(faiss_turboquant_encode)
                    not_finite = std::min(not_finite, row);
                } else if (
                        norm * norm > largest_float ||
                        std::fabs(work.offsets[i]) > largest_float) {
#pragma omp critical(faiss_turboquant_encode)
                    too_long = std::min(too_long, row);
                }
            }
            encode_rotated(count, work, codes + begin * code_size);
        }
    }
    FAISS_THROW_IF_NOT_FMT(
            not_finite == n,
            "TurboQuant: vector %zd has a NaN or an infinity",
            not_finite);
    FAISS_THROW_IF_NOT_FMT(
            too_long == n,
            "TurboQuant: vector %zd is too long: its squared norm or its "
            "product with the centre exceeds float32",
            too_long);
}

/** Row i of a batch as far as its rotated direction.
 * @param centre  c, or null for 0 */
void TurboQuantizer::rotate_row(
        const float* x,
        const float* centre,
        size_t i,
        EncodeWorkspace& work) const {
    float* rotated = work.rotated.data() + i * rotated_dim();
    const double norm = find_direction(*this, x, centre, work);
    prefetch_next_row(x, d);
    double offset = 0;
    if (!std::isfinite(norm)) {
        std::fill_n(rotated, plain_dim(), 0.0f);
    } else {
        rotate_coordinates(work.direction.data(), rotated);
        if (metric_type == faiss::METRIC_L2) {
            offset = norm * norm;
        } else if (centre) {
            offset = work.k.dot(work.difference.data(), centre, d);
        }
    }
    work.norms[i] = norm;
    work.offsets[i] = offset;
}

/** The codes of the first n rows of a batch.
 * @param codes  (n, code_size), written */
void TurboQuantizer::encode_rotated(
        size_t n,
        EncodeWorkspace& work,
        uint8_t* codes) const {
    if (has_sketch()) {
        for (size_t i = 0; i < n; i++) {
            encode_with_sketch(i, work, codes + i * code_size);
        }
        return;
    }
    std::fill_n(work.products.begin(), n, 0.0);
    for (const CodePart& part : parts_) {
        work.k.encode(
                part.layout,
                work.rotated.data() + part.coordinate,
                rotated_dim(),
                n,
                work.scratch.data(),
                codes + part.byte,
                work.sums.data());
        for (size_t i = 0; i < n; i++) {
            work.products[i] += part.half_level * work.sums[i];
        }
    }
    for (size_t i = 0; i < n; i++) {
        const double norm = work.norms[i];
        Factors factors;
        factors.scale = static_cast<float>(
                has_estimator_scale() && norm > 0 ? norm / work.products[i]
                                                  : norm);
        factors.offset = static_cast<float>(work.offsets[i]);
        write_factors(*this, factors, codes + i * code_size);
    }
}

/// the code of row i of a batch, whose rotated direction is overwritten
void TurboQuantizer::encode_with_sketch(
        size_t i,
        EncodeWorkspace& work,
        uint8_t* code) const {
    const Kernels& k = work.k;
    float* rotated = work.rotated.data() + i * rotated_dim();
    const auto encode = [&](const CodePart& part) {
        float sum;
        k.encode(
                part.layout,
                rotated + part.coordinate,
                rotated_dim(),
                1,
                work.scratch.data(),
                code + part.byte,
                &sum);
    };
    if (parts_.size() == 2) {
        encode(parts_[0]);
        subtract_levels(parts_[0], code, rotated);
    }
    const double norm = work.norms[i];
    const double residual = std::sqrt(k.sum_of_squares(rotated, plain_dim()));
    apply_sketch(rotated);
    encode(parts_.back());
    const Factors factors = {
            static_cast<float>(parts_.size() == 2 ? norm : norm * residual),
            static_cast<float>(norm * residual),
            static_cast<float>(work.offsets[i])};
    write_factors(*this, factors, code);
}

void TurboQuantizer::decode(const uint8_t* codes, float* x, size_t n) const {
#pragma omp parallel if (n > 8)
    {
        std::vector<float> levels(rotated_dim());
        std::vector<float> rotated(rotated_dim());
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(n); i++) {
            decode_rotated(
                    codes + i * code_size, levels.data(), rotated.data());
            float* out = x + i * d;
            rotation.apply_transpose(rotated.data(), out);
            for (size_t j = 0; j < centre.size(); j++) {
                out[j] += centre[j];
            }
        }
    }
}

/** P (x - c), as the code has it, for rotation.apply_transpose.
 * @param levels   (rotated_dim,), zero between the parts; written
 * @param rotated  (rotated_dim,), written; the first d are the result */
void TurboQuantizer::decode_rotated(
        const uint8_t* code,
        float* levels,
        float* rotated) const {
    const Kernels& k = kernels();
    thread_local std::vector<uint8_t> grid;
    double squared = 0; // |v|^2
    for (const CodePart& part : parts_) {
        const CodeLayout& layout = part.layout;
        grid.resize(std::max(grid.size(), layout.grid_size()));
        k.decode(layout, code + part.byte, grid.data());
        float* of_part = levels + part.coordinate;
        for (size_t j = 0; j < layout.d; j++) {
            of_part[j] = static_cast<float>(2 * grid[j] - 63);
        }
        squared += part.half_level * part.half_level *
                k.sum_of_squares(of_part, layout.padded_dim());
    }
    const Factors factors = read_factors(*this, code);
    double scales[] = {factors.scale, factors.scale};
    if (has_second_scale()) {
        scales[1] = factors.second_scale;
    } else if (has_estimator_scale()) {
        // The point along v that is nearest to x - c is
        // |x - c| <u, v> / |v|^2 v, and scale is |x - c| / <u, v>. <u, v> comes
        // from |u - v|^2 = 1 + |v|^2 - 2 <u, v>, which is nearly constant.
        const double uv = (1 + squared - expected_error_) / 2;
        scales[0] = scales[1] = factors.scale * uv * uv / squared;
    }
    for (size_t p = 0; p < parts_.size(); p++) {
        const CodePart& part = parts_[p];
        k.scale(levels + part.coordinate,
                scales[p] * part.half_level,
                rotated + part.coordinate,
                part.layout.padded_dim());
    }
    if (has_sketch()) {
        if (parts_.size() == 1) {
            std::fill_n(rotated, plain_dim(), 0.0f);
        }
        sketch_.add_transpose(rotated + parts_.back().coordinate, rotated);
    } else if (parts_.size() == 2) {
        std::copy_n(
                rotated + parts_[1].coordinate,
                parts_[1].layout.d,
                rotated + parts_[0].layout.d);
    }
}

void TurboQuantizer::prepare_query(
        const float* x,
        size_t row,
        int8_t* q,
        PreparedQuery& query) const {
    thread_local Workspace work(*this);
    if (work.difference.size() != d || work.rotated.size() != rotated_dim()) {
        work = Workspace(*this);
    }
    const double norm = find_direction(
            *this, x, has_centre() ? centre.data() : nullptr, work);
    FAISS_THROW_IF_NOT_FMT(
            std::isfinite(norm),
            "TurboQuant: query %zd has a NaN or an infinity",
            row);
    rotate(work.direction.data(), work.rotated.data());
    quantize_query(work.rotated.data(), norm, q, query);
    double bias = 0;
    if (metric_type == faiss::METRIC_L2) {
        bias = norm * norm;
    } else if (has_centre()) {
        for (size_t j = 0; j < d; j++) {
            bias += double(x[j]) * centre[j];
        }
    }
    FAISS_THROW_IF_NOT_FMT(
            std::fabs(bias) <= largest_float && norm * norm <= largest_float,
            "TurboQuant: query %zd is too long: its squared norm or its "
            "product with the centre exceeds float32",
            row);
    query.factors.bias = static_cast<float>(bias);
}

/** All but the bias.
 * @param rotated  P (q - c) / length */
void TurboQuantizer::quantize_query(
        const float* rotated,
        double length,
        int8_t* q,
        PreparedQuery& query) const {
    const bool is_l2 = metric_type == faiss::METRIC_L2;
    thread_local std::vector<int8_t> scratch;
    const bool arranges = !q;
    if (arranges) {
        scratch.resize(rotated_dim());
        q = scratch.data();
    }
    QueryFactors* const factors[] = {&query.factors, &query.second};
    for (size_t p = 0; p < parts_.size(); p++) {
        const CodePart& part = parts_[p];
        int32_t sum;
        const float largest = kernels().quantize_query(
                rotated + part.coordinate,
                part.layout.padded_dim(),
                q + part.coordinate,
                &sum);
        // <P (q - c), v> = |q - c| (largest / 127) (step / 2 sqrt(d)) t
        const double multiplier =
                length * (double(largest) / 127) * part.half_level;
        *factors[p] = QueryFactors();
        factors[p]->sum = sum;
        factors[p]->multiplier =
                static_cast<float>(is_l2 ? -2 * multiplier : multiplier);
    }
    if (arranges) {
        arrange(q, query.arranged);
    }
}

/// @param q  (rotated_dim,)
void TurboQuantizer::arrange(
        const int8_t* q,
        faiss::AlignedTable<int8_t, 64>& arranged) const {
    arranged.resize(arranged_at(parts_.size()));
    for (size_t p = 0; p < parts_.size(); p++) {
        kernels().arrange_query(
                parts_[p].layout,
                q + parts_[p].coordinate,
                arranged.data() + arranged_at(p));
    }
}

size_t TurboQuantizer::arranged_at(size_t part) const {
    size_t at = 0;
    for (size_t p = 0; p < part; p++) {
        at += round_up(kernels().query_size(parts_[p].layout));
    }
    return at;
}

void TurboQuantizer::rotate_query(const float* x, size_t row, float* rotated)
        const {
    prefetch_next_row(x, d);
    rotate(x, rotated);
    const double squared = kernels().sum_of_squares(rotated, plain_dim());
    FAISS_THROW_IF_NOT_FMT(
            squared <= largest_float,
            "TurboQuant: query %zd has a NaN or an infinity, or its squared "
            "norm exceeds float32",
            row);
}

void TurboQuantizer::prepare_residual_query(
        const float* rotated,
        const float* rotated_centre,
        int8_t* q,
        PreparedQuery& query) const {
    const size_t padded = rotated_dim();
    thread_local faiss::AlignedTable<float, 64> difference;
    difference.resize(padded);
    const Kernels& k = kernels();
    const size_t plain = plain_dim();
    const double bias = k.subtract(
            rotated,
            rotated_centre,
            plain,
            metric_type == faiss::METRIC_L2,
            difference.data());
    if (plain < padded) {
        k.subtract(
                rotated + plain,
                rotated_centre + plain,
                padded - plain,
                false,
                difference.data() + plain);
    }
    quantize_query(difference.data(), 1, q, query);
    query.factors.bias = static_cast<float>(bias);
}

void TurboQuantizer::dot_codes(
        size_t part,
        const PreparedQuery& query,
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        int32_t* out) const {
    kernels().dot_codes(
            parts_[part].layout,
            codes + parts_[part].byte,
            rows,
            n,
            query.arranged.data() + arranged_at(part),
            part == 0 ? query.factors.sum : query.second.sum,
            out);
}

/// @param n  up to 4
void TurboQuantizer::distances_to_codes(
        const PreparedQuery& query,
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        float* distances) const {
    int32_t dots[4], second_dots[4];
    dot_codes(0, query, codes, rows, n, dots);
    const bool has_second = parts_.size() == 2;
    if (has_second) {
        dot_codes(1, query, codes, rows, n, second_dots);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t row = rows ? rows[i] : i;
        const Factors factors = read_factors(*this, codes + row * code_size);
        float offset = factors.offset;
        if (has_second) {
            offset = distance_from_dot(
                    query.second,
                    second_dots[i],
                    has_second_scale() ? factors.second_scale : factors.scale,
                    offset);
        }
        distances[i] = distance_from_dot(
                query.factors, dots[i], factors.scale, offset);
    }
}

float TurboQuantizer::distance_to_code(
        const PreparedQuery& query,
        const uint8_t* code) const {
    float distance;
    distances_to_codes(query, code, nullptr, 1, &distance);
    return distance;
}

void TurboQuantizer::distances_to_4_codes(
        const PreparedQuery& query,
        const uint8_t* codes,
        const faiss::idx_t* rows,
        float* distances) const {
    // rows of the kernels are 32-bit: count from the first of these
    const auto [first, last] = std::minmax_element(rows, rows + 4);
    if (*last - *first > UINT32_MAX) {
        for (int i = 0; i < 4; i++) {
            distances[i] = distance_to_code(query, codes + rows[i] * code_size);
        }
        return;
    }
    uint32_t near[4];
    for (int i = 0; i < 4; i++) {
        near[i] = static_cast<uint32_t>(rows[i] - *first);
    }
    distances_to_codes(query, codes + *first * code_size, near, 4, distances);
}

void TurboQuantizer::load_factors(
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        float* scales,
        float* second_scales,
        float* offsets) const {
    codes += packed_size();
    // One factor after the other: a loop that has to see for each code which
    // ones there are takes as long as the dot product with a short code.
    const auto load = [&](size_t number, float* factors) {
        const uint8_t* from = codes + number * sizeof(float);
        for (size_t i = 0; i < n; i++) {
            const size_t row = rows ? rows[i] : i;
            std::memcpy(&factors[i], from + row * code_size, sizeof(float));
        }
    };
    load(0, scales);
    if (second_scales) {
        load(1, second_scales);
    }
    if (offsets) {
        load(second_scales ? 2 : 1, offsets);
    }
}

void TurboQuantizer::prepare_code(const uint8_t* code, PreparedCode& prepared)
        const {
    const Factors factors = read_factors(*this, code);
    prepared.scale = factors.scale;
    prepared.offset = factors.offset;
    if (has_sketch()) {
        std::vector<float> levels(rotated_dim());
        prepared.decoded.resize(rotated_dim());
        decode_rotated(code, levels.data(), prepared.decoded.data());
        return;
    }
    std::vector<uint8_t> grid;
    std::vector<int8_t> levels(rotated_dim());
    for (size_t p = 0; p < parts_.size(); p++) {
        const CodePart& part = parts_[p];
        grid.resize(std::max(grid.size(), part.layout.grid_size()));
        kernels().decode(part.layout, code + part.byte, grid.data());
        int8_t* of_part = levels.data() + part.coordinate;
        const size_t n = part.layout.d;
        int32_t sum = 0;
        for (size_t i = 0; i < n; i++) {
            of_part[i] = static_cast<int8_t>(2 * grid[i] - 63);
            sum += of_part[i];
        }
        prepared.sums[p] = sum;
    }
    arrange(levels.data(), prepared.arranged);
}

/** <x1 - c, x2 - c>
 * @param scale2  of code2 */
double TurboQuantizer::symmetric_product(
        const PreparedCode& code1,
        const uint8_t* code2,
        float scale2) const {
    if (has_sketch()) {
        thread_local PreparedCode prepared2;
        prepare_code(code2, prepared2);
        return kernels().dot(
                code1.decoded.data(), prepared2.decoded.data(), plain_dim());
    }
    double levels_product = 0; // <v1, v2>
    for (size_t p = 0; p < parts_.size(); p++) {
        const CodePart& part = parts_[p];
        int32_t sum;
        kernels().dot_codes(
                part.layout,
                code2 + part.byte,
                nullptr,
                1,
                code1.arranged.data() + arranged_at(p),
                code1.sums[p],
                &sum);
        const int32_t dot = 2 * sum - 63 * code1.sums[p];
        levels_product += double(dot) * part.half_level * part.half_level;
    }
    return levels_product * (double(code1.scale) * scale2);
}

float TurboQuantizer::symmetric_distance(
        const PreparedCode& code1,
        const uint8_t* code2) const {
    const Factors f2 = read_factors(*this, code2);
    const double product = symmetric_product(code1, code2, f2.scale);
    if (metric_type == faiss::METRIC_L2) {
        return static_cast<float>(
                std::max(0.0, double(code1.offset) + f2.offset - 2 * product));
    }
    if (!has_centre()) {
        return static_cast<float>(product);
    }
    // <x1, x2> = <x1 - c, x2 - c> + <x1 - c, c> + <x2 - c, c> + |c|^2
    return static_cast<float>(
            product + (code1.offset + double(f2.offset)) + squared_centre_);
}

void TurboQuantizer::check_same_codes(const TurboQuantizer& other) const {
    FAISS_THROW_IF_NOT_FMT(
            other.d == d,
            "TurboQuant: cannot merge d = %zd into d = %zd",
            other.d,
            d);
    FAISS_THROW_IF_NOT_FMT(
            other.nbits == nbits,
            "TurboQuant: cannot merge nbits = %d into nbits = %d",
            other.nbits,
            nbits);
    FAISS_THROW_IF_NOT_FMT(
            other.codec == codec,
            "TurboQuant: cannot merge codec %s into codec %s",
            other.codec_name().c_str(),
            codec_name().c_str());
    FAISS_THROW_IF_NOT_FMT(
            other.metric_type == metric_type,
            "TurboQuant: cannot merge metric %d into metric %d",
            int(other.metric_type),
            int(metric_type));
    FAISS_THROW_IF_NOT_MSG(
            other.rotation.type == rotation.type &&
                    other.rotation.seed == rotation.seed,
            "TurboQuant: cannot merge an index with another rotation "
            "(type or seed)");
    FAISS_THROW_IF_NOT_MSG(
            other.codebook == codebook &&
                    other.second_codebook == second_codebook,
            "TurboQuant: cannot merge an index with another codebook "
            "(levels or trellis)");
    FAISS_THROW_IF_NOT_MSG(
            other.centre == centre && other.by_residual == by_residual,
            "TurboQuant: cannot merge an index with another centre "
            "(train() sets it)");
}

} // namespace faiss_turboquant
