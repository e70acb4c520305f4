"""The compiled trainer: one probe per core, all steps, then its ranks; AVX-512, AVX2, baseline x86-64 or NEON.

The code is in ``csrc/``; here are the checks, the choice of the instruction set, and the arrays it writes into.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .. import _cpp
from ..errors import BackendUnavailableError, InputError, OutOfMemoryError
from .batch import BatchResult, ProbeBatch, check_cpu

# Floating-point operations of one thread in one native call, about a second: between calls Python sees Ctrl-C.
CALL_FLOPS = 1e11
ISAS = ("avx512", "avx2", "baseline", "neon")


def instruction_set(precision: str = "ieee") -> str:
    """The instruction set in use: the best this machine has, or what ``FASTPROBE_ISA`` names.

    Parameters
    ----------
    precision : {"ieee", "bf16"}
        ``bf16`` rounds the factors of a training step's products to bfloat16, with float32 sums, and needs AVX512-BF16.

    Raises
    ------
    InputError
        When ``FASTPROBE_ISA`` is not the name of one.
    BackendUnavailableError
        When it names one that this machine or this build lacks, or one without bfloat16 where that is asked for.
    """
    supported = _cpp.supported_isas()
    name = os.environ.get("FASTPROBE_ISA", "")
    if precision == "bf16" and name in ("", "avx512"):
        if (found := _cpp.bf16_isa()) is None:
            raise BackendUnavailableError(
                "`precision`='bf16' needs a CPU with AVX512-BF16 (Zen 4, Cooper Lake, Sapphire Rapids or "
                'newer), and this one has none. Use "ieee".'
            )
        return found
    if not name:
        return supported[0]
    if name not in ISAS:
        raise InputError(f"`FASTPROBE_ISA` must be one of {', '.join(ISAS)}; got {name!r}. Unset it for the best there is.")
    if name not in supported:
        why = "this machine lacks it" if name in _cpp.compiled_isas() else "this build does not hold it"
        raise BackendUnavailableError(
            f"`FASTPROBE_ISA`={name!r} is not available: {why}. Here: {', '.join(supported)}. Unset it for the best there is."
        )
    if precision == "bf16":
        raise BackendUnavailableError(
            f"`precision`='bf16' needs AVX512-BF16, and `FASTPROBE_ISA` asks for {name!r}. Unset it, or use \"ieee\"."
        )
    return name


def describe() -> str:
    """The instruction set in use and the others there are: "avx512 with bf16 (of avx512, avx2, baseline)"."""
    used = instruction_set()
    bf16 = " with bf16" if used == "avx512" and _cpp.bf16_isa() else ""
    return f"{used}{bf16} (of {', '.join(_cpp.supported_isas())})"


def step_flops(batch: ProbeBatch) -> float:
    """Operations of one probe-step written out plainly: 4 m r_t d + 4 n r_a d + 6 n m d."""
    n, m, d = batch.n_rows, len(batch.train_classes), batch.config.dim
    return 4.0 * d * (m * batch.text.shape[1] + n * batch.audio.shape[1]) + 6.0 * n * m * d


def probe_flops(batch: ProbeBatch) -> float:
    """Operations of one probe: its steps, and the ranking of its queries."""
    d, q, c = batch.config.dim, len(batch.queries), len(batch.text)
    return batch.config.steps * step_flops(batch) + 2.0 * d * (q * (batch.audio.shape[1] + c) + c * batch.text.shape[1])


def train(
    batch: ProbeBatch, device: str | None = None, heads: bool = False, *, isa: str | None = None, threads: int = 0, algebra: str = "auto"
) -> BatchResult:
    """Train and rank all probes of a batch.

    Parameters
    ----------
    device : None or "cpu"
    heads : bool
        Also return the trained W and V.
    isa : str, optional
        Instruction set; by default `instruction_set`'s.
    threads : int
        Probes trained side by side; 0 takes OpenMP's number (``OMP_NUM_THREADS``). It changes no result.
    algebra : {"auto", "direct", "gram"}
        How a head is stepped (csrc/train.cpp): ``gram`` goes through X X' wherever the optimiser and the sampling
        allow, ``auto`` does where it is less work. The same run in exact arithmetic.

    Raises
    ------
    BackendUnavailableError
        For a device other than the CPU.
    OutOfMemoryError
        When the scratch memory of the threads cannot be had.
    """
    check_cpu("cpp", device)
    c, n_probes, n_queries = batch.config, batch.n_probes, len(batch.queries)
    loss = np.empty(n_probes)
    ranks, unseen = (np.empty((n_probes, n_queries), np.int32) for _ in range(2))
    shapes = ((n_probes, batch.text.shape[1], c.dim), (n_probes, batch.audio.shape[1], c.dim))
    text_heads, audio_heads = (np.empty(s, np.float32) if heads else None for s in shapes)
    inputs: dict[str, Any] = {
        "text": batch.text32,
        "audio": batch.audio32,
        "rows": batch.n_rows,
        "centroids": np.ascontiguousarray(batch.centroids, np.float32) if batch.clips is None else None,
        "clips": None if batch.clips is None else _index(batch.clips),
        "train_classes": _index(batch.train_classes),
        "queries": _index(batch.queries),
        # Unseen classes first: one pass counts both ranks.
        "order": _index(np.concatenate([batch.gallery, np.setdiff1d(np.arange(len(batch.text)), batch.gallery)])),
        "unseen": len(batch.gallery),
        "truth": _index(np.searchsorted(batch.gallery, batch.labels[batch.queries])),
        "text_start": np.ascontiguousarray(batch.text_start, np.float32),
        "audio_start": np.ascontiguousarray(batch.audio_start, np.float32),
        "rates": np.array([c.learning_rate(t) for t in range(c.steps)], np.float64),
        "optimizer": c.optimizer,
        "temperature": c.temperature,
        "momentum": c.momentum,
        "weight_decay": c.weight_decay,
        "symmetric": c.symmetric,
        "neighbours": c.csls,
        "isa": isa or instruction_set(c.precision),
        "threads": threads,
        "algebra": algebra,
    }
    permutations = _index(batch.permutations)
    # A multiple of many thread counts, so that a bounded call still feeds all cores evenly.
    chunk = max(int(CALL_FLOPS * (threads or _cpp.max_threads()) // max(probe_flops(batch), 1.0)) // 64 * 64, 64)
    try:
        for at in range(0, n_probes, chunk):
            part = slice(at, at + chunk)
            _cpp.train(
                **inputs,
                permutations=permutations[part],
                loss=loss[part],
                ranks=ranks[part],
                unseen_ranks=unseen[part],
                text_heads=None if text_heads is None else text_heads[part],
                audio_heads=None if audio_heads is None else audio_heads[part],
            )
    except MemoryError:
        raise OutOfMemoryError(
            "the cpp backend could not get the scratch memory of its threads. Set OMP_NUM_THREADS to "
            "a smaller number: each thread holds one probe."
        ) from None
    return BatchResult(loss, ranks, unseen, text_heads, audio_heads)


def _index(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.int64)
