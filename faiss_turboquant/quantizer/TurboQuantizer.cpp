#include <faiss_turboquant/quantizer/TurboQuantizer.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>

#include <faiss/impl/FaissAssert.h>

namespace faiss_turboquant {

namespace {

/// buffers of one vector on its way through the float steps, zero past d
struct Workspace {
    std::vector<float> difference; ///< x - c
    std::vector<float> direction;  ///< its unit vector
    std::vector<float> rotated;    ///< P times that
    std::vector<uint8_t> fields;   ///< scratch of Kernels::encode

    Workspace(size_t padded_dim, size_t scratch_size)
            : difference(padded_dim),
              direction(padded_dim),
              rotated(padded_dim),
              fields(scratch_size) {}
};

/** difference, direction and rotated of x.
 * @param centre  c, or null for 0
 * @return |x - c|, in double; not finite if x is not */
double rotate_direction(
        const TurboQuantizer& tq,
        const float* x,
        const float* centre,
        Workspace& work) {
    const Kernels& k = kernels();
    const size_t padded = work.difference.size();
    std::fill(work.difference.begin() + tq.d, work.difference.end(), 0.0f);
    std::fill(work.rotated.begin() + tq.d, work.rotated.end(), 0.0f);
    if (centre) {
        for (size_t i = 0; i < tq.d; i++) {
            work.difference[i] = x[i] - centre[i];
        }
    } else {
        std::copy_n(x, tq.d, work.difference.begin());
    }
    const double norm =
            std::sqrt(k.sum_of_squares(work.difference.data(), padded));
    if (!std::isfinite(norm)) {
        return norm;
    }
    // a zero vector has no direction: zeros encode, and estimate, as zero
    const double factor = norm > 0 ? 1 / norm : 0;
    k.scale(work.difference.data(), factor, work.direction.data(), padded);
    tq.rotation.apply(work.direction.data(), work.rotated.data());
    return norm;
}

/// of a trellis, which its name does not mention
constexpr int usual_memory = 8;

constexpr double largest_float = std::numeric_limits<float>::max();

struct Factors {
    float scale;
    float offset;
};

Factors read_factors(const CodeLayout& layout, const uint8_t* code) {
    Factors factors = {0, 0};
    const uint8_t* from = code + layout.packed_size();
    std::memcpy(&factors.scale, from, sizeof(float));
    if (layout.has_offset) {
        std::memcpy(&factors.offset, from + sizeof(float), sizeof(float));
    }
    return factors;
}

void write_factors(
        const CodeLayout& layout,
        const Factors& factors,
        uint8_t* code) {
    uint8_t* to = code + layout.packed_size();
    std::memcpy(to, &factors.scale, sizeof(float));
    if (layout.has_offset) {
        std::memcpy(to + sizeof(float), &factors.offset, sizeof(float));
    }
}

} // namespace

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
    codebook = memory == 0 ? Codebook::lloyd_max(d, nbits)
                           : Codebook::trellis_coded(nbits, memory);
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
            codec == CodecType::Scaled || codec == CodecType::Mse,
            "TurboQuant: there is no codec type %d",
            int(codec));
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
    const Trellis& trellis = codebook.trellis;
    const bool has_trellis = trellis.memory != 0;
    FAISS_THROW_IF_NOT_FMT(
            !has_trellis || is_supported(trellis, nbits),
            "TurboQuant: no trellis of memory %d, or not with these taps, at "
            "%d bits",
            trellis.memory,
            nbits);
    FAISS_THROW_IF_NOT_FMT(
            !has_trellis || codec == CodecType::Scaled,
            "TurboQuant: codec type %d does not go with a trellis",
            int(codec));
    const size_t nlevels =
            has_trellis ? Trellis::n_indices : size_t(1) << (nbits - 1);
    FAISS_THROW_IF_NOT_FMT(
            codebook.positions.size() == nlevels,
            "TurboQuant: the codebook has %zd positive levels, not %zd",
            codebook.positions.size(),
            nlevels);
    FAISS_THROW_IF_NOT_FMT(
            std::isnormal(codebook.step) && codebook.step > 0,
            "TurboQuant: the codebook's step is %g",
            codebook.step);
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

    layout_ = CodeLayout();
    layout_.d = d;
    layout_.nbits = nbits;
    layout_.has_offset = has_offset();
    if (has_trellis) {
        std::copy(
                codebook.positions.begin(),
                codebook.positions.end(),
                layout_.grid);
        layout_.trellis = trellis;
        layout_.tables = make_trellis_tables(
                trellis, nbits, layout_.grid, codebook.step);
    } else {
        const size_t half = size_t(1) << (nbits - 1);
        for (size_t i = 0; i < std::size(layout_.grid); i++) {
            layout_.grid[i] = i < half ? codebook.positions[i]
                    : i < 2 * half     ? 63 - codebook.positions[i - half]
                                       : 0;
        }
        for (size_t i = 0; i + 1 < half; i++) {
            // the midpoint of two levels, in half steps
            layout_.thresholds[i] = static_cast<int8_t>(
                    codebook.positions[i] + codebook.positions[i + 1] - 63);
        }
    }
    expected_error_ = codebook.mean_squared_error(d);
    layout_.half_steps =
            static_cast<float>(2 * std::sqrt(double(d)) / codebook.step);
    layout_.code_size =
            layout_.packed_size() + (has_offset() ? 2 : 1) * sizeof(float);
    code_size = layout_.code_size;
}

std::string TurboQuantizer::codec_name() const {
    const std::string name = "TQ" + std::to_string(nbits);
    if (codec == CodecType::Mse) {
        return name + "mse";
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

size_t TurboQuantizer::packed_size() const {
    return layout_.packed_size();
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
    const Kernels& k = kernels();
    // level(g) on a unit vector is (2 g - 63) times this
    const double half_level = codebook.step / (2 * std::sqrt(double(d)));
    size_t not_finite = n, too_long = n;

#pragma omp parallel if (n > 8)
    {
        Workspace work(layout_.padded_dim(), layout_.scratch_size());
        std::vector<float> padded_centre(layout_.padded_dim());
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(n); i++) {
            uint8_t* code = codes + i * code_size;
            const float* centre =
                    centres ? centres + i * centre_stride : nullptr;
            const double norm =
                    rotate_direction(*this, x + i * d, centre, work);
            if (!std::isfinite(norm)) {
#pragma omp critical(faiss_turboquant_encode)
                not_finite = std::min(not_finite, size_t(i));
                continue;
            }
            const float product = k.encode(
                    layout_, work.rotated.data(), work.fields.data(), code);
            double offset = 0;
            if (metric_type == faiss::METRIC_L2) {
                offset = norm * norm;
            } else if (centre) {
                std::copy_n(centre, d, padded_centre.begin());
                offset =
                        k.dot(work.difference.data(),
                              padded_centre.data(),
                              layout_.padded_dim());
            }
            if (norm * norm > largest_float ||
                std::fabs(offset) > largest_float) {
#pragma omp critical(faiss_turboquant_encode)
                too_long = std::min(too_long, size_t(i));
                continue;
            }
            double scale = norm;
            if (codec == CodecType::Scaled && norm > 0) {
                scale /= product * half_level;
            }
            const Factors factors = {
                    static_cast<float>(scale), static_cast<float>(offset)};
            write_factors(layout_, factors, code);
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

void TurboQuantizer::decode(const uint8_t* codes, float* x, size_t n) const {
    const Kernels& k = kernels();
    const double half_level = codebook.step / (2 * std::sqrt(double(d)));

#pragma omp parallel if (n > 8)
    {
        std::vector<uint8_t> grid(layout_.padded_dim());
        std::vector<float> levels(layout_.padded_dim());
        std::vector<float> scaled(layout_.padded_dim());
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(n); i++) {
            const uint8_t* code = codes + i * code_size;
            const Factors factors = read_factors(layout_, code);
            k.decode(layout_, code, grid.data());
            for (size_t j = 0; j < d; j++) {
                levels[j] = static_cast<float>(2 * grid[j] - 63);
            }
            double factor = factors.scale;
            if (codec == CodecType::Scaled) {
                // The point along v that is nearest to x - c is
                // |x - c| <u, v> / |v|^2 v, and scale is |x - c| / <u, v>.
                // <u, v> comes from |u - v|^2 = 1 + |v|^2 - 2 <u, v>, which is
                // nearly constant.
                const double squared = half_level * half_level *
                        k.sum_of_squares(levels.data(), levels.size());
                const double uv = (1 + squared - expected_error_) / 2;
                factor = factor * uv * uv / squared;
            }
            k.scale(levels.data(),
                    factor * half_level,
                    scaled.data(),
                    scaled.size());
            float* out = x + i * d;
            rotation.apply_transpose(scaled.data(), out);
            for (size_t j = 0; j < centre.size(); j++) {
                out[j] += centre[j];
            }
        }
    }
}

void TurboQuantizer::prepare_query(
        const float* x,
        size_t row,
        PreparedQuery& query) const {
    const size_t padded = layout_.padded_dim();
    thread_local Workspace work(0, 0);
    if (work.difference.size() != padded) {
        work = Workspace(padded, 0);
    }
    const double norm = rotate_direction(
            *this, x, has_centre() ? centre.data() : nullptr, work);
    FAISS_THROW_IF_NOT_FMT(
            std::isfinite(norm),
            "TurboQuant: query %zd has a NaN or an infinity",
            row);
    quantize_query(work.rotated.data(), norm, query);
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
    arrange_query(query);
}

/** All but the bias.
 * @param rotated  P (q - c) / length */
void TurboQuantizer::quantize_query(
        const float* rotated,
        double length,
        PreparedQuery& query) const {
    query.q.resize(layout_.padded_dim());
    const float largest = kernels().quantize_query(
            rotated, layout_.padded_dim(), query.q.data());
    QueryFactors& factors = query.factors;
    factors = QueryFactors();
    for (int8_t value : query.q) {
        factors.sum += value;
    }
    // <P (q - c), v> = |q - c| (largest / 127) (step / 2 sqrt(d)) t
    const double multiplier = length * (double(largest) / 127) *
            (codebook.step / (2 * std::sqrt(double(d))));
    const bool is_l2 = metric_type == faiss::METRIC_L2;
    factors.multiplier =
            static_cast<float>(is_l2 ? -2 * multiplier : multiplier);
}

void TurboQuantizer::arrange_query(PreparedQuery& query) const {
    const Kernels& k = kernels();
    query.arranged.resize(k.query_size(layout_));
    k.arrange_query(layout_, query.q.data(), query.arranged.data());
}

void TurboQuantizer::rotate_query(const float* x, size_t row, float* rotated)
        const {
    std::fill(rotated + d, rotated + layout_.padded_dim(), 0.0f);
    rotation.apply(x, rotated);
    const double squared =
            kernels().sum_of_squares(rotated, layout_.padded_dim());
    FAISS_THROW_IF_NOT_FMT(
            squared <= largest_float,
            "TurboQuant: query %zd has a NaN or an infinity, or its squared "
            "norm exceeds float32",
            row);
}

void TurboQuantizer::prepare_residual_query(
        const float* rotated,
        const float* rotated_centre,
        bool arrange,
        PreparedQuery& query) const {
    const size_t padded = layout_.padded_dim();
    thread_local std::vector<float> difference;
    difference.resize(padded);
    for (size_t i = 0; i < padded; i++) {
        difference[i] = rotated[i] - rotated_centre[i];
    }
    quantize_query(difference.data(), 1, query);
    const Kernels& k = kernels();
    query.factors.bias = static_cast<float>(
            metric_type == faiss::METRIC_L2
                    ? k.sum_of_squares(difference.data(), padded)
                    : k.dot(rotated, rotated_centre, padded));
    if (arrange) {
        arrange_query(query);
    }
}

float TurboQuantizer::distance_to_code(
        const PreparedQuery& query,
        const uint8_t* code) const {
    int32_t dot;
    kernels().dot_codes(
            layout_,
            code,
            nullptr,
            1,
            query.arranged.data(),
            query.factors.sum,
            &dot);
    const Factors factors = read_factors(layout_, code);
    return distance_from_dot(query.factors, dot, factors.scale, factors.offset);
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
    codes += *first * code_size;
    int32_t dots[4];
    kernels().dot_codes(
            layout_,
            codes,
            near,
            4,
            query.arranged.data(),
            query.factors.sum,
            dots);
    for (int i = 0; i < 4; i++) {
        const Factors factors =
                read_factors(layout_, codes + near[i] * code_size);
        distances[i] = distance_from_dot(
                query.factors, dots[i], factors.scale, factors.offset);
    }
}

void TurboQuantizer::load_factors(
        const uint8_t* codes,
        const uint32_t* rows,
        size_t n,
        float* scales,
        float* offsets) const {
    const size_t stride = layout_.code_size;
    codes += layout_.packed_size();
    for (size_t i = 0; i < n; i++) {
        const uint8_t* at = codes + (rows ? rows[i] : i) * stride;
        std::memcpy(&scales[i], at, sizeof(float));
        if (offsets) {
            std::memcpy(&offsets[i], at + sizeof(float), sizeof(float));
        }
    }
}

void TurboQuantizer::prepare_code(const uint8_t* code, PreparedCode& prepared)
        const {
    const Kernels& k = kernels();
    const size_t padded = layout_.padded_dim();
    std::vector<uint8_t> grid(padded);
    k.decode(layout_, code, grid.data());
    std::vector<int8_t> levels(padded);
    prepared.sum = 0;
    for (size_t i = 0; i < d; i++) {
        levels[i] = static_cast<int8_t>(2 * grid[i] - 63);
        prepared.sum += levels[i];
    }
    prepared.arranged.resize(k.query_size(layout_));
    k.arrange_query(layout_, levels.data(), prepared.arranged.data());
    const Factors factors = read_factors(layout_, code);
    prepared.scale = factors.scale;
    prepared.offset = factors.offset;
}

float TurboQuantizer::symmetric_distance(
        const PreparedCode& code1,
        const uint8_t* code2) const {
    int32_t sum;
    kernels().dot_codes(
            layout_, code2, nullptr, 1, code1.arranged.data(), code1.sum, &sum);
    const int32_t dot = 2 * sum - 63 * code1.sum;
    const Factors f2 = read_factors(layout_, code2);
    const double half_level = codebook.step / (2 * std::sqrt(double(d)));
    const double product = double(dot) * half_level * half_level *
            (double(code1.scale) * f2.scale);
    if (metric_type == faiss::METRIC_L2) {
        return static_cast<float>(
                std::max(0.0, double(code1.offset) + f2.offset - 2 * product));
    }
    if (!has_centre()) {
        return static_cast<float>(product);
    }
    double centre_norm = 0;
    for (float c : centre) {
        centre_norm += double(c) * c;
    }
    // <x1, x2> = <x1 - c, x2 - c> + <x1 - c, c> + <x2 - c, c> + |c|^2
    return static_cast<float>(
            product + (code1.offset + double(f2.offset)) + centre_norm);
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
            other.codebook == codebook,
            "TurboQuant: cannot merge an index with another codebook "
            "(levels or trellis)");
    FAISS_THROW_IF_NOT_MSG(
            other.centre == centre && other.by_residual == by_residual,
            "TurboQuant: cannot merge an index with another centre "
            "(train() sets it)");
}

} // namespace faiss_turboquant
