// Batches on AMX (Sapphire Rapids and later): a matrix product of 16 queries,
// 16 codes and 64 dimensions per instruction. Highway has no AMX, so these are
// intrinsics. Everything else is as with avx512_vnni.

#include <faiss_turboquant/kernels/tables.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TQ_AMX __attribute__((target("amx-tile,amx-int8")))

namespace faiss_turboquant {

namespace {

/// queries and codes of a tile register, and quads of dimensions
constexpr size_t tile_rows = 16;
/// bytes of a row of a tile register
constexpr size_t row_bytes = 64;
static_assert(panel_rows == tile_rows);

/// two registers of queries, or one, meet two of codes: each is read once for
/// two products
constexpr size_t max_tile_queries = 2 * tile_rows;

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};

    TileConfig() {
        for (int i = 0; i < 8; i++) {
            bytes_per_row[i] = row_bytes;
            rows[i] = tile_rows;
        }
    }
};

/// tile_queries queries, 16 or 32, with panels a and b
template <size_t tile_queries>
TQ_AMX void dot_tile(
        const uint8_t* a,
        const uint8_t* b,
        const int8_t* queries,
        size_t query_stride,
        size_t quads,
        int32_t* out,
        size_t out_stride) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t quad = 0; quad < quads; quad += tile_rows) {
        _tile_loadd(4, queries + quad * 4, query_stride);
        _tile_loadd(6, a + quad * row_bytes, row_bytes);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, b + quad * row_bytes, row_bytes);
        _tile_dpbsud(1, 4, 7);
        if constexpr (tile_queries > tile_rows) {
            const int8_t* more = queries + tile_rows * query_stride;
            _tile_loadd(5, more + quad * 4, query_stride);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    const size_t stride = out_stride * sizeof(int32_t);
    _tile_stored(0, out, stride);
    _tile_stored(1, out + tile_rows, stride);
    if constexpr (tile_queries > tile_rows) {
        int32_t* more = out + tile_rows * out_stride;
        _tile_stored(2, more, stride);
        _tile_stored(3, more + tile_rows, stride);
    }
}

TQ_AMX void dot_panels(
        const uint8_t* panels,
        size_t panel_stride,
        size_t n_panels,
        const int8_t* queries,
        size_t n_queries,
        size_t query_stride,
        size_t quads,
        int32_t* out,
        size_t out_stride) {
    static const TileConfig config;
    _tile_loadconfig(&config);
    const auto dot_tile_of = n_queries > tile_rows ? dot_tile<max_tile_queries>
                                                   : dot_tile<tile_rows>;
    for (size_t p = 0; p < n_panels; p += 2) {
        const uint8_t* panel = panels + p * panel_stride;
        dot_tile_of(
                panel,
                panel + panel_stride,
                queries,
                query_stride,
                quads,
                out + p * panel_rows,
                out_stride);
    }
    _tile_release();
}

/// whether the CPU has AMX and Linux lets this process use it
bool amx_is_usable() {
    unsigned a, b, c, d;
    constexpr unsigned tile_bit = 1u << 24, int8_bit = 1u << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & tile_bit) ||
        !(d & int8_bit)) {
        return false;
    }
    // the tiles' state is large, and Linux wants to be asked for it
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

} // namespace

std::vector<const Kernels*> amx_kernels(const Kernels& base) {
    if (base.level != SimdLevel::avx512_vnni || !amx_is_usable()) {
        return {};
    }
    static const Kernels table = [&base] {
        Kernels kernels = base;
        kernels.level = SimdLevel::amx;
        kernels.tile_queries = max_tile_queries;
        kernels.quad_step = tile_rows;
        kernels.dot_panels = dot_panels;
        return kernels;
    }();
    return {&table};
}

} // namespace faiss_turboquant

#else

namespace faiss_turboquant {

std::vector<const Kernels*> amx_kernels(const Kernels&) {
    return {};
}

} // namespace faiss_turboquant

#endif
