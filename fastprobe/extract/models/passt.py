"""PaSST, through hear21passt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..provenance import Provenance, of_checkpoint, tuned
from ..sounds import centred_windows, pad_to
from ..weights import fetch_state, load_state, read_state
from .face import AudioFamily, AudioModel

if TYPE_CHECKING:
    from ..spec import AudioSpec

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

    prefix = 2  # class and distillation token

    @property
    def blocks(self) -> Any:
        return self.module.net.blocks

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
    provenance = tuned(PASST.provenance, arch)
    if spec.checkpoint:
        provenance = of_checkpoint(Path(spec.checkpoint).name, shape["num_classes"])
    wrapper = PasstBasicWrapper(mel=mel, net=net, mode=spec.mode, max_model_window=seconds * 1000)
    return Passt(wrapper, seconds, spec.pad, provenance)


PASST = AudioFamily(
    "passt",
    load_passt,
    sample_rate=32000,
    width=768,
    provenance=Provenance(("ImageNet-1k (labels)", "AudioSet (labels)"), frozenset({"audioset"})),
    package="hear21passt",
    variant="ARCH",
    has_modes=True,
    any_length=True,
    has_layers=True,
)
