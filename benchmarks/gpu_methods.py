"""What the GPU table measures: our trainers, and the same probes trained in the ways one would train them on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastprobe.kernels.batch import ProbeBatch

from .gpu_peers import Run, bmm_batch, compiled_batch, eager_loop, jax_missing, jax_scan, problem
from .gpu_peers_gram import compiled_gram, jax_gram


def ours(batch: ProbeBatch, device: torch.device) -> Run:
    """The trainer that `backend="triton"` takes at this shape."""
    return fused(batch, device)


def fused(batch: ProbeBatch, device: torch.device, trainer: str | None = None) -> Run:
    """Our trainer, or the one so named, which is an error where it does not fit the device."""
    from fastprobe.kernels.gpu.backend import Shared

    shared = Shared(batch, device)
    if trainer:
        shared.trainers = [trainer]
    permuted = torch.from_numpy(np.ascontiguousarray(batch.permutations[:, batch.train_classes], np.int32)).to(device)

    def run():
        with torch.inference_mode():
            w, v, _ = shared.fit(permuted)
            return w[:, : batch.text.shape[1], : batch.config.dim], v[:, : batch.audio.shape[1], : batch.config.dim]

    return run


@dataclass(frozen=True)
class Method:
    """A way to train: how it is prepared, with which optimiser, of how many probes the table measures it, and where it cannot run."""

    name: str
    prepare: Callable[[ProbeBatch, torch.device], Run]
    probes: int
    precision: str = "tf32"
    optimizer: str = "adam-mini"
    why_not: Callable[[torch.device], str | None] = lambda _: None

    def batch(self, shape: tuple, steps: int, probes: int | None = None) -> ProbeBatch:
        """Its problem at a shape (n, r_text, r_audio, d, sampling)."""
        return problem(*shape, probes=probes or self.probes, steps=steps, optimizer=self.optimizer, precision=self.precision)

    def scaled(self, probes: int) -> Method:
        """The same for fewer probes."""
        return replace(self, probes=min(self.probes, probes))


METHODS = (
    Method("eager PyTorch loop", eager_loop, 2, "ieee", "adam"),
    Method("PyTorch bmm batch", bmm_batch, 1024),
    Method("torch.compile batch, CUDA graph", compiled_batch, 1024),
    Method("torch.compile batch through Gram, CUDA graph", compiled_gram, 1024),
    Method("JAX jit + vmap + scan", jax_scan, 1024, why_not=jax_missing),
    Method("JAX jit + scan through Gram", jax_gram, 1024, why_not=jax_missing),
    Method("ours, ieee", ours, 4224, "ieee"),
    Method("ours, tf32x3", ours, 4224, "tf32x3"),
    Method("ours, tf32", ours, 4224, "tf32"),
    Method("ours, bf16", ours, 4224, "bf16"),
)
