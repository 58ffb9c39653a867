"""Parts of bench_all, the benchmark of faiss_turboquant."""

import os


def cpu_count():
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
