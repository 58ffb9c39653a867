#pragma once

#include <faiss/Index.h>
#include <faiss/MetricType.h>

namespace faiss_turboquant {

/** faiss::index_factory that knows the TurboQuant codecs: TQ1, TQ2, TQ3, TQ4
 * (bits per coordinate), and with trellis codes TQ1t to TQ4t, of 2^8 states, or
 * of 2^10 and 2^12 as in TQ2t10, TQ2t12; the same of 1.5, 2.5 and 3.5 bits, as
 * in TQ2.5 and TQ2.5t; TQ1mse to TQ4mse, the paper's Algorithm 1, and TQ1prod
 * to TQ4prod, its Algorithm 2.
 *
 * A codec stands alone ("TQ4") and inside FAISS's wrappers, which FAISS parses
 * by its own rules: "IDMap,TQ4", "TQ4,IDMap2", "PCA64,TQ4", "L2norm,RR,TQ4",
 * "IVF256,TQ4", "IVF4096(HNSW32,TQ4),TQ2t", "HNSW32,TQ4", "NSG32,TQ4",
 * "TQ2,RFlat", "TQ1,Refine(TQ4)", "PQ8,Refine(TQ4)", "MinMax,TQ4" and their
 * combinations. A description without a TurboQuant codec goes to FAISS as it
 * is.
 *
 * @param d             dimension of the vectors
 * @param description   the factory string
 * @param metric        METRIC_L2 or METRIC_INNER_PRODUCT with a TurboQuant
 *                      codec
 * @param own_invlists  passed on to FAISS
 * @return an empty index; the caller deletes it
 * @throws faiss::FaissException for anything else, naming the description and
 *         the nearest valid codecs or forms */
faiss::Index* index_factory(
        int d,
        const char* description,
        faiss::MetricType metric = faiss::METRIC_L2,
        bool own_invlists = true);

} // namespace faiss_turboquant
