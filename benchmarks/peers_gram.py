"""Peers that use fastprobe's own algebra: heads as combinations of their inputs, so that a step needs Gram matrices and no wide basis.

    Z = T W,  K = T T^T:      T dW = K dZ,      |dW|^2 = sum(dZ * K dZ)

For centroids both sides go so. For clips, whose rows are others in every step, the sounds' head is kept as it is, all probes side by side,
so that X_t V is one product of shared rows with (r, P d). Written for `torch.compile`, for eager `torch.bmm` and for JAX, in float32 and
with bfloat16 products; every batch size of `SIZES` is tried and the best kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastprobe.kernels.bench import Method, Prepared, Shape, make_problem
from fastprobe.kernels.reference import BETA1, BETA2_MINI
from fastprobe.protocol.config import ProbeConfig

SIZES = (8, 16, 32, 64)


class Inputs:
    """Arrays of a problem, float32: Gram matrices of the texts (P, n, n), of the sounds (n, n) or their rows per step, starts."""

    def __init__(self, shape: Shape, config: ProbeConfig, probes: int) -> None:
        self.batch = batch = make_problem(shape, config, probes)
        train, c = batch.train_classes, config
        texts = batch.text32[batch.permutations[:, train]]
        whole = batch.text32 @ batch.text32.T
        rows = batch.permutations[:, train]
        self.gram = np.ascontiguousarray(whole[rows[:, :, None], rows[:, None, :]])
        self.z_text = texts @ batch.text_start.astype(np.float32)
        self.clips = batch.clips is not None
        if self.clips:
            self.rows = np.stack([batch.step_rows(t) for t in range(c.steps)]).astype(np.float32)
            self.audio_start = batch.audio_start.astype(np.float32)
        else:
            sounds = batch.centroids.astype(np.float32)
            self.audio_gram, self.z_audio = sounds @ sounds.T, sounds @ batch.audio_start.astype(np.float32)
        self.rates = np.array([c.learning_rate(t) for t in range(c.steps)], np.float32)


def _second(xp: Any, v: Any, squared: Any, t: Any, dim: int) -> tuple[Any, Any]:
    """adam-mini's second moment, one number a head, and what divides the first."""
    v = BETA2_MINI * v + (1 - BETA2_MINI) * squared / dim
    return v, xp.sqrt(v / (1 - BETA2_MINI**t))


def gram_gradients(za: Any, zb: Any, do: SimpleNamespace, tau: float) -> tuple[Any, Any, Any]:
    """Loss of every probe, and its gradient by both projections (P, n, d); `do` holds the operations of torch or JAX.

    dS = (softmax(S) - I) / n;    through the norm, dZ = (dA - A (A . dA)) / |Z|
    """
    (la, a), (lb, b) = ((length, z / length) for z in (za, zb) for length in (do.norm(z),))
    n = za.shape[1]
    s = do.product(b, a.mT) / tau
    lse = do.logsumexp(s)
    g = do.exp(s - lse[..., None]) / (n * tau) - do.truth
    da, db = do.product(g.mT, b), do.product(g, a)
    dza, dzb = ((x - y * (y * x).sum(-1)[..., None]) / length for x, y, length in ((da, a, la), (db, b, lb)))
    return (lse - do.diagonal(s)).mean(1), dza, dzb


def _torch_gram(shape: Shape, config: ProbeConfig, probes: int, compiled: bool, half: bool) -> Prepared:
    import torch

    p, n, d, inputs = probes, shape.train, shape.dim, Inputs(shape, config, probes)
    kind = torch.bfloat16 if half else torch.float32
    gram = torch.from_numpy(inputs.gram).to(kind)
    tau = config.temperature

    def product(a: Any, b: Any) -> Any:
        return torch.matmul(a.to(kind), b.to(kind)).float()

    def side_by_side(x: Any) -> Any:  # (P, n, d) as (n, P d)
        return x.transpose(0, 1).reshape(x.shape[1], p * d)

    def apart(x: Any) -> Any:
        return x.reshape(-1, p, d).transpose(0, 1)

    do = SimpleNamespace(
        product=product,
        norm=partial(torch.linalg.vector_norm, dim=-1, keepdim=True),
        logsumexp=partial(torch.logsumexp, dim=2),
        exp=torch.exp,
        truth=torch.eye(n) / (n * tau),
        diagonal=partial(torch.diagonal, dim1=1, dim2=2),
    )

    def stepped(z: Any, m: Any, v: Any, g: Any, squared: Any, lr: Any, t: Any, shape_of_v: tuple[int, ...]) -> tuple[Any, Any, Any]:
        m = BETA1 * m + (1 - BETA1) * g
        v, denominator = _second(torch, v, squared, t, d)
        return z - lr / (1 - BETA1**t) * m / denominator.reshape(shape_of_v), m, v

    def both(gram: Any, audio: Any, za: Any, ma: Any, va: Any, zb: Any, mb: Any, vb: Any, lr: Any, t: Any) -> tuple[Any, ...]:
        loss, da, db = gram_gradients(za, zb, do, tau)
        ga, gb = product(gram, da), apart(product(audio, side_by_side(db)))
        za, ma, va = stepped(za, ma, va, ga, (da * ga).sum((1, 2)), lr, t, (p, 1, 1))
        zb, mb, vb = stepped(zb, mb, vb, gb, (db * gb).sum((1, 2)), lr, t, (p, 1, 1))
        return loss, za, ma, va, zb, mb, vb

    def wide(gram: Any, x: Any, za: Any, ma: Any, va: Any, w: Any, mb: Any, vb: Any, lr: Any, t: Any) -> tuple[Any, ...]:
        loss, da, db = gram_gradients(za, apart(product(x, w)), do, tau)
        ga, gw = product(gram, da), product(x.mT, side_by_side(db))
        za, ma, va = stepped(za, ma, va, ga, (da * ga).sum((1, 2)), lr, t, (p, 1, 1))
        m = BETA1 * mb + (1 - BETA1) * gw
        vb, denominator = _second(torch, vb, (gw * gw).reshape(-1, p, d).sum((0, 2)), t, d)
        return loss, za, ma, va, w - lr / (1 - BETA1**t) * m / denominator.repeat_interleave(d), m, vb

    step: Callable[..., Any] = wide if inputs.clips else both
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # a size and precision each is another compilation of the same function
        step = torch.compile(step, dynamic=False, fullgraph=True)
    rates, times = torch.from_numpy(inputs.rates), torch.arange(1, config.steps + 1, dtype=torch.float32)
    za = torch.from_numpy(inputs.z_text)
    if inputs.clips:
        sounds = torch.from_numpy(inputs.rows).to(kind)
        zb = torch.from_numpy(np.tile(inputs.audio_start, (1, p)))
    else:
        sounds = torch.from_numpy(inputs.audio_gram).to(kind)[None].expand(config.steps, -1, -1)
        zb = torch.from_numpy(np.repeat(inputs.z_audio[None], p, 0))
    zero = torch.zeros(p)

    def call() -> tuple[np.ndarray, None]:
        state = (za, torch.zeros_like(za), zero, zb, torch.zeros_like(zb), zero)
        with torch.inference_mode():
            for t in range(config.steps):
                loss, *state = step(gram, sounds[t], *state, rates[t], times[t])
        return loss.numpy().astype(np.float64), None

    return Prepared(call, inputs.batch)


def _jax_gram(shape: Shape, config: ProbeConfig, probes: int, half: bool) -> Prepared:
    import jax
    import jax.numpy as jnp

    p, n, d, inputs = probes, shape.train, shape.dim, Inputs(shape, config, probes)
    kind, tau = jnp.bfloat16 if half else jnp.float32, config.temperature
    gram = jnp.asarray(inputs.gram, kind)

    def product(a: Any, b: Any) -> Any:
        return jnp.matmul(a.astype(kind), b.astype(kind), preferred_element_type=jnp.float32)

    do = SimpleNamespace(
        product=product,
        norm=partial(jnp.linalg.norm, axis=-1, keepdims=True),
        logsumexp=partial(jax.nn.logsumexp, axis=2),
        exp=jnp.exp,
        truth=jnp.eye(n) / (n * tau),
        diagonal=partial(jnp.diagonal, axis1=1, axis2=2),
    )

    def update(z: Any, m: Any, v: Any, g: Any, squared: Any, lr: Any, t: Any) -> tuple[Any, Any, Any]:
        m = BETA1 * m + (1 - BETA1) * g
        v, denominator = _second(jnp, v, squared, t, d)
        return z - lr / (1 - BETA1**t) * m / denominator.reshape(-1, 1, 1), m, v

    def step(state: Any, now: Any) -> Any:
        (za, ma, va), (zb, mb, vb) = state
        lr, t, x = now
        if inputs.clips:
            sounds = product(x, zb.transpose(1, 0, 2).reshape(zb.shape[1], p * d)).reshape(n, p, d).transpose(1, 0, 2)
            loss, da, db = gram_gradients(za, sounds, do, tau)
            gb = product(x.T, db.transpose(1, 0, 2).reshape(n, p * d)).reshape(-1, p, d).transpose(1, 0, 2)
            squared = (gb * gb).sum((1, 2))
        else:
            loss, da, db = gram_gradients(za, zb, do, tau)
            gb = product(audio, db.transpose(1, 0, 2).reshape(n, p * d)).reshape(n, p, d).transpose(1, 0, 2)
            squared = (db * gb).sum((1, 2))
        ga = product(gram, da)
        return (update(za, ma, va, ga, (da * ga).sum((1, 2)), lr, t), update(zb, mb, vb, gb, squared, lr, t)), loss

    audio = None if inputs.clips else jnp.asarray(inputs.audio_gram, kind)
    rows = jnp.asarray(inputs.rows, kind) if inputs.clips else None
    start = inputs.audio_start if inputs.clips else inputs.z_audio
    za, zb = jnp.asarray(inputs.z_text), jnp.repeat(jnp.asarray(start)[None], p, 0)
    zero = jnp.zeros(p)
    times = (jnp.asarray(inputs.rates), jnp.arange(1.0, config.steps + 1), rows)

    @jax.jit
    def many(za: Any, zb: Any) -> Any:
        state = ((za, jnp.zeros_like(za), zero), (zb, jnp.zeros_like(zb), zero))
        return jax.lax.scan(step, state, times)[1][-1]

    return Prepared(lambda: (np.asarray(many(za, zb), np.float64), None), inputs.batch)


def methods(half: bool, sizes: tuple[int, ...] = SIZES) -> list[Method]:
    """All peers at some batch sizes, float32 or with bfloat16 products."""
    kinds: dict[str, Callable[..., Prepared]] = {
        "torch.compile": partial(_torch_gram, compiled=True, half=half),
        "torch.bmm": partial(_torch_gram, compiled=False, half=half),
        "JAX": partial(_jax_gram, half=half),
    }
    precision = "bf16" if half else "ieee"
    return [
        Method(f"{name}, Gram, {size} probes", prepare, size, optimizer="adam-mini", precision=precision)
        for name, prepare in kinds.items()
        for size in sizes
    ]
