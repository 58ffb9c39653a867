"""TurboQuant on NVIDIA GPUs, where the package was built with its GPU part.

>>> res = faiss_turboquant.StandardGpuResources()
>>> gpu_index = faiss_turboquant.index_cpu_to_gpu(res, 0, index)
>>> D, I = gpu_index.search(xq, 10)   # xq: of numpy, PyTorch, CuPy ...

Functions have the names and arguments of those of the faiss module. Without
the GPU part, `get_num_gpus()` is 0 and all else raises a RuntimeError.
"""

import operator

from ._gpu_extension import swig as _swig_gpu

_NOT_BUILT = (
    "faiss_turboquant was built without its GPU part. To build it, CUDA 13 "
    "with nvcc is needed: pip install . "
    "-C cmake.define.FAISS_TURBOQUANT_GPU=ON, or, in the source tree, "
    "./dev gpu-build"
)


def _need_gpu_part():
    if _swig_gpu is None:
        raise RuntimeError(_NOT_BUILT)


if _swig_gpu is not None:
    from ._gpu_classes import (
        GpuIndexIVFTurboQuant,
        GpuIndexTurboQuant,
        StandardGpuResources,
    )
else:

    class GpuIndexIVFTurboQuant:
        """A `faiss.IndexIVFTurboQuant` with its lists on a GPU; not built
        here."""

        def __init__(self, *args, **kwargs):
            _need_gpu_part()

    class GpuIndexTurboQuant:
        """A `faiss.IndexTurboQuant` in the memory of a GPU; not built here."""

        def __init__(self, *args, **kwargs):
            _need_gpu_part()

    class StandardGpuResources:
        """Streams and memory of every GPU; not built here."""

        def __init__(self):
            _need_gpu_part()


class GpuMultipleClonerOptions:
    """How an index goes to several GPUs.

    Attributes
    ----------
    shard : bool
        Each GPU holds a part of the vectors, instead of all of them and
        searching for a part of the queries.
    """

    __slots__ = ("shard",)

    def __init__(self, shard=False):
        self.shard = shard


def get_num_gpus():
    """GPUs that can be used.

    Returns
    -------
    int
        0 without a driver, and without the GPU part
    """
    return 0 if _swig_gpu is None else _swig_gpu.get_num_gpus()


def index_cpu_to_gpu(resources, device, index):
    """A copy of an index on a GPU.

    Parameters
    ----------
    resources : StandardGpuResources
    device : int
        number of the GPU
    index : faiss.Index
        an `IndexTurboQuant`, alone or inside `IndexIDMap`, `IndexIDMap2`,
        `IndexPreTransform`, `IndexRefine` (its second stage stays on the
        CPU), `IndexShards` and `IndexReplicas`

    Returns
    -------
    faiss.Index
        `GpuIndexTurboQuant`, or one that holds such

    Raises
    ------
    RuntimeError
        for any other type of index, by its name
    """
    return index_cpu_to_gpu_multiple_py([resources], index, gpus=[device])


def index_cpu_to_gpu_multiple_py(resources, index, co=None, gpus=None):
    """A copy of an index on several GPUs.

    Parameters
    ----------
    resources : list of StandardGpuResources
        one for each GPU
    index : faiss.Index
        as for `index_cpu_to_gpu`
    co : GpuMultipleClonerOptions, optional
    gpus : list of int, optional
        numbers of the GPUs; by default the first ones

    Returns
    -------
    faiss.Index
        With several GPUs, a `faiss.IndexReplicas` (or `IndexShards`) of one
        `GpuIndexTurboQuant` or `GpuIndexIVFTurboQuant` for each.
    """
    _need_gpu_part()
    gpus = range(len(resources)) if gpus is None else gpus
    if len(gpus) != len(resources):
        raise RuntimeError(
            f"index_cpu_to_gpu: {len(resources)} resources for {len(gpus)} "
            "devices"
        )
    targets = _swig_gpu.GpuList()
    for provider, device in zip(resources, gpus):
        targets.append(provider, operator.index(device))
    co = co or GpuMultipleClonerOptions()
    return targets.index_cpu_to_gpu_list(index, bool(co.shard))


def index_cpu_to_gpus_list(index, co=None, gpus=None, ngpu=-1):
    """A copy of an index on some of the GPUs.

    Parameters
    ----------
    index : faiss.Index
        as for `index_cpu_to_gpu`
    co : GpuMultipleClonerOptions, optional
    gpus : list of int, optional
        numbers of the GPUs
    ngpu : int
        without `gpus`: so many of the first ones; -1 is all

    Returns
    -------
    faiss.Index
        as from `index_cpu_to_gpu_multiple_py`
    """
    _need_gpu_part()
    if gpus is None:
        gpus = range(get_num_gpus() if ngpu == -1 else ngpu)
    if len(gpus) == 0:
        raise RuntimeError("index_cpu_to_gpus_list: there is no GPU")
    resources = [StandardGpuResources()] * len(gpus)
    return index_cpu_to_gpu_multiple_py(resources, index, co, gpus)


def index_cpu_to_all_gpus(index, co=None, ngpu=-1):
    """A copy of an index on all GPUs.

    Parameters
    ----------
    index : faiss.Index
        as for `index_cpu_to_gpu`
    co : GpuMultipleClonerOptions, optional
    ngpu : int
        the first ones only

    Returns
    -------
    faiss.Index
        as from `index_cpu_to_gpu_multiple_py`
    """
    return index_cpu_to_gpus_list(index, co=co, ngpu=ngpu)


def index_gpu_to_cpu(index):
    """A copy of an index on the CPU.

    Parameters
    ----------
    index : faiss.Index
        What `index_cpu_to_gpu` and its like return. Shards become one index
        again, and of replicas one is taken.

    Returns
    -------
    faiss.Index
    """
    _need_gpu_part()
    return _swig_gpu.index_gpu_to_cpu(index)
