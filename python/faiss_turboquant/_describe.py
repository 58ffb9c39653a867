"""What is inside an index, in words."""

import dataclasses

import faiss

from . import swigfaiss_turboquant as _swig

_METRICS = {
    faiss.METRIC_L2: "METRIC_L2",
    faiss.METRIC_INNER_PRODUCT: "METRIC_INNER_PRODUCT",
}
_ROTATIONS = {
    _swig.RotationType_Hadamard: "Hadamard",
    _swig.RotationType_Haar: "Haar",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """A TurboQuant index and what is around it; `describe` makes them.

    Attributes
    ----------
    codec : str
        the codec's name in a factory string: "TQ4", "TQ2t", "TQ4t12", "TQ3mse"
    bits : int or float
        per coordinate
    code_bytes, factor_bytes : int
        bytes of a vector: its code, and the float32 factors behind that
    bytes_per_vector : int
        their sum. Ids, graphs and the like of the wrappers are not counted.
    rotation : str
        "Hadamard" or "Haar"
    seed : int
        of the rotation
    metric : str
        "METRIC_L2" or "METRIC_INNER_PRODUCT"
    centre : str
        what vectors are taken relative to: "none", "mean of the training
        vectors" or "centroid of the list"
    index_type : str
        class of the index that holds the codes
    d : int
        dimension of what it holds, behind the transforms of `wrappers`
    ntotal : int
        number of vectors in it
    wrappers : tuple of str
        the indexes around it, the outermost first
    simd_level : str
        what searches it on this machine
    others : tuple of Description
        more TurboQuant indexes in the same index: the finer one of
        "TQ1,Refine(TQ4)", other shards
    """

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
    others: tuple["Description", ...] = ()

    @property
    def bytes_per_vector(self):
        return self.code_bytes + self.factor_bytes

    def __repr__(self):
        lines = [
            f"{self.codec}: {self.code_bytes} + {self.factor_bytes} bytes "
            "a vector (code + factors)",
            f"  index     {self.index_type}, d = {self.d}, "
            f"ntotal = {self.ntotal}",
            f"  metric    {self.metric}",
            f"  rotation  {self.rotation}, seed {self.seed}",
            f"  centre    {self.centre}",
            f"  wrappers  {' > '.join(self.wrappers) or 'none'}",
            f"  SIMD      {self.simd_level}",
        ]
        return "\n".join([*lines, *map(repr, self.others)])


def describe(index):
    """What TurboQuant does inside an index.

    Parameters
    ----------
    index : faiss.Index
        with TurboQuant at any depth inside it

    Returns
    -------
    Description
        of the first TurboQuant index found from the outside in; its `others`
        are those of the rest. It prints as a summary.

    Raises
    ------
    RuntimeError
        if there is no TurboQuant inside
    """
    found = list(find_turboquant(index))
    if not found:
        raise RuntimeError(
            f"describe: there is no TurboQuant inside this {_name(index)}"
        )
    first, *others = (_describe_one(*each) for each in found)
    return dataclasses.replace(first, others=tuple(others))


def find_turboquant(index, wrappers=()):
    """(index, its wrappers) of each TurboQuant index inside an index."""
    index = _swig.downcast_index(index)
    if isinstance(getattr(index, "tq", None), _swig.TurboQuantizer):
        yield index, wrappers
    inside = (*wrappers, _wrapper(index))
    for i in range(_swig.count_sub_indexes(index)):
        yield from find_turboquant(_swig.sub_index(index, i), inside)


def _describe_one(index, wrappers):
    tq = index.tq
    code_bytes = tq.packed_size()
    return Description(
        codec=tq.codec_name(),
        bits=_bits(tq),
        code_bytes=code_bytes,
        factor_bytes=tq.code_size - code_bytes,
        rotation=_ROTATIONS[tq.rotation.type],
        seed=tq.rotation.seed,
        metric=_METRICS[tq.metric_type],
        centre=_centre(tq),
        index_type=_name(index),
        d=index.d,
        ntotal=index.ntotal,
        wrappers=wrappers,
        simd_level=_swig.simd_level(),
    )


def _bits(tq):
    half = tq.codec == _swig.CodecType_HalfBit
    return tq.nbits + 0.5 if half else tq.nbits


def _centre(tq):
    if tq.by_residual:
        return "centroid of the list"
    return "mean of the training vectors" if tq.has_centre() else "none"


def _name(index):
    """The class of an index, also where FAISS's downcast does not know it."""
    name = type(index).__name__
    if name == "Index":
        return _swig.type_name(index).rpartition("::")[2]
    return name


def _wrapper(index):
    """Name of a wrapper, with the transforms of an IndexPreTransform."""
    if not isinstance(index, faiss.IndexPreTransform):
        return _name(index)
    chain = []
    for i in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(i))
        chain.append(f"{type(step).__name__} {step.d_in} -> {step.d_out}")
    return f"{_name(index)}({', '.join(chain)})"
