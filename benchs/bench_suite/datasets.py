"""Where the vectors come from: cached embeddings, files, generators."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import embed
from .errors import BenchError

GT_K = 100  # neighbours kept as ground truth, for recall 1@100


@dataclass
class Dataset:
    name: str
    base: np.ndarray  # [n, d] float32
    queries: np.ndarray  # [nq, d] float32
    metric: str  # "ip" or "l2"
    truth: np.ndarray = None  # [nq, GT_K] ids, nearest first

    @property
    def d(self):
        return self.base.shape[1]

    def has_unit_length(self):
        """Whether all vectors and queries have length 1, to float error."""
        return all(
            abs(np.linalg.norm(x, axis=1) - 1).max() < 1e-5
            for x in (self.base, self.queries)
        )


# --------------------------------------------------------------------------
# files


def read_fvecs(path):
    """Rows of an .fvecs file: per row, int32 d, then d float32.

    Returns [n, d] float32. Raises BenchError if the file is no such thing.
    """
    raw = np.fromfile(path, dtype="<i4")
    size = os.path.getsize(path)
    if not len(raw) or size % 4 or raw[0] < 1 or len(raw) % (raw[0] + 1):
        raise BenchError(f"{path} is not an .fvecs file ({size} bytes)")
    rows = raw.reshape(-1, raw[0] + 1)
    if not (rows[:, 0] == raw[0]).all():
        raise BenchError(f"{path}: rows of different dimensions")
    return np.ascontiguousarray(rows[:, 1:]).view("<f4")


def read_vectors(path):
    """A matrix from .npy or .fvecs, as float32."""
    path = Path(path)
    if not path.exists():
        raise BenchError(f"no such file: {path}")
    if path.suffix == ".fvecs":
        x = read_fvecs(path)
    elif path.suffix == ".npy":
        try:
            x = np.load(path)
        except ValueError as e:
            raise BenchError(f"{path}: {e}") from None
    else:
        raise BenchError(
            f"{path}: '{path.suffix}' is not a known kind of file; "
            "known are .npy, .fvecs and .hdf5 (ann-benchmarks)"
        )
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.number):
        raise BenchError(f"{path}: {x.ndim}-d {x.dtype}, not rows of numbers")
    return np.ascontiguousarray(x, dtype=np.float32)


HDF5_METRICS = {
    "angular": "ip",  # and the rows are normalised
    "cosine": "ip",
    "dot": "ip",
    "ip": "ip",
    "euclidean": "l2",
}


def read_hdf5(path):
    """base, queries and metric ("ip" or "l2") of an ann-benchmarks file."""
    try:
        import h5py
    except ImportError:
        raise BenchError(
            f"h5py is needed to read {path}: pip install h5py"
        ) from None
    try:
        with h5py.File(path) as f:
            if "train" not in f or "test" not in f:
                raise BenchError(f"{path} has no 'train' and 'test' tables")
            distance = f.attrs.get("distance", "euclidean")
            base = np.asarray(f["train"], dtype=np.float32)
            queries = np.asarray(f["test"], dtype=np.float32)
    except OSError as e:
        raise BenchError(f"{path}: {e}") from None
    if isinstance(distance, bytes):
        distance = distance.decode()
    if distance not in HDF5_METRICS:
        raise BenchError(
            f"{path}: distance '{distance}' is neither an inner product nor "
            "Euclidean"
        )
    if distance in ("angular", "cosine"):
        base, queries = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
            for x in (base, queries)
        )
    return base, queries, HDF5_METRICS[distance]


# --------------------------------------------------------------------------
# generators

SYNTHETIC = {  # name: default options
    "gaussian": dict(d=200, n=50_000, nq=1000, seed=1),
    "anisotropic": dict(d=1536, n=30_000, nq=1000, seed=1),
}


def parse_spec(spec):
    """"gaussian:d=200,n=50000" -> ("gaussian", {d, n, nq, seed})."""
    name, _, rest = spec.partition(":")
    options = dict(SYNTHETIC[name])
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if key not in options or not equals or not value.isdigit():
            raise BenchError(
                f"'{item}' in '{spec}': the options of {name} are "
                + ", ".join(f"{k}={v}" for k, v in options.items())
            )
        options[key] = int(value)
    if not (options["d"] > 0 and options["n"] > 0 and options["nq"] > 0):
        raise BenchError(f"'{spec}': d, n and nq must be positive")
    return name, options


def synthetic(name, d, n, nq, seed):
    """Unit vectors: isotropic, or with variances falling as i^-0.8 in a
    fixed random basis and a mean of about half of the length."""
    rs = np.random.RandomState(seed)
    x = rs.standard_normal((n + nq, d)).astype(np.float32)
    if name == "anisotropic":
        x *= np.arange(1, d + 1, dtype=np.float32) ** -0.4
        basis = np.linalg.qr(rs.standard_normal((d, d)))[0]
        x = x @ basis.astype(np.float32)
        mean = rs.standard_normal(d).astype(np.float32)
        length = np.linalg.norm(x, axis=1).mean()
        x += 0.5 * length * mean / np.linalg.norm(mean)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x[nq:], x[:nq]


# --------------------------------------------------------------------------

# 30,000 rows at 1536-d keep the default run within its ten minutes
GLOSSES = {"glosses384": (384, 60_000), "glosses1536": (1536, 30_000)}


def load(spec, queries=None, rows=None, n_queries=None, metric=None):
    """Dataset of one --data argument.

    spec: glosses384 | glosses1536 | gaussian[:d=,n=,nq=,seed=] |
        anisotropic[:...] | path of .npy, .fvecs or .hdf5
    queries: path of the queries, for .npy and .fvecs only; without it the
        last 1000 rows (at most a tenth) serve as queries and leave the base
    rows, n_queries: the most of each that are used; None for the default
    metric: "ip" or "l2"; None: the file's own if it says, else "ip"
    """
    own_metric = "ip"
    kind = spec.partition(":")[0]
    if queries and (
        spec in GLOSSES or kind in SYNTHETIC or spec.endswith(".hdf5")
    ):
        raise BenchError(f"--queries does not go with {spec}")
    if spec in GLOSSES:
        dim, default_rows = GLOSSES[spec]
        base, q = embed.glosses(
            dim, rows or default_rows, n_queries or embed.N_QUERIES
        )
    elif kind in SYNTHETIC:
        name, options = parse_spec(spec)
        base, q = synthetic(name, **options)
    elif spec.endswith((".hdf5", ".h5")):
        if not Path(spec).exists():
            raise BenchError(f"no such file: {spec}")
        base, q, own_metric = read_hdf5(spec)
    elif Path(spec).suffix:
        base = read_vectors(spec)
        if queries:
            q = read_vectors(queries)
        else:
            held_out = max(1, min(1000, len(base) // 10))
            base, q = base[:-held_out], base[-held_out:]
    else:
        known = [*GLOSSES, *SYNTHETIC]
        raise BenchError(
            f"unknown data '{spec}': known are {', '.join(known)}, and paths "
            "of .npy, .fvecs and .hdf5 files"
        )
    base, q = base[:rows], q[:n_queries]
    if base.shape[1] != q.shape[1]:
        raise BenchError(
            f"{spec}: {base.shape[1]}-d vectors, {q.shape[1]}-d queries"
        )
    if len(base) < GT_K:
        raise BenchError(
            f"{spec}: {len(base)} vectors; recall 1@{GT_K} needs {GT_K}"
        )
    for what, x in (("vectors", base), ("queries", q)):
        bad = ~np.isfinite(x).all(axis=1)
        if bad.any():
            raise BenchError(
                f"{spec}: row {bad.argmax()} of the {what} is not finite"
            )
    name = Path(spec).name if Path(spec).exists() else spec
    return Dataset(
        name,
        np.ascontiguousarray(base),
        np.ascontiguousarray(q),
        metric or own_metric,
    )


def add_ground_truth(data):
    """Fills data.truth by exact search."""
    import faiss
    from tqdm import tqdm

    metric = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
    index = faiss.IndexFlat(data.d, metric[data.metric])
    index.add(data.base)
    nq, step = len(data.queries), 100
    truth = [
        index.search(data.queries[i : i + step], GT_K)[1]
        for i in tqdm(range(0, nq, step), desc="exact search", leave=False)
    ]
    data.truth = np.concatenate(truth)
