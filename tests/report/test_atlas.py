"""The atlas: complete, safe from labels, small, and working in a browser: sorted, filtered, walked by keys, exported."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastprobe import EmbeddingTable, InputError, StoreError, permutation_test
from fastprobe.report import write_atlas
from fastprobe.report.atlas import HEADER
from support.simulated_run import write_run

CHROMIUM = next((c for c in ("chromium", "chromium-browser", "google-chrome") if shutil.which(c)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
LAYERED = [f"model{m}-layer{n:02d}" for m in range(10) for n in range(13)]
SOUNDS = ["passt", "pann", "audiomae", "vggish"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """40 pairs x 13 layers x 1,000 permutations."""
    folder = tmp_path_factory.mktemp("large") / "run"
    return write_run(folder, LAYERED, SOUNDS, 1000, splits=2, n_classes=20, clips=2)


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S).group(1))


def in_browser(page, script, tmp_path):
    """What a script finds on the page once it has loaded: its text is put into the title, which --dump-dom shows."""
    probe = tmp_path / "probe.html"
    after = f"<script>document.title = String((() => {{ {script} }})())</script></body>"
    probe.write_text(Path(page).read_text("utf-8").replace("</body>", after), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    return re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1)


def test_the_page_holds_every_pair(large):
    page = write_atlas([large])
    html = Path(page).read_text("utf-8")
    assert page == large / "atlas.html" and len(html.encode()) < 5 << 20
    assert "http:" not in html.replace("http://www.w3.org", "") and "https:" not in html and "@import" not in html
    data = embedded(html)
    assert len(data["cells"]) == 520 and len(data["audios"]) == 4 and data["rows"] == LAYERED
    summary = {(r["text"], r["audio"]): r for r in json.loads((large / "summary.json").read_text())["pairs"]}
    for cell in data["cells"]:
        record = summary[data["rows"][cell["row"]], data["audios"][cell["audio"]]]
        assert cell["value"] == pytest.approx(record["statistic"], rel=1e-4) and cell["adjusted"] == pytest.approx(
            record["pvalue_maxT"], rel=1e-4
        )
        assert sum(cell["counts"]) == 1000 and cell["from"] <= cell["value"] <= cell["to"]
    rows = list(csv.DictReader((large / "atlas.csv").open()))
    assert len(rows) == 520 and tuple(rows[0]) == HEADER
    documents = json.loads((large / "atlas.json").read_text())
    assert len(documents) == 130 and all(len(d["scores"]["test"]) == 4 for d in documents)
    score = documents[0]["scores"]["test"][0]
    assert score["main_score"] == score["acc@3"] and score["hf_subset"] in SOUNDS
    assert {"task_name", "dataset_revision", "evaluation_time"} <= set(documents[0])
    assert data["exports"] == {"csv": (large / "atlas.csv").read_text(), "json": (large / "atlas.json").read_text()}


@needs_browser
def test_it_opens_without_an_error(large, tmp_path):
    page = write_atlas([large], tmp_path / "a.html")
    script = "return [document.querySelectorAll('#map button').length, document.querySelector('#detail h2').textContent].join('|')"
    count, name = in_browser(page, script, tmp_path).split("|")
    assert count == "520" and " × " in name


@needs_browser
def test_it_sorts_filters_and_is_walked_by_keys(large, tmp_path):
    page = write_atlas([large], tmp_path / "a.html")
    script = """
      const heads = [...document.querySelectorAll('#pairs th button')], body = document.querySelector('#pairs tbody');
      const values = () => [...body.rows].map((r) => Number(r.cells[5].dataset.value));
      heads[5].click(); const up = values(); heads[5].click(); const down = values();
      const sorted = up.every((v, i) => !i || up[i - 1] <= v) && down.every((v, i) => !i || down[i - 1] >= v);
      const sort = heads[5].closest('th').getAttribute('aria-sort');
      const filter = document.getElementById('filter'); filter.value = 'model3 pann'; filter.dispatchEvent(new Event('input'));
      const left = [...body.rows].filter((r) => !r.hidden).length, said = document.getElementById('count').textContent;
      const first = document.querySelector('#map td button'); first.focus();
      first.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }));
      const below = document.activeElement; below.click();
      const pressed = below.getAttribute('aria-pressed'), title = document.querySelector('#detail h2').textContent;
      const same = below.getAttribute('aria-label').startsWith(title.split(' × ')[0]);
      return [sorted, sort, left, said, pressed, same, location.hash !== ''].join('|');
    """
    assert in_browser(page, script, tmp_path) == "true|descending|13|13 of 520 pairs|true|true|true"


def test_no_label_leaves_its_place(tmp_path):
    hostile = [
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "<!--<script>",
        "&lt;b&gt;",
        "\u2028",
        "' onclick='x",
    ]
    rng = np.random.default_rng(0)
    labels = [f"{w} {i}" for i in range(2) for w in hostile]
    text = EmbeddingTable(rng.standard_normal((12, 5)), labels, meta={"name": hostile[0]})
    audio = EmbeddingTable(np.repeat(text.vectors, 3, 0) + rng.standard_normal((36, 5)), np.repeat(labels, 3), meta={"name": hostile[1]})
    folder = tmp_path / hostile[5]
    permutation_test(text, audio, permutations=9, splits=2, probe="ridge", out=folder)
    page = write_atlas([folder], tmp_path / "a.html")

    class Scripts(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            self.found += [(tag, dict(attrs).get("type"))] if tag in ("script", "img", "iframe", "object") else []
            self.found += [(tag, n) for n, _ in attrs if n.startswith("on")]

    parser = Scripts()
    html = page.read_text("utf-8")
    parser.feed(html)
    assert parser.found == [("script", "application/json"), ("script", None)]
    assert set(embedded(html)["labels"]) <= set(labels) and embedded(html)["rows"][-1] in (hostile[0], "char-ngrams")
    if CHROMIUM is not None:
        found = in_browser(page, "return document.querySelectorAll('#detail img, #detail script, #pairs img').length", tmp_path)
        assert found == "0"


def test_several_runs_are_told_apart_and_their_differences_named(tmp_path):
    first = write_run(tmp_path / "first", ["bert", "gpt2"], ["passt"], 40)
    second = write_run(tmp_path / "second", ["bert", "t5"], ["passt"], 40, splits=2)
    html = write_atlas([first, second], tmp_path / "deep" / "a.html").read_text("utf-8")
    data = embedded(html)
    assert data["rows"] == ["bert (first)", "bert (second)", "gpt2", "t5"] and len(data["cells"]) == 4
    assert "second differs from first in splits" in html
    assert (tmp_path / "deep" / "a.csv").is_file() and (tmp_path / "deep" / "a.json").is_file()


def test_runs_of_one_name_go_by_their_place(tmp_path):
    places = [write_run(tmp_path / where / "run", ["bert"], ["passt"], 40, seed=i) for i, where in enumerate(("x", "y"))]
    data = embedded(write_atlas(places, tmp_path / "a.html").read_text("utf-8"))
    assert [r["name"] for r in data["runs"]] == list(map(str, places))
    assert data["rows"] == [f"bert ({p})" for p in places] and len(data["cells"]) == 2
    assert len(json.loads(data["exports"]["json"])) == 2


def test_the_shell_writes_it_and_says_where(tmp_path, shell):
    write_run(tmp_path / "run", ["bert"], ["passt"], 40)
    done = shell("report", "--atlas", "run")
    assert done.returncode == 0 and done.stdout.strip().endswith("atlas.html"), done.stderr
    for arguments, words in (
        (("report", "--atlas", "run", "run"), "given twice"),
        (("report", "--atlas", "nowhere"), "no run directory"),
        (("report", "--atlas", "run", "--categories", "c.csv"), "`categories`"),
    ):
        done = shell(*arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_atlas([])
    with pytest.raises(StoreError):
        write_atlas([tmp_path])
