"""The page that sets two runs side by side."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from ..statistics.comparison import Comparison
from . import figures, methods, tables
from .data import RunData
from .html import Page
from .page import add_results, sign_flip_note
from .text import between, number, plural, pvalue


def compared(first: RunData, second: RunData, matched: list[tuple[int, int]], found: list[Comparison], why_not: str | None) -> Page:
    """The page that sets two runs side by side."""
    page = Page(f"fastprobe: {first.name} and {second.name}")
    page.add(f"<h1>{escape(first.name)} and {escape(second.name)}</h1>")
    comparable = bool(matched) and first.statistic == second.statistic
    if comparable:
        difference = np.array([first.records[i]["statistic"] - second.records[j]["statistic"] for i, j in matched])
        better = (difference > 0) ^ first.lower_is_better
        page.text(
            f"{plural(len(matched), 'pair')} in both. {first.name} does better in {int(better[difference != 0].sum())}, "
            f"{second.name} in {int((~better)[difference != 0].sum())}; mean difference {number(float(difference.mean()))} "
            f"in {first.statistic}."
        )
    elif not matched:
        page.text("The two runs have no pair in common and their numbers of pairs differ, so no pair can be set beside another.")
    if why_not:
        page.text(why_not)
    rows = tables.comparison_rows(found)
    body = []
    for at, (i, j) in enumerate(matched if comparable else []):
        a, b = first.records[i], second.records[j]
        row = [
            " | ".join(dict.fromkeys(f"{r['text']} × {r['audio']}" for r in (a, b))),
            number(a["statistic"]),
            number(b["statistic"]),
            number(a["statistic"] - b["statistic"]),
            pvalue(a["pvalue_maxT"]),
            pvalue(b["pvalue_maxT"]),
        ]
        if found:
            row += [between(rows[at][3], rows[at][4]), pvalue(rows[at][8]), pvalue(rows[at][9]), pvalue(rows[at][10])]
        body.append(row)
    if comparable:
        page.cards([page.figure(figures.compared(first, second, matched), "compared", f"{first.statistic} of both runs.")])
        page.table(
            [
                "pair",
                first.name,
                second.name,
                "difference",
                f"p max-T, {first.name}",
                f"p max-T, {second.name}",
                *(["95% interval", "p", "p Holm", "p sign-flip, given these probes"] if found else []),
            ],
            body,
            1,
            "Interval and p of the difference are paired over splits and corrected for their overlap (Nadeau & Bengio); "
            f"there a positive difference means that the first run does better. {sign_flip_note(first, found)}"
            if found
            else "",
        )
    page.heading("What differs between the runs")
    differences = settings_that_differ(first, second)
    if differences:
        page.table(["setting", first.name, second.name], differences, 3)
    else:
        page.text("Nothing but the data: all settings are equal.")
    for run in (first, second):
        page.heading(run.name)
        add_results(page, run, 3)
        page.add(f"<blockquote>{escape(methods.paragraph(run))}</blockquote>")
    return page


def settings_that_differ(first: RunData, second: RunData) -> list[list[str]]:
    """Rows (setting, value in the first, value in the second)."""

    def flat(run: RunData) -> dict[str, Any]:
        own = {k: v for k, v in run.identity.items() if k not in ("pairs", "inputs", "probe", "groups", "categories", "covariates")}
        tables_ = {f"{t['side']} table {t['name']}": t["digest"][:16] for t in run.identity["inputs"]}
        return {
            **own,
            "permutations": run.n_permutations,
            "statistic": run.statistic,
            "classes": run.summary["n_classes"],
            "covariates": ", ".join(run.identity.get("covariates", {}).get("names", ())) or "–",
            **{f"probe.{k}": v for k, v in run.identity["probe"].items()},
            **tables_,
        }

    a, b = flat(first), flat(second)
    return [[k, str(a.get(k, "–")), str(b.get(k, "–"))] for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)]
