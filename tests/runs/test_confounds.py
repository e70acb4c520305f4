"""Covariates of a run: every probe and similarity meets R (R T)_pi, and what cannot be taken out is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.kernels.closed import ClosedForm
from fastprobe.kernels.similarity import similarity
from fastprobe.protocol.covariates import cut_into_bins, design
from fastprobe.protocol.features import residual_text
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.designs import read_design
from fastprobe.runs.experiment import prepare
from support.strategies import tables

FAST = {"splits": 2, "permutations": 9, "backend": "reference", "train_fraction": 0.6, "baselines": False}
LOUD = {"loud": np.linspace(0, 3, 16) ** 2}
CLASSES = np.array([f"class {i:03d}" for i in range(16)])


@pytest.fixture(scope="module")
def pair():
    return tables(classes=16, clips=3)


@pytest.mark.parametrize("bias", [False, True])
def test_a_trained_probe_meets_texts_that_are_residualised_twice(pair, bias):
    config = fp.ProbeConfig(dim=3, steps=3, bias=bias)
    plain = prepare(*pair, probe=config, **FAST)
    run = prepare(*pair, probe=config, covariates=LOUD, **FAST)
    d = design(np.c_[LOUD["loud"]], ["loud"])
    width = plain.pairs[0].text.shape[1] - bias
    for b in range(4):
        order = run.relabellings(b, b + 1)[0]
        batch = run.batch(0, 1, 0, b, b + 1)
        expected = d.relabel(plain.pairs[0].text[:, :width], order)
        scale = np.linalg.norm(batch.text[:, :width]) / np.linalg.norm(expected)
        np.testing.assert_allclose(batch.text[:, :width], scale * expected, atol=1e-9)
        np.testing.assert_allclose(d.basis.T @ batch.text[:, :width], 0, atol=1e-9)
        if b:  # taking it out once would leave some of it in the permuted texts
            assert np.abs(d.basis.T @ run.pairs[0].text[order][:, :width]).max() > 1e-3
        if bias:
            np.testing.assert_array_equal(batch.text[:, width], 1)
        assert batch.permutations.tolist() == [list(range(16))]
        outcome = run.outcomes(0, 1, 0, b, b + 1)
        np.testing.assert_array_equal(run.outcomes(0, 1, 0, 0, 4).ranks[b], outcome.ranks[0])
    heard = run.pairs[0].audio[:, : run.pairs[0].audio.shape[1] - bias]
    means = np.stack([heard[run.pairs[0].labels == c].mean(axis=0) for c in range(16)])
    np.testing.assert_allclose(d.basis[:, 1:].T @ means, 0, atol=1e-9)


@pytest.mark.parametrize("probe", ["ridge:alpha=0.1,1", "procrustes", "cca:dim=3"])
@pytest.mark.parametrize("backend", ["reference", "cpp", "torch"])
def test_a_closed_form_meets_them_too(pair, probe, backend):
    run = prepare(*pair, probe=probe, covariates=LOUD, **{**FAST, "backend": backend})
    found = run.outcomes(0, 1, 0, 0, 5).ranks
    data, (train, test) = run.pairs[0], run.split(1)
    queries = np.flatnonzero(np.isin(data.labels, test))
    for b in range(5):
        text = residual_text(data, run.design, run.relabellings(b, b + 1)[0])
        form = ClosedForm(run.probes[0], text, data.audio, data.labels, train, queries, backend)
        np.testing.assert_array_equal(found[b], form.ranks(np.arange(16)[None])[0][0])


@pytest.mark.parametrize("kind", ["cka", "rsa", "knn:k=3", "protest"])
def test_a_similarity_meets_them_too(pair, kind):
    run = prepare(*pair, probe=[], similarity=kind, covariates=LOUD, **FAST)
    data = run.pairs[0]
    means = np.stack([data.audio[data.labels == c].mean(axis=0) for c in range(16)])
    for b, value in enumerate(run.similarities(0, 0, 4)):
        text = residual_text(data, run.design, run.relabellings(b, b + 1)[0])
        assert value == pytest.approx(similarity(run.probes[0], text, means, np.arange(16)[None], "reference")[0])


def test_a_confound_that_carries_everything_is_no_finding():
    """Text and sound share loudness and nothing else: the plain test rejects, and no more with the covariate taken out."""
    rng = np.random.default_rng(0)
    names = np.array([f"class {i:03d}" for i in range(40)])
    loud, found = rng.standard_normal((40, 1)), []
    text = fp.EmbeddingTable(4 * loud @ rng.standard_normal((1, 8)) + rng.standard_normal((40, 8)), names, meta={"name": "text"})
    sounds = np.repeat(4 * loud @ rng.standard_normal((1, 8)) + rng.standard_normal((40, 8)), 4, axis=0)
    audio = fp.EmbeddingTable(sounds + 0.3 * rng.standard_normal(sounds.shape), np.repeat(names, 4), meta={"name": "audio"})
    for covariates in (None, {"loud": loud[:, 0]}):
        options = {"probe": "procrustes", "similarity": "cka", "splits": 5, "permutations": 199, "statistic": "mean_log_rank"}
        found.append([r.pvalue for r in fp.permutation_test(text, audio, covariates=covariates, baselines=False, **options)])
    assert max(found[0]) <= 0.01 and min(found[1]) > 0.05


def test_the_shell_takes_files_and_tables(shell, tmp_path):
    text, audio = tables(classes=16, clips=3)
    text.save(tmp_path / "t.npz")
    audio.save(tmp_path / "a.npz")
    rows = "".join(f"{c},{'ab'[i % 2]},{i**1.5}\n" for i, c in enumerate(CLASSES))
    (tmp_path / "c.csv").write_text("label,kind,loud\n" + rows)
    common = ["run", "--text", "t.npz", "--audio", "a.npz", "--permutations", 9, "--splits", 2, "--steps", 3, "--dim", 3, "-q"]
    given = ["--covariates", "c.csv", "--covariates", "t.npz:components=2", "--covariates", "char-ngrams:components=1"]
    done = shell(*common, *given, "--probe", "contrastive", "--probe", "ridge", "--similarity", "cka", "--out", "r")
    assert done.returncode == 0, done.stderr
    assert "covariates: 5 degrees of freedom taken out of both sides, of 15 among 16 classes (kind=a" in " ".join(done.stdout.split())
    taken = json.loads((tmp_path / "r" / "summary.json").read_text())["covariates"]
    assert taken["degrees_of_freedom"] == 5 and taken["names"][:3] == ["kind=a", "kind=b", "loud"]
    (tmp_path / "c.csv").unlink()  # the values are in the manifest
    assert examine(tmp_path / "r", check=True)["inputs"] == [] and verify(tmp_path / "r", sample=40, backend="cpp")["agrees"]
    report = shell("report", "r")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "r" / "report.html").read_text()
    assert "5 degrees of freedom" in page and "Freedman" in page
    many = shell(*common, "--covariates", "char-ngrams:components=12", "--out", "many")
    assert many.returncode == 2 and "12 degrees of freedom and the mean, of 16 classes" in many.stderr and not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": [1.0, 2.0]}, "one value for each of the 16"),
        ({"x": {"class 000": 1.0}}, "lacks 15"),
        ({"x": ["", *"aabbccaabbccaab"]}, "'x' is empty for 1"),
        ({"x": [1.0] * 16}, "must vary"),
        ({"x": ["alone", *["many"] * 15]}, "one class does"),
        ({"x": np.arange(16.0), "y": [*"abcdefghabcdefgh"], "z": np.arange(16) % 5}, "None"),
        ([{"x": np.arange(16.0)}, {"x": np.arange(16.0)}], "twice"),
        (3, "must be a file"),
        ("nothing.csv", "no such file"),
        ("nothing.csv:components=2", "Leave them out of a CSV"),
        ("char-ngrams:components=many", "whole number"),
        ("char-ngrams", "char-ngrams:components=10"),
        (tables(classes=9)[0], "lacks 7"),
    ],
)
def test_what_cannot_be_taken_out_is_named(pair, given, message):
    request = fp.RunRequest(covariates=given)
    if message == "None":  # ten degrees of freedom, and four dimensions left
        assert read_design(request.covariates, CLASSES).degrees_of_freedom == 9
        return
    with pytest.raises(InputError, match=message):
        prepare(*pair, covariates=given, **FAST)


def test_nulls_that_relabel_nothing_refuse_them():
    for control in ("frozen", "gaussian"):
        with pytest.raises(InputError, match="Use permute or permute-within"):
            fp.RunRequest(control=control, covariates=LOUD)


def test_bins_of_a_continuous_covariate_warn(pair, tmp_path):
    values = np.random.default_rng(0).permutation(LOUD["loud"])
    bins = np.argsort(np.argsort(values)) // 4
    rows = "".join(f"{c},b{b},{v}\n" for c, b, v in zip(CLASSES, bins, values))
    (tmp_path / "g.csv").write_text("label,bin,loud\n" + rows)
    options = {"control": "permute-within", "groups": tmp_path / "g.csv", "within": "bin", "probe": fp.ProbeConfig(dim=2, steps=2), **FAST}
    with pytest.warns(UserWarning, match="'loud'.*not exact"):
        fp.permutation_test(*pair, out=tmp_path / "r", **options)
    assert "not exact" in json.loads((tmp_path / "r" / "manifest.json").read_text())["notes"][0]
    named = np.array(["(0.0, 1.5]", "(1.5, 3.0]"])[(values > 4).astype(int)]
    assert "not exact" in prepare(*pair, **{**options, "groups": dict(zip(CLASSES, named)), "within": None}).notes[0]
    kinds = dict(zip(CLASSES, "abcdabcdabcdabcd"))
    assert prepare(*pair, **{**options, "groups": kinds, "within": None}).notes == ()
    assert "'x'" in prepare(*pair, **{**options, "groups": dict(zip(CLASSES, bins)), "within": None}, covariates={"x": values}).notes[0]


def test_a_numbering_of_the_classes_is_no_covariate():
    groups = np.repeat(["animal", "music"], 4)
    assert cut_into_bins(groups, {"target": list(range(8))}) is None
    assert cut_into_bins(groups, {"size": [1.0, 2, 3, 5, 8, 9, 11, 12]}) == "size"
    assert cut_into_bins(groups, {"name": [*"abcdefgh"]}) is None
