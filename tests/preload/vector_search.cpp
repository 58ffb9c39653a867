/** A program for FAISS: makes an index by its factory string, fills it, writes
 * it to a file, reads it back, clones it, and prints how many of the ten
 * nearest neighbours it finds.
 *
 *     vector_search IVF16,PQ16x4 /tmp/vectors.index
 */

#include <cstdio>
#include <exception>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/clone_index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

namespace {

constexpr int d = 64;
constexpr int n = 5000;
constexpr int n_queries = 100;
constexpr int k = 10;

using IndexPtr = std::unique_ptr<faiss::Index>;

/// around 50 centres, the same for each seed
std::vector<float> random_vectors(int count, int seed) {
    std::normal_distribution<float> normal;
    std::mt19937 random(0);
    std::vector<float> centres(50 * d);
    for (float& value : centres) {
        value = normal(random);
    }
    random.seed(seed);
    std::vector<float> x(size_t(count) * d);
    for (int i = 0; i < count; i++) {
        const float* centre = &centres[random() % 50 * d];
        for (int j = 0; j < d; j++) {
            x[i * d + j] = centre[j] + 0.5f * normal(random);
        }
    }
    return x;
}

std::vector<faiss::idx_t> search(const faiss::Index& index) {
    const std::vector<float> queries = random_vectors(n_queries, 2);
    std::vector<float> distances(n_queries * k);
    std::vector<faiss::idx_t> labels(n_queries * k);
    index.search(n_queries, queries.data(), k, distances.data(), labels.data());
    return labels;
}

IndexPtr build(const char* description, const std::vector<float>& x) {
    IndexPtr index(faiss::index_factory(d, description));
    index->train(n, x.data());
    index->add(n, x.data());
    return index;
}

double recall(
        const std::vector<faiss::idx_t>& labels,
        const std::vector<faiss::idx_t>& truth) {
    int found = 0;
    for (int i = 0; i < n_queries * k; i += k) {
        const std::set<faiss::idx_t> nearest(&truth[i], &truth[i] + k);
        for (int j = i; j < i + k; j++) {
            found += nearest.count(labels[j]);
        }
    }
    return double(found) / (n_queries * k);
}

void run(const char* description, const char* fname) {
    const std::vector<float> x = random_vectors(n, 1);
    const IndexPtr exact = build("Flat", x);
    const IndexPtr index = build(description, x);
    const auto labels = search(*index);
    faiss::write_index(index.get(), fname);
    const IndexPtr read(faiss::read_index(fname));
    const IndexPtr clone(faiss::clone_index(read.get()));
    const bool same = search(*read) == labels && search(*clone) == labels;
    std::printf(
            "%s: 10-recall@10 %.3f, %s from the file and from a clone\n",
            description,
            recall(labels, search(*exact)),
            same ? "the same" : "NOT THE SAME");
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: vector_search factory-string file\n");
        return 2;
    }
    try {
        run(argv[1], argv[2]);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
