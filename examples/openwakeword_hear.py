"""A model of your own as a HEAR module: Google's speech embedding, as openWakeWord 0.4 ships it (ONNX, Apache 2.0).

    pip install --no-deps openwakeword==0.4.0 && pip install onnxruntime
    PYTHONPATH=examples fastprobe embed audio --model hear:openwakeword_hear --folder sounds/ --out speech.npz

A HEAR module is two functions and two numbers (https://hearbenchmark.com/hear-api.html): `load_model`, whose result has
`sample_rate` and `scene_embedding_size`, and `get_scene_embeddings`, from clips to one vector each.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import torch

WINDOW, HOP = 76, 8  # frames of 10 ms that one embedding sees, and between two embeddings


class SpeechEmbedding:
    """Waveform -> mel spectrogram -> an embedding of 96 numbers every 80 ms. Two networks, both ONNX."""

    sample_rate = 16_000
    scene_embedding_size = 96

    def __init__(self, folder: Path) -> None:
        self.mel = onnxruntime.InferenceSession(folder / "melspectrogram.onnx")
        self.embed = onnxruntime.InferenceSession(folder / "embedding_model.onnx")

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Samples in [-1, 1], float32 (n,) -> the clip's embedding, float32 (96,)."""
        # The networks expect 16-bit amplitudes. A frame takes 25 ms and begins every 10 ms, so that a clip needs 0.8 s for a window.
        samples = np.pad(32767 * wave, (0, max(0, (WINDOW + 4) * 160 - len(wave))))
        (frames,) = self.mel.run(None, {"input": samples[None].astype(np.float32)})
        frames = frames.reshape(-1, 32) / 10 + 2  # the scale of the spectrogram that the embedding was trained on
        windows = np.lib.stride_tricks.sliding_window_view(frames, WINDOW, axis=0)[::HOP]
        (vectors,) = self.embed.run(None, {"input_1": windows.transpose(0, 2, 1)[..., None].astype(np.float32)})
        return vectors.reshape(-1, self.scene_embedding_size).mean(axis=0)


def load_model(model_file_path: str = "") -> SpeechEmbedding:
    """The networks in a folder; by default those inside the installed openwakeword, which is not itself imported."""
    if not model_file_path:
        (package,) = find_spec("openwakeword").submodule_search_locations
        model_file_path = Path(package) / "resources" / "models"
    return SpeechEmbedding(Path(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: SpeechEmbedding) -> torch.Tensor:
    """Clips (n, samples) -> one vector each (n, 96)."""
    return torch.from_numpy(np.stack([model(wave) for wave in audio.cpu().numpy()]))
