"""Recall, bytes and times of one contender."""

import threading
import time
from contextlib import contextmanager, nullcontext

import numpy as np

from .errors import BenchError

K = 10  # neighbours asked for when speed is measured
BATCH = 1000


# --------------------------------------------------------------------------
# recall


def recall_1_at(ids, truth, r):
    """Fraction of queries whose nearest neighbour is among the first r ids.

    ids: [nq, >= r] found, best first; truth: [nq, >= 1] exact.
    """
    return float((ids[:, :r] == truth[:, :1]).any(axis=1).mean())


def recall_k_at_k(ids, truth, k):
    """Mean fraction of the k exact neighbours among the first k ids; an id
    returned twice counts once, fills (-1) never."""
    found = [
        len(np.intersect1d(a, b)) for a, b in zip(ids[:, :k], truth[:, :k])
    ]
    return float(np.mean(found)) / k


def recalls(ids, truth):
    return {
        "recall_1@1": recall_1_at(ids, truth, 1),
        "recall_1@10": recall_1_at(ids, truth, 10),
        "recall_1@100": recall_1_at(ids, truth, 100),
        "10-recall@10": recall_k_at_k(ids, truth, 10),
    }


# --------------------------------------------------------------------------
# building


@contextmanager
def ticking(bar):
    """Keeps a progress bar's clock going during one long call."""
    stop = threading.Event()

    def tick():
        while not stop.wait(0.5):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def bytes_per_vector(before, after, n):
    """Growth of the serialised index per vector added: the code and all
    that goes with it, not what an empty index has (codebooks, rotation)."""
    return (after - before) / n


def timed(f, *args):
    start = time.perf_counter()
    result = f(*args)
    return time.perf_counter() - start, result


def build(contender, data, train_rows, budget, recall_seconds, say=None):
    """Trains, fills and queries a contender on all threads.

    budget: seconds for training; recall_seconds: for the recall search,
    which a slow contender then does on the first of the queries only.
    say: if given, called with the name of each stage.
    Returns the first half of its row of results. Raises BenchError if the
    budget does not suffice.
    """
    say = say or (lambda stage: None)
    n = len(data.base)
    row = {"name": contender.name, "train_s": 0.0, "train_rows": 0}
    row["note"] = contender.note
    if contender.needs_train:
        say("train")
        # evenly spaced rows: a file may be sorted
        sample = data.base[:: max(1, n // train_rows)][:train_rows]
        sample = np.ascontiguousarray(sample)
        seconds, _ = timed(contender.train, sample, budget)
        row.update(train_s=seconds, train_rows=len(sample))
    empty = contender.total_bytes()
    say("add")
    row["add_s"], _ = timed(contender.add, data.base)
    row["add_per_s"] = n / row["add_s"]
    full = contender.total_bytes()
    row["bytes_per_vector"] = bytes_per_vector(empty, full, n)
    row["fixed_bytes"] = empty
    say("recall")
    k, nq, step = data.truth.shape[1], len(data.queries), 20
    ids, start = [], time.perf_counter()
    # all queries, or as many as the time allows
    while sum(map(len, ids)) < nq and (
        not ids or time.perf_counter() < start + recall_seconds
    ):
        i = sum(map(len, ids))
        ids.append(contender.search(data.queries[i : i + step], k))
        step = 100
    ids = np.concatenate(ids)
    row["recall_queries"] = len(ids)
    row.update(recalls(ids, data.truth[: len(ids)]))
    return row


# --------------------------------------------------------------------------
# speed


def batch_1(contender, queries, seconds):
    """Single queries until the time is over, each timed. Returns [m] s."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (
        time.perf_counter() < end and len(times) < 10 * len(queries)
    ):
        i = len(times) % len(queries)
        start = time.perf_counter()
        contender.search(queries[i : i + 1], K)
        times.append(time.perf_counter() - start)
    return np.array(times)


def batch_1000(contender, queries, seconds, latency):
    """One batch of BATCH queries, or of as many as fit into the time for a
    contender that is slow, given its latency for one query.

    Returns (seconds, size of the batch).
    """
    size = int(np.clip(seconds / latency, 4, BATCH))
    took, _ = timed(contender.search, queries[:size], K)
    # a batch can be much faster than its queries one by one
    if size < BATCH and took * BATCH / size < 2 * seconds:
        size = BATCH
        took, _ = timed(contender.search, queries[:size], K)
    return took, size


def speed(contender, queries, seconds):
    """One repetition of every mode; `seconds` bounds each measurement.

    Returns {mode: {"qps", "batch"} and, at batch 1, "p50_ms", "p99_ms"} for
    the modes {1_thread, all_threads}_{batch_1, batch_1000}.
    """
    out = {}
    many = queries[np.arange(BATCH) % len(queries)]
    for threads, limit in (
        ("1_thread", contender.one_thread()),
        ("all_threads", nullcontext()),
    ):
        with limit:
            contender.search(queries[:1], K)  # wakes threads, fills caches
            single = batch_1(contender, queries, seconds / 4)
            latency = float(np.median(single))
            took, size = batch_1000(contender, many, seconds, latency)
        out[threads + "_batch_1"] = {
            "batch": 1,
            "qps": 1 / single.mean(),
            "p50_ms": 1e3 * float(np.percentile(single, 50)),
            "p99_ms": 1e3 * float(np.percentile(single, 99)),
        }
        out[threads + "_batch_1000"] = {"batch": size, "qps": size / took}
    return out


def is_slow(repetition, seconds):
    """Whether one repetition tells enough, since each takes long."""
    return repetition["1_thread_batch_1"]["p50_ms"] > 100 * seconds


def medians(repetitions):
    """Median over the repetitions of each figure of each mode."""
    return {
        mode: {
            key: float(np.median([r[mode][key] for r in repetitions]))
            for key in repetitions[0][mode]
        }
        for mode in repetitions[0]
    }
