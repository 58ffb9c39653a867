#!/usr/bin/env python3
"""Times of FAISS's own GPU indexes, one JSON object a line.

Needs PyTorch and a build of FAISS with GPU support, which is another one than
the CPU build that faiss_turboquant works with: `bench_gpu.py --faiss FOLDER`
runs this with the folder that holds it in PYTHONPATH. Vectors, queries and
results are on the device; the data are those of bench_gpu.py, standard normal.
"""

import argparse
import json
import statistics

import faiss
import faiss.contrib.torch_utils  # noqa: F401 (indexes take tensors with it)
import torch


def median_ms(f, repetitions=10):
    times = []
    for i in range(repetitions + 2):  # two to warm up
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        f()
        torch.cuda.synchronize()  # FAISS has streams of its own
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def add_random(index, d, n, chunk=100_000):
    for begin in range(0, n, chunk):
        index.add(torch.randn(min(chunk, n - begin), d, device="cuda"))


def flat_index(resources, d, use_float16):
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = use_float16
    return faiss.GpuIndexFlatIP(resources, d, config)


def ivfpq_index(resources, d, nlist, n_codes):
    """IVF{nlist},PQ{n_codes}; float16 tables, as 8-bit ones need the room."""
    config = faiss.GpuIndexIVFPQConfig()
    config.useFloat16LookupTables = True
    index = faiss.GpuIndexIVFPQ(
        resources, d, nlist, n_codes, 8, faiss.METRIC_INNER_PRODUCT, config
    )
    index.train(torch.randn(40 * nlist, d, device="cuda"))
    return index


def search_rows(index, args, name, **fields):
    for nq in args.batches:
        queries = torch.randn(nq, args.d, device="cuda")
        row = {
            "codec": name,
            "what": "search",
            "d": args.d,
            "n": args.n,
            "k": args.k,
            "nq": nq,
            "ms": median_ms(lambda: index.search(queries, args.k)),
            **fields,
        }
        print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", type=int, required=True)
    parser.add_argument("-n", type=int, required=True)
    parser.add_argument("-k", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--nlist", type=int, required=True)
    parser.add_argument("--nprobes", type=int, nargs="*", required=True)
    parser.add_argument("--pq", type=int, default=96, help="bytes of a code")
    args = parser.parse_args()
    resources = faiss.StandardGpuResources()
    version = faiss.__version__
    for use_float16 in (False, True):
        index = flat_index(resources, args.d, use_float16)
        add_random(index, args.d, args.n)
        name = f"FAISS {version} GpuIndexFlat {'fp16' if use_float16 else 'fp32'}"
        size = args.d * (2 if use_float16 else 4)
        search_rows(index, args, name, code_size=size)
        del index
    index = ivfpq_index(resources, args.d, args.nlist, args.pq)
    add_random(index, args.d, args.n)
    for nprobe in args.nprobes:
        index.nprobe = nprobe
        search_rows(
            index,
            args,
            f"FAISS {version} GpuIndexIVFPQ",
            nprobe=nprobe,
            code_size=args.pq,
            share=nprobe / args.nlist,
        )


if __name__ == "__main__":
    main()
