"""What the trainers of one program per probe share: rows of a table, projection, and the softmax of a block of rows.

    E = 2^S      G = (softmax(S) - Y)      S = b a' / (tau ln 2), in base-2 logarithms

Unit rows have similarities in [-1, 1], so one shift by 1 / tau serves all rows and columns where nothing can underflow
(tau >= MIN_SHIFTED): no maximum is looked for, and both directions of the symmetric loss share one exponential. The
factor 1 / (n tau) is left to whoever takes the gradient on through the norm, where it costs nothing.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

from .common import dot

# What one tile holds.
MAX_CLASSES = 128
MAX_WIDTH = 128
# 2^(-2 / (tau ln 2)) is then above 8e-27, and a row's sum is a normal number.
MIN_SHIFTED = 1 / 30

_LN2 = tl.constexpr(math.log(2.0))
LOW = tl.constexpr(-1e30)  # under every score; finite, so that differences are numbers


def tile(rows: int) -> int:
    """Rows of a tile that holds so many: a power of two from 16 to 128."""
    return min(max(triton.next_power_of_2(rows), 16), MAX_CLASSES)


def _shape_class(n_classes: int, width: int, precision: str) -> tuple[int, int, str]:
    """What configurations are pinned for: train classes and width, at most, and the kind of products."""
    return (64 if n_classes <= 64 else 128, 64 if width <= 64 else 128, precision if precision in ("ieee", "tf32x3") else "matrix")


def choose(pinned: dict[tuple, Any], n_classes: int, width: int, precision: str, architecture: str) -> Any:
    """What a table pins for a shape class on an architecture ("sm80", "sm90", "sm100", "gfx942", ...)."""
    key = _shape_class(n_classes, width, precision)
    return pinned.get((*key, "gfx" if architecture.startswith("gfx") else architecture), pinned[key])


def holds(pinned: dict[tuple, Any], n_classes: int, width: int, precision: str) -> bool:
    """Whether one tile holds a shape, and a table has a configuration for it."""
    return n_classes <= MAX_CLASSES and width <= MAX_WIDTH and _shape_class(n_classes, width, precision) in pinned


@triton.jit
def rows_of(table, rows, at, n, r, ROWS: tl.constexpr):
    """Pointers to table rows ``rows[at ... at + ROWS)``, and which of them exist."""
    i = at + tl.arange(0, ROWS)
    inside = i < n
    return table + tl.load(rows + i, mask=inside, other=0).to(tl.int64) * r, inside


@triton.jit
def project_chunks(
    x, inside, w, m, rate, decay, r, ROWS: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, LAZY: tl.constexpr, PRECISION: tl.constexpr
):
    """Z = X W, with adam-mini's W <- decay W - rate M applied (and stored) on the way."""
    k = tl.arange(0, BK)
    d = tl.arange(0, D)
    z = tl.zeros((ROWS, D), tl.float32)
    for at in range(0, r, BK):
        cell = (at + k)[:, None] * D + d[None, :]
        head = tl.load(w + cell)
        if LAZY:
            head = decay * head - rate * tl.load(m + cell)
            tl.store(w + cell, head)
        rows = tl.load(x[:, None] + (at + k)[None, :], mask=inside[:, None], other=0.0)
        z = dot(rows, head, z, PRECISION)
    return z


@triton.jit
def text_bias(in_c, scale):
    """What is added to the scores of each text: minus the shift, which keeps the highest small; -inf where there is no text."""
    return tl.where(in_c, -scale, float("-inf"))


@triton.jit
def block_scores(b, a, scale, bias, PRECISION: tl.constexpr):
    """S (BS, M) of unit rows b (BS, D) and a (M, D); scale is 1 / (tau ln 2)."""
    return dot(b, tl.trans(a), tl.zeros((b.shape[0], a.shape[0]), tl.float32), PRECISION) * scale + bias[None, :]


@triton.jit
def add_columns(s, in_i, top, total, SHIFTED: tl.constexpr):
    """Maxima and sums over rows, of each text, with one more block; `top` starts low and stays there if SHIFTED."""
    if SHIFTED:
        return top, total + tl.sum(tl.where(in_i[:, None], tl.exp2(s), 0.0), axis=0)
    else:
        s = tl.where(in_i[:, None], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, axis=0))
        return higher, total * tl.exp2(top - higher) + tl.sum(tl.exp2(s - higher[None, :]), axis=0)


@triton.jit
def block_gradient(s, own, in_i, in_c, top_c, total_c, per_class, SYMMETRIC: tl.constexpr, SHIFTED: tl.constexpr):
    """G (BS, M), zero in rows and columns that do not exist.

    Parameters
    ----------
    s : float32 (BS, M)
    own : bool (BS, M)
        The text of each row; false in rows that do not exist.
    top_c, total_c : float32 (M,)
        From `add_columns` over all rows; only if SYMMETRIC, as is `per_class`, the rows of each text.
    """
    if SHIFTED:
        e = tl.exp2(s)
    else:
        e = tl.exp2(s - tl.max(s, axis=1)[:, None])
    of_row = tl.where(in_i, 1.0 / tl.sum(e, axis=1), 0.0)
    if SYMMETRIC:
        # The text-to-sound loss of a row is seen from its text; each text has per_class rows.
        of_column = per_class / tl.where(in_c, total_c, 1.0)
        if SHIFTED:
            g = e * tl.where(in_i[:, None], 0.5 * of_row[:, None] + (0.5 * of_column)[None, :], 0.0)
        else:
            seen = tl.where(in_i[:, None], tl.exp2(s - top_c[None, :]), 0.0)
            g = 0.5 * (e * of_row[:, None] + seen * of_column[None, :])
    else:
        g = e * of_row[:, None]
    return tl.where(own, g - 1.0, g)


@triton.jit
def row_losses(s, own, in_c, top_c, total_c, SYMMETRIC: tl.constexpr, SHIFTED: tl.constexpr):
    """-log of the softmax at each row's own text, nats (BS,); SYMMETRIC: the mean of both directions.

    For the last step alone: sums of `block_gradient` are formed again, lest they or the scores be kept in every step.
    """
    top = tl.max(s, axis=1)
    log_sum = top + tl.log2(tl.sum(tl.exp2(s - top[:, None]), axis=1))
    if SYMMETRIC:
        log_sum_c = tl.log2(tl.where(in_c, total_c, 1.0)) + (0.0 if SHIFTED else top_c)
        log_sum = 0.5 * (log_sum + tl.sum(tl.where(own, log_sum_c[None, :], 0.0), axis=1))
    return (log_sum - tl.sum(tl.where(own, s, 0.0), axis=1)) * _LN2
