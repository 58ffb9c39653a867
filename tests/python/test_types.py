"""The type stubs: what mypy makes of them, and that they are true."""

import ast
import inspect
import os
import pathlib
import subprocess
import sys

import faiss
import pytest

import faiss_turboquant

ROOT = pathlib.Path(__file__).parents[2]
STAGED = pathlib.Path(faiss_turboquant.__file__).parent


def mypy(*files, cwd=ROOT):
    """mypy's lines on some files, checked with the package as installed."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
        + ["--no-error-summary", "--hide-error-context", *files],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        # mypy takes this for where packages are installed
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "MYPY_CACHE_DIR": os.devnull,
        },
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_examples():
    files = sorted((ROOT / "python" / "examples").glob("*.py"))
    assert len(files) > 4
    assert mypy(*files) == []


# what a line that is wrong is to be told
CASES = '''
from typing import assert_type
import faiss
import numpy as np
import numpy.typing as npt
import faiss_turboquant
from faiss_turboquant import describe

x = np.zeros((4, 32), dtype="float32")
index = faiss.index_factory(32, "TQ4", faiss.METRIC_INNER_PRODUCT)
index.nprobe = 4  # a field of some indexes
D, I = index.search(x, 3, params=faiss.SearchParameters())
assert_type(D, npt.NDArray[np.float32])
assert_type(I, npt.NDArray[np.int64])
lims, D, I = index.range_search(x, 0.5)
assert_type(lims, npt.NDArray[np.uint64])
tq = faiss.IndexTurboQuant(d=32, nbits=2)
assert_type(tq.tq.nbits, int)
assert_type(tq.tq.rotation.apply(x), npt.NDArray[np.float32])
assert_type(describe(tq).others[0].codec, str)
assert_type(faiss.read_index("index").ntotal, int)
faiss.write_index(tq, "index")
flat = faiss.IndexFlatL2(32)  # FAISS's own have no types
assert_type(faiss.deserialize_index(faiss.serialize_index(tq)), faiss.Index)
index.search([[1.0]], 3)  # ERROR list[list[float]]
faiss.index_factory("TQ4", 32)  # ERROR "str"; expected "int"
faiss.IndexTurboQuant(32, bits=4)  # ERROR "bits"
faiss_turboquant.index_factry(32, "TQ4")  # ERROR "index_factry"
describe(tq).bits = 3  # ERROR read-only
faiss.write_index("index", tq)  # ERROR "str"; expected "Index"
'''


def test_right_and_wrong_uses(tmp_path):
    source = CASES
    if sys.version_info < (3, 11):
        source = source.replace(
            "from typing import assert_type",
            "from typing_extensions import assert_type",
        )
    (tmp_path / "cases.py").write_text(source)
    found = {}
    for line in mypy("cases.py", cwd=tmp_path):
        _, number, kind, text = line.split(":", 3)
        if kind.strip() == "error":
            found.setdefault(int(number), text)
    expected = {
        number: line.partition("# ERROR ")[2]
        for number, line in enumerate(source.splitlines(), 1)
        if "# ERROR" in line
    }
    assert set(found) == set(expected), found
    for number, text in expected.items():
        assert text in found[number]


# ------------------------------------------------------- stubs and what is


def stub(path):
    return ast.parse((STAGED.parent / path).read_text()).body


def functions(body):
    """name -> parameters of each of its overloads"""
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            a = node.args
            names = [p.arg for p in a.posonlyargs + a.args + a.kwonlyargs]
            found.setdefault(node.name, []).append(names)
    return found


def fields(body):
    return [n.target.id for n in body if isinstance(n, ast.AnnAssign)]


def assert_takes(function, overloads):
    """A function takes the parameters that its stubs have, in this order."""
    parameters = inspect.signature(function).parameters
    if any(p.kind == p.VAR_POSITIONAL for p in parameters.values()):
        return  # SWIG's overloads
    # FAISS's leave it to no one but themselves
    names = [name for name in parameters if name != "numeric_type"]
    for overload in overloads:
        assert overload == names, function


def test_the_package_s_stubs_are_complete():
    body = stub("faiss_turboquant/__init__.pyi")
    classes = {n.name for n in body if isinstance(n, ast.ClassDef)}
    public = classes | set(functions(body)) | set(fields(body))
    public = {name for name in public if not name.startswith("_")}
    assert public == set(faiss_turboquant.__all__)
    for name, overloads in functions(body).items():
        assert_takes(getattr(faiss_turboquant, name), overloads)


def ivf():
    return faiss.index_factory(8, "IVF4,TQ4")


OBJECTS = {
    "Codebook": lambda: faiss.IndexTurboQuant(8).tq.codebook,
    "Description": lambda: faiss_turboquant.describe(faiss.IndexTurboQuant(8)),
    "IndexIVF": ivf,
    "IndexIVFTurboQuant": ivf,
    "IndexTurboQuant": lambda: faiss.IndexTurboQuant(8),
    "Rotation": lambda: faiss.IndexTurboQuant(8).tq.rotation,
    "TurboQuantizer": lambda: faiss.IndexTurboQuant(8).tq,
    "Index": lambda: faiss.IndexTurboQuant(8),
    "IndexFlatCodes": lambda: faiss.IndexTurboQuant(8),
}


@pytest.mark.parametrize("package", ["faiss_turboquant", "faiss-stubs"])
def test_classes_have_what_their_stubs_have(package):
    checked = 0
    for node in stub(f"{package}/__init__.pyi"):
        if not isinstance(node, ast.ClassDef) or node.name not in OBJECTS:
            continue
        an_object = OBJECTS[node.name]()
        for field in fields(node.body):
            assert hasattr(an_object, field), field
        for name, overloads in functions(node.body).items():
            if name in ("__getattr__", "__setattr__", "bytes_per_vector"):
                assert hasattr(an_object, name) or name == "__getattr__"
            else:
                assert_takes(getattr(type(an_object), name), overloads)
        checked += 1
    assert checked == (6 if package == "faiss_turboquant" else 3)


def test_names_of_faiss_s_stubs_are_faiss_s():
    body = stub("faiss-stubs/__init__.pyi")
    (reexports,) = [
        node
        for node in body
        if isinstance(node, ast.ImportFrom)
        and node.module == "faiss_turboquant"
    ]
    for alias in reexports.names:
        if alias.asname:
            ours = getattr(faiss_turboquant, alias.name)
            assert getattr(faiss, alias.asname) is ours
    for node in body:
        if isinstance(node, ast.ClassDef):
            assert inspect.isclass(getattr(faiss, node.name))
    for name in fields(body):
        assert hasattr(faiss, name)
