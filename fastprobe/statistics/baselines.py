"""Does a model beat the best of its baselines? Another question than whether it beats its own null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .comparison import nadeau_bengio_test
from .significance import counted_pvalue

LEVEL = 0.05


@dataclass(frozen=True)
class BaselineTest:
    """A model against its baselines: true in a condition where it beats them all.

    Attributes
    ----------
    baseline : str
        The best of them in the observed run.
    difference : float
        T_0 of the model minus that of `baseline`, turned so that above 0 the model is better.
    pvalue : float
        One-sided; the largest of all baselines, for each the larger of the two below. NaN where there is nothing to judge by.
    pvalue_splits, pvalue_permutations : float
        Over splits, and over permutations; the largest of all baselines. NaN where it cannot be had.
    words : str
        What the best baseline knows: "the spelling does".
    """

    baseline: str
    difference: float
    pvalue: float
    pvalue_splits: float
    pvalue_permutations: float
    words: str = "the baseline does"

    def __bool__(self) -> bool:
        return bool(self.pvalue <= LEVEL)


def beats_baselines(
    model: np.ndarray,
    baselines: np.ndarray,
    model_splits: np.ndarray,
    baseline_splits: np.ndarray,
    names: Sequence[str],
    n_train: int,
    n_test: int,
    words: Sequence[str] = (),
) -> BaselineTest:
    """Test whether a model is better than every baseline, paired over splits and over permutations.

        d_gs = T_s - T_gs                 p_g,splits: corrected resampled t of d_g, one-sided
        D_gb = T_b - T_gb                 p_g,permutations = (1 + #{b >= 1 : D_gb >= D_g0}) / (1 + B)
        p = max over g of max(p_g,splits, p_g,permutations)

    The permutations alone test that *neither* carries over, and the splits alone do not know how far a difference goes by
    chance pairings; a claim needs both. The largest p over baselines is valid for "better than all" and does not pay for
    which of them is the best (Berger 1982).

    Parameters
    ----------
    model, baselines : float (B+1,), (G, B+1)
        Replicates, column 0 observed, larger is better; column b is the same permutation for all.
    model_splits, baseline_splits : float (J,), (G, J)
        Observed value of each split, larger is better; NaN for similarities, which have none.
    names : sequence of str (G,)
    words : sequence of str (G,), optional
        What each baseline knows, for `BaselineTest.words`.

    Raises
    ------
    InputError
        No baseline, or shapes that differ.

    Examples
    --------
    >>> null = np.random.default_rng(0).normal(0.05, 0.01, (2, 99))
    >>> model, spelling = np.r_[0.30, null[0]], np.r_[0.10, null[1]]
    >>> test = beats_baselines(model, spelling[None], [0.28, 0.31, 0.31], [[0.1, 0.11, 0.09]], ["spelling"], n_train=70, n_test=30)
    >>> test.baseline, round(test.difference, 2), bool(test)
    ('spelling', 0.2, True)
    """
    t, g = np.asarray(model, np.float64), np.asarray(baselines, np.float64)
    s, gs = np.asarray(model_splits, np.float64), np.asarray(baseline_splits, np.float64)
    if g.ndim != 2 or not len(g) or g.shape[1:] != t.shape or gs.shape != (len(g), *s.shape) or len(names) != len(g):
        raise InputError(
            f"`baselines` must hold at least one row, with the permutations and splits of `model`; got {t.shape} and {g.shape}, "
            f"{s.shape} and {gs.shape}, {len(names)} names."
        )
    best = int(g[:, 0].argmax())
    gaps = t - g
    by_permutation = max(counted_pvalue(row[0], row[1:]) for row in gaps) if len(t) > 1 else float("nan")
    splits = len(s) > 1 and bool(np.isfinite(s).all() and np.isfinite(gs).all())
    by_split = max((_one_sided(s - row, n_train, n_test) for row in gs), key=_nan_last) if splits else float("nan")
    judged = [by_permutation] * (len(t) > 1) + [by_split] * splits
    return BaselineTest(
        names[best],
        float(gaps[best, 0]),
        max(judged, key=_nan_last) if judged else float("nan"),
        by_split,
        by_permutation,
        *([words[best]] if len(words) else []),
    )


def _nan_last(p: float) -> float:
    """A p that cannot be had is no evidence: it counts as the largest."""
    return p if np.isfinite(p) else 2.0


def _one_sided(differences: np.ndarray, n_train: int, n_test: int) -> float:
    test = nadeau_bengio_test(differences, n_train, n_test)
    if not np.isfinite(test.pvalue):
        return float("nan")
    return test.pvalue / 2 if test.mean > 0 else 1 - test.pvalue / 2


def verdict(pvalue: float, beats: bool | None = None, words: str = "", level: float = LEVEL) -> str:
    """The answer in words, from the adjusted p of a pair and what came of its baselines.

    Parameters
    ----------
    beats : bool, optional
        Whether the model beats its best baseline; None where there is none.
    words : str
        What that baseline knows.

    Examples
    --------
    >>> verdict(0.01, False, "the spelling does")
    'the geometry carries over, but no more than the spelling does'
    >>> verdict(0.2)
    'no evidence that the geometry carries over'
    """
    if not pvalue <= level:
        return "no evidence that the geometry carries over"
    if beats is None:
        return "the geometry carries over"
    return f"the geometry carries over, {'and further' if beats else 'but no more'} than {words}"
