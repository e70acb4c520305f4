"""Procrustes: turn one cloud of class centroids onto the other and ask whether it fits better than chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import orthogonal_procrustes

from ..errors import InputError
from ..protocol import plan


@dataclass(frozen=True, eq=False)
class ProcrustesTest:
    """Alignment of two configurations of the same classes, and its permutation test (PROTEST).

    Attributes
    ----------
    m2 : float
        1 - (sum of singular values of X'Y)^2: the sum of squares left, from 0 (the same shape) to 1.
    correlation : float
        sqrt(1 - m2), the sum of singular values itself.
    pvalue : float
        (1 + #{m2_b <= m2}) / (1 + B).
    null : float64 (B,)
        m2 of the permutations.
    x, y : float64 (C, r)
        Standardised text and aligned audio centroids, ready to be drawn together.
    components : int
        Principal components kept on either side.
    """

    m2: float
    correlation: float
    pvalue: float
    null: np.ndarray
    x: np.ndarray
    y: np.ndarray
    components: int


def centroids(features: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Mean row of each class, float64 (C, D); labels are class numbers."""
    count = np.bincount(labels, minlength=n_classes)
    if (count == 0).any():
        raise InputError(f"`labels` must contain every class; class {int(np.flatnonzero(count == 0)[0])} has no row.")
    out = np.zeros((n_classes, features.shape[1]))
    np.add.at(out, labels, features)
    return out / count[:, None]


def _standardise(x: np.ndarray, components: int | None) -> np.ndarray:
    """Centred, in its leading principal components, of unit Frobenius norm (scipy.spatial.procrustes' form)."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    if not s[0] > 0:
        raise InputError("a configuration whose points coincide has no shape to align.")
    x = (u * s)[:, :components]
    return x / np.linalg.norm(x)


def protest(
    text: np.ndarray,
    audio: np.ndarray,
    permutations: int = 999,
    seed: int = 0,
    components: int | None = 20,
    groups: np.ndarray | None = None,
) -> ProcrustesTest:
    """Align two configurations by an orthogonal Procrustes rotation and test the fit by permuting the text rows.

        m2 = min over rotations R and scales k of |X - k Y R|_F^2 = 1 - (sum_j S_j)^2,    X'Y = U S V'
        X and Y centred, |X|_F = |Y|_F = 1;   p = (1 + #{b : m2_b <= m2}) / (1 + B)

    In as many dimensions as classes two clouds can always be turned onto each other rather well, so only the leading
    principal components enter.

    Parameters
    ----------
    text, audio : float (C, D_t), (C, D_a)
        One row per class, in the same order; the widths may differ.
    seed : int
        Permutation b is `plan.permutation(seed, b, C)`.
    components : int or None
        Kept on either side; None keeps all.

    Source: Gower 1975; Jackson 1995 (PROTEST); Peres-Neto & Jackson 2001.
    """
    if len(text) != len(audio) or len(text) < 3:
        raise InputError(
            f"`text` and `audio` must have one row for each of the same classes, at least 3; got {len(text)} and {len(audio)}."
        )
    x, y = _standardise(text, components), _standardise(audio, components)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in (x, y))
    rotation, total = orthogonal_procrustes(y, x)
    null = np.empty(permutations)
    for at in range(0, permutations, 256):
        order = plan.permutations(seed, at + 1, min(at + 256, permutations) + 1, len(x), groups)
        products = np.einsum("bcr,cs->brs", x[order], y, optimize=True)
        null[at : at + len(order)] = 1 - np.linalg.svd(products, compute_uv=False).sum(axis=1) ** 2
    m2 = float(1 - total**2)
    p = (1 + int(np.sum(null <= m2 + 1e-12))) / (1 + permutations)
    return ProcrustesTest(m2, float(total), p, null, x, total * (y @ rotation), width)


def principal_plane(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both configurations in the plane of the leading principal components of their union.

    Returns
    -------
    x2, y2 : float64 (C, 2)
    share : float64 (2,)
        Share of the variance along each axis.
    """
    both = np.concatenate([x, y])
    mean = both.mean(axis=0)
    _, s, vt = np.linalg.svd(both - mean, full_matrices=False)
    axes = vt[:2].T
    return (x - mean) @ axes, (y - mean) @ axes, s[:2] ** 2 / np.sum(s**2)
