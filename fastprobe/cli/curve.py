"""The shell's door to curves: `fastprobe run` with several train fractions, numbers of clips or sizes of the gallery."""

from __future__ import annotations

from typing import Any

import typer

from ..errors import InputError
from .runs import carry_out as carry_out_run


def carry_out(text: list[Any], audio: list[Any], asked: dict[str, Any], out: str, *, resume: bool = False, **how: Any) -> None:
    """A run for every point, each in a folder of its own below `out`, and the table of all, adjusted together.

    Parameters
    ----------
    asked : dict
        Fields of `RunRequest`, some of `curve.FIELDS` with several values.
    resume : bool
        Continue the points that were begun, and begin the others.
    **how
        As `runs.carry_out` takes them.

    Raises
    ------
    InputError
        A stopping rule or --shard, which a curve cannot have; a point that cannot be.
    """
    from ..runs import curve
    from ..runs.experiment import prepare
    from ..runs.manifest import CURVE
    from ..storage import open_folder, within
    from .console import curve_table, output

    if how.get("shard") is not None:
        raise InputError(f"`shard`={how['shard']!r}: the points of a curve are adjusted together once all are whole. Leave it out.")
    fields, points, requests = curve.requests_of(asked)
    if "manifest.json" in (there := open_folder(out).names()) or (CURVE in there and not resume):
        raise InputError(f"{out} holds a run or a curve already. Add --resume to continue a curve, or choose another --out.")
    for request in requests:  # all of them before the first is trained: what cannot be is said at once
        prepare(text, audio, request)
    folders = [curve.folder_of(point, fields) for point in points]
    for number, (request, name) in enumerate(zip(requests, folders), start=1):
        place = str(within(out, name))
        begun = "manifest.json" in open_folder(place).names()
        if begun and not resume:
            raise InputError(f"{place} holds a run already. Add --resume to continue it, or choose another --out.")
        if not how.get("quiet"):
            typer.echo(f"point {number} of {len(points)}: {', '.join(f'{f} {points[number - 1][f]}' for f in fields)}", err=True)
        carry_out_run(text, audio, request, place, resume=begun, show=False, **how)
    made = curve.of_runs(out, fields, points, folders)
    curve.write_curve(out, made)
    output().print(curve_table(made))
    typer.echo(f"curve: {out}; draw it with `fastprobe report {out}`", err=True)
