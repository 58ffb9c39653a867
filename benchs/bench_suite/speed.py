"""Search speed next to the machine's read bandwidth and to the best peer.

A search for one query that reads every code once cannot take less than bytes
per vector / read bandwidth; one that passes over codes by their signs can.
Batches read codes once for many queries and are
bound by multiplications, which bench_kernels measures and Python cannot: they
are shown without a bound.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, product

import numpy as np

from . import contenders, datasets, measure, report

MODES = ((1, 10), (32, 10), (1000, 10), (1, 100), (1000, 100))  # batch, k
MOST = max(batch for batch, _ in MODES)
# A batch that takes longer than PATIENCE measurements is cut, but not below
# LEAST, as fewer queries may be searched in another way; unless even these
# take longer than DESPAIR measurements.
LEAST, PATIENCE, DESPAIR = 32, 4, 20
RECALL_QUERIES = 100  # enough to see that speed is not bought with recall
PASSES = 7


def default_names(d):
    return (
        ["Flat", "SQ8", "SQ4", f"PQ{d}x4fs", "RR,RaBitQfs1", "RR,RaBitQfs4"]
        + ["RR,EDEN1", "RR,EDEN4", "RR,SQtq4"]
        + [f"TQ{b}{t}" for t in ("", "t") for b in (1, 2, 3, 4)]
        + ["turbovec2", "turbovec4"]
    )


# --------------------------------------------------------------------------
# the bound


def read_buffer(threads):
    """What read_bandwidth reads: larger than caches. Ones, since untouched
    zeros would all be one page of memory."""
    return np.ones(max(256, 64 * threads) << 17, np.uint64)


def read_bandwidth(buffer, threads):
    """Bytes a second that so many threads read together, best of PASSES.

    np.max waits for memory, not for its SIMD loop, and releases the GIL.
    """
    parts = np.array_split(buffer, threads)
    with ThreadPoolExecutor(threads) as pool:

        def read():
            list(pool.map(np.max, parts))

        read()  # starts the threads
        seconds = min(measure.timed(read)[0] for _ in range(PASSES))
    return buffer.nbytes / seconds


# --------------------------------------------------------------------------
# measuring


def with_recall_queries(data):
    """The data set with ground truth for its first queries, and only them."""
    few = replace(data, queries=data.queries[:RECALL_QUERIES])
    datasets.add_ground_truth(few)
    return few


def sizes_of_batches(contender, queries, seconds):
    """{batch: number of queries to measure it with}, fewer than the batch
    for a contender to which it would take too long."""
    contender.search(queries[:1], 10)  # wakes threads, fills caches
    latency, _ = measure.timed(contender.search, queries[:1], 10)
    few = int(np.clip(DESPAIR * seconds / latency, 1, LEAST))
    took, _ = measure.timed(contender.search, queries[:few], 10)
    fit = max(few, int(PATIENCE * seconds * few / took))
    return {batch: min(batch, fit) for batch, _ in MODES}


def per_query(contender, queries, size, k, seconds):
    """Median seconds per query of the searches for `size` queries at once
    that fit into the time; at least one."""
    contender.search(queries[:1], k)  # wakes threads
    starts = cycle(range(0, len(queries) - size + 1, size))
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        i = next(starts)
        took, _ = measure.timed(contender.search, queries[i : i + size], k)
        times.append(took / size)
    return float(np.median(times))


def measure_all(ready, queries, threads, repetitions, seconds):
    """Round after round over all contenders, those of one mode in a row, so
    that a disturbance of the machine meets all of them and the medians none.

    ready: filled contenders; threads: numbers of threads.
    Returns ({threads: bytes a second},
    {(name, threads, batch, k): (number of queries, [seconds per query])}).
    """
    from tqdm import tqdm

    many = queries[np.arange(MOST) % len(queries)]
    buffer = read_buffer(max(threads))
    bandwidth = dict.fromkeys(threads, 0.0)
    sizes, times = {}, {}
    each = list(product(ready, threads))
    for contender, n in tqdm(each, desc="sizes of batches", unit="index"):
        with contender.threads(n):
            sizes[contender.name, n] = contender.run(
                sizes_of_batches, many, seconds
            )
    order = list(product(range(repetitions), threads, MODES))
    with tqdm(total=len(order) * len(ready), unit="run") as bar:
        for _, n, (batch, k) in order:
            bandwidth[n] = max(bandwidth[n], read_bandwidth(buffer, n))
            bar.set_description(f"threads {n}, batch {batch}, k {k}")
            for contender in ready:
                bar.set_postfix_str(contender.name)
                size = sizes[contender.name, n][batch]
                with contender.threads(n):
                    took = contender.run(per_query, many, size, k, seconds)
                key = contender.name, n, batch, k
                times.setdefault(key, (size, []))[1].append(took)
                bar.update()
    return bandwidth, times


# --------------------------------------------------------------------------
# results


def bits(row, d):
    """Whole bits per coordinate; what a code holds besides does not count."""
    return int(8 * row["bytes_per_vector"] / d)


def figures(row, n, bandwidth, times):
    """The figures of one contender, one dict for each mode.

    n: number of vectors; bandwidth, times: what measure_all returned.
    """
    out = []
    for (name, threads, batch, k), (size, seconds) in times.items():
        if name != row["name"]:
            continue
        took = float(np.median(seconds))
        figure = {
            "threads": threads,
            "batch": batch,
            "k": k,
            "queries": size,
            "qps": 1 / took,
            "ns": 1e9 * took / n,
            "ns_repetitions": [1e9 * s / n for s in seconds],
        }
        if batch == 1:
            bound = 1e9 * row["bytes_per_vector"] / bandwidth[threads]
            figure.update(bound_ns=bound, of_bound=bound / figure["ns"])
        out.append(figure)
    return out


def find(row, threads, batch, k):
    """The figures of a row in one mode."""
    key = threads, batch, k
    return next(
        f
        for f in row["speed"]
        if (f["threads"], f["batch"], f["k"]) == key
    )


def add_peers(rows, d):
    """Compares each TurboQuant contender, in each mode, with the fastest of
    the others that spend at least as many bits."""
    for row in filter(lambda r: contenders.is_turboquant(r["name"]), rows):
        peers = [
            r
            for r in rows
            if not contenders.is_turboquant(r["name"])
            and bits(r, d) >= bits(row, d)
        ]
        for figure in row["speed"] if peers else ():
            mode = [figure[key] for key in ("threads", "batch", "k")]
            ns, name = min((find(p, *mode)["ns"], p["name"]) for p in peers)
            figure.update(peer=name, times_peer=ns / figure["ns"])


def run(data, ready, rows, threads, repetitions, seconds):
    """Measures the contenders and completes their rows.

    Returns the results of the data set.
    """
    bandwidth, times = measure_all(
        ready, data.queries, threads, repetitions, seconds
    )
    for row in rows:
        row["speed"] = figures(row, len(data.base), bandwidth, times)
    add_peers(rows, data.d)
    return {
        "name": data.name,
        "d": data.d,
        "n": len(data.base),
        "nq": len(data.queries),
        "metric": data.metric,
        "read_bandwidth": [
            {"threads": n, "bytes_per_s": rate}
            for n, rate in bandwidth.items()
        ],
        "rows": rows,
    }


# --------------------------------------------------------------------------
# output

LEGEND = (
    "ns: nanoseconds per vector and query; q/s: queries per second. b1, b32, "
    "b1000: batches of so many queries; k = 10 if not said. Medians over "
    "interleaved rounds.",
    "of bound: bytes per vector / read bandwidth, as a part of the time "
    "taken; 1 is a search for one query that runs as fast as memory is read. "
    "An index that fits into a cache, or passes over codes by a part of "
    "them, can be faster.",
    "Read bandwidth: the best of all passes of np.max over a buffer of 256 MB "
    "(64 MB per thread if that is more), cut into one part for each thread.",
    "x peer: how many times faster than the fastest of the other contenders "
    "with at least as many whole bits per coordinate; speed.json names it.",
    f"10-recall@10: of the first {RECALL_QUERIES} queries.",
)


def thread_title(bandwidth):
    n = bandwidth["threads"]
    return (
        f"{n} thread{'s' if n > 1 else ''}, read bandwidth "
        f"{bandwidth['bytes_per_s'] / 1e9:.1f} GB/s"
    )


def has_few(row, result):
    """Whether the row's recall is that of fewer queries than the others'."""
    return row["recall_queries"] < min(RECALL_QUERIES, result["nq"])


def table(result, threads):
    """Header and cells of the table for a number of threads."""
    header = ["index", "bytes", "10-recall@10"]
    for batch, k in MODES:
        if k == 10:
            header += [f"b{batch}: ns", "q/s"]
        else:
            header.append(f"b{batch} k{k}: ns")
        header += ["of bound"] * (batch == 1) + ["x peer"]
    cells = []
    for row in result["rows"]:
        line = [
            row["name"] + (report.FEW if has_few(row, result) else ""),
            f"{row['bytes_per_vector']:,.0f}",
            f"{row['10-recall@10']:.3f}",
        ]
        for batch, k in MODES:
            f = find(row, threads, batch, k)
            mark = report.SMALL if f["queries"] < batch else ""
            line.append(report.number(f["ns"]) + mark)
            if k == 10:
                line.append(report.number(f["qps"]))
            if batch == 1:
                line.append(report.number(f["of_bound"]))
            line.append(f"{f['times_peer']:.2f}" if "peer" in f else "")
        cells.append(line)
    return header, cells


def notes(result):
    """Lines under the tables of a data set."""
    lines = [
        f"{report.FEW.strip()} slow: {row['name']}'s recall is that of the "
        f"first {row['recall_queries']} queries"
        for row in result["rows"]
        if has_few(row, result)
    ]
    every = [f for row in result["rows"] for f in row["speed"]]
    if any(f["queries"] < f["batch"] for f in every):
        lines.append(
            f"{report.SMALL} slow: a smaller batch, its size is in speed.json"
        )
    lines += report.notes_by_text(result["rows"], "note", "")
    return lines + report.notes_by_text(result["skipped"], "reason")


def text(result):
    """The tables of a data set, for the terminal."""
    parts = [report.title(result)]
    for bandwidth in result["read_bandwidth"]:
        parts.append(thread_title(bandwidth))
        parts.append(report.text_table(*table(result, bandwidth["threads"])))
    return "\n\n".join([*parts, "\n".join([*LEGEND, *notes(result)])]) + "\n"


def markdown(results):
    out = [
        "# bench_all --report speed",
        report.machine_line(results["machine"]),
        "\n".join("- " + line for line in LEGEND),
    ]
    for result in results["datasets"]:
        out.append("## " + report.title(result))
        for bandwidth in result["read_bandwidth"]:
            out.append("### " + thread_title(bandwidth))
            out.append(
                report.markdown_table(*table(result, bandwidth["threads"]))
            )
        lines = [line.replace("*", "\\*") for line in notes(result)]
        out += ["- " + line for line in lines]
    return "\n\n".join(out) + "\n"


def plot(result, path):
    """Nanoseconds per vector and query at k = 10, a panel for each number of
    threads, with the bound for one query as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    rows, panels = result["rows"], result["read_bandwidth"]
    fig, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1 + 6 * len(panels), 6),
        sharey=True,
        squeeze=False,
    )
    x = np.arange(len(rows))
    for ax, bandwidth in zip(axes[0], panels):
        for (batch, k), marker in zip(MODES[:3], "os^"):
            found = [find(r, bandwidth["threads"], batch, k) for r in rows]
            ax.plot(
                x,
                [f["ns"] for f in found],
                marker,
                label="one query" if batch == 1 else f"batch of {batch}",
            )
            if batch == 1:
                ax.step(
                    x,
                    [f["bound_ns"] for f in found],
                    where="mid",
                    color="black",
                    linewidth=1,
                    label="one query: bytes / read bandwidth",
                )
        ax.set_yscale("log")
        ax.set_xticks(x, [r["name"] for r in rows], rotation=60, ha="right")
        ax.set_title(thread_title(bandwidth))
        ax.grid(True, which="both", alpha=0.3)
    axes[0, 0].yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:g}")
    )
    axes[0, 0].set_ylabel("ns per vector and query")
    axes[0, 0].legend(fontsize="small")
    fig.suptitle(report.title(result))
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write(results, folder):
    """Writes speed.json, speed.md and a plot of each data set; returns their
    paths."""
    return report.write_report("speed", results, markdown, plot, folder)
