"""`ProbeConfig`: everything that decides how one probe is trained, and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from ..errors import InputError

OPTIMIZERS = ("adam-mini", "sgd", "adam")
SCHEDULES = ("cosine", "constant")
SAMPLINGS = ("clip", "centroid")
BASES = ("svd", "raw")
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")

# The step sizes that did best per optimiser on real tables (DESIGN, section 2).
DEFAULT_LR = {"adam-mini": 1.0, "sgd": 3.0, "adam": 3e-3}


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How one contrastive linear probe is trained.

    Attributes
    ----------
    dim : int
        Width d of the shared space.
    temperature : float
        tau of the contrastive loss; similarities are divided by it.
    steps : int
        Optimiser steps. 0 leaves the random start (an untrained control).
    lr : float, optional
        Step size; by default 1 for ``adam-mini``, 3 for ``sgd``, 0.003 for ``adam``.
    schedule : {"cosine", "constant"}
        ``cosine``: lr_t = lr (1 + cos(pi t / steps)) / 2 for t = 0 ... steps-1.
    optimizer : {"adam-mini", "sgd", "adam"}
        ``adam-mini`` keeps one second moment per head (arXiv 2406.16793) and commutes with rotations,
        as ``sgd`` does; ``adam`` is torch.optim.Adam's arithmetic.
    momentum : float
        For ``sgd`` only (torch.optim.SGD's convention).
    weight_decay : float
        Added to the gradient under ``sgd`` and ``adam`` (as in torch), decoupled under ``adam-mini``
        (as in AdamW), where coupling would break the lossless compression.
    sampling : {"clip", "centroid"}
        ``clip``: every step draws ``clips_per_class`` clips of each train class. ``centroid``: the mean
        embedding of each class, full batch, deterministic.
    clips_per_class : int
        Clips of each class per step, drawn with replacement.
    symmetric : bool
        Average the sound-to-text loss with the text-to-sound one (CLIP's loss).
    bias : bool
        Append a column of ones to both inputs.
    basis : {"svd", "raw"}, optional
        ``svd`` trains in the lossless basis of the embeddings; ``raw`` on the embeddings themselves.
        Default ``svd``, but ``raw`` for ``adam``, which is not rotation-invariant.
    energy : float, optional
        Keep only the leading directions that hold this share of the variance. Lossy; needs ``basis="svd"``.
    precision : {"ieee", "tf32x3", "tf32", "bf16"}
        Arithmetic of the matrix products; sums are float32 at least. ``reference`` is always float64.

    Raises
    ------
    InputError
        When a field is outside its range; the message names the field, the value and the rule.
    """

    dim: int = 64
    temperature: float = 0.25
    steps: int = 100
    lr: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adam-mini", "sgd", "adam"] = "adam-mini"
    momentum: float = 0.9
    weight_decay: float = 0.0
    sampling: Literal["clip", "centroid"] = "clip"
    clips_per_class: int = 1
    symmetric: bool = False
    bias: bool = False
    basis: Literal["svd", "raw"] | None = None
    energy: float | None = None
    precision: Literal["ieee", "tf32x3", "tf32", "bf16"] = "ieee"

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("sampling", SAMPLINGS),
            ("basis", (*BASES, None)),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(str(c) for c in choices if c is not None)
                raise InputError(f"`{name}` must be one of {known}; got {value!r}.")
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        if self.basis is None:
            object.__setattr__(self, "basis", "raw" if self.optimizer == "adam" else "svd")
        for name, low in (("dim", 1), ("steps", 0), ("clips_per_class", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
                raise InputError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
            object.__setattr__(self, name, int(value))  # NumPy's numbers are welcome, and stored as plain ones
        for name, low, strict in (("temperature", 0.0, True), ("lr", 0.0, True), ("momentum", 0.0, False), ("weight_decay", 0.0, False)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= value < float("inf") or (strict and value == low):
                rule = "above" if strict else "at least"
                raise InputError(f"`{name}` must be a finite number {rule} {low:g}; got {value!r}.")
            object.__setattr__(self, name, float(value))
        if self.momentum >= 1:
            raise InputError(f"`momentum` must be below 1; got {self.momentum!r}.")
        for name in ("symmetric", "bias"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"`{name}` must be true or false; got {getattr(self, name)!r}.")
        if self.energy is not None:
            if isinstance(self.energy, bool) or not isinstance(self.energy, Real) or not 0 < self.energy <= 1:
                raise InputError(f"`energy` must lie in (0, 1]; got {self.energy!r}.")
            object.__setattr__(self, "energy", float(self.energy))
            if self.basis != "svd":
                raise InputError(
                    '`energy` truncates the SVD basis and needs `basis`="svd"; got "raw". Leave `energy` out or choose the svd basis.'
                )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, in order."""
        return dataclasses.asdict(self)

    def learning_rate(self, step: int) -> float:
        """lr_t of step t = 0 ... steps-1."""
        if self.schedule == "constant":
            return float(self.lr)
        from math import cos, pi

        return 0.5 * float(self.lr) * (1.0 + cos(pi * step / self.steps))
