"""What this machine has, what is used, and what would help."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import __version__
from .kernels import available_backends, select_backend

_PACKAGES = {"torch": "trains on GPUs and as the torch backend", "triton": "fused GPU kernels", "faiss-cpu": "retrieval",
             "faiss-gpu": "retrieval on the GPU", "faiss-cuda": "retrieval on the GPU (community build)",
             "transformers": "embed text; AST and CLAP", "timm": "AudioMAE", "hear21passt": "PaSST", "panns_inference": "PANN",
             "soundfile": "reads recordings", "soxr": "resamples recordings", "soundata": "FSD50K, ESC-50, UrbanSound8K",
             "ray": "runs on many machines"}


def examine() -> dict[str, Any]:
    """Versions, devices and backends as a plain record.

    Returns
    -------
    dict
        ``versions`` (package to version, None when absent), ``devices``, ``backends`` (name to None or
        why not), ``auto`` (the backend that ``auto`` takes), ``advice`` (list of str).
    """
    versions: dict[str, str | None] = {"fastprobe": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    devices = [f"cpu ({os.cpu_count()} cores, {platform.machine()})"]
    if versions["torch"]:
        import torch
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        devices += ["mps"] if torch.backends.mps.is_available() else []
    backends = available_backends()
    advice = [f"backend {name}: {why}" for name, why in backends.items() if why]
    faiss = [n for n in versions if n.startswith("faiss") and versions[n]]
    if not faiss:
        advice.append("no FAISS, so nothing retrieves from large galleries: pip install faiss-cpu (or faiss-gpu)")
    if len(faiss) > 1:
        advice.append(f"{' and '.join(faiss)} provide the same module: keep one of them")
    return {"versions": versions, "purposes": _PACKAGES, "devices": devices, "backends": backends,
            "auto": select_backend("auto").name, "advice": advice}
