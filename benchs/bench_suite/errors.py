"""The one exception that ends a run with a message instead of a traceback."""


class BenchError(Exception):
    """A problem that the user can act on; the text says how."""
