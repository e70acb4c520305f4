"""What decides an embedding, and nothing else: specs that a table's meta holds and that rebuild the extractor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .models import AUDIO_MODELS, family_names

MODES = ("embed_only", "all", "logits")
PADS = ("trained", "none")
POOLS = ("mean", "last", "cls", "max")
DTYPES = ("float32", "float16", "bfloat16")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


def _from_meta(cls: type, meta: Mapping[str, Any], kind: str) -> Any:
    """The spec stored under ``meta["spec"]``, of a table of this kind."""
    spec = meta.get("spec") if isinstance(meta, Mapping) else None
    if not isinstance(spec, Mapping) or meta.get("kind") != kind:
        raise InputError(
            f"`meta` does not say how its vectors were made: it needs `kind` = {kind!r} and `spec`, as `fastprobe "
            f"embed {kind}` writes them; found {', '.join(sorted(meta)) or 'nothing'}. Embed the table again."
        )
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(spec) - known):
        raise InputError(
            f"`meta` has a `spec` with unknown fields: {', '.join(unknown)}. It is from another version of "
            "fastprobe: embed the table again."
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    return cls(**values)


@dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """Which audio model makes the vectors, and how.

    Attributes
    ----------
    model : str
        ``passt``, ``pann``, ``audiomae``, ``audiomae-ft``, ``ast``, ``clap``, or ``hear:MODULE``. A variant follows a
        colon: ``passt:passt_20sec`` (an architecture of hear21passt), ``audiomae:vit_small_patch16_224`` (of timm),
        ``ast:NAME``, ``clap:NAME`` (a repository of the Hugging Face hub).
    checkpoint : str, optional
        Local weights: a file for ``passt`` and ``pann``, a file or a timm folder for ``audiomae``, a folder for ``ast`` and
        ``clap``, whatever the module takes for ``hear``. Without it the published weights are fetched by name.
    revision : str, optional
        Revision on the hub (``audiomae``, ``ast``, ``clap``).
    random_init : bool
        Untrained weights, drawn from `seed`: a control. With a `checkpoint` folder only its configuration is used.
    seed : int
    mode : {"embed_only", "all", "logits"}
        For ``passt`` and HEAR modules with a ``mode``: the features, features after logits, or logits alone.
    pad : {"trained", "none"}
        ``trained``: a short clip is padded to the length the model was trained on. ``none``: it goes in as it is
        (``passt`` and ``pann``; always so for ``hear``).
    layers : tuple of int, optional
        Hidden layers in place of the model's output (``passt``, ``audiomae``, ``ast``): means over the patch tokens, several side by
        side. 0 is the patch embedding.
    weights : str, optional
        Digest the loaded weights must have. A table's meta holds it, so that a query meets the same model.
    """

    model: str
    checkpoint: str | None = None
    revision: str | None = None
    random_init: bool = False
    seed: int = 0
    mode: str = "embed_only"
    pad: str = "trained"
    layers: tuple[int, ...] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or self.family not in AUDIO_MODELS:
            *most, last = family_names().split(", ")
            raise InputError(f"`model` must be one of {', '.join(most)} or {last}; got {self.model!r}.")
        known = AUDIO_MODELS[self.family]
        if known.needs and not self.variant:
            raise InputError(f"`model` must name {known.needs}; got {self.family!r}.")
        if self.variant and not known.variant:
            raise InputError(f"`model` {self.family} has no variants; got {self.model!r}.")
        _choice("mode", self.mode, MODES)
        _choice("pad", self.pad, PADS)
        if self.mode != "embed_only" and not known.has_modes:
            raise InputError(
                f"`mode` {self.mode!r} needs a model with logits beside its embedding ({family_names('has_modes')}); "
                f"got model {self.model!r}."
            )
        if self.pad == "none" and not known.any_length:
            raise InputError(
                f'`pad`="none" needs a model that takes any length ({family_names("any_length")}); {self.model!r} '
                'takes one fixed size. Use `pad`="trained".'
            )
        if self.random_init and not known.can_be_random:
            raise InputError(f"`random_init` cannot be had for a {self.family.upper()} module, which loads its own weights. Leave it out.")
        if self.layers is not None:
            if not known.has_layers:
                raise InputError(f"`layers` are those of {family_names('has_layers')}; got model {self.model!r}. Leave them out.")
            if self.mode != "embed_only":
                raise InputError(f"`layers` stand in place of the output that `mode` chooses; got {self.mode!r}. Leave one of them out.")
            if not self.layers or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in self.layers):
                raise InputError(f"`layers` must be whole numbers of at least 0; got {self.layers!r}.")
        if self.revision and not known.on_hub:
            raise InputError(f"`revision` is for models of the Hugging Face hub ({family_names('on_hub')}); got model {self.model!r}.")
        if self.revision and self.checkpoint:
            raise InputError("`revision` belongs to a model fetched by name; got a local `checkpoint` as well. Give one of them.")

    @property
    def family(self) -> str:
        """The part of `model` before the colon."""
        return self.model.split(":", 1)[0]

    @property
    def variant(self) -> str | None:
        """The part of `model` after the colon."""
        return self.model.split(":", 1)[1] if ":" in self.model else None

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], checkpoint: str | None = None) -> AudioSpec:
        """The spec of a table that `build_table` made; `checkpoint` says where its weights lie now, if they moved."""
        spec: AudioSpec = _from_meta(cls, meta, "audio")
        return dataclasses.replace(spec, checkpoint=str(checkpoint)) if checkpoint else spec

    def check_named(self, named: str | None, where: str) -> None:
        """Whether a model that a file names may be loaded: what imports code only if the user named it too.

        Parameters
        ----------
        named : str, optional
            `model` as the user gave it.
        where : str
            What messages call the file.

        Raises
        ------
        InputError
            Another model was named, or none where one must be.
        """
        if named is not None and named != self.model:
            raise InputError(f"`audio_model`: {where} names {self.model!r}; got {named!r}. Give that, or leave it out.")
        if named is None and AUDIO_MODELS[self.family].imports:
            raise InputError(
                f"{where} names the audio model {self.model!r}, which would import and run the module {self.variant}. A file cannot ask "
                f"for that: if you trust it, name it yourself with `audio_model` (in the shell --audio-model {self.model})."
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Which language model makes the vectors of one table, and how.

    Attributes
    ----------
    model : str
        A name on the Hugging Face hub, a local folder, or a text file of word vectors (GloVe, word2vec).
    revision : str, optional
        Revision on the hub.
    layer : int
        Hidden state: 0 is the input embedding, -1 the last layer.
    pool : {"mean", "last", "cls", "max"}
        Over the tokens of the class name; ``cls`` takes the first special token instead.
    templates : tuple of str
        Prompts with one ``{}`` each; the vectors of several are averaged.
    dtype : {"float32", "float16", "bfloat16"}
        Of weights and activations; pooling and tables are float32.
    random_init : bool
        Untrained weights, drawn from `seed`: a control.
    seed : int
    weights : str, optional
        Digest the loaded weights must have. A table's meta holds it, so that a query meets the same model.
    """

    model: str
    revision: str | None = None
    layer: int = -1
    pool: str = "mean"
    templates: tuple[str, ...] = ("{}",)
    dtype: str = "float32"
    random_init: bool = False
    seed: int = 0
    weights: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"`model` must be a name, a folder or a file of word vectors; got {self.model!r}.")
        _choice("pool", self.pool, POOLS)
        _choice("dtype", self.dtype, DTYPES)
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise InputError(f"`layer` must be a whole number; got {self.layer!r}.")
        if isinstance(self.templates, str) or not self.templates:
            raise InputError(f"`templates` must be a list of at least one prompt; got {self.templates!r}.")
        for template in self.templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise InputError(f"`template` must hold {{}} exactly once, where the class name goes; got {template!r}.")
        object.__setattr__(self, "templates", tuple(self.templates))

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], model: str | None = None) -> TextSpec:
        """The spec of a table that `embed_classes` made; `model` says where its folder lies now, if it moved."""
        spec = _from_meta(cls, meta, "text")
        return dataclasses.replace(spec, model=str(model)) if model else spec

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {**dataclasses.asdict(self), "templates": list(self.templates)}
