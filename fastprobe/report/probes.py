"""Several probes in one run: a table of probes against pairs, and the choice among them."""

from __future__ import annotations

from typing import Any

from .data import RunData
from .html import Page
from .tables import Rows
from .text import number, plural, pvalue

COLUMNS = ("metric", "statistic", "null_mean", "null_sd", "distance", "pvalue", "pvalue_maxT", "calibrated")


def rows(run: RunData) -> tuple[list[str], Rows]:
    """probes.csv: one row per pair and probe; `distance` in standard deviations of the probe's own control."""
    z = run.distance()
    return ["text", "audio", "probe", *COLUMNS], [
        [run.table_of(i), r["audio"], r.get("probe"), *(float(z[i]) if name == "distance" else r.get(name) for name in COLUMNS)]
        for i, r in enumerate(run.records)
    ]


def add_probes(page: Page, run: RunData) -> None:
    """A table of probes against pairs, whichever are more as its rows; nothing in a run of one probe."""
    if len(run.probes) < 2:
        return
    page.heading("Probes against pairs")
    z = run.distance()
    at = {(f"{run.table_of(i)} × {r['audio']}", r["probe"]): i for i, r in enumerate(run.records)}
    pairs = list(dict.fromkeys(pair for pair, _ in at))
    by_probe = len(pairs) <= len(run.probes)
    down, across = (run.probes, pairs) if by_probe else (pairs, run.probes)
    cells = [[at[(column, row) if by_probe else (row, column)] for column in across] for row in down]

    def value(i: int) -> str:
        tested = f" (z {z[i]:.1f}, p {pvalue(run.records[i]['pvalue_maxT'])})" if run.n_permutations else ""
        return number(run.records[i]["statistic"]) + tested

    page.table(
        ["probe" if by_probe else "text × audio", *across],
        [[name, *(value(i) for i in line)] for name, line in zip(down, cells)],
        1,
        f"{run.statistic} of each probe, or the similarity itself."
        + (
            " z: distance from the probe's own control in its standard deviations, by which probes can be compared; p: adjusted for all "
            f"{len(run.records)} by max-T. All values are in probes.csv."
            if run.n_permutations
            else ""
        ),
        bold=lambda row, column: column > 0 and run.n_permutations > 0 and run.records[cells[row][column - 1]]["pvalue_maxT"] <= 0.05,
    )
    _add_choice(page, run)
    if any("calibrated" in r for r in run.records):
        page.text(
            "Calibrated similarities are (T - tau) / (1 - tau), tau the 95% quantile of the control: 0 is what chance reaches, 1 the most "
            "there can be, so that different similarities can be compared.",
            soft=True,
        )


def _add_choice(page: Page, run: RunData) -> None:
    """Which probe stands for each pair, and what that is worth when the choice is paid for."""
    for family in run.summary.get("families", ()):
        if family["name"] not in ("nested choice", "best configuration"):
            continue
        nested = family["name"] == "nested choice"
        page.heading("The choice among probes", 3)
        rows = [
            [t["test"].replace(" x ", " × "), t["chosen"], *_of_choice(run, t), pvalue(t["pvalue"]), pvalue(t["pvalue_maxT"])]
            for t in family["tests"]
        ]
        page.table(
            ["text × audio", "chosen", run.statistic, "control", "p", "p max-T"],
            rows,
            2,
            f"Of {plural(family['n_configurations'], 'configuration')}; "
            + (
                "chosen on a split of the train classes, anew inside every permutation. The value on the test classes is not inflated by "
                "the choice, and the control is that of the chosen."
                if nested
                else "the best, with the maximum taken inside every permutation. p pays for the choice; the value itself does not, and is "
                "that of the luckiest: run with --select nested for one that does."
            ),
        )


def _of_choice(run: RunData, test: dict[str, Any]) -> list[str]:
    if "statistic" in test:
        return [number(test["statistic"]), number(test["null_mean"])]
    record = next(
        r for i, r in enumerate(run.records) if f"{run.table_of(i)} x {r['audio']}" == test["test"] and r["probe"] == test["chosen"]
    )
    return [number(record["statistic"]), number(record["null_mean"])]


def said(run: RunData) -> str:
    """How many configurations and seeds were tried, here and in the runs beside it."""
    assert run.tried is not None
    beside = f", {plural(run.tried.runs, 'run')} beside it included" if run.tried.runs else ""
    seeds = f" ({', '.join(map(str, run.tried.seeds[:12]))}{', ...' if len(run.tried.seeds) > 12 else ''})"
    return f"{plural(run.tried.configurations, 'configuration')}, {plural(len(run.tried.seeds), 'seed')}{seeds}{beside}"


def caveats(run: RunData) -> list[str]:
    """What trying several things means for the numbers."""
    out: list[str] = []
    if run.tried is not None and run.tried.reseeded:
        names = ", ".join(f"{name} (seed {seed})" for name, seed in run.tried.reseeded[:6])
        out.append(
            f"{len(run.tried.seeds)} seeds were tried: {names} beside this run differs in nothing but the seed. No p-value here pays for "
            "taking the better of them."
        )
    if run.tried is not None and run.tried.runs and run.tried.configurations > len(run.probes):
        out.append(
            f"{run.tried.configurations} configurations were tried on these tables, {len(run.probes)} of them in this run. p-values are "
            "adjusted for those of this run alone: put all into one run, which pays for the choice."
        )
    return out
