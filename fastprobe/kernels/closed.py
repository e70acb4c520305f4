"""Closed-form probes: everything that no permutation changes is made once per split, the rest is one product and a count.

    ridge        B = H T_pi(train)      H = X_q (X'X + alpha n I)^-1 X'
    procrustes   B = X_q U_d            U S V' = svd(X' T_pi(train)),  texts in the shared space: T V_d for T
    cca          the same between whitened spaces

    s(c, i) = <b_i, t_pi(c) / |t_pi(c)|>      rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)}

`ClosedForm.scores` with `ranks_of` is the definition, in float64; the backends are tested against it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ..errors import InputError
from ..protocol.probes import CCA, ClosedProbe, Ridge
from .batch import check_cpu
from .gathered import gathered_sums

BACKENDS = ("cpp", "reference", "torch")
EPS = 1e-12
# Replicates of one native or batched call: a fixed number, so that bits do not depend on how many are asked for.
CHUNK = 32


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), EPS)


def csls_scores(scores: np.ndarray, k: int) -> np.ndarray:
    """Scores corrected for hubs: float64 (Q, C).

        s'(c, i) = 2 s(c, i) - mean of the k largest s(., i) - mean of the k largest s(c, .)

    Parameters
    ----------
    scores : float (Q, C)
        One row per clip, one column per text.
    k : int
        Neighbours on both sides; 0 returns the scores as they are.

    Raises
    ------
    InputError
        When `k` is above the number of texts or of clips.

    Source: Conneau et al., Word Translation Without Parallel Data (arXiv 1710.04087), equation 4.
    """
    if k == 0:
        return scores
    check_csls(k, *scores.shape)
    of_clips = np.sort(scores, axis=1)[:, -k:].mean(axis=1, keepdims=True)
    of_texts = np.sort(scores, axis=0)[-k:].mean(axis=0)
    return 2 * scores - of_clips - of_texts


def check_csls(k: int, n_queries: int, n_classes: int) -> None:
    """Refuse more neighbours than there are."""
    if k > min(n_queries, n_classes):
        raise InputError(
            f"`csls` must be at most the number of texts and of test clips; got {k} with {n_classes} texts and {n_queries} clips. Lower it."
        )


def ranks_of(scores: np.ndarray, labels: np.ndarray, gallery: np.ndarray | None = None) -> np.ndarray:
    """rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)}, int32 (Q,): ties count against us.

    Parameters
    ----------
    scores : float (Q, C)
    labels : int64 (Q,)
        True class of each clip.
    gallery : int64 (G,), optional
        Classes that may be answered, the true ones among them; all by default.
    """
    true = scores[np.arange(len(scores)), labels]
    among = scores if gallery is None else scores[:, gallery]
    return (among.shape[1] - np.sum(among < true[:, None], axis=1)).astype(np.int32)


class ClosedForm:
    """One closed-form probe at one split of a pair, ready for any number of permutations.

    Parameters
    ----------
    probe : Ridge, Procrustes or CCA
    text : float64 (C, r_text)
        Features of all texts, not permuted: class c of replicate p has row ``permutations[p, c]``.
    audio : float64 (N, r_audio)
    labels : int64 (N,)
        Class of each clip.
    train_classes : int64 (n,)
    queries : int64 (Q,)
        Rows of `audio` that are ranked; their classes are the unseen gallery.
    backend : {"cpp", "reference", "torch"}
    device : str, optional
        For ``torch``.

    Raises
    ------
    InputError
        Unknown backend, `dim` above the rank, `csls` above the gallery.
    BackendUnavailableError
        A device that the backend does not have.
    """

    def __init__(
        self,
        probe: ClosedProbe,
        text: np.ndarray,
        audio: np.ndarray,
        labels: np.ndarray,
        train_classes: np.ndarray,
        queries: np.ndarray,
        backend: str = "cpp",
        device: str | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise InputError(f"`backend` of {probe.name} must be one of {', '.join(BACKENDS)}; got {backend!r}.")
        if backend != "torch":
            check_cpu(backend, device)
        check_csls(probe.csls, len(queries), len(text))
        self.probe, self.backend, self.device = probe, backend, device
        self.train, self.labels = np.asarray(train_classes), labels[queries]
        self.test = np.unique(self.labels)
        rest = np.setdiff1d(np.arange(len(text)), self.test)
        self._order = np.concatenate([self.test, rest])
        self._truth = np.searchsorted(self.test, self.labels)
        centroids = np.stack([audio[labels == c].mean(axis=0) for c in self.train])
        if isinstance(probe, Ridge):
            self.text = text
            self._fit_ridge(probe, centroids, audio, labels, audio[queries])
        else:
            shrinkage = probe.shrinkage if isinstance(probe, CCA) else None
            self._fit_rotation(probe.dim, shrinkage, text, centroids, audio[queries])
        self.unit = unit_rows(self.text)

    def _fit_ridge(self, probe: Ridge, centroids: np.ndarray, audio: np.ndarray, labels: np.ndarray, query: np.ndarray) -> None:
        """H of each alpha, and the quadratic form whose value is the leave-one-class-out error.

            H_loo = (H - h) / (1 - h)      error = |(I - H_loo) T_pi|_F^2 = <M, (T T')_pi>

        With several rows of a class 1 - h is the block of I - H of these rows.
        """
        if probe.fit_on == "centroid":
            x, groups = centroids, np.arange(len(self.train))
        else:
            rows = np.flatnonzero(np.isin(labels, self.train))
            x, groups = audio[rows], np.searchsorted(self.train, labels[rows])
        member = np.eye(len(self.train))[groups]
        values, vectors = scipy.linalg.eigh(x @ x.T)
        values = np.maximum(values, 0.0)
        smoother, forms = [], []
        for alpha in probe.alphas:
            inverse = (vectors / (values + alpha * len(x))) @ vectors.T
            smoother.append(query @ (x.T @ (inverse @ member)))
            # I - H is alpha n times the inverse, and its residual of a class is divided by the block of the class.
            residual = alpha * len(x) * (inverse @ member)
            for c in range(len(self.train)):
                mine = groups == c
                residual[mine] = np.linalg.solve(alpha * len(x) * inverse[np.ix_(mine, mine)], residual[mine])
            forms.append(residual.T @ residual)
        self._smoother, self._forms, self._gram = np.stack(smoother), np.stack(forms), self.text @ self.text.T

    def _fit_rotation(self, dim: int | None, shrinkage: float | None, text: np.ndarray, centroids: np.ndarray, query: np.ndarray) -> None:
        """X, T and queries, centred and (with `shrinkage`) whitened; X reduced to its row space."""
        x, query = centroids - centroids.mean(axis=0), query - centroids.mean(axis=0)
        self.text = text - text.mean(axis=0)
        if shrinkage is not None:
            of_audio, of_text = _whitening(x, shrinkage), _whitening(self.text, shrinkage)
            x, query, self.text = x @ of_audio, query @ of_audio, self.text @ of_text
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        kept = s > max(x.shape) * np.finfo(np.float64).eps * s[0]
        self._left, self._query = (u[:, kept] * s[kept]).T, query @ vt[kept].T
        rank = min(len(self._left), np.linalg.matrix_rank(self.text))
        if dim is not None and dim > rank:
            raise InputError(f"`dim` must be at most the rank of the train classes, {rank}; got {dim}. Lower it or add classes.")
        self._dim = rank if dim is None else dim

    def choose(self, permutations: np.ndarray) -> np.ndarray:
        """Position of the alpha with the least leave-one-class-out error in each replicate, int64 (P,)."""
        if len(self._forms) == 1:
            return np.zeros(len(permutations), np.int64)
        pi = permutations[:, self.train]
        backend = "cpp" if self.backend == "cpp" else "reference"
        return gathered_sums(self._forms, self._gram, pi, backend, lower=True).argmin(axis=1)

    def predict(self, permutation: np.ndarray) -> np.ndarray:
        """B of one replicate: what is expected of the text, float64 (Q, r_text)."""
        target = self.text[permutation[self.train]]
        if isinstance(self.probe, Ridge):
            return self._smoother[self.choose(permutation[None])[0]] @ target
        u, v = self._rotation(permutation)
        return (self._query @ u) @ v.T

    def _rotation(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """U_d and V_d of one replicate: the axes of the shared space on either side."""
        u, _, vt = np.linalg.svd(self._left @ self.text[permutation[self.train]], full_matrices=False)
        return u[:, : self._dim], vt[: self._dim].T

    def _shared(self, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries (Q, w) and texts of unit length (C, w) of one replicate, texts in the order of their rows."""
        if isinstance(self.probe, Ridge):
            return self.predict(permutation), self.unit
        # Texts are measured where they can be reached, in the shared space: by their length in the whole space, those of
        # the train classes would score higher for lying in it.
        u, v = self._rotation(permutation)
        return self._query @ u, unit_rows(self.text @ v)

    def scores(self, permutation: np.ndarray) -> np.ndarray:
        """s(c, i) of one replicate, float64 (Q, C): one row per query, one column per class."""
        queries, texts = self._shared(permutation)
        return csls_scores(queries @ texts[permutation].T, self.probe.csls)

    def ranks(self, permutations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of the true class of every query among all C texts, and among those of the test classes.

        Parameters
        ----------
        permutations : int64 (P, C)

        Returns
        -------
        ranks, ranks_unseen : int32 (P, Q)
            From 1 (best); ties count against.
        """
        permutations = np.ascontiguousarray(permutations, np.int64)
        ranks, unseen = (np.empty((len(permutations), len(self.labels)), np.int32) for _ in range(2))
        for at in range(0, len(permutations), CHUNK):
            part = slice(at, at + CHUNK)
            {"reference": self._reference, "cpp": self._cpp, "torch": self._torch}[self.backend](
                permutations[part], ranks[part], unseen[part]
            )
        return ranks, unseen

    def _reference(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        for p, permutation in enumerate(permutations):
            scores = self.scores(permutation)
            ranks[p], unseen[p] = ranks_of(scores, self.labels), ranks_of(scores, self.labels, self.test)

    def _factors(self, permutations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """H in float32 (L, Q, n), which of them each replicate takes, K' (C, w), and the columns of it it meets."""
        if isinstance(self.probe, Ridge):
            if not hasattr(self, "_fixed"):
                self._fixed = self._smoother.astype(np.float32), (self.unit @ self.text.T).astype(np.float32)
            left, right = self._fixed
            return left, self.choose(permutations), right, np.ascontiguousarray(permutations[:, self.train])
        left, right = (np.stack(side).astype(np.float32) for side in zip(*(self._shared(row) for row in permutations)))
        columns = np.tile(np.arange(left.shape[2]), (len(permutations), 1))
        return left, np.arange(len(permutations)), right.reshape(-1, right.shape[2]), columns

    def _rows(self, permutations: np.ndarray) -> np.ndarray:
        """Which row of `right` each class meets: rotations have texts of their own for every replicate."""
        rows = np.ascontiguousarray(permutations[:, self._order])
        return rows if isinstance(self.probe, Ridge) else rows + len(self.text) * np.arange(len(rows))[:, None]

    def _cpp(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        from .. import _cpp
        from .cpp_backend import instruction_set

        left, left_of, right, columns = self._factors(permutations)
        _cpp.gathered_ranks(
            left=left,
            left_of=left_of,
            right=right,
            rows=self._rows(permutations),
            columns=columns,
            truth=self._truth,
            unseen=len(self.test),
            neighbours=self.probe.csls,
            ranks=ranks,
            unseen_ranks=unseen,
            isa=instruction_set(),
        )

    def _torch(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        import torch

        n = len(permutations)
        # The last call is filled up with replicates of its first, so that every product has the same shape.
        filled = np.concatenate([permutations, np.repeat(permutations[:1], CHUNK - n, axis=0)])
        left, left_of, right, columns = (torch.as_tensor(x, device=self.device) for x in self._factors(filled))
        rows = torch.as_tensor(self._rows(filled), device=self.device)
        truth = torch.as_tensor(self._truth, device=self.device)
        scores = torch.bmm(left[left_of], right[rows[:, :, None], columns[:, None, :]].transpose(1, 2))
        if self.probe.csls:
            scores = 2 * scores - scores.topk(self.probe.csls, dim=1).values.mean(dim=1, keepdim=True)
        true = scores.gather(2, truth.expand(len(filled), -1)[:, :, None])
        below = scores < true
        for out, classes in ((ranks, len(self._order)), (unseen, len(self.test))):
            out[:] = (classes - below[:n, :, :classes].sum(dim=2)).to(torch.int32).cpu().numpy()


def _whitening(x: np.ndarray, shrinkage: float) -> np.ndarray:
    """S^-1/2 of the shrunk covariance S = (1 - l) X'X/n + l tr(X'X/n)/r I, of centred rows."""
    covariance = x.T @ x / len(x)
    mean_variance = np.trace(covariance) / len(covariance)
    values, vectors = scipy.linalg.eigh((1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(len(covariance)))
    return (vectors / np.sqrt(values)) @ vectors.T
