#include <faiss_turboquant/SignFilter.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/QueryBatch.h>

namespace faiss_turboquant {

namespace {

size_t round_up(size_t n, size_t step) {
    return (n + step - 1) / step * step;
}

/// grid positions of a code
using Grid = faiss::AlignedTable<uint8_t, 64>;

/// of one code
LevelSums pack_code(
        const TurboQuantizer& tq,
        const uint8_t* code,
        Grid& grid,
        uint8_t large,
        uint8_t* signs,
        uint8_t* sizes,
        size_t stride) {
    const CodeLayout& layout = tq.layout();
    kernels().decode(layout, code, grid.data());
    return kernels().pack_signs(
            grid.data(), layout.d, large, signs, sizes, stride);
}

/// of a code's signs, with padding
size_t sign_bytes(size_t d) {
    return round_up((d + 7) / 8, sign_step);
}

/// Nanoseconds that a code takes a query, of which `a` a coordinate: measured
/// on a Xeon (Sapphire Rapids) at each level.
struct FilterCost {
    struct Linear {
        double base, a;

        double at(size_t d) const {
            return base + a * double(d);
        }
    };
    Linear multiply; ///< in panels
    Linear decode;   ///< these, for all of n queries
    Linear signs;    ///< of a plane, for several queries
    Linear read;     ///< of those that are left, here and there

    double max_part(size_t d, size_t n, int n_planes) const {
        const double panels = multiply.at(d) + decode.at(d) / double(n);
        return (panels - n_planes * signs.at(d)) / read.at(d);
    }
};

} // namespace

double max_filtered_part(size_t d, size_t n, int n_planes) {
    constexpr double of_few = 1.0 / 16;
    constexpr FilterCost avx2 = {
            {0, 0.0131}, {0, 0.056}, {0.72, 0.0047}, {10, 0.1}};
    constexpr FilterCost avx2_vnni = {
            {0, 0.0072}, {0, 0.055}, {0.72, 0.004}, {10, 0.1}};
    constexpr FilterCost avx512_vnni = {
            {0.25, 0.0036}, {0, 0.045}, {0.95, 0.0025}, {10, 0.05}};
    const auto up_to_few = [&](const FilterCost& cost) {
        return std::clamp(cost.max_part(d, n, n_planes), 0.0, of_few);
    };
    switch (current_level()) {
        case SimdLevel::amx:
            return n <= d / 32 ? of_few : 0;
        case SimdLevel::avx512_vnni:
            return up_to_few(avx512_vnni);
        case SimdLevel::avx2_vnni:
            return up_to_few(avx2_vnni);
        case SimdLevel::neon_dot:
            return n <= d / 8 ? of_few : 0;
        default:
            return up_to_few(avx2);
    }
}

bool wants_sign_filter(
        const char* index_type,
        const TurboQuantizer& tq,
        int setting,
        double margin,
        bool pays) {
    FAISS_THROW_IF_NOT_FMT(
            margin > 0,
            "%s: sign_margin = %g is not positive",
            index_type,
            margin);
    return SignFilter::supports(tq) && (setting < 0 ? pays : setting > 0);
}

size_t least_filtered_list() {
    switch (current_level()) {
        case SimdLevel::avx512:
        case SimdLevel::avx512_vnni:
        case SimdLevel::amx:
            return 1024;
        default:
            return 512;
    }
}

size_t max_filtered_list_queries(size_t d, bool reads_few) {
    constexpr size_t one_by_one = batch_queries - 1; // not read in panels
    switch (current_level()) {
        case SimdLevel::avx2_vnni:
            return reads_few ? 24 : one_by_one;
        case SimdLevel::avx512_vnni:
        case SimdLevel::amx:
        case SimdLevel::neon_dot:
            return reads_few ? 12 : one_by_one;
        default:
            return d < 512 ? std::max(one_by_one, d / 32)
                           : std::numeric_limits<size_t>::max();
    }
}

SignFilter::SignFilter(const TurboQuantizer& tq, int n_planes)
        : d_(tq.d),
          n_bytes_(sign_bytes(tq.d)),
          large_(large_magnitude(tq.layout().half_steps, double(tq.d))),
          sign_(tq.metric_type == faiss::METRIC_L2 ? 1.0f : -1.0f),
          n_planes_(n_planes) {}

size_t SignFilter::bytes(
        const TurboQuantizer& tq,
        size_t ntotal,
        int n_planes) {
    const size_t of_plane = sign_bytes(tq.d) + 2 * sizeof(float);
    const size_t of_offset = tq.layout().has_offset ? sizeof(float) : 0;
    return round_up(ntotal, sign_block) * (n_planes * of_plane + of_offset);
}

void SignFilter::extend(
        const TurboQuantizer& tq,
        const uint8_t* codes,
        size_t ntotal) {
    const size_t n_blocks = (ntotal + sign_block - 1) / sign_block;
    const bool has_offset = tq.layout().has_offset;
    for (int p = 0; p < n_planes_; p++) {
        planes_[p].bits.resize(n_blocks * n_bytes_, Row());
        planes_[p].scales.resize(n_blocks * sign_block);
        planes_[p].residuals.resize(n_blocks * sign_block);
    }
    offsets_.resize(has_offset ? n_blocks * sign_block : 0);
    double largest_squares[max_sign_planes] = {};
#pragma omp parallel if (ntotal - size_ > 1000) \
        reduction(max                           \
                  : largest_squares[:max_sign_planes])
    {
        Grid grid(tq.layout().grid_size());
#pragma omp for schedule(static)
        for (int64_t block = size_ / sign_block; block < int64_t(n_blocks);
             block++) {
            const size_t first = block * sign_block;
            const size_t begin = std::max(first, size_);
            const size_t end = std::min(first + sign_block, ntotal);
            float factors[2][sign_block];
            tq.load_factors(
                    codes + begin * tq.code_size,
                    nullptr,
                    end - begin,
                    factors[0],
                    nullptr,
                    has_offset ? factors[1] : nullptr);
            for (size_t i = begin; i < end; i++) {
                const auto place = [&](Plane& plane) {
                    return plane.bits[block * n_bytes_].bytes +
                            sign_place(i - first);
                };
                const LevelSums sums = pack_code(
                        tq,
                        codes + i * tq.code_size,
                        grid,
                        large_,
                        place(planes_[0]),
                        n_planes_ > 1 ? place(planes_[1]) : nullptr,
                        sign_block);
                for (int p = 0; p < n_planes_; p++) {
                    const SignApproximation code(sums, d_, p + 1);
                    planes_[p].scales[i] = static_cast<float>(
                            factors[0][i - begin] * code.beta);
                    planes_[p].residuals[i] = static_cast<float>(code.residual);
                    largest_squares[p] =
                            std::max(largest_squares[p], code.square);
                }
                if (has_offset) {
                    offsets_[i] = sign_ * factors[1][i - begin];
                }
            }
        }
    }
    for (int p = 0; p < n_planes_; p++) {
        Plane& plane = planes_[p];
        SignResiduals& range = plane.range;
        range.largest_square =
                std::max(range.largest_square, largest_squares[p]);
        for (size_t i = size_; i < ntotal; i++) {
            const double residual = plane.residuals[i];
            range.least = std::min(range.least, residual);
            range.largest = std::max(range.largest, residual);
            plane.sum_of_scales += plane.scales[i];
        }
    }
    for (size_t i = size_; i < ntotal && has_offset; i++) {
        sum_of_offsets_ += offsets_[i];
    }
    size_ = ntotal;
}

bool SignFilter::agrees(const TurboQuantizer& tq, const uint8_t* code, size_t i)
        const {
    Grid grid(tq.layout().grid_size());
    std::vector<uint8_t> bits(n_bytes_);
    pack_code(tq, code, grid, large_, bits.data(), nullptr, 1);
    const Row* rows = &planes_[0].bits[i / sign_block * n_bytes_];
    for (size_t byte = 0; byte < n_bytes_; byte++) {
        if (rows[byte].bytes[sign_place(i % sign_block)] != bits[byte]) {
            return false;
        }
    }
    return true;
}

SignQuery SignFilter::make_query(
        const int8_t* q,
        const QueryFactors& factors,
        double margin) const {
    // With e the sum of the |q_i| whose signs agree, <q, s> = 2 e - sum |q_i|,
    // and the same for <q, t>. Entries are e of four coordinates, times `unit`,
    // rounded.
    const size_t n_tables = 2 * n_bytes_;
    std::vector<int8_t> padded(n_tables * 4);
    std::copy_n(q, d_, padded.begin());
    int64_t sum = 0, squares = 0;
    int largest = 64; // keeps the factor in 16 bits
    for (size_t i = 0; i < padded.size(); i += 4) {
        int of_four = 0;
        for (size_t j = i; j < i + 4; j++) {
            of_four += std::abs(padded[j]);
            squares += padded[j] * padded[j];
        }
        sum += of_four;
        largest = std::max(largest, of_four);
    }
    const double most = std::min(
            double(max_sign_entry) / largest,
            (65535.0 - n_tables) / std::max<int64_t>(sum, 1));
    const auto factor = static_cast<int16_t>(most * (1 << sign_fraction));
    const double unit = double(factor) / (1 << sign_fraction);

    SignQuery query;
    query.tables.resize(n_tables * 16);
    const auto half = static_cast<int16_t>(
            std::nearbyint(0.5 / unit * (1 << half_fraction)));
    kernels().fill_sign_tables(
            padded.data(), n_tables, factor, half, query.tables.data());

    query.multiplier = sign_ * double(factors.multiplier);
    const auto planes = [&](int sum_of_weights) {
        SignQuery::Planes planes;
        planes.expected.slope = static_cast<float>(query.multiplier * 2 / unit);
        planes.expected.shift = static_cast<float>(
                -query.multiplier * double(sum) * sum_of_weights);
        planes.expected.bias = sign_ * factors.bias;
        // n_tables errors of 2 / unit * [-1/2, 1/2], which add up where both
        // planes take the same entry
        planes.bound = {
                double(squares),
                sign_share(double(d_), margin),
                std::sqrt(n_tables / 3.0) / unit * margin * sum_of_weights};
        return planes;
    };
    query.first = planes(1);
    query.both = planes(weigh_sums(1, 1));
    return query;
}

SignFormula SignFilter::least(
        const SignQuery& query,
        int n_planes,
        float threshold) const {
    const Plane& plane = planes_[n_planes - 1];
    const auto& [expected, of_query] = n_planes == 1 ? query.first : query.both;
    // the bound that is nearest where codes are near the threshold
    const double n = double(size_);
    const double y = (double(threshold) - expected.bias - sum_of_offsets_ / n) /
            (query.multiplier * (plane.sum_of_scales / n));
    const SignBound bound = sign_bound(of_query, plane.range, y);
    const double multiplier = query.multiplier * bound.factor;
    SignFormula least = expected;
    least.slope = static_cast<float>(expected.slope * bound.factor);
    least.shift = static_cast<float>(
            expected.shift * bound.factor + multiplier * bound.shift);
    least.spread = static_cast<float>(multiplier * bound.spread);
    return least;
}

SignFilterCache::SignFilterCache(const SignFilterCache& other) {
    *this = other;
}

SignFilterCache& SignFilterCache::operator=(const SignFilterCache& other) {
    if (this != &other) {
        const std::scoped_lock lock(mutex_, other.mutex_);
        filter_ = other.filter_;
    }
    return *this;
}

std::shared_ptr<const SignFilter> SignFilterCache::get(
        const TurboQuantizer& tq,
        const uint8_t* codes,
        size_t ntotal,
        int n_planes,
        bool looks) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (filter_ &&
        (filter_->n_planes() < n_planes || filter_->size() > ntotal ||
         (looks && has_other_codes(tq, codes)))) {
        filter_.reset();
    }
    if (!filter_ || filter_->size() < ntotal) {
        // others that hold it go on with what they have
        auto filter = !filter_ ? std::make_shared<SignFilter>(tq, n_planes)
                : filter_.use_count() == 1
                ? filter_
                : std::make_shared<SignFilter>(*filter_);
        filter->extend(tq, codes, ntotal);
        filter_ = filter;
    }
    return filter_;
}

/// a look at one code, another one each time
bool SignFilterCache::has_other_codes(
        const TurboQuantizer& tq,
        const uint8_t* codes) {
    if (filter_->size() == 0) {
        return false;
    }
    constexpr uint64_t stride = 0x9E3779B97F4A7C15; // of the golden ratio
    const size_t i = (looks_++ * stride) % filter_->size();
    return !filter_->agrees(tq, codes + i * tq.code_size, i);
}

void SignFilterCache::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    filter_.reset();
}

bool SignRecord::is_promising() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return backoff_.is_due();
}

void SignRecord::note(bool gains) {
    const std::lock_guard<std::mutex> lock(mutex_);
    backoff_.note(gains);
}

void SignRecord::note_read(double part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (n_read_many_ == patience) {
        return;
    }
    part_read_ = part;
    n_read_many_ = part > part_for_second_plane ? n_read_many_ + 1 : 0;
    if (n_read_many_ == patience) {
        backoff_ = at_first;
    }
}

bool SignRecord::reads_few() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return n_read_many_ < patience && part_read_ <= 1.0 / 16;
}

int SignRecord::n_planes(const TurboQuantizer& tq, int setting) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool has_both = n_read_many_ == patience || setting > 1;
    return has_both ? SignFilter::max_planes(tq) : 1;
}

void SignRecord::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    backoff_ = at_first;
    n_read_many_ = 0;
    part_read_ = 1;
}

void ListSignFilters::resize(size_t nlist) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (of_lists_.size() != nlist) {
        of_lists_ = std::vector<SignFilterCache>(nlist);
    }
}

std::shared_ptr<const SignFilter> ListSignFilters::get(
        const TurboQuantizer& tq,
        size_t list_no,
        const uint8_t* codes,
        size_t n,
        int n_planes) {
    const bool looks = n_asked_++ % look_period == 0;
    return of_lists_[list_no].get(tq, codes, n, n_planes, looks);
}

void ListSignFilters::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    of_lists_.clear();
    record.clear();
}

} // namespace faiss_turboquant
