#include <gpu/kernels/rotation.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

namespace faiss_turboquant {
namespace gpu {

namespace {

constexpr int n_banks = 32;
/// lanes that are served at a time, with four floats each
constexpr int phase = 8;
/// over all pairs that might change places; more gain little
constexpr int passes = 3;
constexpr uint32_t float_size = sizeof(float);

/// f(begin, coordinates a lane) for each part, the greatest of which has `part`
/// coordinates
template <class F>
void for_each_part(int d, int part, F f) {
    int size = part;
    for (int begin = 0; begin < d; begin += size) {
        while (size > 32 && size > d - begin) {
            size /= 2;
        }
        f(begin, size / 32);
    }
}

/// where coordinate i of a round comes from
int source(const Rotation& rotation, int round, int i) {
    const auto& starts = rotation.permutation(round);
    if (starts.empty()) {
        return i;
    }
    const int group = int(rotation.d / starts.size());
    return starts[i / group] + i % group;
}

uint32_t is_negated(const Rotation& rotation, int round, int i) {
    return rotation.multipliers()[round * rotation.d + i] < 0;
}

/** Where coordinates are as the first round begins: runs that lanes of a phase
 * read at the same time have exchanged places, which costs nothing there, so
 * that the coordinates of a row of the input go to different banks. */
class InputPlaces {
   public:
    InputPlaces(const Rotation& rotation, int part, int run)
            : rotation_(rotation) {
        const int d = int(rotation.d);
        places_.resize(input_words_size(d));
        for (size_t i = 0; i < places_.size(); i++) {
            places_[i] = shared_place(int(i));
        }
        if (rotation.permutation(0).empty()) {
            return;
        }
        times_.resize(places_.size() / 32);
        for (int i = 0; i < d; i++) {
            times(i)++;
        }
        const auto improve_part = [&](int begin, int count) {
            const int width = run_in_part(count, run);
            for (int lane = 0; width >= 4 && lane < 32; lane += phase) {
                for (int k = 0; k < count; k += width) {
                    improve(begin + lane * count + k, count, width);
                }
            }
        };
        for (int pass = 0; pass < passes; pass++) {
            for_each_part(d, part, improve_part);
        }
    }

    int operator[](int i) const {
        return places_[i];
    }

   private:
    /// of coordinates of a row of the input in the bank of coordinate i
    int& times(int i) {
        return times_[source(rotation_, 0, i) / 32][places_[i] % n_banks];
    }

    /// sum of the cubes of times_, but for a constant
    int swap(int a, int b, int width) {
        int change = 0;
        const auto count_all = [&](int step) {
            for (int i = 0; i < width; i++) {
                for (const int at : {a + i, b + i}) {
                    int& n = times(at);
                    change -= n * n * n;
                    n += step;
                    change += n * n * n;
                }
            }
        };
        count_all(-1);
        std::swap_ranges(
                places_.begin() + a,
                places_.begin() + a + width,
                places_.begin() + b);
        count_all(1);
        return change;
    }

    /// the runs of a phase, `stride` apart from the first on
    void improve(int first, int stride, int width) {
        for (int i = 0; i < phase; i++) {
            for (int j = 0; j < i; j++) {
                const int a = first + i * stride, b = first + j * stride;
                if (swap(a, b, width) >= 0) {
                    swap(a, b, width);
                }
            }
        }
    }

    const Rotation& rotation_;
    std::vector<int> places_;
    std::vector<std::array<int, n_banks>> times_; ///< for each row
};

/** Which of a part's 32 pieces of `count` coordinates each lane takes, so that
 * lanes of a phase seldom ask for the same banks. */
class LaneOrder {
   public:
    /// @param from  place of each coordinate of the part as the round begins
    template <class From>
    LaneOrder(int count, int width, From from) : block_(32 / count) {
        std::iota(pieces_.begin(), pieces_.end(), 0);
        if (width < 4 || !has_lane_order(count)) {
            return;
        }
        const auto bank_of = [](int place) { return place / 4 % phase; };
        for (int piece = 0; piece < 32; piece++) {
            for (int i = 0; i < count; i += 4) {
                const int at = piece * count + i;
                quads_[piece].push_back(bank_of(from(at)));
                quads_[piece].push_back(bank_of(shared_place(at)));
            }
        }
        for (int pass = 0; pass < passes; pass++) {
            // blocks of lanes stay together for the stages between them
            for (int a = 0; a < 32; a += block_) {
                for (int b = a / phase * phase + phase; b < 32; b += block_) {
                    improve(a, b);
                }
            }
        }
    }

    int operator[](int lane) const {
        return pieces_[lane];
    }

   private:
    /// times that a lane's phase is served
    int cost(int lane) const {
        const int first = lane / phase * phase;
        int sum = 0;
        for (size_t k = 0; k < quads_[0].size(); k++) {
            int times[phase] = {};
            for (int i = first; i < first + phase; i++) {
                times[quads_[pieces_[i]][k]]++;
            }
            sum += *std::max_element(times, times + phase);
        }
        return sum;
    }

    void improve(int a, int b) {
        const auto swap = [&] {
            std::swap_ranges(
                    pieces_.begin() + a,
                    pieces_.begin() + a + block_,
                    pieces_.begin() + b);
        };
        const int before = cost(a) + cost(b);
        swap();
        if (cost(a) + cost(b) >= before) {
            swap();
        }
    }

    int block_;
    std::array<int, 32> pieces_;
    std::vector<int> quads_[32];
};

} // namespace

int run_of(const Rotation& rotation) {
    size_t group = max_part;
    for (int round = 1; round < Rotation::rounds; round++) {
        const size_t n_groups = rotation.permutation(round).size();
        if (n_groups > 0) {
            group = std::min(group, rotation.d / n_groups);
        }
    }
    return group % 16 == 0 && rotation.d >= max_part ? 16
            : group % 4 == 0                         ? 4
                                                     : 1;
}

std::vector<uint32_t> rotation_words(
        const Rotation& rotation,
        int part,
        int run) {
    const int d = int(rotation.d);
    const InputPlaces input_places(rotation, part, run);
    std::vector<uint32_t> words(input_words_size(d));
    for (int i = 0; i < int(words.size()); i++) {
        const int from = i < d ? source(rotation, 0, i) : i;
        words[input_word_at(from)] = float_size * input_places[i];
    }
    if (!rotation.matrix().empty()) {
        return words;
    }
    size_t first_word = words.size();
    words.resize(first_word + Rotation::rounds * run_words_size(d, part, run));
    for (int round = 0; round < Rotation::rounds; round++) {
        for_each_part(d, part, [&](int begin, int count) {
            const auto from = [&](int i) {
                return round == 0
                        ? input_places[begin + i]
                        : shared_place(source(rotation, round, begin + i));
            };
            const int width = run_in_part(count, run);
            const LaneOrder order(count, width, from);
            uint32_t* of_part = words.data() + first_word;
            for (int lane = 0; lane < 32 && begin + lane * count < d; lane++) {
                const int first = order[lane] * count;
                for (int i = 0; i < count; i++) {
                    uint32_t& word = of_part[run_word_at(
                            count / width, lane, i / width)];
                    if (i % width == 0) {
                        word = float_size * from(first + i);
                    }
                    word |= is_negated(rotation, round, begin + first + i)
                                    << 31 >>
                            sign_shift(i % width);
                }
                if (has_lane_order(count)) {
                    of_part[32 * count / width + lane] =
                            float_size * shared_place(first);
                }
            }
            first_word += run_words_of_part(count, run);
        });
    }
    return words;
}

} // namespace gpu
} // namespace faiss_turboquant
