"""TurboQuant written down from the papers in numpy, to compare with.

Zandieh, Daliri, Hadian, Mirrokni: TurboQuant, 2025 (Algorithm 1, Lemma 1,
equation 4); Vargaftik et al.: EDEN, ICML 2022 (the estimator scale).
"""

import functools

import numpy as np

# Mean squared error of Algorithm 1 on unit vectors, for 1 to 4 bits
DISTORTION = {1: 0.363, 2: 0.1175, 3: 0.0345, 4: 0.0095}
# d times the mean squared error of inner products of unit vectors by Algorithm
# 2, which is pi / 2 times the error of the levels of one bit less
PRODUCT_ERROR = {1: 1.57, 2: 0.57, 3: 0.185, 4: 0.0542}


def _half_density(d, points=200_000):
    """Midpoints t > 0 and weights of one coordinate of a random unit vector.

    Lemma 1: the density is proportional to (1 - t^2)^((d - 3) / 2). With
    t = sin(a) it is cos(a)^(d - 2) da, which is finite for d = 2 too. The
    weights sum to 1/2.
    """
    end = min(np.pi / 2, 12 / np.sqrt(d))
    a = (np.arange(points) + 0.5) * (end / points)
    weights = np.cos(a) ** (d - 2)
    return np.sin(a), weights / (2 * weights.sum())


@functools.lru_cache(maxsize=None)
def lloyd_max(d, nbits):
    """Optimal scalar quantizer of the coordinate density (equation 4).

    Parameters
    ----------
    d : int
        dimension, at least 2
    nbits : int

    Returns
    -------
    levels : array, shape (2^nbits,)
        ascending, times sqrt(d)
    mse : float
        d * E[(t - level(t))^2]
    """
    t, w = _half_density(d)
    total_w = np.concatenate([[0], np.cumsum(w)])
    total_wt = np.concatenate([[0], np.cumsum(w * t)])
    n = 2 ** (nbits - 1)
    quantiles = (np.arange(n) + 0.5) / n / 2
    levels = t[np.minimum(np.searchsorted(total_w[1:], quantiles), len(t) - 1)]
    for _ in range(10_000):
        middles = (levels[1:] + levels[:-1]) / 2
        cuts = np.concatenate([[0], np.searchsorted(t, middles), [len(t)]])
        updated = np.diff(total_wt[cuts]) / np.diff(total_w[cuts])
        if np.abs(updated - levels).max() < 1e-12:
            break
        levels = updated
    mse = 2 * d * np.sum(w * (t - nearest(levels, t)) ** 2)
    levels = levels * np.sqrt(d)
    return np.concatenate([-levels[::-1], levels]), mse


def haar_rotation(d, seed):
    """A random orthogonal matrix, shape (d, d)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return q * np.sign(np.diag(r))


def nearest(levels, y):
    """Of ascending levels, the nearest to each element of y."""
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, y)]


class TurboQuantMse:
    """Algorithm 1, and the estimator of inner products with its scale."""

    def __init__(self, d, nbits, seed):
        self.rotation = haar_rotation(d, seed)
        self.levels = lloyd_max(d, nbits)[0] / np.sqrt(d)

    def quantize(self, x):
        """Chosen levels of the rotated direction of each row, shape (n, d)."""
        y = x @ self.rotation.T / np.linalg.norm(x, axis=1, keepdims=True)
        return nearest(self.levels, y)

    def estimate(self, q, x):
        """Estimates of the inner products, shape (nq, n).

        <q, x> ~ s <P q, c> with s = |x| / <y, c>, for the rotated direction y
        and the chosen levels c.
        """
        c = self.quantize(x)
        y = x @ self.rotation.T
        scale = np.sum(y * y, axis=1) / np.sum(y * c, axis=1)
        return (q @ self.rotation.T) @ c.T * scale


class TurboQuantHalfBit(TurboQuantMse):
    """The same with nbits + 1 bits for the first half of the coordinates."""

    def __init__(self, d, nbits, seed):
        super().__init__(d, nbits, seed)
        self.finer = lloyd_max(d, nbits + 1)[0] / np.sqrt(d)

    def quantize(self, x):
        y = x @ self.rotation.T / np.linalg.norm(x, axis=1, keepdims=True)
        half = (y.shape[1] + 1) // 2
        return np.concatenate(
            [nearest(self.finer, y[:, :half]), nearest(self.levels, y[:, half:])],
            axis=1,
        )


class TurboQuantProd:
    """Algorithm 2: levels of nbits - 1 bits and a sketch of the residual."""

    def __init__(self, d, nbits, seed):
        self.rotation = haar_rotation(d, seed)
        self.sketch = np.random.default_rng([seed, 1]).standard_normal((d, d))
        self.levels = np.zeros(1)
        if nbits > 1:
            self.levels = lloyd_max(d, nbits - 1)[0] / np.sqrt(d)

    def decode(self, x):
        """What is left of each row after encoding and decoding."""
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        y = x @ self.rotation.T / norms
        c = nearest(self.levels, y)
        r = y - c
        weights = np.sqrt(np.pi / 2) / len(self.sketch)
        weights *= np.linalg.norm(r, axis=1, keepdims=True)
        c = c + weights * np.sign(r @ self.sketch.T) @ self.sketch
        return norms * (c @ self.rotation)

    def estimate(self, q, x):
        """Estimates of the inner products, shape (nq, n)."""
        return q @ self.decode(x).T
