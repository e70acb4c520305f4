"""Procrustes: scipy as oracle, the level of PROTEST."""

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.stats import binom, ortho_group

from fastprobe.errors import InputError
from fastprobe.protocol import plan
from fastprobe.report.procrustes import centroids, principal_plane, protest


def test_m2_is_scipys_disparity():
    x, y = np.random.default_rng(0).normal(size=(2, 15, 6))
    result = protest(x, y, permutations=9, components=None)
    disparity = procrustes(x, y)[2]
    assert result.m2 == pytest.approx(disparity, abs=1e-12)
    assert np.sum((result.x - result.y) ** 2) == pytest.approx(disparity, abs=1e-12)
    assert result.correlation == pytest.approx(np.sqrt(1 - disparity))


def test_each_permutation_is_scipys_disparity_too():
    x, y = np.random.default_rng(1).normal(size=(2, 12, 4))
    result = protest(x, y, permutations=20, seed=3, components=None)
    expected = [procrustes(x[plan.permutation(3, b, 12)], y)[2] for b in range(1, 21)]
    np.testing.assert_allclose(result.null, expected, atol=1e-12)
    assert result.pvalue == (1 + np.sum(np.array(expected) <= result.m2)) / 21


def test_a_rotated_scaled_shifted_copy_fits_perfectly():
    x = np.random.default_rng(2).normal(size=(30, 8))
    y = np.pad(3 * x @ ortho_group.rvs(8, random_state=0) + 5, ((0, 0), (0, 4)))
    result = protest(x, y, permutations=199)
    assert result.m2 == pytest.approx(0, abs=1e-12) and result.pvalue == 1 / 200


def test_protest_keeps_its_level():
    rng = np.random.default_rng(3)
    rejected = sum(protest(rng.normal(size=(14, 5)), rng.normal(size=(14, 3)), 39, seed=i).pvalue <= 0.05 for i in range(300))
    assert rejected <= binom.ppf(0.999, 300, 0.05)


def test_centroids_and_plane():
    features, labels = np.arange(12.0).reshape(6, 2), np.array([0, 2, 1, 0, 2, 1])
    np.testing.assert_array_equal(centroids(features, labels, 3)[0], features[[0, 3]].mean(0))
    x, y = np.random.default_rng(4).normal(size=(2, 9, 5))
    x2, y2, share = principal_plane(x, y)
    assert x2.shape == y2.shape == (9, 2) and share[0] >= share[1] > 0
    with pytest.raises(InputError, match="class 1"):
        centroids(features, np.zeros(6, int), 2)
    with pytest.raises(InputError, match="same classes"):
        protest(x, y[:4])
