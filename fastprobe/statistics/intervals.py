"""An interval on an accuracy, with classes as the unit. Those on a p are in `significance`."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from ..errors import InputError
from .significance import TOLERANCE, Interval, standard_errors


def class_interval(per_split: np.ndarray, n_train: int, n_test: int, level: float = 0.95) -> Interval:
    """Interval on a statistic over fresh draws of classes, training included.

        T_0 +- t_(J-1) S sqrt(1/J + n_test/n_train)

    Parameters
    ----------
    per_split : float (J,)
        The observed value of each split, seeds averaged.
    n_train, n_test : int
        Classes on either side of a split.

    Returns
    -------
    Interval
        NaN with a single split, or where all splits agree: there is no spread to judge by.

    Raises
    ------
    InputError
        `level` outside (0, 1).

    Source: Nadeau & Bengio 2003, sec. 4.
    """
    if not 0 < level < 1:
        raise InputError(f"`level` must lie between 0 and 1; got {level!r}.")
    x = np.asarray(per_split, np.float64)
    se = standard_errors(x, n_train, n_test)[1]
    if not se > TOLERANCE * max(1.0, float(np.abs(x).max(initial=0.0))):
        return Interval(float("nan"), float("nan"))
    half = float(stdtrit(len(x) - 1, 0.5 + level / 2)) * se
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


def class_bootstrap(
    per_class: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    rng: np.random.Generator | None = None,
) -> Interval:
    """Interval on an accuracy *given these probes*: whole classes are drawn again, not clips.

        w ~ Multinomial(C; 1/C, ...)        T* = mean_s  sum_c w_c n_sc a_sc / sum_c w_c n_sc

    A class carries all its clips and its outcomes in every split with it, so the dependence between the
    clips of a class and between overlapping splits is kept. The trained probes are held fixed: the interval
    does not contain the variation of training on other classes and is too short for that claim; `class_interval` contains it.

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

    Examples
    --------
    >>> a = np.array([[0.0, 0.5, 1.0, 0.5], [0.5, 0.5, 1.0, 0.0]])
    >>> low, high = class_bootstrap(a, rng=np.random.default_rng(0))
    >>> bool(low < a.mean() < high)
    True
    """
    if not 0 < level < 1:
        raise InputError(f"`level` must lie between 0 and 1; got {level!r}.")
    a = np.asarray(per_class, np.float64)
    if a.ndim != 2 or a.shape[1] < 2:
        raise InputError(f"`per_class` must have shape (splits, classes) with at least two classes; got {a.shape}.")
    return class_bootstraps(a[None], None if weights is None else np.asarray(weights, np.float64)[None], level, resamples, rng)[0]


def class_bootstraps(
    per_class: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    rng: np.random.Generator | None = None,
) -> list[Interval]:
    """`class_bootstrap` of many pairs, float (n, S, C), with the same resamples for all, so that intervals compare."""
    a = np.asarray(per_class, np.float64)
    tested = np.isfinite(a)
    if not (here := tested.any(axis=2)).all():
        raise InputError(f"`per_class` must have a tested class in every split; split {int((~here).any(axis=0).argmax())} has none.")
    rng = np.random.default_rng(0) if rng is None else rng
    n = tested.astype(np.float64) if weights is None else np.where(tested, weights, 0.0)
    values = np.where(tested, a, 0.0) * n
    (pairs, splits, n_classes), means = a.shape, np.empty((resamples, len(a)))
    overall = np.where(tested, a, 0.0).sum(axis=(1, 2)) / tested.sum(axis=(1, 2))
    for at in range(0, resamples, 1024):
        w = rng.multinomial(n_classes, np.full(n_classes, 1.0 / n_classes), size=min(1024, resamples - at)).astype(np.float64)
        total, hit = ((w @ v.reshape(-1, n_classes).T).reshape(-1, pairs, splits) for v in (n, values))
        # A resample may miss all test classes of a small split; that split is then left out of its mean.
        drawn = total > 0
        split_means = np.divide(hit, total, out=np.zeros_like(hit), where=drawn)
        count = drawn.sum(axis=2)
        means[at : at + len(w)] = np.where(count > 0, split_means.sum(axis=2) / np.maximum(count, 1), overall)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return [Interval(float(x), float(y)) for x, y in zip(low, high)]
