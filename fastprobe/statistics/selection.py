"""The best of several configurations, chosen so that the choice is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .multiplicity import Family, best_of, family


@dataclass(frozen=True, eq=False)
class BestConfiguration:
    """The best configuration of each pair, and what its claim is worth.

    Attributes
    ----------
    family : Family
        One test per pair, of the studentised maximum taken inside every replicate; max-T and Holm over the pairs.
    chosen : int64 (pairs,)
        Row of `t` that is best in the observed run.
    maxima : float64 (pairs, B+1)
        The studentised maximum of each replicate.
    """

    family: Family
    chosen: np.ndarray
    maxima: np.ndarray


def best_configuration(t: np.ndarray, groups: Sequence[str], name: str = "best configuration") -> BestConfiguration:
    """Test each pair by its best configuration, chosen anew inside *every* replicate.

        M_gb = max_{j in g} (T_jb - mean_j) / sd_j        p_g = (1 + #{b >= 1 : M_gb >= M_g0}) / (1 + B)

    Parameters
    ----------
    t : float (cells, B+1)
        Replicates, column 0 observed, larger is better; column b is the same permutation for every cell.
    groups : sequence of str (cells,)
        The pair each cell belongs to.
    name : str
        Name of the family.

    Raises
    ------
    InputError
        NaN, a wrong shape, or another number of `groups` than cells.

    Source: Westfall & Young 1993, sec. 2.3.
    """
    names, winners, maxima = best_of(t, groups)
    return BestConfiguration(family(name, names, maxima), winners, maxima)


def nested_choice(inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replicates of a configuration chosen on inner splits and judged on outer ones, one choice per replicate.

        k_b = argmax_k mean_s inner_ksb        T_b = mean_s outer_(k_b)sb

    The first of equals is chosen. The outer test classes take no part in the choice, so T_0 is not inflated by it.

    Parameters
    ----------
    inner : float (cells, splits, B+1)
        Scores on a split of the train classes, larger is better; column 0 observed.
    outer : float (cells, splits, B+1)
        Scores on the test classes, under the same permutations.

    Returns
    -------
    chosen : int64 (B+1,)
        Configuration of each replicate.
    replicates : float64 (B+1,)
        Ready for `significance.counted_pvalue` and, stacked over pairs, `multiplicity.family`.

    Raises
    ------
    InputError
        Shapes that differ or are empty, or NaN.
    """
    inner, outer = np.asarray(inner, np.float64), np.asarray(outer, np.float64)
    if inner.ndim != 3 or inner.shape != outer.shape or inner.size == 0 or inner.shape[2] < 2:
        raise InputError(
            "`inner` and `outer` must both have shape (cells, splits, B+1) with at least one permutation; "
            f"got {inner.shape} and {outer.shape}. Give scores of the same splits and permutations."
        )
    for label, scores in (("inner", inner), ("outer", outer)):
        if not (finite := np.isfinite(scores).all(axis=(1, 2))).all():
            raise InputError(f"`{label}` must be finite; cell {int(np.argmin(finite))} has NaN or infinite scores. Leave that cell out.")
    chosen = inner.mean(axis=1).argmax(axis=0)
    return chosen, outer.mean(axis=1)[chosen, np.arange(inner.shape[2])]
