"""Curves: a run for every point, adjusted together, resumed, drawn; the same from the shell and the library."""

import csv
import json

import numpy as np
import pytest

import fastprobe as fp
from fastprobe import InputError, StoreError
from fastprobe.report import write_report
from fastprobe.runs.curve import FIELDS, folder_of, load_curve, points_of
from fastprobe.statistics.multiplicity import max_t
from fastprobe.tables.simulate import simulate_pair

NAMES = [f"class {i}" for i in range(20)]
TEXT, AUDIO = simulate_pair(NAMES, alignment=0.9, clips=6, text_width=12, audio_width=9, seed=1)
FEW = {"permutations": 19, "splits": 2, "backend": "cpp", "probe": "procrustes"}


@pytest.fixture
def files(tmp_path):
    TEXT.save(tmp_path / "t.npz")
    AUDIO.save(tmp_path / "a.npz")
    return ("--text", tmp_path / "t.npz", "--audio", tmp_path / "a.npz", "--permutations", 19, "--splits", 2, "--probe", "procrustes", "-q")


def test_every_point_is_the_run_of_its_own_values(tmp_path):
    found = fp.curve(TEXT, AUDIO, train_fraction=[0.5, 0.7], clips=[2, 6], out=tmp_path / "c", baselines=False, **FEW)
    assert found.fields == ("train_fraction", "clips") and len(found.points) == 4 == len(found.records)
    for record in found.records:
        alone = fp.permutation_test(TEXT, AUDIO, train_fraction=record["train_fraction"], clips=record["clips"], baselines=False, **FEW)
        assert record["statistic"] == alone.statistic and record["pvalue"] == alone.pvalue
        low, high = np.quantile(alone.null_distribution, [0.025, 0.975])
        assert (record["null_low"], record["null_high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_points_are_one_family():
    found = fp.curve(TEXT, AUDIO, gallery_size=[6, 10, 20], baselines=False, statistic="mean_rank", k=[1], **{**FEW, "permutations": 99})
    alone = [fp.permutation_test(TEXT, AUDIO, gallery_size=n, baselines=False, statistic="mean_rank", k=[1], **{**FEW, "permutations": 99})
             for n in (6, 10, 20)]  # fmt: skip
    t = -np.stack([[r.statistic, *r.null_distribution] for r in alone])
    np.testing.assert_allclose([r["pvalue_maxT"] for r in found.records], max_t(t))
    assert all(r["pvalue_maxT"] >= r["pvalue"] for r in found.records)
    assert list(found.to_frame()["gallery_size"]) == [6, 10, 20]
    ranks = [r["statistic"] for r in found.records]
    assert ranks == sorted(ranks), "more rivals, worse ranks"


def test_the_shell_and_the_library_agree_and_a_report_draws_it(tmp_path, files, shell):
    done = shell("run", *files, "--train-fraction", "0.5,0.7", "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert "train_fraction" in done.stdout and "max-T" in done.stdout
    found = load_curve(tmp_path / "c")
    own = fp.curve(tmp_path / "t.npz", tmp_path / "a.npz", train_fraction=[0.5, 0.7], **FEW)
    assert [r["statistic"] for r in found.records] == [r["statistic"] for r in own.records]
    assert [r["pvalue_maxT"] for r in found.records] == [r["pvalue_maxT"] for r in own.records]
    assert {r["text"] for r in found.records} == {"simulated-text", "char-ngrams"}
    page = write_report([tmp_path / "c"])
    html = page.read_text("utf-8")
    assert "share of the classes trained on" in html and html.count("<svg") == 1 and "max-T" in html
    rows = list(csv.DictReader((tmp_path / "c/tables/curve.csv").open()))
    assert len(rows) == 4 and {float(r["train_fraction"]) for r in rows} == {0.5, 0.7}
    assert (tmp_path / "c/figures/curve-train_fraction.pdf").is_file()
    for command in (("status", tmp_path / "c"), ("verify", tmp_path / "c"), ("report", "--atlas", tmp_path / "c")):
        told = shell(*command)
        assert told.returncode == 2 and "a curve, whose points are runs" in told.stderr
    point = write_report([tmp_path / "c" / "train_fraction-0.5"])
    assert "10 train and 10 test" in point.read_text("utf-8")


def test_a_curve_is_resumed_point_by_point(tmp_path, files, shell):
    out = tmp_path / "c"
    begun = shell("run", *files, "--clips", 2, "--out", out / "clips-2")
    assert begun.returncode == 0, begun.stderr
    refused = shell("run", *files, "--clips", "2,5", "--out", out)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    before = (out / "clips-2/manifest.json").read_bytes()
    done = shell("run", *files, "--clips", "2,5", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(before)["identity"] == json.loads((out / "clips-2/manifest.json").read_bytes())["identity"]
    whole = shell("run", *files, "--clips", "2,5", "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert load_curve(out).records == load_curve(tmp_path / "whole").records
    again = shell("run", *files, "--clips", "2,5", "--out", out)
    assert again.returncode == 2 and "holds a run or a curve" in again.stderr


def test_lists_stand_in_a_file_too(tmp_path, files, shell):
    (tmp_path / "c.toml").write_text(
        'text = "t.npz"\naudio = "a.npz"\npermutations = 9\nsplits = 2\ngallery_size = [6, 20]\nk = [1, 3]\n[[probe]]\nkind = "ridge"\n'
    )
    done = shell("run", "--config", tmp_path / "c.toml", "--out", tmp_path / "c", "-q")
    assert done.returncode == 0, done.stderr
    assert [p["gallery_size"] for p in load_curve(tmp_path / "c").points] == [6, 20]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--clips", "2,2"), "`clips` has a value twice"),
        (("--clips", "2,x"), "`clips` must be a whole number, or several"),
        (("--clips", "2,99"), "`clips` must be at most 6"),
        (("--train-fraction", "0.5,0.99"), "`train_fraction` must leave"),
        (("--clips", "2,5", "--stop", "anytime:alpha=0.05"), "`stop`"),
        (("--clips", "2,5", "--shard", "0/2"), "`shard`"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(tmp_path, files, shell, arguments, match):
    done = shell("run", *files, *arguments, "--out", tmp_path / "c")
    assert done.returncode == 2 and match in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()


def test_bad_curves_are_named(tmp_path):
    with pytest.raises(InputError, match="needs several values of `train_fraction`, `clips`, `gallery_size`"):
        fp.curve(TEXT, AUDIO, clips=3, **FEW)
    with pytest.raises(InputError, match="`stop`"):
        fp.curve(TEXT, AUDIO, clips=[2, 3], stop="anytime:alpha=0.05", **FEW)
    with pytest.raises(InputError, match=r"Several make a curve: `fastprobe.curve`"):
        fp.permutation_test(TEXT, AUDIO, clips=[2, 3], **FEW)
    with pytest.raises(InputError, match="empty list"):
        points_of({"clips": []})
    with pytest.raises(StoreError, match="no curve"):
        load_curve(tmp_path)
    for told in ("{", "[]", '{"format": 1, "fields": ["clips"], "points": [{"clips": 1}], "runs": ["../x"]}'):
        (tmp_path / "curve.json").write_text(told)
        with pytest.raises(StoreError, match="curve"):
            load_curve(tmp_path)


def test_folders_of_points_are_distinct():
    fields, points = points_of({"train_fraction": [0.5, 0.7], "clips": [1, 2], "gallery_size": 9})
    assert fields == FIELDS[:2] and len({folder_of(p, fields) for p in points}) == 4 and all(p["gallery_size"] == 9 for p in points)
