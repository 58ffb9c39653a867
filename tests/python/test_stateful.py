"""Indexes with a history beside a plain list of vectors without one."""

import pickle

import faiss
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import gaussian
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

D, NLIST = 20, 5
NO_ID = np.empty(0, "int64")

seeds = st.integers(0, 1000)
sizes = st.integers(0, 80)


def in_file(index, path, io_flags=0):
    faiss.write_index(index, str(path))
    return faiss.read_index(str(path), io_flags)


class History(RuleBasedStateMachine):
    """The model is `ids` and `x`, in the order in which the index has them."""

    directory = None  # a pathlib.Path

    # --------------------------------------------------------------- the index

    @initialize(
        codec=st.sampled_from(["TQ1", "TQ2t", "TQ3", "TQ4", "TQ4t"]),
        metric=st.sampled_from([faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]),
        is_trained=st.booleans(),
    )
    def make(self, codec, metric, is_trained):
        self.empty = faiss.index_factory(D, self.description(codec), metric)
        if is_trained or not self.empty.is_trained:
            self.empty.train(gaussian(200, D, 3) + 0.3)
        self.empty = self.prepare(self.empty)
        self.index = faiss.clone_index(self.empty)
        self.ids, self.x = NO_ID, np.empty((0, D), "float32")

    def prepare(self, index):
        return index

    def anew(self):
        """An index without a history, of what the model has."""
        index = faiss.clone_index(self.empty)
        self.add_to(index, self.x, self.ids)
        return index

    # ------------------------------------------------------------------ changes

    @rule(n=sizes, seed=seeds)
    def add(self, n, seed):
        x = gaussian(n, D, seed)
        ids = self.new_ids(n)
        self.add_to(self.index, x, ids)
        self.x = np.concatenate([self.x, x])
        self.ids = np.concatenate([self.ids, ids])

    @rule(n=sizes, seed=seeds)
    def merge(self, n, seed):
        other = faiss.clone_index(self.empty)
        x = gaussian(n, D, seed)
        ids = self.new_ids(n)
        self.add_to(other, x, ids)
        self.index.merge_from(other, 0)
        assert other.ntotal == 0
        self.x = np.concatenate([self.x, x])
        self.ids = np.concatenate([self.ids, ids])

    @rule(data=st.data(), by_range=st.booleans())
    def remove(self, data, by_range):
        known = list(self.ids) + [-1, 10**6]
        if by_range:
            ends = [data.draw(st.sampled_from(known)) for _ in range(2)]
            low, high = sorted(ends)
            selector = faiss.IDSelectorRange(int(low), int(high))
            removed = (self.ids >= low) & (self.ids < high)
        else:
            some = data.draw(st.lists(st.sampled_from(known), max_size=30))
            some = np.array(some, "int64")
            selector = faiss.IDSelectorBatch(some)
            removed = np.isin(self.ids, some)
        assert self.index.remove_ids(selector) == removed.sum()
        self.x, self.ids = self.x[~removed], self.ids[~removed]
        self.renumber()

    @rule()
    def reset(self):
        self.index.reset()
        self.x, self.ids = self.x[:0], NO_ID

    @rule(
        way=st.sampled_from(["file", "serialize", "clone", "pickle"]),
    )
    def replace_by_a_copy(self, way):
        if way == "file":
            self.index = in_file(self.index, self.directory / "copy.index")
        elif way == "serialize":
            self.index = faiss.deserialize_index(
                faiss.serialize_index(self.index)
            )
        elif way == "clone":
            self.index = faiss.clone_index(self.index)
        else:
            self.index = pickle.loads(pickle.dumps(self.index))

    # ------------------------------------------------------------- observations

    @invariant()
    def it_has_the_vectors_of_the_model(self):
        assert self.index.ntotal == len(self.ids)

    def draw_selector(self, data):
        """A selector, what it refers to, and whether each id is selected."""
        kind = data.draw(
            st.sampled_from(["none", "range", "batch", "array", "not"])
        )
        if kind == "none":
            return None, np.ones(len(self.ids), bool)
        known = np.array(list(self.ids) + [-7, 10**6])
        some = known[:: data.draw(st.integers(1, 5))].copy()
        listed = np.isin(self.ids, some)
        if kind == "range":
            low, high = int(known.min()) + 2, int(np.median(known))
            selector = faiss.IDSelectorRange(low, high)
            return selector, (self.ids >= low) & (self.ids < high)
        if kind == "array":
            return faiss.IDSelectorArray(some), listed
        batch = faiss.IDSelectorBatch(some)
        if kind == "batch":
            return batch, listed
        return faiss.IDSelectorNot(batch), ~listed

    @precondition(lambda self: len(self.ids) > 0)
    @rule(k=st.integers(1, 90), nq=st.integers(1, 9), seed=seeds, data=st.data())
    def search(self, k, nq, seed, data):
        xq = gaussian(nq, D, seed)
        selector, is_selected = self.draw_selector(data)
        selected = self.ids[is_selected]
        anew = self.anew()
        all_D, all_I = anew.search(xq, len(self.ids))
        D_found, I_found = self.index.search(
            xq, k, params=self.parameters(selector)
        )
        for q in range(nq):
            wanted = np.isin(all_I[q], selected)
            n = min(k, len(selected))
            np.testing.assert_array_equal(I_found[q, :n], all_I[q, wanted][:n])
            np.testing.assert_array_equal(D_found[q, :n], all_D[q, wanted][:n])
            assert np.all(I_found[q, n:] == -1)

        radius = float(np.median(all_D))
        lims, D_range, I_range = self.index.range_search(
            xq, radius, params=self.parameters(selector)
        )
        for q in range(nq):
            if self.index.metric_type == faiss.METRIC_L2:
                inside = all_D[q] < radius
            else:
                inside = all_D[q] > radius
            expected = all_I[q, inside & np.isin(all_I[q], selected)]
            found = I_range[lims[q] : lims[q + 1]]
            np.testing.assert_array_equal(np.sort(found), np.sort(expected))

    @precondition(lambda self: len(self.ids) > 0)
    @rule(seed=seeds)
    def search_mapped(self, seed):
        xq = gaussian(3, D, seed)
        mapped = in_file(
            self.index, self.directory / "mapped.index", self.mapping
        )
        for a, b in zip(mapped.search(xq, 7), self.index.search(xq, 7)):
            np.testing.assert_array_equal(a, b)

    @precondition(lambda self: len(self.ids) > 0)
    @rule()
    def reconstruct(self):
        index, anew = map(self.with_access_by_id, (self.index, self.anew()))
        for key in self.ids[::7].tolist():
            np.testing.assert_array_equal(
                index.reconstruct(key), anew.reconstruct(key)
            )


class FlatHistory(History):
    """An id is a position, and moves when one before it is removed."""

    mapping = faiss.IO_FLAG_MMAP_IFC

    def description(self, codec):
        return codec

    def new_ids(self, n):
        return np.arange(len(self.ids), len(self.ids) + n)

    def renumber(self):
        self.ids = np.arange(len(self.ids))

    def add_to(self, index, x, ids):
        index.add(x)

    def parameters(self, selector):
        return faiss.SearchParameters(sel=selector)

    def with_access_by_id(self, index):
        return index


class IvfHistory(History):
    """Ids of the caller's, which stay."""

    mapping = faiss.IO_FLAG_MMAP

    def description(self, codec):
        return f"IVF{NLIST},{codec}"

    def prepare(self, index):
        index.nprobe = NLIST
        return index

    def new_ids(self, n):
        self.next_id = getattr(self, "next_id", 100) + n
        return 3 * np.arange(self.next_id - n, self.next_id)

    def renumber(self):
        pass

    def add_to(self, index, x, ids):
        index.add_with_ids(x, ids)

    def parameters(self, selector):
        return faiss.SearchParametersIVF(sel=selector, nprobe=NLIST)

    def with_access_by_id(self, index):
        # FAISS merges only without a direct map
        index = faiss.clone_index(index)
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        return index


@pytest.mark.parametrize("history", [FlatHistory, IvfHistory])
def test_history(history, tmp_path):
    history.directory = tmp_path
    history.TestCase.settings = settings(
        max_examples=20, stateful_step_count=25, deadline=None
    )
    history.TestCase("runTest").runTest()
