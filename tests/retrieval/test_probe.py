"""ContrastiveProbe: fit, project, score, retrieve, save, load."""

from __future__ import annotations

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from support.strategies import tables

CONFIG = fp.ProbeConfig(dim=8, steps=60)


@pytest.fixture(scope="module")
def fitted():
    text, audio = tables(classes=20, alignment=0.95)
    names = sorted(text.labels)
    return fp.ContrastiveProbe(CONFIG, device="cpu").fit(text, audio, classes=names[:14]), text, audio


def test_projections_are_unit_vectors(fitted):
    probe, text, audio = fitted
    for projected, table in ((probe.project_text(text), text), (probe.project_audio(audio), audio)):
        assert projected.shape == (len(table), 8) and np.allclose(np.linalg.norm(projected, axis=1), 1)


def test_score_is_macro_accuracy_over_unseen_classes(fitted):
    probe, text, audio = fitted
    scores = probe.project_audio(audio) @ probe.project_text(text).T
    true = np.array([np.flatnonzero(text.labels == label)[0] for label in audio.labels])
    ranks = (scores >= scores[np.arange(len(true)), true][:, None]).sum(axis=1)
    unseen = ~np.isin(audio.labels, probe.train_classes_)
    want = np.mean([np.mean(ranks[audio.labels == c] <= 3) for c in np.unique(audio.labels[unseen])])
    assert probe.score(k=3) == pytest.approx(want)
    assert sorted(probe.rank()) == sorted(ranks[unseen])
    assert np.array_equal(probe.rank(audio), ranks)
    assert probe.score(k=20) == 1.0 and probe.score(k=3) > 3 / 20


def test_retrieve_agrees_with_rank(fitted):
    probe, _, audio = fitted
    labels, scores = probe.retrieve(audio, k=3)
    assert labels.shape == scores.shape == (len(audio), 3) and np.all(np.diff(scores, axis=1) <= 0)
    assert np.array_equal((labels == audio.labels[:, None]).any(axis=1), probe.rank(audio) <= 3)


def test_save_and_load(fitted, tmp_path):
    probe, _text, audio = fitted
    probe.save(tmp_path / "probe.safetensors")
    again = fp.ContrastiveProbe.load(tmp_path / "probe.safetensors")
    assert np.array_equal(again.project_audio(audio), probe.project_audio(audio))
    assert again.config == probe.config and again.train_classes_.tolist() == probe.train_classes_.tolist()
    assert again.meta["text"]["name"] == "text" and again.score(3, audio) == probe.score(3, audio)
    with pytest.raises(InputError, match="no clips"):
        again.score()


def test_errors(fitted, tmp_path):
    probe, text, audio = fitted
    with pytest.raises(InputError, match="not fitted"):
        fp.ContrastiveProbe().score()
    with pytest.raises(InputError, match="width 11"):
        probe.project_audio(text)
    with pytest.raises(InputError, match="1 labels that the tables lack: 'dog'"):
        fp.ContrastiveProbe(CONFIG, device="cpu").fit(text, audio, classes=["dog"])
    with pytest.raises(InputError, match="at least 2 classes"):
        fp.ContrastiveProbe(CONFIG, device="cpu").fit(text, audio, classes=text.labels[:1])
    with pytest.raises(InputError, match="`k`"):
        probe.score(k=21)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(InputError, match=name):
            fp.ContrastiveProbe.load(tmp_path / name)
    text.save(tmp_path / "table.safetensors")
    with pytest.raises(InputError, match="not a saved probe"):
        fp.ContrastiveProbe.load(tmp_path / "table.safetensors")
    with pytest.raises(InputError, match="suffix"):
        probe.save(tmp_path / "probe.npz")


def test_a_probe_by_url(fitted):
    probe, _, _ = fitted
    probe.save("memory://test-probe/p.safetensors")
    assert fp.ContrastiveProbe.load("memory://test-probe/p.safetensors").digest == probe.digest


def test_a_place_that_cannot_be_written_is_named(fitted, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        fitted[0].save(tmp_path / "file" / "p.safetensors")


def test_a_config_that_is_none_is_refused():
    with pytest.raises(InputError, match="`config` must be a ProbeConfig; got dict"):
        fp.ContrastiveProbe({"dim": 8})
