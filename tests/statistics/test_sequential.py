"""Early stopping: each rule's arithmetic, its validity, and what it saves (simulations with fixed seeds)."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import comb
from scipy.stats import binom

from fastprobe.errors import InputError
from fastprobe.statistics import multiplicity
from fastprobe.statistics.sequential import (
    MIXTURE,
    SequentialFamily,
    SequentialTest,
    StopRule,
    anytime_pvalue,
    besag_clifford_pvalue,
    mixture_wealth,
    parse_stop,
    simulate,
)


def test_parse():
    assert parse_stop("besag-clifford:h=10") == StopRule("besag-clifford", h=10)
    assert parse_stop("anytime:alpha=0.01,burn_in=50") == StopRule("anytime", alpha=0.01, burn_in=50)
    for rule in (StopRule("besag-clifford", h=7), StopRule("anytime", alpha=0.2, burn_in=9)):
        assert parse_stop(str(rule)) == rule


@pytest.mark.parametrize(
    "text,match",
    [
        ("never", "besag-clifford"),
        ("besag-clifford:h=0", "h must"),
        ("besag-clifford:alpha=0.1", "takes h"),
        ("anytime:alpha=1.5", "alpha"),
        ("anytime:alpha=x", "number"),
        ("anytime:alpha", "takes"),
        ("anytime:burn_in=1", "burn_in"),
    ],
)
def test_bad_rules_are_named(text, match):
    with pytest.raises(InputError, match=match):
        parse_stop(text)


def test_wealth_is_the_integral_it_claims_to_be():
    for x, t, c in ((0, 5, 0.045), (3, 40, 0.1), (12, 60, 0.3)):
        integral = quad(lambda u, x=x, t=t: u**x * (1 - u) ** (t - x), 0, c)[0]
        assert mixture_wealth(x, t, c) == pytest.approx((t + 1) * comb(t, x) * integral / c, rel=1e-9)


def test_wealth_is_a_martingale_under_exchangeability():
    """P(next exceeds | x of t) = (x + 1)/(t + 2): the expected wealth after the next step is the wealth now."""
    for x, t, c in ((0, 0, 0.045), (1, 9, 0.2), (8, 30, 0.09)):
        up = (x + 1) / (t + 2)
        expected = up * mixture_wealth(x + 1, t + 1, c) + (1 - up) * mixture_wealth(x, t + 1, c)
        assert expected == pytest.approx(float(mixture_wealth(x, t, c)), rel=1e-10)
    assert mixture_wealth(0, 0, 0.045) == pytest.approx(1.0)


def test_anytime_pvalue_inverts_the_wealth():
    for x, t in ((0, 100), (2, 300), (9, 1000)):
        a = float(anytime_pvalue(x, t))
        assert mixture_wealth(x, t, MIXTURE * a) == pytest.approx(1 / a, rel=1e-9)


def test_besag_clifford_stops_at_the_hth_exceedance():
    test = SequentialTest(StopRule("besag-clifford", h=3))
    assert test.pvalue == 1.0
    assert test.update(np.array([0, 1, 0, 0, 1, 0, 1, 1], bool)) == 7
    assert test.decision == "enough" and test.pvalue == 3 / 7 and test.permutations == 7
    assert test.update(np.ones(5, bool)) == 0 and test.pvalue == 3 / 7


def test_without_a_stop_besag_clifford_is_the_add_one_pvalue():
    assert besag_clifford_pvalue(2, 99, 10, limit=99) == 3 / 100
    assert besag_clifford_pvalue(2, 99, 10) == 10 / 107, "stopped before the end: the worst that could still come"
    # h = B + 1 can never be reached: the ordinary test
    rng = np.random.default_rng(0)
    t = rng.normal(size=(1, 200))
    test = SequentialTest(StopRule("besag-clifford", h=200), limit=199)
    test.update(t[0, 1:] >= t[0, 0])
    assert test.pvalue == multiplicity.add_one_pvalues(t)[0]


@pytest.mark.parametrize("rule", [StopRule("besag-clifford", h=4), StopRule("anytime", alpha=0.1)])
@pytest.mark.parametrize("pairs", [1, 3])
def test_the_stop_does_not_depend_on_how_replicates_arrive(rule, pairs):
    rng = np.random.default_rng(1)
    rule = StopRule(rule.name, h=rule.h, alpha=rule.alpha, burn_in=20)
    t0, t = rng.normal(1, 1, pairs), rng.normal(size=(pairs, 600))
    outcomes = []
    for sizes in ([600], [1] * 600, [7] * 85 + [5], [19, 1, 580], [21, 579]):
        family, at = SequentialFamily(rule, t0), 0
        for size in sizes:
            if family.update(t[:, at : at + size]):
                break
            at += size
        counted = tuple(test.permutations for test in family.tests)
        outcomes.append((family.done, family.seen, tuple(family.pvalues), tuple(family.unadjusted), counted))
    assert len(set(outcomes)) == 1


@pytest.mark.parametrize(
    "rule,alpha",
    [(StopRule("besag-clifford", h=10), 0.05), (StopRule("anytime", alpha=0.05), 0.05), (StopRule("anytime", alpha=0.05), 0.02)],
)
def test_type_one_error_under_the_null(rule, alpha):
    rng = np.random.default_rng(2)
    result = simulate(rule, rng.uniform(size=2000), 600, alpha, rng)
    assert result.rejected.sum() <= binom.ppf(0.999, 2000, alpha)


@pytest.mark.parametrize("rule", [StopRule("besag-clifford", h=1), StopRule("besag-clifford", h=10), StopRule("anytime", alpha=0.1)])
@pytest.mark.parametrize("ties", [False, True])
def test_size_at_every_level_on_replicates(rule, ties):
    """The observed run and the permutations exchangeable, ties counted: the limiting p is then no longer uniform."""
    t = np.random.default_rng(10).standard_normal((1500, 300))
    p = []
    for row in np.round(2 * t) if ties else t:
        test = SequentialTest(rule, 299)
        test.update(row[1:] >= row[0])
        p.append(test.pvalue)
    for alpha in (0.01, 0.05, 0.1, 0.25, 0.5):
        assert np.sum(np.array(p) <= alpha) <= binom.ppf(0.999, 1500, alpha)
    assert ties or np.mean(np.array(p) <= 0.1) > 0.05


def test_looking_at_the_plain_pvalue_all_the_time_errs_and_the_anytime_one_does_not():
    rng = np.random.default_rng(3)
    plain = valid = 0
    for p in rng.uniform(size=800):
        x = np.cumsum(rng.random(2000) < p)
        t = np.arange(1, 2001)
        plain += ((x + 1) / (t + 1) <= 0.05).any()
        valid += (anytime_pvalue(x, t) <= 0.05).any()
    assert valid <= binom.ppf(0.999, 800, 0.05) < plain


def test_saving_with_effects_and_nulls_mixed():
    """Half true nulls, half clear effects, B = 2000: a fixed B would train all of it."""
    rng = np.random.default_rng(4)
    true_p = np.r_[rng.uniform(size=300), np.full(300, 1e-4)]
    bc = simulate(StopRule("besag-clifford", h=10), true_p, 2000, 0.05, rng)
    anytime = simulate(StopRule("anytime", alpha=0.05), true_p, 2000, 0.05, rng)
    for result in (bc, anytime):
        assert result.rejected[:300].sum() <= binom.ppf(0.999, 300, 0.05)
        assert result.rejected[300:].mean() > 0.95
    assert bc.permutations[:300].mean() < 150 and bc.saving > 0.4, "nulls stop early; effects run to the end"
    assert anytime.permutations[300:].mean() < 150 and anytime.saving > 0.8, "effects stop early as well"


def test_family_controls_its_error_and_stops_together():
    rng = np.random.default_rng(5)
    rules = (StopRule("besag-clifford", h=5, burn_in=50), StopRule("anytime", alpha=0.05, burn_in=50))
    errors, own_errors, used = np.zeros(2), np.zeros(2), [[], []]
    for _ in range(300):
        t = np.sqrt(0.5) * rng.standard_normal((1, 551)) + np.sqrt(0.5) * rng.standard_normal((6, 551))
        t *= np.logspace(-2, 2, 6)[:, None]
        for i, rule in enumerate(rules):
            family = SequentialFamily(rule, t[:, 0], 550)
            family.update(t[:, 1:])
            errors[i] += (family.pvalues <= 0.05).any()
            own_errors[i] += family.unadjusted[3] <= 0.05
            used[i].append(family.seen)
            assert family.seen == 50 + max(x.permutations for x in family.tests)
    assert (errors <= binom.ppf(0.999, 300, 0.05)).all() and (own_errors <= binom.ppf(0.999, 300, 0.05)).all()
    assert all(np.mean(u) < 400 for u in used)


def test_family_finds_a_true_effect_beside_nulls():
    rng = np.random.default_rng(6)
    t = rng.standard_normal((4, 2001)) * [[1.0], [10.0], [0.1], [1.0]]
    t[1, 0] = 60.0
    family = SequentialFamily(StopRule("anytime", alpha=0.05, burn_in=50), t[:, 0])
    assert family.update(t[:, 1:])
    assert [test.decision for test in family.tests].count("reject") == 1 and family.tests[1].decision == "reject"


def test_a_pair_without_scale_never_becomes_significant():
    rng = np.random.default_rng(7)
    t = np.vstack([np.full(501, 0.3), rng.standard_normal(501)])
    family = SequentialFamily(StopRule("besag-clifford", h=10, burn_in=50), t[:, 0])
    family.update(t[:, 1:])
    assert family.pvalues[0] == 1.0


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 99])
def test_a_short_run_of_several_pairs_keeps_permutations_to_count(limit):
    """The burn-in takes at most half: with all of them every adjusted p would be 1, whatever was found."""
    t = np.random.default_rng(8).standard_normal((2, limit + 1))
    t[:, 0] = 9.0
    family = SequentialFamily(StopRule("besag-clifford", h=5), t[:, 0], limit)
    family.update(t[:, 1:])
    assert family.pvalues == pytest.approx(1 / (1 + limit - family.burn_in)) and (limit == 1 or (family.pvalues < 1).all())


@pytest.mark.parametrize("rule", [StopRule("besag-clifford", h=5), StopRule("anytime", alpha=0.1)])
def test_a_short_run_of_two_pairs_with_ties_keeps_its_family_wise_level(rule):
    rng, wrong = np.random.default_rng(9), 0
    for _ in range(600):
        t = np.round(2 * (rng.standard_normal((1, 61)) + rng.standard_normal((2, 61)))) * [[1.0], [20.0]]
        family = SequentialFamily(rule, t[:, 0], 60)
        family.update(t[:, 1:])
        wrong += family.pvalues.min() <= 0.1
    assert 0 < wrong <= binom.ppf(0.999, 600, 0.1)


def test_wrong_shape_is_named():
    with pytest.raises(InputError, match="one row for each of the 2 pairs"):
        SequentialFamily(StopRule("anytime"), np.zeros(2)).update(np.zeros((3, 4)))
