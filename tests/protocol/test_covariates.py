"""Covariates: what is taken out, level and power of the test beside plain and binned permutation, bad input."""

import numpy as np
import pytest
from scipy.stats import binom

from fastprobe.errors import InputError
from fastprobe.protocol.covariates import components, design, read_covariates
from fastprobe.statistics.significance import counted_pvalue

RULES = ("plain", "within 4 bins", "within 8 bins", "both sides once", "texts alone, once", "double")


def ridge_replicates(splits, audio, texts):
    """Minus the mean log rank of a ridge probe on unseen classes, float (B,), for each of the texts (B, C, r)."""
    out = np.zeros(len(texts))
    for train, test in splits:
        x = audio[train]
        smoother = audio[test] @ np.linalg.solve(x.T @ x + 0.3 * len(train) * np.eye(x.shape[1]), x.T)
        unit = texts / np.linalg.norm(texts, axis=2, keepdims=True)
        scores = (smoother @ texts[:, train]) @ unit.transpose(0, 2, 1)
        true = np.take_along_axis(scores, np.broadcast_to(test[None, :, None], (len(texts), len(test), 1)), 2)
        out -= np.log((scores >= true).sum(axis=2)).mean(axis=1)
    return out / len(splits)


def study(rng, rules, n, confounds, shared, permutations=99, width=6, strength=1.65):
    """Which rules reject at .05 in one study: `confounds` on both sides, `shared` beyond them."""
    x, z = rng.standard_normal((n, confounds)), rng.standard_normal((n, width))
    text, audio = (
        2 * strength * x @ rng.standard_normal((confounds, width)) / np.sqrt(width) + rng.standard_normal((n, width)) + shared * z
        for _ in range(2)
    )
    splits = [np.split(rng.permutation(n), [int(0.7 * n)]) for _ in range(5)]
    free = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(permutations))])
    d, place = design(x, [f"x{i}" for i in range(confounds)]), np.argsort(np.argsort(x[:, 0]))
    left, heard = d.residualise(text), d.residualise(audio)

    def within(bins):
        out = np.tile(np.arange(n), (permutations + 1, 1))
        for row in out[1:]:
            for g in range(bins):
                members = np.flatnonzero(place * bins // n == g)
                row[members] = rng.permutation(members)
        return out

    sides = {
        "plain": lambda: (audio, text[free]),
        "within 4 bins": lambda: (audio, text[within(4)]),
        "within 8 bins": lambda: (audio, text[within(8)]),
        "both sides once": lambda: (heard, left[free]),
        "texts alone, once": lambda: (audio, left[free]),
        "double": lambda: (heard, np.stack([d.relabel(text, pi) for pi in free])),
    }
    replicates = (ridge_replicates(splits, *sides[rule]()) for rule in rules)
    return [counted_pvalue(t[0], t[1:]) <= 0.05 for t in replicates]


def rejected(studies, seed, *, n=40, confounds=1, shared=0.0, rules=RULES):
    """Share of studies in which each rule rejects."""
    rng = np.random.default_rng(seed)
    return dict(zip(rules, np.mean([study(rng, rules, n, confounds, shared) for _ in range(studies)], axis=0)))


def at_most(level, studies):
    """What a test of this level stays below, but for one simulation in two hundred."""
    return binom.ppf(0.995, studies, level) / studies


def test_the_table_of_the_documentation():
    """One confound on both sides and nothing beyond it: plain and binned permutation reject, the double residuals keep the level."""
    found = rejected(400, 1, rules=("plain", "within 4 bins", "double"))
    assert found["plain"] > 0.9 and 0.09 < found["within 4 bins"] < 0.2
    assert found["double"] <= at_most(0.05, 400) < found["within 4 bins"]


def test_residuals_that_are_taken_once_do_not_keep_the_level():
    """Four confounds among 24 classes: the bound that double residualisation keeps is one that a single one breaks."""
    found = rejected(300, 2, n=24, confounds=4, rules=("both sides once", "double"))
    assert found["double"] <= at_most(0.05, 300)
    assert found["both sides once"] > 2 * at_most(0.05, 300)


def test_it_has_power_where_the_effect_is_real():
    found = rejected(100, 3, shared=0.9, rules=("within 4 bins", "double"))
    assert found["double"] > 0.7 and found["double"] >= found["within 4 bins"]


def test_residuals_are_least_squares_and_clips_agree_with_centroids():
    rng = np.random.default_rng(3)
    x, clips, classes = rng.normal(size=(12, 2)), rng.normal(size=(60, 5)), np.repeat(np.arange(12), 5)
    d, full = design(x, ["a", "b"]), np.c_[np.ones(12), x]
    centroids = clips.reshape(12, 5, 5).mean(1)
    expected = centroids - full @ np.linalg.lstsq(full, centroids, rcond=None)[0]
    np.testing.assert_allclose(d.residualise(centroids), expected, atol=1e-12)
    np.testing.assert_allclose(d.residualise_clips(clips, classes).reshape(12, 5, 5).mean(1), expected, atol=1e-12)
    pi = rng.permutation(12)
    np.testing.assert_allclose(full.T @ d.relabel(centroids, pi), 0, atol=1e-12)
    assert components(clips, 3).shape == (60, 3)


def test_constant_and_collinear_columns_cost_nothing(tmp_path):
    (tmp_path / "c.csv").write_text("label,kind,size,twice,flat\n" + "".join(f"c{i},{'ab'[i % 2]},{i},{2 * i},7\n" for i in range(10)))
    d = read_covariates(tmp_path / "c.csv", [f"c{i}" for i in range(9, -1, -1)])
    assert d.names == ("kind=a", "kind=b", "size", "twice", "flat") and d.degrees_of_freedom == 2
    assert d.matrix[0].tolist() == [0, 1, 9, 18, 7]
    with pytest.raises(InputError, match="1 of 2 are missing"):
        read_covariates(tmp_path / "c.csv", ["c1", "dog"])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="8 degrees of freedom and the mean, of 12 classes"):
        design(np.random.default_rng(4).normal(size=(12, 8)), list("abcdefgh"))
    with pytest.raises(InputError, match="column 'b'"):
        design(np.array([[1, 2], [3, np.nan]]), ["a", "b"])
    with pytest.raises(InputError, match="no such file"):
        read_covariates(tmp_path / "none.csv", ["a"])
