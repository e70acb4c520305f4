"""fastprobe: millions of small contrastive linear probes, trained as one job, with p-values that hold up.

    import fastprobe as fp
    result = fp.permutation_test("text.npz", "audio.npz", permutations=1000)
    result.statistic, result.pvalue, result.confidence_interval()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Names are imported on first use, so that `import fastprobe` and `fastprobe --help` stay instant.
_LAZY = {
    "EmbeddingTable": "embeddings", "ProbeConfig": "config", "ContrastiveProbe": "probe",
    "permutation_test": "run", "PermutationTestResult": "significance", "ResultStore": "store",
    "InputError": "errors", "BackendUnavailableError": "errors", "StoreError": "errors",
    "available_backends": "kernels",
}
_MODULES = ("kernels", "metrics", "plan", "run", "significance", "store", "probe", "embeddings", "compression",
            "config", "errors", "engines", "retrieval", "report", "extract", "simulate")

__all__ = ["BackendUnavailableError", "ContrastiveProbe", "EmbeddingTable", "InputError", "PermutationTestResult", "ProbeConfig",
           "ResultStore", "StoreError", "__version__", "available_backends", "kernels", "permutation_test"]

if TYPE_CHECKING:
    from . import kernels
    from .config import ProbeConfig
    from .embeddings import EmbeddingTable
    from .errors import BackendUnavailableError, InputError, StoreError
    from .kernels import available_backends
    from .probe import ContrastiveProbe
    from .run import permutation_test
    from .significance import PermutationTestResult
    from .store import ResultStore


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
