"""Sums over pairs of classes in which a permutation only changes which entries meet."""

from __future__ import annotations

import numpy as np

# Replicates of one native call, so that between calls Python sees Ctrl-C.
CHUNK = 4096


def gathered_sums(weight: np.ndarray, gram: np.ndarray, index: np.ndarray, backend: str, lower: bool = False) -> np.ndarray:
    """T_a = sum_ij W_a(i, j) G(index_i, index_j), float64 (P, A).

    Parameters
    ----------
    weight : float64 (A, n, n)
    gram : float64 (C, C)
    index : int64 (P, n)
    lower : bool
        `weight` and `gram` are symmetric: only j <= i is read.
    """
    if lower:
        weight = np.tril(weight) + np.tril(weight, -1)
    out = np.empty((len(index), len(weight)))
    if backend == "reference":
        for p, row in enumerate(index):
            out[p] = np.sum(weight * gram[np.ix_(row, row)], axis=(1, 2))
        return out
    from .. import _cpp
    from .cpp_backend import instruction_set

    weight, gram, index = np.ascontiguousarray(weight), np.ascontiguousarray(gram), np.ascontiguousarray(index, np.int64)
    for at in range(0, len(index), CHUNK):
        part = slice(at, at + CHUNK)
        _cpp.gathered_sums(weight=weight, gram=gram, index=index[part], lower=lower, out=out[part], isa=instruction_set())
    return out
