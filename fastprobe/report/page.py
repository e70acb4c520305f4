"""report.html: the page of one run, a single self-contained file. No script, no network."""

from __future__ import annotations

from html import escape
from typing import Any

from ..statistics.baselines import verdict
from ..statistics.comparison import Comparison
from ..statistics.significance import Interval
from . import figures, methods, probes, ranks, tables
from .data import RunData, n_classes_of
from .html import Page, css_class, slug
from .text import between, number, plural, pvalue, sentence


def single(run: RunData, found: list[Comparison], maps: list[tuple[int, Any]]) -> Page:
    """The page of one run.

    Parameters
    ----------
    found : list of Comparison
        Text tables against each other.
    maps : list of (pair, (ProcrustesTest, class names))
    """
    page = Page(f"fastprobe: {run.name}")
    n, n_train, n_test = n_classes_of(run)
    b, m = run.n_permutations, len(run.records)
    page.add(f"<h1>{escape(_title(run))}</h1>")
    page.text(
        f"{_counted(run)}, {n} classes, {plural(run.identity['splits'], 'split')} ({n_train} train, {n_test} test "
        f"classes), {plural(b, 'permutation')}; run “{run.name}”, {run.manifest.get('updated', '')[:10]}.",
        soft=True,
    )
    page.text(methods.primer(run))
    _answers(page, run)
    add_results(page, run)
    probes.add_probes(page, run)
    page.heading("Observed against control")
    if m > 12 and figures.is_grid(run) and b:
        page.cards(
            [page.figure(figures.evidence(run), "evidence", "All pairs at a glance, in null standard deviations above the control.")]
        )
    page.cards(
        [
            page.figure(
                figures.accuracy(run, a),
                f"accuracy-{slug(a)}",
                f"{a}: {run.statistic} of each language model and of its control"
                f"{', probe by probe' if len(run.probes) > 1 else ''}. Thick bar: standard error over splits; thin bar: corrected for "
                "overlapping splits. * p < .05, ** p < .01, *** p < .001, adjusted for all pairs (max-T)." + _ceilings(run, a),
            )
            for a in run.audios
            if run.ranked(run.pairs_of(a))
        ]
    )
    if b:
        page.heading("Null distributions")
        page.cards(
            [
                page.figure(
                    figures.nulls(run, a),
                    f"null-{slug(a)}",
                    f"{a}: the statistic under each of {b:,} permutations (grey) and as observed (line). p is unadjusted.",
                )
                for a in run.audios
                if run.ranked(run.pairs_of(a))
            ]
        )
    if len(run.curve.ks) > 1:
        page.heading("Accuracy against k")
        page.cards(
            [
                page.figure(
                    figures.curves(run, a), f"curve-{slug(a)}", f"{a}: share of clips whose true text is among the k nearest of all {n}."
                )
                for a in run.audios
                if run.ranked(run.pairs_of(a))
            ]
        )
    _layers(page, run)
    _families(page, run)
    ranks.add_order(page, run)
    _compare_texts(page, run, found)
    _classes(page, run)
    _maps(page, run, maps)
    page.heading("Methods, ready to paste")
    paragraph = methods.paragraph(run, bool(maps))
    page.add(f"<blockquote>{escape(paragraph)}</blockquote>")
    page.heading("References", 3)
    page.items(methods.citations(paragraph), "ol", "refs")
    page.heading("Caveats")
    page.items([*methods.caveats(run), *probes.caveats(run)])
    if run.notes:
        page.heading("Not shown")
        page.items(run.notes)
    _provenance(page, run)
    return page


def _ceilings(run: RunData, audio: str) -> str:
    """What the lines of the references are, for the caption of the bars."""
    if not (found := figures.ceilings_of(run, audio)):
        return ""
    values = "; ".join(f"{r['text']} {number(r['statistic'])}" for r in found)
    return f" Dotted: class means of sounds in place of the texts ({values}), a reference of what is within reach and not a bound."


def _title(run: RunData) -> str:
    if not run.n_permutations:
        return "Accuracy on unseen classes, without a control"
    models = run.models
    found = [r for r in models if r["pvalue_maxT"] <= 0.05]
    alone = [r for r in found if r.get("beats_baseline") is False]
    if len(models) == 1:
        answer = verdict(models[0]["pvalue_maxT"], models[0].get("beats_baseline"), models[0].get("baseline_words", ""))
        return answer[0].upper() + answer[1:]
    what = "pairs" if len(run.probes) == 1 else "combinations of pair and probe"
    if not alone:
        return f"The geometry carries over in {len(found)} of {len(models)} {what}"
    words = {r["baseline_words"] for r in alone}
    than = words.pop() if len(words) == 1 else "their baselines do"
    return f"The geometry carries over in {len(found)} of {len(models)} {what}, in {len(alone)} of them no more than {than}"


def _counted(run: RunData) -> str:
    k = len(run.probes)
    return plural(len(run.models) // k, "pair") + (f" × {plural(k, 'probe')}" if k > 1 else "")


def _answers(page: Page, run: RunData) -> None:
    lines = []
    # A long list starts with what was found; a short one keeps the order of the run.
    order = sorted(run.models, key=lambda r: r["pvalue_maxT"]) if len(run.models) > 12 else run.models
    for record in order:
        yes, text = sentence(record, len(run.records), run.lower_is_better, run.stopped)
        name, _, rest = text.partition(": ")
        lines.append(f"<li{css_class('yes' if yes else '')}><b>{escape(name)}</b>: {escape(rest)}</li>")
    page.add('<ul class="answers">' + "".join(lines[:12]) + "</ul>")
    if len(lines) > 12:
        page.add(f'<details><summary>the other {len(lines) - 12} pairs</summary><ul class="answers">{"".join(lines[12:])}</ul></details>')


def add_results(page: Page, run: RunData, level: int = 2) -> None:
    """The table of all pairs of a run, under its heading."""
    page.heading("Results", level)
    tail, intervals = any(r.get("tail") for r in run.records), any(i.low == i.low for i in run.intervals)
    against = any("beats_baseline" in r for r in run.records)
    calibrated = any("calibrated" in r for r in run.records)
    header = [
        "text",
        "audio",
        run.statistic,
        *(["95% over fresh classes"] if intervals else []),
        "± SE",
        "control",
        "selectivity",
        *(["calibrated"] if calibrated else []),
        "k/C" if run.statistic.startswith("acc@") else "random ranking",
        "p",
        "95% interval of p",
        "p max-T",
        *(["p against baseline"] if against else []),
        "p step-down",
        *(["p tail fit"] if tail else []),
    ]
    rows = []
    for i, r in enumerate(run.records):
        t = r.get("tail")
        rows.append(
            [
                r["text"],
                r["audio"],
                number(r["statistic"]),
                *([_interval(run.intervals[i])] if intervals else []),
                number(r["sem_corrected"]),
                number(r["null_mean"]),
                number(r.get("selectivity")),
                *([number(r.get("calibrated"))] if calibrated else []),
                number(r["chance"]),
                pvalue(r["pvalue"]),
                f"{pvalue(r['pvalue_low'])}–{pvalue(r['pvalue_high'])}",
                pvalue(r["pvalue_maxT"]),
                *([_against(r)] if against else []),
                pvalue(r.get("pvalue_stepdown")),
                *([_tail(t)] if tail else []),
            ]
        )
    at = header.index("p max-T")
    page.table(
        header,
        rows,
        2,
        "p is the share of permutations, the observed run included, that are at least as good; max-T and "
        "step-down are adjusted for all pairs. SE: corrected for overlapping splits. Selectivity: "
        "observed minus control."
        + (" 95%: T₀ ± t × SE, for fresh classes and training on them." if intervals else "")
        + (
            " Against baseline: the best surface baseline of the run, paired over splits and permutations, one-sided, not adjusted."
            if against
            else ""
        ),
        bold=lambda row, column: column == at and run.records[row]["pvalue_maxT"] <= 0.05 and run.n_permutations > 0,
    )


def _against(record: dict[str, Any]) -> str:
    """The p against the best baseline; for a baseline what it is."""
    return "baseline" if record.get("role") == "baseline" else pvalue(record.get("pvalue_baseline"))


def _tail(fit: dict[str, Any] | None) -> str:
    return "–" if not fit else pvalue(fit["pvalue"]) + ("" if fit["good"] else " (poor fit)")


def _layers(page: Page, run: RunData) -> None:
    curves = run.layer_curves()
    if not curves:
        return
    page.heading("Layers")
    page.cards(
        [
            page.figure(figures.layer_curves(run, a), f"layers-{slug(a)}", f"{a}: {run.statistic} of each layer against its own control.")
            for a in curves
        ]
    )
    for family in run.summary.get("families", []):
        if family["name"].startswith("best layer"):
            page.table(
                ["model × audio", "best layer", "p max-T", "p step-down"],
                [[t["test"], t["best_layer"], pvalue(t["pvalue_maxT"]), pvalue(t["pvalue_stepdown"])] for t in family["tests"]],
                1,
                "The best layer was chosen anew inside every permutation, so choosing it is paid for.",
            )


def _families(page: Page, run: RunData) -> None:
    families = [f for f in run.summary.get("families", []) if f["n_tests"] > 1]
    if not families:
        return
    page.heading("Families of tests")
    rows = []
    for f in families:
        counts = [
            sum(t[n] <= 0.05 for t in f["tests"]) if n in f["tests"][0] else "–"
            for n in ("pvalue", "pvalue_maxT", "pvalue_stepdown", "pvalue_holm", "pvalue_bh")
        ]
        rows.append([f["name"], f["n_tests"], *counts])
    page.table(
        ["family", "tests", "p ≤ .05 unadjusted", "max-T", "step-down", "Holm", "BH"],
        rows,
        1,
        "How many tests of each family reach .05 under each adjustment: max-T, step-down and Holm bound the chance of any "
        "false positive, Benjamini-Hochberg (BH) the share of false ones. All values are in families.csv.",
    )


def _compare_texts(page: Page, run: RunData, found: list[Comparison]) -> None:
    if not found:
        return
    page.heading("Language models against each other")
    rows = tables.comparison_rows(found)
    order = sorted(range(len(found)), key=lambda i: rows[i][8] if rows[i][8] is not None else 2.0)[:15]
    page.table(
        ["first", "second", "difference", "95% interval", "p", "p Holm", "p sign-flip, given these probes"],
        [
            [
                rows[i][0],
                rows[i][1],
                number(rows[i][2]),
                between(rows[i][3], rows[i][4]),
                pvalue(rows[i][8]),
                pvalue(rows[i][9]),
                pvalue(rows[i][10]),
            ]
            for i in order
        ],
        2,
        f"Paired over the same {plural(run.identity['splits'], 'split')}, variance corrected for their overlap (Nadeau & "
        f"Bengio); a positive difference means that the first does better. {sign_flip_note(run, found)}"
        + (f" The {len(order)} clearest of {len(found)}; all are in comparisons.csv." if len(found) > len(order) else ""),
    )


def sign_flip_note(run: RunData, found: list[Comparison]) -> str:
    """What the sign-flip test beside the t-test compares, whatever the statistic; nothing where there is none."""
    return (
        f"The sign-flip test takes classes as the unit, by the acc@{run.outcomes.k} of each, and is conditional on the trained "
        "probes: over fresh classes it can reject too often, so the corrected t-test comes first."
        if any(c.sign_flip is not None for c in found)
        else ""
    )


def _interval(interval: Interval) -> str:
    """Its ends; a dash where there is none: with a single split, and for a similarity."""
    return "–" if interval.low != interval.low else f"{interval.low:.3f}–{interval.high:.3f}"


def _classes(page: Page, run: RunData) -> None:
    if run.observed is None and not run.confusions:
        return
    strongest = [run.strongest(ranked) for a in run.audios if (ranked := run.ranked(run.pairs_of(a)))][:6]
    page.heading("Classes")
    if len(strongest) < len(run.records):
        page.text(
            "For each audio model the language model furthest above its control is shown"
            + (f" (the first {len(strongest)} audio models)" if len(strongest) < len(run.audios) else "")
            + "; all pairs "
            "are in the CSV files.",
            soft=True,
        )
    if run.categories and run.observed is not None and not figures.category_rows(run, strongest[0]):
        run.notes.append("Accuracy by category is not shown: no class of the run is in the file of categories.")
    cards = []
    for i in strongest if run.observed is not None else []:
        r = run.records[i]
        name, file = f"{r['text']} × {r['audio']}", f"{slug(r['text'])}-{slug(r['audio'])}"
        cards.append(
            page.figure(figures.classes(run, i), f"classes-{file}", f"{name}: the classes found best and worst, each while it was unseen.")
        )
        if figures.category_rows(run, i):
            cards.append(
                page.figure(
                    figures.categories(run, i),
                    f"categories-{file}",
                    f"{name}: by category, mean over its classes, with a 95% bootstrap interval over classes.",
                )
            )
    page.cards(cards)
    for i in strongest:
        if run.confusions.get(i):
            page.heading(f"{run.records[i]['text']} × {run.records[i]['audio']}: what was retrieved instead", 3)
            page.table(
                ["heard", "retrieved first instead", "share of its clips"],
                [[a.replace("_", " "), c.replace("_", " "), f"{s:.0%}"] for a, c, s in run.confusions[i]],
                2,
                "The most complete confusions.",
            )


def _maps(page: Page, run: RunData, maps: list[tuple[int, Any]]) -> None:
    if not maps:
        return
    page.heading("Two geometries on one map")
    html = []
    for i, (test, names) in maps:
        r = run.records[i]
        html.append(
            page.figure(
                figures.procrustes(test, names, run.categories, figures.short(f"{r['text']} × {r['audio']}", 44)),
                f"procrustes-{slug(r['text'])}-{slug(r['audio'])}",
                f"Text vectors and mean sounds of {len(names)} classes after an orthogonal Procrustes rotation in {test.components} "
                f"principal components, projected on two. m² = {test.m2:.3f} of the squared distance is left, correlation "
                f"{test.correlation:.3f}, {pvalue(test.pvalue, relation=True)} by permuting the text rows {len(test.null):,} times "
                "(PROTEST). All classes take part in this alignment; it is a picture, the probe's test on unseen classes is the "
                "evidence.",
            )
        )
    page.cards(html)


def _provenance(page: Page, run: RunData) -> None:
    page.heading("Provenance")
    identity, versions = run.identity, run.manifest.get("versions", {})
    facts = [
        ("run directory", run.name),
        ("backend", f"{identity['backend']}, {run.manifest.get('device', '')}, {run.manifest.get('precision', '')}"),
        ("seed", identity["seed"]),
        *((("tried", probes.said(run)),) if run.tried is not None else ()),
        ("probes", f"{run.summary.get('n_jobs', 0):,}"),
        ("control", run.summary.get("null", "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("machine", run.manifest.get("machine", "")),
        *(
            (f"{t['side']} table {t['name']}", f"{t['rows']:,} rows, width {t['width']}, sha256 {t['digest'][:16]}…")
            for t in identity["inputs"]
        ),
    ]
    page.add("<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts) + "</dl>")
