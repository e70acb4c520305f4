"""Runs of several probes: a cell each for every pair, one family, and a choice among them that is paid for."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.protocol.cells import probe_names
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.probes import PROBES, SIMILARITIES
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.store import ResultStore
from support.strategies import tables

FAST = {"splits": 2, "permutations": 19, "backend": "cpp", "train_fraction": 0.5, "baselines": False}
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


# Every kind there is, with these options.
OPTIONS = {"ridge": "ridge:alpha=0.1,1", "procrustes": "procrustes:csls=2", "cca": "cca:dim=2", "knn": "knn:k=2"}
ALL = {"probe": ["contrastive", *(OPTIONS.get(k, k) for k in PROBES)], "similarity": [OPTIONS.get(k, k) for k in SIMILARITIES]}
FIRST = len(ALL["probe"])  # cell of the first similarity


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A run of every kind of probe, its tables in files."""
    folder = tmp_path_factory.mktemp("every")
    for table, name in zip(tables(classes=12), ("t", "a")):
        table.save(folder / f"{name}.npz")
    options = {**FAST, "seeds": 2, **ALL}
    return folder, fp.permutation_test([folder / "t.npz"], [folder / "a.npz"], out=folder / "run", **options), options


def test_every_kind_of_probe_stands_in_one_family(every):
    folder, results, _ = every
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert [r["probe"] for r in summary["pairs"]] == [*ALL["probe"], *ALL["similarity"]] == [r.probe for r in results]
    assert summary["families"][0]["n_tests"] == FIRST + len(ALL["similarity"])
    assert all(r.pvalue <= r.pvalue_max_t for r in results)
    assert [r["metric"] for r in summary["pairs"]][FIRST:] == ALL["similarity"]


def test_similarities_and_closed_forms_are_stored_once_per_permutation(every):
    folder, _, _ = every
    store = ResultStore.open(folder / "run")
    rows = {}
    for unit in store.done():
        name = store.cells[unit.cell].probe
        rows[name] = rows.get(name, 0) + len(store.read(unit)["permutation"])
    assert rows == {name: 20 * (4 if name == "contrastive" else 2 if name in ALL["probe"] else 1) for name in rows}
    assert len(rows) == FIRST + len(ALL["similarity"])


def test_a_similarity_is_that_of_the_class_centroids(every):
    from fastprobe.runs.experiment import prepare

    folder, results, options = every
    run = prepare(folder / "t.npz", folder / "a.npz", **options)
    pair = run.pairs[FIRST]
    centroids = np.stack([pair.audio[pair.labels == c].mean(axis=0) for c in range(12)])

    def gram(x):
        k = (x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T
        return k - np.diag(np.diag(k))

    def hsic(k, m):
        n = len(k)
        ones = np.ones(n)
        total = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2)) - 2 * (ones @ k @ m @ ones) / (n - 2)
        return total / (n * (n - 3))

    k, m = gram(pair.text), gram(centroids)
    assert results[FIRST].statistic == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))
    order = run.relabellings(1, 20)
    expected = [hsic(k[np.ix_(pi, pi)], m) / np.sqrt(hsic(k, k) * hsic(m, m)) for pi in order]
    np.testing.assert_allclose(results[FIRST].null_distribution, expected, atol=1e-10)


def test_every_command_knows_all_probes(every, shell):
    folder, _, _ = every
    assert verify(folder / "run", sample=60)["agrees"] and verify(folder / "run", sample=60, backend="cpp")["agrees"]
    report = shell("report", folder / "run")
    assert report.returncode == 0, report.stderr
    page = (folder / "run" / "report.html").read_text()
    assert all(name in page for name in [*ALL["probe"], *ALL["similarity"]])
    assert "1 text embedding table (text)" in page and "Closed forms were fitted" in page and "Similarities were computed" in page
    assert examine(folder / "run", check=True)["state"] == "done"


def test_a_lower_statistic_leaves_similarities_the_right_way_round(every):
    folder, results, options = every
    again = fp.permutation_test(folder / "t.npz", folder / "a.npz", **{**options, "statistic": "mean_rank"})
    for before, after in zip(results[FIRST:], again[FIRST:]):
        assert before.pvalue == after.pvalue and before.statistic == after.statistic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "rigde"}, f"contrastive, {', '.join(PROBES)}"),
        ({"similarity": "ckaa"}, ", ".join(SIMILARITIES)),
        ({"probe": "cca:dim=300"}, "`dim` must be at most the rank"),
        ({"probe": "ridge:csls=99"}, "`csls` must be at most"),
        ({"similarity": "knn:k=99"}, "`k` of knn must be below"),
        ({"probe": ["ridge", "ridge"]}, "twice"),
        ({"probe": "ridge", "control": "gaussian"}, "one of trained probes"),
        ({"probe": "ridge", "statistic": "loss"}, "trained probes"),
        ({"probe": []}, "at least one probe"),
    ],
)
def test_wrong_probes_are_named_before_anything_is_created(every, tmp_path, options, message):
    folder, _, _ = every
    with pytest.raises(InputError, match=message):
        fp.permutation_test(folder / "t.npz", folder / "a.npz", out=tmp_path / "run", **{**FAST, **options})
    assert not (tmp_path / "run").exists()
