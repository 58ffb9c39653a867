#include <gpu/kernels/bit_logic.cuh>

#include <gtest/gtest.h>

using faiss_turboquant::gpu::BitNetwork;

namespace {

int look_up(uint8_t table, int b0, int b1, int b2) {
    return table >> (b0 + 2 * b1 + 4 * b2) & 1;
}

int evaluate(const BitNetwork& f, const int (&x)[4]) {
    const int a = look_up(f.a, x[f.j], x[f.k], x[f.w]);
    const int c = look_up(f.c, x[f.j], x[f.k], x[f.v]);
    return f.is_product ? look_up(f.out, 0, c, a) : x[3] ? c : a;
}

} // namespace

TEST(BitNetwork, ComputesEveryFunction) {
    for (int table = 0; table < 1 << 16; table++) {
        const BitNetwork f{uint16_t(table)};
        for (int i = 0; i < 16; i++) {
            const int x[4] = {i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3};
            ASSERT_EQ(evaluate(f, x), table >> i & 1)
                    << "table " << table << " i " << i;
        }
    }
}
