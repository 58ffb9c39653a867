"""One index in many threads, and in processes that fork."""

import multiprocessing
import threading

import faiss
import numpy as np
import pytest
from conftest import gaussian, output_of

D, N, K = 64, 4000, 10

SHAPES = [
    "TQ4",
    "TQ1t",
    "IDMap,TQ2",
    "PCA32,TQ4",
    "TQ1,Refine(TQ4)",
    "IVF16,TQ4",
    "IDMap,IVF16,TQ2t",
    "HNSW16,TQ4",
    "IVF16,TQ1,RFlat",
]


def build(shape):
    index = faiss.index_factory(D, shape)
    index.train(gaussian(500, D, 1))
    if "IDMap" in shape:
        index.add_with_ids(gaussian(N, D), np.arange(N) + 5)
    else:
        index.add(gaussian(N, D))
    if "IVF" in shape:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 4)
    return index


def in_threads(work, n):
    """Run work(0) .. work(n - 1) at the same time."""
    errors = []
    start = threading.Barrier(n)

    def run(i):
        try:
            start.wait()
            work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_many_threads_search_one_index(shape):
    index = build(shape)
    queries = [gaussian(1 + 7 * i, D, 10 + i) for i in range(8)]
    # what a first search computes is computed by many at a time, too
    in_threads(lambda i: index.search(queries[i], K), len(queries))
    expected = [index.search(xq, K) for xq in queries]
    sel = faiss.IDSelectorRange(0, N // 2)
    inner = faiss.downcast_index(getattr(index, "base_index", index))
    radius = float(expected[0][0].mean())
    ranges = [inner.range_search(xq, radius) for xq in queries]

    def work(i):
        for _ in range(5):
            D_i, I_i = index.search(queries[i], K)
            assert np.array_equal(D_i, expected[i][0])
            assert np.array_equal(I_i, expected[i][1])
            for a, b in zip(inner.range_search(queries[i], radius), ranges[i]):
                assert np.array_equal(a, b)
            if shape in ("TQ4", "IDMap,TQ2"):
                params = faiss.SearchParameters(sel=sel)
                _, I_sel = index.search(queries[i], K, params=params)
                assert I_sel.max() < N // 2

    in_threads(work, len(queries))


def test_other_threads_run_while_one_searches():
    """The search lets go of Python's lock."""
    index = faiss.index_factory(256, "TQ4t")
    index.add(gaussian(50_000, 256))
    xq = gaussian(2000, 256, 1)
    done = threading.Event()
    searching = threading.Event()

    def search():
        searching.set()
        index.search(xq, K)
        done.set()

    thread = threading.Thread(target=search)
    thread.start()
    searching.wait()
    turns = 0
    while not done.is_set():
        done.wait(0.001)
        turns += 1
    thread.join()
    # with the lock held for the whole search there would be one or two
    assert turns > 5


def test_indexes_of_their_own_in_many_threads():
    """Adding, removing and writing, each thread to its own index."""
    x = gaussian(500, D)
    whole = faiss.index_factory(D, "IDMap2,TQ4t")
    whole.add_with_ids(x, np.arange(500))
    expected = faiss.serialize_index(whole)

    def work(i):
        index = faiss.index_factory(D, "IDMap2,TQ4t")
        for part in np.split(np.arange(500), [i + 1, 100, 333]):
            index.add_with_ids(x[part], part)
        index.add_with_ids(x, np.arange(500) + 1000)
        assert index.remove_ids(np.arange(1000, 1500)) == 500
        data = faiss.serialize_index(index)
        assert np.array_equal(data, expected)
        assert faiss.deserialize_index(data).ntotal == 500

    in_threads(work, 8)


# ----------------------------------------------------------------- processes


FORK = """
import multiprocessing, os, sys
import numpy as np
import faiss
import faiss_turboquant
x = np.random.default_rng(0).standard_normal((5000, 64), dtype="float32")
faiss.omp_set_num_threads(3)
index = faiss.index_factory(64, {shape!r})
index.train(x)
index.add(x)
expected = index.search(x[:40], 5)

def child(results):
    same = [(a == b).all() for a, b in zip(index.search(x[:40], 5), expected)]
    index.add(x)
    results.put((all(same), index.ntotal, faiss.omp_get_max_threads()))

context = multiprocessing.get_context("fork")
results = context.Queue()
children = [context.Process(target=child, args=(results,)) for _ in range(2)]
for process in children:
    process.start()
again = index.search(x[:40], 5)  # the parent goes on meanwhile
for process in children:
    process.join({patience})
    if process.is_alive():
        print("hangs")
        process.kill()
    else:
        print(*results.get())
print((again[1] == expected[1]).all(), index.ntotal)
"""


# Flat: FAISS's own loops too, which would hang without this package
@pytest.mark.parametrize("shape", ["TQ4", "IDMap2,TQ2t", "IVF8,TQ4", "Flat"])
def test_searching_on_both_sides_of_a_fork(shape):
    script = FORK.format(shape=shape, patience=60)
    if "IDMap" in shape:
        script = script.replace(
            "index.add(x)", "index.add_with_ids(x, np.arange(5000))"
        )
    lines = output_of(script).splitlines()
    assert lines == ["True 10000 3"] * 2 + ["True 5000"]


def test_forking_next_to_another_openmp_runtime():
    """FAISS's and ours are two then, and both are used."""
    other = """
import ctypes
try:
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
except OSError:
    print("none here")
    raise SystemExit
"""
    script = other + FORK.format(shape="TQ1,RFlat", patience=60)
    output = output_of(script)
    if output == "none here":
        pytest.skip("no libgomp.so.1 but FAISS's own")
    assert output.splitlines() == ["True 10000 3"] * 2 + ["True 5000"]


def search_of_worker(args):
    index, xq = args
    return index.search(xq, K)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pool_of_processes(method):
    """As data loaders do: indexes and results travel as pickles."""
    index = build("IDMap,TQ2")
    queries = [gaussian(9, D, i) for i in range(6)]
    expected = [index.search(xq, K) for xq in queries]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map_async(
            search_of_worker, [(index, xq) for xq in queries]
        ).get(timeout=120)
    for (D_a, I_a), (D_b, I_b) in zip(found, expected):
        assert np.array_equal(D_a, D_b) and np.array_equal(I_a, I_b)


# ------------------------------------------------------------ OpenMP threads


def test_omp_set_num_threads_is_respected():
    """A process has no more threads than FAISS was told to use."""
    script = """
import threading
import numpy as np
import faiss, faiss_turboquant
def count():
    status = open("/proc/self/status").read()
    return int(status.split("Threads:")[1].split()[0])
x = np.random.default_rng(0).standard_normal((20000, 64), dtype="float32")
faiss.omp_set_num_threads(1)
before = count()
index = faiss.index_factory(64, "TQ4t")
index.add(x)
index.search(x[:1000], 5)
index.search(x[:1], 5)
print(count() - before)
faiss.omp_set_num_threads(3)
index.search(x[:1000], 5)
print(count() - before)
"""
    assert output_of(script).split() == ["0", "2"]
