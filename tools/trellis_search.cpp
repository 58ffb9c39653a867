// Searches trellis codes: taps, grid positions and step together, by random
// draws and local changes, and prints rows of kernels/trellis_tables.h.
//
//   trellis_search --bits 2 --memory 8 --seconds 600 [--seed 1] [--dim 1536]
//                  [--parities P] [--keep 5] [--state FILE]
//
// The error is measured with the library's own encoder, on vectors that are
// uniform on the sphere. Each thread walks by itself. A FILE keeps the best
// codes: a later run goes on from them. --parities below what the bits allow
// leaves the other taps 0.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <omp.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/kernels/trellis_tables.h>

using namespace faiss_turboquant;

namespace {

using Random = std::mt19937_64;

struct Options {
    int bits = 2;
    int memory = 8;
    int parities = 0; // 0: as many as the bits allow
    double seconds = 60;
    uint64_t seed = 1;
    size_t dim = 1536;
    size_t keep = 5;
    std::string state;
};

/// a code; its grid has partners at index ^ mirror when bits = 1
struct Code {
    Trellis trellis;
    uint8_t grid[16] = {};
    float step = 0;
    int mirror = 0;
    double error = HUGE_VAL;
};

/// vectors of squared norm dim, each with padded_dim entries
struct Sample {
    size_t dim;
    size_t padded;
    std::vector<std::vector<float>> vectors;

    Sample(size_t dim, size_t n, uint64_t seed)
            : dim(dim), padded((dim + 63) / 64 * 64) {
        Random rng(seed);
        std::normal_distribution<double> normal;
        for (size_t i = 0; i < n; i++) {
            std::vector<float> y(padded);
            double squares = 0;
            for (size_t j = 0; j < dim; j++) {
                y[j] = static_cast<float>(normal(rng));
                squares += double(y[j]) * y[j];
            }
            const double factor = std::sqrt(double(dim) / squares);
            for (float& v : y) {
                v = static_cast<float>(v * factor);
            }
            vectors.push_back(y);
        }
    }
};

/// sums for the centroid of each index
struct Centroids {
    double sum[16] = {};
    double count[16] = {};
};

class Evaluator {
   public:
    Evaluator(int bits, size_t dim) : bits_(bits) {
        layout_.d = dim;
        layout_.nbits = bits;
    }

    /** Mean squared error per coordinate, or infinity as soon as it is clear
     * that it exceeds `limit`. */
    double error(
            const Code& code,
            const Sample& sample,
            double limit,
            Centroids* centroids = nullptr) {
        layout_.trellis = code.trellis;
        std::copy_n(code.grid, 16, layout_.grid);
        layout_.half_steps = 2 / code.step;
        layout_.tables =
                make_trellis_tables(code.trellis, bits_, code.grid, code.step);
        planes_.resize(layout_.packed_size());
        scratch_.resize(layout_.scratch_size());
        grid_.resize(layout_.padded_dim());
        double sum = 0;
        size_t n = 0;
        for (const std::vector<float>& y : sample.vectors) {
            float product;
            kernels().encode(
                    layout_,
                    y.data(),
                    y.size(),
                    1,
                    scratch_.data(),
                    planes_.data(),
                    &product);
            kernels().decode(layout_, planes_.data(), grid_.data());
            for (size_t j = 0; j < layout_.d; j++) {
                const double e = y[j] - (grid_[j] - 31.5) * code.step;
                sum += e * e;
            }
            if (centroids) {
                add_centroids(y, *centroids);
            }
            n += layout_.d;
            // 4 vectors tell apart what differs by 3 %
            if (n == 4 * layout_.d && sum / double(n) > limit * 1.03) {
                return HUGE_VAL;
            }
        }
        return sum / double(n);
    }

   private:
    void add_centroids(const std::vector<float>& y, Centroids& c) {
        const size_t m = layout_.plane_size(1);
        uint32_t w = 0;
        for (size_t t = 0; t < layout_.d; t++) {
            const auto bit = [&](const uint8_t* plane) {
                return plane[t % m] >> (t / m) & 1;
            };
            w = w << 1 | bit(planes_.data());
            const bool sign = bits_ > 1 && bit(&planes_[m]);
            int index = layout_.trellis.subset(w) ^
                    (sign ? layout_.trellis.sign_mask : 0);
            if (bits_ == 3) {
                index |= bit(&planes_[2 * m]) << 3;
            } else if (bits_ == 4) {
                const int others =
                        planes_[2 * m + t % (2 * m)] >> (t / (2 * m) * 2);
                index |= (others & 3) << 2;
            }
            c.sum[index] += sign ? -y[t] : y[t];
            c.count[index]++;
        }
    }

    int bits_;
    CodeLayout layout_;
    std::vector<uint8_t> planes_, scratch_, grid_;
};

int clamp_position(int bits, double g) {
    const int lowest = bits == 1 ? 0 : 32;
    return std::clamp(int(std::floor(g + 0.5)), lowest, 63);
}

void set_position(int bits, Code& code, int index, int g) {
    code.grid[index] = static_cast<uint8_t>(g);
    if (bits == 1) {
        code.grid[index ^ code.mirror] = static_cast<uint8_t>(63 - g);
    }
}

/// the levels go to the centroids, as near as the grid allows
Code to_centroids(int bits, Code code, const Centroids& c, float step) {
    code.step = step;
    for (int i = 0; i < 16; i++) {
        double sum = c.sum[i], count = c.count[i];
        if (bits == 1) {
            sum -= c.sum[i ^ code.mirror];
            count += c.count[i ^ code.mirror];
        }
        if (count > 0) {
            set_position(
                    bits,
                    code,
                    i,
                    clamp_position(bits, sum / count / step + 31.5));
        }
    }
    return code;
}

void random_taps(const Options& options, Code& code, Random& rng) {
    for (int p = 0; p < options.parities; p++) {
        code.trellis.taps[p] = rng() & ((2u << options.memory) - 1);
    }
}

/// the newest and the oldest bit must count, or states are wasted
bool uses_whole_memory(const Trellis& trellis) {
    int all = 0;
    for (uint16_t taps : trellis.taps) {
        all |= taps;
    }
    return (all & 1) && (all >> trellis.memory & 1);
}

Code change(const Options& options, Code code, Random& rng) {
    const int kind = int(rng() % 16);
    const int p = int(rng() % options.parities);
    const auto random_bit = [&] { return 1u << rng() % (options.memory + 1); };
    if (kind < 6) {
        code.trellis.taps[p] ^= random_bit();
    } else if (kind < 9) {
        code.trellis.taps[p] ^= random_bit();
        code.trellis.taps[rng() % options.parities] ^= random_bit();
    } else if (kind < 15) {
        const int i = int(rng() % 16);
        const int g = code.grid[i] + (rng() % 2 ? 1 : -1);
        set_position(options.bits, code, i, clamp_position(options.bits, g));
    } else {
        code.step *= 1 + (double(rng() % 2001) - 1000) * 2e-5;
    }
    return code;
}

/// the same code in the basis of parities that takes the fewest XORs
Code cheapest_basis(const Options& options, const Code& code) {
    const int parities = options.parities;
    const int n = 1 << parities;
    std::vector<int> combined(n); // taps of the sum of the parities in a set
    for (int set = 0; set < n; set++) {
        for (int p = 0; p < parities; p++) {
            combined[set] ^= set >> p & 1 ? code.trellis.taps[p] : 0;
        }
    }
    const auto parity = [](int x) { return __builtin_popcount(x) & 1; };
    Code best = code;
    int least = INT32_MAX;
    std::vector<int> basis(parities);
    for (int sets = 0; sets < 1 << (4 * parities); sets++) {
        int cost = 0;
        bool ascending = true;
        for (int p = 0; p < parities; p++) {
            basis[p] = sets >> (4 * p) & 15;
            ascending &= basis[p] > (p ? basis[p - 1] : 0) && basis[p] < n;
        }
        if (!ascending) {
            continue;
        }
        int sign_mask = 0;
        for (int p = 0; p < parities; p++) {
            cost += __builtin_popcount(combined[basis[p]]) - 1;
            sign_mask |= parity(code.trellis.sign_mask & basis[p]) << p;
        }
        cost += __builtin_popcount(sign_mask);
        // where each subset goes; all different if this is a basis
        std::vector<int> to(n);
        int seen = 0;
        for (int z = 0; z < n; z++) {
            for (int p = 0; p < parities; p++) {
                to[z] |= parity(z & basis[p]) << p;
            }
            seen |= 1 << to[z];
        }
        if (cost >= least || seen != (1 << n) - 1) {
            continue;
        }
        least = cost;
        best = code;
        best.trellis.sign_mask = static_cast<uint8_t>(sign_mask);
        best.mirror = to[code.mirror % n];
        for (int p = 0; p < parities; p++) {
            best.trellis.taps[p] = static_cast<uint16_t>(combined[basis[p]]);
        }
        for (int i = 0; i < 16; i++) {
            best.grid[(i & ~(n - 1)) | to[i & (n - 1)]] = code.grid[i];
        }
    }
    return best;
}

void print_row(const Options& options, const Code& code) {
    const Code row = cheapest_basis(options, code);
    std::printf(
            "        {%d,\n         %d,\n         {",
            options.bits,
            options.memory);
    for (int p = 0; p < 4; p++) {
        const int taps = row.trellis.taps[p];
        std::printf("%s%s%o", p ? ", " : "", taps ? "0" : "", taps);
    }
    std::printf("},\n         %d,\n         {", row.trellis.sign_mask);
    for (int i = 0; i < 16; i++) {
        std::printf("%s%d", i ? ", " : "", row.grid[i]);
    }
    std::printf(
            "},\n         %.9gf,\n         %.5ff},\n", code.step, code.error);
}

/// a code of the table with the same bits: its levels are a start for others
Code shipped_code(const Options& options) {
    Code code;
    for (const TrellisCode& row : trellis_codes) {
        if (row.nbits == options.bits &&
            (code.step == 0 || row.memory == options.memory)) {
            code.trellis.memory = row.memory;
            std::copy_n(row.taps, 4, code.trellis.taps);
            code.trellis.sign_mask = row.sign_mask;
            std::copy_n(row.grid, 16, code.grid);
            code.step = row.step;
        }
    }
    for (int mirror = 1; mirror < 16 && options.bits == 1; mirror++) {
        bool all = true;
        for (int i = 0; i < 16; i++) {
            all &= code.grid[i] + code.grid[i ^ mirror] == 63;
        }
        code.mirror = all ? mirror : code.mirror;
    }
    return code;
}

std::vector<Code> read_state(const Options& options, const Code& like) {
    std::vector<Code> codes;
    std::ifstream in(options.state);
    std::string line;
    while (!options.state.empty() && std::getline(in, line)) {
        std::istringstream fields(line);
        Code code = like;
        int bits, value;
        fields >> bits >> code.trellis.memory >> code.error >> code.step >>
                code.mirror;
        fields >> value;
        code.trellis.sign_mask = static_cast<uint8_t>(value);
        for (uint16_t& taps : code.trellis.taps) {
            fields >> taps;
        }
        for (uint8_t& g : code.grid) {
            fields >> value;
            g = static_cast<uint8_t>(value);
        }
        if (fields && bits == options.bits &&
            code.trellis.memory == options.memory) {
            codes.push_back(code);
        }
    }
    return codes;
}

void write_state(const Options& options, const std::vector<Code>& codes) {
    if (options.state.empty()) {
        return;
    }
    std::ofstream out(options.state);
    out.precision(9);
    for (const Code& code : codes) {
        out << options.bits << ' ' << options.memory << ' ' << code.error << ' '
            << code.step << ' ' << code.mirror << ' '
            << int(code.trellis.sign_mask);
        for (uint16_t taps : code.trellis.taps) {
            out << ' ' << taps;
        }
        for (uint8_t g : code.grid) {
            out << ' ' << int(g);
        }
        out << '\n';
    }
}

[[noreturn]] void usage() {
    std::fprintf(
            stderr,
            "usage: trellis_search --bits 1..4 --memory 8..12 --seconds N "
            "[--seed S] [--dim D] [--parities P] [--keep N] [--state FILE]\n");
    std::exit(2);
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            usage();
        }
        const char* value = argv[i + 1];
        if (name == "--bits") {
            options.bits = std::atoi(value);
        } else if (name == "--memory") {
            options.memory = std::atoi(value);
        } else if (name == "--parities") {
            options.parities = std::atoi(value);
        } else if (name == "--seconds") {
            options.seconds = std::atof(value);
        } else if (name == "--seed") {
            options.seed = std::strtoull(value, nullptr, 10);
        } else if (name == "--dim") {
            options.dim = std::strtoull(value, nullptr, 10);
        } else if (name == "--keep") {
            options.keep = std::strtoull(value, nullptr, 10);
        } else if (name == "--state") {
            options.state = value;
        } else {
            usage();
        }
    }
    if (options.bits < 1 || options.bits > 4 ||
        options.memory < Trellis::min_memory ||
        options.memory > Trellis::max_memory || options.dim < 64) {
        usage();
    }
    const int most = n_parities(options.bits);
    options.parities = options.parities ? options.parities : most;
    if (options.parities < 2 || options.parities > most) {
        usage();
    }
    return options;
}

} // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
        return std::chrono::duration<double>(
                       std::chrono::steady_clock::now() - start)
                .count();
    };
    // changes are tried on a few vectors; what is kept is judged by many more,
    // or the search would fit the few
    const size_t few = std::max<size_t>(4, 49152 / options.dim);
    const Sample judges(options.dim, 6 * few, 0);
    const Code shipped = shipped_code(options);
    std::vector<Code> best = read_state(options, shipped);
    if (best.empty() && shipped.trellis.memory == options.memory) {
        best.push_back(shipped);
        best[0].error = Evaluator(options.bits, options.dim)
                                .error(shipped, judges, HUGE_VAL);
    }
    long tried = 0;

#pragma omp parallel reduction(+ : tried)
    {
        Random rng(options.seed * 1000 + omp_get_thread_num());
        Evaluator evaluator(options.bits, options.dim);
        std::vector<Code> known;
#pragma omp critical(best)
        known = best;

        const auto keep = [&](Code code) {
            code.error = evaluator.error(code, judges, HUGE_VAL);
#pragma omp critical(best)
            {
                best.push_back(code);
                std::sort(
                        best.begin(),
                        best.end(),
                        [](const Code& a, const Code& b) {
                            return a.error < b.error;
                        });
                const auto same = [](const Code& a, const Code& b) {
                    return a.trellis == b.trellis;
                };
                best.erase(
                        std::unique(best.begin(), best.end(), same),
                        best.end());
                best.resize(std::min(best.size(), options.keep));
            }
        };

        for (int walk = 0; elapsed() < options.seconds; walk++) {
            const Sample sample(options.dim, few, rng());
            Code code = shipped;
            code.trellis.memory = options.memory;
            if (walk % 3 == 0 && !known.empty()) {
                code = known[rng() % known.size()];
            } else {
                // the best of some draws
                Code drawn = code;
                code.error = HUGE_VAL;
                for (int i = 0; i < 300 && elapsed() < options.seconds; i++) {
                    random_taps(options, drawn, rng);
                    if (uses_whole_memory(drawn.trellis)) {
                        drawn.error =
                                evaluator.error(drawn, sample, code.error);
                        tried++;
                        if (drawn.error < code.error) {
                            code = drawn;
                        }
                    }
                }
                if (code.error == HUGE_VAL) {
                    break;
                }
            }
            code.error = evaluator.error(code, sample, HUGE_VAL);
            int failures = 0;
            while (failures < 400 && elapsed() < options.seconds) {
                Code next;
                if (failures % 100 == 50) {
                    Centroids centroids;
                    evaluator.error(code, sample, HUGE_VAL, &centroids);
                    const double factor =
                            1 + (double(rng() % 2001) - 1000) * 1e-4;
                    next = to_centroids(
                            options.bits,
                            code,
                            centroids,
                            static_cast<float>(code.step * factor));
                } else {
                    next = change(options, code, rng);
                }
                failures++;
                if (!uses_whole_memory(next.trellis)) {
                    continue;
                }
                next.error = evaluator.error(next, sample, code.error);
                tried++;
                if (next.error < code.error) {
                    code = next;
                    failures = 0;
                }
            }
            keep(code);
#pragma omp critical(best)
            known = best;
        }
    }

    write_state(options, best);
    std::printf(
            "        // %ld codes tried in %.0f s, seed %llu\n",
            tried,
            elapsed(),
            static_cast<unsigned long long>(options.seed));
    for (const Code& code : best) {
        print_row(options, code);
    }
    return 0;
}
