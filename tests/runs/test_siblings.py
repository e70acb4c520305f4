"""Runs beside a run: the same with another seed is told, and what was tried is counted."""

from __future__ import annotations

import json
import warnings

import pytest

import fastprobe as fp
from fastprobe.runs.manifest import read_manifest
from fastprobe.runs.siblings import tried, warning
from support.strategies import tables

FAST = {"splits": 2, "permutations": 3, "backend": "reference"}


@pytest.fixture
def go(tmp_path):
    text, audio = tables(classes=10)

    def call(name, probe="ridge", tables=(text, audio), **options):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fp.permutation_test(*tables, probe=probe, out=tmp_path / name, **{**FAST, **options})
        return [str(w.message) for w in caught if "beside it" in str(w.message)]

    return call


def test_the_same_run_with_another_seed_is_told(go, tmp_path):
    assert go("a") == []
    (told,) = go("b", seed=1)
    assert "a (--seed 0) beside it differs in nothing but the seed" in told
    (told,) = go("c", seed=2)
    assert "a (--seed 0), b (--seed 1) beside it differ in nothing" in told
    assert "a (--seed 0)" in go("b", seed=1, resume=True)[0]  # itself it does not count


def test_more_permutations_do_not_make_it_another_thing(go):
    go("a")
    assert go("b", seed=1, permutations=5)


@pytest.mark.parametrize(
    "other",
    [{"splits": 3}, {"statistic": "mrr"}, {"probe": "ridge:alpha=3"}, {"train_fraction": 0.5}, {"tables": tables(classes=10, seed=4)}],
    ids=str,
)
def test_what_differs_in_more_is_not_told(go, other):
    go("a", **other)
    assert go("b", seed=1) == []


def test_the_same_seed_is_not_told(go):
    go("a")
    assert go("b") == []


def test_what_is_no_run_is_passed_over(go, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text("nonsense")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "manifest.json").write_text(
        json.dumps({"format_version": 1, "identity": {"pairs": [["a", "b"]], "seed": [], "splits": 1, "seeds": 1}})
    )
    (tmp_path / "z").write_text("a file")
    assert go("a") == []


def test_configurations_and_seeds_are_counted_over_all(go, tmp_path):
    go("a", probe=["ridge", "procrustes"])
    go("b", probe=["ridge", "procrustes"], seed=1)
    go("c", probe=["ridge:alpha=2", "procrustes"])
    go("d", probe=["ridge", "procrustes"], splits=3)  # another protocol
    found = tried(tmp_path / "a", read_manifest(tmp_path / "a"))
    assert found.configurations == 3 and found.seeds == [0, 1] and found.runs == 2 and found.reseeded == [("b", 1)]
    assert warning(found)
    assert tried(tmp_path / "d", read_manifest(tmp_path / "d"))[:3] == (2, [0], [])
    assert tried(None, read_manifest(tmp_path / "a"))[:2] == tried("memory://runs/a", read_manifest(tmp_path / "a"))[:2] == (2, [0])


def test_the_shell_warns_and_the_report_says_it(shell, tmp_path):
    for table, name in zip(tables(classes=10), ("t", "a")):
        table.save(tmp_path / f"{name}.npz")
    common = [
        "run",
        "--text",
        "t.npz",
        "--audio",
        "a.npz",
        "--permutations",
        9,
        "--splits",
        2,
        "-q",
        "--probe",
        "ridge",
        "--similarity",
        "cka",
    ]
    assert "warning" not in shell(*common, "--out", "one").stderr
    done = shell(*common, "--seed", 7, "--out", "two", "--log-json", "log")
    assert done.returncode == 0 and "fastprobe: warning: one (--seed 0) beside it differs in nothing but the seed" in done.stderr
    assert "warning" in [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert shell("report", "two").returncode == 0
    page = (tmp_path / "two" / "report.html").read_text()
    assert "2 configurations, 2 seeds (0, 7), 1 run beside it included" in page and "2 seeds were tried: one (seed 0)" in page
