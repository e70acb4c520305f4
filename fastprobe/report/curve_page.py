"""The page of a curve: what more training classes, clips or rivals change, each point against its own null."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..protocol.metrics import metric_of
from ..protocol.probes import is_similarity
from ..runs.curve import Curve
from . import figures
from .html import Page
from .text import between, number, plural, pvalue

WORDS = {
    "train_fraction": "share of the classes trained on",
    "clips": "clips of each class",
    "gallery_size": "texts that compete",
}


def lines_of(curve: Curve, along: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Records that differ in one field only, as (name, records in the order of that field)."""
    rest = [f for f in curve.fields if f != along]
    audios, probes = ({r[name] for r in curve.records} for name in ("audio", "probe"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for r in curve.records:
        name = r["text"] + (f" × {r['audio']}" if len(audios) > 1 else "")
        name += f", {r['probe']}" if len(probes) > 1 else ""
        name += "".join(f", {f} {r[f]:g}" for f in rest)
        groups.setdefault(name, []).append(r)
    return [(name, sorted(some, key=lambda r: r[along])) for name, some in groups.items()]


@rc_context(figures.STYLE)
def drawing(curve: Curve, along: str) -> Figure:
    """A line for each text with the band of its null; stars where the adjusted p is small."""
    lines = lines_of(curve, along)
    columns = 1 if len(lines) == 1 else 2
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(figures.COLUMN * (1 if columns == 1 else 1.6), 0.5 + 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=len({r["metric"] for r in curve.records}) == 1)
    for ax, (name, records) in zip(axes.flat, lines):
        x = np.array([r[along] for r in records], float)
        ax.fill_between(
            x, [r["null_low"] for r in records], [r["null_high"] for r in records], color=figures.RULE, lw=0, label="null, middle 95%"
        )
        ax.plot(x, [r["null_mean"] for r in records], color=figures.CONTROL, lw=0.8)
        y = [r["statistic"] for r in records]
        ax.plot(x, y, color=figures.BLUE, marker="o", ms=3, label="observed")
        if all(r["low"] is not None and np.isfinite(r["low"]) for r in records):
            ax.vlines(x, [r["low"] for r in records], [r["high"] for r in records], color=figures.BLUE, lw=0.8)
        for a, b, r in zip(x, y, records):
            ax.annotate(figures.stars(r["pvalue_maxT"]), (a, b), (0, 3), textcoords="offset points", ha="center")
        ax.set_title(figures.short(name, 40))
        ax.set_ylabel(records[0]["metric"])
        if not is_similarity(records[0]["probe"]) and metric_of(records[0]["metric"]).proportion:
            ax.set_ylim(bottom=0)  # an interval may reach below, a share cannot
    for ax in list(axes.flat)[len(lines) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel(WORDS.get(along, along))
    axes.flat[0].legend(loc="best")
    return figure


def page_of(curve: Curve, name: str) -> Page:
    """The page that `fastprobe report` writes of a curve."""
    page = Page(f"fastprobe: {name}")
    page.add(f"<h1>{escape(name)}</h1>")
    words = " and ".join(WORDS.get(f, f) for f in curve.fields)
    page.text(
        f"The same test at {plural(len(curve.points), 'point')}: {words}. Every point has a null of its own, from the same permutations, "
        f"so that the p-values are adjusted for all {len(curve.records)} lines of the table together (max-T)."
    )
    page.cards(
        [
            page.figure(
                drawing(curve, along),
                f"curve-{along}",
                "Observed values with their 95% interval over fresh classes, over the middle 95% of the null; stars: adjusted p below "
                f".05, .01, .001. Across: {WORDS.get(along, along)}.",
            )
            for along in curve.fields
        ]
    )
    several = len({r["probe"] for r in curve.records}) > 1
    header = [
        *curve.fields,
        "text",
        "audio",
        *(["probe"] if several else []),
        "observed",
        "95% interval",
        "null mean",
        "null, 95%",
        "p",
        "p max-T",
    ]
    body = [
        [
            *(f"{r[f]:g}" for f in curve.fields),
            r["text"],
            r["audio"],
            *([r["probe"]] if several else []),
            number(r["statistic"]),
            between(r["low"], r["high"]),
            number(r["null_mean"]),
            between(r["null_low"], r["null_high"]),
            pvalue(r["pvalue"]),
            pvalue(r["pvalue_maxT"]),
        ]
        for r in curve.records
    ]
    page.heading("Every point")
    page.table(header, body, len(curve.fields) + 2 + several)
    page.text("Each point is a run of its own in a folder below this one; fastprobe report shows its pairs in full.")
    return page
