"""Similarities of two embedding spaces over the class centroids, under any number of permutations of the text rows.

    cka       <K^, L^_pi> / (|K^| |L^|)            K^, L^ U-centred Gram matrices
    rsa       Pearson correlation of the ranks of the cosine distances d_X(i, j) and d_T(pi_i, pi_j), i < j
    knn       mean over i of |N_X(i) and pi^-1 N_T(pi_i)| / k
    protest   (sum of the singular values of X' T_pi)^2,  |X|_F = |T|_F = 1, centred

The first three are sums over pairs of classes, sum_ij W_ij G_(pi_i, pi_j), whose factors no permutation changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..protocol.probes import Similarity
from .forms import unit_rows
from .gathered import gathered_sums

BACKENDS = ("cpp", "reference", "torch")


def u_centred(x: np.ndarray) -> np.ndarray:
    """U-centred linear Gram matrix of rows, float64 (C, C): its inner products are unbiased estimates of HSIC.

        K^_ij = K_ij - sum_l K_il / (C-2) - sum_l K_lj / (C-2) + sum_lm K_lm / ((C-1)(C-2)),   i != j,   K_ii = K^_ii = 0

    Source: Szekely & Rizzo 2014, definition 2.
    """
    n = len(x)
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1) / (n - 2)
    gram = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def distance_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of the cosine distances of all pairs of rows, centred and of unit length over i < j; symmetric (C, C)."""
    # scipy.stats takes as long to import as all that a small run needs besides, and only RSA has ranks.
    from scipy.stats import rankdata

    unit = unit_rows(x)
    upper = np.triu_indices(len(x), 1)
    # Rounding keeps distances that are equal in exact arithmetic tied.
    ranks = rankdata(np.round(1.0 - (unit @ unit.T)[upper], 12))
    ranks -= ranks.mean()
    out = np.zeros((len(x), len(x)))
    length = np.linalg.norm(ranks)
    if length == 0:
        raise InputError("`similarity` rsa needs distances that differ; all pairs of classes are equally far. Check the embeddings.")
    out[upper] = ranks / length
    return out + out.T


def neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """1 where j is one of the k rows nearest to i by cosine, the first of equals; float64 (C, C)."""
    unit = unit_rows(x)
    cosine = np.round(unit @ unit.T, 12)
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    out = np.zeros_like(cosine)
    np.put_along_axis(out, nearest, 1.0, axis=1)
    return out


def similarity(
    probe: Similarity, text: np.ndarray, audio: np.ndarray, permutations: np.ndarray, backend: str = "cpp", device: str | None = None
) -> np.ndarray:
    """The similarity of text and sound under each permutation, float64 (P,).

    Parameters
    ----------
    probe : Similarity
    text, audio : float (C, r_text), (C, r_audio)
        One row per class; the sounds as class centroids.
    permutations : int64 (P, C)
        Class c of replicate p has text row ``permutations[p, c]``.
    backend : {"cpp", "reference", "torch"}
    device : str, optional
        For ``torch``.

    Raises
    ------
    InputError
        Unknown backend, fewer than 4 classes, `k` not below the number of classes.
    """
    n = len(text)
    if backend not in BACKENDS:
        raise InputError(f"`backend` of {probe.name} must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    if n < 4:
        raise InputError(f"`similarity` {probe.name} needs at least 4 classes; got {n}. Add classes.")
    if probe.kind not in MEASURES:
        raise InputError(f"`similarity` {probe.kind} cannot be computed here; known are {', '.join(MEASURES)}.")
    text, audio = np.asarray(text, np.float64), np.asarray(audio, np.float64)
    return MEASURES[probe.kind](probe, text, audio, permutations, backend, device)


def _cka(probe: Similarity, text: np.ndarray, audio: np.ndarray, permutations: np.ndarray, backend: str, device: str | None) -> np.ndarray:
    weight, gram = u_centred(audio), u_centred(text)
    scale = np.linalg.norm(weight) * np.linalg.norm(gram)
    return gathered_sums(weight[None], gram, permutations, backend, True, device)[:, 0] / scale


def _rsa(probe: Similarity, text: np.ndarray, audio: np.ndarray, permutations: np.ndarray, backend: str, device: str | None) -> np.ndarray:
    # Over i < j the ranks have unit length, so over all pairs the sum is twice the correlation.
    return gathered_sums(distance_ranks(audio)[None], distance_ranks(text), permutations, backend, True, device)[:, 0] / 2.0


def _knn(probe: Similarity, text: np.ndarray, audio: np.ndarray, permutations: np.ndarray, backend: str, device: str | None) -> np.ndarray:
    if probe.k >= len(text):
        raise InputError(f"`k` of knn must be below the number of classes; got {probe.k} of {len(text)}. Lower it.")
    near_audio, near_text = neighbours(audio, probe.k), neighbours(text, probe.k)
    return gathered_sums(near_audio[None], near_text, permutations, backend, False, device)[:, 0] / (len(text) * probe.k)


def _protest(
    probe: Similarity, text: np.ndarray, audio: np.ndarray, permutations: np.ndarray, backend: str, device: str | None
) -> np.ndarray:
    """1 - m2 by the singular values of each replicate, in the row spaces of both sides."""
    left, right = (_principal(x) for x in (audio, text))
    out = np.empty(len(permutations))
    for at in range(0, len(out), 256):
        part = slice(at, at + 256)
        crossed = left.T @ right[permutations[part]]
        if backend == "torch":
            import torch

            values = torch.linalg.svdvals(torch.as_tensor(crossed, device=device)).cpu().numpy()
        else:
            values = np.linalg.svd(crossed, compute_uv=False)
        out[part] = values.sum(axis=1) ** 2
    return out


def _principal(x: np.ndarray) -> np.ndarray:
    """Centred rows of unit Frobenius norm in their principal axes: all distances and angles stay."""
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u * (s / np.linalg.norm(s))


# By the kind of the similarity.
MEASURES: dict[str, Callable[[Similarity, np.ndarray, np.ndarray, np.ndarray, str, str | None], np.ndarray]] = {
    "cka": _cka,
    "rsa": _rsa,
    "knn": _knn,
    "protest": _protest,
}
