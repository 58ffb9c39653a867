"""Arrays in the memory of a GPU, whichever library they are of.

PyTorch and CuPy are never imported here: an array of theirs can only come from
a program that has.
"""

import ctypes
import sys
import typing

import numpy as np


class View(typing.NamedTuple):
    """Where the elements of an array are."""

    pointer: int
    shape: tuple
    dtype: str  # its name, as numpy has it
    is_contiguous: bool


def library_of(x):
    """How to deal with an array on a GPU.

    Returns
    -------
    PyTorch, CuPy, Other or None
        None if the array is not on a GPU
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return PyTorch(torch, x) if x.is_cuda else None
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return CuPy(cupy, x)
    if hasattr(x, "__dlpack_device__"):
        kind, device = x.__dlpack_device__()
        if kind in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED):
            # what the producer orders by if no other stream is named
            return Other(stream=0, device=device)
        return None
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        return Other(stream=interface.get("stream"), device=None)
    return None


class PyTorch:
    has_current_stream = True

    def __init__(self, torch, x):
        self._torch = torch
        self._device = x.device
        self.device = x.device.index

    def stream(self):
        return self._torch.cuda.current_stream(self.device).cuda_stream

    def as_float32(self, x):
        if x.dtype is self._torch.float32 and x.is_contiguous():
            return x
        return x.detach().to(self._torch.float32).contiguous()

    def empty(self, shape, dtype):
        return self._torch.empty(
            shape, dtype=getattr(self._torch, dtype), device=self._device
        )

    def view(self, x):
        dtype = str(x.dtype).removeprefix("torch.")
        return View(x.data_ptr(), tuple(x.shape), dtype, x.is_contiguous())


class CuPy:
    has_current_stream = True

    def __init__(self, cupy, x):
        self._cupy = cupy
        self.device = x.device.id

    def stream(self):
        with self._cupy.cuda.Device(self.device):
            return self._cupy.cuda.get_current_stream().ptr

    def as_float32(self, x):
        with self._cupy.cuda.Device(self.device):
            return self._cupy.ascontiguousarray(x, dtype="float32")

    def empty(self, shape, dtype):
        with self._cupy.cuda.Device(self.device):
            return self._cupy.empty(shape, dtype)

    def view(self, x):
        return View(x.data.ptr, x.shape, x.dtype.name, x.flags.c_contiguous)


class Other:
    """Of a library that has DLPack or `__cuda_array_interface__`.

    Arrays are taken as they are, and results are numpy's. Which stream the
    program goes on with is not known.
    """

    has_current_stream = False

    def __init__(self, stream, device):
        self._stream = stream
        self.device = device

    def stream(self):
        return self._stream

    def as_float32(self, x):
        return x

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def view(self, x):
        if isinstance(x, np.ndarray):
            return View(
                x.ctypes.data, x.shape, x.dtype.name, x.flags.c_contiguous
            )
        if hasattr(x, "__dlpack__"):
            return view_of_dlpack(x)
        return view_of_cuda_array(x)


class Host(Other):
    """Of numpy, or what numpy makes an array of."""

    def __init__(self):
        super().__init__(stream=None, device=None)

    def as_float32(self, x):
        return np.ascontiguousarray(x, dtype="float32")


def _is_contiguous(shape, strides):
    """strides: of elements; None if contiguous"""
    if strides is None or 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def view_of_cuda_array(x):
    """Of the CUDA array interface, version 2 or 3 (Numba's documentation)."""
    interface = x.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is not None:
        strides = [stride // dtype.itemsize for stride in strides]
    return View(
        interface["data"][0], shape, dtype.name, _is_contiguous(shape, strides)
    )


# --------------------------------------------------------------------- DLPack

_DLPACK_CUDA = 2
_DLPACK_CUDA_MANAGED = 13
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f"}


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, with which a DLManagedTensor begins."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def view_of_dlpack(x):
    """Of an array with the DLPack protocol.

    The capsule is not consumed but dropped here, by which the producer gets
    its reference back: x itself keeps the memory alive.
    """
    capsule = x.__dlpack__()
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    if tensor.code not in _DLPACK_KINDS or tensor.lanes != 1:
        raise RuntimeError(
            f"DLPack array with elements of type code {tensor.code} and "
            f"{tensor.lanes} lanes, expected plain integers or floats"
        )
    kind, size = _DLPACK_KINDS[tensor.code], tensor.bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tensor.strides[: tensor.ndim] if tensor.strides else None
    return View(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        np.dtype(f"{kind}{size}").name,
        _is_contiguous(shape, strides),
    )
