"""The parts of bench_all that can be checked without running it."""

import json
import subprocess
import sys
import time
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

BENCHS = Path(__file__).resolve().parents[2] / "benchs"
sys.path.insert(0, str(BENCHS))

from bench_suite import (  # noqa: E402
    cli,
    contenders,
    datasets,
    embed,
    measure,
    report,
    speed,
)
from bench_suite.errors import BenchError  # noqa: E402
from bench_suite.other_faiss import OtherContender, OtherFaiss  # noqa: E402

# ---------------------------------------------------------------- recall


def test_recall_1_at_counts_the_nearest_neighbour_only():
    truth = np.array([[7, 1], [8, 2], [9, 3]])
    ids = np.array([[7, 0, 5], [2, 8, 5], [3, 1, 2]])
    assert measure.recall_1_at(ids, truth, 1) == pytest.approx(1 / 3)
    assert measure.recall_1_at(ids, truth, 2) == pytest.approx(2 / 3)
    assert measure.recall_1_at(ids, truth, 3) == pytest.approx(2 / 3)


def test_recall_k_at_k_is_an_intersection():
    truth = np.array([[1, 2, 3], [4, 5, 6]])
    ids = np.array([[3, 2, 9], [4, 5, 6]])
    assert measure.recall_k_at_k(ids, truth, 3) == pytest.approx(5 / 6)
    # order does not matter, repeated ids and fills do not count twice
    assert measure.recall_k_at_k(ids[:, ::-1], truth, 3) == pytest.approx(5 / 6)
    repeated = np.array([[1, 1, 1], [-1, -1, -1]])
    assert measure.recall_k_at_k(repeated, truth, 3) == pytest.approx(1 / 6)


def test_recalls_of_exact_results_are_one():
    truth = np.arange(200).reshape(2, 100)
    assert set(measure.recalls(truth, truth).values()) == {1.0}


def test_medians_are_taken_per_figure():
    runs = [
        {"m": {"qps": q, "p50_ms": p}} for q, p in ((1, 30), (3, 10), (2, 20))
    ]
    assert measure.medians(runs) == {"m": {"qps": 2, "p50_ms": 20}}


class Sleeper:
    """A contender that takes a known time per call and per query."""

    def __init__(self, per_call, per_query):
        self.per_call, self.per_query = per_call, per_query

    def search(self, q, k):
        time.sleep(self.per_call + self.per_query * len(q))


def test_slow_contenders_get_smaller_batches():
    queries = np.zeros((measure.BATCH, 1), np.float32)

    def size(per_call, per_query, seconds):
        sleeper = Sleeper(per_call, per_query)
        latency = per_call + per_query
        return measure.batch_1000(sleeper, queries, seconds, latency)[1]

    assert size(1e-6, 0, 0.1) == measure.BATCH
    assert size(0, 0.01, 0.1) == 10
    assert size(0, 0.05, 0.01) == 4
    # slow one by one, fast in a batch
    assert size(0.01, 1e-6, 1.0) == measure.BATCH


def test_slow_contenders_run_once():
    def repetition(ms):
        return {"1_thread_batch_1": {"p50_ms": ms}}

    assert measure.is_slow(repetition(150), 1.0)
    assert not measure.is_slow(repetition(50), 1.0)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "factory, expected",
    [
        ("Flat", 4 * 64),
        ("SQ8", 64),
        ("PQ16x8np", 16),
        ("PQ64x4fs", 32),  # 640 is a multiple of its blocks of 32
        ("RR,RaBitQ1", 64 // 8 + 8),
    ],
)
def test_bytes_per_vector_hold_the_vector_and_nothing_else(factory, expected):
    faiss = pytest.importorskip("faiss")
    x = np.random.RandomState(0).randn(640, 64).astype(np.float32)
    contender = contenders.make(factory, 64, "ip")
    if contender.needs_train:
        contender.train(x, 60)
    empty = contender.total_bytes()
    contender.add(x)
    per_vector = measure.bytes_per_vector(empty, contender.total_bytes(), 640)
    assert per_vector == expected
    assert faiss.downcast_index(contender.index).ntotal == 640


# ---------------------------------------------------------------- contenders


def test_default_contenders_are_distinct_and_equal_in_bytes():
    names = contenders.default_names(384)
    assert len(set(names)) == len(names)
    assert {"PQ48x8np", "PQ96x8np", "PQ192x8np", "PQ384x4fs"} <= set(names)
    assert {"TQ1", "TQ4", "TQ4 (trained)", "RR,RaBitQ4"} <= set(names)
    assert {"TQ1t", "TQ4t", "TQ1t (trained)", "TQ4t (trained)"} <= set(names)
    # 100 / 8 is not whole: no 1-bit PQ then
    assert not any(n.startswith("PQ12x") for n in contenders.default_names(100))
    assert set(contenders.default_names(384, quick=True)) <= set(names)


@pytest.mark.parametrize(
    "name, family",
    [
        ("PQ96x8np", "PQ"),
        ("PQ384x4fs", "PQfs"),
        ("RR,RaBitQ4", "RaBitQ"),
        ("RR,RaBitQfs1", "RaBitQfs"),
        ("TQ2.5", "TQ"),
        ("TQ4 (trained)", "TQ (trained)"),
        ("TQ4t", "TQt"),
        ("TQ2.5t (trained)", "TQt (trained)"),
        ("SQ8", "SQ"),
        ("RR,SQtqmse4", "SQtqmse"),
        ("turbovec4 (calibrated)", "turbovec (calibrated)"),
    ],
)
def test_family(name, family):
    assert contenders.family(name) == family
    assert family in report.STYLES


def test_what_cannot_run_is_skipped_with_a_reason():
    pytest.importorskip("faiss")
    skipped = contenders.make("Nonsense", 64, "ip")
    assert isinstance(skipped, contenders.Skipped)
    assert "does not know" in skipped.reason
    pytest.importorskip("faiss_turboquant")
    for name in ("TQ9", "TQ9t", "TQ9t (trained)"):
        skipped = contenders.make(name, 64, "ip")
        assert "faiss_turboquant does not know" in skipped.reason
    sources = contenders.Sources(plugin_error="the plugin is away")
    skipped = contenders.make("TQ4", 64, "ip", sources=sources)
    assert skipped.reason == "the plugin is away"


def test_inaccurate_rabitq_runs_with_l2_and_says_so():
    faiss = pytest.importorskip("faiss")
    plain = contenders.make("RR,RaBitQ1", 64, "ip", unit_length=True)
    assert plain.note is None
    assert plain.index.metric_type == faiss.METRIC_INNER_PRODUCT
    several = contenders.make("RR,RaBitQ4", 64, "ip", unit_length=True)
    inaccurate = contenders.has_inaccurate_ip("RR,RaBitQ4", faiss)
    assert (several.index.metric_type == faiss.METRIC_L2) == bool(inaccurate)
    assert bool(several.note) == bool(inaccurate)


@pytest.fixture(scope="module")
def other():
    """A second process with the FAISS that is installed."""
    faiss = pytest.importorskip("faiss")
    other = OtherFaiss(Path(faiss.__file__).parents[1])
    yield other
    other.close()


def test_contenders_of_another_faiss(other):
    faiss = pytest.importorskip("faiss")
    pytest.importorskip("tqdm")
    assert other.version == faiss.__version__
    data = datasets.load("gaussian:d=16,n=400,nq=30")
    datasets.add_ground_truth(data)
    stages = []
    rows = [
        contender.run(measure.build, data, 300, 60, 5, say=stages.append)
        for contender in (
            contenders.make("SQ4", 16, "ip"),
            other.make("SQ4", 16, "ip", False),
        )
    ]
    assert stages == 2 * ["train", "add", "recall"]
    own_process = f"with FAISS {faiss.__version__}, in a process of its own"
    assert [row.pop("note") for row in rows] == [None, own_process]
    times = {"train_s", "add_s", "add_per_s"}
    assert {k: v for k, v in rows[0].items() if k not in times} == {
        k: v for k, v in rows[1].items() if k not in times
    }


def test_measurements_in_another_process(other):
    x = np.random.RandomState(1).standard_normal((2000, 16)).astype("f4")
    contender = other.make("Flat", 16, "ip", False)
    contender.run(methodcaller("add", x))
    before = contender.run(methodcaller("set_threads", 2))
    with contender.one_thread():
        assert contender.run(methodcaller("set_threads", 1)) == 1
        assert contender.run(speed.per_query, x, 4, 10, 0.01) > 0
    assert contender.run(methodcaller("set_threads", before)) == 2
    # what goes wrong there is raised here, and it goes on
    with pytest.raises(RuntimeError, match="could not parse"):
        other.make("Nonsense", 16, "ip", False)
    with pytest.raises(AssertionError):
        contender.run(methodcaller("search", x[:, :3], 5))
    assert contender.run(methodcaller("total_bytes")) > x.nbytes


def test_another_faiss_is_asked_for_what_is_unknown(other):
    sources = contenders.Sources(other=other)
    known = contenders.make("Flat", 16, "ip", sources=sources)
    assert isinstance(known, contenders.FaissContender)
    skipped = contenders.make("Nonsense", 16, "ip", sources=sources)
    assert skipped.reason == f"FAISS {other.version} does not know it"
    with pytest.MonkeyPatch.context() as patch:
        # as if the one here did not know Flat
        def refuse(*args):
            raise RuntimeError("could not parse index string Flat")

        patch.setattr(contenders, "FaissContender", refuse)
        made = contenders.make("Flat", 16, "ip", sources=sources)
        assert isinstance(made, OtherContender)


def test_has_unit_length():
    data = datasets.load("gaussian:d=20,n=300,nq=10")
    assert data.has_unit_length()
    data.base = data.base.copy()
    data.base[7] *= 1.01
    assert not data.has_unit_length()


def test_expand():
    assert cli.expand("PQ{d/4}x8", 384) == "PQ96x8"
    assert cli.expand("PQ{d}x4fs", 384) == "PQ384x4fs"
    assert cli.expand("TQ4", 384) == "TQ4"
    with pytest.raises(BenchError, match="not divisible"):
        cli.expand("PQ{d/7}x8", 384)


# ---------------------------------------------------------------- data


def write_fvecs(path, x):
    rows = np.empty((len(x), x.shape[1] + 1), "<i4")
    rows[:, 0] = x.shape[1]
    rows[:, 1:] = x.astype("<f4").view("<i4")
    rows.tofile(path)


def test_read_fvecs(tmp_path):
    x = np.random.RandomState(0).randn(7, 5).astype(np.float32)
    path = tmp_path / "x.fvecs"
    write_fvecs(path, x)
    got = datasets.read_fvecs(path)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("cut", [1, 4, 24])
def test_read_fvecs_refuses_a_cut_file(tmp_path, cut):
    path = tmp_path / "x.fvecs"
    write_fvecs(path, np.ones((3, 5), np.float32))
    path.write_bytes(path.read_bytes()[:-cut] if cut < 24 else b"")
    with pytest.raises(BenchError, match="not an .fvecs"):
        datasets.read_fvecs(path)


def test_read_fvecs_refuses_rows_of_different_dimensions(tmp_path):
    path = tmp_path / "x.fvecs"
    rows = np.full((3, 6), 5, "<i4")
    rows[2, 0] = 4
    rows.tofile(path)
    with pytest.raises(BenchError, match="different dimensions"):
        datasets.read_fvecs(path)


def test_load_npy_holds_out_queries(tmp_path):
    x = np.random.RandomState(0).randn(400, 8)
    np.save(tmp_path / "x.npy", x)
    data = datasets.load(str(tmp_path / "x.npy"))
    assert data.base.shape == (360, 8) and data.queries.shape == (40, 8)
    assert data.base.dtype == np.float32 and data.metric == "ip"
    np.testing.assert_array_equal(data.queries, x[360:].astype(np.float32))
    data = datasets.load(str(tmp_path / "x.npy"), rows=200, n_queries=3)
    assert len(data.base) == 200 and len(data.queries) == 3


def test_load_refuses_bad_input(tmp_path):
    x = np.random.RandomState(0).randn(400, 8).astype(np.float32)
    x[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.save(tmp_path / "q.npy", np.ones((5, 7), np.float32))
    np.save(tmp_path / "few.npy", np.ones((50, 7), np.float32))
    (tmp_path / "x.csv").write_text("1,2\n")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "broken.hdf5").write_bytes(b"nothing")
    for name, queries, message in [
        ("nan.npy", None, "row 17 of the vectors is not finite"),
        ("nan.npy", tmp_path / "q.npy", "8-d vectors, 7-d queries"),
        ("few.npy", None, "45 vectors; recall 1@100 needs 100"),
        ("x.csv", None, "not a known kind of file"),
        ("none.npy", None, "no such file"),
        ("broken.npy", None, "broken.npy"),
    ]:
        with pytest.raises(BenchError, match=message):
            datasets.load(str(tmp_path / name), queries)
    with pytest.raises(BenchError, match="unknown data"):
        datasets.load("glosses385")
    with pytest.raises(BenchError, match="--queries does not go"):
        datasets.load("gaussian", tmp_path / "q.npy")
    pytest.importorskip("h5py")
    with pytest.raises(BenchError, match="broken.hdf5"):
        datasets.load(str(tmp_path / "broken.hdf5"))


def test_load_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    x = np.random.RandomState(0).randn(220, 8).astype(np.float32)
    for distance, metric in (("euclidean", "l2"), ("angular", "ip")):
        path = tmp_path / f"{distance}.hdf5"
        with h5py.File(path, "w") as f:
            f.attrs["distance"] = distance
            f["train"], f["test"] = x[:200], x[200:]
        data = datasets.load(str(path))
        assert data.metric == metric
        assert data.base.shape == (200, 8) and data.queries.shape == (20, 8)
        unit = np.allclose(np.linalg.norm(data.base, axis=1), 1, atol=1e-6)
        assert unit == (distance == "angular")
    assert datasets.load(str(path), metric="l2").metric == "l2"


def test_synthetic():
    data = datasets.load("gaussian:d=20,n=300,nq=10")
    assert data.base.shape == (300, 20) and data.queries.shape == (10, 20)
    again = datasets.load("gaussian:d=20,n=300,nq=10")
    np.testing.assert_array_equal(data.base, again.base)
    other = datasets.load("gaussian:d=20,n=300,nq=10,seed=2")
    assert not np.array_equal(data.base, other.base)
    tilted = datasets.load("anisotropic:d=20,n=300,nq=10").base
    assert np.linalg.norm(tilted.mean(axis=0)) > 0.3
    assert np.linalg.norm(data.base.mean(axis=0)) < 0.2
    for bad in ("gaussian:x=1", "gaussian:d", "gaussian:d=0", "gaussian:n=-1"):
        with pytest.raises(BenchError):
            datasets.load(bad)


def test_ground_truth_is_exact():
    pytest.importorskip("faiss")
    data = datasets.load("gaussian:d=20,n=300,nq=130")
    datasets.add_ground_truth(data)
    best = np.argsort(-(data.queries @ data.base.T), axis=1, kind="stable")
    assert data.truth.shape == (130, 100)
    assert (data.truth[:, 0] == best[:, 0]).all()
    assert measure.recall_k_at_k(data.truth, best, 10) > 0.999


# ---------------------------------------------------------------- embeddings


def test_parse_gloss():
    line = '00001 03 n 01 a 0 001 @ 2 n 0000 | seen; an object; "it was"; "so"'
    assert embed.parse_gloss(line) == "seen; an object"
    assert embed.parse_gloss("  1 This software and database | is") is None


def test_batches_hold_every_row_once_and_one_length_each():
    ids = [[0] * n for n in (3, 7, 3, 9, 7, 3)]
    got = list(embed.batches(ids))
    assert sorted(sum(got, [])) == list(range(len(ids)))
    assert all(len({len(ids[r]) for r in batch}) == 1 for batch in got)
    many = list(embed.batches([[0] * 32] * 1000))
    assert max(map(len, many)) == embed.BATCH_TOKENS // 32


def test_glosses_come_from_the_cache(tmp_path):
    rs = np.random.RandomState(0)
    blocks = {}
    for dim in (384, 1536):
        for path in embed.block_paths(tmp_path, dim, 4000):
            blocks[path.name, dim] = rs.randn(2000, dim).astype(np.float32)
            embed.save(path, blocks[path.name, dim])
    base, queries = embed.glosses(384, 2500, 700, cache=tmp_path)
    first = blocks["rows-00000.npy", 384]
    second = blocks["rows-02000.npy", 384]
    np.testing.assert_array_equal(queries, first[:700])
    np.testing.assert_array_equal(base[:1000], first[1000:])
    np.testing.assert_array_equal(base[1000:], second[:1500])
    with pytest.raises(BenchError, match="60000 glosses"):
        embed.glosses(384, 60_001, 1000, cache=tmp_path)


def test_model_gives_the_published_similarities():
    """The example in the documentation of sentence-transformers."""
    for module in ("tokenizers", "safetensors", "scipy", "threadpoolctl"):
        pytest.importorskip(module)
    try:
        model = embed.MiniLM(embed.model_dir())
    except BenchError as e:
        pytest.skip(str(e))
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    vectors = []
    for tokens in model.tokenize(sentences):
        small, large = model.embed(np.array([tokens]))
        assert small.shape == (1, 384) and large.shape == (1, 1536)
        assert np.linalg.norm(large) == pytest.approx(1, abs=1e-6)
        vectors.append(small[0])
    similarities = np.array(vectors) @ np.array(vectors).T
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(similarities, expected, atol=1e-4)


# ---------------------------------------------------------------- output


def test_number():
    got = [report.number(x) for x in (0, 0.012345, 4.567, 99.94, 123456.0)]
    assert got == ["-", "0.0123", "4.57", "99.9", "123,000"]


def test_markdown_table():
    assert report.markdown_table(["index", "bytes"], [["a|b", "12"]]) == (
        "| index | bytes |\n| --- | ---: |\n| a\\|b | 12 |"
    )


def test_text_table_is_aligned():
    lines = report.text_table(["index", "x"], [["TQ4", "1"], ["PQ", "1,000"]])
    assert lines.splitlines() == [
        "index      x",
        "------------",
        "TQ4        1",
        "PQ     1,000",
    ]


def test_a_whole_run(tmp_path):
    """The program itself, on little data: files, table, exit status."""
    for module in ("faiss", "tqdm", "matplotlib"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, BENCHS / "bench_all.py", "--output", tmp_path]
        + ["--data", "gaussian:d=32,n=1000,nq=50"]
        + ["--contenders", "Flat", "PQ{d/4}x8np", "SQ8", "--train-rows", "500"]
        + ["--repetitions", "2", "--seconds", "0.02"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    (result,) = results["datasets"]
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["Flat", "PQ8x8np", "SQ8"]
    assert rows["Flat"]["10-recall@10"] == 1
    assert rows["PQ8x8np"]["bytes_per_vector"] == 8
    assert rows["PQ8x8np"]["train_rows"] == 500
    assert rows["SQ8"]["recall_queries"] == 50
    for row in rows.values():
        assert len(row["speed_repetitions"]) == 2
        assert set(row["speed"]) == {
            f"{threads}_batch_{n}"
            for threads in ("1_thread", "all_threads")
            for n in (1, 1000)
        }
        assert all(mode["qps"] > 0 for mode in row["speed"].values())
        assert row["name"] in done.stdout
        assert row["name"] in (tmp_path / "results.md").read_text()
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nothing"], "unknown data 'nothing'"),
        (["--data", "gaussian:d=8,n=200", "--contenders", "FOO"], "'FOO'"),
        (["--repetitions", "0"], "positive int"),
        (["--report", "none"], "--report"),
        (["--skip", "("], "--skip"),
        (["--data", "a.npy", "b.npy", "--queries", "q.npy"], "--queries"),
        (["--other-faiss", "nowhere"], "nowhere: there is no FAISS in it"),
        (["--report", "graphs", "--other-faiss", "x"], "not go with --report"),
    ],
)
def test_bad_arguments_end_with_a_message(tmp_path, arguments, message):
    pytest.importorskip("faiss")
    done = subprocess.run(
        [sys.executable, BENCHS / "bench_all.py", "--output", tmp_path]
        + arguments,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr and "Traceback" not in done.stderr
