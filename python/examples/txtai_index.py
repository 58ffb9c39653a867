"""A txtai index on TurboQuant codes.

    pip install txtai
    python txtai_index.py            # IDMap,TQ4
    python txtai_index.py IDMap,Flat

txtai hands its setting `faiss.components` to FAISS's factory. Import
faiss_turboquant before txtai, which takes FAISS's functions by name.
"""

import sys
import tempfile

import numpy as np
import numpy.typing as npt
from data import TEXTS, embed

import faiss_turboquant  # noqa: F401  (adds TurboQuant to faiss)

from txtai.embeddings import Embeddings  # noqa: E402, I001


def transform(texts: list[str]) -> npt.NDArray[np.float32]:
    """In the place of a language model."""
    return embed(texts)


components = sys.argv[1] if len(sys.argv) > 1 else "IDMap,TQ4"
embeddings = Embeddings(
    method="external",
    transform=transform,
    backend="faiss",
    faiss={"components": components},
)
embeddings.index(TEXTS)
for line, score in embeddings.search("fresh bread", 2):
    print(f"{score:.2f} {TEXTS[line]}")

embeddings.upsert([(len(TEXTS), "The dog eats the bread.")])
embeddings.delete([3])

with tempfile.TemporaryDirectory() as folder:
    embeddings.save(folder)
    again = Embeddings()
    again.load(folder, config={"transform": transform})
    print([line for line, _ in again.search("fresh bread", 2)])
    print(type(again.ann.backend).__name__, again.count())
