"""Runs beside a run: whether the same thing was tried with another seed, and how many configurations were."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StoreError
from ..storage import Folder, RemoteFolder, open_folder
from .manifest import read_manifest, to_json

# What may differ between runs that are tries of one thing: the seed, and how texts and sounds are brought together.
_PROBES = ("probe", "probes", "select", "select_statistic")


class Tried(NamedTuple):
    """What was tried on the same tables with the same options, in a run and in those beside it.

    Attributes
    ----------
    configurations : int
        Different probes.
    seeds : list of int
        Ascending.
    reseeded : list of (str, int)
        Name and seed of each run that differs in its seed alone.
    runs : int
        Runs beside it that were counted.
    """

    configurations: int
    seeds: list[int]
    reseeded: list[tuple[str, int]]
    runs: int


def tried(run_dir: str | os.PathLike | Folder | RemoteFolder | None, manifest: dict[str, Any]) -> Tried:
    """Look at the run directories that lie in the same folder.

    Parameters
    ----------
    run_dir : path-like
        The run, whether it is there yet or not. Beside one in memory or behind a URL nothing is looked for.
    manifest : dict
        Its manifest, or what that will be.
    """
    identity, statistic = json.loads(to_json(manifest["identity"])), manifest["statistic"]
    own, same, seeds = _configurations(identity), _but_for(identity, statistic), {identity["seed"]}
    reseeded, runs = [], 0
    for name, other in _beside(run_dir):
        theirs = other["identity"]
        if _but_for(theirs, other.get("statistic")) != same or type(theirs.get("seed")) is not int:
            continue
        runs += 1
        seeds.add(theirs["seed"])
        alike = all(identity.get(key) == theirs.get(key) for key in _PROBES)
        own |= _configurations(theirs)
        if alike and theirs["seed"] != identity["seed"]:
            reseeded.append((name, theirs["seed"]))
    return Tried(len(own), sorted(seeds), reseeded, runs)


def _beside(run_dir: Any) -> list[tuple[str, dict[str, Any]]]:
    """Manifests of the other runs in the same folder, by name; what cannot be read is no run."""
    if run_dir is None or isinstance(folder := open_folder(run_dir), RemoteFolder):
        return []
    here = Path(os.path.realpath(folder.path))
    out = []
    try:
        names = sorted(p for p in here.parent.iterdir() if p != here and (p / "manifest.json").is_file())
    except OSError:
        return []
    for path in names:
        try:
            out.append((path.name, read_manifest(path)))
        except StoreError:
            continue
    return out


def _configurations(identity: dict[str, Any]) -> set[str]:
    probes = identity.get("probes") or {"contrastive": identity.get("probe")}
    return {json.dumps(probe, sort_keys=True) for probe in probes.values()}


def _but_for(identity: dict[str, Any], statistic: Any) -> dict[str, Any]:
    """What runs of one thing share: all but the seed and the probes. Tables go by their content; those made for a run do not count."""
    inputs = [t for t in identity.get("inputs") or () if isinstance(t, dict) and not t.get("made")]
    rest = {k: v for k, v in identity.items() if k not in ("seed", "inputs", *_PROBES)}
    return {**rest, "statistic": statistic, "inputs": [[t.get(k) for k in ("side", "name", "digest")] for t in inputs]}


def warning(found: Tried) -> str | None:
    """A sentence for whoever has the same run with another seed; None when there is none."""
    if not found.reseeded:
        return None
    names = ", ".join(f"{name} (--seed {seed})" for name, seed in found.reseeded[:3]) + (", ..." if len(found.reseeded) > 3 else "")
    verb = "differs" if len(found.reseeded) == 1 else "differ"
    return (
        f"{names} beside it {verb} in nothing but the seed. To take the better of several seeds is a choice that no p-value here pays "
        "for: keep the seed that was declared first, or report all; --seeds averages over repeats within one run."
    )
