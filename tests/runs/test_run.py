"""The main job: what is stored, what a resumed run gives, and that its p-values are valid."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from scipy.stats import kstest

import fastprobe as fp
from fastprobe import kernels
from fastprobe.errors import BackendUnavailableError, InputError, StoreError
from fastprobe.protocol.plan import permutation
from fastprobe.runs import run as fp_run
from fastprobe.runs.store import read_manifest
from fastprobe.statistics.significance import add_one_pvalue, exceedances
from fastprobe.storage import Folder
from fastprobe.tables.simulate import simulate_pair
from support import small_runs as runs
from support.strategies import SEEDS, tables

SMALL = fp.ProbeConfig(dim=8, steps=10)
CONTRACT = [
    "text",
    "audio",
    "split",
    "seed",
    "permutation",
    "loss",
    "n_queries",
    "hits@1",
    "hits@3",
    "acc@1_macro",
    "acc@3_macro",
    "acc@1_micro",
    "acc@3_micro",
    "mrr",
    "mean_rank",
    "mean_log_rank",
]


def small_run(**kwargs):
    text, audio = tables(classes=12, alignment=0.9)
    options = {"probe": SMALL, "permutations": 19, "splits": 2, "device": "cpu", "k": (1, 3), "baselines": False, **kwargs}
    return fp.permutation_test(text, audio, **options)


def rows(path):
    table = pq.read_table(path / "results").to_pandas()
    return table.sort_values(["text", "audio", "permutation", "split", "seed"]).reset_index(drop=True)


def test_run_directory_keeps_its_contract(tmp_path):
    result = small_run(out=tmp_path / "run", seeds=2)
    frame = rows(tmp_path / "run")
    assert len(frame) == 20 * 2 * 2 and set(CONTRACT) <= set(frame.columns)
    assert (frame["hits@3"] == (frame["acc@3_micro"] * frame["n_queries"]).round()).all()
    mean = frame.groupby("permutation")["acc@3_macro"].mean()
    assert result.statistic == pytest.approx(mean[0]) and np.allclose(result.null_distribution, mean[1:])
    assert result.pvalue == add_one_pvalue(exceedances(mean[0], mean[1:].to_numpy()), 19)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    record = summary["pairs"][0]
    assert record["pvalue"] == result.pvalue and record["statistic"] == result.statistic
    assert {
        "text",
        "audio",
        "null_mean",
        "null_sd",
        "sem",
        "sem_corrected",
        "chance",
        "pvalue_low",
        "pvalue_high",
        "pvalue_maxT",
        "n_permutations",
        "n_splits",
        "n_seeds",
    } <= set(record)
    assert (tmp_path / "run/summary.csv").read_text().splitlines()[0].startswith("text,audio,")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["identity"]["backend"] in ("cpp", "torch") and manifest["versions"]["numpy"] == np.__version__
    assert all(len(i["digest"]) == 64 for i in manifest["identity"]["inputs"])


def test_observed_queries_agree_with_the_stored_hits(tmp_path):
    small_run(out=tmp_path / "run")
    queries = pq.read_table(tmp_path / "run/observed.parquet").to_pandas()
    frame = rows(tmp_path / "run")
    for split, part in queries.groupby("split"):
        stored = frame[(frame.permutation == 0) & (frame.split == split)]
        assert (part["rank"] <= 3).sum() == stored["hits@3"].item() and len(part) == stored["n_queries"].item()


def test_pairs_share_their_permutations_and_more_may_be_added(tmp_path):
    text, audio = tables(classes=12)
    other = fp.EmbeddingTable(text.vectors[:, :4], text.labels, meta={"name": "other"})
    # Without the spelling baseline, whose test would enter the maximum too.
    options = {"probe": SMALL, "splits": 2, "device": "cpu", "baselines": False}
    both = fp.permutation_test([text, other], [audio], permutations=9, out=tmp_path / "run", **options)
    assert [r.text for r in both] == ["text", "other"]
    alone = fp.permutation_test(other, audio, permutations=14, **options)
    assert np.array_equal(alone.null_distribution[:9], both[1].null_distribution)
    more = fp.permutation_test([text, other], [audio], permutations=14, out=tmp_path / "run", resume=True, **options)
    assert np.array_equal(more[1].null_distribution, alone.null_distribution)
    z = np.array([np.r_[r.statistic, r.null_distribution] for r in both])
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    assert both[0].pvalue_max_t == add_one_pvalue(int(np.sum(z[:, 1:].max(0) >= z[0, 0] - 1e-9)), 9)


def test_any_unit_size_gives_the_same_rows(tmp_path, monkeypatch):
    whole = small_run(out=tmp_path / "a")
    monkeypatch.setattr(fp_run.Experiment, "unit_size", lambda self: 3)
    parts = small_run(out=tmp_path / "b")
    assert rows(tmp_path / "a").equals(rows(tmp_path / "b"))
    assert np.array_equal(whole.null_distribution, parts.null_distribution)
    assert (tmp_path / "a/summary.json").read_bytes() == (tmp_path / "b/summary.json").read_bytes()


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(fp_run.Experiment, "unit_size", lambda self: 2)
    small_run(out=tmp_path / "whole")
    text, audio = tables(classes=12, alignment=0.9)
    experiment = fp_run.prepare(text, audio, probe=SMALL, permutations=19, splits=2, device="cpu", k=(1, 3), baselines=False)
    store = fp_run.open_store(experiment, tmp_path / "cut")
    steps = fp_run.execute(experiment, store)
    for _ in range(4):
        next(steps)
    steps.close()
    assert 0 < len(store.done()) < 10
    small_run(out=tmp_path / "cut", resume=True)
    assert rows(tmp_path / "whole").equals(rows(tmp_path / "cut"))
    assert (tmp_path / "whole/summary.json").read_bytes() == (tmp_path / "cut/summary.json").read_bytes()


def test_kill_dash_nine_and_resume_through_the_shell(tmp_path, shell):
    text, audio = tables(classes=20, clips=6, text_width=30, audio_width=40)
    text.save(tmp_path / "text.npz")
    audio.save(tmp_path / "audio.npz")
    arguments = [
        "run",
        "--text",
        "text.npz",
        "--audio",
        "audio.npz",
        "--permutations",
        "150",
        "--splits",
        "2",
        "--backend",
        "reference",
        "--steps",
        "20",
        "--dim",
        "16",
    ]
    whole = shell(*arguments, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-c", "from fastprobe.cli.app import main; main()", *arguments, "--out", "cut"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cut/results/part-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = shell(*arguments, "--out", "cut", "--resume")
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path / "whole").equals(rows(tmp_path / "cut"))
    assert (tmp_path / "whole/summary.json").read_bytes() == (tmp_path / "cut/summary.json").read_bytes()


@settings(max_examples=5)
@given(SEEDS)
def test_permuting_rows_of_both_tables_changes_nothing(seed):
    text, audio = tables(classes=12, alignment=0.9)
    rng = np.random.default_rng(seed)
    mixed = [t.select(rng.permutation(len(t))) for t in (text, audio)]
    options = {"probe": SMALL, "permutations": 3, "splits": 1, "device": "cpu", "k": (1, 3)}
    a, b = (fp.permutation_test(*pair, **options) for pair in ((text, audio), mixed))
    assert a.statistic == b.statistic and np.array_equal(a.null_distribution, b.null_distribution)


def test_the_identity_takes_the_path_of_the_permutations():
    """A text table whose rows are those of permutation 2 gives, observed, what permutation 2 gave."""
    text, audio = tables(classes=12, alignment=0.9)
    options = {"probe": fp.ProbeConfig(dim=8, steps=10, basis="raw"), "splits": 3, "backend": "reference", "statistic": "mean_rank"}
    order = np.argsort(text.labels)
    relabelled = fp.EmbeddingTable(text.vectors[order][permutation(0, 2, 12)], text.labels[order])
    observed = fp.permutation_test(relabelled, audio, permutations=0, **options).statistic
    assert observed == fp.permutation_test(text, audio, permutations=2, **options).null_distribution[1]


def test_planted_alignment_is_found_and_its_absence_is_not():
    names = [f"c{i:02d}" for i in range(40)]
    text, audio = simulate_pair(names, alignment=0.9, clips=5, text_width=20, audio_width=24)
    null = simulate_pair(names, alignment=0.0, clips=5, text_width=20, audio_width=24, number=1)[1]
    found, absent = fp.permutation_test(
        [text], [audio, null], permutations=39, splits=2, device="cpu", probe=fp.ProbeConfig(dim=16, steps=40)
    )
    assert found.pvalue == 1 / 40 and absent.pvalue > 0.05


def test_p_values_of_data_without_alignment_are_super_uniform():
    """200 data sets: one-sided Kolmogorov-Smirnov against the uniform (fixed seeds)."""
    names = [f"c{i:02d}" for i in range(14)]
    config = fp.ProbeConfig(dim=4, steps=6, sampling="centroid")
    p = []
    for seed in range(200):
        text, audio = simulate_pair(names, alignment=0.0, clips=2, text_width=6, audio_width=6, seed=seed)
        p.append(
            fp.permutation_test(
                text, audio, permutations=19, splits=1, probe=config, device="cpu", seed=seed, statistic="mean_log_rank"
            ).pvalue
        )
    # "greater": the empirical distribution lies above the uniform, i.e. small p-values are too frequent.
    # p is discrete with steps of 1/20, so it is compared where it can be: P(p <= j/20) <= j/20.
    assert kstest(np.array(p) - 0.5 / 20, "uniform", alternative="greater").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permutations": -1}, "`permutations`.*got -1"),
        ({"splits": 0}, "`splits`.*got 0"),
        ({"seeds": 0}, "`seeds`.*got 0"),
        ({"train_fraction": 0.99}, "`train_fraction` must leave at least 2 test classes; got 0.99 of 12 classes"),
        ({"k": (13,)}, "`k` must be at most the number of classes, 12; got 13"),
        ({"statistic": "acc@30"}, "12; got 30"),
        ({"statistic": "auc"}, "`statistic`"),
        ({"statistic": "hits@3"}, "acc@3_micro"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 0.5}, "`seed`"),
        ({"classes": "some"}, "`classes`"),
        ({"backend": "jax"}, "`backend`"),
        ({"probe": 3}, "`probe` must be a ProbeConfig"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        small_run(**options)


def test_a_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(kernels.BACKENDS, "cpp", dataclasses.replace(kernels.BACKENDS["cpp"], why_not=lambda: "gone"))
    with pytest.raises(BackendUnavailableError, match="gone"):
        small_run(backend="cpp")


@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "cpp", "--device", "cuda"],
        ["--backend", "reference", "--device", "cuda"],
        ["--devices", "99"],
        ["--backend", "torch", "--device", "cpu", "--precision", "tf32"],
        ["--address", "auto"],
        ["--stop", "besag-clifford:h=3", "--shard", "0/2"],
        ["--engine", "ray"],
    ],
)
def test_an_option_that_cannot_be_leaves_no_directory_behind(tmp_path, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    from fastprobe.cli.app import app

    with pytest.raises(InputError):
        app(
            ["run", *runs.save_tables(tmp_path), "--permutations", "3", "--train-fraction", "0.5", "--out", str(tmp_path / "r"), *options],
            standalone_mode=False,
        )
    assert not (tmp_path / "r").exists()


def test_two_runs_that_begin_at_once_do_not_share_a_directory(tmp_path):
    class Late(Folder):  # looks before the other has begun, and writes after it
        def make(self, below=""):
            super().make(below)
            if not (self.path / "manifest.json").exists():
                fp_run.open_store(runs.experiment(3), tmp_path / "r")

    with pytest.raises(StoreError, match="holds another run: `seed` was 0 there and is 1 now"):
        fp_run.open_store(runs.experiment(3, seed=1), Late(tmp_path / "r"))
    assert read_manifest(tmp_path / "r")["identity"]["seed"] == 0


def test_another_run_in_the_directory_is_an_error(tmp_path):
    small_run(out=tmp_path / "run")
    with pytest.raises(StoreError, match="already holds this run. Add `--resume`"):
        small_run(out=tmp_path / "run")
    with pytest.raises(StoreError, match="holds another run: `seed` was 0 there and is 1 now"):
        small_run(out=tmp_path / "run", seed=1, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("important")
    with pytest.raises(StoreError, match="not a run directory"):
        small_run(out=tmp_path / "mine")


def test_classes_common_leaves_the_others_out():
    text, audio = tables(classes=12)
    fewer = text.select(np.arange(11))
    with pytest.raises(InputError, match="1 labels that text table 'text' lacks"):
        fp.permutation_test(fewer, audio, probe=SMALL, permutations=1, device="cpu")
    result = fp.permutation_test(fewer, audio, probe=SMALL, permutations=1, device="cpu", classes="common")
    assert result.n_train + result.n_test == 11


def test_every_statistic_can_be_tested():
    for statistic in ("acc@2", "acc@3_micro", "mrr", "mean_rank", "mean_log_rank", "median_rank", "loss"):
        result = small_run(statistic=statistic, permutations=5)
        assert result.metric == statistic and 1 / 6 <= result.pvalue <= 1


def test_a_resume_adds_to_the_wall_time(tmp_path):
    small_run(out=tmp_path / "run")
    runs.edit_manifest(tmp_path / "run", lambda m: m.update(wall_seconds=1000.0))
    small_run(out=tmp_path / "run", resume=True)
    assert 1000 < read_manifest(tmp_path / "run")["wall_seconds"] < 1100


def test_a_loss_needs_a_step():
    with pytest.raises(InputError, match='`statistic`="loss" needs `steps` of at least 1'):
        small_run(statistic="loss", probe=fp.ProbeConfig(dim=8, steps=0))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k": 2.5}, "k"),
        ({"k": ["a", 1]}, "k"),
        ({"statistic": 3}, "statistic"),
        ({"stop": 5}, "stop"),
        ({"device": 0}, "device"),
        ({"seed": -1}, "seed"),
        ({"splits": 10**5 + 1}, "splits"),
        ({"permutations": 10**11}, "permutations"),
    ],
)
def test_arguments_of_other_types_or_beyond_any_run_are_named(options, name):
    with pytest.raises(InputError, match=f"`{name}` must"):
        small_run(**options)


def test_one_k_may_stand_alone():
    assert small_run(k=2, statistic="acc@2", permutations=1).metric == "acc@2"
