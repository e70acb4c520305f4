"""Audio models: one file per model, its record (`AudioFamily`) inside, and the registry of them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from ...errors import InputError, needs
from ..provenance import UNTRAINED
from ..weights import no_network, quiet, state_digest
from .ast import AST
from .audiomae import AUDIOMAE, AUDIOMAE_FT
from .clap import CLAP
from .face import AudioFamily, AudioModel, choose_device, seeded
from .hear import HEAR
from .pann import PANN
from .passt import PASST

if TYPE_CHECKING:
    from ..spec import AudioSpec

AUDIO_MODELS: dict[str, AudioFamily] = {f.name: f for f in (PASST, PANN, AUDIOMAE, AUDIOMAE_FT, AST, CLAP, HEAR)}


def family_names(having: str = "") -> str:
    """The models as messages list them; with `having` ("any_length", ...) those whose record says so."""
    return ", ".join(f.shown for f in AUDIO_MODELS.values() if not having or getattr(f, having))


def packages() -> dict[str, list[str]]:
    """Packages that have the networks, each with the models it serves."""
    out: dict[str, list[str]] = {}
    for family in AUDIO_MODELS.values():
        if family.package:
            out.setdefault(family.package, []).append(family.name)
    return out


def load_model(spec: AudioSpec, device: str | None = None) -> AudioModel:
    """The model of a spec, in evaluation mode on a device (default: CUDA if there is one, else the CPU).

    What packages print while loading is swallowed. With local or random weights no connection is made.

    Raises
    ------
    InputError
        A package that is not installed, weights that do not fit or are not those of ``spec.weights``, no network.
    """
    local = bool(spec.checkpoint) or spec.random_init
    offline = no_network(f"`model` {spec.model}") if local else nullcontext()
    with needs(f"`model` {spec.model!r}", "audio"), quiet(), seeded(spec.seed), offline:
        model = AUDIO_MODELS[spec.family].load(spec)
    if spec.random_init:
        model.provenance = UNTRAINED
    if hasattr(model.module, "eval"):
        model.module.eval().requires_grad_(False)
    model.digest = state_digest(model.module) if hasattr(model.module, "state_dict") else ""
    if spec.weights is not None and spec.weights != model.digest:
        raise InputError(
            f"`model` {spec.model!r}: the weights loaded ({model.digest[:12]}...) are not those that made the table "
            f"({spec.weights[:12]}...). Give the checkpoint and revision it was made with, or embed it again."
        )
    model.device = choose_device(device)
    if hasattr(model.module, "to"):
        model.module.to(model.device)
    return model
