"""FAISS's wrappers around TurboQuant, at depth: what they return is what their
parts return, put together as FAISS documents it."""

import faiss
import numpy as np
import pytest
from conftest import brute_force, gaussian, make_index
from test_index_io import ROUND_TRIPS

D, N, K = 32, 300, 7

SHAPES = [
    "IDMap,TQ4",
    "IDMap2,TQ2t",
    "PCA16,TQ4",
    "PCAR16,TQ3",
    "PCAW16,TQ4t",
    "RR,TQ4",
    "Pad48,TQ4",
    "L2norm,TQ4",
    "ITQ16,TQ4",
    "OPQ4_16,TQ4",
    "TQ1,RFlat",
    "TQ1,Refine(TQ4)",
    "TQ2,Refine(SQ8)",
    "SQ4,Refine(TQ4)",
    "IDMap2,L2norm,PCA16,TQ1t,Refine(TQ4t)",
    "PCA24,L2norm,TQ2,RFlat,IDMap",
    "IVF8,TQ4",
    "IDMap2,IVF8,TQ2t",
    "PCA16,IVF8,TQ4",
    "IVF8_HNSW8,TQ4",
    "IVF8,TQ1,RFlat",
    "PCA24,IVF8,TQ2,Refine(TQ4t),IDMap",
    "HNSW8,TQ4",
    "IDMap2,PCA16,HNSW8,TQ2",
    "HNSW8,TQ1,Refine(TQ4)",
    "NSG8,TQ4",
]
REFINING = [s for s in SHAPES if "Refine(" in s or "RFlat" in s]


def build(shape, metric, n=N):
    """An index of gaussian(n, D), and the ids that it gives them."""
    index = faiss.index_factory(D, shape, metric)
    if shape.startswith("OPQ"):
        opq = faiss.downcast_VectorTransform(index.chain.at(0))
        opq.niter = opq.niter_pq_0 = opq.niter_pq = 1
    index.train(gaussian(500, D, 1))
    if "IDMap" in shape:
        ids = 1000 - 3 * np.arange(n)
        index.add_with_ids(gaussian(n, D), ids)
        return index, ids
    index.add(gaussian(n, D))
    return index, np.arange(n)


def sort_results(index, D, I, k):
    sign = 1 if index.metric_type == faiss.METRIC_L2 else -1
    order = np.argsort(sign * D, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(D, order, 1), np.take_along_axis(I, order, 1)


def search_parts(index, xq, k):
    """The search, with the wrappers written down in numpy."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexTurboQuant):
        D, I = brute_force(index, xq)
        return D[:, :k], I[:, :k]
    if isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2)):
        D, I = search_parts(index.index, xq, k)
        return D, faiss.vector_to_array(index.id_map)[I]
    if isinstance(index, faiss.IndexPreTransform):
        return search_parts(index.index, apply_chain(index, xq), k)
    if isinstance(index, faiss.IndexRefine):
        _, candidates = search_parts(
            index.base_index, xq, int(k * index.k_factor)
        )
        fine = [
            search_some(index.refine_index, x, ids)
            for x, ids in zip(xq, candidates)
        ]
        D, I = map(np.stack, zip(*fine))
        return sort_results(index, D, I, k)
    return index.search(xq, k)


def apply_chain(index, x):
    """What an IndexPreTransform hands on."""
    for i in range(index.chain.size()):
        x = faiss.downcast_VectorTransform(index.chain.at(i)).apply(x)
    return x


def search_some(index, x, ids):
    """Distances of a query to the vectors of these ids."""
    params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(ids))
    D, I = index.search(x[None], len(ids), params=params)
    return D[0], I[0]


def assert_same(found, expected):
    for a, b in zip(found, expected):
        assert np.array_equal(a, b)


shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
def test_a_wrapper_is_its_parts(shape, metric):
    index, ids = build(shape, metric)
    xq = gaussian(9, D, 2)
    found = index.search(xq, K)
    assert np.isin(found[1], ids).all()
    assert_same(found, search_parts(index, xq, K))


@pytest.mark.parametrize("shape", REFINING)
@pytest.mark.parametrize("k_factor", [1, 4])
def test_k_factor(shape, metric, k_factor):
    index, _ = build(shape, metric)
    xq = gaussian(9, D, 2)
    # finds it through the wrappers
    parameters = faiss.ParameterSpace()
    parameters.set_index_parameters(index, f"k_factor_rf={k_factor}")
    found = index.search(xq, K)
    assert_same(found, search_parts(index, xq, K))
    if "IDMap" in shape or "PCA" in shape:
        return
    index.k_factor = 1
    params = faiss.IndexRefineSearchParameters(k_factor=k_factor)
    assert_same(index.search(xq, K, params=params), found)


def test_parameters_of_ours(metric):
    def fields(index):
        flat = faiss.downcast_index(index)
        while not isinstance(flat, faiss.IndexTurboQuant):
            flat = faiss.downcast_index(
                flat.base_index if hasattr(flat, "base_index") else flat.index
            )
        return flat.use_sign_filter, flat.sign_margin

    space = faiss.ParameterSpace()
    index = faiss.index_factory(D, "IDMap,PCA16,TQ2,RFlat", metric)
    assert fields(index) == (-1, 5.5)
    space.set_index_parameter(index, "sign_margin", 4.5)
    space.set_index_parameters(index, "use_sign_filter=0,k_factor_rf=3")
    assert fields(index) == (0, 4.5)
    with pytest.raises(RuntimeError, match="0.5 is not a whole number"):
        space.set_index_parameters(index, "use_sign_filter=0.5")
    assert faiss.downcast_index(index.index).k_factor == 3
    # FAISS's own way, by a number, goes on
    ivf = faiss.index_factory(D, "IVF4,TQ2", metric)
    space.initialize(ivf)
    space.set_index_parameters(ivf, 1)
    space.set_index_parameters(ivf, "nprobe=2,sign_margin=4,use_sign_filter=1")
    assert (ivf.nprobe, ivf.sign_margin, ivf.use_sign_filter) == (2, 4, 1)
    other = faiss.index_factory(D, "IVF4,SQ8", metric)
    for name in ("sign_margin", "use_sign_filter"):
        with pytest.raises(RuntimeError, match=f"{name} = 1.*this IndexIVF"):
            space.set_index_parameter(other, name, 1)
    with pytest.raises(RuntimeError, match="no_such"):
        space.set_index_parameters(index, "no_such=1")


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips_at_depth(shape, metric, tmp_path):
    index, _ = build(shape, metric)
    xq = gaussian(9, D, 2)
    expected = index.search(xq, K)
    for through in ROUND_TRIPS:
        result = through(index, tmp_path)
        assert type(result) is type(index)
        assert_same(result.search(xq, K), expected)
        assert np.array_equal(
            faiss.serialize_index(result), faiss.serialize_index(index)
        )


# FAISS's refining indexes and graphs do not merge
MERGING = [
    s for s in SHAPES if not (s in REFINING or "HNSW8," in s or "NSG8," in s)
]


@pytest.mark.parametrize("shape", MERGING)
def test_merge(shape, metric):
    whole, ids = build(shape, metric)
    first, second = faiss.clone_index(whole), faiss.clone_index(whole)
    half = N // 2
    first.remove_ids(ids[half:])
    second.remove_ids(ids[:half])
    assert (first.ntotal, second.ntotal) == (half, N - half)
    first.check_compatible_for_merge(second)
    first.merge_from(second, 0)
    if not isinstance(second, faiss.IndexPreTransform):  # FAISS forgets it
        assert second.ntotal == 0
    xq = gaussian(9, D, 2)
    assert_same(first.search(xq, N), whole.search(xq, N))


@pytest.mark.parametrize("other", ["IDMap,TQ3", "IDMap,Flat", "IDMap,TQ4t"])
def test_merge_of_strangers_is_refused(other):
    index, _ = build("IDMap,TQ4", faiss.METRIC_L2)
    stranger, _ = build(other, faiss.METRIC_L2)
    with pytest.raises(RuntimeError):
        index.merge_from(stranger)
    assert index.ntotal == stranger.ntotal == N


# -------------------------------------------------------------- IDMap, IDMap2


@pytest.mark.parametrize("shape", ["IDMap,TQ4", "IDMap2,PCA16,TQ4"])
def test_ids_of_one_s_own(shape, metric):
    index, ids = build(shape, metric)
    xq = gaussian(5, D, 2)
    D_all, I_all = index.search(xq, N)

    chosen = ids[::4]
    params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(chosen))
    if "PCA" in shape:
        # an IDMap hands on the parameters of what it holds
        pre = faiss.downcast_index(index.index)
        assert isinstance(pre, faiss.IndexPreTransform)
    D_some, I_some = index.search(xq, K, params=params)
    for i in range(len(xq)):
        of_chosen = np.isin(I_all[i], chosen)
        assert np.array_equal(I_some[i], I_all[i][of_chosen][:K])
        assert np.array_equal(D_some[i], D_all[i][of_chosen][:K])

    radius = float(np.median(D_all))
    lims, _, I_range = index.range_search(xq, radius)
    l2 = metric == faiss.METRIC_L2
    for i in range(len(xq)):
        near = D_all[i] < radius if l2 else D_all[i] > radius
        assert set(I_range[lims[i] : lims[i + 1]]) == set(I_all[i][near])

    assert index.remove_ids(chosen) == len(chosen)
    _, I_left = index.search(xq, N)
    for i in range(len(xq)):
        left = I_all[i][~np.isin(I_all[i], chosen)]
        assert np.array_equal(I_left[i][: len(left)], left)
        assert (I_left[i][len(left) :] == -1).all()


@pytest.mark.parametrize("shape", ["IDMap2,TQ4", "IDMap2,PCA16,TQ4"])
def test_reconstruct_by_id(shape):
    index, ids = build(shape, faiss.METRIC_L2)
    inner = faiss.downcast_index(index.index)
    for i in (0, 17, N - 1):
        expected = inner.reconstruct(i)
        assert np.array_equal(index.reconstruct(int(ids[i])), expected)
    index.remove_ids(ids[:10])
    with pytest.raises(RuntimeError):
        index.reconstruct(int(ids[3]))
    _, I, R = index.search_and_reconstruct(gaussian(2, D, 2), 3)
    assert np.array_equal(R[1, 2], index.reconstruct(int(I[1, 2])))


# ----------------------------------------------------------- IndexPreTransform


@pytest.mark.parametrize("shape", ["PCA16,TQ4", "OPQ4_16,TQ2", "RR,TQ4t"])
def test_codes_behind_a_transform(shape, metric):
    index, _ = build(shape, metric)
    inner = faiss.downcast_index(index.index)
    x = gaussian(20, D)
    codes = index.sa_encode(x)
    assert codes.shape == (20, inner.code_size)
    assert np.array_equal(codes, inner.sa_encode(apply_chain(index, x)))
    decoded = index.sa_decode(codes)
    # BLAS adds up a product of 16 terms in an order that depends on the shape
    error = 16 * np.finfo("float32").eps * np.linalg.norm(decoded, axis=1)
    difference = np.abs(decoded - index.reconstruct_n(0, 20)).max(axis=1)
    assert (difference <= error).all()
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    assert np.array_equal(
        decoded, transform.reverse_transform(inner.sa_decode(codes))
    )
    params = faiss.SearchParametersPreTransform(
        index_params=faiss.SearchParameters(
            sel=faiss.IDSelectorRange(0, N // 2)
        )
    )
    _, I = index.search(x, K, params=params)
    assert (I < N // 2).all()


def test_training_reaches_turboquant_through_a_wrapper():
    """train() of a wrapper that trains is train() of what it holds: a
    centre."""
    index = faiss.index_factory(D, "PCA16,TQ4")
    assert not index.is_trained
    index.train(gaussian(500, D))
    inner = faiss.downcast_index(index.index)
    assert index.is_trained and inner.is_trained
    assert not inner.tq.has_centre()
    idmap = faiss.index_factory(D, "IDMap,TQ4")
    assert idmap.is_trained
    idmap.train(gaussian(500, D))
    assert faiss.downcast_index(idmap.index).tq.has_centre()


# ----------------------------------------------------------- Shards, Replicas


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("shape", ["TQ4", "IDMap,TQ2", "TQ1,Refine(TQ4)"])
def test_shards(shape, threaded, metric):
    whole, _ = build(shape, metric)
    shards = faiss.IndexShards(D, threaded, "IDMap" not in shape)
    for _ in range(3):
        part = faiss.clone_index(whole)
        part.reset()
        shards.add_shard(part)
    if "IDMap" in shape:
        shards.add_with_ids(gaussian(N, D), 1000 - 3 * np.arange(N))
    else:
        shards.add(gaussian(N, D))
    assert shards.ntotal == N
    sizes = [shards.at(i).ntotal for i in range(3)]
    assert min(sizes) > 0 and sum(sizes) == N
    xq = gaussian(9, D, 2)
    if "Refine" in shape:
        # each shard has its own candidates: at least as good, not the same
        D_parts, I_parts = zip(
            *(shards.at(i).search(xq, K) for i in range(3))
        )
        first_ids = np.cumsum([0, *sizes[:-1]])
        I_parts = [I + first for I, first in zip(I_parts, first_ids)]
        expected = sort_results(
            whole, np.hstack(D_parts), np.hstack(I_parts), K
        )
    else:
        expected = whole.search(xq, K)
    assert_same(shards.search(xq, K), expected)


@pytest.mark.parametrize("threaded", [False, True])
def test_replicas(threaded, metric):
    whole, _ = build("L2norm,TQ4", metric)
    replicas = faiss.IndexReplicas(D, threaded)
    for _ in range(3):
        replicas.addIndex(faiss.clone_index(whole))
    assert replicas.ntotal == N
    xq = gaussian(50, D, 2)
    assert_same(replicas.search(xq, K), whole.search(xq, K))
    replicas.add(xq)
    assert [replicas.at(i).ntotal for i in range(3)] == [N + 50] * 3
    assert np.array_equal(
        replicas.reconstruct(N + 1),
        faiss.downcast_index(replicas.at(2)).reconstruct(N + 1),
    )


@pytest.mark.parametrize("shape", ["IndexShards", "IndexReplicas"])
def test_shards_and_replicas_are_not_written_as_in_faiss(shape):
    index = getattr(faiss, shape)(D)
    getattr(index, "add_shard", index.addIndex)(make_index(D, n=10))
    for call in (faiss.serialize_index, faiss.clone_index):
        with pytest.raises(RuntimeError, match=shape):
            call(index)


def test_shards_of_inverted_files(metric):
    """IndexShardsIVF: one coarse quantizer for all shards."""
    whole, _ = build("IVF8,TQ4", metric)
    quantizer = faiss.IndexFlat(D, metric)
    shards = faiss.IndexShardsIVF(quantizer, 8, True, False)
    parts = [
        faiss.IndexIVFTurboQuant(
            faiss.IndexFlat(D, metric), D, 8, metric=metric
        )
        for _ in range(3)
    ]
    for part in parts:
        shards.addIndex(part)
    shards.metric_type = metric
    shards.cp.spherical = metric == faiss.METRIC_INNER_PRODUCT
    shards.train(gaussian(500, D, 1))
    shards.add_with_ids(gaussian(N, D), np.arange(N))
    assert [part.ntotal for part in parts] == [N // 3] * 3
    xq = gaussian(9, D, 2)
    for nprobe in (1, 3, 8):
        whole.nprobe = nprobe
        for part in parts:
            part.nprobe = nprobe
        assert_same(shards.search(xq, K), whole.search(xq, K))


# ------------------------------------------------------- as a coarse quantizer


def test_coarse_quantizer_by_hand(metric):
    """IVF256(TQ4): the centroids of an IVF index in TurboQuant codes."""
    coarse = faiss.IndexTurboQuant(D, 4, metric)
    index = faiss.IndexIVFFlat(coarse, D, 8, metric)
    index.train(gaussian(500, D, 1))
    index.add(gaussian(N, D))
    assert coarse.ntotal == 8
    index.nprobe = 8
    flat = faiss.IndexFlat(D, metric)
    flat.add(gaussian(N, D))
    xq = gaussian(9, D, 2)
    D_ref, I_ref = flat.search(xq, K)
    D_new, I_new = index.search(xq, K)
    assert np.array_equal(I_new, I_ref)
    # FAISS sums in another order
    np.testing.assert_allclose(D_new, D_ref, rtol=1e-5, atol=1e-4)


def test_independent_quantizer():
    """A coarse quantizer on whole vectors, an IVF index on shorter ones."""
    quantizer = faiss.IndexTurboQuant(D, 4)
    pca = faiss.PCAMatrix(D, 16)
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatL2(16), 16, 8)
    index = faiss.IndexIVFIndependentQuantizer(quantizer, ivf, pca)
    index.train(gaussian(500, D, 1))
    index.add(gaussian(N, D))
    assert quantizer.ntotal == 8
    ivf.nprobe = 8
    flat = faiss.IndexFlatL2(16)
    flat.add(pca.apply(gaussian(N, D)))
    xq = gaussian(9, D, 2)
    expected = flat.search(pca.apply(xq), K)
    assert np.array_equal(index.search(xq, K)[1], expected[1])


def test_independent_quantizer_of_turboquant_lists():
    """The distances of its quantizer are not those of the lists' centroids."""
    pca = faiss.PCAMatrix(D, 16)
    ivf = faiss.IndexIVFTurboQuant(faiss.IndexFlatL2(16), 16, 8)
    index = faiss.IndexIVFIndependentQuantizer(faiss.IndexFlatL2(D), ivf, pca)
    index.train(gaussian(500, D, 1))
    x, xq = gaussian(N, D), gaussian(9, D, 2)
    index.add(x)
    ivf.nprobe = 8
    D_new, I_new = index.search(xq, K)
    assert_same((D_new, I_new), ivf.search(pca.apply(xq), K))
    flat = faiss.IndexFlatL2(16)
    flat.add(pca.apply(x))
    _, I_ref = flat.search(pca.apply(xq), K)
    same = [len(set(a) & set(b)) for a, b in zip(I_new, I_ref)]
    assert sum(same) > 0.8 * I_ref.size
