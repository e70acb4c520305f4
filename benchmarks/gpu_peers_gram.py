"""Peers on a GPU with our trainers' own algebra: torch.compile as a CUDA graph, and JAX jit(scan), both for all probes at once.

    Z = T W,  K = T T':    T dW = K dZ,    |dW|_F^2 = <dZ, K dZ>,    W = W_0 - T' U

Texts always go so, and sounds where their rows never change; sounds drawn anew in every step keep their head, all probes side by side,
so that X_t V is one product. Heads come out of it like everybody's, and pass the same check.
"""

from __future__ import annotations

import os
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from fastprobe.kernels.batch import ProbeBatch
from fastprobe.kernels.gpu.common import schedule_table
from fastprobe.kernels.reference import BETA1, BETA2_MINI

from .gpu_peers import Run, put, replayed
from .peers_gram import gram_gradients


def stepped(x: Any, m: Any, gradient: Any, size: Any) -> tuple[Any, Any]:
    """A projection, or what is taken from a head, after the step `size` along its moment."""
    m = BETA1 * m + (1 - BETA1) * gradient
    return x - size * m, m


def pace(s: Any, squared: Any, rate: Any, second: Any, dim: int, root: Any) -> tuple[Any, Any]:
    """adam-mini's second moment, one number a head, and the length of its step."""
    s = BETA2_MINI * s + (1 - BETA2_MINI) * squared / dim
    return s, rate / root(s * second)


def compiled_gram(batch: ProbeBatch, device: torch.device) -> Run:
    """torch.compile, replayed as a CUDA graph; a CPU runs the compiled step in a loop."""
    t, c = put(batch, device), batch.config
    n, count, d = len(batch.train_classes), len(t.text), c.dim
    wide = len(t.rows) > 1
    x = t.sounds(0)
    k_a, k_b = t.text @ t.text.mT, (x @ x.T).contiguous()
    za, zb = t.text @ t.w, (x @ t.v).expand(count, -1, -1)
    schedule = torch.from_numpy(schedule_table(c)).to(device)
    do = SimpleNamespace(
        norm=partial(torch.linalg.vector_norm, dim=-1, keepdim=True),
        product=torch.matmul,
        logsumexp=partial(torch.logsumexp, dim=2),
        exp=torch.exp,
        truth=torch.eye(n, device=device) / (n * c.temperature),
        diagonal=partial(torch.diagonal, dim1=1, dim2=2),
    )

    def each(z: Any) -> Any:  # (., P d) of all probes side by side, probe by probe
        return z.reshape(-1, count, d).transpose(0, 1)

    def beside(z: Any) -> Any:
        return z.transpose(0, 1).reshape(-1, count * d)

    # Of the texts and of the sounds: Z, its moment, -U, its moment; of sounds that change V and its moment. Then second moments.
    text = [torch.empty(count, n, d, device=device) for _ in range(4)]
    sounds = [torch.empty(len(t.v), count * d, device=device) for _ in range(2)] if wide else [torch.empty_like(z) for z in text]
    seconds = [torch.empty(count, 1, 1, device=device) for _ in range(2)]
    at = torch.zeros(1, dtype=torch.int64, device=device)

    def step(text: list[Any], sounds: list[Any], seconds: list[Any], at: Any) -> None:
        x = t.audio[t.rows[at % len(t.rows)][0]]
        _, da, db = gram_gradients(text[0], each(x @ sounds[0]) if wide else sounds[0], do, c.temperature)
        rate, second = schedule[at, 0], schedule[at, 1]
        ga = k_a @ da
        gb = x.T @ beside(db) if wide else k_b @ db
        of_b = (each(gb) ** 2 if wide else db * gb).sum((1, 2), keepdim=True)
        of_a, size_a = pace(seconds[0], (da * ga).sum((1, 2), keepdim=True), rate, second, d, torch.sqrt)
        of_b, size_b = pace(seconds[1], of_b, rate, second, d, torch.sqrt)
        new = [*stepped(*text[:2], ga, size_a), *stepped(*text[2:], da, size_a)]
        new += stepped(*sounds, gb, size_b[:, 0].repeat_interleave(d, 1).reshape(1, -1)) if wide else stepped(*sounds[:2], gb, size_b)
        new += [] if wide else stepped(*sounds[2:], db, size_b)
        for old, value in zip([*text, *sounds, *seconds], [*new, of_a, of_b]):
            old.copy_(value)
        at.add_(1)

    def reset() -> None:
        for tensor in (*text[1:], *sounds, *seconds, at):
            tensor.zero_()
        text[0].copy_(za)
        sounds[0].copy_(beside(t.v.expand(count, -1, -1)) if wide else zb)

    replay = replayed(step, (text, sounds, seconds, at), reset, c.steps, device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            replay()
            return t.w + t.text.mT @ text[2], each(sounds[0]).clone() if wide else t.v + x.T @ sounds[2]

    return run


def jax_gram(batch: ProbeBatch, device: torch.device) -> Run:
    """JAX: jit(scan) over batched products."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp
    import numpy as np

    target = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    t, c = put(batch, torch.device("cpu")), batch.config
    n, count, d = len(batch.train_classes), len(t.text), c.dim
    wide = len(t.rows) > 1
    text, audio, rows, w0, v0 = (jax.device_put(x.numpy(), target) for x in (t.text, t.audio, t.rows, t.w, t.v))
    schedule = jax.device_put(schedule_table(c), target)
    do = SimpleNamespace(
        norm=partial(jnp.linalg.norm, axis=-1, keepdims=True),
        product=jnp.matmul,
        logsumexp=partial(jax.nn.logsumexp, axis=2),
        exp=jnp.exp,
        truth=jnp.eye(n) / (n * c.temperature),
        diagonal=partial(jnp.diagonal, axis1=1, axis2=2),
    )
    names = {"ieee": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16", "tf32x3": "highest"}

    def each(z: Any) -> Any:
        return z.reshape(-1, count, d).transpose(1, 0, 2)

    def beside(z: Any) -> Any:
        return z.transpose(1, 0, 2).reshape(-1, count * d)

    def train(text: Any, audio: Any) -> tuple[Any, Any]:
        x = audio[rows[0]]
        k_a, k_b = text @ text.mT, x @ x.T
        zeros = jnp.zeros((count, n, d))
        of_text = (text @ w0, zeros, zeros, zeros)
        start = beside(jnp.broadcast_to(v0, (count, *v0.shape)))
        of_sounds = (start, jnp.zeros_like(start)) if wide else (jnp.broadcast_to(x @ v0, (count, n, d)), zeros, zeros, zeros)

        def step(state: Any, now: Any) -> tuple[Any, None]:
            of_text, of_sounds, sa, sb = state
            row, (rate, second, _) = now
            x = audio[row]
            _, da, db = gram_gradients(of_text[0], each(x @ of_sounds[0]) if wide else of_sounds[0], do, c.temperature)
            ga, gb = k_a @ da, x.T @ beside(db) if wide else k_b @ db
            squared = (each(gb) ** 2 if wide else db * gb).sum((1, 2), keepdims=True)
            sa, size_a = pace(sa, (da * ga).sum((1, 2), keepdims=True), rate, second, d, jnp.sqrt)
            sb, size_b = pace(sb, squared, rate, second, d, jnp.sqrt)
            of_text = (*stepped(*of_text[:2], ga, size_a), *stepped(*of_text[2:], da, size_a))
            if wide:
                of_sounds = stepped(*of_sounds, gb, jnp.repeat(size_b[:, 0, 0], d))
            else:
                of_sounds = (*stepped(*of_sounds[:2], gb, size_b), *stepped(*of_sounds[2:], db, size_b))
            return (of_text, of_sounds, sa, sb), None

        zero = jnp.zeros((count, 1, 1))
        each_step = jnp.broadcast_to(rows, (c.steps, n)), schedule
        (of_text, of_sounds, _, _), _ = jax.lax.scan(step, (of_text, of_sounds, zero, zero), each_step)
        return w0 + text.mT @ of_text[2], each(of_sounds[0]) if wide else v0 + x.T @ of_sounds[2]

    with jax.default_matmul_precision(names[c.precision]):
        compiled = jax.jit(train).lower(text, audio).compile()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        heads = jax.block_until_ready(compiled(text, audio))
        return tuple(torch.from_numpy(np.array(h[:2])) for h in heads)  # two are enough for the gate

    return run
