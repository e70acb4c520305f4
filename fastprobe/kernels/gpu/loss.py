"""Contrastive loss and its gradients in tiles: the n x m score matrix is never stored, only O(n + m) sums of it.

    s(i, c) = <x_i, y_c> / tau        lse_i = log sum_c exp s(i, c)        L = 1/n sum_i (lse_i - s(i, y_i))
    dx_i = sum_c G_ic y_c             G = (w_r exp(s - lse_row) + w_c exp(s - lse_column) - w_o onehot) / (n tau)

One pair of kernels serves both sides and both directions of the loss: "rows" are what a program owns, "columns"
what it runs over, and a row and a column belong together where their keys are equal. For the trainer, which
keeps projections z rather than unit vectors, NORMALISE divides scores by the lengths and takes the gradient
through the norm, dz = (da - a <a, da>) / |z|, where <a_i, da_i> = sum_c G_ic s_ic tau comes from the same tiles.

An lse is kept as two numbers, the top score and the log of the sum of exp(s - top): at low temperatures both are large beside
their differences, and their sum would lose the last digits. What is below the top comes from the product in one multiply-add, by
name, because the sums and the gradient must round alike. A score has the same bits from either side, since its
factors are multiplied in an order that does not know which side is the row.

Online softmax: Milakov & Gimelshein, arXiv 1805.02867.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...errors import InputError
from .common import architecture, dot, empty, precisions
from .rank import inverse_lengths

Pair = tuple[torch.Tensor, torch.Tensor]  # an lse: its top, and the log of the sum of exp of what lies below it


@triton.jit
def _block(x, at, inside, D: tl.constexpr, BD: tl.constexpr):
    """Features ``at ... at + BD`` of rows; x points to the rows."""
    k = at + tl.arange(0, BD)
    if D % BD == 0:
        return tl.load(x[:, None] + k[None, :], mask=inside[:, None], other=0.0)
    else:
        return tl.load(x[:, None] + k[None, :], mask=inside[:, None] & (k < D)[None, :], other=0.0)


@triton.jit
def _tile(x, first, in_x, y, in_y, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """<x_i, y_c>; `first` holds the rows' first features, read once for all columns."""
    s = dot(first, tl.trans(_block(y, 0, in_y, D, BD)), tl.zeros((BM, BN), tl.float32), PRECISION)
    if D > BD:
        # A loop, not unrolled: all blocks of the rows would be kept in shared memory.
        for at in range(BD, D, BD):
            # A sum of the blocks' sums: one long sum of a wide row would lose thrice as much to rounding. Put as a difference, because
            # Triton takes a sum with a product for one long sum.
            more = dot(_block(x, at, in_x, D, BD), tl.trans(_block(y, at, in_y, D, BD)), tl.zeros((BM, BN), tl.float32), PRECISION)
            s = more - (-s)
    return s


@triton.jit
def _factor(squares, rows, inside, root, BLOCKS: tl.constexpr, NORMALISE: tl.constexpr):
    """sqrt(1 / tau) / |z| of rows, by which either side's products are multiplied if NORMALISE."""
    if NORMALISE:
        return root * inverse_lengths(squares, rows, inside, BLOCKS)
    else:
        return root


@triton.jit
def _factors(products, of_row, of_column, inverse_tau, NORMALISE: tl.constexpr):
    """What makes scores of products."""
    if NORMALISE:
        return of_row[:, None] * of_column[None, :]
    else:
        return tl.zeros_like(products) + inverse_tau


@triton.jit
def lse_kernel(
    rows,
    columns,  # (P, n, D), (P, m, D)
    row_squares,
    column_squares,  # float32 (P, n, BLOCKS), (P, m, BLOCKS); only if NORMALISE
    row_keys,
    column_keys,  # int32 (P or 1, n), (P or 1, m); only if TRUE
    tops,
    log_totals,  # float32 (P, n)
    true,  # float32 (P, n); only if TRUE
    n,
    m,
    row_key_stride,
    column_key_stride,
    inverse_tau,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BLOCKS: tl.constexpr,
    NORMALISE: tl.constexpr,
    TRUE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """log sum exp of each row of scores in two numbers, and the score of the row's own column."""
    blocks = tl.cdiv(n, BM)
    p = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    in_i = i < n
    x = rows + (p * n + i) * D
    first = _block(x, 0, in_i, D, BD)
    root = tl.sqrt_rn(inverse_tau)
    of_row = _factor(row_squares, p * n + i, in_i, root, BLOCKS, NORMALISE)
    if TRUE:
        key = tl.load(row_keys + p * row_key_stride + i, mask=in_i, other=-1)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    own = tl.zeros((BM,), tl.float32)
    for at in range(0, m, BN):
        c = at + tl.arange(0, BN)
        in_c = c < m
        of_column = _factor(column_squares, p * m + c, in_c, root, BLOCKS, NORMALISE)
        s = _tile(x, first, in_i, columns + (p * m + c) * D, in_c, D, BD, BM, BN, PRECISION)
        factors = _factors(s, of_row, of_column, inverse_tau, NORMALISE)
        products, s = s, s * factors
        if TRUE:
            column_key = tl.load(column_keys + p * column_key_stride + c, mask=in_c, other=-2)
            own += tl.sum(tl.where(key[:, None] == column_key[None, :], s, 0.0), axis=1)
        higher = tl.maximum(top, tl.max(tl.where(in_c[None, :], s, float("-inf")), axis=1))
        e = tl.where(in_c[None, :], tl.exp(tl.fma(products, factors, -higher[:, None])), 0.0)
        total = total * tl.exp(top - higher) + tl.sum(e, axis=1)
        top = higher
    tl.store(tops + p * n + i, top, mask=in_i)
    tl.store(log_totals + p * n + i, tl.log(total), mask=in_i)
    if TRUE:
        tl.store(true + p * n + i, own, mask=in_i)


@triton.jit
def gradient_kernel(
    rows,
    columns,  # (P, n, D), (P, m, D)
    row_squares,
    column_squares,  # float32 (P, n, BLOCKS), (P, m, BLOCKS); only if NORMALISE
    row_keys,
    column_keys,  # int32 (P or 1, n), (P or 1, m)
    row_tops,
    row_log_totals,  # float32 (P, n); only if ROW_SOFTMAX
    column_tops,
    column_log_totals,  # float32 (P, m); only if COLUMN_SOFTMAX
    upstream,  # float32 (P,)   gradient of what follows, over n tau
    out,  # (P, n, D)
    n,
    m,
    row_key_stride,
    column_key_stride,
    inverse_tau,
    row_weight,
    column_weight,
    own_weight,
    D: tl.constexpr,
    BD: tl.constexpr,
    BO: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BLOCKS: tl.constexpr,
    NORMALISE: tl.constexpr,
    ROW_SOFTMAX: tl.constexpr,
    COLUMN_SOFTMAX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BO features of the gradient of BM rows. Scores are recomputed for every BO features of a wider row."""
    outs: tl.constexpr = (D + BO - 1) // BO
    blocks = tl.cdiv(n, BM) * outs
    p = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks // outs * BM + tl.arange(0, BM)
    o = tl.program_id(0) % outs * BO
    in_i = i < n
    x = rows + (p * n + i) * D
    first = _block(x, 0, in_i, D, BD)
    root = tl.sqrt_rn(inverse_tau)
    of_row = _factor(row_squares, p * n + i, in_i, root, BLOCKS, NORMALISE)
    key = tl.load(row_keys + p * row_key_stride + i, mask=in_i, other=-1)
    if ROW_SOFTMAX:
        row_top = tl.load(row_tops + p * n + i, mask=in_i, other=0.0)
        row_log_total = tl.load(row_log_totals + p * n + i, mask=in_i, other=0.0)
    weight = tl.load(upstream + p)
    radial = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BO), tl.float32)
    for at in range(0, m, BN):
        c = at + tl.arange(0, BN)
        in_c = c < m
        y = columns + (p * m + c) * D
        of_column = _factor(column_squares, p * m + c, in_c, root, BLOCKS, NORMALISE)
        products = _tile(x, first, in_i, y, in_c, D, BD, BM, BN, PRECISION)
        factors = _factors(products, of_row, of_column, inverse_tau, NORMALISE)
        column_key = tl.load(column_keys + p * column_key_stride + c, mask=in_c, other=-2)
        g = tl.where(key[:, None] == column_key[None, :], -own_weight, 0.0)
        if ROW_SOFTMAX:
            g += row_weight * tl.exp(tl.fma(products, factors, -row_top[:, None]) - row_log_total[:, None])
        if COLUMN_SOFTMAX:
            column_top = tl.load(column_tops + p * m + c, mask=in_c, other=0.0)
            column_log_total = tl.load(column_log_totals + p * m + c, mask=in_c, other=0.0)
            g += column_weight * tl.exp(tl.fma(products, factors, -column_top[None, :]) - column_log_total[None, :])
        g = tl.where(in_i[:, None] & in_c[None, :], g * weight, 0.0)
        if NORMALISE:
            radial += tl.sum(g * (products * factors), axis=1)
            g = g * of_column[None, :]
        acc = dot(g, _block(y, o, in_c, D, BO), acc, PRECISION)
    if NORMALISE:
        inverse = of_row / root
        acc = (acc / root - _block(x, o, in_i, D, BO) * (inverse * radial / inverse_tau)[:, None]) * inverse[:, None]
    k = o + tl.arange(0, BO)
    tl.store(out + ((p * n + i) * D)[:, None] + k[None, :], acc, mask=in_i[:, None] & (k < D)[None, :])


@triton.jit
def mean_kernel(tops, log_totals, true, column_tops, column_log_totals, loss, n, per_class, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr):
    """mean(lse - true), or its average with the other direction's; one program per probe, a fixed order."""
    p = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        inside = i < n
        own = tl.load(true + p * n + i, mask=inside, other=0.0)
        value = (tl.load(tops + p * n + i, mask=inside, other=0.0) - own) + tl.load(log_totals + p * n + i, mask=inside, other=0.0)
        if SYMMETRIC:
            column = p * (n // per_class) + i // per_class
            column_top = tl.load(column_tops + column, mask=inside, other=0.0)
            column_log_total = tl.load(column_log_totals + column, mask=inside, other=0.0)
            value = 0.5 * (value + ((column_top - own) + column_log_total))
        total += value
    tl.store(loss + p, tl.sum(total, axis=0) / n)


def _tiles(width: int, precision: str) -> dict[str, int]:
    """Block shapes: BD features per product, BM rows, BN columns. Unmeasured; chosen by registers and spills."""
    bd = min(max(triton.next_power_of_2(width), 16), 64 if precision == "ieee" or width > 128 else 128)
    return {"BD": bd, "BM": 64, "BN": 32 if precision == "ieee" else 64}


def _launch(width: int, precision: str) -> dict[str, int]:
    # AMD's warps have 64 lanes: four of them keep in registers what eight would spill (456 loads and stores, or 8).
    many = (precision == "ieee" or 64 < width <= 128) and not torch.version.hip
    return {"num_warps": 8 if many else 4, "num_stages": 2 if width <= 128 else 1}


def _pair(n_probes: int, n: int, device: torch.device) -> Pair:
    return empty(n_probes, n, device=device), empty(n_probes, n, device=device)


def log_sum_exp(
    rows, columns, row_keys, column_keys, temperature, precision, *, row_squares=None, column_squares=None, lse=None, true=None
):
    """Log sum over columns of exp scores, its top and the log of the rest, two of (P, n), into `lse`; each row's own score into `true`."""
    (n_probes, n, width), m = rows.shape, columns.shape[1]
    lse = _pair(n_probes, n, rows.device) if lse is None else lse
    tiles = _tiles(width, precision)
    normalise = row_squares is not None
    lse_kernel[(n_probes * triton.cdiv(n, tiles["BM"]),)](
        rows,
        columns,
        row_squares if normalise else lse[0],
        column_squares if normalise else lse[0],
        row_keys,
        column_keys,
        *lse,
        lse[0] if true is None else true,
        n,
        m,
        _key_stride(row_keys),
        _key_stride(column_keys),
        1.0 / temperature,
        D=width,
        **tiles,
        BLOCKS=row_squares.shape[2] if normalise else 1,
        NORMALISE=normalise,
        TRUE=true is not None,
        PRECISION=precision,
        **_launch(width, precision),
    )
    return lse


def row_gradient(
    rows,
    columns,
    row_keys,
    column_keys,
    upstream,
    out,
    temperature,
    precision,
    *,
    row_lse=None,
    column_lse=None,
    row_weight=1.0,
    column_weight=1.0,
    own_weight=1.0,
    row_squares=None,
    column_squares=None,
):
    """(P, n, D): gradient with respect to `rows`, into `out`; a direction without its lse has no weight."""
    (n_probes, n, width), m = rows.shape, columns.shape[1]
    tiles, normalise = _tiles(width, precision), row_squares is not None
    bo = 128 if width > 128 and precision != "ieee" else tiles["BD"]
    programs = n_probes * triton.cdiv(n, tiles["BM"]) * triton.cdiv(width, bo)
    gradient_kernel[(programs,)](
        rows,
        columns,
        row_squares if normalise else upstream,
        column_squares if normalise else upstream,
        row_keys,
        column_keys,
        *((upstream, upstream) if row_lse is None else row_lse),
        *((upstream, upstream) if column_lse is None else column_lse),
        upstream,
        out,
        n,
        m,
        _key_stride(row_keys),
        _key_stride(column_keys),
        1.0 / temperature,
        float(row_weight),
        float(column_weight),
        float(own_weight),
        D=width,
        BO=bo,
        **tiles,
        BLOCKS=row_squares.shape[2] if normalise else 1,
        NORMALISE=normalise,
        ROW_SOFTMAX=row_lse is not None,
        COLUMN_SOFTMAX=column_lse is not None,
        PRECISION=precision,
        **_launch(width, precision),
    )
    return out


def mean_loss(lse: Pair, true: torch.Tensor, lse_columns: Pair | None = None, per_class: int = 1) -> torch.Tensor:
    """float32 (P,): mean over rows of lse - true; with `lse_columns`, of (P, n / per_class), of both directions."""
    n_probes, n = lse[0].shape
    loss = empty(n_probes, device=lse[0].device)
    mean_kernel[(n_probes,)](
        *lse,
        true,
        *(lse if lse_columns is None else lse_columns),
        loss,
        n,
        per_class,
        SYMMETRIC=lse_columns is not None,
        BLOCK=512,
        num_warps=4,
    )
    return loss


def _key_stride(keys: torch.Tensor) -> int:
    return 0 if len(keys) == 1 else keys.shape[1]


def _like(x: torch.Tensor) -> torch.Tensor:
    return empty(*x.shape, device=x.device, dtype=x.dtype)


class _ContrastiveLoss(torch.autograd.Function):
    """text (P, m, d), audio (P, n, d), labels int32 (P or 1, n) -> loss float32 (P,)."""

    @staticmethod
    def forward(ctx, text, audio, labels, temperature, precision):
        classes = torch.arange(text.shape[1], dtype=torch.int32, device=text.device)[None]
        true = empty(*audio.shape[:2], device=text.device)
        lse = log_sum_exp(audio, text, labels, classes, temperature, precision, true=true)
        ctx.save_for_backward(text, audio, labels, classes, *lse)
        ctx.temperature, ctx.precision = temperature, precision
        return mean_loss(lse, true)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        text, audio, labels, classes, *lse = ctx.saved_tensors
        upstream = (upstream.float() / (audio.shape[1] * ctx.temperature)).contiguous()
        daudio = dtext = None
        if ctx.needs_input_grad[1]:
            daudio = row_gradient(audio, text, labels, classes, upstream, _like(audio), ctx.temperature, ctx.precision, row_lse=lse)
        if ctx.needs_input_grad[0]:
            dtext = row_gradient(text, audio, classes, labels, upstream, _like(text), ctx.temperature, ctx.precision, column_lse=lse)
        return dtext, daudio, None, None, None


_DTYPES = {torch.float32: None, torch.bfloat16: "bf16", torch.float16: "fp16"}


def contrastive_loss(
    text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float = 0.25, precision: str | None = None
) -> torch.Tensor:
    """See `fastprobe.kernels.contrastive_loss`.

    Memory beyond inputs and gradients is O(n + m) per probe. Operands may be float32, bfloat16 or float16; sums, and
    the loss, are float32.

    Parameters
    ----------
    precision : {"ieee", "tf32x3", "tf32", "bf16"}, optional
        Of products of float32 operands. By default what PyTorch is set to use for its own products.
    """
    if text.dtype != audio.dtype or text.dtype not in _DTYPES:
        raise InputError(
            f"`text` and `audio` must share a dtype of float32, bfloat16 or float16; got {text.dtype} and {audio.dtype}. Convert them."
        )
    if not text.device == audio.device == labels.device:
        raise InputError(
            f"`text`, `audio` and `labels` must be on one device; got {text.device}, {audio.device} and {labels.device}. Move them."
        )
    known = precisions(architecture(text.device))
    if precision is None:
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 and "tf32" in known else "ieee"
    elif precision not in known:
        raise InputError(f"`precision` must be one of {', '.join(known)} on {architecture(text.device)}; got {precision!r}.")
    precision = _DTYPES[text.dtype] or precision
    leading = torch.broadcast_shapes(text.shape[:-2], audio.shape[:-2])
    (m, d), n = text.shape[-2:], audio.shape[-2]
    flat_text = text.expand(*leading, m, d).reshape(-1, m, d).contiguous()
    flat_audio = audio.expand(*leading, n, d).reshape(-1, n, d).contiguous()
    keys = labels.to(torch.int32)
    keys = keys.expand(*leading, n).reshape(-1, n) if keys.dim() > 1 else keys[None]
    with torch.cuda.device_of(text):  # Triton launches on the current device; backward gets its own from autograd
        loss = _ContrastiveLoss.apply(flat_text, flat_audio, keys.contiguous(), float(temperature), precision)
    return loss.reshape(leading)
