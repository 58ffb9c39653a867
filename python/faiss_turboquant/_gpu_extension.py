"""The C++ module of the GPU part: `swig`, or None where it was not built."""

import importlib
import importlib.util

_NAME = f"{__package__}.swigfaiss_turboquant_gpu"

swig = None
if importlib.util.find_spec(_NAME) is not None:
    swig = importlib.import_module(_NAME)
