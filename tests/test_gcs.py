"""A run's whole life at gs://, on a Google Cloud Storage emulator: what `test_s3.py` does on S3, without its faults."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("gcsfs", reason="gcsfs is not installed")
pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")
from fastprobe.runs.store import ResultStore
from fastprobe.storage import open_folder
from support.gcs_server import served
from support.small_runs import same_rows, save_tables, tables

FAST = ["--backend", "reference", "--steps", "3", "--dim", "2", "--permutations", "1500", "--splits", "2", "--train-fraction", "0.5", "-q"]


@pytest.fixture(scope="module")
def bucket():
    with served() as name:
        yield f"gs://{name}"


def fastprobe(*arguments):
    command = [sys.executable, "-c", "from fastprobe.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_a_run_is_killed_resumed_verified_merged_and_reported(bucket, tmp_path):
    arguments = [*save_tables(tmp_path, 1), *FAST]
    done = fastprobe("run", *arguments, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    out = f"{bucket}/run"
    command = [sys.executable, "-c", "from fastprobe.cli.app import main; main()", "run", *map(str, arguments), "--out", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while process.poll() is None and "results" not in open_folder(out).names():
        pass
    process.kill()
    process.communicate()
    assert "interrupted" in fastprobe("status", out).stdout
    assert fastprobe("run", *arguments, "--out", out).returncode == 2
    again = fastprobe("run", *arguments, "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    store = ResultStore.open(out)
    assert all(store.damage(unit) is None for unit in store.done()) and same_rows(store, ResultStore.open(tmp_path / "run"))
    status = json.loads(fastprobe("status", out, "--json", "--check").stdout)
    assert status["done"] == status["total"] == 1501 * 2
    verified = fastprobe("verify", out, "--sample", "8", "--seed", "1")
    assert verified.returncode == 0 and "they agree" in verified.stdout, verified.stderr
    reported = fastprobe("report", out)
    assert reported.stdout.strip() == f"{out}/report.html" and "report.html" in open_folder(out).names(), reported.stderr
    for i in range(2):
        part = fastprobe("run", *arguments, "--shard", f"{i}/2", "--out", f"{bucket}/part{i}")
        assert part.returncode == 0, part.stderr
    merged = fastprobe("merge", f"{bucket}/all", f"{bucket}/part0", f"{bucket}/part1")
    assert merged.returncode == 0, merged.stderr
    assert same_rows(ResultStore.open(f"{bucket}/all"), ResultStore.open(tmp_path / "run"))
    assert not [n for n in os.listdir() if n.startswith("gs:")]


def test_tables_and_indexes_lie_there(bucket):
    text, (audio, *_) = tables(1)
    text.save(f"{bucket}/t/text.parquet")
    audio.save(f"{bucket}/t/audio.npz")
    sides = ("--text", f"{bucket}/t/text.parquet", "--audio", f"{bucket}/t/audio.npz")
    probe, index = f"{bucket}/t/probe.safetensors", f"{bucket}/t/index"
    for command in (
        ("fit", *sides, "--out", probe, "--steps", "2", "--dim", "2"),
        ("index", "build", f"{bucket}/t/text.parquet", "--probe", probe, "--out", index),
    ):
        done = fastprobe(*command)
        assert done.returncode == 0, done.stderr
    found = fastprobe("index", "search", index, f"{bucket}/t/audio.npz", "-k", "1", "--json")
    assert found.returncode == 0, found.stderr
    answers = json.loads(found.stdout)
    assert len(answers) == len(audio) and all(np.isfinite(a["scores"]).all() for a in answers)
