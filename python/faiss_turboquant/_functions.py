"""FAISS's functions on whole indexes, made to understand TurboQuant."""

import operator
import os

import faiss
import numpy as np

from . import swigfaiss_turboquant as _swig
from ._gpu_extension import swig as _swig_gpu


def downcast_index(index):
    """A view of an index as the class that it is of.

    Fields of FAISS's classes, such as `IndexIDMap.index`, have the type
    `faiss.Index` whatever they point at.

    Parameters
    ----------
    index : faiss.Index
        It goes on owning the C++ object, so keep it.

    Returns
    -------
    faiss.Index
        of a subclass, `faiss.IndexTurboQuant` and
        `faiss_turboquant.GpuIndexTurboQuant` among them
    """
    return (_swig_gpu or _swig).downcast_index(index)


def index_factory(d, description, metric=faiss.METRIC_L2, own_invlists=True):
    """Build an index from a description, TurboQuant's among them.

    Parameters
    ----------
    d : int
        dimension of the vectors
    description : str
        As for FAISS, with "TQ1" to "TQ4" (the bits per coordinate) as one
        more codec: "TQ4", "IVF1024,TQ4", "HNSW32,TQ4", "IDMap,TQ2",
        "PCA64,TQ4", "L2norm,TQ3", "TQ4,RFlat", "TQ1,Refine(TQ4)".
        Everything else goes to FAISS.
    metric : int
        `faiss.METRIC_L2` or `faiss.METRIC_INNER_PRODUCT` for TurboQuant
    own_invlists : bool
        for IVF indexes: whether the index owns its inverted lists

    Returns
    -------
    faiss.Index

    Raises
    ------
    RuntimeError
        if no index has this description
    """
    return _swig.index_factory(
        operator.index(d),
        description,
        operator.index(metric),
        bool(own_invlists),
    )


def write_index(index, destination, io_flags=0):
    """Write an index, with any TurboQuant index inside it.

    Parameters
    ----------
    index : faiss.Index
    destination : str, os.PathLike, faiss.IOWriter or FILE*
    io_flags : int
        as in FAISS, for example `faiss.IO_FLAG_SKIP_STORAGE`
    """
    if isinstance(destination, os.PathLike):
        destination = os.fspath(destination)
    _swig.write_index(index, destination, io_flags)


def read_index(source, io_flags=0):
    """Read an index that `write_index` or FAISS has written.

    Parameters
    ----------
    source : str, os.PathLike, faiss.IOReader or FILE*
    io_flags : int
        as in FAISS; `faiss.IO_FLAG_MMAP_IFC` and `faiss.IO_FLAG_MMAP` map the
        file and leave the codes there. Such an index cannot be changed.

    Returns
    -------
    faiss.Index

    Raises
    ------
    RuntimeError
        if the data is cut short, altered or of a newer format
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    return _swig.read_index(source, io_flags)


def serialize_index(index, io_flags=0):
    """Write an index to memory.

    Parameters
    ----------
    index : faiss.Index
    io_flags : int
        as for `write_index`

    Returns
    -------
    array of uint8, shape (size,)
    """
    return faiss.vector_to_array(_swig.serialize_index(index, io_flags))


def deserialize_index(data, io_flags=0):
    """Read an index from memory.

    Parameters
    ----------
    data : array of uint8, shape (size,), or bytes
        from `serialize_index`, or the contents of a file
    io_flags : int
        as for `read_index`

    Returns
    -------
    faiss.Index

    Raises
    ------
    RuntimeError
        if the data is cut short, altered, of a newer format, or followed by
        other bytes
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        data = np.frombuffer(data, dtype="uint8")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TypeError(
            f"deserialize_index: data has dtype {data.dtype} and shape "
            f"{data.shape}, expected uint8 and (size,)"
        )
    data = np.ascontiguousarray(data)
    return _swig.deserialize_index(faiss.swig_ptr(data), data.size, io_flags)


def clone_index(index):
    """A deep copy of an index.

    Parameters
    ----------
    index : faiss.Index

    Returns
    -------
    faiss.Index
    """
    return _swig.clone_index(index)


######################################################
# Pickling
######################################################


def _index_reduce_ex(self, protocol):
    # A wrapper pickled as the class of FAISS that it is of would be restored
    # by FAISS alone, in a process that has not imported this package yet.
    if _swig.contains_turboquant(self):
        return deserialize_index, (serialize_index(self).tobytes(),)
    return object.__reduce_ex__(self, protocol)


######################################################
# Putting them in place
######################################################

_REPLACED = (
    clone_index,
    deserialize_index,
    downcast_index,
    index_factory,
    read_index,
    serialize_index,
    write_index,
)


def install():
    """Put the functions above in place of those of the faiss module."""
    for function in _REPLACED:
        # where pickles find it
        function.__module__ = "faiss_turboquant"
        setattr(faiss, function.__name__, function)
    for name in (
        "IndexIVFTurboQuant",
        "IndexTurboQuant",
        "SearchParametersTurboQuant",
    ):
        setattr(faiss, name, getattr(_swig, name))
    faiss.Index.__reduce_ex__ = _index_reduce_ex
