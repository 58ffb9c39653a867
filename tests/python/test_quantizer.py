"""The quantizer against the paper."""

import faiss
import numpy as np
import pytest
from conftest import gaussian
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    DISTORTION,
    PRODUCT_ERROR,
    TurboQuantHalfBit,
    TurboQuantMse,
    TurboQuantProd,
    lloyd_max,
)

from faiss_turboquant import (
    Codebook,
    CodecType_HalfBit,
    CodecType_Prod,
    CodecType_Scaled,
    Rotation,
    RotationType_Haar,
    RotationType_Hadamard,
)

ROTATIONS = pytest.mark.parametrize(
    "rotation_type",
    [RotationType_Hadamard, RotationType_Haar],
    ids=["Hadamard", "Haar"],
)


def unit_vectors(n, d, seed=0):
    x = gaussian(n, d, seed)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ------------------------------------------------------------------ codebooks


# how far the best levels on the grid are from the best levels
GRID_LOSS = {1: 1e-4, 2: 1e-4, 3: 0.003, 4: 0.02}


@pytest.mark.parametrize("d", [2, 3, 8, 200, 1536, 65536])
def test_codebook_is_lloyd_max(d, nbits):
    codebook = Codebook.lloyd_max(d, nbits)
    levels, mse = lloyd_max(d, nbits)
    assert codebook.levels().shape == (2**nbits,)
    assert np.abs(codebook.levels() - levels).max() < codebook.step / 2
    # the oracle integrates on a mesh
    assert codebook.mean_squared_error(d) > mse * (1 - 1e-6)
    assert codebook.mean_squared_error(d) < mse * (1 + GRID_LOSS[nbits])


@given(st.integers(1, 5000), st.integers(1, 4))
def test_codebook_invariants(d, nbits):
    codebook = Codebook.lloyd_max(d, nbits)
    positions = faiss.vector_to_array(codebook.positions)
    assert positions.dtype == np.uint8
    assert len(positions) == 2 ** (nbits - 1)
    assert positions.min() >= 32 and positions.max() <= 63
    assert (np.diff(positions.astype(int)) > 0).all()
    levels = codebook.levels()
    assert np.array_equal(levels, -levels[::-1])
    assert codebook.step > 0


# ------------------------------------------------------------------ rotations


@ROTATIONS
@pytest.mark.parametrize("d", [1, 2, 3, 31, 64, 96, 200])
def test_rotation_is_orthogonal(rotation_type, d):
    rotation = Rotation(rotation_type, d, 7)
    matrix = rotation.apply(np.eye(d, dtype="float32"))
    # d sums of float32 products of rows of length 1
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=2e-6 * d**0.5)
    x = gaussian(3, d)
    np.testing.assert_allclose(
        rotation.apply_transpose(rotation.apply(x)), x, atol=2e-5
    )


@ROTATIONS
def test_rotation_follows_its_seed(rotation_type):
    x = gaussian(2, 100)
    a = Rotation(rotation_type, 100, 1).apply(x)
    assert np.array_equal(a, Rotation(rotation_type, 100, 1).apply(x))
    assert np.abs(a - Rotation(rotation_type, 100, 2).apply(x)).max() > 0.1


# ----------------------------------------------------------------- distortion

# of kernels/trellis_tables.h, 2^8 states, for many coordinates
TRELLIS_DISTORTION = {1: 0.27396, 2: 0.07135, 3: 0.01927, 4: 0.00581}


def relative_error(index, x):
    decoded = index.sa_decode(index.sa_encode(x))
    return np.mean(
        np.sum((x - decoded) ** 2, axis=1) / np.sum(x**2, axis=1)
    )


@pytest.mark.parametrize("d, n", [(200, 2000), (1536, 300), (3072, 200)])
def test_distortion(d, n, nbits, metric):
    index = faiss.IndexTurboQuant(d, nbits, metric)
    error = relative_error(index, unit_vectors(n, d))
    assert error == pytest.approx(DISTORTION[nbits], rel=0.02)
    assert error == pytest.approx(lloyd_max(d, nbits)[1], rel=0.02)


@pytest.mark.parametrize("d, n", [(200, 4000), (1536, 600)])
def test_algorithm_1_is_the_paper_s(d, n, nbits, metric):
    """Without the estimator scale: the paper's error, and inner products that
    fall short by it."""
    index = faiss.index_factory(d, f"TQ{nbits}mse", metric)
    x = unit_vectors(n, d)
    y = index.sa_decode(index.sa_encode(x))
    errors = np.sum((x - y) ** 2, axis=1)
    # the grid of levels costs 1 % at 4 bits
    tolerance = (0.01 if nbits == 4 else 0.003) * DISTORTION[nbits]
    tolerance += 5 * errors.std() / n**0.5
    assert abs(errors.mean() - lloyd_max(d, nbits)[1]) < tolerance
    assert abs(errors.mean() - DISTORTION[nbits]) < 0.02 * DISTORTION[nbits]
    # the levels are conditional means, so <x, y> = |y|^2 = 1 - error
    products = np.sum(x * y, axis=1)
    shortfall = lloyd_max(d, nbits)[1]
    tolerance = 0.01 * shortfall + 5 * products.std() / n**0.5
    assert abs(1 - products.mean() - shortfall) < tolerance
    index.add(x)
    D, _ = index.search(x[:20], 1)
    expected = products[:20]
    if metric == faiss.METRIC_L2:
        expected = np.maximum(0, 2 - 2 * expected)
    # the query is quantized to 8 bits
    np.testing.assert_allclose(D[:, 0], expected, atol=0.006)


def planes_size(n, nbits, kind):
    """Bytes of n coordinates: whole bytes of each plane."""
    planes = [1] * nbits if kind else {3: [2, 1]}.get(nbits, [nbits])
    return sum((n * bits + 7) // 8 for bits in planes)


@pytest.mark.parametrize("d, n", [(201, 2000), (1536, 300)])
@pytest.mark.parametrize("nbits", [1, 2, 3])
@pytest.mark.parametrize("kind", ["", "t"])
def test_half_a_bit_more_has_the_error_between(d, n, nbits, kind, metric):
    index = faiss.index_factory(d, f"TQ{nbits}.5{kind}", metric)
    half = (d + 1) // 2
    parts = (half, nbits + 1), (d - half, nbits)
    expected = size = 0
    for coordinates, bits in parts:
        error = lloyd_max(d, bits)[1]
        if kind:
            error = TRELLIS_DISTORTION[bits] * (1 + 0.7 * 8 / coordinates)
        expected += coordinates / d * error
        size += planes_size(coordinates, bits, kind)
    error = relative_error(index, unit_vectors(n, d))
    assert error == pytest.approx(expected, rel=0.02)
    assert index.tq.packed_size() == size


@pytest.mark.parametrize("d, n", [(200, 2000), (1536, 300)])
def test_distortion_of_the_worst_inputs(d, n, nbits):
    """The rotation makes every input look alike: averaged over rotations,
    one-hot and constant vectors have the error of random ones."""
    inputs = {
        "one-hot": np.eye(1, d, 3, dtype="float32"),
        "constant": np.ones((1, d), dtype="float32"),
        "first half": np.repeat([[1, 0]], d // 2, 1).astype("float32"),
    }
    for name, x in inputs.items():
        errors = [
            relative_error(
                faiss.IndexTurboQuant(d, nbits, seed=seed), x
            )
            for seed in range(40)
        ]
        # 40 vectors: 5 standard errors, from the sample itself
        tolerance = 5 * np.std(errors) / len(errors) ** 0.5
        tolerance += 0.02 * DISTORTION[nbits]
        assert abs(np.mean(errors) - DISTORTION[nbits]) < tolerance, name


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-7, 2.0**20, 2.0**60])
def test_decoding_scales_with_the_vectors(scale, nbits):
    x = unit_vectors(20, 64)
    index = faiss.IndexTurboQuant(64, nbits, faiss.METRIC_INNER_PRODUCT)
    codes = index.sa_encode(x * np.float32(scale))
    assert np.array_equal(
        codes[:, : index.tq.packed_size()],
        index.sa_encode(x)[:, : index.tq.packed_size()],
    )
    np.testing.assert_allclose(
        index.sa_decode(codes),
        index.sa_decode(index.sa_encode(x)) * np.float32(scale),
        rtol=1e-5,
    )


# ------------------------------------------------------------------ estimator


def estimates(
    q, x, nbits, metric, rotation_type, seeds, codec=CodecType_Scaled, memory=0
):
    """Distances of a query and a vector under many rotations."""
    values = []
    for seed in seeds:
        index = faiss.IndexTurboQuant(
            len(x), nbits, metric, rotation_type, seed, memory, codec
        )
        index.add(x[None])
        values.append(index.search(q[None], 1)[0][0, 0])
    return np.array(values, dtype="float64")


@ROTATIONS
def test_estimator_is_unbiased(nbits, metric, rotation_type):
    d = 64
    x, noise = gaussian(2, d, 3)
    q = 0.7 * x + noise
    values = estimates(q, x, nbits, metric, rotation_type, range(400))
    truth = q @ x
    if metric == faiss.METRIC_L2:
        truth = (q - x) @ (q - x)
    standard_error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - truth) < 4.5 * standard_error
    if nbits <= 2:
        # Without the scale, <q, x> would fall short by the distortion: the
        # test would notice.
        assert 4.5 * standard_error < DISTORTION[nbits] * (q @ x)


def test_estimator_has_the_error_of_the_paper(nbits):
    d = 64
    x, q = gaussian(2, d, 4)
    ours = estimates(
        q, x, nbits, faiss.METRIC_INNER_PRODUCT, RotationType_Haar, range(600)
    )
    oracle = [
        TurboQuantMse(d, nbits, seed).estimate(q[None], x[None])[0, 0]
        for seed in range(300)
    ]
    # the relative error of a standard deviation from n values: 1 / sqrt(2 n)
    assert ours.std() == pytest.approx(np.std(oracle), rel=5 / (2 * 300) ** 0.5)


@pytest.mark.parametrize("nbits", [1, 2, 3])
@pytest.mark.parametrize("memory", [0, 8])
def test_estimator_with_half_a_bit_more(nbits, memory, metric):
    """Unbiased, with the oracle's error, or with a trellis less."""
    d = 64
    x, noise = gaussian(2, d, 4)
    q = 0.7 * x + noise
    n = 600
    ours = estimates(
        *(q, x, nbits, metric, RotationType_Haar, range(n)),
        *(CodecType_HalfBit, memory),
    )
    products = q @ x
    if metric == faiss.METRIC_L2:
        ours = (q @ q + x @ x - ours) / 2
    assert abs(ours.mean() - products) < 4.5 * ours.std() / n**0.5
    oracle = [
        TurboQuantHalfBit(d, nbits, seed).estimate(q[None], x[None])[0, 0]
        for seed in range(300)
    ]
    if memory:
        assert ours.std() < 0.95 * np.std(oracle)
        return
    assert ours.std() == pytest.approx(np.std(oracle), rel=5 / (2 * 300) ** 0.5)


@ROTATIONS
def test_algorithm_2_is_the_paper_s(nbits, metric, rotation_type):
    """Unbiased, with the paper's and the oracle's error. Seeds draw both the
    rotation and the sketch."""
    d, n = 64, 800
    x, noise = unit_vectors(2, d, 4)
    q = 0.5 * x + 0.75**0.5 * noise
    q /= np.linalg.norm(q)
    ours = estimates(q, x, nbits, metric, rotation_type, range(n), CodecType_Prod)
    if metric == faiss.METRIC_L2:
        ours = (2 - ours) / 2
    standard_error = ours.std() / n**0.5
    assert abs(ours.mean() - q @ x) < 4.5 * standard_error
    if nbits > 1:
        # the levels alone would fall short by their error
        assert 4.5 * standard_error < DISTORTION[nbits - 1] * (q @ x)
    oracle = [
        TurboQuantProd(d, nbits, seed).estimate(q[None], x[None])[0, 0]
        for seed in range(300)
    ]
    # the relative error of a standard deviation from n values: 1 / sqrt(2 n)
    assert ours.std() == pytest.approx(np.std(oracle), rel=5 / (2 * 300) ** 0.5)


def test_algorithm_2_has_the_error_of_the_paper(nbits):
    """For independent q and x, of which <q, x>^2 is small."""
    d, n, nq = 384, 2000, 200
    x, q = unit_vectors(n, d, 1), unit_vectors(nq, d, 2)
    index = faiss.index_factory(
        d, f"TQ{nbits}prod", faiss.METRIC_INNER_PRODUCT
    )
    index.add(x)
    D, I = index.search(q, n)
    errors = D - np.take_along_axis(q @ x.T, I, axis=1)
    assert d * np.mean(errors**2) == pytest.approx(
        PRODUCT_ERROR[nbits], rel=0.04
    )
    # what a code is decoded to is what a search compares with, but for the 8
    # bits of a query
    decoded = q @ index.reconstruct_n().T
    np.testing.assert_allclose(
        D, np.take_along_axis(decoded, I, axis=1), atol=0.006
    )


def test_the_sketch_is_that_of_the_seed():
    x = gaussian(5, 40)
    make = lambda seed: faiss.IndexTurboQuant(  # noqa: E731
        40, 2, faiss.METRIC_L2, seed=seed, codec=CodecType_Prod
    )
    codes = make(1).sa_encode(x)
    assert np.array_equal(codes, make(1).sa_encode(x))
    assert not np.array_equal(codes, make(2).sa_encode(x))
    index = make(1)
    index.tq.rotation = Rotation(index.tq.rotation.type, 40, 2)
    index.tq.set_derived_values()
    assert np.array_equal(make(2).sa_encode(x), index.sa_encode(x))


# --------------------------------------------------------------------- recall


def recall(found, truth):
    return np.mean([len(np.intersect1d(*rows)) for rows in zip(found, truth)]) \
        / truth.shape[1]


@pytest.fixture(scope="module")
def data():
    xb, xq = gaussian(5000, 128, 1), gaussian(200, 128, 2)
    truth = np.argsort(-(xq @ xb.T), axis=1)[:, :10]
    return xb, xq, truth


def test_recall_is_the_oracle_s(data, nbits):
    xb, xq, truth = data
    index = faiss.IndexTurboQuant(128, nbits, faiss.METRIC_INNER_PRODUCT)
    index.add(xb)
    ours = recall(index.search(xq, 10)[1], truth)
    estimate = TurboQuantMse(128, nbits, 0).estimate(xq, xb)
    oracle = recall(np.argsort(-estimate, axis=1)[:, :10], truth)
    # 2000 hits or misses in each: standard error below 0.011
    assert ours == pytest.approx(oracle, abs=0.03)


def test_recall_rises_with_the_bits(data):
    xb, xq, truth = data
    recalls = []
    for nbits in (1, 2, 3, 4):
        index = faiss.IndexTurboQuant(128, nbits, faiss.METRIC_INNER_PRODUCT)
        index.add(xb)
        recalls.append(recall(index.search(xq, 10)[1], truth))
    assert (np.diff(recalls) > 0.03).all(), recalls


def test_a_centre_helps_data_with_a_mean(data, nbits, metric):
    xb, xq, _ = data
    mean = 3 * gaussian(1, 128, 5)
    xb, xq = xb + mean, xq + mean
    flat = faiss.IndexFlat(128, metric)
    flat.add(xb)
    truth = flat.search(xq, 10)[1]
    recalls = []
    for trained in (False, True):
        index = faiss.IndexTurboQuant(128, nbits, metric)
        if trained:
            index.train(xb)
        index.add(xb)
        recalls.append(recall(index.search(xq, 10)[1], truth))
    assert recalls[1] > recalls[0] + 0.05, recalls
