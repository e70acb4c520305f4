"""ClosedFormProbe: the same ranks as in a run, one sound at a time, on disk and back, through every command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import linear_model

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.protocol.plan import split_classes
from fastprobe.retrieval.build import build_index, plan_index
from fastprobe.retrieval.query import query, search_index
from support.strategies import tables

PROBES = ["ridge", "ridge:alpha=0.01,1", "ridge:fit_on=clip", "ridge:csls=5", "procrustes", "procrustes:dim=3:csls=4", "cca:dim=3"]


@pytest.fixture(scope="module")
def data():
    text, audio = tables(classes=20, alignment=0.9)
    names = sorted(text.labels)
    return text, audio, [names[i] for i in split_classes(0, 0, 20, 0.7).train]


@pytest.mark.parametrize("name", PROBES)
def test_ranks_are_those_of_a_run(data, name, tmp_path):
    import pyarrow.parquet as pq

    text, audio, train = data
    probe = fp.fit(text, audio, probe=name, classes=train)
    fp.permutation_test(text, audio, probe=name, permutations=1, splits=1, backend="reference", baselines=False, out=tmp_path / "run")
    of_run = pq.read_table(tmp_path / "run" / "observed.parquet").to_pydict()
    assert probe.rank().tolist() == of_run["rank"]
    unseen = ~np.isin(audio.labels, train)
    assert sorted(probe.rank((audio.vectors[unseen], audio.labels[unseen]))) == sorted(of_run["rank"])
    assert probe.score(k=3) == pytest.approx(
        np.mean([np.mean([r <= 3 for r, y in zip(of_run["rank"], of_run["label"]) if y == c]) for c in set(of_run["label"])])
    )


@pytest.mark.parametrize("name", PROBES)
def test_lists_agree_with_ranks_and_a_sound_needs_no_company(data, name):
    text, audio, train = data
    probe = fp.fit(text, audio, probe=name, classes=train)
    labels, scores = probe.retrieve(audio, k=4)
    assert np.array_equal((labels == audio.labels[:, None]).any(axis=1), probe.rank(audio) <= 4)
    assert (np.diff(scores, axis=1) <= 0).all()
    alone = [probe.retrieve(audio.vectors[i : i + 1], k=4) for i in range(5)]
    assert np.array_equal(np.concatenate([a[0] for a in alone]), labels[:5])
    np.testing.assert_allclose(np.concatenate([a[1] for a in alone]), scores[:5], rtol=1e-5, atol=1e-6)
    again, _ = probe.retrieve(audio, k=4, gallery=text)
    assert np.array_equal(again, labels)


def test_ridge_predicts_what_scikit_learn_predicts(data):
    text, audio, train = data
    probe = fp.fit(text, audio, probe=fp.Ridge(alpha=0.3), classes=train)
    x, t = probe.audio_preprocessing.apply(audio.vectors), probe.text_preprocessing.apply(text.vectors)
    centroids = np.stack([x[audio.labels == c].mean(axis=0) for c in train])
    targets = np.stack([t[np.flatnonzero(text.labels == c)[0]] for c in train])
    theirs = linear_model.Ridge(alpha=0.3 * len(train), fit_intercept=False).fit(centroids, targets).predict(x)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    # The basis of the texts has as many columns as they have directions, so nothing is lost in comparing predictions.
    np.testing.assert_allclose(probe.project_audio(audio), theirs, atol=1e-8)


@pytest.mark.parametrize("name", PROBES)
def test_saved_and_loaded_it_is_the_same(data, name, tmp_path):
    text, audio, train = data
    probe = fp.fit(text, audio, probe=name, classes=train)
    probe.save(tmp_path / "p.safetensors")
    again = fp.load_probe(tmp_path / "p.safetensors")
    assert isinstance(again, fp.ClosedFormProbe) and again.config == probe.config and again.digest == probe.digest
    assert np.array_equal(again.rank(audio), probe.rank(audio)) and again.train_classes_.tolist() == train
    assert fp.ClosedFormProbe.load(tmp_path / "p.safetensors").digest == probe.digest
    with pytest.raises(InputError, match=r"load_probe"):
        fp.ContrastiveProbe.load(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="no clips"):
        again.rank()
    text.save(tmp_path / "t.npz")
    audio.save(tmp_path / "a.npz")
    found = query(tmp_path / "p.safetensors", [tmp_path / "a.npz"], k=3)
    assert [f.texts for f in found] == probe.retrieve(audio, k=3)[0].tolist()
    found = query(again, [tmp_path / "a.npz"], tmp_path / "t.npz", k=3)
    assert [f.texts for f in found] == probe.retrieve(audio, k=3)[0].tolist()


def test_an_index_carries_a_closed_form(data, tmp_path):
    text, audio, train = data
    text.save(tmp_path / "t.npz")
    audio.save(tmp_path / "a.npz")
    probe = fp.fit(text, audio, probe="procrustes", classes=train)
    for _ in build_index(plan_index(tmp_path / "t.npz", probe=probe), tmp_path / "index", probe):
        continue
    found = search_index(tmp_path / "index", [tmp_path / "a.npz"], k=3)
    assert [f.texts for f in found] == probe.retrieve(audio, k=3)[0].tolist()
    hubs = fp.fit(text, audio, probe="ridge:csls=3", classes=train)
    for refused in (
        lambda: plan_index(tmp_path / "t.npz", probe=hubs),
        lambda: query(hubs, [tmp_path / "a.npz"], tmp_path / "index"),
    ):
        with pytest.raises(InputError, match="`csls`=3"):
            refused()


def test_a_trained_probe_is_read_by_its_kind(data, tmp_path):
    text, audio, train = data
    probe = fp.fit(text, audio, probe=fp.ProbeConfig(steps=3, dim=4), classes=train, backend="reference")
    probe.save(tmp_path / "p.safetensors")
    assert isinstance(fp.load_probe(tmp_path / "p.safetensors"), fp.ContrastiveProbe)
    with pytest.raises(InputError, match="load_probe"):
        fp.ClosedFormProbe.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "rigde"}, "contrastive, ridge, procrustes, cca"),
        ({"probe": "cka"}, "contrastive, ridge, procrustes, cca"),
        ({"probe": "cca:dim=99"}, "`dim` must be at most the rank"),
        ({"probe": "ridge:csls=999"}, "`csls` must be at most"),
        ({"probe": "ridge", "backend": "triton"}, "`backend` is of trained probes"),
        ({"probe": "ridge", "device": "cuda"}, "`device` is of trained probes"),
        ({"probe": "ridge", "classes": ["dog"]}, "labels that the tables lack"),
    ],
)
def test_what_cannot_be_is_named(data, options, message):
    text, audio, _ = data
    with pytest.raises(InputError, match=message):
        fp.fit(text, audio, **options)
    with pytest.raises(InputError, match="not fitted"):
        fp.ClosedFormProbe(fp.Ridge()).score()
    with pytest.raises(InputError, match="Ridge, Procrustes or CCA"):
        fp.ClosedFormProbe(fp.ProbeConfig())


def test_the_shell_fits_and_queries_every_kind(data, shell, tmp_path):
    text, audio, _ = data
    text.save(tmp_path / "t.npz")
    audio.save(tmp_path / "a.npz")
    tables_of = ["--text", "t.npz", "--audio", "a.npz"]
    for name in ("ridge:alpha=0.1,1", "procrustes", "cca:dim=2"):
        done = shell("fit", *tables_of, "--out", "p.safetensors", "--probe", name, "--train-fraction", "0.7")
        assert done.returncode == 0 and f"{name} fitted to 14 classes" in done.stdout, done.stderr
        asked = shell("query", "--probe", "p.safetensors", "a.npz", "-k", 2, "--json")
        assert len(json.loads(asked.stdout)) == len(audio)
    wrong = shell("fit", *tables_of, "--out", "p.safetensors", "--probe", "ridge", "--temperature", "0.1")
    assert wrong.returncode == 2 and "`temperature`: options of the contrastive probe" in wrong.stderr
    noted = shell("run", *tables_of, "--probe", "ridge", "--lr", "1", "--out", "run", "--permutations", "3")
    assert noted.returncode == 0 and "note: `lr`: options of the contrastive probe" in noted.stderr
