"""Bad input: a RuntimeError that names the argument and the value, and an
index that is what it was."""

import re

import faiss
import numpy as np
import pytest
from conftest import gaussian, make_index

import faiss_turboquant

BAD_VALUES = [np.nan, np.inf, -np.inf]
bad_values = pytest.mark.parametrize("value", BAD_VALUES)
rows = pytest.mark.parametrize("row", [0, 1, 99, 4999])


def refused(index, call, *names):
    """The call raises, with all these in its message, and changes nothing."""
    before = faiss.serialize_index(index)
    with pytest.raises(RuntimeError) as info:
        call()
    for name in names:
        assert re.search(name, str(info.value)), (name, str(info.value))
    assert np.array_equal(faiss.serialize_index(index), before)
    # it still works
    assert index.search(gaussian(1, index.d), 1)[1].shape == (1, 1)


def spoilt(n, d, row, value):
    x = gaussian(n, d, 5)
    x[row, d // 2] = value
    # only the first is named
    x[row + 1 :: 7, 0] = value
    return x


@bad_values
@rows
def test_values_that_are_not_finite(value, row, metric, centre):
    index = make_index(20, 4, metric, n=10, centre=centre)
    x = spoilt(5000, 20, row, value)
    row = rf"\b{row}\b"
    refused(index, lambda: index.add(x), row)
    refused(index, lambda: index.search(x, 3), row)
    refused(index, lambda: index.range_search(x, 1.0), row)
    refused(index, lambda: index.sa_encode(x), row)
    index.reset()
    refused(index, lambda: index.train(x), row)


@bad_values
def test_distance_computer_of_what_is_not_finite(value):
    """FAISS calls it where exceptions would end the process."""
    index = make_index(20, n=10)
    x = spoilt(1, 20, 0, value)
    computer = index.get_FlatCodesDistanceComputer()
    computer.set_query(faiss.swig_ptr(x))
    assert np.isnan([computer(i) for i in range(10)]).all()
    good = gaussian(1, 20)
    computer.set_query(faiss.swig_ptr(good))
    assert np.isfinite([computer(i) for i in range(10)]).all()


def test_norms_too_large_for_float(metric):
    index = make_index(20, 4, metric, n=10)
    x = np.full((2, 20), 3e38, dtype="float32")
    refused(index, lambda: index.add(x), "0")
    # infinite after FAISS's wrapper has converted them
    with np.errstate(over="ignore"):
        refused(index, lambda: index.add(x.astype("float64") * 10), "0")


@pytest.mark.parametrize("k", [0, -1, -(2**40)])
def test_k(k, metric):
    index = make_index(20, 4, metric, n=10)
    xq = gaussian(2, 20)
    refused(index, lambda: index.search(xq, k), rf"k = {k}\b")
    refused(index, lambda: index.assign(xq, k), rf"k = {k}\b")
    # without the checks of the Python wrapper
    D, I = np.empty((2, 1), "float32"), np.empty((2, 1), "int64")
    pointers = [faiss.swig_ptr(a) for a in (xq, D, I)]
    refused(
        index,
        lambda: index.search_c(2, pointers[0], k, *pointers[1:]),
        rf"k = {k}\b",
    )


def test_k_of_another_type():
    index = make_index(20, n=10)
    with pytest.raises(TypeError):
        index.search(gaussian(2, 20), 1.5)


@pytest.mark.parametrize("shape", [(5, 19), (5, 21), (20,), (5, 1, 20)])
def test_shapes(shape):
    index = make_index(20, n=10)
    x = np.zeros(shape, "float32")
    names = (re.escape(str(shape)), "20")
    refused(index, lambda: index.add(x), *names)
    refused(index, lambda: index.search(x, 3), *names)
    refused(index, lambda: index.search_and_reconstruct(x, 3), *names)
    refused(index, lambda: index.assign(x, 3), *names)
    refused(index, lambda: index.range_search(x, 1.0), *names)
    refused(index, lambda: index.sa_encode(x), *names)
    refused(index, lambda: index.train(x), *names)


def test_a_list_is_not_an_array():
    index = make_index(4, n=10)
    refused(index, lambda: index.add([[1, 2, 3, 4]]), "list", "4")


def test_codes_of_another_size():
    index = make_index(20, n=10)
    codes = np.zeros((3, index.code_size + 1), "uint8")
    names = (str(index.code_size + 1), str(index.code_size))
    refused(index, lambda: index.sa_decode(codes), *names)
    refused(index, lambda: index.add_sa_codes(codes), *names)
    with pytest.raises(TypeError, match="uint8"):
        index.sa_decode(codes[:, 1:].astype("int32"))


def test_search_parameters_of_another_type(metric):
    index = make_index(20, 4, metric, n=10)
    xq = gaussian(2, 20)
    for params in (
        faiss.SearchParametersIVF(nprobe=3),
        faiss.SearchParametersHNSW(efSearch=10),
    ):
        name = type(params).__name__
        refused(index, lambda: index.search(xq, 3, params=params), name)
        refused(
            index, lambda: index.range_search(xq, 1.0, params=params), name
        )
    with pytest.raises(TypeError):
        index.search(xq, 3, params=3)


@pytest.mark.parametrize(
    "arguments, names",
    [
        (dict(nbits=0), "nbits = 0"),
        (dict(nbits=5), "nbits = 5"),
        (dict(nbits=-1), "nbits = -1"),
        (dict(d=0), "d = 0"),
        (dict(d=-1), "d = "),
        (dict(d=65537), "d = 65537"),
        (dict(metric=faiss.METRIC_L1), f"metric.*{faiss.METRIC_L1}"),
        (dict(metric=faiss.METRIC_Jaccard), f"metric.*{faiss.METRIC_Jaccard}"),
        (dict(rotation_type=2), "rotation.*2"),
    ],
)
def test_constructor(arguments, names):
    with pytest.raises(RuntimeError, match=names):
        faiss.IndexTurboQuant(**{"d": 20, **arguments})


@pytest.mark.parametrize(
    "arguments", [dict(d=2.5), dict(nbits="4"), dict(seed=-1), dict(bits=4)]
)
def test_constructor_types(arguments):
    with pytest.raises((TypeError, OverflowError)):
        faiss.IndexTurboQuant(**{"d": 20, **arguments})


@pytest.mark.parametrize(
    "description, nearest",
    [
        ("TQ0", "TQ1"),
        ("TQ5", "TQ4"),
        ("TQ44", "TQ4"),
        ("tq4", "TQ4"),
        ("TQ", "TQ4"),
        ("TQ 4", "TQ4"),
        ("TQ4x", "TQ4"),
        ("IDMap,TQ9", "TQ4"),
        ("PCA16,TQ7,RFlat", "TQ4"),
        ("SQ8,Refine(TQ8)", "TQ4"),
    ],
)
def test_factory_strings(description, nearest):
    with pytest.raises(RuntimeError) as info:
        faiss.index_factory(32, description)
    assert nearest in str(info.value)
    assert description.strip() in str(info.value)


@pytest.mark.parametrize("description", ["", "Flat9", "nothing", "PQ", ","])
def test_factory_strings_of_faiss(description):
    """FAISS's own message."""
    messages = []
    for factory in (faiss.index_factory, faiss.loader.index_factory):
        with pytest.raises(RuntimeError) as info:
            factory(32, description)
        messages.append(str(info.value))
    assert messages[0] == messages[1]


def test_factory_arguments():
    with pytest.raises(RuntimeError, match=f"{faiss.METRIC_L1}"):
        faiss.index_factory(32, "TQ4", faiss.METRIC_L1)
    for d in (0, -1, 65537):
        with pytest.raises(RuntimeError, match=rf"\bd\b.*{d}\b"):
            faiss.index_factory(d, "TQ4")


def test_ids_out_of_range():
    index = make_index(20, n=10)
    for key in (-1, 10, 2**40):
        refused(index, lambda: index.reconstruct(key), ".")
        refused(index, lambda: index.reconstruct_n(key, 1), ".")
        refused(index, lambda: index.reconstruct_batch([0, key]), ".")


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("shape", ["TQ3", "IDMap,PCA8,TQ2,RFlat"])
def test_data_cut_short_or_altered(shape):
    index = faiss.index_factory(16, shape)
    index.train(gaussian(50, 16))
    add = index.add_with_ids if "IDMap" in shape else index.add
    add(gaussian(5, 16), *([np.arange(5)] if "IDMap" in shape else []))
    data = faiss.serialize_index(index)
    rng = np.random.default_rng(0)
    variants = [data[:n] for n in rng.permutation(len(data))[:300]]
    variants += [np.append(data, np.uint8(0))]
    for _ in range(300):
        variant = data.copy()
        position = rng.integers(len(data))
        variant[position] ^= np.uint8(1 << rng.integers(8))
        variants.append(variant)
    for variant in variants:
        # every byte is covered by a checksum or compared
        with pytest.raises(RuntimeError):
            faiss.deserialize_index(variant)


def test_files(tmp_path):
    index = make_index(16, n=5)
    missing = str(tmp_path / "missing" / "index")
    refused(index, lambda: faiss.write_index(index, missing), "missing")
    with pytest.raises(RuntimeError, match="missing"):
        faiss.read_index(missing)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(RuntimeError):
        faiss.read_index(empty)
    with pytest.raises(RuntimeError, match=f"io_flags.*{99999:x}"):
        faiss.write_index(index, str(tmp_path / "index"), 99999)


def test_data_of_another_type():
    data = faiss.serialize_index(make_index(16, n=5))
    with pytest.raises(TypeError, match="int32"):
        faiss.deserialize_index(data.astype("int32"))
    with pytest.raises(TypeError):
        faiss.write_index("index", "file")
    with pytest.raises((RuntimeError, TypeError)):
        faiss.clone_index(None)


def test_rotation_and_codebook():
    with pytest.raises(RuntimeError, match=r"\(3, 5\)"):
        faiss_turboquant.Rotation(0, 4, 1).apply(np.zeros((3, 5)))
