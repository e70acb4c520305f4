"""Intervals: the published worked numbers, scipy as oracle, coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from fastprobe.errors import InputError
from fastprobe.protocol.plan import split_classes
from fastprobe.statistics.comparison import nadeau_bengio_test
from fastprobe.statistics.intervals import class_bootstrap, class_interval
from fastprobe.statistics.significance import confidence_sequence
from fastprobe.statistics.significance import pvalue_interval as clopper_pearson


@pytest.mark.parametrize("b,low,high", [(999, 0.037, 0.064), (9_999, 0.046, 0.054)])
def test_worked_numbers_for_p_of_5_percent(b, low, high):
    found = clopper_pearson(round(0.05 * (b + 1)) - 1, b)
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)


@pytest.mark.parametrize("x,n", [(0, 10), (3, 17), (17, 17), (49, 999)])
def test_clopper_pearson_is_binomtest(x, n):
    oracle = binomtest(x, n).proportion_ci(0.9, method="exact")
    assert clopper_pearson(x, n, 0.9) == pytest.approx((oracle.low, oracle.high), rel=1e-9)


@pytest.mark.parametrize("x,n", [(0, 10), (3, 17), (17, 17), (49, 999), (1, 1)])
def test_confidence_sequence_contains_clopper_pearson(x, n):
    fixed, anytime = clopper_pearson(x, n), confidence_sequence(x, n)
    assert anytime.low <= fixed.low + 1e-9 and anytime.high >= fixed.high - 1e-9 and 0 <= anytime.low < anytime.high <= 1


def test_confidence_sequence_covers_at_all_times_at_once_and_clopper_pearson_does_not():
    rng = np.random.default_rng(0)
    ever_out = np.zeros(2)
    looks = np.unique(np.round(np.logspace(0.5, np.log10(600), 30)).astype(int))
    for _ in range(120):
        x = np.cumsum(rng.random(600) < 0.1)
        for i, interval in enumerate((confidence_sequence, clopper_pearson)):
            ever_out[i] += any(not (r := interval(x[t - 1], t)).low <= 0.1 <= r.high for t in looks)
    assert ever_out[0] <= binom.ppf(0.999, 120, 0.05) < ever_out[1]


def test_class_bootstrap_agrees_with_the_standard_error_of_a_mean():
    rng = np.random.default_rng(1)
    a = rng.uniform(size=(1, 200))
    interval = class_bootstrap(a, rng=np.random.default_rng(2))
    half = 1.96 * a.std() / np.sqrt(200)
    assert interval.low == pytest.approx(a.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(a.mean() + half, abs=0.1 * half)


def test_classes_are_the_unit_not_clips():
    """Clips of a class that succeed or fail together: a bootstrap over clips would be far too narrow."""
    rng = np.random.default_rng(3)
    truth, covered, covered_by_clips, clips = 0.3, 0, 0, 30
    for _ in range(150):
        per_class = rng.beta(0.6, 1.4, size=(1, 40))  # mean 0.3
        outcome = rng.binomial(clips, per_class) / clips
        interval = class_bootstrap(outcome, resamples=1000, rng=rng)
        covered += interval.low <= truth <= interval.high
        naive = 1.96 * np.sqrt(outcome.mean() * (1 - outcome.mean()) / (40 * clips))
        covered_by_clips += abs(outcome.mean() - truth) <= naive
    assert covered >= binom.ppf(0.001, 150, 0.92)
    assert covered_by_clips < 0.6 * 150


def test_coverage_over_splits_that_test_a_third_each():
    rng, truth, covered = np.random.default_rng(7), 0.15, 0
    for study in range(150):
        outcome = rng.binomial(20, rng.beta(0.6, 3.4, size=144)) / 20  # mean 0.15
        tested = np.full((5, 144), np.nan)
        for s in range(5):
            classes = split_classes(study, s, 144, 0.7).test
            tested[s, classes] = outcome[classes]
        interval = class_bootstrap(tested, resamples=500, rng=rng)
        covered += interval.low <= truth <= interval.high
    assert covered >= binom.ppf(0.001, 150, 0.92)


def test_splits_share_classes():
    """The same outcomes seen in five splits carry no more information than in one."""
    a = np.random.default_rng(4).uniform(size=(1, 60))
    one, five = (class_bootstrap(np.repeat(a, n, axis=0), rng=np.random.default_rng(5)) for n in (1, 5))
    assert five == pytest.approx(one)


def test_micro_weights_and_missing_classes():
    a = np.array([[0.0, 1.0, np.nan, 0.5], [np.nan, 1.0, 0.0, np.nan]])
    n = np.array([[1, 3, 0, 2], [0, 3, 4, 0]], float)
    interval = class_bootstrap(a, n, rng=np.random.default_rng(6))
    assert 0 <= interval.low < (4 / 6 + 3 / 7) / 2 < interval.high <= 1


@pytest.mark.parametrize("n_splits", [5, 20])
def test_the_class_interval_covers_over_fresh_classes(n_splits):
    rng, truth, covered, studies = np.random.default_rng(8), 0.3, 0, 600
    for _ in range(studies):
        outcome = rng.binomial(20, rng.beta(0.6, 1.4, 60)) / 20
        splits = [outcome[rng.permutation(60)[:18]].mean() for _ in range(n_splits)]
        interval = class_interval(splits, 42, 18)
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / studies <= 0.985


def test_the_class_interval_is_that_of_the_corrected_t_test():
    x = np.random.default_rng(9).uniform(size=6)
    found, oracle = class_interval(x, 7, 3, 0.9), nadeau_bengio_test(x, 7, 3, 0.9)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert np.isnan(class_interval([0.2], 7, 3)).all() and np.isnan(class_interval([0.2, 0.2], 7, 3)).all()


def test_bad_input_is_named():
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    with pytest.raises(InputError, match="`level`"):
        class_bootstrap(np.ones((1, 4)), level=1.0)
    with pytest.raises(InputError, match="split 1"):
        class_bootstrap(np.array([[1.0, 0.0], [np.nan, np.nan]]))
