"""What this machine computes per second of closed-form probes and similarities: every backend beside the others, interleaved.

Nothing is timed before it gives what `reference` gives. A job is one permutation at one split; a similarity has one split.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import InputError
from ..protocol.probes import PROBES, SIMILARITIES, ClosedProbe, Similarity, parse_probe, parse_similarity
from . import available_backends
from .bench import Shape
from .closed import ClosedForm
from .similarity import BACKENDS as SIMILARITY_BACKENDS
from .similarity import similarity

CLIPS = 30  # of each class
UNSEEN = 0.3  # share of all classes, as a run has by default
BACKENDS = ("cpp", "torch", "reference")
TURN_SECONDS = 0.2  # long against the clock; all kinds and backends together stay below a minute
CALL, MOST = 32, 4096  # jobs of a turn: a whole call of the backends at least, if it is not too long
ALL = (*PROBES, *SIMILARITIES)


def named(names: Sequence[str]) -> list[ClosedProbe | Similarity]:
    """Probes and similarities by their text form; all kinds at their defaults when there are no names.

    Raises
    ------
    InputError
        An unknown kind or option.
    """
    found: list[ClosedProbe | Similarity] = []
    for name in names or ALL:
        kind = name.split(":")[0]
        if kind not in ALL:
            raise InputError(f"`probe` must be one of contrastive, {', '.join(ALL)}; got {kind!r}.")
        found.append(parse_similarity(name) if kind in SIMILARITIES else parse_probe(name))
    return found


def measure(shape: Shape, probes: Sequence[ClosedProbe | Similarity], rounds: int) -> list[dict[str, Any]]:
    """Time every backend that is here on each probe, after a check.

    Returns
    -------
    list of dict
        ``shape, probe, backend, classes, queries, jobs`` (per second), ``speedup`` (how many times faster the first backend is).
    """
    rng = np.random.default_rng(0)
    classes = round(shape.train / (1 - UNSEEN))
    labels = np.repeat(np.arange(classes), CLIPS)
    latent = rng.standard_normal((classes, 16))
    text, audio = (
        latent[rows] @ rng.standard_normal((16, width)) / 4 + rng.standard_normal((len(rows), width))
        for rows, width in ((np.arange(classes), shape.text_width), (labels, shape.audio_width))
    )
    queries = np.flatnonzero(labels >= shape.train)
    centroids = audio.reshape(classes, CLIPS, -1).mean(axis=1)
    permutations = np.stack([rng.permutation(classes) for _ in range(MOST)])
    here = [name for name in BACKENDS if available_backends()[name] is None]
    records = []
    for probe in probes:
        calls: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for name in here:
            if isinstance(probe, Similarity):
                if name in SIMILARITY_BACKENDS:
                    calls[name] = partial(_similar, probe, text, centroids, name)
            else:
                form = ClosedForm(probe, text, audio, labels, np.arange(shape.train), queries, name)
                calls[name] = partial(_ranked, form)
        _check(probe, calls, permutations)
        many = {name: _jobs(call, permutations) for name, call in calls.items()}
        turns: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call(permutations[: many[name]])
                turns[name].append((time.perf_counter() - start) / many[name])
        leader = np.array(turns[next(iter(turns))])
        for name, seconds in turns.items():
            records.append(
                {
                    "shape": shape.name,
                    "probe": probe.name,
                    "backend": name,
                    "classes": classes,
                    "queries": 0 if isinstance(probe, Similarity) else len(queries),
                    "jobs": 1 / statistics.median(seconds),
                    "speedup": float(np.median(np.array(seconds) / leader)),
                }
            )
    return records


def _jobs(call: Callable[[np.ndarray], np.ndarray], permutations: np.ndarray) -> int:
    """As many as a turn takes, by a short try."""
    start = time.perf_counter()
    call(permutations[:4])
    each = (time.perf_counter() - start) / 4
    wanted = int(np.clip(TURN_SECONDS / each, 4, MOST))
    return max(wanted // CALL * CALL, min(wanted, CALL))


def _ranked(form: ClosedForm, permutations: np.ndarray) -> np.ndarray:
    return form.ranks(permutations)[0]


def _similar(probe: Similarity, text: np.ndarray, audio: np.ndarray, backend: str, permutations: np.ndarray) -> np.ndarray:
    return similarity(probe, text, audio, permutations, backend)


def _check(probe: Any, calls: dict[str, Callable[[np.ndarray], np.ndarray]], permutations: np.ndarray) -> None:
    """Refuse a backend of which more than 1 in 100 ranks, or a similarity by more than 1e-4, differs from `reference`."""
    truth = calls["reference"](permutations[:4])
    for name, call in calls.items():
        found = call(permutations[:4])
        off = np.abs(found - truth).max() > 1e-4 if isinstance(probe, Similarity) else np.mean(found != truth) > 0.01
        if off:
            raise InputError(f"{probe.name} by {name} disagrees with the reference, so it is not timed.")


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| shape | probe | backend | classes | queries | jobs / s | times the first |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in records:
        queries = r["queries"] or ""
        lines.append(
            f"| {r['shape']} | {r['probe']} | {r['backend']} | {r['classes']} | {queries} | {r['jobs']:,.0f} | {r['speedup']:.1f} |"
        )
    return "\n".join(lines)
