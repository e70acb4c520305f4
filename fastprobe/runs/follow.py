"""How far a long job is, for whoever waits: a bar on a terminal, a line that renews itself in a notebook, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines of a log
EVERY_NOTEBOOK = 0.2

# What `follow` shows of the steps of a run.
TRAINING: tuple[str, str, Callable[[Any, int], tuple[int, int, int]]] = (
    "training",
    "probes",
    lambda step, _: (step.done, step.total, step.resumed),
)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples
    --------
    >>> duration(3723.4)
    '1:02:03'
    """
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def in_notebook() -> bool:
    """Whether this is a kernel whose output is a page (Jupyter, Colab), not a terminal."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def follow(steps: Iterable[T], verb: str, noun: str, count: Callable[[T, int], tuple[int, int, int]], quiet: bool = False) -> Iterator[T]:
    """Pass steps through and show done, rate and time left.

    On stderr a bar on a terminal, else a line every 10 s; in a notebook a line below the cell.

    Parameters
    ----------
    steps : iterable
    verb, noun : str
        As in "training 12/100 probes".
    count : callable (step, its number from 1) -> (done, total, of these done before the start)
    quiet : bool
        Show nothing.

    Examples
    --------
    >>> list(follow("abc", "reading", "letters", lambda _, n: (n, 3, 0), quiet=True))
    ['a', 'b', 'c']
    """
    if quiet:
        yield from steps
        return
    start = time.monotonic()
    show = _Notebook(verb, noun) if in_notebook() else _Bar(verb, noun) if sys.stderr.isatty() else _Lines(verb, noun)
    with show:
        for number, step in enumerate(steps, start=1):
            done, total, before = count(step, number)
            rate = (done - before) / max(time.monotonic() - start, 1e-9)
            speed = f"{rate:,.{0 if rate >= 100 else 1}f}/s" if rate else ""
            show(done, total, speed, f"ETA {duration((total - done) / rate)}" if rate else "")
            yield step


class _Lines:
    """A line on stderr every few seconds: for logs."""

    every = EVERY

    def __init__(self, verb: str, noun: str) -> None:
        self.verb, self.noun, self.shown = verb, noun, time.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None

    def __call__(self, done: int, total: int, speed: str, left: str) -> None:
        if time.monotonic() - self.shown >= self.every:
            self.shown = time.monotonic()
            self.say(done, total, speed, left)

    def say(self, done: int, total: int, speed: str, left: str) -> None:
        print(self.words(done, total, speed, left), file=sys.stderr, flush=True)

    def words(self, done: int, total: int, *more: str) -> str:
        return ", ".join(filter(None, (f"{self.verb} {done:,}/{total:,} {self.noun}", *more)))


class _Notebook(_Lines):
    """A line below the cell that is written over. IPython alone does this: no widgets need be installed."""

    every = EVERY_NOTEBOOK

    def __init__(self, verb: str, noun: str) -> None:
        from IPython.display import HTML, display

        super().__init__(verb, noun)
        self.page, self.last = HTML, (0, 0)
        self.handle = display(HTML(escape(f"{verb} ...")), display_id=True)

    def __call__(self, done: int, total: int, speed: str, left: str) -> None:
        self.last = done, total
        super().__call__(done, total, speed, left)

    def say(self, done: int, total: int, speed: str, left: str) -> None:
        line = escape(self.words(done, total, speed, left))
        self.handle.update(self.page(f"<progress max='{total}' value='{done}'></progress> {line}"))

    def __exit__(self, *_: Any) -> None:
        # What stays in the saved notebook says what was done, and not how fast this machine was.
        self.handle.update(self.page(escape(self.words(*self.last))))


class _Bar(_Lines):
    """A bar with rate and time left, by rich."""

    every = 0.0

    def __init__(self, verb: str, noun: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(verb, noun)
        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(noun), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[eta]}"), console=Console(stderr=True))
        self.task = self.bar.add_task("", total=None, rate="", eta="")

    def __enter__(self) -> None:
        self.bar.start()

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def say(self, done: int, total: int, speed: str, left: str) -> None:
        self.bar.update(self.task, completed=done, total=total, rate=speed, eta=left)
