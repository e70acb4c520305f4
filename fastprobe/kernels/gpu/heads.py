"""Heads of the trainers on the chip, from dZ of all their steps: W = omega W_0 - X' U, with U as `gram` says."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .block import rows_of
from .common import FEATURE_ALIGN, TrainingOptions, dot, empty

# Of device memory, for the dZ of all steps of the probes in one launch.
HISTORY_BYTES = 4 << 30
_FOLD_BLOCK = 1024


def probes_at_once(n_probes: int, history_bytes: int, device: torch.device) -> int:
    """How many probes one launch trains: as many as their history has room for, in whole rounds of the multiprocessors."""
    room = max(HISTORY_BYTES // history_bytes, 1)
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        room = max(room // processors * processors, min(room, processors))
    return min(room, n_probes)


@triton.jit
def fold_kernel(
    history,
    rates,
    schedule,
    u,  # float32 (P, SIDES, m, D)
    steps,
    numbers,  # m D
    c1,
    c2,
    weight_decay,
    SIDES: tl.constexpr,
    BLOCK: tl.constexpr,
    SHRINK: tl.constexpr,
    DECAY: tl.constexpr,
):
    """UM <- c1 UM + c2 dZ - wd U,  U <- keep U + rate UM, over all steps; one program per block of a probe's side."""
    blocks = tl.cdiv(numbers, BLOCK)
    p = (tl.program_id(0) // (SIDES * blocks)).to(tl.int64)
    side = tl.program_id(0) // blocks % SIDES
    cell = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = cell < numbers
    history += (p * steps * SIDES + side) * numbers
    rates += p * steps * 4 + side
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        dz = tl.load(history + step * SIDES * numbers + cell, mask=inside, other=0.0).to(tl.float32)
        moment = c1 * moment + (c2 * tl.load(rates + step * 4 + 2)) * dz
        if DECAY:
            moment -= weight_decay * total
        if SHRINK:
            total = total * tl.load(schedule + step * 3 + 2)
        total += tl.load(rates + step * 4) * moment
    tl.store(u + (p * SIDES + side) * numbers + cell, total, mask=inside)


@triton.jit
def heads_kernel(
    table,  # float32 (., r)
    rows,  # int32   (P or 1, m)
    u,  # float32 (P, SIDES, m, D)
    w,  # float32 (P, r, D)   W_0 in, W out
    omega,
    m,
    r,
    stride,  # from one probe's rows to the next's; 0 where all share them
    side,
    SIDES: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
):
    """W <- omega W_0 - X' U of one probe, in products near float32: a rounding error here is not corrected by later steps."""
    p = tl.program_id(0).to(tl.int64)
    x, inside = rows_of(table, rows + p * stride, 0, m, r, M)
    cell = tl.arange(0, M)[:, None] * D + tl.arange(0, D)[None, :]
    left = tl.load(u + (p * SIDES + side) * m * D + cell, mask=inside[:, None], other=0.0)
    k = tl.arange(0, BK)
    w += p * r * D
    for at in range(0, r, BK):
        chunk = tl.load(x[:, None] + (at + k)[None, :], mask=inside[:, None], other=0.0)
        head = (at + k)[:, None] * D + tl.arange(0, D)[None, :]
        moved = dot(tl.trans(chunk), left, tl.zeros((BK, D), tl.float32), "tf32x3")
        tl.store(w + head, omega * tl.load(w + head) - moved)


def omega_of(schedule: torch.Tensor, options: TrainingOptions) -> float:
    """What is left of W_0 after all steps: W = omega W_0 - X' U."""
    omega, moment = 1.0, 0.0
    for rate, _, keep in schedule.double().tolist():
        if options.mini:
            omega *= keep
        else:
            moment = options.momentum * moment + options.weight_decay * omega
            omega -= rate * moment
    return omega


def put_heads_together(
    history: torch.Tensor,
    rates: torch.Tensor,
    schedule: torch.Tensor,
    sides: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    options: TrainingOptions,
) -> None:
    """W <- omega W_0 - X' U, in place, from the dZ of all steps.

    Parameters
    ----------
    history : float16 (at least P, steps, sides, m, D)
    sides : list of (table float32 (., r), rows int32 (P or 1, m), heads float32 (P, r, D))
    """
    omega = omega_of(schedule, options)
    width, steps = history.shape[-1], len(schedule)
    n_probes, m = len(sides[0][2]), history.shape[-2]
    numbers = m * width
    u = empty(n_probes, len(sides), m, width, device=rates.device)
    grid = n_probes * len(sides) * triton.cdiv(numbers, _FOLD_BLOCK)
    fold_kernel[(grid,)](
        history,
        rates,
        schedule,
        u,
        steps,
        numbers,
        *options.moment,
        float(options.weight_decay),
        SIDES=len(sides),
        BLOCK=_FOLD_BLOCK,
        **options.decay,
        num_warps=4,
    )
    for side, (table, rows, heads) in enumerate(sides):
        stride = m if len(rows) > 1 else 0
        shape = {"SIDES": len(sides), "M": 64 if m <= 64 else 128, "D": width, "BK": FEATURE_ALIGN, "num_warps": 4 if width <= 64 else 8}
        heads_kernel[(n_probes,)](table, rows, u, heads, omega, m, heads.shape[1], stride, side, **shape)
