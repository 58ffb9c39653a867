"""The package itself: importing it, next to FAISS, OpenMP and PyTorch."""

import inspect
import pathlib
import pydoc
import re

import faiss
import numpy as np
import pytest
from conftest import gaussian, output_of, run_python

import faiss_turboquant


def test_the_example_of_the_documentation():
    xb, xq = gaussian(1000, 64), gaussian(5, 64, 1)
    index = faiss.index_factory(64, "TQ4", faiss.METRIC_INNER_PRODUCT)
    index.add(xb)
    D, I = index.search(xq, 10)
    assert D.shape == I.shape == (5, 10)
    assert (D.dtype, I.dtype) == (np.float32, np.int64)
    exact = np.argsort(-(xq @ xb.T), axis=1)[:, 0]
    assert (I[:, :5] == exact[:, None]).any(axis=1).all()


def test_functions_are_in_place_of_faiss_s():
    for name in (
        "clone_index", "deserialize_index", "downcast_index", "index_factory",
        "read_index", "serialize_index", "write_index",
    ):
        function = getattr(faiss_turboquant, name)
        assert getattr(faiss, name) is function
        assert function.__doc__
    assert faiss.IndexTurboQuant is faiss_turboquant.IndexTurboQuant
    assert issubclass(faiss.IndexTurboQuant, faiss.IndexFlatCodes)


def test_all_names_have_docstrings():
    for name in faiss_turboquant.__all__:
        value = getattr(faiss_turboquant, name)
        assert isinstance(value, int) or value.__doc__, name


# of no use with arrays of numpy
UNDOCUMENTED = {
    "add_ex", "add_with_ids_ex", "compute_residual", "compute_residual_n",
    "get_CodePacker", "search_ex", "search_subset", "train_ex", "thisown",
}


def public_methods(cls):
    return {
        name
        for name in dir(cls)
        if not name.startswith("_")
        and not name.endswith("_c")
        and callable(getattr(cls, name))
    }


@pytest.mark.parametrize(
    "cls, names",
    [
        (
            faiss.IndexTurboQuant,
            public_methods(faiss.IndexTurboQuant) - UNDOCUMENTED,
        ),
        # what it has of IndexIVF besides is FAISS's to explain
        (
            faiss.IndexIVFTurboQuant,
            (public_methods(faiss.IndexTurboQuant) - UNDOCUMENTED)
            & set(vars(faiss.IndexIVFTurboQuant)),
        ),
    ],
)
def test_methods_say_their_shapes(cls, names):
    assert {"add", "search", "reconstruct", "merge_from"} <= names
    for name in names:
        text = getattr(cls, name).__doc__
        assert text, name
        parameters = list(inspect.signature(getattr(cls, name)).parameters)
        for parameter in set(parameters) - {"self", "numeric_type"}:
            assert re.search(rf"\b{parameter}\b", text), (name, parameter)
            if parameter in ("x", "codes", "D", "I", "R"):
                assert "shape (" in text, name
    assert "must be trained" not in pydoc.render_doc(cls.add)
    assert "shape (nq, k)" in pydoc.render_doc(cls.search)
    # FAISS's own indexes keep FAISS's
    assert "must be trained" in pydoc.render_doc(faiss.IndexFlat.add)


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", faiss_turboquant.__version__)
    cmake = pathlib.Path(__file__).parents[2] / "CMakeLists.txt"
    version = re.search(r"VERSION (\d+\.\d+\.\d+)\n", cmake.read_text())[1]
    assert faiss_turboquant.__version__ == version


@pytest.mark.parametrize("version", ["1.13.1", "1.99.0"])
def test_another_release_of_faiss_is_refused(version):
    process = run_python(
        f"import faiss; faiss.__version__ = {version!r}\n"
        "import faiss_turboquant"
    )
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert version in last and faiss.__version__ in last
    assert "pip install" in last


@pytest.mark.parametrize(
    "order", ["faiss_turboquant, faiss", "faiss, faiss_turboquant"]
)
def test_import_order(order):
    script = f"""
import {order}
import faiss
print(type(faiss.index_factory(8, "IDMap,TQ4").index).__name__)
"""
    assert output_of(script) == "Index"


def test_importing_again():
    script = """
import importlib, faiss, faiss_turboquant
importlib.reload(faiss_turboquant)
index = faiss.index_factory(8, "IDMap,Flat")
print(type(faiss.downcast_index(index.index)).__name__)
print(type(faiss.index_factory(8, "TQ4")) is faiss.IndexTurboQuant)
"""
    assert output_of(script).split() == ["IndexFlat", "True"]


@pytest.mark.parametrize("level", ["generic", "AVX2", "AVX512"])
def test_whichever_library_faiss_loads(level):
    """Of FAISS's libraries, one for each of these levels, the one that it has
    loaded is used, and it alone."""
    script = """
import faiss, numpy as np
import faiss_turboquant
index = faiss.index_factory(8, "IDMap,PCA4,TQ4,RFlat")
x = np.random.default_rng(0).standard_normal((100, 8)).astype("float32")
index.train(x)
index.add_with_ids(x, np.arange(100))
assert (index.search(x, 1)[1][:, 0] == np.arange(100)).all()
maps = open("/proc/self/maps").read().split()
print(len({m for m in maps if "_swigfaiss" in m and "turboquant" not in m}))
"""
    loads = run_python("import faiss, faiss.loader", FAISS_OPT_LEVEL=level)
    if loads.returncode != 0:
        pytest.skip(f"FAISS itself does not load at {level}")
    assert output_of(script, FAISS_OPT_LEVEL=level) == "1"


@pytest.mark.parametrize("shape", ["TQ4", "IDMap,TQ4", "IDMap,Flat"])
def test_indexes_that_live_until_the_end(shape):
    """They keep their destructors: SWIG has nothing to complain of."""
    script = f"""
import sys, types
import faiss, faiss_turboquant
class Cycle: pass
cycle = Cycle()
cycle.itself = cycle
cycle.index = faiss.index_factory(8, {shape!r})
sys.modules["keep"] = cycle
"""
    assert output_of(script) == ""


# --------------------------------------------------------------------- OpenMP


OPENMP = """
from faiss_turboquant import swigfaiss_turboquant
for n in (1, 3, 2):
    faiss.omp_set_num_threads(n)
    assert faiss.omp_get_max_threads() == n
    assert swigfaiss_turboquant.omp_get_max_threads() == n, n
def runtimes():
    maps = open("/proc/self/maps").read().split()
    return len({m for m in maps if re.search("lib(gomp|iomp|omp)[^/]*$", m)})
"""


def test_faiss_s_number_of_threads_is_ours():
    script = f"""
import re, faiss, faiss_turboquant
{OPENMP}
print(runtimes())
"""
    # FAISS's own is not joined by a second one
    assert output_of(script) == "1"


@pytest.mark.parametrize("first", [True, False])
def test_another_openmp_runtime_in_the_process(first):
    """As with PyTorch, which makes its runtime global."""
    other = """
try:
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
except OSError:
    print("none here")
    raise SystemExit
"""
    script = f"""
import ctypes, re
{other if first else ""}
import faiss
{"" if first else other}
import faiss_turboquant
assert faiss.omp_get_max_threads() \\
    == faiss_turboquant.swigfaiss_turboquant.omp_get_max_threads()
{OPENMP}
print(runtimes())
"""
    output = output_of(script)
    if output == "none here":
        pytest.skip("no libgomp.so.1 but FAISS's own")
    assert output == "2"


# -------------------------------------------------------------------- PyTorch


# contrib.torch_utils needs of PyTorch, for arrays of numpy, its names only
FAKE_TORCH = """
import sys, types
import faiss
torch = types.ModuleType("torch")
torch.Tensor = type("Tensor", (), {})
sys.modules["torch"] = torch
"""


@pytest.mark.parametrize("first", [True, False])
def test_next_to_torch_utils(first):
    imports = ["import faiss.contrib.torch_utils", "import faiss_turboquant"]
    script = f"""
{FAKE_TORCH}
{chr(10).join(imports if first else imports[::-1])}
import numpy as np
index = faiss.IndexTurboQuant(8)
assert index.search.__name__ == "torch_replacement_search"
x = np.random.default_rng(0).standard_normal((20, 8)).astype("float32")
index.train(x)
index.add(x)
D, I = index.search(x, 1)
assert (I[:, 0] == np.arange(20)).all()
# into arrays of numpy: by default the result is PyTorch's
y = index.reconstruct_n(3, 4, x=np.empty((4, 8), "float32"))
assert (index.reconstruct(3, x=np.empty(8, "float32")) == y[0]).all()
index.range_search(x, 1.0)
codes = index.sa_encode(x, codes=np.empty((20, index.code_size), "uint8"))
assert (index.sa_decode(codes, x=np.empty_like(x))[3:7] == y).all()
assert index.remove_ids(np.arange(5)) == 5
try:
    index.search(x[:, :4], 1)
except RuntimeError as e:
    print("expected (n, 8)" in str(e))
"""
    assert output_of(script) == "True"
