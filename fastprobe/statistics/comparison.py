"""Two models on the same splits: is one better than the other?

That is another null than that of a permutation test: two models may both beat their controls and not differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from ..errors import InputError
from .significance import TOLERANCE, Interval, corrected_variance_factor

# Up to this many classes all sign patterns are enumerated (2^17 of them).
ENUMERATE_UP_TO = 17


@dataclass(frozen=True)
class CorrectedTTest:
    """Result of `nadeau_bengio_test`.

    Attributes
    ----------
    mean : float
        Mean difference over splits.
    se_naive, se_corrected : float
        S / sqrt(J), and the one that allows for overlapping splits.
    statistic, pvalue : float
        t and its two-sided p with J - 1 degrees of freedom.
    low, high : float
        Confidence interval on the difference.
    n_splits : int
    """

    mean: float
    se_naive: float
    se_corrected: float
    statistic: float
    pvalue: float
    low: float
    high: float
    n_splits: int


def nadeau_bengio_test(differences: np.ndarray, n_train: int, n_test: int, level: float = 0.95) -> CorrectedTTest:
    """Corrected resampled t-test on paired differences, one per split.

        d_s = T_s(first) - T_s(second)        t = mean(d) / sqrt((1/J + n_test/n_train) S^2),   J - 1 degrees of freedom

    Splits share classes, so their differences are positively correlated and the naive t-test rejects far too often.

    Parameters
    ----------
    differences : float (J,)
        Seeds already averaged within a split.
    n_train, n_test : int
        Classes on either side.

    Returns
    -------
    CorrectedTTest
        Without t, p and interval (NaN) where all differences are the same and not 0.

    Raises
    ------
    InputError
        Fewer than two splits.

    Examples
    --------
    >>> test = nadeau_bengio_test([0.02, 0.05, 0.03, 0.04, 0.06], n_train=70, n_test=30)
    >>> round(test.mean, 3), round(test.pvalue, 3), round(test.se_corrected / test.se_naive, 2)
    (0.04, 0.033, 1.77)
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise InputError(f"`differences` must hold at least two splits; got shape {d.shape}. Run with more `splits`.")
    j, mean, variance = len(d), float(d.mean()), float(d.var(ddof=1))
    naive = float(np.sqrt(variance / j))
    se = float(np.sqrt(corrected_variance_factor(j, n_train, n_test) * variance))
    if not d.any():
        return CorrectedTTest(mean, naive, se, 0.0, 1.0, 0.0, 0.0, j)
    if se <= TOLERANCE * max(1.0, abs(mean)):  # a few clips in a few splits can do this: no spread to judge by is not certainty
        return CorrectedTTest(mean, naive, se, *(float("nan"),) * 4, j)
    half = float(stdtrit(j - 1, 0.5 + level / 2)) * se
    return CorrectedTTest(mean, naive, se, mean / se, float(2 * stdtr(j - 1, -abs(mean / se))), mean - half, mean + half, j)


@dataclass(frozen=True)
class SignFlipTest:
    """Result of `sign_flip_test`: the mean difference over classes, its two-sided p, flips used, whether all were."""

    mean: float
    pvalue: float
    n_classes: int
    n_flips: int
    exact: bool


def sign_flip_test(differences: np.ndarray, rng: np.random.Generator | None = None, flips: int = 9_999) -> SignFlipTest:
    """Per-class sign flips: were the two models equal on a class, either sign of its difference is as likely.

        T(e) = | sum_c e_c d_c |,  e_c = +-1        p = (1 + #{T(e) >= T(1)}) / (1 + flips)

    Conditional on the trained probes: what training on other classes would change is not in it, and over fresh classes it
    can reject true nulls more often than its level. `nadeau_bengio_test` comes first.

    With at most 17 classes that differ, all 2^C patterns are enumerated and p is exact. Classes that do not
    differ never change T and are carried along.

    Parameters
    ----------
    differences : float (C,)
        Difference of each tested class, averaged over the splits that tested it; NaN for a class that none did.
    """
    return sign_flip_tests(np.asarray(differences, np.float64)[None], rng, flips)[0]


def sign_flip_tests(differences: np.ndarray, rng: np.random.Generator | None = None, flips: int = 9_999) -> list[SignFlipTest]:
    """`sign_flip_test` of every row of ``differences``, float (n, C), with the same random signs for all.

    Raises
    ------
    InputError
        Fewer than two tested classes.
    """
    d = np.asarray(differences, np.float64)
    tested = np.isfinite(d)
    if d.ndim != 2 or (tested.sum(axis=1) < 2).any():
        raise InputError(f"`differences` must hold at least two classes; got {int(tested.sum(axis=1).min()) if d.ndim == 2 else d.shape}.")
    d = np.where(tested, d, 0.0)
    observed = np.abs(d.sum(axis=1))
    threshold = observed - 1e-12 * np.maximum(np.abs(d).sum(axis=1), 1e-300)
    moving = d.any(axis=0)
    exact = bool(moving.sum() <= ENUMERATE_UP_TO)
    count, total = np.zeros(len(d), np.int64), 2 ** int(moving.sum()) if exact else flips
    rng = np.random.default_rng(0) if rng is None else rng
    for at in range(0, total, 4096):
        stop = min(at + 4096, total)
        if exact:
            bits = np.arange(at, stop)[:, None] >> np.arange(int(moving.sum())) & 1
        else:
            bits = rng.integers(0, 2, size=(stop - at, int(moving.sum())))
        count += np.sum(np.abs((2.0 * bits - 1.0) @ d[:, moving].T) >= threshold, axis=0)
    p = count / total if exact else (1 + count) / (1 + total)
    return [SignFlipTest(float(row.sum() / n), float(q), int(n), total, exact) for row, n, q in zip(d, tested.sum(axis=1), p)]


@dataclass(frozen=True)
class Comparison:
    """Two pairs of a run (or of two runs) that share splits.

    Attributes
    ----------
    first, second : str
    statistic : str
    value_first, value_second : float
    t_test : CorrectedTTest or None
        None with a single split, or where the splits do not vary.
    sign_flip : SignFlipTest or None
        Conditional on the trained probes; None when no per-class outcomes were stored.
    """

    first: str
    second: str
    statistic: str
    value_first: float
    value_second: float
    t_test: CorrectedTTest | None
    sign_flip: SignFlipTest | None

    @property
    def interval(self) -> Interval | None:
        """On the difference, corrected for overlapping splits."""
        return None if self.t_test is None else Interval(self.t_test.low, self.t_test.high)

    def to_dict(self) -> dict:
        """Plain values, for JSON and tables."""
        return asdict(self)


def compare(
    first: str,
    second: str,
    statistic: str,
    splits_first: np.ndarray,
    splits_second: np.ndarray,
    n_train: int,
    n_test: int,
    classes_first: np.ndarray | None = None,
    classes_second: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Compare two models on the same splits.

    Parameters
    ----------
    splits_first, splits_second : float (J,)
        The observed statistic of each split, seeds averaged; larger is better.
    classes_first, classes_second : float (C,), optional
        The same per class (NaN where never tested).
    """
    a, b = (None if v is None else np.asarray(v)[None] for v in (classes_first, classes_second))
    return compare_many(
        [(first, second)], statistic, np.asarray(splits_first)[None], np.asarray(splits_second)[None], n_train, n_test, a, b, rng
    )[0]


def compare_many(
    names: list[tuple[str, str]],
    statistic: str,
    splits_first: np.ndarray,
    splits_second: np.ndarray,
    n_train: int,
    n_test: int,
    classes_first: np.ndarray | None = None,
    classes_second: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> list[Comparison]:
    """`compare` for many couples at once: (n, J) and (n, C) arrays, one row per couple."""
    a, b = (np.asarray(v, np.float64) for v in (splits_first, splits_second))
    if a.shape != b.shape:
        raise InputError(f"`splits_first` and `splits_second` must come from the same splits; got {a.shape[1:]} and {b.shape[1:]}.")
    flips: Sequence[SignFlipTest | None] = [None] * len(names)
    if classes_first is not None and classes_second is not None:
        flips = sign_flip_tests(np.asarray(classes_first) - np.asarray(classes_second), rng)
    tests = [nadeau_bengio_test(x - y, n_train, n_test) if len(x) > 1 else None for x, y in zip(a, b)]
    return [
        Comparison(
            first,
            second,
            statistic,
            float(x.mean()),
            float(y.mean()),
            test if test is not None and np.isfinite(test.pvalue) else None,
            flip,
        )
        for (first, second), x, y, test, flip in zip(names, a, b, tests, flips)
    ]
