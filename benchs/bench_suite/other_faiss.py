"""Contenders of another release of FAISS, in a process of its own: two
releases cannot be in one.

The process imports FAISS from another folder. It holds the contenders, and
runs the functions that measure them, so that no time is lost between
processes.
"""

import subprocess
import sys
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from . import contenders

_START = """\
import importlib, sys, types
package, parent_path, folder, connection = sys.argv[1:]
parent = package.rpartition(".")[0]
if parent:  # which would import the FAISS that it is installed with
    sys.modules[parent] = types.ModuleType(parent)
    sys.modules[parent].__path__ = [parent_path]
else:
    sys.path.insert(0, parent_path)
sys.path.insert(0, folder)
importlib.import_module(package + ".other_faiss").serve(folder, connection)
"""


class OtherFaiss:
    """The process with the FAISS of a folder, as `pip install --target`
    makes one. Ends with this one, or by close().

    Raises ImportError if there is none.
    """

    def __init__(self, folder):
        folder = str(Path(folder).resolve())
        parent_path = str(Path(__file__).resolve().parents[1])
        self._connection, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, __package__]
                + [parent_path, folder, str(number)],
                pass_fds=[number],
            )
        #: its release, as "1.15.1"
        self.version = self._receive()

    def make(self, *args):
        """A contender, of the arguments of FaissContender. Raises what that
        raises."""
        return OtherContender(self, *self._ask(None, _make, args))

    def close(self):
        self._connection.close()
        self._process.wait()

    def _ask(self, key, f, args, say=None):
        self._connection.send((key, f, args, say is not None))
        return self._receive(say)

    def _receive(self, say=None):
        while True:
            kind, value = self._connection.recv()
            if kind == "say":
                say(value)
            elif kind == "error":
                raise value
            else:
                return value


class OtherContender(contenders.Contender):
    """A FaissContender in another process."""

    def __init__(self, other, key, name, note):
        self._other = other
        self._key = key
        self.name = name
        self.note = note

    def run(self, f, *args, say=None):
        """f: a function of a module"""
        return self._other._ask(self._key, f, args, say)

    def threads(self, n):
        return contenders.set_for_a_while(
            n, lambda value: self.run(_set_threads, value)
        )


# --------------------------------------------------------------------------
# in the other process


def _make(made, args):
    contender = contenders.FaissContender(*args)
    own = f"with FAISS {contender.faiss.__version__}, in a process of its own"
    contender.note = f"{own}; {contender.note}" if contender.note else own
    made.append(contender)
    return len(made) - 1, contender.name, contender.note


def _set_threads(contender, n):
    """Returns how many there were."""
    return contender.set_threads(n)


def _version(folder):
    import faiss

    if not Path(faiss.__file__).is_relative_to(folder):
        raise ImportError("there is no FAISS in it")
    return faiss.__version__


def serve(folder, connection):
    """Answers (None, f, args, _) by f(contenders, args), and (number of a
    contender, f, args, says) by f(contender, *args); if `says`, with what f
    says meanwhile.

    connection: number of a file
    """
    connection = Connection(int(connection))

    def say(text):
        connection.send(("say", text))

    def answer(f, *args):
        try:
            connection.send(("value", f(*args)))
        except Exception as e:
            connection.send(("error", e))

    answer(_version, folder)
    made = []
    while True:
        try:
            key, f, args, says = connection.recv()
        except EOFError:
            return
        if key is None:
            answer(f, made, args)
        else:
            answer(partial(f, say=say) if says else f, made[key], *args)
