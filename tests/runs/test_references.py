"""What a model is held against: baselines and ceilings as cells, the verdict, and runs that were begun without them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.extract.ngrams import char_ngrams
from fastprobe.report import write_report
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.merge import merge
from fastprobe.runs.references import category_table, ceilings, surface_baselines
from fastprobe.runs.run import analyse, as_begun, execute, open_store, prepare
from fastprobe.tables.embeddings import EmbeddingTable

WORDS = ["bell", "bark", "rain", "rail", "train", "brain", "drill", "drum", "hum", "horn", "corn", "crow", "row", "sea"]
FAST = {"probe": fp.ProbeConfig(dim=3, steps=4), "splits": 3, "permutations": 19, "backend": "cpp", "train_fraction": 0.5}
SIDES = {c: "short" if len(c) < 5 else "long" for c in WORDS}


def tables(names=WORDS, n_audio=1, clips=4, seed=0, map_from=None):
    """A text table of noise, and sounds that follow `map_from` (by default the texts)."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((len(names), 12))
    source = text if map_from is None else map_from
    audios = []
    for i in range(n_audio):
        means = source @ rng.standard_normal((source.shape[1], 10))
        sounds = np.repeat(means, clips, axis=0) + 0.3 * rng.standard_normal((len(names) * clips, 10))
        audios.append(EmbeddingTable(sounds, np.repeat(names, clips), meta={"name": f"audio{i}"}))
    return EmbeddingTable(text, names, meta={"name": "text"}), audios


def summary_of(path):
    return json.loads((path / "summary.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every kind of baseline and ceilings, from files."""
    folder = tmp_path_factory.mktemp("references")
    text, audios = tables(n_audio=2)
    for name, table in (("text", text), ("audio0", audios[0]), ("audio1", audios[1]), ("w2v", tables(seed=5)[0])):
        EmbeddingTable(table.vectors, table.labels, meta={"name": name}).save(folder / f"{name}.npz")
    options = {**FAST, "groups": SIDES, "baseline": [folder / "w2v.npz"], "ceiling": True}
    where = ([folder / "text.npz"], [folder / "audio0.npz", folder / "audio1.npz"])
    results = fp.permutation_test(*where, out=folder / "run", **options)
    return folder, results, where, options


def test_baselines_are_cells_like_any_other(run):
    folder, results, _, _ = run
    summary = summary_of(folder / "run")
    names = [(r["text"], r["audio"], r["role"]) for r in summary["pairs"]]
    texts = (("text", "model"), ("w2v", "baseline"), ("char-ngrams", "baseline"), ("categories", "baseline"))
    assert names == [(t, a, role) for a in ("audio0", "audio1") for t, role in texts]
    assert summary["families"][0]["n_tests"] == 8
    assert [(r.text, r.audio) for r in results] == [("text", "audio0"), ("text", "audio1")], "what was given is what comes back"
    for result, record in zip(results, (r for r in summary["pairs"] if r["role"] == "model")):
        test = result.beats_baseline
        assert record["beats_baseline"] is bool(test) and record["pvalue_baseline"] == test.pvalue
        assert record["baseline"] == test.baseline in {"w2v", "char-ngrams", "categories"}
        rivals = [r for r in summary["pairs"] if r["role"] == "baseline" and r["audio"] == record["audio"]]
        assert test.difference == pytest.approx(record["statistic"] - max(r["statistic"] for r in rivals))
        assert "beats_baseline" not in rivals[0]
    assert "pvalue_baseline" in (folder / "run" / "summary.csv").read_text().splitlines()[0]


def test_a_baseline_changes_nothing_of_a_model(run):
    folder, results, where, options = run
    alone = fp.permutation_test(*where, **{**options, "groups": None, "baseline": None, "ceiling": False, "baselines": False})
    for with_them, without in zip(results, alone):
        assert without.beats_baseline is None and with_them.pvalue == without.pvalue
        np.testing.assert_array_equal(with_them.null_distribution, without.null_distribution)


def test_ceilings_are_observed_only_and_test_nothing(run):
    folder, _, _, _ = run
    summary, manifest = summary_of(folder / "run"), json.loads((folder / "run" / "manifest.json").read_text())
    found = {(r["text"], r["audio"]): r for r in summary["ceilings"]}
    assert len(found) == 4 and ("audio0, half of its clips", "audio0") in found and ("audio1, class means", "audio0") in found
    assert all(0 <= r["statistic"] <= 1 and "pvalue" not in r for r in found.values())
    assert summary["n_jobs"] == 3 * (8 * 20 + 4) and manifest["identity"]["ceiling"] == 4
    assert examine(folder / "run", check=True)["done"] == summary["n_jobs"]


def test_verify_makes_the_references_again(run):
    folder, _, _, _ = run
    found = examine(folder / "run", check=True)
    assert found["state"] == "done" and not found["inputs"]
    assert verify(folder / "run", sample=500)["agrees"]
    assert verify(folder / "run", sample=60, backend="cpp")["loss_difference"] == 0


def test_parts_are_merged_to_the_same_summary(run, tmp_path):
    folder, _, where, options = run
    for part in range(3):
        experiment = prepare(*where, **options)
        for _ in execute(experiment, open_store(experiment, tmp_path / f"p{part}", part=(part, 3)), part=(part, 3)):
            continue
    merged = merge(tmp_path / "all", [tmp_path / f"p{i}" for i in range(3)])
    assert merged.done == merged.total and merged.summary is not None
    assert (tmp_path / "all" / "summary.json").read_bytes() == (folder / "run" / "summary.json").read_bytes()


def test_the_report_shows_them(run):
    folder, _, _, _ = run
    page = write_report([folder / "run"]).read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "char-ngrams" in text and "a reference of what is within reach and not a bound" in text
    assert "reference: own sounds" in page and "reference: other sounds" in page
    assert "Surface baselines (w2v, char-ngrams and categories)" in text and "1 text embedding table (text)" in text
    assert "95% over fresh classes" in text
    header, *rows = (folder / "run" / "tables" / "results.csv").read_text().splitlines()
    assert {"role", "beats_baseline", "pvalue_baseline", "low", "high"} <= set(header.split(",")) and len(rows) == 8


def test_a_model_that_follows_the_spelling_is_no_finding(tmp_path):
    """Sounds made of the n-grams, and a text table that is a copy of them: it carries over, but no more than they do."""
    names = [f"{a}{b}" for a in ("bell", "dog", "rain", "drum", "horn") for b in ("ing", "ed", "er", "s", "ly", "al")]
    grams = char_ngrams(names).vectors
    _, audios = tables(names, clips=8, map_from=grams)
    copy = EmbeddingTable(grams + 0.01 * np.random.default_rng(1).standard_normal(grams.shape), names, meta={"name": "copy"})
    options = {"probe": "ridge", "splits": 5, "permutations": 99, "statistic": "mean_log_rank", "backend": "cpp"}
    result = fp.permutation_test(copy, audios[0], out=tmp_path / "r", **options)
    assert result.pvalue_max_t <= 0.05 and not result.beats_baseline
    assert result.verdict == "the geometry carries over, but no more than the spelling does"
    assert "beats the best baseline" in result._repr_html_()
    page = write_report([tmp_path / "r"]).read_text()
    assert "<h1>The geometry carries over, but no more than the spelling does</h1>" in page
    assert 'class="yes"' not in page.split('<ul class="answers">')[1].split("</ul>")[0]


def test_a_model_that_knows_more_beats_it(shell, tmp_path):
    names = [f"{a}{b}" for a in ("bell", "dog", "rain", "drum", "horn") for b in ("ing", "ed", "er", "s", "ly", "al")]
    text, audios = tables(names, clips=8)
    text.save(tmp_path / "text.npz")
    audios[0].save(tmp_path / "audio.npz")
    arguments = ["run", "--text", "text.npz", "--audio", "audio.npz", "--permutations", 59, "--probe", "ridge", "--statistic", "mrr"]
    done = shell(*arguments, "--out", "r", "-q")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "text x audio0, ridge: the geometry carries over, and further than the spelling does" in said
    assert "char-ngrams x audio0, ridge: " not in said, "a baseline has a row and no verdict"
    assert summary_of(tmp_path / "r")["pairs"][0]["beats_baseline"] is True


def test_no_baselines_where_names_have_no_spelling():
    text, audios = tables([str(i) for i in range(14)])
    result = fp.permutation_test((text.vectors, text.labels), (audios[0].vectors, audios[0].labels), **FAST)
    assert result.beats_baseline is None and result.verdict in (
        "the geometry carries over",
        "no evidence that the geometry carries over",
    )
    experiment = prepare(text, audios[0], **FAST)
    assert len(experiment.cells) == 1 and "baselines" not in experiment.identity()


def test_n_grams_that_were_given_are_the_baseline():
    text, audios = tables()
    given = char_ngrams(WORDS, width=64)
    both = prepare([text, given], audios[0], **FAST)
    assert [c.text for c in both.cells] == ["text", "char-ngrams"] and both.baselines == {"char-ngrams": "the spelling does"}
    alone = prepare(given, audios[0], **FAST)
    assert [c.text for c in alone.cells] == ["char-ngrams"] and not alone.baselines, "then it is what is asked about"


def test_categories_are_a_baseline_wherever_groups_are_known():
    text, audios = tables()
    within = prepare(text, audios[0], **FAST, groups=SIDES, control="permute-within")
    free = prepare(text, audios[0], **FAST, groups=SIDES)
    assert [c.text for c in within.cells] == [c.text for c in free.cells] == ["text", "char-ngrams", "categories"]
    assert within.groups is not None and free.groups is None
    with pytest.raises(InputError, match="belongs to"):
        prepare(text, audios[0], **FAST, groups=SIDES, baselines=False)


def test_the_category_alone_ranks_by_chance_within_it():
    """Ties count against the true text, so bare ones and zeros would score nothing at all."""
    classes, categories = np.array([f"c{i:02d}" for i in range(12)]), np.repeat(["a", "b", "c"], 4)
    vectors = category_table(classes, categories, 0).vectors.astype(float)
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    same = categories[:, None] == categories
    assert cosine[same].min() > 0.99 and np.abs(cosine[~same]).max() < 0.02
    assert len(np.unique(np.round(vectors, 6), axis=0)) == 12
    assert [b.kind for b in surface_baselines([], classes, np.repeat("a", 12), 0)] == ["spelling"], "one category tells nothing"


def test_halves_share_no_clip_and_do_not_depend_on_the_order_of_the_rows():
    _, (audio,) = tables(clips=5)
    first = ceilings([audio], 3)[0]
    assert len(first.audio) == 14 * 3 and len(first.text) == 14
    rest = {row.tobytes() for row in first.audio.vectors}
    for label, mean in zip(first.text.labels, first.text.vectors):
        used = [v for v in audio.vectors[audio.labels == label] if v.tobytes() not in rest]
        np.testing.assert_allclose(np.mean(used, axis=0), mean, rtol=1e-5)
    shuffled = audio.select(np.random.default_rng(0).permutation(len(audio)))
    again = ceilings([EmbeddingTable(shuffled.vectors, shuffled.labels, meta=audio.meta)], 3)[0]
    np.testing.assert_allclose(again.text.vectors, first.text.vectors, rtol=1e-6)
    assert {row.tobytes() for row in again.audio.vectors} == rest
    with pytest.raises(InputError, match="two clips of every class"):
        ceilings([audio.select(np.r_[0, 5 : len(audio)])], 3)


def test_a_run_that_was_begun_without_is_continued_without(tmp_path):
    text, audios = tables()
    whole = fp.permutation_test(text, audios[0], out=tmp_path / "whole", baselines=False, **{**FAST, "permutations": 29})
    fp.permutation_test(text, audios[0], out=tmp_path / "old", baselines=False, **FAST)
    identity = json.loads((tmp_path / "old" / "manifest.json").read_text())["identity"]
    assert not {"baselines", "ceiling", "covariates", "categories"} & set(identity), "as runs of 0.1.0 are stored"
    with pytest.raises(InputError, match="already holds this run. Add"):
        fp.permutation_test(text, audios[0], out=tmp_path / "old", **FAST)
    again = fp.permutation_test(text, audios[0], out=tmp_path / "old", resume=True, **{**FAST, "permutations": 29})
    np.testing.assert_array_equal(again.null_distribution, whole.null_distribution)
    assert (tmp_path / "old" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()
    request = fp.RunRequest(**FAST)
    assert as_begun(request, tmp_path / "nothing") is request


def test_a_stopping_rule_looks_at_no_ceiling():
    text, audios = tables()
    experiment = prepare(text, audios[0], ceiling=True, stop="besag-clifford:h=5", **{**FAST, "permutations": 60})
    store = open_store(experiment, None)
    for _ in execute(experiment, store):
        continue
    results = analyse(experiment, store)
    assert len(results) == 2 == experiment.n_tested and results[0].beats_baseline is not None
