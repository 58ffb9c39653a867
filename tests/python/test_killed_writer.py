"""A process that is killed while it writes leaves the old file whole."""

import os
import re
import signal
import time

import faiss
import numpy as np
import pytest
from conftest import gaussian

import faiss_turboquant

D = 64
KILLS = 40


def write_for_ever(indexes, path, started):
    """In a child process, until it is killed."""
    try:
        while True:
            for index in indexes:
                faiss_turboquant.write_index(index, path)
                os.write(started, b"x")
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("description", ["TQ4", "IDMap2,IVF4,TQ4"])
def test_killed_writers(description, tmp_path):
    path = str(tmp_path / "vectors.index")
    x = gaussian(30_000, D)
    indexes = []
    for n in (20_000, len(x)):
        index = faiss.index_factory(D, description)
        index.train(x[:1000])
        if "IDMap" in description:
            index.add_with_ids(x[:n], np.arange(n))
        else:
            index.add(x[:n])
        indexes.append(index)
    contents = []
    for index in indexes:
        faiss.write_index(index, path)
        contents.append((tmp_path / "vectors.index").read_bytes())

    random = np.random.default_rng(0)
    seen = set()
    for _ in range(KILLS):
        heard, started = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(indexes, path, started)
        os.close(started)
        os.read(heard, 1)
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(heard)
        assert os.WTERMSIG(status) == signal.SIGKILL
        found = (tmp_path / "vectors.index").read_bytes()
        seen.add(contents.index(found))
    assert seen == {0, 1}

    # what the killed ones had begun lies beside it, and is nobody's
    left = sorted(set(os.listdir(tmp_path)) - {"vectors.index"})
    assert left, "no writer was killed while it wrote"
    for name in left:
        assert re.fullmatch(r"vectors\.index\.tmp\.\d+\.\d+", name)
    # one that was killed between its last byte and the renaming is whole
    cut_short = [
        name
        for name in left
        if (tmp_path / name).read_bytes() not in contents
    ]
    assert cut_short
    for name in cut_short:
        with pytest.raises(RuntimeError):
            faiss.read_index(str(tmp_path / name))
    assert faiss.read_index(path).ntotal in (20_000, len(x))
