"""Distortion, inner-product error and bias of the TurboQuant codecs, next to
what theory says: the figures of the paper (Zandieh, Daliri, Hadian, Mirrokni:
TurboQuant, 2025).

Vectors are uniform on the unit sphere, so the error does not depend on the
data, and b bits per coordinate cannot do better than Shannon's 4^-b.
"""

import json
import re
import sys

import numpy as np

from . import contenders, report
from .errors import BenchError

DIMENSIONS = (200, 384, 1536, 3072)
QUERIES = 100
BLOCK = 64  # pairs whose inner products are estimated by one search
MIN_ROWS = 100  # fewer give standard errors of little worth

# of the paper, for 1 to 4 bits: the mean squared error of Algorithm 1, and
# the inner-product error of Algorithm 2, times d
LLOYD_MAX = {1: 0.363, 2: 0.1175, 3: 0.0345, 4: 0.0095}
ALGORITHM_2 = {1: 1.57, 2: 0.56, 3: 0.18, 4: 0.047}


def shannon_bound(bits):
    """Least mean squared error of any code of so many bits a coordinate."""
    return 4.0**-bits


def paper_bound(bits):
    """What the paper proves of Algorithm 1, for every number of bits."""
    return np.sqrt(3) * np.pi / 2 * 4.0**-bits


def default_names():
    kinds = ("", "t", "mse", "prod")
    names = [f"TQ{b}{kind}" for b in (1, 2, 3, 4) for kind in kinds]
    return names + [f"TQ{b}.5{kind}" for b in (1, 2, 3) for kind in ("", "t")]


def parse_codec(name):
    """"TQ2.5t" -> 2.5, the bits per coordinate."""
    match = re.fullmatch(r"TQ(\d+(\.\d+)?)(t\d*|mse|prod)?", name)
    if not match:
        raise BenchError(
            f"'{name}': --report distortion takes bare TurboQuant codecs "
            "only, as TQ2, TQ2t and TQ2prod"
        )
    return float(match.group(1))


def n_vectors(d, quick=False, rows=None):
    """A few thousand, fewer where d averages more coordinates; rows: the
    user's limit, or None."""
    n = min(4000, 3_000_000 // d) // (4 if quick else 1)
    return min(n, rows or n)


# --------------------------------------------------------------------------
# data


def sphere(rs, n, d):
    """n points uniform on the unit sphere, [n, d] float32."""
    x = rs.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def near_queries(rs, x):
    """One unit query for each unit vector of x, whose inner product with it
    is uniform in [-1, 1]: a regression on independent queries would have
    nothing to hold on to, as their inner products are about d^-0.5."""
    wanted = rs.uniform(-1, 1, (len(x), 1))
    z = rs.standard_normal(x.shape)
    z -= x * (z * x).sum(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return (wanted * x + np.sqrt(1 - wanted**2) * z).astype(np.float32)


# --------------------------------------------------------------------------
# estimators


def squared_error(x, y):
    """|x - y|^2 / |x|^2 of each row."""
    x = x.astype(np.float64)
    return ((x - y) ** 2).sum(axis=1) / (x**2).sum(axis=1)


def slope(estimate, truth):
    """Slope of the least-squares line, with intercept, and its standard error.

    The errors of the estimates may have different variances (White's
    estimator): they vanish where query and vector are parallel.
    """
    t = truth - truth.mean()
    e = estimate - estimate.mean()
    tt = (t * t).sum()
    b = (t * e).sum() / tt
    residual = e - b * t
    return float(b), float(np.sqrt((t * t * residual**2).sum()) / tt)


def mean_and_error(samples):
    """Mean over independent samples, and its standard error.

    samples: [rotations, n]; a column is one sample, measured repeatedly.
    """
    columns = np.mean(samples, axis=0)
    error = columns.std(ddof=1) / np.sqrt(len(columns))
    return float(columns.mean()), float(error)


def mean_slope(slopes):
    """Mean slope over independent rotations, less 1, and its standard error.

    slopes: [(slope, standard error)].
    """
    b, error = np.array(slopes).T
    return float(b.mean() - 1), float(np.sqrt((error**2).sum()) / len(b))


# --------------------------------------------------------------------------
# measuring


def make(name, d, seed):
    """An empty index for inner products whose rotation has this seed."""
    import faiss
    import faiss_turboquant

    index = faiss.index_factory(d, name, faiss.METRIC_INNER_PRODUCT)
    tq = index.tq
    tq.rotation = faiss_turboquant.Rotation(tq.rotation.type, d, seed)
    tq.set_derived_values()
    return index


def search_all(index, queries):
    """Estimates of a search for everything, [nq, ntotal], by id."""
    scores, ids = index.search(queries, index.ntotal)
    out = np.empty(scores.shape)
    np.put_along_axis(out, ids, scores.astype(np.float64), axis=1)
    return out


def search_pairs(index, codes, queries):
    """Estimate of a search for each code and the query of the same row, [n].

    Replaces what is in the index.
    """
    out = []
    for i in range(0, len(codes), BLOCK):
        index.reset()
        index.add_sa_codes(codes[i : i + BLOCK])
        out.append(np.diagonal(search_all(index, queries[i : i + BLOCK])))
    return np.concatenate(out)


def measure_rotation(name, seed, x, free, near):
    """One codec with one rotation.

    x, near: [n, d], vectors and the queries near_queries made for them;
    free: [nq, d], queries independent of x.
    """
    d = x.shape[1]
    index = make(name, d, seed)
    codes = index.sa_encode(x)
    y = index.sa_decode(codes)
    truth = (near.astype(np.float64) * x).sum(axis=1)
    decoded = (near.astype(np.float64) * y).sum(axis=1)
    index.add_sa_codes(codes)
    ip_error = search_all(index, free) - free @ x.T
    return {
        "bytes": codes.shape[1],
        "mse": squared_error(x, y),
        "ip_error": d * (ip_error**2).mean(axis=1),
        "slope": slope(search_pairs(index, codes, near), truth),
        "decoded_slope": slope(decoded, truth),
    }


def row_of_results(name, parts):
    """Averages what measure_rotation returned for each rotation."""
    row = {"name": name, "bits": parse_codec(name)}
    row["bytes_per_vector"] = parts[0]["bytes"]
    for key in ("mse", "ip_error"):
        pair = mean_and_error([p[key] for p in parts])
        row[key], row[key + "_se"] = pair
    for key in ("slope", "decoded_slope"):
        pair = mean_slope([p[key] for p in parts])
        row[key + "_less_1"], row[key + "_se"] = pair
        row[key + "_by_rotation"] = [p[key][0] for p in parts]
    return row


def known_codecs(names, explicit):
    """(names that the installed packages know, the others with reasons).

    explicit: the user asked for them, so an unknown one ends the run.
    """
    known, skipped = [], []
    for name in names:
        parse_codec(name)
        got = contenders.make(name, DIMENSIONS[0], "ip")
        if not isinstance(got, contenders.Skipped):
            known.append(name)
        elif explicit:
            raise BenchError(f"'{name}': {got.reason}")
        else:
            skipped.append({"name": name, "reason": got.reason})
    if not known:
        raise BenchError("no codec is left")
    return known, skipped


def run(names, quick, rows, explicit):
    """Measures all codecs at all dimensions.

    names: codecs; rows: at most so many vectors, or None.
    Returns (list of results, one for each dimension; skipped codecs).
    """
    from tqdm import tqdm

    from . import measure

    names, skipped = known_codecs(names, explicit)
    for item in skipped:
        tqdm.write(
            "skipped {name}: {reason}".format(**item), file=sys.stderr
        )
    seeds = range(1, 3 if quick else 5)
    sizes = {d: n_vectors(d, quick, rows) for d in DIMENSIONS}
    total = len(sizes) * len(names) * len(seeds)
    results = []
    with tqdm(total=total, unit="rotation") as bar:
        for d, n in sizes.items():
            rs = np.random.RandomState(d)
            x, free = sphere(rs, n, d), sphere(rs, QUERIES, d)
            near = near_queries(rs, x)
            result = {"d": d, "n": n, "nq": QUERIES}
            result["rotations"] = list(seeds)
            result["rows"] = []
            for name in names:
                bar.set_description(f"d = {d}, {name}")
                parts = []
                for seed in seeds:
                    with measure.ticking(bar):
                        parts.append(
                            measure_rotation(name, seed, x, free, near)
                        )
                    bar.update()
                result["rows"].append(row_of_results(name, parts))
            results.append(result)
    return results, skipped


# --------------------------------------------------------------------------
# output

LEGEND = (
    "MSE: of reconstruction, as a fraction of |x|^2.  4^-b: Shannon's lower "
    "bound.  L-M: the paper's Lloyd-Max figure.  bound: the paper's upper "
    "bound, (sqrt(3) pi / 2) 4^-b.",
    "IP error: d times the mean square of what a search returns for a unit "
    "query, less the inner product.  Alg. 2: the paper's, for its unbiased "
    "Algorithm 2.",
    "bias: slope of the regression on the true inner product, less 1, of "
    "what a search returns; shrinkage: the same of the inner product with the "
    "reconstructed vector.",
    "After ± the standard error, over vectors, queries and rotations.",
)


def title(result):
    return (
        f"d = {result['d']}: {result['n']:,} vectors uniform on the sphere, "
        f"{result['nq']} queries, {len(result['rotations'])} rotations"
    )


def known_figure(figures, bits):
    return f"{figures[bits]:g}" if bits in figures else "-"


def table(result):
    """Header and cells of the table of one dimension."""
    header = ["codec", "bytes", "MSE", "4^-b", "L-M", "bound"]
    header += ["IP error", "Alg. 2", "bias", "shrinkage"]
    cells = []
    for row in result["rows"]:
        bits = row["bits"]
        cells.append(
            [
                row["name"],
                f"{row['bytes_per_vector']:,}",
                f"{row['mse']:.5f} ± {row['mse_se']:.5f}",
                f"{shannon_bound(bits):.5f}",
                known_figure(LLOYD_MAX, bits),
                f"{paper_bound(bits):.4f}",
                f"{row['ip_error']:.5f} ± {row['ip_error_se']:.5f}",
                known_figure(ALGORITHM_2, bits),
                f"{row['slope_less_1']:+.5f} ± {row['slope_se']:.5f}",
                f"{row['decoded_slope_less_1']:+.5f} ± "
                f"{row['decoded_slope_se']:.5f}",
            ]
        )
    return header, cells


def text(results):
    """All tables, for the terminal."""
    parts = []
    for result in results["dimensions"]:
        parts += [title(result), report.text_table(*table(result))]
    lines = [*LEGEND, *report.notes_by_text(results["skipped"], "reason")]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def markdown(results):
    out = [
        "# bench_all --report distortion",
        report.machine_line(results["machine"]),
    ]
    for result in results["dimensions"]:
        out += ["## " + title(result), report.markdown_table(*table(result))]
    lines = [*LEGEND, *report.notes_by_text(results["skipped"], "reason")]
    return "\n\n".join(out + ["- " + line for line in lines]) + "\n"


def plot(results, path):
    """Mean squared error against bits; below, as a multiple of Shannon's
    bound, where codecs can be told apart. One column for each dimension."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    dimensions = results["dimensions"]
    fig, axes = plt.subplots(
        2,
        len(dimensions),
        figsize=(3.6 * len(dimensions), 7.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=(3, 2),
    )
    bits = np.linspace(0.8, 4.2, 50)
    whole = np.array(list(LLOYD_MAX))
    levels = np.array(list(LLOYD_MAX.values()))
    for column, result in zip(axes.T, dimensions):
        for ax, unit in zip(column, (lambda b: 1.0, shannon_bound)):
            for bound, style, label in (
                (paper_bound, "--", "paper's upper bound"),
                (shannon_bound, "-", "Shannon's lower bound"),
            ):
                ax.plot(
                    bits,
                    bound(bits) / unit(bits),
                    color="black",
                    linestyle=style,
                    linewidth=1,
                    label=label,
                )
            ax.plot(
                whole,
                levels / unit(whole),
                color="tab:gray",
                linestyle=":",
                linewidth=2,
                label="Lloyd-Max (paper)",
            )
            families = {}
            for row in result["rows"]:
                name = contenders.family(row["name"])
                point = row["bits"], row["mse"] / unit(row["bits"])
                families.setdefault(name, []).append(point)
            for name, points in families.items():
                color, marker = report.STYLES.get(name, (None, "."))
                ax.plot(
                    *zip(*sorted(points)),
                    color=color,
                    marker=marker,
                    linewidth=1,
                    label=name,
                )
            ax.grid(True, alpha=0.3)
        column[0].set_yscale("log")
        column[0].set_title(f"d = {result['d']}")
        column[1].set_xlabel("bits per coordinate")
        column[1].set_xticks(whole)
    axes[0, 0].yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:g}")
    )
    axes[0, 0].set_ylabel("mean squared error / |x|²")
    axes[1, 0].set_ylabel("multiple of Shannon's bound")
    axes[1, 0].set_ylim(bottom=0.9)
    axes[0, 0].legend(fontsize="small")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write(results, folder):
    """Writes distortion.json, .md and .png; returns their paths."""
    paths = [folder / f"distortion.{kind}" for kind in ("json", "md", "png")]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    paths[1].write_text(markdown(results))
    plot(results, paths[2])
    return paths
