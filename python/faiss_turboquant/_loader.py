"""Makes FAISS ready for the C++ module, before that is loaded."""

import ctypes
import os
import sys


def faiss_library(faiss):
    """Path of the library that `import faiss` chose for this CPU."""
    proxy = sys.modules[faiss.Index.__module__]
    extension = "_" + proxy.__name__.rpartition(".")[2]
    return getattr(proxy, extension).__file__


def prepare_faiss(built_for):
    """Check FAISS's release and make its symbols visible.

    Parameters
    ----------
    built_for : tuple of int
        (major, minor, patch) of the FAISS headers of the build

    Raises
    ------
    ImportError
        if another release is installed: the layout of FAISS's classes
        changes between releases, so calls would crash or corrupt memory.
    """
    import faiss

    built_for = "%d.%d.%d" % built_for
    if faiss.__version__ != built_for:
        raise ImportError(
            f"faiss_turboquant was built for FAISS {built_for}, but FAISS "
            f"{faiss.__version__} is installed in "
            f"{os.path.dirname(faiss.__file__)}. Install the former (pip "
            f"install faiss-cpu=={built_for}), or build faiss_turboquant "
            f"again for the latter.",
            name="faiss_turboquant",
        )

    # The C++ module leaves the symbols of FAISS and of its OpenMP runtime
    # undefined. Python loads modules with private symbols, so promote those of
    # the library that is loaded already; RTLD_NOLOAD makes sure that no second
    # one is.
    ctypes.CDLL(
        faiss_library(faiss),
        mode=os.RTLD_NOW | os.RTLD_GLOBAL | os.RTLD_NOLOAD,
    )
