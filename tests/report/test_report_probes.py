"""The report of several probes: every value in the table of probes against pairs, bars by probe, the choice, calibrated similarities."""

from __future__ import annotations

import csv
import json
import re
from html import unescape

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.report import figures, write_report
from fastprobe.report.data import load_run
from fastprobe.report.text import number, pvalue
from fastprobe.runs.store import ResultStore
from fastprobe.statistics.calibration import calibrated
from support.strategies import tables

PROBES = ["ridge:csls=3", "procrustes", "cca:dim=3"]
SIMILARITIES = ["cka", "knn:k=3"]


@pytest.fixture(scope="module", params=["best", "nested"])
def reported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for number_, name in enumerate(("one", "two")):
        text, audio = tables(classes=14, alignment=0.9 if number_ == 0 else 0.0, seed=number_)
        text.meta["name"] = name
        text.save(folder / f"{name}.npz")
    tables(classes=14, alignment=0.9)[1].save(folder / "a.npz")
    trained = fp.ProbeConfig.grid(temperature=[0.1, 0.5], steps=4, dim=4)
    options = {
        "probe": [*PROBES, *trained],
        "similarity": SIMILARITIES,
        "select": request.param,
        "permutations": 39,
        "splits": 2,
        "baselines": False,
    }
    fp.permutation_test([folder / "one.npz", folder / "two.npz"], [folder / "a.npz"], out=folder / "run", **options)
    page = write_report([folder / "run"]).read_text()
    return request.param, folder / "run", page, load_run(folder / "run")


def plain(page):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<wbr>", "", re.sub(r"</?(td|th|tr|p|h\d)[^>]*>", " ", page))))


def test_every_probe_meets_every_pair_in_the_table(reported):
    _, _, page, run = reported
    said, z = plain(page[page.index("Probes against pairs") :]), run.distance()
    for i, record in enumerate(run.records):
        assert f"{number(record['statistic'])} (z {z[i]:.1f}, p {pvalue(record['pvalue_maxT'])})" in said
    for name in (*PROBES, *SIMILARITIES, "contrastive:temperature=0.1"):
        assert name in said
    rows = list(csv.DictReader((run.path / "tables" / "probes.csv").open()))
    assert len(rows) == 14 and {r["text"] for r in rows} == {"one", "two"}
    assert [float(r["distance"]) for r in rows] == pytest.approx(list(z))


def test_bars_stand_probe_by_probe(reported):
    _, _, _, run = reported
    axes = figures.accuracy(run, "audio").axes[0]
    headings = [t.get_text() for t in axes.texts if t.get_text().strip("*")]
    assert headings == [figures.short(p, 44) for p in run.probes if p not in SIMILARITIES]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two"] * 5
    bars = {round(b.get_y() + b.get_height() / 2 - 0.19, 6): b.get_width() for b in axes.containers[0].patches}
    at = [t.get_position()[1] for t in axes.get_yticklabels()]
    drawn = [bars[round(y, 6)] for y in at]
    expected = [run.records[i]["statistic"] for _, members in run.by_probe(run.ranked(range(14))) for i in members]
    assert drawn == pytest.approx(expected)


def test_the_choice_stands_beside_what_it_is_worth(reported):
    select, _, page, run = reported
    family = next(f for f in run.summary["families"] if f["name"] in ("nested choice", "best configuration"))
    said = plain(page[page.index("The choice among probes") :])
    for test in family["tests"]:
        assert f"{test['chosen']}" in said and pvalue(test["pvalue_maxT"]) in said
    assert ("anew inside every permutation" in said) == (select == "nested")
    assert ("divided once more" in page) == (select == "nested")
    assert f"{family['n_configurations']} configurations" in said and family["n_configurations"] == (5 if select == "nested" else 2)


def test_similarities_are_calibrated_in_summary_table_and_page(reported):
    _, out, page, run = reported
    summary = json.loads((out / "summary.json").read_text())["pairs"]
    store = ResultStore.open(out)
    t = {}
    for unit in store.done():
        if store.cells[unit.cell].probe in SIMILARITIES:
            t.setdefault(unit.cell, []).append(store.read(unit)["similarity"])
    for cell, parts in t.items():
        expected = float(calibrated(np.concatenate(parts)[None], 1.0)[0])
        assert summary[cell]["calibrated"] == pytest.approx(expected)
        assert number(expected) in plain(page)
    assert [("calibrated" in r) for r in summary] == [r["probe"] in SIMILARITIES for r in summary]
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [r["calibrated"] != "" for r in rows] == [r["probe"] in SIMILARITIES for r in rows]
    assert "calibrated" in (out / "tables" / "results.csv").read_text().splitlines()[0]


def test_the_map_is_of_the_tables_whatever_the_probes(reported):
    _, out, page, _ = reported
    assert list((out / "figures").glob("procrustes-*.svg")) and "The Procrustes map" not in page[page.index("Not shown") :]


def test_layers_of_a_model_have_a_curve_for_each_probe(tmp_path):
    texts = []
    for layer in range(3):
        text = tables(classes=10, seed=layer)[0]
        text.meta.update({"name": f"m-layer{layer}", "model": "m", "layer": layer})
        texts.append(text)
    audio = tables(classes=10)[1]
    fp.permutation_test(texts, [audio], probe=["ridge", "procrustes"], permutations=3, splits=2, out=tmp_path / "run")
    curves = load_run(tmp_path / "run").layer_curves()["audio"]
    assert [name for name, _ in curves] == ["m, ridge", "m, procrustes"]
    assert all([layer for layer, _ in points] == [0, 1, 2] for _, points in curves)


def test_a_run_of_one_probe_has_no_such_table(tmp_path):
    text, audio = tables(classes=10)
    fp.permutation_test(text, audio, probe="ridge", permutations=3, splits=2, out=tmp_path / "run")
    page = write_report([tmp_path / "run"]).read_text()
    assert "Probes against pairs" not in page and "1 configuration, 1 seed (0)" in page
    assert not (tmp_path / "run" / "tables" / "probes.csv").exists()
