"""Ranks of many models: intervals that hold the truth, ties that are told apart no more often than promised, a trend."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from fastprobe.errors import InputError
from fastprobe.statistics.ranking import rank_models, trend


@given(st.integers(2, 7), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_laws_of_an_order(m, n, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (m, n)) / 4
    x = np.insert(x, 1, np.nan, axis=1)  # a class that was not tested
    found = rank_models(x, np.random.default_rng(0), draws=100)
    assert sorted(found.order) == list(range(m)) and (np.diff(found.mean[found.order]) <= 0).all()
    assert (found.low <= found.rank).all() and (found.rank <= found.high).all() and found.low.min() >= 1 and found.high.max() <= m
    assert {i for group in found.groups for i in group} == set(range(m))
    for group in found.groups:  # consecutive in the order
        places = sorted(found.rank[list(group)])
        assert places == list(range(places[0], places[0] + len(group)))
    assert all(found.letters(i) for i in range(m))
    again = rank_models(x, np.random.default_rng(0), draws=100)
    assert again.groups == found.groups and (again.low == found.low).all()


def test_equal_models_are_told_apart_in_at_most_five_of_a_hundred_sets():
    apart = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        x = rng.normal(rng.normal(0, 1, (1, 40)), 0.5, (6, 40))  # classes differ, models do not
        apart += len(rank_models(x, rng, draws=300).groups) > 1
    assert apart / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_models_that_differ_are_told_apart_and_rank_intervals_hold_the_truth():
    truth, held, split = np.array([0.0, 0.3, 0.6, 0.9]), np.zeros(4), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.normal(truth[:, None] + rng.normal(0, 1, (1, 40)), 0.5)
        found = rank_models(x, rng, draws=300)
        held += (found.low <= [4, 3, 2, 1]) & (found.high >= [4, 3, 2, 1])
        split += not any({0, 3} <= set(g) for g in found.groups)
    assert (held / 200 >= 0.93).all() and split >= 198


def test_many_groups_have_letters():
    x = np.arange(30)[:, None] + np.random.default_rng(0).normal(0, 1e-3, (30, 10))
    found = rank_models(x, np.random.default_rng(1), draws=200)
    assert len(found.groups) == 30 and found.letters(29) == "a" and found.letters(0) == "ad" and found.letters(4) == "z"


def test_the_trend_is_spearmans_and_its_p_is_that_of_permutations():
    rng = np.random.default_rng(2)
    sizes, values = rng.lognormal(size=12), rng.random(12)
    found = trend(sizes, values, np.random.default_rng(0))
    expected = spearmanr(sizes, values)
    assert found.rho == pytest.approx(expected.statistic) and found.pvalue == pytest.approx(expected.pvalue, abs=0.03)
    assert trend(np.array([1, 1, 2, 3]), values[:4], rng) is None and trend(sizes, np.ones(12), rng) is None


@pytest.mark.parametrize("values", [np.ones((1, 5)), np.ones((3, 1)), np.array([[1.0, np.nan], [1.0, 2.0]]), np.ones(4)])
def test_what_cannot_be_ordered_is_refused(values):
    with pytest.raises(InputError, match="`values`"):
        rank_models(values, np.random.default_rng(0))
