"""Ranks of many queries among the texts of many probes, without a sort and without the score matrix.

    rank_i = C - #{c : s(c, i) < s(y_i, i)}        s(c, i) = <z_i, a_c>

The length of a query changes no rank, so only the gallery is normalised. The score of the true class comes out
of the same tile arithmetic as its rivals', so exact ties tie, and they count against us; a NaN ranks last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import dot, empty
from .project import norm_blocks

_EPS = tl.constexpr(1e-12)


@triton.jit
def inverse_lengths(squares, row, inside, BLOCKS: tl.constexpr):
    """1 / max(|z|, eps) of rows, from the partial squares that `project` left."""
    total = tl.zeros(row.shape, tl.float32)
    for block in tl.static_range(BLOCKS):
        total += tl.load(squares + row * BLOCKS + block, mask=inside, other=0.0)
    return 1.0 / tl.maximum(tl.sqrt_rn(total), _EPS)


@triton.jit
def _scores(
    z,
    in_q,
    gallery,
    squares,
    c,
    n_gallery,
    D: tl.constexpr,
    BD: tl.constexpr,
    BQ: tl.constexpr,
    BC: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    in_c = c < n_gallery
    k = tl.arange(0, BD)
    s = tl.zeros((BQ, BC), tl.float32)
    for at in range(0, D, BD):
        zq = tl.load(z[:, None] + (at + k)[None, :], mask=in_q[:, None], other=0.0)
        zg = tl.load(gallery + c[None, :] * D + (at + k)[:, None], mask=in_c[None, :], other=0.0)
        s = dot(zq, zg, s, PRECISION)
    return s * inverse_lengths(squares, c, in_c, BLOCKS)[None, :]


@triton.jit
def rank_kernel(
    z,  # float32 (P, Q, D)        projected queries
    gallery,  # float32 (P, C, D)        projected texts, not permuted
    squares,  # float32 (P, C, blocks)   their partial squares
    permutations,  # int32 (P, C)             class c has text permutations[p, c]
    classes,  # int32 (Q,)               class of each query
    ranks,  # int32 (P, rank_stride)   out, columns 0 ... Q-1 of what is passed
    n_queries,
    n_gallery,
    rank_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    BQ: tl.constexpr,
    BC: tl.constexpr,
    BLOCKS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks = tl.cdiv(n_queries, BQ)
    p = (tl.program_id(0) // blocks).to(tl.int64)
    q = tl.program_id(0) % blocks * BQ + tl.arange(0, BQ)
    in_q = q < n_queries
    z += (p * n_queries + q) * D
    gallery += p * n_gallery * D
    squares += p * n_gallery * BLOCKS
    y = tl.load(classes + q, mask=in_q, other=0)
    y = tl.load(permutations + p * n_gallery + y, mask=in_q, other=0)
    c = tl.arange(0, BC)
    if ONE_TILE:
        s = _scores(z, in_q, gallery, squares, c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
        true = tl.sum(tl.where(c[None, :] == y[:, None], s, 0.0), axis=1)
        below = tl.sum(((s < true[:, None]) & (c < n_gallery)[None, :]).to(tl.int32), axis=1)
    else:
        true = tl.zeros((BQ,), tl.float32)
        for at in range(0, n_gallery, BC):
            s = _scores(z, in_q, gallery, squares, at + c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
            true += tl.sum(tl.where((at + c)[None, :] == y[:, None], s, 0.0), axis=1)
        below = tl.zeros((BQ,), tl.int32)
        for at in range(0, n_gallery, BC):
            s = _scores(z, in_q, gallery, squares, at + c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
            below += tl.sum(((s < true[:, None]) & (at + c < n_gallery)[None, :]).to(tl.int32), axis=1)
    tl.store(ranks + p * rank_stride + q, n_gallery - below, mask=in_q)


def rank(
    z: torch.Tensor,
    gallery: torch.Tensor,
    squares: torch.Tensor,
    permutations: torch.Tensor,
    classes: torch.Tensor,
    *,
    precision: str,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rank of the true text of each query among all texts, int32 (P, Q), from 1 (best).

    Parameters
    ----------
    z : float32 (P, Q, D)
        Projected queries; their length does not matter.
    gallery, squares : float32 (P, C, D), (P, C, blocks)
        What `project` gives for all texts in their own order.
    permutations : int32 (P, C)
    classes : int32 (Q,)
    out : int32 (P, Q), optional
        Where to write; its rows may be a slice of a wider matrix.
    """
    (n_probes, n_queries, width), n_gallery = z.shape, gallery.shape[1]
    out = empty(n_probes, n_queries, device=z.device, dtype=torch.int32) if out is None else out
    ieee = precision == "ieee"
    bc = min(max(triton.next_power_of_2(n_gallery), 16), 64 if precision in ("ieee", "tf32x3") or width > 128 else 128)
    bq = 64
    rank_kernel[(n_probes * triton.cdiv(n_queries, bq),)](
        z,
        gallery,
        squares,
        permutations,
        classes,
        out,
        n_queries,
        n_gallery,
        out.stride(0),
        D=width,
        BD=min(width, 64),
        BQ=bq,
        BC=bc,
        BLOCKS=norm_blocks(width),
        ONE_TILE=n_gallery <= bc,
        PRECISION=precision,
        num_warps=8 if ieee else 4,
        num_stages=2 if width <= 64 else 1,
    )
    return out
