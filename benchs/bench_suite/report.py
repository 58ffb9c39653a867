"""The results as tables, files and plots, and the facts about the machine."""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from . import cpu_count
from .contenders import CALIBRATED, TRAINED, family


# --------------------------------------------------------------------------
# machine


def machine_facts():
    """What is needed to judge the figures: CPU, SIMD, versions, load."""
    import faiss

    turboquant = sys.modules.get("faiss_turboquant")  # None: not installed
    cpuinfo = {}
    try:
        for line in open("/proc/cpuinfo"):
            key, _, value = line.partition(":")
            cpuinfo.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = cpuinfo.get("flags", cpuinfo.get("Features", "")).split()
    simd = [
        f
        for f in flags
        if f.startswith(("avx", "asimd", "sve", "i8mm")) or f == "fma"
    ]
    versions = {"python": platform.python_version()}
    for package in ("numpy", "faiss-turboquant", "turbovec"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    versions["faiss"] = faiss.__version__
    if turboquant and "faiss-turboquant" not in versions:
        versions["faiss-turboquant"] = "from a build directory"
    return {
        "cpu": cpuinfo.get("model name", platform.processor() or "unknown"),
        "architecture": platform.machine(),
        "cores": cpu_count(),
        "simd": simd,
        "faiss_simd": faiss.get_compile_options().strip(),
        "turboquant_simd": turboquant and turboquant.simd_level(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": versions,
    }


# --------------------------------------------------------------------------
# tables

FEW = " \u2020"  # dagger: recall of fewer queries
SMALL = "*"  # smaller batch


def number(x):
    """Three significant digits, thousands separated: 0.0123, 4.56, 12,300."""
    if x == 0:
        return "-"
    if x >= 100:
        return f"{float(f'{x:.3g}'):,.0f}"
    return f"{x:.3g}"


def build_table(rows, nq):
    """Header and cells of the table of bytes, times and recall; nq: number
    of queries of the data set."""
    header = ["index", "bytes", "train s", "add s", "add/s"]
    header += ["1@1", "1@10", "1@100", "10-recall@10"]
    keys = ["recall_1@1", "recall_1@10", "recall_1@100", "10-recall@10"]
    return header, [
        [
            row["name"] + ("" if row["recall_queries"] == nq else FEW),
            f"{row['bytes_per_vector']:,.0f}",
            number(row["train_s"]),
            number(row["add_s"]),
            number(row["add_per_s"]),
            *(f"{row[key]:.3f}" for key in keys),
        ]
        for row in rows
    ]


def speed_table(rows, cores):
    """Header and cells of the table of search speed."""
    header = ["index"]
    for threads in ("1 thr", f"{cores} thr"):
        header += [f"{threads}: p50 ms", "p99 ms", "q/s b1", "q/s b1000"]
    cells = []
    for row in rows:
        line = [row["name"]]
        for threads in ("1_thread", "all_threads"):
            one = row["speed"][threads + "_batch_1"]
            many = row["speed"][threads + "_batch_1000"]
            mark = SMALL if many["batch"] < 1000 else ""
            line += [
                number(one["p50_ms"]),
                number(one["p99_ms"]),
                number(one["qps"]),
                number(many["qps"]) + mark,
            ]
        cells.append(line)
    return header, cells


def text_table(header, cells):
    """Aligned columns: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *cells)]

    def line(row):
        first = row[0].ljust(widths[0])
        rest = [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([line(header), rule, *map(line, cells)])


def markdown_table(header, cells):
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def title(result):
    metric = {"ip": "inner product", "l2": "L2"}[result["metric"]]
    return (
        f"{result['name']}: {result['n']:,} x {result['d']}, "
        f"{result['nq']:,} queries, {metric}"
    )


def notes_by_text(items, key, head="not run: "):
    """Lines "names: text" of the items with something under the key, one for
    each different text."""
    names_by_text = {}
    for item in items:
        if item[key]:
            names_by_text.setdefault(item[key], []).append(item["name"])
    return [
        f"{head}{'; '.join(names)}: {text}"
        for text, names in names_by_text.items()
    ]


def notes(result):
    """Lines under the tables."""
    lines = []
    few = [
        f"{row['name']} {row['recall_queries']}"
        for row in result["rows"]
        if row["recall_queries"] < result["nq"]
    ]
    if few:
        lines.append(
            f"{FEW.strip()} slow: recall of the first queries only, of "
            + ", ".join(few)
        )
    if any(
        mode["batch"] < 1000 and key.endswith("batch_1000")
        for row in result["rows"]
        for key, mode in row["speed"].items()
    ):
        lines.append(
            f"{SMALL} slow: a smaller batch; its size and the number of "
            "repetitions are in results.json"
        )
    lines += notes_by_text(result["rows"], "note", "")
    return lines + notes_by_text(result["skipped"], "reason")


def result_text(result, cores):
    rows = result["rows"]
    tables = (build_table(rows, result["nq"]), speed_table(rows, cores))
    parts = [title(result), *(text_table(*t) for t in tables)]
    return "\n\n".join(parts + ["\n".join(notes(result))]).rstrip() + "\n"


def machine_line(machine):
    """machine_facts() as a sentence."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores; SIMD level "
        f"{machine['turboquant_simd'] or '-'}, FAISS's "
        f"{machine['faiss_simd']}; {versions}; load average at the start "
        f"{machine['load_average_at_start']}."
    )


def results_markdown(results):
    machine = results["machine"]
    settings = results["settings"]
    out = [
        "# bench_all",
        machine_line(machine),
        f"Medians of {settings['repetitions']} interleaved repetitions. "
        f"Speed: the {settings['k']} best of each query; training: at most "
        f"{settings['train_rows']:,} rows. Bytes are those of one vector, "
        "all of them; what an index has once (codebooks, rotation) is "
        "`fixed_bytes` in results.json. Searches for few queries keep the "
        "signs of TQ2 to TQ4t apart, d / 8 + 4 bytes a vector more in memory.",
    ]
    for result in results["datasets"]:
        out.append("## " + title(result))
        out.append(markdown_table(*build_table(result["rows"], result["nq"])))
        out.append(
            markdown_table(*speed_table(result["rows"], machine["cores"]))
        )
        lines = [line.replace("*", "\\*") for line in notes(result)]
        out += ["- " + line for line in lines]
    return "\n\n".join(out) + "\n"


# --------------------------------------------------------------------------
# plots

STYLES = {  # family: (colour, marker)
    "Flat": ("black", "*"),
    "TQ": ("tab:red", "o"),
    "TQ" + TRAINED: ("tab:red", "D"),
    "TQt": ("magenta", "o"),
    "TQt" + TRAINED: ("magenta", "D"),
    "TQmse": ("tab:pink", "o"),
    "TQprod": ("darkred", "o"),
    "RaBitQ": ("tab:blue", "s"),
    "RaBitQfs": ("tab:cyan", "s"),
    "PQ": ("tab:green", "^"),
    "PQfs": ("tab:olive", "^"),
    "SQ": ("tab:gray", "P"),
    "SQtqmse": ("tab:brown", "v"),
    "SQtq": ("sienna", "v"),
    "EDEN": ("tab:purple", "X"),
    "turbovec": ("tab:orange", "h"),
    "turbovec" + CALIBRATED: ("gold", "h"),
}


def plot(result, x_of, xlabel, path):
    """10-recall@10 against x_of(row), one line per family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    fig, ax = plt.subplots(figsize=(9, 6))
    families = {}
    for row in result["rows"]:
        families.setdefault(family(row["name"]), []).append(row)
    for name, rows in families.items():
        color, marker = STYLES.get(name, (None, "."))
        points = sorted(
            (r["bytes_per_vector"], x_of(r), r["10-recall@10"]) for r in rows
        )
        ax.plot(
            [p[1] for p in points],
            [p[2] for p in points],
            color=color,
            marker=marker,
            markersize=9 if name.startswith("TQ") else 6,
            linewidth=2 if name.startswith("TQ") else 1,
            linestyle="--" if name.endswith(")") else "-",
            label=name,
        )
    ax.set_xscale("log")
    plain = FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}")
    ax.xaxis.set_major_formatter(plain)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("10-recall@10")
    ax.set_title(title(result))
    ax.grid(True, which="both", alpha=0.3)
    ax.legend(fontsize="small")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def stem(result):
    """The name of a data set as a part of file names."""
    return "".join(c if c.isalnum() else "_" for c in result["name"])


def write_plots(result, folder):
    """Writes the two plots of a data set; returns their paths."""
    bytes_path = folder / f"recall_bytes_{stem(result)}.png"
    qps_path = folder / f"recall_qps_{stem(result)}.png"
    plot(
        result,
        lambda row: row["bytes_per_vector"],
        "bytes per vector",
        bytes_path,
    )
    plot(
        result,
        lambda row: row["speed"]["1_thread_batch_1000"]["qps"],
        "queries/s, 1 thread, batch 1000",
        qps_path,
    )
    return [bytes_path, qps_path]


def write_results(results, folder):
    """results.json and results.md; returns their paths."""
    folder = Path(folder)
    paths = [folder / "results.json", folder / "results.md"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    paths[1].write_text(results_markdown(results))
    return paths


def write_report(name, results, markdown, plot, folder):
    """Writes <name>.json, <name>.md and a plot of each data set; returns their
    paths."""
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    paths[1].write_text(markdown(results))
    for result in results["datasets"]:
        paths.append(folder / f"{name}_{stem(result)}.png")
        plot(result, paths[-1])
    return paths
