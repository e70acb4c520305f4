"""Laws that every backend of this machine obeys: it agrees with the definition, and a job never sees its batch."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastprobe as fp
from fastprobe import kernels
from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.kernels import reference, torch_backend
from fastprobe.kernels.ranking import csls_scores
from fastprobe.protocol.config import ProbeConfig
from support.strategies import batch_of, configs

# Triton has its own file: without a GPU it runs in the interpreter, which must be set up before its import.
HERE = [name for name, why in kernels.available_backends().items() if why is None and name not in ("reference", "triton")]


def config_of(name, **fields):
    """A configuration that the backend honours, whichever optimisers it has."""
    return ProbeConfig(**{"optimizer": kernels.BACKENDS[name].optimizers[0], **fields})


def part(batch, probes):
    return dataclasses.replace(batch, permutations=batch.permutations[probes])


def test_this_machine_has_a_float32_backend():
    assert "torch" in HERE


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=30)
@given(st.data())
def test_agrees_with_the_reference(name, data):
    """Losses and heads to float32 rounding; ranks wherever the reference's margin exceeds it."""
    batch = batch_of(data.draw(configs(kernels.BACKENDS[name].optimizers)), n_probes=3, seed=data.draw(st.integers(0, 100)))
    want, got = reference.train(batch, heads=True), kernels.select_backend(name).load()(batch, "cpu", heads=True)
    assert got.ranks.dtype == np.int32 and got.ranks.shape == want.ranks.shape
    assert np.allclose(got.loss, want.loss, rtol=2e-4, atol=2e-5, equal_nan=True)
    for a, b in ((got.text_heads, want.text_heads), (got.audio_heads, want.audio_heads)):
        # Adam divides by elementwise second moments, which magnifies rounding of near-zero gradients.
        scale = np.abs(b).max() * (20 if batch.config.optimizer == "adam" else 1)
        assert np.abs(a - b).max() < 2e-3 * scale
    for p in range(3):
        gallery = reference.norm(batch.text[batch.permutations[p]] @ want.text_heads[p])[0]
        queries = reference.norm(batch.audio[batch.queries] @ want.audio_heads[p])[0]
        scores = csls_scores(queries @ gallery.T, batch.config.csls)
        margin = scores - np.take_along_axis(scores, batch.labels[batch.queries][:, None], axis=1)
        margin[np.arange(len(margin)), batch.labels[batch.queries]] = np.inf
        clear = np.abs(margin).min(axis=1) > 5e-3
        assert np.array_equal(got.ranks[p][clear], want.ranks[p][clear])
        assert np.array_equal(got.ranks_unseen[p][clear], want.ranks_unseen[p][clear])


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=15)
@given(st.data())
def test_a_job_does_not_depend_on_its_batch(name, data):
    batch = batch_of(data.draw(configs(kernels.BACKENDS[name].optimizers)), n_probes=7, seed=data.draw(st.integers(0, 100)))
    train = kernels.select_backend(name).load()
    whole = train(batch, "cpu", heads=True)
    for probes in ([3], [6, 0, 3], [5, 4, 3, 2]):
        some = train(part(batch, probes), "cpu", heads=True)
        for field in ("loss", "ranks", "ranks_unseen", "text_heads", "audio_heads"):
            assert np.array_equal(getattr(some, field), getattr(whole, field)[probes], equal_nan=True)


@pytest.mark.parametrize("name", ["reference", *HERE])
def test_duplicate_texts_tie_and_ties_count_against_us(name):
    """Every text is there twice: no rank can be 1."""
    batch = batch_of(config_of(name, dim=4, steps=3), classes=6)
    batch = dataclasses.replace(batch, text=batch.text[np.repeat(np.arange(3), 2)], permutations=np.arange(6)[None])
    assert np.array_equal(batch.text[0], batch.text[1])
    for csls in (0, 2):
        batch = dataclasses.replace(batch, config=dataclasses.replace(batch.config, csls=csls))
        ranks = kernels.select_backend(name).load()(batch, None if name == "reference" else "cpu").ranks
        assert ranks.min() >= 2 and set(np.unique(ranks)) <= {2, 4, 6}


def plain_ranks(batch, result, p, csls):
    """Both ranks of every query by plain loops over the scores of a probe's own heads, in float64."""
    a = [x / np.linalg.norm(x) for x in batch.text[batch.permutations[p]] @ result.text_heads[p].astype(np.float64)]
    b = [x / np.linalg.norm(x) for x in batch.audio[batch.queries] @ result.audio_heads[p].astype(np.float64)]
    s = [[float(x @ t) for t in a] for x in b]
    if csls:
        near_clip = [sum(sorted(row)[-csls:]) / csls for row in s]
        near_text = [sum(sorted(column)[-csls:]) / csls for column in zip(*s)]
        s = [[2 * x - near_clip[i] - near_text[c] for c, x in enumerate(row)] for i, row in enumerate(s)]
    every, unseen, close = [], [], []
    of_queries = set(batch.labels[batch.queries].tolist())
    for i, y in enumerate(batch.labels[batch.queries]):
        rivals = [c for c in range(len(a)) if c != y]
        every.append(1 + sum(s[i][c] >= s[i][y] for c in rivals))
        unseen.append(1 + sum(s[i][c] >= s[i][y] for c in rivals if c in of_queries))
        close.append(min(abs(s[i][c] - s[i][y]) for c in rivals) < 1e-5)
    return np.array(every), np.array(unseen), ~np.array(close)


@pytest.mark.parametrize("csls", [0, 1, 3, 6])
@pytest.mark.parametrize("name", ["reference", *HERE])
def test_ranks_are_what_plain_loops_count(name, csls):
    """Sizes below, at and beside the widths of vectors, of few and of many unseen classes."""
    for seed, (classes, fraction) in enumerate([(7, 0.5), (16, 0.9), (17, 0.3), (33, 0.5), (50, 0.65), (131, 0.8)]):
        batch = batch_of(
            config_of(name, dim=5, steps=2, csls=csls), n_probes=2, seed=seed, classes=classes, clips=9, train_fraction=fraction
        )
        got = kernels.select_backend(name).load()(batch, "cpu", heads=True)
        for p in range(2):
            every, unseen, clear = plain_ranks(batch, got, p, csls)
            assert clear.mean() > 0.9
            assert np.array_equal(got.ranks[p][clear], every[clear])
            assert np.array_equal(got.ranks_unseen[p][clear], unseen[clear])


@pytest.mark.parametrize("name", ["reference", *HERE])
@settings(max_examples=15)
@given(st.data())
def test_fewer_rivals_make_no_rank_worse(name, data):
    batch = batch_of(data.draw(configs(kernels.BACKENDS[name].optimizers)), n_probes=3, seed=data.draw(st.integers(0, 100)))
    got = kernels.select_backend(name).load()(batch, "cpu")
    n_unseen = len(batch.gallery)
    assert n_unseen == len(batch.text) - len(batch.train_classes)
    assert got.ranks_unseen.min() >= 1 and got.ranks_unseen.max() <= n_unseen
    assert (got.ranks_unseen <= got.ranks).all()
    assert (got.ranks - got.ranks_unseen <= len(batch.text) - n_unseen).all()


@pytest.mark.parametrize("name", ["reference", *HERE])
def test_csls_changes_ranks_alone(name):
    batch = batch_of(config_of(name, dim=5, steps=4), classes=30)
    corrected = dataclasses.replace(batch, config=dataclasses.replace(batch.config, csls=3))
    train = kernels.select_backend(name).load()
    plain, other = train(batch, "cpu", heads=True), train(corrected, "cpu", heads=True)
    for field in ("loss", "text_heads", "audio_heads"):
        assert np.array_equal(getattr(plain, field), getattr(other, field))
    assert not np.array_equal(plain.ranks, other.ranks)


@pytest.mark.parametrize("name", ["reference", *HERE])
def test_csls_above_the_gallery_is_refused(name):
    batch = batch_of(config_of(name, dim=2, steps=1, csls=10), classes=9)
    with pytest.raises(InputError, match="`csls` must be at most the number of texts and of test clips; got 10 with 9 texts"):
        kernels.select_backend(name).load()(batch, "cpu")


@pytest.mark.parametrize("name", HERE)
def test_odd_and_large_shapes(name):
    for shape in (
        {"classes": 7, "text_width": 3, "audio_width": 2},
        {"classes": 131, "text_width": 77, "audio_width": 129},
        {"classes": 40, "text_width": 300, "audio_width": 5, "clips": 9},
    ):
        for dim in (1, 31, 65):
            batch = batch_of(config_of(name, dim=dim, steps=2), n_probes=2, **shape)
            want, got = reference.train(batch), kernels.select_backend(name).load()(batch, "cpu")
            assert np.allclose(got.loss, want.loss, rtol=1e-4) and np.mean(got.ranks != want.ranks) < 0.01


def test_selection(monkeypatch):
    assert kernels.select_backend("reference").name == "reference"
    with pytest.raises(InputError, match=f"`backend` must be auto, {', '.join(kernels.BACKENDS)}; got 'jax'"):
        kernels.select_backend("jax")
    broken = dataclasses.replace(kernels.BACKENDS["cpp"], why_not=lambda: "no compiler")
    monkeypatch.setitem(kernels.BACKENDS, "cpp", broken)
    with pytest.raises(BackendUnavailableError, match=r"'cpp' is not available: no compiler. Available here: reference(?!.*cpp)"):
        kernels.select_backend("cpp")
    if not torch.cuda.is_available():
        assert kernels.select_backend("auto").name == "torch"
        with pytest.raises(BackendUnavailableError, match="Available here"):
            kernels.select_backend("auto", precision="tf32x3", device="cpu")


def test_a_backend_is_found_by_name_whatever_it_trains_with(monkeypatch):
    """Closed forms and the doctor name a backend and train nothing: that it lacks the default optimiser is no reason."""
    monkeypatch.setitem(
        kernels.BACKENDS, "torch", dataclasses.replace(kernels.BACKENDS["torch"], optimizers=("sgd",), precisions=("tf32",))
    )
    assert kernels.select_backend("torch").name == "torch" and kernels.select_backend("auto", device="cuda").name in ("torch", "triton")
    assert kernels.select_backend("torch", "tf32", None, "sgd").name == "torch"
    for asked in (("ieee", None, "sgd"), ("tf32", None, "adam"), (None, None, "adam"), ("ieee", None, None)):
        with pytest.raises(BackendUnavailableError, match=r"is not one that backend 'torch' has"):
            kernels.select_backend("torch", *asked)


def test_a_device_that_is_not_there_is_an_error():
    batch = batch_of(ProbeConfig(dim=2, steps=1))
    for device in ("cuda:99", "toaster"):
        with pytest.raises(BackendUnavailableError, match=f"{device}.*PyTorch sees: cpu"):
            kernels.select_backend("torch").load()(batch, device)
    with pytest.raises(BackendUnavailableError, match="precision"):
        kernels.select_backend("torch").load()(batch_of(ProbeConfig(dim=2, steps=1, precision="tf32")), "cpu")


def test_contrastive_loss_equals_the_reference_with_gradients():
    rng = np.random.default_rng(0)
    for probes, m, n, d in ((3, 7, 11, 5), (1, 2, 1, 1)):
        text, audio = (torch.tensor(rng.standard_normal((probes, k, d)), requires_grad=True) for k in (m, n))
        labels = torch.tensor(rng.integers(0, m, n))
        loss = kernels.contrastive_loss(text, audio, labels, 0.3)
        loss.sum().backward()
        assert loss.shape == (probes,)
        for p in range(probes):
            a, b = text[p].detach(), audio[p].detach()
            s = (b @ a.T / 0.3).numpy()
            soft = np.exp(s - s.max(1, keepdims=True))
            soft /= soft.sum(1, keepdims=True)
            assert loss[p].item() == pytest.approx(-np.log(soft[np.arange(n), labels]).mean(), rel=1e-12)
            g = (soft - np.eye(m)[labels]) / (n * 0.3)
            assert np.allclose(audio.grad[p], g @ a.numpy()) and np.allclose(text.grad[p], g.T @ b.numpy())


@pytest.mark.parametrize(
    ("backend", "tf32", "expected"),
    [("cpp", True, "ieee"), ("reference", True, "ieee"), ("torch", True, "tf32"), ("torch", False, "ieee"), ("triton", True, "tf32")],
)
def test_auto_is_tf32_where_there_are_matrix_units(monkeypatch, backend, tf32, expected):
    monkeypatch.setattr(torch_backend, "has_tf32", lambda device: tf32)
    assert kernels.BACKENDS[backend].settle(ProbeConfig()).precision == expected
    assert kernels.BACKENDS[backend].settle(ProbeConfig(precision="bf16")).precision == "bf16"


def test_a_cpu_has_no_tf32():
    assert not torch_backend.has_tf32(torch.device("cpu"))


def test_what_auto_meant_is_recorded(tmp_path):
    rng = np.random.default_rng(0)
    text = fp.EmbeddingTable(rng.standard_normal((12, 4)), [f"c{i}" for i in range(12)])
    audio = fp.EmbeddingTable(rng.standard_normal((24, 5)), [f"c{i // 2}" for i in range(24)])
    fp.permutation_test(
        text,
        audio,
        probe=["ridge", ProbeConfig(dim=2, steps=2)],
        permutations=3,
        splits=1,
        out=tmp_path / "run",
        backend="torch",
        device="cpu",
    )
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["precision"] == "ieee" and '"precision": "auto"' not in json.dumps(manifest)
    probe = fp.ContrastiveProbe(ProbeConfig(dim=2, steps=2)).fit(text, audio)
    assert probe.config.precision == "ieee" and probe.config.dim == 2
