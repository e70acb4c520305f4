"""Class names through a language model: `embed_classes`, `embed_texts`.

    t_c = 1/T sum_templates pool{ h_l(token) : token of the class name }        h_l: hidden state of layer l

Only tokens that overlap the class name count: special tokens and the prompt's own words are left out, by the tokenizer's
offsets. All layers come from one forward pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, needs
from ..tables.embeddings import EmbeddingTable, first_few
from .hub import complete, fetched
from .meta import origin
from .models.face import choose_device, seeded
from .names import ClassName, natural_name
from .ngrams import MODEL as CHAR_NGRAMS
from .ngrams import char_ngrams
from .spec import TextSpec
from .static_vectors import is_vector_file, static_embeddings
from .weights import no_network, quiet, state_digest


class _Model(NamedTuple):
    network: Any
    tokenizer: Any
    device: str
    layers: int  # hidden states beside the input embedding
    longest: int  # positions the model has, or a large number
    digest: str
    revision: str | None


def _load(spec: TextSpec, device: str | None) -> _Model:
    """Tokenizer and network (of an encoder-decoder: its encoder), in evaluation mode on the device."""
    with needs(f"`model` {spec.model!r}", "text"):
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    folder = Path(spec.model)
    local = folder.is_dir()
    if not local and (folder.is_absolute() or spec.model.startswith((".", "~"))):
        raise InputError(
            f"`model` {spec.model}: no such folder or file. Give a model's folder, a text file of word vectors, or a "
            "name on the Hugging Face hub."
        )
    if local and spec.revision:
        raise InputError(f"`revision` belongs to a model fetched by name; got a folder, {spec.model}. Leave it out.")
    where: dict[str, Any] = {"local_files_only": True} if local else {"revision": spec.revision or "main"}
    where["trust_remote_code"] = False  # said outright, or transformers asks at the terminal whether to run a folder's own code
    what = f"`model` {spec.model}"

    def load() -> tuple[Any, Any, Any]:
        config = AutoConfig.from_pretrained(spec.model, **where)
        tokenizer = AutoTokenizer.from_pretrained(spec.model, use_fast=True, **where)
        if spec.random_init:
            network, info = AutoModel.from_config(config, dtype=getattr(torch, spec.dtype)), {}
        else:
            network, info = AutoModel.from_pretrained(spec.model, dtype=getattr(torch, spec.dtype), output_loading_info=True, **where)
        return tokenizer, network, info

    with quiet(), seeded(spec.seed), no_network(what) if local else contextlib.nullcontext():
        tokenizer, network, info = fetched(what, load)
    config = network.config
    # The pooler follows the last hidden state, the decoder the encoder: neither is read here.
    complete(info, what, unused=("pooler.", "decoder.", "lm_head.", "cls."))
    if getattr(config, "is_encoder_decoder", False):
        network = network.get_encoder()
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{what}: its tokenizer gives no offsets ({type(tokenizer).__name__} is not a fast one), so the tokens of a "
            "name cannot be told from the prompt's. Save it with a tokenizer.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    network.eval().requires_grad_(False)
    digest = _digest(network, tokenizer)
    if spec.weights is not None and spec.weights != digest:
        raise InputError(
            f"{what}: the weights loaded ({digest[:12]}...) are not those that made the table ({spec.weights[:12]}...). "
            "Give the model and revision it was made with, or embed it again."
        )
    device = choose_device(device)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    relative = getattr(text, "model_type", "") in ("t5", "mt5", "umt5", "longt5")
    longest = 10**9 if relative else getattr(text, "max_position_embeddings", None) or 10**9
    layers = getattr(text, "num_hidden_layers", None) or text.num_layers
    return _Model(network.to(device), tokenizer, device, int(layers), int(longest), digest, getattr(config, "_commit_hash", None))


def _digest(network: Any, tokenizer: Any) -> str:
    """Of the weights and the vocabulary: the same from a folder, a file of another format, or the hub."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{state_digest(network)}\0{vocabulary}".encode()).hexdigest()


def choose_layers(layers: int | str | Sequence[int], count: int) -> list[int]:
    """Layer numbers 0 ... `count`, ascending in the order asked for, negative ones counted from the end.

    Parameters
    ----------
    layers
        A number, several, ``"last"``, ``"all"``, or text such as ``"0,6,-1"``.
    count
        Layers of the model; 0 is its input embedding, `count` its last hidden state.

    Raises
    ------
    InputError
        A layer the model does not have, one given twice, text that is not numbers.
    """
    if isinstance(layers, str):
        text = layers.strip().lower()
        if text == "all":
            return list(range(count + 1))
        try:
            chosen = [-1] if text == "last" else [int(part) for part in text.split(",")]
        except ValueError:
            raise InputError(f"`layers` must be numbers with commas, 'last' or 'all'; got {layers!r}.") from None
    else:
        chosen = [layers] if isinstance(layers, int) else [int(x) for x in layers]
    resolved = [x + count + 1 if x < 0 else x for x in chosen]
    if wrong := [x for x, r in zip(chosen, resolved) if not 0 <= r <= count]:
        raise InputError(f"`layers` must lie in 0 ... {count} (0 is the input embedding), or -1 ... {-count - 1}; got {wrong[0]}.")
    if not resolved or len(set(resolved)) < len(resolved):
        raise InputError(f"`layers` must name at least one layer, each once; got {layers!r}.")
    return resolved


def name_tokens(offsets: np.ndarray, special: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Which tokens belong to the characters [start, stop): those that overlap them and are not special, bool (n,)."""
    begin, end = offsets[:, 0], offsets[:, 1]
    return (special == 0) & (begin < stop) & (end > start) & (end > begin)


def _encode(model: _Model, prompts: Sequence[tuple[str, int, int]], pool: str, what: str) -> tuple[Any, np.ndarray]:
    """Token ids and, for every prompt, which of its tokens are pooled, bool (b, n)."""
    encoded = model.tokenizer(
        [p[0] for p in prompts], padding=True, return_offsets_mapping=True, return_special_tokens_mask=True, return_tensors="pt"
    )
    offsets, special = encoded.pop("offset_mapping").numpy(), encoded.pop("special_tokens_mask").numpy()
    width = encoded["input_ids"].shape[1]
    if width > model.longest:
        raise InputError(f"{what}: a prompt is {width} tokens long, the model takes {model.longest}. Shorten the template or the name.")
    special = np.maximum(special, 1 - encoded["attention_mask"].numpy())
    if pool == "cls":
        first = model.tokenizer.cls_token_id
        chosen = (encoded["input_ids"].numpy() == first) & (encoded["attention_mask"].numpy() == 1) if first is not None else None
        if chosen is None or not chosen.any(axis=1).all():
            raise InputError(f'`pool`="cls": {what} puts no class token before a text. Use mean, last or max.')
        return encoded, chosen & (np.cumsum(chosen, axis=1) == 1)
    chosen = np.stack([name_tokens(o, s, start, stop) for o, s, (_, start, stop) in zip(offsets, special, prompts)])
    if (empty := np.flatnonzero(~chosen.any(axis=1))).size:
        raise InputError(f"{what}: its tokenizer makes no token of {prompts[empty[0]][0]!r}. Give the class another name.")
    return encoded, chosen


def pooled(hidden: Any, chosen: Any, pool: str) -> Any:
    """Pool hidden states (b, n, D) over the chosen tokens, bool (b, n): float32 (b, D)."""
    import torch

    hidden = hidden.float()
    if pool == "max":
        return hidden.masked_fill(~chosen[..., None], -torch.inf).amax(1)
    if pool == "last":
        last = (chosen * torch.arange(1, chosen.shape[1] + 1, device=chosen.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = chosen.float()  # mean; cls has one chosen token
    return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def _run(model: _Model, names: Sequence[str], spec: TextSpec, layers: Sequence[int], batch_size: int) -> np.ndarray:
    """Vectors, float32 (layers, names, D)."""
    import torch

    prompts = []
    for template in spec.templates:
        before = template.index("{}")
        prompts += [(template.replace("{}", name), before, before + len(name)) for name in names]
    out = []
    for start in range(0, len(prompts), batch_size):
        encoded, chosen = _encode(model, prompts[start : start + batch_size], spec.pool, f"`model` {spec.model}")
        try:
            with torch.inference_mode():
                arguments = {k: v.to(model.device) for k, v in encoded.items() if k in ("input_ids", "attention_mask")}
                states = model.network(**arguments, output_hidden_states=True).hidden_states
                mask = torch.from_numpy(chosen).to(model.device)
                out.append(torch.stack([pooled(states[x], mask, spec.pool) for x in layers]).cpu().numpy())
        except torch.OutOfMemoryError:
            raise InputError(
                f"`batch_size` {batch_size} does not fit into the memory of {model.device}. Lower it, or choose a narrower `dtype`."
            ) from None
    vectors = np.concatenate(out, axis=1).reshape(len(layers), len(spec.templates), len(names), -1)
    return vectors.mean(axis=1, dtype=np.float64).astype(np.float32)


def embed_classes(
    classes: Sequence[ClassName | str],
    spec: TextSpec,
    layers: int | str | Sequence[int] = "last",
    *,
    device: str | None = None,
    batch_size: int = 256,
) -> dict[int, EmbeddingTable]:
    """One table per layer, with a row per class; all layers from one pass over the names.

    Parameters
    ----------
    classes
        As `names.read_classes` gives them, or labels (their natural names are embedded).
    spec
        Model, pooling, templates, dtype. Its `layer` is not read.
    layers
        As `choose_layers`. Word vectors have layer 0 only.
    device
        Default: CUDA if there is one, else the CPU.
    batch_size
        Prompts per forward pass.

    Returns
    -------
    dict
        Layer number -> table, in the order asked for. ``meta`` holds what `embed_texts` needs to embed other texts alike.

    Raises
    ------
    InputError
        No class, an unknown model or layer, a tokenizer without offsets, weights that do not fit, a name without a token.
    """
    rows = [c if isinstance(c, ClassName) else ClassName(c, natural_name(c)) for c in classes]
    if not rows:
        raise InputError("`classes` must hold at least one class; got none.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"`batch_size` must be a whole number of at least 1; got {batch_size!r}.")
    names = [r.name for r in rows]
    if spec.model == CHAR_NGRAMS:
        for option in ("pool", "templates", "dtype", "revision", "random_init"):
            if (value := getattr(spec, option)) != getattr(TextSpec(model=CHAR_NGRAMS), option):
                raise InputError(
                    f"`{option}` is of language models; {CHAR_NGRAMS} has no weights and takes none. Got {value!r}; leave it out."
                )
        layers = choose_layers(layers, 0)
        vectors = char_ngrams(names).vectors[None]
        digest, count, revision, device, parameters = None, 0, None, "cpu", None
    elif is_vector_file(spec.model):
        layers = choose_layers(layers, 0)
        vectors, digest = static_embeddings(spec, names)
        vectors, count, revision, device, parameters = vectors[None], 0, None, "cpu", None
    else:
        model = _load(spec, device)
        layers = choose_layers(layers, model.layers)
        vectors = _run(model, names, spec, layers, batch_size)
        digest, revision, device, count = model.digest, model.revision, model.device, model.layers
        parameters = sum(p.numel() for p in model.network.parameters())
    for layer, block in zip(layers, vectors):
        if (bad := np.flatnonzero(~np.isfinite(block).all(axis=1))).size:
            raise InputError(
                f"`model` {spec.model}: layer {layer} is NaN or infinite for {first_few([names[i] for i in bad])}. With "
                '`dtype`="float16" values overflow: use bfloat16 or float32.'
            )
    where = str(Path(spec.model).resolve()) if Path(spec.model).exists() else spec.model
    made = origin("numpy", "scikit-learn", "torch", "transformers", "tokenizers")
    tables = {}
    for layer, block in zip(layers, vectors):
        exact = dataclasses.replace(spec, model=where, revision=revision or spec.revision, layer=layer, weights=digest)
        tables[layer] = EmbeddingTable(
            block,
            np.array([r.label for r in rows]),
            np.array(names),
            {
                "name": f"{Path(spec.model).name}-layer{layer:02d}",
                "kind": "text",
                "model": where,
                "revision": revision or spec.revision,
                "weights": digest,
                "untrained": spec.random_init,
                "layer": layer,
                "n_layers": count,
                "parameters": parameters,
                "pooling": spec.pool,
                "template": list(spec.templates),
                "dtype": spec.dtype,
                "device": device,
                "sample_rate": None,
                **made,
                "spec": exact.to_dict(),
            },
        )
    return tables


def embed_texts(
    names: Sequence[str], spec: TextSpec | Mapping[str, Any], device: str | None = None, *, batch_size: int = 256
) -> np.ndarray:
    """Vectors of texts, in their order, by the model, layer, pooling and templates that made a table.

    Parameters
    ----------
    names
        What is read as it stands: pass a label through `names.natural_name` first.
    spec
        A `TextSpec`, or the ``meta`` of a text table or of a probe's text side; the weights found must have the digest
        recorded there.

    Returns
    -------
    float32 (n, D)

    Raises
    ------
    InputError
        A meta that does not say how its vectors were made, other weights, and as `embed_classes`.
    """
    spec = spec if isinstance(spec, TextSpec) else TextSpec.from_meta(spec)
    names = list(names)
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(f"`names` must be texts that are not empty; got {first_few(names) or 'none'}.")
    [table] = embed_classes([ClassName(n, n) for n in names], spec, spec.layer, device=device, batch_size=batch_size).values()
    return table.vectors
