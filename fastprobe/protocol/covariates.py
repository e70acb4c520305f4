"""Covariates of the classes, and the permutation test of what is left when they are taken out of both sides."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..storage import local_copy

# Residuals in fewer dimensions than this have too few distinct arrangements to split into train and test classes.
RESIDUAL_DIMENSIONS = 4


@dataclass(frozen=True, eq=False)
class Design:
    """Covariates of C classes, ready to be taken out.

    Attributes
    ----------
    names : tuple of str
        Columns of `matrix`; a category gives "column=value".
    matrix : float64 (C, q)
    basis : float64 (C, rank)
        Orthonormal basis of the constant and the columns of `matrix`.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    basis: np.ndarray

    @property
    def degrees_of_freedom(self) -> int:
        """Dimensions taken out beyond the mean; constant and collinear columns take none."""
        return self.basis.shape[1] - 1

    def residualise(self, rows: np.ndarray) -> np.ndarray:
        """R T = T - H_X T, with one row per class: float (C, r) to float64 (C, r)."""
        rows = np.asarray(rows, np.float64)
        return rows - self.basis @ (self.basis.T @ rows)

    def relabel(self, text: np.ndarray, permutation: np.ndarray) -> np.ndarray:
        """Text rows of one permutation, residualised before and after: R (R T)_pi (Freedman-Lane), float64 (C, r).

        Number 0, the identity, gives R T by the same path.
        """
        return self.residualise(self.residualise(text)[permutation])

    def residualise_clips(self, clips: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Take from each clip the fitted part of its class, so that class centroids M become R M.

            x_i <- x_i - (H_X M)_(y_i)

        Parameters
        ----------
        clips : float (N, r)
        classes : int (N,)
            Class of each clip; every class has one.

        Returns
        -------
        float64 (N, r)
        """
        clips, n_classes = np.asarray(clips, np.float64), len(self.basis)
        count = np.bincount(classes, minlength=n_classes)
        if len(count) != n_classes or (count == 0).any():
            raise InputError(f"`classes` must name each of the {n_classes} classes at least once; got {int((count > 0).sum())} of them.")
        centroids = np.zeros((n_classes, clips.shape[1]))
        np.add.at(centroids, classes, clips)
        centroids /= count[:, None]
        return clips - (self.basis @ (self.basis.T @ centroids))[classes]


def design(matrix: np.ndarray, names: Sequence[str]) -> Design:
    """Covariates as a `Design`; columns are centred and scaled, and what is constant or collinear costs nothing.

    Parameters
    ----------
    matrix : float (C, q)
    names : sequence of str (q,)

    Raises
    ------
    InputError
        A value that is not finite, or too many covariates for the classes.
    """
    x = np.asarray(matrix, np.float64)
    if x.ndim != 2 or len(names) != x.shape[1]:
        raise InputError(f"`matrix` must have shape (classes, covariates) with a name each; got {x.shape} and {len(names)} names.")
    if not np.isfinite(x).all():
        raise InputError(
            f"`covariates` must be finite; column {names[int(np.argmin(np.isfinite(x).all(axis=0)))]!r} is not. Fill or drop it."
        )
    centred = x - x.mean(axis=0)
    scale = np.sqrt((centred**2).mean(axis=0))
    varies = scale > 1e-10 * np.maximum(1.0, np.abs(x).max(axis=0, initial=0.0))
    columns = centred[:, varies] / scale[varies]
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    rank = int((singular > 1e-10 * singular.max(initial=0.0)).sum())
    if rank + 1 + RESIDUAL_DIMENSIONS > len(x):
        raise InputError(
            f"`covariates` must leave at least {RESIDUAL_DIMENSIONS} dimensions of the classes; got {rank} degrees of freedom "
            f"and the mean, of {len(x)} classes. Drop columns or add classes."
        )
    basis = np.hstack([np.full((len(x), 1), len(x) ** -0.5), left[:, :rank]])
    return Design(tuple(names), x, basis)


def components(vectors: np.ndarray, count: int) -> np.ndarray:
    """The first `count` principal components of an embedding table, one row per class: float64 (C, count)."""
    v = np.asarray(vectors, np.float64)
    if not 1 <= count <= min(v.shape):
        raise InputError(f"`components` must lie between 1 and {min(v.shape)}; got {count!r}.")
    left, singular, _ = np.linalg.svd(v - v.mean(axis=0), full_matrices=False)
    return left[:, :count] * singular[:count]


def read_covariates(path: str | Path, labels: Sequence[str]) -> Design:
    """Covariates from a CSV with a column `label`; a column that is not all numbers is a category.

    Parameters
    ----------
    path : str or Path
    labels : sequence of str (C,)
        Classes in the order wanted; other rows of the file are left out.

    Raises
    ------
    InputError
        No such file, no column `label`, no covariate, a label missing or given twice, and what `design` refuses.
    """
    try:
        with local_copy(path) as source, open(source, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, fields = list(reader), list(reader.fieldnames or ())
    except (OSError, InputError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`covariates` must be a CSV that can be read; got {str(path)!r}: {error}.") from error
    columns = [f for f in fields if f != "label"]
    if "label" not in fields or not columns:
        raise InputError(f"`covariates` must have a column `label` and at least one more; {str(path)!r} has {fields}.")
    by_label = {row["label"]: row for row in rows}
    if len(by_label) < len(rows):
        raise InputError(f"`covariates` must give each label once; {str(path)!r} has {len(rows)} rows of {len(by_label)} labels.")
    if missing := [c for c in labels if c not in by_label]:
        raise InputError(f"`covariates` must have every class; {len(missing)} of {len(labels)} are missing, such as {missing[:3]}.")
    names, parts = [], []
    for column in columns:
        values = [by_label[c][column] or "" for c in labels]
        try:
            parts.append(np.array([float(v) for v in values]))
            names.append(column)
        except ValueError:
            for level in sorted(set(values)):
                parts.append(np.array([v == level for v in values], np.float64))
                names.append(f"{column}={level}")
    return design(np.stack(parts, axis=1), names)
