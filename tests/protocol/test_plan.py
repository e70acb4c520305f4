"""Randomness is a function of the job's coordinates; the plan minus what is stored is what is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fastprobe.errors import InputError
from fastprobe.protocol import plan
from fastprobe.protocol.plan import JobPlan, Unit
from fastprobe.randomness import CONTROL, PERMUTATION, shuffles
from support.strategies import SEEDS


@given(SEEDS, st.integers(0, 50), st.integers(8, 200), st.floats(0.3, 0.8))
def test_a_split_is_a_partition(seed, number, n_classes, fraction):
    train, test = plan.split_classes(seed, number, n_classes, fraction)
    assert sorted([*train, *test]) == list(range(n_classes))
    assert len(train) == plan.train_count(n_classes, fraction)
    assert min(len(train), len(test)) >= 2


def test_the_papers_split():
    assert plan.train_count(144, 0.7) == 101


@pytest.mark.parametrize(("n", "fraction"), [(50, 0.99), (3, 0.7), (50, 0.01), (50, 0.0), (50, 1.5), (50, float("nan"))])
def test_train_fraction_must_leave_two_on_each_side(n, fraction):
    with pytest.raises(InputError, match="`train_fraction`"):
        plan.train_count(n, fraction)


@given(SEEDS, st.integers(1, 10**6), st.integers(1, 60))
def test_a_permutation_is_one_and_does_not_depend_on_the_total(seed, number, n):
    one = plan.permutation(seed, number, n)
    assert sorted(one) == list(range(n))
    assert np.array_equal(one, plan.permutations(seed, number - 1, number + 2, n)[1])


def test_permutations_that_are_stored_somewhere_stay_what_they_are():
    """A change here needs a new number in `randomness.SHUFFLES`, or runs that are continued would mix two kinds."""
    assert plan.permutation(7, 3, 9).tolist() == [4, 5, 8, 0, 7, 6, 1, 2, 3]
    assert plan.permutation(7, 10**9, 6, np.array(list("abcabc"))).tolist() == [3, 1, 5, 0, 4, 2]


@given(SEEDS, st.integers(2, 5), st.integers(1, 10**9))
def test_shuffles_of_different_purposes_places_and_numbers_differ(seed, place, number):
    first = shuffles(seed, PERMUTATION, (), number, number + 1, 40)
    for other in (
        shuffles(seed, CONTROL, (), number, number + 1, 40),
        shuffles(seed, PERMUTATION, (place,), number, number + 1, 40),
        shuffles(seed, PERMUTATION, (), number + 1, number + 2, 40),
        shuffles(seed + 1, PERMUTATION, (), number, number + 1, 40),
    ):
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("groups", [None, np.repeat([2, 0, 1], [3, 3, 1])[[0, 6, 1, 3, 2, 4, 5]]])
def test_every_position_goes_everywhere_equally_often(groups):
    n, draws = 7, 20_000
    orders = shuffles(5, PERMUTATION, (), 0, draws, n, groups)
    for i in range(n):
        allowed = np.arange(n) if groups is None else np.flatnonzero(groups == groups[i])
        counts = np.bincount(orders[:, i], minlength=n)
        assert counts[allowed].sum() == draws and (len(allowed) == 1 or chisquare(counts[allowed]).pvalue > 1e-3)


@given(SEEDS)
def test_number_zero_is_the_identity(seed):
    assert np.array_equal(plan.permutation(seed, 0, 12), np.arange(12))


def test_permutations_are_uniform_identity_included():
    drawn = [tuple(p) for p in plan.permutations(3, 1, 24 * 100 + 1, 4)]
    counts = [drawn.count(p) for p in itertools.permutations(range(4))]
    assert min(counts) > 0 and chisquare(counts).pvalue > 1e-3


@given(SEEDS, st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_groups_keep_their_rows(seed, groups):
    groups = np.array(groups)
    out = plan.permutation(seed, 5, len(groups), groups)
    assert sorted(out) == list(range(len(groups))) and np.array_equal(groups[out], groups)


@given(SEEDS, st.integers(0, 9), st.lists(st.integers(1, 7), min_size=2, max_size=8), st.integers(0, 5), st.integers(1, 3))
def test_clips_belong_to_their_classes(seed, split, count, steps, per_class):
    count = np.array(count)
    first = np.cumsum(count) - count
    rows = plan.sample_clips(seed, split, 0, first, count, steps, per_class)
    assert rows.shape == (steps, len(count) * per_class)
    of = np.repeat(np.arange(len(count)), per_class)
    assert np.all(rows >= first[of]) and np.all(rows < (first + count)[of])


def test_every_clip_is_drawn_equally_often():
    rows = plan.sample_clips(0, 0, 0, np.array([0]), np.array([10]), 10_000, 1)
    assert chisquare(np.bincount(rows.ravel(), minlength=10)).pvalue > 1e-3


def test_streams_differ_between_purposes_and_coordinates():
    draws = [plan.generator(7, p, i).random() for p in (1, 2, 3, 4) for i in range(4)]
    assert len(set(draws)) == len(draws)


def test_starts_have_variance_one_over_r():
    w, v = plan.start_heads(0, 0, 0, 400, 90, 64)
    assert w.shape == (400, 64) and v.shape == (90, 64)
    assert w.std() == pytest.approx(1 / 20, rel=0.02) and v.std() == pytest.approx(90**-0.5, rel=0.03)


@given(
    st.integers(1, 3),
    st.integers(0, 40),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 10)), max_size=6),
)
def test_missing_is_the_set_difference(n_pairs, n_permutations, size, stored):
    the_plan = JobPlan(n_pairs, 2, 1, n_permutations)
    done = [Unit(p, a, a + n) for p, a, n in stored]
    missing = the_plan.missing(done, size)
    cells = [(u.cell, b) for u in missing for b in range(u.start, u.stop)]
    have = {(u.cell, b) for u in done for b in range(u.start, u.stop)}
    everything = {(p, b) for p in range(n_pairs) for b in range(n_permutations + 1)}
    assert len(cells) == len(set(cells)) and set(cells) == everything - have
    assert all(0 < u.stop - u.start <= size for u in missing)


def test_jobs_are_counted_right():
    the_plan = JobPlan(2, 3, 2, 4)
    assert the_plan.n_jobs == len(list(the_plan)) == len(set(the_plan)) == 60
    with pytest.raises(InputError, match="`permutations`.*got -1"):
        JobPlan(1, 1, 1, -1)
