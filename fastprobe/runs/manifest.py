"""manifest.json: what a run is, for whoever resumes, merges or reads it. It may come from strangers."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from ..errors import StoreError
from ..protocol.cells import Cell, shape_of
from ..protocol.plan import LIMITS, JobPlan
from ..storage import Folder, RemoteFolder, open_folder

FORMAT_VERSION = 1
CURVE = "curve.json"  # in the folder of a curve, whose points are runs below it


def to_json(value: Any) -> str:
    """JSON with the keys in their order; NaN and infinity become null, which every reader accepts."""

    def plain(v: Any) -> Any:
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(x) for x in v]
        if isinstance(v, np.generic):
            v = v.item()
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """The file."""
    return to_json({"format_version": FORMAT_VERSION, **manifest}).encode()


def describe_difference(old: dict[str, Any], new: dict[str, Any], here: str = "there", there: str = "now") -> str:
    """How two identities differ, in words: the table by name when it is a table. Empty when they are equal."""
    new = json.loads(to_json(new))
    changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    if not changed:
        return ""
    if "shuffles" in changed:
        return "different versions of fastprobe drew the permutations, in different ways"
    tables = [{(t.get("side"), t.get("name")): t for t in side.get("inputs") or () if isinstance(t, dict)} for side in (old, new)]
    for key in sorted(tables[0].keys() & tables[1].keys(), key=str):
        a, b = (t[key] for t in tables)
        if a.get("digest") != b.get("digest"):
            return (
                f"the {key[0]} table {key[1]!r} has changed since (digest {str(a.get('digest'))[:12]} {here}, "
                f"{str(b.get('digest'))[:12]} {there}; {a.get('rows')} rows {here}, {b.get('rows')} {there})"
            )
        if a != b:
            a, b = ({**t, **(t["meta"] if isinstance(t.get("meta"), dict) else {})} for t in (a, b))
            inner = next(k for k in sorted({*a, *b}, key=str) if k != "meta" and a.get(k) != b.get(k))
            return (
                f"the {key[0]} table {key[1]!r} has the same vectors and another `{inner}`: {_short(a.get(inner))} {here}, "
                f"{_short(b.get(inner))} {there}"
            )
    first, was, now = changed[0], old.get(changed[0]), new.get(changed[0])
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(k for k in sorted({*was, *now}) if was.get(k) != now.get(k))
        first, was, now = f"{first}.{inner}", was.get(inner), now.get(inner)
    more = f" (also differing: {', '.join(changed[1:])})" if changed[1:] else ""
    return f"`{first}` was {_short(was)} {here} and is {_short(now)} {there}{more}"


def _columns_of_format_1(ks: list[Any]) -> list[str]:
    """The metrics that runs stored before manifests listed them."""
    per_k = [f"{name}@{k}{form}" for name, form in (("hits", ""), ("acc", "_macro"), ("acc", "_micro")) for k in ks]
    means = ("mrr", "mean_rank", "mean_log_rank")
    return ["n_queries", *per_k, *means, *(f"{name}_micro" for name in means), "median_rank"]


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def read_manifest(path: str | os.PathLike | Folder | RemoteFolder) -> dict[str, Any]:
    """manifest.json of a run directory.

    Raises
    ------
    StoreError
        No run there, a damaged manifest, numbers beyond any run, or one written by a newer version.
    """
    folder = open_folder(path)
    file = f"{folder}/manifest.json"
    foreign = StoreError(f"{file}: not a fastprobe manifest, or a damaged one.")
    try:
        manifest = json.loads(folder.read("manifest.json").decode("utf-8"))
        version, identity = manifest["format_version"], manifest["identity"]
        if not _whole(version, 1, 1 << 31) or not isinstance(identity, dict):
            raise foreign
    except (FileNotFoundError, NotADirectoryError):
        if _holds_curve(folder):
            raise StoreError(
                f"{folder}: a curve, whose points are runs in folders below it. Name one of these, or report the curve."
            ) from None
        raise StoreError(f"{folder}: no run directory (no manifest.json in it).") from None
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise foreign from None
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{file}: written by a newer fastprobe (format {version}, this one reads up to {FORMAT_VERSION}). Upgrade fastprobe."
        )
    if isinstance(ks := identity.get("k"), list):
        identity.setdefault("columns", _columns_of_format_1(ks))
    pairs = identity.get("pairs")
    if not (
        isinstance(pairs, list) and pairs and all(isinstance(p, list) and len(p) == 2 and all(isinstance(n, str) for n in p) for p in pairs)
    ):
        raise foreign
    probes = identity.get("probes", {"": {}})
    if not (isinstance(probes, dict) and probes and all(isinstance(p, dict) for p in probes.values())):
        raise foreign
    for name, value, low in (
        ("splits", identity.get("splits"), 1),
        ("seeds", identity.get("seeds"), 1),
        ("permutations", manifest.get("permutations"), 0),
    ):
        if not _whole(value, low, LIMITS[name]):
            raise StoreError(f"{file}: `{name}` must be a whole number from {low} to {LIMITS[name]:,}; got {_short(value)}.")
    if not isinstance(manifest.get("statistic"), str):
        raise StoreError(f"{file}: `statistic` must name a metric; got {_short(manifest.get('statistic'))}.")
    return manifest


def _holds_curve(folder: Folder | RemoteFolder) -> bool:
    try:
        return CURVE in folder.names()
    except OSError:  # a file, say
        return False


def _short(value: Any, limit: int = 80) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def cells_of(identity: dict[str, Any]) -> list[Cell]:
    """The cells of a run: every pair with every probe, pair by pair."""
    return [Cell(text, audio, probe) for text, audio in identity["pairs"] for probe in identity.get("probes", ("contrastive",))]


def shapes_of(identity: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Splits and repeats of every cell."""
    return tuple(shape_of(cell.probe, identity["splits"], identity["seeds"]) for cell in cells_of(identity))


def observed_only_of(identity: dict[str, Any]) -> int:
    """How many cells, the last ones, are ceilings: they have the observed run alone."""
    count = identity.get("ceiling", 0)
    return (count if _whole(count, 0, len(identity["pairs"]) - 1) else 0) * len(identity.get("probes", ("contrastive",)))


def plan_of(manifest: dict[str, Any]) -> JobPlan:
    """The plan that a manifest describes."""
    identity = manifest["identity"]
    try:
        return JobPlan(
            len(cells_of(identity)),
            identity["splits"],
            identity["seeds"],
            manifest.get("permutations_at_most", manifest["permutations"]),
            shapes_of(identity),
            observed_only_of(identity),
        )
    except KeyError as error:
        raise StoreError(f"the manifest lacks {error}: it is damaged, or no run's.") from None
