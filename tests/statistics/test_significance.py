"""p-values, intervals, standard errors and max-T, against scipy and published numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from fastprobe.errors import InputError
from fastprobe.statistics import significance as sig
from support.strategies import SEEDS

NULLS = hnp.arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 12).map(lambda v: v / 12))


def result(t, per_split=(0.1, 0.2), **kwargs):
    t = np.atleast_2d(t)
    fields = {"metric": "acc@3", "chance": 0.06, "lower_is_better": False, "n_train": 35, "n_test": 15, "n_seeds": 1, **kwargs}
    for own, field in (("metrics", "metric"), ("chances", "chance"), ("lower_is_better", "lower_is_better")):
        fields[own] = [fields.pop(field)] * len(t)
    names = [(f"text{i}", "audio", "contrastive") for i in range(len(t))]
    return sig.analyse_pairs(t, np.tile(per_split, (len(t), 1)), names, **fields)


@given(st.integers(0, 12).map(lambda v: v / 12), NULLS)
def test_p_lies_between_one_over_b_plus_one_and_one(observed, null):
    r = result(np.r_[observed, null])[0]
    assert 1 / (len(null) + 1) <= r.pvalue <= 1
    low, high = r.confidence_interval()
    assert 0 <= low <= r.n_exceed / len(null) <= high <= 1
    assert r.pvalue == r.pvalue_max_t


@given(st.integers(0, 12).map(lambda v: v / 12), NULLS)
def test_ties_count_against_us_whatever_the_rounding(observed, null):
    noisy = null + np.random.default_rng(0).uniform(-1e-14, 1e-14, len(null))
    assert sig.exceedances(observed, noisy) == sum(round(12 * v) >= round(12 * observed) for v in null)


def test_equals_scipys_permutation_test():
    """The same statistic over the same permutations: all of them, so that scipy enumerates too."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 5))
    oracle = stats.permutation_test((x,), lambda x: np.sum(x * y), permutation_type="pairings", alternative="greater")
    null = np.asarray(oracle.null_distribution)  # contains the identity once
    assert sig.add_one_pvalue(sig.exceedances(np.sum(x * y), null) - 1, len(null) - 1) == pytest.approx(oracle.pvalue)


def test_published_intervals():
    """p = .05 gives [.037, .064] at B = 999 and [.046, .054] at B = 9,999."""
    for b, x, want in ((999, 49, (0.037, 0.064)), (9999, 499, (0.046, 0.054))):
        assert sig.add_one_pvalue(x, b) == pytest.approx(0.05)
        assert sig.pvalue_interval(x, b) == pytest.approx(want, abs=5e-4)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_interval_is_clopper_pearson(b, share, level):
    x = int(share * b)
    low, high = sig.pvalue_interval(x, b, level)
    tail = (1 - level) / 2
    assert low == pytest.approx(stats.beta.ppf(tail, x, b - x + 1) if x else 0)
    assert high == pytest.approx(stats.beta.isf(tail, x + 1, b - x) if x < b else 1)


def test_corrected_standard_error():
    """1.77 times the naive one for 43 test and 101 train classes and 5 splits."""
    naive, corrected = sig.standard_errors(np.array([0.1, 0.2, 0.15, 0.3, 0.22]), 101, 43)
    assert naive == pytest.approx(stats.sem([0.1, 0.2, 0.15, 0.3, 0.22]))
    assert corrected / naive == pytest.approx(1.77, abs=0.005)
    assert all(np.isnan(sig.standard_errors(np.array([0.1]), 101, 43)))


@given(SEEDS, st.integers(2, 6), st.integers(5, 60))
def test_max_t_is_at_least_each_p_and_at_most_bonferroni(seed, pairs, b):
    """Pairs that are copies of one another in distribution: max-T lies between the smallest p and its Bonferroni bound."""
    t = np.random.default_rng(seed).standard_normal((pairs, b + 1))
    adjusted = sig.max_t_pvalues(t)
    z = sig.studentise(t)
    own = np.array([sig.add_one_pvalue(sig.exceedances(row[0], row[1:]), b) for row in z])
    assert np.all(adjusted >= own)
    assert np.all(adjusted <= 1) and np.all(adjusted >= 1 / (b + 1))
    order = np.argsort(-z[:, 0])
    assert np.all(np.diff(adjusted[order]) >= 0)


def test_max_t_of_equal_pairs_is_the_single_p():
    t = np.tile(np.random.default_rng(0).standard_normal(100), (3, 1))
    t[:, 0] = 1.7
    assert np.allclose(sig.max_t_pvalues(t), sig.add_one_pvalue(sig.exceedances(t[0, 0], t[0, 1:]), 99))


def test_a_pair_that_never_varies_is_not_significant():
    t = np.vstack([np.full(50, 0.2), np.r_[3.0, np.random.default_rng(0).standard_normal(49)]])
    adjusted = sig.max_t_pvalues(t)
    assert adjusted[0] == 1.0 and adjusted[1] < 0.05


def test_familywise_error_of_max_t_under_the_global_null():
    """Correlated pairs, 400 families: at most 5% with a rejection, within binomial error; and more power than Bonferroni."""
    rng = np.random.default_rng(0)
    families, pairs, b = 400, 8, 99
    mix = np.sqrt(0.7) * rng.standard_normal((families, 1, b + 1)) + np.sqrt(0.3) * rng.standard_normal((families, pairs, b + 1))
    rejected = sum(sig.max_t_pvalues(t).min() <= 0.05 for t in mix)
    assert rejected <= stats.binom.ppf(0.999, families, 0.05)
    mix[:, 0, 0] += 2.8
    power = np.mean([sig.max_t_pvalues(t)[0] <= 0.05 for t in mix])
    bonferroni = np.mean([pairs * sig.add_one_pvalue(sig.exceedances(t[0, 0], t[0, 1:]), b) <= 0.05 for t in mix])
    assert power > bonferroni + 0.1


@pytest.mark.parametrize("b", [1, 19, 99])
@pytest.mark.parametrize("ties", [False, True])
def test_size_at_every_level(b, ties):
    """Exact where alpha (1 + B) is whole and nothing ties; never above alpha."""
    t = np.random.default_rng(b).standard_normal((3000, b + 1))
    t = np.round(1.5 * t) / 30 if ties else t
    p = np.array([sig.counted_pvalue(row[0], row[1:]) for row in t])
    for alpha in (0.01, 0.05, 0.1, 0.25, 0.5):
        rejected, reachable = np.sum(p <= alpha), np.floor(alpha * (b + 1) + 1e-9) / (b + 1)
        assert rejected <= stats.binom.ppf(0.999, 3000, alpha)
        assert ties or stats.binom.ppf(0.001, 3000, reachable) <= rejected <= stats.binom.ppf(0.999, 3000, reachable)


def test_lower_is_better_turns_the_sides():
    t = np.r_[1.0, np.linspace(2, 3, 19)]
    assert result(t, lower_is_better=True)[0].pvalue == 1 / 20
    assert result(t)[0].pvalue == 1.0


def test_result_is_frozen_and_tells_everything():
    r = result(np.r_[0.5, np.linspace(0, 0.6, 99)])[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.pvalue = 0.0
    frame = r.to_frame()
    assert len(frame) == 1 and frame["pvalue"][0] == r.pvalue and frame["statistic"][0] == 0.5
    assert {
        "text",
        "audio",
        "statistic",
        "null_mean",
        "null_sd",
        "sem",
        "sem_corrected",
        "chance",
        "pvalue",
        "pvalue_low",
        "pvalue_high",
        "pvalue_maxT",
        "n_permutations",
        "n_splits",
        "n_seeds",
    } <= set(frame.columns)
    axes = r.plot()
    assert "acc@3" in axes.get_xlabel() and any("observed 0.5" in t.get_text() for t in axes.get_legend().get_texts())
    with pytest.raises(InputError, match="confidence_level"):
        r.confidence_interval(1.5)


def test_diverged_training_is_an_error():
    with pytest.raises(InputError, match="not finite"):
        result(np.array([0.5, np.nan, 0.1]))


def test_a_result_shows_itself_in_short_and_never_as_markup():
    shown = sig.analyse_pairs(
        np.r_[0.5, np.linspace(0, 0.4, 50)][None],
        np.array([[0.5, 0.5]]),
        [("<script>alert(1)</script>", "a", "ridge")],
        metrics=["acc@3"],
        chances=[0.1],
        lower_is_better=[False],
        n_train=5,
        n_test=5,
        n_seeds=1,
    )[0]
    assert len(repr(shown)) < 140 and "acc@3 0.5" in repr(shown) and "p = 0.0196" in repr(shown)
    page = shown._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and page.count("<rect") >= 20 and "ridge" in page
