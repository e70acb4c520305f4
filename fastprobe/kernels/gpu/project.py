"""Heads times rows for many probes, in tiles:  Z = X W  and  |z|^2 of each row.

Under adam-mini the last update may not be written into W yet, since its size needs the norm of the whole gradient; W is
then read as decay W - rate M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import dot, empty

_GROUP = tl.constexpr(8)


@triton.jit
def project_kernel(
    table,  # float32 (N, r)
    rows,  # int32 (steps, n) with ROW_STRIDE 0 or per probe (P, n)
    step,  # int32 (1,)   which row list is used, times step_stride
    w,
    m,  # float32 (P, r, D); m only if LAZY
    state,  # float32 (P, 2)   rate, decay; only if LAZY
    z,  # float32 (P, n, D)
    squares,  # float32 (P, n, D / BN rounded up)   partial sums of z^2, only if NORMS
    n,
    r,
    n_columns,
    probe_rows,
    step_stride,  # n_columns: P D; probe_rows: n where each probe has its rows, else 0
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LAZY: tl.constexpr,
    NORMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Tiles of one group share rows and heads in L2.
    pid = tl.program_id(0)
    row_blocks = tl.cdiv(n, BM)
    column_blocks = tl.num_programs(0) // row_blocks
    first = pid // (_GROUP * column_blocks) * _GROUP
    high = tl.minimum(row_blocks - first, _GROUP)
    inside_group = pid % (_GROUP * column_blocks)
    i = (first + inside_group % high) * BM + tl.arange(0, BM)
    block = inside_group // high
    in_i = i < n
    k = tl.arange(0, BK)
    if BN >= D:  # a tile spans the heads of BN / D probes
        j = block.to(tl.int64) * BN + tl.arange(0, BN)
        in_j = j < n_columns
        probe = j // D
        d = j % D
        first_probe = block.to(tl.int64) * (BN // D)
    else:
        per_probe: tl.constexpr = (D + BN - 1) // BN
        first_probe = (block // per_probe).to(tl.int64)
        d = block % per_probe * BN + tl.arange(0, BN)
        in_j = d < D
        probe = first_probe + d * 0
    x = table + tl.load(rows + first_probe * probe_rows + tl.load(step).to(tl.int64) * step_stride + i, mask=in_i, other=0).to(tl.int64) * r
    head_at = probe * r * D + d
    acc = tl.zeros((BM, BN), tl.float32)
    if LAZY:
        rate = tl.load(state + first_probe * 2)
        decay = tl.load(state + first_probe * 2 + 1)
    for at in range(0, r, BK):
        cell = head_at[None, :] + ((at + k) * D)[:, None]
        head = tl.load(w + cell, mask=in_j[None, :], other=0.0)
        if LAZY:
            head = decay * head - rate * tl.load(m + cell, mask=in_j[None, :], other=0.0)
        chunk = tl.load(x[:, None] + (at + k)[None, :], mask=in_i[:, None], other=0.0)
        acc = dot(chunk, head, acc, PRECISION)
    tl.store(z + (probe * n * D + d)[None, :] + (i.to(tl.int64) * D)[:, None], acc, mask=in_i[:, None] & in_j[None, :])
    if NORMS:
        blocks: tl.constexpr = (D + BN - 1) // BN
        part = 0 if BN >= D else block % blocks
        tl.store(squares + (first_probe * n + i) * blocks + part, tl.sum(acc * acc, axis=1), mask=in_i)


def column_block(width: int, several: bool) -> int:
    """Columns of a tile: one probe's head or a block of it; with `several`, heads of a few probes side by side."""
    if width > 128:
        return 128 if width % 128 == 0 else 64
    return 128 if several else width


def norm_blocks(width: int) -> int:
    """How many partial squares `project` keeps of each row."""
    return -(-width // column_block(width, False))


def project(
    table: torch.Tensor,
    rows: torch.Tensor,
    w: torch.Tensor,
    *,
    precision: str,
    norms: bool = True,
    z: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
    moment: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    per_probe: bool = False,
):
    """Z = X W for every probe, and with `norms` the partial squares of its rows.

    Parameters
    ----------
    table : float32 (N, r)
    rows : int32 (steps, n), or (P, n) with `per_probe`
        Rows of `table`; without `per_probe` the same for all probes, list ``step[0]`` of them.
    w : float32 (P, r, D)
    moment, state : float32 (P, r, D), (P, 2), optional
        adam-mini's moment, rate and decay that W has yet to catch up with.

    Returns
    -------
    z : float32 (P, n, D)
    squares : float32 (P, n, blocks)
    """
    (n_probes, r, width), n = w.shape, rows.shape[1]
    bn = column_block(width, several=not (norms or per_probe or moment is not None))
    blocks = norm_blocks(width)
    z = empty(n_probes, n, width, device=w.device) if z is None else z
    if norms and squares is None:
        squares = empty(n_probes, n, blocks, device=w.device)
    step = torch.zeros(1, dtype=torch.int32, device=w.device) if step is None else step
    bm = 128 if n > 64 else max(triton.next_power_of_2(n), 16)
    if precision == "ieee":
        bm = min(bm, 64)
    columns = triton.cdiv(n_probes * width, bn) if bn >= width else n_probes * triton.cdiv(width, bn)
    project_kernel[(triton.cdiv(n, bm) * columns,)](
        table,
        rows,
        step,
        w,
        w if moment is None else moment,
        w if state is None else state,
        z,
        z if squares is None else squares,
        n,
        r,
        n_probes * width,
        n if per_probe else 0,
        0 if per_probe or len(rows) == 1 else n,
        D=width,
        BM=bm,
        BN=bn,
        BK=32,
        LAZY=moment is not None,
        NORMS=norms,
        PRECISION=precision,
        num_warps=8 if bm * bn >= 128 * 128 or precision == "ieee" else 4,
        num_stages=3,
    )
    return z, squares
