"""From replicates to p-values. Arrays in, frozen results out; nothing here reads a file.

Sources: Phipson & Smyth 2010 (the add-one p), Hemerik & Goeman arXiv 1411.7565 (uniform permutations, identity
included), Clopper & Pearson 1934, Nadeau & Bengio 2003 (overlapping splits), Westfall & Young 1993 (max-T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import inf, log, log1p
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from .baselines import BaselineTest

# Two replicates of equal hits may differ in the last bits of their averages; anything nearer than this
# (relative to the larger of 1 and the observed value) counts as a tie, and ties count against us.
TOLERANCE = 1e-10


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def exceedances(observed: float, null: np.ndarray) -> int:
    """#{b : T_b >= T_0}, with ties up to TOLERANCE counted. Larger is better; negate otherwise."""
    return int(np.sum(null >= observed - TOLERANCE * max(1.0, abs(observed))))


def add_one_pvalue(n_exceed: int, n_permutations: int) -> float:
    """p = (1 + #{b >= 1 : T_b >= T_0}) / (1 + B) (Phipson & Smyth 2010). Never 0.

    Examples
    --------
    >>> add_one_pvalue(0, 99)
    0.01
    """
    return (1 + n_exceed) / (1 + n_permutations)


def counted_pvalue(observed: float, null: np.ndarray) -> float:
    """`add_one_pvalue` of an observed value against its permutations, float (B,).

    Examples
    --------
    >>> counted_pvalue(0.5, np.array([0.1, 0.5, 0.3, 0.2]))  # the tie counts
    0.4
    """
    return add_one_pvalue(exceedances(observed, null), len(null))


def pvalue_interval(n_exceed: int, n_permutations: int, confidence_level: float = 0.95) -> Interval:
    """Clopper-Pearson interval for the chance that a permutation reaches the observed value, B fixed.

        [I^-1(alpha/2; x, B-x+1), I^-1(1-alpha/2; x+1, B-x)]    I the regularised incomplete beta function

    Examples
    --------
    >>> low, high = pvalue_interval(3, 999)
    >>> round(low, 4), round(high, 4)
    (0.0006, 0.0088)
    """
    if n_permutations == 0:
        return Interval(0.0, 1.0)
    x, n, tail = n_exceed, n_permutations, (1 - confidence_level) / 2
    low = betaincinv(x, n - x + 1, tail) if x else 0.0
    high = betaincinv(x + 1, n - x, 1 - tail) if x < n else 1.0
    return Interval(float(low), float(high))


def confidence_sequence(n_exceed: int, n_permutations: int, confidence_level: float = 0.95) -> Interval:
    """Interval on the limiting p that holds at *every* moment, hence after an optional stop.

        {p : (t+1) C(t, x) p^x (1-p)^(t-x) > 1 - confidence_level}

    Somewhat wider than Clopper-Pearson, which is wrong when the data chose the moment to stop.

    Parameters
    ----------
    n_exceed, n_permutations : int
        x and t when it is looked at.

    Source: Robbins 1970; for Monte-Carlo tests Gandy 2009, Ding, Gandy & Hahn 2020.
    """
    x, t = n_exceed, n_permutations
    if t == 0:
        return Interval(0.0, 1.0)

    from scipy.optimize import brentq
    from scipy.special import betaln

    constant = -float(betaln(x + 1, t - x + 1)) - log(1 - confidence_level)

    def excess(p: float) -> float:
        if (x and p <= 0) or (t > x and p >= 1):
            return -inf
        return constant + (x * log(p) if x else 0.0) + ((t - x) * log1p(-p) if t > x else 0.0)

    mode = x / t
    low = 0.0 if x == 0 else brentq(excess, 1e-300, mode, xtol=1e-12)
    high = 1.0 if x == t else brentq(excess, mode, 1 - 1e-16, xtol=1e-12)
    return Interval(float(low), float(high))


def corrected_variance_factor(n_splits: int, n_train: int, n_test: int) -> float:
    """1/J + n_test/n_train: what the variance over J overlapping random splits is multiplied by.

    Source: Nadeau & Bengio 2003, eq. 8 and sec. 4.

    Examples
    --------
    >>> round(corrected_variance_factor(5, 101, 43), 3)  # 1/5 if splits were independent
    0.626
    """
    return 1.0 / n_splits + n_test / n_train


def standard_errors(per_split: np.ndarray, n_train: int, n_test: int) -> tuple[float, float]:
    """Standard error of the mean over J splits, naive and corrected for their overlap.

        naive = S / sqrt(J)        corrected = S sqrt(1/J + n_test/n_train)      (Nadeau & Bengio 2003)

    Parameters
    ----------
    per_split : float (J,)
        The statistic of each split (seeds averaged).
    n_train, n_test : int
        Classes on either side of a split.

    Returns
    -------
    (float, float)
        NaN with a single split.

    Examples
    --------
    >>> naive, corrected = standard_errors(np.array([0.1, 0.2, 0.3]), n_train=70, n_test=30)
    >>> round(float(naive), 4), round(float(corrected), 4)
    (0.0577, 0.0873)
    """
    j = len(per_split)
    if j < 2:
        return float("nan"), float("nan")
    s = float(np.std(per_split, ddof=1))
    return s / np.sqrt(j), s * np.sqrt(corrected_variance_factor(j, n_train, n_test))


def studentise(t: np.ndarray) -> np.ndarray:
    """(T - mean) / sd along the last axis, over all B+1 replicates; 0 where they do not vary."""
    mean, sd = t.mean(axis=-1, keepdims=True), t.std(axis=-1, keepdims=True)
    flat = sd <= TOLERANCE * np.maximum(1.0, np.abs(mean))
    return np.where(flat, 0.0, (t - mean) / np.where(flat, 1.0, sd))


def max_t_pvalues(t: np.ndarray, studentised: bool = True) -> np.ndarray:
    """Single-step max-T adjusted p of each pair, familywise over all of them.

        p_j = (1 + #{b >= 1 : max_i Z_ib >= Z_j0}) / (1 + B),     Z = studentised T

    Parameters
    ----------
    t : float (pairs, B+1)
        Replicates, column 0 observed, larger is better; column b is the same permutation for all pairs.
    studentised : bool
        False compares the values as they are, for tests already on one scale.

    Returns
    -------
    float64 (pairs,)

    Source: Westfall & Young 1993, sec. 2.3; Nichols & Holmes 2002.

    Examples
    --------
    >>> t = np.array([[9.0, 1, 2, 3, 2], [2.0, 1, 2, 3, 2]])
    >>> max_t_pvalues(t)
    array([0.2, 0.8])
    """
    z = studentise(t) if studentised else t
    largest = z[:, 1:].max(axis=0)
    return np.array([counted_pvalue(z0, largest) for z0 in z[:, 0]])


def null_bins(null: np.ndarray, observed: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the null in equal bins that span it and the observed value, and their edges.

    Examples
    --------
    >>> counts, edges = null_bins(np.array([0.0, 1.0, 1.0]), 4.0, 4)
    >>> counts.tolist(), edges.tolist()
    ([1, 2, 0, 0], [0.0, 1.0, 2.0, 3.0, 4.0])
    """
    low, high = min(float(null.min()), observed), max(float(null.max()), observed)
    return np.histogram(null, bins, (low, high) if high > low else (low - 0.5, high + 0.5))


@dataclass(frozen=True, eq=False, repr=False)
class PermutationTestResult:
    """A permutation test of one pair, with its evidence.

    Attributes
    ----------
    statistic : float
        The observed value T_0, averaged over splits and seeds.
    pvalue : float
        (1 + #{b : T_b at least as good}) / (1 + B).
    null_distribution : float (B,)
        The same average for each permutation of the text rows.
    metric : str
        Name of the statistic, such as "acc@3".
    text, audio : str
        The pair.
    chance : float
        Value of a uniformly random ranking (k/C for acc@k). The null mean differs from it: even with shuffled texts,
        clips land near the texts the probe was trained on, so unseen classes do worse than k/C by luck. The test uses
        the null.
    per_split : float (J,)
        The observed value of each split.
    n_train, n_test : int
        Classes on either side of a split.
    n_seeds : int
    pvalue_max_t : float
        Adjusted for all pairs of the run; equals `pvalue` when there is one pair.
    lower_is_better : bool
    drawn : {"fixed", "stopped", "all"}
        How the permutations were chosen: a number fixed beforehand, a declared rule that stopped them, or every
        distinct one. It decides which interval on p is right.
    probe : str
        Name of the probe.
    chosen_among : tuple of str
        Under a nested choice: the probes among which `probe` was chosen, anew inside every replicate, so that
        `null_distribution` may be of others. Empty otherwise.
    n_counted : int, optional
        The first permutations, which `pvalue` and its interval are counted from: in a run of several pairs under a stopping
        rule each pair has its own; by default all.
    beats_baseline : BaselineTest, optional
        Whether the model beats the best surface baseline of the run (its truth), with a p of its own. None where there is no
        baseline, and for the baselines themselves.
    """

    statistic: float
    pvalue: float
    null_distribution: np.ndarray = field(repr=False)
    metric: str
    text: str
    audio: str
    chance: float
    per_split: np.ndarray = field(repr=False)
    n_train: int
    n_test: int
    n_seeds: int
    pvalue_max_t: float
    lower_is_better: bool = False
    drawn: str = "fixed"
    n_counted: int | None = None
    probe: str = "contrastive"
    chosen_among: tuple[str, ...] = ()
    beats_baseline: BaselineTest | None = None

    def __repr__(self) -> str:
        probe = "" if self.probe == "contrastive" else f", {self.probe}"
        probe += f" (chosen among {len(self.chosen_among)})" if self.chosen_among else ""
        return (
            f"<{self.text} x {self.audio}{probe}: {self.metric} {self.statistic:.3g}, null {self.null_mean:.3g}, "
            f"p = {self.pvalue:.3g}, {self.n_permutations:,} permutations>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the record in short and a histogram of the null."""
        low, high = self.confidence_interval()
        rows = {
            "text x audio": f"{self.text} x {self.audio}",
            "probe": self.probe + (f" (chosen among {len(self.chosen_among)})" if self.chosen_among else ""),
            self.metric: f"{self.statistic:.4g} (null {self.null_mean:.4g})",
            "p": f"{self.pvalue:.3g} (95%: {low:.3g} to {high:.3g}), {self.n_permutations:,} permutations",
        }
        if self.beats_baseline is not None:
            rows["beats the best baseline"] = (
                f"{'yes' if self.beats_baseline else 'no'}: {self.beats_baseline.difference:+.3g} against "
                f"{self.beats_baseline.baseline} (p = {self.beats_baseline.pvalue:.3g})"
            )
        if self.pvalue_max_t != self.pvalue:
            rows["p, adjusted"] = f"{self.pvalue_max_t:.3g} (max-T)"
        table = "".join(f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{table}</table>{self._histogram()}"

    def _histogram(self, width: int = 320, height: int = 80) -> str:
        """The null in grey bars and the observed value as a line, as an inline SVG; nothing without permutations."""
        if self.n_permutations < 2:
            return ""
        count, edges = null_bins(self.null_distribution, self.statistic, 40)
        scale = (width - 4) / (edges[-1] - edges[0])
        bars = "".join(
            f"<rect x='{2 + scale * (a - edges[0]):.1f}' y='{height * (1 - n / count.max()):.1f}' width='{scale * (b - a):.1f}' "
            f"height='{height * n / count.max():.1f}' fill='#999'/>"
            for n, a, b in zip(count, edges, edges[1:])
            if n
        )
        x = 2 + scale * (self.statistic - edges[0])
        line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height}' stroke='#d55e00' stroke-width='2'/>"
        return f"<svg width='{width}' height='{height}' role='img' aria-label='null distribution and observed value'>{bars}{line}</svg>"

    @property
    def verdict(self) -> str:
        """The answer in words, as "the geometry carries over, but no more than the spelling does"."""
        from .baselines import verdict  # it compares results of this module

        if not self.n_permutations:
            return "no permutation was run, so nothing is tested"
        test = self.beats_baseline
        return verdict(self.pvalue_max_t) if test is None else verdict(self.pvalue_max_t, bool(test), test.words)

    @property
    def n_permutations(self) -> int:
        """B."""
        return len(self.null_distribution)

    @property
    def n_exceed(self) -> int:
        """Permutations at least as good as the observed run, of all."""
        return self._exceedances(self.n_permutations)

    def _exceedances(self, first: int) -> int:
        sign = -1.0 if self.lower_is_better else 1.0
        return exceedances(sign * self.statistic, sign * self.null_distribution[:first])

    @property
    def null_mean(self) -> float:
        """Mean of the null distribution; NaN without permutations."""
        return float(self.null_distribution.mean()) if self.n_permutations else float("nan")

    @property
    def null_sd(self) -> float:
        """Standard deviation of the null distribution (B - 1 in the denominator)."""
        return float(self.null_distribution.std(ddof=1)) if self.n_permutations > 1 else float("nan")

    def confidence_interval(self, confidence_level: float = 0.95) -> Interval:
        """Interval of the p that infinitely many permutations would give.

        Clopper-Pearson for a fixed number; a confidence sequence after a stop; p itself when all were listed.
        """
        if not 0 < confidence_level < 1:
            raise InputError(f"`confidence_level` must lie between 0 and 1; got {confidence_level!r}.")
        if self.drawn == "all":
            return Interval(self.pvalue, self.pvalue)
        if self.drawn == "stopped":
            n = self.n_permutations if self.n_counted is None else self.n_counted
            return confidence_sequence(self._exceedances(n), n, confidence_level)
        return pvalue_interval(self.n_exceed, self.n_permutations, confidence_level)

    def to_dict(self) -> dict[str, Any]:
        """The record of summary.json."""
        sem, corrected = standard_errors(self.per_split, self.n_train, self.n_test)
        low, high = self.confidence_interval()
        return {
            "text": self.text,
            "audio": self.audio,
            "probe": self.probe,
            "metric": self.metric,
            "statistic": self.statistic,
            "null_mean": self.null_mean,
            "null_sd": self.null_sd,
            "sem": sem,
            "sem_corrected": corrected,
            "chance": self.chance,
            "pvalue": self.pvalue,
            "pvalue_low": low,
            "pvalue_high": high,
            "pvalue_maxT": self.pvalue_max_t,
            "n_permutations": self.n_permutations,
            "n_splits": len(self.per_split),
            "n_seeds": self.n_seeds,
            "n_train_classes": self.n_train,
            "n_test_classes": self.n_test,
            **self._against_baseline(),
        }

    def _against_baseline(self) -> dict[str, Any]:
        """What the record says of the baselines; nothing where there are none."""
        test = self.beats_baseline
        if test is None:
            return {}
        return {
            "beats_baseline": bool(test),
            "pvalue_baseline": test.pvalue,
            "pvalue_baseline_splits": test.pvalue_splits,
            "pvalue_baseline_permutations": test.pvalue_permutations,
            "baseline": test.baseline,
            "baseline_difference": test.difference,
            "baseline_words": test.words,
        }

    def to_frame(self) -> pd.DataFrame:
        """The record of `to_dict` as a frame of one row, with the columns of summary.csv."""
        import pandas as pd

        return pd.DataFrame([self.to_dict()])

    def plot(self, ax=None):
        """Histogram of the null with the observed value, the null mean and chance.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Drawn into; a new figure otherwise.

        Returns
        -------
        matplotlib Axes
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
        ax.hist(self.null_distribution, bins="auto", color="#999999", label=f"null ({self.n_permutations:,} permutations)")
        ax.axvline(self.statistic, color="#D55E00", lw=2, label=f"observed {self.statistic:.3g}")
        ax.axvline(self.null_mean, color="#333333", lw=1, ls="--", label=f"null mean {self.null_mean:.3g}")
        if np.isfinite(self.chance):
            ax.axvline(self.chance, color="#0072B2", lw=1, ls=":", label=f"chance {self.chance:.3g}")
        ax.set(xlabel=f"{self.metric}, unseen classes", ylabel="permutations", title=f"{self.text} x {self.audio}: p = {self.pvalue:.2g}")
        ax.legend(frameon=False, fontsize="small")
        return ax


def analyse_pairs(
    replicates: np.ndarray,
    per_split: np.ndarray,
    names: Sequence[tuple[str, str, str]],
    *,
    metrics: Sequence[str],
    chances: Sequence[float],
    lower_is_better: Sequence[bool],
    n_train: int,
    n_test: int,
    n_seeds: int,
) -> list[PermutationTestResult]:
    """Test every pair of a run against its own null, and all of them together.

    Parameters
    ----------
    replicates : float (pairs, B+1)
        T_b of every pair; column 0 is observed.
    per_split : float (pairs, J)
        Observed value of each split.
    names : sequence of (text, audio, probe)
    metrics, chances, lower_is_better : sequence
        Of every cell.
    """
    if not np.isfinite(replicates).all():
        raise InputError("some replicates are not finite: the training diverged. Lower `lr` or raise `temperature`.")
    oriented = np.where(np.array(lower_is_better)[:, None], -replicates, replicates)
    p = [counted_pvalue(row[0], row[1:]) for row in oriented]
    adjusted = p if len(p) == 1 else max_t_pvalues(oriented)
    return [
        PermutationTestResult(
            statistic=float(t[0]),
            pvalue=float(p[i]),
            null_distribution=t[1:].copy(),
            metric=metrics[i],
            text=names[i][0],
            audio=names[i][1],
            probe=names[i][2],
            chance=chances[i],
            per_split=per_split[i],
            n_train=n_train,
            n_test=n_test,
            n_seeds=n_seeds,
            pvalue_max_t=float(adjusted[i]),
            lower_is_better=lower_is_better[i],
        )
        for i, t in enumerate(replicates)
    ]
