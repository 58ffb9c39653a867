#!/usr/bin/env python3
"""Index files that every later version has to read, in tests/data/files.

Run, this writes those that are missing, with what searches in them find. A
file that is there is never written again: it is what users have.
"""

import json
import pathlib
import re

import faiss
import numpy as np
from conftest import gaussian

import faiss_turboquant

FOLDER = pathlib.Path(__file__).parent.parent / "data" / "files"
D, N, NQ, K = 24, 40, 4, 5
L2, IP = faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT
HAAR = faiss_turboquant.RotationType_Haar

# Transforms and exact distances are FAISS's, whose last bits depend on the
# processor
INEXACT = ("PCA", "Flat", "L2norm")

CODECS = [
    *("TQ1", "TQ2", "TQ3", "TQ4"),
    *("TQ1t", "TQ2t", "TQ3t", "TQ4t", "TQ2t10"),
    *("TQ1.5", "TQ2.5", "TQ3.5"),
    *("TQ1.5t", "TQ2.5t", "TQ3.5t"),
    *("TQ1mse", "TQ4mse", "TQ1prod", "TQ3prod"),
]
SHAPES = [
    "IVF3,TQ4",
    "IVF3,TQ2t",
    "IVF3,TQ2.5",
    "IVF3,TQ2.5t",
    "IVF3,TQ3prod",
    "IVF3(TQ4),TQ2",
    "IVF3(TQ4),Flat",
    "HNSW4,TQ4",
    "NSG4,TQ4",
    "IDMap2,TQ4",
    "TQ1,Refine(TQ4)",
    "TQ2,RFlat",
    "PCA16,TQ4",
    "L2norm,TQ4",
]


def vectors():
    return gaussian(N, D, 1) + 0.2, gaussian(NQ, D, 2) + 0.2


def filled(index, is_centred):
    x, _ = vectors()
    if is_centred or not index.is_trained:
        index.train(x)
    if isinstance(index, faiss.IndexNSG):
        index.build_type, index.GK = 0, 8
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = index.nlist
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(x, 3 * np.arange(N) + 5)
    else:
        index.add(x)
    return index


def indexes():
    """name -> index"""
    found = {}
    for codec in CODECS:
        for name, metric in (("L2", L2), ("IP", IP)):
            for centre in ("", "-centred"):
                index = faiss.index_factory(D, codec, metric)
                found[f"{codec}-{name}{centre}"] = filled(index, bool(centre))
    found["haar-L2"] = filled(faiss.IndexTurboQuant(D, 4, L2, HAAR, 7), False)
    for shape in SHAPES:
        for name, metric in (("L2", L2), ("IP", IP)):
            index = filled(faiss.index_factory(D, shape, metric), False)
            slug = re.sub(r"\W+", "-", shape)
            found[f"{slug}-{name}"] = index
    return found


def search(index):
    """What a search finds, as JSON has it: floats by all their bits."""
    _, xq = vectors()
    D_found, I_found = index.search(xq, K)
    return {
        "D": [[float(d).hex() for d in row] for row in D_found],
        "I": I_found.tolist(),
    }


def path_of(name):
    return FOLDER / f"{name}.index"


def results_path():
    return FOLDER / "results.json"


def read_results():
    path = results_path()
    return json.loads(path.read_text()) if path.exists() else {}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = read_results()
    for name, index in indexes().items():
        if not path_of(name).exists():
            faiss.write_index(index, str(path_of(name)))
            results[name] = search(index)
            print(name)
    rows = [f'"{name}": {json.dumps(r)}' for name, r in sorted(results.items())]
    results_path().write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
