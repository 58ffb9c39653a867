"""faiss.contrib on TurboQuant indexes."""

import contextlib
import io
import socket
import threading

import faiss
import numpy as np
import pytest
from conftest import gaussian, make_index
from faiss.contrib import (
    big_batch_search,
    evaluation,
    exhaustive_search,
    factory_tools,
    inspect_tools,
    ivf_tools,
    rpc,
)
from faiss.contrib.client_server import ClientIndex, SearchServer

D, N, K, NLIST = 32, 1000, 7, 10
XB, XQ = gaussian(N, D), gaussian(40, D, 1)


def make_ivf(codec="TQ4", metric=faiss.METRIC_L2, n=N):
    index = faiss.index_factory(D, f"IVF{NLIST},{codec}", metric)
    index.train(XB)
    index.add(XB[:n])
    index.nprobe = 4
    return index


def assert_same(found, expected):
    for a, b in zip(found, expected):
        assert np.array_equal(a, b)


# ---------------------------------------------------------- exhaustive_search


def test_range_search_max_results(metric):
    index = make_index(D, 4, metric, n=N)
    D_near, _ = index.search(XQ, 50)
    radius, lims, D_found, I_found = (
        exhaustive_search.range_search_max_results(
            index,
            exhaustive_search.exponential_query_iterator(XQ, start_bs=8),
            float(np.median(D_near)),
            max_results=500,
        )
    )
    assert 400 <= lims[-1] <= 500
    # it ends at another radius: the results of that one
    expected = index.range_search(XQ, radius)
    assert_same((lims, D_found, I_found), expected)


# ----------------------------------------------------------------- evaluation


def test_measures():
    coarse, fine = make_index(D, 1, n=N), make_index(D, 4, n=N)
    flat = faiss.IndexFlatL2(D)
    flat.add(XB)
    _, truth = flat.search(XQ, K)
    overlap = [
        evaluation.knn_intersection_measure(index.search(XQ, K)[1], truth)
        for index in (coarse, fine, flat)
    ]
    assert overlap[0] < overlap[1] < overlap[2] == 1
    radius = float(np.median(flat.search(XQ, 30)[0]))
    expected, found = (
        index.range_search(XQ, radius) for index in (flat, fine)
    )
    precision, recall = evaluation.range_PR(
        expected[0], expected[2], found[0], found[2]
    )
    assert precision > 0.8 and recall > 0.8


def test_results_are_those_of_another_index():
    """The check that FAISS's own tests use."""
    index = make_index(D, 2, n=N)
    again = faiss.deserialize_index(faiss.serialize_index(index))
    evaluation.check_ref_knn_with_draws(
        *index.search(XQ, K), *again.search(XQ, K), rtol=0
    )
    evaluation.check_ref_range_results(
        *index.range_search(XQ, 20.0), *again.range_search(XQ, 20.0)
    )


def test_operating_points_of_a_parameter_space():
    """OperatingPoints and FAISS's own exploration, over nprobe."""
    index = make_ivf()
    flat = faiss.IndexFlatL2(D)
    flat.add(XB)
    criterion = faiss.IntersectionCriterion(len(XQ), K)
    criterion.set_groundtruth(None, flat.search(XQ, K)[1])
    criterion.nnn = K
    space = faiss.ParameterSpace()
    space.verbose = 0
    space.initialize(index)
    names = [space.combination_name(i) for i in range(space.n_combinations())]
    assert names == [f"nprobe={n}" for n in (1, 2, 4, 8)]
    points = space.explore(index, XQ, criterion)
    assert points.optimal_pts.size() > 1
    unreachable = 1e50
    assert points.t_for_perf(0.7) < unreachable == points.t_for_perf(1.1)


# ------------------------------------------------------------------ ivf_tools


def test_add_and_search_preassigned(metric):
    index = make_ivf(metric=metric)
    other = make_ivf(metric=metric, n=0)
    _, assigned = other.quantizer.search(XB, 1)
    ivf_tools.add_preassigned(other, XB, assigned.ravel())
    expected = index.search(XQ, K)
    assert_same(other.search(XQ, K), expected)

    Dq, Iq = index.quantizer.search(XQ, index.nprobe)
    for coarse_dis in (Dq, None) if metric == faiss.METRIC_L2 else (Dq,):
        found = ivf_tools.search_preassigned(index, XQ, K, Iq, coarse_dis)
        assert_same(found, expected)
    radius = float(np.median(expected[0]))
    assert_same(
        ivf_tools.range_search_preassigned(index, XQ, radius, Iq, Dq),
        index.range_search(XQ, radius),
    )


def test_lists_in_another_order(metric):
    index = make_ivf(metric=metric)
    expected = index.search(XQ, K)
    ivf_tools.permute_invlists(index, np.arange(NLIST)[::-1].copy())
    assert_same(index.search(XQ, K), expected)
    sizes_before = inspect_tools.get_invlist_sizes(index.invlists)
    ivf_tools.sort_invlists_by_size(index)
    sizes = inspect_tools.get_invlist_sizes(index.invlists)
    assert sorted(sizes_before) == list(sizes)
    assert_same(index.search(XQ, K), expected)


def test_another_coarse_quantizer():
    index = make_ivf()
    expected = index.search(XQ, K)
    hnsw = faiss.IndexHNSWFlat(D, 16)
    hnsw.hnsw.efSearch = 64
    old = ivf_tools.replace_ivf_quantizer(index, hnsw)
    assert old.ntotal == hnsw.ntotal == NLIST
    assert_same(index.search(XQ, K), expected)


def test_codes_of_the_lists():
    index = make_ivf()
    codes_of_all = index.sa_encode(XB)
    seen = 0
    for i in range(NLIST):
        ids, codes = inspect_tools.get_invlist(index.invlists, i)
        assert codes.shape == (len(ids), index.code_size)
        # behind the number of the list
        assert np.array_equal(codes_of_all[ids][:, 1:], codes)
        seen += len(ids)
    assert seen == N


def test_codes_of_a_flat_index():
    index = make_index(D, 4, n=N)
    codes = inspect_tools.get_flat_codes(index)
    assert np.array_equal(codes, index.sa_encode(XB))


# ----------------------------------------------------------- big_batch_search


@pytest.mark.parametrize("threaded", [0, 1, 2])
def test_big_batch_search_by_the_index(metric, threaded):
    index = make_ivf("TQ4", metric)
    found = big_batch_search.big_batch_search(
        index, XQ, K, method="index", threaded=threaded
    )
    assert_same(found, index.search(XQ, K))


@pytest.mark.parametrize("method", ["knn_function", "pairwise_distances"])
@pytest.mark.parametrize("codec", ["TQ1t", "TQ4"])
def test_big_batch_search_by_decoded_vectors(metric, method, codec):
    index = make_ivf(codec, metric)
    decoded = faiss.index_factory(D, "Flat", metric)
    decoded.add(index.reconstruct_n(0, N))
    lists = faiss.IndexIVFFlat(index.quantizer, D, NLIST, metric)
    lists.nprobe = index.nprobe
    lists.is_trained = True
    for no in range(NLIST):
        ids, _ = inspect_tools.get_invlist(index.invlists, no)
        x = decoded.reconstruct_batch(ids)
        lists.invlists.add_entries(
            no, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(x.view("uint8"))
        )
    lists.ntotal = N
    D_expected, I_expected = lists.search(XQ, K)
    D_found, I_found = big_batch_search.big_batch_search(
        index, XQ, K, method=method
    )
    np.testing.assert_allclose(D_found, D_expected, rtol=1e-4, atol=1e-4)
    assert np.mean(I_found == I_expected) > 0.99


def test_big_batch_search_of_faiss_s_classes():
    index = make_ivf("Flat")
    D_found, I_found = big_batch_search.big_batch_search(
        index, XQ, K, method="index"
    )
    D_expected, I_expected = index.search(XQ, K)
    np.testing.assert_allclose(D_found, D_expected, rtol=1e-5)
    assert np.array_equal(I_found, I_expected)


# -------------------------------------------------------------- factory_tools


@pytest.mark.parametrize(
    "description",
    [
        "TQ4",
        "TQ2t10",
        "IVF4,TQ4",
        "IVF4_HNSW8,TQ1t",
        "IVF4(TQ4),TQ2",
        "IVF4(TQ4),Flat",
        "PCA8,TQ4",
        "TQ1,Refine(TQ4)",
        "HNSW8,TQ4",
        "NSG8,TQ2t",
        "PCA8,IVF4,TQ3,Refine(Flat)",
        "HNSW8",
    ],
)
def test_reverse_index_factory(description):
    index = faiss.index_factory(D, description)
    assert factory_tools.reverse_index_factory(index) == description


def test_get_code_size():
    for codec in ("TQ1", "TQ3t", "TQ4"):
        size = faiss.index_factory(D, codec).code_size
        assert factory_tools.get_code_size(D, codec) == size
        assert factory_tools.get_code_size(D, f"IVF16,{codec}") == size
        size = faiss.index_factory(16, codec).code_size
        assert factory_tools.get_code_size(D, f"PCA16,{codec}") == size
    assert factory_tools.get_code_size(D, "PQ8") == 8
    with pytest.raises(RuntimeError, match="TQ9"):
        factory_tools.get_code_size(D, "TQ9")


# -------------------------------------------------------------- client_server


@contextlib.contextmanager
def served(index):
    """The index behind a socket, as run_index_server does it, once."""
    listener = socket.create_server(("localhost", 0))

    def serve():
        connection, _ = listener.accept()
        server = SearchServer(connection, index)
        server.logf = io.StringIO()
        server.exec_loop()

    thread = threading.Thread(target=serve)
    thread.start()
    yield "localhost", listener.getsockname()[1]
    thread.join()
    listener.close()


def test_client_and_servers(metric, monkeypatch):
    # where arrays are since numpy 2, which FAISS's list does not know
    safe = rpc.safe_modules | {"numpy._core.multiarray", "numpy._core.numeric"}
    monkeypatch.setattr(rpc, "safe_modules", safe)
    whole = make_ivf("TQ2", metric)
    parts = [faiss.clone_index(whole) for _ in range(2)]
    for i, part in enumerate(parts):
        part.remove_ids(np.arange(i, N, 2))
    with served(parts[0]) as first, served(parts[1]) as second:
        client = ClientIndex([first, second])
        try:
            assert client.ntotal == N
            client.set_nprobe(7)
            whole.nprobe = 7
            if metric == faiss.METRIC_L2:  # the client sorts ascending
                assert_same(client.search(XQ, K), whole.search(XQ, K))
            for part, remote in zip(parts, client.sub_indexes):
                assert part.nprobe == 7
                assert_same(remote.search(XQ, K), part.search(XQ, K))
        finally:
            for remote in client.sub_indexes:
                remote.sock.close()
