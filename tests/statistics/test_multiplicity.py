"""Families: oracles for each adjustment, and the error rates they promise, by simulation with fixed seeds."""

import numpy as np
import pytest
from scipy.stats import binom, permutation_test
from statsmodels.stats.multitest import multipletests

from fastprobe.errors import InputError
from fastprobe.statistics import multiplicity as mt
from fastprobe.statistics.significance import max_t_pvalues, studentise


def correlated(rng, studies, m, b, rho, effect=0.0):
    """Replicates of `studies` families (studies, m, b+1): equicorrelated normals, the first half of the tests shifted."""
    shared = rng.standard_normal((studies, 1, b + 1))
    t = np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((studies, m, b + 1))
    t[:, : m // 2, 0] += effect
    return t


def max_t_by_definition(t):
    z = (t - t.mean(1, keepdims=True)) / t.std(1, keepdims=True)
    return np.array([(1 + sum(z[:, b].max() >= z[j, 0] for b in range(1, t.shape[1]))) / t.shape[1] for j in range(len(t))])


def step_down_by_definition(t):
    z = (t - t.mean(1, keepdims=True)) / t.std(1, keepdims=True)
    order, p, running = sorted(range(len(t)), key=lambda j: -z[j, 0]), np.empty(len(t)), 0.0
    for i, j in enumerate(order):
        rest = order[i:]
        running = max(running, (1 + sum(max(z[k, b] for k in rest) >= z[j, 0] for b in range(1, t.shape[1]))) / t.shape[1])
        p[j] = running
    return p


@pytest.mark.parametrize("m,b", [(1, 1), (2, 7), (5, 99), (13, 41)])
def test_max_t_and_step_down_are_their_definitions(m, b):
    rng = np.random.default_rng(m)
    t = rng.normal(size=(m, b + 1)) * rng.uniform(0.1, 10, (m, 1)) + rng.normal(size=(m, 1))
    t[:, 0] += rng.uniform(0, 3, m)
    np.testing.assert_array_equal(mt.max_t(t), max_t_by_definition(t))
    np.testing.assert_array_equal(mt.max_t(t), max_t_pvalues(t))
    np.testing.assert_array_equal(mt.step_down(t), step_down_by_definition(t))


def test_one_test_is_the_plain_add_one_pvalue_of_scipy():
    x, y = np.random.default_rng(0).normal(size=(2, 6))
    x += 0.8
    found = permutation_test(
        (x, y),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=400,
        alternative="greater",
        rng=np.random.default_rng(1),
    )
    t = np.concatenate([[found.statistic], found.null_distribution])[None]
    for p in (mt.add_one_pvalues(t), mt.max_t(t), mt.step_down(t)):
        assert p[0] == pytest.approx(found.pvalue, abs=1e-15)


def test_holm_and_bh_are_statsmodels():
    p = np.random.default_rng(3).uniform(size=23) ** 2
    np.testing.assert_array_equal(mt.holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_array_equal(mt.benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])


def test_order_of_the_adjustments():
    t = correlated(np.random.default_rng(4), 1, 12, 199, 0.5, effect=2.0)[0]
    f = mt.family("all pairs", [f"pair {i}" for i in range(12)], t)
    assert (f.pvalue <= f.step_down + 1e-15).all() and (f.step_down <= f.single_step + 1e-15).all()
    assert (f.bh <= f.holm + 1e-15).all() and (f.pvalue >= 1 / 200).all()
    by_observed = np.argsort(-studentise(t)[:, 0])
    assert (np.diff(f.step_down[by_observed]) >= 0).all()
    record = f.to_dict()
    assert record["n_tests"] == 12 and record["tests"][3]["pvalue_stepdown"] == f.step_down[3]


def test_scale_and_shift_of_a_test_change_nothing():
    rng = np.random.default_rng(5)
    t = rng.normal(size=(6, 300))
    moved = t * rng.uniform(1e-3, 1e3, (6, 1)) + rng.normal(size=(6, 1)) * 100
    np.testing.assert_array_equal(mt.max_t(t), mt.max_t(moved))
    np.testing.assert_array_equal(mt.step_down(t), mt.step_down(moved))


def test_moments_run_over_all_replicates():
    z = studentise(np.random.default_rng(6).normal(3, 2, (4, 50)))
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-14)
    np.testing.assert_allclose(z.std(1), 1, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -3.3])
def test_a_test_that_never_varies_has_p_one_and_harms_nobody(value):
    t = np.random.default_rng(7).normal(size=(3, 100))
    t[0, 0] = 9.0
    t[1] = value
    p = mt.max_t(t)
    assert p[1] == 1.0 and mt.step_down(t)[1] == 1.0 and p[0] == 1 / 100
    assert np.isfinite(studentise(t)).all()


def test_ties_count_against_us():
    t = np.array([[3, 3, 1, 2], [0.1 + 0.2, 0.3, 0.0, 0.0]], float)
    np.testing.assert_array_equal(mt.add_one_pvalues(t), [0.5, 0.5])


def test_best_layer_is_chosen_inside_every_replicate():
    rng = np.random.default_rng(8)
    t = rng.normal(size=(7, 400))
    t[5, 0] = 4.0
    names, winners, maxima = mt.best_of(t, list("aababbb"))
    z = studentise(t)
    assert names == ["a", "b"] and winners[1] == 5
    np.testing.assert_array_equal(maxima[0], z[[0, 1, 3]].max(0))
    np.testing.assert_array_equal(maxima[1], z[[2, 4, 5, 6]].max(0))


def test_a_best_layer_claim_keeps_its_level_where_the_naive_one_does_not():
    rng = np.random.default_rng(9)
    honest = naive = 0
    for t in correlated(rng, 400, 12, 99, 0.3):
        _, winners, maxima = mt.best_of(t, ["m"] * 12)
        honest += mt.add_one_pvalues(maxima)[0] <= 0.05
        naive += mt.add_one_pvalues(t[winners])[0] <= 0.05
    assert honest <= binom.ppf(0.999, 400, 0.05)
    assert naive > binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_family_wise_error_under_the_global_null(rho):
    rng = np.random.default_rng(10)
    studies, errors = 600, np.zeros(3)
    for t in correlated(rng, studies, 10, 99, rho):
        errors += [(p <= 0.05).any() for p in (mt.max_t(t), mt.step_down(t), mt.add_one_pvalues(t))]
    assert (errors[:2] <= binom.ppf(0.999, studies, 0.05)).all()
    assert errors[2] > binom.ppf(0.999, studies, 0.05), "without adjustment the error rate is far above its level"


@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_family_wise_error_of_two_pairs_with_ties(rho):
    """What an accuracy on a few clips is: two pairs that go together, and few distinct values."""
    studies, levels = 500, np.array([0.05, 0.1, 0.2])
    errors = sum(
        (np.array([[mt.max_t(t).min()], [mt.step_down(t).min()]]) <= levels).astype(int)
        for t in np.round(3 * correlated(np.random.default_rng(13), studies, 2, 99, rho)) / 30
    )
    assert (errors <= binom.ppf(0.999, studies, levels)).all() and (errors[:, 2] > 0.05 * studies).all()


def test_max_t_has_more_power_than_bonferroni_with_correlated_pairs():
    rng = np.random.default_rng(11)
    found = np.zeros(3)
    for t in correlated(rng, 150, 20, 999, 0.9, effect=2.6):
        raw = mt.add_one_pvalues(t)
        found += [np.sum(p[:10] <= 0.05) for p in (np.minimum(20 * raw, 1), mt.max_t(t), mt.step_down(t))]
    bonferroni, single, down = found / 1500
    assert single > bonferroni + 0.1 and down >= single


def test_step_down_errs_rarely_on_the_true_nulls_beside_strong_effects():
    rng = np.random.default_rng(12)
    wrong = sum((mt.step_down(t)[5:] <= 0.05).any() for t in correlated(rng, 400, 10, 99, 0.5, effect=6.0))
    assert wrong <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("m,b", [(1, 1), (2, 7), (5, 99)])
def test_min_p_is_its_definition(m, b):
    rng = np.random.default_rng(m)
    t = np.round(rng.normal(size=(m, b + 1)), 1)
    ranks = (t[:, None, :] >= t[:, :, None]).sum(2) / (b + 1)
    np.testing.assert_allclose(mt.permutation_ranks(t), ranks, rtol=1e-15)
    np.testing.assert_array_equal(mt.permutation_ranks(t)[:, 0], mt.add_one_pvalues(t))
    smallest = ranks[:, 1:].min(0)
    np.testing.assert_allclose(mt.min_p(t), [(1 + (smallest <= p).sum()) / (b + 1) for p in ranks[:, 0]])
    assert (mt.min_p(t, stepwise=True) <= mt.min_p(t)).all() and (mt.min_p(t, stepwise=True) >= ranks[:, 0]).all()


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_family_wise_error_of_min_p(rho):
    rng, studies, errors = np.random.default_rng(14), 400, np.zeros(2)
    for t in correlated(rng, studies, 10, 199, rho):
        errors += [(mt.min_p(t, stepwise).min() <= 0.05) for stepwise in (False, True)]
    assert (errors <= binom.ppf(0.999, studies, 0.05)).all()


def sparse_companions(rng, effect):
    """One test with an effect beside five that are 0 but for one permutation in eighty."""
    t = np.vstack([rng.standard_normal((1, 1000)), rng.random((5, 1000)) < 1 / 80]).astype(float)
    t[0, 0] += effect
    return t


def test_min_p_keeps_the_power_that_sparse_companions_take_from_max_t():
    rng, found = np.random.default_rng(15), np.zeros(2)
    for _ in range(200):
        t = sparse_companions(rng, 3.0)
        found += [p[0] <= 0.05 for p in (mt.max_t(t), mt.min_p(t))]
    by_max_t, by_min_p = found / 200
    assert by_max_t < 0.3 and by_min_p > 0.65


def test_weak_max_t_says_which_and_why():
    rng = np.random.default_rng(16)
    t = np.vstack([sparse_companions(rng, 3.0), np.exp(1.5 * rng.standard_normal((1, 1000))), np.full((1, 1000), 2.0)])
    reasons = mt.weak_max_t(t)
    assert sorted(reasons) == [1, 2, 3, 4, 5, 6]
    assert reasons[1].startswith("sparse") and reasons[6].startswith("skewed")
    assert mt.weak_max_t(t[1:2]) == {} and mt.weak_max_t(rng.standard_normal((4, 500))) == {}


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"`t` must have shape"):
        mt.max_t(np.zeros((3, 1)))
    with pytest.raises(InputError, match=r"test 1 has NaN"):
        mt.max_t(np.array([[1.0, 2.0], [np.nan, 0.0]]))
    with pytest.raises(InputError, match="`groups`"):
        mt.best_of(np.zeros((3, 4)), ["a"])
    with pytest.raises(InputError, match="`members`"):
        mt.family("x", ["a"], np.zeros((3, 4)))
