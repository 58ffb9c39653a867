#pragma once

/** Functions of four bits, of 32 coordinates at a time: each bit is a word, and
 * an instruction (lop3) computes any function of three words. */

#include <cstdint>

namespace faiss_turboquant {
namespace gpu {

/** How a function f(x) of four bits is computed: as a(x_j, x_k, x_w) op
 * c(x_j, x_k, x_v), where j and k are the places other than v and w, or, if f
 * is no such function, as the one of a and c, functions of the first three
 * bits, that x_3 chooses. Tables have the value for bits b_0, b_1, .. in place
 * b_0 + 2 b_1 + .. */
struct BitNetwork {
    bool is_product = false;
    int j = 0, k = 1, v = 2, w = 3;
    uint8_t a = 0, c = 0;
    /// of (flip, c, a): a op c, xor flip
    uint8_t out = 0;

    /// table: of f
    explicit constexpr BitNetwork(uint16_t table) {
        for (v = 0; v < 4; v++) {
            for (w = v + 1; w < 4; w++) {
                j = v > 0 ? 0 : w > 1 ? 1 : 2;
                k = 6 - v - w - j;
                for (int op = 0; op < n_ops; op++) {
                    if (is_done(table, op)) {
                        is_product = true;
                        return;
                    }
                }
            }
        }
        j = 0, k = 1, v = w = 2;
        a = uint8_t(table);
        c = table >> 8;
    }

   private:
    static constexpr int n_ops = 3; // and, nand, xor

    static constexpr int apply(int op, int a, int c) {
        return op == 2 ? a ^ c : (a & c) ^ op;
    }

    constexpr bool is_done(uint16_t table, int op) {
        a = c = out = 0;
        for (int jk = 0; jk < 4; jk++) {
            // two values of a, by x_w, and two of c, by x_v
            int values = 0;
            while (values < 16 && !is_right(table, op, jk, values)) {
                values++;
            }
            if (values == 16) {
                return false;
            }
            a |= (values & 1) << jk | (values >> 1 & 1) << (jk + 4);
            c |= (values >> 2 & 1) << jk | (values >> 3 & 1) << (jk + 4);
        }
        for (int i = 0; i < 8; i++) {
            out |= (apply(op, i >> 2 & 1, i >> 1 & 1) ^ (i & 1)) << i;
        }
        return true;
    }

    constexpr bool is_right(uint16_t table, int op, int jk, int values) const {
        for (int i = 0; i < 4; i++) {
            const int x_v = i & 1, x_w = i >> 1;
            const int place =
                    (jk & 1) << j | (jk >> 1) << k | x_v << v | x_w << w;
            const int result =
                    apply(op, values >> x_w & 1, values >> (2 + x_v) & 1);
            if (result != (table >> place & 1)) {
                return false;
            }
        }
        return true;
    }
};

/// a function of two or three of some words
struct BitNode {
    int i = 0, j = 0, k = -1; ///< -1: of two
    uint8_t table = 0;        ///< of (flip or word k, word j, word i)
};

/** Several functions of four bits, each of which is a function of three words
 * among the bits and `n` intermediate results, these being functions of three
 * of the bits. Fewer instructions than a BitNetwork for each, if there are such
 * results; they were found by trying all. */
struct SharedBits {
    static constexpr int most = 7;

    int n = 0;
    uint16_t results[most] = {};

    constexpr uint16_t table_of(int word) const {
        constexpr uint16_t bits[] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};
        return word < 4 ? bits[word] : results[word - 4];
    }

    /// The function with this table of the first `words` of the bits and the
    /// results. One of two words is preferred, and has room for a flip.
    constexpr BitNode find(uint16_t table, int words) const {
        for (int k = -1; k < words; k++) {
            for (int j = 1; j < words; j++) {
                for (int i = 0; i < j; i++) {
                    BitNode node;
                    node.i = i, node.j = j, node.k = k;
                    if (complete(node, table)) {
                        return node;
                    }
                }
            }
        }
        BitNode none;
        none.i = -1;
        return none;
    }

   private:
    constexpr bool complete(BitNode& node, uint16_t table) const {
        int known = 0;
        for (int flip = 0; flip < 2; flip++) {
            for (int x = 0; x < 16; x++) {
                const int third = node.k < 0 ? flip : table_of(node.k) >> x & 1;
                const int place = (table_of(node.i) >> x & 1) |
                        (table_of(node.j) >> x & 1) << 1 | third << 2;
                const int value = (table >> x & 1) ^ (node.k < 0 ? flip : 0);
                if (known >> place & 1 && (node.table >> place & 1) != value) {
                    return false;
                }
                known |= 1 << place;
                node.table |= value << place;
            }
        }
        return true;
    }
};

#ifdef __CUDACC__

/// a function of three bits by its table
template <uint8_t table>
__device__ inline uint32_t apply_table(uint32_t b0, uint32_t b1, uint32_t b2) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, %4;"
        : "=r"(result)
        : "r"(b2), "r"(b1), "r"(b0), "n"(int(table)));
    return result;
}

/// f(x) ^ flip. table: of f, see BitNetwork
template <uint16_t table>
__device__ inline uint32_t apply_table(const uint32_t (&x)[4], uint32_t flip) {
    if constexpr (table == 0) {
        return flip;
    } else if constexpr (table == 0xffff) {
        return ~flip;
    } else {
        constexpr BitNetwork f(table);
        const uint32_t a = apply_table<f.a>(x[f.j], x[f.k], x[f.w]);
        const uint32_t c = apply_table<f.c>(x[f.j], x[f.k], x[f.v]);
        if constexpr (f.is_product) {
            return apply_table<f.out>(flip, c, a);
        } else {
            constexpr uint8_t choose = 0xca; // of (a, c, x_3)
            return apply_table<choose>(a, c, x[3]) ^ flip;
        }
    }
}

/// f ^ flip for a node of `words`
template <uint8_t table, int i, int j, int k, int n>
__device__ inline uint32_t apply_node(
        const uint32_t (&words)[n],
        uint32_t flip) {
    if constexpr (k < 0) {
        return apply_table<table>(words[i], words[j], flip);
    } else {
        return apply_table<table>(words[i], words[j], words[k]) ^ flip;
    }
}

#endif // __CUDACC__

} // namespace gpu
} // namespace faiss_turboquant
