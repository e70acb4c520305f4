"""What others would write for the same job, on the CPU: torch.compile, torch.func.vmap, JAX jit + vmap + scan.

The eager loop and the ``torch.bmm`` batch are in `fastprobe.kernels.bench`, which also holds the check, the clock and the table. Every
peer here trains P probes at once with the optimisers of the protocol, written in its own idiom, and returns the last losses.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fastprobe.kernels.bench import METHODS, Method, Prepared, Shape, make_problem
from fastprobe.kernels.reference import BETA1, BETA2_ADAM, BETA2_MINI, EPS_ADAM
from fastprobe.protocol.config import ProbeConfig

PROBES = 32  # side by side; more overflows the caches and was slower for every peer


def _rates(config: ProbeConfig) -> np.ndarray:
    return np.array([config.learning_rate(t) for t in range(config.steps)], np.float32)


def _update(xp, config, w, m, v, g, lr, t):
    """One head's step, in torch or JAX: t counts from 1."""
    if config.optimizer == "sgd":
        m = config.momentum * m + g
        return w - lr * m, m, v
    m = BETA1 * m + (1 - BETA1) * g
    if config.optimizer == "adam":
        v = BETA2_ADAM * v + (1 - BETA2_ADAM) * g * g
        denominator = xp.sqrt(v / (1 - BETA2_ADAM**t)) + EPS_ADAM
    else:
        v = BETA2_MINI * v + (1 - BETA2_MINI) * (g * g).sum((-2, -1))[..., None, None] / config.dim
        denominator = xp.sqrt(v / (1 - BETA2_MINI**t))
    return w - lr / (1 - BETA1**t) * m / denominator, m, v


def _torch_inputs(shape: Shape, config: ProbeConfig, probes: int):
    import torch

    batch = make_problem(shape, config, probes)
    texts = torch.from_numpy(batch.text32[batch.permutations[:, batch.train_classes]])
    rows = [torch.from_numpy(batch.step_rows(t).astype(np.float32)) for t in range(config.steps)]
    state = []
    for start in (batch.text_start, batch.audio_start):
        w = torch.from_numpy(np.repeat(start[None].astype(np.float32), probes, 0))
        state.append((w, torch.zeros_like(w), torch.zeros_like(w if config.optimizer == "adam" else w[:, :1, :1])))
    return batch, texts, rows, state


def _compiled(shape: Shape, config: ProbeConfig, probes: int) -> Prepared:
    """Batched products with the gradients written out (reference.py has them), one whole step through torch.compile."""
    import torch

    batch, texts, rows, state = _torch_inputs(shape, config, probes)
    onehot = torch.eye(shape.train) / (shape.train * config.temperature)

    def norm(z):
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z / length, length

    def gradients(w, v, t, x):
        (a, a_len), (b, b_len) = norm(torch.bmm(t, w)), norm(torch.bmm(x, v))
        s = torch.bmm(b, a.mT) / config.temperature
        lse = s.logsumexp(dim=2)
        g = torch.exp(s - lse.unsqueeze(-1)) / (shape.train * config.temperature) - onehot
        da, db = torch.bmm(g.mT, b), torch.bmm(g, a)
        dz = ((da - a * (a * da).sum(-1, keepdim=True)) / a_len, (db - b * (b * db).sum(-1, keepdim=True)) / b_len)
        return (lse - s.diagonal(dim1=1, dim2=2)).mean(1), torch.bmm(t.mT, dz[0]), torch.bmm(x.mT, dz[1])

    @partial(torch.compile, dynamic=False, fullgraph=True)
    def step(texts, x, w, mw, vw, a, ma, va, lr, t):
        loss, dw, da = gradients(w, a, texts, x.expand(len(w), -1, -1))
        return loss, *_update(torch, config, w, mw, vw, dw, lr, t), *_update(torch, config, a, ma, va, da, lr, t)

    rates, times = torch.from_numpy(_rates(config)), torch.arange(1, config.steps + 1, dtype=torch.float32)

    def call():
        heads = (*state[0], *state[1])
        for t in range(config.steps):
            loss, *heads = step(texts, rows[t], *heads, rates[t], times[t])
        return loss.numpy().astype(np.float64), None

    return Prepared(call, batch)


def _vmapped(shape: Shape, config: ProbeConfig, probes: int) -> Prepared:
    """One probe's loss, differentiated and batched by torch.func."""
    import torch
    import torch.nn.functional as F

    batch, texts, rows, state = _torch_inputs(shape, config, probes)
    labels = torch.arange(shape.train)

    def loss_of(heads, texts, x):
        a, b = F.normalize(texts @ heads[0], dim=-1), F.normalize(x @ heads[1], dim=-1)
        return F.cross_entropy(b @ a.T / config.temperature, labels)

    gradient = torch.func.vmap(torch.func.grad_and_value(loss_of), in_dims=(0, 0, None))
    rates = _rates(config)

    def call():
        text, audio = state
        for t in range(config.steps):
            (dw, da), loss = gradient((text[0], audio[0]), texts, rows[t])
            text = _update(torch, config, *text, dw, float(rates[t]), t + 1)
            audio = _update(torch, config, *audio, da, float(rates[t]), t + 1)
        return loss.numpy().astype(np.float64), None

    return Prepared(call, batch)


def _jax(shape: Shape, config: ProbeConfig, probes: int) -> Prepared:
    """One probe's steps as a scan, batched by vmap, compiled by XLA."""
    import jax
    import jax.numpy as jnp

    batch = make_problem(shape, config, probes)
    texts = jnp.asarray(batch.text32[batch.permutations[:, batch.train_classes]])
    audio = jnp.asarray(batch.audio32)
    centroids = None if batch.clips is not None else jnp.asarray(batch.centroids, jnp.float32)
    starts = [jnp.asarray(s, jnp.float32) for s in (batch.text_start, batch.audio_start)]

    def loss_of(heads, texts, x):
        a, b = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (texts @ heads[0], x @ heads[1]))
        s = b @ a.T / config.temperature
        return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.diagonal(s))

    def one(texts, clips):
        def step(state, now):
            lr, t, index = now
            x = centroids if index is None else audio[index]
            loss, gradients = jax.value_and_grad(loss_of)([s[0] for s in state], texts, x)
            return [_update(jnp, config, *s, g, lr, t) for s, g in zip(state, gradients)], loss

        state = [(w, jnp.zeros_like(w), jnp.zeros_like(w if config.optimizer == "adam" else w[:1, :1])) for w in starts]
        return jax.lax.scan(step, state, (_rates(config), jnp.arange(1.0, config.steps + 1), clips))[1][-1]

    many = jax.jit(jax.vmap(one, in_axes=(0, None)))
    clips = None if batch.clips is None else jnp.asarray(batch.clips)
    return Prepared(lambda: (np.asarray(many(texts, clips), np.float64), None), batch)


PEERS = [
    *METHODS.values(),
    Method("torch.compile", _compiled, PROBES),
    Method("torch.func.vmap", _vmapped, PROBES),
    Method("JAX jit+vmap+scan", _jax, PROBES),
]
