"""`AudioModel`, the face all audio models wear; `AudioFamily`, the record of one; and what loading them needs.

`prepare` runs in the decoding threads, on the CPU; `forward` on the device. A long clip has several inputs
(windows); its vector is their mean. What each model was trained to take is written beside its class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ..provenance import Provenance


class AudioModel:
    """A clip's samples -> network inputs (`prepare`, in any thread) -> one vector per input (`forward`).

    Attributes
    ----------
    sample_rate : int
        Hz, of the samples `prepare` takes.
    recipe : dict
        How clips are cut and padded; part of a table's meta and of the cache's key.
    module : torch.nn.Module
        The network (HEAR: whatever `load_model` returned).
    provenance : Provenance
        What it was trained on.
    digest : str
        Of its weights; "" when it has no state dict.
    revision : str or None
        Commit on the hub, if it came from there.
    """

    sample_rate: int
    recipe: dict[str, Any]
    prefix = 0  # tokens before those of the spectrogram's patches, as a class token

    def __init__(self, module: Any, provenance: Provenance) -> None:
        self.module, self.provenance = module, provenance
        self.digest, self.device = "", "cpu"
        self.revision: str | None = None

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer blocks, whose outputs are tokens (b, n, D); empty where layers cannot be had."""
        return ()

    def forward_layers(self, batch: Any, layers: Sequence[int]) -> Any:
        """Means over the patch tokens at some layers, side by side, (b, len(layers) D), from one pass.

        Layer 0 is what the first block is given; layer l what block l gives, before any final norm.
        """
        import torch

        states: dict[int, Any] = {}

        def keep(layer: int, value: Any) -> None:
            tokens = value[0] if isinstance(value, tuple) else value
            states[layer] = tokens[:, self.prefix :].float().mean(dim=1)

        hooks = [self.blocks[0].register_forward_pre_hook(lambda _, given: keep(0, given[0]))]
        hooks += [
            block.register_forward_hook(lambda _, given, out, layer=number: keep(layer, out))
            for number, block in enumerate(self.blocks, start=1)
        ]
        try:
            self.forward(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([states[layer] for layer in layers], dim=1)

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        """Samples, float32 (n,), n >= 1 -> inputs, float32 (windows, ...)."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Any:
        """Inputs of one shape, (b, ...), on the device -> vectors (b, D)."""
        raise NotImplementedError


@dataclass(frozen=True)
class AudioFamily:
    """All that is known of one `model` by name; the shell, the checks of a spec and the caveats read it.

    Attributes
    ----------
    name : str
        What stands before the colon in ``model``.
    load : callable (AudioSpec) -> AudioModel
    sample_rate, width : int or None
        Hz taken and numbers per vector of the published weights; None where the module decides.
    provenance : Provenance
        What the published weights were trained on; a table's meta, the report and the check for leaked labels read it.
    package : str
        Installed package that has its network; `doctor` looks for it and a table's meta records its version. Empty where the
        user brings it.
    variant : str
        Word for what may follow a colon ("ARCH"); empty where nothing may.
    needs : str
        What the variant must name, for the message that asks for it; empty where a variant may be left out.
    has_modes, any_length, on_hub, can_be_random : bool
        Whether it knows `mode`; takes clips as they are (`pad`); has revisions on the Hugging Face hub; can start from
        random weights.
    has_layers : bool
        Whether its layers can be had (`layers`).
    imports : bool
        Whether loading it imports code that `model` names. It is then loaded only for who named it, not because a file did.
    """

    name: str
    load: Callable[[Any], AudioModel]
    sample_rate: int | None
    width: int | None
    provenance: Provenance
    package: str = ""
    variant: str = ""
    needs: str = ""
    has_modes: bool = False
    any_length: bool = False
    on_hub: bool = False
    can_be_random: bool = True
    has_layers: bool = False
    imports: bool = False

    @property
    def shown(self) -> str:
        """How messages spell it: with its variant where it needs one."""
        return f"{self.name}:{self.variant}" if self.needs else self.name


def choose_device(device: str | None) -> str:
    """The device asked for, or CUDA if there is one, else the CPU.

    Raises
    ------
    InputError
        An unknown device, or CUDA where there is none.
    """
    import torch

    if device in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device` must be one that torch can use here (cpu{', cuda' if torch.cuda.is_available() else ''}); "
            f"got {device!r}: {str(error).splitlines()[0]}"
        ) from None
    return str(device)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random starts inside the block are a function of `seed`; torch's own stream is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
