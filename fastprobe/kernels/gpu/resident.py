"""Resident trainer: one program trains one probe for all its steps, in one launch.

    a = norm(T_pi W)    b = norm(X V)    S = b a' / tau    G = (P - Y) / (n tau)    dB = G a    dA = G' b
    dz = (da - a <a, da>) / |z|     dW = T' dZ_a     dV = X' dZ_b      (reference.py has the definition)

A probe touches nothing but its own heads and moments, so no synchronisation between programs is needed. The
similarity tile (BS x 128) lives in registers; sound rows go by in blocks, so there may be any number of clips per
class. Heads and moments are read and written in chunks of the feature axis and stay in L2, since only the probes in
flight (one or two per multiprocessor) use theirs. A gradient is never stored. Barriers separate the phases in which
threads read what others wrote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .block import (
    LOW,
    MIN_SHIFTED,
    add_columns,
    block_gradient,
    block_scores,
    choose,
    holds,
    project_chunks,
    row_losses,
    rows_of,
    text_bias,
    tile,
)
from .common import (
    FEATURE_ALIGN,
    TrainingOptions,
    dot,
    empty,
    inverse_length,
    mini_scale,
    mini_second_moment,
    optimise,
    round_up,
    through_norm,
)


@triton.jit
def _catch_up(w, m, rate, decay, r, D: tl.constexpr, BK: tl.constexpr):
    """The last W <- decay W - rate M."""
    k = tl.arange(0, BK)
    d = tl.arange(0, D)
    for at in range(0, r, BK):
        cell = (at + k)[:, None] * D + d[None, :]
        tl.store(w + cell, decay * tl.load(w + cell) - rate * tl.load(m + cell))


@triton.jit
def _update_chunks(
    start,
    stop,
    table,
    rows,
    n,
    dz,
    w,
    m,
    s,
    rate,
    second,
    momentum,
    weight_decay,
    r,
    ROWS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW = X' dZ of the features start ... stop, BK at a time, each applied at once; their |dW|_F^2 comes back."""
    k = tl.arange(0, BK)
    d = tl.arange(0, D)
    squared = tl.zeros((BK, D), tl.float32)
    if ONE_BLOCK:
        x, inside = rows_of(table, rows, 0, n, r, ROWS)
        block = tl.load(dz + tl.arange(0, ROWS)[:, None] * D + d[None, :])
    for at in range(start, stop, BK):
        g = tl.zeros((BK, D), tl.float32)
        if ONE_BLOCK:
            chunk = tl.load(x[:, None] + (at + k)[None, :], mask=inside[:, None], other=0.0)
            g = dot(tl.trans(chunk), block, g, PRECISION)
        else:
            for row in range(0, n, ROWS):
                x, inside = rows_of(table, rows, row, n, r, ROWS)
                chunk = tl.load(x[:, None] + (at + k)[None, :], mask=inside[:, None], other=0.0)
                block = tl.load(dz + (row + tl.arange(0, ROWS))[:, None] * D + d[None, :])
                g = dot(tl.trans(chunk), block, g, PRECISION)
        cell = (at + k)[:, None] * D + d[None, :]
        optimise(g, w, m, s, cell, cell >= 0, rate, second, momentum, weight_decay, OPTIMIZER, DECAY)
        squared += g * g
    return tl.sum(tl.sum(squared, axis=1), axis=0)


@triton.jit
def _update(
    table,
    rows,
    n,
    dz,
    w,
    m,
    s,
    rate,
    second,
    momentum,
    weight_decay,
    r,
    ROWS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    BU: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW = X' dZ, applied; |dW|_F^2 comes back.

    `dz` points to (n, D) in memory; a single block of rows is read once and kept. Features go by in chunks of BU, which
    suit the matrix units, and what BU does not divide in chunks of BK.
    """
    whole = 0
    squared = 0.0
    if BU > BK:
        whole = r // BU * BU
        squared += _update_chunks(
            0,
            whole,
            table,
            rows,
            n,
            dz,
            w,
            m,
            s,
            rate,
            second,
            momentum,
            weight_decay,
            r,
            ROWS,
            ONE_BLOCK,
            D,
            BU,
            OPTIMIZER,
            DECAY,
            PRECISION,
        )
    squared += _update_chunks(
        whole, r, table, rows, n, dz, w, m, s, rate, second, momentum, weight_decay, r, ROWS, ONE_BLOCK, D, BK, OPTIMIZER, DECAY, PRECISION
    )
    return squared


@triton.jit
def resident_kernel(
    text,  # float32 (C, r_text)
    text_rows,  # int32   (P, m)            rows of `text` that each probe trains on
    audio,  # float32 (N, r_audio)      clips, or centroids
    audio_rows,  # int32   (steps or 1, n)   rows of `audio` of each step
    row_classes,  # int32   (n,)              train class of each sound row
    shape,  # int32   (2,)              m, n
    w,
    v,  # float32 (P, r_text, D), (P, r_audio, D)   heads: start in, trained out
    mw,
    mv,  # the same                  first moments, zero
    sw,
    sv,  # the same                  second moments, zero (adam only)
    scratch,  # float32 (P, M + padded n, D)   dZ_a; b, then dZ_b
    lengths,  # float32 (P, padded n)     inverse lengths of b
    values,  # float32 (P, padded n)     loss of each row, last step
    schedule,  # float32 (steps, 3)
    loss,  # float32 (P,)              loss of the last step
    r_text,
    r_audio,
    n_padded,
    steps,
    audio_step,  # audio_step: n, or 0 where every step has the same rows
    per_class,
    inverse_tau,
    scale,
    dim,
    momentum,
    weight_decay,
    M: tl.constexpr,
    N: tl.constexpr,
    BS: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    BU_TEXT: tl.constexpr,
    BU_AUDIO: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SHIFTED: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    LAZY: tl.constexpr = OPTIMIZER == "adam-mini"
    p = tl.program_id(0).to(tl.int64)
    w += p * r_text * D
    mw += p * r_text * D
    sw += p * r_text * D
    v += p * r_audio * D
    mv += p * r_audio * D
    sv += p * r_audio * D
    a_out = scratch + p * (M + n_padded) * D
    b_out = a_out + M * D
    inverse_out = lengths + p * n_padded
    values_out = values + p * n_padded
    c = tl.arange(0, M)
    d = tl.arange(0, D)
    cell_a = c[:, None] * D + d[None, :]
    rows = audio_rows
    # State of adam-mini that W and V have yet to catch up with: second moments, rates, decay.
    vw = 0.0
    vv = 0.0
    rate_w = 0.0
    rate_v = 0.0
    decay = 1.0
    for step in range(steps):
        # Sizes are read in every step: masks known before the loop would be kept in registers, which run out.
        m = tl.load(shape)
        n = tl.load(shape + 1)
        in_c = c < m
        for at in range(0, n, N):
            x, inside = rows_of(audio, rows, at, n, r_audio, N)
            if LAZY and at > 0:
                z = project_chunks(x, inside, v, mv, 0.0, 1.0, r_audio, N, D, BK, False, PRECISION)
            else:
                z = project_chunks(x, inside, v, mv, rate_v, decay, r_audio, N, D, BK, LAZY, PRECISION)
            i = at + tl.arange(0, N)
            inverse = inverse_length(z)
            tl.store(inverse_out + i, inverse)
            tl.store(b_out + i[:, None] * D + d[None, :], z * inverse[:, None])
            tl.debug_barrier()
        x, inside = rows_of(text, text_rows + p * m, 0, m, r_text, M)
        a = project_chunks(x, inside, w, mw, rate_w, decay, r_text, M, D, BK, LAZY, PRECISION)
        inverse_a = inverse_length(a)
        a = a * inverse_a[:, None]
        tl.debug_barrier()

        bias = text_bias(in_c, scale)
        top_c = tl.full((M,), LOW, tl.float32)
        total_c = tl.zeros((M,), tl.float32)
        if SYMMETRIC:
            for at in range(0, n, BS):
                i = at + tl.arange(0, BS)
                s = block_scores(tl.load(b_out + i[:, None] * D + d[None, :]), a, scale, bias, PRECISION)
                top_c, total_c = add_columns(s, i < n, top_c, total_c, SHIFTED)
        da = tl.zeros((M, D), tl.float32)
        for at in range(0, n, BS):
            i = at + tl.arange(0, BS)
            in_i = i < n
            b = tl.load(b_out + i[:, None] * D + d[None, :])
            s = block_scores(b, a, scale, bias, PRECISION)
            own = tl.load(row_classes + i, mask=in_i, other=-1)[:, None] == c[None, :]
            # Only the last is wanted; in ieee the branch alone makes registers run out, and the losses cost little.
            if step == steps - 1 or PRECISION == "ieee":
                tl.store(values_out + i, row_losses(s, own, in_c, top_c, total_c, SYMMETRIC, SHIFTED))
            g = block_gradient(s, own, in_i, in_c, top_c, total_c, per_class, SYMMETRIC, SHIFTED)
            da = dot(tl.trans(g), b, da, PRECISION)
            db = dot(g, a, tl.zeros((BS, D), tl.float32), PRECISION)
            inverse = tl.load(inverse_out + i) * (inverse_tau / n)
            tl.store(b_out + i[:, None] * D + d[None, :], through_norm(b, db, inverse))
        tl.store(a_out + cell_a, through_norm(a, da, inverse_a * (inverse_tau / n)))

        rate = tl.load(schedule + step * 3)
        second = tl.load(schedule + step * 3 + 1)
        # Others read dZ, and have read the moments and heads that are overwritten here.
        tl.debug_barrier()
        gw = _update(
            text,
            text_rows + p * m,
            m,
            a_out,
            w,
            mw,
            sw,
            rate,
            second,
            momentum,
            weight_decay,
            r_text,
            M,
            True,
            D,
            BK,
            BU_TEXT,
            OPTIMIZER,
            DECAY,
            PRECISION,
        )
        gv = _update(
            audio,
            rows,
            n,
            b_out,
            v,
            mv,
            sv,
            rate,
            second,
            momentum,
            weight_decay,
            r_audio,
            N,
            ONE_BLOCK,
            D,
            BK,
            BU_AUDIO,
            OPTIMIZER,
            DECAY,
            PRECISION,
        )
        if LAZY:
            vw = mini_second_moment(vw, gw, dim)
            vv = mini_second_moment(vv, gv, dim)
            rate_w = rate * mini_scale(vw, second)
            rate_v = rate * mini_scale(vv, second)
            decay = tl.load(schedule + step * 3 + 2)
        rows += audio_step
        tl.debug_barrier()
    # From memory: Triton 3.6 cannot compile for Blackwell a scalar sum of what came out of a product.
    n = tl.load(shape + 1)
    total = tl.zeros((N,), tl.float32)
    for at in range(0, n, N):
        i = at + tl.arange(0, N)
        total += tl.load(values_out + i, mask=i < n, other=0.0)
    tl.store(loss + p, tl.sum(total, axis=0) / n)
    if LAZY:
        _catch_up(w, mw, rate_w, decay, r_text, D, BK)
        _catch_up(v, mv, rate_v, decay, r_audio, D, BK)


@dataclass(frozen=True)
class ResidentConfig:
    """How the kernel is launched.

    Tiles that are read, changed and written in place, (bk, D) of a head and (bs, D) of the unit rows, need at least as
    many elements as a program has threads: where two threads held the same element, one could read what the other
    had written already.

    Attributes
    ----------
    bs : int
        Sound rows per similarity tile.
    bk : int
        Features per chunk; a divisor of FEATURE_ALIGN, since chunks have no masks.
    warps : int
    source : str
        Where the choice comes from.
    bu : int
        Features per chunk of the update of a wide head; 0: as `bk`.
    stages : int
        Above 1, the compiler loads so many chunks ahead, less one.
    """

    bs: int
    bk: int
    warps: int
    source: str
    bu: int = 0
    stages: int = 1

    def __post_init__(self) -> None:
        if FEATURE_ALIGN % self.bk:
            raise ValueError(f"bk must divide {FEATURE_ALIGN}; got {self.bk}")

    def update_chunk(self, r: int) -> int:
        """Features per chunk of the update of a head of r.

        Wider chunks need a second loop and registers, so they are used only for heads of at least four such chunks.
        """
        return self.bu if self.bu > self.bk and r >= 4 * self.bu else self.bk


_AOT = "unmeasured; fewest spills among ahead-of-time builds"
_SMALL = "unmeasured; the largest that fits 163 KiB of shared memory"
# (train classes at most, width at most, products) -> configuration; (..., architecture) where one differs.
_PINNED = {
    (64, 64, "ieee"): ResidentConfig(16, 16, 4, _AOT),
    (64, 128, "ieee"): ResidentConfig(16, 16, 8, _AOT),
    (128, 64, "ieee"): ResidentConfig(16, 16, 8, _AOT),
    (128, 128, "ieee"): ResidentConfig(16, 16, 8, _AOT),
    (64, 64, "matrix"): ResidentConfig(32, 32, 4, _AOT),
    (64, 128, "matrix"): ResidentConfig(32, 16, 4, _AOT),
    (128, 64, "matrix"): ResidentConfig(32, 32, 8, _AOT, 64),
    (128, 128, "matrix"): ResidentConfig(32, 16, 8, _AOT),
    (128, 128, "matrix", "sm80"): ResidentConfig(16, 16, 8, _SMALL),
    (64, 64, "tf32x3"): ResidentConfig(32, 16, 4, _AOT),
    (64, 128, "tf32x3"): ResidentConfig(16, 16, 8, _AOT),
    (128, 64, "tf32x3"): ResidentConfig(32, 16, 8, _AOT),
    (128, 64, "tf32x3", "sm80"): ResidentConfig(16, 16, 8, _SMALL),
    # AMD: four warps of 64 lanes; with eight each lane has half the registers, and 370 spills where four have none.
    (128, 64, "ieee", "gfx"): ResidentConfig(16, 16, 4, _AOT),
    (128, 64, "matrix", "gfx"): ResidentConfig(16, 16, 4, _AOT),
    (128, 128, "ieee", "gfx"): ResidentConfig(16, 16, 4, _AOT),
    (128, 128, "matrix", "gfx"): ResidentConfig(16, 16, 4, _AOT),
}


def resident_config(n_classes: int, width: int, precision: str, architecture: str) -> ResidentConfig:
    """The pinned configuration of a shape class on an architecture ("sm80", "sm90", "sm100", "gfx942", ...)."""
    return choose(_PINNED, n_classes, width, precision, architecture)


def fits(n_classes: int, width: int, precision: str) -> bool:
    """Whether one program can train a probe: at most 128 train classes and d <= 128; any feature widths.

    tf32x3 keeps two parts of every operand in shared memory, so there 128 classes and d = 128 together are too many.
    """
    return holds(_PINNED, n_classes, width, precision)


def train_resident(
    text: torch.Tensor,
    text_rows: torch.Tensor,
    audio: torch.Tensor,
    audio_rows: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    schedule: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """Train every probe in place; the loss of the last step comes back, float32 (P,).

    Parameters
    ----------
    text, audio : float32 (C, r_text), (N, r_audio)
        Padded features.
    text_rows : int32 (P, m)
    audio_rows : int32 (steps, n), or (1, n) where all steps have the same rows
    w, v : float32 (P, r_text, D), (P, r_audio, D)
        Starts in, trained heads out.
    schedule : float32 (steps, 3)
    options : TrainingOptions
    """
    (n_probes, r_text, width), r_audio = w.shape, v.shape[1]
    m, n, steps = text_rows.shape[1], audio_rows.shape[1], len(schedule)
    mw, mv = torch.zeros_like(w), torch.zeros_like(v)
    sw, sv = (torch.zeros_like(w), torch.zeros_like(v)) if options.optimizer == "adam" else (mw, mv)
    pinned = resident_config(m, width, options.precision, options.architecture)
    m_tile, n_tile = tile(m), tile(n)
    n_padded = round_up(n, n_tile)
    scratch = empty(n_probes, m_tile + n_padded, width, device=w.device)
    lengths, values = (empty(n_probes, n_padded, device=w.device) for _ in range(2))
    loss = empty(n_probes, device=w.device)
    shape = torch.tensor([m, n], dtype=torch.int32, device=w.device)
    resident_kernel[(n_probes,)](
        text,
        text_rows,
        audio,
        audio_rows,
        options.row_classes,
        shape,
        w,
        v,
        mw,
        mv,
        sw,
        sv,
        scratch,
        lengths,
        values,
        schedule,
        loss,
        r_text,
        r_audio,
        n_padded,
        steps,
        n if len(audio_rows) > 1 else 0,
        float(options.per_class),
        1.0 / options.temperature,
        1.0 / (options.temperature * math.log(2)),
        float(options.dim),
        float(options.momentum),
        float(options.weight_decay),
        M=m_tile,
        N=n_tile,
        BS=min(pinned.bs, n_tile),
        D=width,
        BK=pinned.bk,
        BU_TEXT=pinned.update_chunk(r_text),
        BU_AUDIO=pinned.update_chunk(r_audio),
        ONE_BLOCK=n <= n_tile,
        OPTIMIZER=options.optimizer,
        SYMMETRIC=options.symmetric,
        SHIFTED=options.temperature >= MIN_SHIFTED,
        DECAY=options.decay["DECAY"],
        PRECISION=options.precision,
        num_warps=pinned.warps,
        num_stages=pinned.stages,
    )
    return loss
