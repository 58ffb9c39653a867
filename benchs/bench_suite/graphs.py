"""Graph indexes over compressed vectors: recall, memory and speed for several
widths of search (efSearch)."""

import numpy as np

from . import contenders, measure, report, speed

EF_SEARCH = (16, 32, 64, 128, 256)
MOST = 100  # queries searched at once: a graph gains nothing from more


def default_names():
    return ["HNSW32,Flat", "HNSW32,SQ8"] + [
        f"HNSW32,TQ{b}" for b in ("4", "4t", "3", "2", "2t", "1")
    ]


def set_width(contender, ef):
    import faiss

    faiss.ParameterSpace().set_index_parameter(
        contender.index, "efSearch", float(ef)
    )


def run(data, ready, rows, repetitions, seconds):
    """Measures the contenders at each width and completes their rows: recall
    of all queries, queries a second on one thread.

    Returns the results of the data set.
    """
    from tqdm import tqdm

    size = min(MOST, len(data.queries))
    times = {}
    order = [ef for _ in range(repetitions) for ef in EF_SEARCH]
    with tqdm(total=len(order) * len(ready), unit="run") as bar:
        # round after round, so that a disturbance meets all of them
        for ef in order:
            for contender in ready:
                bar.set_postfix_str(f"{contender.name}, efSearch {ef}")
                set_width(contender, ef)
                with contender.one_thread():
                    took = contender.run(
                        speed.per_query, data.queries, size, measure.K, seconds
                    )
                times.setdefault((contender.name, ef), []).append(took)
                bar.update()
    for contender, row in zip(ready, rows):
        row["widths"] = []
        for ef in EF_SEARCH:
            set_width(contender, ef)
            ids = contender.search(data.queries, measure.K)
            took = times[contender.name, ef]
            row["widths"].append(
                {
                    "efSearch": ef,
                    "10-recall@10": measure.recall_k_at_k(ids, data.truth, 10),
                    "qps": 1 / float(np.median(took)),
                    "qps_repetitions": [1 / s for s in took],
                }
            )
    return {
        "name": data.name,
        "d": data.d,
        "n": len(data.base),
        "nq": len(data.queries),
        "metric": data.metric,
        "rows": rows,
    }


def table(result):
    """Header and cells: recall at queries a second for each width."""
    header = ["index", "bytes", "build s"]
    header += [f"efSearch {ef}" for ef in EF_SEARCH]
    return header, [
        [
            row["name"],
            f"{row['bytes_per_vector']:,.0f}",
            report.number(row["train_s"] + row["add_s"]),
            *(
                f"{w['10-recall@10']:.3f} at {report.number(w['qps'])}"
                for w in row["widths"]
            ),
        ]
        for row in result["rows"]
    ]


LEGEND = (
    "bytes: of a vector, the graph's included; build: on all threads; "
    "then 10-recall@10 at queries/s on one thread"
)


def text(result):
    lines = [LEGEND, *report.notes_by_text(result["skipped"], "reason")]
    return (
        report.title(result)
        + "\n\n"
        + report.text_table(*table(result))
        + "\n\n"
        + "\n".join(lines)
        + "\n"
    )


def markdown(results):
    out = [
        "# bench_all --report graphs",
        report.machine_line(results["machine"]),
        LEGEND + ".",
    ]
    for result in results["datasets"]:
        out.append("## " + report.title(result))
        out.append(report.markdown_table(*table(result)))
        skipped = report.notes_by_text(result["skipped"], "reason")
        out += ["- " + line for line in skipped]
    return "\n\n".join(out) + "\n"


def plot(result, path):
    """10-recall@10 against queries a second, one line for each index."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(9, 6))
    for row in result["rows"]:
        ours = contenders.is_turboquant(row["name"].replace("HNSW32,", ""))
        ax.plot(
            [w["qps"] for w in row["widths"]],
            [w["10-recall@10"] for w in row["widths"]],
            marker="o",
            linewidth=2 if ours else 1,
            linestyle="-" if ours else "--",
            label=f"{row['name']} ({row['bytes_per_vector']:,.0f} bytes)",
        )
    ax.set_xscale("log")
    ax.set_xlabel("queries/s, 1 thread")
    ax.set_ylabel("10-recall@10")
    ax.set_title(report.title(result))
    ax.grid(True, which="both", alpha=0.3)
    ax.legend(fontsize="small")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write(results, folder):
    """Writes graphs.json, graphs.md and a plot of each data set; returns their
    paths."""
    return report.write_report("graphs", results, markdown, plot, folder)
