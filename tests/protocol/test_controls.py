"""Nulls: distinct relabellings counted and listed, frozen ranks against the plain loop, blocks and their level."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest
from scipy.stats import binom

from fastprobe.errors import InputError
from fastprobe.kernels import reference
from fastprobe.protocol import controls, plan
from fastprobe.statistics.multiplicity import add_one_pvalues


def test_distinct_permutations_are_counted_exactly():
    assert controls.count_distinct(5) == 120
    assert controls.count_distinct(6, np.array(list("aabbbc"))) == 12
    assert controls.count_distinct(200) == factorial(200)
    assert controls.say_count(5040) == 5040 and controls.say_count(factorial(2000)) == "10^5735.5"


def test_listing_is_complete_and_starts_with_the_identity():
    groups = np.array(list("ababc"))
    table = controls.enumerate_distinct(5, groups)
    assert len({tuple(row) for row in table}) == len(table) == 4
    np.testing.assert_array_equal(table[0], np.arange(5))
    assert all((groups[row] == groups).all() for row in table)
    assert sorted(map(tuple, controls.enumerate_distinct(4))) == sorted(permutations(range(4)))


def test_source_lists_when_few_and_draws_when_many():
    groups = np.array(list("aabb"))
    few = controls.permutation_source("permute-within", 0, 4, 1000, groups)
    assert few.enumerated and few.n_permutations == 3 and few.distinct == 4
    np.testing.assert_array_equal(few.draw(1, 3), controls.enumerate_distinct(4, groups)[1:3])
    many = controls.permutation_source("permute", 7, 30, 50)
    assert not many.enumerated and many.n_permutations == 50
    np.testing.assert_array_equal(many.draw(0, 51), plan.permutations(7, 0, 51, 30))
    asked_for_less = controls.permutation_source("permute", 7, 5, 50)
    assert not asked_for_less.enumerated and asked_for_less.n_permutations == 50


def test_an_enumerated_test_is_exact():
    """Every distinct relabelling once: the add-one p is the exact p of the permutation group."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5))
    source = controls.permutation_source("permute", 0, 5, 10**6)
    t = np.array([[x @ y[p] for p in source.draw(0, source.n_permutations + 1)]])
    everything = [x @ y[list(p)] for p in permutations(range(5))]
    assert add_one_pvalues(t)[0] == pytest.approx(np.mean(np.array(everything) >= x @ y - 1e-12))


def test_blocks_keep_their_level_when_only_the_category_carries_signal():
    """Two tables share nothing but their category: the plain null rejects, the blocked one does so at its level."""
    rng = np.random.default_rng(1)
    groups, studies, b = np.repeat(np.arange(4), 6), 200, 39
    rejected = {"permute": 0, "permute-within": 0}
    for study in range(studies):
        centre = 2 * rng.normal(size=(4, 3))
        x, y = (centre[groups] + rng.normal(size=(24, 3)) for _ in range(2))
        for control in rejected:
            source = controls.permutation_source(control, study, 24, b, groups if control == "permute-within" else None)
            t = np.array([[np.sum(x[p] * y) for p in source.draw(0, b + 1)]])
            rejected[control] += add_one_pvalues(t)[0] <= 0.05
    assert rejected["permute-within"] <= binom.ppf(0.999, studies, 0.05)
    assert rejected["permute"] > 0.9 * studies


def test_frozen_ranks_are_those_of_a_permuted_gallery():
    rng = np.random.default_rng(2)
    n_classes, test = 9, np.array([1, 4, 5, 8])
    queries = np.repeat(test, 3)
    a, b = (reference.norm(rng.normal(size=(n, 4)))[0] for n in (n_classes, len(queries)))
    orders = controls.frozen_permutations(3, 0, 0, 6, test)
    np.testing.assert_array_equal(orders[0], test)
    found = controls.frozen_ranks(b @ a.T, queries, test, orders)
    for row, order in zip(found, orders):
        gallery = np.arange(n_classes)
        gallery[test] = order
        np.testing.assert_array_equal(row, reference.ranks(a[gallery], b, queries))


def test_frozen_ties_count_against_us():
    scores = np.array([[0.5, 0.5, 0.1], [0.2, 0.2, 0.2]])
    found = controls.frozen_ranks(scores, np.array([0, 2]), np.array([0, 2]), np.array([[0, 2], [2, 0]]))
    np.testing.assert_array_equal(found, [[2, 3], [3, 3]])


def test_gaussian_texts_have_the_same_mean_and_covariance():
    rng = np.random.default_rng(3)
    f = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 3
    draws = np.concatenate([controls.gaussian_texts(f, rng) for _ in range(600)])
    scale = np.abs(np.cov(f.T)).max()
    np.testing.assert_allclose(np.cov(draws.T), np.cov(f.T), atol=0.05 * scale)
    np.testing.assert_allclose(draws.mean(0), f.mean(0), atol=0.05 * np.sqrt(scale))
    low_rank = f[:, :2] @ rng.normal(size=(2, 6))
    assert np.linalg.matrix_rank(controls.gaussian_texts(low_rank, rng) - low_rank.mean(0), tol=1e-8) == 2


def test_groups_are_read_and_checked(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("label,top\ndog,animal\ncat,animal\nbell,thing\n")
    assert controls.read_groups(path, "top", ["bell", "dog"]).tolist() == ["thing", "animal"]
    with pytest.raises(InputError, match="no column 'kind'; it has label, top"):
        controls.read_groups(path, "kind", ["dog"])
    with pytest.raises(InputError, match="'owl'"):
        controls.read_groups(path, "top", ["dog", "owl"])
    path.write_text("label,top\ndog,animal\ndog,thing\n")
    with pytest.raises(InputError, match="both 'animal' and 'thing'"):
        controls.read_groups(path, "top", ["dog"])
    assert len(controls.read_groups("fsd50k", "top_categories", ["Accordion", "Bark"])) == 2


def test_controls_that_do_not_fit_together_are_named():
    groups = np.array(list("aab"))
    for call, match in (
        (lambda: controls.check_control("shuffle", None), "must be one of"),
        (lambda: controls.check_control("permute-within", None), "needs `groups`"),
        (lambda: controls.check_control("permute", groups), "belongs to"),
        (lambda: controls.permutation_source("permute-within", 0, 3, 9, np.array(list("abc"))), "alone"),
        (lambda: controls.enumerate_distinct(20), "too many"),
    ):
        with pytest.raises(InputError, match=match):
            call()
