"""One number of threads for FAISS and for this package."""

import functools

import faiss

from . import swigfaiss_turboquant as _swig


def _same_runtime():
    """Whether FAISS's OpenMP runtime is the one that our library calls."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads + 1)
    follows = _swig.omp_get_max_threads() == threads + 1
    faiss.omp_set_num_threads(threads)
    return follows and _swig.omp_get_max_threads() == threads


def share_num_threads():
    """Make `faiss.omp_set_num_threads` govern this package as well.

    Our library takes its OpenMP symbols from the process, where FAISS's
    runtime is found: there is nothing to do. It finds another one first if a
    library loaded between FAISS and this package has made one global, as
    PyTorch does; then one call sets both.
    """
    if _same_runtime():
        return
    set_faiss_threads = faiss.omp_set_num_threads

    @functools.wraps(set_faiss_threads)
    def omp_set_num_threads(num_threads):
        set_faiss_threads(num_threads)
        _swig.omp_set_num_threads(num_threads)

    faiss.omp_set_num_threads = omp_set_num_threads
    _swig.omp_set_num_threads(faiss.omp_get_max_threads())
