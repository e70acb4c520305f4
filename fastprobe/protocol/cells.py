"""Cells: what a run is made of. A cell is a text table, an audio table and a probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import InputError
from .config import ProbeConfig
from .probes import is_similarity, is_trained


class Cell(NamedTuple):
    """Names of a cell's parts.

    Attributes
    ----------
    text, audio : str
        Names of the tables.
    probe : str
        "contrastive", or with what tells it from others of its kind: "contrastive:temperature=0.1".
    """

    text: str
    audio: str
    probe: str = "contrastive"

    def __str__(self) -> str:
        own = "" if self.probe == "contrastive" else f", {self.probe}"
        return f"{self.text} x {self.audio}{own}"


def probe_names(probes: Sequence[Any]) -> list[str]:
    """The name of each probe of a run.

    Contrastive probes are named after the fields in which they differ from one another, other probes name themselves.

    Raises
    ------
    InputError
        The same probe twice.

    Examples
    --------
    >>> from fastprobe.protocol.cells import probe_names
    >>> from fastprobe.protocol.config import ProbeConfig
    >>> probe_names(ProbeConfig.grid(temperature=[0.1, 0.25]))
    ['contrastive:temperature=0.1', 'contrastive:temperature=0.25']
    """
    trained = [p for p in probes if isinstance(p, ProbeConfig)]
    fields = [f.name for f in dataclasses.fields(ProbeConfig)]
    differing = [name for name in fields if len({getattr(p, name) for p in trained}) > 1]
    out = []
    for probe in probes:
        if isinstance(probe, ProbeConfig):
            own = ",".join(f"{name}={_short(getattr(probe, name))}" for name in differing)
            out.append("contrastive" + (f":{own}" if own else ""))
        else:
            out.append(str(probe.name))
    if twice := sorted({name for name in out if out.count(name) > 1}):
        raise InputError(f"`probe` has {twice[0]!r} twice. Give each configuration once.")
    return out


def shape_of(probe: str, n_splits: int, n_seeds: int) -> tuple[int, int]:
    """Splits and repeats of a cell, by the name of its probe: a closed form draws nothing, a similarity looks at all classes."""
    return (1, 1) if is_similarity(probe) else (n_splits, n_seeds if is_trained(probe) else 1)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
