"""The paper's table: complete, accepted as it stands, and every step of it walked with small random models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastprobe import EmbeddingTable

pytest.importorskip("transformers", reason="transformers is not installed")
from fastprobe.extract.spec import AudioSpec, TextSpec
from support.scripts import load_script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def paper():
    return load_script(EXAMPLES / "paper.py")


def test_the_table_has_ten_text_models_and_four_audio_models(paper):
    told = tomllib.loads((EXAMPLES / "paper.toml").read_text())
    texts, audios = ([Path(p).stem for p in told[side]] for side in ("text", "audio"))
    assert texts == [*paper.LANGUAGE_MODELS, *paper.WORD_VECTORS] and len(texts) == 10
    assert sorted(audios) == sorted(paper.AUDIO_MODELS) and len(audios) == 4
    assert (told["train_fraction"], told["splits"], told["statistic"]) == (0.7, 5, "acc@3")
    for model in paper.LANGUAGE_MODELS.values():
        TextSpec(model=model, templates=(paper.PROMPT,))
    for model in paper.AUDIO_MODELS:
        AudioSpec(model=model)


def test_a_dry_run_walks_every_step(tmp_path, paper):
    work = tmp_path / "work"
    command = [sys.executable, str(EXAMPLES / "paper.py"), "--dry-run", "--work", str(work)]
    environment = {**os.environ, "FASTPROBE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((work / "run" / "summary.json").read_text())
    models = [r for r in summary["pairs"] if r.get("role") != "baseline"]
    assert len(models) == 40 and {(r["text"], r["audio"]) for r in models} == {
        (t, a) for t in (*paper.LANGUAGE_MODELS, *paper.WORD_VECTORS) for a in paper.AUDIO_MODELS
    }
    assert all(0.05 <= r["pvalue"] <= 1 and r["metric"] == "acc@3" and r["n_splits"] == 5 for r in summary["pairs"])
    identity = json.loads((work / "run" / "manifest.json").read_text())["identity"]
    assert identity["train_fraction"] == 0.7
    for name in paper.LANGUAGE_MODELS:
        meta = EmbeddingTable.load(work / "tables" / f"{name}.npz").meta
        assert meta["template"] == [paper.PROMPT] and Path(meta["model"]).name == name and meta["parameters"] > 1000
    assert EmbeddingTable.load(work / "tables" / "word2vec.npz").width == 300
    assert (work / "run" / "report.html").is_file() and (work / "run" / "atlas.html").is_file()
    # Started again, nothing is made anew.
    before = {p: p.stat().st_mtime_ns for p in (work / "tables").iterdir()}
    again = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert {p: p.stat().st_mtime_ns for p in (work / "tables").iterdir()} == before and "embed" not in again.stdout


def test_without_data_it_says_what_to_give(tmp_path):
    done = subprocess.run([sys.executable, str(EXAMPLES / "paper.py")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "--dry-run" in done.stderr and not list(tmp_path.iterdir())
