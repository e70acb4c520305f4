"""Many run directories of one plan (``--shard I/N``) into one, with nothing counted twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, StoreError
from ..protocol.plan import Unit
from ..storage import Folder, RemoteFolder, open_folder
from .audit import part_of
from .lock import RunLock
from .manifest import describe_difference, plan_of, read_manifest
from .run import analyse, summary
from .specification import stored_specification
from .store import ResultStore

OTHER_FILES = ("observed.parquet", "retrieved.parquet")


class Merged(NamedTuple):
    """What a merge did.

    Attributes
    ----------
    done, total : int
        Jobs in the merged directory, and of the plan.
    overlapping : int
        Jobs that several runs had, with the same content.
    summary : dict or None
        Once the plan is complete.
    """

    done: int
    total: int
    overlapping: int
    summary: dict[str, Any] | None


def merge(out: str | os.PathLike, runs: Sequence[str | os.PathLike]) -> Merged:
    """Bring the shards of several runs together.

    Jobs are the same wherever they are trained, so an overlap must have equal content, bit for bit.

    Parameters
    ----------
    out : path-like or URL
        A new directory, or one that an earlier merge of the same plan began.
    runs : sequence of path-like or URL

    Raises
    ------
    StoreError
        Runs of other inputs or another configuration, a damaged shard, an overlap with different content; each by name.
        `out` then has no more than whole shards that agree.
    """
    if not runs:
        raise InputError("`runs` must name at least one run directory.")
    folders = [open_folder(r) for r in runs]
    if len({_place(f) for f in [*folders, open_folder(out)]}) <= len(folders):
        raise InputError("`out` and `runs` must be different directories, each named once.")
    manifests = [read_manifest(f) for f in folders]
    first = manifests[0]
    for name, manifest in zip(runs[1:], manifests[1:]):
        difference = describe_difference(first["identity"], manifest["identity"], f"in {runs[0]}", f"in {name}") or describe_difference(
            {"statistic": first.get("statistic")}, {"statistic": manifest.get("statistic")}, f"in {runs[0]}", f"in {name}"
        )
        if difference:
            raise StoreError(f"{name} is another run than {runs[0]}: {difference}. Merge runs of the same tables and options only.")
    if "stop" in first["identity"]:
        raise StoreError(f"{runs[0]} stops early by a rule that sees all permutations in order, so it has no parts to merge.")
    largest = max(manifests, key=lambda m: plan_of(m).n_permutations)
    for manifest in manifests:
        part_of(manifest)
    spec, stores = stored_specification(largest), [ResultStore.open(f) for f in folders]
    plan = spec.plan
    everything = _checked(runs, stores)
    target = ResultStore.create(out, {**largest, "status": "merging", "part": [0, 1]}, resume=True)
    with RunLock(target.on_disk):
        for _ in target.mend():
            continue
        _agree([*stores, target], [*everything, *((u, len(stores)) for u in target.done())])
        overlapping, at, cell = 0, 0, -1
        for unit, i in sorted([*everything, *((u, -1) for u in target.done())]):
            at = at if unit.cell == cell else 0
            cell, rest = unit.cell, Unit(unit.cell, max(at, unit.start), unit.stop)
            if i >= 0:
                overlapping += plan.jobs(unit.cell) * (unit.stop - unit.start - max(rest.stop - rest.start, 0))
                if rest == unit:
                    target.on_disk.write(target.shard_name(unit), stores[i].on_disk.read(target.shard_name(unit)))
                elif rest.start < rest.stop:
                    target.write(rest, _rows(stores[i].read(unit), unit, rest))
            at = max(at, unit.stop)
        for name in OTHER_FILES:
            found = next((data for s in stores if (data := s.read_file(name)) is not None), None)
            if found is not None and target.read_file(name) is None:
                target.write_file(name, found)
        left = plan.count(plan.gaps(target.done(plan)))
        result = None
        if not left:
            result = summary(spec, analyse(spec, target), target)
            target.write_summary(result)
        target.write_manifest({**largest, "status": "partly merged" if left else "done", "part": [0, 1]})
    return Merged(plan.n_jobs - left, plan.n_jobs, overlapping, result)


def _place(folder: Folder | RemoteFolder) -> str:
    """One spelling of a directory, however it was given."""
    return str(folder) if isinstance(folder, RemoteFolder) else os.path.realpath(folder.path)


def _rows(columns: dict[str, np.ndarray], unit: Unit, part: Unit) -> dict[str, np.ndarray]:
    """The rows of a unit that belong to a part of its permutations."""
    per = len(columns["permutation"]) // (unit.stop - unit.start)
    low, high = per * (part.start - unit.start), per * (part.stop - unit.start)
    return {name: values[low:high] for name, values in columns.items()}


def _checked(runs: Sequence[str | os.PathLike], stores: list[ResultStore]) -> list[tuple[Unit, int]]:
    """All units and whose they are, once every shard is known to be whole and shared jobs to have the same values."""
    everything = []
    for i, store in enumerate(stores):
        for unit in store.done():
            if why := store.damage(unit):
                raise StoreError(
                    f"{store.shard_path(unit)}: damaged ({why}). Continue {runs[i]} with `--resume`, which "
                    "computes just that again, then merge."
                )
            everything.append((unit, i))
    _agree(stores, everything)
    return everything


def _agree(stores: list[ResultStore], units: list[tuple[Unit, int]]) -> None:
    """Refuse jobs that two stores hold with different values."""
    open_units: list[tuple[Unit, int]] = []
    for unit, i in sorted(units):
        open_units = [(u, j) for u, j in open_units if u.cell == unit.cell and u.stop > unit.start]
        for other, j in open_units:
            part = Unit(unit.cell, unit.start, min(unit.stop, other.stop))
            a, b = _rows(stores[j].read(other), other, part), _rows(stores[i].read(unit), unit, part)
            for name in sorted({*a, *b}):
                if name not in a or name not in b or a[name].tobytes() != b[name].tobytes():
                    raise StoreError(
                        f"{stores[j].shard_path(other)} and {stores[i].shard_path(unit)} hold the same jobs with "
                        f"different content (column `{name}`, permutations {part.start} to {part.stop - 1}). One "
                        "was made by another version, on another kind of machine, or is damaged: find out which "
                        "with `fastprobe verify`, and leave it out."
                    )
        open_units.append((unit, i))
