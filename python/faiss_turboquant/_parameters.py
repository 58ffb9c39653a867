"""faiss.ParameterSpace, made to know what TurboQuant adds."""

import faiss

from ._describe import find_turboquant
from ._replace import replace


def _whole(value):
    if int(value) != value:
        raise RuntimeError(f"ParameterSpace: {value} is not a whole number")
    return int(value)


_OWN = {"use_sign_filter": _whole, "sign_margin": float}


def _set_own(index, name, value):
    found = [
        each for each, _ in find_turboquant(index) if hasattr(each, name)
    ]
    if not found:
        raise RuntimeError(
            f"ParameterSpace: could not set {name} = {value}: there is no "
            "IndexTurboQuant or IndexIVFTurboQuant inside this "
            f"{type(index).__name__}"
        )
    for each in found:
        setattr(each, name, _OWN[name](value))


def _set_index_parameter(replaced, self, index, name, value):
    if name in _OWN:
        _set_own(index, name, value)
    else:
        replaced(self, index, name, value)


def _set_index_parameters(replaced, self, index, *parameters):
    """By a string, "nprobe=4,sign_margin=3", or as FAISS has it."""
    if len(parameters) != 1 or not isinstance(parameters[0], str):
        return replaced(self, index, *parameters)
    others = []
    for part in parameters[0].split(","):
        name, _, value = part.partition("=")
        if name in _OWN:
            _set_own(index, name, float(value))
        else:
            others.append(part)
    if others:
        replaced(self, index, ",".join(others))


def install():
    """Replace two methods of faiss.ParameterSpace."""
    replace(faiss.ParameterSpace, "set_index_parameter", _set_index_parameter)
    replace(
        faiss.ParameterSpace, "set_index_parameters", _set_index_parameters
    )
