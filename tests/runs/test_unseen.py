"""Ranks among the unseen classes and ranks corrected for hubs, from the option to what is stored and tested."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastprobe.errors import InputError
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.metrics import metric_names, unseen_names
from fastprobe.protocol.probes import CCA, Procrustes, Ridge
from fastprobe.retrieval.probe import ContrastiveProbe
from fastprobe.runs import run
from fastprobe.runs.audit import verify
from fastprobe.tables.simulate import simulate_pair
from support.small_runs import NAMES, experiment, finish, save_tables, sized, tables

HUBS = ProbeConfig(dim=2, steps=2, csls=3)
PROBES = [ProbeConfig(dim=2, steps=2), HUBS, Ridge(), Ridge(csls=2), Procrustes(csls=1), CCA(dim=2)]
TEXT, AUDIO = simulate_pair(NAMES, alignment=0.8, clips=3, text_width=5, audio_width=4)


def small(**options):
    return experiment(6, text=TEXT, audio=AUDIO, k=(1, 3), **options)


CASES = [(p, "permute") for p in PROBES] + [(p, c) for p in PROBES[:2] for c in ("frozen", "gaussian")]


@pytest.mark.parametrize("probe, control", CASES, ids=lambda x: getattr(x, "name", f"csls={x.csls}" if isinstance(x, ProbeConfig) else x))
def test_stored_columns_are_means_over_the_ranks(probe, control):
    exp = small(probe=probe, control=control, splits=1 if control == "frozen" else 2)
    store = finish(exp, run.open_store(exp, None))
    (unit,) = store.done()
    stored = store.read(unit)
    for row in range(len(stored["split"])):
        split, b = int(stored["split"][row]), int(stored["permutation"][row])
        found = exp.outcomes(0, split, 0, b, b + 1)
        ranks, unseen = found.ranks[0], found.ranks_unseen[0]
        assert (unseen <= ranks).all() and unseen.max() <= len(exp.split(split).test)
        of_class = [unseen[found.classes == c] for c in np.unique(found.classes)]
        want = {
            "acc@1_unseen": np.mean([np.mean(r <= 1) for r in of_class]),
            "acc@3_unseen": np.mean([np.mean(r <= 3) for r in of_class]),
            "mrr_unseen": np.mean([np.mean(1 / r) for r in of_class]),
            "mean_rank_unseen": np.mean([np.mean(r) for r in of_class]),
            "mean_log_rank_unseen": np.mean([np.mean(np.log(r)) for r in of_class]),
            "median_rank_unseen": np.median(unseen),
        }
        assert list(want) == unseen_names((1, 3))
        for name, value in want.items():
            assert stored[name][row] == pytest.approx(value, rel=1e-12), name
    assert (stored["acc@1_unseen"] >= stored["acc@1_macro"]).all()
    assert (stored["mean_rank_unseen"] <= stored["mean_rank"]).all()


@pytest.mark.parametrize("probe", PROBES[:2], ids=["plain", "hubs"])
def test_the_frozen_observed_run_is_the_observed_run(probe):
    one, other = (small(probe=probe, control=c, splits=1).outcomes(0, 0, 0, 0, 1) for c in ("permute", "frozen"))
    assert np.array_equal(one.ranks, other.ranks) and np.array_equal(one.ranks_unseen, other.ranks_unseen)


@pytest.mark.parametrize(
    "statistic, chance", [("acc@3_unseen", 3 / 4), ("mrr_unseen", (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), ("mean_rank_unseen", 2.5)]
)
def test_a_statistic_of_the_unseen_has_the_chance_of_the_unseen(statistic, chance):
    exp = small(statistic=statistic)
    (result,) = run.analyse(exp, finish(exp, run.open_store(exp, None)))
    assert result.chance == pytest.approx(chance) and result.metric == statistic
    assert result.lower_is_better == (statistic == "mean_rank_unseen")


def test_what_no_gallery_holds_is_refused_before_anything_is_made():
    with pytest.raises(InputError, match="`statistic`='acc@5_unseen' ranks among the 4 test classes alone"):
        experiment(3, statistic="acc@5_unseen")
    with pytest.raises(InputError, match="`statistic` must name a stored metric .*mrr_unseen.*; got 'mrr_micro_unseen'"):
        experiment(3, statistic="mrr_micro_unseen")
    for probe in (ProbeConfig(dim=2, csls=9), Ridge(csls=9)):
        with pytest.raises(InputError, match="`csls` must be at most the number of texts and of test clips; got 9 with 8 texts"):
            experiment(3, probe=probe)
    with pytest.raises(InputError, match="`csls` must be a whole number of at least 0; got -1"):
        ProbeConfig(csls=-1)
    with pytest.raises(InputError, match="`csls` corrects ranks by all clips of a run"):
        ContrastiveProbe(ProbeConfig(csls=3))


def test_every_split_must_have_the_clips():
    """Four classes have one clip and four have many: the first split alone does not tell."""
    text, audio = tables(1)
    few = np.concatenate([np.flatnonzero(audio[0].labels == n)[:1] for n in NAMES[:4]])
    many = [np.flatnonzero(audio[0].labels == n) for n in NAMES[4:]]
    rows = np.sort(np.concatenate([few, *many]))
    given = (audio[0].vectors[rows], audio[0].labels[rows])
    plain = experiment(1, text=text, audio=given, splits=40)
    clips = [int(plain.pairs[0].count[plain.split(i).test].sum()) for i in range(40)]
    at_most = min(clips)
    assert at_most < clips[0]
    for probe in (ProbeConfig(dim=2, steps=1, csls=at_most + 1), Procrustes(csls=at_most + 1)):
        with pytest.raises(InputError, match="`csls` must be at most"):
            experiment(1, text=text, audio=given, splits=40, probe=probe)
        experiment(1, text=text, audio=given, splits=40, probe=dataclasses.replace(probe, csls=at_most))


def test_csls_is_part_of_an_identity_only_when_set():
    plain, hubs = (experiment(3, probe=dataclasses.replace(HUBS, csls=k)).identity() for k in (0, 3))
    assert "csls" not in plain["probe"] and hubs["probe"]["csls"] == 3
    assert "probes" not in plain and "probes" not in hubs
    both = experiment(3, probe=[dataclasses.replace(HUBS, csls=k) for k in (0, 3)])
    assert list(both.identity()["probes"]) == ["contrastive:csls=0", "contrastive:csls=3"]


def test_a_run_begun_before_keeps_its_columns(tmp_path):
    exp = small()
    before = dataclasses.replace(exp, columns=tuple(metric_names(exp.ks)))
    whole = finish(before, run.open_store(before, tmp_path / "whole"), sized(3))
    steps = run.execute(before, run.open_store(before, tmp_path / "r"), sized(3))
    next(steps), next(steps)
    steps.close()
    with pytest.raises(InputError, match="`statistic`='mrr_unseen' is not stored by the run in"):
        run.continued(small(statistic="mrr_unseen"), tmp_path / "r")
    now = run.continued(exp, tmp_path / "r")
    store = finish(now, run.open_store(now, tmp_path / "r", resume=True), sized(3))
    for unit in whole.done():
        assert store.folder.read(store.shard_name(unit)) == whole.folder.read(whole.shard_name(unit))
    assert "mrr_unseen" not in store.read(unit) and "mrr" in store.read(unit)
    assert verify(tmp_path / "r", backend="reference", text=saved(tmp_path)[0], audio=saved(tmp_path)[1], sample=4)["agrees"]
    assert run.continued(exp, None) is exp and run.continued(exp, tmp_path / "elsewhere") is exp


def saved(folder):
    out = []
    for name, table in (("t", TEXT), ("a", AUDIO)):
        table.save(folder / f"{name}.npz")
        out.append([str(folder / f"{name}.npz")])
    return out


def test_lists_go_by_the_corrected_scores(tmp_path):
    exp = small(probe=HUBS)
    finish(exp, run.open_store(exp, tmp_path / "r"))
    ranks = pq.read_table(tmp_path / "r/observed.parquet").to_pandas()
    lists = pq.read_table(tmp_path / "r/retrieved.parquet").to_pandas()
    batch = exp.batch(0, 0, 0, 0, 1)
    assert (ranks["rank"][: len(batch.queries)] == exp.outcomes(0, 0, 0, 0, 1).ranks[0]).all()
    for (_, row), (_, found) in zip(ranks.iterrows(), lists.groupby(["split", "query"], sort=False)):
        position = found["position"][found["retrieved"] == row["label"]]
        assert list(position) == ([row["rank"]] if row["rank"] <= 3 else [])
        assert (np.diff(found["score"]) <= 1e-6).all() and found["retrieved"].is_unique


@pytest.mark.parametrize("backend", ["reference", "torch", "cpp"])
def test_from_the_shell_with_resume_and_verify(shell, tmp_path, backend):
    options = "--dim 2 --steps 2 --splits 2 --train-fraction 0.5 --csls 0,2 --probe contrastive --probe ridge:csls=2 --quiet"
    given = [*save_tables(tmp_path / "t"), "--out", tmp_path / "r", *options.split(), "--statistic", "acc@1_unseen", "--backend", backend]
    for more in (["--permutations", 4], ["--permutations", 9, "--resume"]):
        done = shell("run", *given, *more)
        assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert {r["probe"] for r in summary["pairs"]} == {"contrastive:csls=0", "contrastive:csls=2", "ridge:csls=2"}
    assert {r["chance"] for r in summary["pairs"]} == {0.25}
    done = shell("verify", tmp_path / "r", "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    done = shell("run", *given, "--permutations", 9, "--csls", 99)
    assert done.returncode == 2 and "`csls` must be at most" in done.stderr
