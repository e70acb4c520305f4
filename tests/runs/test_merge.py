"""Parts of a plan made apart and joined: the run that one machine would have made."""

from __future__ import annotations

import os

import pytest

from fastprobe.errors import InputError, StoreError
from fastprobe.runs import run
from fastprobe.runs.merge import merge
from fastprobe.runs.store import ResultStore, read_manifest
from support.small_runs import PROBE, experiment, finish, rows, same_rows, sized, tables


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process, with its summary."""
    exp = experiment(59)
    store = finish(exp, run.open_store(exp, tmp_path_factory.mktemp("whole") / "r"))
    store.write_summary(run.summary(exp, run.analyse(exp, store), store))
    return store


def parts(tmp_path, count, exp=None, size=7):
    exp = exp or experiment(59)
    out = []
    for i in range(count):
        out.append(tmp_path / f"part{i}")
        finish(exp, run.open_store(exp, out[-1]), sized(size + i), part=(i, count))
    return out


def test_ten_parts_are_one_run(tmp_path, whole):
    made = parts(tmp_path, 10)
    merged = merge(tmp_path / "all", made)
    store = ResultStore.open(tmp_path / "all")
    assert merged.done == merged.total == len(rows(store)) and merged.overlapping == 0
    assert same_rows(store, whole)
    for name in ("summary.json", "summary.csv", "observed.parquet"):
        assert store.read_file(name) == whole.read_file(name)
    manifest = read_manifest(tmp_path / "all")
    assert manifest["status"] == "done" and manifest["identity"] == read_manifest(whole.path)["identity"]
    assert read_manifest(made[3])["status"] == "part done" and read_manifest(made[3])["part"] == [3, 10]


def test_more_parts_than_replicates(tmp_path):
    exp = experiment(1, splits=1)
    merged = merge(tmp_path / "all", parts(tmp_path, 6, exp))
    assert merged.done == merged.total == 4


def test_a_merge_can_be_continued_and_says_what_is_missing(tmp_path, whole):
    made = parts(tmp_path, 3)
    first = merge(tmp_path / "all", [made[2], made[0]])
    assert first.summary is None and 0 < first.done < first.total
    assert read_manifest(tmp_path / "all")["status"] == "partly merged"
    merge(tmp_path / "all", [made[1]])
    store = ResultStore.open(tmp_path / "all")
    assert same_rows(store, whole) and store.read_file("summary.json") == whole.read_file("summary.json")


def test_a_merge_can_be_finished_by_a_run(tmp_path, whole):
    merge(tmp_path / "all", parts(tmp_path, 3)[:2])
    exp = experiment(59)
    assert same_rows(finish(exp, run.open_store(exp, tmp_path / "all", resume=True)), whole)


def test_equal_overlaps_are_counted_once(tmp_path, whole):
    exp = experiment(59)
    finish(exp, run.open_store(exp, tmp_path / "a"), sized(11))
    made = parts(tmp_path, 2)
    merged = merge(tmp_path / "all", [made[0], tmp_path / "a", made[1]])
    assert merged.done == merged.total and merged.overlapping == exp.plan.n_jobs
    assert same_rows(ResultStore.open(tmp_path / "all"), whole)


def test_an_overlap_with_different_content_is_named(tmp_path):
    made = parts(tmp_path, 2)
    store = ResultStore.open(made[0])
    unit = store.done()[0]
    columns = store.read(unit)
    columns["loss"] = columns["loss"].copy()
    columns["loss"][-1] += 1e-12
    other = experiment(59)
    foreign = ResultStore.create(tmp_path / "other", run.manifest(other, "running"))
    foreign.write(unit, columns)
    with pytest.raises(StoreError, match=rf"{made[0]}.*{unit.stop:09d}.*{tmp_path / 'other'}.*different content \(column `loss`"):
        merge(tmp_path / "all", [*made, tmp_path / "other"])
    assert not (tmp_path / "all").exists()


def test_what_an_earlier_merge_brought_is_compared_too(tmp_path):
    made = parts(tmp_path, 2)
    merge(tmp_path / "all", [made[0]])
    store = ResultStore.open(made[0])
    unit = store.done()[0]
    columns = {n: v.copy() for n, v in store.read(unit).items()}
    columns["hits@1"][0] += 1
    store.write(unit, columns)
    with pytest.raises(StoreError, match="different content \\(column `hits@1`"):
        merge(tmp_path / "all", made)


def test_one_directory_by_two_names_is_named_once(tmp_path, monkeypatch):
    made = parts(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(made[0])
    for again in (os.path.relpath(made[0]), "link"):
        with pytest.raises(InputError, match="each named once"):
            merge("all", [made[0], again])


def test_a_long_shard_is_compared_with_all_that_it_overlaps(tmp_path):
    exp = experiment(59)
    finish(exp, run.open_store(exp, tmp_path / "long"), sized(60))
    finish(exp, run.open_store(exp, tmp_path / "short"), sized(6))
    store = ResultStore.open(tmp_path / "short")
    unit = next(u for u in store.done() if u.start == 30)
    columns = {n: v.copy() for n, v in store.read(unit).items()}
    columns["hits@1"][3] += 1
    store.write(unit, columns)
    with pytest.raises(StoreError, match="column `hits@1`, permutations 30 to 35"):
        merge(tmp_path / "all", [tmp_path / "long", tmp_path / "short"])


def test_other_inputs_and_configurations_are_named(tmp_path):
    exp = experiment(9)
    finish(exp, run.open_store(exp, tmp_path / "a"), part=(0, 2))

    def second(**kwargs):
        other = experiment(9, **kwargs)
        name = tmp_path / f"b{len(list(tmp_path.iterdir()))}"
        finish(other, run.open_store(other, name), part=(1, 2))
        return [tmp_path / "a", name]

    text, audio = tables()
    changed = text.vectors.copy()
    changed[3, 2] += 0.5
    with pytest.raises(StoreError, match=r"b\d+ is another run than .*a: the text table 'simulated-text' has changed.*digest"):
        merge(tmp_path / "all", second(text=type(text)(changed, text.labels, text.ids, text.meta)))
    from dataclasses import replace

    with pytest.raises(StoreError, match=r"`probe.temperature` was 0.25 in .*a and is 0.5 in .*b\d"):
        merge(tmp_path / "all", second(probe=replace(PROBE, temperature=0.5)))
    with pytest.raises(StoreError, match="`seed` was 0 .* is 1"):
        merge(tmp_path / "all", second(seed=1))
    with pytest.raises(StoreError, match='`statistic` was "acc@3" .* is "mrr"'):
        merge(tmp_path / "all", second(statistic="mrr"))
    with pytest.raises(InputError, match="different directories"):
        merge(tmp_path / "a", [tmp_path / "a"])


def test_a_damaged_part_is_named(tmp_path):
    made = parts(tmp_path, 2)
    store = ResultStore.open(made[1])
    path = store.shard_path(store.done()[0])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=rf"{path}: damaged .*Continue {made[1]} with `--resume`"):
        merge(tmp_path / "all", made)
    exp = experiment(59)
    finish(exp, run.open_store(exp, made[1], resume=True), part=(1, 2))
    assert merge(tmp_path / "all", made).summary is not None


def test_parts_with_a_stopping_rule_are_refused(tmp_path):
    exp = experiment(59, stop="besag-clifford:h=5")
    with pytest.raises(InputError, match="`stop` must see all permutations in order; got `shard` 0/2"):
        finish(exp, run.open_store(exp, tmp_path / "a"), part=(0, 2))


def test_a_run_with_more_permutations_keeps_its_parts(tmp_path):
    small, large = parts(tmp_path, 2), experiment(99)
    finish(large, run.open_store(large, small[0], resume=True), part=(0, 2))
    finish(large, run.open_store(large, small[1], resume=True), part=(1, 2))
    merged = merge(tmp_path / "all", small)
    # Part 0 of 100 ends at 50, part 1 of the first 60 began at 30: 20 permutations, 2 pairs, 2 splits.
    assert merged.summary is not None and merged.overlapping == 20 * 2 * 2
    assert same_rows(ResultStore.open(tmp_path / "all"), finish(large, run.open_store(large, None)))
