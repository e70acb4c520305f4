"""Intervals: on a Monte-Carlo p after an optional stop, and on an accuracy, with classes as the unit.

For a number of permutations fixed beforehand, `significance.pvalue_interval` is the sharper one.
"""

from __future__ import annotations

from math import inf, log, log1p

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

from .errors import InputError
from .significance import Interval


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"`level` must lie between 0 and 1; got {level!r}.")


def confidence_sequence(exceedances: int, permutations: int, level: float = 0.95) -> Interval:
    """Interval on the limiting p that holds at *every* moment, hence after an optional stop.

        {p : (t+1) C(t, x) p^x (1-p)^(t-x) > 1 - level}

    Somewhat wider than Clopper-Pearson, which is wrong when the data chose the moment to stop.

    Parameters
    ----------
    exceedances, permutations : int
        x and t when it is looked at.

    Source: Robbins 1970; for Monte-Carlo tests Gandy 2009, Ding, Gandy & Hahn 2020.
    """
    _check_level(level)
    x, t = int(exceedances), int(permutations)
    if not 0 <= x <= t or t < 1:
        raise InputError(f"`exceedances` must lie between 0 and `permutations`; got {exceedances} of {permutations}.")

    constant = -float(betaln(x + 1, t - x + 1)) - log(1 - level)

    def excess(p: float) -> float:
        if (x and p <= 0) or (t > x and p >= 1):
            return -inf
        return constant + (x * log(p) if x else 0.0) + ((t - x) * log1p(-p) if t > x else 0.0)

    mode = x / t
    low = 0.0 if x == 0 else brentq(excess, 1e-300, mode, xtol=1e-12)
    high = 1.0 if x == t else brentq(excess, mode, 1 - 1e-16, xtol=1e-12)
    return Interval(float(low), float(high))


def class_bootstrap(per_class: np.ndarray, weights: np.ndarray | None = None, level: float = 0.95,
                    resamples: int = 10_000, rng: np.random.Generator | None = None) -> Interval:
    """Interval on an accuracy that generalises to new classes: whole classes are drawn again, not clips.

        w ~ Multinomial(C; 1/C, ...)        T* = mean_s  sum_c w_c n_sc a_sc / sum_c w_c n_sc

    A class carries all its clips and its outcomes in every split with it, so the dependence between the
    clips of a class and between overlapping splits is kept. The trained probes are held fixed: the interval
    does not contain the variation of training on other classes (the corrected standard error does).

    Parameters
    ----------
    per_class : float (S, C)
        a_sc, the accuracy on class c in split s (seeds averaged); NaN where the class was not tested.
    weights : float (S, C), optional
        n_sc, clips of the class (micro average); by default 1 (macro average).
    rng : numpy.random.Generator, optional

    Returns
    -------
    Interval
        Percentile interval.

    Source: Efron & Tibshirani 1993, ch. 13; clusters as in Cameron, Gelbach & Miller 2008.
    """
    _check_level(level)
    a = np.asarray(per_class, np.float64)
    if a.ndim != 2 or a.shape[1] < 2:
        raise InputError(f"`per_class` must have shape (splits, classes) with at least two classes; got {a.shape}.")
    tested = np.isfinite(a)
    if not tested.any(axis=1).all():
        raise InputError(f"`per_class` must have a tested class in every split; split {int((~tested.any(axis=1)).argmax())} "
                         "has none.")
    rng = np.random.default_rng(0) if rng is None else rng
    n = tested.astype(np.float64) if weights is None else np.where(tested, weights, 0.0)
    values = np.where(tested, a, 0.0) * n
    n_classes, means = a.shape[1], np.empty(resamples)
    for at in range(0, resamples, 2048):
        w = rng.multinomial(n_classes, np.full(n_classes, 1.0 / n_classes), size=min(2048, resamples - at)).astype(np.float64)
        total = w @ n.T
        # A resample may miss all test classes of a small split; that split is then left out of its mean.
        with np.errstate(invalid="ignore", divide="ignore"):
            split_means = np.where(total > 0, (w @ values.T) / total, np.nan)
        empty = ~(total > 0).any(axis=1)
        split_means[empty] = a[tested].mean()
        means[at:at + len(w)] = np.nanmean(split_means, axis=1)
    tail = 100 * (1 - level) / 2
    return Interval(*(float(v) for v in np.percentile(means, [tail, 100 - tail])))
