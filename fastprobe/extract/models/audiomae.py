"""AudioMAE, through timm: pre-trained alone, and fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..hub import fetched
from ..provenance import Provenance, of_checkpoint
from ..sounds import pad_to, spread_windows
from ..weights import load_state, read_state
from .face import AudioFamily, AudioModel

if TYPE_CHECKING:
    from ..spec import AudioSpec

_AUDIOMAE = {
    "audiomae": "gaunernst/vit_base_patch16_1024_128.audiomae_as2m",
    "audiomae-ft": "gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k",
}
_MEAN, _STD = -4.2677393, 4.5689974  # of AudioSet's log-mel energies, as AST and AudioMAE were trained


class AudioMae(AudioModel):
    """AudioMAE (arXiv 2207.06405) as timm has it: 16 kHz, 128 mel bands, 1024 frames; the mean of the patch tokens, normed.

    Trained on 10 s, the rest of the 1024 frames zero before normalisation; so are short clips here.
    """

    sample_rate = 16000
    window = 160000

    def __init__(self, module: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.frames, self.bands = module.patch_embed.img_size
        self.prefix = module.num_prefix_tokens
        self.recipe = {"window_seconds": 10, "windows": "spread evenly", "pad": "trained"}

    @property
    def blocks(self) -> Any:
        return self.module.blocks

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        import torch
        from torchaudio.compliance import kaldi

        inputs = []
        for window in spread_windows(pad_to(wave, 400), self.window):
            bank = kaldi.fbank(
                torch.from_numpy(np.ascontiguousarray(window))[None],
                htk_compat=True,
                window_type="hanning",
                num_mel_bins=self.bands,
                sample_frequency=self.sample_rate,
            )[: self.frames]
            bank = torch.nn.functional.pad(bank, (0, 0, 0, self.frames - len(bank)))
            inputs.append((bank - _MEAN) / (_STD * 2))
        return torch.stack(inputs)[:, None].numpy()

    def forward(self, batch: Any) -> Any:
        return self.module(batch)


def load_audiomae(spec: AudioSpec) -> AudioModel:
    """AudioMAE: published, a timm folder (config.json beside the weights), a file of weights, or random."""
    import timm

    known = {f.name: f for f in (AUDIOMAE, AUDIOMAE_FT)}[spec.family].provenance
    if spec.checkpoint is None and not spec.random_init and spec.variant is None:
        name = _AUDIOMAE[spec.family] + (f"@{spec.revision}" if spec.revision else "")
        module = fetched(f"`model` {spec.family} ({name})", lambda: timm.create_model(f"hf_hub:{name}", pretrained=True, num_classes=0))
        model = AudioMae(module, known)
        model.revision = spec.revision
        return model
    if spec.checkpoint and Path(spec.checkpoint).is_dir():
        module = fetched(
            f"`checkpoint` {spec.checkpoint}",
            lambda: timm.create_model(f"local-dir:{spec.checkpoint}", pretrained=not spec.random_init, num_classes=0),
        )
        if getattr(module.patch_embed, "img_size", None) is None or module.patch_embed.proj.in_channels != 1:
            raise InputError(f"`checkpoint` {spec.checkpoint}: a timm model of one-channel spectrograms of a fixed size is needed.")
        return AudioMae(module, of_checkpoint(Path(spec.checkpoint).name))
    try:
        module = timm.create_model(
            spec.variant or "vit_base_patch16_224", img_size=(1024, 128), in_chans=1, num_classes=0, global_pool="avg"
        )
    except (RuntimeError, TypeError) as error:
        raise InputError(f"`model` {spec.model!r}: timm cannot build it ({error}). Name a vision transformer of timm.") from None
    if spec.random_init:
        return AudioMae(module, known)
    if spec.checkpoint is None:
        raise InputError(f"`model` {spec.model!r}: an architecture has no published weights. Give `checkpoint` or `random_init`.")
    state = read_state(spec.checkpoint)
    head = state.get("head.weight")
    if "fc_norm.weight" not in state:  # the authors' pre-training file norms before pooling, under another name
        state = {k.replace("norm.", "fc_norm.", 1) if k.startswith("norm.") else k: v for k, v in state.items()}
    load_state(module, state, spec.checkpoint, ignore=("head.", "decoder", "mask_token"))
    return AudioMae(module, of_checkpoint(Path(spec.checkpoint).name, None if head is None else len(head)))


AUDIOMAE = AudioFamily(
    "audiomae",
    load_audiomae,
    sample_rate=16000,
    width=768,
    provenance=Provenance(("AudioSet-2M (no labels)",)),
    package="timm",
    variant="ARCH",
    on_hub=True,
    has_layers=True,
)
AUDIOMAE_FT = AudioFamily(
    "audiomae-ft",
    load_audiomae,
    sample_rate=16000,
    width=768,
    provenance=Provenance(("AudioSet-2M (no labels)", "AudioSet-20k (labels)"), frozenset({"audioset"})),
    package="timm",
    on_hub=True,
    has_layers=True,
)
