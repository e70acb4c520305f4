"""The audio side of CLAP, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hub import extractor_recipe, transformers_model
from ..provenance import Provenance, of_checkpoint
from ..sounds import spread_windows
from .face import AudioFamily, AudioModel

if TYPE_CHECKING:
    from ..spec import AudioSpec

_CLAP = "laion/clap-htsat-unfused"


class Clap(AudioModel):
    """CLAP (arXiv 2211.06687): 48 kHz; the projected audio embedding; 10 s, a shorter clip repeated and padded as trained.

    Its extractor crops longer clips at random and marks a random clip of a batch as "longer": windows of 10 s and a mark of
    our own make both impossible.
    """

    def __init__(self, module: Any, extractor: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.extractor, self.sample_rate, self.window = extractor, extractor.sampling_rate, int(extractor.nb_max_samples)
        self.fused = bool(getattr(module.config, "enable_fusion", False))
        self.recipe = extractor_recipe(self.window, extractor)

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        truncation = "fusion" if self.fused else "rand_trunc"
        return np.stack(
            [
                self.extractor(
                    w, sampling_rate=self.sample_rate, truncation=truncation, padding=self.extractor.padding, return_tensors="np"
                )["input_features"][0]
                for w in spread_windows(wave, self.window)
            ]
        ).astype(np.float32)

    def forward(self, batch: Any) -> Any:
        import torch

        longer = torch.zeros((len(batch), 1), dtype=torch.bool, device=batch.device)
        return self.module(input_features=batch, is_longer=longer).audio_embeds


def load_clap(spec: AudioSpec) -> AudioModel:
    """The audio side of CLAP, of a folder, by name, or random."""
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    module, extractor, config = transformers_model(spec, _CLAP, ClapAudioModelWithProjection, ClapAudioConfig, ClapFeatureExtractor)
    published = spec.checkpoint is None and spec.variant is None
    model = Clap(module, extractor, CLAP.provenance if published else of_checkpoint(Path(spec.checkpoint or spec.variant or "").name))
    model.revision = getattr(config, "_commit_hash", None)
    return model


CLAP = AudioFamily(
    "clap",
    load_clap,
    sample_rate=48000,
    width=512,
    provenance=Provenance(("LAION-Audio-630K, AudioSet and caption sets (captions: its audio side has met language)",)),
    package="transformers",
    variant="NAME",
    on_hub=True,
)
