"""Similarities against SciPy and plain loops, and under the null."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import binom, permutation_test, spearmanr

from fastprobe.errors import InputError
from fastprobe.kernels.similarity import similarity
from fastprobe.protocol.probes import Similarity, parse_similarity

KINDS = ["cka", "rsa", "knn:k=3", "protest"]


def tables(seed=0, classes=13, permutations=20):
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((classes, 6))
    audio = text @ rng.standard_normal((6, 6)) + rng.standard_normal((classes, 6))
    return text, audio, np.stack([np.arange(classes), *(rng.permutation(classes) for _ in range(permutations))])


def hsic(k, m):
    """The unbiased estimate of Song et al. 2012, written as it stands there."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def plain(kind, t, a):
    if kind == "cka":
        k, m = a @ a.T, t @ t.T
        return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    if kind == "rsa":
        return spearmanr(pdist(a, "cosine"), pdist(t, "cosine")).statistic
    if kind == "protest":
        return 1 - procrustes(a, t)[2]
    near = []
    for x in (a, t):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        near.append([set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -unit[i] @ unit[j])[:3]) for i in range(len(x))])
    return np.mean([len(p & q) / 3 for p, q in zip(*near)])


@pytest.mark.parametrize("backend", ["cpp", "reference", "torch"])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_the_plain_definition_gives(name, backend):
    text, audio, permutations = tables()
    got = similarity(parse_similarity(name), text, audio, permutations, backend)
    np.testing.assert_allclose(got, [plain(name.split(":")[0], text[pi], audio) for pi in permutations], atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_its_p_is_that_of_scipy_on_all_permutations(name):
    text, audio, _ = tables(seed=4, classes=6)
    probe = parse_similarity(name)
    seen = []

    def statistic(index):
        seen.append(np.asarray(index))
        return similarity(probe, text, audio, np.asarray(index)[None]).round(9)[0]

    oracle = permutation_test((np.arange(6),), statistic, permutation_type="pairings", vectorized=False, alternative="greater")
    values = similarity(probe, text, audio, np.array(seen[1:])).round(9)
    observed = similarity(probe, text, audio, np.arange(6)[None]).round(9)[0]
    assert len(values) == 720
    assert np.mean(values >= observed) == pytest.approx(oracle.pvalue)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(4, 40), st.integers(1, 20))
def test_the_same_bits_in_any_batch_and_under_joint_relabelling_the_same_value(seed, name, classes, cut):
    text, audio, permutations = tables(seed, classes)
    probe = parse_similarity(name)
    whole = similarity(probe, text, audio, permutations)
    parts = [similarity(probe, text, audio, p) for p in (permutations[:cut], permutations[cut:])]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    moved = np.random.default_rng(seed).permutation(classes)
    # Class c is now the former class moved[c], on both sides.
    both = similarity(probe, text[moved], audio[moved], np.argsort(moved)[permutations[:, moved]])
    np.testing.assert_allclose(both, whole, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_null_pvalues_are_super_uniform(name):
    pvalues = []
    for trial in range(200):
        rng = np.random.default_rng([11, trial])
        permutations = np.stack([np.arange(10), *(rng.permutation(10) for _ in range(19))])
        values = similarity(parse_similarity(name), rng.standard_normal((10, 4)), rng.standard_normal((10, 5)), permutations).round(9)
        pvalues.append(np.mean(values >= values[0]))
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.sum(np.array(pvalues) <= level + 1e-9) <= binom.ppf(0.999, 200, level)


def test_what_cannot_be_is_refused():
    text, audio, permutations = tables()
    with pytest.raises(InputError, match="below the number of classes"):
        similarity(Similarity(kind="knn", k=13), text, audio, permutations)
    with pytest.raises(InputError, match="cpp, reference"):
        similarity(Similarity(kind="cka"), text, audio, permutations, backend="triton")
    with pytest.raises(InputError, match="at least 4"):
        similarity(Similarity(kind="cka"), text[:3], audio[:3], np.arange(3)[None])
