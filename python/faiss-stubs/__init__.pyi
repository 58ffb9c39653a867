# Types of what faiss_turboquant puts into faiss, and of the methods that every
# index has. FAISS has none of its own: all other names are Any.

from typing import Any, overload

import numpy as np
import numpy.typing as npt
from faiss_turboquant import (
    IndexIVFTurboQuant as IndexIVFTurboQuant,
    IndexTurboQuant as IndexTurboQuant,
    SearchParametersTurboQuant as SearchParametersTurboQuant,
    _Array,
    _Bytes,
    _Floats,
    _Ids,
    _Tensor,
    clone_index as clone_index,
    deserialize_index as deserialize_index,
    downcast_index as downcast_index,
    index_factory as index_factory,
    read_index as read_index,
    serialize_index as serialize_index,
    write_index as write_index,
)

METRIC_INNER_PRODUCT: int
METRIC_L2: int

class Index:
    d: int
    ntotal: int
    is_trained: bool
    metric_type: int
    # those of subclasses, as in index_factory(d, "IVF64,TQ4").nprobe = 4
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def train(self, x: _Array) -> None: ...
    def add(self, x: _Array) -> None: ...
    def add_with_ids(self, x: _Array, ids: _Array) -> None: ...
    # numpy in, numpy out; tensors in, tensors out
    @overload
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: SearchParameters | None = None,
        D: _Floats | None = None,
        I: _Ids | None = None,
    ) -> tuple[_Floats, _Ids]: ...
    @overload
    def search(
        self,
        x: _Tensor,
        k: int,
        *,
        params: SearchParameters | None = None,
        D: _Tensor | None = None,
        I: _Tensor | None = None,
    ) -> tuple[Any, Any]: ...
    @overload
    def range_search(
        self,
        x: npt.NDArray[Any],
        thresh: float,
        *,
        params: SearchParameters | None = None,
    ) -> tuple[npt.NDArray[np.uint64], _Floats, _Ids]: ...
    @overload
    def range_search(
        self,
        x: _Tensor,
        thresh: float,
        *,
        params: SearchParameters | None = None,
    ) -> tuple[Any, Any, Any]: ...
    @overload
    def assign(
        self, x: npt.NDArray[Any], k: int, labels: _Ids | None = None
    ) -> _Ids: ...
    @overload
    def assign(
        self, x: _Tensor, k: int, labels: _Tensor | None = None
    ) -> Any: ...
    @overload
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: SearchParameters | None = None,
        D: _Floats | None = None,
        I: _Ids | None = None,
        R: _Floats | None = None,
    ) -> tuple[_Floats, _Ids, _Floats]: ...
    @overload
    def search_and_reconstruct(
        self,
        x: _Tensor,
        k: int,
        *,
        params: SearchParameters | None = None,
        D: _Tensor | None = None,
        I: _Tensor | None = None,
        R: _Tensor | None = None,
    ) -> tuple[Any, Any, Any]: ...
    # tensors, with contrib.torch_utils, when x is none of numpy
    def reconstruct(self, key: int, x: _Array | None = None) -> Any: ...
    def reconstruct_n(
        self, n0: int = 0, ni: int = -1, x: _Array | None = None
    ) -> Any: ...
    def reconstruct_batch(
        self, key: npt.ArrayLike, x: _Array | None = None
    ) -> Any: ...
    def remove_ids(self, x: npt.NDArray[Any] | IDSelector) -> int: ...
    def merge_from(self, otherIndex: Index, add_id: int = 0) -> None: ...
    def check_compatible_for_merge(self, otherIndex: Index) -> None: ...
    def reset(self) -> None: ...
    def sa_code_size(self) -> int: ...
    @overload
    def sa_encode(
        self, x: npt.NDArray[Any], codes: _Bytes | None = None
    ) -> _Bytes: ...
    @overload
    def sa_encode(self, x: _Tensor, codes: _Tensor | None = None) -> Any: ...
    @overload
    def sa_decode(
        self, codes: npt.NDArray[Any], x: _Floats | None = None
    ) -> _Floats: ...
    @overload
    def sa_decode(self, codes: _Tensor, x: _Tensor | None = None) -> Any: ...

class IndexFlatCodes(Index):
    code_size: int
    codes: Any  # std::vector: vector_to_array
    def add_sa_codes(self, codes: _Array, ids: _Array | None = None) -> None: ...
    def permute_entries(self, perm: _Array) -> None: ...

class IndexIVF(Index):
    nlist: int
    nprobe: int
    quantizer: Index
    code_size: int
    @overload
    def search_preassigned(
        self,
        x: npt.NDArray[Any],
        k: int,
        Iq: npt.NDArray[Any],
        Dq: npt.NDArray[Any] | None,
        *,
        params: SearchParameters | None = None,
        D: _Floats | None = None,
        I: _Ids | None = None,
    ) -> tuple[_Floats, _Ids]: ...
    @overload
    def search_preassigned(
        self,
        x: _Tensor,
        k: int,
        Iq: _Tensor,
        Dq: _Tensor | None,
        *,
        params: SearchParameters | None = None,
        D: _Tensor | None = None,
        I: _Tensor | None = None,
    ) -> tuple[Any, Any]: ...
    def range_search_preassigned(
        self,
        x: npt.NDArray[Any],
        thresh: float,
        Iq: npt.NDArray[Any],
        Dq: npt.NDArray[Any] | None,
        *,
        params: SearchParameters | None = None,
    ) -> tuple[npt.NDArray[np.uint64], _Floats, _Ids]: ...
    def make_direct_map(self, new_maintain_direct_map: bool = True) -> None: ...

class Quantizer: ...
class SearchParameters:
    def __init__(self, **fields: Any) -> None: ...

class IDSelector: ...
class IOReader: ...
class IOWriter: ...

def __getattr__(name: str) -> Any: ...
