"""Every SIMD level gives the same codes, ids and distances, byte for byte."""

import pytest
from conftest import output_of, run_python

import faiss_turboquant

LEVELS = faiss_turboquant.available_simd_levels()
KNOWN_LEVELS = [
    "scalar",
    "sse4",
    "avx2",
    "avx2_vnni",
    "avx512",
    "avx512_vnni",
    "amx",
    "neon",
    "neon_dot",
]

SCRIPT = """
import hashlib, itertools
import faiss, numpy as np
import faiss_turboquant

faiss.omp_set_num_threads(2)
rng = np.random.default_rng(0)
for d, nbits, (metric, centre, memory) in itertools.product(
    (1, 8, 16, 31, 32, 33, 64, 65, 100, 255, 256, 257, 384),
    (1, 2, 3, 4),
    (
        (faiss.METRIC_L2, False, 0),
        (faiss.METRIC_L2, True, 0),
        (faiss.METRIC_INNER_PRODUCT, False, 0),
        (faiss.METRIC_INNER_PRODUCT, True, 0),
        (faiss.METRIC_INNER_PRODUCT, False, 8),
    ),
):
    digest = hashlib.sha256()
    x = rng.standard_normal((150, d), dtype="float32")
    index = faiss.IndexTurboQuant(d, nbits, metric, memory=memory)
    if centre:
        index.train(x + 1)
    index.add(x)
    digest.update(faiss.vector_to_array(index.codes))
    digest.update(index.reconstruct_n())
    some = faiss.SearchParameters(sel=faiss.IDSelectorRange(3, 100))
    for nq in (1, 33):
        xq = rng.standard_normal((nq, d), dtype="float32")
        for params in (None, some):
            for result in index.search(xq, 10, params=params):
                digest.update(result)
            for result in index.range_search(xq, 0.5 * d, params=params):
                digest.update(result)
    print(d, nbits, metric, centre, memory, digest.hexdigest())
for d, codec, metric in itertools.product(
    (8, 65, 384),
    ("TQ1", "TQ3", "TQ4", "TQ2t", "TQ2mse", "TQ1.5", "TQ3.5", "TQ2.5t", "TQ1prod")
    + ("TQ4prod",),
    (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT),
):
    digest = hashlib.sha256()
    x = rng.standard_normal((300, d), dtype="float32")
    index = faiss.index_factory(d, "IVF10," + codec, metric)
    # FAISS's k-means and its distances are not the same on every CPU
    index.quantizer.add(x[:10])
    index.is_trained = True
    index.nprobe = 4
    keys = np.arange(300) % 10
    index.add_core(300, faiss.swig_ptr(x), None, faiss.swig_ptr(keys))
    index.make_direct_map()
    digest.update(index.reconstruct_n(0, 300))
    for nq in (1, 33):
        xq = rng.standard_normal((nq, d), dtype="float32")
        lists = np.arange(nq * 4).reshape(nq, 4) % 10
        near = np.zeros((nq, 4), dtype="float32")
        for result in index.search_preassigned(xq, 10, lists, near):
            digest.update(result)
        for result in index.range_search_preassigned(
            xq, 0.5 * d, lists, near
        ):
            digest.update(result)
    flat = faiss.index_factory(d, codec, metric)
    flat.add(x)
    digest.update(faiss.vector_to_array(flat.codes))
    digest.update(flat.reconstruct_n())
    for nq in (1, 33):
        xq = rng.standard_normal((nq, d), dtype="float32")
        for result in flat.search(xq, 10):
            digest.update(result)
    print(d, codec, metric, digest.hexdigest())
print(faiss_turboquant.simd_level())
"""


@pytest.fixture(scope="module")
def scalar():
    return output_of(SCRIPT, TQ_SIMD_LEVEL="scalar").splitlines()


def test_levels():
    assert LEVELS[0] == "scalar"
    assert set(LEVELS) <= set(KNOWN_LEVELS)
    assert len(set(LEVELS)) == len(LEVELS)


def test_scalar_level(scalar):
    assert scalar[-1] == "scalar"
    assert len(scalar) == 13 * 4 * 5 + 3 * 10 * 2 + 1
    assert len(set(scalar)) == len(scalar)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_level_equals_scalar(level, scalar):
    lines = output_of(SCRIPT, TQ_SIMD_LEVEL=level).splitlines()
    assert lines[-1] == level
    assert lines[:-1] == scalar[:-1]


def test_the_widest_level_is_the_default():
    script = "import faiss_turboquant; print(faiss_turboquant.simd_level())"
    assert output_of(script, TQ_SIMD_LEVEL="") == LEVELS[-1]


@pytest.mark.parametrize(
    "level", [level for level in KNOWN_LEVELS if level not in LEVELS] + ["x"]
)
def test_a_level_that_is_not_available_raises(level):
    script = """
import faiss, numpy as np
import faiss_turboquant
x = np.ones((2, 8), dtype="float32")
def add():
    index = faiss.index_factory(8, "TQ4")
    index.add(x)
for call in (faiss_turboquant.simd_level, add, add):
    try:
        call()
    except RuntimeError as e:
        print(e)
"""
    lines = output_of(script, TQ_SIMD_LEVEL=level).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert f"TQ_SIMD_LEVEL={level}" in line and LEVELS[-1] in line


def test_scripts_that_fail_are_noticed():
    assert run_python("raise SystemExit(3)").returncode == 3
