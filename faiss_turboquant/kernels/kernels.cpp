#include <faiss_turboquant/kernels/kernels.h>

#include <cstdlib>

#include <faiss/impl/FaissAssert.h>

#include <faiss_turboquant/kernels/tables.h>

namespace faiss_turboquant {

namespace {

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> all = [] {
        std::vector<const Kernels*> tables = {&scalar_kernels()};
        for (const Kernels* table : simd_kernels()) {
            tables.push_back(table);
        }
        for (const Kernels* table : amx_kernels(*tables.back())) {
            tables.push_back(table);
        }
        return tables;
    }();
    return all;
}

std::string available_names() {
    std::string names;
    for (const Kernels* table : available_kernels()) {
        names += (names.empty() ? "" : ", ");
        names += level_name(table->level);
    }
    return names;
}

const Kernels& choose_kernels() {
    const char* forced = std::getenv("TQ_SIMD_LEVEL");
    if (!forced || !*forced) {
        return *available_kernels().back();
    }
    for (const Kernels* table : available_kernels()) {
        if (forced == std::string(level_name(table->level))) {
            return *table;
        }
    }
    FAISS_THROW_FMT(
            "TQ_SIMD_LEVEL=%s is not available here; available: %s",
            forced,
            available_names().c_str());
}

} // namespace

std::vector<SimdLevel> available_levels() {
    std::vector<SimdLevel> levels;
    for (const Kernels* table : available_kernels()) {
        levels.push_back(table->level);
    }
    return levels;
}

const char* level_name(SimdLevel level) {
    switch (level) {
        case SimdLevel::scalar:
            return "scalar";
        case SimdLevel::sse4:
            return "sse4";
        case SimdLevel::avx2:
            return "avx2";
        case SimdLevel::avx2_vnni:
            return "avx2_vnni";
        case SimdLevel::avx512:
            return "avx512";
        case SimdLevel::avx512_vnni:
            return "avx512_vnni";
        case SimdLevel::amx:
            return "amx";
        case SimdLevel::neon:
            return "neon";
        case SimdLevel::neon_dot:
            return "neon_dot";
    }
    return "unknown";
}

const Kernels& kernels() {
    // a throwing initialiser leaves the static unset: the next call tries
    // again, and throws again
    static const Kernels& chosen = choose_kernels();
    return chosen;
}

SimdLevel current_level() {
    return kernels().level;
}

const Kernels& kernels(SimdLevel level) {
    for (const Kernels* table : available_kernels()) {
        if (table->level == level) {
            return *table;
        }
    }
    FAISS_THROW_FMT(
            "SIMD level %s is not available here; available: %s",
            level_name(level),
            available_names().c_str());
}

} // namespace faiss_turboquant
