"""What `pip install fastprobe` brings is enough for runs, reports, retrieval and the library; what is not enough names its extra."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastprobe
from support.core_only import core_environment, core_packages, hidden
from support.strategies import tables

EXTRAS = {"torch", "triton", "transformers", "faiss", "soundfile", "soxr", "timm", "ray"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return core_environment(tmp_path_factory.mktemp("core"))


@pytest.fixture
def core_shell(shell, environment):
    """`fastprobe` where only the core is installed."""
    return lambda *arguments: shell(*arguments, env=environment)


@pytest.fixture
def core_python(environment, tmp_path):
    """A program where only the core is installed; what it prints."""

    def call(code):
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def files(tmp_path):
    text, audio = tables(classes=12)
    text.save(tmp_path / "text.npz")
    audio.save(tmp_path / "audio.npz")
    (tmp_path / "classes.txt").write_text("dog bark\nrain\nchurch bell\n")
    return tmp_path


def test_the_core_is_small():
    core = core_packages()
    assert not core & EXTRAS and {"numpy", "scipy", "pyarrow", "typer"} <= core


def test_the_simulated_core_hides_what_extras_bring(core_python):
    here = EXTRAS & set(hidden()[0])
    assert {"torch", "triton", "transformers", "faiss"} <= here  # or this file tests nothing
    out = core_python(
        f"import importlib.util, importlib.metadata as m, json\nfound = []\nfor name in {sorted(here)}:\n"
        "    assert importlib.util.find_spec(name) is None, name\n"
        "    try: __import__(name)\n    except ModuleNotFoundError: continue\n    found.append(name)\n"
        "try: m.version('torch'); found.append('version of torch')\nexcept m.PackageNotFoundError: pass\n"
        "import numpy, scipy, pandas, pyarrow, matplotlib, sklearn\nprint(json.dumps(found))"
    )
    assert json.loads(out) == []


@pytest.mark.parametrize("simulated", [[], ["--simulated"]], ids=["real", "simulated"])
def test_demo_and_report(core_shell, tmp_path, simulated):
    done = core_shell("demo", *simulated, "--out", "d", "--permutations", "19", "--splits", "1")
    assert done.returncode == 0, done.stderr
    if not simulated:
        assert core_shell("status", "d", "--check").returncode == 0
        assert core_shell("verify", "d", "--sample", "2").returncode == 0
    done = core_shell("report", "d")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("probe", ["contrastive", "ridge", "procrustes:dim=2", "cca:dim=2", "ridge --similarity cka --similarity rsa"])
def test_every_kind_of_probe_runs(core_shell, files, probe):
    common = ["--text", "text.npz", "--audio", "audio.npz", "--permutations", "3", "--splits", "1", "--steps", "2", "--dim", "2"]
    done = core_shell("run", *common, "--probe", *probe.split(), "--out", "r")
    assert done.returncode == 0, done.stderr


def test_commands_around_a_run(core_shell, files):
    assert core_shell("plan", "--text", "text.npz", "--audio", "audio.npz", "--seconds", "0.2").returncode == 0
    fitted = core_shell("fit", "--text", "text.npz", "--audio", "audio.npz", "--out", "p.safetensors", "--steps", "3", "--dim", "2")
    assert fitted.returncode == 0, fitted.stderr
    done = core_shell("query", "audio.npz", "--probe", "p.safetensors", "-k", "2")
    assert done.returncode == 0, done.stderr
    done = core_shell("index", "build", "text.npz", "--out", "i", "--probe", "p.safetensors")
    assert done.returncode == 0, done.stderr
    done = core_shell("index", "search", "i", "audio.npz", "-k", "2")
    assert done.returncode == 0, done.stderr
    done = core_shell("embed", "text", "--model", "char-ngrams", "--classes", "classes.txt", "--out", "n.npz")
    assert done.returncode == 0, done.stderr
    found = json.loads(core_shell("doctor", "--json").stdout)
    assert found["versions"]["torch"] is None and found["auto"] == "cpp"
    assert any("fastprobe[torch]" in line for line in found["advice"])


def test_library(core_python, files):
    out = core_python(
        "import sys, numpy as np, fastprobe as fp\n"
        "result = fp.permutation_test('text.npz', 'audio.npz', permutations=9, splits=2, probe=fp.ProbeConfig(dim=2, steps=3))\n"
        "assert 0 < result.pvalue <= 1 and len(result.to_frame()) and result.plot() is not None and '<' in result._repr_html_()\n"
        "probe = fp.ContrastiveProbe(fp.ProbeConfig(dim=2, steps=3)).fit('text.npz', 'audio.npz')\n"
        "labels, scores = probe.retrieve('audio.npz', k=3)\n"
        "from fastprobe.retrieval.gallery import GalleryIndex, top_k\n"
        "g = np.random.default_rng(0).standard_normal((50, 4))\n"
        "assert GalleryIndex(g).search(g[:4], 1)[1].ravel().tolist() == [0, 1, 2, 3]\n"
        "assert top_k(g, g, 2)[1].shape == (50, 2) and labels.shape == scores.shape\n"
        "assert 'torch' not in sys.modules\nprint('fine')"
    )
    assert out.strip() == "fine"


TABLES = ["--text", "text.npz", "--audio", "audio.npz"]


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("torch", ["run", *TABLES, "--backend", "torch"]),
        ("gpu", ["run", *TABLES, "--backend", "triton"]),
        ("torch", ["run", *TABLES, "--device", "cuda"]),
        ("torch", ["run", *TABLES, "--precision", "tf32"]),
        ("torch", ["fit", *TABLES, "--out", "p.safetensors", "--backend", "torch"]),
        ("torch", ["fit", *TABLES, "--out", "p.safetensors", "--device", "cuda"]),
        ("gpu", ["run", *TABLES, "--devices", "0,1"]),
        ("ray", ["run", *TABLES, "--engine", "ray"]),
        ("torch", ["plan", *TABLES, "--backend", "torch"]),
        ("torch", ["demo", "--backend", "torch"]),
        ("text", ["embed", "text", "--model", "bert-base-uncased", "--classes", "classes.txt", "--out", "t.npz"]),
        ("torch", ["bench"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_what_the_core_lacks_names_its_extra(core_shell, files, extra, arguments):
    done = core_shell(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"pip install 'fastprobe[{extra}]'" in done.stderr, done.stderr
    assert not (files / "runs").exists()  # refused before anything was written


@pytest.mark.parametrize("model", ["passt", "pann", "audiomae", "ast", "clap", "hear:hear21passt.base"])
def test_every_audio_model_names_its_extra(core_shell, files, model):
    (files / "sounds" / "dog").mkdir(parents=True)
    (files / "sounds" / "dog" / "a.wav").write_bytes(b"RIFF")
    done = core_shell("embed", "audio", "--model", model, "--folder", "sounds", "--out", "a.npz", "--no-cache", "--allow-label-leak")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "pip install 'fastprobe[audio]'" in done.stderr, done.stderr


def test_verify_by_a_backend_that_is_not_there_names_its_extra(core_shell, files):
    assert core_shell("run", *TABLES, "--permutations", "1", "--splits", "1", "--steps", "1", "--dim", "2", "--out", "r").returncode == 0
    done = core_shell("verify", "r", "--backend", "torch")
    assert done.returncode == 2 and "pip install 'fastprobe[torch]'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("torch", "fp.kernels.contrastive_loss(x, x, x)"),
        ("torch", "fp.kernels.select_backend('torch')"),
        ("torch", "fp.kernels.BACKENDS['torch'].load()"),
        ("gpu", "fp.kernels.BACKENDS['triton'].load()"),
        ("torch", "fp.kernels.device_name('torch')"),
        ("gpu", "fp.kernels.select_backend('triton')"),
        ("torch", "from fastprobe.retrieval.gallery import top_k; top_k(x, x, 1, path='groups')"),
        ("torch", "from fastprobe.retrieval.gallery import top_k; top_k(x, x, 1, device='cuda')"),
        ("torch", "from fastprobe.retrieval.gallery import GalleryIndex; GalleryIndex(x, kind='exact', devices=['cuda:0'])"),
        ("audio", "from fastprobe.extract.sounds import read_sound; read_sound('a.wav', 16000)"),
    ],
    ids=lambda v: re.sub(r"^.*; ", "", v),
)
def test_library_calls_that_need_more_name_the_extra(core_python, extra, code):
    out = core_python(
        f"import numpy as np, fastprobe as fp\nx = np.ones((2, 2), np.float32)\ntry:\n    {code}\n"
        "except fp.InputError as error: print(error)\nelse: raise SystemExit('no error')"
    )
    assert f"pip install 'fastprobe[{extra}]'" in out, out


def test_every_extra_that_is_named_exists():
    named = set()
    for path in Path(fastprobe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("needs", "install"):
                named |= {c.value for c in node.args[-1:] if isinstance(c, ast.Constant)}
    assert {"torch", "gpu", "text", "audio", "ray"} <= named <= set(metadata.metadata("fastprobe").get_all("Provides-Extra"))
