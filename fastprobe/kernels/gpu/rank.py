"""Ranks of many queries among the texts of many probes, without a sort and without the score matrix.

    rank_i = C - #{c : s(c, i) < s(y_i, i)}        s(c, i) = <z_i, a_c>

over all texts, and over those of the unseen classes. The length of a query changes no rank, so only the gallery is
normalised. The score of the true class comes out of the same tile arithmetic as its rivals', so exact ties tie, and
they count against us; a NaN ranks last. Corrected for hubs, `rank_csls` keeps the score matrix: a text's mean needs the
scores of all queries.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .common import dot, empty
from .project import norm_blocks

_EPS = tl.constexpr(1e-12)
BQ = 64  # queries of a program


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
    unseen,  # int32 (P, C)             1 where a text is that of an unseen class, else 0
    ranks,  # int32 (P, rank_stride)   out, columns 0 ... Q-1 of what is passed
    ranks_unseen,  # likewise
    n_queries,
    n_gallery,
    n_unseen,
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
    unseen += p * n_gallery
    y = tl.load(classes + q, mask=in_q, other=0)
    y = tl.load(permutations + p * n_gallery + y, mask=in_q, other=0)
    c = tl.arange(0, BC)
    if ONE_TILE:
        s = _scores(z, in_q, gallery, squares, c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
        true = tl.sum(tl.where(c[None, :] == y[:, None], s, 0.0), axis=1)
        less = ((s < true[:, None]) & (c < n_gallery)[None, :]).to(tl.int32)
        below = tl.sum(less, axis=1)
        below_unseen = tl.sum(less * tl.load(unseen + c, mask=c < n_gallery, other=0)[None, :], axis=1)
    else:
        true = tl.zeros((BQ,), tl.float32)
        for at in range(0, n_gallery, BC):
            s = _scores(z, in_q, gallery, squares, at + c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
            true += tl.sum(tl.where((at + c)[None, :] == y[:, None], s, 0.0), axis=1)
        below = tl.zeros((BQ,), tl.int32)
        below_unseen = tl.zeros((BQ,), tl.int32)
        for at in range(0, n_gallery, BC):
            s = _scores(z, in_q, gallery, squares, at + c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION)
            less = ((s < true[:, None]) & (at + c < n_gallery)[None, :]).to(tl.int32)
            below += tl.sum(less, axis=1)
            below_unseen += tl.sum(less * tl.load(unseen + at + c, mask=at + c < n_gallery, other=0)[None, :], axis=1)
    tl.store(ranks + p * rank_stride + q, n_gallery - below, mask=in_q)
    tl.store(ranks_unseen + p * rank_stride + q, n_unseen - below_unseen, mask=in_q)


@triton.jit
def score_kernel(
    z,  # float32 (P, Q, D)        projected queries
    z_squares,  # float32 (P, Q, blocks)   their partial squares
    gallery,  # float32 (P, C, D)        projected texts, not permuted
    squares,  # float32 (P, C, blocks)   their partial squares
    scores,  # float32 (P, score_stride, C)   out, rows 0 ... Q-1 of what is passed
    n_queries,
    n_gallery,
    score_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    BQ: tl.constexpr,
    BC: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks = tl.cdiv(n_queries, BQ)
    p = (tl.program_id(0) // blocks).to(tl.int64)
    q = tl.program_id(0) % blocks * BQ + tl.arange(0, BQ)
    in_q = q < n_queries
    z += (p * n_queries + q) * D
    gallery += p * n_gallery * D
    squares += p * n_gallery * BLOCKS
    inverse = inverse_lengths(z_squares + p * n_queries * BLOCKS, q, in_q, BLOCKS)
    rows = scores + (p * score_stride + q) * n_gallery
    for at in range(0, n_gallery, BC):
        c = at + tl.arange(0, BC)
        s = _scores(z, in_q, gallery, squares, c, n_gallery, D, BD, BQ, BC, BLOCKS, PRECISION) * inverse[:, None]
        tl.store(rows[:, None] + c[None, :], s, mask=in_q[:, None] & (c < n_gallery)[None, :])


def _launch(n_gallery: int, width: int, precision: str) -> dict[str, Any]:
    """What both kernels are launched with; a function of shapes alone."""
    return {
        "D": width,
        "BD": min(width, 64),
        "BQ": BQ,
        "BC": min(max(triton.next_power_of_2(n_gallery), 16), 64 if precision in ("ieee", "tf32x3") or width > 128 else 128),
        "BLOCKS": norm_blocks(width),
        "PRECISION": precision,
        "num_warps": 8 if precision == "ieee" else 4,
        "num_stages": 2 if width <= 64 else 1,
    }


def unseen_texts(permutations: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """1 where a text is that of an unseen class, else 0: int32 (P, C), in the texts' own order.

    Parameters
    ----------
    permutations : int32 (P, C)
    gallery : int64 (G,)
        The unseen classes.
    """
    out = torch.zeros_like(permutations)
    return out.scatter_(1, permutations[:, gallery].long(), 1)


def rank(
    z: torch.Tensor,
    gallery: torch.Tensor,
    squares: torch.Tensor,
    permutations: torch.Tensor,
    classes: torch.Tensor,
    unseen: torch.Tensor,
    n_unseen: int,
    *,
    precision: str,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of the true text of each query among all texts, and among those of the unseen classes: int32 (P, Q), from 1 (best).

    Parameters
    ----------
    z : float32 (P, Q, D)
        Projected queries; their length does not matter.
    gallery, squares : float32 (P, C, D), (P, C, blocks)
        What `project` gives for all texts in their own order.
    permutations : int32 (P, C)
    classes : int32 (Q,)
    unseen : int32 (P, C)
        What `unseen_texts` gives.
    n_unseen : int
        Unseen classes.
    out : two of int32 (P, Q), optional
        Where to write; their rows may be a slice of a wider matrix, the same in both.
    """
    (n_probes, n_queries, width), n_gallery = z.shape, gallery.shape[1]
    ranks, ranks_unseen = out or [empty(n_probes, n_queries, device=z.device, dtype=torch.int32) for _ in range(2)]
    launch = _launch(n_gallery, width, precision)
    rank_kernel[(n_probes * triton.cdiv(n_queries, BQ),)](
        z,
        gallery,
        squares,
        permutations,
        classes,
        unseen,
        ranks,
        ranks_unseen,
        n_queries,
        n_gallery,
        n_unseen,
        ranks.stride(0),
        ONE_TILE=n_gallery <= launch["BC"],
        **launch,
    )
    return ranks, ranks_unseen


def score(
    z: torch.Tensor,
    z_squares: torch.Tensor,
    gallery: torch.Tensor,
    squares: torch.Tensor,
    *,
    precision: str,
    out: torch.Tensor,
) -> None:
    """Cosines s(c, i) of queries and texts, in the texts' own order, into float32 (P, Q, C).

    Parameters
    ----------
    z, z_squares : float32 (P, Q, D), (P, Q, blocks)
        What `project` gives for the queries.
    gallery, squares : float32 (P, C, D), (P, C, blocks)
        What it gives for all texts.
    out : float32 (P, Q, C)
        It may be a slice of the rows of a taller array.
    """
    (n_probes, n_queries, width), n_gallery = z.shape, gallery.shape[1]
    score_kernel[(n_probes * triton.cdiv(n_queries, BQ),)](
        z,
        z_squares,
        gallery,
        squares,
        out,
        n_queries,
        n_gallery,
        out.stride(0) // n_gallery,
        **_launch(n_gallery, width, precision),
    )


def rank_csls(
    scores: torch.Tensor, permutations: torch.Tensor, classes: torch.Tensor, unseen: torch.Tensor, n_unseen: int, neighbours: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rank`, of scores corrected for hubs:  s'(c, i) = 2 s(c, i) - mean of the k largest s(c, .).

    The mean that `csls_scores` takes of a query is the same for all its texts, and left out. Nothing here is summed in an
    order that the number of probes could change: a mean is k additions, and counts are exact.

    Parameters
    ----------
    scores : float32 (P, Q, C)
        What `score` gives; overwritten.
    """
    top = scores.topk(neighbours, dim=1).values
    hubs = top[:, 0].clone()
    for k in range(1, neighbours):
        hubs += top[:, k]
    scores.mul_(2).sub_((hubs / neighbours)[:, None])
    true = scores.gather(2, permutations[:, classes.long()].long()[:, :, None])
    below = scores < true
    among = below & unseen.bool()[:, None]
    return scores.shape[2] - below.sum(2, dtype=torch.int32), n_unseen - among.sum(2, dtype=torch.int32)
