"""A nested choice: made on a split of the train classes, anew inside every replicate, stored, and paid for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError, StoreError
from fastprobe.kernels.closed import ClosedForm
from fastprobe.protocol.plan import Unit, inner_split, permutations, split_classes
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.choice import chosen
from fastprobe.runs.experiment import prepare
from fastprobe.runs.merge import merge
from fastprobe.runs.run import analyse, execute, open_store
from fastprobe.runs.store import ResultStore
from support.strategies import tables

PROBES = ["ridge:alpha=0.05", "ridge:alpha=5", "procrustes", "cca:dim=2:shrinkage=0.9"]
FAST = {"splits": 2, "permutations": 19, "backend": "reference", "statistic": "mrr", "select": "nested", "baselines": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    for table, name in zip(tables(classes=16, alignment=0.8), ("t", "a")):
        table.save(folder / f"{name}.npz")
    return folder


@pytest.fixture(scope="module")
def run(files):
    return files / "run", fp.permutation_test([files / "t.npz"], [files / "a.npz"], probe=PROBES, out=files / "run", **FAST)


def test_the_inner_split_is_of_the_train_classes():
    for number in range(20):
        outer = split_classes(3, number, 30, 0.7)
        inner = inner_split(3, number, outer, 0.7)
        assert sorted([*inner.train, *inner.test]) == outer.train.tolist() and len(inner.train) == 15
    assert len({tuple(inner_split(3, n, split_classes(3, 0, 30, 0.7), 0.7).test) for n in range(20)}) > 15


def test_the_choice_is_its_definition(files, run):
    """Every replicate by hand: reciprocal ranks on the inner and on the outer split, the best of the one, its value on the other."""
    _, (result,) = run
    experiment = prepare(files / "t.npz", files / "a.npz", probe=PROBES, **FAST)
    pair, pi = experiment.pairs[0], permutations(0, 0, 20, 16)

    def mrr(probe, split):
        queries = np.flatnonzero(np.isin(pair.labels, split.test))
        form = ClosedForm(probe, pair.text, pair.audio, pair.labels, split.train, queries, "reference")
        ranks = form.ranks(pi)[0]
        return np.stack([(1 / ranks[:, form.labels == c]).mean(axis=1) for c in split.test]).mean(axis=0)

    outer_splits = [split_classes(0, s, 16, 0.7) for s in range(2)]
    outer = np.array([np.mean([mrr(p, s) for s in outer_splits], axis=0) for p in experiment.probes])
    inner = np.array([np.mean([mrr(p, inner_split(0, i, s, 0.7)) for i, s in enumerate(outer_splits)], axis=0) for p in experiment.probes])
    best = inner.argmax(axis=0)
    assert len(set(best)) > 1  # the choice differs among replicates, or this shows nothing
    expected = outer[best, np.arange(20)]
    np.testing.assert_allclose([result.statistic, *result.null_distribution], expected)
    assert result.probe == PROBES[best[0]] and result.chosen_among == tuple(PROBES)
    assert result.pvalue == (1 + np.sum(expected[1:] >= expected[0])) / 20


def test_the_summary_has_the_choice_and_no_second_one(run):
    out, (result,) = run
    summary = json.loads((out / "summary.json").read_text())
    families = {f["name"]: f for f in summary["families"]}
    test = families["nested choice"]["tests"][0]
    assert summary["select"] == "nested" and "best configuration" not in families
    assert test["chosen"] == result.probe and test["statistic"] == result.statistic and test["pvalue"] == result.pvalue
    assert families["nested choice"]["n_configurations"] == 4 and len(summary["pairs"]) == 4


def test_pairs_are_adjusted_together_and_lower_can_be_better(files):
    audio = [tables(classes=16, alignment=a, seed=s)[1] for a, s in ((0.8, 0), (0.0, 5))]
    for table, name in zip(audio, ("one", "two")):
        table.meta["name"] = name
    options = {**FAST, "statistic": "mean_rank"}
    first, second = fp.permutation_test([files / "t.npz"], audio, probe=PROBES, similarity="cka", **options)
    assert (first.audio, second.audio) == ("one", "two") and first.statistic < second.statistic
    assert first.pvalue_max_t >= first.pvalue and second.pvalue > 0.05
    assert first.pvalue == (1 + np.sum(first.null_distribution <= first.statistic + 1e-9)) / 20


def test_trained_probes_and_repeats_take_part(files):
    probes = [*fp.ProbeConfig.grid(temperature=[0.1, 1.0], steps=4, dim=4), fp.Procrustes()]
    options = {**FAST, "seeds": 2, "permutations": 3}
    experiment = prepare(files / "t.npz", files / "a.npz", probe=probes, **options)
    store = open_store(experiment, None)
    for _ in execute(experiment, store):
        continue
    for unit in store.done():
        inner = store.read(unit)["inner"]
        assert np.isfinite(inner).all() and ((inner > 0) & (inner <= 1)).all()
        again = experiment.inner_values(Unit(unit.cell, unit.start, unit.start + 1), 1, 0)
        assert inner.reshape(-1, *experiment.plan.shape(unit.cell))[0, 1, 0] == again[0]
    result = fp.permutation_test(files / "t.npz", files / "a.npz", probe=probes, **options)
    assert result.n_permutations == 3 and result.n_seeds == 2 and len(result.chosen_among) == 3


def test_gaussian_and_grouped_controls_choose_too(files):
    probes = fp.ProbeConfig.grid(temperature=[0.1, 1.0], steps=3, dim=4)
    groups = [str(i % 2) for i in range(16)]
    for control in ({"control": "gaussian"}, {"control": "permute-within", "groups": groups}):
        (result,) = fp.permutation_test([files / "t.npz"], [files / "a.npz"], probe=probes, **{**FAST, "permutations": 4}, **control)
        assert len(result.chosen_among) == 2 and 0 < result.pvalue <= 1


def test_parts_merge_and_a_resume_have_the_same_bytes(files, run, tmp_path):
    out, _ = run
    common = {"probe": PROBES, **FAST}
    experiment = prepare([files / "t.npz"], [files / "a.npz"], **common)
    for part in range(2):
        store = open_store(experiment, tmp_path / f"{part}", part=(part, 2))
        for _ in execute(experiment, store, part=(part, 2)):
            continue
    merge(tmp_path / "merged", [tmp_path / "0", tmp_path / "1"])
    assert (tmp_path / "merged" / "summary.json").read_bytes() == (out / "summary.json").read_bytes()
    first = sorted((tmp_path / "merged" / "results").iterdir())[0]
    first.unlink()
    fp.permutation_test([files / "t.npz"], [files / "a.npz"], out=tmp_path / "merged", resume=True, **common)
    assert (tmp_path / "merged" / "summary.json").read_bytes() == (out / "summary.json").read_bytes()
    assert examine(tmp_path / "merged", check=True)["state"] == "done"


def test_another_choice_or_statistic_is_another_run(files, run):
    out, _ = run
    for options in ({"select": "best"}, {"statistic": "acc@3"}):
        with pytest.raises(StoreError, match="select"):
            fp.permutation_test([files / "t.npz"], [files / "a.npz"], probe=PROBES, out=out, resume=True, **{**FAST, **options})


def test_verify_looks_at_what_the_choice_goes_by(files, tmp_path):
    fp.permutation_test([files / "t.npz"], [files / "a.npz"], probe=PROBES, out=tmp_path / "run", **FAST)
    found = verify(tmp_path / "run", sample=30, backend="cpp")
    assert found["agrees"] and found["inner_difference"] < 0.002
    store = ResultStore.open(tmp_path / "run")
    for unit in store.done():
        columns = store.read(unit)
        store.write(unit, {**columns, "inner": columns["inner"] + 0.1})
    found = verify(tmp_path / "run", sample=30)
    assert not found["agrees"] and found["inner_difference"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "ridge"}, "needs at least 2; got ridge"),
        ({"probe": None, "similarity": "cka"}, "needs at least 2; got none"),
        ({"stop": "besag-clifford:h=5"}, "`stop` watches the p of every probe"),
        ({"probe": fp.ProbeConfig.grid(lr=[0.5, 1.0]), "control": "frozen", "splits": 1}, "which trains once"),
        ({"probe": fp.ProbeConfig.grid(lr=[0.5, 1.0]), "statistic": "loss"}, "how unseen classes are ranked"),
        ({"permutations": 0}, "at least 1"),
        ({"select": "nestd"}, "`select` must be best or nested; got 'nestd'"),
        ({"train_fraction": 0.2}, "divides the 3 train classes once more"),
        ({"train_fraction": 0.9}, "divides the 14 train classes once more"),
        ({"probe": ["ridge", "cca:dim=5"], "train_fraction": 0.5}, 'in the inner split of `select`="nested": `dim` must be at most'),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_created(files, tmp_path, options, message):
    options = {"probe": PROBES, **FAST, **options}
    with pytest.raises(InputError, match=message):
        fp.permutation_test(files / "t.npz", files / "a.npz", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_under_the_null_the_choice_keeps_its_level_where_the_naive_best_does_not():
    """300 pairs of tables that have nothing to do with each other, four probes each, .05: real runs from tables to p."""
    studies, rejected, naive = 300, 0, 0
    for seed in range(studies):
        text, audio = tables(classes=14, clips=2, alignment=0.0, seed=1000 + seed, ragged=False)
        experiment = prepare(text, audio, probe=PROBES, **{**FAST, "permutations": 39, "backend": "cpp"}, seed=seed)
        store = open_store(experiment, None)
        for _ in execute(experiment, store):
            continue
        rejected += chosen(experiment, store)[0].pvalue <= 0.05
        naive += min(r.pvalue for r in analyse(experiment, store)) <= 0.05
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)
    assert rejected / studies <= limit < naive / studies


def test_the_shell_and_a_file_ask_for_it(files, shell, tmp_path):
    common = ["--text", files / "t.npz", "--audio", files / "a.npz", "--permutations", 9, "--splits", 2, "-q"]
    done = shell("run", *common, "--probe", "ridge", "--probe", "procrustes", "--select", "nested", "--out", "one")
    assert done.returncode == 0 and "chosen among 2 on a split of the train classes" in done.stdout.replace("\n", " "), done.stderr
    (tmp_path / "c.toml").write_text('select = "nested"\n[[probe]]\nkind = "ridge"\n[[probe]]\nkind = "procrustes"\n')
    again = shell("run", *common, "--config", "c.toml", "--out", "two")
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
    report = shell("report", "one")
    assert report.returncode == 0 and "nested choice" in (tmp_path / "one" / "report.html").read_text()
    planned = shell("plan", *common[:-1], "--probe", "ridge", "--probe", "cca:dim=2", "--select", "nested", "--seconds", "0.2")
    assert planned.returncode == 0, planned.stderr


def test_a_request_keeps_its_rules_when_it_is_changed():
    asked = fp.RunRequest(probe=PROBES, select="nested")
    with pytest.raises(InputError, match="`stop` watches"):
        replace(asked, stop="anytime:alpha=0.05")


def test_the_spelling_chooses_its_own_probe(tmp_path):
    """Baselines choose as the models do; ceilings, which are never permuted, take part in no choice."""
    text, audio = tables(classes=16, alignment=0.8, ragged=False)
    options = {**FAST, "baselines": True, "ceiling": True}
    (result,) = fp.permutation_test([text], [audio], probe=PROBES, out=tmp_path / "run", **options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    choice = next(f for f in summary["families"] if f["name"] == "nested choice")
    assert [t["test"] for t in choice["tests"]] == ["text x audio", "char-ngrams x audio"] and len(summary["ceilings"]) == len(PROBES)
    (alone,) = fp.permutation_test([text], [audio], probe=PROBES, **FAST)
    assert (result.probe, result.pvalue) == (alone.probe, alone.pvalue)
