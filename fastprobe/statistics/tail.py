"""Small p from the tail's shape: a generalised Pareto fit, printed beside the exact p, never instead of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError

MIN_PERMUTATIONS, MAX_P = 500, 0.10
# Exceedances to fit: at most so many, at most this share of the replicates, at least so many.
MAX_EXCEEDANCES, SHARE, MIN_EXCEEDANCES = 250, 0.10, 50
# The support must reach this much further beyond the threshold than the observed value does.
MARGIN = 0.10
LEVEL_OF_CHECK = 0.05
# Further out than this share of 1/(1+B) the fit is a guess: for a Gaussian null it comes out too small.
REACH = 0.1
_GRID = 129


@dataclass(frozen=True)
class TailFit:
    """A generalised Pareto fit to the null's tail and the p it gives.

    Attributes
    ----------
    pvalue : float
        share * (1 + xi (T_0 - u) / sigma)^(-1/xi); always above 0.
    low, high : float
        95% interval from the parametric bootstrap of the fit.
    shape, scale, threshold : float
        xi, sigma, u.
    n_exceedances : int
    check_pvalue : float
        Anderson-Darling check of the fit, by parametric bootstrap; small means a poor fit.
    n_permutations : int
    stretched : bool
        The support had to be stretched to contain the observed value: then the p is a bound of the model, not an estimate.
    """

    pvalue: float
    low: float
    high: float
    shape: float
    scale: float
    threshold: float
    n_exceedances: int
    check_pvalue: float
    stretched: bool
    n_permutations: int

    @property
    def good(self) -> bool:
        """Whether the check passed, the support was not stretched, and p is within a tenth of what counting could reach."""
        return self.check_pvalue >= LEVEL_OF_CHECK and not self.stretched and self.pvalue >= REACH / (1 + self.n_permutations)


def _fit(x: np.ndarray, beyond: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Constrained maximum likelihood of each row of x, float (R, n) of excesses over the threshold.

        l(theta) = -n (log(xi/theta) + xi + 1),    xi(theta) = mean log(1 + theta x),    theta = xi/sigma > -1/end

    The profile over theta is searched on a grid and refined twice, for all rows at once. `end`: the support must
    reach max(x, beyond). Returns xi and sigma, each (R,).
    """
    mean = x.mean(axis=1)
    end = np.maximum(x.max(axis=1) * (1 + 1e-6), beyond)
    low, high = -1.0 / end, 4.0 / mean
    for _ in range(3):
        theta = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _GRID)
        theta = np.where(np.abs(theta) * mean[:, None] < 1e-7, 1e-7 / mean[:, None], theta)
        xi = np.stack([np.log1p(theta[:, i : i + 1] * x).mean(axis=1) for i in range(_GRID)], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = -(np.log(xi / theta) + xi + 1)
        # Below xi = -1/2 the likelihood is unbounded and its maximum no estimate (Smith 1985).
        likelihood = np.where((xi > -0.5) & np.isfinite(likelihood), likelihood, -np.inf)
        best = likelihood.argmax(axis=1)
        rows = np.arange(len(x))
        low, high = theta[rows, np.maximum(best - 1, 0)], theta[rows, np.minimum(best + 1, _GRID - 1)]
        chosen, shape = theta[rows, best], xi[rows, best]
    return shape, shape / chosen


def _anderson_darling(x: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A^2 of each row against its own fit; x (R, n)."""
    from scipy.stats import genpareto

    u = np.sort(genpareto.cdf(x, shape[:, None], scale=scale[:, None]), axis=1)
    u = np.clip(u, 1e-12, 1 - 1e-12)
    n = x.shape[1]
    i = 2 * np.arange(1, n + 1) - 1
    return -n - ((np.log(u) + np.log1p(-u[:, ::-1])) * i).mean(axis=1)


def tail_pvalue(t: np.ndarray, exact_pvalue: float, rng: np.random.Generator | None = None, resamples: int = 200) -> TailFit | None:
    """p of the observed value by a generalised Pareto tail, where that is allowed; None where it is not.

        P(T >= T_0) = share of replicates above u  x  (1 + xi (T_0 - u) / sigma)^(-1/xi)

    Allowed with at least 500 permutations and an exact p below .10. The support is constrained to contain T_0,
    so the p is never 0 (with xi < 0 a free fit may end below T_0).

    Parameters
    ----------
    t : float (B+1,)
        Observed value first; larger is better; a continuous statistic.
    exact_pvalue : float
        The add-one p, beside which this one is printed.
    resamples : int
        Of the parametric bootstrap, for the check and the interval.

    Source: Knijnenburg et al. 2009 (tail fit); Peschel et al. 2026, arXiv 2602.22975 (support constraint).
    """
    from scipy.stats import genpareto

    t = np.asarray(t, np.float64)
    if t.ndim != 1 or not np.isfinite(t).all():
        raise InputError(f"`t` must be one row of finite replicates; got shape {t.shape}.")
    observed, null = t[0], t[1:]
    if len(null) < MIN_PERMUTATIONS or exact_pvalue >= MAX_P:
        return None
    n = int(min(MAX_EXCEEDANCES, SHARE * len(null)))
    if n < MIN_EXCEEDANCES:
        return None
    top = np.sort(null)[::-1]
    threshold = 0.5 * (top[n - 1] + top[n])
    x = top[:n] - threshold
    if not (x > 0).all() or observed <= threshold:  # ties at the threshold: the statistic is not continuous
        return None
    rng = np.random.default_rng(0) if rng is None else rng
    beyond = (observed - threshold) * (1 + MARGIN)
    shape, scale = _fit(x[None], beyond)
    free_shape, free_scale = _fit(x[None], 0.0)
    stretched = free_shape[0] < 0 and -free_scale[0] / free_shape[0] < observed - threshold
    share = n / len(null)
    p = share * float(genpareto.sf(observed - threshold, shape[0], scale=scale[0]))
    again = genpareto.rvs(shape[0], scale=scale[0], size=(resamples, n), random_state=rng)
    shapes, scales = _fit(again, beyond)
    check = (1 + np.sum(_anderson_darling(again, shapes, scales) >= _anderson_darling(x[None], shape, scale))) / (1 + resamples)
    ps = share * genpareto.sf(observed - threshold, shapes, scale=scales)
    low, high = np.percentile(ps, [2.5, 97.5])
    floor = float(np.finfo(np.float64).tiny)
    return TailFit(
        max(p, floor),
        max(float(low), floor),
        max(float(high), floor),
        float(shape[0]),
        float(scale[0]),
        float(threshold),
        n,
        float(check),
        bool(stretched),
        len(null),
    )
