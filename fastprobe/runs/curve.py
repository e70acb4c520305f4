"""Curves: the same test at several train fractions, numbers of clips or sizes of the gallery, as one family.

    p of a point, adjusted = (1 + #{b : max over all points of z_b >= z_0}) / (1 + B)

Every point is a run of its own. Permutation b is the same in all of them, so that max-T spans the points as it spans the pairs of one run.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, StoreError
from ..statistics.intervals import class_interval
from ..statistics.multiplicity import max_t
from ..statistics.significance import PermutationTestResult
from ..storage import open_folder, within
from .analysis import analyse
from .manifest import CURVE, read_manifest, to_json
from .request import RunRequest
from .run import tested
from .specification import stored_specification
from .store import ResultStore

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIELDS", "Curve", "curve", "load_curve"]

FIELDS = ("train_fraction", "clips", "gallery_size")
FORMAT = 1
BAND = (0.025, 0.975)
Point = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """What `curve` gives.

    Attributes
    ----------
    fields : tuple of str
        Those that vary.
    points : tuple of dict
        Their values at every point, in order.
    records : tuple of dict
        A record per point, pair and probe: the point's values, text, audio, probe, metric, statistic, null_mean, null_low and
        null_high (the middle 95% of the null), low and high (the 95% interval over fresh classes), chance, pvalue, pvalue_maxT
        (adjusted for all records).
    """

    fields: tuple[str, ...]
    points: tuple[Point, ...]
    records: tuple[dict[str, Any], ...]

    def to_frame(self) -> pd.DataFrame:
        """The records as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(list(self.records))


def points_of(values: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Point]]:
    """The fields that vary and every combination of their values.

    Raises
    ------
    InputError
        A value given twice, or an empty list.

    Examples
    --------
    >>> points_of({"train_fraction": [0.5, 0.7], "clips": 5, "gallery_size": None})
    (('train_fraction',), [{'train_fraction': 0.5, 'clips': 5}, {'train_fraction': 0.7, 'clips': 5}])
    """
    lists: dict[str, list[Any]] = {}
    for name in FIELDS:
        value = values.get(name)
        if value is None:
            continue
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        if not several:
            raise InputError(f"`{name}` needs at least one value; got an empty list.")
        if len(set(map(str, several))) < len(several):
            raise InputError(f"`{name}` has a value twice: {', '.join(map(str, several))}. Keep one of each.")
        lists[name] = several
    varying = tuple(name for name, several in lists.items() if len(several) > 1)
    return varying, [dict(zip(lists, combination)) for combination in itertools.product(*lists.values())]


def requests_of(options: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Point], list[RunRequest]]:
    """What a curve asks: the fields that vary, its points, and a request for each.

    Parameters
    ----------
    options : mapping
        Fields of `RunRequest`; those of `FIELDS` may have several values.

    Raises
    ------
    InputError
        No list among them, a stopping rule (the points would end at different permutations), a request that cannot be.
    """
    fields, points = points_of(options)
    if not fields:
        raise InputError(f"a curve needs several values of {', '.join(f'`{n}`' for n in FIELDS)}; got one of each. Give a list.")
    if options.get("stop") is not None:
        raise InputError(
            f"`stop`={str(options['stop'])!r} would end the points of a curve at different permutations, which cannot be adjusted "
            "together. Leave it out."
        )
    plain = {name: value for name, value in options.items() if name not in FIELDS}
    return fields, points, [RunRequest(**plain, **point) for point in points]


def folder_of(point: Point, fields: Sequence[str]) -> str:
    """Name of a point's run directory below the curve's.

    Examples
    --------
    >>> folder_of({"train_fraction": 0.5, "clips": 5}, ["train_fraction"])
    'train_fraction-0.5'
    """
    return "_".join(f"{name}-{point[name]}" for name in fields)


def records_of(points: Sequence[Point], results: Sequence[Sequence[PermutationTestResult]]) -> list[dict[str, Any]]:
    """The records of a curve, from the results of its points; adjusted together.

    Raises
    ------
    InputError
        Points with different numbers of permutations, which cannot be adjusted together.
    """
    cells = [(point, r) for point, some in zip(points, results) for r in some]
    counts = {r.n_permutations for _, r in cells}
    if len(counts) > 1:
        raise InputError(
            f"the points of a curve must have the same permutations to be adjusted together; got {', '.join(map(str, sorted(counts)))}. "
            "Run all of them with one number."
        )
    adjusted = [float("nan")] * len(cells)
    if counts != {0}:
        oriented = [(-1.0 if r.lower_is_better else 1.0) * np.array([r.statistic, *r.null_distribution]) for _, r in cells]
        adjusted = max_t(np.stack(oriented)).tolist()
    out = []
    for (point, r), p in zip(cells, adjusted):
        low, high = np.quantile(r.null_distribution, BAND) if r.n_permutations else (float("nan"), float("nan"))
        fresh = class_interval(r.per_split, r.n_train, r.n_test)
        out.append(
            {
                **point,
                "text": r.text,
                "audio": r.audio,
                "probe": r.probe,
                "metric": r.metric,
                "statistic": r.statistic,
                "low": fresh.low,
                "high": fresh.high,
                "null_mean": r.null_mean,
                "null_low": float(low),
                "null_high": float(high),
                "chance": r.chance,
                "pvalue": r.pvalue,
                "pvalue_maxT": p,
            }
        )
    return out


def curve(
    text: Any,
    audio: Any,
    request: RunRequest | None = None,
    *,
    train_fraction: Any = None,
    clips: Any = None,
    gallery_size: Any = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Curve:
    """The permutation test at several train fractions, numbers of clips or sizes of the gallery.

    Parameters
    ----------
    text, audio
        As in `permutation_test`.
    request : RunRequest, optional
        What is asked at every point; or its fields by name.
    train_fraction : float or list of float, optional
    clips, gallery_size : int or list of int, optional
        Every combination is a point. Splits differ between train fractions; clips and galleries are nested.
    out : path-like or URL, optional
        Folder of the curve, a run directory for each point in it.
    resume : bool
        Continue what is in `out`.
    progress : bool, optional
        As in `permutation_test`.

    Raises
    ------
    InputError
        No list among the three, a stopping rule (its points would end at different permutations), bad input.

    Examples
    --------
    >>> import fastprobe as fp
    >>> text, audio = fp.simulate.simulate_pair([f"class {i}" for i in range(12)], alignment=1.0)
    >>> found = fp.curve(text, audio, clips=[2, 8], permutations=19, splits=2, probe="procrustes", backend="cpp")
    >>> sorted({r["clips"] for r in found.records})
    [2, 8]
    """
    base = {} if request is None else {f.name: getattr(request, f.name) for f in dataclass_fields(request)}
    given = {"train_fraction": train_fraction, "clips": clips, "gallery_size": gallery_size}
    fields, points, requests = requests_of({**base, **options, **{name: value for name, value in given.items() if value is not None}})
    results = []
    for point, each in zip(points, requests):
        place = None if out is None else within(out, folder_of(point, fields))
        again = resume and place is not None and "manifest.json" in open_folder(place).names()
        results.append(tested(text, audio, each, place, again, progress)[2])
    made = Curve(fields, tuple(points), tuple(records_of(points, results)))
    if out is not None:
        write_curve(out, made)
    return made


def write_curve(out: str | os.PathLike, made: Curve) -> None:
    """Write ``curve.json``, from which `load_curve` finds the runs."""
    folder = open_folder(out)
    folders = [folder_of(p, made.fields) for p in made.points]
    told = {"format": FORMAT, "fields": list(made.fields), "points": list(made.points), "runs": folders, "records": list(made.records)}
    folder.write(CURVE, to_json(told).encode())


def is_curve(path: str | os.PathLike) -> bool:
    """Whether a folder, here or behind a URL, holds a curve."""
    return CURVE in open_folder(path).names()


def load_curve(path: str | os.PathLike) -> Curve:
    """A stored curve, computed again from the runs of its points.

    Raises
    ------
    StoreError
        No curve there, or one whose points are not all finished.
    """
    folder = open_folder(path)
    try:
        told = json.loads(folder.read(CURVE))
        fields, points, runs = tuple(told["fields"]), tuple(dict(p) for p in told["points"]), [str(r) for r in told["runs"]]
        if told["format"] != FORMAT or not points or len(runs) != len(points) or any(f not in FIELDS for f in fields):
            raise ValueError("format")
    except FileNotFoundError:
        raise StoreError(f"{folder}: no curve (no {CURVE} in it).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}/{CURVE}: damaged, or no curve's ({type(error).__name__}).") from None
    if any(name != os.path.basename(name) or name in ("", ".", "..") for name in runs):
        raise StoreError(f"{folder}/{CURVE}: its runs must lie in the folder itself.")
    return of_runs(path, fields, points, runs)


def of_runs(path: str | os.PathLike, fields: Sequence[str], points: Sequence[Point], runs: Sequence[str]) -> Curve:
    """The curve of runs that are stored below a folder."""
    results = []
    for name in runs:
        place = within(path, name)
        manifest = read_manifest(place)
        if manifest.get("status") != "done":
            raise StoreError(f"{place}: a point of the curve that is not finished. Continue it with --resume.")
        results.append(analyse(stored_specification(manifest), ResultStore.open(place)))
    return Curve(tuple(fields), tuple(points), tuple(records_of(points, results)))
