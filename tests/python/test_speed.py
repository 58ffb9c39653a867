"""The speed report of bench_all."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest

BENCHS = Path(__file__).resolve().parents[2] / "benchs"
sys.path.insert(0, str(BENCHS))

from bench_suite import (  # noqa: E402
    cli,
    contenders,
    cpu_count,
    datasets,
    report,
    speed,
)

# ---------------------------------------------------------------- contenders


def test_default_contenders():
    names = speed.default_names(384)
    assert len(set(names)) == len(names)
    assert {"Flat", "PQ384x4fs", "TQ1", "TQ4t", "turbovec4"} <= set(names)
    of_newer_faiss = {"RR,EDEN1", "RR,EDEN4", "RR,SQtq4"}
    for name in set(names) - of_newer_faiss:
        if not name.startswith("turbovec"):
            made = contenders.make(name, 384, "ip")
            assert isinstance(made, contenders.FaissContender), made


@pytest.mark.parametrize(
    "name, expected",
    [
        ("TQ4", True),
        ("PCA64,TQ2t", True),
        ("TQ4 (trained)", True),
        ("SQ8", False),
        ("RR,SQtq4", False),
        ("turbovec4", False),
    ],
)
def test_is_turboquant(name, expected):
    assert contenders.is_turboquant(name) == expected


def test_threads_of_faiss():
    before = faiss.omp_get_max_threads()
    contender = contenders.make("Flat", 8, "ip")
    with contender.threads(3):
        assert faiss.omp_get_max_threads() == 3
    with contender.one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before


def test_threads_of_turbovec():
    pytest.importorskip("turbovec")
    contender = contenders.make("turbovec4", 64, "ip")
    before = os.sched_getaffinity(0)
    for n in {1, len(before)}:
        with contender.threads(n):
            assert os.sched_getaffinity(0) == set(sorted(before)[:n])
    with contender.one_thread():
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


# ---------------------------------------------------------------- measuring


class Fake(contenders.Contender):
    """A contender whose searches take the time that cost(queries) says."""

    def __init__(self, name, cost):
        self.name, self.cost = name, cost
        self.limit = None
        self.calls = []  # (threads, first query, number of queries, k)

    @contextmanager
    def threads(self, n):
        self.limit = n
        yield
        self.limit = None

    def search(self, q, k):
        self.calls.append((self.limit, int(q[0, 0]), len(q), k))
        return self.cost(len(q))


@pytest.fixture
def fake_clock(monkeypatch):
    """Times are what the contender returns."""

    def timed(f, *args):
        return f(*args), None

    monkeypatch.setattr(speed.measure, "timed", timed)


def numbered(n):
    return np.arange(n, dtype=np.float32)[:, None]


def test_read_bandwidth_is_the_best_pass(monkeypatch):
    times = iter([5.0, 4.0, 2.0, 8.0, 4.0, 4.0, 4.0])
    read = []
    monkeypatch.setattr(speed.np, "max", lambda part: read.append(len(part)))

    def timed(f):
        read.clear()
        f()
        return next(times), None

    monkeypatch.setattr(speed.measure, "timed", timed)
    buffer = np.ones(1001, np.uint64)
    assert speed.read_bandwidth(buffer, 2) == 8 * 1001 / 2
    assert sorted(read) == [500, 501]  # all of it, in each pass


def test_read_buffer_is_larger_than_caches():
    assert speed.read_buffer(1).nbytes == 256 << 20
    assert speed.read_buffer(6).nbytes == 384 << 20


@pytest.mark.parametrize(
    "per_query, sizes",
    [
        (1e-3, (1, 32, 1000)),
        (0.05, (1, 32, 80)),  # in PATIENCE = 4 s
        (0.5, (1, 32, 32)),
        (2.0, (1, 10, 10)),  # in DESPAIR = 20 s
        (50.0, (1, 1, 1)),
    ],
)
def test_slow_contenders_get_smaller_batches(fake_clock, per_query, sizes):
    contender = Fake("x", lambda n: n * per_query)
    got = speed.sizes_of_batches(contender, numbered(1000), 1.0)
    assert got == dict(zip((1, 32, 1000), sizes))


def test_what_is_faster_in_batches_gets_larger_ones(fake_clock):
    contender = Fake("x", lambda n: 0.5 if n < 20 else 0.01 * n)
    got = speed.sizes_of_batches(contender, numbered(1000), 1.0)
    assert got == {1: 1, 32: 32, 1000: 400}


def test_per_query_is_a_median_over_the_calls(monkeypatch, fake_clock):
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    costs = iter([1.0, 4.0, 100.0, 8.0])
    contender = Fake("x", lambda n: next(costs))
    # of 10 queries two batches of 4 can be made
    got = speed.per_query(contender, numbered(10), 4, 7, 3.0)
    assert got == 8.0 / 4
    # the first wakes threads
    assert contender.calls == [(None, 0, 1, 7)] + [
        (None, i, 4, 7) for i in (0, 4, 0)
    ]


def test_per_query_searches_at_least_once(fake_clock):
    contender = Fake("x", lambda n: 3.0)
    assert speed.per_query(contender, numbered(2), 2, 7, -1.0) == 1.5


def test_all_modes_are_measured_in_every_round(monkeypatch, fake_clock):
    pytest.importorskip("tqdm")
    rates = iter([2.0, 5.0] * 5 + [9.0, 4.0] * 5)
    monkeypatch.setattr(speed, "read_buffer", lambda threads: None)
    monkeypatch.setattr(
        speed, "read_bandwidth", lambda buffer, n: next(rates)
    )
    fast = Fake("fast", lambda n: 1e-9 * n)
    slow = Fake("slow", lambda n: 1e-3 * n)
    bandwidth, times = speed.measure_all(
        [fast, slow], numbered(100), [1, 2], repetitions=2, seconds=1e-3
    )
    # five modes a round and number of threads
    assert bandwidth == {1: 9.0, 2: 9.0}
    assert list(times) == [
        (name, threads, batch, k)
        for threads in (1, 2)
        for batch, k in speed.MODES
        for name in ("fast", "slow")
    ]
    for (name, threads, batch, k), (size, seconds) in times.items():
        contender = {"fast": fast, "slow": slow}[name]
        assert size == (batch if name == "fast" else min(batch, 20))
        assert seconds == pytest.approx([contender.cost(1)] * 2)
        modes = [(limit, n, k) for limit, _, n, k in contender.calls]
        assert (threads, size, k) in modes


def test_recall_is_that_of_the_first_queries():
    data = datasets.load("gaussian:d=20,n=300,nq=130")
    few = speed.with_recall_queries(data)
    np.testing.assert_array_equal(few.queries, data.queries[:100])
    assert few.truth.shape == (100, datasets.GT_K)
    assert len(data.queries) == 130 and data.truth is None


# ---------------------------------------------------------------- results


def rows_of(**seconds_and_bytes):
    """Rows of an index of 1000 vectors, measured in two modes."""
    rows = [
        {"name": name, "bytes_per_vector": nbytes, "10-recall@10": 0.5}
        for name, (_, nbytes) in seconds_and_bytes.items()
    ]
    times = {}
    for name, (seconds, _) in seconds_and_bytes.items():
        times[name, 2, 1, 10] = 1, [seconds, 9 * seconds, 2 * seconds]
        times[name, 2, 32, 10] = 30, [seconds / 10]
    for row in rows:
        row["speed"] = speed.figures(row, 1000, {2: 1e9}, times)
    return rows


def test_figures():
    (row,) = rows_of(TQ4=(1e-4, 40))
    one, batch = row["speed"]
    assert (one["threads"], one["batch"], one["k"]) == (2, 1, 10)
    assert one["ns"] == pytest.approx(200)  # the median's 2e-4 s
    assert one["ns_repetitions"] == pytest.approx([100, 900, 200])
    assert one["qps"] == pytest.approx(5000)
    assert one["bound_ns"] == pytest.approx(40)
    assert one["of_bound"] == pytest.approx(0.2)
    assert batch["queries"] == 30 and batch["ns"] == pytest.approx(10)
    assert "bound_ns" not in batch and "of_bound" not in batch
    assert speed.find(row, 2, 32, 10) is batch


def test_peers_have_at_least_as_many_bits():
    d = 64
    rows = rows_of(
        Flat=(8e-5, 256),
        PQ64x4fs=(4e-5, 32),
        RaBitQfs1=(1e-5, 16),
        TQ4=(2e-5, 36),
        TQ2t=(2e-5, 22),
        TQ1=(2e-5, 12),
    )
    assert [speed.bits(row, d) for row in rows] == [32, 4, 2, 4, 2, 1]
    speed.add_peers(rows, d)
    for row, peer, times in (
        (rows[3], "PQ64x4fs", 2),
        (rows[4], "RaBitQfs1", 0.5),
        (rows[5], "RaBitQfs1", 0.5),
    ):
        for figure in row["speed"]:
            assert figure["peer"] == peer
            assert figure["times_peer"] == pytest.approx(times)
    assert not any("peer" in f for row in rows[:3] for f in row["speed"])


def test_without_peers_there_is_no_ratio():
    rows = rows_of(RaBitQfs1=(1e-5, 16), TQ4=(2e-5, 36))
    speed.add_peers(rows, 64)
    assert not any("peer" in f for row in rows for f in row["speed"])


def test_table(monkeypatch):
    monkeypatch.setattr(speed, "MODES", ((1, 10), (32, 10)))
    rows = rows_of(Flat=(8e-5, 256), TQ4=(2e-5, 36))
    speed.add_peers(rows, 64)
    for row, n in zip(rows, (20, 50)):
        row.update(note=None, recall_queries=n)
    result = {"rows": rows, "nq": 50}
    result["skipped"] = [{"name": "X", "reason": "away"}]
    header, (flat, tq4) = speed.table(result, 2)
    assert header == (
        ["index", "bytes", "10-recall@10"]
        + ["b1: ns", "q/s", "of bound", "x peer", "b32: ns", "q/s", "x peer"]
    )
    assert flat == (
        ["Flat \u2020", "256", "0.500", "160", "6,250", "1.6", "", "8*"]
        + ["125,000", ""]
    )
    assert tq4 == (
        ["TQ4", "36", "0.500", "40", "25,000", "0.9", "4.00", "2*"]
        + ["500,000", "4.00"]
    )
    few, marked, skipped = speed.notes(result)
    assert few == "\u2020 slow: Flat's recall is that of the first 20 queries"
    assert marked.startswith(report.SMALL)
    assert skipped == "not run: X: away"
    for row in rows:
        row["recall_queries"] = 50
        row["speed"] = row["speed"][:1]  # batches as they should be
    assert speed.notes(result) == [skipped]


# ---------------------------------------------------------------- program


def bench_all(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, BENCHS / "bench_all.py", "--report", "speed"]
        + ["--output", tmp_path, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_whole_run(tmp_path):
    for module in ("tqdm", "matplotlib"):
        pytest.importorskip(module)
    names = ["Flat", "PQ32x4fs", "TQ4", "TQ1t"]
    done = bench_all(
        tmp_path,
        *("--quick", "--data", "gaussian:d=32,n=1000,nq=50"),
        *("--contenders", "Flat", "PQ{d}x4fs", "TQ4", "TQ1t", "SQ8"),
        *("--skip", "SQ", "--seconds", "0.002", "--train-rows", "700"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())
    assert results["settings"]["train_rows"] == 700
    assert results["machine"]["turboquant_simd"]
    threads = results["settings"]["threads"]
    assert threads == sorted({1, cpu_count()})
    (result,) = results["datasets"]
    assert (result["n"], result["d"], result["nq"]) == (1000, 32, 50)
    bandwidth = {
        b["threads"]: b["bytes_per_s"] for b in result["read_bandwidth"]
    }
    assert list(bandwidth) == threads and min(bandwidth.values()) > 0
    assert [row["name"] for row in result["rows"]] == names
    for row in result["rows"]:
        modes = [(f["threads"], f["batch"], f["k"]) for f in row["speed"]]
        assert modes == [(n, *mode) for n in threads for mode in speed.MODES]
        for f in row["speed"]:
            assert 1 <= f["queries"] <= f["batch"]
            assert len(f["ns_repetitions"]) == 2
            assert f["ns"] == pytest.approx(np.median(f["ns_repetitions"]))
            assert f["ns"] * f["qps"] == pytest.approx(1e9 / 1000)
            assert min(f["ns_repetitions"]) > 0
            assert ("bound_ns" in f) == (f["batch"] == 1)
            if f["batch"] == 1:
                bound = 1e9 * row["bytes_per_vector"]
                bound /= bandwidth[f["threads"]]
                assert f["bound_ns"] == pytest.approx(bound)
            assert ("peer" in f) == row["name"].startswith("TQ")
            if "peer" in f:
                assert f["peer"] in ("Flat", "PQ32x4fs")
    markdown = (tmp_path / "speed.md").read_text()
    for output in (done.stdout, markdown):
        assert all(name in output for name in names)
        titles = re.findall(r"(\d+) threads?, read bandwidth", output)
        assert titles == [str(n) for n in threads]
        assert "SQ8" not in output
    (plot,) = tmp_path.glob("*.png")
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "results.json").exists()


def test_defaults():
    args = cli.parse_args(["--report", "speed"])
    assert args.data == ["glosses384", "glosses1536"]
    assert args.threads == sorted({1, cpu_count()})
    quick = cli.parse_args(["--report", "speed", "--quick"])
    assert quick.data == ["gaussian:d=384,n=10000"]
    for name in ("seconds", "budget", "recall_seconds", "repetitions"):
        assert getattr(quick, name) < getattr(args, name)
    args = cli.parse_args(["--report", "speed", "--threads", "1", "1"])
    assert args.threads == [1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--report", "search", "--threads", "1"], "--report speed only"),
        (["--report", "distortion", "--threads", "1"], "--threads does not"),
        (["--report", "speed", "--threads", "0"], "positive int"),
        (["--report", "speed", "--threads", "99999"], "--threads 99999"),
        (["--report", "speed", "--batches", "1"], "--batches"),
        (["--report", "speed", "--queries", "q.npy"], "--queries goes with"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as info:
        cli.parse_args(arguments)
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_contenders_are_refused(tmp_path):
    pytest.importorskip("tqdm")
    done = bench_all(
        tmp_path, "--data", "gaussian:d=8,n=200", "--contenders", "FOO"
    )
    assert done.returncode == 1
    assert "'FOO'" in done.stderr and "Traceback" not in done.stderr
