"""The figures: matplotlib, one journal column wide, colours that the colour-blind can tell apart (Okabe & Ito 2008).

Each function takes a `RunData` and gives a matplotlib Figure, which is written as SVG and PDF and put into the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..protocol.probes import is_similarity
from .data import RunData
from .text import number, pvalue

COLUMN = 3.35  # inches: one column of a journal
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# Text, axes and rules have colours of their own, which the page replaces by those of its theme.
INK, RULE, CONTROL = "#1b1c1d", "#d8d9da", "#9a9b9c"
STYLE: Any = {  # matplotlib types the keys as literals, others in every version
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Type 42 fonts, which publishers ask for, and one weight only: embedding each takes a quarter of a second.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "fastprobe",
    "savefig.transparent": True,
    "path.simplify": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.6,
    "font.family": "sans-serif",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _new(height: float, rows: int = 1, **kwargs: Any):
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    return figure, figure.subplots(rows, 1, **kwargs)


def short(name: str, limit: int = 24) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= limit else name[: limit - 9] + "…" + name[-8:]


def stars(p: float) -> str:
    """* below .05, ** below .01, *** below .001."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


@rc_context(STYLE)
def accuracy(run: RunData, audio: str) -> Figure:
    """The paper's figure: a bar per language model, its permuted control, both error bars, chance, significance; probe by probe."""
    groups = run.by_probe(run.ranked(run.pairs_of(audio)))
    pairs = [i for _, members in groups for i in members]
    # With several probes and several models each probe has a line of its own above its models.
    headed = len(groups) > 1 and len(pairs) > len(groups)
    height = len(pairs) + (len(groups) if headed else 0)
    places = [(probe, i) for probe, members in groups for i in ([None] if headed else []) + members]
    at_line = dict(zip(places, range(height - 1, -1, -1)))
    y = np.array([at_line[place] for place in places if place[1] is not None])
    figure, ax = _new(1.3 + 0.36 * height)
    for probe, i in places:
        if i is None:
            ax.text(0, at_line[probe, None] - 0.15, short(probe, 44), va="center")
    observed = np.array([run.records[i]["statistic"] for i in pairs])
    has_null = run.n_permutations > 0
    ax.barh(y + (0.19 if has_null else 0), observed, 0.38, color=BLUE, label="observed")
    ends = observed.copy()
    if has_null:
        ax.barh(
            y - 0.19,
            [run.records[i]["null_mean"] for i in pairs],
            0.38,
            color=CONTROL,
            xerr=[run.records[i]["null_sd"] or 0 for i in pairs],
            label="control (null mean, sd)",
            error_kw={"lw": 0.8, "ecolor": INK},
        )
    for row, i in zip(y, pairs):
        r, at = run.records[i], row + (0.19 if has_null else 0)
        if r["sem_corrected"] is not None:
            ax.errorbar(r["statistic"], at, xerr=r["sem_corrected"], color=INK, lw=0.7, capsize=2, capthick=0.7)
            ax.errorbar(r["statistic"], at, xerr=r["sem"], color=INK, lw=2.2)
            ends[pairs.index(i)] += r["sem_corrected"]
    chance = run.records[pairs[0]]["chance"]
    controls = [run.records[i]["null_mean"] + (run.records[i]["null_sd"] or 0) for i in pairs] if has_null else []
    references = ceilings_of(run, audio)
    span = max(*ends, *controls, *(r["statistic"] for r in references), chance or 0, 1e-9)
    for row, i, end in zip(y, pairs, ends):
        if has_null and (mark := stars(run.records[i]["pvalue_maxT"])):
            ax.text(end + 0.02 * span, row + 0.12, mark, va="center", fontsize=8.5)
    if chance is not None:
        ax.axvline(chance, color=RED, lw=1, ls=(0, (3, 2)), label="chance of a random ranking")
    for r in references:
        own = r["text"].startswith(f"{audio}, half")
        label = f"reference: {'own' if own else 'other'} sounds"
        ax.axvline(r["statistic"], color=GREEN if own else PURPLE, lw=1, ls=(0, (1, 2)), label=label)
    alone = len(groups) > 1 and not headed
    ax.set_yticks(y, [short(run.records[i]["probe"] if alone else run.table_of(i)) for i in pairs])
    ax.set_xlim(0, span * 1.16)
    ax.set_ylim(-0.6, height - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.set_title(short(audio, 44))
    ax.set_xlabel(f"{run.statistic} on unseen classes" + ("\n(smaller is better)" if run.lower_is_better else ""))
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.4, columnspacing=1.2)
    return figure


def ceilings_of(run: RunData, audio: str) -> list[dict[str, Any]]:
    """The references that are drawn on an audio table's bars: its own sounds in place of the texts, and the best other table's."""
    here = [r for r in run.ceilings if r["audio"] == audio and not is_similarity(r["probe"])]
    best = sorted(here, key=lambda r: r["statistic"], reverse=not run.lower_is_better)
    own = [r for r in best if r["text"].startswith(f"{audio}, half")]
    return [*own[:1], *[r for r in best if r not in own][:1]]


@rc_context(STYLE)
def nulls(run: RunData, audio: str) -> Figure:
    """The null distribution of every pair as a ridge, with the observed value on it."""
    pairs = run.ranked(run.pairs_of(audio))
    figure, ax = _new(0.85 + 0.5 * len(pairs))
    values = run.t[pairs]
    low, high = float(values.min()), float(values.max())
    bins = np.linspace(low, high + 1e-12, 61)
    for row, i in enumerate(pairs):
        base = len(pairs) - 1 - row
        counts = np.histogram(run.t[i, 1:], bins)[0]
        ax.stairs(base + 0.62 * counts / max(counts.max(), 1), bins, baseline=base, fill=True, color=CONTROL)
        ax.plot([run.t[i, 0]] * 2, [base, base + 0.88], color=RED, lw=2, solid_capstyle="butt")
        # Above the highest bar, beside the end of the line.
        near_end = run.t[i, 0] > low + 0.72 * (high - low)
        ax.annotate(
            pvalue(run.records[i]["pvalue"], relation=True),
            (run.t[i, 0], base + 0.77),
            xytext=(-3 if near_end else 3, 0),
            textcoords="offset points",
            ha="right" if near_end else "left",
            fontsize=7,
            va="center",
        )
    ax.set_yticks(np.arange(len(pairs)) + 0.2, [short(run.records[i]["text"]) for i in pairs[::-1]])
    ax.tick_params(axis="y", length=0)
    ax.set_title(short(audio, 44))
    ax.set_xlabel(run.statistic)
    ax.set_ylim(-0.1, len(pairs))
    return figure


@rc_context(STYLE)
def curves(run: RunData, audio: str) -> Figure:
    """acc@k against k, with the middle 95% of the nulls and k/C."""
    pairs = run.ranked(run.pairs_of(audio))
    figure, ax = _new(2.5)
    ks, c = np.array(run.curve.ks), run.curve
    if np.isfinite(c.null_low).all() and run.n_permutations > 0:
        ax.fill_between(
            ks, c.null_low[pairs].min(axis=0), c.null_high[pairs].max(axis=0), color=CONTROL, alpha=0.45, lw=0, label="controls, middle 95%"
        )
    best = sorted(pairs, key=lambda i: -c.observed[i].mean())[: len(PALETTE)]
    for i in pairs:
        if i not in best:
            ax.plot(ks, c.observed[i], color=CONTROL, lw=0.7)
    for i, colour, marker in zip(best, PALETTE, "osD^vP"):
        ax.plot(ks, c.observed[i], color=colour, marker=marker, ms=3.2, label=short(run.records[i]["text"]))
    ax.plot(ks, ks / run.summary["n_classes"], color=INK, lw=0.9, ls=(0, (3, 2)), label="k/C")
    ax.set(xlabel="k", ylabel="acc@k on unseen classes", ylim=(0, None))
    ax.set_xticks(ks)
    ax.grid(axis="y")
    ax.set_title(short(audio, 44))
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.8, columnspacing=1.0)
    return figure


@rc_context(STYLE)
def classes(run: RunData, pair: int, shown: int = 10) -> Figure:
    """The best and the worst classes of a pair."""
    accuracies = run.outcomes.per_class(pair)
    order = np.flatnonzero(np.isfinite(accuracies))
    order = order[np.argsort(-accuracies[order], kind="stable")]
    several = len(order) > 2 * shown
    picked = np.r_[order[:shown], order[-shown:]] if several else order
    figure, ax = _new(0.75 + 0.145 * (len(picked) + (1 if several else 0)))
    y = -np.arange(len(picked), dtype=float)
    if several:
        y[shown:] -= 1
        ax.text(0.02, -shown, f"… {len(order) - 2 * shown} classes between", va="center", fontsize=7)
    ax.hlines(y, 0, accuracies[picked], color=BLUE, lw=1.5)
    ax.plot(accuracies[picked], y, "o", color=BLUE, ms=4, clip_on=False)
    mean = float(np.nanmean(accuracies))
    for top, bottom in ((0.6, -shown + 0.5), (-shown - 0.5, y[-1] - 0.6)) if several else ((0.6, y[-1] - 0.6),):
        ax.plot([mean, mean], [top, bottom], color=RED, lw=0.9, ls=(0, (3, 2)), zorder=0)
    side = mean > 0.7
    ax.annotate(
        f"mean {number(mean)}",
        (mean, 1.05),
        xytext=(-3 if side else 3, 0),
        textcoords="offset points",
        color=RED,
        fontsize=7,
        ha="right" if side else "left",
        va="center",
    )
    ax.set_yticks(y, [short(str(run.outcomes.classes[i]).replace("_", " "), 28) for i in picked])
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 1), xlabel=f"acc@{run.outcomes.k} on the class while unseen", ylim=(y[-1] - 0.8, 1.6))
    return figure


def category_rows(run: RunData, pair: int) -> list[tuple[str, int, float, float, float]]:
    """(category, classes, mean accuracy, low, high) of a pair; classes are drawn again within the category."""
    accuracies = run.outcomes.per_class(pair)
    names = np.array([run.categories.get(str(c), "") for c in run.outcomes.classes])
    out = []
    for category in sorted(set(names) - {""}):
        values = accuracies[(names == category) & np.isfinite(accuracies)]
        if len(values) == 0:
            continue
        draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
        low, high = np.percentile(draws, [2.5, 97.5]) if len(values) > 1 else (np.nan, np.nan)
        out.append((category, len(values), float(values.mean()), float(low), float(high)))
    return sorted(out, key=lambda row: -row[2])


@rc_context(STYLE)
def categories(run: RunData, pair: int) -> Figure:
    """Mean accuracy of each category with a class-bootstrap interval."""
    rows = category_rows(run, pair)
    figure, ax = _new(0.7 + 0.2 * len(rows))
    y = -np.arange(len(rows))
    for at, (_, _, mean, low, high) in zip(y, rows):
        if np.isfinite(low):
            ax.plot([low, high], [at, at], color=BLUE, lw=1.2)
        ax.plot(mean, at, "o", color=BLUE, ms=4.5, clip_on=False)
    ax.set_yticks(y, [f"{short(name, 26)} ({n})" for name, n, *_ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, None), xlabel=f"acc@{run.outcomes.k}, mean over classes (their number)", ylim=(y[-1] - 0.7, 0.7))
    ax.grid(axis="x")
    return figure


@rc_context(STYLE)
def layer_curves(run: RunData, audio: str) -> Figure:
    """The statistic against the layer, with the middle 95% of each layer's null."""
    models = run.layer_curves()[audio]
    figure, ax = _new(2.4)
    for (model, points), colour, marker in zip(models, PALETTE, "osD^vP"):
        x, pairs = np.array([p[0] for p in points]), [p[1] for p in points]
        ax.plot(x, run.t[pairs, 0], color=colour, marker=marker, ms=3, label=short(model))
        if run.n_permutations > 0:
            low, high = np.percentile(run.t[pairs, 1:], [2.5, 97.5], axis=1)
            ax.fill_between(x, low, high, color=colour, alpha=0.22, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    ax.set(xlabel="layer (band: middle 95% of the control)", ylabel=run.statistic)
    ax.set_title(short(audio, 44))
    ax.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _hull(points: np.ndarray) -> np.ndarray | None:
    from scipy.spatial import ConvexHull, QhullError

    if len(points) < 3:
        return None
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # on one line
        return None


@rc_context(STYLE)
def procrustes(test, names: np.ndarray, category: dict[str, str], title: str) -> Figure:
    """Text and audio centroids on one plane after the rotation, by category, and a zoom into the densest part."""
    from .procrustes import principal_plane

    text, audio, share = principal_plane(test.x, test.y)
    groups = np.array([category.get(str(n), "") for n in names])
    common = [g for g, _ in sorted(((g, np.sum(groups == g)) for g in set(groups) - {""}), key=lambda p: -p[1])][: len(PALETTE)]
    colour = {g: PALETTE[i] for i, g in enumerate(common)}
    figure, axes = _new(6.4, 2)
    for g in common:
        if (hull := _hull(np.concatenate([text[groups == g], audio[groups == g]]))) is not None:
            axes[0].fill(*hull.T, color=colour[g], alpha=0.13, lw=0)
    # The zoom: the class whose eighth part of neighbours is nearest, and these neighbours.
    middle = (text + audio) / 2
    near = min(max(len(names) // 8, 5), 14, len(names) - 1)
    distance = np.linalg.norm(middle[:, None] - middle[None], axis=2)
    centre = int(np.sort(distance, axis=1)[:, near].argmin())
    inside = np.argsort(distance[centre])[: near + 1]
    for ax, rows, size in ((axes[0], np.arange(len(names)), 9), (axes[1], inside, 20)):
        ax.plot(*np.stack([text[rows], audio[rows]]).transpose(2, 0, 1), color=RULE, lw=0.6, zorder=1)
        for g in [*common, None]:
            these = rows[[(groups[r] == g) if g is not None else (groups[r] not in colour) for r in rows]]
            if not len(these):
                continue
            c = colour.get(g, CONTROL if common else BLUE)
            ax.scatter(*text[these].T, s=size, marker="o", color=c, lw=0, zorder=2)
            ax.scatter(*audio[these].T, s=size, marker="^", facecolors="none", edgecolors=c, lw=0.9, zorder=2)
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
    _label_apart(axes[1], text[inside], [str(names[r]).replace("_", " ") for r in inside])
    axes[0].set_title(title)
    axes[0].set_xlabel(
        f"PC1 ({share[0]:.0%}), PC2 ({share[1]:.0%});  m² = {test.m2:.3f}, {pvalue(test.pvalue, relation=True)} "
        f"(PROTEST, {len(test.null):,})"
    )
    axes[1].set_title("zoom into the densest part")
    handles = [
        axes[0].scatter([], [], s=12, marker="o", color=CONTROL, label="text"),
        axes[0].scatter([], [], s=12, marker="^", facecolors="none", edgecolors=CONTROL, label="sound (centroid)"),
        *(axes[0].scatter([], [], s=14, marker="s", color=colour[g], label=short(g, 30)) for g in common),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.2, columnspacing=1.0)
    return figure


def _label_apart(ax, points: np.ndarray, names: list[str]) -> None:
    """Names beside their points, pushed up and down until no two that share a stretch of the axis overlap."""
    (low, high), (left, right) = ax.get_ylim(), ax.get_xlim()
    gap, reach = (high - low) / 18, (right - left) * 0.42
    ends = points[:, 0] > (left + right) / 2
    y = points[:, 1].astype(float).copy()
    for _ in range(60):
        moved = False
        for i in range(len(y)):
            for j in range(i):
                overlap = gap - abs(y[i] - y[j])
                if overlap > 1e-9 * gap and abs(points[i, 0] - points[j, 0]) < reach:
                    up = 1 if (y[i], points[i, 1], i) > (y[j], points[j, 1], j) else -1
                    y[i], y[j], moved = y[i] + up * overlap / 2, y[j] - up * overlap / 2, True
        if not moved:
            break
    for i, name in enumerate(names):
        ax.annotate(
            short(name, 22),
            points[i],
            xytext=(points[i, 0] + (-1 if ends[i] else 1) * (right - left) / 40, y[i]),
            fontsize=6.5,
            ha="right" if ends[i] else "left",
            va="center",
            annotation_clip=False,
        )
    ax.set_ylim(min(low, y.min() - gap), max(high, y.max() + gap))


@rc_context(STYLE)
def compared(first: RunData, second: RunData, matched: list[tuple[int, int]]) -> Figure:
    """Two runs: every pair that both have, joined by a line."""
    figure, ax = _new(0.85 + 0.24 * len(matched))
    y = np.arange(len(matched))[::-1]
    a, b = (np.array([run.records[m[j]]["statistic"] for m in matched]) for j, run in enumerate((first, second)))
    ax.hlines(y, a, b, color=CONTROL, lw=1)
    ax.plot(a, y, "o", color=BLUE, ms=4.5, label=short(first.name, 30))
    ax.plot(b, y, "D", color=RED, ms=4, label=short(second.name, 30))
    ax.set_yticks(y, [short(f"{first.records[i]['text']} x {first.records[i]['audio']}", 34) for i, _ in matched])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"{first.statistic} on unseen classes")
    ax.grid(axis="x")
    ax.margins(x=0.08)
    ax.set_ylim(-0.6, len(matched) - 0.4)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@rc_context(STYLE)
def evidence(run: RunData) -> Figure:
    """All pairs at a glance: how far each observed value lies above its null, in null standard deviations."""
    z = run.distance().reshape(len(run.audios), -1).T
    figure, ax = _new(0.9 + 0.17 * len(run.texts))
    image = ax.imshow(z, cmap="cividis", aspect="auto", vmin=0)
    ax.set_xticks(range(len(run.audios)), [short(a, 14) for a in run.audios], rotation=40, ha="right")
    ax.set_yticks(range(len(run.texts)), [short(t) for t in run.texts])
    figure.colorbar(image, ax=ax, label="null sd above the control", pad=0.02)
    return figure


def is_grid(run: RunData) -> bool:
    """Whether every text table was run with every audio table, in order."""
    return [(r["audio"], r["text"]) for r in run.records] == [(a, t) for a in run.audios for t in run.texts]
