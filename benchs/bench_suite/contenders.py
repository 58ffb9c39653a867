"""What is compared: FAISS factory strings, and turbovec."""

import importlib.util
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .errors import BenchError

TRAINED = " (trained)"
CALIBRATED = " (calibrated)"


def default_names(d, quick=False):
    """Names of the contenders for dimension d.

    PQ has d/2, d/4 and d/8 bytes: 4, 2 and 1 bits per coordinate. "np" is
    FAISS's word for no polysemous training: that would only renumber the
    centroids, for Hamming filters that nothing here uses, and takes minutes.
    "(trained)" calls train() on an index that does not need it.
    """
    if quick:
        return (
            ["Flat", "SQ8", f"PQ{d // 4}x8np", f"PQ{d}x4fs"]
            + ["RR,RaBitQ2", "RR,RaBitQ4", "RR,RaBitQfs1", "RR,RaBitQfs4"]
            + [f"TQ{b}" for b in (1, 2, 3, 4)]
            + ["TQ4" + TRAINED, "TQ2t", "TQ4t", "turbovec4"]
        )
    bits = (1, 2, 3, 4)
    return (
        ["Flat", "SQ8", "SQ4"]
        + [f"PQ{d // part}x8np" for part in (8, 4, 2) if d % part == 0]
        + [f"PQ{d}x4fs"]
        + [f"RR,RaBitQ{b}" for b in bits]
        + [f"RR,RaBitQfs{b}" for b in bits]
        + [f"TQ{b}" for b in bits]
        + [f"TQ{b}{TRAINED}" for b in bits]
        + [f"TQ{b}t" for b in bits]
        + [f"TQ{b}t{TRAINED}" for b in bits]
        + [f"TQ{b}.5t" for b in (1, 2, 3)]
        # not rotated inside, so RR goes in front, as for RaBitQ
        + [f"RR,SQtqmse{b}" for b in bits]
        + [f"RR,SQtq{b}" for b in (2, 3, 4)]
        + [f"RR,EDEN{b}" for b in bits]
        + [f"turbovec{b}" for b in (2, 3, 4)]
        + ["turbovec4" + CALIBRATED]
    )


def family(name):
    """Contenders of one family share a colour and a line in the plots."""
    base = name.removesuffix(TRAINED).removesuffix(CALIBRATED)
    suffix = name[len(base) :]
    base = base.removeprefix("RR,")
    base = re.sub(r"^PQ\d+(x\d+)?(np)?", "PQ", base)
    return re.sub(r"\d+(\.\d+)?", "", base) + suffix


# --------------------------------------------------------------------------


def has_inaccurate_ip(factory, faiss):
    """Whether this is a RaBitQ of several bits of a FAISS before 1.14.1."""
    version = tuple(map(int, re.findall(r"\d+", faiss.__version__)[:3]))
    return version < (1, 14, 1) and re.search(r"RaBitQ(fs)?[2-9]", factory)


@contextmanager
def set_for_a_while(value, set_value):
    """set_value(value) -> the value before, which is set again at the end."""
    before = set_value(value)
    try:
        yield
    finally:
        set_value(before)


class Contender:
    """What there is to be measured, in this process or another."""

    def run(self, f, *args, **options):
        """f(contender, *args, **options), where the contender is."""
        return f(self, *args, **options)

    def one_thread(self):
        return self.threads(1)


class FaissContender(Contender):
    """An index made by faiss.index_factory.

    Its search threads are OpenMP's; the BLAS of FAISS's wheels has one.
    """

    def __init__(self, name, d, metric, unit_length):
        import faiss

        self.faiss = faiss
        self.name = name
        self.factory = name.removesuffix(TRAINED)
        self.force_train = name.endswith(TRAINED)
        self.scaled = "SQtqmse" in name
        self.scale = np.float32(1)
        self.note = None
        code = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
        if metric == "ip" and has_inaccurate_ip(self.factory, faiss):
            self.note = (
                f"FAISS {faiss.__version__} estimates inner products "
                "inaccurately with RaBitQ of 2 bits and more (its #4877, "
                "corrected in 1.14.1)"
            )
            if unit_length:
                metric = "l2"
                self.note += (
                    "; run with L2, which ranks unit vectors in the same order"
                )
        self.index = faiss.index_factory(d, self.factory, code[metric])
        pq = getattr(self.index, "pq", None)
        if pq is not None:
            # Fewer rows than FAISS recommends are no news here: the number
            # is in the results. It would be said once per subquantizer.
            pq.cp.min_points_per_centroid = 1

    @property
    def needs_train(self):
        return self.force_train or not self.index.is_trained

    def train(self, x, budget):
        """Trains; raises BenchError when budget seconds have passed.

        FAISS looks at the clock between k-means iterations only.
        """
        if self.scaled:  # SQtqmse expects coordinates of unit variance
            norm = np.linalg.norm(x, axis=1).mean()
            self.scale = np.float32(np.sqrt(x.shape[1]) / norm)
            x = x * self.scale
        self.faiss.TimeoutCallback.reset(budget)
        try:
            self.index.train(x)
        except RuntimeError as e:
            if "interrupted" in str(e):
                raise BenchError(
                    f"training took more than {budget:g} s (--budget)"
                ) from None
            raise
        finally:
            # FAISS's own default in Python: Ctrl-C interrupts
            self.faiss.PythonInterruptCallback.reset()

    def add(self, x):
        self.index.add(x * self.scale if self.scaled else x)

    def search(self, q, k):
        return self.index.search(q * self.scale if self.scaled else q, k)[1]

    def total_bytes(self):
        return self.faiss.serialize_index(self.index).nbytes

    def set_threads(self, n):
        """Returns how many there were."""
        before = self.faiss.omp_get_max_threads()
        self.faiss.omp_set_num_threads(n)
        return before

    def threads(self, n):
        return set_for_a_while(n, self.set_threads)


class TurbovecContender(Contender):
    """turbovec's own index. Its thread pool has a fixed size, so all
    threads of the process are bound to as many CPUs as there shall be
    threads."""

    def __init__(self, name, d, metric):
        import turbovec

        match = re.fullmatch(r"turbovec([234])", name.removesuffix(CALIBRATED))
        if not match:
            raise BenchError("turbovec has 2, 3 and 4 bits")
        if metric != "ip":
            raise BenchError("turbovec searches by inner product only")
        if not hasattr(os, "sched_setaffinity"):
            raise BenchError("turbovec cannot be held to one thread here")
        self.name = name
        self.note = None
        self.needs_train = name.endswith(CALIBRATED)
        self.index = turbovec.TurboQuantIndex(
            dim=d, bit_width=int(match.group(1))
        )

    def train(self, x, budget):
        # "around 1024 rows is enough", says its documentation
        self.index.calibrate(x[:1024])

    def add(self, x):
        self.index.add(x)

    def search(self, q, k):
        return self.index.search(q, k)[1]

    def total_bytes(self):
        return len(self.index.to_bytes())

    def threads(self, n):
        def bind(cpus):
            before = os.sched_getaffinity(0)
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cpus)
            return before

        return set_for_a_while(sorted(os.sched_getaffinity(0))[:n], bind)


@dataclass
class Skipped:
    name: str
    reason: str


def import_plugin():
    """Imports faiss_turboquant, which teaches faiss.index_factory its
    strings. Returns None, or why it could not be imported."""
    try:
        import faiss_turboquant  # noqa: F401
    except ImportError as e:
        return f"faiss_turboquant cannot be imported ({e})"
    return None


def is_turboquant(name):
    return bool(re.match(r"(.*,)?TQ\d", name))


@dataclass(frozen=True)
class Sources:
    """Where contenders come from, besides the FAISS here."""

    plugin_error: str = None  # what import_plugin() returned
    other: object = None  # OtherFaiss, for what the FAISS here does not know


def make(name, d, metric, unit_length=False, sources=Sources()):
    """A contender, empty and untrained, or Skipped with the reason.

    unit_length: all vectors and queries have length 1.
    """
    if sources.plugin_error and is_turboquant(name):
        return Skipped(name, sources.plugin_error)
    try:
        if not name.startswith("turbovec"):
            return FaissContender(name, d, metric, unit_length)
        if importlib.util.find_spec("turbovec") is None:
            return Skipped(name, "turbovec is not installed")
        return TurbovecContender(name, d, metric)
    except BenchError as e:
        return Skipped(name, str(e))
    except RuntimeError as e:
        other = sources.other
        if other and _is_unknown(e) and not is_turboquant(name):
            try:
                return other.make(name, d, metric, unit_length)
            except RuntimeError as also:
                return Skipped(name, why_not(also, other.version))
        return Skipped(name, why_not(e, _faiss_version()))


def _faiss_version():
    import faiss

    return faiss.__version__


def _is_unknown(error):
    """Whether faiss.index_factory does not know the string."""
    return "could not parse index string" in str(error)


def why_not(error, version):
    """The reason in an exception of the index_factory of a FAISS, in a few
    words."""
    reason = str(error).strip().splitlines()[-1]  # what, after where
    if _is_unknown(error):
        return f"FAISS {version} does not know it"
    _, unknown, hint = reason.partition(
        "is not a TurboQuant codec of this version"
    )
    if unknown:
        return "the installed faiss_turboquant does not know it" + hint
    return reason
