"""What the shell shows while a run goes on and when it is done. Everything but results goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..protocol.cells import Cell
from ..protocol.controls import CONTROLS
from ..protocol.probes import is_similarity
from ..runs.follow import TRAINING, duration, follow
from ..statistics.baselines import verdict

if TYPE_CHECKING:
    from ..runs.run import Progress


def show_progress(steps: Iterable[Progress], quiet: bool = False) -> Iterator[Progress]:
    """The steps of a run, as `follow` shows them."""
    return follow(steps, *TRAINING, quiet)


def show_status(found: dict[str, Any]) -> None:
    """What `audit.examine` found: the run's state on the first lines, then workers, estimates and damage."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = output()
    part = "" if found["part"][1] == 1 else f" (part {found['part'][0]}/{found['part'][1]})"
    console.print(
        f"{found['run']}: {found['state']}; {found['done']:,} of {found['total']:,} probes stored{part} "
        f"({found['done'] / max(found['total'], 1):.1%}), {found['pairs_total']} pairs, {found['permutations']:,} "
        f"permutations, backend {found['backend']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if found["holder"]:
        rate = found["jobs_per_second"]
        eta = f", {rate:,.0f} probes/s, ETA {duration(found['eta_seconds'])}" if rate else ""
        console.print(f"held by {found['holder']}{eta}", markup=False, highlight=False, soft_wrap=True)
    for name, w in sorted(found["workers"].items()):
        console.print(
            f"  {name}: {w['jobs']:,.0f} probes in {w['units']:,.0f} units, {w['jobs_per_second']:,.0f}/s while at work",
            markup=False,
            highlight=False,
        )
    if found["stopped_early"]:
        console.print("stopped early, as its rule allows; the p-values that are valid then are in summary.json", highlight=False)
    elif found.get("pairs"):
        table = Table(
            box=box.SIMPLE_HEAD,
            caption="from what is stored so far; p with its 95% interval, not adjusted for the number of pairs",
            caption_justify="left",
        )
        names = name_columns(found["pairs"])
        for name in names:
            table.add_column(name, overflow="fold")
        for name in (found["pairs"][0]["metric"], "permutations", "p", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for r in found["pairs"]:
            known = r["pvalue"] == r["pvalue"]
            table.add_row(
                *(escape(_printable(r[name])) for name in names),
                _number(r["statistic"]),
                f"{r['permutations']:,}",
                _pvalue(r["pvalue"]) if known else "",
                f"{_pvalue(r['pvalue_low'])}-{_pvalue(r['pvalue_high'])}" if known else "",
            )
        console.print(table)
    for entry in found.get("damaged", ()):
        console.print(f"DAMAGED {entry['shard']}: {entry['why']}", markup=False, highlight=False, soft_wrap=True)
    for shard in found.get("twice", ()):
        console.print(f"TWICE {shard}: some of its jobs are in another shard too", markup=False, highlight=False, soft_wrap=True)
    for line in found.get("inputs", ()):
        console.print(f"TABLES {line}", markup=False, highlight=False, soft_wrap=True)
    if "damaged" in found and not (found["damaged"] or found["twice"] or found["inputs"]):
        console.print("every shard has the digest it was written with, and the tables are unchanged", highlight=False)
    if found.get("damaged"):
        console.print("`fastprobe run ... --resume` computes just these again", markup=False, highlight=False)
    elif found["done"] < found["total"] and not found["state"].startswith("running") and not found["stopped_early"]:
        console.print("continue it with the command that began it and --resume", markup=False, highlight=False)


def _printable(name: str) -> str:
    """A name from a file, without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in name)


def output():
    """The console of results: a terminal's own width, and room for whole rows in a file or a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def name_columns(records: list[dict[str, Any]]) -> list[str]:
    """What tells the records of a run apart: the probe too, where there are several."""
    several = len({r.get("probe") for r in records}) > 1
    return ["text", "audio", *(["probe"] if several else [])]


def curve_table(curve: Any) -> Any:
    """A rich table with a line for each point, pair and probe of a curve."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    several = len({r["probe"] for r in curve.records}) > 1
    caption = "null 95%: the middle 95% of the permuted runs at that point; max-T: p adjusted for all lines"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in (*curve.fields, "text", "audio", *(["probe"] if several else []), "", "null 95%", "p", "max-T"):
        table.add_column(name, justify="left" if name in ("text", "audio", "probe") else "right", overflow="fold")
    for r in curve.records:
        table.add_row(
            *(f"{r[f]:g}" for f in curve.fields),
            *(escape(r[name]) for name in ("text", "audio", *(["probe"] if several else []))),
            f"{r['statistic']:.3f}",
            f"{r['null_low']:.3f}-{r['null_high']:.3f}",
            f"{r['pvalue']:.3g}",
            f"{r['pvalue_maxT']:.3g}",
        )
    return table


def results_table(records: list[dict[str, Any]]):
    """The pairs of a summary as a rich table, for stdout."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    first, several = records[0], len(records) > 1
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        caption_justify="left",
        caption=(
            f"chance {_number(first['chance'])}; +-: standard error corrected for overlapping splits; "
            + (
                f"p: valid under the rule {first['stop']}, declared beforehand, after {first['n_permutations']:,} permutations"
                if first.get("stop")
                else f"p = (1 + permutations at least as good) / (1 + {first['n_permutations']:,})"
            )
            + ", with its 95% interval"
            + ("; max-T: p adjusted for all pairs" if several else "")
        ),
    )
    names = name_columns(records)
    for name in names:
        table.add_column(name, overflow="fold", min_width=min(10, max(len(name), *(len(r[name]) for r in records))))
    for name in (first["metric"], "+-", "null", "p", "95%", *(["max-T"] if several else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for r in records:
        number = [_number(r[k]) for k in ("statistic", "sem_corrected", "null_mean")]
        table.add_row(
            *(escape(_printable(r[name])) for name in names),
            *number,
            _pvalue(r["pvalue"]),
            f"{_pvalue(r['pvalue_low'])}-{_pvalue(r['pvalue_high'])}",
            *([_pvalue(r["pvalue_maxT"])] if several else []),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _pvalue(value: float) -> str:
    return f"{value:.3g}"


def references(summary: dict[str, Any]) -> Iterator[str]:
    """What was taken out of both sides, and what the sounds reach in place of the texts."""
    if taken := summary.get("covariates"):
        yield (
            f"covariates: {taken['degrees_of_freedom']} degrees of freedom taken out of both sides, of {summary['n_classes'] - 1} among "
            f"{summary['n_classes']} classes ({_printable(', '.join(taken['names'][:8]))}{', ...' if len(taken['names']) > 8 else ''})."
        )
    for r in summary.get("ceilings", ()):
        name = _printable(str(Cell(r["text"], r["audio"], r["probe"])))
        yield f"{name}: {r['metric']} {_number(r['statistic'])}, what sounds reach in place of texts: a reference, not a bound."


def best_configurations(summary: dict[str, Any]) -> Iterator[str]:
    """A sentence per pair about its best configuration, where the run has several; its p pays for the choice."""
    for family in summary.get("families", ()):
        for test, why in list(family.get("weak_max_t", {}).items())[:3]:
            yield f"{_printable(test)} is {_printable(why)} (pvalue_minP in summary.csv)."
        if family["name"] == "nested choice":
            for test in family["tests"]:
                yield (
                    f"{_printable(test['test'])}: {_printable(test['chosen'])}, chosen among {family['n_configurations']} on a split of "
                    f"the train classes; {test['metric']} {_number(test['statistic'])} on unseen classes against "
                    f"{_number(test['null_mean'])}, p = {_pvalue(test['pvalue_maxT'])} with the choice repeated inside every permutation."
                )
        if family["name"] == "best configuration":
            for test in family["tests"]:
                yield (
                    f"{_printable(test['test'])}: best of {family['n_configurations']} configurations is {_printable(test['chosen'])}, "
                    f"p = {_pvalue(test['pvalue_maxT'])} with the choice repeated inside every permutation."
                )


def conclusion(record: dict[str, Any], control: str = "permute", level: float = 0.05) -> str:
    """One sentence about one pair."""
    name = _printable(str(Cell(record["text"], record["audio"], record.get("probe", "contrastive"))))
    if not record["n_permutations"]:
        return f"{name}: {record['metric']} {_number(record['statistic'])} on unseen classes; no permutation was run, so nothing is tested."
    null = f"the {CONTROLS[control].title} control's {_number(record['null_mean'])}"
    where = "over all classes" if is_similarity(record.get("probe", "")) else "on unseen classes"
    value = f"{record['metric']} {_number(record['statistic'])} {where} against {null}"
    p = f"p = {_pvalue(record['pvalue_maxT'])}"
    if record["pvalue_maxT"] <= level:
        beats = record.get("beats_baseline")
        if beats is not None:
            p += (
                f"; {record['baseline_difference']:+.3f} against {_printable(record['baseline'])}, p = {_pvalue(record['pvalue_baseline'])}"
            )
        return f"{name}: {verdict(record['pvalue_maxT'], beats, _printable(record.get('baseline_words', '')), level)} ({value}; {p})."
    least = 1 / (1 + record["n_permutations"])
    if least > level and not record.get("stop"):
        p += f", which {record['n_permutations']} permutations cannot bring below {_pvalue(least)}"
    return f"{name}: no evidence that the geometry carries over ({value}; {p})."
