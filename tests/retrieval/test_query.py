"""`query`, `index build|search` and `doctor`: as functions and as the shell sees them."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastprobe as fp
import fastprobe.retrieval.query as module
from fastprobe.cli.app import main
from fastprobe.cli.doctor import examine_faiss
from fastprobe.errors import InputError
from fastprobe.retrieval.probe import model_difference
from fastprobe.retrieval.query import query, search_index
from fastprobe.tables.embeddings import EmbeddingTable
from support.strategies import tables

TEXT_META = {
    "name": "text",
    "kind": "text",
    "model": "lm",
    "weights": "aa11",
    "layer": 3,
    "pooling": "mean",
    "template": ["{}"],
    "spec": {"model": "lm"},
}
AUDIO_META = {"name": "audio", "kind": "audio", "model": "listener", "weights": "bb22", "mode": "embed_only", "spec": {"model": "listener"}}


@pytest.fixture(scope="module")
def trained():
    """Tables that name their models, and a probe trained on them."""
    text, audio = tables(classes=15, clips=4)
    text = EmbeddingTable(text.vectors, text.labels, meta=TEXT_META)
    audio = EmbeddingTable(audio.vectors, audio.labels, np.array([f"clip{i}.wav" for i in range(len(audio))]), AUDIO_META)
    return text, audio, fp.ContrastiveProbe(fp.ProbeConfig(dim=8, steps=40), backend="torch").fit(text, audio)


@pytest.fixture
def made(trained, tmp_path):
    """The same, and all three on disk."""
    text, audio, probe = trained
    probe.save(tmp_path / "p.safetensors")
    text.save(tmp_path / "text.parquet")
    audio.save(tmp_path / "audio.npz")
    return text, audio, probe


@pytest.fixture
def models(made, monkeypatch):
    """Embedding models that know the vectors of these files and texts by heart, and what they were asked with."""
    text, audio, _ = made
    asked = {}

    def files(paths, meta, checkpoint, device, model):
        asked["audio"] = meta, checkpoint, device
        return np.stack([audio.vectors[audio.ids.tolist().index(p.name)] for p in paths])

    def texts(names, meta, model, device):
        asked["text"] = meta, model, device
        return np.stack([text.vectors[text.labels.tolist().index(n)] for n in names])

    monkeypatch.setattr(module, "_embed_files", files)
    monkeypatch.setattr(module, "_embed_texts", texts)
    return asked


def test_sound_files_go_through_the_model_in_the_probes_meta(made, models, tmp_path):
    _, audio, probe = made
    for name in ("clip0.wav", "clip5.wav"):
        (tmp_path / name).write_bytes(b"sound")
    found = query(tmp_path / "p.safetensors", [tmp_path / "clip5.wav", tmp_path / "clip0.wav"], k=3, device="cpu", audio_checkpoint="w.pt")
    labels, scores = probe.retrieve(audio.select([5, 0]), k=3)
    assert [f.query for f in found] == [str(tmp_path / "clip5.wav"), str(tmp_path / "clip0.wav")]
    assert [f.texts for f in found] == labels.tolist() and np.allclose([f.scores for f in found], scores, atol=1e-5)
    assert models["audio"] == (probe.meta["audio"], "w.pt", "cpu") and models["audio"][0]["model"] == "listener"


def test_galleries_of_every_form_answer_alike(made, models, tmp_path):
    text, audio, _ = made
    (tmp_path / "texts.txt").write_text("\n".join(text.labels) + "\n\n")
    list(_build(tmp_path / "text.parquet", tmp_path / "index", tmp_path / "p.safetensors"))
    answers = [
        query(tmp_path / "p.safetensors", [tmp_path / "audio.npz"], gallery, 4)
        for gallery in (None, tmp_path / "text.parquet", tmp_path / "texts.txt", tmp_path / "index")
    ]
    assert [f.query for f in answers[0]] == audio.ids.tolist() and models["text"][0]["model"] == "lm"
    for other in (*answers[1:], search_index(tmp_path / "index", [tmp_path / "audio.npz"], 4)):
        assert [f.texts for f in other] == [f.texts for f in answers[0]]
        assert np.allclose([f.scores for f in other], [f.scores for f in answers[0]], atol=1e-5)


def _build(table, out, probe=None):
    from fastprobe.retrieval.build import build_index, plan_index

    probe = probe and fp.ContrastiveProbe.load(probe)
    return build_index(plan_index(table, "exact", probe), out, probe)


def test_files_and_tables_mix_in_the_order_given(made, models, tmp_path):
    _, audio, _ = made
    (tmp_path / "clip7.wav").write_bytes(b"sound")
    audio.select([1, 2]).save(tmp_path / "two.safetensors")
    found = query(tmp_path / "p.safetensors", [tmp_path / "two.safetensors", tmp_path / "clip7.wav", tmp_path / "two.safetensors"], k=1)
    assert [f.query for f in found] == ["clip1.wav", "clip2.wav", str(tmp_path / "clip7.wav"), "clip1.wav", "clip2.wav"]


def save(path, vectors, meta):
    EmbeddingTable(vectors, np.array([f"class {i:03d}" for i in range(len(vectors))]), meta=meta).save(path)
    return path


def test_errors(made, models, tmp_path):
    _text, _audio, _probe = made
    p, a = tmp_path / "p.safetensors", [tmp_path / "audio.npz"]
    with pytest.raises(InputError, match="size of the gallery, 15; got 16"):
        query(p, a, k=16)
    with pytest.raises(InputError, match="at least 1; got 0"):
        query(p, a, k=0)
    with pytest.raises(InputError, match=r"wide.npz: its vectors have width 3; .* audio embeddings of width 11 .listener"):
        query(p, [save(tmp_path / "wide.npz", np.ones((2, 3)), AUDIO_META)])
    with pytest.raises(InputError, match="wide.npz: its vectors have width 3; the probe was trained on text"):
        query(p, a, tmp_path / "wide.npz")
    with pytest.raises(InputError, match="1 are not there: .*gone.wav"):
        query(p, [tmp_path / "gone.wav"])
    with pytest.raises(InputError, match="at least one sound file"):
        query(p, [])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="an empty gallery"):
        query(p, a, tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        query(p, a, tmp_path / "bytes.txt")
    with pytest.raises(InputError, match=r"cannot be read: .*Give a text table"):
        query(p, a, tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other", "weights": "cc"}, "`model` is 'listener' there and 'other' here"),
        ({"weights": "cc"}, "the same model name with other weights"),
        ({"mode": "all"}, "`mode` is 'embed_only' there and 'all' here"),
        ({"kind": "text"}, "`kind` is 'audio' there"),
    ],
)
def test_a_table_of_another_model_is_refused_unless_told(made, tmp_path, change, message):
    _, audio, _ = made
    save(tmp_path / "other.npz", audio.vectors[:2], {**AUDIO_META, **change})
    with pytest.raises(InputError, match=message):
        query(tmp_path / "p.safetensors", [tmp_path / "other.npz"])
    assert len(query(tmp_path / "p.safetensors", [tmp_path / "other.npz"], any_model=True)) == 2


def test_what_a_meta_does_not_say_is_not_held_against_it():
    assert model_difference(AUDIO_META, {}) is None and model_difference({}, AUDIO_META) is None
    assert model_difference(AUDIO_META, {**AUDIO_META, "model": "/moved/listener"}) is None  # equal weights settle it
    assert "`layer` is 3 there and 4 here" in model_difference(TEXT_META, {**TEXT_META, "layer": 4})


def test_a_probe_whose_tables_name_no_model_takes_tables_only(tmp_path):
    text, audio = tables(classes=15)
    fp.ContrastiveProbe(fp.ProbeConfig(dim=4, steps=5), backend="torch").fit(text, audio).save(tmp_path / "p.safetensors")
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "t.txt").write_text("a dog\n")
    with pytest.raises(InputError, match="does not name a model that could embed sounds"):
        query(tmp_path / "p.safetensors", [tmp_path / "a.wav"])
    audio.save(tmp_path / "a.npz")
    with pytest.raises(InputError, match="does not name a model that could embed texts"):
        query(tmp_path / "p.safetensors", [tmp_path / "a.npz"], tmp_path / "t.txt", k=1)


def test_an_index_answers_only_the_probe_it_was_built_with(made, tmp_path):
    text, audio, probe = made
    list(_build(tmp_path / "text.parquet", tmp_path / "index", tmp_path / "p.safetensors"))
    other = fp.ContrastiveProbe(fp.ProbeConfig(dim=8, steps=41), backend="torch").fit(text, audio)
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="built with another probe"):
        query(tmp_path / "other.safetensors", [tmp_path / "audio.npz"], tmp_path / "index")
    assert fp.ContrastiveProbe.load(tmp_path / "p.safetensors").digest == probe.digest != other.digest
    list(_build(tmp_path / "text.parquet", tmp_path / "plain"))
    with pytest.raises(InputError, match="built without a probe, so no sound"):
        query(tmp_path / "p.safetensors", [tmp_path / "audio.npz"], tmp_path / "plain")
    index = fp.retrieval.GalleryIndex.load(tmp_path / "index")
    labels, _scores = probe.retrieve(audio, 3, gallery=index)
    assert np.array_equal(labels, probe.retrieve(audio, 3)[0]) and np.array_equal(labels, probe.retrieve(audio, 3, gallery=text)[0])


def test_an_index_of_plain_embeddings_takes_tables_of_its_model(made, tmp_path):
    text, _audio, _ = made
    list(_build(tmp_path / "text.parquet", tmp_path / "plain"))
    found = search_index(tmp_path / "plain", [tmp_path / "text.parquet"], 1)
    assert [f.texts[0] for f in found] == text.labels.tolist() and np.allclose([f.scores[0] for f in found], 1)
    (tmp_path / "a.wav").write_bytes(b"sound")
    with pytest.raises(InputError, match="built without a probe, so only tables"):
        search_index(tmp_path / "plain", [tmp_path / "a.wav"])
    with pytest.raises(InputError, match="another model than the index"):
        search_index(tmp_path / "plain", [save(tmp_path / "o.npz", text.vectors, {**TEXT_META, "layer": 0})])
    with pytest.raises(InputError, match="width 2, those of the index 7"):
        search_index(tmp_path / "plain", [save(tmp_path / "o.npz", np.ones((2, 2)), TEXT_META)])


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    """`fastprobe ...` in this process: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fastprobe", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


def test_the_shell(made, shell, tmp_path):
    _, audio, probe = made
    done = shell("query", "--probe", "p.safetensors", "audio.npz", "-k", "2", "--json")
    assert done.returncode == 0, done.err
    answer = json.loads(done.out)
    assert [sorted(a) for a in answer] == [["query", "scores", "texts"]] * len(audio)
    assert [a["texts"] for a in answer] == probe.retrieve(audio, 2)[0].tolist()
    done = shell("index", "build", "text.parquet", "--probe", "p.safetensors", "--out", "index", "--queries", "audio.npz")
    assert done.returncode == 0 and "of memory to build" in done.err and "15 texts" in done.out, done.err
    done = shell("index", "search", "index", "audio.npz", "-k", "2", "--json")
    assert json.loads(done.out) == answer
    table = shell("query", "--probe", "p.safetensors", "--gallery", "index", "audio.npz", "-k", "1")
    assert table.returncode == 0 and answer[0]["texts"][0] in table.out
    for arguments, message in (
        (["query", "--probe", "p.safetensors", "audio.npz", "-k", "99"], "size of the gallery"),
        (["index", "build", "text.parquet", "--out", "index"], "--overwrite"),
        (["index", "search", "gone", "audio.npz"], "no index"),
        (["index", "build", "text.parquet", "--out", "x", "--queries", "audio.npz"], "Give --probe too"),
    ):
        done = shell(*arguments)
        assert done.returncode == 2 and message in done.err and "Traceback" not in done.err


def test_doctor_on_faiss(monkeypatch):
    here = examine_faiss({"faiss-cpu": "1.0"}, 0)
    assert here["version"] and here["gpus"] == 0 and not here["advice"]
    assert "pip install faiss-gpu" in examine_faiss({"faiss-cpu": "1.0"}, 2)["advice"][0]
    assert "keep" in (two := examine_faiss({"faiss-cpu": "1.0", "faiss-gpu": "1.0"}, 0))["advice"][0] or "alone" in two["advice"][0]

    class Build:
        __version__ = "9"
        StandardGpuResources = object
        seen = 0

        @classmethod
        def get_num_gpus(cls):
            return cls.seen

    import fastprobe.kernels.topk as topk

    monkeypatch.setattr(topk, "load_faiss", lambda: Build)
    assert "which this machine lacks" in examine_faiss({"faiss-gpu": "9"}, 0)["advice"][0]
    assert "driver" in examine_faiss({"faiss-gpu": "9"}, 1)["advice"][0]
    Build.seen = 2
    assert examine_faiss({"faiss-gpu": "9"}, 2) == {
        "packages": {"faiss-gpu": "9"},
        "version": "9",
        "gpu_build": True,
        "gpus": 2,
        "advice": [],
    }

    def broken():
        raise InputError("FAISS is installed but cannot be loaded (libcublas.so.12: no such file).")

    monkeypatch.setattr(topk, "load_faiss", broken)
    assert "libcublas.so.12" in examine_faiss({"faiss-gpu": "9"}, 1)["advice"][0]
    monkeypatch.setattr(topk, "faiss_installed", lambda: False)
    assert "pip install faiss-cpu" in examine_faiss({}, 0)["advice"][0]


def test_from_recordings_to_texts_in_four_commands(shell, tmp_path, monkeypatch):
    """embed text, embed audio, fit, query: real packages, small models on disk, recorded files; twice, moved files too."""
    import soundfile

    from support.extract_models import HEAR_MODULE, text_model, tone

    names = ["dog barking", "acoustic guitar", "cat meows", "church bell", "hi-hat"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models/quiet_hear_module.py").write_text(HEAR_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "models"))
    text_model("bert", tmp_path / "lm")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for i, name in enumerate(names):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for j in range(3):
            soundfile.write(tmp_path / "clips" / name / f"{j}.wav", tone(0.3, 16000, 667 + 1333 * i, seed=j), 16000)
    for command in (
        ["embed", "text", "--model", "lm", "--classes", "classes.txt", "--out", "text.npz"],
        ["embed", "audio", "--model", "hear:quiet_hear_module", "--folder", "clips", "--out", "audio.npz"],
        ["fit", "--text", "text.npz", "--audio", "audio.npz", "--out", "p.safetensors", "--backend", "torch"],
    ):
        done = shell(*command)
        assert done.returncode == 0, done.err
    sounds = [f"clips/{name}/1.wav" for name in names]
    named = ("--audio-model", "hear:quiet_hear_module")
    done = shell("query", "--probe", "p.safetensors", *sounds, "-k", "2", "--json", *named)
    assert done.returncode == 0, done.err
    answer = json.loads(done.out)
    assert [a["query"] for a in answer] == sounds and [a["texts"][0] for a in answer] == names
    # A text file goes through the language model that the probe names, also when it lies elsewhere now.
    (tmp_path / "lm").rename(tmp_path / "moved")
    (tmp_path / "captions.txt").write_text("\n".join([*reversed(names), "water tap, faucet"]))
    done = shell(
        "query",
        "--probe",
        "p.safetensors",
        "--gallery",
        "captions.txt",
        "--text-model",
        str(tmp_path / "moved"),
        *sounds,
        "-k",
        "6",
        "--json",
        *named,
    )
    assert done.returncode == 0, done.err
    assert all(set(a["texts"]) == {*names, "water tap, faucet"} for a in json.loads(done.out))
    known = [next(t for t in a["texts"] if t in names) for a in json.loads(done.out)]
    assert known == names
    (tmp_path / "noise.wav").write_bytes(b"this is not a sound")
    done = shell("query", "--probe", "p.safetensors", "noise.wav", *named)
    assert done.returncode == 2 and "cannot be decoded" in done.err and "Traceback" not in done.err
