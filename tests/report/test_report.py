"""The report: what it says is what was stored, it needs no network, and it degrades in plain sentences."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.report import figures, write_report
from fastprobe.report.data import load_run
from fastprobe.report.html import render
from fastprobe.report.methods import REFERENCES, caveats, citations, paragraph, primer
from fastprobe.report.tables import comparison_rows, comparisons, latex_escape
from fastprobe.report.text import number, pvalue
from fastprobe.runs.run import permutation_test
from fastprobe.tables.embeddings import EmbeddingTable
from fastprobe.tables.simulate import simulate_pair
from support.simulated_run import write_run, write_summary

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "path", "use", "line", "rect", "circle"}


class Checker(HTMLParser):
    """Every element closed in order, every id once, nothing fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text, self.fetched, self.references = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attrs.get(name) or ""
            if value and not value.startswith(("#", "data:")):
                self.fetched.append((tag, value))
            if value.startswith("#"):
                self.references.append(value[1:])
        self.references += re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attrs.values()))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(path):
    html = path.read_text("utf-8")
    parser = Checker()
    parser.feed(html)
    parser.close()
    assert not parser.open and len(set(parser.ids)) == len(parser.ids)
    assert not parser.fetched and "http:" not in html and "https:" not in html and "<script" not in html and "@import" not in html
    assert set(parser.references) <= set(parser.ids), "every reference within the page is answered there"
    return html, " ".join(" ".join(parser.text).split())


@pytest.fixture(scope="module", autouse=True)
def cheap_fonts():
    """Embedding a Type 42 font takes a quarter of a second per file; one test does it, the others do without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "pdf.fonttype", 3)
        yield


def test_fonts_are_embedded_as_publishers_ask(run_dir, monkeypatch):
    monkeypatch.setitem(figures.STYLE, "pdf.fonttype", 42)
    pdf = render(figures.nulls(load_run(run_dir), "vggish"), "pdf")
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = [f"Class_{i:03d},{'animals' if i % 2 else 'things'}\n" for i in range(20)]
    (folder / "categories.csv").write_text("label,category\n" + "".join(rows))
    return write_run(folder / "study", ["gpt", "word_vec & co"], ["vggish", "mfcc"], 60, effect=[0.2, 0.15, 0.0, 0.01], splits=4)


@pytest.fixture(scope="module")
def reported(run_dir):
    return write_report([run_dir], categories=run_dir.parent / "categories.csv")


def test_the_page_is_whole_and_holds_every_number_of_the_summary(run_dir, reported):
    html, text = checked(reported)
    assert reported == run_dir / "report.html" and "prefers-color-scheme: dark" in html and "@media print" in html
    for record in json.loads((run_dir / "summary.json").read_text())["pairs"]:
        for value in (
            number(record["statistic"]),
            number(record["null_mean"]),
            number(record["sem_corrected"]),
            number(record["selectivity"]),
            pvalue(record["pvalue"]),
            pvalue(record["pvalue_maxT"]),
            pvalue(record["pvalue_stepdown"]),
            pvalue(record["pvalue_high"]),
        ):
            assert value in text
    assert "The geometry carries over in 2 of 4 pairs" in text
    assert text.count(": yes; ") == 2 and text.count(": no evidence; ") == 2


def test_figures_and_tables_lie_beside_it(run_dir, reported):
    names = {p.name for p in (run_dir / "figures").iterdir()}
    for stem in ("accuracy-vggish", "null-vggish", "curve-mfcc", "classes-gpt-vggish", "categories-gpt-vggish"):
        assert {f"{stem}.svg", f"{stem}.pdf"} <= names
    assert (run_dir / "figures/accuracy-mfcc.pdf").read_bytes().startswith(b"%PDF")
    svg = (run_dir / "figures/accuracy-vggish.svg").read_text()
    assert abs(float(re.search(r'width="([\d.]+)pt"', svg).group(1)) - 3.35 * 72) < 0.5, "one column wide"
    with open(run_dir / "tables/results.csv") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, json.loads((run_dir / "summary.json").read_text())["pairs"], strict=True):
        assert float(row["pvalue_maxT"]) == record["pvalue_maxT"] and float(row["statistic"]) == record["statistic"]
        assert float(row["low"]) <= float(row["statistic"]) <= float(row["high"])
    latex = (run_dir / "tables/results.tex").read_text()
    assert r"\toprule" in latex and r"word\_vec \& co" in latex and latex.count(r"\\") == 5
    assert latex.count("{") == latex.count("}")
    with open(run_dir / "tables/classes.csv") as file:
        assert len(list(csv.DictReader(file))) == 4 * len(load_run(run_dir).observed.classes)


def test_accuracy_by_class_is_that_of_the_stored_ranks(run_dir):
    import pyarrow.parquet as pq

    frame = pq.read_table(run_dir / "observed.parquet").to_pylist()
    run = load_run(run_dir)
    label = str(run.observed.classes[0])
    for pair, (text, audio) in enumerate(run.identity["pairs"]):
        by_split = {}
        for row in frame:
            if (row["text"], row["audio"], row["label"]) == (text, audio, label):
                by_split.setdefault(row["split"], []).append(row["rank"] <= 3)
        expected = np.mean([np.mean(v) for v in by_split.values()])
        assert run.observed.per_class(pair)[list(run.observed.classes).index(label)] == pytest.approx(expected, nan_ok=False)


def test_confusions_are_counted_from_what_was_retrieved_first(run_dir):
    import pyarrow.parquet as pq

    rows = pq.read_table(run_dir / "retrieved.parquet").to_pylist()
    run = load_run(run_dir)
    label, retrieved, share = run.confusions[0][0]
    mine = [r for r in rows if [r["text"], r["audio"]] == run.identity["pairs"][0] and r["label"] == label]
    assert share == pytest.approx(np.mean([r["retrieved"] == retrieved for r in mine])) and label != retrieved


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (1.0, "1.0"),
        (0.5, "0.50"),
        (0.00995, "0.010"),
        (0.005, "0.0050"),
        (0.0001, "0.00010"),
        (0.00002, "2.0e-5"),
        (0.0, "0"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_every_p_has_two_digits(p, said):
    assert pvalue(p) == said


def test_what_is_wider_than_the_page_scrolls_in_its_place(reported):
    html = reported.read_text()
    assert html.count("<table") == html.count('<div class="scroll"><table') > 3 and ".scroll { overflow-x: auto" in html


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({}, ("share of sounds whose own text is among the 3 nearest", "shuffles the texts among the classes", "5 of 100")),
        ({"control": "gaussian", "statistic": "mrr"}, ("1 / rank", "puts random vectors in place of the texts")),
        ({"control": "frozen", "splits": 1}, ("looks the sounds up again",)),
        ({"permutations": 0}, ("14 classes",)),
    ],
)
def test_the_first_screen_says_what_was_done(setting, words, tmp_path):
    arguments = {"permutations": 20, **setting}
    run = load_run(write_run(tmp_path / "r", ["t", "u"], ["a"], arguments.pop("permutations"), **arguments))
    said = primer(run)
    assert all(w in said for w in words) and ("The control" in said) == (run.n_permutations > 0)
    _, text = checked(write_report([run.path]))
    assert text.index("classes") < text.index(said) < text.index("t × a") < text.index("Results")


def test_no_p_lies_over_the_bars_of_its_null(tmp_path):
    run = load_run(write_run(tmp_path / "r", ["t", "u", "v"], ["a"], 200, effect=[0.0, 0.02, 0.3]))
    [axes] = figures.nulls(run, "a").axes
    tops = [float(patch.get_data().values.max()) for patch in axes.patches]
    half = 0.5 * 7 / 72 / (axes.figure.get_figheight() / 4)  # of a letter, with room to spare
    assert len(axes.texts) == len(tops) == 3
    for top, label in zip(tops, axes.texts):
        assert np.floor(label.xy[1]) + 1 > label.xy[1] + half > label.xy[1] - half > top


def test_control_and_chance_lie_within_the_bars_axis(tmp_path):
    """Where small values are good the control's bar is the longer one."""
    run = load_run(write_run(tmp_path / "r", ["t"], ["a"], 30, statistic="mean_log_rank", effect=0.4))
    record = run.records[0]
    assert record["statistic"] < record["null_mean"]
    [axes] = figures.accuracy(run, "a").axes
    assert axes.get_xlim()[1] > max(record["null_mean"] + record["null_sd"], record["chance"])


def test_distance_from_the_null_is_in_its_standard_deviations(tmp_path):
    run = load_run(write_run(tmp_path / "r", ["t", "u"], ["a"], 12, statistic="mean_log_rank", effect=[0.0, 0.4]))
    null = run.t[:, 1:]
    np.testing.assert_allclose(run.distance(), (null.mean(1) - run.t[:, 0]) / null.std(1))
    assert run.strongest([0, 1]) == 1
    alone = load_run(write_run(tmp_path / "b", ["t", "u"], ["a"], 0, statistic="mean_log_rank", effect=[0.0, 0.4]))
    assert alone.strongest([0, 1]) == 1, "without a null the smallest is the best where small is good"


def test_methods_are_filled_in_from_the_manifest_with_their_references(run_dir):
    run = load_run(run_dir)
    said = paragraph(run)
    for piece in (
        "20 classes",
        "14 train and 6 test classes, 4 times",
        "60 uniformly drawn permutations",
        "(1/4 + 6/14)",
        "gpt and word_vec & co",
        "max-T",
        "acc@3",
        "width 64",
        "temperature 0.25",
        "100 steps",
        "fastprobe 0.1.0",
    ):
        assert piece in said, piece
    years = set(re.findall(r"[A-Z][\w.\-& ]*? (?:19|20)\d\d", said))
    assert len(citations(said)) == len([k for k in REFERENCES if k in said]) >= 8
    assert all(any(key in y or y in key for key in REFERENCES) for y in years), years - set(REFERENCES)
    assert not re.search(r"\bNone\b|\bnan\b|\{|\}", said)


def test_caveats_say_what_the_audio_model_had_heard(run_dir):
    said = " ".join(caveats(load_run(run_dir)))
    assert "vggish was trained on the labels of YouTube videos" in said and "mfcc is a plain signal description" in said
    assert "permute-within" in said and "60 permutations cannot show" in said


def test_many_models_are_put_in_order_with_what_cannot_be_told_apart(tmp_path):
    texts = [f"m{i}" for i in range(5)]
    inputs = [
        {"side": side, "name": n, "rows": 20, "width": 8, "digest": f"{side}{n}".encode().hex() * 4, "meta": {"parameters": size}}
        for side, names in (("text", texts), ("audio", ["a"]))
        for size, n in enumerate(names, start=1)
    ]
    run = write_run(tmp_path / "r", texts, ["a"], 40, inputs=inputs)
    html, text = checked(write_report([run]))
    assert "Language models in order" in text and "95% interval of the rank" in text and "Spearman" in text and "5 models" in text
    two, _ = checked(write_report([write_run(tmp_path / "few", ["x", "y"], ["a"], 40)]))
    assert "Language models in order" not in two


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    run_dir = write_run(tmp_path / "r", ["t"], ["a"], 30, retrieved=False)
    (run_dir / "observed.parquet").unlink()
    _, text = checked(write_report([run_dir]))
    for sentence in ("this run has no observed.parquet", "this run has no retrieved.parquet", "did not come from a file", "--categories"):
        assert sentence in text


@pytest.mark.parametrize(
    "setting",
    [
        {"statistic": "mean_log_rank"},
        {"permutations": 0},
        {"splits": 1},
        {"n_classes": 6, "ks": (1,), "statistic": "acc@1"},
        {"permutations": 700, "statistic": "mrr"},
        {"seeds": 2},
    ],
)
def test_every_shape_of_run_has_a_page(setting, tmp_path):
    arguments = {"permutations": 25, **setting}
    html, text = checked(write_report([write_run(tmp_path / "r", ["t"], ["a"], arguments.pop("permutations"), **arguments)]))
    assert "nan" not in text.lower().split() and "None" not in text.split()
    assert html.count("<figure") >= 2


def test_layers_make_a_curve_and_a_best_layer_claim(tmp_path):
    names = [f"gpt-L{i}" for i in range(4)] + ["bert"]
    run_dir = write_run(tmp_path / "r", names, ["a"], 30, effect=[0.0, 0.1, 0.2, 0.1, 0.0])
    _, text = checked(write_report([run_dir]))
    assert "Layers" in text and "chosen anew inside every permutation" in text
    assert (run_dir / "figures/layers-a.svg").exists()
    run = load_run(run_dir)
    assert run.layer_curves() == {"a": [("gpt", [(0, 0), (1, 1), (2, 2), (3, 3)])]}


def test_a_map_is_drawn_from_the_tables_of_the_run_and_only_from_these(tmp_path):
    text, audio = simulate_pair([f"c{i}" for i in range(12)], alignment=1.0, clips=3, text_width=8, audio_width=8)
    text.meta.clear(), audio.meta.clear()
    text.save(tmp_path / "t.npz"), audio.save(tmp_path / "a.npz")
    from fastprobe.protocol.config import ProbeConfig

    permutation_test(
        tmp_path / "t.npz",
        tmp_path / "a.npz",
        permutations=9,
        splits=2,
        backend="reference",
        probe=ProbeConfig(dim=4, steps=2, sampling="centroid"),
        k=(1, 3),
        out=tmp_path / "run",
    )
    _, said = checked(write_report([tmp_path / "run"]))
    assert "PROTEST" in said and (tmp_path / "run/figures/procrustes-t-a.pdf").exists()
    EmbeddingTable(2 * audio.vectors, audio.labels, audio.ids).save(tmp_path / "a.npz")
    _, said = checked(write_report([tmp_path / "run"], tmp_path / "again.html"))
    assert "a.npz is not the table that was run" in said


def test_two_runs_are_compared_on_the_same_splits(tmp_path, run_dir):
    other = write_run(tmp_path / "other", ["gpt", "word_vec & co"], ["vggish", "mfcc"], 40, effect=0.05, splits=4, seed=0)
    page = write_report([run_dir, other], tmp_path / "c.html")
    _, text = checked(page)
    assert "4 pairs in both" in text and "permutations 60 40" in text
    rows = rows_of(tmp_path)
    a, b = load_run(run_dir), load_run(other)
    difference = a.per_split[0] - b.per_split[0]
    assert float(rows[0]["difference"]) == pytest.approx(difference.mean())
    assert float(rows[0]["se_corrected"]) == pytest.approx(np.sqrt((1 / 4 + 6 / 14) * difference.var(ddof=1)))


def test_runs_on_different_splits_are_not_tested(tmp_path, run_dir):
    other = write_run(tmp_path / "other", ["gpt"], ["vggish"], 20, splits=4, seed=5)
    _, text = checked(write_report([run_dir, other], tmp_path / "c.html"))
    assert "different seeds (0 and 5), hence different splits: no difference is tested" in text


def test_runs_of_different_statistics_are_not_set_against_each_other(tmp_path, run_dir):
    other = write_run(tmp_path / "other", ["gpt", "word_vec & co"], ["vggish", "mfcc"], 20, splits=4, statistic="mean_log_rank")
    html, text = checked(write_report([run_dir, other], tmp_path / "c.html"))
    assert "The runs test different statistics (acc@3 and mean_log_rank), so no difference is tested." in text
    assert "does better" not in text and "<figure" not in html and "mean_log_rank" in text


def test_classes_are_compared_by_one_and_the_same_accuracy(tmp_path):
    """The statistic has no k: each run is shown by acc@3, or by the first k where it has no 3."""
    a, b, c = (
        write_run(tmp_path / name, ["t"], ["a"], 20, statistic="mean_log_rank", ks=ks)
        for name, ks in (("a", (1, 3)), ("b", (1, 5)), ("c", (3, 5)))
    )
    _, text = checked(write_report([a, b], tmp_path / "c.html"))
    assert "sign-flip test takes" not in text
    assert rows_of(tmp_path)[0]["pvalue_signflip"] == ""
    _, text = checked(write_report([a, c], tmp_path / "c.html"))
    assert "by the acc@3 of each" in text and 0 < float(rows_of(tmp_path)[0]["pvalue_signflip"]) <= 1


def rows_of(folder):
    with open(folder / "tables/comparison-comparisons.csv") as file:
        return list(csv.DictReader(file))


def test_pairs_matched_by_place_go_by_both_names(tmp_path, run_dir):
    other = write_run(tmp_path / "other", ["bert", "gpt3"], ["passt", "pann"], 20, splits=4)
    _, text = checked(write_report([run_dir, other], tmp_path / "c.html"))
    assert "gpt × vggish | bert × passt" in text


def test_splits_that_do_not_vary_are_not_compared_by_a_t_test(tmp_path):
    run = load_run(write_run(tmp_path / "r", ["t", "u"], ["a"], 10))
    run.per_split[1] = run.per_split[0] - 0.25
    [row] = comparison_rows(comparisons(run))
    assert row[2] == pytest.approx(0.25) and row[3:10] == [None] * 7 and 0 < row[10] <= 1


def test_a_rule_that_did_not_fire_ended_nothing(tmp_path):
    run_dir = write_run(
        tmp_path / "r", ["t"], ["a"], 60, effect=0.3, stop="besag-clifford:h=5,burn_in=100", stop_limit=60, stop_statistic="acc@3"
    )
    _, text = checked(write_report([run_dir]))
    assert "did not fire within the 60 permutations" in text and "stopped by rule" not in text and "ended the run" not in text


def test_a_stopped_run_says_so(tmp_path):
    run_dir = write_run(
        tmp_path / "r", ["t"], ["a"], 300, effect=0.0, stop="besag-clifford:h=5,burn_in=100", stop_limit=300, stop_statistic="acc@3"
    )
    manifest = json.loads((run_dir / "manifest.json").read_text())
    n = json.loads((run_dir / "summary.json").read_text())["pairs"][0]["n_permutations"]
    assert n < 300
    manifest["permutations"] = n
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    _, text = checked(write_report([run_dir]))
    assert f"ended the run after {n} permutations" in text and "Besag & Clifford 1991, h = 5" in text and "stopped by rule" in text


def test_bad_input_is_named(tmp_path, run_dir):
    with pytest.raises(InputError, match="no run directory"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="takes one run directory, or two"):
        write_report([])
    bad = tmp_path / "bad.csv"
    bad.write_text("name,kind\n")
    with pytest.raises(InputError, match="no column 'label'; it has name, kind"):
        write_report([run_dir], categories=bad)
    unfinished = write_run(tmp_path / "u", ["t"], ["a"], 10)
    (unfinished / "summary.json").unlink()
    with pytest.raises(InputError, match="no summary"):
        write_report([unfinished])
    write_summary(unfinished)
    next((unfinished / "results").iterdir()).unlink()
    with pytest.raises(InputError, match="not stored yet"):
        write_report([unfinished])


def test_names_that_differ_only_in_signs_have_figures_of_their_own(tmp_path):
    run_dir = write_run(tmp_path / "r", ["t"], ["gpt_2", "gpt-2"], 20, effect=[0.3, 0.0])
    write_report([run_dir])
    drawn = [p.read_text() for p in sorted((run_dir / "figures").glob("null-*.svg"))]
    assert len(drawn) == 2 and sorted("gpt_2" in d for d in drawn) == [False, True]


def test_names_are_escaped(tmp_path):
    run_dir = write_run(tmp_path / "r", ["<b>x</b>&'\""], ["a/../b"], 20)
    html, text = checked(write_report([run_dir]))
    assert "<b>x</b>&'" in text and "<b>x</b>" not in html
    assert latex_escape("50%_#&") == r"50\%\_\#\&"
    assert all(p.parent == run_dir / "figures" for p in (run_dir / "figures").rglob("*"))


HOSTILE = (
    "</title></style></script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    "--><!--<![CDATA[",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "`${alert(1)}`",
)


class Scripts(HTMLParser):
    """What a browser would run: scripts, handlers, addresses that are code."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [tag] if tag in ("script", "img", "iframe", "object", "embed", "base") else []
        self.found += [(tag, n) for n, v in attrs if n.startswith("on") or (v or "").strip().lower().startswith("javascript:")]


def test_no_label_becomes_a_script(tmp_path):
    """Class labels, table names, ids, meta, groups and a folder's name, through every page that a run can give."""
    rng = np.random.default_rng(0)
    labels = [f"{w} {i}" for i in range(2) for w in HOSTILE]
    text = EmbeddingTable(rng.standard_normal((16, 6)), labels, meta={"name": HOSTILE[0], "model": HOSTILE[1], HOSTILE[2]: HOSTILE[3]})
    audio = EmbeddingTable(
        np.repeat(text.vectors, 4, 0) + rng.standard_normal((64, 6)), np.repeat(labels, 4), meta={"name": HOSTILE[1], "model": HOSTILE[0]}
    )
    folder = tmp_path / HOSTILE[2]
    groups = dict(zip(labels, HOSTILE * 2))
    for where in (folder, tmp_path / "other"):
        permutation_test(
            text, audio, permutations=9, splits=2, probe=["procrustes", "ridge"], similarity="cka", groups=groups, out=where,
            covariates={HOSTILE[3]: rng.random(16).tolist()}, seed=int(where != folder),
        )  # fmt: skip
    (tmp_path / "c.csv").write_text("label,category\n" + "".join('"{}",{}\n'.format(x.replace('"', '""'), "<b>x</b>") for x in labels))
    for page in (
        write_report([folder], tmp_path / "one.html", tmp_path / "c.csv"),
        write_report([folder, tmp_path / "other"], tmp_path / "two.html"),
    ):
        html = page.read_text("utf-8")
        parser = Scripts()
        parser.feed(html)
        assert not parser.found and "<script" not in html.lower() and "<b>x" not in html
        assert "&lt;script&gt;alert(1)" in html  # the labels are there, as text
        checked(page)
    for drawing in (tmp_path / "one_files").rglob("*.svg") if (tmp_path / "one_files").is_dir() else folder.rglob("*.svg"):
        assert "<script" not in drawing.read_text("utf-8").lower()
