"""Damaged files, over 500 of them with fixed seeds: each reader refuses them in a sentence or reads what is harmless."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastprobe as fp
from support.small_runs import NAMES, tables

CASES = 40
# What is damaged, the file of the folder, how, and what reads it.
READERS = {
    "table.npz": ("text.npz", "", "mutations", "lambda p: fp.EmbeddingTable.load(p)"),
    "table.safetensors": ("text.safetensors", "", "mutations", "lambda p: fp.EmbeddingTable.load(p)"),
    "table.parquet": ("text.parquet", "", "mutations", "lambda p: fp.EmbeddingTable.load(p)"),
    "probe": ("probe.safetensors", "", "mutations", "lambda p: fp.load_probe(p).project_text(np.ones((1, 5), 'f4'))"),
    "closed probe": ("ridge.safetensors", "", "mutations", "lambda p: fp.load_probe(p).project_text(np.ones((1, 5), 'f4'))"),
    "index meta": ("index", "meta.json", "json_mutations", "search"),
    "index texts": ("index", "texts.arrow", "mutations", "search"),
    "index vectors": ("index", "vectors.npy", "mutations", "search"),
    "manifest": ("run", "manifest.json", "json_mutations", "shell(lambda p: ['status', str(p)])"),
    "manifest bytes": ("run", "manifest.json", "mutations", "shell(lambda p: ['status', str(p)])"),
    "manifest, report": ("run", "manifest.json", "json_mutations", "lambda p: load_run(p)"),
    "summary": ("run", "summary.json", "json_mutations", "lambda p: load_run(p)"),
    "shard": ("run", "SHARD", "mutations", "shell(lambda p: ['verify', str(p), '--sample', '2'])"),
    "observed": ("run", "observed.parquet", "mutations", "lambda p: load_run(p)"),
    "config": (
        "run.toml",
        "",
        "mutations",
        "shell(lambda p: ['run', '--config', str(p), '-q', '--backend', 'reference', '--no-baselines'])",
    ),
    "groups": ("groups.csv", "", "mutations", "lambda p: controls.read_groups(p, 'top', NAMES)"),
}
CODE = """
import sys, numpy as np
from pathlib import Path
import fastprobe as fp
from fastprobe.protocol import controls
from fastprobe.report.data import load_run
from fastprobe.retrieval.gallery import GalleryIndex
from support.hostile import faults, json_mutations, mutations, shell
from support.small_runs import NAMES

def search(path):
    index = GalleryIndex.load(path)
    index.texts(index.search(np.ones((2, index.meta["width"]), "f4"), 3)[1])

found = faults(Path({source!r}), Path({work!r}), {part!r}, {reader}, {mutate}, seed={seed}, count={count})
print("FAULTS", found)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One of each file, undamaged."""
    home = tmp_path_factory.mktemp("whole")
    text, (audio, _) = tables()
    for suffix in ("npz", "safetensors", "parquet"):
        text.save(home / f"text.{suffix}")
    audio.save(home / "audio.npz")
    fp.fit(text, audio, probe=fp.ProbeConfig(dim=2, steps=2), classes=NAMES[:5], backend="reference").save(home / "probe.safetensors")
    fp.fit(text, audio, probe=fp.Ridge(), classes=NAMES[:5]).save(home / "ridge.safetensors")
    fp.permutation_test(
        home / "text.npz", home / "audio.npz", probe=fp.ProbeConfig(dim=2, steps=2), permutations=5, splits=2, train_fraction=0.5,
        backend="reference", baselines=False, out=home / "run",
    )  # fmt: skip
    subprocess.run([sys.executable, "-m", "fastprobe", "index", "build", str(home / "text.npz"), "--out", str(home / "index")], check=True)
    (home / "run.toml").write_text(
        'text = ["text.npz"]\naudio = ["audio.npz"]\npermutations = 3\nsplits = 2\ndim = 2\nsteps = 2\ntrain-fraction = 0.5\n'
    )
    (home / "groups.csv").write_text("label,top\n" + "".join(f"{n},{n[-1]}\n" for n in NAMES))
    return home


@pytest.mark.parametrize("name", list(READERS))
def test_a_damaged_file_is_refused_in_a_sentence(whole, tmp_path, name):
    file, part, mutate, reader = READERS[name]
    if part == "SHARD":
        part = str(next((whole / "run" / "results").glob("*.parquet")).relative_to(whole / "run"))
    seed = list(READERS).index(name)
    code = CODE.format(source=str(whole / file), work=str(tmp_path), part=part, reader=reader, mutate=mutate, seed=seed, count=CASES)
    for sibling in ("text.npz", "audio.npz"):
        (tmp_path / sibling).write_bytes((whole / sibling).read_bytes())
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # what the cases write, a run among it, lies in the test's own folder
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=here, timeout=300, stdin=subprocess.DEVNULL
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("case", "FAULTS"))]
    assert done.returncode == 0 and said[-1].startswith("FAULTS"), f"the process ended at {said[-1:]}: {done.stderr[-2000:]}"
    assert said[-1] == "FAULTS []", said[-1]
