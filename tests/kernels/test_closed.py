"""Closed-form probes against scikit-learn and SciPy, against each other, and under the null."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV

from fastprobe.errors import InputError
from fastprobe.kernels.closed import ClosedForm, csls_scores, ranks_of
from fastprobe.kernels.forms import unit_rows
from fastprobe.protocol.probes import CCA, Procrustes, Ridge

PROBES = [
    Ridge(),
    Ridge(alpha=(0.01, 0.3, 10.0)),
    Ridge(fit_on="clip", alpha=(0.1, 1.0), csls=3),
    Procrustes(),
    Procrustes(dim=3, csls=2),
    CCA(dim=4),
]


def data(seed=0, classes=17, clips=3, r_text=9, r_audio=7, train=11):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), clips)
    text = rng.standard_normal((classes, r_text))
    shared = text @ rng.standard_normal((r_text, r_audio)) / 3
    audio = shared[labels] + rng.standard_normal((classes * clips, r_audio))
    order = rng.permutation(classes)
    train_classes = np.sort(order[:train])
    queries = np.flatnonzero(~np.isin(labels, train_classes))
    permutations = np.stack([np.arange(classes), *(rng.permutation(classes) for _ in range(36))])
    return text - text.mean(axis=0), audio - audio.mean(axis=0), labels, train_classes, queries, permutations


@pytest.mark.parametrize("fit_on", ["centroid", "clip"])
def test_ridge_predicts_as_scikit_learn_does(fit_on):
    text, audio, labels, train, queries, permutations = data()
    probe = ClosedForm(Ridge(alpha=0.2, fit_on=fit_on), text, audio, labels, train, queries, "reference")
    for permutation in permutations[:3]:
        if fit_on == "centroid":
            x, y = np.stack([audio[labels == c].mean(axis=0) for c in train]), text[permutation[train]]
        else:
            rows = np.isin(labels, train)
            x, y = audio[rows], text[permutation[labels[rows]]]
        oracle = SklearnRidge(alpha=0.2 * len(x), fit_intercept=False).fit(x, y)
        np.testing.assert_allclose(probe.form.predict(permutation), oracle.predict(audio[queries]), atol=1e-12)


def test_alpha_is_the_one_that_leave_one_out_of_scikit_learn_takes():
    text, audio, labels, train, queries, permutations = data()
    alphas = (0.001, 0.1, 1.0, 30.0)
    x = np.stack([audio[labels == c].mean(axis=0) for c in train])
    chosen = ClosedForm(Ridge(alpha=alphas), text, audio, labels, train, queries, "reference").form.choose(permutations)
    for permutation, choice in zip(permutations, chosen):
        oracle = RidgeCV(alphas=[a * len(x) for a in alphas], fit_intercept=False).fit(x, text[permutation[train]])
        assert oracle.alpha_ == alphas[choice] * len(x)
    assert len(set(chosen)) > 1


def test_with_clips_a_whole_class_is_left_out():
    text, audio, labels, train, queries, _ = data(seed=3)
    probe = ClosedForm(Ridge(alpha=0.1, fit_on="clip"), text, audio, labels, train, queries, "reference")
    rows = np.isin(labels, train)
    error = 0.0
    for c in train:
        kept, n = rows & (labels != c), rows.sum()
        fit = SklearnRidge(alpha=0.1 * n, fit_intercept=False).fit(audio[kept], text[labels[kept]])
        error += np.sum((fit.predict(audio[labels == c]) - text[c]) ** 2)
    assert np.sum(probe.form.errors[0] * (text @ text.T)[np.ix_(train, train)]) == pytest.approx(error, rel=1e-9)


def test_procrustes_rotates_as_scipy_does():
    text, audio, labels, train, queries, permutations = data(r_text=7)
    probe = ClosedForm(Procrustes(), text, audio, labels, train, queries, "reference")
    x = np.stack([audio[labels == c].mean(axis=0) for c in train])
    for permutation in permutations[:3]:
        rotation, _ = scipy.linalg.orthogonal_procrustes(x - x.mean(axis=0), text[permutation[train]])
        np.testing.assert_allclose(probe.form.predict(permutation), (audio[queries] - x.mean(axis=0)) @ rotation, atol=1e-10)


def test_cca_is_procrustes_of_what_is_already_white_and_ignores_linear_maps_without_shrinkage():
    text, audio, labels, train, queries, permutations = data(classes=30, train=20)
    a = np.random.default_rng(5).standard_normal((7, 7))
    ranks = [ClosedForm(CCA(dim=3, shrinkage=1e-12), text, x, labels, train, queries).ranks(permutations)[0] for x in (audio, audio @ a)]
    assert np.mean(ranks[0] != ranks[1]) < 0.01  # rounding alone
    full = ClosedForm(CCA(dim=7, shrinkage=1.0), text, audio, labels, train, queries, "reference").ranks(permutations)
    plain = ClosedForm(Procrustes(dim=7), text, audio, labels, train, queries, "reference").ranks(permutations)
    np.testing.assert_array_equal(full, plain)  # full shrinkage leaves nothing to whiten


def test_csls_and_unseen_ranks_are_what_a_plain_loop_gives():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, (6, 7)).astype(float)
    corrected = csls_scores(scores, 2)
    for i in range(6):
        for c in range(7):
            near = np.sort(scores[i])[-2:].mean() + np.sort(scores[:, c])[-2:].mean()
            assert corrected[i, c] == pytest.approx(2 * scores[i, c] - near)
    labels, gallery = np.array([1, 1, 3, 3, 6, 6]), np.array([1, 3, 6])
    for i, y in enumerate(labels):
        assert ranks_of(scores, labels)[i] == 1 + sum(scores[i, c] >= scores[i, y] for c in range(7) if c != y)
        assert ranks_of(scores, labels, gallery)[i] == 1 + sum(scores[i, c] >= scores[i, y] for c in gallery if c != y)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.name)
@pytest.mark.parametrize("shape", [{}, {"classes": 33, "clips": 5, "r_text": 31, "r_audio": 40, "train": 16}], ids=["small", "wide"])
def test_a_backend_ranks_as_the_definition_does(backend, probe, shape):
    *arrays, permutations = data(seed=2, **shape)
    expected = ClosedForm(probe, *arrays, "reference").ranks(permutations)
    got = ClosedForm(probe, *arrays, backend).ranks(permutations)
    for e, g in zip(expected, got):
        assert np.mean(e != g) < 1e-3  # scores that float32 cannot tell apart
        assert np.abs(e - g).max() <= 1


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_ties_count_against_in_every_instruction_set(isa, monkeypatch):
    from fastprobe import _cpp

    if isa not in _cpp.supported_isas():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("FASTPROBE_ISA", isa)
    text, *rest, permutations = data()
    text = np.repeat(text[:1], len(text), axis=0)
    ranks, unseen = ClosedForm(Ridge(), text, *rest).ranks(permutations)
    assert np.all(ranks == 17) and np.all(unseen == 6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PROBES), st.integers(1, 36), st.sampled_from(["cpp", "torch"]))
def test_a_replicate_is_the_same_bits_in_any_batch(seed, probe, cut, backend):
    *arrays, permutations = data(seed)
    form = ClosedForm(probe, *arrays, backend)
    whole = form.ranks(permutations)
    for w, first, second in zip(whole, form.ranks(permutations[:cut]), form.ranks(permutations[cut:])):
        np.testing.assert_array_equal(w, np.concatenate([first, second]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_permuting_text_rows_and_permutation_together_changes_nothing(seed):
    text, *rest, permutations = data(seed)
    moved = np.random.default_rng(seed).permutation(len(text))
    back = np.argsort(moved)
    for probe in (Ridge(alpha=(0.1, 1.0)), Procrustes(dim=3)):
        first = ClosedForm(probe, text, *rest, "reference").ranks(permutations[:4])
        second = ClosedForm(probe, text[moved], *rest, "reference").ranks(back[permutations[:4]])
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("probe", [Ridge(alpha=(0.1, 1.0)), Procrustes(dim=4), CCA(dim=4)], ids=lambda p: p.kind)
def test_null_pvalues_are_super_uniform(probe):
    pvalues = []
    for trial in range(200):
        rng = np.random.default_rng([7, trial])
        text, audio, labels = rng.standard_normal((12, 6)), rng.standard_normal((24, 5)), np.repeat(np.arange(12), 2)
        permutations = np.stack([np.arange(12), *(rng.permutation(12) for _ in range(19))])
        ranks, unseen = ClosedForm(probe, text, audio, labels, np.arange(8), np.arange(16, 24)).ranks(permutations)
        statistic = -np.log(ranks).sum(axis=1).round(9)
        pvalues.append(np.mean(statistic >= statistic[0]))
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.sum(np.array(pvalues) <= level + 1e-9) <= binom.ppf(0.999, 200, level)


def test_what_cannot_be_is_refused():
    *arrays, _ = data()
    with pytest.raises(InputError, match="`dim`"):
        ClosedForm(Procrustes(dim=8), *arrays)
    with pytest.raises(InputError, match="`csls`"):
        ClosedForm(Ridge(csls=18), *arrays)
    with pytest.raises(InputError, match="cpp, reference, torch"):
        ClosedForm(Ridge(), *arrays, backend="triton")
    with pytest.raises(InputError, match="`device`"):
        ClosedForm(Ridge(), *arrays, device="cuda")


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.name)
def test_every_output_is_written(probe, monkeypatch):
    *arrays, permutations = data(clips=5, classes=19, train=12)
    form = ClosedForm(probe, *arrays)
    expected = form.ranks(permutations)
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, -77, dtype))
    for e, g in zip(expected, form.ranks(permutations)):
        np.testing.assert_array_equal(e, g)
        assert g.min() >= 1


@pytest.mark.parametrize("probe", [Ridge(alpha=(0.1, 1.0)), Ridge(csls=4)], ids=lambda p: p.name)
def test_the_number_of_threads_changes_no_bit(probe, monkeypatch):
    from fastprobe import _cpp

    *arrays, permutations = data()
    form = ClosedForm(probe, *arrays)
    expected = form.ranks(permutations)
    native = _cpp.gathered_ranks
    monkeypatch.setattr(_cpp, "gathered_ranks", lambda **inputs: native(**inputs, threads=3))
    for e, g in zip(expected, form.ranks(permutations)):
        np.testing.assert_array_equal(e, g)


def test_units():
    np.testing.assert_allclose(np.linalg.norm(unit_rows(np.eye(3) * 7), axis=1), 1)
