"""Centring, scaling and the lossless basis: tables in, the matrices that probes are trained on out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from ..errors import InputError
from ..tables.embeddings import EmbeddingTable, check_labels
from .config import ProbeConfig
from .covariates import Design


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """What was fitted on the rows of one table, so that new rows can be treated alike.

        z = (x - mean) / scale,        features = z Q  (and a one for the bias)

    Attributes
    ----------
    mean : float64 (D,)
    scale : float
        Root-mean-square norm of the centred rows.
    basis : float64 (D, r) or None
        Orthonormal columns Q; None keeps the raw axes.
    bias : bool
        Whether a column of ones follows.
    """

    mean: np.ndarray
    scale: float
    basis: np.ndarray | None
    bias: bool

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Features of rows (n, D), float64 (n, r).

        Raises
        ------
        InputError
            When the width is not that of the table this was fitted on.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise InputError(
                f"`vectors` must have the width {len(self.mean)} of the table the probe was fitted on; "
                f"got shape {vectors.shape}. Use the same embedding model."
            )
        z = (vectors.astype(np.float64) - self.mean) / self.scale
        if self.basis is not None:
            z = z @ self.basis
        return np.column_stack([z, np.ones(len(z))]) if self.bias else z


def fit_preprocessing(vectors: np.ndarray, basis: str, energy: float | None, bias: bool, name: str = "table") -> Preprocessing:
    """Centre, scale and (for ``basis="svd"``) find the row space of a table.

        X - mean = U S Q',    kept: S_j > max(n, D) eps S_1,  or the leading share `energy` of sum S^2

    It looks at no label and no pairing, so it is the same for every split and permutation. The sign of
    each column of Q is fixed (its largest entry is positive), because LAPACK's is arbitrary.

    Parameters
    ----------
    vectors : float (n, D)
    basis : {"svd", "raw"}
    energy : float, optional
        Share of the variance to keep (lossy); None is lossless.
    """
    # Imported here, so that `fastprobe --help` does not load SciPy.
    import scipy.linalg

    x = vectors.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    scale = float(np.sqrt(np.einsum("ij,ij->", x, x) / len(x)))
    if not scale > 1e-12 * np.abs(mean).max():  # relative: how a table is scaled says nothing about its geometry
        raise InputError(f"{name}: all rows are the same vector, so nothing remains after centring. Check how it was embedded.")
    x /= scale
    q = None
    if basis == "svd":
        if len(x) > 2 * x.shape[1]:  # the triangle of a QR has the same row space and is much smaller
            x = scipy.linalg.qr(x, mode="r", overwrite_a=True, check_finite=False)[0][: x.shape[1]]
        _, s, qt = scipy.linalg.svd(x, full_matrices=False, overwrite_a=True, check_finite=False)
        rank = int(np.sum(s > max(len(vectors), vectors.shape[1]) * np.finfo(np.float64).eps * s[0]))
        if energy is not None and energy < 1:
            share = np.cumsum(s[:rank] ** 2) / np.sum(s[:rank] ** 2)
            rank = int(np.searchsorted(share, energy) + 1)
        q = qt[:rank].T
        q = np.ascontiguousarray(q * np.sign(q[np.abs(q).argmax(axis=0), np.arange(rank)]))
    return Preprocessing(mean, scale, q, bias)


@dataclass(frozen=True, eq=False)
class PairData:
    """One (text table, audio table), ready for training, in canonical order.

    Classes ascend by label and clips by (label, content), so the order of the rows in a file changes nothing.

    Attributes
    ----------
    text_name, audio_name : str
    classes : str (C,)
    text : float64 (C, r_text)
        Features of the class names.
    audio : float64 (N, r_audio)
        Features of the clips; the clips of a class are contiguous.
    labels : int64 (N,)
        Class of each clip.
    first, count : int64 (C,)
        First clip of each class, and how many it has.
    clip_ids : str (N,)
    text_preprocessing, audio_preprocessing : Preprocessing
    """

    text_name: str
    audio_name: str
    classes: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    count: np.ndarray
    clip_ids: np.ndarray
    text_preprocessing: Preprocessing
    audio_preprocessing: Preprocessing


@dataclass(frozen=True, eq=False)
class TableFeatures:
    """One table in canonical order and its features; computed once and shared by all its pairs."""

    name: str
    labels: np.ndarray
    ids: np.ndarray
    features: np.ndarray
    preprocessing: Preprocessing


def canonical_order(table: EmbeddingTable) -> np.ndarray:
    """Rows by label, then by the digest of the vector, then by id, int64 (n,): a function of the content, so
    that a table read from a reordered file trains the same probes, with or without ids.
    """
    digest = np.array(
        [int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "big") for row in table.vectors.astype("<f4", copy=False)],
        dtype=np.uint64,
    )
    return np.lexsort((table.ids, digest, table.labels))


def table_features(table: EmbeddingTable, config: ProbeConfig) -> TableFeatures:
    """Put the rows in canonical order, then fit and apply the preprocessing."""
    order = canonical_order(table)
    labels, ids = table.labels[order], table.ids[order]
    vectors = table.vectors[order]
    pre = fit_preprocessing(vectors, str(config.basis), config.energy, config.bias, table.name)
    return TableFeatures(table.name, labels, ids, pre.apply(vectors), pre)


def make_pair(
    text: EmbeddingTable,
    audio: EmbeddingTable,
    config: ProbeConfig,
    text_features: TableFeatures | None = None,
    audio_features: TableFeatures | None = None,
) -> PairData:
    """Check that two tables belong together and build what probes are trained on.

    Raises
    ------
    InputError
        Duplicate text labels, labels in one table only, tables without variance.
    """
    check_labels(text, audio)
    t = text_features or table_features(text, config)
    a = audio_features or table_features(audio, config)
    labels = np.searchsorted(t.labels, a.labels)
    count = np.bincount(labels, minlength=len(t.labels)).astype(np.int64)
    return PairData(
        t.name,
        a.name,
        t.labels,
        t.features,
        a.features,
        labels.astype(np.int64),
        np.cumsum(count) - count,
        count,
        a.ids,
        t.preprocessing,
        a.preprocessing,
    )


def residual_pair(pair: PairData, design: Design) -> PairData:
    """The pair with the covariates of its classes taken out of both sides, each scaled to a root-mean-square length of 1 again.

        T <- R T        x_i <- x_i - (H M)_(y_i)        M: class centroids

    A column of ones for the bias stays as it is.

    Raises
    ------
    InputError
        A table of which nothing is left.
    """

    def scaled(rows: np.ndarray, before: np.ndarray, bias: bool, name: str) -> np.ndarray:
        size, whole = (float(np.sqrt(np.einsum("ij,ij->", x, x) / len(x))) for x in (rows, before))
        if not size > 1e-9 * whole:
            raise InputError(f"`covariates` leave nothing of {name}: they explain all of its class means. Take out fewer columns.")
        return np.column_stack([rows / size, np.ones(len(rows))]) if bias else rows / size

    of_text, of_audio = pair.text_preprocessing.bias, pair.audio_preprocessing.bias
    text, audio = pair.text[:, : pair.text.shape[1] - of_text], pair.audio[:, : pair.audio.shape[1] - of_audio]
    return replace(
        pair,
        text=scaled(design.residualise(text), text, of_text, pair.text_name),
        audio=scaled(design.residualise_clips(audio, pair.labels), audio, of_audio, pair.audio_name),
    )


def residual_text(pair: PairData, design: Design, permutation: np.ndarray) -> np.ndarray:
    """Texts of one permutation of a `residual_pair`: R (R T)_pi, residualised again after the rows have moved, float64 (C, r)."""
    moved = pair.text[permutation]
    if not pair.text_preprocessing.bias:
        return design.residualise(moved)
    return np.column_stack([design.residualise(moved[:, :-1]), moved[:, -1]])
