"""The definition, held against PyTorch's autograd and optimisers, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastprobe.kernels import reference
from fastprobe.protocol.config import ProbeConfig
from support.strategies import SEEDS, batch_of


def torch_loop(batch, permutation):
    """A plain PyTorch training loop in float64: autograd, torch.optim, one probe."""
    c = batch.config
    text = torch.tensor(batch.text[permutation])
    w, v = (torch.tensor(h, requires_grad=True) for h in (batch.text_start, batch.audio_start))
    make = {
        "adam": lambda p: torch.optim.Adam(p, lr=c.lr, weight_decay=c.weight_decay),
        "sgd": lambda p: torch.optim.SGD(p, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay),
    }[c.optimizer]
    optimizer = make([w, v])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.steps) if c.schedule == "cosine" else None
    y = torch.tensor(batch.row_classes)
    for step in range(c.steps):
        optimizer.zero_grad()
        a = F.normalize(text[batch.train_classes] @ w, dim=1)
        b = F.normalize(torch.tensor(batch.step_rows(step)) @ v, dim=1)
        s = b @ a.T / c.temperature
        loss = F.cross_entropy(s, y)
        if c.symmetric:
            other = s.T[y]  # the text of each row, against all sounds
            loss = 0.5 * (loss + F.cross_entropy(other, torch.arange(len(y))))
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return loss.item(), w.detach().numpy(), v.detach().numpy()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sampling", ["clip", "centroid"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_equals_a_plain_pytorch_loop(optimizer, symmetric, sampling, weight_decay):
    config = ProbeConfig(
        dim=5,
        steps=50,
        optimizer=optimizer,
        symmetric=symmetric,
        sampling=sampling,
        basis="raw",
        bias=True,
        weight_decay=weight_decay,
        clips_per_class=2,
    )
    batch = batch_of(config, n_probes=2)
    result = reference.train(batch, heads=True)
    for p, permutation in enumerate(batch.permutations):
        loss, w, v = torch_loop(batch, permutation)
        assert abs(result.loss[p] - loss) < 1e-9
        assert np.abs(result.text_heads[p] - w).max() < 1e-9 and np.abs(result.audio_heads[p] - v).max() < 1e-9


def test_adam_mini_is_adam_with_one_second_moment_per_head():
    config = ProbeConfig(dim=4, steps=1, lr=0.5, schedule="constant")
    rng = np.random.default_rng(0)
    optimizer, w, m, v = reference.Optimizer(config, (6, 4)), np.zeros((6, 4)), np.zeros((6, 4)), 0.0
    for t in range(1, 6):
        g = rng.standard_normal((6, 4))
        before = w
        w = optimizer.step(w, g, 0.5)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * (g**2).sum() / 4
        assert np.allclose(w, before - 0.5 * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.99**t)), atol=1e-14)


def test_adam_mini_commutes_with_rotations():
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    config = ProbeConfig(dim=4, weight_decay=0.01)
    one, two = reference.Optimizer(config, (6, 4)), reference.Optimizer(config, (6, 4))
    w = rng.standard_normal((6, 4))
    rotated = q @ w
    for _ in range(20):
        g = rng.standard_normal((6, 4))
        w, rotated = one.step(w, g, 0.1), two.step(rotated, q @ g, 0.1)
    assert np.allclose(q @ w, rotated, atol=1e-12)


def test_a_zero_gradient_moves_nothing():
    config = ProbeConfig(dim=3)
    w = np.ones((2, 3))
    assert np.array_equal(reference.Optimizer(config, w.shape).step(w, np.zeros((2, 3)), 1.0), w)


SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 9)), elements=st.integers(-3, 3).map(float))


@given(SCORES, SEEDS)
def test_ranks_count_ties_against_us(scores, seed):
    """Gallery = unit axes, so that a query's scores are its coordinates."""
    n, classes = scores.shape
    y = np.random.default_rng(seed).integers(0, classes, n)
    got = reference.ranks(np.eye(classes), scores, y)
    want = [1 + sum(scores[i, c] >= scores[i, y[i]] for c in range(classes) if c != y[i]) for i in range(n)]
    assert got.tolist() == want


@given(SCORES, SEEDS)
def test_ranks_are_unchanged_under_monotone_maps(scores, seed):
    n, classes = scores.shape
    y = np.random.default_rng(seed).integers(0, classes, n)
    mapped = [np.exp(scores), 2 * scores + 1, scores**3, np.arctan(scores)]
    want = reference.ranks(np.eye(classes), scores, y)
    assert all(np.array_equal(reference.ranks(np.eye(classes), m, y), want) for m in mapped)


def test_a_nan_score_comes_last():
    assert reference.ranks(np.eye(3), np.array([[np.nan, 1.0, 2.0]]), np.array([0])).tolist() == [3]
