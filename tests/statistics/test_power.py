"""Power: closed forms at the edges, agreement with tests actually run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fastprobe.errors import InputError
from fastprobe.statistics import multiplicity
from fastprobe.statistics.power import EXCESS, intraclass_correlation, permutations_for, sd_of_splits, simulate_power, smallest_pvalue


def test_reach():
    assert smallest_pvalue(9_999) == 1e-4
    assert permutations_for(1e-4) == 9_999 and permutations_for(0.05) == 19 and permutations_for(0.001) == 999
    assert all(smallest_pvalue(permutations_for(p)) <= p for p in (0.3, 0.05, 0.013, 1e-3))


def test_no_effect_gives_the_level_and_a_huge_one_gives_certainty():
    assert simulate_power(0.0, 1.0, 999).power == pytest.approx(0.05, abs=0.006)
    assert simulate_power(50.0, 1.0, 999).power == 1.0
    assert simulate_power(50.0, 1.0, 18).power == 0.0, "18 permutations cannot reach .05"


def test_many_permutations_give_the_power_of_the_z_test():
    found = simulate_power(2.0, 1.0, 100_000)
    assert found.power == pytest.approx(norm.sf(norm.isf(0.05) - 2.0), abs=5 * found.standard_error)


def test_it_predicts_what_max_t_does():
    rng = np.random.default_rng(0)
    hits, studies, m = 0, 600, 8
    for _ in range(studies):
        t = rng.standard_normal((m, 200))
        t[0, 0] += 3.0
        # Known scale, as the simulation assumes
        hits += multiplicity.max_t(t, studentised=False)[0] <= 0.05
    assert hits / studies == pytest.approx(simulate_power(3.0, 1.0, 199, n_tests=m).power, abs=0.07)


@given(st.integers(2, 40), st.integers(2, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_intraclass_correlation_is_that_of_the_model(n, splits, icc, seed):
    """Values with a known share of variance between permutations, many of them; and its bounds for few."""
    rng = np.random.default_rng(seed)
    few = intraclass_correlation(rng.standard_normal((n, splits)))
    assert 0 <= few <= 1
    values = np.sqrt(icc) * rng.standard_normal((4000, 1)) + np.sqrt(1 - icc) * rng.standard_normal((4000, splits))
    assert intraclass_correlation(values) == pytest.approx(icc, abs=0.1)
    foretold = sd_of_splits(values.mean(axis=1).std(), splits, icc, 1)
    assert foretold == pytest.approx(values[:, 0].std(), rel=0.1)


def test_a_skewed_null_and_a_proportion_that_varies_more_lower_the_power():
    plain = simulate_power(0.09, 0.031, 199).power
    skewed = simulate_power(0.09, 0.031, 199, skewness=0.5).power
    varied = simulate_power(0.09, 0.031, 199, null_mean=0.09, skewness=0.5, excess=EXCESS).power
    assert varied < skewed < plain
    assert simulate_power(0.0, 0.031, 199, null_mean=0.09, excess=EXCESS).power == pytest.approx(0.05, abs=0.01)


def test_bad_input_is_named():
    for call, match in (
        (lambda: smallest_pvalue(0), "permutations"),
        (lambda: permutations_for(0.0), "pvalue"),
        (lambda: simulate_power(1, 0.0, 99), "null_sd"),
        (lambda: simulate_power(1, 1.0, 99, alpha=2.0), "alpha"),
    ):
        with pytest.raises(InputError, match=match):
            call()
