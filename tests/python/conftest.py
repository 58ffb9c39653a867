import os
import subprocess
import sys

import faiss
import hypothesis
import numpy as np
import pytest

# first, so that a failing import fails every test
import faiss_turboquant  # noqa: F401

METRICS = (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)
NBITS = (1, 2, 3, 4)
# around the widths of registers, blocks and code bytes
AWKWARD_SIZES = (
    1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257
)

hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=30
)
hypothesis.settings.load_profile("default")


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d), dtype="float32")


def make_index(d, nbits=4, metric=faiss.METRIC_L2, n=0, centre=False, seed=0):
    """An index with n Gaussian vectors, and a centre if asked for."""
    index = faiss.IndexTurboQuant(d, nbits, metric)
    if centre:
        index.train(gaussian(100, d, seed + 1) + 0.5)
    if n:
        index.add(gaussian(n, d, seed))
    return index


def codes_of(index):
    """The codes of an IndexTurboQuant, shape (ntotal, code_size)."""
    codes = faiss.vector_to_array(index.codes)
    return codes.reshape(index.ntotal, index.code_size)


def brute_force(index, x):
    """All distances from the index's distance computer, nearest first, equal
    ones by id.

    Returns
    -------
    D, I : arrays, shape (n, ntotal)
    """
    computer = index.get_FlatCodesDistanceComputer()
    D = np.empty((len(x), index.ntotal), "float32")
    for i, row in enumerate(np.ascontiguousarray(x)):
        computer.set_query(faiss.swig_ptr(row))
        D[i] = [computer(j) for j in range(index.ntotal)]
    if index.metric_type == faiss.METRIC_L2:
        # an estimate can fall below zero, a squared distance cannot
        D = np.maximum(D, 0)
        I = np.argsort(D, axis=1, kind="stable")
    else:
        I = np.argsort(-D, axis=1, kind="stable")
    return np.take_along_axis(D, I, axis=1), I


def assert_same_results(index, D, I, D_ref, I_ref):
    """Results of one query equal those of brute_force, which may be more."""
    assert np.array_equal(D, D_ref[: len(D)])
    I_ref_k = I_ref[: len(I)]
    if index.metric_type == faiss.METRIC_L2:
        # which estimates were how far below zero is not visible
        zero = D == 0
        assert np.isin(I[zero], I_ref[D_ref == 0]).all()
        assert len(np.unique(I[zero])) == zero.sum()
        I, I_ref_k = I[~zero], I_ref_k[~zero]
    assert np.array_equal(I, I_ref_k)


def run_python(code, **environment):
    """Run a script in a fresh interpreter.

    Returns
    -------
    subprocess.CompletedProcess
        with text in stdout and stderr
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(code, **environment):
    """What a script prints; it has to succeed."""
    process = run_python(code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.fixture(params=METRICS, ids=["L2", "IP"])
def metric(request):
    return request.param


@pytest.fixture(params=NBITS)
def nbits(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["", "centre"])
def centre(request):
    return request.param
