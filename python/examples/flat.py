"""The change to a FAISS script: one import, and the factory string.

    python flat.py             # TQ4
    python flat.py PQ48x4fs    # any other description
"""

import os
import sys
import tempfile

import faiss
from data import vectors

import faiss_turboquant  # noqa: F401  (adds TurboQuant to faiss)

description = sys.argv[1] if len(sys.argv) > 1 else "TQ4"
d, n, nq, k = 96, 10_000, 200, 10
xb, xq = vectors(n, nq, d)

index = faiss.index_factory(d, description, faiss.METRIC_INNER_PRODUCT)
if not index.is_trained:
    index.train(xb)
index.add(xb)
D, I = index.search(xq, k)

exact = faiss.IndexFlatIP(d)
exact.add(xb)
_, truth = exact.search(xq, k)
found = sum(len(set(a) & set(b)) for a, b in zip(I, truth))

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "vectors.faiss")
    faiss.write_index(index, path)
    size = os.path.getsize(path)
    again = faiss.read_index(path)
assert (again.search(xq, k)[1] == I).all()

print(f"{description}: {k}-recall@{k} {found / (nq * k):.3f}, ", end="")
print(f"{size / n:.1f} bytes a vector in the file, floats take {4 * d}")
