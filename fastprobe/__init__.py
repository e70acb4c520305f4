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
_NAMES = {
    "EmbeddingTable": "tables.embeddings",
    "ProbeConfig": "protocol.config",
    "RunRequest": "runs.request",
    "Ridge": "protocol.probes",
    "Procrustes": "protocol.probes",
    "CCA": "protocol.probes",
    "Similarity": "protocol.probes",
    "ContrastiveProbe": "retrieval.probe",
    "ClosedFormProbe": "retrieval.closed",
    "fit": "retrieval.fit",
    "load_probe": "retrieval.fit",
    "permutation_test": "runs.run",
    "curve": "runs.curve",
    "PermutationTestResult": "statistics.significance",
    "ResultStore": "runs.store",
    "InputError": "errors",
    "BackendUnavailableError": "errors",
    "StoreError": "errors",
    "available_backends": "kernels",
}
# Modules that version 1 offered as attributes, and where they are now.
_MODULES = {
    **{
        name: name
        for name in (
            "cli",
            "errors",
            "extract",
            "kernels",
            "protocol",
            "randomness",
            "report",
            "retrieval",
            "runs",
            "statistics",
            "storage",
            "tables",
        )
    },
    "metrics": "protocol.metrics",
    "plan": "protocol.plan",
    "config": "protocol.config",
    "compression": "protocol.features",
    "run": "runs.run",
    "store": "runs.store",
    "engines": "runs.engines",
    "significance": "statistics.significance",
    "probe": "retrieval.probe",
    "embeddings": "tables.embeddings",
    "simulate": "tables.simulate",
}

__all__ = [
    "CCA",
    "BackendUnavailableError",
    "ClosedFormProbe",
    "ContrastiveProbe",
    "EmbeddingTable",
    "InputError",
    "PermutationTestResult",
    "ProbeConfig",
    "Procrustes",
    "ResultStore",
    "Ridge",
    "RunRequest",
    "Similarity",
    "StoreError",
    "__version__",
    "available_backends",
    "fit",
    "kernels",
    "load_probe",
    "permutation_test",
]

if TYPE_CHECKING:
    from . import kernels
    from .errors import BackendUnavailableError, InputError, StoreError
    from .kernels import available_backends
    from .protocol.config import ProbeConfig
    from .protocol.probes import CCA, Procrustes, Ridge, Similarity
    from .retrieval.closed import ClosedFormProbe
    from .retrieval.fit import fit, load_probe
    from .retrieval.probe import ContrastiveProbe
    from .runs.request import RunRequest
    from .runs.run import permutation_test
    from .runs.store import ResultStore
    from .statistics.significance import PermutationTestResult
    from .tables.embeddings import EmbeddingTable


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
