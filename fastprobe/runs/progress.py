"""progress.json: what a run tells other shells about itself while it goes on, and JSON lines for machines.

Durations are differences of a monotonic clock, so a clock that jumps changes no rate.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, TextIO

from ..errors import StoreError
from ..protocol.plan import JobPlan, Unit
from .manifest import to_json
from .store import ResultStore

NAME = "progress.json"
EVERY = 2.0
EVERY_REMOTE = 15.0


class Heartbeat:
    """Counts of a run in progress, written to its directory every few seconds.

    Parameters
    ----------
    store : ResultStore
    plan : JobPlan
    done, total : int
        Probes stored so far, and of the whole run (or its part).
    """

    def __init__(self, store: ResultStore, plan: JobPlan, done: int, total: int) -> None:
        self.store, self.resumed, self.done, self.total, self.plan = store, done, done, total, plan
        self.start = self.shown = time.monotonic()
        self.workers: dict[str, dict[str, float]] = {}
        self.every = EVERY_REMOTE if isinstance(store.path, str) else EVERY
        self.write()

    def unit(self, unit: Unit, worker: str, seconds: float) -> None:
        """A unit has been stored."""
        jobs = self.plan.count([unit])
        self.done += jobs
        entry = self.workers.setdefault(worker, {"units": 0, "jobs": 0, "seconds": 0.0})
        entry["units"] += 1
        entry["jobs"] += jobs
        entry["seconds"] += seconds
        if time.monotonic() - self.shown >= self.every:
            self.write()

    def record(self) -> dict[str, Any]:
        """What progress.json holds."""
        seconds = time.monotonic() - self.start
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "done": self.done,
            "total": self.total,
            "resumed": self.resumed,
            "seconds": round(seconds, 3),
            "jobs_per_second": (self.done - self.resumed) / seconds if seconds > 0 else 0.0,
            "workers": {name: {**w, "jobs_per_second": w["jobs"] / max(w["seconds"], 1e-9)} for name, w in self.workers.items()},
        }

    def write(self) -> None:
        """Write progress.json now; a full disk here does not end a run that may still store its units."""
        self.shown = time.monotonic()
        try:
            self.store.write_file(NAME, to_json(self.record()).encode())
        except StoreError:
            return


class JsonLog:
    """JSON lines: one object per event, with ``event``, ``time`` (wall clock, UTC) and ``seconds`` since the start.

    Parameters
    ----------
    file : text file
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.start = file, time.monotonic()

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event."""
        record = {
            "event": event,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - self.start, 3),
            **fields,
        }
        self.file.write(json.dumps(record, default=str) + "\n")
        self.file.flush()
