"""Small deterministic data for the examples."""

import zlib

import numpy as np
import numpy.typing as npt


def vectors(
    n: int, nq: int, d: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """n vectors to search in and nq queries, of dimension d, unit length.

    As embeddings do, they vary more in some directions than in others.
    """
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((d, d))
    directions /= np.arange(1, d + 1)[:, None] ** 0.5
    x = rng.standard_normal((n + nq, d)) @ directions
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    both = x.astype("float32")
    return both[:n], both[n:]


def embed(texts: list[str], d: int = 256) -> npt.NDArray[np.float32]:
    """A stand-in for a language model: texts with the same words are near.

    Each word is a random direction, drawn from its checksum; a text is the
    sum of its words, of unit length.
    """
    rows = []
    for text in texts:
        words = [word.strip(".,:;!?").lower() for word in text.split()]
        row = np.zeros(d)
        for word in words:
            seed = zlib.crc32(word.encode())
            row += np.random.default_rng(seed).standard_normal(d)
        rows.append(row / max(float(np.linalg.norm(row)), 1e-9))
    return np.array(rows, dtype="float32").reshape(len(texts), d)


TEXTS = [
    "The cat sleeps on the warm stove.",
    "A dog chases the neighbour's cat through the garden.",
    "Tomatoes grow best in a warm and sunny garden.",
    "The bakery sells fresh bread from six in the morning.",
    "Fresh bread and ripe tomatoes make a good lunch.",
    "The night train to Vienna leaves at nine.",
    "A train was late because of snow on the rails.",
    "Snow covers the garden and the roof of the bakery.",
]
