"""What the Triton kernels share: products, lengths, the optimiser's epilogue, launch conventions.

Kernels see matrices whose feature axis r is zero-padded to a multiple of `FEATURE_ALIGN` and whose head
width is zero-padded to `padded_width(d)`. Padding is invisible to training: a zero column of T gives a zero
row of the gradient, and a zero column of W a zero column of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from ...protocol.config import ProbeConfig
from ..reference import BETA1, BETA2_ADAM, BETA2_MINI, EPS, EPS_ADAM

FEATURE_ALIGN = 32
MIN_WIDTH = 16  # the narrowest operand that tl.dot takes

_EPS = tl.constexpr(EPS)
_B1 = tl.constexpr(BETA1)
_B2_MINI = tl.constexpr(BETA2_MINI)
_B2_ADAM = tl.constexpr(BETA2_ADAM)
_EPS_ADAM = tl.constexpr(EPS_ADAM)
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_TINY = tl.constexpr(1e-30)


@dataclass(frozen=True)
class TrainingOptions:
    """How every trainer of this package trains, beside tables, starts and schedule.

    Attributes
    ----------
    row_classes : int32 (n,)
        Train class of each sound row.
    per_class : int
        Sound rows of each class.
    architecture : str
        See `architecture`.
    """

    row_classes: torch.Tensor
    per_class: int
    temperature: float
    dim: int
    optimizer: str
    momentum: float
    weight_decay: float
    symmetric: bool
    precision: str
    architecture: str

    @property
    def mini(self) -> bool:
        """Whether adam-mini trains; what steps outputs knows sgd besides."""
        return self.optimizer == "adam-mini"

    @property
    def moment(self) -> tuple[float, float]:
        """M <- c1 M + c2 gradient of adam-mini or sgd."""
        return (BETA1, 1.0 - BETA1) if self.mini else (float(self.momentum), 1.0)

    @property
    def decay(self) -> dict[str, bool]:
        """Weight decay as kernels are told: SHRINK heads by themselves, or DECAY through the gradient."""
        return {"SHRINK": self.weight_decay > 0 and self.mini, "DECAY": self.weight_decay > 0 and not self.mini}


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors (a debugging aid: slow, exact)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def architecture(device: torch.device) -> str:
    """What configurations and precisions depend on: "sm90" for compute capability 9.x, "gfx942" on AMD, "cpu" interpreted."""
    if device.type != "cuda":
        return "cpu"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return f"sm{torch.cuda.get_device_capability(device)[0]}0"


def precisions(architecture: str) -> tuple[str, ...]:
    """Precisions of products that Triton compiles for an architecture: AMD has no tf32x3, and tf32 on gfx942 alone."""
    if not architecture.startswith("gfx"):
        return "ieee", "tf32x3", "tf32", "bf16"
    return ("ieee", "tf32", "bf16") if architecture == "gfx942" else ("ieee", "bf16")


def round_up(x: int, multiple: int) -> int:
    """The next multiple."""
    return -(-x // multiple) * multiple


def padded_width(d: int) -> int:
    """Width under which a head is stored: a power of two up to 128, then a multiple of 64."""
    return max(triton.next_power_of_2(d), MIN_WIDTH) if d <= 128 else round_up(d, 64)


def schedule_table(config: ProbeConfig) -> np.ndarray:
    """Per step: lr_t / (1 - b1^t), 1 / (1 - b2^t), 1 - lr_t wd; float32 (steps, 3), computed in float64.

    For sgd the first is lr_t. The third is used by adam-mini alone, whose decay is decoupled.
    """
    t = np.arange(1, config.steps + 1, dtype=np.float64)
    lr = np.array([config.learning_rate(i) for i in range(config.steps)], dtype=np.float64).reshape(-1)
    b2 = BETA2_ADAM if config.optimizer == "adam" else BETA2_MINI
    first = lr if config.optimizer == "sgd" else lr / (1 - BETA1**t)
    return np.column_stack([first, 1 / (1 - b2**t), 1 - lr * config.weight_decay]).astype(np.float32)


def empty(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uninitialised memory: every element is written before it is read."""
    return torch.empty(shape, device=device, dtype=dtype)


def pad_columns(array: np.ndarray, width: int) -> np.ndarray:
    """float32 (n, width), zeros on the right."""
    out = np.zeros((array.shape[0], width), np.float32)
    out[:, : array.shape[1]] = array
    return out


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in the named precision, float32 sums.

    ieee: float32 products. tf32x3: three tf32 products, near float32. tf32, bf16, fp16: rounded operands.
    """
    if _INTERPRETED and PRECISION == "bf16":  # the interpreter multiplies bit patterns of bfloat16
        return tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32), acc)
    elif PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif PRECISION == "fp16":
        return tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def through_norm(a, da, inverse):
    """dz = (da - a <a, da>) / |z|, rows."""
    return (da - a * tl.sum(a * da, axis=1)[:, None]) * inverse[:, None]


@triton.jit
def inverse_length(z):
    """1 / max(|z|, eps) of each row."""
    return 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(z * z, axis=1)), _EPS)


@triton.jit
def mini_scale(v, second):
    """1 / max(sqrt(v / (1 - b2^t)), 1e-30): adam-mini's step per unit of m."""
    return 1.0 / tl.maximum(tl.sqrt_rn(v * second), _TINY)


@triton.jit
def mini_second_moment(v, squared, dim):
    """v <- b2 v + (1 - b2) |g|_F^2 / d."""
    return _B2_MINI * v + (1.0 - _B2_MINI) * (squared / dim)


@triton.jit
def optimise(g, w, m, s, cell, inside, rate, second, momentum, weight_decay, OPTIMIZER: tl.constexpr, DECAY: tl.constexpr):
    """Apply the gradient of one chunk of a head to its state in memory.

    adam-mini updates m only: its step needs the norm of the whole gradient first, so W catches up when it is
    next read. The others finish here.

    Parameters
    ----------
    g : float32 (BK, BD)
    w, m, s : pointers to the head, its first moment, its elementwise second moment (adam only)
    cell, inside : offsets (BK, BD) and which of them exist
    """
    moment = tl.load(m + cell, mask=inside, other=0.0)
    if OPTIMIZER == "adam-mini":
        tl.store(m + cell, _B1 * moment + (1.0 - _B1) * g, mask=inside)
    else:
        head = tl.load(w + cell, mask=inside, other=0.0)
        step = g
        if DECAY:
            step = g + weight_decay * head
        if OPTIMIZER == "sgd":
            moment = momentum * moment + step
            tl.store(m + cell, moment, mask=inside)
            tl.store(w + cell, head - rate * moment, mask=inside)
        else:
            square = tl.load(s + cell, mask=inside, other=0.0)
            square = _B2_ADAM * square + (1.0 - _B2_ADAM) * step * step
            moment = _B1 * moment + (1.0 - _B1) * step
            tl.store(s + cell, square, mask=inside)
            tl.store(m + cell, moment, mask=inside)
            tl.store(w + cell, head - rate * moment / (tl.sqrt_rn(square * second) + _EPS_ADAM), mask=inside)
