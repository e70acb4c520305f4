"""Stopping a permutation test early without spoiling its p: rules declared before the first permutation.

    besag-clifford:h=10       stop at the h-th exceedance;         p = h/t            (Besag & Clifford 1991)
    anytime:alpha=0.05        stop when the decision is made;      p_t valid at every t (Fischer & Ramdas, arXiv 2401.07365)

An exceedance is a permuted statistic at or above the observed one. The order is that of the permutation
numbers, so the stop does not depend on batches, devices or resumption: replicates that were trained beyond it
are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import betainc, betaincinv

from ..errors import InputError
from .significance import TOLERANCE

# The share of alpha up to which the mixture bets; 0.9 leaves it room to reach 1/alpha (arXiv 2401.07365).
MIXTURE = 0.9


@dataclass(frozen=True)
class StopRule:
    """When a run of permutations may end.

    Attributes
    ----------
    name : {"besag-clifford", "anytime"}
    h : int
        Exceedances to wait for (besag-clifford).
    alpha : float
        Level of the decision (anytime).
    burn_in : int
        With several pairs: the first permutations, which only set the scale of each pair for max-T and are
        not counted; at most half of those that may be run.
    """

    name: str
    h: int = 10
    alpha: float = 0.05
    burn_in: int = 100

    def __post_init__(self) -> None:
        if self.name not in ("besag-clifford", "anytime"):
            raise InputError(f"`stop` must be besag-clifford:h=N or anytime:alpha=A; got {self.name!r}.")
        if isinstance(self.h, bool) or not isinstance(self.h, int) or self.h < 1:
            raise InputError(f"`stop`: h must be a whole number of at least 1; got {self.h!r}.")
        if not isinstance(self.alpha, float) or not 0 < self.alpha < 1:
            raise InputError(f"`stop`: alpha must lie between 0 and 1; got {self.alpha!r}.")
        if isinstance(self.burn_in, bool) or not isinstance(self.burn_in, int) or self.burn_in < 2:
            raise InputError(f"`stop`: burn_in must be a whole number of at least 2; got {self.burn_in!r}.")

    def __str__(self) -> str:
        own = f"h={self.h}" if self.name == "besag-clifford" else f"alpha={self.alpha:g}"
        return f"{self.name}:{own},burn_in={self.burn_in}"

    @property
    def pvalue_rule(self) -> str:
        """What p is under this rule, for summary.json."""
        if self.name == "besag-clifford":
            return (
                f"{self.h}/t when permutation t is exceedance {self.h}, (1 + exceedances)/(1 + B) when none is; an exceedance is "
                "T_b >= T_0, ties count against (Besag & Clifford 1991)"
            )
        return "anytime-valid, from exceedances T_b >= T_0 in the order of b, ties count against (Fischer & Ramdas, arXiv 2401.07365)"


def parse_stop(text: str) -> StopRule:
    """The rule that ``--stop`` names, for instance "besag-clifford:h=10" or "anytime:alpha=0.05,burn_in=200".

    Raises
    ------
    InputError
        An unknown rule or setting, or a value out of range.

    Examples
    --------
    >>> parse_stop("besag-clifford:h=10").h
    10
    """
    name, _, rest = text.strip().partition(":")
    rules: dict[str, dict[str, Callable[[str], Any]]] = {
        "besag-clifford": {"h": int, "burn_in": int},
        "anytime": {"alpha": float, "burn_in": int},
    }
    allowed = rules.get(name)
    if allowed is None:
        raise InputError(f"`stop` must be besag-clifford:h=N or anytime:alpha=A; got {text!r}.")
    settings: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        found = re.fullmatch(r"([\w-]+)\s*=\s*(\S+)", item)
        key = found.group(1).replace("-", "_") if found else ""
        if found is None or key not in allowed:
            raise InputError(f"`stop`: {name} takes {', '.join(allowed)}; got {item!r}.")
        try:
            settings[key] = allowed[key](found.group(2))
        except ValueError:
            raise InputError(f"`stop`: {key} must be a number; got {found.group(2)!r}.") from None
    return StopRule(name, **settings)


def besag_clifford_pvalue(exceedances: int, permutations: int, h: int, limit: int | None = None) -> float:
    """p of a Besag-Clifford run:  h/t at the h-th exceedance, (x+1)/(B+1) at the end, h/(t+h-x) at any other moment.

    The last is the largest h/t' that going on could still give (all further permutations exceed), so it is
    valid whenever one looks (Fischer & Ramdas, arXiv 2401.07365).

    Parameters
    ----------
    exceedances : int
        x, of them the last was the one that stopped the run when x = h.
    permutations : int
        t, permutations counted (the observed run not among them).
    limit : int, optional
        B, fixed beforehand; None when the run could have gone on.

    Examples
    --------
    >>> besag_clifford_pvalue(10, 40, h=10)
    0.25
    """
    if exceedances < h and permutations == limit:
        return (exceedances + 1) / (permutations + 1)
    return h / (permutations + h - exceedances)


def mixture_wealth(exceedances, permutations, c: float) -> np.ndarray:
    """Wealth of the binomial-mixture bet: a test martingale under exchangeability, so P(ever >= 1/a) <= a.

        W_t = (t+1) C(t, x) (1/c) int_0^c u^x (1-u)^(t-x) du = P(Bin(t+1, c) > x) / c

    Parameters
    ----------
    exceedances, permutations : int or int (n,)
        x and t.
    c : float
        Bets on any p in [0, c].
    """
    x, t = np.asarray(exceedances), np.asarray(permutations)
    return betainc(x + 1.0, t - x + 1.0, c) / c


def anytime_pvalue(exceedances, permutations) -> np.ndarray:
    """p from x exceedances among t permutations, were it looked at only now; its running minimum is valid at any time.

        p_t = inf{a : W_t with c = g a reaches 1/a} = Q_g / g,     g = 0.9,
        Q_g the g-quantile of Beta(x + 1, t - x + 1)

    For each a, {p_t <= a for some t} is {W ever reaches 1/a}, of probability at most a by Ville's inequality.

    Examples
    --------
    >>> round(float(anytime_pvalue(0, 99)), 4)
    0.0253
    """
    x, t = np.asarray(exceedances), np.asarray(permutations)
    return np.minimum(betaincinv(x + 1.0, t - x + 1.0, MIXTURE) / MIXTURE, 1.0)


@dataclass
class SequentialTest:
    """One test under one rule: feed exceedances in order, read the decision and the p.

    Attributes
    ----------
    rule : StopRule
    limit : int or None
        The most permutations there will be, fixed beforehand.
    permutations, exceedances : int
        t and x so far; frozen once decided.
    decision : {None, "reject", "accept", "enough"}
        None while undecided. ``reject``: p <= alpha, for good. ``accept``: the wealth fell below alpha, so that
        rejecting later is out of practical reach. ``enough``: h exceedances seen.
    """

    rule: StopRule
    limit: int | None = None
    permutations: int = 0
    exceedances: int = 0
    decision: str | None = None
    _best: float = field(default=1.0, repr=False)

    @property
    def done(self) -> bool:
        """Whether the rule has fired."""
        return self.decision is not None

    @property
    def pvalue(self) -> float:
        """Valid p at this moment. Never 0; 1 before the first permutation."""
        if self.permutations == 0:
            return 1.0
        if self.rule.name == "anytime":
            return self._best
        return besag_clifford_pvalue(self.exceedances, self.permutations, self.rule.h, self.limit)

    def update(self, exceeds: np.ndarray) -> int:
        """Take replicates in order until the rule fires.

        Parameters
        ----------
        exceeds : bool (n,)

        Returns
        -------
        int
            How many of them were used.
        """
        exceeds = np.asarray(exceeds, bool)
        if self.done or not len(exceeds):
            return 0
        x = self.exceedances + np.cumsum(exceeds)
        t = self.permutations + np.arange(1, len(exceeds) + 1)
        if self.rule.name == "besag-clifford":
            fires = np.flatnonzero(x >= self.rule.h)
            used = int(fires[0]) + 1 if len(fires) else len(exceeds)
            self.decision = "enough" if len(fires) else None
        else:
            p = anytime_pvalue(x, t)
            reject = p <= self.rule.alpha
            futile = mixture_wealth(x, t, MIXTURE * self.rule.alpha) < self.rule.alpha
            fires = np.flatnonzero(reject | futile)
            used = int(fires[0]) + 1 if len(fires) else len(exceeds)
            self._best = min(self._best, float(p[:used].min()))
            if len(fires):
                self.decision = "reject" if reject[used - 1] else "accept"
        self.permutations, self.exceedances = int(t[used - 1]), int(x[used - 1])
        return used


class SequentialFamily:
    """All pairs of a run under one rule; the family goes on until every pair is decided, and stops together.

    With several pairs an exceedance of pair j is a replicate whose *best* pair reaches what j observed,

        max_k z_kb >= z_j0,        z = (T - mean) / sd with moments over permutations 1 ... burn-in

    so each p is adjusted for the family (single-step max-T). The burn-in permutations set the scale and are not
    counted: given them, the observed run and the later permutations remain exchangeable. Moments over all
    replicates, as `significance.studentise` takes them, would change with every look.

    Parameters
    ----------
    rule : StopRule
    observed : float (m,)
        T_0 of each pair, larger is better.
    limit : int, optional
        B, the most permutations there will be.
    """

    def __init__(self, rule: StopRule, observed: np.ndarray, limit: int | None = None) -> None:
        self.rule, self.limit = rule, limit
        self.observed = np.atleast_1d(np.asarray(observed, np.float64))
        self.tests = [SequentialTest(rule, limit and limit - self.burn_in) for _ in self.observed]
        self.own = [SequentialTest(rule, limit) for _ in self.observed]
        # Permutations used so far; the number of the last one, once done.
        self.seen = 0
        self._burn: list[np.ndarray] = []
        self._scale: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def burn_in(self) -> int:
        """Permutations that set the scale: none for a single pair, which needs no scale; half of a run too short for the rule's."""
        if len(self.observed) == 1:
            return 0
        return self.rule.burn_in if self.limit is None else min(self.rule.burn_in, max(self.limit // 2, 1))

    @property
    def done(self) -> bool:
        """Whether every pair is decided."""
        return all(test.done for test in self.tests)

    @property
    def pvalues(self) -> np.ndarray:
        """Valid, family-wise adjusted p of each pair, float64 (m,)."""
        return np.array([test.pvalue for test in self.tests])

    @property
    def unadjusted(self) -> np.ndarray:
        """Valid p of each pair by itself, from its own exceedances, float64 (m,)."""
        return np.array([test.pvalue for test in self.own])

    def update(self, t: np.ndarray) -> bool:
        """Take the next permutations, in order of their numbers.

        Parameters
        ----------
        t : float (m, n)
            Replicates of each pair, larger is better; the same permutations for all.

        Returns
        -------
        bool
            `done`.
        """
        t = np.asarray(t, np.float64)
        if t.ndim != 2 or len(t) != len(self.observed):
            raise InputError(f"`t` must have one row for each of the {len(self.observed)} pairs; got shape {t.shape}.")
        if self.done:
            return True
        own = t >= (self.observed - TOLERANCE * np.maximum(1.0, np.abs(self.observed)))[:, None]
        if self._scale is None and self.burn_in:
            missing = self.burn_in - self.seen
            self._burn.append(t[:, :missing])
            self._count_own(own[:, :missing])
            t, own = t[:, missing:], own[:, missing:]
            if self.seen < self.burn_in:
                return False
            self._set_scale(np.concatenate(self._burn, axis=1))
            self._burn.clear()
        if not t.shape[1]:
            return self.done
        exceeds = own
        if self._scale is not None:
            mean, sd = self._scale
            best = ((t - mean[:, None]) / sd[:, None]).max(axis=0)
            threshold = (self.observed - mean) / sd
            threshold -= TOLERANCE * np.maximum(1.0, np.abs(threshold))
            exceeds = own | (best >= threshold[:, None])
        used = max(test.update(row) for test, row in zip(self.tests, exceeds))
        self._count_own(own[:, :used] if self.done else own)
        return self.done

    def _count_own(self, own: np.ndarray) -> None:
        for test, row in zip(self.own, own):
            test.update(row)
        self.seen += own.shape[1]

    def _set_scale(self, burn: np.ndarray) -> None:
        mean, sd = burn.mean(axis=1), burn.std(axis=1)
        # A pair that never moved in the burn-in has no scale of its own; the typical one stands in.
        moving = sd > 1e-12 * np.maximum(np.abs(burn).max(axis=1), 1e-300)
        sd = np.where(moving, sd, np.median(sd[moving]) if moving.any() else 1.0)
        self._scale = mean, sd


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a rule would cost and how often it errs, by simulation.

    Attributes
    ----------
    permutations : int64 (runs,)
        Counted before the stop.
    rejected : bool (runs,)
        p at or below alpha.
    saving : float
        1 - mean permutations / B.
    """

    permutations: np.ndarray
    rejected: np.ndarray
    saving: float


def simulate(rule: StopRule, true_p: np.ndarray, permutations: int, alpha: float, rng: np.random.Generator) -> Simulation:
    """Run the rule on tests whose limiting p is known.

    Given the data, exceedances are independent with probability `true_p`; under the null `true_p` is itself
    uniform, under an effect it is small.

    Parameters
    ----------
    true_p : float (runs,)
    permutations : int
        B, the most that would be run.
    """
    counts, rejected = np.empty(len(true_p), np.int64), np.empty(len(true_p), bool)
    for i, p in enumerate(true_p):
        test = SequentialTest(rule, permutations)
        test.update(rng.random(permutations) < p)
        counts[i], rejected[i] = test.permutations, test.pvalue <= alpha
    return Simulation(counts, rejected, 1.0 - counts.mean() / permutations)
