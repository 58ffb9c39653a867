#!/usr/bin/env python3
"""GpuIndexTurboQuant beside PyTorch's matrix product and topk, on one GPU.

Needs PyTorch, and of the build the package and the program gpu_bench. Writes a JSON file with,
in each row, the time, and the bound: bytes of codes (or of vectors) over the
measured copy bandwidth, or products over the measured rate of int8 (bf16)
matrix products, whichever is longer. That is of reading all codes, which
searches by the signs of codes do not.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import faiss
import torch

import faiss_turboquant


def median_ms(f, repetitions=10):
    times = []
    for i in range(repetitions + 2):  # two to warm up
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        f()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def measure_ceilings():
    """Copy bandwidth, bytes read plus written a second; products a second."""
    source = torch.randint(256, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / median_ms(lambda: target.copy_(source)) * 1e3
    del source, target
    size = 8192
    a = torch.randint(-60, 60, (size, size), dtype=torch.int8, device="cuda")
    operations = 2 * size**3 * 1e3
    int8 = operations / median_ms(lambda: torch._int_mm(a, a.t()))
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    bf16 = operations / median_ms(lambda: b @ b)
    return {"copy": copy, "int8": int8, "bf16": bf16}


def torch_search(x, queries, k, chunk):
    """The k largest inner products, over chunks of the base."""
    values, ids = [], []
    for begin in range(0, x.shape[0], chunk):
        v, i = torch.topk(queries @ x[begin : begin + chunk].T, k)
        values.append(v)
        ids.append(i + begin)
    v, i = torch.topk(torch.cat(values, 1), k)
    return v, torch.cat(ids, 1).gather(1, i)


def torch_rows(d, n, k, batches):
    """The fastest of several chunk sizes, in fp32, tf32 and bf16."""
    x = torch.randn(n, d, device="cuda")
    for name in ("fp32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        base = x.bfloat16() if name == "bf16" else x
        for nq in batches:
            queries = torch.randn(nq, d, device="cuda", dtype=base.dtype)
            chunks = [c for c in (1 << 16, 1 << 18, n) if c * nq <= 1 << 31]
            yield {
                "codec": f"torch {name}",
                "what": "search",
                "d": d,
                "n": n,
                "k": k,
                "nq": nq,
                "ms": min(
                    median_ms(lambda: torch_search(base, queries, k, c))
                    for c in chunks
                ),
                "code_size": d * base.element_size(),
            }


def torch_score_rows(d, n, batches):
    """Inner products with all vectors, in fp32, tf32 and bf16."""
    for name in ("fp32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        x = torch.randn(n, d, device="cuda", dtype=dtype)
        for nq in batches:
            queries = torch.randn(nq, d, device="cuda", dtype=dtype)
            scores = torch.empty(nq, n, device="cuda", dtype=dtype)
            yield {
                "codec": f"torch {name}",
                "what": "scores",
                "d": d,
                "n": n,
                "k": 0,
                "nq": nq,
                "ms": median_ms(
                    lambda: torch.matmul(queries, x.T, out=scores)
                ),
                "code_size": d * x.element_size(),
            }
        del x, queries, scores
        torch.cuda.empty_cache()


def score_rows(args):
    """Of every size of which float32 vectors fit into the memory."""
    for d in (128, 1536):
        for n in (1 << 15, 1 << 18, 1 << 21, 1 << 24):
            room = torch.cuda.mem_get_info()[0]
            if n * d * 4 > 0.9 * room:
                continue
            yield from torch_score_rows(d, n, args.batches)
            for codec in args.codecs:
                yield from index_rows(
                    args.program, codec, d, n, 0, args.batches
                )


def json_rows(command, **arguments):
    """What a program prints, one object a line."""
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, **arguments
    ).stdout
    for line in output.splitlines():
        yield json.loads(line)


def index_rows(program, codec, d, n, k, batches, options=()):
    yield from json_rows(
        [program, codec, "IP", *map(str, (d, n, k, *batches, *options))]
    )


def add_random(index, n, chunk=100_000):
    for begin in range(0, n, chunk):
        size = min(chunk, n - begin)
        index.add(torch.randn(size, index.d, device="cuda"))


def ivf_rows(d, n, k, batches, nlist, nprobes):
    """Inverted files, with random vectors as centroids and on the GPU."""
    resources = faiss_turboquant.StandardGpuResources()
    quantizer = faiss_turboquant.GpuIndexTurboQuant(
        resources, d, metric=faiss.METRIC_INNER_PRODUCT
    )
    quantizer.add(torch.randn(nlist, d, device="cuda"))
    index = faiss_turboquant.GpuIndexIVFTurboQuant(
        resources, quantizer, d, nlist, 4, faiss.METRIC_INNER_PRODUCT
    )
    add_random(index, n)
    for nprobe in nprobes:
        index.nprobe = nprobe
        for nq in batches:
            queries = torch.randn(nq, d, device="cuda")
            yield {
                "codec": f"IVF{nlist}(TQ4),TQ4",
                "what": "search",
                "d": d,
                "n": n,
                "k": k,
                "nprobe": nprobe,
                "nq": nq,
                "ms": median_ms(lambda: index.search(queries, k)),
                "code_size": index.parameters().code_size,
                "share": nprobe / nlist,
            }


def faiss_rows(args):
    """FAISS's own GPU indexes, from a build of their own."""
    script = pathlib.Path(__file__).with_name("bench_faiss_gpu.py")
    command = [sys.executable, script]
    for name in ("d", "n", "k"):
        command += [f"-{name}", str(getattr(args, name))]
    for name in ("batches", "nprobes"):
        command += [f"--{name}", *map(str, getattr(args, name))]
    command += ["--nlist", str(args.nlist)]
    yield from json_rows(
        command, env={**os.environ, "PYTHONPATH": args.faiss}
    )


def search_rows(args):
    shape = (args.d, args.n, args.k, args.batches)
    yield from torch_rows(*shape)
    torch.cuda.empty_cache()
    for codec in args.codecs:
        for rank in args.ranks or [args.d]:
            yield from index_rows(
                args.program,
                codec,
                *shape,
                ["--rank", rank, "--signs", *args.signs],
            )
    yield from ivf_rows(*shape, args.nlist, args.nprobes)
    if args.faiss:
        yield from faiss_rows(args)


def wall_ms(f, repetitions=10):
    times = []
    for i in range(repetitions + 2):  # two to warm up
        start = time.perf_counter()
        f()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def several_rows(args):
    """Shards and replicas on several GPUs, of vectors and queries that are in
    host memory, as FAISS's wrappers want it, with one GPU for comparison."""
    for codec in args.codecs:
        cpu_index = faiss.index_factory(
            args.d, codec, faiss.METRIC_INNER_PRODUCT
        )
        index = faiss_turboquant.index_cpu_to_gpu(
            faiss_turboquant.StandardGpuResources(), 0, cpu_index
        )
        add_random(index, args.n)
        cpu_index = faiss_turboquant.index_gpu_to_cpu(index)
        del index
        expected = {}
        for gpus, shard in [(1, False)] + [
            (gpus, shard)
            for gpus in range(2, args.gpus + 1)
            for shard in (False, True)
        ]:
            index = faiss_turboquant.index_cpu_to_all_gpus(
                cpu_index,
                co=faiss_turboquant.GpuMultipleClonerOptions(shard),
                ngpu=gpus,
            )
            for nq in args.batches:
                torch.manual_seed(nq)
                queries = torch.randn(nq, args.d).numpy()
                labels = index.search(queries, args.k)[1]
                assert (labels == expected.setdefault(nq, labels)).all()
                yield {
                    "codec": codec,
                    "what": "search",
                    "d": args.d,
                    "n": args.n,
                    "k": args.k,
                    "nq": nq,
                    "gpus": gpus,
                    "shard": shard,
                    "ms": wall_ms(lambda: index.search(queries, args.k)),
                    "code_size": cpu_index.code_size,
                }
            del index


def add_bound(row, ceilings):
    """What the memory or the matrix units need at least."""
    if row["what"] == "add":
        moved = row["n"] * row["d"] * 4
        row["bound_ms"] = moved / ceilings["copy"] * 1e3
        return
    is_float = row["codec"].startswith(("torch", "FAISS"))
    rate = ceilings["bf16" if is_float else "int8"]
    share = row.get("share", 1)  # of the codes, that a query looks at
    moved = min(share * row["nq"], 1) * row["n"] * row["code_size"]
    if row["what"] == "scores":
        moved += row["nq"] * row["n"] * (2 if "bf16" in row["codec"] else 4)
    # with tables in place of vectors there are none
    products = share * 2 * row["n"] * row["d"] * row["nq"] * (
        "PQ" not in row["codec"]
    )
    # shards have fewer codes, replicas fewer queries
    gpus = row.get("gpus", 1)
    products /= gpus
    moved /= gpus if row.get("shard") else 1
    row["bound_ms"] = max(moved / ceilings["copy"], products / rate) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/gpu/gpu/gpu_bench")
    parser.add_argument("--output", default="bench_gpu.json")
    parser.add_argument("-d", type=int, default=1536)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 64, 1024, 10_000]
    )
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=[f"TQ{b}{t}" for t in ("", "t") for b in (4, 3, 2, 1)],
    )
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        help="dimensions of the subspaces that the vectors of flat indexes "
        "are in, as of gpu_bench; by default d alone",
    )
    parser.add_argument(
        "--signs",
        type=int,
        nargs="+",
        default=[-1],
        help="use_sign_filter of the flat indexes (default: -1, as theirs)",
    )
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument(
        "--nprobes", type=int, nargs="*", default=[16, 64], help="of nlist"
    )
    parser.add_argument(
        "--scores",
        action="store_true",
        help="scores alone, of d = 128 and 1536 and n = 2^15 .. 2^24, in "
        "place of searches; of the arguments, --codecs and --batches count",
    )
    parser.add_argument(
        "--faiss",
        metavar="FOLDER",
        help="that holds a GPU build of FAISS, to be measured as well",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="of more than one: shards and replicas on 2 .. so many GPUs, in "
        "place of all else",
    )
    args = parser.parse_args()

    ceilings = measure_ceilings()
    if args.scores:
        rows = score_rows(args)
    elif args.gpus > 1:
        rows = several_rows(args)
    else:
        rows = search_rows(args)
    rows = list(rows)
    for row in rows:
        add_bound(row, ceilings)
        print(
            "{codec:30} {what:6} d {d:4} n {n:8} nprobe {nprobe:4} rank {rank:4} signs {use_sign_filter:2} nq {nq:6} {ms:9.3f} ms, bound {bound_ms:.3f}"
            .format(
                **{
                    "nprobe": 0,
                    "nq": 0,
                    "rank": row["d"],
                    "use_sign_filter": 0,
                    **row,
                }
            )
            + (
                f", {row['gpus']} GPUs, {'shards' if row['shard'] else 'replicas'}"
                if row.get("gpus", 1) > 1
                else ""
            ),
            flush=True,
        )
    result = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "ceilings": ceilings,
        "rows": rows,
    }
    with open(args.output, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
