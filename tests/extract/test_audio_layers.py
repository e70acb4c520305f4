"""Hidden layers of audio models: the packages' own states, a table for each from one pass, a grid in a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastprobe.extract.audio import AudioEmbedder, build_table, embed_files, layer_tables
from fastprobe.extract.datasets import Clip
from fastprobe.extract.sounds import read_sound
from fastprobe.tables.embeddings import EmbeddingTable
from support.vectors import vectors

LAYERED = ("passt", "audiomae", "ast")


def hidden_states(model, family, batch):
    """Of every layer, from the packages themselves, (layers, b, D): means over the patch tokens."""
    with torch.no_grad():
        if family == "ast":
            states = [h[:, 2:] for h in model.module(batch, output_hidden_states=True).hidden_states]
        elif family == "audiomae":
            net = model.module
            tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(batch))))
            later = net.forward_intermediates(batch, output_fmt="NLC", intermediates_only=True, norm=False)
            states = [tokens[:, net.num_prefix_tokens :], *later]
        else:
            net, states = model.module.net, []
            x = net.patch_embed(model.module.mel(batch)[:, None])
            x = x + net.time_new_pos_embed[:, :, :, : x.shape[-1]] + net.freq_new_pos_embed
            x = x.flatten(2).transpose(1, 2)
            first = [(t + e).expand(len(x), -1, -1) for t, e in zip((net.cls_token, net.dist_token), net.new_pos_embed.split(1, dim=1))]
            x = torch.cat([*first, x], dim=1)
            states.append(x[:, 2:])
            for block in net.blocks:
                x = block(x)
                states.append(x[:, 2:])
    return torch.stack([s.mean(dim=1) for s in states])


@pytest.mark.parametrize("family", LAYERED)
def test_layers_are_the_packages_own_hidden_states(specs, sounds, family):
    embedder = AudioEmbedder(specs[family], "cpu")
    count = len(embedder.model.blocks)
    batch = torch.from_numpy(embedder.model.prepare(read_sound(sounds[2], embedder.model.sample_rate)))
    expected = hidden_states(embedder.model, family, batch).mean(dim=1).numpy()
    assert len(expected) == count + 1
    layers, before = [*range(count + 1)], len(embedder.model.blocks[0]._forward_hooks)
    found = vectors(embedder.at_layers(layers), [sounds[2]])[0].reshape(count + 1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    output = vectors(embedder, [sounds[2]])  # no hook stays behind, and the output is as before
    np.testing.assert_array_equal(output, vectors(AudioEmbedder(specs[family], "cpu"), [sounds[2]]))
    assert len(embedder.model.blocks[0]._forward_hooks) == before and not embedder.model.blocks[0]._forward_pre_hooks


@pytest.mark.parametrize("family", LAYERED)
def test_a_table_for_each_layer_from_one_pass(specs, sounds, family, tmp_path):
    embedder = AudioEmbedder(specs[family], "cpu", cache=tmp_path / "cache").at_layers([2, 0])
    clips = [Clip(str(p), f"class {i % 2}", str(i)) for i, p in enumerate(sounds[:4])]
    table = build_table(clips, embedder)
    tables = layer_tables(table, embedder.spec, len(embedder.model.blocks))
    assert list(tables) == [2, 0] and tables[2].meta["layer"] == 2 and tables[2].meta["spec"]["layers"] == (2,)
    # A query meets the same layer, of the same weights.
    stored = json.loads(json.dumps(tables[2].meta))
    np.testing.assert_allclose(embed_files(sounds[:2], stored), tables[2].vectors[:2], atol=1e-6)
    again = build_table(clips, AudioEmbedder(specs[family], "cpu", cache=tmp_path / "cache").at_layers([2, 0]))
    assert again.meta["n_cached"] == 4 and np.array_equal(again.vectors, table.vectors)
    other = AudioEmbedder(specs[family], "cpu", cache=tmp_path / "cache").at_layers([0, 2])
    assert build_table(clips, other).meta["n_cached"] == 0, "another order of layers is another vector"
    assert build_table(clips, AudioEmbedder(specs[family], "cpu", cache=tmp_path / "cache")).meta["n_cached"] == 0


def test_the_shell_writes_a_table_for_each_layer_and_a_run_takes_the_grid(specs, sounds, tmp_path, shell):
    folder = tmp_path / "clips"
    for i, path in enumerate(sounds[:4] * 3):
        (folder / f"class {i}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"class {i}" / f"{i}{Path(path).suffix}")
    model = ("--model", "ast", "--checkpoint", specs["ast"].checkpoint)
    command = ("embed", "audio", *model, "--folder", folder, "--out", "ast.npz", "--no-cache")
    done = shell(*command, "--layers", "all")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in tmp_path.glob("ast*.npz"))
    count = len(names)
    assert names == [f"ast-layer{n:02d}.npz" for n in range(count)] and count >= 3
    text = EmbeddingTable(np.random.default_rng(0).standard_normal((12, 5)), [f"class {i}" for i in range(12)])
    for layer in range(2):
        text.save(tmp_path / f"bert-layer{layer:02d}.npz")
    sides = [x for n in range(2) for x in ("--text", f"bert-layer{n:02d}.npz")] + [x for n in names for x in ("--audio", n)]
    run = shell("run", *sides, "--out", "grid", "--permutations", "9", "--splits", "2", "--probe", "ridge", "-q")
    assert run.returncode == 0, run.stderr
    atlas = shell("report", "--atlas", "grid")
    assert atlas.returncode == 0, atlas.stderr
    page = (tmp_path / "grid/atlas.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert data["audios"] == [n.removesuffix(".npz") for n in names] and len(data["cells"]) == 3 * count
    for layers, words in (("99", "99"), ("x", "layers")):
        refused = shell(*command, "--layers", layers)
        assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr
