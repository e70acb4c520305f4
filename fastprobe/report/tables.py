"""Tables of a report, as CSV and as LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..randomness import BOOTSTRAP, generator
from ..statistics.comparison import Comparison, compare_many
from .data import RunData, n_classes_of
from .text import number, pvalue

Rows = list[list[Any]]


def results(run: RunData) -> tuple[list[str], Rows]:
    """One row per pair, with everything summary.json says of it in plain columns."""
    names = [
        "text",
        "audio",
        "metric",
        "statistic",
        "null_mean",
        "null_sd",
        "selectivity",
        "calibrated",
        "sem",
        "sem_corrected",
        "chance",
        "pvalue",
        "pvalue_low",
        "pvalue_high",
        "pvalue_maxT",
        "pvalue_stepdown",
        "pvalue_holm",
        "pvalue_bh",
        "role",
        "beats_baseline",
        "baseline",
        "baseline_difference",
        "pvalue_baseline",
        "n_permutations",
        "n_splits",
        "n_seeds",
    ]
    present = [n for n in names if any(n in r for r in run.records)]
    header, rows = list(present), [[r.get(n) for n in present] for r in run.records]
    if any(r.get("tail") for r in run.records):
        header += ["pvalue_tail", "pvalue_tail_good"]
        rows = [[*row, *((t["pvalue"], t["good"]) if (t := r.get("tail")) else (None, None))] for row, r in zip(rows, run.records)]
    if any(i.low == i.low for i in run.intervals):
        header += ["low", "high"]
        rows = [[*row, *((i.low, i.high) if i.low == i.low else (None, None))] for row, i in zip(rows, run.intervals)]
    return header, rows


def families(run: RunData) -> tuple[list[str], Rows]:
    """Every test of every family."""
    header = ["family", "test", "pvalue", "pvalue_maxT", "pvalue_stepdown", "pvalue_holm", "pvalue_bh", "pair"]
    return header, [[f["name"], t["test"], *(t.get(n) for n in header[2:])] for f in run.summary.get("families", []) for t in f["tests"]]


def per_class(run: RunData) -> tuple[list[str], Rows]:
    """acc@k of each class under each pair."""
    header = ["text", "audio", "label", "category", "clips", f"acc@{run.outcomes.k}", "splits_tested"]
    rows = []
    for i in run.ranked(range(len(run.records))):
        r = run.records[i]
        values, tested = run.outcomes.per_class(i), np.isfinite(run.outcomes.accuracy[i]).sum(axis=0)
        rows += [
            [r["text"], r["audio"], str(c), run.categories.get(str(c), ""), int(n), float(v) if s else None, int(s)]
            for c, n, v, s in zip(run.outcomes.classes, run.outcomes.clips, values, tested)
        ]
    return header, rows


def confusions(run: RunData) -> tuple[list[str], Rows]:
    """What was retrieved first instead of the true class."""
    return ["text", "audio", "label", "retrieved", "share"], [
        [run.records[i]["text"], run.records[i]["audio"], *row] for i, rows in run.confusions.items() for row in rows
    ]


def comparisons(run: RunData) -> list[Comparison]:
    """Every two text tables on the same audio table: same splits, same clips."""
    _, n_train, n_test = n_classes_of(run)
    sign = -1.0 if run.lower_is_better else 1.0
    todo = [couple for audio in run.audios for couple in combinations(run.ranked(run.pairs_of(audio)), 2)]
    if not todo:
        return []
    by_class = None if run.observed is None else np.stack([run.outcomes.per_class(i) for i in range(len(run.records))])
    names = [f"{r['text']} × {r['audio']}" for r in run.records]
    return compare_many(
        [(names[i], names[j]) for i, j in todo],
        run.statistic,
        sign * run.per_split[[i for i, _ in todo]],
        sign * run.per_split[[j for _, j in todo]],
        n_train,
        n_test,
        None if by_class is None else by_class[[i for i, _ in todo]],
        None if by_class is None else by_class[[j for _, j in todo]],
        generator(run.identity["seed"], BOOTSTRAP, 1),
    )


COMPARISON_HEADER = [
    "first",
    "second",
    "difference",
    "low",
    "high",
    "se_naive",
    "se_corrected",
    "t",
    "pvalue_t",
    "pvalue_holm",
    "pvalue_signflip",
    "n_classes",
]


def comparison_rows(found: Sequence[Comparison]) -> Rows:
    """Rows under COMPARISON_HEADER; Holm over all of them."""
    from ..statistics.multiplicity import holm

    tested = {id(c): c.t_test.pvalue for c in found if c.t_test is not None}
    adjusted = dict(zip(tested, holm(np.array(list(tested.values()))) if tested else []))
    rows: Rows = []
    for c in found:
        t, s = c.t_test, c.sign_flip
        rows.append(
            [
                c.first,
                c.second,
                c.value_first - c.value_second,
                *((t.low, t.high, t.se_naive, t.se_corrected, t.statistic, t.pvalue, float(adjusted[id(c)])) if t else [None] * 7),
                *((s.pvalue, s.n_classes) if s else (None, None)),
            ]
        )
    return rows


def to_csv(header: Sequence[str], rows: Rows) -> str:
    """CSV with full precision; empty cells where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else v for v in row] for row in rows])
    return out.getvalue()


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_ESCAPES.get(c, c) for c in text)


def to_latex(run: RunData) -> str:
    """The results as a booktabs table with a caption; needs \\usepackage{booktabs}."""
    b = run.n_permutations
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        r"\small",
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        rf"text & audio & {latex_escape(run.statistic)} & $\pm$ SE & control & $p$ & $p$ (max-T) \\",
        r"\midrule",
    ]
    for audio in run.audios:
        for i in run.pairs_of(audio):
            r = run.records[i]
            lines.append(
                " & ".join(
                    [
                        latex_escape(r["text"]),
                        latex_escape(audio),
                        *(latex_escape(number(r[n])) for n in ("statistic", "sem_corrected", "null_mean")),
                        *(_latex_p(r[n] if b else None) for n in ("pvalue", "pvalue_maxT")),
                    ]
                )
                + r" \\"
            )
        lines.append(r"\addlinespace")
    lines[-1] = r"\bottomrule"
    lines += [
        r"\end{tabular}",
        rf"\caption{{{latex_escape(run.statistic)} on unseen classes against its control "
        rf"({b:,} permutations, {run.identity['splits']} splits). SE: corrected for overlapping splits.}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _latex_p(p: float | None) -> str:
    text = pvalue(p)
    if "e-" not in text:
        return latex_escape(text)
    base, exponent = text.split("e-")
    return rf"${base} \times 10^{{-{exponent}}}$"
