#include <faiss_turboquant/index_factory.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_factory.h>

#include <faiss_turboquant/IndexIVFTurboQuant.h>
#include <faiss_turboquant/IndexTurboQuant.h>
#include <faiss_turboquant/index_tree.h>

namespace faiss_turboquant {

namespace {

/// a name in a factory string and the index it makes
struct Codec {
    const char* name;
    int nbits;
    int memory; ///< of the trellis; 0 is none
    CodecType type = CodecType::Scaled;

    std::unique_ptr<faiss::Index> make(int d, faiss::MetricType metric) const {
        return std::make_unique<faiss::IndexTurboQuant>(
                d,
                nbits,
                metric,
                RotationType::Hadamard,
                TurboQuantizer::default_seed,
                memory,
                type);
    }

    /// an inverted file in the place of another, whose quantizer it takes
    std::unique_ptr<faiss::Index> make_ivf(faiss::IndexIVF& from) const {
        auto ivf = std::make_unique<faiss::IndexIVFTurboQuant>(
                from.quantizer,
                from.d,
                from.nlist,
                nbits,
                from.metric_type,
                from.invlists != nullptr,
                RotationType::Hadamard,
                TurboQuantizer::default_seed,
                memory,
                type);
        static_cast<faiss::Level1Quantizer&>(*ivf) = from;
        from.own_fields = false;
        return ivf;
    }
};

constexpr Codec codecs[] = {
        {"TQ1", 1, 0},
        {"TQ2", 2, 0},
        {"TQ3", 3, 0},
        {"TQ4", 4, 0},
        {"TQ1t", 1, 8},
        {"TQ2t", 2, 8},
        {"TQ3t", 3, 8},
        {"TQ4t", 4, 8},
        {"TQ1t10", 1, 10},
        {"TQ2t10", 2, 10},
        {"TQ3t10", 3, 10},
        {"TQ4t10", 4, 10},
        {"TQ1t12", 1, 12},
        {"TQ2t12", 2, 12},
        {"TQ3t12", 3, 12},
        {"TQ4t12", 4, 12},
        {"TQ1.5", 1, 0, CodecType::HalfBit},
        {"TQ2.5", 2, 0, CodecType::HalfBit},
        {"TQ3.5", 3, 0, CodecType::HalfBit},
        {"TQ1.5t", 1, 8, CodecType::HalfBit},
        {"TQ2.5t", 2, 8, CodecType::HalfBit},
        {"TQ3.5t", 3, 8, CodecType::HalfBit},
        {"TQ1.5t10", 1, 10, CodecType::HalfBit},
        {"TQ2.5t10", 2, 10, CodecType::HalfBit},
        {"TQ3.5t10", 3, 10, CodecType::HalfBit},
        {"TQ1.5t12", 1, 12, CodecType::HalfBit},
        {"TQ2.5t12", 2, 12, CodecType::HalfBit},
        {"TQ3.5t12", 3, 12, CodecType::HalfBit},
        {"TQ1mse", 1, 0, CodecType::Mse},
        {"TQ2mse", 2, 0, CodecType::Mse},
        {"TQ3mse", 3, 0, CodecType::Mse},
        {"TQ4mse", 4, 0, CodecType::Mse},
        {"TQ1prod", 1, 0, CodecType::Prod},
        {"TQ2prod", 2, 0, CodecType::Prod},
        {"TQ3prod", 3, 0, CodecType::Prod},
        {"TQ4prod", 4, 0, CodecType::Prod},
};

/** FAISS indexes that a codec's place is kept with while FAISS parses the
 * string. They accept any d, both metrics and every place of the grammar that
 * takes a codec, and count as trained, so that the wrappers FAISS builds
 * around them come out right. */
struct StandIn {
    const char* name;
    faiss::ScalarQuantizer::QuantizerType qtype;
};

constexpr StandIn stand_ins[] = {
        {"SQbf16", faiss::ScalarQuantizer::QT_bf16},
        {"SQfp16", faiss::ScalarQuantizer::QT_fp16},
        {"SQ8_direct", faiss::ScalarQuantizer::QT_8bit_direct},
};

constexpr const char* valid_forms =
        "valid forms: TQ4 | TQ4t | IVF256,TQ4 | HNSW32,TQ4 | NSG32,TQ4 | IDMap2,TQ4 "
        "| PCA64,TQ4 | L2norm,TQ4 | TQ2,RFlat | TQ1,Refine(TQ4) and combinations "
        "of these";

/// part of a description that names a TurboQuant codec, or tries to
struct Token {
    size_t begin;
    size_t size;
};

bool starts_with_ignoring_case(const std::string& s, const char* prefix) {
    size_t i = 0;
    for (; prefix[i]; i++) {
        if (i >= s.size() ||
            std::tolower(static_cast<unsigned char>(s[i])) != prefix[i]) {
            return false;
        }
    }
    return true;
}

std::vector<Token> find_tokens(const std::string& description) {
    std::vector<Token> tokens;
    size_t begin = 0;
    while (begin <= description.size()) {
        const size_t end = std::min(
                description.find_first_of(",()_", begin), description.size());
        const std::string word = description.substr(begin, end - begin);
        for (const char* prefix : {"tq", "turboquant", "polar"}) {
            if (starts_with_ignoring_case(word, prefix)) {
                tokens.push_back({begin, end - begin});
                break;
            }
        }
        begin = end + 1;
    }
    return tokens;
}

/// Levenshtein
size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (size_t i = 0; i < a.size(); i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < b.size(); j++) {
            const size_t substituted = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = std::min({substituted, row[j + 1] + 1, row[j] + 1});
        }
    }
    return row.back();
}

std::string nearest_codecs(const std::string& word) {
    size_t best = SIZE_MAX;
    std::string names;
    for (const Codec& codec : codecs) {
        const size_t distance = edit_distance(word, codec.name);
        if (distance < best) {
            best = distance;
            names.clear();
        }
        if (distance == best) {
            names += (names.empty() ? "" : ", ") + std::string(codec.name);
        }
    }
    return names;
}

const Codec& parse_codec(
        const std::string& word,
        const std::string& description) {
    for (const Codec& codec : codecs) {
        if (word == codec.name) {
            return codec;
        }
    }
    FAISS_THROW_MSG(
            "index_factory: \"" + word + "\" in \"" + description +
            "\" is not a TurboQuant codec of this version; nearest valid: " +
            nearest_codecs(word));
}

void replace_all(
        std::string& s,
        const std::string& from,
        const std::string& to) {
    for (size_t at = 0; (at = s.find(from, at)) != std::string::npos;
         at += to.size()) {
        s.replace(at, from.size(), to);
    }
}

using Codecs = std::vector<const Codec*>;

void replace_stand_ins(
        faiss::Index*& slot,
        faiss::ScalarQuantizer::QuantizerType stand_in,
        Codecs::const_iterator& next);

/// a graph over a stand-in becomes a plain Graph over TurboQuant codes
template <class Graph>
void replace_storage(
        faiss::Index*& slot,
        Graph& of_stand_in,
        faiss::ScalarQuantizer::QuantizerType stand_in,
        Codecs::const_iterator& next) {
    replace_stand_ins(of_stand_in.storage, stand_in, next);
    if (is_turboquant(of_stand_in.storage)) {
        auto graph = std::make_unique<Graph>(of_stand_in);
        of_stand_in.own_fields = false;
        delete slot;
        slot = graph.release();
    }
}

/** Puts TurboQuant indexes in the places of the stand-ins, in the order of the
 * description. Goes only into wrappers that read_index and write_index know
 * too.
 *
 * @param slot  an index built by FAISS's factory; replaced if it is a stand-in
 * @param next  codecs of the description from here on; advanced */
void replace_stand_ins(
        faiss::Index*& slot,
        faiss::ScalarQuantizer::QuantizerType stand_in,
        Codecs::const_iterator& next) {
    auto replace = [&](std::unique_ptr<faiss::Index> index) {
        ++next;
        delete slot;
        slot = index.release();
    };
    if (auto sq = dynamic_cast<faiss::IndexScalarQuantizer*>(slot)) {
        if (sq->sq.qtype == stand_in) {
            replace((*next)->make(sq->d, sq->metric_type));
        }
    } else if (auto ivf = dynamic_cast<faiss::IndexIVF*>(slot)) {
        replace_stand_ins(ivf->quantizer, stand_in, next);
        auto sq = dynamic_cast<faiss::IndexIVFScalarQuantizer*>(slot);
        if (sq && sq->sq.qtype == stand_in) {
            replace((*next)->make_ivf(*sq));
        }
    } else if (auto hnsw = dynamic_cast<faiss::IndexHNSWSQ*>(slot)) {
        replace_storage<faiss::IndexHNSW>(slot, *hnsw, stand_in, next);
    } else if (auto nsg = dynamic_cast<faiss::IndexNSGSQ*>(slot)) {
        replace_storage<faiss::IndexNSG>(slot, *nsg, stand_in, next);
    } else if (auto map = dynamic_cast<faiss::IndexIDMap*>(slot)) {
        replace_stand_ins(map->index, stand_in, next);
    } else if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(slot)) {
        replace_stand_ins(pre->index, stand_in, next);
    } else if (auto refine = dynamic_cast<faiss::IndexRefine*>(slot)) {
        // FAISS's factory forgets to let IndexRefinePanorama own its parts
        refine->own_fields = refine->own_refine_index = true;
        replace_stand_ins(refine->base_index, stand_in, next);
        replace_stand_ins(refine->refine_index, stand_in, next);
    } else if (
            auto minmax = dynamic_cast<faiss::IndexRowwiseMinMaxBase*>(slot)) {
        replace_stand_ins(minmax->index, stand_in, next);
    }
}

} // namespace

faiss::Index* index_factory(
        int d,
        const char* description,
        faiss::MetricType metric,
        bool own_invlists) {
    FAISS_THROW_IF_NOT_MSG(description, "index_factory: description is null");
    const std::string text(description);
    const std::vector<Token> tokens = find_tokens(text);
    if (tokens.empty()) {
        return faiss::index_factory(d, description, metric, own_invlists);
    }

    Codecs found;
    for (const Token& token : tokens) {
        found.push_back(
                &parse_codec(text.substr(token.begin, token.size), text));
    }
    FAISS_THROW_IF_NOT_FMT(
            d >= 1, "index_factory: d must be at least 1, got %d", d);
    FAISS_THROW_IF_NOT_FMT(
            metric == faiss::METRIC_L2 || metric == faiss::METRIC_INNER_PRODUCT,
            "index_factory: metric must be METRIC_L2 or METRIC_INNER_PRODUCT "
            "for \"%s\", got %d",
            description,
            static_cast<int>(metric));

    const StandIn* stand_in = std::find_if(
            std::begin(stand_ins), std::end(stand_ins), [&](const StandIn& s) {
                return text.find(s.name) == std::string::npos;
            });
    FAISS_THROW_IF_NOT_FMT(
            stand_in != std::end(stand_ins),
            "index_factory: \"%s\" combines more index types than can be told "
            "apart",
            description);

    std::string faiss_text = text;
    for (size_t i = tokens.size(); i-- > 0;) {
        faiss_text.replace(tokens[i].begin, tokens[i].size, stand_in->name);
    }
    std::unique_ptr<faiss::Index> index;
    try {
        index.reset(faiss::index_factory(
                d, faiss_text.c_str(), metric, own_invlists));
    } catch (const std::exception& e) {
        std::string reason = e.what();
        const bool one = std::count(found.begin(), found.end(), found[0]) ==
                static_cast<ptrdiff_t>(found.size());
        replace_all(reason, stand_in->name, one ? found[0]->name : "TQ*");
        FAISS_THROW_MSG(
                "index_factory: FAISS does not accept \"" + text + "\" (" +
                reason + "); " + valid_forms);
    }

    auto next = found.cbegin();
    faiss::Index* root = index.release();
    try {
        replace_stand_ins(root, stand_in->qtype, next);
    } catch (...) {
        delete root;
        throw;
    }
    index.reset(root);
    if (next != found.cend()) {
        FAISS_THROW_MSG(
                "index_factory: \"" + text +
                "\" has a TurboQuant codec in a place that takes none; " +
                valid_forms);
    }
    return index.release();
}

} // namespace faiss_turboquant
