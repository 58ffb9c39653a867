"""TurboQuant inside FAISS's wrappers: everything is in the factory string.

    python wrappers.py                       # a list of descriptions
    python wrappers.py "PCA48,TQ4,RFlat"     # yours
"""

import sys

import faiss
import numpy as np
from data import vectors

import faiss_turboquant

DESCRIPTIONS = [
    "TQ4",
    "IDMap2,TQ2t",  # ids of your own
    "PCA48,TQ4",  # half of the dimensions
    "L2norm,TQ3",  # cosine similarity
    "TQ1,Refine(TQ4)",  # a coarse pass over all, a finer one over the best
    "TQ2,RFlat",
    "IDMap,PCA64,TQ4t,RFlat",
    "IVF64,TQ4",  # inverted lists of residuals
    "PCA64,IVF64,TQ4,RFlat",
    "HNSW16,TQ4",  # a graph over codes
]

d, n, nq, k = 96, 5_000, 100, 10
xb, xq = vectors(n, nq, d)
ids = 100_000 + np.arange(n)
exact = faiss.IndexIDMap(faiss.IndexFlatIP(d))
exact.add_with_ids(xb, ids)
_, truth = exact.search(xq, k)

for description in sys.argv[1:] or DESCRIPTIONS:
    index = faiss.index_factory(d, description, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(xb)
    if description.startswith("IDMap"):
        index.add_with_ids(xb, ids)
    else:
        index.add(xb)
    if "Refine(" in description or "RFlat" in description:
        # the candidates of the first pass: four for each result
        faiss.ParameterSpace().set_index_parameter(index, "k_factor_rf", 4)
    if "IVF" in description:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 16)
    _, I = index.search(xq, k)
    if not description.startswith("IDMap"):
        I = I + ids[0]
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(I, truth)])
    print(f"{description}: {k}-recall@{k} {recall:.3f}")
    print(faiss_turboquant.describe(index), end="\n\n")
