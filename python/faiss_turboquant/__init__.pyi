import dataclasses
from os import PathLike
from typing import Any, Protocol, TypeAlias, overload

import faiss
import numpy as np
import numpy.typing as npt

_Floats: TypeAlias = npt.NDArray[np.float32]
_Ids: TypeAlias = npt.NDArray[np.int64]
_Bytes: TypeAlias = npt.NDArray[np.uint8]

# of PyTorch, with faiss.contrib.torch_utils
class _Tensor(Protocol):
    @property
    def shape(self) -> Any: ...
    @property
    def requires_grad(self) -> Any: ...

_Array: TypeAlias = npt.NDArray[Any] | _Tensor

__version__: str

CodecType_Scaled: int
CodecType_Mse: int
CodecType_HalfBit: int
CodecType_Prod: int
RotationType_Hadamard: int
RotationType_Haar: int

def simd_level() -> str: ...
def available_simd_levels() -> list[str]: ...

# ------------------------------------------------------------ whole indexes

def index_factory(
    d: int,
    description: str,
    metric: int = ...,
    own_invlists: bool = True,
) -> faiss.Index: ...
def read_index(
    source: str | PathLike[str] | faiss.IOReader, io_flags: int = 0
) -> faiss.Index: ...
def write_index(
    index: faiss.Index,
    destination: str | PathLike[str] | faiss.IOWriter,
    io_flags: int = 0,
) -> None: ...
def serialize_index(index: faiss.Index, io_flags: int = 0) -> _Bytes: ...
def deserialize_index(
    data: _Bytes | bytes | bytearray | memoryview, io_flags: int = 0
) -> faiss.Index: ...
def clone_index(index: faiss.Index) -> faiss.Index: ...
def downcast_index(index: faiss.Index) -> faiss.Index: ...

# ----------------------------------------------------------------- describe

@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    codec: str
    bits: float
    code_bytes: int
    factor_bytes: int
    rotation: str
    seed: int
    metric: str
    centre: str
    index_type: str
    d: int
    ntotal: int
    wrappers: tuple[str, ...]
    simd_level: str
    others: tuple[Description, ...] = ()
    @property
    def bytes_per_vector(self) -> int: ...

def describe(index: faiss.Index) -> Description: ...

# -------------------------------------------------------------- the classes

class Codebook:
    step: float
    positions: Any  # std::vector: faiss.vector_to_array
    trellis: Any
    trellis_error: float
    def level(self, g: int) -> float: ...
    def levels(self) -> _Floats: ...
    def mean_squared_error(self, d: int) -> float: ...
    @staticmethod
    def lloyd_max(d: int, nbits: int) -> Codebook: ...
    @staticmethod
    def sketch_signs() -> Codebook: ...
    @staticmethod
    def trellis_coded(nbits: int, memory: int) -> Codebook: ...

class Rotation:
    max_haar_dim: int
    max_small_dim: int
    rounds: int
    type: int
    d: int
    seed: int
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, type: int, d: int, seed: int) -> None: ...
    def apply(self, x: npt.ArrayLike) -> _Floats: ...
    def apply_transpose(self, x: npt.ArrayLike) -> _Floats: ...

class TurboQuantizer(faiss.Quantizer):
    default_seed: int
    max_dim: int
    d: int
    code_size: int
    nbits: int
    codec: int
    metric_type: int
    by_residual: bool
    rotation: Rotation
    codebook: Codebook
    second_codebook: Codebook
    centre: Any  # std::vector: faiss.vector_to_array
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self,
        d: int,
        nbits: int,
        metric: int,
        rotation_type: int = ...,
        seed: int = ...,
        memory: int = 0,
        codec: int = ...,
        /,
    ) -> None: ...
    def memory(self) -> int: ...
    def has_sketch(self) -> bool: ...
    def has_estimator_scale(self) -> bool: ...
    def has_second_scale(self) -> bool: ...
    def has_second_codebook(self) -> bool: ...
    def codec_name(self) -> str: ...
    def has_centre(self) -> bool: ...
    def has_offset(self) -> bool: ...
    def packed_size(self) -> int: ...
    def set_derived_values(self) -> None: ...
    def train(self, x: _Array) -> None: ...
    def compute_codes(self, x: _Array) -> _Bytes: ...
    def decode(self, codes: _Array) -> _Floats: ...

class IndexTurboQuant(faiss.IndexFlatCodes):
    tq: TurboQuantizer
    use_sign_filter: int
    max_large_filter_bytes: int
    sign_margin: float
    def codes_changed(self) -> None: ...
    def permute_entries(self, perm: npt.NDArray[Any], /) -> None: ...
    def __init__(
        self,
        d: int | None = None,
        nbits: int = 4,
        metric: int = ...,
        rotation_type: int = ...,
        seed: int = ...,
        memory: int = 0,
        codec: int = ...,
    ) -> None: ...

class IndexIVFTurboQuant(faiss.IndexIVF):
    tq: TurboQuantizer
    use_sign_filter: int
    max_sign_filter_bytes: int
    sign_margin: float
    centre_scales: Any  # std::vector: faiss.vector_to_array
    def centres_changed(self) -> None: ...
    def __init__(
        self,
        quantizer: faiss.Index | None = None,
        d: int | None = None,
        nlist: int | None = None,
        nbits: int = 4,
        metric: int = ...,
        own_invlists: bool = True,
        rotation_type: int = ...,
        seed: int = ...,
        memory: int = 0,
        codec: int = ...,
    ) -> None: ...

class SearchParametersTurboQuant(faiss.SearchParameters): ...

# ------------------------------------------------------------- NVIDIA GPUs

class StandardGpuResources:
    def __init__(self) -> None: ...
    def setTempMemory(self, size: int, /) -> None: ...
    def setDefaultStream(self, device: int, stream: int, /) -> None: ...

class GpuMultipleClonerOptions:
    shard: bool
    def __init__(self, shard: bool = False) -> None: ...

class GpuIndexTurboQuant(faiss.Index):
    use_sign_filter: int
    sign_margin: float
    def __init__(
        self,
        resources: StandardGpuResources,
        index_or_d: IndexTurboQuant | int,
        nbits: int = 4,
        metric: int = ...,
        rotation_type: int = ...,
        seed: int = ...,
        memory: int = 0,
        *,
        device: int = 0,
    ) -> None: ...
    @property
    def tq(self) -> TurboQuantizer: ...
    def getDevice(self) -> int: ...
    def copyFrom(self, index: IndexTurboQuant, /) -> None: ...
    def copyTo(self, index: IndexTurboQuant, /) -> None: ...
    def reserve(self, n: int, /) -> None: ...
    @overload
    def compute_distances(
        self, x: npt.NDArray[Any], *, D: _Floats | None = None
    ) -> _Floats: ...
    @overload
    def compute_distances(
        self, x: _Tensor, *, D: _Tensor | None = None
    ) -> Any: ...

class GpuIndexIVFTurboQuant(faiss.Index):
    nprobe: int
    def __init__(
        self,
        resources: StandardGpuResources,
        index_or_quantizer: IndexIVFTurboQuant | faiss.Index,
        d: int | None = None,
        nlist: int | None = None,
        nbits: int = 4,
        metric: int = ...,
        rotation_type: int = ...,
        seed: int = ...,
        memory: int = 0,
        *,
        device: int = 0,
    ) -> None: ...
    def parameters(self) -> IndexIVFTurboQuant: ...
    def getDevice(self) -> int: ...
    def get_list_size(self, list_no: int, /) -> int: ...
    def copyFrom(self, index: IndexIVFTurboQuant, /) -> None: ...
    def copyTo(self, index: IndexIVFTurboQuant, /) -> None: ...

def get_num_gpus() -> int: ...
def index_cpu_to_gpu(
    resources: StandardGpuResources, device: int, index: faiss.Index
) -> faiss.Index: ...
def index_cpu_to_gpu_multiple_py(
    resources: list[StandardGpuResources],
    index: faiss.Index,
    co: GpuMultipleClonerOptions | None = None,
    gpus: list[int] | None = None,
) -> faiss.Index: ...
def index_cpu_to_gpus_list(
    index: faiss.Index,
    co: GpuMultipleClonerOptions | None = None,
    gpus: list[int] | None = None,
    ngpu: int = -1,
) -> faiss.Index: ...
def index_cpu_to_all_gpus(
    index: faiss.Index,
    co: GpuMultipleClonerOptions | None = None,
    ngpu: int = -1,
) -> faiss.Index: ...
def index_gpu_to_cpu(index: faiss.Index) -> faiss.Index: ...
