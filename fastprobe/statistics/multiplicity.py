"""Many tests at once: max-T, min-P, step-down, Holm, Benjamini-Hochberg, and the best of several layers.

Every function takes ``t``, float (m, B+1): one row per test, column 0 the observed run, columns 1 ... B the
permutations, larger is better. Column b of every row comes from the *same* permutation, which keeps the
dependence between the tests and makes max-T sharper than Bonferroni.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .significance import TOLERANCE, counted_pvalue, max_t_pvalues, studentise


def check_replicates(t: np.ndarray) -> np.ndarray:
    """`t` as float64 (m, B+1).

    Raises
    ------
    InputError
        Another shape, no permutation, NaN.
    """
    t = np.asarray(t, np.float64)
    if t.ndim != 2 or t.shape[0] == 0 or t.shape[1] < 2:
        raise InputError(
            f"`t` must have shape (tests, B+1) with at least one test and one permutation; got {t.shape}. "
            "Run with `permutations` of at least 1."
        )
    if not np.isfinite(t).all():
        row = int(np.flatnonzero(~np.isfinite(t).all(axis=1))[0])
        raise InputError(f"`t` must be finite; test {row} has NaN or infinite replicates.")
    return t


def add_one_pvalues(t: np.ndarray) -> np.ndarray:
    """Unadjusted p of each test, float64 (m,):  p_j = (1 + #{b >= 1 : T_jb >= T_j0}) / (1 + B)."""
    return np.array([counted_pvalue(row[0], row[1:]) for row in check_replicates(t)])


def max_t(t: np.ndarray, studentised: bool = True) -> np.ndarray:
    """`significance.max_t_pvalues` of checked replicates: p adjusted for every test of the family.

    Controls the family-wise error rate in the strong sense under subset pivotality.
    """
    return max_t_pvalues(check_replicates(t), studentised)


def step_down(t: np.ndarray, studentised: bool = True) -> np.ndarray:
    """Step-down max-T (Westfall-Young), monotone: never above single-step p, and as safe.

        order the tests z_(1)0 >= z_(2)0 >= ...
        q_(i)b = max_{k >= i} z_(k)b            p_(i) = max_{k <= i} (1 + #{b >= 1 : q_(k)b >= z_(k)0}) / (1 + B)

    Parameters
    ----------
    t : float (m, B+1)

    Returns
    -------
    float64 (m,)

    Source: Westfall & Young 1993, algorithm 4.1; Ge, Dudoit & Speed 2003, box 2.
    """
    z = studentise(check_replicates(t)) if studentised else check_replicates(t)
    order = np.argsort(-z[:, 0], kind="stable")
    successive = np.maximum.accumulate(z[order[::-1], 1:], axis=0)[::-1]
    p = [counted_pvalue(z[j, 0], q) for q, j in zip(successive, order)]
    out = np.empty(len(z))
    out[order] = np.maximum.accumulate(p)
    return out


def permutation_ranks(t: np.ndarray) -> np.ndarray:
    """Unadjusted p of every replicate among all of its test, ties up to `significance.TOLERANCE` counted.

        p_jb = #{b' = 0 ... B : T_jb' >= T_jb} / (1 + B)

    Parameters
    ----------
    t : float (m, B+1)

    Returns
    -------
    float64 (m, B+1)
        Column 0 is `add_one_pvalues`.
    """
    t = check_replicates(t)
    order = np.argsort(t, axis=1, kind="stable")
    ascending = np.take_along_axis(t, order, axis=1)
    new = np.diff(ascending, axis=1) > TOLERANCE * np.maximum(1.0, np.abs(ascending[:, 1:]))
    first = np.maximum.accumulate(np.where(np.pad(new, ((0, 0), (1, 0)), constant_values=True), np.arange(t.shape[1]), 0), axis=1)
    p = np.empty(t.shape)
    np.put_along_axis(p, order, (t.shape[1] - first) / t.shape[1], axis=1)
    return p


def min_p(t: np.ndarray, stepwise: bool = False) -> np.ndarray:
    """Min-P adjusted p of each test: every test is put on the scale of its own permutation ranks first.

        p_j = (1 + #{b >= 1 : min_i p_ib <= p_j0}) / (1 + B)            step-down: the min over tests not yet passed

    Where a test takes few values or has a long tail, its rare large standardised values swamp max-T; its ranks do not.
    The smallest p within reach is 1/(1+B) for each test, so that many tests need many permutations.

    Parameters
    ----------
    t : float (m, B+1)
    stepwise : bool
        Step-down, monotone; by default single-step.

    Returns
    -------
    float64 (m,)

    Source: Westfall & Young 1993, sec. 2.3 and algorithm 2.8; Ge, Dudoit & Speed 2003, box 3.
    """
    ranks = -permutation_ranks(t)
    return step_down(ranks, studentised=False) if stepwise else max_t(ranks, studentised=False)


def weak_max_t(t: np.ndarray) -> dict[int, str]:
    """For which tests the null is so sparse or skewed that max-T is weak for the whole family.

        sparse: more than half of the replicates share one value            skewed: mean((T - mean)^3) / sd^3 > 2

    Rare large standardised values of such a test raise the maximum that every other test is compared with.

    Parameters
    ----------
    t : float (m, B+1)

    Returns
    -------
    dict of int to str
        Row of the test and the reason in plain words; empty with a single test.
    """
    t = check_replicates(t)
    reasons: dict[int, str] = {}
    if len(t) < 2:
        return reasons
    skewness = (studentise(t[:, 1:]) ** 3).mean(axis=1)
    for j, null in enumerate(t[:, 1:]):
        share = np.unique(null, return_counts=True)[1].max() / len(null)
        if share == 1.0:  # A test that never varies has z = 0 and raises no maximum.
            continue
        if share > 0.5:
            reasons[j] = f"sparse: {share:.0%} of its permutations give one and the same value; max-T is weak beside it, use min-P"
        elif skewness[j] > 2:
            reasons[j] = f"skewed: its permutations have skewness {skewness[j]:.1f} (above 2); max-T is weak beside it, use min-P"
    return reasons


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p (family-wise error, any dependence), float64 (m,).

        p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))    p_(1) <= ... <= p_(m)

    Source: Holm 1979. Written out, and tested against statsmodels, because that takes a second to import.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order, m = np.argsort(p, kind="stable"), len(p)
    out = np.empty(m)
    out[order] = np.minimum(np.maximum.accumulate((m - np.arange(m)) * p[order]), 1)
    return out


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg's adjusted p (false discovery rate), float64 (m,).

        p~_(i) = min_{j >= i} min(1, m p_(j) / j)    p_(1) <= ... <= p_(m)

    Source: Benjamini & Hochberg 1995.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p, np.float64)
    order, m = np.argsort(p, kind="stable"), len(p)
    out = np.empty(m)
    out[order] = np.minimum(np.minimum.accumulate((p[order] / (np.arange(1, m + 1) / m))[::-1])[::-1], 1)
    return out


def best_of(t: np.ndarray, groups: Sequence) -> tuple[list, np.ndarray, np.ndarray]:
    """The best test of each group, chosen anew inside *every* replicate.

        M_gb = max_{j in g} z_jb            b = 0 ... B

    "The best layer has p = ..." is honest only if the permuted runs also get to choose their best layer.

    Parameters
    ----------
    t : float (m, B+1)
    groups : sequence (m,)
        Group of each test (for instance the model whose layers are tested).

    Returns
    -------
    names : list
        The groups, in order of first appearance.
    winners : int64 (g,)
        The test that is best in the observed run.
    maxima : float64 (g, B+1)
        Ready for `max_t` or `step_down` over the groups.
    """
    z = studentise(check_replicates(t))
    if len(groups) != len(z):
        raise InputError(f"`groups` must name the group of each of the {len(z)} tests; got {len(groups)} names.")
    names = list(dict.fromkeys(groups))
    members = [np.array([j for j, g in enumerate(groups) if g == name]) for name in names]
    winners = np.array([rows[np.argmax(z[rows, 0])] for rows in members])
    return names, winners, np.stack([z[rows].max(axis=0) for rows in members])


@dataclass(frozen=True, eq=False)
class Family:
    """Tests adjusted together.

    Attributes
    ----------
    name : str
        What the claim ranges over, for instance "all pairs".
    members : tuple of str
    pvalue, single_step, step_down, holm, bh : float64 (m,)
        Unadjusted add-one p, and the four adjustments.
    n_permutations : int
    """

    name: str
    members: tuple[str, ...]
    pvalue: np.ndarray
    single_step: np.ndarray
    step_down: np.ndarray
    holm: np.ndarray
    bh: np.ndarray
    n_permutations: int

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "n_tests": len(self.members),
            "n_permutations": self.n_permutations,
            "tests": [
                {
                    "test": m,
                    "pvalue": float(p),
                    "pvalue_maxT": float(s),
                    "pvalue_stepdown": float(d),
                    "pvalue_holm": float(h),
                    "pvalue_bh": float(b),
                }
                for m, p, s, d, h, b in zip(self.members, self.pvalue, self.single_step, self.step_down, self.holm, self.bh)
            ],
        }


def family(name: str, members: Sequence[str], t: np.ndarray, pvalue: np.ndarray | None = None) -> Family:
    """Adjust the tests of one family in every way.

    Parameters
    ----------
    name : str
    members : sequence of str (m,)
    t : float (m, B+1)
    pvalue : float (m,), optional
        Unadjusted p, when counted elsewhere on exact integers; else counted here.
    """
    t = check_replicates(t)
    if len(members) != len(t):
        raise InputError(f"`members` must name each of the {len(t)} tests; got {len(members)} names.")
    p = add_one_pvalues(t) if pvalue is None else np.asarray(pvalue, np.float64)
    return Family(name, tuple(members), p, max_t(t), step_down(t), holm(p), benjamini_hochberg(p), t.shape[1] - 1)
