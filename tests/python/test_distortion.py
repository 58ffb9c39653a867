"""The distortion report of bench_all."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

BENCHS = Path(__file__).resolve().parents[2] / "benchs"
sys.path.insert(0, str(BENCHS))

from bench_suite import contenders, distortion  # noqa: E402
from bench_suite.errors import BenchError  # noqa: E402

# ---------------------------------------------------------------- bounds


def test_bounds_are_in_order():
    for bits, lloyd_max in distortion.LLOYD_MAX.items():
        assert distortion.shannon_bound(bits) < lloyd_max
        assert lloyd_max < distortion.paper_bound(bits)
    assert distortion.shannon_bound(2) == 1 / 16
    assert distortion.paper_bound(1) == pytest.approx(0.6802, abs=1e-4)


@pytest.mark.parametrize(
    "name, bits",
    [("TQ4", 4), ("TQ2t", 2), ("TQ2.5t", 2.5), ("TQ3t10", 3)]
    + [("TQ2.5", 2.5), ("TQ1mse", 1), ("TQ4prod", 4)],
)
def test_parse_codec(name, bits):
    assert distortion.parse_codec(name) == bits


@pytest.mark.parametrize("name", ["SQ8", "RR,TQ4", "TQ4 (trained)", "TQt"])
def test_parse_codec_refuses_what_is_no_bare_codec(name):
    with pytest.raises(BenchError, match="bare TurboQuant codecs"):
        distortion.parse_codec(name)


def test_n_vectors():
    assert distortion.n_vectors(200) == 4000
    assert distortion.n_vectors(3072) == 976
    assert distortion.n_vectors(200, quick=True) == 1000
    assert distortion.n_vectors(200, rows=150) == 150
    assert distortion.n_vectors(3072, rows=4000) == 976


# ---------------------------------------------------------------- data


def test_sphere_and_near_queries():
    rs = np.random.RandomState(0)
    x = distortion.sphere(rs, 2000, 20)
    q = distortion.near_queries(rs, x)
    for a in (x, q):
        assert a.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)
    assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(2000 * 20)
    products = (x * q).sum(axis=1)
    # uniform in [-1, 1]
    assert np.abs(products).max() > 0.99
    assert products.var() == pytest.approx(1 / 3, rel=0.1)
    assert abs(products.mean()) < 0.06


# ---------------------------------------------------------------- estimators


def test_squared_error_is_relative():
    x = np.array([[2, 0], [0, 10]], np.float32)
    y = np.array([[1, 0], [0, 10]], np.float32)
    np.testing.assert_array_equal(distortion.squared_error(x, y), [0.25, 0])


def test_slope_of_a_line_is_exact():
    truth = np.array([0.0, 1.0, 2.0, 5.0])
    b, error = distortion.slope(0.5 * truth + 3, truth)
    assert b == pytest.approx(0.5) and error == pytest.approx(0, abs=1e-12)


def test_standard_error_of_slope_is_its_spread():
    rs = np.random.RandomState(0)
    truth = rs.uniform(-1, 1, 500)
    noise = 1 - truth**2  # differs from pair to pair
    got = [
        distortion.slope(truth + noise * rs.standard_normal(500), truth)
        for _ in range(400)
    ]
    slopes, errors = np.array(got).T
    assert errors.mean() == pytest.approx(slopes.std(), rel=0.12)
    assert slopes.mean() == pytest.approx(1, abs=4 * slopes.std() / 20)


def test_means_and_their_errors():
    # two rotations, three vectors: columns have the means 2, 4 and 6
    mean, error = distortion.mean_and_error([[1, 4, 5], [3, 4, 7]])
    assert mean == 4 and error == pytest.approx(2 / np.sqrt(3))
    bias, error = distortion.mean_slope([(1.1, 0.03), (0.8, 0.04)])
    assert bias == pytest.approx(-0.05) and error == pytest.approx(0.025)


# ---------------------------------------------------------------- measuring


def test_seeds_are_rotations():
    x = distortion.sphere(np.random.RandomState(0), 50, 100)
    codes = [distortion.make("TQ2", 100, s).sa_encode(x) for s in (1, 2, 1)]
    assert (codes[0] == codes[2]).all()
    assert (codes[0] != codes[1]).any(axis=1).all()


def test_estimates_are_in_the_order_of_ids():
    rs = np.random.RandomState(0)
    x, q = distortion.sphere(rs, 150, 70), distortion.sphere(rs, 150, 70)
    index = distortion.make("TQ4", 70, 1)
    codes = index.sa_encode(x)
    index.add_sa_codes(codes)
    everything = distortion.search_all(index, q)
    assert np.abs(everything - q @ x.T).max() < 0.1
    # 150 is not a multiple of the block
    pairs = distortion.search_pairs(index, codes, q)
    np.testing.assert_array_equal(pairs, np.diagonal(everything))


def test_row_of_results():
    """Each figure against what is known of Lloyd-Max codes with the scale of
    the estimator: with squared error D, the error of inner products is
    D / (1 - D), the estimate unbiased, the reconstruction shorter by D."""
    rs = np.random.RandomState(0)
    d, n = 200, 600
    x, free = distortion.sphere(rs, n, d), distortion.sphere(rs, 50, d)
    near = distortion.near_queries(rs, x)
    parts = [
        distortion.measure_rotation("TQ2", seed, x, free, near)
        for seed in (1, 2)
    ]
    row = distortion.row_of_results("TQ2", parts)
    assert row["bits"] == 2 and row["bytes_per_vector"] == 50 + 4
    mse = row["mse"]
    assert mse == pytest.approx(0.1165, rel=0.02)
    assert row["mse_se"] < 0.005 * mse
    assert row["ip_error"] == pytest.approx(mse / (1 - mse), rel=0.05)
    assert abs(row["slope_less_1"]) < 4 * row["slope_se"] < 0.01
    shrinkage = row["decoded_slope_less_1"]
    assert shrinkage == pytest.approx(-mse, abs=4 * row["decoded_slope_se"])
    assert len(row["slope_by_rotation"]) == 2


def test_unknown_codecs_are_skipped_or_refused():
    known, skipped = distortion.known_codecs(["TQ2", "TQ9t"], explicit=False)
    assert known == ["TQ2"]
    assert [s["name"] for s in skipped] == ["TQ9t"]
    assert "does not know it" in skipped[0]["reason"]
    with pytest.raises(BenchError, match="'TQ9t': .*does not know it"):
        distortion.known_codecs(["TQ2", "TQ9t"], explicit=True)
    with pytest.raises(BenchError, match="no codec is left"):
        distortion.known_codecs(["TQ9t"], explicit=False)


def test_reasons_are_short():
    with pytest.raises(RuntimeError) as info:
        faiss.index_factory(8, "TQ9t")
    reason = contenders.why_not(info.value, faiss.__version__)
    assert reason.startswith("the installed faiss_turboquant does not know it")
    assert "index_factory" not in reason


# ---------------------------------------------------------------- program


def bench_all(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, BENCHS / "bench_all.py", "--report", "distortion"]
        + ["--output", tmp_path, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_whole_run(tmp_path):
    for module in ("tqdm", "matplotlib"):
        pytest.importorskip(module)
    done = bench_all(
        tmp_path, "--quick", "--rows", "100", "--skip", "TQ[34]|TQ1t|TQ[12]mse|TQ2prod"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "distortion.json").read_text())
    dimensions = results["dimensions"]
    assert [r["d"] for r in dimensions] == list(distortion.DIMENSIONS)
    skipped = [s["name"] for s in results["skipped"]]
    markdown = (tmp_path / "distortion.md").read_text()
    for result in dimensions:
        assert result["n"] == 100
        names = [row["name"] for row in result["rows"]]
        assert sorted(names + skipped) == [
            "TQ1", "TQ1.5", "TQ1.5t", "TQ1prod", "TQ2", "TQ2.5", "TQ2.5t", "TQ2t"
        ]
        for row in result["rows"]:
            low = distortion.shannon_bound(row["bits"])
            high = distortion.paper_bound(row["bits"])
            if row["name"] == "TQ1prod":
                # made for inner products: |S^T sign(S x)| is long
                high = 1.7
                assert row["ip_error"] == pytest.approx(1.57, rel=0.1)
            assert low < row["mse"] < high
            assert f"{row['mse']:.5f}" in done.stdout
            assert f"{row['mse']:.5f}" in markdown
    assert (tmp_path / "distortion.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "gaussian"], "--data does not go with"),
        (["--queries", "q.npy"], "--queries does not go with"),
        (["--n-queries", "5"], "--n-queries does not go with"),
        (["--metric", "l2"], "--metric does not go with"),
        (["--repetitions", "3"], "--repetitions does not go with"),
        (["--train-rows", "10000"], "--train-rows does not go with"),
        (["--budget", "5"], "--budget does not go with"),
        (["--recall-seconds", "5"], "--recall-seconds does not go with"),
        (["--seconds", "5"], "--seconds does not go with"),
        (["--rows", "99"], "--rows 99: --report distortion needs 100"),
        (["--skip", "("], "--skip ("),
    ],
)
def test_options_of_the_other_report_are_refused(arguments, message, capsys):
    from bench_suite import cli

    with pytest.raises(SystemExit) as info:
        cli.parse_args(["--report", "distortion", *arguments])
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_other_contenders_are_refused(tmp_path):
    pytest.importorskip("tqdm")
    done = bench_all(tmp_path, "--contenders", "TQ2", "SQ8")
    assert done.returncode == 1
    assert "'SQ8'" in done.stderr and "Traceback" not in done.stderr
