"""Status, damage, verification, and run directories that mean harm."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fastprobe.cli.app import app
from fastprobe.cli.runs import engine_of, parse_shard
from fastprobe.errors import InputError, StoreError
from fastprobe.protocol.plan import LIMITS, Unit
from fastprobe.randomness import PERMUTATION, generator
from fastprobe.runs import run
from fastprobe.runs.audit import examine, prepare_again, verify
from fastprobe.runs.manifest import read_manifest, to_json
from fastprobe.runs.merge import merge
from fastprobe.runs.specification import stored_specification
from fastprobe.runs.store import ResultStore
from fastprobe.tables.embeddings import EmbeddingTable
from support.small_runs import edit_manifest, experiment, finish, rows, save_tables, sized


@pytest.fixture
def made(tmp_path):
    """A finished run from files, and its experiment."""
    arguments = save_tables(tmp_path / "tables")
    exp = experiment(40, text=arguments[1], audio=[arguments[3], arguments[5]])
    return exp, finish(exp, run.open_store(exp, tmp_path / "r"), sized(8))


def test_status_counts_what_is_stored(tmp_path):
    exp = experiment(40)
    steps = run.execute(exp, run.open_store(exp, tmp_path / "r"), sized(8))
    for _ in range(4):
        next(steps)
    found = examine(tmp_path / "r")
    assert found["state"] == "running" and f"process {os.getpid()} on" in found["holder"]
    assert found["done"] == 3 * 8 * 2 and found["total"] == exp.plan.n_jobs
    assert [p["permutations"] for p in found["pairs"]] == [15, 7]
    steps.close()
    assert examine(tmp_path / "r")["state"] == "interrupted"
    store = finish(exp, run.open_store(exp, tmp_path / "r", resume=True))
    found = examine(tmp_path / "r", check=True)
    assert found["state"] == "done" and found["done"] == found["total"]
    assert found["damaged"] == [] == found["twice"] and "given as arrays" in found["inputs"][0]
    want = run.analyse(exp, store)
    for pair, result in zip(found["pairs"], want):
        assert pair["pvalue"] == result.pvalue and pair["statistic"] == result.statistic
        assert (pair["pvalue_low"], pair["pvalue_high"]) == tuple(result.confidence_interval())


def test_status_of_a_part_is_of_that_part(tmp_path):
    exp = experiment(40)
    finish(exp, run.open_store(exp, tmp_path / "r"), part=(1, 4))
    found = examine(tmp_path / "r")
    assert found["state"] == "part done" and found["done"] == found["total"] < exp.plan.n_jobs
    assert all(np.isnan(p["pvalue"]) for p in found["pairs"]), "the observed run is in another part"


def damage(store, unit, how):
    path = store.shard_path(unit)
    raw = path.read_bytes()
    if how == "flip":
        raw = raw[: len(raw) // 3] + bytes([raw[len(raw) // 3] ^ 64]) + raw[len(raw) // 3 + 1 :]
    elif how == "cut":
        raw = raw[:-9]
    elif how == "empty":
        raw = b""
    elif how == "another":  # a whole shard, but of other permutations
        raw = store.shard_path(next(u for u in store.done() if u != unit and u.cell == unit.cell)).read_bytes()
    elif how == "other pair":
        raw = store.shard_path(next(u for u in store.done() if u.cell != unit.cell and u.start == unit.start)).read_bytes()
    elif how == "value":  # a consistent file with another value: only the digest tells
        table = pq.read_table(io.BytesIO(raw))
        loss = table["loss"].to_numpy().copy()
        loss[1] = np.nextafter(loss[1], 9)
        buffer = io.BytesIO()
        pq.write_table(table.set_column(table.column_names.index("loss"), "loss", pa.array(loss)), buffer)
        raw = buffer.getvalue()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "another", "other pair", "value"])
def test_damage_is_found_and_just_that_is_computed_again(made, how):
    exp, store = made
    before = rows(store).tobytes()
    files = {n: os.stat(store.path / "results" / n).st_mtime_ns for n in os.listdir(store.path / "results")}
    unit = store.done()[2]
    damage(store, unit, how)
    found = examine(store.path, check=True)
    assert [d["shard"] for d in found["damaged"]] == [store.shard_name(unit)] and found["inputs"] == []
    steps = list(run.execute(exp, run.open_store(exp, store.path, resume=True), sized(8)))
    assert [name for name, _ in steps[0].mended] == [store.shard_name(unit)]
    assert [s.unit for s in steps[1:]] == [unit]
    assert rows(store).tobytes() == before
    after = {n: os.stat(store.path / "results" / n).st_mtime_ns for n in os.listdir(store.path / "results")}
    assert {n for n in files if files[n] != after[n]} == {os.path.basename(store.shard_name(unit))}


def test_a_run_of_an_earlier_version_is_continued_and_verified_with_the_permutations_of_that_version(tmp_path):
    def old(seed, number, n):
        return generator(seed, PERMUTATION, number).permutation(n)

    arguments = save_tables(tmp_path / "tables")
    exp = experiment(12, text=arguments[1], audio=arguments[3])
    text = exp.relabellings(0, 13)
    was = run.continued(replace(exp, shuffles=1), None)
    np.testing.assert_array_equal(
        was.relabellings(0, 13), [np.arange(exp.n_classes), *(old(exp.seed, i, exp.n_classes) for i in range(1, 13))]
    )
    assert not np.array_equal(was.relabellings(0, 13), text)
    whole = finish(was, run.open_store(was, tmp_path / "whole"))
    assert "shuffles" not in read_manifest(whole.path)["identity"], "as 0.1.0 stored it"
    part = finish(was, run.open_store(was, tmp_path / "part"), part=(0, 3))
    again = run.continued(exp, part.path)
    assert rows(finish(again, run.open_store(again, part.path, resume=True))).tobytes() == rows(whole).tobytes()
    assert verify(whole.path)["agrees"]


def test_runs_whose_permutations_were_drawn_in_different_ways_are_not_mixed(made):
    exp, store = made
    edit_manifest(store.path, lambda m: m["identity"].update(shuffles=3))
    with pytest.raises(StoreError, match="holds another run: different versions of fastprobe drew the permutations"):
        run.open_store(exp, store.path, resume=True)
    with pytest.raises(InputError, match="different versions of fastprobe drew the permutations"):
        verify(store.path)


def test_a_table_that_changed_is_named(made, tmp_path):
    exp, store = made
    from fastprobe.tables.embeddings import EmbeddingTable

    path = tmp_path / "tables" / "audio1.npz"
    table = EmbeddingTable.load(path)
    EmbeddingTable(table.vectors * np.float32(1.5), table.labels, table.ids, table.meta).save(path)
    for call in (lambda: verify(store.path), lambda: prepare_again(read_manifest(store.path))):
        with pytest.raises(InputError, match="the audio table 'audio1' has changed since"):
            call()
    assert "audio1" in examine(store.path, check=True)["inputs"][0]
    changed = experiment(40, text=exp.paths["text/text"], audio=[exp.paths["audio/audio0"], str(path)])
    with pytest.raises(StoreError, match="holds another run: the audio table 'audio1' has changed since"):
        run.open_store(changed, store.path, resume=True)


def test_verify_agrees_with_itself_and_with_another_backend(made):
    exp, store = made
    found = verify(store.path, sample=30, seed=1)
    assert found["agrees"] and found["jobs"] == 30 and found["loss_difference"] == 0 and found["tolerances"] == {"loss": 0, "hits": 0}
    found = verify(store.path, sample=30, seed=1, backend="torch", device="cpu")
    assert found["agrees"] and 0 < found["loss_difference"] < 1e-3 and found["tolerances"]["loss"] == 1e-3
    assert verify(store.path, sample=10**6, seed=1)["jobs"] == exp.plan.n_jobs


def test_verify_finds_results_that_were_made_up(made):
    _, store = made
    for unit in store.done():
        columns = {n: v.copy() for n, v in store.read(unit).items()}
        columns["hits@3"] = np.minimum(columns["hits@3"] + 2, columns["n_queries"])
        store.write(unit, columns)
    assert examine(store.path, check=True)["damaged"] == [], "the digests are right: only training again tells"
    found = verify(store.path, sample=20, seed=0)
    assert not found["agrees"] and found["loss_difference"] == 0 and found["hits_difference"] > 0.01
    assert verify(store.path, sample=20, seed=0, hits_tolerance=1.0)["agrees"]


@pytest.mark.parametrize(
    "control",
    [{"control": "frozen", "splits": 1}, {"control": "gaussian"}, {"control": "permute-within", "groups": list("aaaabbbb"), "within": "x"}],
)
def test_verify_and_merge_know_the_controls(tmp_path, control):
    arguments = save_tables(tmp_path / "tables", 1)
    exp = experiment(20, text=arguments[1], audio=arguments[3], **control)
    for i in range(2):
        finish(exp, run.open_store(exp, tmp_path / f"r{i}"), part=(i, 2))
    assert verify(tmp_path / "r1", sample=5)["agrees"]
    store = finish(exp, run.open_store(exp, tmp_path / "whole"))
    assert to_json(merge(tmp_path / "all", [tmp_path / "r0", tmp_path / "r1"]).summary) == to_json(
        run.summary(exp, run.analyse(exp, store), store)
    )


def test_the_shell(shell, tmp_path):
    tables = save_tables(tmp_path / "tables", 1)
    common = [
        "run",
        *tables,
        "--dim",
        "2",
        "--steps",
        "2",
        "--splits",
        "2",
        "--train-fraction",
        "0.5",
        "--backend",
        "reference",
        "--permutations",
        "30",
        "--out",
        "r",
    ]
    done = shell(*common, "--log-json", "log")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "done"] and events[-2]["done"] == events[0]["total"] == 62
    found = shell("status", "r", "--check", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["done"] == 62
    assert shell("verify", "r", "--sample", "4").returncode == 0
    shards = list((tmp_path / "r" / "results").iterdir())
    shards[0].write_bytes(b"PAR1 no longer")
    found = shell("status", "r", "--check")
    assert found.returncode == 1 and f"DAMAGED results/{shards[0].name}" in found.stdout
    again = shell(*common, "--resume")
    assert again.returncode == 0 and f"{shards[0].name}: " in again.stderr and "computed again" in again.stderr


def test_options_that_contradict_are_refused():
    exp = experiment(3)
    for shard in ("3/3", "x", "1/0", "-1/2", "1/2/3", ""):
        with pytest.raises(InputError, match="`shard` must be I/N"):
            parse_shard(shard)
    assert parse_shard("3/10") == (3, 10) and parse_shard(None) == (0, 1)
    for engine, address, devices, message in (
        ("local", "auto", None, "--engine ray"),
        ("ray", None, "0", "what the cluster has"),
        ("local", None, "99", "devices of this machine"),
    ):
        with pytest.raises(InputError, match=message):
            engine_of(exp, None, engine, address, devices)


class Boom:
    """Unpickling this would be noticed."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def hostile(change):
    def apply(folder):
        edit_manifest(folder, change)

    return apply


@pytest.mark.parametrize(
    "attack",
    [
        hostile(lambda m: m.update(format_version=99)),
        hostile(lambda m: m.update(format_version=True)),
        hostile(lambda m: m["identity"].update(splits=10**30)),
        hostile(lambda m: m["identity"].update(seeds=-1)),
        hostile(lambda m: m["identity"].update(seeds=1.5)),
        hostile(lambda m: m.update(permutations=LIMITS["permutations"] + 1)),
        hostile(lambda m: m.update(n_classes=10**12)),
        hostile(lambda m: m.update(part=[0, 10**99])),
        hostile(lambda m: m["identity"].update(pairs=[])),
        hostile(lambda m: m["identity"].update(pairs=[["a", 7]])),
        hostile(lambda m: m["identity"].update(probe={"dim": "x" * 100})),
        hostile(lambda m: m["identity"].update(probe={"__class__": 1})),
        hostile(lambda m: m.update(identity=[1, 2])),
        hostile(lambda m: m.pop("permutations")),
        lambda folder: (folder / "manifest.json").write_bytes(pickle.dumps(Boom())),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        lambda folder: (folder / "manifest.json").write_text('{"format_version": ' + "9" * 10_000 + "}"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").mkdir()),
    ],
)
def test_a_hostile_manifest_is_refused(made, tmp_path, attack, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp, store = made
    attack(store.path)
    with pytest.raises(InputError):
        examine(store.path)
        stored_specification(read_manifest(store.path))
    with pytest.raises(InputError):
        merge(tmp_path / "all", [store.path])
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "all").exists()


def test_names_from_outside_never_become_paths(made, tmp_path):
    exp, store = made
    edit_manifest(store.path, lambda m: m["identity"].update(pairs=[["../../../etc/passwd", "/tmp/x\x1b[2J"], ["[red]a", "..\\b"]]))
    evil = ResultStore.open(store.path)
    before = {str(p) for p in tmp_path.rglob("*")}
    columns = store.read(store.done()[0])
    evil.write(store.done()[0], columns)
    assert {str(p) for p in tmp_path.rglob("*")} == before, "the shard went where its numbers say"
    from fastprobe.cli.console import show_status

    show_status(examine(store.path, check=True))


def test_foreign_files_among_the_shards_are_left_alone(made):
    exp, store = made
    want = rows(store).tobytes()
    for name in (
        "part-p0000-b000000000-000000008.parquet.exe",
        "..parquet",
        "part-p9999-b000000000-000000001.parquet",
        "part-p0000-b000000009-000000003.parquet",
        "part-p-1-b0-1.parquet",
        "note.txt",
    ):
        (store.path / "results" / name).write_bytes(b"x")
    assert rows(ResultStore.open(store.path)).tobytes() == want
    assert examine(store.path, check=True)["damaged"] == []
    finish(exp, run.open_store(exp, store.path, resume=True))
    assert (store.path / "results" / "note.txt").exists()


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"permutation": [0] * 32, "split": [0] * 32, "seed": [0] * 32, "text": ["a"] * 32, "audio": ["b"] * 32}),
        pa.table({"x": pa.array([1] * 32)}),
        pa.table({"permutation": [[0]] * 16, "split": [0] * 16, "seed": [0] * 16, "text": ["a"] * 16, "audio": ["b"] * 16}),
        pa.table({"permutation": pa.array([pickle.dumps(Boom())] * 16)}),
        pa.table({"permutation": np.zeros(10**6, np.int64)}),
    ],
)
def test_a_hostile_shard_is_damage(made, tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp, store = made
    want, unit = rows(store).tobytes(), store.done()[1]
    pq.write_table(table, store.shard_path(unit))
    opened = ResultStore.open(store.path)
    assert opened.damage(unit) is not None
    with pytest.raises(StoreError, match="not a readable shard"):
        opened.read(unit)
    finish(exp, run.open_store(exp, store.path, resume=True), sized(8))
    assert rows(store).tobytes() == want and not (tmp_path / "pwned").exists()


def test_jobs_that_are_stored_twice_are_reported_and_mended(made):
    exp, store = made
    want, first = rows(store).tobytes(), store.done()[0]
    columns = {n: v[: 2 * exp.plan.jobs(0)] for n, v in store.read(first).items()}
    store.write(first._replace(stop=2), columns)
    assert examine(store.path, check=True)["twice"]
    finish(exp, run.open_store(exp, store.path, resume=True), sized(8))
    assert rows(store).tobytes() == want


def test_every_overlap_is_reported(made):
    exp, store = made
    per = exp.plan.jobs(0)
    columns = exp.compute(Unit(0, 0, 40))
    for unit in store.done():
        store.folder.remove(store.shard_name(unit))
    for start, stop in ((0, 40), (5, 10), (20, 30)):
        store.write(Unit(0, start, stop), {n: v[per * start : per * stop] for n, v in columns.items()})
    assert examine(store.path, check=True)["twice"] == [store.shard_name(Unit(0, 5, 10)), store.shard_name(Unit(0, 20, 30))]
    assert examine(store.path)["pairs"][0]["permutations"] == 39, "a permutation that is stored twice counts once"


def test_the_estimate_counts_no_more_permutations_than_the_run_asks_for(made):
    exp, store = made
    few = experiment(5, text=exp.paths["text/text"], audio=[exp.paths["audio/audio0"], exp.paths["audio/audio1"]])
    finish(few, run.open_store(few, store.path, resume=True))
    assert {p["permutations"] for p in examine(store.path)["pairs"]} == {5}


def test_a_shard_under_another_spelling_of_its_name_is_a_foreign_file(made):
    exp, store = made
    before = store.done()
    (store.path / "results" / "part-p0-b0-400.parquet").write_bytes(b"")
    assert store.done() == before
    finish(exp, run.open_store(exp, store.path, resume=True))


def test_watching_ends_with_the_run_or_with_ctrl_c(made, monkeypatch):
    _, store = made
    looks = iter(["running", "running", "done"])
    monkeypatch.setattr("fastprobe.runs.audit.examine", lambda *_: {**examine(store.path), "state": next(looks)})
    monkeypatch.setattr("fastprobe.cli.runs.LOOK_AGAIN", 0.0)
    shown = CliRunner().invoke(app, ["status", str(store.path), "--watch"])
    assert shown.exit_code == 0 and next(looks, None) is None
    assert [line.split("; ")[0].split()[-1] for line in shown.output.splitlines() if "probes stored" in line] == [
        "running",
        "running",
        "done",
    ]

    def interrupt(_):
        raise KeyboardInterrupt

    looks = iter(["running", "done"])
    monkeypatch.setattr("fastprobe.cli.runs.time.sleep", interrupt)
    assert CliRunner().invoke(app, ["status", str(store.path), "--watch"]).exit_code == 0 and next(looks) == "done"
    with pytest.raises(InputError, match="--watch is for eyes"):
        app(["status", str(store.path), "--watch", "--json"], standalone_mode=False)


def test_a_table_with_another_meta_is_named(made, tmp_path):
    exp, store = made
    path = tmp_path / "again" / "text.npz"
    table = EmbeddingTable.load(exp.paths["text/text"])
    table.meta["date"] = "tomorrow"
    table.save(path)
    other = experiment(40, text=str(path), audio=[exp.paths["audio/audio0"], exp.paths["audio/audio1"]])
    with pytest.raises(StoreError, match="the text table 'text' has the same vectors and another `date`: null there, \"tomorrow\" now"):
        run.open_store(other, store.path, resume=True)
