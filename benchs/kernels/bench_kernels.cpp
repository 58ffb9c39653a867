/** The kernels against the limits of the machine they run on.
 *
 * Google Benchmark: --benchmark_filter=REGEX, --benchmark_format=json,
 * --benchmark_repetitions=N and so on. Names are
 * kernel/codec/d/level[/memory], one thread. Counters:
 *
 *   per_item      seconds a code, a code and query, a vector, ..
 *   bytes         bytes of codes or vectors read a second
 *   of_read       the same as a part of the measured read bandwidth
 *   products      u6 x s8 products a second
 *   of_multiply   the same as a part of the measured multiply rate
 */

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <faiss_turboquant/kernels/kernels.h>
#include <faiss_turboquant/quantizer/TurboQuantizer.h>

#include "peaks.h"

using namespace faiss_turboquant;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t large_bytes = size_t(256) << 20;
constexpr size_t block = 256; ///< codes in cache

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// the best of a few runs of work(), which returns a count: counts a second
template <class Work>
double best_rate(Work work) {
    double best = 0;
    for (int i = 0; i < 7; i++) {
        const auto start = Clock::now();
        const double count = work();
        best = std::max(best, count / seconds_since(start));
    }
    return best;
}

const std::vector<uint8_t>& large_buffer() {
    static const std::vector<uint8_t> buffer(large_bytes, 1);
    return buffer;
}

double read_peak() {
    static const double peak = best_rate([] {
        const std::vector<uint8_t>& buffer = large_buffer();
        benchmark::DoNotOptimize(peaks::read(buffer.data(), buffer.size()));
        return double(buffer.size());
    });
    return peak;
}

double multiply_peak(SimdLevel level) {
    static std::map<SimdLevel, double> known;
    const auto found = known.find(level);
    if (found != known.end()) {
        return found->second;
    }
    return known[level] = best_rate(
                   [level] { return double(peaks::multiply(level, 1000000)); });
}

/// a codec's quantizer with random codes in memory, and a query
struct Fixture {
    TurboQuantizer tq;
    std::vector<float> vectors; ///< (block, d)
    std::vector<uint8_t> codes;
    size_t n;
    std::vector<int8_t> q;
    PreparedQuery query;

    Fixture(const std::string& codec, size_t d, bool large)
            : tq(d,
                 codec[2] - '0',
                 faiss::METRIC_INNER_PRODUCT,
                 RotationType::Hadamard,
                 TurboQuantizer::default_seed,
                 codec.size() > 3 ? 8 : 0),
              vectors(block * d) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        for (float& v : vectors) {
            v = normal(random);
        }
        n = large ? large_bytes / tq.code_size / block * block : block;
        codes.resize(n * tq.code_size);
        tq.compute_codes(vectors.data(), codes.data(), block);
        for (size_t i = block; i < n; i += block) {
            std::memcpy(
                    &codes[i * tq.code_size],
                    codes.data(),
                    block * tq.code_size);
        }
        q.resize(tq.rotated_dim());
        tq.prepare_query(vectors.data(), 0, q.data(), query);
    }
};

void count_items(benchmark::State& state, double items) {
    state.counters["per_item"] = benchmark::Counter(
            items,
            benchmark::Counter::kIsIterationInvariantRate |
                    benchmark::Counter::kInvert);
}

void count_bytes(benchmark::State& state, double bytes) {
    constexpr auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["bytes"] = benchmark::Counter(bytes, rate);
    state.counters["of_read"] = benchmark::Counter(bytes / read_peak(), rate);
}

void count_products(benchmark::State& state, double products, SimdLevel level) {
    constexpr auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["products"] = benchmark::Counter(products, rate);
    const double peak = multiply_peak(level);
    if (peak > 0) {
        state.counters["of_multiply"] =
                benchmark::Counter(products / peak, rate);
    }
}

/// arranged is in the order of another level if that is the current one
faiss::AlignedTable<int8_t, 64> arrange(const Kernels& k, const Fixture& f) {
    faiss::AlignedTable<int8_t, 64> arranged(k.query_size(f.tq.layout()));
    k.arrange_query(f.tq.layout(), f.q.data(), arranged.data());
    return arranged;
}

void dot_codes(
        benchmark::State& state,
        std::string codec,
        size_t d,
        SimdLevel level,
        bool large) {
    const Fixture f(codec, d, large);
    const Kernels& k = kernels(level);
    const auto arranged = arrange(k, f);
    std::vector<int32_t> dots(block);
    for (auto _ : state) {
        for (size_t i = 0; i < f.n; i += block) {
            k.dot_codes(
                    f.tq.layout(),
                    f.codes.data() + i * f.tq.code_size,
                    nullptr,
                    block,
                    arranged.data(),
                    f.query.factors.sum,
                    dots.data());
            benchmark::DoNotOptimize(dots.data());
        }
    }
    count_items(state, f.n);
    count_bytes(state, double(f.n * f.tq.code_size));
    count_products(state, double(f.n * d), level);
}

void sum_signs(
        benchmark::State& state,
        size_t d,
        SimdLevel level,
        size_t n_queries,
        bool large) {
    const Kernels& k = kernels(level);
    const size_t n_bytes = d / 8; // a multiple of sign_step
    const size_t block_bytes = n_bytes * sign_block;
    const size_t n_blocks =
            large ? large_bytes / block_bytes - 1 : block / sign_block;
    const uint8_t* signs = large_buffer().data();
    signs += 64 - reinterpret_cast<uintptr_t>(signs) % 64; // as in an index
    const std::vector<uint8_t> table(n_bytes * 32, 1);
    const std::vector<const uint8_t*> tables(n_queries, table.data());
    std::vector<uint16_t> sums(n_queries * sign_block);
    for (auto _ : state) {
        for (size_t i = 0; i < n_blocks; i++) {
            k.sum_signs(
                    signs + i * block_bytes,
                    tables.data(),
                    n_queries,
                    n_bytes,
                    sums.data(),
                    sign_block);
            benchmark::DoNotOptimize(sums.data());
        }
    }
    count_items(state, n_blocks * sign_block * n_queries);
    count_bytes(state, double(n_blocks * block_bytes));
}

void decode_panel(
        benchmark::State& state,
        std::string codec,
        size_t d,
        SimdLevel level) {
    const Fixture f(codec, d, false);
    const Kernels& k = kernels(level);
    std::vector<uint8_t> scratch(f.tq.layout().panel_scratch_size());
    std::vector<uint8_t> panel(panel_rows * f.tq.layout().padded_dim());
    for (auto _ : state) {
        for (size_t i = 0; i < block; i += panel_rows) {
            k.decode_panel(
                    f.tq.layout(),
                    f.codes.data() + i * f.tq.code_size,
                    nullptr,
                    panel_rows,
                    scratch.data(),
                    panel.data());
            benchmark::DoNotOptimize(panel.data());
        }
    }
    count_items(state, block);
}

void dot_panels(benchmark::State& state, size_t d, SimdLevel level) {
    const Kernels& k = kernels(level);
    CodeLayout layout;
    layout.d = d;
    const size_t stride = panel_rows * layout.padded_dim();
    constexpr size_t n_panels = 2 * panel_group;
    faiss::AlignedTable<uint8_t, 64> panels(n_panels * stride);
    const size_t query_stride = layout.padded_dim() + 64;
    faiss::AlignedTable<int8_t, 64> queries(k.tile_queries * query_stride);
    std::memset(panels.data(), 40, panels.nbytes());
    std::memset(queries.data(), -3, queries.nbytes());
    std::vector<int32_t> dots(k.tile_queries * n_panels * panel_rows);
    for (auto _ : state) {
        k.dot_panels(
                panels.data(),
                stride,
                n_panels,
                queries.data(),
                k.tile_queries,
                query_stride,
                layout.panel_quads(k),
                dots.data(),
                n_panels * panel_rows);
        benchmark::DoNotOptimize(dots.data());
    }
    count_items(state, double(dots.size()));
    count_products(state, double(dots.size() * d), level);
}

void select(benchmark::State& state, SimdLevel level) {
    const Kernels& k = kernels(level);
    std::vector<int32_t> dots(block, 1000);
    std::vector<float> scales(block, 1.f), keys(block + select_slack);
    std::vector<uint32_t> positions(block + select_slack);
    QueryFactors factors;
    factors.multiplier = 1;
    for (auto _ : state) {
        benchmark::DoNotOptimize(k.select(
                factors,
                dots.data(),
                scales.data(),
                nullptr,
                block,
                1.f,
                0.f,
                keys.data(),
                positions.data()));
    }
    count_items(state, block);
}

void hadamard(benchmark::State& state, size_t n, SimdLevel level) {
    const Kernels& k = kernels(level);
    std::vector<float> x(n, 0.f); // stays zero, however often
    for (auto _ : state) {
        k.hadamard(x.data(), n);
        benchmark::DoNotOptimize(x.data());
    }
    count_items(state, 1);
}

/// rotation alone, at the current level
void rotate(benchmark::State& state, size_t d) {
    const Fixture f("TQ4", d, false);
    std::vector<float> y(d);
    for (auto _ : state) {
        for (size_t i = 0; i < block; i++) {
            f.tq.rotation.apply(&f.vectors[i * d], y.data());
            benchmark::DoNotOptimize(y.data());
        }
    }
    count_items(state, block);
    count_bytes(state, double(block * d * sizeof(float)));
}

void compute_codes(benchmark::State& state, std::string codec, size_t d) {
    const Fixture f(codec, d, false);
    std::vector<uint8_t> codes(8 * f.tq.code_size);
    for (auto _ : state) {
        for (size_t i = 0; i < block; i += 8) { // 8: in this thread
            f.tq.compute_codes(&f.vectors[i * d], codes.data(), 8);
            benchmark::DoNotOptimize(codes.data());
        }
    }
    count_items(state, block);
    count_bytes(state, double(block * d * sizeof(float)));
}

void prepare_query(benchmark::State& state, std::string codec, size_t d) {
    const Fixture f(codec, d, false);
    PreparedQuery query;
    for (auto _ : state) {
        f.tq.prepare_query(f.vectors.data(), 0, nullptr, query);
        benchmark::DoNotOptimize(query.arranged.data());
    }
    count_items(state, 1);
}

template <class F, class... Args>
void add(const std::string& name, F function, Args... args) {
    benchmark::RegisterBenchmark(name.c_str(), function, args...);
}

void add_all() {
    const std::vector<std::string> codecs = {
            "TQ1", "TQ2", "TQ3", "TQ4", "TQ1t", "TQ2t", "TQ3t", "TQ4t"};
    benchmark::RegisterBenchmark("read_peak", [](benchmark::State& state) {
        const std::vector<uint8_t>& buffer = large_buffer();
        for (auto _ : state) {
            benchmark::DoNotOptimize(peaks::read(buffer.data(), buffer.size()));
        }
        count_bytes(state, double(buffer.size()));
    });
    for (SimdLevel level : available_levels()) {
        const std::string at = std::string("/") + level_name(level);
        if (level == SimdLevel::scalar) {
            continue;
        }
        benchmark::RegisterBenchmark(
                ("multiply_peak" + at).c_str(),
                [level](benchmark::State& state) {
                    double products = 0;
                    for (auto _ : state) {
                        products = double(peaks::multiply(level, 10000));
                    }
                    count_products(state, products, level);
                });
        add("select" + at, select, level);
        add("hadamard/512" + at, hadamard, size_t(512), level);
        add("hadamard/1024" + at, hadamard, size_t(1024), level);
        for (size_t d : {384, 1536}) {
            const std::string dim = "/" + std::to_string(d);
            add("dot_panels" + dim + at, dot_panels, d, level);
            for (size_t queries : {size_t(1), sign_queries}) {
                const std::string name = "sum_signs" + dim + at +
                        "/queries:" + std::to_string(queries);
                add(name, sum_signs, d, level, queries, false);
                add(name + "/memory", sum_signs, d, level, queries, true);
            }
            for (const std::string& codec : codecs) {
                const std::string name = "/" + codec + dim + at;
                add("dot_codes" + name, dot_codes, codec, d, level, false);
                add("dot_codes" + name + "/memory",
                    dot_codes,
                    codec,
                    d,
                    level,
                    true);
                add("decode_panel" + name, decode_panel, codec, d, level);
            }
        }
    }
    const std::string at = std::string("/") + level_name(current_level());
    for (size_t d : {384, 1536}) {
        const std::string dim = "/" + std::to_string(d);
        add("rotate" + dim + at, rotate, d);
        for (const std::string& codec : codecs) {
            const std::string name = "/" + codec + dim + at;
            add("compute_codes" + name, compute_codes, codec, d);
            add("prepare_query" + name, prepare_query, codec, d);
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 1;
    }
    add_all();
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}
