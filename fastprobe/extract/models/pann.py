"""CNN14 of PANNs, through panns_inference."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..provenance import Provenance, of_checkpoint
from ..sounds import pad_to, spread_windows
from ..weights import fetch_state, load_state, read_state
from .face import AudioFamily, AudioModel

if TYPE_CHECKING:
    from ..spec import AudioSpec

_PANN_URL = "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth?download=1"


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
    provenance = PANN.provenance
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


PANN = AudioFamily(
    "pann",
    load_pann,
    sample_rate=32000,
    width=2048,
    provenance=Provenance(("AudioSet (labels)",), frozenset({"audioset"})),
    package="panns_inference",
    any_length=True,
)
