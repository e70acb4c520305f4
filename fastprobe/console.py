"""What the shell shows while a run goes on and when it is done. Everything but results goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from .run import Progress


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def show_progress(steps: Iterable[Progress], quiet: bool = False) -> Iterator[Progress]:
    """Pass steps through and show done, rate and time left: a bar on a terminal, else a line every 10 s."""
    if quiet:
        yield from steps
    elif sys.stderr.isatty():
        yield from _bar(steps)
    else:
        yield from _lines(steps)


def _bar(steps: Iterable[Progress]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    start = time.monotonic()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("probes"),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("{task.fields[eta]}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="", eta="")
        for step in steps:
            rate = (step.done - step.resumed) / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=step.done, total=step.total, rate=f"{rate:,.0f}/s" if rate else "",
                       eta=f"ETA {_duration((step.total - step.done) / rate)}" if rate else "")
            yield step


def _lines(steps: Iterable[Progress]) -> Iterator[Progress]:
    start = shown = time.monotonic()
    for step in steps:
        now = time.monotonic()
        if now - shown >= 10:
            shown, rate = now, (step.done - step.resumed) / (now - start)
            left = _duration((step.total - step.done) / rate) if rate else "?"
            print(f"training {step.done:,}/{step.total:,} probes, {rate:,.0f}/s, ETA {left}", file=sys.stderr, flush=True)
        yield step


def results_table(records: list[dict[str, Any]]):
    """The pairs of a summary as a rich table, for stdout."""
    from rich import box
    from rich.table import Table
    metric = records[0]["metric"]
    table = Table(box=box.SIMPLE_HEAD, caption="+-: standard error corrected for overlapping splits; p: (1 + permutations "
                  "at least as good) / (1 + permutations) with its 95% interval; max-T: adjusted for all pairs",
                  caption_justify="left")
    for name in ("text", "audio"):
        table.add_column(name, overflow="fold", min_width=min(12, max(len(r[name]) for r in records)))
    for name in (metric, "+-", "null", "chance", "p", "", "max-T"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in records:
        number = [_number(r[k]) for k in ("statistic", "sem_corrected", "null_mean", "chance")]
        table.add_row(r["text"], r["audio"], *number, _pvalue(r["pvalue"]),
                      f"{_pvalue(r['pvalue_low'])}-{_pvalue(r['pvalue_high'])}", _pvalue(r["pvalue_maxT"]))
    return table


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _pvalue(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.001 else f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def conclusion(record: dict[str, Any], level: float = 0.05) -> str:
    """One sentence about one pair."""
    name = f"{record['text']} x {record['audio']}"
    null = f"the permuted control's {_number(record['null_mean'])}"
    value = f"{record['metric']} {_number(record['statistic'])} on unseen classes against {null}"
    p = f"p = {_pvalue(record['pvalue_maxT'])}"
    if record["pvalue_maxT"] <= level:
        return f"{name}: the geometry carries over ({value}; {p})."
    return f"{name}: no evidence that the geometry carries over ({value}; {p})."
