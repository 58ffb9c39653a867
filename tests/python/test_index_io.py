"""Indexes of every shape, through files, memory, pickle and clone_index."""

import copy
import pathlib
import pickle
import sys

import faiss
import numpy as np
import pytest
from conftest import gaussian, make_index, output_of

import faiss_turboquant

D = 32

SHAPES = [
    "TQ1",
    "TQ2",
    "TQ3",
    "TQ4",
    "TQ1t",
    "TQ3t",
    "IDMap2,TQ4t",
    "IDMap,TQ4",
    "IDMap2,TQ2",
    "TQ4,IDMap2",
    "PCA16,TQ4",
    "RR,TQ3",
    "L2norm,TQ4",
    "TQ2,RFlat",
    "TQ1,Refine(TQ4)",
    "SQ8,Refine(TQ4)",
    "IDMap,PCA16,TQ2,RFlat",
]
INDEXED_SHAPES = [
    "HNSW8,TQ4",
    "NSG8,TQ2",
    "IVF4,TQ4",
    "IDMap2,PCA16,IVF4_HNSW8,TQ3t",
    "IVF4,TQ1,RFlat",
]
FAISS_SHAPES = ["PCA16,SQ8", "IVF4,PQ8x4", "IDMap,HNSW8", "SQ4,RFlat"]

shapes = pytest.mark.parametrize("shape", SHAPES)
all_shapes = pytest.mark.parametrize("shape", SHAPES + INDEXED_SHAPES)


def build(shape, metric, centre=False):
    index = faiss.index_factory(D, shape, metric)
    if shape.startswith("NSG"):
        index.build_type, index.GK = 0, 20  # a second faster than the default
    # trains what FAISS wants trained, and never TurboQuant inside it
    index.train(gaussian(500, D, 1))
    if centre:
        find_turboquant(index).train(gaussian(500, find_turboquant(index).d, 1))
    if "IDMap" in shape:
        index.add_with_ids(gaussian(200, D), 7 * np.arange(200))
    else:
        index.add(gaussian(200, D))
    return index


def find_turboquant(index):
    """The first TurboQuant index inside an index."""
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexTurboQuant, faiss.IndexIVFTurboQuant)):
        return index
    for field in ("index", "base_index", "refine_index", "storage"):
        inner = getattr(index, field, None)
        found = isinstance(inner, faiss.Index) and find_turboquant(inner)
        if found:
            return found
    return None


def through_file(index, tmp_path):
    faiss.write_index(index, str(tmp_path / "index"))
    return faiss.read_index(str(tmp_path / "index"))


def through_path(index, tmp_path):
    faiss.write_index(index, pathlib.Path(tmp_path) / "index")
    return faiss.read_index(pathlib.Path(tmp_path) / "index", io_flags=0)


def through_reader_and_writer(index, tmp_path):
    writer = faiss.VectorIOWriter()
    faiss.write_index(index, writer)
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(faiss.vector_to_array(writer.data), reader.data)
    return faiss.read_index(reader)


def through_callbacks(index, tmp_path):
    data = bytearray()
    faiss.write_index(index, faiss.PyCallbackIOWriter(data.extend))
    stream = iter([bytes(data)])
    rest = [next(stream)]

    def read(size):
        taken, rest[0] = rest[0][:size], rest[0][size:]
        return taken

    return faiss.read_index(faiss.PyCallbackIOReader(read))


def through_memory(index, tmp_path):
    data = faiss.serialize_index(index)
    assert data.dtype == np.uint8 and data.ndim == 1
    return faiss.deserialize_index(data)


def through_bytes(index, tmp_path):
    return faiss.deserialize_index(faiss.serialize_index(index).tobytes())


def through_pickle(index, tmp_path):
    return pickle.loads(pickle.dumps(index))


def through_copy(index, tmp_path):
    return copy.copy(index)


def through_deepcopy(index, tmp_path):
    return copy.deepcopy({"index": index})["index"]


def through_clone(index, tmp_path):
    return faiss.clone_index(index)


ROUND_TRIPS = [
    value for name, value in sorted(globals().items())
    if name.startswith("through_")
]


@all_shapes
@pytest.mark.parametrize("through", ROUND_TRIPS, ids=lambda f: f.__name__[8:])
def test_round_trip(shape, through, metric, tmp_path):
    index = build(shape, metric)
    result = through(index, tmp_path)
    assert type(result) is type(index)
    assert result.this.own()
    assert (result.d, result.ntotal) == (index.d, index.ntotal)
    assert result.metric_type == index.metric_type
    xq = gaussian(10, D, 2)
    expected = index.search(xq, 5)
    del index  # nothing is shared
    for _ in range(2):
        found = result.search(xq, 5)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
        # it can be added to, and be as before
        if "Refine" in shape or "RFlat" in shape:
            break  # FAISS's refining indexes do not remove
        if shape.startswith(("HNSW", "NSG")):
            break  # nor do graphs
        if "IDMap" in shape:
            ids = np.arange(10) - 99
            result.add_with_ids(xq, ids)
        else:
            ids = np.arange(10) + 200
            result.add(xq)
        result.remove_ids(ids)


@pytest.mark.parametrize("through", ROUND_TRIPS, ids=lambda f: f.__name__[8:])
def test_round_trip_of_all_fields(through, nbits, metric, centre, tmp_path):
    index = faiss.IndexTurboQuant(
        33, nbits, metric, faiss_turboquant.RotationType_Haar, 12345
    )
    if centre:
        index.train(gaussian(10, 33) + 1)
    for n in (0, 1, 100):
        index.reset()
        index.add(gaussian(n, 33))
        result = through(index, tmp_path)
        assert np.array_equal(
            faiss.vector_to_array(result.codes),
            faiss.vector_to_array(index.codes),
        )
        result.check_compatible_for_merge(index)
        assert np.array_equal(
            faiss.serialize_index(result), faiss.serialize_index(index)
        )


@shapes
def test_round_trip_with_a_centre(shape, metric, tmp_path):
    index = build(shape, metric, centre=True)
    assert find_turboquant(index).tq.has_centre()
    xq = gaussian(10, D, 2)
    for through in ROUND_TRIPS:
        result = through(index, tmp_path)
        assert find_turboquant(result).tq.has_centre()
        for a, b in zip(result.search(xq, 5), index.search(xq, 5)):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("shape", FAISS_SHAPES)
def test_faiss_indexes_are_left_to_faiss(shape, tmp_path):
    index = build(shape, faiss.METRIC_L2)
    faiss_s = faiss.loader.index_factory(D, shape, faiss.METRIC_L2)
    assert type(index) is type(faiss_s)
    writer = faiss.VectorIOWriter()
    faiss.loader.write_index(index, writer)
    data = faiss.vector_to_array(writer.data)
    assert np.array_equal(faiss.serialize_index(index), data)
    xq = gaussian(10, D, 2)
    for through in ROUND_TRIPS:
        result = through(index, tmp_path)
        assert type(result) is type(index)
        assert np.array_equal(result.search(xq, 5)[1], index.search(xq, 5)[1])
    # what FAISS has written
    faiss.loader.write_index(index, str(tmp_path / "faiss"))
    assert type(faiss.read_index(str(tmp_path / "faiss"))) is type(index)


def test_round_trip_of_a_codec(tmp_path):
    index = faiss.index_factory(D, "MinMax,TQ4")
    index.train(gaussian(100, D))
    codes = index.sa_encode(gaussian(20, D))
    for through in ROUND_TRIPS:
        result = through(index, tmp_path)
        assert type(result) is type(index)
        assert np.array_equal(result.sa_encode(gaussian(20, D)), codes)
        assert np.array_equal(result.sa_decode(codes), index.sa_decode(codes))


def test_faiss_s_io_flags_arrive(tmp_path):
    index = build("IVF4,Flat", faiss.METRIC_L2)
    faiss.write_index(index, str(tmp_path / "index"))
    result = faiss.read_index(str(tmp_path / "index"), faiss.IO_FLAG_MMAP)
    invlists = faiss.downcast_InvertedLists(result.invlists)
    assert isinstance(invlists, faiss.OnDiskInvertedLists)


@all_shapes
@pytest.mark.parametrize("flag", [faiss.IO_FLAG_MMAP_IFC, faiss.IO_FLAG_MMAP])
def test_mapped_files(shape, flag, metric, tmp_path):
    index = build(shape, metric)
    faiss.write_index(index, str(tmp_path / "index"))
    result = faiss.read_index(str(tmp_path / "index"), flag)
    assert type(result) is type(index)
    if "IVF" in shape:
        lists = find_turboquant(result).invlists
        lists = faiss.downcast_InvertedLists(lists)
        assert isinstance(lists, faiss.OnDiskInvertedLists)
    else:
        codes = find_turboquant(result).codes
        assert not codes.is_owned
        assert np.array_equal(
            faiss.vector_to_array(codes),
            faiss.vector_to_array(find_turboquant(index).codes),
        )
    xq = gaussian(10, D, 2)
    # FAISS does not clone inverted lists on disk
    copies = [] if "IVF" in shape else [faiss.clone_index(result)]
    for copy_of_it in [result] + copies:
        for a, b in zip(copy_of_it.search(xq, 5), index.search(xq, 5)):
            assert np.array_equal(a, b)
    faiss.write_index(result, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "index").read_bytes()
    if shape.startswith("NSG"):
        return  # never changes
    with pytest.raises(RuntimeError, match="is refused, because"):
        if "IDMap" in shape:
            result.add_with_ids(xq, np.arange(10))
        else:
            result.add(xq)


def test_a_mapped_index_keeps_its_file(tmp_path):
    """Also one of which only a part is left."""
    index = build("TQ2,RFlat", faiss.METRIC_L2)
    faiss.write_index(index, str(tmp_path / "index"))
    result = faiss.read_index(
        str(tmp_path / "index"), faiss.IO_FLAG_MMAP_IFC
    )
    flat = faiss.clone_index(result.refine_index)
    (tmp_path / "index").unlink()
    del result
    assert not flat.codes.is_owned
    xq = gaussian(10, D, 2)
    for a, b in zip(
        flat.search(xq, 5), index.refine_index.search(xq, 5)
    ):
        assert np.array_equal(a, b)


def test_several_indexes_in_one_stream():
    first, second = make_index(8, n=3), make_index(16, n=4)
    writer = faiss.VectorIOWriter()
    faiss.write_index(first, writer)
    faiss.write_index(second, writer)
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(faiss.vector_to_array(writer.data), reader.data)
    assert faiss.read_index(reader).d == 8
    assert faiss.read_index(reader).d == 16


def test_an_exception_in_a_callback_arrives():
    def write(data):
        raise KeyError("disk on fire")

    with pytest.raises(KeyError, match="disk on fire"):
        faiss.write_index(make_index(8, n=3), faiss.PyCallbackIOWriter(write))


@pytest.mark.parametrize("shape", ["TQ4", "IDMap,PCA16,TQ2", "TQ1,RFlat"])
def test_unpickling_in_a_fresh_process(shape, tmp_path):
    index = build(shape, faiss.METRIC_L2)
    (tmp_path / "pickle").write_bytes(pickle.dumps(index))
    script = f"""
import pickle
index = pickle.load(open({str(tmp_path / "pickle")!r}, "rb"))
print(type(index).__name__, index.ntotal)
"""
    assert output_of(script) == f"{type(index).__name__} 200"


def test_pickles_of_faiss_indexes_do_not_need_this_package(tmp_path):
    index = build("IDMap,Flat", faiss.METRIC_L2)
    (tmp_path / "pickle").write_bytes(pickle.dumps(index))
    script = f"""
import pickle, sys
index = pickle.load(open({str(tmp_path / "pickle")!r}, "rb"))
print(index.ntotal, "faiss_turboquant" in sys.modules)
"""
    assert output_of(script) == "200 False"


# ------------------------------------------------------------------- downcast


@shapes
def test_nested_indexes_are_downcast(shape):
    index = build(shape, faiss.METRIC_L2)
    inner = find_turboquant(index)
    assert inner is not None and inner.ntotal == 200
    owner = inner if inner is index else index
    assert owner.this.own() and (inner is index or not inner.this.own())


def test_downcast_of_shards_and_replicas():
    for container in (faiss.IndexShards(16), faiss.IndexReplicas(16)):
        part = make_index(16)
        add = getattr(container, "add_shard", None) or container.addIndex
        add(part)
        assert isinstance(
            faiss.downcast_index(container.at(0)), faiss.IndexTurboQuant
        )


def test_downcast_of_other_types():
    assert faiss.downcast_index(None) is None
    flat = faiss.IndexFlatL2(8)
    idmap = faiss.IndexIDMap(flat)
    assert type(faiss.downcast_index(idmap.index)) is faiss.IndexFlatL2
    index = make_index(8)
    assert type(faiss.downcast_index(index)) is faiss.IndexTurboQuant
    with pytest.raises(TypeError):
        faiss.downcast_index("TQ4")


# ------------------------------------------------------------------ ownership


def test_wrappers_keep_their_index_alive():
    index = faiss.IndexIDMap(faiss.IndexTurboQuant(16))
    index.add_with_ids(gaussian(10, 16), np.arange(10) + 5)
    assert index.search(gaussian(1, 16), 10)[1].min() == 5
    index = faiss.IndexPreTransform(
        faiss.RandomRotationMatrix(16, 16), faiss.IndexTurboQuant(16)
    )
    index.train(gaussian(10, 16))
    index.add(gaussian(10, 16))
    assert index.ntotal == 10


def test_the_quantizer_keeps_its_index_alive():
    tq = faiss.IndexTurboQuant(64, 3).tq
    faiss.IndexTurboQuant(64, 1)
    assert tq.nbits == 3 and tq.code_size == 64 * 3 // 8 + 8


def test_ownership_can_be_handed_over():
    index = faiss.index_factory(16, "TQ4")
    idmap = faiss.IndexIDMap(index)
    idmap.own_fields = True
    index.this.disown()
    del idmap
    del index


def test_indexes_are_freed_once(tmp_path):
    """Neither leaked nor freed twice; nor is SWIG's type table, which counts
    the references of objects that own something."""
    index = build("IDMap,PCA16,TQ4", faiss.METRIC_L2)
    big = make_index(256, n=4000)  # 0.5 MB of codes
    references = sys.getrefcount(type(index))
    for i in range(700):
        if i == 100:
            memory = faiss.get_mem_usage_kb()
        copy = faiss.clone_index(big)
        assert copy.ntotal == 4000
        small = faiss.index_factory(16, "IDMap,TQ4")
        assert faiss.downcast_index(small.index).tq.nbits == 4
    for _ in range(30):
        for through in ROUND_TRIPS:
            through(index, tmp_path)
    # a leak of one index in 10 would take 30 MB
    assert faiss.get_mem_usage_kb() - memory < 20_000
    assert sys.getrefcount(type(index)) < references + 10
    assert type(faiss.VectorIOWriter().data) is faiss.UInt8Vector
