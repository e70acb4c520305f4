"""What each closed-form probe makes of a split, and of a permutation.

A form is made once per split from what no permutation changes. Under a permutation it places the clips to be ranked and the
texts of all classes in one space, where `closed.ClosedForm` scores them:

    ridge        b_i = the text expected for clip i, from H; texts as they are
    procrustes   b_i = x_i U_d and texts t V_d, where U S V' = svd(X' T_pi(train))
    cca          the same between whitened spaces

To add one: a class like these and its line in `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..protocol.probes import CCA, ClosedProbe, Procrustes, Ridge
from .gathered import gathered_sums

EPS = 1e-12


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), EPS)


class SplitData(NamedTuple):
    """What a form is made of: all texts (not permuted), all clips and their classes, train classes, rows of the clips to rank."""

    text: np.ndarray
    audio: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    queries: np.ndarray

    def centroids(self) -> np.ndarray:
        """Mean clip of every train class, float64 (n, r_audio)."""
        return np.stack([self.audio[self.labels == c].mean(axis=0) for c in self.train])


class Factors(NamedTuple):
    """Scores of several replicates as products: s_p(c, i) = sum_j left[left_of[p], i, j] right[rows[p, c], columns[p, j]].

    left : float32 (L, Q, n);  left_of : int64 (P,);  right : float32 (R, w);  rows : int64 (P, C);  columns : int64 (P, n).
    """

    left: np.ndarray
    left_of: np.ndarray
    right: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


class Heads(NamedTuple):
    """A closed-form probe as maps of the features: W (r_text, w), V (r_audio, w), and the means taken off before."""

    text: np.ndarray
    audio: np.ndarray
    text_mean: np.ndarray
    audio_mean: np.ndarray


class Form:
    """A closed form at one split. A subclass has `set_text`, `place` and `heads`; `factors` follows, and may be made faster.

    Parameters
    ----------
    probe : ClosedProbe
    data : SplitData
    native : bool
        Whether the compiled extension may be used.
    """

    def __init__(self, probe: Any, data: SplitData, native: bool) -> None:
        raise NotImplementedError

    def set_text(self, text: np.ndarray) -> None:
        """Make whatever depends on the texts, float64 (C, r_text), and on no permutation."""
        raise NotImplementedError

    def with_text(self, text: np.ndarray) -> Form:
        """The same form with other texts: nothing of the audio side is made again."""
        other = copy(self)
        other.set_text(text)
        return other

    def place(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries (Q, w), and texts of unit length (C, w) in the order of their rows, of one replicate."""
        raise NotImplementedError

    def heads(self, permutation: np.ndarray) -> Heads:
        """The probe of one replicate as two linear maps, for clips and texts that are not of this split.

        s(c, i) = <(x_i - mean_x) V, norm((t_c - mean_t) W)>
        """
        raise NotImplementedError

    def factors(self, permutations: np.ndarray) -> Factors:
        """The products of several replicates, permutations int64 (P, C)."""
        left, right = (np.stack(side).astype(np.float32) for side in zip(*(self.place(row) for row in permutations)))
        count, texts, width = right.shape
        columns = np.tile(np.arange(width), (count, 1))
        rows = permutations + texts * np.arange(count)[:, None]  # every replicate has texts of its own
        return Factors(left, np.arange(count), right.reshape(-1, width), rows, columns)


class RidgeForm(Form):
    """Ridge: H of each alpha, and the quadratic form whose value is the leave-one-class-out error.

        B = H T_pi(train),   H = X_q (X'X + alpha n I)^-1 X'
        H_loo = (H - h) / (1 - h)      error = |(I - H_loo) T_pi|_F^2 = <M, (T T')_pi>

    With several rows of a class 1 - h is the block of I - H of these rows.
    """

    def __init__(self, probe: Ridge, data: SplitData, native: bool) -> None:
        self.train, self.native = data.train, native
        if probe.fit_on == "centroid":
            x, groups = data.centroids(), np.arange(len(self.train))
        else:
            rows = np.flatnonzero(np.isin(data.labels, self.train))
            x, groups = data.audio[rows], np.searchsorted(self.train, data.labels[rows])
        query = data.audio[data.queries]
        member = np.eye(len(self.train))[groups]
        from scipy.linalg import eigh

        values, vectors = eigh(x @ x.T)
        values = np.maximum(values, 0.0)
        self._solutions, smoother, forms = [], [], []
        for alpha in probe.alphas:
            inverse = (vectors / (values + alpha * len(x))) @ vectors.T
            self._solutions.append(x.T @ (inverse @ member))
            smoother.append(query @ self._solutions[-1])
            # I - H is alpha n times the inverse, and its residual of a class is divided by the block of the class.
            residual = alpha * len(x) * (inverse @ member)
            for c in range(len(self.train)):
                mine = groups == c
                residual[mine] = np.linalg.solve(alpha * len(x) * inverse[np.ix_(mine, mine)], residual[mine])
            forms.append(residual.T @ residual)
        self.smoother, self.errors = np.stack(smoother), np.stack(forms)
        self.set_text(data.text)

    def set_text(self, text: np.ndarray) -> None:
        self.text, self.unit, self._gram = text, unit_rows(text), text @ text.T
        self._fixed: tuple[np.ndarray, np.ndarray] | None = None

    def choose(self, permutations: np.ndarray) -> np.ndarray:
        """Position of the alpha with the least leave-one-class-out error in each replicate, int64 (P,)."""
        if len(self.errors) == 1:
            return np.zeros(len(permutations), np.int64)
        pi = permutations[:, self.train]
        return gathered_sums(self.errors, self._gram, pi, "cpp" if self.native else "reference", lower=True).argmin(axis=1)

    def predict(self, permutation: np.ndarray) -> np.ndarray:
        """B of one replicate: the text expected for each query, float64 (Q, r_text)."""
        return self.smoother[self.choose(permutation[None])[0]] @ self.text[permutation[self.train]]

    def place(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(permutation), self.unit

    def heads(self, permutation: np.ndarray) -> Heads:
        target = self.text[permutation[self.train]]
        audio = self._solutions[self.choose(permutation[None])[0]] @ target
        return Heads(np.eye(target.shape[1]), audio, np.zeros(target.shape[1]), np.zeros(len(audio)))

    def factors(self, permutations: np.ndarray) -> Factors:
        """H of each alpha, and K' = unit texts times texts: made once, whatever the permutations."""
        if self._fixed is None:
            self._fixed = self.smoother.astype(np.float32), (self.unit @ self.text.T).astype(np.float32)
        left, right = self._fixed
        return Factors(left, self.choose(permutations), right, permutations, np.ascontiguousarray(permutations[:, self.train]))


class RotationForm(Form):
    """Procrustes and CCA: X, T and queries, centred and (CCA) whitened; X is reduced to its row space."""

    def __init__(self, probe: Procrustes | CCA, data: SplitData, native: bool) -> None:
        self.probe, x, self.train = probe, data.centroids(), data.train
        self._mean_of_audio = x.mean(axis=0)
        query, x = data.audio[data.queries] - self._mean_of_audio, x - self._mean_of_audio
        self._of_audio: np.ndarray | None = None
        if isinstance(probe, CCA):
            self._of_audio = _whitening(x, probe.shrinkage)
            x, query = x @ self._of_audio, query @ self._of_audio
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        kept = s > max(x.shape) * np.finfo(np.float64).eps * s[0]
        self._left, self._query, self._rows_of_x = (u[:, kept] * s[kept]).T, query @ vt[kept].T, vt[kept].T
        self.set_text(data.text)

    def set_text(self, text: np.ndarray) -> None:
        self._mean_of_text = text.mean(axis=0)
        self.text = text - self._mean_of_text
        self._of_text: np.ndarray | None = None
        if isinstance(self.probe, CCA):
            self._of_text = _whitening(self.text, self.probe.shrinkage)
            self.text = self.text @ self._of_text
        rank = min(len(self._left), np.linalg.matrix_rank(self.text))
        dim = self.probe.dim
        if dim is not None and dim > rank:
            raise InputError(f"`dim` must be at most the rank of the train classes, {rank}; got {dim}. Lower it or add classes.")
        self._dim = rank if dim is None else dim

    def _rotation(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """U_d and V_d of one replicate: the axes of the shared space on either side."""
        u, _, vt = np.linalg.svd(self._left @ self.text[permutation[self.train]], full_matrices=False)
        return u[:, : self._dim], vt[: self._dim].T

    def predict(self, permutation: np.ndarray) -> np.ndarray:
        """B of one replicate: the text expected for each query, float64 (Q, r_text)."""
        u, v = self._rotation(permutation)
        return (self._query @ u) @ v.T

    def place(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Texts are measured where they can be reached, in the shared space: by their length in the whole space, those of
        # the train classes would score higher for lying in it.
        u, v = self._rotation(permutation)
        return self._query @ u, unit_rows(self.text @ v)

    def heads(self, permutation: np.ndarray) -> Heads:
        u, v = self._rotation(permutation)
        text, audio = v, self._rows_of_x @ u
        if self._of_text is not None and self._of_audio is not None:
            text, audio = self._of_text @ text, self._of_audio @ audio
        return Heads(text, audio, self._mean_of_text, self._mean_of_audio)


def _whitening(x: np.ndarray, shrinkage: float) -> np.ndarray:
    """S^-1/2 of the shrunk covariance S = (1 - l) X'X/n + l tr(X'X/n)/r I, of centred rows."""
    from scipy.linalg import eigh

    covariance = x.T @ x / len(x)
    mean_variance = np.trace(covariance) / len(covariance)
    values, vectors = eigh((1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(len(covariance)))
    return (vectors / np.sqrt(values)) @ vectors.T


# By the kind of the probe.
FORMS: dict[str, Callable[[Any, SplitData, bool], Form]] = {"ridge": RidgeForm, "procrustes": RotationForm, "cca": RotationForm}


def form_of(probe: ClosedProbe, data: SplitData, native: bool) -> Form:
    """The form of a probe, made for a split.

    Raises
    ------
    InputError
        A kind that has no form; options that do not fit the split.
    """
    if probe.kind not in FORMS:
        raise InputError(f"`probe` {probe.kind} has no closed form here; known are {', '.join(FORMS)}.")
    return FORMS[probe.kind](probe, data, native)
