// Every SIMD level equals the scalar one, bit for bit.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

#include "../awkward_sizes.h"

using namespace faiss_turboquant;

namespace {

std::vector<float> random_floats(size_t n, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

/// zero past n
std::vector<float> padded_floats(size_t n, unsigned seed, float factor = 1) {
    std::vector<float> x((n + 63) / 64 * 64);
    const std::vector<float> values = random_floats(n, seed);
    for (size_t i = 0; i < n; i++) {
        x[i] = values[i] * factor;
    }
    return x;
}

/// a buffer that ends where a page begins that nobody may touch
class ExactBytes {
   public:
    explicit ExactBytes(size_t n)
            : page_(sysconf(_SC_PAGESIZE)),
              size_((n + page_ - 1) / page_ * page_ + page_) {
        memory_ = static_cast<uint8_t*>(
                mmap(nullptr,
                     size_,
                     PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS,
                     -1,
                     0));
        uint8_t* const end = memory_ + size_ - page_;
        if (memory_ == MAP_FAILED || mprotect(end, page_, PROT_NONE) != 0) {
            throw std::bad_alloc();
        }
        data_ = end - n;
    }
    ~ExactBytes() {
        munmap(memory_, size_);
    }
    ExactBytes(const ExactBytes&) = delete;
    ExactBytes& operator=(const ExactBytes&) = delete;

    uint8_t* data() {
        return data_;
    }

   private:
    size_t page_, size_;
    uint8_t* memory_;
    uint8_t* data_;
};

class LevelTest : public testing::TestWithParam<SimdLevel> {
   protected:
    const Kernels& simd = kernels(GetParam());
    const Kernels& scalar = kernels(SimdLevel::scalar);
};

/// layouts of every nbits and awkward d, scalar and with a trellis
std::vector<CodeLayout> layouts(
        faiss::MetricType metric,
        std::initializer_list<size_t> more_d = {}) {
    std::vector<CodeLayout> all;
    std::vector<size_t> sizes(
            std::begin(awkward_sizes), std::end(awkward_sizes));
    sizes.insert(sizes.end(), more_d);
    for (size_t d : sizes) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            all.push_back(TurboQuantizer(d, nbits, metric).layout());
            for (int memory : {8, 10, 12}) {
                TurboQuantizer tq(
                        d,
                        nbits,
                        metric,
                        RotationType::Hadamard,
                        TurboQuantizer::default_seed,
                        8);
                if (memory > 8) {
                    // a trellis that no kernel was compiled for
                    Trellis& trellis = tq.codebook.trellis;
                    trellis.memory = memory;
                    for (uint16_t& taps : trellis.taps) {
                        taps = taps ? (taps << (memory - 8) | taps % 8) : 0;
                    }
                    tq.set_derived_values();
                }
                all.push_back(tq.layout());
            }
        }
    }
    return all;
}

std::vector<uint8_t> random_codes(
        const CodeLayout& layout,
        size_t n,
        unsigned seed) {
    std::vector<uint8_t> codes(n * layout.code_size);
    if (layout.has_trellis()) {
        // any bits are a code
        std::mt19937 rng(seed);
        for (uint8_t& byte : codes) {
            byte = rng();
        }
        return codes;
    }
    const Kernels& k = kernels(SimdLevel::scalar);
    for (size_t i = 0; i < n; i++) {
        const auto y = padded_floats(
                layout.d, seed + i, 1 / std::sqrt(float(layout.d)));
        float sum;
        k.encode(
                layout,
                y.data(),
                y.size(),
                1,
                nullptr,
                codes.data() + i * layout.code_size,
                &sum);
    }
    return codes;
}

std::vector<int8_t> random_query(const CodeLayout& layout, unsigned seed) {
    std::mt19937 rng(seed);
    std::vector<int8_t> q(layout.padded_dim());
    for (size_t i = 0; i < layout.d; i++) {
        // the extremes often: they are what could saturate
        const int r = rng() % 4;
        q[i] = r == 0 ? 127 : r == 1 ? -127 : int(rng() % 255) - 127;
    }
    return q;
}

int32_t sum_of(const std::vector<int8_t>& q) {
    int32_t sum = 0;
    for (int8_t v : q) {
        sum += v;
    }
    return sum;
}

} // namespace

TEST_P(LevelTest, Hadamard) {
    for (size_t n = 1; n <= 4096; n *= 2) {
        auto a = random_floats(n, n), b = a;
        scalar.hadamard(a.data(), n);
        simd.hadamard(b.data(), n);
        EXPECT_EQ(a, b) << n;
    }
}

TEST_P(LevelTest, RotationRound) {
    const auto expect_equal = [&](size_t size,
                                  const std::vector<size_t>& sizes) {
        const size_t d = std::accumulate(sizes.begin(), sizes.end(), size_t(0));
        const RotationBlocks blocks = {sizes.data(), sizes.size(), d};
        const size_t n_groups = d / size;
        std::vector<int32_t> starts(n_groups);
        for (size_t i = 0; i < n_groups; i++) {
            starts[i] = int32_t(i * 77 % n_groups * size);
        }
        const auto x = random_floats(d, 1), multiplier = random_floats(d, 2);
        std::vector<float> a(d), b(d);
        const auto run = [&](const Kernels& k, float* y) {
            k.rotation_round(
                    x.data(),
                    starts.data(),
                    size,
                    multiplier.data(),
                    blocks,
                    y);
        };
        run(scalar, a.data());
        run(simd, b.data());
        EXPECT_EQ(a, b) << size << " " << d;
        if (n_groups == 1) {
            b = x;
            simd.rotation_round(
                    b.data(),
                    starts.data(),
                    size,
                    multiplier.data(),
                    blocks,
                    b.data());
            EXPECT_EQ(a, b) << "in place, " << d;
        }
    };
    for (size_t size : {1, 2, 4, 8, 16}) {
        expect_equal(size, {size});
        expect_equal(size, {16 * size, 4 * size, size});
        expect_equal(size, {1024, 512, 16});
        expect_equal(size, {4096});
    }
    for (size_t d : {64, 256, 2048}) {
        expect_equal(d, {d});
    }
}

TEST_P(LevelTest, Matvec) {
    for (size_t cols : awkward_sizes) {
        const size_t rows = 5;
        const auto m = random_floats(rows * cols, 1),
                   x = random_floats(cols, 2);
        std::vector<float> a(rows), b(rows);
        scalar.matvec(m.data(), rows, cols, x.data(), a.data());
        simd.matvec(m.data(), rows, cols, x.data(), b.data());
        EXPECT_EQ(a, b) << cols;
    }
}

TEST_P(LevelTest, SumsAndScale) {
    for (size_t n = 1; n <= 1536; n += n < 70 ? 1 : 97) {
        const auto x = random_floats(n, n), y = random_floats(n, n + 1);
        EXPECT_EQ(
                scalar.sum_of_squares(x.data(), n),
                simd.sum_of_squares(x.data(), n));
        EXPECT_EQ(
                scalar.dot(x.data(), y.data(), n),
                simd.dot(x.data(), y.data(), n));
        std::vector<float> a(n), b(n);
        for (bool squared : {false, true}) {
            const double sum =
                    scalar.subtract(x.data(), y.data(), n, squared, a.data());
            EXPECT_EQ(
                    sum,
                    simd.subtract(x.data(), y.data(), n, squared, b.data()));
            EXPECT_EQ(a, b);
            EXPECT_EQ(
                    sum,
                    squared ? simd.sum_of_squares(b.data(), n)
                            : simd.dot(x.data(), y.data(), n));
        }
        scalar.scale(x.data(), 1 / 3.0, a.data(), n);
        simd.scale(x.data(), 1 / 3.0, b.data(), n);
        EXPECT_EQ(a, b);
    }
}

TEST_P(LevelTest, Encode) {
    const float factors[] = {1, 0.01f, 100, 0, 1, 0.3f};
    const size_t most = std::size(factors);
    for (const CodeLayout& layout : layouts(faiss::METRIC_L2)) {
        const size_t stride = layout.padded_dim() + 64;
        std::vector<float> y(most * stride);
        for (size_t i = 0; i < most; i++) {
            const auto vector = padded_floats(
                    layout.d, i, factors[i] / std::sqrt(float(layout.d)));
            std::copy(vector.begin(), vector.end(), &y[i * stride]);
        }
        const auto encoded = [&](const Kernels& k, size_t n) {
            // no byte past the last plane is written
            const size_t size = (n - 1) * layout.code_size +
                    layout.packed_size() + plane_slack;
            ExactBytes planes(size);
            std::memset(planes.data(), 0x55, size);
            std::vector<float> sums(n);
            std::vector<uint8_t> scratch(layout.scratch_size(), 0xff);
            k.encode(
                    layout,
                    y.data(),
                    stride,
                    n,
                    scratch.data(),
                    planes.data(),
                    sums.data());
            std::string bytes(planes.data(), planes.data() + size);
            return std::make_pair(bytes, sums);
        };
        const auto [bytes, sums] = encoded(scalar, most);
        for (size_t n : {size_t(1), size_t(3), most}) {
            const auto [simd_bytes, simd_sums] = encoded(simd, n);
            EXPECT_EQ(bytes.substr(0, simd_bytes.size()), simd_bytes)
                    << layout.d << " " << layout.nbits << " " << n;
            for (size_t i = 0; i < n; i++) {
                EXPECT_EQ(sums[i], simd_sums[i])
                        << layout.d << " " << layout.nbits << " " << i;
            }
        }
    }
}

TEST_P(LevelTest, Decode) {
    for (const CodeLayout& layout : layouts(faiss::METRIC_L2)) {
        const auto code = random_codes(layout, 1, 3);
        ExactBytes planes(layout.packed_size() + plane_slack);
        std::memcpy(planes.data(), code.data(), layout.packed_size());
        std::vector<uint8_t> a(layout.grid_size()), b(layout.grid_size());
        scalar.decode(layout, planes.data(), a.data());
        simd.decode(layout, planes.data(), b.data());
        a.resize(layout.d);
        b.resize(layout.d);
        EXPECT_EQ(a, b) << layout.d << " " << layout.nbits;
    }
}

TEST_P(LevelTest, QuantizeQuery) {
    for (size_t d : awkward_sizes) {
        for (float factor : {1.0f, 0.0f, 1e-30f}) {
            const auto y = padded_floats(d, d, factor);
            std::vector<int8_t> a(y.size()), b(y.size());
            int32_t sum = -1, simd_sum = -2;
            EXPECT_EQ(
                    scalar.quantize_query(y.data(), y.size(), a.data(), &sum),
                    simd.quantize_query(
                            y.data(), y.size(), b.data(), &simd_sum));
            EXPECT_EQ(sum, simd_sum);
            EXPECT_EQ(sum, std::accumulate(a.begin(), a.end(), 0));
            EXPECT_EQ(a, b) << d;
        }
    }
}

/// planes of several registers, and what is left of them; planes of less than
/// one register
constexpr std::initializer_list<size_t> wide_sizes =
        {288, 300, 320, 600, 768, 1000, 88, 90, 104, 112, 152, 160, 192, 224};

TEST_P(LevelTest, DotCodes) {
    for (const CodeLayout& layout :
         layouts(faiss::METRIC_INNER_PRODUCT, wide_sizes)) {
        const auto q = random_query(layout, 11);
        std::vector<int8_t> arranged(simd.query_size(layout));
        simd.arrange_query(layout, q.data(), arranged.data());
        for (size_t n : {size_t(1), size_t(3), size_t(4), size_t(9)}) {
            const auto codes = random_codes(layout, n, 5);
            ExactBytes exact(codes.size());
            std::memcpy(exact.data(), codes.data(), codes.size());
            std::vector<uint32_t> rows(n);
            for (size_t i = 0; i < n; i++) {
                rows[i] = (i * 5 + 1) % n;
            }
            for (const uint32_t* r :
                 {static_cast<const uint32_t*>(nullptr),
                  static_cast<const uint32_t*>(rows.data())}) {
                std::vector<int32_t> a(n), b(n);
                scalar.dot_codes(
                        layout,
                        exact.data(),
                        r,
                        n,
                        q.data(),
                        sum_of(q),
                        a.data());
                simd.dot_codes(
                        layout,
                        exact.data(),
                        r,
                        n,
                        arranged.data(),
                        sum_of(q),
                        b.data());
                EXPECT_EQ(a, b) << layout.d << " " << layout.nbits << " " << n;
            }
        }
    }
}

TEST_P(LevelTest, Panels) {
    for (const CodeLayout& layout : layouts(faiss::METRIC_L2, wide_sizes)) {
        const size_t nq = simd.tile_queries;
        const size_t quads = layout.panel_quads(simd);
        const size_t query_stride = quads * 4 + 64;
        std::vector<std::vector<int8_t>> queries;
        std::vector<int8_t> tile(nq * query_stride, 99);
        for (size_t k = 0; k < nq; k++) {
            queries.push_back(random_query(layout, 23 + k));
            std::copy_n(
                    queries[k].begin(),
                    quads * 4,
                    tile.begin() + k * query_stride);
        }
        size_t n_queries = 0;
        for (size_t n : {16, 5, 48, 64, 70, 96}) {
            // every size of a tile in turn, and rows in some order or none
            n_queries = n_queries % nq + 1;
            std::vector<uint32_t> order(n);
            for (size_t i = 0; i < n; i++) {
                order[i] = n_queries % 2 ? (i * 5 + 1) % n : i;
            }
            const uint32_t* rows = n_queries % 2 ? order.data() : nullptr;
            const auto random = random_codes(layout, n, 17);
            ExactBytes codes(random.size());
            std::memcpy(codes.data(), random.data(), random.size());

            const size_t n_panels = (n + panel_rows - 1) / panel_rows;
            const size_t stride = panel_rows * layout.padded_dim();
            std::vector<uint8_t> scratch(layout.panel_scratch_size());
            std::vector<uint8_t> panels(8 * stride);
            for (size_t i = 0; i < n; i += panel_rows) {
                simd.decode_panel(
                        layout,
                        rows ? codes.data()
                             : codes.data() + i * layout.code_size,
                        rows ? rows + i : nullptr,
                        std::min(panel_rows, n - i),
                        scratch.data(),
                        panels.data() + i / panel_rows * stride);
            }
            const size_t out_stride = 8 * panel_rows;
            std::vector<int32_t> out(out_stride * nq);
            simd.dot_panels(
                    panels.data(),
                    stride,
                    n_panels,
                    tile.data(),
                    n_queries,
                    query_stride,
                    quads,
                    out.data(),
                    out_stride);
            std::vector<int32_t> expected(n);
            for (size_t k = 0; k < n_queries; k++) {
                scalar.dot_codes(
                        layout,
                        codes.data(),
                        rows,
                        n,
                        queries[k].data(),
                        sum_of(queries[k]),
                        expected.data());
                const auto row = out.begin() + k * out_stride;
                EXPECT_EQ(expected, std::vector<int32_t>(row, row + n))
                        << layout.d << " " << layout.nbits << " " << n;
            }
        }
    }
}

TEST_P(LevelTest, Select) {
    std::mt19937 rng(1);
    const QueryFactors factors = {-321, 0.0037f, 12.5f};
    for (size_t n : awkward_sizes) {
        // what is past the end must not matter
        const size_t room =
                (n + select_slack - 1) / select_slack * select_slack;
        std::vector<int32_t> dots(room);
        for (int32_t& dot : dots) {
            dot = int(rng() % 2000000) - 1000000;
        }
        const auto scales = random_floats(room, 2);
        const auto offsets = random_floats(room, 3);
        for (float sign : {1.0f, -1.0f}) {
            for (float threshold : {INFINITY, 0.0f, -INFINITY}) {
                std::vector<float> ka(n + select_slack), kb(ka);
                std::vector<uint32_t> pa(n + select_slack), pb(pa);
                const float* given = n % 2 ? offsets.data() : nullptr;
                const auto run = [&](const Kernels& k, auto& keys, auto& at) {
                    const size_t kept = k.select(
                            factors,
                            dots.data(),
                            scales.data(),
                            given,
                            n,
                            sign,
                            threshold,
                            keys.data(),
                            at.data());
                    keys.resize(kept);
                    at.resize(kept);
                };
                run(scalar, ka, pa);
                run(simd, kb, pb);
                EXPECT_EQ(ka, kb);
                EXPECT_EQ(pa, pb);
            }
        }
    }
}

TEST_P(LevelTest, PackSigns) {
    std::mt19937 rng(4);
    for (size_t d : awkward_sizes) {
        SCOPED_TRACE(d);
        std::vector<uint8_t> grid((d + 63) / 64 * 64);
        for (uint8_t& g : grid) {
            g = rng() % 64; // past d too, where it does not count
        }
        for (size_t stride : {size_t(1), sign_block}) {
            const auto run = [&](const Kernels& k, int large, bool has_sizes) {
                std::vector<uint8_t> signs((d + 7) / 8 * stride, 0xa5);
                std::vector<uint8_t> sizes(signs);
                const LevelSums sums = k.pack_signs(
                        grid.data(),
                        d,
                        large,
                        signs.data(),
                        has_sizes ? sizes.data() : nullptr,
                        stride);
                return std::tuple(
                        signs,
                        sizes,
                        sums.magnitudes,
                        sums.squares,
                        sums.large_magnitudes,
                        sums.n_large);
            };
            for (int large : {0, 1, 19, 20, 63, 64}) {
                for (bool has_sizes : {false, true}) {
                    EXPECT_EQ(
                            run(scalar, large, has_sizes),
                            run(simd, large, has_sizes));
                }
            }
        }
    }
}

TEST(PackSigns, SecondPlaneWeighsMagnitudes) {
    // levels of -63, -21, -19, 1, 19, 21, 63
    const std::vector<uint8_t> grid = {0, 21, 22, 32, 41, 42, 63};
    uint8_t signs, sizes;
    const LevelSums sums = kernels(SimdLevel::scalar)
                                   .pack_signs(
                                           grid.data(),
                                           grid.size(),
                                           /*large=*/20,
                                           &signs,
                                           &sizes,
                                           1);
    const int expected[] = {-3, -3, -1, 1, 1, 3, 3};
    for (size_t i = 0; i < grid.size(); i++) {
        const int s = signs >> i & 1 ? 1 : -1, t = sizes >> i & 1 ? 1 : -1;
        EXPECT_EQ(expected[i], 2 * s + t);
    }
    EXPECT_EQ(63 + 21 + 19 + 1 + 19 + 21 + 63, sums.magnitudes);
    EXPECT_EQ(2 * (63 * 63 + 21 * 21 + 19 * 19) + 1, sums.squares);
    EXPECT_EQ(2 * (63 + 21), sums.large_magnitudes);
    EXPECT_EQ(4, sums.n_large);
}

TEST_P(LevelTest, FillSignTables) {
    std::mt19937 rng(9);
    for (size_t n : {1, 2, 3, 96}) {
        std::vector<int8_t> q(4 * n);
        for (int8_t& value : q) {
            value = rng() % 4 ? int(rng() % 255) - 127 : 127;
        }
        for (int16_t half : {0, 130}) {
            const int16_t factor = 65536 * 31 / (4 * 127 + half / 16);
            const auto run = [&](const Kernels& k) {
                ExactBytes tables(16 * n);
                k.fill_sign_tables(q.data(), n, factor, half, tables.data());
                return std::vector<uint8_t>(
                        tables.data(), tables.data() + 16 * n);
            };
            EXPECT_EQ(run(scalar), run(simd));
            const auto tables = run(simd);
            EXPECT_LE(
                    *std::max_element(tables.begin(), tables.end()),
                    max_sign_entry);
        }
    }
}

TEST_P(LevelTest, SumSigns) {
    std::mt19937 rng(5);
    for (size_t n_bytes : {4, 8, 12, 48, 192, 2048}) {
        SCOPED_TRACE(n_bytes);
        // sums of any table fit in 16 bits
        const int most = std::min<int>(max_sign_entry, 65535 / (2 * n_bytes));
        std::vector<uint8_t> entries(7 * n_bytes * 32);
        for (uint8_t& entry : entries) {
            entry = rng() % 4 ? most : rng() % (most + 1);
        }
        std::vector<const uint8_t*> tables;
        for (size_t q = 0; q < 7; q++) {
            tables.push_back(&entries[q * n_bytes * 32]);
        }
        ExactBytes block(n_bytes * sign_block);
        std::generate_n(block.data(), n_bytes * sign_block, std::ref(rng));
        for (size_t n_queries = 1; n_queries <= 7; n_queries++) {
            const auto run = [&](const Kernels& k) {
                const size_t stride = sign_block + 8;
                std::vector<uint16_t> sums(n_queries * stride);
                k.sum_signs(
                        block.data(),
                        tables.data(),
                        n_queries,
                        n_bytes,
                        sums.data(),
                        stride);
                return sums;
            };
            EXPECT_EQ(run(scalar), run(simd));
        }
    }
}

TEST_P(LevelTest, FilterSigns) {
    std::mt19937 rng(6);
    const size_t n_blocks = 4, n = n_blocks * sign_block;
    const std::vector<float> scales = random_floats(n, 7);
    const std::vector<float> offsets = random_floats(n, 8);
    const std::vector<float> residuals = random_floats(n, 9);
    std::vector<uint16_t> signs(n), sizes(n);
    for (size_t i = 0; i < n; i++) {
        signs[i] = rng();
        sizes[i] = rng();
    }
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float* of_codes : {offsets.data(), (const float*)nullptr}) {
        for (bool has_sizes : {true, false}) {
            const uint16_t* second = has_sizes ? sizes.data() : nullptr;
            SignFormula formula = {-0.01f, 300.0f, 40.0f, 0.7f};
            formula.slope /= second ? weigh_sums(1, 1) : 1;
            std::vector<float> thresholds = {-infinity, infinity, NAN, 0};
            for (size_t i = 0; i < n; i++) {
                // equal to a key, which is not below it
                thresholds.push_back(sign_key(
                        formula,
                        second ? weigh_sums(signs[i], sizes[i]) : signs[i],
                        scales[i],
                        residuals[i],
                        of_codes ? of_codes[i] : 0));
            }
            size_t below = 0;
            for (float threshold : thresholds) {
                const auto run = [&](const Kernels& k) {
                    std::vector<uint64_t> left(n_blocks, ~uint64_t(0));
                    left[1] = 0;
                    left[2] = 0x123456789abcdef0;
                    const size_t n_left = k.filter_signs(
                            formula,
                            signs.data(),
                            second,
                            {scales.data(), residuals.data(), of_codes},
                            n_blocks,
                            threshold,
                            left.data());
                    size_t counted = 0;
                    for (uint64_t word : left) {
                        counted += __builtin_popcountll(word);
                    }
                    EXPECT_EQ(counted, n_left);
                    EXPECT_EQ(0u, left[1]);
                    EXPECT_EQ(0u, left[2] & ~0x123456789abcdef0);
                    return left;
                };
                EXPECT_EQ(run(scalar), run(simd)) << threshold;
                below += __builtin_popcountll(run(simd)[0]);
            }
            EXPECT_GT(below, thresholds.size() * sign_block / 4);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
        Levels,
        LevelTest,
        testing::ValuesIn(available_levels()),
        [](const auto& info) { return std::string(level_name(info.param)); });

TEST(Levels, UnavailableIsRefused) {
    const auto available = available_levels();
    ASSERT_EQ(SimdLevel::scalar, available.front());
    for (SimdLevel level :
         {SimdLevel::sse4,
          SimdLevel::avx2,
          SimdLevel::avx2_vnni,
          SimdLevel::avx512,
          SimdLevel::avx512_vnni,
          SimdLevel::amx,
          SimdLevel::neon,
          SimdLevel::neon_dot}) {
        if (std::count(available.begin(), available.end(), level)) {
            EXPECT_EQ(level, kernels(level).level);
        } else {
            EXPECT_THROW(kernels(level), faiss::FaissException);
        }
    }
}

#if defined(__x86_64__)
/// __builtin_cpu_supports of older clang does not know it
bool cpu_has_avx_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __builtin_cpu_supports("avx2") &&
            __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 4);
}
#endif

/// what the CPU has must be in the build: a level that quietly went missing
/// would make every comparison above pass
TEST(Levels, CpuFeaturesAreUsed) {
#if defined(__x86_64__)
    const auto available = available_levels();
    const auto has = [&](SimdLevel level) {
        return std::count(available.begin(), available.end(), level) > 0;
    };
#ifndef FAISS_TURBOQUANT_SANITIZERS // which leave these two out
    EXPECT_EQ(bool(__builtin_cpu_supports("sse4.2")), has(SimdLevel::sse4));
    EXPECT_EQ(
            __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq"),
            has(SimdLevel::avx512));
#endif
    EXPECT_EQ(bool(__builtin_cpu_supports("avx2")), has(SimdLevel::avx2));
    EXPECT_EQ(cpu_has_avx_vnni(), has(SimdLevel::avx2_vnni));
    EXPECT_EQ(
            __builtin_cpu_supports("avx512vnni") &&
                    __builtin_cpu_supports("avx512vbmi2") &&
                    __builtin_cpu_supports("avx512bitalg"),
            has(SimdLevel::avx512_vnni));
#elif defined(__aarch64__) && defined(__linux__)
    std::vector<SimdLevel> expected = {SimdLevel::scalar, SimdLevel::neon};
    const unsigned long features = getauxval(AT_HWCAP);
    if ((features & HWCAP_ASIMDDP) && (features & HWCAP_AES)) {
        expected.push_back(SimdLevel::neon_dot);
    }
    EXPECT_EQ(expected, available_levels());
#endif
}

TEST(Levels, TheLastIsTheDefault) {
    if (std::getenv("TQ_SIMD_LEVEL")) {
        GTEST_SKIP() << "TQ_SIMD_LEVEL chooses";
    }
    EXPECT_EQ(available_levels().back(), current_level());
}
