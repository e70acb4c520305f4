"""Covariates of the classes, and the permutation test of what is left when they are taken out of both sides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..tables.spelling import near_misses
from ..tables.vocabulary import read_csv

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
    names, matrix = covariate_columns(covariates_of_file(path, labels))
    return design(matrix, names)


def covariates_of_file(path: str | os.PathLike, labels: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a CSV by label, in the order of `labels`; "fsd50k" names the vocabulary that comes with fastprobe."""
    rows = read_csv(path, "covariates", ("label",))
    columns = [f for f in (rows[0] if rows else ()) if f != "label"]
    if not columns:
        raise InputError(f"`covariates` must have a column `label`, at least one more, and a row per class; {str(path)!r} has not.")
    by_label = {row["label"]: row for row in rows}
    if len(by_label) < len(rows):
        raise InputError(f"`covariates` must give each label once; {str(path)!r} has {len(rows)} rows of {len(by_label)} labels.")
    if missing := [str(c) for c in labels if c not in by_label]:
        near = near_misses(missing, by_label)
        raise InputError(f"`covariates` must have every class; {len(missing)} of {len(labels)} are missing, such as {missing[:3]}.{near}")
    return {column: [by_label[c][column] for c in labels] for column in columns}


def covariate_columns(columns: Mapping[str, Sequence[Any]]) -> tuple[list[str], np.ndarray]:
    """Names and float64 (C, q) of columns of numbers and categories; a category gives an indicator for each of its values.

    Raises
    ------
    InputError
        Columns of different lengths.
    """
    names, parts = [], []
    for column, given in columns.items():
        values = list(given)
        if empty := sum(v is None or str(v).strip() == "" for v in values):
            raise InputError(f"`covariates` must have a value for every class; column {column!r} is empty for {empty}. Fill or drop it.")
        try:
            parts.append(np.array([float(v) for v in values]))
            names.append(column)
        except ValueError:
            levels = [str(v) for v in values]
            for level in sorted(set(levels)):
                parts.append(np.array([v == level for v in levels], np.float64))
                names.append(f"{column}={level}")
    if len({len(p) for p in parts}) > 1:
        raise InputError(f"`covariates` must have a value for every class in each column; got {sorted({len(p) for p in parts})} values.")
    return names, np.stack(parts, axis=1)


def check_leverage(found: Design, labels: Sequence[str]) -> None:
    """Refuse covariates that explain a class completely, so that nothing of it is left to test.

    Raises
    ------
    InputError
        A category of a single class, or the like.
    """
    alone = [str(c) for c, h in zip(labels, (found.basis**2).sum(axis=1)) if h > 1 - 1e-9]
    if alone:
        raise InputError(
            f"`covariates` must not explain a class completely, as a category of one class does; {len(alone)} are, such as {alone[:3]}. "
            "Join rare categories, or leave these classes out."
        )


def cut_into_bins(groups: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The numeric column that groups are bins of, if there is one: by its order each group is one stretch.

    Examples
    --------
    >>> cut_into_bins(np.array(["low", "high", "low", "high"]), {"loudness": [0.1, 3.0, 0.4, 2.0]})
    'loudness'
    """
    for name, given in columns.items():
        try:
            values = np.array([float(v) for v in given])
        except ValueError:
            continue
        n_groups, distinct = len(set(groups.tolist())), np.unique(values)
        numbered = len(distinct) == len(values) and np.array_equal(distinct - distinct[0], np.arange(len(values)))
        if numbered or len(distinct) <= n_groups or n_groups < 2:  # a mere numbering of the classes is no covariate
            continue
        # Within one value any order of the groups will do, so that the best one is taken.
        ordered = groups[np.lexsort((groups, values))]
        if 1 + int((ordered[1:] != ordered[:-1]).sum()) == n_groups:
            return name
    return None
