"""Tiled trainer: probes of any size, each step a fixed chain of launches, captured once as a CUDA graph.

    project    Z_a = T_pi W, Z_b = X V, and |z|^2 of each row
    softmax    lse over texts of every sound (and over sounds of every text under `symmetric`), blockwise
    gradient   dZ_b, dZ_a through loss and norm, from recomputed score tiles: no n x m matrix is stored
    weights    dW = T' dZ_a and dV = X' dZ_b, tile by tile, the optimiser applied to each at once
    scales     adam-mini's second moments from the partial squares of the gradients

adam-mini's step needs the norm of the whole gradient, so W lags behind: `project` reads it as decay W - rate M,
and the next `weights`, which owns its tile, writes that down. The step number lives on the device, so that one graph
serves all steps and a step costs no launch gap.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import TrainingOptions, dot, empty, mini_scale, mini_second_moment, optimise
from .loss import log_sum_exp, mean_loss, row_gradient
from .project import norm_blocks, project


@triton.jit
def weights_kernel(
    table,  # float32 (N, r)
    rows,  # int32 (steps, n), or per probe (P, n)
    step,  # int32 (1,)
    dz,  # float32 (P, n, D)
    w,
    m,
    s,  # float32 (P, r, D); s for adam only
    state,  # float32 (P, 2)   rate, decay; adam-mini only
    schedule,  # float32 (steps, 3)
    partial,  # float32 (P, tiles, BK)   |dW|^2 of each row of each tile; adam-mini only
    n,
    r,
    probe_rows,
    step_stride,
    momentum,
    weight_decay,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile (BK, BD) of X' dZ, and its share of the optimiser's step."""
    LAZY: tl.constexpr = OPTIMIZER == "adam-mini"
    across: tl.constexpr = (D + BD - 1) // BD
    tiles = tl.cdiv(r, BK) * across
    p = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    k = tile // across * BK + tl.arange(0, BK)
    d = tile % across * BD + tl.arange(0, BD)
    inside = (k < r)[:, None] & (d < D)[None, :]
    number = tl.load(step)
    rows += p * probe_rows + number.to(tl.int64) * step_stride
    dz += p * n * D
    g = tl.zeros((BK, BD), tl.float32)
    for at in range(0, n, BM):
        i = at + tl.arange(0, BM)
        in_i = i < n
        x = table + tl.load(rows + i, mask=in_i, other=0).to(tl.int64) * r
        chunk = tl.load(x[None, :] + k[:, None], mask=(k < r)[:, None] & in_i[None, :], other=0.0)
        grad = tl.load(dz + i[:, None] * D + d[None, :], mask=in_i[:, None] & (d < D)[None, :], other=0.0)
        g = dot(chunk, grad, g, PRECISION)
    cell = k[:, None] * D + d[None, :]
    w += p * r * D
    m += p * r * D
    s += p * r * D
    if LAZY:
        head = tl.load(state + p * 2 + 1) * tl.load(w + cell, mask=inside, other=0.0) - tl.load(state + p * 2) * tl.load(
            m + cell, mask=inside, other=0.0
        )
        tl.store(w + cell, head, mask=inside)
        # By rows: Triton 3.6 cannot compile for Blackwell a scalar sum of what came out of a product.
        tl.store(partial + (p * tiles + tile) * BK + tl.arange(0, BK), tl.sum(tl.where(inside, g * g, 0.0), axis=1))
        # Moments were read by other threads than those that write them next.
        tl.debug_barrier()
    optimise(
        g,
        w,
        m,
        s,
        cell,
        inside,
        tl.load(schedule + number * 3),
        tl.load(schedule + number * 3 + 1),
        momentum,
        weight_decay,
        OPTIMIZER,
        DECAY,
    )


@triton.jit
def scales_kernel(partial, parts, second_moment, state, schedule, step, dim, BLOCK: tl.constexpr):
    """v <- b2 v + (1 - b2) |dW|^2 / d of each probe, and the rate and decay its head is owed."""
    p = tl.program_id(0).to(tl.int64)
    squared = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, parts, BLOCK):
        j = at + tl.arange(0, BLOCK)
        squared += tl.load(partial + p * parts + j, mask=j < parts, other=0.0)
    number = tl.load(step)
    v = mini_second_moment(tl.load(second_moment + p), tl.sum(squared, axis=0), dim)
    tl.store(second_moment + p, v)
    tl.store(state + p * 2, tl.load(schedule + number * 3) * mini_scale(v, tl.load(schedule + number * 3 + 1)))
    tl.store(state + p * 2 + 1, tl.load(schedule + number * 3 + 2))


class _Side:
    """One head, its rows, and what a step leaves in memory about them."""

    def __init__(
        self, table: torch.Tensor, rows: torch.Tensor, head: torch.Tensor, per_probe: bool, optimizer: str, precision: str
    ) -> None:
        (n_probes, r, width), device = head.shape, head.device
        self.table, self.rows, self.head, self.per_probe = table, rows, head, per_probe
        self.n, self.optimizer, self.precision = rows.shape[1], optimizer, precision
        self.moment = torch.zeros_like(head)
        self.second = torch.zeros_like(head) if optimizer == "adam" else self.moment
        self.z = empty(n_probes, self.n, width, device=device)
        self.squares = empty(n_probes, self.n, norm_blocks(width), device=device)
        self.dz = empty(n_probes, self.n, width, device=device)
        self.lse = empty(n_probes, self.n, device=device), empty(n_probes, self.n, device=device)
        ieee = precision == "ieee"
        self.tile = {"BK": 64, "BD": min(width, 64), "BM": 16 if ieee else 32}
        self.tiles = triton.cdiv(r, self.tile["BK"]) * triton.cdiv(width, self.tile["BD"])
        self.partial = empty(n_probes, self.tiles, self.tile["BK"], device=device)
        self.v = torch.zeros(n_probes, device=device)
        self.state = torch.tensor([0.0, 1.0], device=device).repeat(n_probes, 1)

    @property
    def lazy(self) -> bool:
        """Whether the head lags behind its moment."""
        return self.optimizer == "adam-mini"

    def project(self, step: torch.Tensor) -> None:
        project(
            self.table,
            self.rows,
            self.head,
            precision=self.precision,
            z=self.z,
            squares=self.squares,
            step=step,
            moment=self.moment if self.lazy else None,
            state=self.state if self.lazy else None,
            per_probe=self.per_probe,
        )

    def update(self, step: torch.Tensor, schedule: torch.Tensor, dim: int, momentum: float, decay: float) -> None:
        n_probes, r, width = self.head.shape
        weights_kernel[(n_probes * self.tiles,)](
            self.table,
            self.rows,
            step,
            self.dz,
            self.head,
            self.moment,
            self.second,
            self.state,
            schedule,
            self.partial,
            self.n,
            r,
            self.n if self.per_probe else 0,
            0 if self.per_probe or len(self.rows) == 1 else self.n,
            float(momentum),
            float(decay),
            D=width,
            **self.tile,
            OPTIMIZER=self.optimizer,
            DECAY=decay > 0 and not self.lazy,
            PRECISION=self.precision,
            num_warps=4,
            num_stages=3,
        )
        if self.lazy:
            scales_kernel[(n_probes,)](
                self.partial, self.tiles * self.tile["BK"], self.v, self.state, schedule, step, float(dim), BLOCK=256, num_warps=4
            )

    def finish(self) -> None:
        """Let the head catch up with its moment."""
        if self.lazy:
            rate, decay = self.state[:, 0, None, None], self.state[:, 1, None, None]
            self.head.mul_(decay).sub_(self.moment.mul_(rate))


def train_tiled(
    text: torch.Tensor,
    text_rows: torch.Tensor,
    audio: torch.Tensor,
    audio_rows: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    schedule: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """Train every probe in place; the loss of the last step comes back, float32 (P,). See `train_resident`."""
    (n_probes, m), n, device = text_rows.shape, audio_rows.shape[1], w.device
    texts = _Side(text, text_rows, w, True, options.optimizer, options.precision)
    sounds = _Side(audio, audio_rows, v, False, options.optimizer, options.precision)
    step = torch.zeros(1, dtype=torch.int32, device=device)
    classes = torch.arange(m, dtype=torch.int32, device=device)[None]
    keys = options.row_classes[None]
    true = empty(n_probes, n, device=device)
    upstream = torch.full((n_probes,), 1.0 / (n * options.temperature), device=device)
    half = 0.5 if options.symmetric else 1.0
    squares = {"row_squares": sounds.squares, "column_squares": texts.squares}
    swapped = {"row_squares": texts.squares, "column_squares": sounds.squares}

    def one_step() -> None:
        texts.project(step)
        sounds.project(step)
        log_sum_exp(sounds.z, texts.z, keys, classes, options.temperature, options.precision, lse=sounds.lse, true=true, **squares)
        if options.symmetric:
            log_sum_exp(texts.z, sounds.z, classes, keys, options.temperature, options.precision, lse=texts.lse, **swapped)
        text_lse = texts.lse if options.symmetric else None
        row_gradient(
            sounds.z,
            texts.z,
            keys,
            classes,
            upstream,
            sounds.dz,
            options.temperature,
            options.precision,
            row_lse=sounds.lse,
            column_lse=text_lse,
            row_weight=half,
            column_weight=half * options.per_class,
            **squares,
        )
        row_gradient(
            texts.z,
            sounds.z,
            classes,
            keys,
            upstream,
            texts.dz,
            options.temperature,
            options.precision,
            row_lse=text_lse,
            column_lse=sounds.lse,
            row_weight=half * options.per_class,
            column_weight=half,
            **swapped,
        )
        texts.update(step, schedule, options.dim, options.momentum, options.weight_decay)
        sounds.update(step, schedule, options.dim, options.momentum, options.weight_decay)
        step.add_(1)

    _repeat(one_step, len(schedule), device)
    loss = mean_loss(sounds.lse, true, texts.lse if options.symmetric else None, options.per_class)
    texts.finish()
    sounds.finish()
    return loss


def _repeat(one_step, steps: int, device: torch.device) -> None:
    """Run a step so many times: once as it is, which compiles its kernels, then as replays of one CUDA graph.

    The stream is named, since PyTorch's own for captures lies on the device that captured first in this process. Other
    threads may use the driver meanwhile.
    """
    one_step()
    if device.type != "cuda" or steps < 3:
        for _ in range(steps - 1):
            one_step()
        return
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
        one_step()
    for _ in range(steps - 1):
        graph.replay()
    torch.cuda.synchronize(device)
