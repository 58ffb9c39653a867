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

/// signs and sums of one code
struct PackedCode {
    int32_t magnitudes, squares;

    PackedCode(
            const TurboQuantizer& tq,
            const uint8_t* code,
            Grid& grid,
            uint8_t* bits,
            size_t stride) {
        const Kernels& k = kernels();
        k.decode(tq.layout(), code, grid.data());
        k.pack_signs(
                grid.data(),
                tq.layout().d,
                bits,
                stride,
                &magnitudes,
                &squares);
    }

    /// |r| / beta, 0 where all magnitudes are equal
    float residual(size_t d) const {
        const int64_t x =
                int64_t(d) * squares - int64_t(magnitudes) * magnitudes;
        return static_cast<float>(std::sqrt(double(x) / squares));
    }
};

/// of a code's signs, with padding
size_t sign_bytes(size_t d) {
    return round_up((d + 7) / 8, sign_step);
}

} // namespace

double max_filtered_part(size_t d, size_t n) {
    constexpr double of_few = 1.0 / 16;
    switch (current_level()) {
        case SimdLevel::amx:
            return n <= d / 32 ? of_few : 0;
        case SimdLevel::avx512_vnni:
            return n <= d / 16 ? of_few : of_few / 4;
        case SimdLevel::avx2_vnni:
            return n <= d / 8 ? of_few : of_few / 4;
        case SimdLevel::neon_dot:
            return n <= d / 8 ? of_few : 0;
        default:
            return of_few;
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

size_t max_filtered_list_queries(size_t d) {
    switch (current_level()) {
        case SimdLevel::avx2_vnni:
        case SimdLevel::avx512_vnni:
        case SimdLevel::amx:
        case SimdLevel::neon_dot:
            return batch_queries - 1; // all that are not read in panels
        default:
            return d < 512 ? std::max(batch_queries - 1, d / 32)
                           : std::numeric_limits<size_t>::max();
    }
}

SignFilter::SignFilter(const TurboQuantizer& tq)
        : d_(tq.d),
          n_bytes_(sign_bytes(tq.d)),
          sign_(tq.metric_type == faiss::METRIC_L2 ? 1.0f : -1.0f) {}

size_t SignFilter::bytes(const TurboQuantizer& tq, size_t ntotal) {
    const size_t n_factors = tq.layout().has_offset ? 3 : 2;
    return round_up(ntotal, sign_block) *
            (sign_bytes(tq.d) + n_factors * sizeof(float));
}

void SignFilter::extend(
        const TurboQuantizer& tq,
        const uint8_t* codes,
        size_t ntotal) {
    const size_t n_blocks = (ntotal + sign_block - 1) / sign_block;
    const bool has_offset = tq.layout().has_offset;
    bits_.resize(n_blocks * n_bytes_, Row());
    scales_.resize(n_blocks * sign_block);
    residuals_.resize(n_blocks * sign_block);
    offsets_.resize(has_offset ? n_blocks * sign_block : 0);
#pragma omp parallel if (ntotal - size_ > 1000)
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
                uint8_t* bits =
                        bits_[block * n_bytes_].bytes + sign_place(i - first);
                const PackedCode packed(
                        tq, codes + i * tq.code_size, grid, bits, sign_block);
                const double beta = double(packed.squares) / packed.magnitudes;
                residuals_[i] = packed.residual(d_);
                scales_[i] = static_cast<float>(factors[0][i - begin] * beta);
                if (has_offset) {
                    offsets_[i] = sign_ * factors[1][i - begin];
                }
            }
        }
    }
    for (size_t i = size_; i < ntotal; i++) {
        least_residual_ = std::min(least_residual_, residuals_[i]);
        largest_residual_ = std::max(largest_residual_, residuals_[i]);
        sum_of_scales_ += scales_[i];
        sum_of_offsets_ += has_offset ? offsets_[i] : 0;
    }
    size_ = ntotal;
}

bool SignFilter::agrees(const TurboQuantizer& tq, const uint8_t* code, size_t i)
        const {
    Grid grid(tq.layout().grid_size());
    std::vector<uint8_t> bits(n_bytes_);
    PackedCode(tq, code, grid, bits.data(), 1);
    const Row* rows = &bits_[i / sign_block * n_bytes_];
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
    // With e the sum of the |q_i| whose signs agree, <q, s> = 2 e - sum |q_i|.
    // Entries are e of four coordinates, times `unit`, rounded.
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
    query.expected.slope = static_cast<float>(query.multiplier * 2 / unit);
    query.expected.shift = static_cast<float>(-query.multiplier * sum);
    query.expected.bias = sign_ * factors.bias;
    // n_tables errors of 2 / unit * [-1/2, 1/2]
    query.bound = {
            double(squares),
            sign_share(double(d_), margin),
            std::sqrt(n_tables / 3.0) / unit * margin};
    return query;
}

SignFormula SignFilter::least(const SignQuery& query, float threshold) const {
    // the bound that is nearest where codes are near the threshold
    const double n = double(size_);
    const double y =
            (double(threshold) - query.expected.bias - sum_of_offsets_ / n) /
            (query.multiplier * (sum_of_scales_ / n));
    const SignBound bound = sign_bound(
            query.bound, {least_residual_, largest_residual_}, double(d_), y);
    const double multiplier = query.multiplier * bound.factor;
    SignFormula least = query.expected;
    least.slope = static_cast<float>(query.expected.slope * bound.factor);
    least.shift = static_cast<float>(
            query.expected.shift * bound.factor + multiplier * bound.shift);
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
        bool looks) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (filter_ &&
        (filter_->size() > ntotal || (looks && has_other_codes(tq, codes)))) {
        filter_.reset();
    }
    if (!filter_ || filter_->size() < ntotal) {
        // others that hold it go on with what they have
        auto filter = !filter_ ? std::make_shared<SignFilter>(tq)
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

void SignRecord::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    backoff_ = at_first;
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
        size_t n) {
    const bool looks = n_asked_++ % look_period == 0;
    return of_lists_[list_no].get(tq, codes, n, looks);
}

void ListSignFilters::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    of_lists_.clear();
    record.clear();
}

} // namespace faiss_turboquant
