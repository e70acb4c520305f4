"""Many models in order: how far each rank could lie, which cannot be told apart, and whether size explains the order.

All models are tested on the same classes, so classes are drawn again for all of them together, and what is common to them cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError

DRAWS = 2000


class Ranking(NamedTuple):
    """Models in order.

    Attributes
    ----------
    order : int64 (M,)
        Numbers of the models, best first.
    mean : float64 (M,)
        Of each model over the classes, in the order given.
    rank, low, high : int64 (M,)
        Rank of each model, 1 best, and its interval over classes.
    groups : tuple of tuple of int
        Models that cannot be told apart, best first; a model may be in several.
    """

    order: np.ndarray
    mean: np.ndarray
    rank: np.ndarray
    low: np.ndarray
    high: np.ndarray
    groups: tuple[tuple[int, ...], ...]

    def letters(self, model: int) -> str:
        """The groups of a model as letters, as in "ab"."""
        return "".join(_letter(i) for i, group in enumerate(self.groups) if model in group)


def _letter(number: int) -> str:
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def rank_models(values: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = DRAWS) -> Ranking:
    """Order models by their mean over classes, with intervals on the ranks and groups of ties.

        r*_m = rank of mean_c x*_(m, c),  classes c drawn again, the same for all models;      interval: quantiles of r*
        i, j tied when |d_ij| <= q se_ij,   d_ij = mean_c (x_i - x_j),   q = level quantile of max over pairs of |d*_ij - d_ij| / se*_ij

    A group is a run of models in order of which the first is tied with all others. Conditional on the trained probes, as every
    resampling of classes is: training on other classes varies too.

    Parameters
    ----------
    values : float (M, C)
        Of each model on each class, larger being better, at least two of either; NaN where a class was not tested, for all models alike.
    level : float
        Of the intervals, and of the family of pairwise comparisons.

    Raises
    ------
    InputError
        Fewer than two models or classes, a class that some models were tested on and others not.

    References
    ----------
    Goldstein and Spiegelhalter (1996), J. R. Statist. Soc. A 159, 385 (ranks); Westfall and Young (1993) (the maximum over pairs).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal([[1.0], [0.0], [0.0]], 0.5, (3, 40))
    >>> found = rank_models(x, np.random.default_rng(1))
    >>> int(found.order[0]), found.groups[0]
    (0, (0,))
    """
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    if values.ndim != 2 or values.shape[0] < 2:
        raise InputError(f"`values` must have a row for each of at least 2 models; got shape {values.shape}.")
    if (known != known[0]).any():
        raise InputError("`values` must be known for the same classes of every model.")
    x = values[:, known[0]]
    m, n = x.shape
    if n < 2:
        raise InputError(f"`values` must be known for at least 2 classes; got {n}.")
    mean = x.mean(axis=1)
    order = np.lexsort((np.arange(m), -mean))
    rank = np.empty(m, np.int64)
    rank[order] = np.arange(1, m + 1)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    again = weights @ x.T  # (draws, M)
    # One more than the models above it; scipy.stats.rankdata would take longer to import than all else that a report computes.
    ranks = np.stack([1 + (again > again[:, [model]]).sum(axis=1) for model in range(m)], axis=1)
    tail = (1 - level) / 2
    low = np.quantile(ranks, tail, axis=0, method="lower")
    high = np.quantile(ranks, 1 - tail, axis=0, method="higher")
    tied = _tied(x, weights, level)
    groups: list[tuple[int, ...]] = []
    last = -1
    for at in range(m):
        end = at
        while end + 1 < m and tied[order[at], order[end + 1]]:
            end += 1
        if end > last:  # not a part of the group before
            groups.append(tuple(int(i) for i in order[at : end + 1]))
            last = end
    # The observed rank is in its interval also where the bootstrap seldom gives it.
    return Ranking(order, mean, rank, np.minimum(low.astype(int), rank), np.maximum(high.astype(int), rank), tuple(groups))


def _tied(x: np.ndarray, weights: np.ndarray, level: float, block: int = 4096) -> np.ndarray:
    """Which pairs of models cannot be told apart at a level for all pairs together, bool (M, M)."""
    m, n = x.shape
    first, second = np.triu_indices(m, 1)
    largest = np.zeros(len(weights))
    t = np.empty(len(first))
    for at in range(0, len(first), block):
        part = slice(at, at + block)
        difference = (x[first[part]] - x[second[part]]).T  # (C, pairs)
        mean, sd = difference.mean(axis=0), difference.std(axis=0, ddof=1)
        t[part] = np.divide(np.abs(mean), sd / np.sqrt(n), out=np.where(mean == 0, 0.0, np.inf), where=sd > 0)
        # Studentised in every draw: with the observed standard error equal models were told apart twice as often as promised.
        means = weights @ difference
        variance = np.maximum(weights @ difference**2 - means**2, 0.0) / (n - 1)
        moved = np.abs(means - mean)
        largest = np.maximum(largest, np.divide(moved, np.sqrt(variance), out=np.zeros_like(moved), where=variance > 1e-24).max(axis=1))
    critical = np.quantile(largest, level)
    tied = np.ones((m, m), bool)
    tied[first, second] = tied[second, first] = t <= critical
    return tied


class Trend(NamedTuple):
    """Spearman's correlation of size and value, and its two-sided p."""

    rho: float
    pvalue: float
    n: int


def trend(sizes: np.ndarray, values: np.ndarray, rng: np.random.Generator, permutations: int = 9999) -> Trend | None:
    """Do larger models do better? Spearman's rho, with a permutation p over models; None with fewer than 4 sizes.

    All orders of the models are listed where they are at most `permutations`.

    Parameters
    ----------
    sizes, values : float (M,)
        Numbers of parameters, and what the models reach, larger being better.

    Notes
    -----
    Models are the unit, few, and chosen by whoever ran them: a correlation says nothing about what size would do to one model.

    Examples
    --------
    >>> found = trend(np.array([1, 2, 3, 4, 5]), np.array([0.1, 0.2, 0.25, 0.3, 0.4]), np.random.default_rng(0))
    >>> found.rho
    1.0
    """
    from scipy.stats import permutation_test, rankdata, spearmanr

    sizes, values = (np.asarray(v, np.float64) for v in (sizes, values))
    if len(np.unique(sizes)) < 4 or np.ptp(values) == 0:
        return None
    ranks = rankdata(values) - (len(values) + 1) / 2
    found = permutation_test(
        (rankdata(sizes),),
        lambda order, axis: np.tensordot(order, ranks, (axis, 0)),  # rho, but for its denominator
        vectorized=True,
        permutation_type="pairings",
        n_resamples=permutations,
        random_state=rng,
    )
    return Trend(round(float(spearmanr(sizes, values).statistic), 12), float(found.pvalue), len(sizes))
