"""What faiss.contrib does by the class of an index, for ours."""

import re

import faiss
import numpy as np
from faiss.contrib import big_batch_search, factory_tools, ivf_tools
from faiss.contrib.inspect_tools import get_invlist

from . import swigfaiss_turboquant as _swig
from ._describe import describe
from ._functions import index_factory
from ._replace import replace


# ---------------------------------------------------------------- ivf_tools


def _permute_invlists(permute_invlists, index_ivf, perm):
    """The centres of an IndexIVFTurboQuant go along with its lists."""
    permute_invlists(index_ivf, perm)
    if not isinstance(index_ivf, _swig.IndexIVFTurboQuant):
        return
    scales = faiss.vector_to_array(index_ivf.centre_scales)
    if scales.size:
        faiss.copy_array_to_vector(scales[perm], index_ivf.centre_scales)
    index_ivf.centres_changed()


# ------------------------------------------------------------ factory_tools


def _get_code_size(get_code_size, d, indexkey):
    if re.fullmatch("TQ[^,()]*", indexkey):
        return index_factory(d, indexkey).sa_code_size()
    return get_code_size(d, indexkey)


def _reverse_index_factory(reverse_index_factory, index):
    index = faiss.downcast_index(index)
    if isinstance(index, _swig.IndexTurboQuant):
        return describe(index).codec
    if isinstance(index, _swig.IndexIVFTurboQuant):
        flat = faiss.IndexIVFFlat(
            index.quantizer, index.d, index.nlist, index.metric_type
        )
        lists_of_flat = reverse_index_factory(flat)
        return lists_of_flat.removesuffix("Flat") + describe(index).codec
    if isinstance(index, (faiss.IndexHNSW, faiss.IndexNSG)):
        storage = faiss.downcast_index(index.storage)
        if isinstance(storage, _swig.IndexTurboQuant):
            if isinstance(index, faiss.IndexNSG):
                graph = f"NSG{index.nsg.R}"
            else:
                graph = reverse_index_factory(index)
            return f"{graph},{describe(storage).codec}"
    return reverse_index_factory(index)


# --------------------------------------------------------- big_batch_search


class _BigBatchSearcher(big_batch_search.BigBatchSearcher):
    """Gives the vectors of a list, or with method "index" its number."""

    def prepare_bucket(self, l):
        index = self.index
        if not isinstance(index, _swig.IndexIVFTurboQuant):
            return super().prepare_bucket(l)
        i0, i1 = self.bucket_lims[l], self.bucket_lims[l + 1]
        q_subset = self.query_ids[i0:i1]
        xq_l = self.xq[q_subset]
        list_ids, codes = get_invlist(index.invlists, l)
        if self.decode_func is None:
            return q_subset, xq_l, list_ids, np.full(min(len(list_ids), 1), l)
        number = np.frombuffer(
            int(l).to_bytes(index.coarse_code_size(), "little"), "uint8"
        )
        numbers = np.tile(number, (len(list_ids), 1))
        xb_l = self.decode_func(np.hstack([numbers, codes]))
        if self.use_float16:
            xq_l, xb_l = xq_l.astype("float16"), xb_l.astype("float16")
        return q_subset, xq_l, list_ids, xb_l


class _BlockComputer(big_batch_search.BlockComputer):
    def __init__(self, index, method="knn_function", **functions):
        if not isinstance(index, _swig.IndexIVFTurboQuant):
            super().__init__(index, method=method, **functions)
            return
        # one of those whose vectors the searcher gives as they are
        flat = faiss.IndexIVFFlat(
            index.quantizer, index.d, index.nlist, index.metric_type
        )
        super().__init__(flat, method=method, **functions)
        self.index = index
        if method != "index":
            self.decode_func = index.sa_decode

    def block_search(self, xq_l, xb_l, list_ids, k, **extra_args):
        index = self.index
        if self.method != "index" or not isinstance(
            index, _swig.IndexIVFTurboQuant
        ):
            return super().block_search(xq_l, xb_l, list_ids, k, **extra_args)
        if xq_l.size == 0 or xb_l.size == 0:
            return None, None
        # by the index itself, in the one list
        nq = len(xq_l)
        xq_l = np.ascontiguousarray(xq_l, "float32")
        D, I = np.empty((nq, k), "float32"), np.empty((nq, k), "int64")
        index.search_preassigned_c(
            nq,
            faiss.swig_ptr(xq_l),
            k,
            faiss.swig_ptr(np.full(nq, xb_l[0])),
            None,  # it takes no distances to the centres
            faiss.swig_ptr(D),
            faiss.swig_ptr(I),
            True,  # list and place in it, of which the place is wanted
            faiss.SearchParametersIVF(nprobe=1),
        )
        return D, np.where(I < 0, -1, I & 0xFFFFFFFF)


def install():
    """Replace what does not know our classes."""
    replace(ivf_tools, "permute_invlists", _permute_invlists)
    replace(factory_tools, "get_code_size", _get_code_size)
    replace(factory_tools, "reverse_index_factory", _reverse_index_factory)
    big_batch_search.BigBatchSearcher = _BigBatchSearcher
    big_batch_search.BlockComputer = _BlockComputer
