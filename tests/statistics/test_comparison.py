"""Two models against each other: the corrected variance, the sign-flip test, their error rates."""

import numpy as np
import pytest
from scipy.stats import binom, permutation_test, ttest_1samp

from fastprobe.errors import InputError
from fastprobe.statistics.comparison import compare, corrected_variance_factor, nadeau_bengio_test, sign_flip_test


def test_published_factor_for_43_of_101_and_five_splits():
    """sqrt(1/5 + 43/101) / sqrt(1/5) = 1.77."""
    result = nadeau_bengio_test(np.array([0.1, 0.2, 0.15, 0.05, 0.3]), 101, 43)
    assert result.se_corrected / result.se_naive == pytest.approx(1.77, abs=0.005)
    assert corrected_variance_factor(5, 101, 43) == pytest.approx(0.2 + 43 / 101)


def test_without_overlap_it_is_the_paired_t_test():
    d = np.random.default_rng(0).normal(0.1, 1, 12)
    oracle = ttest_1samp(d, 0.0)
    result = nadeau_bengio_test(d, 10**12, 1)
    assert (result.statistic, result.pvalue) == pytest.approx((oracle.statistic, oracle.pvalue), rel=1e-9)
    assert (result.low, result.high) == pytest.approx(tuple(oracle.confidence_interval()), rel=1e-9)


def test_equal_differences_are_no_certainty():
    """Two splits of a few clips can agree to the last digit by luck: that has no p, least of all 0."""
    assert nadeau_bengio_test(np.zeros(4), 7, 3).pvalue == 1.0
    for d in (np.full(4, 0.25), np.array([100.3 - 100.0, 60.3 - 60.0])):  # the second differ by rounding
        result = nadeau_bengio_test(d, 7, 3)
        assert np.isnan([result.pvalue, result.statistic, result.low, result.high]).all() and result.mean == pytest.approx(d[0])
    same = compare("x", "y", "acc@3", np.array([0.5, 0.25]), np.array([0.25, 0.0]), 7, 3)
    assert same.t_test is None and same.interval is None and same.value_first - same.value_second == 0.25


def test_overlapping_splits_fool_the_naive_test_only():
    """Differences of equal models on random test halves of the same 60 classes."""
    rng = np.random.default_rng(1)
    naive = corrected = 0
    for _ in range(500):
        per_class = rng.standard_normal(60)
        d = np.array([per_class[rng.permutation(60)[:18]].mean() for _ in range(20)])
        naive += ttest_1samp(d, 0.0).pvalue <= 0.05
        corrected += nadeau_bengio_test(d, 42, 18).pvalue <= 0.05
    assert corrected <= binom.ppf(0.999, 500, 0.05) < naive


def test_sign_flip_is_scipys_exact_test():
    d = np.random.default_rng(2).normal(0.5, 1, 10)
    oracle = permutation_test(
        (d,), lambda x, axis: np.abs(x.mean(axis)), permutation_type="samples", vectorized=True, n_resamples=np.inf, alternative="greater"
    )
    result = sign_flip_test(d)
    assert result.exact and result.pvalue == pytest.approx(oracle.pvalue, abs=1e-15)


def test_sign_flip_random_agrees_with_exact_and_skips_untested_classes():
    rng = np.random.default_rng(3)
    d = rng.normal(0.4, 1, 17)
    exact = sign_flip_test(d)
    padded = np.r_[d, np.nan, np.nan, 0.0, 0.0]
    assert sign_flip_test(padded).pvalue == exact.pvalue and sign_flip_test(padded).n_classes == 19
    doubled = np.r_[d, 1e-9]  # 18 classes that differ: drawn, not listed
    drawn = sign_flip_test(doubled, np.random.default_rng(4))
    assert not drawn.exact and drawn.pvalue == pytest.approx(exact.pvalue, abs=0.02)
    assert sign_flip_test(np.zeros(5)).pvalue == 1.0


def test_sign_flip_keeps_its_level():
    rng = np.random.default_rng(5)
    rejected = sum(sign_flip_test(rng.standard_t(3, 40), rng, 199).pvalue <= 0.05 for _ in range(400))
    assert rejected <= binom.ppf(0.999, 400, 0.05)


def test_compare():
    rng = np.random.default_rng(6)
    a, b = rng.uniform(size=(2, 5))
    classes = rng.uniform(size=(2, 30))
    result = compare("x", "y", "acc@3", a, b, 35, 15, *classes)
    assert result.t_test.mean == pytest.approx((a - b).mean()) and result.sign_flip.n_classes == 30
    assert result.interval.low < result.t_test.mean < result.interval.high
    assert compare("x", "y", "acc@3", a[:1], b[:1], 35, 15).t_test is None
    assert result.to_dict()["t_test"]["n_splits"] == 5


def test_bad_input_is_named():
    with pytest.raises(InputError, match="at least two splits"):
        nadeau_bengio_test(np.ones(1), 7, 3)
    with pytest.raises(InputError, match="same splits"):
        compare("x", "y", "acc@3", np.ones(3), np.ones(4), 7, 3)
