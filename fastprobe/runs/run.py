"""Carries out a run: finds what is not stored yet, trains it, stores it, computes the p-values. Only this module knows all steps."""

from __future__ import annotations

import inspect
import os
import platform
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from ..errors import InputError, StoreError
from ..kernels import device_name
from ..protocol.metrics import column_of
from ..protocol.plan import Unit, Work
from ..randomness import SHUFFLES_OF_0_1_0
from ..storage import open_folder
from ..tables.embeddings import EmbeddingTable
from . import siblings
from .analysis import analyse, summary
from .choice import chosen
from .engines import Finished, Pace, Task, local
from .experiment import Experiment, prepare
from .follow import TRAINING, follow, in_notebook
from .lock import RunLock
from .manifest import read_manifest
from .observed import write_observed
from .progress import Heartbeat
from .request import RunRequest
from .specification import Specification
from .stopping import Watch
from .store import ResultStore

__all__ = [
    "Experiment",
    "Progress",
    "analyse",
    "execute",
    "is_complete",
    "manifest",
    "open_store",
    "permutation_test",
    "prepare",
    "summary",
]

OBSERVED = ("observed.parquet", "retrieved.parquet")


class Progress(NamedTuple):
    """How far a run is, after a unit.

    Attributes
    ----------
    done, total, resumed : int
        Probes stored, of how many, and how many of them this call found stored.
    unit : Unit or None
        What was just stored; None for the first.
    worker : str or None
        Who computed it.
    seconds : float
        How long that took there.
    mended : tuple of (str, str)
        With the first: shards that were removed to be computed again, and why.
    """

    done: int
    total: int
    resumed: int
    unit: Unit | None = None
    worker: str | None = None
    seconds: float = 0.0
    mended: tuple[tuple[str, str], ...] = ()


@cache
def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("fastprobe", "numpy", "scipy", "torch", "triton", "pyarrow", "faiss-cpu", "faiss-gpu"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def continued(experiment: Experiment, out: str | os.PathLike | None) -> Experiment:
    """The experiment as the run in `out` stores it: one begun by an earlier version keeps its metrics and its way to draw.

    Raises
    ------
    InputError
        The statistic is not among these.
    """
    folder = None if out is None else open_folder(out)
    if folder is None or "manifest.json" not in folder.names(""):
        return experiment
    identity = read_manifest(folder)["identity"]
    if "shuffles" not in identity:
        experiment = replace(experiment, shuffles=SHUFFLES_OF_0_1_0)
    columns = identity.get("columns")
    if not isinstance(columns, list) or not set(columns) < set(experiment.columns):
        return experiment  # there is nothing to keep, or what is there is another run
    column = column_of(experiment.statistic, experiment.ks)
    if column not in ("loss", *columns):
        raise InputError(
            f"`statistic`={experiment.statistic!r} is not stored by the run in {out}, which an earlier version began. "
            "Choose another statistic, or another `out`."
        )
    return replace(experiment, columns=tuple(columns))


def open_store(experiment: Experiment, out: str | os.PathLike | None, resume: bool = False, part: tuple[int, int] = (0, 1)) -> ResultStore:
    """Create the run directory, or open the one that is to be continued; `out` None stays in memory.

    Raises
    ------
    InputError
        What cannot be run here, before anything is created; otherwise as `ResultStore.create`.
    """
    _check_part(experiment, part)
    return ResultStore.create(out, manifest(experiment, "running", part=part), resume)


def as_begun(request: RunRequest, out: str | os.PathLike | None) -> RunRequest:
    """What is asked of a run that is to be continued: without baselines where it was begun without, as those of 0.1.0 were."""
    if out is None or not request.baselines:
        return request
    try:
        begun = read_manifest(out)["identity"]
    except StoreError:  # nothing is there yet, or nothing that can be continued: whoever opens it says so
        return request
    return request if begun.get("baselines") else replace(request, baselines=False)


def _check_part(experiment: Experiment, part: tuple[int, int]) -> None:
    if experiment.stop is not None and part[1] > 1:
        raise InputError(f"`stop` must see all permutations in order; got `shard` {part[0]}/{part[1]}. Leave one of them out.")


def manifest(experiment: Experiment, status: str, seconds: float | None = None, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """What manifest.json holds. File paths are recorded outside `identity`, so that moving a table does not make it another run."""
    return {
        "status": status,
        "identity": experiment.identity(),
        "permutations": experiment.plan.n_permutations,
        "statistic": experiment.statistic,
        "part": list(part),
        "paths": experiment.paths,
        **({"notes": list(experiment.notes)} if experiment.notes else {}),
        "options": {"classes": experiment.request.classes},
        "n_classes": experiment.n_classes,
        "backend": experiment.backend,
        "config": experiment.config.to_dict(),
        "inputs": list(experiment.inputs),
        "device": device_name(experiment.backend, experiment.device, experiment.config.precision),
        "precision": experiment.config.precision,
        "retrieval": experiment.retrieval,
        "versions": _versions(),
        "machine": platform.platform(),
        "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_seconds": seconds,
    }


def execute(
    experiment: Experiment,
    store: ResultStore,
    engine: Callable[..., Generator[Finished, None, None]] = local.execute,
    part: tuple[int, int] = (0, 1),
    workers_write: bool = False,
) -> Generator[Progress, None, None]:
    """Compute what the store lacks. Yields after every unit; stopping the iteration keeps all finished ones.

    Parameters
    ----------
    engine : callable
        See `fastprobe.runs.engines`.
    part : (int, int)
        I and N: only part I of N of the plan (``--shard I/N``).
    workers_write : bool
        Workers store what they compute, which needs a store that all of them reach.

    Raises
    ------
    StoreError
        Another run holds the directory, or the store cannot be written.
    """
    if store.folder is None:
        yield from _execute(experiment, store, engine, part, workers_write, None)
        return
    with RunLock(store.folder) as lock:
        yield from _execute(experiment, store, engine, part, workers_write, lock)


def _execute(
    experiment: Experiment,
    store: ResultStore,
    engine: Callable[..., Generator[Finished, None, None]],
    part: tuple[int, int],
    workers_write: bool,
    lock: RunLock | None,
) -> Generator[Progress, None, None]:
    plan, start = experiment.plan, time.monotonic()
    _check_part(experiment, part)
    wanted = plan.part(*part)
    earlier = None if store.folder is None else read_manifest(store.folder).get("wall_seconds")
    earlier = float(earlier) if isinstance(earlier, int | float) else 0.0  # of the sessions that came to an end before
    store.write_manifest(manifest(experiment, "running", earlier or None, part))
    mended = tuple((store.shard_name(unit), why) for unit, why in store.mend())
    work = Work(plan.gaps(store.done(plan), wanted))
    total = plan.count(wanted)
    resumed = done = total - plan.count(plan.gaps(store.done(plan), wanted))
    watch = None if experiment.stop is None else Watch(experiment.stop, experiment, store)
    if watch is not None and watch.done:
        work = Work([])
    heartbeat = Heartbeat(store, plan, done, total)
    yield Progress(done, total, resumed, mended=mended)
    pace = Pace(experiment.unit_size(), experiment.largest_unit())
    task = Task(experiment, store if workers_write else None)
    finished = engine(task, work, pace)
    try:
        for unit, columns, worker, seconds in finished:
            if lock is not None:
                lock.check()
            if columns is not None:
                store.write(unit, columns)
            done += plan.count([unit])
            heartbeat.unit(unit, worker, seconds)
            yield Progress(done, total, resumed, unit, worker, seconds)
            if watch is not None and watch.take(unit, columns or store.read(unit)):
                break
    finally:
        finished.close()  # its workers end now, not when the garbage is collected
        heartbeat.write()
    if part[0] == 0 and store.folder is not None and any(store.read_file(n) is None for n in OBSERVED):
        write_observed(experiment, store)
    final = manifest(experiment, "done" if part[1] == 1 else "part done", round(earlier + time.monotonic() - start, 3), part)
    if watch is not None:
        final |= {
            "permutations": watch.used,
            "permutations_at_most": plan.n_permutations,
            "stopped": watch.family.done if watch.family else False,
        }
    store.write_manifest(final)


def is_complete(experiment: Specification, store: ResultStore) -> bool:
    """Whether every job of the plan is stored."""
    return not experiment.plan.gaps(store.done(experiment.plan))


def permutation_test(
    text: Any,
    audio: Any,
    request: RunRequest | None = None,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Any:
    """Does the geometry of the texts carry over to the sounds? A probe's accuracy on unseen classes, against
    the same probe trained again on permuted text rows.

        p = (1 + #{b >= 1 : T_b >= T_0}) / (1 + B),    T_b = mean over splits and seeds

    Parameters
    ----------
    text : EmbeddingTable, path, (vectors, labels), or a list of these
        One row per class.
    audio : likewise
        Clips; their labels are the classes.
    request : RunRequest, optional
        What is asked. Its fields can be given by name instead: `probe`, `permutations`, `splits`, `statistic`, ...;
        see `fastprobe.RunRequest` for all of them.
    out : path-like, optional
        Run directory; by default nothing is written.
    resume : bool
        Continue what is in `out`.
    progress : bool, optional
        Show how many probes are trained, how fast, and the time left: below the cell of a notebook, which is the default
        there, or on stderr.

    Returns
    -------
    PermutationTestResult
        Or a list, when `text` or `audio` is a list or there are several probes: one for each cell of the given tables, audio by
        audio. With ``select="nested"`` one for each pair: `probe` is the chosen one, and the test is that of the choice.
        `beats_baseline` and `verdict` say whether the model does better than the spelling of the names; the baselines' own records
        are in `out`/summary.json.

    Raises
    ------
    InputError
        Bad input; the message names the argument, the rule, the value and the way out.

    Examples
    --------
    >>> import fastprobe as fp
    >>> text, audio = fp.simulate.simulate_pair([f"class {i}" for i in range(12)], alignment=1.0)
    >>> result = fp.permutation_test(text, audio, permutations=19, splits=2, backend="cpp")
    >>> 0.05 <= result.pvalue <= 1 and result.n_permutations == 19
    True
    """
    request = replace(request, **options) if request is not None else RunRequest(**options)
    experiment, store, results = tested(text, audio, request, out, resume, progress)
    if experiment.nested:
        results = chosen(experiment, store)
    given = {EmbeddingTable.coerce(t, "text").name for t in (text if isinstance(text, list) else [text])}
    results = [r for r in results if r.text in given]
    return results if isinstance(text, list) or isinstance(audio, list) or len(results) > 1 else results[0]


def tested(
    text: Any, audio: Any, request: RunRequest, out: str | os.PathLike | None, resume: bool, progress: bool | None
) -> tuple[Experiment, ResultStore, list[Any]]:
    """The whole way of `permutation_test`: the experiment, its store, and a result for every cell that is tested, baselines too."""
    experiment = continued(prepare(text, audio, as_begun(request, out)), out)
    for note in experiment.notes:
        warnings.warn(note, stacklevel=3)
    store = open_store(experiment, out, resume)
    if (again := siblings.warning(siblings.tried(out, manifest(experiment, "running")))) is not None:
        warnings.warn(again, stacklevel=3)
    for _ in follow(execute(experiment, store), *TRAINING, quiet=not (in_notebook() if progress is None else progress)):
        continue
    results = analyse(experiment, store)
    store.write_summary(summary(experiment, results, store))
    return experiment, store, results


def _with_request_fields(function: Callable[..., Any]) -> inspect.Signature:
    """The signature that help and editors show: `**options` spelled out with the names and defaults of `RunRequest`."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields(RunRequest)]
    return inspect.Signature([*own, *added])


permutation_test.__signature__ = _with_request_fields(permutation_test)  # type: ignore[attr-defined]  # as PEP 362 allows
