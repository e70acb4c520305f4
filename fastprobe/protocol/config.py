"""`ProbeConfig`: everything that decides how one probe is trained, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from ..errors import InputError
from .optimizers import OPTIMIZERS

SCHEDULES = ("cosine", "constant")
SAMPLINGS = ("clip", "centroid")
BASES = ("svd", "raw")
PRECISIONS = ("auto", "ieee", "tf32x3", "tf32", "bf16")

DEFAULT_LRS = "; ".join(f"{o.name} {o.default_lr:g}" for o in OPTIMIZERS.values())


def option(default: Any, help: str, **words: Any) -> Any:
    """A field that is also an option of the shell and of configuration files.

    Parameters
    ----------
    help : str
        One line.
    choices : tuple of str, optional
        The only values it takes.
    metavar, show_default : str, optional
        How help shows its value and its default.
    group : str, optional
        Under which heading the shell lists it.
    """
    return field(default=default, metadata={"help": help, **words})


# Beyond any probe: a slip of the keyboard is told before memory is asked for.
_AT_MOST = 10_000_000


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
    precision : {"auto", "ieee", "tf32x3", "tf32", "bf16"}
        Arithmetic of the matrix products; sums are float32 at least. ``auto`` is ``tf32`` on a GPU that has it and ``ieee`` elsewhere;
        runs and stored probes record which. ``reference`` is always float64.
    csls : int
        Neighbours of the correction for hubs (see `fastprobe.kernels.ranking.csls_scores`) when clips are ranked; 0 for none.

    Raises
    ------
    InputError
        When a field is outside its range; the message names the field, the value and the rule.

    Examples
    --------
    >>> import fastprobe as fp
    >>> config = fp.ProbeConfig(optimizer="adam")
    >>> config.lr, config.basis
    (0.003, 'raw')
    >>> round(fp.ProbeConfig(steps=4).learning_rate(2), 6)  # cosine
    0.5
    """

    dim: int = option(64, "Width d of the shared space.")
    temperature: float = option(0.25, "tau of the contrastive loss.")
    steps: int = option(100, "Optimiser steps.")
    lr: float | None = option(None, "Step size.", show_default=DEFAULT_LRS)
    schedule: Literal["cosine", "constant"] = option("cosine", "Of the step size.", choices=SCHEDULES)
    # A plain str, because optimisers are registered: see `optimizers`.
    optimizer: str = option(
        "adam-mini",
        "How the probe is trained. " + "; ".join(f"{o.name}: {o.help}" for o in OPTIMIZERS.values()) + ".",
        choices=tuple(OPTIMIZERS),
    )
    momentum: float = option(0.9, "For sgd.")
    weight_decay: float = option(0.0, "Decoupled for adam-mini.")
    sampling: Literal["clip", "centroid"] = option("clip", "A clip of each class per step, or the class means.", choices=SAMPLINGS)
    clips_per_class: int = option(1, "Clips of each class per step.")
    symmetric: bool = option(False, "Add the text-to-sound loss.")
    bias: bool = option(False, "A bias on both heads.")
    basis: Literal["svd", "raw"] | None = option(None, "Lossless svd, or raw.", choices=BASES, show_default="svd; adam raw")
    energy: float | None = option(None, "Keep this share of the variance (lossy).")
    precision: Literal["auto", "ieee", "tf32x3", "tf32", "bf16"] = option(
        "auto", "Of the matrix products; auto: tf32 on a GPU, else ieee.", choices=PRECISIONS
    )
    csls: int = option(0, "Ranks corrected for hubs by so many neighbours; 0 for not.")

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
            object.__setattr__(self, "lr", OPTIMIZERS[self.optimizer].default_lr)
        if self.basis is None:
            object.__setattr__(self, "basis", "svd" if OPTIMIZERS[self.optimizer].rotation_invariant else "raw")
        for name, low in (("dim", 1), ("steps", 0), ("clips_per_class", 1), ("csls", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
                raise InputError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
            if int(value) > _AT_MOST:
                raise InputError(f"`{name}` must be at most {_AT_MOST:,}; got {value!r}.")
            object.__setattr__(self, name, int(value))  # NumPy's numbers are welcome, and stored as plain ones
        for name, bound, strict in (("temperature", 0.0, True), ("lr", 0.0, True), ("momentum", 0.0, False), ("weight_decay", 0.0, False)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, Real)
                or not bound <= float(value) < float("inf")
                or (strict and value == bound)
            ):
                rule = "above" if strict else "at least"
                raise InputError(f"`{name}` must be a finite number {rule} {bound:g}; got {value!r}.")
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

    @classmethod
    def grid(cls, **fields: Any) -> list[ProbeConfig]:
        """Every combination of several values for some fields.

        Parameters
        ----------
        **fields
            A value, or a list of values.

        Raises
        ------
        InputError
            A value given twice.

        Examples
        --------
        >>> from fastprobe import ProbeConfig
        >>> [c.lr for c in ProbeConfig.grid(lr=[0.5, 1.0], steps=10)]
        [0.5, 1.0]
        """
        values = {name: list(v) if isinstance(v, (list, tuple)) else [v] for name, v in fields.items()}
        for name, v in values.items():
            if not v or len({str(x) for x in v}) < len(v):
                raise InputError(f"`{name}` must list different values; got {', '.join(map(str, v)) or 'none'}. Give each once.")
        return [cls(**dict(zip(values, combination))) for combination in itertools.product(*values.values())]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, in order."""
        fields = dataclasses.asdict(self)
        if not self.csls:  # told as before there was this option: runs and probes stored then stay what they are
            del fields["csls"]
        return fields

    def learning_rate(self, step: int) -> float:
        """lr_t of step t = 0 ... steps-1."""
        assert self.lr is not None  # the optimiser's own, if none was given
        if self.schedule == "constant":
            return float(self.lr)
        from math import cos, pi

        return 0.5 * float(self.lr) * (1.0 + cos(pi * step / self.steps))
