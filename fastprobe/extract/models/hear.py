"""Any module with the HEAR API."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..cache import file_digest
from ..provenance import UNTRAINED, Provenance, tuned
from .face import AudioFamily, AudioModel
from .passt import PASST

if TYPE_CHECKING:
    from ..spec import AudioSpec


class Hear(AudioModel):
    """Any module with the HEAR API (`load_model`, `get_scene_embeddings`): whole clips, each at its own length."""

    def __init__(self, api: Any, model: Any, provenance: Provenance) -> None:
        super().__init__(model, provenance)
        self.api, self.sample_rate = api, int(model.sample_rate)
        code = getattr(api, "__file__", None)  # what a module computes is decided by its code as by its weights
        self.recipe = {
            "window_seconds": None,
            "windows": "left to the module",
            "pad": "none",
            "code": file_digest(code)[:16] if code else None,
        }

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        return wave[None]

    def forward(self, batch: Any) -> Any:
        name = self.api.__name__
        with _theirs(name, "get_scene_embeddings"):
            vectors = self.api.get_scene_embeddings(batch, self.module)
        shape = tuple(getattr(vectors, "shape", ()))
        if len(shape) != 2 or shape[0] != len(batch) or not hasattr(vectors, "detach"):
            raise InputError(
                f"`model` hear:{name}: its get_scene_embeddings must give a tensor (sounds, width) for {len(batch)} sounds; got "
                f"{type(vectors).__name__} {shape}."
            )
        return vectors


@contextlib.contextmanager
def _theirs(name: str, function: str) -> Iterator[None]:
    """Turn what a module's own code raises into a message that says whose it is."""
    import torch

    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):  # what whoever calls has better words for
        raise
    except Exception as error:
        raise InputError(
            f"`model` hear:{name}: its {function} fails ({type(error).__name__}: {' '.join(str(error).split())[:300]}). The module may "
            "have been written for other versions of the packages that it uses: see what it asks for."
        ) from error


def load_hear(spec: AudioSpec) -> AudioModel:
    """A HEAR module by its name; `checkpoint` is handed to its `load_model`."""
    name = spec.variant or ""
    with _theirs(name, "import"):
        try:
            api = importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"`model` hear:{name}: the module cannot be imported ({error}). Install it, or correct its name.") from None
    if absent := [f for f in ("load_model", "get_scene_embeddings") if not callable(getattr(api, f, None))]:
        raise InputError(f"`model` hear:{name}: not a HEAR module: it has no {' and no '.join(absent)}.")
    arguments: dict[str, Any] = {}
    if "mode" in inspect.signature(api.load_model).parameters:
        arguments["mode"] = spec.mode
    elif spec.mode != "embed_only":
        raise InputError(f"`mode` {spec.mode!r}: the module {name} has no modes. Leave it out.")
    passt = name.split(".")[0] == "hear21passt"
    if passt and spec.checkpoint:
        raise InputError(f"`checkpoint`: {name} takes a path and reads nothing from it. Use model passt, which loads {spec.checkpoint}.")
    with _theirs(name, "load_model"):
        model = api.load_model(spec.checkpoint, **arguments) if spec.checkpoint else api.load_model(**arguments)
    if not hasattr(model, "sample_rate"):
        raise InputError(f"`model` hear:{name}: its model has no `sample_rate`, which the HEAR API asks for.")
    provenance = tuned(PASST.provenance if passt else UNTRAINED, f"{name} {Path(spec.checkpoint or '').name}")
    if not passt:
        provenance = replace(provenance, trained_on=(*provenance.trained_on, f"otherwise unknown (HEAR module {name})"))
    return Hear(api, model, provenance)


HEAR = AudioFamily(
    "hear",
    load_hear,
    sample_rate=None,
    width=None,
    provenance=UNTRAINED,
    variant="MODULE",
    needs="the module of the HEAR model, as in hear:hear21passt.base",
    has_modes=True,
    any_length=True,
    can_be_random=False,
    imports=True,
)
