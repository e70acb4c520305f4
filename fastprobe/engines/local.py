"""This process, one unit after the other; the backend itself uses all cores or the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..plan import Unit


def execute(compute: Callable[[Unit], dict[str, np.ndarray]],
            units: Iterable[Unit]) -> Iterator[tuple[Unit, dict[str, np.ndarray]]]:
    """Compute units in order."""
    for unit in units:
        yield unit, compute(unit)
