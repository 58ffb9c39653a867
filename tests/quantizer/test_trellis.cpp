// Trellis codes: the format against the definition, the error, bad input.

#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

#include <faiss_turboquant/kernels/trellis_tables.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

using namespace faiss_turboquant;

namespace {

TurboQuantizer make_quantizer(size_t d, int nbits, int memory) {
    return TurboQuantizer(
            d,
            nbits,
            faiss::METRIC_INNER_PRODUCT,
            RotationType::Hadamard,
            TurboQuantizer::default_seed,
            memory);
}

/// uniform on the sphere; (padded_dim,), zero past d
std::vector<float> random_direction(const CodeLayout& layout, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<double> normal;
    std::vector<float> y(layout.padded_dim());
    double squares = 0;
    for (size_t i = 0; i < layout.d; i++) {
        y[i] = normal(rng);
        squares += double(y[i]) * y[i];
    }
    for (float& v : y) {
        v /= std::sqrt(squares);
    }
    return y;
}

/// the bits of a plane of b-bit fields over 8 ceil(d / 8) coordinates
int field(const uint8_t* plane, size_t d, int b, size_t t) {
    const size_t bytes = (d + 7) / 8 * b;
    return plane[t % bytes] >> (t / bytes * b) & ((1 << b) - 1);
}

/// Decodes with a shift register, a coordinate at a time, as a convolutional
/// encoder runs.
std::vector<int> walk_trellis(
        const CodeLayout& layout,
        const TrellisCode& code,
        const uint8_t* planes) {
    const size_t m = (layout.d + 7) / 8;
    std::vector<int> grid(layout.d);
    std::vector<int> shift_register(code.memory + 1);
    for (size_t t = 0; t < layout.d; t++) {
        shift_register.pop_back();
        shift_register.insert(
                shift_register.begin(), field(planes, layout.d, 1, t));
        const bool sign = code.nbits > 1 && field(planes + m, layout.d, 1, t);
        int index = 0;
        const int parities = code.nbits == 3 ? 3 : code.nbits == 4 ? 2 : 4;
        for (int p = 0; p < parities; p++) {
            int bit = sign ? code.sign_mask >> p & 1 : 0;
            for (int k = 0; k <= code.memory; k++) {
                bit ^= (code.taps[p] >> k & 1) & shift_register[k];
            }
            index += bit << p;
        }
        if (code.nbits == 3) {
            index += field(planes + 2 * m, layout.d, 1, t) << 3;
        } else if (code.nbits == 4) {
            index += field(planes + 2 * m, layout.d, 2, t) << 2;
        }
        grid[t] = sign ? 63 - code.grid[index] : code.grid[index];
    }
    return grid;
}

} // namespace

TEST(Trellis, DecodesAsTheDefinitionSays) {
    std::mt19937 rng(5);
    for (const TrellisCode& code : trellis_codes) {
        for (size_t d : {1, 9, 63, 64, 72, 88, 100, 200, 300, 320, 384, 1536}) {
            const auto tq = make_quantizer(d, code.nbits, code.memory);
            std::vector<uint8_t> planes(tq.code_size);
            for (uint8_t& byte : planes) {
                byte = rng();
            }
            std::vector<uint8_t> grid(tq.layout().grid_size());
            kernels().decode(tq.layout(), planes.data(), grid.data());
            EXPECT_EQ(
                    walk_trellis(tq.layout(), code, planes.data()),
                    std::vector<int>(grid.begin(), grid.begin() + d))
                    << d << " " << code.nbits << " " << code.memory;
        }
    }
}

TEST(Trellis, CodesAreAsLongAsScalarOnes) {
    for (size_t d : {1, 7, 8, 100, 384}) {
        for (int nbits = 1; nbits <= 4; nbits++) {
            EXPECT_EQ(
                    nbits * ((d + 7) / 8),
                    make_quantizer(d, nbits, 8).packed_size());
        }
    }
}

/// the best of Lloyd-Max is 0.363, 0.1175, 0.0345, 0.0095
TEST(Trellis, MeanSquaredError) {
    const double bounds[] = {0.276, 0.0720, 0.0195, 0.0059};
    const size_t d = 1536, n = 400;
    const Kernels& k = kernels();
    for (const TrellisCode& code : trellis_codes) {
        const auto tq = make_quantizer(d, code.nbits, code.memory);
        const CodeLayout& layout = tq.layout();
        std::vector<uint8_t> planes(layout.packed_size() + plane_slack);
        std::vector<uint8_t> scratch(layout.scratch_size());
        std::vector<uint8_t> grid(layout.grid_size());
        double error = 0;
        for (size_t i = 0; i < n; i++) {
            const auto y = random_direction(layout, i);
            float product;
            k.encode(
                    layout,
                    y.data(),
                    y.size(),
                    1,
                    scratch.data(),
                    planes.data(),
                    &product);
            k.decode(layout, planes.data(), grid.data());
            double expected = 0;
            for (size_t j = 0; j < d; j++) {
                const double level =
                        tq.codebook.level(grid[j]) / std::sqrt(double(d));
                error += (y[j] - level) * (y[j] - level);
                expected += y[j] * (2.0 * grid[j] - 63);
            }
            EXPECT_NEAR(expected, product, 1e-4 * std::fabs(expected));
        }
        EXPECT_LE(error / n, bounds[code.nbits - 1])
                << code.nbits << " " << code.memory;
        EXPECT_NEAR(
                tq.codebook.mean_squared_error(d), error / n, 0.02 * error / n)
                << code.nbits << " " << code.memory;
    }
}

/// no path through so few coordinates is better than the encoder's by more
/// than the rounding of its costs
TEST(Trellis, EncoderFindsTheBestPath) {
    const size_t d = 10;
    for (int nbits = 1; nbits <= 2; nbits++) {
        const auto tq = make_quantizer(d, nbits, 8);
        const CodeLayout& layout = tq.layout();
        std::vector<uint8_t> planes(layout.packed_size() + plane_slack);
        std::vector<uint8_t> scratch(layout.scratch_size());
        std::vector<uint8_t> grid(layout.grid_size());
        const auto y = random_direction(layout, 3);
        const auto error = [&] {
            kernels().decode(layout, planes.data(), grid.data());
            double sum = 0;
            for (size_t j = 0; j < d; j++) {
                const double e = y[j] * std::sqrt(double(d)) -
                        tq.codebook.level(grid[j]);
                sum += e * e;
            }
            return sum;
        };
        float product;
        kernels().encode(
                layout,
                y.data(),
                y.size(),
                1,
                scratch.data(),
                planes.data(),
                &product);
        const double found = error();
        double best = HUGE_VAL;
        for (int bits = 0; bits < 1 << (d * nbits); bits++) {
            planes.assign(planes.size(), 0);
            for (size_t t = 0; t < d; t++) {
                planes[t % 2] |= (bits >> t & 1) << (t / 2);
                if (nbits == 2) {
                    planes[2 + t % 2] |= (bits >> (d + t) & 1) << (t / 2);
                }
            }
            best = std::min(best, error());
        }
        EXPECT_LE(found, best * 1.05 + 1e-6) << nbits;
    }
}

TEST(Trellis, BadInputIsRefused) {
    EXPECT_THROW(Codebook::trellis_coded(0, 8), faiss::FaissException);
    EXPECT_THROW(Codebook::trellis_coded(2, 7), faiss::FaissException);
    const auto refused = [](auto change) {
        auto tq = make_quantizer(64, 3, 8);
        change(tq.codebook);
        EXPECT_THROW(tq.set_derived_values(), faiss::FaissException);
    };
    refused([](Codebook& c) { c.trellis.memory = 13; });
    refused([](Codebook& c) { c.trellis.memory = -1; });
    refused([](Codebook& c) { c.trellis.memory = 0; });
    refused([](Codebook& c) { c.trellis.taps[0] = 01000; });
    refused([](Codebook& c) { c.trellis.taps[3] = 1; });
    refused([](Codebook& c) { c.trellis.sign_mask = 8; });
    refused([](Codebook& c) { c.positions[2] = 64; });
    refused([](Codebook& c) { c.positions[2] = 31; });
    refused([](Codebook& c) { c.positions.pop_back(); });
    refused([](Codebook& c) { c.trellis_error = NAN; });
}
