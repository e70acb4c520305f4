"""HEAR modules that others published, unchanged, and the worked example of wrapping a model."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fastprobe import EmbeddingTable, InputError

pytest.importorskip("torch", reason="PyTorch is not installed")
from fastprobe.extract.audio import AudioEmbedder, embed_files
from fastprobe.extract.spec import AudioSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def absent(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def sounds(tmp_path):
    """Two classes of noise, in different bands and of different lengths."""
    rng = np.random.default_rng(5)
    for name, width in (("rumble", 64), ("hiss", 2)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for i in range(3):
            noise = rng.standard_normal(22050 + 4000 * i)
            wave = np.convolve(noise, np.ones(width) / width, "same") if name == "rumble" else np.diff(noise)
            soundfile.write(tmp_path / "sounds" / name / f"{i}.wav", 0.3 * wave / np.abs(wave).max(), 22050)
    return tmp_path / "sounds"


@pytest.fixture
def old_librosa(monkeypatch):
    """hearbaseline is of 2021 and gives librosa's mel filters the sample rate by position, as versions before 0.10 took it."""
    filters = pytest.importorskip("librosa", reason="librosa is not installed").filters
    mel = filters.mel
    if "sr" in inspect.signature(mel).parameters and inspect.signature(mel).parameters["sr"].kind is inspect.Parameter.KEYWORD_ONLY:
        monkeypatch.setattr(filters, "mel", lambda sr, **more: mel(sr=sr, **more))


@absent("hearbaseline")
def test_hearbaseline_unchanged(tmp_path, sounds, old_librosa, monkeypatch):
    import sys

    from fastprobe.cli.app import main

    arguments = ("--model", "hear:hearbaseline", "--folder", sounds, "--out", tmp_path / "a.npz", "--no-cache")
    monkeypatch.setattr(sys, "argv", ["fastprobe", "embed", "audio", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    table = EmbeddingTable.load(tmp_path / "a.npz")
    assert table.width == 4096 and len(table) == 6 and table.meta["sample_rate"] == 44100
    # The module itself, called by its own API, gives the same.
    import torch
    from hearbaseline import get_scene_embeddings, load_model

    from fastprobe.extract.sounds import read_sound

    with torch.inference_mode():
        own = get_scene_embeddings(torch.from_numpy(read_sound(sounds / "hiss" / "0.wav", 44100))[None], load_model())[0].numpy()
    row = next(i for i, name in enumerate(table.ids) if name.endswith("hiss/0.wav"))
    np.testing.assert_allclose(table.vectors[row], own, rtol=1e-5, atol=1e-5)


@absent("hearbaseline")
def test_a_module_for_other_versions_says_whose_fault_it_is(monkeypatch):
    filters = pytest.importorskip("librosa", reason="librosa is not installed").filters
    mel = filters.mel
    monkeypatch.setattr(filters, "mel", lambda *, sr, **more: mel(sr=sr, **more))
    with pytest.raises(InputError, match=r"hear:hearbaseline: its load_model fails \(TypeError: .*positional.*other versions"):
        AudioEmbedder(AudioSpec(model="hear:hearbaseline"), "cpu")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("raise AttributeError('np.complex')", "its import fails .AttributeError: np.complex"),
        ("import no_such_package_at_all", "the module cannot be imported .No module named 'no_such_package_at_all'"),
        ("def get_scene_embeddings(a, m): raise ValueError('too short')", "its get_scene_embeddings fails .ValueError: too short"),
        ("def get_scene_embeddings(a, m): return a[:, :2].numpy()", "must give a tensor .sounds, width. for 1 sounds; got ndarray"),
        ("def get_scene_embeddings(a, m): return a", "must give a tensor"),
        ("def load_model(p=''): raise OSError('no weights')", "its load_model fails .OSError: no weights"),
    ],
)
def test_a_modules_own_faults_are_said_as_its_own(tmp_path, monkeypatch, sounds, code, match):
    import sys

    whole = "class M:\n    sample_rate = 16000\ndef load_model(p=''): return M()\ndef get_scene_embeddings(a, m): return a[:, :4]\n"
    if match == "must give a tensor":
        code = "def get_scene_embeddings(a, m): return a[0]"
    (tmp_path / "faulty_hear_module.py").write_text(whole + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("faulty_hear_module", None)
    with pytest.raises(InputError, match=match):
        embed_files([sounds / "hiss" / "0.wav"], AudioSpec(model="hear:faulty_hear_module"))


@absent("openwakeword")
@absent("onnxruntime")
def test_the_worked_example_agrees_with_openwakeword(sounds, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    files = sorted(sounds.rglob("*.wav"))
    vectors = embed_files(files, AudioSpec(model="hear:openwakeword_hear"))
    assert vectors.shape == (6, 96)
    from openwakeword.utils import AudioFeatures

    from fastprobe.extract.sounds import read_sound

    wave = read_sound(files[0], 16000)
    own = AudioFeatures()._get_embeddings((32767 * wave).astype(np.int16)).mean(axis=0)
    assert np.abs(vectors[0] - own).max() < 1e-3 * np.abs(own).max()
    assert np.isfinite(embed_files([short_clip(sounds)], AudioSpec(model="hear:openwakeword_hear"))).all()


def short_clip(folder):
    """A clip shorter than one window of the network."""
    soundfile.write(folder / "short.wav", np.sin(np.arange(2000) / 5), 16000)
    return folder / "short.wav"
