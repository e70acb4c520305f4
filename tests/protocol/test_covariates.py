"""Covariates: what is taken out, level and power of the test beside plain and binned permutation, bad input."""

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.protocol.covariates import components, design, read_covariates
from fastprobe.statistics.significance import counted_pvalue


def cka(text, audio):
    """Linear CKA of centred class centroids."""
    text, audio = text - text.mean(0), audio - audio.mean(0)
    return np.sum((text.T @ audio) ** 2) / (np.linalg.norm(text.T @ text) * np.linalg.norm(audio.T @ audio))


def rejected(studies, shared, seed):
    """Share rejected at .05 by plain, within 4 bins and double residualisation; a confound on both sides, `shared` beyond it."""
    rng, found, n = np.random.default_rng(seed), np.zeros(3), 40
    for _ in range(studies):
        x, z = rng.standard_normal((n, 1)), rng.standard_normal((n, 4))
        text, audio = (
            x @ np.array([[1.2, 0.6, 0, 0]]) + rng.standard_normal((n, 4)) + shared * z,
            x @ np.array([[0, 0, 0.6, 1.2]]) + rng.standard_normal((n, 4)) + shared * z,
        )
        d, bins = design(x, ["x"]), np.argsort(np.argsort(x[:, 0])) * 4 // n
        left = d.residualise(audio)
        values = np.empty((3, 100))
        for b in range(100):
            pi = np.arange(n) if b == 0 else rng.permutation(n)
            within = np.arange(n)
            for g in range(4 if b else 0):
                rows = np.flatnonzero(bins == g)
                within[rows] = rng.permutation(rows)
            values[:, b] = cka(text[pi], audio), cka(text[within], audio), cka(d.relabel(text, pi), left)
        found += [counted_pvalue(v[0], v[1:]) <= 0.05 for v in values]
    return found / studies


def test_double_residualisation_keeps_its_level_where_others_do_not():
    plain, binned, double = rejected(200, 0.0, 1)
    assert plain > 0.9 and plain > binned > 0.08
    assert double <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_it_has_power_where_the_effect_is_real():
    assert rejected(40, 0.9, 2)[2] > 0.7


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
    with pytest.raises(InputError, match="can be read"):
        read_covariates(tmp_path / "none.csv", ["a"])
