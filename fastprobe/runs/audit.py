"""Looking at a run from outside: how far it is, whether it is whole, whether another backend agrees."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..kernels import select_backend
from ..protocol.metrics import column_of, lower_is_better, summarise, unseen_names
from ..protocol.plan import Unit
from ..protocol.probes import is_similarity
from ..randomness import SHUFFLES_OF_0_1_0, check_seed
from ..statistics.significance import add_one_pvalue, exceedances, pvalue_interval
from .experiment import Experiment, prepare
from .lock import describe, is_dead, is_here, read_lock
from .manifest import describe_difference, plan_of, read_manifest
from .progress import NAME as PROGRESS
from .references import GIVEN, is_made
from .specification import stored_specification
from .store import ResultStore


def part_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The part of the plan that a run directory is for: (0, 1) is all of it."""
    part = manifest.get("part", [0, 1])
    if not (isinstance(part, list) and len(part) == 2 and all(type(x) is int for x in part) and 0 <= part[0] < part[1] <= 10**9):
        raise StoreError(f"the manifest's `part` must be [I, N] with 0 <= I < N; got {str(part)[:60]}.")
    return part[0], part[1]


def prepare_again(
    manifest: dict[str, Any], text: list[str] | None = None, audio: list[str] | None = None, device: str | None = None
) -> Experiment:
    """The experiment of a stored run, from the tables it was made from.

    Parameters
    ----------
    text, audio : list of paths or URLs, optional
        Where the tables are now; by default where the manifest says they were.

    Raises
    ------
    InputError
        A table that is not there any more, or has changed since the run began.
    """
    identity = manifest["identity"]
    stored = manifest.get("paths")
    paths: dict[str, Any] = stored if isinstance(stored, dict) else {}
    inputs = [t for t in identity.get("inputs", []) if isinstance(t, dict)]
    given = {"text": text, "audio": audio}

    def stored_at(side: str, of_baselines: bool = False) -> list[str]:
        wanted = [t for t in inputs if t.get("side") == side and not is_made(t) and (t.get("baseline") == GIVEN) == of_baselines]
        names = [t.get("name") for t in wanted]
        if lacking := [n for n in names if not isinstance(paths.get(f"{side}/{n}"), str)]:
            raise InputError(
                f"the run does not say where its {side} table {lacking[0]!r} is: it was given as arrays. "
                f"Save it to a file and name it with `--{'baseline' if of_baselines else side}`."
            )
        return [paths[f"{side}/{n}"] for n in names]

    # The backend only labels the experiment here; `verify` chooses what trains.
    stored_run = stored_specification(manifest)
    request = replace(stored_run.request, backend="reference", device=device, stop=None, baseline=stored_at("text", True))
    experiment = prepare(given["text"] or stored_at("text"), given["audio"] or stored_at("audio"), request)
    if stored_run.shuffles == SHUFFLES_OF_0_1_0:
        experiment = replace(experiment, shuffles=SHUFFLES_OF_0_1_0)
    mine = {k: v for k, v in experiment.identity().items() if k in ("pairs", "inputs", "shuffles")}
    theirs = {k: identity.get(k) for k in mine}
    if difference := describe_difference(theirs, mine, "in the run"):
        raise InputError(f"{difference}. The run cannot be computed again from it.")
    return experiment


def estimates(store: ResultStore, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Running estimate of each pair's p from what is stored so far, with its Clopper-Pearson interval.

    Yields
    ------
    dict
        text, audio, statistic (NaN before the observed run is stored), permutations, pvalue, pvalue_low, pvalue_high.
    """
    plan = plan_of(manifest)
    column = column_of(manifest["statistic"], tuple(manifest["identity"]["k"]))
    lower = lower_is_better(column)
    replicates = store.replicates([column], plan, damaged="skip")[0][column]  # what is damaged is named with --check
    for cell, values in zip(store.cells, replicates):
        alone = is_similarity(cell.probe)
        sign = -1.0 if lower and not alone else 1.0
        t0, t = float(values[0]), values[1:][np.isfinite(values[1:])]
        known = np.isfinite(t0) and len(t) > 0
        more = exceedances(sign * t0, sign * t) if known else 0
        low, high = pvalue_interval(more, len(t)) if known else (float("nan"), float("nan"))
        yield {
            "text": cell.text,
            "audio": cell.audio,
            "probe": cell.probe,
            "metric": cell.probe if alone else manifest["statistic"],
            "statistic": t0,
            "permutations": len(t),
            "pvalue": add_one_pvalue(more, len(t)) if known else float("nan"),
            "pvalue_low": low,
            "pvalue_high": high,
        }


def examine(run_dir: str | os.PathLike, check: bool = False, estimate: bool = True) -> dict[str, Any]:
    """What `fastprobe status` shows.

    Parameters
    ----------
    check : bool
        Read every shard and compare it with its digest; look whether the tables are still what they were.

    Returns
    -------
    dict
        run, state ("running", "interrupted", "done", ...), holder, done, total, jobs_per_second, eta_seconds, workers, pairs
        (from `estimates`), and with `check` damaged (list of {shard, why}) and inputs (list of str: what is wrong).
    """
    manifest, store = read_manifest(run_dir), ResultStore.open(run_dir)
    plan, part = plan_of(manifest), part_of(manifest)
    wanted, units = plan.part(*part), store.done(plan)
    total = plan.count(wanted)
    left = plan.count(plan.gaps(units, wanted))
    holder = read_lock(store.on_disk)
    beat = _progress(store)
    state = str(manifest.get("status", "?"))[:40]
    if state == "running" and (holder is None or is_dead(holder)):
        state = "interrupted"
    elif holder is not None and state == "running":
        state = "running" if is_here(holder) else "running, by its lock"
    rate = beat.get("jobs_per_second") if state.startswith("running") else None
    stopped = manifest.get("stopped") is True
    out = {
        "run": str(run_dir),
        "state": state,
        "holder": describe(holder) if holder and state.startswith("running") else None,
        "done": total - left,
        "total": total,
        "part": list(part),
        "pairs_total": plan.n_cells,
        "stopped_early": stopped,
        "permutations": plan.n_permutations,
        "backend": str(manifest["identity"].get("backend"))[:40],
        "jobs_per_second": rate,
        "eta_seconds": left / rate if rate else None,
        "workers": beat.get("workers", {}) if rate else {},
    }
    if estimate:
        out["pairs"] = list(estimates(store, manifest))
    if check:
        out["damaged"] = [{"shard": store.shard_name(u), "why": why} for u in units if (why := store.damage(u))]
        out["twice"] = [store.shard_name(u) for u in overlapping(units)]
        out["inputs"] = []
        try:
            prepare_again(manifest)
        except InputError as error:
            out["inputs"].append(str(error))
    return out


def overlapping(units: list[Unit]) -> Iterator[Unit]:
    """Those of sorted units that hold permutations which an earlier one holds too."""
    cell, at = -1, 0
    for unit in units:
        at = at if unit.cell == cell else 0
        if unit.start < at:
            yield unit
        cell, at = unit.cell, max(at, unit.stop)


def _progress(store: ResultStore) -> dict[str, Any]:
    try:
        value = json.loads(store.read_file(PROGRESS) or b"{}")
        rate = value.get("jobs_per_second")
        workers = {str(n)[:60]: {k: float(w[k]) for k in ("units", "jobs", "jobs_per_second")} for n, w in value["workers"].items()}
        return {"jobs_per_second": float(rate) if rate else None, "workers": workers}
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def verify(
    run_dir: str | os.PathLike,
    *,
    sample: int = 50,
    backend: str = "reference",
    device: str | None = None,
    seed: int | None = None,
    text: list[str] | None = None,
    audio: list[str] | None = None,
    loss_tolerance: float | None = None,
    hits_tolerance: float | None = None,
) -> dict[str, Any]:
    """Train a random sample of stored jobs again and compare.

        loss:  max |l - l'| / max(|l'|, 1e-3) <= loss_tolerance
        hits:  mean over jobs and k of |h - h'| / n_queries, and of |a - a'| of acc@k_unseen, <= hits_tolerance
        inner: mean over jobs of |t - t'| / max(|t'|, 1) <= hits_tolerance, t the statistic that a nested choice is made by

    Parameters
    ----------
    sample : int
        Jobs, drawn uniformly from all that are stored.
    backend : str
        What trains them again; ``auto`` or the run's own is allowed. With the run's own the default tolerances are 0.
    seed : int, optional
        Of the sample; random by default, and returned.
    text, audio : list of paths, optional
        Where the tables are now.
    loss_tolerance, hits_tolerance : float, optional
        By default 0.001 and 0.002 (0.05 and 0.02 for the precisions below float32).

    Returns
    -------
    dict
        agrees (bool), jobs, backend, stored_backend, seed, loss_difference, hits_difference, equal_hits (share of jobs
        whose hits are the same for every k), tolerances, worst (the job with the largest difference of losses).

    Raises
    ------
    InputError
        Nothing stored, a table that has changed, a backend that is not available here.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InputError(f"`sample` must be a whole number of at least 1; got {sample!r}.")
    for name, value in (("loss_tolerance", loss_tolerance), ("hits_tolerance", hits_tolerance)):
        if value is not None and not value >= 0:
            raise InputError(f"`{name}` must be at least 0; got {value!r}.")
    manifest, store = read_manifest(run_dir), ResultStore.open(run_dir)
    experiment = prepare_again(manifest, text, audio, device)
    plan, stored_by = experiment.plan, manifest["identity"].get("backend")
    chosen = select_backend(backend, experiment.config.precision, device, experiment.config.optimizer)
    units = store.done(plan)
    sizes = np.array([plan.count([u]) for u in units], np.int64)
    if not len(units):
        raise InputError(f"{run_dir}: nothing is stored yet, so nothing can be verified.")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else check_seed(seed)
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.choice(int(sizes.sum()), min(sample, int(sizes.sum())), replace=False))
    ends, hits = np.cumsum(sizes), [f"hits@{k}" for k in experiment.ks]
    # Of the ranks among the test classes the shares are stored, and not by runs of earlier versions.
    unseen = [name for name in unseen_names(experiment.ks) if name.startswith("acc@") and name in manifest["identity"]["columns"]]
    rows, at, start = [], None, time.monotonic()
    choices: list[float] = []  # how far the inner statistic of a nested choice is off
    for row in picked:
        i = int(np.searchsorted(ends, row, side="right"))
        if i != at:
            alone = is_similarity(store.cells[units[i].cell].probe)
            wanted = ["similarity"] if alone else ["loss", "n_queries", *hits, *unseen]
            wanted += ["inner"] if experiment.nested and not alone else []
            at, stored = i, store.read(units[i], ["split", "seed", "permutation", *wanted])
        r = int(row - (ends[i] - sizes[i]))
        split, repeat, b = (int(stored[n][r]) for n in ("split", "seed", "permutation"))
        if not (0 <= split < plan.n_splits and 0 <= repeat < plan.n_seeds and units[i].start <= b < units[i].stop):
            raise StoreError(f"{store.shard_path(units[i])}: row {r} is of no job of this run. See `fastprobe status --check`.")
        job = (units[i].cell, split, repeat, b)
        if alone:  # compared as a loss is; it has no hits
            value = float(experiment.similarities(units[i].cell, b, b + 1, chosen.name)[0])
            rows.append((float(stored["similarity"][r]), value, np.zeros(1), job))
            continue
        found = experiment.outcomes(units[i].cell, split, repeat, b, b + 1, chosen.name)
        again = summarise(found.ranks, found.classes, experiment.ks, experiment.n_classes, found.ranks_unseen)
        n_queries = found.ranks.shape[1]
        apart = [abs(int(again[h][0]) - int(stored[h][r])) / n_queries for h in hits]
        apart += [abs(float(again[name][0]) - float(stored[name][r])) for name in unseen]
        if experiment.nested:
            inner = float(experiment.inner_values(Unit(units[i].cell, b, b + 1), split, repeat, chosen.name)[0])
            choices.append(abs(inner - float(stored["inner"][r])) / max(abs(inner), 1.0))
        rows.append((float(stored["loss"][r]), float(found.loss[0]), np.array(apart), job))
    exact = chosen.name == stored_by
    low = experiment.config.precision not in ("ieee", "tf32x3")
    tolerances = {
        "loss": loss_tolerance if loss_tolerance is not None else 0.0 if exact else 0.05 if low else 1e-3,
        "hits": hits_tolerance if hits_tolerance is not None else 0.0 if exact else 0.02 if low else 2e-3,
    }
    losses = np.array([_relative(a, b) for a, b, *_ in rows])
    missed = float(np.mean([d.mean() for _, _, d, _ in rows]))
    inner_missed = float(np.mean(choices)) if choices else 0.0
    worst = rows[int(np.argmax(losses))]
    cell, split, repeat, b = worst[3]
    return {
        "agrees": bool(losses.max() <= tolerances["loss"] and max(missed, inner_missed) <= tolerances["hits"]),
        "jobs": len(rows),
        "backend": chosen.name,
        "stored_backend": stored_by,
        "seed": seed,
        "loss_difference": float(losses.max()),
        "hits_difference": missed,
        **({"inner_difference": inner_missed} if experiment.nested else {}),
        "equal_hits": float(np.mean([not d.any() for _, _, d, _ in rows])),
        "tolerances": tolerances,
        "seconds": round(time.monotonic() - start, 3),
        "worst": {
            "text": store.cells[cell].text,
            "audio": store.cells[cell].audio,
            "split": split,
            "seed": repeat,
            "permutation": b,
            "loss": worst[0],
            "again": worst[1],
        },
    }


def _relative(a: float, b: float) -> float:
    if a == b or (a != a and b != b):
        return 0.0
    return abs(a - b) / max(abs(b), 1e-3) if np.isfinite(a) and np.isfinite(b) else float("inf")
