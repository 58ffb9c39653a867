"""The report of bench_all about graphs."""

import json
import sys
from pathlib import Path

import faiss

BENCHS = Path(__file__).resolve().parents[2] / "benchs"
sys.path.insert(0, str(BENCHS))

from bench_suite import cli, contenders, graphs  # noqa: E402


def test_default_contenders():
    for name in graphs.default_names():
        made = contenders.make(name, 16, "ip")
        assert isinstance(made, contenders.FaissContender), made


def test_width():
    contender = contenders.make("PCA8,HNSW8,TQ4", 16, "ip")
    graphs.set_width(contender, 77)
    graph = faiss.downcast_index(contender.index.index)
    assert graph.hnsw.efSearch == 77


def test_a_whole_run(tmp_path, capsys):
    names = ["HNSW8,Flat", "HNSW8,TQ4", "HNSW8,TQ1"]
    arguments = ["--report", "graphs", "--quick", "--seconds", "0.01"]
    arguments += ["--data", "gaussian:d=32,n=2000,nq=50"]
    arguments += ["--contenders", *names, "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    results = json.loads((tmp_path / "graphs.json").read_text())
    (result,) = results["datasets"]
    assert [row["name"] for row in result["rows"]] == names
    best = {}
    for row in result["rows"]:
        widths = row["widths"]
        assert [w["efSearch"] for w in widths] == list(graphs.EF_SEARCH)
        assert all(w["qps"] > 0 for w in widths)
        # a wider search finds more
        assert widths[-1]["10-recall@10"] >= widths[0]["10-recall@10"] - 0.02
        best[row["name"]] = widths[-1]["10-recall@10"]
    assert best["HNSW8,Flat"] > best["HNSW8,TQ4"] > best["HNSW8,TQ1"]
    flat, tq4, _ = [row["bytes_per_vector"] for row in result["rows"]]
    # one factor with the inner product
    assert flat - tq4 >= 32 * 4 - (32 / 2 + 4)
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed
        assert name in (tmp_path / "graphs.md").read_text()
    assert list(tmp_path.glob("*.png"))
