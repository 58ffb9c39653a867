#include <gpu/kernels/rotation.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// coordinates that move together
size_t group_size(const Rotation& rotation, int round) {
    const size_t n_groups = rotation.permutation(round).size();
    return n_groups == 0 ? rotation.d : rotation.d / n_groups;
}

size_t source(const Rotation& rotation, int round, size_t i) {
    const auto& starts = rotation.permutation(round);
    const size_t group = group_size(rotation, round);
    return starts.empty() ? i : starts[i / group] + i % group;
}

uint32_t is_negated(const Rotation& rotation, int round, size_t i) {
    return rotation.multipliers()[round * rotation.d + i] < 0;
}

} // namespace

bool moves_by_fours(const Rotation& rotation, int round) {
    return group_size(rotation, round) % 4 == 0;
}

std::vector<uint32_t> source_words(const Rotation& rotation, int round) {
    const int d = int(rotation.d);
    const bool by_fours = moves_by_fours(rotation, round);
    std::vector<uint32_t> words(source_words_size(d));
    int size = max_part;
    for (int begin = 0; begin < d; begin += size) {
        while (size > 32 && size > d - begin) {
            size /= 2;
        }
        const int count = size / 32;
        const int width = by_fours && count >= 4 ? 4 : 1;
        const int first = first_source_word(begin, count, by_fours, d);
        for (int i = 0; i < size && begin + i < d; i++) {
            const int at = first +
                    source_word_at(count / width, i / count, i % count / width);
            const int in_word = i % width;
            if (in_word == 0) {
                const size_t from = source(rotation, round, begin + i);
                words[at] = 4 * shared_place(int(from));
            }
            words[at] |= is_negated(rotation, round, begin + i)
                    << (31 - in_word);
        }
    }
    return words;
}

} // namespace gpu
} // namespace faiss_turboquant
