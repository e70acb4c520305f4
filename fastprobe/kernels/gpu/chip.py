"""What the trainers on the chip share, `onchip` and `stream`: which probes they hold, float16 operands, softmax and gradient.

Factors are float16: as many bits as tf32 has, in half the room, with sums in float32. Float16 has less range, so tables are
scaled by powers of two to rows of length about one (which changes no gradient of the heads), and G and dZ by a power of two
that follows the size of the gradient from step to step.

Written in Gluon for compute capability 9.0 (`wgmma`), where a program says itself what lies in registers and what in shared
memory. Gluon is experimental: `backend` takes these trainers with the Triton that they were executed with.
"""

from __future__ import annotations

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from ..reference import BETA2_MINI, EPS
from .block import MIN_SHIFTED

MAX_CLASSES, MAX_WIDTH = 128, 128
_EPS = gl.constexpr(EPS)
_B2 = gl.constexpr(BETA2_MINI)
_TINY = gl.constexpr(1e-30)
_NEVER = gl.constexpr(-60000.0)  # far below any score, and within float16
_LARGEST_SCALE = 4096.0
_LN2 = gl.constexpr(math.log(2.0))


def fits(n_classes: int, width: int, symmetric: bool, temperature: float, precision: str, architecture: str) -> bool:
    """Whether one program holds a probe: at most 128 train classes and d = 128, on a device with `wgmma`.

    Under the symmetric loss both directions share one exponential, so temperatures are those where nothing underflows.
    """
    return (
        n_classes <= MAX_CLASSES
        and width <= MAX_WIDTH
        and (not symmetric or temperature >= MIN_SHIFTED)
        and 1 / (temperature * math.log(2)) <= _LARGEST_SCALE
        and precision in ("tf32", "bf16")
        and architecture == "sm90"
    )


def unit_rows(table: torch.Tensor) -> torch.Tensor:
    """The table in float64, times the power of two that brings its longest row nearest to length one."""
    table = table.double()
    longest = torch.linalg.vector_norm(table, dim=1).max().clamp_min(EPS)
    return table * torch.exp2(-torch.round(torch.log2(longest)))


def typical_length(rows: torch.Tensor) -> float:
    """The power of two nearest to the median length of rows."""
    return 2.0 ** round(math.log2(max(float(torch.linalg.vector_norm(rows, dim=1).median()), EPS)))


@gluon.constexpr_function
def own_places(n: int, d: int) -> gl.SharedLinearLayout:
    """Shared memory for (n, d) numbers that only their own thread reads, in the layout of a product's sums.

    Thread t has four numbers at 16 t, four at 16 t + 16 x threads and so on: one address each, and no bank conflicts.
    """
    columns = [1 << b for b in range(d.bit_length() - 1)]
    rows = [1 << b for b in range(n.bit_length() - 1)]
    four, lanes = [[0, 1], [8, 0]], [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
    return gl.SharedLinearLayout(four + lanes + [[r, 0] for r in rows[4:]] + [[0, c] for c in columns[3:]])


@gluon.jit
def through_norm(z, inverse, dz, factor):
    """factor (dz - u <u, dz>) / |z| with u = z / |z|, put so that the compiler does not keep u from where it was first made."""
    against = -gl.sum(z * dz, axis=1) * inverse * inverse
    return (dz + z * against[:, None]) * (inverse * factor)[:, None]


@gluon.jit
def inverse_length(z):
    return 1.0 / gl.maximum(gl.sqrt_rn(gl.sum(z * z, axis=1)), _EPS)


@gluon.jit
def keep_rows(history, dz, m, N: gl.constexpr, D: gl.constexpr, LAYOUT: gl.constexpr):
    """Write dZ (N, D) of one side from shared memory, rows that exist."""
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    j = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    gl.store(history + (i[:, None] * D + j[None, :]), dz.load(LAYOUT), mask=(i < m)[:, None])


@gluon.jit
def follow_gradient(square_a, square_b, first_a, first_b):
    """The power of two that undoes how the gradient has grown or shrunk since the first step."""
    grown = gl.maximum(square_a / gl.maximum(first_a, _TINY), square_b / gl.maximum(first_b, _TINY))
    return gl.exp2((-0.5 * gl.log2(gl.minimum(gl.maximum(grown, 1e-7), 1e6))).to(gl.int32).to(gl.float32))


@gluon.jit
def floor_of_scores(ones, floor, m, scale, N: gl.constexpr, SHIFTED: gl.constexpr, LAYOUT: gl.constexpr):
    """Store (N, 16) factors whose product is what the scores begin with: the shift, and so little beyond m that 2^s is zero.

    One more small product, instead of a shift and a mask for each score.
    """
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    k = gl.arange(0, 16, gl.SliceLayout(0, LAYOUT))
    first = (k == 0)[None, :] & (i >= 0)[:, None]
    ones.store(gl.where(first, 1.0, 0.0).to(gl.float16))
    shift = -scale if SHIFTED else 0.0
    floor.store(gl.where(first, gl.where(i < m, shift, _NEVER)[:, None], 0.0).to(gl.float16))


@gluon.jit
def store_gradient(
    A,
    B,
    ones,
    floor,
    G,
    classes,
    n,
    m,
    follow,
    last,
    loss,
    N: gl.constexpr,
    SYMMETRIC: gl.constexpr,
    SHIFTED: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """G = follow (softmax(S) - Y) of unit rows in shared memory, B (n, D) and A (m, D), the latter over tau ln 2; after the last
    step the loss too.

    A and B may have just been written by their threads; G is there for all when it returns. `ones` and `floor` are those of
    `floor_of_scores`, `classes` is in the rows' layout. SYMMETRIC, the mean with the softmax over the sounds of each text,
    comes only SHIFTED.
    """
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
    fence_async_shared()
    gl.thread_barrier()
    s = warpgroup_mma(ones, floor.permute((1, 0)), gl.zeros([N, N], gl.float32, LAYOUT), use_acc=False, is_async=True)
    s = warpgroup_mma(B, A.permute((1, 0)), s, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    if SHIFTED:
        e = gl.exp2(s)
    else:
        top = gl.max(s, axis=1)
        e = gl.exp2(s - top[:, None])
    total = gl.sum(e, axis=1)
    own = (classes[:, None] == c[None, :]) & (i < n)[:, None]
    if SYMMETRIC:
        total_c = gl.sum(gl.where((i < n)[:, None], e, 0.0), axis=0)
    if last:
        # Of a shifted score 2^s is left, and cannot underflow; s itself would have to be kept.
        if SYMMETRIC:
            both = gl.log2(total) + gl.sum(gl.where(own, gl.log2(total_c)[None, :], 0.0), axis=1)
            lost = 0.5 * both - gl.log2(gl.sum(gl.where(own, e, 0.0), axis=1))
        elif SHIFTED:
            lost = gl.log2(total) - gl.log2(gl.sum(gl.where(own, e, 0.0), axis=1))
        else:
            lost = gl.log2(total) + top - gl.sum(gl.where(own, s, 0.0), axis=1)
        gl.store(loss, gl.sum(gl.where(i < n, lost, 0.0), axis=0) * _LN2 / n)
    if SYMMETRIC:
        # The loss of a text is seen from each of its n / m sounds.
        of_column = gl.where(c < m, 0.5 * follow * n / m / total_c, 0.0)
        e = e * gl.where((i < n)[:, None], (0.5 * follow / total)[:, None] + of_column[None, :], 0.0)
    else:
        e = e * gl.where(i < n, follow / total, 0.0)[:, None]
    G.store((e + gl.where(own, -follow, 0.0)).to(gl.float16))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def load_text_gram(text_gram, text_rows, n_texts, m, N: gl.constexpr, LAYOUT: gl.constexpr):
    """K of a probe's texts (N, N) from that of all texts, zero beyond m."""
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    j = gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
    row = gl.load(text_rows + i, mask=i < m, other=0)
    column = gl.load(text_rows + j, mask=j < m, other=0)
    return gl.load(text_gram + row[:, None] * n_texts + column[None, :], mask=(i < m)[:, None] & (j < m)[None, :], other=0.0)


@gluon.jit
def mini_step(moment, square, dim, rate, bias):
    """adam-mini's second moment with one more |g|_F^2, and its step per unit of the first."""
    moment = _B2 * moment + (1.0 - _B2) * (square / dim)
    return moment, rate / gl.maximum(gl.sqrt_rn(moment * bias), _TINY)
