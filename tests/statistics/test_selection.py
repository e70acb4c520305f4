"""Selection that is paid for: what was chosen, the level under the null, the power beside a fixed choice."""

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.statistics.multiplicity import add_one_pvalues
from fastprobe.statistics.selection import best_configuration, nested_choice
from fastprobe.statistics.significance import counted_pvalue

CELLS, SPLITS, B, STUDIES = 12, 5, 99, 600
LIMIT = 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)


def studies(seed, effect):
    """Inner and outer scores of 12 configurations that share much of their noise; `effect` (cells,) shifts the observed run."""
    rng = np.random.default_rng(seed)
    shape = (CELLS, SPLITS, B + 1)
    for _ in range(STUDIES):
        inner, outer = (
            np.sqrt(0.6) * rng.standard_normal((1, 1, B + 1))
            + np.sqrt(0.4) * rng.standard_normal((CELLS, 1, B + 1))
            + 0.3 * rng.standard_normal(shape)
            for _ in range(2)
        )
        for scores in (inner, outer):
            scores[:, :, 0] += effect[:, None]
        yield inner, outer


def rejections(seed, effect):
    """Shares rejected at .05: the naive best, the studentised maximum, the nested choice, a fixed configuration."""
    found = np.zeros(4)
    for inner, outer in studies(seed, effect):
        t = outer.mean(axis=1)
        best = best_configuration(t, ["pair"] * CELLS)
        nested = nested_choice(inner, outer)[1]
        p = [
            add_one_pvalues(t[best.chosen])[0],
            best.family.pvalue[0],
            counted_pvalue(nested[0], nested[1:]),
            add_one_pvalues(t[5:6])[0],
        ]
        found += np.array(p) <= 0.05
    return found / STUDIES


def test_both_rules_keep_their_level_where_the_naive_best_does_not():
    naive, best, nested, fixed = rejections(1, np.zeros(CELLS))
    assert naive > 0.14
    assert max(best, nested, fixed) <= LIMIT


def test_both_rules_beat_a_fixed_typical_configuration():
    _, best, nested, fixed = rejections(2, np.linspace(0.5, 3.0, CELLS))
    assert best > fixed + 0.1 and nested > fixed + 0.1


def test_the_choice_and_the_maximum_are_their_definitions():
    t = np.random.default_rng(3).normal(size=(5, 50))
    t[3, 0] = 9.0
    best = best_configuration(t, ["a", "b", "a", "b", "a"])
    z = (t - t.mean(1, keepdims=True)) / t.std(1, keepdims=True)
    assert best.family.members == ("a", "b") and best.chosen[1] == 3
    np.testing.assert_allclose(best.maxima, [z[[0, 2, 4]].max(0), z[[1, 3]].max(0)])
    assert best.family.pvalue[1] == 1 / 50 and (best.family.single_step >= best.family.pvalue).all()


def test_nested_choice_is_its_definition():
    inner, outer = np.random.default_rng(4).normal(size=(2, 4, 3, 20))
    chosen, replicates = nested_choice(inner, outer)
    for b in range(20):
        k = max(range(4), key=lambda i: inner[i, :, b].mean())
        assert chosen[b] == k and replicates[b] == pytest.approx(outer[k, :, b].mean())


def test_bad_input_is_named():
    scores = np.zeros((2, 3, 4))
    with pytest.raises(InputError, match=r"`inner` and `outer`"):
        nested_choice(scores, scores[:1])
    broken = scores.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"`outer` must be finite; cell 1"):
        nested_choice(scores, broken)
    with pytest.raises(InputError, match="test 1 has NaN"):
        best_configuration(broken[:, 0], ["a", "a"])
