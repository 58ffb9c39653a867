"""faiss.IndexTurboQuant: what it returns, against brute force and itself."""

import threading

import faiss
import numpy as np
import pytest
from conftest import (
    AWKWARD_SIZES,
    METRICS,
    assert_same_results,
    brute_force,
    codes_of,
    gaussian,
    make_index,
)
from hypothesis import given
from hypothesis import strategies as st

from faiss_turboquant import RotationType_Haar, RotationType_Hadamard

sizes = st.sampled_from(AWKWARD_SIZES)


# --------------------------------------------------------------------- search


@given(
    d=sizes,
    n=sizes,
    nq=st.sampled_from([1, 2, 3, 5, 17]),
    k=st.sampled_from([1, 2, 10, 64, 300]),
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    rotation_type=st.sampled_from([RotationType_Hadamard, RotationType_Haar]),
    centre=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_search_is_brute_force(
    d, n, nq, k, nbits, metric, rotation_type, centre, seed
):
    index = faiss.IndexTurboQuant(d, nbits, metric, rotation_type, seed)
    if centre:
        index.train(gaussian(20, d, seed) + 1)
    # few different vectors, so that distances are often equal
    index.add(gaussian(n, d, seed)[: 1 + n // 2].repeat(2, axis=0)[:n])
    xq = gaussian(nq, d, seed + 1)
    D, I = index.search(xq, k)
    D_ref, I_ref = brute_force(index, xq)
    found = min(k, n)
    for i in range(nq):
        assert_same_results(
            index, D[i, :found], I[i, :found], D_ref[i], I_ref[i]
        )
    assert (I[:, found:] == -1).all()


def test_labels_and_distances_past_the_end(metric):
    index = make_index(16, 4, metric, n=3)
    flat = faiss.IndexFlat(16, metric)
    flat.add(gaussian(3, 16))
    xq = gaussian(5, 16, 1)
    D, I = index.search(xq, 7)
    D_flat, I_flat = flat.search(xq, 7)
    assert np.array_equal(I[:, 3:], I_flat[:, 3:])
    assert np.array_equal(D[:, 3:], D_flat[:, 3:])


def test_search_of_an_empty_index(metric):
    index = make_index(16, 4, metric)
    assert (index.search(gaussian(2, 16), 3)[1] == -1).all()
    assert (index.search(gaussian(0, 16), 3)[1]).shape == (0, 3)
    lims, _, _ = index.range_search(gaussian(2, 16), 0.0)
    assert lims.tolist() == [0, 0, 0]


def test_a_batch_is_its_queries(nbits, metric, centre):
    index = make_index(100, nbits, metric, n=1000, centre=centre)
    xq = gaussian(65, 100, 9)
    D, I = index.search(xq, 10)
    for i in range(len(xq)):
        D1, I1 = index.search(xq[i : i + 1], 10)
        assert np.array_equal(D[i], D1[0])
        assert np.array_equal(I[i], I1[0])


@pytest.mark.parametrize("nq", [1, 3, 100])
def test_threads_do_not_change_results(nq, metric):
    index = make_index(64, 2, metric, n=5000)
    xq = gaussian(nq, 64, 9)
    threads = faiss.omp_get_max_threads()
    results = []
    try:
        for n in (1, 2, 3, 8):
            faiss.omp_set_num_threads(n)
            results.append(index.search(xq, 20))
    finally:
        faiss.omp_set_num_threads(threads)
    for D, I in results[1:]:
        assert np.array_equal(D, results[0][0])
        assert np.array_equal(I, results[0][1])


def test_searches_from_several_python_threads(metric):
    index = make_index(64, 4, metric, n=3000)
    xq = gaussian(20, 64, 9)
    D, I = index.search(xq, 10)
    equal = []

    def work():
        for _ in range(20):
            Dt, It = index.search(xq, 10)
            equal.append(np.array_equal(Dt, D) and np.array_equal(It, I))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80


def test_a_zero_vector_is_a_vector(nbits, metric, centre):
    d = 33
    index = make_index(d, nbits, metric, centre=centre)
    xb = np.concatenate([np.zeros((1, d), "float32"), gaussian(3, d)])
    index.add(xb)
    xq = np.concatenate([np.zeros((1, d), "float32"), gaussian(2, d, 1)])
    D, I = index.search(xq, 4)
    assert np.isfinite(D).all()
    assert (np.sort(I) == np.arange(4)).all()
    if not centre:
        assert np.array_equal(index.reconstruct(0), np.zeros(d))
        zero = I[1:] == 0
        if metric == faiss.METRIC_INNER_PRODUCT:
            assert (D[0] == 0).all() and (D[1:][zero] == 0).all()
        else:
            norms = np.sum(xq[1:] ** 2, axis=1)
            np.testing.assert_allclose(D[1:][zero], norms, rtol=1e-6)


def test_equal_distances_are_ordered_by_id(nbits, metric):
    index = faiss.IndexTurboQuant(40, nbits, metric)
    index.add(np.tile(gaussian(1, 40), (200, 1)))
    for nq in (1, 40):
        _, I = index.search(gaussian(nq, 40, 1), 150)
        assert (I == np.arange(150)).all()


def test_output_arrays_and_keywords(metric):
    index = make_index(16, 4, metric, n=10)
    xq = gaussian(2, 16, 1)
    D, I = np.empty((2, 3), "float32"), np.empty((2, 3), "int64")
    assert index.search(xq, k=3, D=D, I=I)[1] is I
    assert np.array_equal(index.search(xq, np.int32(3))[0], D)
    assert np.array_equal(index.assign(xq, 3), I)
    # as FAISS does, converted to contiguous float32
    assert np.array_equal(index.search(xq.astype("float64"), 3)[0], D)
    assert np.array_equal(index.search(np.asfortranarray(xq), 3)[0], D)


def test_search_and_reconstruct(metric):
    index = make_index(16, 4, metric, n=10)
    D, I, R = index.search_and_reconstruct(gaussian(2, 16, 1), 3)
    assert np.array_equal(R[1, 2], index.reconstruct(int(I[1, 2])))


# ------------------------------------------------------------------ selectors


def selectors(n, rng):
    """Selectors and the ids that they select."""
    ids = np.sort(rng.choice(n, max(1, n // 3), replace=False))
    half = faiss.IDSelectorRange(n // 4, n // 2)
    in_half = np.arange(n // 4, n // 2)
    bitmap = np.zeros((n + 7) // 8, "uint8")
    for i in ids:
        bitmap[i // 8] |= 1 << (i % 8)
    return [
        (faiss.IDSelectorBatch(ids), ids),
        (faiss.IDSelectorArray(ids), ids),
        (faiss.IDSelectorBitmap(bitmap), ids),
        (half, in_half),
        (faiss.IDSelectorNot(half), np.setdiff1d(np.arange(n), in_half)),
        (faiss.IDSelectorAll(), np.arange(n)),
        (faiss.IDSelectorRange(n, n + 5), np.arange(0)),
    ]


@given(
    d=sizes,
    n=sizes,
    nq=st.sampled_from([1, 9]),
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 1000),
)
def test_selectors(d, n, nq, nbits, metric, seed):
    index = make_index(d, nbits, metric, n, seed=seed)
    xq = gaussian(nq, d, seed + 1)
    D_all, I_all = brute_force(index, xq)
    k = 20
    for sel, ids in selectors(n, np.random.default_rng(seed)):
        params = faiss.SearchParameters(sel=sel)
        D, I = index.search(xq, k, params=params)
        lims, D_range, I_range = index.range_search(
            xq, float(np.median(D_all)), params=params
        )
        for i in range(nq):
            chosen = np.isin(I_all[i], ids)
            found = min(k, len(ids))
            assert_same_results(
                index,
                D[i, :found],
                I[i, :found],
                D_all[i][chosen],
                I_all[i][chosen],
            )
            assert (I[i, found:] == -1).all()
            assert np.isin(I_range[lims[i] : lims[i + 1]], ids).all()


def test_params_without_a_selector():
    index = make_index(16, n=10)
    xq = gaussian(2, 16, 1)
    D, I = index.search(xq, 3, params=faiss.SearchParameters())
    assert np.array_equal(I, index.search(xq, 3)[1])


# --------------------------------------------------------------- range search


@given(
    d=sizes,
    n=sizes,
    nq=st.sampled_from([1, 2, 33]),
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    quantile=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_range_search(d, n, nq, nbits, metric, quantile):
    index = make_index(d, nbits, metric, n)
    xq = gaussian(nq, d, 1)
    D_all, I_all = brute_force(index, xq)
    # one of the distances: the comparison is strict
    radius = float(np.quantile(D_all, quantile, method="nearest"))
    lims, D, I = index.range_search(xq, radius)
    assert lims[0] == 0 and len(D) == len(I) == lims[-1]
    for i in range(nq):
        if metric == faiss.METRIC_L2:
            within = D_all[i] < np.float32(radius)
        else:
            within = D_all[i] > np.float32(radius)
        by_id = np.argsort(I_all[i][within])
        assert np.array_equal(
            I[lims[i] : lims[i + 1]], I_all[i][within][by_id]
        )
        assert np.array_equal(
            D[lims[i] : lims[i + 1]], D_all[i][within][by_id]
        )


# ---------------------------------------------------------- distance computer


def test_distance_computer_keeps_its_index_alive():
    index = make_index(64, n=100)
    xq = gaussian(1, 64, 1)
    D, I = index.search(xq, 1)
    computer = index.get_distance_computer()
    del index
    computer.set_query(faiss.swig_ptr(xq))
    assert computer(int(I[0, 0])) == D[0, 0]


def test_symmetric_distances(nbits, metric, centre):
    d, n = 128, 20
    index = make_index(d, nbits, metric, n=n, centre=centre)
    x = gaussian(n, d)
    computer = index.get_FlatCodesDistanceComputer()
    D = np.array(
        [[computer.symmetric_dis(i, j) for j in range(n)] for i in range(n)]
    )
    assert np.array_equal(D, D.T)
    off_diagonal = ~np.eye(n, dtype=bool)
    # an inner product of two codes of norm near sqrt(d) is off by about
    # sqrt(2 e / d) |x| |y|, with e the relative error of one code's direction
    error = {1: 0.6, 2: 0.14, 3: 0.036, 4: 0.0098}[nbits]
    sigma = (2 * error * d * 1.5) ** 0.5
    truth = x @ x.T
    if metric == faiss.METRIC_L2:
        norms = np.diag(truth)
        truth = norms[:, None] + norms - 2 * truth
        sigma *= 2
    assert np.abs(D - truth)[off_diagonal].max() < 5 * sigma


# -------------------------------------------------------------------- storage


@given(
    d=sizes,
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    centre=st.booleans(),
)
def test_code_size(d, nbits, metric, centre):
    index = make_index(d, nbits, metric, centre=centre)
    plain = metric == faiss.METRIC_INNER_PRODUCT and not centre
    if nbits == 3:
        packed = (2 * d + 7) // 8 + (d + 7) // 8
    else:
        packed = (nbits * d + 7) // 8
    assert index.code_size == packed + (4 if plain else 8)
    assert index.sa_code_size() == index.code_size == index.tq.code_size
    assert index.tq.packed_size() == packed


@given(
    d=sizes,
    n=sizes,
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    centre=st.booleans(),
)
def test_codec_interface(d, n, nbits, metric, centre):
    index = make_index(d, nbits, metric, n, centre)
    x = gaussian(n, d)
    codes = index.sa_encode(x)
    assert np.array_equal(codes, codes_of(index))
    assert np.array_equal(codes, index.tq.compute_codes(x))
    decoded = index.sa_decode(codes)
    assert np.array_equal(decoded, index.tq.decode(codes))
    assert np.array_equal(decoded, index.reconstruct_n())
    assert np.array_equal(decoded[n // 2], index.reconstruct(n // 2))
    ids = np.arange(n)[::-2].copy()
    assert np.array_equal(decoded[ids], index.reconstruct_batch(ids))

    copy = make_index(d, nbits, metric, 0, centre)
    copy.add_sa_codes(codes)
    assert copy.ntotal == n
    xq = gaussian(3, d, 1)
    assert np.array_equal(copy.search(xq, 5)[0], index.search(xq, 5)[0])


def test_adding_in_parts(nbits, metric, centre):
    whole = make_index(65, nbits, metric, 257, centre)
    parts = make_index(65, nbits, metric, 0, centre)
    for part in np.split(gaussian(257, 65), [0, 1, 33, 100]):
        parts.add(part)
    assert parts.ntotal == 257
    assert np.array_equal(codes_of(parts), codes_of(whole))


@given(
    d=sizes,
    n=sizes,
    nbits=st.integers(1, 4),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 1000),
)
def test_remove_ids(d, n, nbits, metric, seed):
    index = make_index(d, nbits, metric, n, seed=seed)
    for sel, ids in selectors(n, np.random.default_rng(seed)):
        part = faiss.clone_index(index)
        kept = np.setdiff1d(np.arange(n), ids)
        assert part.remove_ids(sel) == len(ids)
        assert part.ntotal == len(kept)
        assert np.array_equal(codes_of(part), codes_of(index)[kept])


def test_search_after_remove_and_add(metric):
    index = make_index(32, 4, metric, 100)
    index.remove_ids(np.arange(0, 100, 2))
    index.add(gaussian(7, 32, 5))
    fresh = faiss.IndexTurboQuant(32, 4, metric)
    fresh.add(np.concatenate([gaussian(100, 32)[1::2], gaussian(7, 32, 5)]))
    xq = gaussian(3, 32, 1)
    assert np.array_equal(index.search(xq, 60)[1], fresh.search(xq, 60)[1])
    assert np.array_equal(index.search(xq, 60)[0], fresh.search(xq, 60)[0])


def test_reset(metric, centre):
    index = make_index(32, 4, metric, 100, centre)
    has_centre = index.tq.has_centre()
    index.reset()
    assert index.ntotal == 0 and index.codes.size() == 0
    assert index.is_trained and index.tq.has_centre() == has_centre
    index.add(gaussian(100, 32))
    fresh = make_index(32, 4, metric, 100, centre)
    assert np.array_equal(codes_of(index), codes_of(fresh))


# ---------------------------------------------------------------------- train


def test_no_training_needed(nbits, metric):
    index = faiss.IndexTurboQuant(20, nbits, metric)
    assert index.is_trained
    assert not index.tq.has_centre()


def test_train_sets_the_centre(nbits, metric):
    index = faiss.IndexTurboQuant(20, nbits, metric)
    for seed in (0, 1):
        x = gaussian(1000, 20, seed) + 5
        index.train(x)
        assert index.is_trained
        np.testing.assert_allclose(
            faiss.vector_to_array(index.tq.centre),
            x.astype("float64").mean(0),
            rtol=1e-6,
        )
    index.add(x)
    # the error scales with the distance from the centre
    error = np.sum((index.reconstruct_n() - x) ** 2) / np.sum((x - 5) ** 2)
    assert error < {1: 0.45, 2: 0.15, 3: 0.05, 4: 0.015}[nbits]


def test_train_is_refused_once_vectors_are_in(metric):
    index = make_index(20, 4, metric, n=5)
    codes = codes_of(index)
    with pytest.raises(RuntimeError, match="train.*5"):
        index.train(gaussian(100, 20))
    assert not index.tq.has_centre()
    assert np.array_equal(codes_of(index), codes)
    index.reset()
    index.train(gaussian(100, 20))
    assert index.tq.has_centre()


# ---------------------------------------------------------------------- merge


def test_merge_from(nbits, metric, centre):
    whole = make_index(33, nbits, metric, 0, centre)
    a = make_index(33, nbits, metric, 0, centre)
    b = make_index(33, nbits, metric, 0, centre)
    x = gaussian(100, 33)
    whole.add(x)
    a.add(x[:31])
    b.add(x[31:])
    a.check_compatible_for_merge(b)
    a.merge_from(b)
    assert (a.ntotal, b.ntotal) == (100, 0)
    assert np.array_equal(codes_of(a), codes_of(whole))


@pytest.mark.parametrize(
    "other, names",
    [
        (lambda: faiss.IndexTurboQuant(33, 3), "nbits"),
        (
            lambda: faiss.IndexTurboQuant(33, 4, faiss.METRIC_INNER_PRODUCT),
            "metric",
        ),
        (lambda: faiss.IndexTurboQuant(34, 4), "d = 34"),
        (lambda: faiss.IndexTurboQuant(33, 4, seed=1), "rotation"),
        (
            lambda: faiss.IndexTurboQuant(
                33, 4, rotation_type=RotationType_Haar
            ),
            "rotation",
        ),
        (lambda: make_index(33, 4, centre=True), "centre"),
        (lambda: faiss.IndexFlatL2(33), "IndexFlat"),
    ],
)
def test_merge_refused(other, names):
    index, other = make_index(33, 4, n=10), other()
    other.add(gaussian(5, other.d))
    codes = codes_of(index)
    for call in (index.check_compatible_for_merge, index.merge_from):
        with pytest.raises(RuntimeError, match=names):
            call(other)
    assert (index.ntotal, other.ntotal) == (10, 5)
    assert np.array_equal(codes_of(index), codes)


# --------------------------------------------------------------- constructors


def test_constructor_keywords():
    index = faiss.IndexTurboQuant(
        d=np.int64(20),
        nbits=2,
        metric=faiss.METRIC_INNER_PRODUCT,
        rotation_type=RotationType_Haar,
        seed=2**64 - 1,
    )
    assert (index.d, index.tq.nbits) == (20, 2)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.tq.rotation.type == RotationType_Haar
    assert index.tq.rotation.seed == 2**64 - 1
    assert faiss.IndexTurboQuant(20).tq.nbits == 4
    assert faiss.IndexTurboQuant(20).metric_type == faiss.METRIC_L2


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError, match="nprobe"):
        faiss.IndexTurboQuant(20).nprobe = 3


@pytest.mark.parametrize("codec", ["TQ1", "TQ1t", "TQ4"])
def test_sign_filter(codec):
    """Searches for few queries read few codes and find the same."""
    d, n = 96, 20_000
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((n // 20, d), "float32")
    xb = np.repeat(centres, 20, axis=0)
    xb += 0.5 * rng.standard_normal((n, d), "float32")
    xq = centres[:5] + 0.5 * rng.standard_normal((5, d), "float32")
    index = faiss.index_factory(d, codec)
    index.add(xb)
    index.use_sign_filter = 0
    expected = [index.search(q[None], 10) for q in xq]
    index.use_sign_filter = -1
    for q, (D, I) in zip(xq, expected):
        found = index.search(q[None], 10)
        assert np.array_equal(found[0], D) and np.array_equal(found[1], I)

    # ids and codes that move
    perm = np.arange(n, dtype="int64")[::-1].copy()
    index.permute_entries(perm)
    D, I = index.search(xq[:1], 10)
    assert np.array_equal(I, n - 1 - expected[0][1])
    codes = faiss.vector_to_array(index.codes).reshape(n, -1)
    faiss.copy_array_to_vector(codes[::-1].ravel().copy(), index.codes)
    index.codes_changed()
    D, I = index.search(xq[:1], 10)
    assert np.array_equal(I, expected[0][1])

    index.sign_margin = -1
    with pytest.raises(RuntimeError, match="sign_margin = -1"):
        index.search(xq[:1], 10)
