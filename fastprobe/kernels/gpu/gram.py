"""Resident trainer for rows that never change: a probe is stepped through its outputs, Z = X W, alone.

    X dW = K dZ      |dW|_F^2 = <dZ, K dZ>      K = X X'

Under adam-mini and sgd W stays in W_0 plus the span of the rows, W = omega W_0 - X' U, and U follows from dZ row by
row. So a step takes one product of 2 n^2 d operations per head instead of two of 2 n r d, and the head itself is put
together at the end. The same run in exact arithmetic (csrc/train.cpp does likewise).

One program trains one probe, all steps in one launch, as in resident.py. State lies in one block of memory per
probe, so that addresses differ by constants. Rows that pad a tile share one row of zeros behind the real ones: every
thread may read and write there, always zeros, and neither masks nor traffic are spent on padding. U is not needed
before the end: dZ of a few steps is kept and folded into U together, which spares reading and writing U and its
moment in every step. Z = X W_0 and W_0 - X' U are computed once; a rounding error there is not
corrected by later steps, hence each is three tf32 products (ONCE) under tf32 and bf16 too.
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
from .common import FEATURE_ALIGN, TrainingOptions, dot, empty, inverse_length, mini_scale, mini_second_moment, through_norm

# Arrays of (M + 1, D) that a head has in a probe's state: Z and its moment, U and its moment, and dZ of some steps.
_MOMENT, _U, _U_MOMENT, _DZ = (tl.constexpr(i) for i in range(1, 5))


@triton.jit
def _cells(rows, m, D: tl.constexpr):
    """Offsets of rows in an array of the state; rows that do not exist are row m."""
    return tl.minimum(rows, m)[:, None] * D + tl.arange(0, D)[None, :]


@triton.jit
def _start(side, table, rows, w, m, r, M: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """Z = X W_0; U and both moments are zero."""
    SIZE: tl.constexpr = (M + 1) * D
    x, inside = rows_of(table, rows, 0, m, r, M)
    z = project_chunks(x, inside, w, w, 0.0, 1.0, r, M, D, BK, False, PRECISION)
    cell = _cells(tl.arange(0, M), m, D)
    zero = tl.zeros((M, D), tl.float32)
    tl.store(side + cell, z)
    tl.store(side + _MOMENT * SIZE + cell, zero)
    tl.store(side + _U_MOMENT * SIZE + cell, zero)
    tl.store(side + _U * SIZE + cell, zero)


@triton.jit
def _gather(k, gram, rows, m, n_texts, M: tl.constexpr, BK: tl.constexpr):
    """K of a probe's texts (M + 1, M) from that of all texts; zero where there is no text."""
    i = tl.arange(0, M)
    row = tl.load(rows + i, mask=i < m, other=0)
    for at in range(0, M, BK):
        j = at + tl.arange(0, BK)
        column = tl.load(rows + j, mask=j < m, other=0)
        inside = (i < m)[:, None] & (j < m)[None, :]
        value = tl.load(gram + row[:, None] * n_texts + column[None, :], mask=inside, other=0.0)
        tl.store(k + tl.minimum(i, m)[:, None] * M + j[None, :], value)


@triton.jit
def _outputs(side, rows, m, keep, rate, M: tl.constexpr, D: tl.constexpr, OWED: tl.constexpr, SHRINK: tl.constexpr):
    """Unit rows and inverse lengths of Z <- keep Z - rate ZM, the step that Z is owed, if it is OWED."""
    cell = _cells(rows, m, D)
    z = tl.load(side + cell)
    if OWED:
        if SHRINK:
            z = keep * z
        z -= rate * tl.load(side + _MOMENT * (M + 1) * D + cell)
        tl.store(side + cell, z)
    inverse = inverse_length(z)
    return z * inverse[:, None], inverse


@triton.jit
def _fold(
    side, rates, schedule, count, m, c1, c2, weight_decay, M: tl.constexpr, D: tl.constexpr, SHRINK: tl.constexpr, DECAY: tl.constexpr
):
    """dZ of the last `count` steps into U:  UM <- c1 UM + c2 dZ - wd U,  U <- keep U + rate UM."""
    SIZE: tl.constexpr = (M + 1) * D
    ROWS: tl.constexpr = M if M * D <= 8192 else M // 2  # U, its moment and dZ at once would not stay in registers
    for at in range(0, M, ROWS):
        cell = _cells(at + tl.arange(0, ROWS), m, D)
        u = tl.load(side + _U * SIZE + cell)
        moment = tl.load(side + _U_MOMENT * SIZE + cell)
        for j in range(count):
            moment = c1 * moment + c2 * tl.load(side + _DZ * SIZE + j * SIZE + cell)
            if DECAY:
                moment -= weight_decay * u
            if SHRINK:
                u = u * tl.load(schedule + j * 3 + 2)
            u += tl.load(rates + j * 2) * moment
        tl.store(side + _U * SIZE + cell, u)
        tl.store(side + _U_MOMENT * SIZE + cell, moment)


@triton.jit
def _advance(
    side,
    dz,
    k,
    squares,
    m,
    c1,
    c2,
    weight_decay,
    M: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ZM <- c1 ZM + c2 K dZ + wd Z; each row's part of |dW|_F^2 = <dZ, K dZ> goes to `squares`.

    By way of memory: Triton 3.6 cannot compile for Blackwell a scalar sum of what came out of a product.
    """
    SIZE: tl.constexpr = (M + 1) * D
    j = tl.arange(0, BK)
    for at in range(0, M if BN == M else m, BN):
        rows = at + tl.arange(0, BN)
        g = tl.zeros((BN, D), tl.float32)
        for column in range(0, m if PRECISION == "ieee" else M, BK):
            left = tl.load(k + tl.minimum(rows, m)[:, None] * M + (column + j)[None, :])
            g = dot(left, tl.load(dz + _cells(column + j, m, D)), g, PRECISION)
        cell = _cells(rows, m, D)
        tl.store(squares + rows, tl.sum(g * tl.load(dz + cell), axis=1))
        moment = c1 * tl.load(side + _MOMENT * SIZE + cell) + c2 * g
        if DECAY:
            moment += weight_decay * tl.load(side + cell)
        tl.store(side + _MOMENT * SIZE + cell, moment)


@triton.jit
def _total(values, m, M: tl.constexpr):
    """Sum of the first m of M numbers in memory."""
    i = tl.arange(0, M)
    return tl.sum(tl.load(values + i, mask=i < m, other=0.0), axis=0)


@triton.jit
def _finish(side, table, rows, w, omega, m, r, M: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """W <- omega W_0 - X' U."""
    k = tl.arange(0, BK)
    x, inside = rows_of(table, rows, 0, m, r, M)
    u = tl.load(side + _U * (M + 1) * D + _cells(tl.arange(0, M), m, D))
    for at in range(0, r, BK):
        chunk = tl.load(x[:, None] + (at + k)[None, :], mask=inside[:, None], other=0.0)
        cell = (at + k)[:, None] * D + tl.arange(0, D)[None, :]
        tl.store(w + cell, omega * tl.load(w + cell) - dot(tl.trans(chunk), u, tl.zeros((BK, D), tl.float32), PRECISION))


@triton.jit
def gram_kernel(
    text,  # float32 (C, r_text)
    text_rows,  # int32   (P, m)            rows of `text` that each probe trains on
    text_gram,  # float32 (C, C)            T T'
    audio,  # float32 (N, r_audio)
    audio_rows,  # int32   (m,)              row of `audio` of each train class
    audio_gram,  # float32 (M + 1, M)        X X', zero beyond m
    shape,  # int32   (1,)              m
    w,
    v,  # float32 (P, r_text, D), (P, r_audio, D)   heads: start in, trained out
    state,  # float32 (P, state_size)   4 + FOLD arrays (M + 1, D) of each head, then K of the texts (M + 1, M)
    values,  # float32 (P, 3 M + 2 FOLD) of each row: loss in the last step, parts of |dW|^2 and |dV|^2; rates of FOLD steps
    schedule,  # float32 (steps, 3)
    loss,  # float32 (P,)              loss of the last step
    n_texts,
    r_text,
    r_audio,
    steps,
    inverse_tau,
    scale,
    dim,
    c1,
    c2,
    weight_decay,
    M: tl.constexpr,
    BS: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    BF: tl.constexpr,
    FOLD: tl.constexpr,
    MINI: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SHIFTED: tl.constexpr,
    SHRINK: tl.constexpr,
    DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,
):
    # Weight decay is decoupled and shrinks heads under adam-mini (SHRINK), and part of the gradient under sgd (DECAY).
    HEAD: tl.constexpr = (_DZ + FOLD) * (M + 1) * D
    p = tl.program_id(0).to(tl.int64)
    w += p * r_text * D
    v += p * r_audio * D
    values += p * (3 * M + 2 * FOLD)
    squares = values + M
    rates = values + 3 * M
    texts = state + p * (2 * HEAD + (M + 1) * M)
    sounds = texts + HEAD
    k = texts + 2 * HEAD
    c = tl.arange(0, M)
    m = tl.load(shape)
    text_rows += p * m
    _start(texts, text, text_rows, w, m, r_text, M, D, BF, ONCE)
    _start(sounds, audio, audio_rows, v, m, r_audio, M, D, BF, ONCE)
    _gather(k, text_gram, text_rows, m, n_texts, M, BF)
    # What Z has yet to catch up with, and the coefficients of the starts.
    second_w = 0.0
    second_v = 0.0
    rate_w = 0.0
    rate_v = 0.0
    keep = 1.0
    omega_w = 1.0
    omega_v = 1.0
    moment_w = 0.0
    moment_v = 0.0
    tl.debug_barrier()
    for step in range(steps):
        # Read in every step: masks known before the loop would be kept in registers, which run out.
        m = tl.load(shape)
        slot = step % FOLD
        dz_a = texts + (_DZ + slot) * (M + 1) * D
        dz_b = dz_a + HEAD
        in_c = c < m
        a, inverse_a = _outputs(texts, c, m, keep, rate_w, M, D, True, SHRINK)
        bias = text_bias(in_c, scale)
        top_c = tl.full((M,), LOW, tl.float32)
        total_c = tl.zeros((M,), tl.float32)
        if SYMMETRIC and BS < M:
            for at in range(0, m, BS):
                i = at + tl.arange(0, BS)
                b, _ = _outputs(sounds, i, m, keep, rate_v, M, D, True, SHRINK)
                top_c, total_c = add_columns(block_scores(b, a, scale, bias, PRECISION), i < m, top_c, total_c, SHIFTED)
            tl.debug_barrier()
        da = tl.zeros((M, D), tl.float32)
        for at in range(0, M if BS == M else m, BS):
            i = at + tl.arange(0, BS)
            b, inverse_b = _outputs(sounds, i, m, keep, rate_v, M, D, BS == M or not SYMMETRIC, SHRINK)
            s = block_scores(b, a, scale, bias, PRECISION)
            if SYMMETRIC and BS == M:
                top_c, total_c = add_columns(s, i < m, top_c, total_c, SHIFTED)
            own = tl.where(i < m, i, -1)[:, None] == c[None, :]
            if step == steps - 1:
                tl.store(values + i, row_losses(s, own, in_c, top_c, total_c, SYMMETRIC, SHIFTED))
            g = block_gradient(s, own, i < m, in_c, top_c, total_c, 1.0, SYMMETRIC, SHIFTED)
            da = dot(tl.trans(g), b, da, PRECISION)
            db = through_norm(b, dot(g, a, tl.zeros((BS, D), tl.float32), PRECISION), inverse_b * (inverse_tau / m))
            tl.store(dz_b + _cells(i, m, D), db)
        tl.store(dz_a + _cells(c, m, D), through_norm(a, da, inverse_a * (inverse_tau / m)))
        # Others read dZ and Z.
        tl.debug_barrier()
        m = tl.load(shape)
        _advance(texts, dz_a, k, squares, m, c1, c2, weight_decay, M, D, BN, BK, DECAY, PRECISION)
        _advance(sounds, dz_b, audio_gram, squares + M, m, c1, c2, weight_decay, M, D, BN, BK, DECAY, PRECISION)
        # Others read the squares, and ZM.
        tl.debug_barrier()
        rate = tl.load(schedule + step * 3)
        if MINI:
            second = tl.load(schedule + step * 3 + 1)
            second_w = mini_second_moment(second_w, _total(squares, m, M), dim)
            second_v = mini_second_moment(second_v, _total(squares + M, m, M), dim)
            rate_w = rate * mini_scale(second_w, second)
            rate_v = rate * mini_scale(second_v, second)
            keep = tl.load(schedule + step * 3 + 2)
        else:
            rate_w = rate
            rate_v = rate
        if DECAY:
            moment_w = c1 * moment_w + weight_decay * omega_w
            moment_v = c1 * moment_v + weight_decay * omega_v
        omega_w = keep * omega_w - rate_w * moment_w
        omega_v = keep * omega_v - rate_v * moment_v
        tl.store(rates + slot * 2, rate_w)
        tl.store(rates + slot * 2 + 1, rate_v)
        if slot == FOLD - 1 or step == steps - 1:
            tl.debug_barrier()
            of_slots = schedule + (step - slot) * 3
            _fold(texts, rates, of_slots, slot + 1, m, c1, c2, weight_decay, M, D, SHRINK, DECAY)
            _fold(sounds, rates + 1, of_slots, slot + 1, m, c1, c2, weight_decay, M, D, SHRINK, DECAY)
            # Others write dZ and rates anew, and read U in the end.
            tl.debug_barrier()
    m = tl.load(shape)
    tl.store(loss + p, _total(values, m, M) / m)
    _finish(texts, text, text_rows, w, omega_w, m, r_text, M, D, BF, ONCE)
    _finish(sounds, audio, audio_rows, v, omega_v, m, r_audio, M, D, BF, ONCE)


@dataclass(frozen=True)
class GramConfig:
    """How the kernel is launched.

    Tiles that are changed in place, (bs, D), (bn, D) and (M, D), need at least as many elements as a program has
    threads: see `ResidentConfig`.

    Attributes
    ----------
    bs : int
        Sound rows per similarity tile; 128: all of them.
    bn : int
        Rows per tile of K dZ.
    bk : int
        Columns of K per chunk, and features, but of these FEATURE_ALIGN at most, since chunks have no masks.
    warps : int
    source : str
        Where the choice comes from.
    fold : int
        Steps whose dZ is kept. Each takes 2 n d numbers of memory per probe in flight; reading and writing U and its moment is
        shared by so many steps.
    """

    bs: int
    bn: int
    bk: int
    warps: int
    source: str
    fold: int = 8


_AOT = "unmeasured; fewest instructions per step among ahead-of-time builds"
_FEW = "unmeasured; fewest spills among ahead-of-time builds"
_SMALL = "unmeasured; the largest that fits 163 KiB of shared memory"
# (train classes at most, width at most, products) -> configuration; (..., architecture) where one differs.
_PINNED = {
    (64, 64, "ieee"): GramConfig(16, 64, 16, 4, _FEW),
    (64, 128, "ieee"): GramConfig(16, 64, 16, 8, _FEW),
    (128, 64, "ieee"): GramConfig(16, 128, 16, 8, _FEW),
    (128, 128, "ieee"): GramConfig(16, 128, 16, 8, _FEW),
    (64, 64, "matrix"): GramConfig(64, 64, 64, 4, _AOT),
    (64, 128, "matrix"): GramConfig(32, 64, 64, 8, _AOT),
    (128, 64, "matrix"): GramConfig(128, 128, 128, 8, _AOT),
    (128, 128, "matrix"): GramConfig(32, 128, 64, 8, _FEW),
    (128, 128, "matrix", "sm80"): GramConfig(16, 64, 16, 8, _SMALL),
    (64, 64, "tf32x3"): GramConfig(16, 64, 16, 4, _FEW),
    (64, 128, "tf32x3"): GramConfig(16, 64, 16, 8, _FEW),
    (128, 64, "tf32x3"): GramConfig(16, 128, 16, 8, _FEW),
    (64, 128, "ieee", "gfx"): GramConfig(16, 64, 16, 4, _FEW),
    (64, 128, "matrix", "gfx"): GramConfig(16, 64, 16, 4, _FEW),
    (128, 64, "ieee", "gfx"): GramConfig(16, 16, 16, 4, _FEW),
    (128, 64, "matrix", "gfx"): GramConfig(16, 128, 16, 4, _FEW),
    (128, 128, "ieee", "gfx"): GramConfig(16, 16, 16, 4, _FEW),
    (128, 128, "matrix", "gfx"): GramConfig(16, 32, 16, 4, _FEW),
}
# The Gram matrix of all texts is made once and must stay small beside what it saves.
MAX_TEXTS = 4096


def gram_config(n_classes: int, width: int, precision: str, architecture: str) -> GramConfig:
    """The pinned configuration of a shape class on an architecture; see `resident_config`."""
    return choose(_PINNED, n_classes, width, precision, architecture)


def fits(n_classes: int, width: int, precision: str) -> bool:
    """Whether one program can train a probe so: see `resident.fits`."""
    return holds(_PINNED, n_classes, width, precision)


def pays(n_classes: int, n_texts: int, r_text: int, r_audio: int, steps: int) -> bool:
    """Whether this way is shorter than stepping the heads themselves, by operations per row and dimension.

    The start and the finish cost as much as one step of the heads; passes over the state are counted as 128, so that the two
    tie where the instructions do that the compiler makes of them: at 100 classes, near a mean width of 70 to 90.
    """
    direct = 4 * (r_text + r_audio)
    return n_texts <= MAX_TEXTS and steps * (4 * tile(n_classes) + 128) + direct < 0.9 * steps * direct


def train_gram(
    text: torch.Tensor,
    text_rows: torch.Tensor,
    audio: torch.Tensor,
    audio_rows: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    schedule: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """Train every probe in place; the loss of the last step comes back, float32 (P,). See `train_resident`.

    `audio_rows` is (1, m), one row of each train class in their order; `optimizer` is not "adam".
    """
    (n_probes, r_text, width), r_audio, m = w.shape, v.shape[1], text_rows.shape[1]
    pinned = gram_config(m, width, options.precision, options.architecture)
    m_tile = tile(m)
    text_gram = text.double() @ text.double().T
    sounds = torch.zeros(m_tile + 1, r_audio, dtype=torch.float64, device=w.device)
    sounds[:m] = audio[audio_rows[0]]
    audio_gram = sounds @ sounds[:-1].T
    state = empty(n_probes, state_size(m, width, pinned.fold), device=w.device)
    values = empty(n_probes, 3 * m_tile + 2 * pinned.fold, device=w.device)
    loss = empty(n_probes, device=w.device)
    shape = torch.tensor([m], dtype=torch.int32, device=w.device)
    c1, c2 = options.moment
    gram_kernel[(n_probes,)](
        text,
        text_rows,
        text_gram.float(),
        audio,
        audio_rows,
        audio_gram.float(),
        shape,
        w,
        v,
        state,
        values,
        schedule,
        loss,
        len(text),
        r_text,
        r_audio,
        len(schedule),
        1.0 / options.temperature,
        1.0 / (options.temperature * math.log(2)),
        float(options.dim),
        c1,
        c2,
        float(options.weight_decay),
        M=m_tile,
        BS=min(pinned.bs, m_tile),
        BN=min(pinned.bn, m_tile),
        D=width,
        BK=min(pinned.bk, m_tile),
        BF=min(pinned.bk, FEATURE_ALIGN),
        FOLD=pinned.fold,
        MINI=options.mini,
        SYMMETRIC=options.symmetric,
        SHIFTED=options.temperature >= MIN_SHIFTED,
        **options.decay,
        PRECISION=options.precision,
        ONCE="ieee" if options.precision == "ieee" or options.architecture.startswith("gfx") else "tf32x3",
        num_warps=pinned.warps,
        num_stages=1,
    )
    return loss


def state_size(m: int, width: int, fold: int = GramConfig.fold) -> int:
    """Numbers in the state of one probe."""
    rows = tile(m) + 1
    return 2 * (_DZ.value + fold) * rows * width + rows * tile(m)
