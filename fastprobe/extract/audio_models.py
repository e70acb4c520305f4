"""Audio models behind one face: a clip's samples -> network inputs -> one vector per input.

`prepare` runs in the decoding threads, on the CPU; `forward` on the device. A long clip has several inputs
(windows); its vector is their mean. What each model was trained to take is written beside its class.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .cache import file_digest
from .hub_models import load_ast, load_audiomae, load_clap
from .model import AudioModel, choose_device, seeded
from .provenance import PUBLISHED, UNTRAINED, Provenance, of_checkpoint, tuned
from .sounds import centred_windows, pad_to, spread_windows
from .spec import AudioSpec
from .weights import fetch_state, load_state, no_network, quiet, read_state, state_digest

# Architectures of hear21passt that share the standard spectrogram (hop 320): name there, patch stride, classes.
_PASST = {
    "passt_s_swa_p16_128_ap476": ("passt_s_swa_p16_128_ap476", 10, 998),
    "passt_s_kd_p16_128_ap486": ("passt_s_kd_p16_128_ap486", 10, 998),
    "passt_l_kd_p16_128_ap47": ("passt_l_kd_p16_128_ap47", 10, 998),
    "passt_s_p16_s16_128_ap468": ("passt_s_p16_s16_128_ap468", 16, 998),
    "passt_b_f128_p16_s16_ap_459": ("passt_b_f128_p16_s16_ap_459", 16, 998),
    "passt_u600_f128_p16_s16_ap_460": ("passt_u600_f128_p16_s16_ap_460", 16, 998),
    "passt_20sec": ("passt-s-f128-20sec-p16-s10-ap474-swa", 10, 2000),
    "passt_30sec": ("passt-s-f128-30sec-p16-s10-ap473-swa", 10, 3000),
    "openmic": ("openmic_passt_s_f128_10sec_p16_s10_ap85", 10, 998),
    "fsd50k": ("fsd50k_passt_s_f128_p16_s10_ap655", 10, 998),
    "fsd50k-n": ("fsd50k_passt_s_n_f128_p16_s16_ap642", 16, 998),
}
_PANN_URL = "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth?download=1"


class Passt(AudioModel):
    """PaSST (arXiv 2110.05069) through hear21passt: 32 kHz; trained on clips padded with silence to its window.

    A longer clip is cut as the package's own `get_scene_embeddings` does: windows centred a quarter window apart, ends mirrored.
    """

    sample_rate = 32000
    shortest = 6400  # one column of 16 spectrogram frames needs 0.15 s

    def __init__(self, wrapper: Any, seconds: int, pad: str, provenance: Provenance) -> None:
        super().__init__(wrapper, provenance)
        self.window, self.pad = seconds * self.sample_rate, pad
        self.recipe = {
            "window_seconds": seconds,
            "hop_seconds": seconds / 4 if seconds < 30 else 10,
            "ends": "mirrored",
            "pad": pad,
        }

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        wave = pad_to(wave, self.window if self.pad == "trained" else self.shortest)
        return centred_windows(wave, self.window, int(self.recipe["hop_seconds"] * self.sample_rate))

    def forward(self, batch: Any) -> Any:
        return self.module(batch)


def load_passt(spec: AudioSpec) -> AudioModel:
    """PaSST with published, local or random weights; the shape of a local checkpoint is read from its tensors."""
    from hear21passt.base import AugmentMelSTFT, PasstBasicWrapper
    from hear21passt.models import passt

    arch = spec.variant or "passt_s_swa_p16_128_ap476"
    if arch not in _PASST:
        raise InputError(
            f"`model` passt:ARCH must name one of {', '.join(_PASST)}; got {arch!r}. Variants with another spectrogram "
            "go by their HEAR module, as hear:hear21passt.hop100base."
        )
    published, stride, frames = _PASST[arch]
    state: dict[str, Any] | None = None
    if spec.checkpoint and not spec.random_init:
        state = read_state(spec.checkpoint)
    elif not spec.random_init:
        state = fetch_state(passt.default_cfgs[published]["url"], f"PaSST ({arch})")
    shape = {"embed_dim": 768, "depth": 12, "num_heads": 12, "num_classes": 527, "patch_size": 16}
    if state is not None:
        state = {k.removeprefix("net."): v for k, v in state.items() if not k.startswith(("mel.", "device_proxy"))}
        need = ("freq_new_pos_embed", "time_new_pos_embed", "head.1.weight")
        if absent := [k for k in need if k not in state]:
            raise InputError(f"`checkpoint` {spec.checkpoint} is not PaSST's: it lacks {', '.join(absent)}.")
        (width, rows), columns = state[need[0]].shape[1:3], state[need[1]].shape[-1]
        stride = {12: 10, 8: 16}.get(rows, stride)
        frames = columns * stride
        shape = {
            "embed_dim": width,
            "depth": sum(k.endswith("attn.qkv.weight") for k in state),
            "num_heads": max(width // 64, 1),
            "num_classes": len(state[need[2]]),
            "patch_size": 16,
        }
    net = passt.PaSST(img_size=(128, frames), stride=(stride, stride), in_chans=1, distilled=True, **shape)
    if state is not None:
        # The second head served distillation only; neither features nor logits pass through it.
        load_state(net, state, str(spec.checkpoint or arch), ignore=("head_dist.",))
    mel = AugmentMelSTFT(
        n_mels=128,
        sr=32000,
        win_length=800,
        hopsize=320,
        n_fft=1024,
        freqm=48,
        timem=192,
        htk=False,
        fmin=0.0,
        fmax=None,
        norm=1,
        fmin_aug_range=10,
        fmax_aug_range=2000,
    )
    passt.first_RUN = False  # it prints every shape on its first call
    seconds = max(round(frames / 100), 1)
    provenance = tuned(PUBLISHED["passt"], arch)
    if spec.checkpoint:
        provenance = of_checkpoint(Path(spec.checkpoint).name, shape["num_classes"])
    wrapper = PasstBasicWrapper(mel=mel, net=net, mode=spec.mode, max_model_window=seconds * 1000)
    return Passt(wrapper, seconds, spec.pad, provenance)


class Pann(AudioModel):
    """CNN14 of PANNs (arXiv 1912.10211): 32 kHz, 2048 wide; trained on clips padded with silence to 10 s."""

    sample_rate = 32000
    window = 320000
    shortest = 10240  # five halvings of the frame axis leave one column

    def __init__(self, module: Any, pad: str, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.pad = pad
        self.recipe = {"window_seconds": 10, "windows": "spread evenly", "pad": pad}

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        return spread_windows(pad_to(wave, self.window if self.pad == "trained" else self.shortest), self.window)

    def forward(self, batch: Any) -> Any:
        return self.module(batch)["embedding"]


def _panns_models() -> Any:
    """`panns_inference.models`, without running the package's own `__init__`, which calls wget for a list of labels."""
    name = "fastprobe_panns_inference"
    if name not in sys.modules:
        found = importlib.util.find_spec("panns_inference")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'panns_inference'", name="panns_inference")
        package = types.ModuleType(name)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[name] = package
    return importlib.import_module(name + ".models")


def load_pann(spec: AudioSpec) -> AudioModel:
    """CNN14 with published, local or random weights. It stays on one device: no DataParallel around it."""
    module = _panns_models().Cnn14(sample_rate=32000, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=14000, classes_num=527)
    provenance = PUBLISHED["pann"]
    if not spec.random_init:
        state = read_state(spec.checkpoint) if spec.checkpoint else fetch_state(_PANN_URL, "PANN CNN14")
        head = state.get("fc_audioset.weight")
        # The classifier is not used, so one of another width does no harm.
        load_state(
            module,
            {k: v for k, v in state.items() if not k.startswith("fc_audioset.")},
            str(spec.checkpoint or "CNN14"),
            ignore=("fc_audioset.", "spectrogram_extractor.", "logmel_extractor."),
        )
        if spec.checkpoint:
            provenance = of_checkpoint(Path(spec.checkpoint).name, None if head is None else len(head))
    return Pann(module, spec.pad, provenance)


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
        return self.api.get_scene_embeddings(batch, self.module)


def load_hear(spec: AudioSpec) -> AudioModel:
    """A HEAR module by its name; `checkpoint` is handed to its `load_model`."""
    name = spec.variant or ""
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
    model = api.load_model(spec.checkpoint, **arguments) if spec.checkpoint else api.load_model(**arguments)
    if not hasattr(model, "sample_rate"):
        raise InputError(f"`model` hear:{name}: its model has no `sample_rate`, which the HEAR API asks for.")
    provenance = tuned(PUBLISHED["passt"] if passt else Provenance(()), f"{name} {Path(spec.checkpoint or '').name}")
    if not passt:
        provenance = replace(provenance, trained_on=(*provenance.trained_on, f"otherwise unknown (HEAR module {name})"))
    return Hear(api, model, provenance)


LOADERS: dict[str, Callable[[AudioSpec], AudioModel]] = {
    "passt": load_passt,
    "pann": load_pann,
    "audiomae": load_audiomae,
    "audiomae-ft": load_audiomae,
    "ast": load_ast,
    "clap": load_clap,
    "hear": load_hear,
}


def load_model(spec: AudioSpec, device: str | None = None) -> AudioModel:
    """The model of a spec, in evaluation mode on a device (default: CUDA if there is one, else the CPU).

    What packages print while loading is swallowed. With local or random weights no connection is made.

    Raises
    ------
    InputError
        A package that is not installed, weights that do not fit or are not those of ``spec.weights``, no network.
    """
    local = bool(spec.checkpoint) or spec.random_init
    try:
        with quiet(), seeded(spec.seed), no_network(f"`model` {spec.model}") if local else nullcontext():
            model = LOADERS[spec.family](spec)
    except ModuleNotFoundError as error:
        raise InputError(
            f'`model` {spec.model!r} needs the package {error.name!r}. Install the extra: pip install "fastprobe[audio]".'
        ) from None
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
