"""Sounds of many kinds, and a small model of every family on disk."""

from __future__ import annotations

import sys

import pytest

# Seconds, rate, channels, suffix: what the models are fed.
SOUNDS = [
    (0.1, 8000, 1, "wav"),
    (1.0, 16000, 2, "flac"),
    (3.3, 44100, 1, "ogg"),
    (2.0, 48000, 2, "mp3"),
    (12.0, 22050, 1, "wav"),
    (35.0, 32000, 1, "flac"),
]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    import soundfile

    from support.extract_models import tone

    folder = tmp_path_factory.mktemp("sounds")
    paths = []
    for i, (seconds, rate, channels, suffix) in enumerate(SOUNDS):
        paths.append(folder / f"{i}.{suffix}")
        soundfile.write(paths[-1], tone(seconds, rate, 200.0 * (i + 1), channels, seed=i), rate)
    return paths


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """One spec per family, each of a checkpoint on disk."""
    from fastprobe.extract.spec import AudioSpec
    from support.extract_models import HEAR_MODULE, ast_folder, audiomae_folder, clap_folder, passt_file

    root = tmp_path_factory.mktemp("audio-models")
    (root / "loud_hear_module.py").write_text(HEAR_MODULE)
    sys.path.insert(0, str(root))
    yield {
        "passt": AudioSpec(model="passt", checkpoint=str(passt_file(root / "passt.pt"))),
        "passt-unpadded": AudioSpec(model="passt", checkpoint=str(root / "passt.pt"), pad="none"),
        "audiomae": AudioSpec(model="audiomae", checkpoint=str(audiomae_folder(root / "mae"))),
        "ast": AudioSpec(model="ast", checkpoint=str(ast_folder(root / "ast"))),
        "clap": AudioSpec(model="clap", checkpoint=str(clap_folder(root / "clap"))),
        "clap-fused": AudioSpec(model="clap", checkpoint=str(clap_folder(root / "clap-fused", fused=True))),
        "hear": AudioSpec(model="hear:loud_hear_module"),
    }
    sys.path.remove(str(root))
