"""Filters, removals and changes of an index with ids.

    python filters.py            # TQ4
    python filters.py TQ2t
"""

import sys

import faiss
import numpy as np
from data import vectors

import faiss_turboquant  # noqa: F401  (adds TurboQuant to faiss)

codec = sys.argv[1] if len(sys.argv) > 1 else "TQ4"
d, n, k = 64, 5_000, 5
xb, xq = vectors(n, 3, d)
ids = np.arange(n) * 10
index = faiss.index_factory(d, f"IDMap2,{codec}")
index.add_with_ids(xb, ids)

# a filter: only these ids
wanted = faiss.IDSelectorBatch(ids[:500])
D, I = index.search(xq, k, params=faiss.SearchParameters(sel=wanted))
assert (I < 5_000).all()
print("among the first 500:", I[0].tolist())

# all within a radius
lims, D, I = index.range_search(xq, float(D[0, -1]))
print("within a radius:", sorted(I[: lims[1]].tolist()))

# remove, and put something else in the place
index.remove_ids(wanted)
assert index.ntotal == n - 500
index.add_with_ids(-xb[:500], ids[:500])
print("as it is stored:", index.reconstruct(int(ids[0]))[:4].round(2))
