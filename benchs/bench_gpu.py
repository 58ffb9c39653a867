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
import statistics
import subprocess

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


def index_rows(program, codec, d, n, k, batches, options=()):
    command = [program, codec, "IP", *map(str, (d, n, k, *batches, *options))]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for line in output.splitlines():
        yield json.loads(line)


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
    chunk = 100_000
    for begin in range(0, n, chunk):
        index.add(torch.randn(min(chunk, n - begin), d, device="cuda"))
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


def add_bound(row, ceilings):
    """What the memory or the matrix units need at least."""
    if row["what"] == "add":
        moved = row["n"] * row["d"] * 4
        row["bound_ms"] = moved / ceilings["copy"] * 1e3
        return
    rate = ceilings["bf16" if row["codec"].startswith("torch") else "int8"]
    share = row.get("share", 1)  # of the codes, that a query looks at
    moved = min(share * row["nq"], 1) * row["n"] * row["code_size"]
    if row["what"] == "scores":
        moved += row["nq"] * row["n"] * (2 if "bf16" in row["codec"] else 4)
    products = share * 2 * row["n"] * row["d"] * row["nq"]
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
        help="use_sign_filter of the flat indexes",
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
    args = parser.parse_args()

    ceilings = measure_ceilings()
    rows = list(score_rows(args) if args.scores else search_rows(args))
    for row in rows:
        add_bound(row, ceilings)
        print(
            "{codec:18} {what:6} d {d:4} n {n:8} nprobe {nprobe:4} rank {rank:4} signs {use_sign_filter:2} nq {nq:6} {ms:9.3f} ms, bound {bound_ms:.3f}"
            .format(
                **{
                    "nprobe": 0,
                    "nq": 0,
                    "rank": row["d"],
                    "use_sign_filter": 0,
                    **row,
                }
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
