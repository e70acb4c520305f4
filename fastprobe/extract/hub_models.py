"""Audio models of the Hugging Face hub: AudioMAE through timm, AST and CLAP through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..tables.embeddings import first_few
from .model import AudioModel
from .provenance import PUBLISHED, Provenance, of_checkpoint
from .sounds import pad_to, spread_windows
from .spec import AudioSpec
from .weights import load_state, read_state

_AUDIOMAE = {
    "audiomae": "gaunernst/vit_base_patch16_1024_128.audiomae_as2m",
    "audiomae-ft": "gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k",
}
_AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
_CLAP = "laion/clap-htsat-unfused"
_MEAN, _STD = -4.2677393, 4.5689974  # of AudioSet's log-mel energies, as AST and AudioMAE were trained


def fetched(what: str, load: Any) -> Any:
    """Run a loader of the hub; say what to do when it cannot be reached or has no such model."""
    try:
        return load()
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
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


class AudioMae(AudioModel):
    """AudioMAE (arXiv 2207.06405) as timm has it: 16 kHz, 128 mel bands, 1024 frames; the mean of the patch tokens, normed.

    Trained on 10 s, the rest of the 1024 frames zero before normalisation; so are short clips here.
    """

    sample_rate = 16000
    window = 160000

    def __init__(self, module: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.frames, self.bands = module.patch_embed.img_size
        self.recipe = {"window_seconds": 10, "windows": "spread evenly", "pad": "trained"}

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

    known = PUBLISHED[spec.family]
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


def _recipe(window: int, extractor: Any) -> dict[str, Any]:
    """Windows and all plain settings of a feature extractor: they decide the vector as the weights do."""
    settings = {k: v for k, v in sorted(extractor.to_dict().items()) if v is None or isinstance(v, (bool, int, float, str))}
    return {"window_seconds": window / extractor.sampling_rate, "windows": "spread evenly", "pad": "trained", "extractor": settings}


class Ast(AudioModel):
    """AST (arXiv 2104.01778): 16 kHz; the mean of its two class tokens, normed (`pooler_output`); 10 s, padded with zero frames."""

    def __init__(self, module: Any, extractor: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.extractor, self.sample_rate = extractor, extractor.sampling_rate
        longest = (extractor.max_length - 1) * self.sample_rate // 100 + self.sample_rate // 40
        self.window = min(10 * self.sample_rate, longest)
        self.recipe = _recipe(self.window, extractor)

    def prepare(self, wave: np.ndarray) -> np.ndarray:
        windows = spread_windows(pad_to(wave, self.sample_rate // 40), self.window)
        return np.stack([self.extractor(w, sampling_rate=self.sample_rate, return_tensors="np")["input_values"][0] for w in windows])

    def forward(self, batch: Any) -> Any:
        return self.module(batch).pooler_output


class Clap(AudioModel):
    """CLAP (arXiv 2211.06687): 48 kHz; the projected audio embedding; 10 s, a shorter clip repeated and padded as trained.

    Its extractor crops longer clips at random and marks a random clip of a batch as "longer": windows of 10 s and a mark of
    our own make both impossible.
    """

    def __init__(self, module: Any, extractor: Any, provenance: Provenance) -> None:
        super().__init__(module, provenance)
        self.extractor, self.sample_rate, self.window = extractor, extractor.sampling_rate, int(extractor.nb_max_samples)
        self.fused = bool(getattr(module.config, "enable_fusion", False))
        self.recipe = _recipe(self.window, extractor)

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


def _transformers_model(spec: AudioSpec, default: str, model_class: Any, config_class: Any, extractor_class: Any) -> tuple[Any, Any, Any]:
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


def load_ast(spec: AudioSpec) -> AudioModel:
    """AST of a folder, by name, or random."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    module, extractor, config = _transformers_model(spec, _AST, ASTModel, ASTConfig, ASTFeatureExtractor)
    if (extractor.num_mel_bins, extractor.max_length) != (config.num_mel_bins, config.max_length):
        raise InputError(
            f"`checkpoint` {spec.checkpoint}: preprocessor_config.json makes {extractor.max_length} frames of "
            f"{extractor.num_mel_bins} bands, config.json wants {config.max_length} of {config.num_mel_bins}. Correct one."
        )
    published = spec.checkpoint is None and spec.variant is None
    labels = (config.id2label or {}).values()
    provenance = (
        PUBLISHED["ast"]
        if published
        else of_checkpoint(Path(spec.checkpoint or spec.variant or "").name, len(labels) if len(labels) > 2 else None, labels)
    )
    model = Ast(module, extractor, provenance)
    model.revision = getattr(config, "_commit_hash", None)
    return model


def load_clap(spec: AudioSpec) -> AudioModel:
    """The audio side of CLAP, of a folder, by name, or random."""
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    module, extractor, config = _transformers_model(spec, _CLAP, ClapAudioModelWithProjection, ClapAudioConfig, ClapFeatureExtractor)
    published = spec.checkpoint is None and spec.variant is None
    model = Clap(module, extractor, PUBLISHED["clap"] if published else of_checkpoint(Path(spec.checkpoint or spec.variant or "").name))
    model.revision = getattr(config, "_commit_hash", None)
    return model
