"""Command line and main loop of bench_all."""

import argparse
import os
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from . import cpu_count, distortion
from .errors import BenchError

DESCRIPTION = """\
Compares vector codes at equal terms: TurboQuant (TQ1 .. TQ4, and TQ1t .. TQ4t
with a trellis) with FAISS's own PQ, RaBitQ and scalar quantizers, with EDEN and
SQtq of newer releases of FAISS (--other-faiss), and with turbovec when it is
installed.
For each: bytes per vector, training and adding, recall, search speed.
Prints tables and writes results.json, results.md and plots.

--report distortion instead holds the TurboQuant codecs against theory:
squared error, inner-product error and bias on vectors uniform on the sphere,
for several dimensions. Writes distortion.json, distortion.md and
distortion.png; takes several minutes, most of them for TQ1prod .. TQ4prod.

--report speed instead measures search for one query and in batches of 32 and
1000, k = 10 and 100, for each number of threads: nanoseconds per vector and
query, queries per second, what that is of the time to read the codes from
memory, and of the fastest peer. One query depends on the data: of isotropic
vectors (gaussian:), none of which is near, signs tell less. Writes speed.json,
speed.md and plots.

--report graphs instead holds HNSW over TurboQuant codes against HNSW over
vectors and over SQ8: recall, bytes with the graph, build time and queries per
second for several efSearch. Writes graphs.json, graphs.md and plots.
"""

EPILOG = """\
data:
  glosses384, glosses1536   real text embeddings (all-MiniLM-L6-v2 of WordNet
                            glosses), computed on first use, about five
                            minutes on two cores, then cached in
                            $XDG_CACHE_HOME or ~/.cache/faiss_turboquant
  gaussian:d=200,n=50000    isotropic unit vectors; also nq= and seed=
  anisotropic:d=1536,n=30000
                            falling variances and a large mean; likewise
  PATH.npy, PATH.fvecs      rows; queries by --queries, else the last rows
  PATH.hdf5                 in the layout of ann-benchmarks

contenders:
  FAISS factory strings, in which {d} and {d/4} stand for the dimension and
  a part of it; turbovec2 .. turbovec4. "TQ4 (trained)" calls train(), which
  TQ4 does not need. Without --contenders: the default list, in which those
  that the installed packages do not know are skipped, and named.

examples:
  bench_all.py --quick
  bench_all.py --data vectors.npy --queries queries.npy
  bench_all.py --data gaussian:d=768,n=100000 --contenders TQ4 "PQ{d}x4fs"
  bench_all.py --report distortion
  bench_all.py --report speed --data gaussian:d=384,n=1000000 --threads 1 2
"""

# options that say nothing to the distortion report
NOT_DISTORTION = (
    "--data",
    "--queries",
    "--n-queries",
    "--metric",
    "--repetitions",
    "--train-rows",
    "--budget",
    "--recall-seconds",
    "--seconds",
    "--threads",
    "--other-faiss",
)


def positive(kind):
    def parse(text):
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # for argparse's message
    return parse


def parse_args(argv):
    p = argparse.ArgumentParser(
        prog="bench_all.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--report",
        choices=("search", "distortion", "speed", "graphs"),
        default="search",
        help="search: recall, bytes and speed (default); distortion: errors "
        "next to their bounds, which takes --quick, --rows, --contenders "
        "(bare TurboQuant codecs), --skip and --output only; speed: search "
        "next to the read bandwidth and the best peer; graphs: HNSW over "
        "codes",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="one minute: glosses384 with 5,000 rows, fewer contenders, two "
        "repetitions; the options below override each of these. With "
        "--report distortion: a quarter of the vectors, half of the "
        "rotations. With --report speed: 10,000 x 384, two repetitions",
    )
    p.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="what to search, see below (default: glosses384 glosses1536; "
        "with --report graphs glosses384)",
    )
    p.add_argument(
        "--queries",
        metavar="PATH",
        help="queries for a single --data PATH.npy or PATH.fvecs",
    )
    p.add_argument(
        "--rows",
        type=positive(int),
        metavar="N",
        help="use at most N vectors (default: all; 30,000 of glosses1536)",
    )
    p.add_argument(
        "--n-queries",
        type=positive(int),
        metavar="N",
        help="use at most N queries (default: all)",
    )
    p.add_argument(
        "--metric",
        choices=("ip", "l2"),
        help="default: ip, or what the HDF5 file says",
    )
    p.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="instead of the default list, see below",
    )
    p.add_argument(
        "--skip",
        metavar="REGEX",
        help="leave out contenders whose names match from their beginning",
    )
    p.add_argument(
        "--repetitions",
        type=positive(int),
        metavar="N",
        help="rounds over all contenders; medians are shown (default: 3)",
    )
    p.add_argument(
        "--train-rows",
        type=positive(int),
        metavar="N",
        help="rows for training, at most (default: 10,000, about FAISS's "
        "least for 8-bit PQ, 39 per centroid; with --report speed 2,000)",
    )
    p.add_argument(
        "--budget",
        type=positive(float),
        metavar="S",
        help="a contender that needs more than S seconds to train is "
        "skipped; FAISS looks at the clock between k-means iterations "
        "(default: 120; with --quick 20)",
    )
    p.add_argument(
        "--recall-seconds",
        type=positive(float),
        metavar="S",
        help="a contender that is slower gets its recall from the first "
        "queries only, and a mark (default: 8; with --quick 2)",
    )
    p.add_argument(
        "--seconds",
        type=positive(float),
        metavar="S",
        help="time for one measurement of speed, about (default: 0.6; with "
        "--quick 0.3; with --report speed 0.5, with --quick 0.05)",
    )
    p.add_argument(
        "--threads",
        nargs="+",
        type=positive(int),
        metavar="N",
        help="numbers of threads, with --report speed only (default: 1 and "
        f"all, here {cpu_count()})",
    )
    p.add_argument(
        "--other-faiss",
        type=Path,
        metavar="DIR",
        help="a folder with another release of FAISS, from pip install "
        "--no-deps --target DIR faiss-cpu==1.15.1: contenders that the one "
        "here does not know, as EDEN, are measured with it, in a process of "
        "its own; not with --report graphs (default: $BENCH_OTHER_FAISS)",
    )
    p.add_argument(
        "--output",
        type=Path,
        default=Path("bench_results"),
        metavar="DIR",
        help="where the files go (default: bench_results)",
    )
    args = p.parse_args(argv)
    if args.skip is not None:
        try:
            re.compile(args.skip)
        except re.error as e:
            p.error(f"--skip {args.skip}: {e}")
    if args.report == "distortion":
        for option in NOT_DISTORTION:
            if getattr(args, option[2:].replace("-", "_")) is not None:
                p.error(f"{option} does not go with --report distortion")
        if args.rows is not None and args.rows < distortion.MIN_ROWS:
            p.error(
                f"--rows {args.rows}: --report distortion needs "
                f"{distortion.MIN_ROWS}"
            )
        return args
    quick = args.quick
    args.repetitions = args.repetitions or (2 if quick else 3)
    args.budget = args.budget or (20 if quick else 120)
    args.recall_seconds = args.recall_seconds or (2 if quick else 8)
    if args.report == "graphs" and args.other_faiss:
        p.error("--other-faiss does not go with --report graphs")
    if args.report != "graphs" and args.other_faiss is None:
        args.other_faiss = os.environ.get("BENCH_OTHER_FAISS")
    if args.report == "speed":
        complete_speed_args(args, p)
    elif args.report == "graphs":
        complete_graphs_args(args, p)
    else:
        complete_search_args(args, p)
    if args.queries and len(args.data) > 1:
        p.error("--queries goes with one --data only")
    return args


def complete_search_args(args, p):
    quick = args.quick
    if args.threads is not None:
        p.error("--threads goes with --report speed only")
    if args.data is None:
        args.data = ["glosses384"] if quick else ["glosses384", "glosses1536"]
        if quick and args.rows is None:
            args.rows = 5000
    args.train_rows = args.train_rows or 10_000
    args.seconds = args.seconds or (0.3 if quick else 0.6)


def complete_speed_args(args, p):
    quick = args.quick
    if args.data is None:
        args.data = ["glosses384", "glosses1536"]
        if quick:
            args.data = ["gaussian:d=384,n=10000"]
    args.train_rows = args.train_rows or 2000  # the speed is the same
    args.seconds = args.seconds or (0.05 if quick else 0.5)
    args.threads = list(dict.fromkeys(args.threads or [1, cpu_count()]))
    if max(args.threads) > cpu_count():
        p.error(f"--threads {max(args.threads)}: there are {cpu_count()} CPUs")


def complete_graphs_args(args, p):
    args.data = args.data or ["glosses384"]
    complete_search_args(args, p)


def expand(name, d):
    """Puts the dimension into a factory string: PQ{d/4}x8 -> PQ96x8."""

    def value(match):
        part = int(match.group(2) or 1)
        if part < 1 or d % part:
            raise BenchError(f"'{name}': {d} dimensions, not divisible")
        return str(d // part)

    return re.sub(r"\{d(/(\d+))?\}", value, name)


def build_contenders(data, defaults, args, sources):
    """Trains, fills and queries the contenders asked for, or the defaults.

    data: with ground truth.
    Returns (contenders, first halves of their rows of results, skipped ones
    with reasons).
    """
    from tqdm import tqdm

    from . import contenders as co
    from . import measure

    names = [expand(name, data.d) for name in args.contenders or ()]
    names = names or defaults
    if args.skip:
        names = [n for n in names if not re.match(args.skip, n)]
    names = list(dict.fromkeys(names))
    unit_length = data.has_unit_length()
    ready, rows, skipped = [], [], []

    bar = tqdm(names, desc=data.name, unit="index")
    for name in bar:
        bar.set_postfix_str(name)
        with measure.ticking(bar):
            contender = co.make(
                name, data.d, data.metric, unit_length, sources
            )
            try:
                if isinstance(contender, co.Skipped):
                    raise BenchError(contender.reason)
                row = contender.run(
                    measure.build,
                    data,
                    args.train_rows,
                    args.budget,
                    args.recall_seconds,
                    say=lambda stage: bar.set_postfix_str(f"{name}: {stage}"),
                )
            except BenchError as e:
                if isinstance(contender, co.Skipped) and args.contenders:
                    raise BenchError(f"'{name}': {e}") from None
                skipped.append({"name": name, "reason": str(e)})
                tqdm.write(f"skipped {name}: {e}", file=sys.stderr)
                continue
        ready.append(contender)
        rows.append(row)
    if not rows:
        raise BenchError(f"no contender is left on {data.name}")
    return ready, rows, skipped


def bench_dataset(data, args, sources):
    """All contenders on one data set. Returns its part of the results."""
    from tqdm import tqdm

    from . import contenders, datasets, measure

    datasets.add_ground_truth(data)
    defaults = contenders.default_names(data.d, args.quick)
    ready, rows, skipped = build_contenders(data, defaults, args, sources)
    # Round after round over all contenders, so that a disturbance of the
    # machine meets all of them and the medians none.
    runs = {row["name"]: [] for row in rows}
    order = [c for _ in range(args.repetitions) for c in ready]
    bar = tqdm(order, desc=f"{data.name}: speed", unit="run")
    for contender in bar:
        done = runs[contender.name]
        if done and measure.is_slow(done[0], args.seconds):
            continue
        bar.set_postfix_str(contender.name)
        done.append(contender.run(measure.speed, data.queries, args.seconds))
    for row in rows:
        row["speed"] = measure.medians(runs[row["name"]])
        row["speed_repetitions"] = runs[row["name"]]
    return {
        "name": data.name,
        "d": data.d,
        "n": len(data.base),
        "nq": len(data.queries),
        "metric": data.metric,
        "rows": rows,
        "skipped": skipped,
    }


def now():
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run_distortion(args):
    from . import contenders, report

    plugin_error = contenders.import_plugin()
    if plugin_error:
        raise BenchError(plugin_error)
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": report.machine_facts(),
        "date": now(),
        "settings": {"quick": args.quick, "rows": args.rows},
    }
    names = args.contenders or distortion.default_names()
    if args.skip:
        names = [n for n in names if not re.match(args.skip, n)]
    results["dimensions"], results["skipped"] = distortion.run(
        list(dict.fromkeys(names)),
        args.quick,
        args.rows,
        explicit=bool(args.contenders),
    )
    print("\n" + distortion.text(results))
    paths = distortion.write(results, args.output)
    print("wrote " + ", ".join(map(str, paths)) + "\n")


def start_results(args, **settings):
    """What the results of a report begin with; makes the folder for them."""
    from . import report

    args.output.mkdir(parents=True, exist_ok=True)
    return {
        "machine": report.machine_facts(),
        "date": now(),
        "settings": {
            "quick": args.quick,
            "repetitions": args.repetitions,
            "train_rows": args.train_rows,
            "budget_s": args.budget,
            "recall_seconds": args.recall_seconds,
            "seconds": args.seconds,
            **settings,
        },
        "datasets": [],
    }


def get_sources(args):
    from . import contenders
    from .other_faiss import OtherFaiss

    other = None
    if args.other_faiss:
        try:
            other = OtherFaiss(args.other_faiss)
        except ImportError as e:
            raise BenchError(f"--other-faiss {args.other_faiss}: {e}") from None
    return contenders.Sources(contenders.import_plugin(), other)


def load_datasets(args):
    from . import datasets

    for spec in args.data:
        yield datasets.load(
            spec, args.queries, args.rows, args.n_queries, args.metric
        )


def run_search(args):
    from . import measure, report

    sources = get_sources(args)
    results = start_results(args, k=measure.K)
    for data in load_datasets(args):
        result = bench_dataset(data, args, sources)
        results["datasets"].append(result)
        cores = results["machine"]["cores"]
        print("\n" + report.result_text(result, cores), flush=True)
        # after each data set, so that a later failure loses nothing
        paths = report.write_results(results, args.output)
        paths += report.write_plots(result, args.output)
        print("wrote " + ", ".join(map(str, paths)) + "\n")


def run_speed(args):
    from . import speed

    sources = get_sources(args)
    results = start_results(args, threads=args.threads)
    for data in load_datasets(args):
        ready, rows, skipped = build_contenders(
            speed.with_recall_queries(data),
            speed.default_names(data.d),
            args,
            sources,
        )
        result = speed.run(
            data, ready, rows, args.threads, args.repetitions, args.seconds
        )
        result["skipped"] = skipped
        results["datasets"].append(result)
        print("\n" + speed.text(result), flush=True)
        # after each data set, so that a later failure loses nothing
        paths = speed.write(results, args.output)
        print("wrote " + ", ".join(map(str, paths)) + "\n")


def run_graphs(args):
    from . import datasets, graphs

    sources = get_sources(args)
    results = start_results(args)
    for data in load_datasets(args):
        datasets.add_ground_truth(data)
        ready, rows, skipped = build_contenders(
            data, graphs.default_names(), args, sources
        )
        result = graphs.run(data, ready, rows, args.repetitions, args.seconds)
        result["skipped"] = skipped
        results["datasets"].append(result)
        print("\n" + graphs.text(result), flush=True)
        paths = graphs.write(results, args.output)
        print("wrote " + ", ".join(map(str, paths)) + "\n")


def main(argv=None):
    args = parse_args(argv)
    run = {
        "search": run_search,
        "distortion": run_distortion,
        "speed": run_speed,
        "graphs": run_graphs,
    }[args.report]
    start = time.time()
    try:
        run(args)
        print(f"{time.time() - start:.0f} s in all")
    except BenchError as e:
        print(f"bench_all: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench_all: interrupted", file=sys.stderr)
        return 130
    return 0
