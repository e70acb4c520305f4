"""Runs of several probes: a cell each for every pair, one family, and a choice among them that is paid for."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.protocol.cells import probe_names
from fastprobe.protocol.config import ProbeConfig
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.store import ResultStore
from support.strategies import tables

FAST = {"splits": 2, "permutations": 19, "backend": "cpp", "train_fraction": 0.5}
GRID = {"temperature": [0.1, 0.3], "lr": [0.5, 1.0], "steps": 5, "dim": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cells") / "run"
    text, audio = tables(classes=10)
    results = fp.permutation_test([text], [audio], probe=ProbeConfig.grid(**GRID), out=out, **FAST)
    return out, results, (text, audio)


def test_every_configuration_is_a_cell_with_the_result_of_its_own_run(run):
    out, results, (text, audio) = run
    assert len(results) == 4
    for result, config in zip(results, ProbeConfig.grid(**GRID)):
        alone = fp.permutation_test(text, audio, probe=config, **FAST)
        assert result.statistic == alone.statistic and result.pvalue == alone.pvalue
        np.testing.assert_array_equal(result.null_distribution, alone.null_distribution)


def test_the_best_configuration_pays_for_the_choice(run):
    out, results, _ = run
    families = {f["name"]: f for f in json.loads((out / "summary.json").read_text())["families"]}
    test = families["best configuration"]["tests"][0]
    assert test["chosen"] in probe_names(ProbeConfig.grid(**GRID))
    assert test["pvalue"] >= min(r.pvalue for r in results)
    assert families["best configuration"]["n_configurations"] == 4


def test_shards_and_records_name_the_probe(run):
    import pyarrow.parquet as pq

    out, _, _ = run
    store = ResultStore.open(out)
    for unit in store.done():
        assert pq.read_table(store.shard_path(unit))["probe"].unique().to_pylist() == [store.cells[unit.cell].probe]
        assert store.damage(unit) is None
    assert [r["probe"] for r in json.loads((out / "summary.json").read_text())["pairs"]] == [c.probe for c in store.cells]
    assert "probe" in (out / "summary.csv").read_text().splitlines()[0].split(",")


def test_status_and_resume_know_all_cells(run, tmp_path):
    out, _, (text, audio) = run
    found = examine(out)
    assert found["state"] == "done" and len({r["probe"] for r in found["pairs"]}) == 4
    before = (out / "summary.json").read_bytes()
    fp.permutation_test([text], [audio], probe=ProbeConfig.grid(**GRID), out=out, resume=True, **FAST)
    assert (out / "summary.json").read_bytes() == before


def test_verify_trains_each_cell_with_its_own_configuration(tmp_path):
    text, audio = tables(classes=10)
    for table, name in ((text, "t"), (audio, "a")):
        table.save(tmp_path / f"{name}.npz")
    probes = ProbeConfig.grid(optimizer=["adam-mini", "adam"], steps=4, dim=3)
    fp.permutation_test(tmp_path / "t.npz", tmp_path / "a.npz", probe=probes, out=tmp_path / "run", **FAST)
    assert verify(tmp_path / "run", sample=60, backend="cpp")["agrees"]


def test_the_same_configuration_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        probe_names([ProbeConfig(), ProbeConfig()])
    with pytest.raises(InputError, match=r"`lr` must list different values; got 1.0, 1.0"):
        ProbeConfig.grid(lr=[1.0, 1.0])


def test_the_shell_takes_several_values(shell, tmp_path):
    text, audio = tables(classes=10)
    text.save(tmp_path / "t.npz")
    audio.save(tmp_path / "a.npz")
    common = ["run", "--text", "t.npz", "--audio", "a.npz", "--permutations", 9, "--splits", 2, "--steps", 3, "--dim", 3]
    done = shell(*common, "--temperature", "0.1,0.3", "--optimizer", "sgd", "--out", "run", "-q")
    assert done.returncode == 0, done.stderr
    assert "best of 2 configurations is contrastive:temperature=" in done.stdout.replace("\n", " ")
    report = shell("report", "run")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "contrastive:temperature=0.1" in page and "contrastive:temperature=0.3" in page
    for option, value, rule in (("--temperature", "0.1,hot", "a number"), ("--optimizer", "sgd,lion", "one of adam-mini, sgd, adam")):
        wrong = shell(*common, option, value, "--out", "other")
        assert wrong.returncode == 2 and rule in wrong.stderr.replace("\n", " ") and "Traceback" not in wrong.stderr
