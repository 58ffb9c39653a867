"""OpenMP in FAISS and in this package: one number of threads, and forks."""

import ctypes
import functools
import os

import faiss

from . import swigfaiss_turboquant as _swig
from ._loader import faiss_library

_OMP_PAUSE_SOFT = 1


def _same_runtime():
    """Whether FAISS's OpenMP runtime is the one that our library calls."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads + 1)
    follows = _swig.omp_get_max_threads() == threads + 1
    faiss.omp_set_num_threads(threads)
    return follows and _swig.omp_get_max_threads() == threads


def _share_num_threads():
    """Make `faiss.omp_set_num_threads` govern this package as well.

    One call sets both runtimes.
    """
    set_faiss_threads = faiss.omp_set_num_threads

    @functools.wraps(set_faiss_threads)
    def omp_set_num_threads(num_threads):
        set_faiss_threads(num_threads)
        _swig.omp_set_num_threads(num_threads)

    faiss.omp_set_num_threads = omp_set_num_threads
    _swig.omp_set_num_threads(faiss.omp_get_max_threads())


def set_up_openmp():
    """Make FAISS's functions and `fork` work for this package as well.

    Our library takes its OpenMP symbols from the process, where FAISS's
    runtime is found. It finds another one first if a library loaded between
    FAISS and this package has made one global, as PyTorch does.
    """
    # A child has none of its parent's threads, but libgomp's books in memory
    # still list them, and its first parallel loop would wait for them forever.
    # So they are ended before a fork.
    os.register_at_fork(before=_swig.end_omp_threads)
    if not _same_runtime():
        _share_num_threads()
        end_faiss_threads = ctypes.CDLL(
            faiss_library(faiss)
        ).omp_pause_resource_all
        os.register_at_fork(before=lambda: end_faiss_threads(_OMP_PAUSE_SOFT))
