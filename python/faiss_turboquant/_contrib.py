"""What faiss.contrib does to the fields of FAISS's classes, for ours."""

import functools

import faiss
from faiss.contrib import ivf_tools

from . import swigfaiss_turboquant as _swig


def _handle_permute_invlists():
    """The centres of an IndexIVFTurboQuant go along with its lists."""
    permute_invlists = ivf_tools.permute_invlists
    if hasattr(permute_invlists, "__wrapped__"):
        return  # this package is imported again

    @functools.wraps(permute_invlists)
    def replacement(index_ivf, perm):
        permute_invlists(index_ivf, perm)
        if not isinstance(index_ivf, _swig.IndexIVFTurboQuant):
            return
        scales = faiss.vector_to_array(index_ivf.centre_scales)
        if scales.size:
            faiss.copy_array_to_vector(scales[perm], index_ivf.centre_scales)
        index_ivf.centres_changed()

    ivf_tools.permute_invlists = replacement


def install():
    """Replace what does not know all fields of the classes."""
    _handle_permute_invlists()
