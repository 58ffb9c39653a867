"""numpy, PyTorch, CuPy, DLPack: interfaces of the C++ classes of the GPU part.

Only imported where that part was built.
"""

import operator

import faiss
import numpy as np
from faiss import class_wrappers

from . import swigfaiss_turboquant_gpu as _swig_gpu
from ._device_arrays import Host, library_of
from .swigfaiss_turboquant import (
    IndexIVFTurboQuant,
    IndexTurboQuant,
    RotationType_Hadamard,
    TurboQuantizer,
)
from .swigfaiss_turboquant_gpu import (
    GpuIndexIVFTurboQuant,
    GpuIndexTurboQuant,
    StandardGpuResources,
)


def _error(self, method, text):
    return RuntimeError(f"{type(self).__name__}.{method}: {text}")


def _check_vectors(self, method, x):
    shape = getattr(x, "shape", None)
    if shape is None:
        raise _error(
            self,
            method,
            f"x is a {type(x).__name__}, expected an array of shape "
            f"(n, {self.d})",
        )
    if len(shape) != 2 or shape[1] != self.d:
        raise _error(
            self,
            method, f"x has shape {tuple(shape)}, expected (n, {self.d})"
        )


def _check_k(self, method, k):
    k = operator.index(k)
    if k < 1:
        raise _error(self, method, f"k = {k}, expected at least 1")
    return k


_POINTERS = {
    "float32": faiss.cast_integer_to_float_ptr,
    "int64": faiss.cast_integer_to_idx_t_ptr,
}


def _pointer(self, method, name, library, x, shape, dtype):
    """To the elements of an array, for a function of C++."""
    view = library.view(x)
    if (view.shape, view.dtype) != (shape, dtype) or not view.is_contiguous:
        layout = "" if view.is_contiguous else ", not C-contiguous"
        raise _error(
            self,
            method,
            f"{name} has shape {view.shape} and dtype {view.dtype}{layout}, "
            f"expected {shape} and C-contiguous {dtype}",
        )
    return _POINTERS[dtype](view.pointer)


class _InOrder:
    """Runs after what is on the caller's stream, and before what follows."""

    def __init__(self, index, library):
        self._resources = index.getResources()
        self._library = library
        self._stream, self._device = library.stream(), library.device
        if self._device is None:
            self._device = index.getDevice()

    def __enter__(self):
        if self._stream is not None:
            self._resources.wait_for(self._stream, self._device)

    def __exit__(self, *_):
        if self._library.has_current_stream:
            self._resources.make_wait(self._stream, self._device)
        else:
            self._resources.synchronize()


def _input(self, method, x):
    """An array, its library, and the pointer to it; the array has to live as
    long as the pointer is used."""
    library = library_of(x) or Host()
    x = library.as_float32(x)
    pointer = _pointer(
        self, method, "x", library, x, (x.shape[0], self.d), "float32"
    )
    return x, library, pointer


def _output(self, method, name, library, array, shape, dtype):
    if array is None:
        array = library.empty(shape, dtype)
        return array, _POINTERS[dtype](library.view(array).pointer)
    return array, _pointer(self, method, name, library, array, shape, dtype)


######################################################
# StandardGpuResources
######################################################

StandardGpuResources.__doc__ = """Streams and memory of every GPU.

One is enough for all indexes and all devices; what a device needs is made when
it is first used. `setTempMemory(bytes)` bounds the workspace of a search (a
search goes through its queries in pages that fit), `setDefaultStream(device,
stream)` takes a stream of the caller's, an integer as `torch.cuda.Stream` has
it in `cuda_stream`; both before a device is first used.
"""


######################################################
# GpuIndexTurboQuant
######################################################

GpuIndexTurboQuant.__doc__ = """An `IndexTurboQuant` in the memory of a GPU.

It returns the ids and distances of the index on the CPU, bit for bit, for k up
to 2048. Vectors, queries and results may be arrays of numpy, or on the device:
tensors of PyTorch, arrays of CuPy, and others that have DLPack or
`__cuda_array_interface__`, float32 and C-contiguous. Those are neither copied
nor waited for on the host; results of PyTorch and CuPy come as theirs, on the
device, in the order of the current stream; to others as numpy's.

Attributes
----------
use_sign_filter : int
    whether searches for up to eight queries read the signs of all codes first:
    -1 where that is likely to be faster (the default), 0 never, 1 wherever it
    can be done, 2 with a second bit of each from the beginning
sign_margin : float
    as of `faiss.IndexTurboQuant`
"""

GpuIndexIVFTurboQuant.__doc__ = """An `IndexIVFTurboQuant` with its lists on a GPU.

It returns the ids and distances of the index on the CPU, bit for bit, for k up
to 2048, and takes the same arrays as a `GpuIndexTurboQuant`. The coarse
quantizer stays on the CPU, but for one that is an `IndexTurboQuant`
("IVF4096(TQ4),TQ4").

Attributes
----------
nprobe : int
    lists that a search looks into for each query
"""

_cpp_init = GpuIndexTurboQuant.__init__
_cpp_ivf_init = GpuIndexIVFTurboQuant.__init__


def _init(
    self,
    resources,
    index_or_d,
    nbits=4,
    metric=faiss.METRIC_L2,
    rotation_type=RotationType_Hadamard,
    seed=TurboQuantizer.default_seed,
    memory=0,
    *,
    device=0,
):
    """A copy of an index on the CPU, or an empty one.

    Parameters
    ----------
    resources : StandardGpuResources
    index_or_d : faiss.IndexTurboQuant or int
        the index, or the dimension of the vectors
    nbits, metric, rotation_type, seed, memory
        of an empty index; as of `faiss.IndexTurboQuant`
    device : int
        number of the GPU
    """
    on_device = resources.getResources(operator.index(device))
    if isinstance(index_or_d, IndexTurboQuant):
        _cpp_init(self, on_device, index_or_d)
    else:
        integers = (index_or_d, nbits, metric, rotation_type, seed, memory)
        _cpp_init(self, on_device, *map(operator.index, integers))


def _ivf_init(
    self,
    resources,
    index_or_quantizer,
    d=None,
    nlist=None,
    nbits=4,
    metric=faiss.METRIC_L2,
    rotation_type=RotationType_Hadamard,
    seed=TurboQuantizer.default_seed,
    memory=0,
    *,
    device=0,
):
    """A copy of an index on the CPU, or an empty one.

    Parameters
    ----------
    resources : StandardGpuResources
    index_or_quantizer : faiss.IndexIVFTurboQuant, or another faiss.Index
        the index, or the coarse quantizer
    d, nlist : int
        of an empty index: dimension of the vectors, number of lists
    nbits, metric, rotation_type, seed, memory
        of an empty index; as of `faiss.IndexIVFTurboQuant`
    device : int
        number of the GPU
    """
    on_device = resources.getResources(operator.index(device))
    if isinstance(index_or_quantizer, IndexIVFTurboQuant):
        _cpp_ivf_init(self, on_device, index_or_quantizer)
        return
    integers = (d, nlist, nbits, metric, rotation_type, seed, memory)
    _cpp_ivf_init(
        self, on_device, index_or_quantizer, *map(operator.index, integers)
    )
    class_wrappers.add_to_referenced_objects(self, index_or_quantizer)


def _take_vectors(self, method, x):
    """faiss.Index.add or train."""
    _check_vectors(self, method, x)
    if library_of(x) is None:
        getattr(faiss.Index, method)(self, x)
        return
    x, library, pointer = _input(self, method, x)
    with _InOrder(self, library):
        getattr(self, f"{method}_c")(x.shape[0], pointer)


def _add(self, x):
    """Add vectors.

    Parameters
    ----------
    x : array, shape (n, d)
        float32, on the host or the device
    """
    _take_vectors(self, "add", x)


def _train(self, x):
    """Set the centre to the mean of x, which is optional; of inverted files,
    train the coarse quantizer.

    Parameters
    ----------
    x : array, shape (n, d)
        float32, on the host or the device
    """
    _take_vectors(self, "train", x)


def _add_with_ids(self, x, ids):
    """Add vectors.

    Parameters
    ----------
    x : array, shape (n, d)
        float32, on the host or the device
    ids : array of numpy, shape (n,)
        int64
    """
    _check_vectors(self, "add_with_ids", x)
    if library_of(x) is None:
        faiss.Index.add_with_ids(self, x, ids)
        return
    ids = np.ascontiguousarray(ids, dtype="int64")
    if ids.shape != (x.shape[0],):
        raise _error(
            self,
            "add_with_ids",
            f"ids has shape {ids.shape}, expected ({x.shape[0]},)",
        )
    x, library, pointer = _input(self, "add_with_ids", x)
    with _InOrder(self, library):
        self.add_with_ids_c(x.shape[0], pointer, faiss.swig_ptr(ids))


def _search(self, x, k, *, params=None, D=None, I=None):
    """The k nearest neighbours of each query.

    Parameters
    ----------
    x : array, shape (nq, d)
        float32, on the host or the device
    k : int
        1 to 2048
    params : faiss.SearchParameters, optional
        with `sel`; of inverted files faiss.SearchParametersIVF, with `nprobe`
    D, I : arrays, shape (nq, k), optional
        float32 and int64, written; where x is

    Returns
    -------
    D, I : arrays, shape (nq, k)
        distances and ids, nearest first; -1 past the last one
    """
    _check_vectors(self, "search", x)
    k = _check_k(self, "search", k)
    if library_of(x) is None:
        # contrib.torch_utils knows no params
        keywords = {"params": params} if params is not None else {}
        return faiss.Index.search(self, x, k, D=D, I=I, **keywords)
    x, library, pointer = _input(self, "search", x)
    shape = (x.shape[0], k)
    D, distances = _output(self, "search", "D", library, D, shape, "float32")
    I, labels = _output(self, "search", "I", library, I, shape, "int64")
    with _InOrder(self, library):
        self.search_c(shape[0], pointer, k, distances, labels, params)
    return D, I


def _assign(self, x, k, labels=None):
    """The ids alone of `search`.

    Parameters
    ----------
    x : array, shape (nq, d)
        float32, on the host or the device
    k : int
        1 to 2048
    labels : array, shape (nq, k), optional
        int64, written; where x is

    Returns
    -------
    array, shape (nq, k)
    """
    return self.search(x, k, I=labels)[1]


def _range_search(self, x, thresh, *, params=None):
    """All vectors nearer than a threshold (L2), or more similar (inner
    product).

    Parameters
    ----------
    x : array, shape (nq, d)
        float32, on the host or the device
    thresh : float
    params : faiss.SearchParameters, optional
        with `sel`; of inverted files faiss.SearchParametersIVF, with `nprobe`

    Returns
    -------
    lims, D, I : arrays of numpy
        results of query i are lims[i] to lims[i + 1] of D and I, by id
    """
    _check_vectors(self, "range_search", x)
    if library_of(x) is None:
        keywords = {"params": params} if params is not None else {}
        return faiss.Index.range_search(self, x, thresh, **keywords)
    x, library, pointer = _input(self, "range_search", x)
    nq = x.shape[0]
    result = faiss.RangeSearchResult(nq)
    with _InOrder(self, library):
        self.range_search_c(nq, pointer, float(thresh), result, params)
    lims = faiss.rev_swig_ptr(result.lims, nq + 1).copy()
    total = int(lims[-1])
    D = faiss.rev_swig_ptr(result.distances, total).copy()
    I = faiss.rev_swig_ptr(result.labels, total).copy()
    return lims, D, I


def _reconstruct_n(self, n0=0, ni=-1, x=None):
    """Vectors n0 to n0 + ni - 1, as their codes have them.

    Parameters
    ----------
    n0, ni : int
        -1: all that follow
    x : array, shape (ni, d), optional
        float32, on the host or the device, written

    Returns
    -------
    array, shape (ni, d)
        x, or an array of numpy
    """
    library = library_of(x)
    if library is None:
        keywords = {"x": x} if x is not None else {}
        return faiss.Index.reconstruct_n(self, n0, ni, **keywords)
    if ni == -1:
        ni = self.ntotal - n0
    pointer = _pointer(
        self, "reconstruct_n", "x", library, x, (ni, self.d), "float32"
    )
    with _InOrder(self, library):
        self.reconstruct_n_c(n0, ni, pointer)
    return x


_cpp_compute_distances = GpuIndexTurboQuant.compute_distances


def _compute_distances(self, x, *, D=None):
    """Scores alone: the distances of all vectors, as a search has them.

    Parameters
    ----------
    x : array, shape (nq, d)
        float32, on the host or the device
    D : array, shape (nq, ntotal), optional
        float32, written; where x is

    Returns
    -------
    D : array, shape (nq, ntotal)
        squared L2 distances, or inner products
    """
    method = "compute_distances"
    _check_vectors(self, method, x)
    x, library, pointer = _input(self, method, x)
    shape = (x.shape[0], self.ntotal)
    D, distances = _output(self, method, "D", library, D, shape, "float32")
    with _InOrder(self, library):
        _cpp_compute_distances(self, shape[0], pointer, distances)
    return D


_quantizer = GpuIndexTurboQuant.quantizer


def _tq(self):
    """The quantizer, a `faiss_turboquant.TurboQuantizer`."""
    tq = _quantizer(self)
    class_wrappers.add_to_referenced_objects(tq, self)
    return tq


def _set_methods(index_class, **methods):
    for name, method in methods.items():
        method.__name__ = name
        setattr(index_class, name, method)


for _class in (GpuIndexTurboQuant, GpuIndexIVFTurboQuant):
    _set_methods(
        _class,
        add=_add,
        train=_train,
        search=_search,
        assign=_assign,
        range_search=_range_search,
    )
GpuIndexTurboQuant.__init__ = _init
GpuIndexTurboQuant.tq = property(_tq)
_set_methods(
    GpuIndexTurboQuant,
    compute_distances=_compute_distances,
    reconstruct_n=_reconstruct_n,
)
GpuIndexIVFTurboQuant.__init__ = _ivf_init
_set_methods(GpuIndexIVFTurboQuant, add_with_ids=_add_with_ids)
