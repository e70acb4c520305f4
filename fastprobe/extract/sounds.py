"""Sound files -> mono float32 at one rate, and long sounds -> windows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..errors import InputError, needs

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")

# libsndfile's log says "data : 88200 (should be 44078)" when a file ends before its header says so.
_SHORT = re.compile(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFFF000  # writers that cannot seek leave a size near 2^31 or 2^32: "until the end"


class BadSoundError(InputError):
    """A file that cannot be embedded: damaged, empty, or not audio. The message starts with its path."""


def read_sound(path: str | os.PathLike, rate: int) -> np.ndarray:
    """The samples of a file: the mean of its channels, resampled to `rate`.

    Returns
    -------
    float32 (n,)
        n >= 1 samples; full scale is [-1, 1].

    Raises
    ------
    BadSoundError
        The file is missing, not audio, damaged, shorter than its header says, empty, or holds NaN or infinity.
    """
    with needs("reading recordings", "audio"):
        import soundfile
        import soxr

    path = Path(path)
    if not path.is_file():
        raise BadSoundError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise BadSoundError(f"{path}: an empty file (0 bytes).")
    try:
        with soundfile.SoundFile(path) as file:
            promised, found_rate, log = file.frames, file.samplerate, file.extra_info
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise BadSoundError(f"{path}: cannot be decoded as audio ({_reason(error)}).") from None
    if len(samples) == 0:
        raise BadSoundError(f"{path}: holds no sample.")
    if len(samples) < promised:
        raise BadSoundError(f"{path}: truncated: its header promises {promised} frames, {len(samples)} could be decoded.")
    if (short := _SHORT.search(log)) and int(short[2]) < int(short[1]) < _STREAMED:
        raise BadSoundError(f"{path}: truncated: its header promises {short[1]} bytes of sound, the file holds {short[2]}.")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise BadSoundError(f"{path}: holds NaN or infinite samples.")
    if found_rate != rate:
        mono = soxr.resample(mono, found_rate, rate, quality="HQ")
        if len(mono) == 0:
            raise BadSoundError(f"{path}: too short: no sample is left at {rate} Hz.")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _reason(error: Exception) -> str:
    """libsndfile's reason, without the path that our message already has."""
    text = getattr(error, "error_string", None) or str(error)
    if "does not exist or is not a regular file" in text:  # what libsndfile says of an mp3 without a frame
        text = "no sound in it"
    return text.strip().rstrip(".: ") or "format not recognised"


def spread_windows(wave: np.ndarray, length: int) -> np.ndarray:
    """Cut a long sound into ceil(n / length) windows, spread evenly so that first and last touch the ends.

    start_j = round(j (n - length) / (k - 1)),  j = 0 ... k-1,  k = ceil(n / length)

    Every sample is in a window, no window is padded; a sound of at most `length` samples is one window, itself.

    Returns
    -------
    float32 (k, min(n, length))
    """
    n = len(wave)
    if n <= length:
        return wave[None]
    k = -(-n // length)
    starts = np.rint(np.linspace(0, n - length, k)).astype(int)
    return np.stack([wave[s : s + length] for s in starts])


def centred_windows(wave: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Windows of a long sound centred on 0, hop, 2 hop, ..., its ends mirrored: how PaSST's HEAR module cuts.

    A sound of at most `length` samples is one window, itself.

    Returns
    -------
    float32 (1 + (n + 2 floor(length / 2) - length) // hop, length)
    """
    if len(wave) <= length:
        return wave[None]
    padded = np.pad(wave, length // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]


def pad_to(wave: np.ndarray, length: int) -> np.ndarray:
    """Zeros appended up to `length` samples; a longer sound is returned as it is."""
    return wave if len(wave) >= length else np.pad(wave, (0, length - len(wave)))
