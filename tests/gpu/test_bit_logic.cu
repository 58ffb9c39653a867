#include <gpu/kernels/bit_logic.cuh>

#include <gtest/gtest.h>

using faiss_turboquant::gpu::BitNetwork;
using faiss_turboquant::gpu::BitNode;
using faiss_turboquant::gpu::SharedBits;

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

TEST(SharedBits, FindsFunctionsOfTwoAndThreeWords) {
    constexpr SharedBits bits{1, {0x6996}}; // the parity of all four
    const auto evaluate = [&](const BitNode& f, int x, int flip) {
        const auto word = [&](int i) { return bits.table_of(i) >> x & 1; };
        return look_up(
                f.table, word(f.i), word(f.j), f.k < 0 ? flip : word(f.k));
    };
    int of_two = 0, of_three = 0;
    for (int table = 0; table < 1 << 16; table++) {
        const BitNode f = bits.find(uint16_t(table), 5);
        if (f.i < 0) {
            continue;
        }
        (f.k < 0 ? of_two : of_three)++;
        for (int x = 0; x < 16; x++) {
            for (int flip = 0; flip < 2; flip++) {
                const int expected = (table >> x & 1) ^ (f.k < 0 ? flip : 0);
                ASSERT_EQ(evaluate(f, x, flip), expected)
                        << "table " << table << " x " << x;
            }
        }
    }
    // of the pairs 16 functions each: 10 of two words, less what pairs share
    EXPECT_EQ(of_two, 2 + 2 * 5 + 10 * 10);
    EXPECT_GT(of_three, 0);
}
