"""Files of earlier versions are read, and mean what they meant."""

import faiss
import frozen_files
import numpy as np
import pytest

RESULTS = frozen_files.read_results()


def assert_found(index, name):
    found, expected = frozen_files.search(index), RESULTS[name]
    assert found["I"] == expected["I"]
    if not any(word in name for word in frozen_files.INEXACT):
        assert found["D"] == expected["D"]
    values = [
        np.array([[float.fromhex(d) for d in row] for row in rows["D"]])
        for rows in (found, expected)
    ]
    np.testing.assert_allclose(*values, rtol=1e-2)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_file_means_what_it_meant(name, tmp_path):
    path = frozen_files.path_of(name)
    index = faiss.read_index(str(path))
    assert_found(index, name)
    for flag in (faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC):
        assert_found(faiss.read_index(str(path), flag), name)
    copy = tmp_path / "copy.index"
    faiss.write_index(index, str(copy))
    assert copy.read_bytes() == path.read_bytes()


def test_there_is_a_file_of_each_kind():
    names = set(frozen_files.indexes())
    assert names <= set(RESULTS), (
        "python tests/python/frozen_files.py writes the missing ones"
    )
    files = {path.stem for path in frozen_files.FOLDER.glob("*.index")}
    assert files == set(RESULTS)


@pytest.mark.parametrize("name", sorted(frozen_files.CODECS))
def test_a_new_index_is_as_an_old_one(name):
    """The same vectors make the same codes as ever."""
    old = faiss.read_index(str(frozen_files.path_of(f"{name}-L2")))
    new = frozen_files.filled(faiss.index_factory(frozen_files.D, name), False)
    assert np.array_equal(
        faiss.vector_to_array(old.codes), faiss.vector_to_array(new.codes)
    )
