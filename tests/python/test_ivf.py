"""IndexIVFTurboQuant from Python, beside FAISS's own inverted files."""

import faiss
import numpy as np
import pytest

import faiss_turboquant

D = 48
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


def clustered(n, seed):
    centres = np.random.default_rng(5).normal(1, 1, (20, D))
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(20, size=n)] + rng.normal(0, 0.5, (n, D))
    return x.astype("float32")


XB = clustered(4000, 1)
XQ = clustered(100, 2)


def built(description, metric):
    index = faiss.index_factory(D, description, metric)
    index.train(XB)
    index.add(XB)
    return index


def recall(index, metric, k=10):
    _, exact = faiss.knn(XQ, XB, k, metric=metric)
    _, found = index.search(XQ, k)
    same = [len(set(a) & set(b)) for a, b in zip(exact, found)]
    return np.mean(same) / k


@pytest.mark.parametrize("metric", METRICS)
def test_recall_is_near_that_of_uncompressed_lists(metric):
    flat = built("IVF20,Flat", metric)
    tq = built("IVF20,TQ4", metric)
    flat.nprobe = tq.nprobe = 4
    assert isinstance(tq, faiss.IndexIVFTurboQuant)
    assert recall(tq, metric) > recall(flat, metric) - 0.15
    assert recall(built("IVF20,TQ1", metric), metric) < recall(tq, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_better_than_the_flat_index(metric):
    """Residuals are shorter than vectors, so the error is smaller."""
    flat = built("TQ2", metric)
    ivf = built("IVF20,TQ2", metric)
    ivf.nprobe = 20
    assert recall(ivf, metric) > recall(flat, metric)


def test_keeps_its_quantizer_alive():
    index = faiss.IndexIVFTurboQuant(faiss.IndexFlatL2(D), D, 20, nbits=3)
    index.train(XB)
    index.add(XB)
    assert index.quantizer.ntotal == 20
    assert index.search(XB[:1], 1)[1][0, 0] == 0


def test_constructor():
    quantizer = faiss.IndexFlatIP(D)
    index = faiss.IndexIVFTurboQuant(
        quantizer, D, 7, metric=faiss.METRIC_INNER_PRODUCT, memory=8, seed=5
    )
    assert index.nlist == 7
    assert index.tq.nbits == 4
    assert index.tq.by_residual
    assert index.tq.rotation.seed == 5
    assert index.code_size == D // 2 + 8
    assert not index.is_trained
    assert faiss.IndexIVFTurboQuant().ntotal == 0
    with pytest.raises(RuntimeError, match="nbits = 5"):
        faiss.IndexIVFTurboQuant(quantizer, D, 7, 5)


def test_parameters():
    index = built("IVF20,TQ4", faiss.METRIC_L2)
    index.nprobe = 5
    expected = index.search(XQ, 5)
    index.nprobe = 1
    params = faiss.SearchParametersIVF(nprobe=5)
    for a, b in zip(index.search(XQ, 5, params=params), expected):
        np.testing.assert_array_equal(a, b)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", 5)
    for a, b in zip(index.search(XQ, 5), expected):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="SearchParametersIVF"):
        index.search(XQ, 5, params=faiss.SearchParametersTurboQuant())
    with pytest.raises(RuntimeError, match=r"shape \(3, 5\)"):
        index.search(np.zeros((3, 5), dtype="float32"), 5)
    with pytest.raises(RuntimeError, match="k = 0"):
        index.search(XQ, 0)


def test_reconstruct_remove_and_ids():
    index = faiss.index_factory(D, "IVF20,TQ4")
    index.train(XB)
    ids = np.arange(4000) * 3 + 7
    index.add_with_ids(XB, ids)
    index.nprobe = 20
    assert index.search(XB[:10], 1)[1][:, 0].tolist() == ids[:10].tolist()
    D_, I, R = index.search_and_reconstruct(XB[:10], 1)
    assert I[:, 0].tolist() == ids[:10].tolist()
    error = np.linalg.norm(R[:, 0] - XB[:10], axis=1)
    assert np.all(error < 0.3 * np.linalg.norm(XB[:10] - XB.mean(0), axis=1))
    assert index.remove_ids(ids[:100]) == 100
    assert index.ntotal == 3900
    assert not set(index.search(XB[:10], 50)[1].ravel()) & set(ids[:100])


@pytest.mark.parametrize("metric", METRICS)
def test_batches_equal_single_queries(metric):
    index = built("IVF20,TQ4", metric)
    index.nprobe = 6
    Ds, Is = index.search(XQ, 12)
    for i, query in enumerate(XQ):
        d1, i1 = index.search(query[None], 12)
        np.testing.assert_array_equal(d1[0], Ds[i])
        np.testing.assert_array_equal(i1[0], Is[i])


def test_two_indexes_of_one_quantizer_merge():
    whole = built("IVF20,TQ3", faiss.METRIC_L2)
    first = faiss_turboquant.clone_index(whole)
    first.reset()
    second = faiss_turboquant.clone_index(first)
    first.add(XB[:1500])
    second.add(XB[1500:])
    first.merge_from(second, first.ntotal)
    for a, b in zip(first.search(XQ, 9), whole.search(XQ, 9)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("graph", ["HNSW16", "NSG16"])
@pytest.mark.parametrize("metric", METRICS)
def test_graphs(graph, metric):
    tq = built(graph + ",TQ4", metric)
    assert isinstance(
        faiss.downcast_index(tq.storage), faiss.IndexTurboQuant
    )
    with_bytes = built(graph + ",SQ8", metric)
    assert recall(tq, metric) > recall(with_bytes, metric) - 0.2
    copy = faiss.clone_index(tq)
    for a, b in zip(tq.search(XQ, 9), copy.search(XQ, 9)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_centres_that_are_no_vectors(value):
    quantizer = faiss.IndexFlatL2(D)
    centres = clustered(4, 3)
    centres[2, 5] = value
    quantizer.add(centres)
    index = faiss_turboquant.IndexIVFTurboQuant(quantizer, D, 4, 4)
    index.is_trained = True
    index.nprobe = 4
    for ask in (index.search, lambda xq, _: index.range_search(xq, 1.0)):
        with pytest.raises(RuntimeError, match="centre of list 2"):
            ask(XQ, 3)
