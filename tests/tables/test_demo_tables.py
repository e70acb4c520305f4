"""The tables that come with fastprobe: small, complete, with their provenance; and the script that packs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.extract.ngrams import char_ngrams
from fastprobe.tables.demo import AUDIO, FOLDER, TEXTS, demo_file, demo_table
from fastprobe.tables.embeddings import EmbeddingTable

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pack_demo.py"


def test_they_are_small_and_say_where_they_come_from():
    assert sum(demo_file(name).stat().st_size for name in (AUDIO, *TEXTS)) < 400_000
    page = (FOLDER / "DEMO.md").read_text("utf-8")
    for name in (AUDIO, *TEXTS):
        with np.load(demo_file(name), allow_pickle=False) as file:
            assert file["vectors"].dtype == np.float16
            meta = json.loads(str(file["meta"]))
        assert meta["name"] == name and "CC BY" in meta["source_and_licence"] and demo_file(name).name in page


def test_sixty_classes_twelve_clips_and_a_name_for_each():
    audio = demo_table(AUDIO)
    assert set(Counter(audio.labels.tolist()).values()) == {12} and len(set(audio.labels.tolist())) == 60
    assert len(np.unique(audio.vectors, axis=0)) == len(set(audio.ids.tolist())) == 720
    for name in TEXTS:
        assert sorted(demo_table(name).labels.tolist()) == sorted(set(audio.labels.tolist()))


def test_the_shuffled_table_has_the_same_rows_elsewhere():
    table, other = demo_table("minilm"), demo_table("minilm-shuffled")
    assert np.array_equal(np.unique(table.vectors, axis=0), np.unique(other.vectors, axis=0))
    assert (table.vectors == other.vectors).all(axis=1).mean() < 0.1


def test_the_spelling_is_that_of_the_names():
    table = demo_table("char-ngrams")
    assert np.allclose(table.vectors, char_ngrams(table.labels.tolist()).vectors, atol=1e-3)


def test_another_name_lists_those_there_are():
    with pytest.raises(InputError, match=r"vggish, minilm, word2vec.*got 'bert'"):
        demo_table("bert")


def test_the_script_packs_any_folder_of_this_layout(tmp_path):
    rng = np.random.default_rng(1)
    classes = [f"kind {i:03d}" for i in range(70)]
    few = {"kind 003", "kind 040"}  # not clips enough
    labels = [c for c in classes for _ in range(11 if c in few else 14)]
    vectors = rng.standard_normal((len(labels), 6))
    vectors[1] = vectors[0]  # the same recording twice
    EmbeddingTable(vectors, labels).save(tmp_path / "audioset_vggish.npz")
    for name in ("minilm", "word2vec"):
        EmbeddingTable(rng.standard_normal((70, 5)), classes[::-1]).save(tmp_path / f"audioset_text_{name}.npz")
    made = []
    for out in (tmp_path / "a", tmp_path / "b"):
        out.mkdir()
        done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "--out", str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append({name: EmbeddingTable.load(out / demo_file(name).name) for name in (AUDIO, *TEXTS)})
    first, again = made
    audio, source = first[AUDIO], EmbeddingTable.load(tmp_path / "audioset_text_minilm.npz")
    assert len(audio) == 720 and not few & set(audio.labels.tolist()) and len(np.unique(audio.vectors, axis=0)) == 720
    assert all(first[name].digest == again[name].digest for name in first)
    row = dict(zip(source.labels.tolist(), source.vectors))
    for label, vector in zip(first["minilm"].labels.tolist(), first["minilm"].vectors):
        assert np.allclose(vector, row[label], atol=2e-3)
