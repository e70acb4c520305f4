"""Recordings -> audio tables, through the real packages on small models with random weights that the test wrote to disk."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fastprobe.errors import InputError
from fastprobe.extract.audio import AudioEmbedder, build_table, check_leak, embed_files
from fastprobe.extract.cache import VectorCache, file_digest
from fastprobe.extract.datasets import Clip
from fastprobe.extract.models import AUDIO_MODELS
from fastprobe.extract.provenance import leak, of_checkpoint
from fastprobe.extract.sounds import read_sound
from fastprobe.extract.spec import AudioSpec
from fastprobe.tables.embeddings import EmbeddingTable
from support.extract_models import ast_folder, bad_files, passt_file, tone
from support.vectors import vectors

FAMILIES = ("passt", "passt-unpadded", "audiomae", "ast", "clap", "clap-fused", "hear")


# ---- the models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_single_clips_give(specs, sounds, family):
    embedder = AudioEmbedder(specs[family], "cpu", batch_size=4)
    chosen = sounds[:5] if family != "hear" else [*sounds, sounds[2]]
    together = vectors(embedder, chosen[::-1])[::-1]
    assert np.isfinite(together).all() and np.ptp(together, axis=0).max() > 0
    single = np.stack([vectors(embedder, [path])[0] for path in chosen])
    np.testing.assert_allclose(together, single, atol=1e-5 * max(1.0, np.abs(single).max()))


def test_passt_is_what_hear21passt_gives(specs, sounds):
    """Short clips as they are, long ones windowed: equal to the package's own `get_scene_embeddings`."""
    from hear21passt.base import AugmentMelSTFT, PasstBasicWrapper
    from hear21passt.models.passt import PaSST

    embedder = AudioEmbedder(specs["passt-unpadded"], "cpu")
    net = PaSST(img_size=(128, 998), stride=(10, 10), in_chans=1, num_classes=527, embed_dim=64, depth=2, num_heads=1, distilled=True)
    net.load_state_dict(torch.load(specs["passt"].checkpoint, weights_only=True))
    mel = AugmentMelSTFT(
        n_mels=128, sr=32000, win_length=800, hopsize=320, n_fft=1024, freqm=48, timem=192, fmin_aug_range=10, fmax_aug_range=2000
    )
    wrapper = PasstBasicWrapper(mel=mel, net=net, mode="embed_only").eval()
    for path in (sounds[2], sounds[4]):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = wrapper.get_scene_embeddings(torch.from_numpy(read_sound(path, 32000))[None])[0].numpy()
        np.testing.assert_allclose(vectors(embedder, [path])[0], expected, atol=1e-5)


def test_35_seconds_are_the_mean_of_four_windows(specs, sounds):
    embedder = AudioEmbedder(specs["audiomae"], "cpu", batch_size=3)
    inputs = embedder.model.prepare(read_sound(sounds[5], 16000))
    with torch.no_grad():
        expected = embedder.model.forward(torch.from_numpy(inputs)).mean(0).numpy()
    assert len(inputs) == 4
    np.testing.assert_allclose(vectors(embedder, [sounds[0], sounds[5]])[1], expected, atol=1e-5)


def test_passt_modes_and_windows(specs, sounds, tmp_path):
    spec = specs["passt"]
    wide = {mode: AudioSpec(model="passt", checkpoint=spec.checkpoint, mode=mode) for mode in ("embed_only", "all", "logits")}
    out = {mode: vectors(AudioEmbedder(s, "cpu"), sounds[:1])[0] for mode, s in wide.items()}
    assert [len(out[m]) for m in wide] == [64, 527 + 64, 527]
    np.testing.assert_allclose(out["all"], np.concatenate([out["logits"], out["embed_only"]]), atol=1e-6)
    assert AudioEmbedder(spec, "cpu").model.recipe["window_seconds"] == 10


def test_audiomae_is_what_timm_gives(specs, sounds):
    import timm
    from torchaudio.compliance import kaldi

    wave = torch.from_numpy(read_sound(sounds[3], 16000))[None]
    bank = kaldi.fbank(wave, htk_compat=True, window_type="hanning", num_mel_bins=128)
    bank = torch.nn.functional.pad(bank, (0, 0, 0, 1024 - len(bank)))
    model = timm.create_model(f"local-dir:{specs['audiomae'].checkpoint}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        expected = model(((bank + 4.2677393) / (2 * 4.5689974))[None, None])[0].numpy()
    np.testing.assert_allclose(vectors(AudioEmbedder(specs["audiomae"], "cpu"), [sounds[3]])[0], expected, atol=1e-5)


def test_audiomae_from_a_bare_file_under_the_authors_names(tmp_path, sounds):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=(1024, 128), in_chans=1, num_classes=0, global_pool="avg")
    state = {k.replace("fc_norm.", "norm."): v for k, v in net.state_dict().items()}
    torch.save({"model": {**state, "decoder_pos_embed": torch.zeros(3), "mask_token": torch.zeros(1)}}, tmp_path / "pretrained.pth")
    spec = AudioSpec(model="audiomae:vit_tiny_patch16_224", checkpoint=str(tmp_path / "pretrained.pth"))
    assert vectors(AudioEmbedder(spec, "cpu"), sounds[:1]).shape == (1, 192)


def test_ast_and_clap_are_what_transformers_gives(specs, sounds):
    from transformers import ASTFeatureExtractor, ASTForAudioClassification, ClapFeatureExtractor, ClapModel

    folder = specs["ast"].checkpoint
    x = ASTFeatureExtractor.from_pretrained(folder)(read_sound(sounds[3], 16000), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = ASTForAudioClassification.from_pretrained(folder).eval().audio_spectrogram_transformer(**x).pooler_output[0].numpy()
    np.testing.assert_allclose(vectors(AudioEmbedder(specs["ast"], "cpu"), [sounds[3]])[0], expected, atol=1e-5)
    folder = specs["clap"].checkpoint
    x = ClapFeatureExtractor.from_pretrained(folder)(read_sound(sounds[3], 48000), sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        out = ClapModel.from_pretrained(folder).eval().get_audio_features(**x)
    expected = (out if isinstance(out, torch.Tensor) else out.pooler_output)[0].numpy()
    ours = vectors(AudioEmbedder(specs["clap"], "cpu"), [sounds[3]])[0]
    unit = [v / np.linalg.norm(v) for v in (ours, expected)]  # one of the two may be normed, by version
    np.testing.assert_allclose(*unit, atol=1e-5)


@pytest.mark.parametrize("family", ["clap", "clap-fused"])
def test_clap_does_not_crop_at_random(specs, sounds, family):
    """Its own extractor would: long clips differ from call to call there."""
    embedder = AudioEmbedder(specs[family], "cpu")
    np.random.seed(0)  # noqa: NPY002  the stream transformers draws from
    first = embedder.model.prepare(read_sound(sounds[4], 48000))
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, embedder.model.prepare(read_sound(sounds[4], 48000)))
    batch = torch.from_numpy(first)
    with torch.no_grad():  # alone and beside another: no clip of a batch is marked at random
        np.testing.assert_allclose(embedder.model.forward(batch)[:1], embedder.model.forward(batch[:1]), atol=1e-5)


def test_pann_is_what_the_package_gives(sounds, tmp_path, monkeypatch):
    """CNN14 with random weights in a file of the published shape; neither wget nor DataParallel is met on the way."""
    import os

    # The package draws with matplotlib, which on a new machine runs fc-list once to find its fonts.
    import matplotlib.font_manager  # noqa: F401

    from fastprobe.extract.models.pann import PANN, Pann, _panns_models

    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"ran {command}"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail(f"ran {a}"))
    torch.manual_seed(5)
    net = _panns_models().Cnn14(sample_rate=32000, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=14000, classes_num=527)
    torch.save({"model": net.state_dict(), "iteration": 7, "sampler": {"pointers": np.arange(3)}}, tmp_path / "Cnn14.pth")
    embedder = AudioEmbedder(AudioSpec(model="pann", checkpoint=str(tmp_path / "Cnn14.pth"), pad="none"), "cpu")
    padded = Pann(net, "trained", PANN.provenance)
    assert "panns_inference.config" not in sys.modules and isinstance(embedder.model.module, type(net))
    wave = torch.from_numpy(read_sound(sounds[3], 32000))[None]
    with torch.no_grad():
        expected = net.eval()(wave)["embedding"][0].numpy()
    got = vectors(embedder, [sounds[0], sounds[3]])
    np.testing.assert_allclose(got[1], expected, atol=1e-5)
    assert got.shape == (2, 2048) and padded.prepare(np.ones(50, "f4")).shape == (1, 320000)
    assert "AudioSet" in embedder.model.provenance.trained_on[0]


def test_random_weights_are_a_function_of_the_seed_and_marked(specs, sounds):
    folder = specs["ast"].checkpoint
    first, again, other = (AudioEmbedder(AudioSpec(model="ast", checkpoint=folder, random_init=True, seed=s), "cpu") for s in (0, 0, 1))
    assert first.spec.weights == again.spec.weights != other.spec.weights
    table = build_table([Clip(str(sounds[0]), "Bark", "0")], first)
    assert table.meta["untrained"] is True and table.meta["trained_on"] == []
    np.testing.assert_array_equal(table.vectors, vectors(again, sounds[:1]))


def test_what_packages_print_is_swallowed_and_the_network_is_not_touched(specs, sounds, capfd, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"connected to {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for family in ("passt-unpadded", "audiomae", "ast", "clap", "hear"):
        vectors(AudioEmbedder(specs[family], "cpu"), sounds[:1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["passt", "pann", "audiomae", "audiomae-ft", "ast", "clap"])
def test_without_a_network_a_name_says_what_to_do(model, monkeypatch, tmp_path):
    def unreachable(*arguments, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="network"):
        AudioEmbedder(AudioSpec(model=model), "cpu")


def test_a_module_that_connects_is_refused_when_weights_are_local(tmp_path, monkeypatch):
    (tmp_path / "calling_hear_module.py").write_text(
        "import socket\ndef load_model(path=''):\n    socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "def get_scene_embeddings(audio, model):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="tried to reach the network"):
        AudioEmbedder(AudioSpec(model="hear:calling_hear_module", checkpoint="x.pt"))


@pytest.mark.parametrize(
    "spec, match",
    [
        ({"model": "wav2vec"}, "`model` must be one of"),
        ({"model": "hear"}, "must name the module"),
        ({"model": "pann:x"}, "no variants"),
        ({"model": "pann", "mode": "all"}, "`mode` 'all' needs"),
        ({"model": "ast", "pad": "none"}, "takes any length"),
        ({"model": "hear:os", "random_init": True}, "HEAR"),
        ({"model": "passt", "revision": "x"}, "`revision` is for"),
        ({"model": "ast", "revision": "x", "checkpoint": "y"}, "fetched by name"),
        ({"model": "passt", "mode": "x"}, "`mode` must be"),
        ({"model": "clap", "layers": (0,)}, "`layers` are those of passt, audiomae, audiomae-ft, ast"),
        ({"model": "passt", "layers": (0,), "mode": "all"}, "`layers` stand in place"),
        ({"model": "ast", "layers": (-1,)}, "at least 0"),
        ({"model": "audiomae", "random_init": True, "layers": (13,)}, "go from 0 to 12; got 13"),
        ({"model": "hear:os"}, "not a HEAR module"),
        ({"model": "hear:no_such_module_at_all"}, "cannot be imported"),
        ({"model": "passt:nothing", "random_init": True}, "must name one of"),
        ({"model": "passt", "checkpoint": "/none.pt"}, "not there"),
        ({"model": "ast", "checkpoint": "/none"}, "must be a folder"),
        ({"model": "audiomae:vit_nothing", "random_init": True}, "timm cannot"),
    ],
)
def test_bad_models_say_so(spec, match):
    with pytest.raises(InputError, match=match):
        AudioEmbedder(AudioSpec(**spec), "cpu")


def test_a_hear_modules_checkpoint_tells_what_it_was_tuned_on(specs, sounds, tmp_path):
    module = AudioEmbedder(AudioSpec(model=specs["hear"].model, checkpoint=str(tmp_path / "mine_fsd50k.pt")), "cpu")
    assert module.model.provenance.trained_on[0] == "FSD50K (labels; told by its name)"
    assert module.model.provenance.trained_on[-1].startswith("otherwise unknown")
    with pytest.raises(InputError, match="leaks the labels under test"):
        build_table([Clip(str(sounds[0]), "Bark", "0")], module, dataset="fsd50k")


def test_a_checkpoint_that_hear21passt_would_not_read_is_refused(specs):
    with pytest.raises(InputError, match="reads nothing from it. Use model passt"):
        AudioEmbedder(AudioSpec(model="hear:hear21passt.base", checkpoint=specs["passt"].checkpoint), "cpu")


def test_a_checkpoint_that_does_not_fit_is_refused(specs, tmp_path):
    state = torch.load(specs["passt"].checkpoint, weights_only=True)
    torch.save({k: v for k, v in state.items() if "blocks.1.mlp" not in k}, tmp_path / "torn.pt")
    with pytest.raises(InputError, match=r"lacks 4 tensors.*blocks\.1\.mlp"):
        AudioEmbedder(AudioSpec(model="passt", checkpoint=str(tmp_path / "torn.pt")), "cpu")
    with pytest.raises(InputError, match="is not PaSST's"):
        torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
        AudioEmbedder(AudioSpec(model="passt", checkpoint=str(tmp_path / "other.pt")), "cpu")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(InputError, match="not a readable file of weights"):
        AudioEmbedder(AudioSpec(model="pann", checkpoint=str(tmp_path / "text.pt")), "cpu")
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    with pytest.raises(InputError, match="not a readable file of weights"):
        AudioEmbedder(AudioSpec(model="pann", checkpoint=str(tmp_path / "evil.pt")), "cpu")


# ---- tables, cache, bad files ----------------------------------------------------------------------


def clips_of(paths, labels=("Bark", "Meow")):
    return [Clip(str(p), labels[i % len(labels)], f"clip-{i}") for i, p in enumerate(paths)]


def test_meta_rebuilds_the_extractor(specs, sounds, tmp_path):
    table = build_table(clips_of(sounds[:3]), AudioEmbedder(specs["passt"], "cpu"), about={"subset": "dev"}, dataset="mine")
    table.save(tmp_path / "a.npz")
    meta = EmbeddingTable.load(tmp_path / "a.npz").meta
    np.testing.assert_allclose(embed_files(sounds[:2], meta), table.vectors[:2], atol=1e-5)
    for key in ("model", "checkpoint", "weights", "sample_rate", "pooling", "versions", "created", "trained_on"):
        assert meta[key] not in (None, "", {}), key
    assert meta["sample_rate"] == 32000 and meta["versions"]["hear21passt"] and meta["subset"] == "dev"
    passt_file(tmp_path / "other.pt", classes=20)
    with pytest.raises(InputError, match="not those that made the table"):
        embed_files(sounds[:1], AudioSpec.from_meta(meta, checkpoint=str(tmp_path / "other.pt")))
    with pytest.raises(InputError, match="does not say how"):
        embed_files(sounds[:1], {"name": "x"})
    with pytest.raises(InputError, match="at least one"):
        embed_files([], meta)


def test_a_second_run_embeds_only_what_is_missing(specs, sounds, tmp_path, monkeypatch):
    first = AudioEmbedder(specs["ast"], "cpu", cache=tmp_path)
    expected = vectors(first, sounds[:4])
    renamed = tmp_path / "renamed.wav"
    renamed.write_bytes(sounds[0].read_bytes())
    again = AudioEmbedder(specs["ast"], "cpu", cache=tmp_path)
    monkeypatch.setattr(type(again.model), "forward", lambda self, batch: pytest.fail("embedded again"))
    done = sorted(again.embed([*sounds[:4], renamed]))
    assert all(d.cached for d in done)
    np.testing.assert_array_equal(np.stack([d.vector for d in done]), [*expected, expected[0]])


def test_another_file_model_or_option_is_another_key(specs, sounds, tmp_path):
    list(AudioEmbedder(specs["passt"], "cpu", cache=tmp_path).embed(sounds[:1]))
    changed = tmp_path / "changed.wav"
    soundfile.write(changed, tone(0.1, 8000, 300), 8000)
    passt_file(tmp_path / "other.pt", classes=20)
    for spec, path in (
        (specs["passt"], changed),
        (specs["passt-unpadded"], sounds[0]),
        (AudioSpec(model="passt", checkpoint=str(tmp_path / "other.pt")), sounds[0]),
        (AudioSpec(model="passt", checkpoint=specs["passt"].checkpoint, mode="all"), sounds[0]),
    ):
        [done] = AudioEmbedder(spec, "cpu", cache=tmp_path).embed([path])
        assert not done.cached and done.vector is not None


def test_an_interrupted_run_keeps_what_is_done(specs, sounds, tmp_path, monkeypatch):
    embedder = AudioEmbedder(specs["ast"], "cpu", batch_size=1, workers=1, cache=tmp_path)
    forward, calls = embedder.model.forward, []

    def interrupted(batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(embedder.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(embedder.embed(sounds[:4]))
    done = sorted(AudioEmbedder(specs["ast"], "cpu", cache=tmp_path).embed(sounds[:4]))
    assert [d.cached for d in done] == [True, True, False, False]


def test_a_damaged_entry_of_the_cache_counts_as_missing(tmp_path):
    cache, key = VectorCache(tmp_path, {"a": 1}), "ab" * 32
    assert cache.get(key) is None
    cache.put(key, np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(cache.get(key), np.arange(5))
    [entry] = [p for p in cache.folder.rglob("*") if p.is_file()]
    data = entry.read_bytes()
    for broken in (data[:-1], b"", b"\1" + data[1:], data[:32]):
        entry.write_bytes(broken)
        assert cache.get(key) is None
    assert VectorCache(tmp_path, {"a": 2}).folder != cache.folder
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        VectorCache(tmp_path / "file", {}).put(key, np.ones(2, np.float32))


def test_bad_files_stop_the_run_or_are_skipped_and_counted(specs, sounds, tmp_path, capfd):
    bad = bad_files(tmp_path)
    clips = clips_of([sounds[0], *(tmp_path / name for name in bad), sounds[1]])
    embedder = AudioEmbedder(specs["ast"], "cpu", cache=tmp_path / "cache")
    with pytest.raises(InputError, match="--skip-bad"):
        build_table(clips, embedder)
    table = build_table(clips, embedder, skip_bad=True)
    assert table.ids.tolist() == ["clip-0", f"clip-{len(clips) - 1}"] and table.meta["skipped"]["count"] == len(bad)
    assert all(any(name in line for line in table.meta["skipped"]["files"]) for name in bad)
    with pytest.raises(InputError, match="none of the"):
        build_table(clips[1:3], embedder, skip_bad=True)


# ---- what a model has heard ------------------------------------------------------------------------


def test_a_model_tuned_on_the_labels_is_refused(specs, sounds, tmp_path):
    clips = clips_of(sounds[:2])
    named = AudioSpec(model="passt:fsd50k")
    with pytest.raises(InputError, match="fine-tuned on FSD50K, the data set under test"):
        check_leak(named, clips, "fsd50k")
    with pytest.raises(InputError, match="include 2 of these 2: 'Bark'"):  # no data set named: told by the labels
        check_leak(named, clips)
    assert check_leak(AudioSpec(model="passt"), clips, "fsd50k") is None
    assert check_leak(named, clips_of(sounds[:1], ["zzz"])) is None
    spec = AudioSpec(model="passt", checkpoint=str(passt_file(tmp_path / "mystery.pt", classes=200)))
    embedder = AudioEmbedder(spec, "cpu")
    with pytest.raises(InputError, match="allow_label_leak"):
        build_table(clips, embedder)
    table = build_table(clips, embedder, allow_label_leak=True)
    assert "FSD50K" in table.meta["label_leak"] and "FSD50K (labels" in table.meta["trained_on"][0]


def test_a_classifier_that_lists_the_labels_is_refused(sounds, tmp_path):
    folder = ast_folder(tmp_path / "tuned", labels=["dog bark", "Meow", "siren"])
    embedder = AudioEmbedder(AudioSpec(model="ast", checkpoint=str(folder)), "cpu")
    with pytest.raises(InputError, match="its own classifier knows 1 of these 2 labels: 'Meow'"):
        build_table(clips_of(sounds[:2]), embedder)


def test_audioset_is_told_but_not_refused():
    passt, audiomae = (AUDIO_MODELS[name].provenance for name in ("passt", "audiomae"))
    assert leak(passt, ["Bark"], "fsd50k") is None and "AudioSet (labels)" in passt.trained_on
    assert leak(audiomae, ["Bark"], "fsd50k") is None and audiomae.label_sets == frozenset()
    assert of_checkpoint("x.pt", 527).label_sets == {"audioset"} and of_checkpoint("my-esc50.pt").label_sets == {"esc50"}


@pytest.mark.parametrize("family", list(AUDIO_MODELS))
def test_a_record_decides_what_a_spec_may_ask(family):
    """Each option is refused exactly where the record says that the model lacks it, and the message names those that have it."""
    known = AUDIO_MODELS[family]
    model = f"{family}:variant" if known.needs else family
    for fields, has in (
        ({"mode": "all"}, known.has_modes),
        ({"pad": "none"}, known.any_length),
        ({"revision": "main"}, known.on_hub),
        ({"random_init": True}, known.can_be_random),
    ):
        if has:
            AudioSpec(model=model, **fields)
        else:
            with pytest.raises(InputError, match=next(iter(fields))):
                AudioSpec(model=model, **fields)
    if known.variant:
        assert AudioSpec(model=f"{family}:variant").variant == "variant"
    else:
        with pytest.raises(InputError, match="has no variants"):
            AudioSpec(model=f"{family}:variant")


def test_doctor_looks_for_the_package_of_every_model():
    from fastprobe.cli.doctor import examine

    found = examine()
    for known in AUDIO_MODELS.values():
        assert not known.package or (known.package in found["versions"] and known.name in found["purposes"][known.package])


def test_the_records_stand_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text("utf-8")
    for known in AUDIO_MODELS.values():
        row = next(line for line in page.splitlines() if line.startswith("| `") and f"`{known.shown}`" in line.split("|")[1])
        assert known.sample_rate is None or f"{known.sample_rate // 1000} kHz" in row
        assert known.width is None or f"| {known.width} |" in row


# ---- rate ------------------------------------------------------------------------------------------


def test_nine_tenths_of_the_time_are_spent_in_the_model(sounds):
    """PaSST at its real width, two blocks deep: decoding and cutting run beside it."""
    passt = importlib.import_module("hear21passt.models.passt")
    original, spec = passt.PaSST, AudioSpec(model="passt", random_init=True)
    try:
        passt.PaSST = lambda **kwargs: original(**{**kwargs, "depth": 2})
        embedder = AudioEmbedder(spec, "cpu", batch_size=2)
    finally:
        passt.PaSST = original
    assert embedder.model.module.net.embed_dim == 768
    vectors(embedder, [sounds[1], sounds[2], sounds[3]])
    assert embedder.model_seconds > 0.9 * embedder.seconds, (embedder.model_seconds, embedder.seconds)


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
