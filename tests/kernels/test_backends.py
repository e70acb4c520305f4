"""Laws that every backend of this machine obeys: it agrees with the definition, and a job never sees its batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprobe import kernels
from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.kernels import reference
from fastprobe.protocol.config import ProbeConfig
from support.strategies import batch_of, configs

# Triton has its own file: without a GPU it runs in the interpreter, which must be set up before its import.
HERE = [name for name, why in kernels.available_backends().items() if why is None and name not in ("reference", "triton")]


def part(batch, probes):
    return dataclasses.replace(batch, permutations=batch.permutations[probes])


def test_this_machine_has_a_float32_backend():
    assert "torch" in HERE


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=30)
@given(st.data())
def test_agrees_with_the_reference(name, data):
    """Losses and heads to float32 rounding; ranks wherever the reference's margin exceeds it."""
    batch = batch_of(data.draw(configs()), n_probes=3, seed=data.draw(st.integers(0, 100)))
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
        scores = queries @ gallery.T
        margin = scores - np.take_along_axis(scores, batch.labels[batch.queries][:, None], axis=1)
        margin[np.arange(len(margin)), batch.labels[batch.queries]] = np.inf
        clear = np.abs(margin).min(axis=1) > 5e-3
        assert np.array_equal(got.ranks[p][clear], want.ranks[p][clear])


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=15)
@given(st.data())
def test_a_job_does_not_depend_on_its_batch(name, data):
    batch = batch_of(data.draw(configs()), n_probes=7, seed=data.draw(st.integers(0, 100)))
    train = kernels.select_backend(name).load()
    whole = train(batch, "cpu", heads=True)
    for probes in ([3], [6, 0, 3], [5, 4, 3, 2]):
        some = train(part(batch, probes), "cpu", heads=True)
        for field in ("loss", "ranks", "text_heads", "audio_heads"):
            assert np.array_equal(getattr(some, field), getattr(whole, field)[probes], equal_nan=True)


@pytest.mark.parametrize("name", ["reference", *HERE])
def test_duplicate_texts_tie_and_ties_count_against_us(name):
    """Every text is there twice: no rank can be 1."""
    batch = batch_of(ProbeConfig(dim=4, steps=3), classes=6)
    batch = dataclasses.replace(batch, text=batch.text[np.repeat(np.arange(3), 2)], permutations=np.arange(6)[None])
    assert np.array_equal(batch.text[0], batch.text[1])
    ranks = kernels.select_backend(name).load()(batch, None if name == "reference" else "cpu").ranks
    assert ranks.min() >= 2 and set(np.unique(ranks)) <= {2, 4, 6}


@pytest.mark.parametrize("name", HERE)
def test_odd_and_large_shapes(name):
    for shape in (
        {"classes": 7, "text_width": 3, "audio_width": 2},
        {"classes": 131, "text_width": 77, "audio_width": 129},
        {"classes": 40, "text_width": 300, "audio_width": 5, "clips": 9},
    ):
        for dim in (1, 31, 65):
            batch = batch_of(ProbeConfig(dim=dim, steps=2), n_probes=2, **shape)
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
