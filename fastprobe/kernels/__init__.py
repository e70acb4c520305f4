"""Backends: what trains a batch of probes. Chosen once, by name, and recorded with the run.

    reference   float64, one probe at a time: the definition
    torch       float32, batched products, CPU, CUDA or MPS
    cpp         float32, one probe per core, AVX-512 / AVX2 / NEON
    triton      fused kernels on a GPU

``auto`` takes triton where CUDA is there, else cpp, else torch; a backend that was named and cannot run
raises, and nothing falls back in silence.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..errors import BackendUnavailableError, InputError, install, needs
from .batch import BatchResult, ProbeBatch, check_cpu, make_batch
from .ranking import check_csls

if TYPE_CHECKING:
    import torch

    from ..protocol.config import ProbeConfig

__all__ = [
    "BACKENDS",
    "Backend",
    "BatchResult",
    "ProbeBatch",
    "available_backends",
    "contrastive_loss",
    "device_name",
    "make_batch",
    "select_backend",
]


@dataclass(frozen=True)
class Backend:
    """A way to train probes.

    Attributes
    ----------
    name : str
    module : str
        Module of this package that has ``train(batch, device=None, heads=False) -> BatchResult``.
    why_not : callable () -> str or None
        Why it cannot run here, with the way out; None when it can. Imports nothing heavy it need not.
    precisions : tuple of str
        Values of ``ProbeConfig.precision`` it honours; any other is an error, never ignored.
    optimizers : tuple of str
        Values of ``ProbeConfig.optimizer`` it honours, likewise.
    closed : str
        Which of `kernels.closed.BACKENDS` computes closed forms for a run of it.
    places : {"cpu", "any", "gpu"}
        Where it trains: on the CPU alone, on any device of PyTorch, on GPUs alone.
    arithmetic : str
        What it computes in whatever the precision, for the methods paragraph; empty where `precision` says it, and ieee is float32.
    unit_flops : float
        A worker's first unit, before its rate is measured, has about this much arithmetic: a few seconds.
    extra : str
        Of the package, that brings what it imports.
    """

    name: str
    module: str
    why_not: Callable[[], str | None]
    precisions: tuple[str, ...] = ("ieee",)
    optimizers: tuple[str, ...] = ("adam-mini", "sgd", "adam")
    closed: str = "reference"
    places: Literal["cpu", "any", "gpu"] = "cpu"
    arithmetic: str = ""
    unit_flops: float = 4e9
    extra: str = "torch"

    def load(self) -> Callable[..., BatchResult]:
        """Its `train`, which refuses what the backend does not honour."""
        with needs(f"`backend`={self.name!r}", self.extra):
            train: Callable[..., BatchResult] = importlib.import_module(f".{self.module}", __name__).train

        @functools.wraps(train)
        def checked(batch: ProbeBatch, device: str | None = None, heads: bool = False) -> BatchResult:
            self.check(batch.config.precision, batch.config.optimizer)
            check_csls(batch.config.csls, len(batch.queries), len(batch.text))
            return train(replace(batch, config=self.settle(batch.config, device)), device, heads)

        return checked

    def settle(self, config: ProbeConfig, device: str | None = None) -> ProbeConfig:
        """The configuration with the precision that this backend takes for "auto" on a device: tf32 on matrix units, else ieee."""
        if config.precision != "auto":
            return config
        fast = False
        if "tf32" in self.precisions and self.places != "cpu" and not _interpreted():
            from .torch_backend import has_tf32, resolve_device

            fast = has_tf32(resolve_device(device))
        return replace(config, precision="tf32" if fast else "ieee")

    def check(self, precision: str | None, optimizer: str | None) -> None:
        """Whether it trains so; None asks for nothing.

        Raises
        ------
        BackendUnavailableError
            It does not; the message lists what it honours.
        """
        for name, value, known in (("precision", precision, self.precisions), ("optimizer", optimizer, self.optimizers)):
            if value not in (None, "auto", *known):
                raise BackendUnavailableError(
                    f"`{name}`={value!r} is not one that backend {self.name!r} has ({', '.join(known)}). "
                    "Choose one of these or another backend."
                )


def _torch_missing() -> str | None:
    return None if importlib.util.find_spec("torch") else f"PyTorch is not installed ({install('torch')})"


def _cpp_missing() -> str | None:
    try:
        importlib.import_module("fastprobe._cpp")
    except ImportError as error:
        return f"the compiled extension is missing ({error}); pip install . builds it with a C++17 compiler"
    return None


def _gpu_driver() -> bool:
    """Whether PyTorch could see a GPU at all, told without importing it: that takes two seconds and half a gigabyte."""
    # Drivers of NVIDIA, of AMD, and of Windows under WSL.
    if not sys.platform.startswith("linux") or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _triton_missing() -> str | None:
    for package, name in (("torch", "PyTorch"), ("triton", "Triton")):
        if not importlib.util.find_spec(package):
            return f"{name} is not installed ({install('gpu')})"
    if not (_gpu_driver() or _interpreted()):
        return "this machine has no GPU driver (libcuda.so.1)"
    import torch

    if torch.cuda.is_available() or _interpreted():
        return None
    return "PyTorch sees no GPU"


BACKENDS = {
    b.name: b
    for b in (
        Backend("reference", "reference", lambda: None, ("ieee", "tf32x3", "tf32", "bf16"), arithmetic="float64"),
        Backend("torch", "torch_backend", _torch_missing, ("ieee", "tf32"), closed="torch", places="any", unit_flops=1e11),
        Backend("cpp", "cpp_backend", _cpp_missing, ("ieee", "bf16"), closed="cpp", unit_flops=4e11),
        Backend(
            "triton",
            "gpu.backend",
            _triton_missing,
            ("ieee", "tf32x3", "tf32", "bf16"),
            closed="torch",
            places="gpu",
            unit_flops=1e14,
            extra="gpu",
        ),
    )
}


def available_backends() -> dict[str, str | None]:
    """Every backend's name, with None when it can run here, or why not.

    Examples
    --------
    >>> available_backends()["reference"] is None  # it can run anywhere
    True
    """
    return {name: backend.why_not() for name, backend in BACKENDS.items()}


def select_backend(name: str = "auto", precision: str | None = None, device: str | None = None, optimizer: str | None = None) -> Backend:
    """The backend of that name; ``auto`` is triton with CUDA, else cpp, else torch.

    With a precision or an optimiser it must honour these. Without, the backend is meant whatever it trains with.

    Raises
    ------
    BackendUnavailableError
        When a named backend cannot run here, or does not know the precision or the optimiser; the message lists
        those that can.
    InputError
        An unknown name.
    """
    if not isinstance(device, str | None):
        raise InputError(f"`device` must be text, as cpu, cuda:1 or mps; got {device!r}.")
    if name == "auto":
        # With a CPU asked for by name the GPU is left alone, and the other way round.
        order: tuple[str, ...] = (
            ("cpp", "torch")
            if (device or "").startswith("cpu")
            else ("triton", "torch")
            if (device or "").startswith("cuda")
            else ("torch",)
            if device
            else ("triton", "cpp", "torch")
        )
        order = tuple(n for n in order if not (n == "triton" and _interpreted()))
        absent = []
        for found in (BACKENDS[candidate] for candidate in order):
            if precision in (None, "auto", *found.precisions) and optimizer in (None, *found.optimizers):
                if (reason := found.why_not()) is None:
                    return found
                absent.append(f" {found.name} would: {reason}.")
        raise BackendUnavailableError(
            f"no backend here trains with `precision`={precision!r} and `optimizer`={optimizer!r}"
            f"{f' on {device!r}' if device else ''}.{''.join(absent)} {_listing()}"
        )
    if name not in BACKENDS:
        raise InputError(f"`backend` must be auto, {', '.join(BACKENDS)}; got {name!r}.")
    backend = BACKENDS[name]
    if reason := backend.why_not():
        raise BackendUnavailableError(f"`backend`={name!r} is not available: {reason}. {_listing()}")
    backend.check(precision, optimizer)
    return backend


def device_name(backend: str, device: str | None = None, precision: str = "ieee") -> str:
    """What a backend trains on, for the record: "cpu (avx512)", "cuda:0 (NVIDIA H200)".

    Raises
    ------
    BackendUnavailableError
        It cannot train on that device, or not there with that precision.
    """
    if BACKENDS[backend].places == "cpu":
        check_cpu(backend, device)
        if backend != "cpp":
            return "cpu"
        from .cpp_backend import instruction_set

        return f"cpu ({instruction_set(precision)})"
    with needs(f"`backend`={backend!r}", "torch"):
        import torch

    from .torch_backend import check_precision, resolve_device

    chosen = resolve_device(device)
    if backend == "torch":
        check_precision(chosen, precision)
    return f"{chosen} ({torch.cuda.get_device_name(chosen)})" if chosen.type == "cuda" else str(chosen)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _listing() -> str:
    return "Available here: " + ", ".join(n for n, why in available_backends().items() if why is None) + "."


def contrastive_loss(text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float = 0.25) -> torch.Tensor:
    """Contrastive loss, batched over probes, with autograd for both sides.

        L = 1/n sum_i [ -s(y_i, i)/tau + log sum_c exp(s(c, i)/tau) ],    s(c, i) = <a_c, b_i>

    On CUDA a fused kernel computes it and its gradients in tiles, with memory O(n + m) per probe beside inputs
    and gradients; the n x m scores are never stored. Elsewhere PyTorch does, and stores them.

    Parameters
    ----------
    text : float (..., m, d)
        a, the texts. Leading axes are probes. Rows are taken as they are: normalise them for cosines.
    audio : float (..., n, d)
        b, the sounds.
    labels : int64 (n,) or (..., n)
        Row of `text` that belongs to each sound.
    temperature : float
        tau.

    Returns
    -------
    float (...)
        One loss per probe.

    Raises
    ------
    MissingPackageError
        PyTorch is not installed; the message names the extra that brings it.

    Examples
    --------
    >>> import torch
    >>> text, audio = torch.eye(3), torch.eye(3)
    >>> contrastive_loss(text, audio, torch.arange(3), temperature=1.0)  # log(e + 2) - 1
    tensor(0.5514)
    """
    with needs("`contrastive_loss`", "torch"):
        import torch  # noqa: F401 (without it there are no tensors to compute with)
    if text.is_cuda or _interpreted():
        from .gpu import loss

        return loss.contrastive_loss(text, audio, labels, temperature)
    from . import torch_backend

    return torch_backend.contrastive_loss(text, audio, labels, temperature)
