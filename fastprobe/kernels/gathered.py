"""Sums over pairs of classes in which a permutation only changes which entries meet."""

from __future__ import annotations

import numpy as np

# Replicates of one native call, so that between calls Python sees Ctrl-C.
CHUNK = 4096
# Entries that a device gathers at a time: half a gigabyte.
GATHERED = 1 << 26


def gathered_sums(
    weight: np.ndarray, gram: np.ndarray, index: np.ndarray, backend: str, lower: bool = False, device: str | None = None
) -> np.ndarray:
    """T_a = sum_ij W_a(i, j) G(index_i, index_j), float64 (P, A).

    Parameters
    ----------
    weight : float64 (A, n, n)
    gram : float64 (C, C)
    index : int64 (P, n)
    lower : bool
        `weight` and `gram` are symmetric: only j <= i is read.
    device : str, optional
        For backend "torch".
    """
    if backend == "torch":
        return _on_torch(weight, gram, index, device)
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


def _on_torch(weight: np.ndarray, gram: np.ndarray, index: np.ndarray, device: str | None) -> np.ndarray:
    """A product of all entries in the order of each replicate, (P, n n), with the weights; so many replicates at a time as memory takes."""
    import torch

    flat, table, rows = (torch.as_tensor(np.ascontiguousarray(x), device=device) for x in (weight.reshape(len(weight), -1), gram, index))
    out = np.empty((len(index), len(weight)))
    together = max(GATHERED // flat.shape[1], 1)
    for at in range(0, len(index), together):
        some = rows[at : at + together]
        out[at : at + together] = (table[some[:, :, None], some[:, None, :]].flatten(1) @ flat.T).cpu().numpy()
    return out
