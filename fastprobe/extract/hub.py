"""Models of the Hugging Face hub: fetched by name or read from a folder, and complete."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..tables.embeddings import first_few

if TYPE_CHECKING:
    from .spec import AudioSpec


def fetched(what: str, load: Any) -> Any:
    """Run a loader of the hub; say what to do when it cannot be reached or has no such model."""
    try:
        return load()
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{what} holds pickled objects, which could run anything while they load and are never unpickled here. Save its weights as "
            "safetensors."
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:  # a damaged configuration raises any of them
        detail = " ".join(str(error).split())
        raise InputError(
            f"{what} could not be loaded ({detail[:300]}). By name it needs the network; without one give a local folder or file."
        ) from None


def complete(info: dict[str, Any], what: str, unused: tuple[str, ...] = ()) -> None:
    """Refuse a checkpoint that left tensors at a random start; `unused` lists prefixes the embedding does not depend on."""
    missing = sorted(k for k in info.get("missing_keys", ()) if not k.startswith(unused))
    shapes = sorted(str(k) for k in info.get("mismatched_keys", ()))
    if missing or shapes:
        raise InputError(
            f"{what} lacks {len(missing) + len(shapes)} tensors of its architecture: {first_few(missing + shapes)}. They "
            "would be random. Give weights of this architecture, or ask for `random_init`."
        )


def extractor_recipe(window: int, extractor: Any) -> dict[str, Any]:
    """Windows and all plain settings of a feature extractor: they decide the vector as the weights do."""
    settings = {k: v for k, v in sorted(extractor.to_dict().items()) if v is None or isinstance(v, (bool, int, float, str))}
    return {"window_seconds": window / extractor.sampling_rate, "windows": "spread evenly", "pad": "trained", "extractor": settings}


def transformers_model(spec: AudioSpec, default: str, model_class: Any, config_class: Any, extractor_class: Any) -> tuple[Any, Any, Any]:
    """Network, feature extractor and configuration: of a folder, by name, or random."""
    if spec.checkpoint and not Path(spec.checkpoint).is_dir():
        raise InputError(
            f"`checkpoint` of {spec.family} must be a folder with config.json, preprocessor_config.json and weights; got {spec.checkpoint}."
        )
    source = spec.checkpoint or spec.variant or default
    what = f"`checkpoint` {source}" if spec.checkpoint else f"`model` {spec.family} ({source})"
    where = {"local_files_only": True} if spec.checkpoint else {"revision": spec.revision or "main"}
    if spec.random_init and not spec.checkpoint and not spec.variant:
        return model_class(config_class()), extractor_class(), config_class()
    extractor = fetched(what, lambda: extractor_class.from_pretrained(source, **where))
    if spec.random_init:
        config = fetched(what, lambda: config_class.from_pretrained(source, **where))
        return model_class(config), extractor, config
    module, info = fetched(what, lambda: model_class.from_pretrained(source, output_loading_info=True, **where))
    complete(info, what)
    return module, extractor, module.config
