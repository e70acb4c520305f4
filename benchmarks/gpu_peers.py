"""The same probes trained in the ways one would train them on a GPU: what the Triton trainers are measured against.

Every method has the signature ``train(problem, device, precision) -> (W, V)``, heads of its probes after all steps, as
tensors of shape (P, r, d); its preparation (compilation, copies to the device) happens in ``prepare``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fastprobe.kernels.batch import ProbeBatch
from fastprobe.kernels.gpu.common import schedule_table
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.plan import permutations

Run = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def flops(n: int, r_text: int, r_audio: int, d: int) -> int:
    """Floating-point operations of one step of one probe, by the usual form of the algorithm."""
    return 4 * n * r_text * d + 4 * n * r_audio * d + 6 * n * n * d


def problem(
    n: int,
    r_text: int,
    r_audio: int,
    d: int,
    sampling: str,
    probes: int,
    steps: int,
    optimizer: str = "adam-mini",
    precision: str = "tf32",
    seed: int = 0,
) -> ProbeBatch:
    """Random tables of 1.44 n classes with ten clips each; audio follows text through a random map."""
    rng = np.random.default_rng(seed)
    classes = round(1.44 * n)
    text = rng.standard_normal((classes, r_text)) / np.sqrt(r_text)
    labels = np.repeat(np.arange(classes), 10)
    audio = (text @ rng.standard_normal((r_text, r_audio)))[labels] / np.sqrt(r_audio) + rng.standard_normal(
        (len(labels), r_audio)
    ) / np.sqrt(r_audio)
    train = np.sort(rng.permutation(classes)[:n])
    clips = 10 * train + rng.integers(0, 10, (steps, n)) if sampling == "clip" else None
    config = ProbeConfig(dim=d, steps=steps, sampling=sampling, optimizer=optimizer, precision=precision)
    starts = [rng.standard_normal((r, d)) / np.sqrt(r) for r in (r_text, r_audio)]
    return ProbeBatch(
        config, text, audio, labels, train, clips, np.flatnonzero(~np.isin(labels, train)), permutations(seed, 0, probes, classes), *starts
    )


@dataclass
class Tensors:
    """A problem on the device."""

    text: torch.Tensor  # (P, n, r_text)
    audio: torch.Tensor  # (N, r_audio)
    rows: torch.Tensor  # (steps or 1, n)
    w: torch.Tensor  # (r_text, d)
    v: torch.Tensor
    rates: list[float]

    def sounds(self, step: int) -> torch.Tensor:
        """(n, r_audio) of a step."""
        return self.audio[self.rows[step % len(self.rows)]]


def put(batch: ProbeBatch, device: torch.device) -> Tensors:
    """The tensors of a problem, float32."""

    def tensor(array, dtype=np.float32):
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device)

    permuted = batch.text[batch.permutations[:, batch.train_classes]]
    if batch.clips is None:
        audio, rows = tensor(batch.centroids), torch.arange(batch.n_rows, device=device)[None]
    else:
        audio, rows = tensor(batch.audio), tensor(batch.clips, np.int64)
    return Tensors(
        tensor(permuted),
        audio,
        rows,
        tensor(batch.text_start),
        tensor(batch.audio_start),
        [batch.config.learning_rate(i) for i in range(batch.config.steps)],
    )


def eager_loop(batch: ProbeBatch, device: torch.device) -> Run:
    """One probe after the other: autograd, torch.optim.Adam. What people run."""
    t, c = put(batch, device), batch.config

    def run():
        heads = []
        for text in t.text:
            w, v = (x.clone().requires_grad_() for x in (t.w, t.v))
            optimizer = torch.optim.Adam([w, v], lr=1.0)
            for step in range(c.steps):
                optimizer.param_groups[0]["lr"] = t.rates[step]
                a, b = F.normalize(text @ w, dim=1), F.normalize(t.sounds(step) @ v, dim=1)
                loss = F.cross_entropy(b @ a.T / c.temperature, torch.arange(len(a), device=device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            heads.append((w.detach(), v.detach()))
        return tuple(torch.stack(h) for h in zip(*heads))

    return run


def gradient(w, v, text, x, temperature):
    """dW, dV of all probes, written out: (P, r, d) from text (P, n, r_text) and shared rows x (n, r_audio)."""
    n = len(x)
    za, zb = text @ w, x @ v
    la, lb = (torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(1e-12) for z in (za, zb))
    a, b = za / la, zb / lb
    g = torch.softmax(b @ a.mT / temperature, dim=-1)
    g = (g - torch.eye(n, device=g.device)) / (n * temperature)
    da, db = g.mT @ b, g @ a
    dza = (da - a * (a * da).sum(-1, keepdim=True)) / la
    dzb = (db - b * (b * db).sum(-1, keepdim=True)) / lb
    return text.mT @ dza, x.T @ dzb


def update(head, g, m, s, rate, second, dim):
    """adam-mini in place; rate is lr / (1 - b1^t), second 1 / (1 - b2^t)."""
    s.mul_(0.99).add_((g * g).sum(dim=(1, 2), keepdim=True) / dim, alpha=0.01)
    m.mul_(0.9).add_(g, alpha=0.1)
    head.sub_(rate * m / (s * second).sqrt().clamp_min(1e-30))


def start(t):
    """Heads, first and second moments of all probes."""
    w, v = (x.repeat(len(t.text), 1, 1) for x in (t.w, t.v))
    return [w, v, torch.zeros_like(w), torch.zeros_like(v), torch.zeros_like(w[:, :1, :1]), torch.zeros_like(v[:, :1, :1])]


def bmm_batch(batch: ProbeBatch, device: torch.device) -> Run:
    """All probes at once with batched products and written-out gradients, eager PyTorch."""
    t, c = put(batch, device), batch.config
    schedule = schedule_table(c).tolist()

    def run():
        with torch.inference_mode():
            w, v, mw, mv, sw, sv = start(t)
            for step in range(c.steps):
                dw, dv = gradient(w, v, t.text, t.sounds(step), c.temperature)
                update(w, dw, mw, sw, *schedule[step][:2], c.dim)
                update(v, dv, mv, sv, *schedule[step][:2], c.dim)
        return w, v

    return run


def compiled_batch(batch: ProbeBatch, device: torch.device) -> Run:
    """The batched step (gradients and optimiser) through torch.compile, replayed as a CUDA graph."""
    t, c = put(batch, device), batch.config
    schedule = torch.from_numpy(schedule_table(c)).to(device)
    state = start(t)
    at = torch.zeros(1, dtype=torch.int64, device=device)

    def step(w, v, mw, mv, sw, sv, at):
        x = t.audio[t.rows[at % len(t.rows)][0]]
        dw, dv = gradient(w, v, t.text, x, c.temperature)
        rate, second = schedule[at, 0], schedule[at, 1]
        update(w, dw, mw, sw, rate, second, c.dim)
        update(v, dv, mv, sv, rate, second, c.dim)
        at.add_(1)

    def reset():
        state[0].copy_(t.w.expand_as(state[0]))
        state[1].copy_(t.v.expand_as(state[1]))
        for tensor in (*state[2:], at):
            tensor.zero_()

    replay = replayed(step, (*state, at), reset, c.steps, device)

    def run():
        with torch.inference_mode():
            replay()
            return state[0].clone(), state[1].clone()

    return run


def replayed(step: Callable, state: tuple, reset: Callable[[], None], steps: int, device: torch.device) -> Callable[[], None]:
    """All steps from the start: `step(*state)` changes its tensors in place, and runs compiled and, on a GPU, as a CUDA graph."""
    torch._dynamo.reset()  # each problem compiles afresh, and dynamo counts recompilations of a function
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    once = functools.partial(compiled, *state)
    with torch.inference_mode():
        for _ in range(3):
            reset()
            once()
        if device.type == "cuda":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                once()
            once = graph.replay

    def run():
        reset()
        for _ in range(steps):
            once()

    return run


def jax_missing(device: torch.device) -> str | None:
    """Why JAX cannot be measured on a device: it is optional."""
    if importlib.util.find_spec("jax") is None:
        return "JAX is not installed"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    try:
        jax.devices("gpu" if device.type == "cuda" else "cpu")
    except RuntimeError:
        return "JAX sees no GPU"
    return None


def jax_scan(batch: ProbeBatch, device: torch.device) -> Run:
    """JAX: jit(vmap(scan(value_and_grad))), adam-mini."""
    import jax
    import jax.numpy as jnp

    target = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    t, c = put(batch, torch.device("cpu")), batch.config
    names = {"ieee": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16", "tf32x3": "highest"}
    text, audio, rows, w0, v0 = (jax.device_put(x.numpy(), target) for x in (t.text, t.audio, t.rows, t.w, t.v))
    if len(t.rows) == 1:
        rows = jnp.broadcast_to(rows, (c.steps, rows.shape[1]))
    rates = jnp.asarray(t.rates, jnp.float32)
    number = jnp.arange(1, c.steps + 1, dtype=jnp.float32)

    def norm(z):
        return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    def loss(heads, text, x):
        s = norm(x @ heads[1]) @ norm(text @ heads[0]).T / c.temperature
        return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.diagonal(s))

    def one(text):
        def step(state, inputs):
            heads, m, s = state
            row, rate, k = inputs
            g = jax.grad(loss)(heads, text, audio[row])
            s = tuple(0.99 * a + 0.01 * jnp.sum(b * b) / c.dim for a, b in zip(s, g))
            m = tuple(0.9 * a + 0.1 * b for a, b in zip(m, g))
            heads = tuple(h - rate / (1 - 0.9**k) * a / jnp.sqrt(b / (1 - 0.99**k)) for h, a, b in zip(heads, m, s))
            return (heads, m, s), None

        zeros = tuple(jnp.zeros_like(h) for h in (w0, v0))
        return jax.lax.scan(step, ((w0, v0), zeros, (0.0, 0.0)), (rows, rates, number))[0][0]

    with jax.default_matmul_precision(names[c.precision]):
        train = jax.jit(jax.vmap(one)).lower(text).compile()

    def run():
        heads = jax.block_until_ready(train(text))
        return tuple(torch.from_numpy(np.array(h[:2])) for h in heads)  # two are enough for the gate

    return run
