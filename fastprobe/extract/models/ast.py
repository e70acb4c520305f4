"""AST, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..hub import extractor_recipe, transformers_model
from ..provenance import Provenance, of_checkpoint
from ..sounds import pad_to, spread_windows
from .face import AudioFamily, AudioModel

if TYPE_CHECKING:
    from ..spec import AudioSpec

_AST = "MIT/ast-finetuned-audioset-10-10-0.4593"


class Ast(AudioModel):
    """AST (arXiv 2104.01778): 16 kHz; the mean of its two class tokens, normed (`pooler_output`); 10 s, padded with zero frames."""

    def __init__(self, module: Any, extractor: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.extractor, self.sample_rate = extractor, extractor.sampling_rate
        longest = (extractor.max_length - 1) * self.sample_rate // 100 + self.sample_rate // 40
        self.window = min(10 * self.sample_rate, longest)
        self.recipe = extractor_recipe(self.window, extractor)

    prefix = 2  # class and distillation token

    @property
    def blocks(self) -> Any:
        return self.module.layers if hasattr(self.module, "layers") else self.module.encoder.layer  # transformers 5, and before

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        windows = spread_windows(pad_to(wave, self.sample_rate // 40), self.window)
        return np.stack([self.extractor(w, sampling_rate=self.sample_rate, return_tensors="np")["input_values"][0] for w in windows])

    def forward(self, batch: Any) -> Any:
        return self.module(batch).pooler_output


def load_ast(spec: AudioSpec) -> AudioModel:
    """AST of a folder, by name, or random."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    module, extractor, config = transformers_model(spec, _AST, ASTModel, ASTConfig, ASTFeatureExtractor)
    if (extractor.num_mel_bins, extractor.max_length) != (config.num_mel_bins, config.max_length):
        raise InputError(
            f"`checkpoint` {spec.checkpoint}: preprocessor_config.json makes {extractor.max_length} frames of "
            f"{extractor.num_mel_bins} bands, config.json wants {config.max_length} of {config.num_mel_bins}. Correct one."
        )
    published = spec.checkpoint is None and spec.variant is None
    labels = (config.id2label or {}).values()
    provenance = (
        AST.provenance
        if published
        else of_checkpoint(Path(spec.checkpoint or spec.variant or "").name, len(labels) if len(labels) > 2 else None, labels)
    )
    model = Ast(module, extractor, provenance)
    model.revision = getattr(config, "_commit_hash", None)
    return model


AST = AudioFamily(
    "ast",
    load_ast,
    sample_rate=16000,
    width=768,
    provenance=Provenance(("ImageNet-1k (labels)", "AudioSet (labels)"), frozenset({"audioset"})),
    package="transformers",
    variant="NAME",
    on_hub=True,
    has_layers=True,
)
