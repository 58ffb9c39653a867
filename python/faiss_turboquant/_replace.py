"""How this package puts functions of its own in the place of FAISS's."""

import functools


def replace(owner, name, function):
    """Replace a function of a module, or a method of a class.

    function : called with what it replaces as its first argument
    """
    replaced = getattr(owner, name)
    if hasattr(replaced, "__wrapped__"):
        return  # this package is imported again

    @functools.wraps(replaced)
    def replacement(*args, **kwargs):
        return function(replaced, *args, **kwargs)

    setattr(owner, name, replacement)
