"""Probes and indexes from strangers: what their meta names is never imported, and nothing that lies in a model folder is run."""

import json
import sys

import numpy as np
import pytest
import soundfile

from fastprobe import EmbeddingTable, InputError
from fastprobe.retrieval.build import build_index, plan_index
from fastprobe.retrieval.fit import fit
from fastprobe.retrieval.query import query, search_index
from support.strategies import tables

pytest.importorskip("torch", reason="PyTorch is not installed")
TRAP = "import pathlib\npathlib.Path({place!r}).write_text('it ran')\n"


@pytest.fixture
def sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 9), 16000)
    return tmp_path / "a.wav"


def strange_probe(path, text_meta=None, audio_meta=None):
    """A probe whose tables say of themselves what a stranger likes."""
    text, audio = tables(classes=5)
    text = EmbeddingTable(text.vectors, text.labels, text.ids, {"name": "t", **(text_meta or {})})
    audio = EmbeddingTable(audio.vectors, audio.labels, audio.ids, {"name": "a", **(audio_meta or {})})
    probe = fit(text, audio)
    probe.save(path)
    return path, text


@pytest.mark.parametrize("module", ["strange_hear_module", "package.of_a_stranger"])
@pytest.mark.parametrize("way", ["query", "index"])
def test_a_module_that_a_file_names_is_not_imported(tmp_path, monkeypatch, sound, module, way):
    trap, place = tmp_path / "ran", tmp_path / "modules"
    file = place.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(TRAP.format(place=str(trap)))
    (file.parent / "__init__.py").write_text(TRAP.format(place=str(trap)))
    monkeypatch.syspath_prepend(str(place))
    meta = {"kind": "audio", "spec": {"model": f"hear:{module}"}}
    path, text = strange_probe(tmp_path / "p.safetensors", audio_meta=meta)
    text.save(tmp_path / "t.npz")
    if way == "index":
        from fastprobe.retrieval.fit import load_probe

        list(build_index(plan_index(tmp_path / "t.npz", probe=load_probe(path)), tmp_path / "index", load_probe(path)))

    def look_up(**named):
        if way == "index":
            return search_index(tmp_path / "index", [sound], **named)
        return query(path, [sound], **named)

    for named in ({}, {"audio_model": "hear:another"}):
        with pytest.raises(InputError, match=f"hear:{module}"):
            look_up(**named)
    assert not trap.exists() and module not in sys.modules
    with pytest.raises(InputError, match="not a HEAR module"):  # named by the user, it is imported
        look_up(audio_model=f"hear:{module}")
    assert trap.exists()
    for name in [n for n in sys.modules if n.split(".")[0] == module.split(".")[0]]:
        sys.modules.pop(name)


def test_the_shell_says_which_option_names_it(tmp_path, sound, shell):
    strange_probe(tmp_path / "p.safetensors", audio_meta={"kind": "audio", "spec": {"model": "hear:strange"}})
    done = shell("query", str(sound), "--probe", "p.safetensors")
    assert done.returncode == 2 and "--audio-model hear:strange" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("weights", ["pickle", "none"])
def test_code_in_a_model_folder_is_not_run(tmp_path, weights, shell):
    """`auto_map` asks for the folder's own code, and a pickled checkpoint could run anything while it loads."""
    import torch

    trap, folder = tmp_path / "ran", tmp_path / "lm"
    folder.mkdir()
    classes = {"AutoConfig": "trap.TrapConfig", "AutoModel": "trap.TrapModel", "AutoTokenizer": ["trap.TrapTokenizer", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": classes}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TrapTokenizer", "auto_map": classes}))
    (folder / "trap.py").write_text(TRAP.format(place=str(trap)))
    if weights == "pickle":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": classes}))
        torch.save({"x": _Trap(str(trap))}, folder / "pytorch_model.bin")
    meta = {"kind": "text", "spec": {"model": str(folder)}}
    strange_probe(tmp_path / "p.safetensors", text_meta=meta)
    tables(classes=5)[1].save(tmp_path / "a.npz")
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    done = shell("query", "a.npz", "--probe", "p.safetensors", "--gallery", "captions.txt")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not trap.exists()


@pytest.mark.parametrize("model", ["passt", "pann", "audiomae", "ast", "clap"])
def test_a_pickled_audio_checkpoint_is_not_run(tmp_path, sound, model, shell):
    import torch

    trap, folder = tmp_path / "ran", tmp_path / "weights"
    folder.mkdir()
    file = folder / "pytorch_model.bin" if model in ("ast", "clap") else folder / "w.pt"
    torch.save({"model": _Trap(str(trap))}, file)
    (folder / "config.json").write_text(json.dumps({"model_type": {"ast": "audio-spectrogram-transformer"}.get(model, model)}))
    (folder / "preprocessor_config.json").write_text("{}")
    checkpoint = str(folder if model in ("ast", "clap") else file)
    meta = {"kind": "audio", "spec": {"model": model, "checkpoint": checkpoint}}
    strange_probe(tmp_path / "p.safetensors", audio_meta=meta)
    done = shell("query", str(sound), "--probe", "p.safetensors")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not trap.exists()


class _Trap:
    """Writes a file while it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return exec, (TRAP.format(place=self.place),)
