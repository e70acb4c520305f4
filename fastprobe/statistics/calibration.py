"""Similarities on a common scale: 0 is what the null reaches at level alpha, 1 is the largest possible value."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .multiplicity import check_replicates


def calibrated(t: np.ndarray, largest: float | np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Each similarity above what chance reaches, as a share of the room there is.

        (T_0 - tau) / (largest - tau)        tau: the 1 - alpha quantile of T_1 ... T_B

    Parameters
    ----------
    t : float (m, B+1)
        Replicates, column 0 observed, larger is better.
    largest : float or float (m,)
        Largest value each similarity can take, 1 for a correlation or CKA.
    alpha : float

    Returns
    -------
    float64 (m,)
        At or below 0 where the observed value does not pass the quantile.

    Raises
    ------
    InputError
        `alpha` outside (0, 1), or a `largest` that is not above tau.

    Source: arXiv 2602.14486.
    """
    if not 0 < alpha < 1:
        raise InputError(f"`alpha` must lie between 0 and 1; got {alpha!r}.")
    t = check_replicates(t)
    tau, top = np.quantile(t[:, 1:], 1 - alpha, axis=1), np.broadcast_to(np.asarray(largest, np.float64), len(t))
    if not (above := top > tau).all():
        j = int(np.argmin(above))
        raise InputError(
            f"`largest` must be above the null's {1 - alpha:g} quantile; got {top[j]:g} for test {j}, whose quantile is {tau[j]:g}. "
            "Give the largest value that similarity can take."
        )
    return (t[:, 0] - tau) / (top - tau)
