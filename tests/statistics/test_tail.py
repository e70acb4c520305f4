"""The tail fit: never 0, close to the truth beyond reach of counting, refused where it does not apply."""

import numpy as np
import pytest
from scipy.stats import genpareto, norm, uniform

from fastprobe.errors import InputError
from fastprobe.statistics.tail import _fit, tail_pvalue


def exact(t):
    return (1 + np.sum(t[1:] >= t[0])) / len(t)


@pytest.mark.parametrize("z", [2.0, 2.5, 3.0, 3.3])
def test_gaussian_tail_at_the_edge_of_counting(z):
    """999 permutations cannot count below .001 (z = 3.09); the fit lands within a factor of three in the median."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(25):
        t = np.r_[z, rng.standard_normal(999)]
        if (fit := tail_pvalue(t, exact(t), rng, resamples=50)) is not None:
            ratios.append(fit.pvalue / norm.sf(z))
    assert len(ratios) >= 20 and 1 / 3 < np.median(ratios) < 3


def test_far_beyond_counting_it_does_not_call_itself_good():
    """At z = 6 a Gaussian p is 1e-9: no 999 permutations can tell, and the fit must not pretend to."""
    rng = np.random.default_rng(7)
    for _ in range(10):
        t = np.r_[6.0, rng.standard_normal(999)]
        assert not tail_pvalue(t, exact(t), rng, resamples=30).good


@pytest.mark.parametrize("z", [3.0, 10.0, 1e3, 1e6])
def test_never_zero_even_where_the_support_is_bounded(z):
    rng = np.random.default_rng(1)
    t = np.r_[z, uniform.rvs(size=999, random_state=rng)]
    fit = tail_pvalue(t, exact(t), rng)
    assert 0 < fit.low <= fit.high and 0 < fit.pvalue < 0.1
    assert fit.stretched and not fit.good, "a uniform null cannot reach this far: the fit must say so"


def test_constrained_fit_agrees_with_scipys_where_the_constraint_is_idle():
    rng = np.random.default_rng(2)
    for shape in (0.3, 0.0, -0.2):
        x = genpareto.rvs(shape, scale=2.0, size=4000, random_state=rng)
        found_shape, found_scale = _fit(x[None], x.max() * 1.0001)
        oracle = genpareto.fit(x, floc=0)
        mine = genpareto.logpdf(x, found_shape[0], scale=found_scale[0]).sum()
        assert mine >= genpareto.logpdf(x, oracle[0], scale=oracle[2]).sum() - 0.05
        assert found_shape[0] == pytest.approx(shape, abs=0.08)


def test_the_check_notices_a_tail_that_is_not_pareto():
    rng = np.random.default_rng(3)
    good = np.mean(
        [tail_pvalue(np.r_[4.0, norm.rvs(size=2000, random_state=rng)], 1 / 2001, rng, 60).check_pvalue > 0.05 for _ in range(10)]
    )
    lumpy = np.r_[norm.rvs(size=1900, random_state=rng), 5 + 0.01 * norm.rvs(size=100, random_state=rng)]
    bad = tail_pvalue(np.r_[5.5, lumpy], 1 / 2001, rng)
    assert good >= 0.7 and bad.check_pvalue < 0.05 and not bad.good


def test_refused_where_it_does_not_apply():
    rng = np.random.default_rng(4)
    t = np.r_[3.0, rng.standard_normal(999)]
    assert tail_pvalue(t, 0.10) is None, "only below .10"
    assert tail_pvalue(t[:500], exact(t[:500])) is None, "only with 500 permutations"
    assert tail_pvalue(np.round(t), 0.001) is None, "ties at the threshold: not continuous"
    with pytest.raises(InputError, match="finite"):
        tail_pvalue(np.r_[np.nan, t], 0.01)


def test_the_interval_holds_the_estimate_and_is_reproducible():
    t = np.r_[3.5, np.random.default_rng(5).standard_normal(2000)]
    a, b = (tail_pvalue(t, 1 / 2001, np.random.default_rng(6)) for _ in range(2))
    assert a == b and a.low < a.pvalue < a.high
