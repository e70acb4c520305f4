"""The basis is lossless: the compressed run is the raw run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprobe.errors import InputError
from fastprobe.kernels import make_batch, reference
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.features import fit_preprocessing, make_pair, table_features
from fastprobe.protocol.plan import permutations, split_classes
from fastprobe.tables.embeddings import EmbeddingTable
from support.strategies import SEEDS, tables


@given(SEEDS, st.integers(2, 12), st.integers(1, 20))
def test_centred_scaled_and_lossless(seed, n, width):
    x = np.random.default_rng(seed).standard_normal((n, width)) * 3 + 1
    raw, svd = (fit_preprocessing(x, basis, None, False).apply(x) for basis in ("raw", "svd"))
    assert np.abs(raw.mean(axis=0)).max() < 1e-12
    assert np.mean(np.sum(raw**2, axis=1)) == pytest.approx(1)
    assert svd.shape[1] <= min(n, width) and np.allclose(raw @ raw.T, svd @ svd.T, atol=1e-12)


def test_how_a_table_is_scaled_changes_nothing():
    x = np.random.default_rng(0).standard_normal((9, 4))
    tiny = fit_preprocessing(x * 1e-20, "svd", None, False).apply(x * 1e-20)
    assert np.allclose(tiny, fit_preprocessing(x, "svd", None, False).apply(x))
    with pytest.raises(InputError, match="the same vector"):
        fit_preprocessing(np.full((9, 4), 1e-20), "svd", None, False)


def test_a_tall_table_takes_the_qr_path_with_the_same_result():
    x = np.random.default_rng(0).standard_normal((500, 6))
    pre = fit_preprocessing(x, "svd", None, False)
    assert np.allclose(pre.basis.T @ pre.basis, np.eye(6), atol=1e-12)
    raw = fit_preprocessing(x, "raw", None, False).apply(x)
    assert np.allclose(pre.apply(x) @ pre.basis.T, raw, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam-mini", "sgd"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_run_equals_raw_run(optimizer, weight_decay, symmetric):
    """From a start that is Q'W_0, 40 steps later the ranks and the loss are those of the raw basis."""
    text, audio = tables(classes=12, text_width=40, audio_width=30, clips=2)
    config = ProbeConfig(dim=5, steps=40, optimizer=optimizer, weight_decay=weight_decay, symmetric=symmetric, basis="raw")
    split = split_classes(0, 0, 12, 0.7)
    raw_pair = make_pair(text, audio, config)
    raw = make_batch(raw_pair, config, split, 0, 0, 0, permutations(0, 0, 2, 12))
    svd_config = dataclasses.replace(config, basis="svd")
    svd_pair = make_pair(text, audio, svd_config)
    assert svd_pair.text.shape[1] == 11 and svd_pair.audio.shape[1] <= 24
    svd = dataclasses.replace(
        raw,
        config=svd_config,
        text=svd_pair.text,
        audio=svd_pair.audio,
        text_start=svd_pair.text_preprocessing.basis.T @ raw.text_start,
        audio_start=svd_pair.audio_preprocessing.basis.T @ raw.audio_start,
    )
    a, b = (reference.train(batch, heads=True) for batch in (raw, svd))
    assert np.abs(a.loss - b.loss).max() < 1e-8
    assert np.array_equal(a.ranks, b.ranks)
    scores = [(x.audio @ r.audio_heads[0]) @ (x.text @ r.text_heads[0]).T for x, r in ((raw, a), (svd, b))]
    assert np.abs(scores[0] - scores[1]).max() < 1e-8 * np.abs(scores[0]).max()


def test_energy_truncates_and_bias_appends():
    x = np.random.default_rng(0).standard_normal((50, 20)) * np.r_[np.full(3, 10), np.full(17, 0.1)]
    assert fit_preprocessing(x, "svd", 0.95, False).apply(x).shape == (50, 3)
    assert np.all(fit_preprocessing(x, "svd", None, True).apply(x)[:, -1] == 1)


@settings(max_examples=10)
@given(SEEDS)
def test_row_order_changes_nothing(seed):
    text, audio = tables(seed=1)
    rng = np.random.default_rng(seed)
    shuffled = [t.select(rng.permutation(len(t))) for t in (text, audio)]
    a, b = (make_pair(*pair, ProbeConfig()) for pair in ((text, audio), shuffled))
    for name in ("text", "audio", "labels", "classes", "first", "count"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_preprocessing_rejects_another_width_and_tables_without_variance():
    text, _ = tables()
    with pytest.raises(InputError, match="width 7"):
        table_features(text, ProbeConfig()).preprocessing.apply(np.ones((2, 3)))
    with pytest.raises(InputError, match="same vector"):
        table_features(EmbeddingTable(np.ones((3, 2)), list("abc")), ProbeConfig())
