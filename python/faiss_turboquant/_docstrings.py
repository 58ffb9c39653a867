"""What help() says of the methods of the indexes.

FAISS's own texts are for every index ("must be trained before"), and some of
its methods have none.
"""

import functools
import inspect

_FLAT = {
    "train": """Set the centre that vectors are taken relative to. Optional.

        It improves recall on data with a large mean. A sample is enough.

        Parameters
        ----------
        x : array, shape (n, d)
            Their mean is the centre.

        Raises
        ------
        RuntimeError
            if the index already holds vectors
        """,
    "add": """Encode vectors and append them, with ids ntotal, ntotal + 1, ...

        Parameters
        ----------
        x : array, shape (n, d)
            finite; converted to float32 as FAISS does

        Raises
        ------
        RuntimeError
            naming the first row that is not finite; the index is unchanged
        """,
    "search": """The k nearest vectors of each query.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        k : int
            results for each, at least 1
        params : faiss.SearchParameters, optional
            `faiss.SearchParameters(sel=...)` limits the search to the ids of
            an IDSelector
        D : array of float32, shape (nq, k), optional
            written and returned
        I : array of int64, shape (nq, k), optional
            written and returned

        Returns
        -------
        D : array of float32, shape (nq, k)
            squared L2 distances, ascending, or inner products, descending
        I : array of int64, shape (nq, k)
            ids, smaller ones first where distances are equal; -1 where there
            are fewer than k
        """,
    "range_search": """All vectors within a radius of each query.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        thresh : float
            found are squared L2 distances below it, inner products above it
        params : faiss.SearchParameters, optional
            as for `search`

        Returns
        -------
        lims : array of uint64, shape (nq + 1,)
            the results of query i are lims[i] to lims[i + 1]
        D : array of float32, shape (lims[-1],)
            distances or inner products
        I : array of int64, shape (lims[-1],)
            ids, ascending for each query
        """,
    "assign": """The ids that `search` finds, without the distances.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        k : int
            results for each, at least 1
        labels : array of int64, shape (nq, k), optional
            written and returned

        Returns
        -------
        array of int64, shape (nq, k)
        """,
    "search_and_reconstruct": """`search`, with what is stored of the results.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        k : int
            results for each, at least 1
        params, D, I
            as for `search`
        R : array of float32, shape (nq, k, d), optional
            written and returned

        Returns
        -------
        D, I
            as from `search`
        R : array of float32, shape (nq, k, d)
            the vectors, as from `reconstruct`
        """,
    "reconstruct": """A vector, as far as its code tells.

        Parameters
        ----------
        key : int
            its id, 0 to ntotal - 1
        x : array of float32, shape (d,), optional
            written and returned

        Returns
        -------
        array of float32, shape (d,)
            the point nearest to the vector along its code's direction
        """,
    "reconstruct_n": """`reconstruct` of consecutive ids.

        Parameters
        ----------
        n0 : int
            the first id
        ni : int
            how many; -1 for ntotal
        x : array of float32, shape (ni, d), optional
            written and returned

        Returns
        -------
        array of float32, shape (ni, d)
        """,
    "reconstruct_batch": """`reconstruct` of several ids.

        Parameters
        ----------
        key : array of int64, shape (n,)
            ids, 0 to ntotal - 1
        x : array of float32, shape (n, d), optional
            written and returned

        Returns
        -------
        array of float32, shape (n, d)
        """,
    "remove_ids": """Remove vectors; those behind them move up to lower ids.

        Parameters
        ----------
        x : array of int64, shape (n,), or faiss.IDSelector
            ids; those that there are not are passed over

        Returns
        -------
        int
            number of vectors removed
        """,
    "merge_from": """Append the vectors of another index, which is empty then.

        Parameters
        ----------
        otherIndex : faiss.IndexTurboQuant
            with the same d, codec, metric, rotation and centre
        add_id : int
            0: ids continue at ntotal

        Raises
        ------
        RuntimeError
            naming what differs; both indexes are unchanged
        """,
    "check_compatible_for_merge": """Raise what `merge_from` would, or nothing.

        Parameters
        ----------
        otherIndex : faiss.Index
        """,
    "reset": """Remove all vectors. The centre stays.""",
    "permute_entries": """Vector perm[i] becomes number i.

        Parameters
        ----------
        perm : array of int64, shape (ntotal,)
        """,
    "codes_changed": """To be called after `codes` were changed by hand.

        What searches have derived from them (`use_sign_filter`) is made again.
        """,
    "sa_code_size": """Bytes of a code, `code_size`.

        Returns
        -------
        int
        """,
    "sa_encode": """Encode vectors as `add` does, without adding them.

        Parameters
        ----------
        x : array, shape (n, d)
            finite
        codes : array of uint8, shape (n, sa_code_size()), optional
            written and returned

        Returns
        -------
        array of uint8, shape (n, sa_code_size())
        """,
    "sa_decode": """The vectors that codes stand for, as from `reconstruct`.

        Parameters
        ----------
        codes : array of uint8, shape (n, sa_code_size())
            from `sa_encode` of an index that this one could merge
        x : array of float32, shape (n, d), optional
            written and returned

        Returns
        -------
        array of float32, shape (n, d)
        """,
    "add_sa_codes": """Append vectors that are encoded already.

        Parameters
        ----------
        codes : array of uint8, shape (n, sa_code_size())
            from `sa_encode` of an index that this one could merge
        ids
            None: ids continue at ntotal
        """,
    "permute_entries": """Put the vectors into another order.

        Parameters
        ----------
        perm : array of int64, shape (ntotal,)
            vector i becomes the one that was perm[i]
        """,
    "get_distance_computer": """Distances of one query to vectors by id.

        Returns
        -------
        faiss.DistanceComputer
            It keeps the index alive. Pass the query's pointer to
            `set_query(faiss.swig_ptr(x))`, x of shape (d,) and float32, and
            call it with an id for the distance that `search` gives (for L2,
            estimates below zero as they are).
        """,
}
_FLAT["get_FlatCodesDistanceComputer"] = _FLAT["get_distance_computer"]

_IVF = {
    **{
        name: _FLAT[name]
        for name in (
            "add",
            "assign",
            "search_and_reconstruct",
            "check_compatible_for_merge",
            "sa_encode",
            "sa_decode",
        )
    },
    "train": """Train the coarse quantizer, the only part that needs it.

        Parameters
        ----------
        x : array, shape (n, d)
            39 times nlist or more, or FAISS warns
        """,
    "add_with_ids": """Encode vectors and append them to their lists.

        Parameters
        ----------
        x : array, shape (n, d)
            finite; converted to float32 as FAISS does
        ids : array of int64, shape (n,)
            what searches return for them

        Raises
        ------
        RuntimeError
            naming the first row that is not finite; the index is unchanged
        """,
    "search": """The k nearest vectors of each query in its nprobe nearest lists.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        k : int
            results for each, at least 1
        params : faiss.SearchParametersIVF, optional
            `nprobe`, `sel`, `max_codes` and `quantizer_params` of this search
        D : array of float32, shape (nq, k), optional
            written and returned
        I : array of int64, shape (nq, k), optional
            written and returned

        Returns
        -------
        D : array of float32, shape (nq, k)
            squared L2 distances, ascending, or inner products, descending
        I : array of int64, shape (nq, k)
            ids, smaller ones first where distances are equal; -1 where there
            are fewer than k
        """,
    "range_search": """All vectors of the nprobe nearest lists within a radius.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        thresh : float
            found are squared L2 distances below it, inner products above it
        params : faiss.SearchParametersIVF, optional
            `nprobe`, `sel` and `quantizer_params` of this search

        Returns
        -------
        lims : array of uint64, shape (nq + 1,)
            the results of query i are lims[i] to lims[i + 1]
        D : array of float32, shape (lims[-1],)
            distances or inner products
        I : array of int64, shape (lims[-1],)
            ids, ascending for each query
        """,
    "add_sa_codes": """Append vectors that are encoded already.

        Parameters
        ----------
        codes : array of uint8, shape (n, sa_code_size())
            from `sa_encode` of an index that this one could merge
        ids : array of int64, shape (n,), optional
            what searches return for them; None: ids continue at ntotal
        """,
    "search_preassigned": """`search` in lists that are given.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        k : int
            results for each, at least 1
        Iq : array of int64, shape (nq, nprobe)
            lists to search, -1 for none
        Dq : array of float32, shape (nq, nprobe)
            distances to their centroids
        params, D, I
            as for `search`

        Returns
        -------
        D, I : arrays, shape (nq, k)
            as from `search`
        """,
    "range_search_preassigned": """`range_search` in lists that are given.

        Parameters
        ----------
        x : array, shape (nq, d)
            queries, finite
        thresh : float
            as for `range_search`
        Iq : array of int64, shape (nq, nprobe)
            lists to search, -1 for none
        Dq : array of float32, shape (nq, nprobe)
            distances to their centroids
        params
            as for `range_search`

        Returns
        -------
        lims, D, I
            as from `range_search`
        """,
    "make_direct_map": """Let `reconstruct` find vectors by their ids.

        Parameters
        ----------
        new_maintain_direct_map : bool
            False takes the map away again
        """,
    "reconstruct": """A vector, as far as its code tells.

        It needs `make_direct_map()`, once.

        Parameters
        ----------
        key : int
            its id
        x : array of float32, shape (d,), optional
            written and returned

        Returns
        -------
        array of float32, shape (d,)
            the point nearest to the vector along the direction from the centre
            of its list that its code stands for
        """,
    "remove_ids": """Remove vectors; the others keep their ids.

        Parameters
        ----------
        x : array of int64, shape (n,), or faiss.IDSelector
            ids; those that there are not are passed over

        Returns
        -------
        int
            number of vectors removed
        """,
    "merge_from": """Append the lists of another index, which is empty then.

        Parameters
        ----------
        otherIndex : faiss.IndexIVFTurboQuant
            with the same centroids, codec, metric and rotation
        add_id : int
            added to its ids

        Raises
        ------
        RuntimeError
            naming what differs; both indexes are unchanged
        """,
    "reset": """Remove all vectors. The coarse quantizer stays.""",
    "sa_code_size": """Bytes of a code with the number of its list before it.

        Returns
        -------
        int
        """,
}

_TEXTS = {"IndexTurboQuant": _FLAT, "IndexIVFTurboQuant": _IVF}


def _own_method(cls, name):
    """A method, as a function of this class that can have its own text."""
    if name in vars(cls):
        return vars(cls)[name]
    inherited = getattr(cls, name)

    @functools.wraps(inherited)
    def method(self, *args, **kwargs):
        return inherited(self, *args, **kwargs)

    method.__qualname__ = f"{cls.__name__}.{name}"
    setattr(cls, name, method)
    return method


def add_docstrings(cls):
    """Document the methods of one of the indexes."""
    for name, text in _TEXTS[cls.__name__].items():
        _own_method(cls, name).__doc__ = inspect.cleandoc(text)
