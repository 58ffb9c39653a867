"""TurboQuant for FAISS: vector codes that need no training.

Importing this package adds TurboQuant to the faiss module, so that existing
FAISS scripts can use it by changing one string:

>>> import faiss, faiss_turboquant
>>> index = faiss.index_factory(d, "TQ4", faiss.METRIC_INNER_PRODUCT)
>>> index.add(xb)                   # xb: (n, d) float32
>>> D, I = index.search(xq, 10)     # xq: (nq, d); D and I: (nq, 10)

The import adds `faiss.IndexTurboQuant`, `faiss.IndexIVFTurboQuant` and
`faiss.SearchParametersTurboQuant`, and puts `index_factory`,
`read_index`, `write_index`, `serialize_index`, `deserialize_index`,
`clone_index` and `downcast_index` of this package in place of those of faiss.
Each understands TurboQuant at any depth inside FAISS's wrappers and hands
everything else to FAISS. A function that was imported by name before (`from
faiss import read_index`) stays FAISS's. `describe(index)` tells what is inside
an index. `faiss.ParameterSpace` sets the fields `use_sign_filter` and
`sign_margin` of a TurboQuant index at any depth, besides FAISS's parameters.

`faiss_turboquant.gpu` has what belongs to NVIDIA GPUs, if it was built.

Errors are RuntimeErrors that name the argument and the value. The environment
variable TQ_SIMD_LEVEL forces one of `available_simd_levels()`; results do not
depend on it.
"""

# first: checks FAISS's release and loads the C++ library
from . import swigfaiss_turboquant as _swig
from ._classes import (
    Codebook,
    IndexIVFTurboQuant,
    IndexTurboQuant,
    Rotation,
    SearchParametersTurboQuant,
    TurboQuantizer,
)
from ._contrib import install as _install_contrib
from ._describe import Description, describe
from ._functions import (
    clone_index,
    deserialize_index,
    downcast_index,
    index_factory,
    install as _install,
    read_index,
    serialize_index,
    write_index,
)
from .gpu import (
    GpuIndexIVFTurboQuant,
    GpuIndexTurboQuant,
    GpuMultipleClonerOptions,
    StandardGpuResources,
    get_num_gpus,
    index_cpu_to_all_gpus,
    index_cpu_to_gpu,
    index_cpu_to_gpu_multiple_py,
    index_cpu_to_gpus_list,
    index_gpu_to_cpu,
)
from ._openmp import set_up_openmp as _set_up_openmp
from ._parameters import install as _install_parameters
from .swigfaiss_turboquant import (
    CodecType_HalfBit,
    CodecType_Mse,
    CodecType_Prod,
    CodecType_Scaled,
    RotationType_Haar,
    RotationType_Hadamard,
)

__version__ = "0.1.0"

__all__ = [
    "Codebook",
    "CodecType_HalfBit",
    "CodecType_Mse",
    "CodecType_Prod",
    "CodecType_Scaled",
    "Description",
    "GpuIndexIVFTurboQuant",
    "GpuIndexTurboQuant",
    "GpuMultipleClonerOptions",
    "IndexIVFTurboQuant",
    "IndexTurboQuant",
    "Rotation",
    "RotationType_Haar",
    "RotationType_Hadamard",
    "SearchParametersTurboQuant",
    "StandardGpuResources",
    "TurboQuantizer",
    "available_simd_levels",
    "clone_index",
    "describe",
    "deserialize_index",
    "downcast_index",
    "get_num_gpus",
    "index_cpu_to_all_gpus",
    "index_cpu_to_gpu",
    "index_cpu_to_gpu_multiple_py",
    "index_cpu_to_gpus_list",
    "index_factory",
    "index_gpu_to_cpu",
    "read_index",
    "serialize_index",
    "simd_level",
    "write_index",
]


def simd_level():
    """The SIMD level in use: one of `available_simd_levels()`.

    Raises
    ------
    RuntimeError
        if TQ_SIMD_LEVEL names a level that this machine does not have
    """
    return _swig.simd_level()


def available_simd_levels():
    """The SIMD levels that this machine can run, slowest first.

    Returns
    -------
    list of str
        "scalar" and others
    """
    return _swig.available_simd_levels().split(",")


_install()
_install_contrib()
_install_parameters()
_set_up_openmp()
