"""python/examples, as scripts."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

import faiss_turboquant

EXAMPLES = pathlib.Path(__file__).parents[2] / "python" / "examples"


def run(name, *arguments):
    """What an example prints; it has to succeed, without warnings of ours."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            # where it runs from is not where the package is
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
    )
    assert done.returncode == 0, done.stderr
    assert "memory leak" not in done.stdout
    return done.stdout


def need(*modules):
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def recalls(output):
    """description -> 10-recall@10"""
    found = re.findall(r"^(\S+): 10-recall@10 ([0-9.]+)", output, re.M)
    return {name: float(recall) for name, recall in found}


def test_flat():
    # the string alone makes the difference
    recall = {}
    for description in ("Flat", "SQ4", "TQ4", "TQ4t", "TQ2"):
        arguments = () if description == "TQ4" else (description,)
        recall.update(recalls(run("flat.py", *arguments)))
    assert recall["Flat"] == 1
    assert recall["TQ4t"] > recall["TQ4"] > recall["SQ4"] > recall["TQ2"]


def test_wrappers():
    output = run("wrappers.py")
    recall = recalls(output)
    assert recall["TQ1,Refine(TQ4)"] > 0.75
    assert recall["IDMap,PCA64,TQ4t,RFlat"] > 0.95
    assert min(recall.values()) > 0.7
    assert output.count("METRIC_INNER_PRODUCT") == len(recall) + 1
    assert f"SIMD      {faiss_turboquant.simd_level()}" in output


@pytest.mark.parametrize("codec", ["TQ4", "TQ2t", "Flat"])
def test_filters(codec):
    first, radius, stored = run("filters.py", codec).splitlines()
    ids = [
        re.findall(r"\d+", line.partition(":")[2]) for line in (first, radius)
    ]
    assert len(ids[0]) == 5
    # all but the farthest of the first five are nearer than that one
    assert set(ids[0][:4]) <= set(ids[1])
    assert stored.startswith("as it is stored")


# a model that knows words only finds the texts with these words
BREAD = [
    "Fresh bread and ripe tomatoes make a good lunch.",
    "The bakery sells fresh bread from six in the morning.",
]


@pytest.mark.parametrize("description", ["TQ4", "Flat"])
def test_langchain(description):
    need("langchain_community", "langchain_core")
    lines = run("langchain_store.py", description).splitlines()
    assert [line[5:] for line in lines[:2]] == BREAD
    assert lines[2] == BREAD[0]  # the other one is deleted
    type_name = "IndexTurboQuant" if description == "TQ4" else "IndexFlatIP"
    assert lines[-1] == f"{type_name} 7"


@pytest.mark.parametrize("components", ["IDMap,TQ4", "IDMap,Flat"])
def test_txtai(components):
    need("txtai", "msgpack")
    lines = run("txtai_index.py", components).splitlines()
    assert [line[5:] for line in lines[:2]] == BREAD
    assert lines[2] == "[4, 8]"  # 3 is deleted, 8 is new
    assert lines[3] == "IndexIDMap 8"
