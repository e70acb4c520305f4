"""Two models on the same splits: is one better than the other? Another null than "does it beat its control?"."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import t as student

from .errors import InputError
from .significance import Interval

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


def corrected_variance_factor(n_splits: int, n_train: int, n_test: int) -> float:
    """1/J + n_test/n_train: what the variance over J overlapping random splits is multiplied by.

    Source: Nadeau & Bengio 2003, eq. 8 and sec. 4.
    """
    return 1.0 / n_splits + n_test / n_train


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

    Raises
    ------
    InputError
        Fewer than two splits.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise InputError(f"`differences` must hold at least two splits; got shape {d.shape}. Run with more `splits`.")
    j, mean, variance = len(d), float(d.mean()), float(d.var(ddof=1))
    naive = float(np.sqrt(variance / j))
    se = float(np.sqrt(corrected_variance_factor(j, n_train, n_test) * variance))
    if se <= 1e-15 * max(1.0, abs(mean)):  # all differences equal: no spread to judge by
        same = abs(mean) <= 1e-15
        return CorrectedTTest(mean, naive, se, 0.0 if same else float(np.copysign(np.inf, mean)), 1.0 if same else 0.0,
                              mean, mean, j)
    half = float(student.ppf(0.5 + level / 2, j - 1)) * se
    return CorrectedTTest(mean, naive, se, mean / se, float(2 * student.sf(abs(mean / se), j - 1)), mean - half, mean + half, j)


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

        T(e) = | mean_c e_c d_c |,  e_c = +-1        p = (1 + #{T(e) >= T(1)}) / (1 + flips)

    With at most 17 classes that differ, all 2^C patterns are enumerated and p is exact. Classes that do not
    differ never change T and are carried along.

    Parameters
    ----------
    differences : float (C,)
        Difference of each tested class, averaged over the splits that tested it.
    """
    d = np.asarray(differences, np.float64)
    d = d[np.isfinite(d)]
    if len(d) < 2:
        raise InputError(f"`differences` must hold at least two classes; got {len(d)}.")
    mean = float(d.mean())
    moving = d[d != 0]
    if not len(moving):
        return SignFlipTest(mean, 1.0, len(d), 1, True)
    observed = abs(moving.sum())
    threshold = observed - 1e-12 * np.abs(moving).sum()
    if len(moving) <= ENUMERATE_UP_TO:
        patterns = np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1
        sums = np.abs((2.0 * patterns - 1.0) @ moving)
        return SignFlipTest(mean, float(np.mean(sums >= threshold)), len(d), len(sums), True)
    rng = np.random.default_rng(0) if rng is None else rng
    count = 0
    for at in range(0, flips, 4096):
        signs = rng.integers(0, 2, size=(min(4096, flips - at), len(moving))) * 2.0 - 1.0
        count += int(np.sum(np.abs(signs @ moving) >= threshold))
    return SignFlipTest(mean, (1 + count) / (1 + flips), len(d), flips, False)


@dataclass(frozen=True)
class Comparison:
    """Two pairs of a run (or of two runs) that share splits.

    Attributes
    ----------
    first, second : str
    statistic : str
    value_first, value_second : float
    t_test : CorrectedTTest or None
        None with a single split.
    sign_flip : SignFlipTest or None
        None when no per-class outcomes were stored.
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


def compare(first: str, second: str, statistic: str, splits_first: np.ndarray, splits_second: np.ndarray,
            n_train: int, n_test: int, classes_first: np.ndarray | None = None, classes_second: np.ndarray | None = None,
            rng: np.random.Generator | None = None) -> Comparison:
    """Compare two models on the same splits.

    Parameters
    ----------
    splits_first, splits_second : float (J,)
        The observed statistic of each split, seeds averaged; larger is better.
    classes_first, classes_second : float (C,), optional
        The same per class (NaN where never tested).
    """
    a, b = (np.asarray(v, np.float64) for v in (splits_first, splits_second))
    if a.shape != b.shape:
        raise InputError(f"`splits_first` and `splits_second` must come from the same splits; got {a.shape} and {b.shape}.")
    t_test = nadeau_bengio_test(a - b, n_train, n_test) if len(a) > 1 else None
    flip = None
    if classes_first is not None and classes_second is not None:
        flip = sign_flip_test(np.asarray(classes_first) - np.asarray(classes_second), rng)
    return Comparison(first, second, statistic, float(a.mean()), float(b.mean()), t_test, flip)
