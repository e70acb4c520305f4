"""A trained probe in use: projecting, ranking, indexing a gallery, answering queries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .closed import ClosedFormProbe
    from .fit import fit, load_probe
    from .gallery import KINDS, GalleryIndex, memory_estimate, top_k
    from .probe import ContrastiveProbe

__all__ = ["KINDS", "ClosedFormProbe", "ContrastiveProbe", "GalleryIndex", "fit", "load_probe", "memory_estimate", "top_k"]
_MODULES = {"ClosedFormProbe": ".closed", "ContrastiveProbe": ".probe", "fit": ".fit", "load_probe": ".fit"}


def __getattr__(name: str) -> Any:
    # On first use, because an index of a gallery and a probe do not need each other.
    if name in __all__:
        return getattr(importlib.import_module(_MODULES.get(name, ".gallery"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
