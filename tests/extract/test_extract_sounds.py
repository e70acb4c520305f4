"""Sound files -> samples -> windows: formats, rates, channels, lengths, and everything that is not a sound."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from fastprobe.extract.sounds import BadSoundError, centred_windows, read_sound, spread_windows
from support.extract_models import bad_files, tone


def test_bad_files_are_named_with_their_reason(tmp_path, capfd):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(BadSoundError, match=reason) as caught:
            read_sound(tmp_path / name, 16000)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_tone_keeps_its_pitch_and_length_at_any_rate(tmp_path, rate, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, rate, 440.0, channels=2, noise=0.0), rate)
    samples = read_sound(path, 16000)
    assert samples.dtype == np.float32 and samples.ndim == 1 and abs(len(samples) - 16000) <= 0.08 * 16000
    spectrum = np.abs(np.fft.rfft(samples[2000:14000] * np.hanning(12000)))
    assert abs(np.argmax(spectrum) * 16000 / 12000 - 440) < 2


def test_stereo_is_mixed_by_the_mean(tmp_path):
    left, right = tone(0.5, 16000, 300, seed=1), tone(0.5, 16000, 700, seed=2)
    soundfile.write(tmp_path / "s.wav", np.hstack([left, right]), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_sound(tmp_path / "s.wav", 16000), ((left + right) / 2)[:, 0], atol=1e-6)


def test_a_wav_streamed_without_a_length_is_whole(tmp_path):
    soundfile.write(tmp_path / "s.wav", tone(0.5, 16000), 16000)
    data = bytearray((tmp_path / "s.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "s.wav").write_bytes(data)
    assert len(read_sound(tmp_path / "s.wav", 16000)) == 8000


@pytest.mark.parametrize("n, length, count", [(1, 10, 1), (10, 10, 1), (11, 10, 2), (20, 10, 2), (21, 10, 3), (95, 10, 10)])
def test_spread_windows_cover_everything(n, length, count):
    windows = spread_windows(np.arange(n, dtype=np.float32), length)
    assert windows.shape == (count, min(n, length)) and set(windows.ravel()) == set(range(n))
    assert windows[0, 0] == 0 and windows[-1, -1] == n - 1


def test_centred_windows_are_the_unfolded_mirror():
    wave = np.random.default_rng(0).standard_normal(57).astype(np.float32)
    padded = torch.nn.functional.pad(torch.from_numpy(wave)[None, None], (10, 10), mode="reflect")[0, 0]
    np.testing.assert_array_equal(centred_windows(wave, 20, 5), padded.unfold(0, 20, 5).numpy())
