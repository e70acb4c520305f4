"""A model against its baselines: what a claim needs, its level where they are equal, its power where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from fastprobe.errors import InputError
from fastprobe.statistics.baselines import beats_baselines, verdict

N_TRAIN, N_TEST = 70, 30


def studies(count, splits, lead, seed, baselines=1, classes=100, permutations=99):
    """Tests of a model that does better by `lead` in classes that model and baselines share, on overlapping random splits."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shared = rng.normal(0.4, 0.2, classes)
        own = [shared + rng.normal(0, 0.15, classes) + (lead if i == 0 else 0.0) for i in range(baselines + 1)]
        tested = np.stack([rng.permutation(classes)[:N_TEST] for _ in range(splits)])
        per_split = np.stack([values[tested].mean(axis=1) for values in own])
        null = rng.normal(0.05, 0.02, (baselines + 1, permutations))
        t = np.column_stack([per_split.mean(axis=1), null])
        yield beats_baselines(t[0], t[1:], per_split[0], per_split[1:], [f"b{i}" for i in range(baselines)], N_TRAIN, N_TEST)


@pytest.mark.parametrize("splits", [5, 20])
@pytest.mark.parametrize("baselines", [1, 3])
def test_a_model_that_is_no_better_is_seldom_called_better(splits, baselines):
    rejected = sum(map(bool, studies(400, splits, 0.0, 1, baselines)))
    assert rejected <= binom.ppf(0.995, 400, 0.05)


@pytest.mark.parametrize("splits", [5, 20])
def test_a_lead_is_found(splits):
    assert sum(map(bool, studies(100, splits, 0.15, 2))) > 80


def test_a_claim_needs_splits_and_permutations():
    rng = np.random.default_rng(0)
    null, far, near = rng.normal(0, 0.01, (2, 99)), [0.2, 0.21, 0.22, 0.2], [0.1, 0.1, 0.11, 0.1]

    def test_of(model, baseline, spread):
        return beats_baselines(
            np.r_[np.mean(model), spread * null[0]], np.r_[np.mean(baseline), spread * null[1]][None], model, [baseline], ["b"], 70, 30
        )

    assert test_of(far, near, 1)
    wide = test_of(far, near, 100)  # the lead is within what chance pairings give
    assert not wide and wide.pvalue == wide.pvalue_permutations > 0.05 > wide.pvalue_splits
    unsteady = test_of([0.5, 0.0, 0.3, 0.04], near, 1)  # the lead is that of a single split
    assert not unsteady and unsteady.pvalue == unsteady.pvalue_splits > 0.05 > unsteady.pvalue_permutations


def test_the_best_baseline_is_named_and_all_must_be_beaten():
    rng = np.random.default_rng(1)
    null = rng.normal(0, 0.01, (3, 99))
    splits = np.array([[0.3, 0.31, 0.29], [0.1, 0.12, 0.11], [0.2, 0.15, 0.34]])
    t = np.column_stack([splits.mean(axis=1), null])
    both = beats_baselines(t[0], t[1:], splits[0], splits[1:], ["low", "high"], 70, 30, ["low does", "high does"])
    assert (both.baseline, both.words) == ("high", "high does") and both.difference == pytest.approx(0.07)
    alone = [beats_baselines(t[0], t[[i]], splits[0], splits[[i]], ["b"], 70, 30).pvalue for i in (1, 2)]
    assert both.pvalue == max(alone) and alone[0] < 0.05 < alone[1]


def test_without_splits_the_permutations_judge_and_without_both_nothing_does():
    null = np.random.default_rng(2).normal(0, 0.01, (2, 99))
    similarity = beats_baselines(np.r_[0.3, null[0]], np.r_[0.1, null[1]][None], [np.nan] * 3, [[np.nan] * 3], ["b"], 70, 30)
    assert similarity and similarity.pvalue == 0.01 and np.isnan(similarity.pvalue_splits)
    nothing = beats_baselines(np.array([0.3]), np.array([[0.1]]), [0.3], [[0.1]], ["b"], 70, 30)
    assert not nothing and np.isnan(nothing.pvalue)
    alike = beats_baselines(np.r_[0.3, null[0]], np.r_[0.1, null[1]][None], [0.3] * 3, [[0.1] * 3], ["b"], 70, 30)
    assert not alike and np.isnan(alike.pvalue), "no spread to judge by is not certainty"


def test_bad_input_is_named():
    with pytest.raises(InputError, match="at least one row"):
        beats_baselines(np.zeros(3), np.zeros((0, 3)), np.zeros(2), np.zeros((0, 2)), [], 70, 30)
    with pytest.raises(InputError, match="permutations and splits"):
        beats_baselines(np.zeros(3), np.zeros((1, 4)), np.zeros(2), np.zeros((1, 2)), ["b"], 70, 30)


def test_the_verdict_says_which_question_was_answered():
    assert verdict(0.2, True, "the spelling does") == "no evidence that the geometry carries over"
    assert verdict(0.01, True, "the spelling does") == "the geometry carries over, and further than the spelling does"
    assert verdict(0.01) == "the geometry carries over"
    assert verdict(float("nan")) == "no evidence that the geometry carries over"
