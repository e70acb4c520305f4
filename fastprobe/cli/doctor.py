"""What this machine has, what is used, and what would help."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..errors import InputError
from ..extract.models import packages as audio_packages
from ..kernels import available_backends, select_backend

_PACKAGES = {
    "torch": "trains on GPUs and as the torch backend",
    "triton": "fused GPU kernels",
    "faiss-cpu": "retrieval",
    "faiss-gpu": "retrieval on the GPU",
    "faiss-cuda": "retrieval on the GPU (community build)",
    "transformers": "embed text",
    "soundfile": "reads recordings",
    "soxr": "resamples recordings",
    "soundata": "FSD50K, ESC-50, UrbanSound8K",
    "ray": "runs on many machines",
}
for _name, _models in audio_packages().items():
    _PACKAGES[_name] = "; ".join(filter(None, [_PACKAGES.get(_name), f"embed audio ({', '.join(_models)})"]))


def examine() -> dict[str, Any]:
    """Versions, devices and backends as a plain record.

    Returns
    -------
    dict
        ``versions`` (package to version, None when absent), ``devices``, ``faiss`` (see `examine_faiss`), ``backends`` (name to None or
        why not), ``auto`` (the backend that ``auto`` takes), ``advice`` (list of str).
    """
    versions: dict[str, str | None] = {"fastprobe": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    backends = available_backends()
    advice = [f"backend {name}: {why}" for name, why in backends.items() if why]
    cpu = f"{os.cpu_count()} cores, {platform.machine()}"
    if backends["cpp"] is None:
        from ..kernels.cpp_backend import describe

        try:
            cpu += f", cpp uses {describe()}"
        except InputError as error:
            advice.append(str(error))
    devices = [f"cpu ({cpu})"]
    if versions["torch"]:
        import torch

        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        devices += ["mps"] if torch.backends.mps.is_available() else []
    gpus = sum(d.startswith("cuda") for d in devices)
    faiss = examine_faiss({n: v for n, v in versions.items() if n.startswith("faiss") and v}, gpus)
    advice += faiss.pop("advice")
    return {
        "versions": versions,
        "purposes": _PACKAGES,
        "devices": devices,
        "faiss": faiss,
        "backends": backends,
        "auto": select_backend("auto").name,
        "advice": advice,
    }


def examine_faiss(packages: dict[str, str], gpus: int) -> dict[str, Any]:
    """Which FAISS is installed, whether it loads and sees the GPUs, and what would help.

    Parameters
    ----------
    packages : dict
        Installed packages that provide the module ``faiss``, with their versions.
    gpus : int
        NVIDIA GPUs that PyTorch sees.

    Returns
    -------
    dict
        ``packages``, ``version`` (of the module that is loaded, or None), ``gpu_build`` (bool), ``gpus`` (that FAISS can use),
        ``advice`` (list of str).
    """
    from ..kernels.topk import faiss_installed, load_faiss

    found: dict[str, Any] = {"packages": packages, "version": None, "gpu_build": False, "gpus": 0, "advice": []}
    advice = found["advice"]
    if len(packages) > 1:
        advice.append(
            f"{' and '.join(packages)} write over each other's files, being one module: pip uninstall -y "
            f"{' '.join(packages)}, then install {'faiss-gpu' if gpus else 'faiss-cpu'} alone"
        )
    if not packages and not faiss_installed():
        advice.append(
            "no FAISS: exact retrieval works, hnsw and ivfpq indexes do not: pip install " + ("faiss-gpu" if gpus else "faiss-cpu")
        )
        return found
    try:
        module = load_faiss()
    except InputError as error:
        advice.append(
            f"{error} A GPU build needs NVIDIA's CUDA 12 libraries (faiss-gpu brings them as packages, beside PyTorch's "
            "own) and a driver for them."
        )
        return found
    found["version"], found["gpu_build"] = getattr(module, "__version__", None), hasattr(module, "StandardGpuResources")
    found["gpus"] = int(module.get_num_gpus()) if found["gpu_build"] else 0
    if gpus and not found["gpu_build"]:
        advice.append(
            "FAISS is built for CPUs, and this machine has a GPU: pip uninstall -y faiss-cpu && pip install faiss-gpu "
            "(retrieval on the GPU takes torch.topk until then)"
        )
    elif gpus and not found["gpus"]:
        advice.append(
            "FAISS is built for GPUs and sees none, PyTorch does: the driver is probably older than FAISS's CUDA 12 "
            "libraries; update it, or use faiss-cpu"
        )
    elif found["gpu_build"] and not gpus:
        advice.append("FAISS is built for GPUs, which this machine lacks: faiss-cpu does the same and is smaller")
    return found
