"""Power: closed forms at the edges, agreement with tests actually run."""

import numpy as np
import pytest
from scipy.stats import norm

from fastprobe.errors import InputError
from fastprobe.statistics import multiplicity
from fastprobe.statistics.power import permutations_for, simulate_power, smallest_pvalue


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


def test_bad_input_is_named():
    for call, match in (
        (lambda: smallest_pvalue(0), "permutations"),
        (lambda: permutations_for(0.0), "pvalue"),
        (lambda: simulate_power(1, 0.0, 99), "null_sd"),
        (lambda: simulate_power(1, 1.0, 99, alpha=2.0), "alpha"),
    ):
        with pytest.raises(InputError, match=match):
            call()
