"""How many permutations, how large an effect: the smallest p within reach, and power by simulation."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy.special import log_ndtr

from ..errors import InputError


def smallest_pvalue(permutations: int) -> float:
    """1/(1 + B): what no permutation test with B permutations can go below.

    Examples
    --------
    >>> smallest_pvalue(999)
    0.001
    """
    if permutations < 1:
        raise InputError(f"`permutations` must be at least 1; got {permutations!r}.")
    return 1.0 / (1 + permutations)


def permutations_for(pvalue: float) -> int:
    """The fewest permutations with which `pvalue` can be reached.

    Examples
    --------
    >>> permutations_for(0.001)
    999
    """
    if not 0 < pvalue < 1:
        raise InputError(f"`pvalue` must lie between 0 and 1; got {pvalue!r}.")
    return max(ceil(1 / pvalue - 1e-9) - 1, 1)


@dataclass(frozen=True)
class Power:
    """Result of `simulate_power`.

    Attributes
    ----------
    power : float
        Share of simulated studies with p at or below alpha.
    standard_error : float
        Of the simulation.
    effect : float
        Observed minus null mean, in the statistic's unit.
    null_sd : float
    alpha : float
    permutations, n_tests : int
    """

    power: float
    standard_error: float
    effect: float
    null_sd: float
    alpha: float
    permutations: int
    n_tests: int


def simulate_power(
    effect: float,
    null_sd: float,
    permutations: int,
    alpha: float = 0.05,
    n_tests: int = 1,
    studies: int = 20_000,
    rng: np.random.Generator | None = None,
) -> Power:
    """Power of the permutation test for a given effect, adjusted for `n_tests` tests by single-step max-T.

        z ~ N(effect / null_sd, 1)       q = 1 - Phi(z)^m       x ~ Bin(B, q)       power = P((x + 1)/(B + 1) <= alpha)

    A replicate of the best of m independent null tests exceeds z with probability q; correlated tests have more
    power than that. The null is taken as Gaussian, and the observed run as variable as a permuted one.

    Parameters
    ----------
    effect : float
        Expected observed value minus the null mean.
    null_sd : float
        Standard deviation of a replicate (`fastprobe plan` measures it).
    permutations : int
        B.
    n_tests : int
        m, pairs in the family.
    """
    if not null_sd > 0:
        raise InputError(f"`null_sd` must be above 0; got {null_sd!r}.")
    if not 0 < alpha < 1:
        raise InputError(f"`alpha` must lie between 0 and 1; got {alpha!r}.")
    smallest_pvalue(permutations)
    rng = np.random.default_rng(0) if rng is None else rng
    z = rng.normal(effect / null_sd, 1.0, studies)
    exceeds = -np.expm1(n_tests * log_ndtr(z))
    p = (rng.binomial(permutations, np.clip(exceeds, 0.0, 1.0)) + 1) / (permutations + 1)
    power = float(np.mean(p <= alpha))
    return Power(
        power, float(np.sqrt(max(power * (1 - power), 1e-12) / studies)), float(effect), float(null_sd), alpha, permutations, n_tests
    )
