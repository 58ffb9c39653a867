"""numpy interfaces of the C++ classes."""

import functools
import operator
import sys

import faiss
import numpy as np
from faiss import class_wrappers

from . import swigfaiss_turboquant as _swig
from ._docstrings import add_docstrings
from .swigfaiss_turboquant import (
    Codebook,
    CodecType_Scaled,
    IndexIVFTurboQuant,
    IndexTurboQuant,
    Rotation,
    RotationType_Hadamard,
    SearchParametersTurboQuant,
    TurboQuantizer,
)


def _keep_alive(obj, owner):
    # obj points into owner, which Python must not free before it
    class_wrappers.add_to_referenced_objects(obj, owner)
    return obj


######################################################
# The indexes
######################################################


def _handle_index(cls):
    """handle_Index and, where loaded, handle_torch_Index for one more class.

    They assume that no class is handled after contrib.torch_utils is loaded:
    then they take an inherited method for one that nobody has replaced yet.
    """
    own = set(vars(cls))
    class_wrappers.handle_Index(cls)
    for name in list(vars(cls)):
        method = name[: -len("_c")]
        if name.endswith("_c") and name not in own and method not in own:
            delattr(cls, name)
            delattr(cls, method)
    torch_utils = sys.modules.get("faiss.contrib.torch_utils")
    if torch_utils is not None:
        torch_utils.handle_torch_Index(cls)


def _check_array(method, name, x, width):
    """`method` is "IndexTurboQuant.search" or the like."""
    shape = getattr(x, "shape", None)
    if shape is None:
        raise RuntimeError(
            f"{method}: {name} is a {type(x).__name__}, "
            f"expected an array of shape (n, {width})"
        )
    if len(shape) != 2 or shape[1] != width:
        raise RuntimeError(
            f"{method}: {name} has shape {tuple(shape)}, "
            f"expected (n, {width})"
        )


def _check_k(method, k):
    k = operator.index(k)
    if k < 1:
        raise RuntimeError(
            f"{method}: k = {k}, expected at least 1"
        )
    return k


def _add_checks(cls):
    """Name what is wrong with an argument, where FAISS's wrappers only
    assert."""

    # functools.wraps keeps the names by which FAISS's wrappers know each other

    def vectors(name):
        method = getattr(cls, name)
        full_name = f"{cls.__name__}.{name}"

        @functools.wraps(method)
        def checked(self, x, *args, **kwargs):
            _check_array(full_name, "x", x, self.d)
            return method(self, x, *args, **kwargs)

        setattr(cls, name, checked)

    def vectors_and_k(name):
        method = getattr(cls, name)
        full_name = f"{cls.__name__}.{name}"

        @functools.wraps(method)
        def checked(self, x, k, *args, **kwargs):
            _check_array(full_name, "x", x, self.d)
            k = _check_k(full_name, k)
            return method(self, x, k, *args, **kwargs)

        setattr(cls, name, checked)

    def codes(name):
        method = getattr(cls, name)
        full_name = f"{cls.__name__}.{name}"

        @functools.wraps(method)
        def checked(self, codes, *args, **kwargs):
            _check_array(full_name, "codes", codes, self.sa_code_size())
            return method(self, codes, *args, **kwargs)

        setattr(cls, name, checked)

    for name in ("add", "add_with_ids", "train", "range_search", "sa_encode"):
        vectors(name)
    for name in ("search", "assign", "search_and_reconstruct"):
        vectors_and_k(name)
    for name in ("sa_decode", "add_sa_codes"):
        codes(name)


def _add_keywords(cls):
    cpp_init = cls.__init__

    def __init__(
        self,
        d=None,
        nbits=4,
        metric=faiss.METRIC_L2,
        rotation_type=RotationType_Hadamard,
        seed=TurboQuantizer.default_seed,
        memory=0,
        codec=CodecType_Scaled,
    ):
        """Flat index on TurboQuant codes. It needs no training.

        Parameters
        ----------
        d : int
            Dimension of the vectors. Without it the index is empty and only
            good for being read into.
        nbits : int
            Bits per coordinate, 1 to 4.
        metric : int
            `faiss.METRIC_L2` or `faiss.METRIC_INNER_PRODUCT`.
        rotation_type : int
            `faiss_turboquant.RotationType_Hadamard`, O(d log d), or
            `faiss_turboquant.RotationType_Haar`, O(d^2).
        seed : int
            Of the rotation; indexes merge only if they share it.
        memory : int
            0 for one level per coordinate (`TQ4`), 8 for trellis codes with
            2^8 states (`TQ4t`).
        codec : int
            `faiss_turboquant.CodecType_Scaled`; `CodecType_HalfBit` for half a
            bit more than 1, 2 or 3 (`TQ2.5`, `TQ2.5t`); `CodecType_Mse` and
            `CodecType_Prod` for the paper's Algorithms 1 and 2 (`TQ4mse`,
            `TQ4prod`).
        """
        if d is None:
            cpp_init(self)
            return
        integers = (d, nbits, metric, rotation_type, seed, memory, codec)
        cpp_init(self, *map(operator.index, integers))

    cls.__init__ = __init__


def _add_ivf_keywords(cls):
    cpp_init = cls.__init__

    def __init__(
        self,
        quantizer=None,
        d=None,
        nlist=None,
        nbits=4,
        metric=faiss.METRIC_L2,
        own_invlists=True,
        rotation_type=RotationType_Hadamard,
        seed=TurboQuantizer.default_seed,
        memory=0,
        codec=CodecType_Scaled,
    ):
        """Inverted file of TurboQuant codes. Only its quantizer is trained.

        Parameters
        ----------
        quantizer : faiss.Index
            Maps vectors to lists. It goes on owning the C++ object; this
            index keeps it alive. Without it the index is empty and only good
            for being read into.
        d : int
            Dimension of the vectors.
        nlist : int
            Number of lists.
        nbits, metric, rotation_type, seed, memory, codec : int
            As for `IndexTurboQuant`.
        own_invlists : bool
            Whether the index owns its inverted lists.
        """
        if quantizer is None:
            cpp_init(self)
            return
        cpp_init(
            self,
            quantizer,
            *map(operator.index, (d, nlist, nbits, metric)),
            bool(own_invlists),
            *map(operator.index, (rotation_type, seed, memory, codec)),
        )
        _keep_alive(self, quantizer)

    cls.__init__ = __init__


def _keep_owner(cls, methods):
    """Let what the methods return, and `tq`, keep the index alive."""
    for name in methods:
        method = getattr(cls, name)

        def replacement(self, *args, _method=method):
            return _keep_alive(_method(self, *args), self)

        functools.update_wrapper(replacement, method)
        setattr(cls, name, replacement)

    tq = cls.tq
    cls.tq = property(
        lambda self: _keep_alive(tq.fget(self), self), doc=tq.__doc__
    )


_handle_index(IndexTurboQuant)
_add_checks(IndexTurboQuant)
_add_keywords(IndexTurboQuant)
_keep_owner(
    IndexTurboQuant,
    methods=("get_FlatCodesDistanceComputer", "get_distance_computer"),
)
add_docstrings(IndexTurboQuant)

_handle_index(IndexIVFTurboQuant)
_add_checks(IndexIVFTurboQuant)
_add_ivf_keywords(IndexIVFTurboQuant)
_keep_owner(IndexIVFTurboQuant, methods=("get_InvertedListScanner",))
add_docstrings(IndexIVFTurboQuant)

class_wrappers.handle_SearchParameters(SearchParametersTurboQuant)


######################################################
# The quantizer
######################################################

class_wrappers.handle_Quantizer(TurboQuantizer)


def _codebook_levels(self):
    """Levels of a coordinate, ascending, in units in which a coordinate of a
    rotated unit vector, times sqrt(d), has variance 1. Shape (2^nbits,), more
    with a trellis, which chooses among some of them at each coordinate."""
    positions = faiss.vector_to_array(self.positions).astype("float32")
    levels = (positions - np.float32(31.5)) * np.float32(self.step)
    return np.unique(np.concatenate([-levels, levels]))


Codebook.levels = _codebook_levels


def _rotate_rows(method, rotation, x):
    x = np.ascontiguousarray(x, dtype="float32")
    if x.ndim != 2 or x.shape[1] != rotation.d:
        raise RuntimeError(
            f"Rotation: x has shape {x.shape}, expected (n, {rotation.d})"
        )
    y = np.empty_like(x)
    for row_x, row_y in zip(x, y):
        method(rotation, faiss.swig_ptr(row_x), faiss.swig_ptr(row_y))
    return y


def _replacement_apply(self, x):
    """Rotate vectors.

    Parameters
    ----------
    x : array_like
        shape (n, d)

    Returns
    -------
    array, shape (n, d)
        P x for every row x
    """
    return _rotate_rows(_swig.Rotation.apply_c, self, x)


def _replacement_apply_transpose(self, x):
    """Undo `apply`.

    Parameters
    ----------
    x : array_like
        shape (n, d)

    Returns
    -------
    array, shape (n, d)
        the inverse rotation of every row
    """
    return _rotate_rows(_swig.Rotation.apply_transpose_c, self, x)


class_wrappers.replace_method(Rotation, "apply", _replacement_apply)
class_wrappers.replace_method(
    Rotation, "apply_transpose", _replacement_apply_transpose
)
