"""The atlas: every pair of one or several runs on one page that works without a network.

A heat map of models (and their layers) against sounds, a pair's null, classes and what was retrieved instead, a table to sort and
filter, and the numbers as CSV and as JSON in the manner of MTEB's result files (https://github.com/embeddings-benchmark/mteb).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..errors import InputError
from ..protocol.probes import is_similarity
from ..runs.manifest import to_json
from ..runs.summary import layers
from ..statistics.significance import null_bins
from . import tables
from .compare_page import settings_that_differ
from .data import RunData, load_run
from .ranks import ordered
from .text import number, plural, pvalue, sentence

BINS = 32
CLASSES_SHOWN, INSTEAD_SHOWN = 6, 8
HEADER = (
    *("text", "audio", "probe", "run", "metric", "value", "low", "high", "null_mean", "null_sd", "pvalue", "pvalue_maxT"),
    *("rank", "rank_low", "rank_high", "group", "baseline"),
)


class Atlas(NamedTuple):
    """The page, and its numbers as CSV and JSON."""

    html: str
    csv: str
    json: str


def make_atlas(run_dirs: Sequence[str | os.PathLike]) -> Atlas:
    """The atlas of some finished runs.

    Raises
    ------
    InputError
        No run named, or the same one twice.
    StoreError
        A run that is not there or not finished.
    """
    if not run_dirs:
        raise InputError("an atlas needs at least one run directory; got none.")
    if twice := [d for d, n in Counter(map(str, run_dirs)).items() if n > 1]:
        raise InputError(f"an atlas takes each run once; {twice[0]} is given twice. Leave one out.")
    runs = [load_run(d) for d in run_dirs]
    alike = Counter(run.name for run in runs)  # folders of one name in several places go by their whole path
    names = [run.name if alike[run.name] == 1 else str(where) for run, where in zip(runs, run_dirs)]
    cells, rows, audios, labels = _cells(runs, names)
    told = [_record(c, rows, audios, names) for c in cells]
    table = tables.to_csv(HEADER, [[_plain(r[name]) for name in HEADER] for r in told])
    results = to_json(_mteb(dict(zip(names, runs)), told))
    first = max(range(len(cells)), key=lambda i: cells[i]["z"] if cells[i]["z"] is not None else -np.inf)
    data = {
        "names": {"model": "text"},
        "rows": rows,
        "audios": audios,
        "labels": labels,
        "runs": [{"name": name} for name in names],
        "cells": cells,
        "first": first,
        "exports": {"csv": table, "json": results},
    }
    return Atlas(_page(runs, names, told, data), table, results)


def _cells(runs: list[RunData], names: list[str]) -> tuple[list[dict[str, Any]], list[str], list[str], list[str]]:
    """Every pair of every run with what the page shows of it; names of rows, of sounds and of classes."""
    keys: dict[tuple[int, str], tuple[Any, ...]] = {}
    places = Counter((run.table_of(i), r["audio"], r.get("probe")) for run in runs for i, r in enumerate(run.records))
    doubled = {text for (text, _, _), n in places.items() if n > 1}  # the same pair in several runs: the run tells them apart
    for at, run in enumerate(runs):
        of = layers(run.identity["inputs"])
        for i in range(len(run.records)):
            text = run.table_of(i)
            name = f"{text} ({names[at]})" if text in doubled else text
            model, layer = of.get(text, (text, -1))
            keys[at, text] = (_natural(model), layer, _natural(name), name)
    rows = [key[-1] for key in sorted(set(keys.values()))]
    audios = sorted({r["audio"] for run in runs for r in run.records}, key=_natural)
    labels: dict[str, int] = {}
    cells = []
    for number_, run in enumerate(runs):
        distance = run.distance()
        ranks = {i: (some.ranking, m) for some in ordered(run) for m, i in enumerate(some.pairs)}
        for i, r in enumerate(run.records):
            null = run.t[i, 1:]
            counts, edges = null_bins(null, float(run.t[i, 0]), BINS) if len(null) else (np.zeros(0, int), run.t[i, :1])
            interval = run.intervals[i]
            ranking = ranks.get(i)
            cells.append(
                {
                    "row": rows.index(keys[number_, run.table_of(i)][-1]),
                    "audio": audios.index(r["audio"]),
                    "probe": r.get("probe", "contrastive"),
                    "run": number_,
                    "metric": r.get("metric", run.statistic),
                    "value": _round(r["statistic"]),
                    "low": _round(interval.low),
                    "high": _round(interval.high),
                    "mean": _round(r["null_mean"]),
                    "sd": _round(r["null_sd"]),
                    "p": _round(r["pvalue"]),
                    "adjusted": _round(r["pvalue_maxT"]),
                    "z": _round(distance[i]) if run.n_permutations else None,
                    "baseline": r.get("role") == "baseline",
                    "counts": counts.tolist(),
                    "from": _round(edges[0]),
                    "to": _round(edges[-1]),
                    "k": run.observed.k if run.observed is not None else 0,
                    "classes": _classes(run, i, labels),
                    "instead": [
                        [labels.setdefault(a, len(labels)), labels.setdefault(b, len(labels)), _round(share, 2)]
                        for a, b, share in run.confusions.get(i, [])[:INSTEAD_SHOWN]
                    ],
                    "rank": None
                    if ranking is None
                    else [int(getattr(ranking[0], n)[ranking[1]]) for n in ("rank", "low", "high")] + [ranking[0].letters(ranking[1])],
                    "said": sentence(r, len(run.records), run.lower_is_better and not is_similarity(r.get("probe", "")), run.stopped)[1]
                    if run.n_permutations
                    else "No permutation was run, so nothing is tested.",
                }
            )
    return cells, rows, audios, list(labels)


def _classes(run: RunData, pair: int, labels: dict[str, int]) -> list[list[Any]]:
    """The best and worst classes of a pair with their accuracies."""
    if run.observed is None or is_similarity(run.records[pair].get("probe", "")):
        return []
    accuracy = run.observed.per_class(pair)
    known = np.flatnonzero(np.isfinite(accuracy))
    order = known[np.lexsort((known, -accuracy[known]))]
    shown = order if len(order) <= 2 * CLASSES_SHOWN else np.concatenate([order[:CLASSES_SHOWN], order[-CLASSES_SHOWN:]])
    return [[labels.setdefault(str(run.observed.classes[c]), len(labels)), _round(accuracy[c], 2)] for c in shown]


def _record(cell: dict[str, Any], rows: list[str], audios: list[str], names: list[str]) -> dict[str, Any]:
    """A cell as the exports have it."""
    rank = cell["rank"] or [None, None, None, None]
    values = (
        *(rows[cell["row"]], audios[cell["audio"]], cell["probe"], names[cell["run"]], cell["metric"], cell["value"]),
        *(cell["low"], cell["high"], cell["mean"], cell["sd"], cell["p"], cell["adjusted"], *rank, cell["baseline"]),
    )
    return dict(zip(HEADER, values))


def _mteb(runs: dict[str, RunData], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A document for each model and run: task, revision of the data, scores by subset, as MTEB's result files have them."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for r in told:
        run = runs[r["run"]]
        document = out.setdefault(
            (r["text"], r["run"]),
            {
                "model_name": r["text"],
                "task_name": f"fastprobe {r['run']}",
                "dataset_revision": "-".join(t["digest"][:12] for t in run.identity["inputs"] if t["side"] == "audio"),
                "fastprobe_version": run.manifest.get("versions", {}).get("fastprobe", __version__),
                "evaluation_time": run.manifest.get("seconds"),
                "kg_co2_emissions": None,
                "scores": {"test": []},
            },
        )
        subset = r["audio"] if len(run.probes) == 1 else f"{r['audio']}, {r['probe']}"
        score = {"main_score": r["value"], r["metric"]: r["value"], "hf_subset": subset, "languages": ["eng-Latn"]}
        more = ("low", "high", "null_mean", "null_sd", "pvalue", "pvalue_maxT", "rank", "rank_low", "rank_high", "group")
        document["scores"]["test"].append({**score, **{name: r[name] for name in more}})
    return list(out.values())


def _page(runs: list[RunData], names: list[str], told: list[dict[str, Any]], data: dict[str, Any]) -> str:
    """The page: the table is in it as HTML, the rest is drawn from the data."""
    probes = list(dict.fromkeys(c["probe"] for c in data["cells"]))
    files = resources.files(__package__)
    css, script = (files.joinpath(f"atlas.{kind}").read_text("utf-8") for kind in ("css", "js"))
    title = "Atlas: " + ", ".join(names)
    options = "".join(f'<option value="{escape(p, quote=True)}">{escape(p)}</option>' for p in probes)
    head = ("text", "audio", "probe", "run", "metric", "value", "null mean", "p", "p max-T", "rank", "group")
    heads = "".join(f'<th scope="col"><button type="button">{escape(h)}</button></th>' for h in head)
    lines = []
    for at, r in enumerate(told):
        words = "".join(f'<td class="name">{escape(str(r[n]))}</td>' for n in ("audio", "probe", "run", "metric"))
        numbers = "".join(
            f'<td data-value="{"" if r[n] is None else r[n]}">{shown}</td>'
            for n, shown in (
                ("value", number(r["value"])),
                ("null_mean", number(r["null_mean"])),
                ("pvalue", pvalue(r["pvalue"])),
                ("pvalue_maxT", pvalue(r["pvalue_maxT"])),
                ("rank", "–" if r["rank"] is None else f"{r['rank']} ({r['rank_low']}–{r['rank_high']})"),
                ("group", escape(r["group"] or "–")),
            )
        )
        adjusted = "" if r["pvalue_maxT"] is None else r["pvalue_maxT"]
        button = f'<button type="button" data-cell="{at}">{escape(r["text"])}</button>'
        lines.append(f'<tr data-adjusted="{adjusted}"><td class="name">{button}</td>{words}{numbers}</tr>')
    # "<" would end the element from within a label; as an escape it is the same JSON.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{css}</style></head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(_opening(runs, told))}</p>
{"".join(f"<p class='soft'>{escape(line)}</p>" for line in _differences(runs, names))}
<h2 id="map-title">Models and sounds</h2>
<p class="soft">Colour: how far the observed value lies above its null, in null standard deviations. * adjusted p
below .05, ** .01, *** .001. In italics: baselines. Choose a value, by mouse or with the arrow keys and Enter.</p>
<div class="controls"><label>Probe <select id="probe">{options}</select></label></div>
<div class="scroll"><table id="map" aria-labelledby="map-title"><thead></thead><tbody></tbody></table></div>
<div id="detail" role="region" aria-live="polite" aria-label="The chosen pair" tabindex="-1"></div>
<h2 id="pairs-title">Every pair</h2>
<div class="controls"><label>Filter <input id="filter" type="search" placeholder="words of a line"></label>
<label><span><input id="found" type="checkbox"> adjusted p below .05 only</span></label>
<span id="count" role="status" class="soft"></span>
<button id="csv" type="button">CSV</button><button id="json" type="button">JSON</button></div>
<div class="scroll"><table id="pairs" aria-labelledby="pairs-title"><thead><tr>{heads}</tr></thead><tbody>
{"".join(lines)}
</tbody></table></div>
<noscript><p>The table is complete; the heat map and the details of a pair need JavaScript, which comes with this page.</p></noscript>
<p class="soft">p max-T is adjusted for the pairs of its own run. Ranks and their 95% intervals are those of acc@k among the texts with the
same sounds and probe; models with a letter in common cannot be told apart. Made by fastprobe {escape(__version__)}.</p>
<script type="application/json" id="data">{embedded}</script>
<script>{script}</script>
</body></html>
"""


def _opening(runs: list[RunData], told: list[dict[str, Any]]) -> str:
    """What came out, in two sentences."""
    models = [r for r in told if not r["baseline"]]
    found = [r for r in models if r["pvalue_maxT"] is not None and r["pvalue_maxT"] < 0.05]
    tested = ", ".join(dict.fromkeys(r["metric"] for r in told))
    rest = len(told) - len(models)
    return (
        f"{plural(len(models), 'pair')} of {plural(len(runs), 'run')} ({tested}): {len(found)} carry over at .05, adjusted for the pairs "
        f"of their run; {plural(rest, 'pair')} more {'is' if rest == 1 else 'are'} of baselines."
    )


def _differences(runs: list[RunData], names: list[str]) -> list[str]:
    """In what the runs differ from the first, so that nobody compares what cannot be compared."""
    out = []
    for run, name in zip(runs[1:], names[1:]):
        changed = [row[0] for row in settings_that_differ(runs[0], run) if " table " not in row[0]]
        if changed:
            out.append(f"{name} differs from {names[0]} in {', '.join(changed[:8])}: their values are not of one protocol.")
    return out


def _natural(name: str) -> tuple[Any, ...]:
    """For sorting: numbers in a name by their value."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name) if part)


def _round(value: Any, digits: int = 5) -> float | None:
    """A number as JSON has it, short; None where there is none."""
    return None if value is None or not np.isfinite(value) else float(f"{float(value):.{digits}g}")


def _plain(value: Any) -> str:
    return "" if value is None else str(value)
