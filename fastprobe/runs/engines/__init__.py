"""Who executes the units of a run. An engine is a function

    execute(task, work, pace, **options) -> iterator of Finished

that takes units from `work`, sized by `pace`, and may finish them in any order, some of them twice: a unit lost
with its worker is given out again and may arrive twice; the stored rows are the same. `local` is this machine, `ray` a cluster.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from ...protocol.plan import Unit, Work

UNIT_SECONDS = 20.0
SHORTEST = 1.0


class WorkerError(InputError):
    """A unit that cannot be computed: a GPU that disappeared, a worker that dies again and again."""


class Finished(NamedTuple):
    """A unit that is done.

    Attributes
    ----------
    unit : Unit
    columns : dict of arrays, or None when the worker has stored them itself
    worker : str
        Who did it.
    seconds : float
        How long it took there, by a monotonic clock.
    """

    unit: Unit
    columns: dict[str, np.ndarray] | None
    worker: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """What a worker does with a unit: compute it, and store it too where every worker can write.

    Attributes
    ----------
    experiment : Experiment
    store : ResultStore or None
        Given when workers write; None returns the columns.
    """

    experiment: Any
    store: Any = None

    def on(self, device: str | None) -> Task:
        """The same task on a named device."""
        if device is None:
            return self
        request = dataclasses.replace(self.experiment.request, device=device)
        return Task(dataclasses.replace(self.experiment, request=request), self.store)

    def __call__(self, unit: Unit) -> dict[str, np.ndarray] | None:
        columns = self.experiment.compute(unit)
        if self.store is None:
            return columns
        self.store.write(unit, columns)
        return None

    def describe(self, unit: Unit) -> str:
        """A unit in words."""
        return f"{self.experiment.cells[unit.cell]}, permutations {unit.start} to {unit.stop - 1}"

    def failure(self, unit: Unit, worker: str, error: object) -> WorkerError:
        """The message for a unit that could not be computed."""
        first = (str(error).strip().splitlines() or [""])[0]
        kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
        return WorkerError(
            f"{self.describe(unit)} failed on {worker}: {kind}{first}. Everything finished is kept; when the "
            "device is well again, continue with `--resume`, or name others with `--devices`."
        )


class Pace:
    """How many permutations the next unit should have, from the measured rate.

        size = min(UNIT_SECONDS x median rate of a worker, 4 x the largest so far, what memory allows,
                   max(a fair share of what is left, SHORTEST x median rate))

    Parameters
    ----------
    first : int
        Size before anything is measured.
    cap : int
        What memory allows.
    seconds : float
        Length of a unit to aim at: small enough to lose.
    """

    def __init__(self, first: int, cap: int, seconds: float = UNIT_SECONDS) -> None:
        self.first, self.cap, self.seconds = max(min(first, cap), 1), max(cap, 1), seconds
        self._rates: deque[float] = deque(maxlen=32)
        self._largest = self.first

    def record(self, unit: Unit, seconds: float) -> None:
        """A unit took `seconds`, by a monotonic clock."""
        self._rates.append((unit.stop - unit.start) / max(seconds, 1e-6))
        self._largest = max(self._largest, unit.stop - unit.start)

    def size(self, work: Work, workers: int = 1) -> int:
        """Permutations of the next unit, with `workers` sharing what is left."""
        by_time = self.seconds * median(self._rates) if self._rates else self.first
        least = SHORTEST * median(self._rates) if self._rates else 1
        fair = max(-(-work.replicates // (2 * workers)), least) if workers > 1 else self.cap
        return int(max(1, min(by_time, 4 * self._largest, self.cap, fair)))
