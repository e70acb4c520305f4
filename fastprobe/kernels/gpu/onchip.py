"""On-chip trainer: one program holds one probe from its first step to its last; nothing of the state leaves the chip.

    X dW = K dZ      |dW|_F^2 = <dZ, K dZ>      K = X X'

The algebra is that of `gram`. Here Z and its moment stay in registers, and K, the unit rows and G in shared memory, for
which the factors of every product are float16: as many bits as tf32 has, in half the room, with sums in float32. Float16
has less range than tf32, so tables are scaled by powers of two to rows of length about one (which changes no gradient of
the heads), and G and dZ by a power of two that follows the size of the gradient from step to step. A step leaves dZ
behind, in float16; `fold_kernel` makes U of the dZ of all steps, as `gram` says, and the heads come of U.

Under `precision="bf16"` too the factors are float16.

Written in Gluon for compute capability 9.0 (`wgmma`), where a program says itself what lies in registers and what in
shared memory. Gluon is experimental: `backend` takes this trainer with the Triton that it was executed and measured with.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from ..reference import BETA1, BETA2_MINI, EPS
from .block import MIN_SHIFTED, rows_of
from .common import FEATURE_ALIGN, dot, empty

MAX_CLASSES, MAX_WIDTH = 128, 64
_EPS = gl.constexpr(EPS)
_B2 = gl.constexpr(BETA2_MINI)
_TINY = gl.constexpr(1e-30)
_LN2 = gl.constexpr(math.log(2.0))


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
def _add_pairs(a, b, c, d):
    return a + c, b + d


@gluon.jit
def through_norm(z, inverse, dz, factor):
    """factor (dz - u <u, dz>) / |z| with u = z / |z|, put so that the compiler does not keep u from where it was first made."""
    along = gl.sum(z * dz, axis=1) * inverse * inverse
    return (dz - z * along[:, None]) * (inverse * factor)[:, None]


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
def store_gradient(
    A,
    B,
    G,
    classes,
    n,
    m,
    scale,
    follow,
    last,
    loss,
    N: gl.constexpr,
    SYMMETRIC: gl.constexpr,
    SHIFTED: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """G = follow (softmax(S) - Y) of the unit rows B (n, D) and A (m, D) in shared memory; after the last step the loss too.

    A and B may have just been written by their threads; G is there for all when it returns. `classes` is in the rows' layout.
    SYMMETRIC, the mean with the softmax over the sounds of each text, comes only SHIFTED.
    """
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
    fence_async_shared()
    gl.thread_barrier()
    s = warpgroup_mma(B, A.permute((1, 0)), gl.zeros([N, N], gl.float32, LAYOUT), use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    if SHIFTED:
        # Texts of padding have scores of 0, and come off the sum again: a mask of the columns would cost registers.
        s = s * scale - scale
        e = gl.exp2(s)
        total = gl.sum(e, axis=1) - (N - m) * gl.exp2(-scale)
    else:
        s = gl.where((c < m)[None, :], s * scale, float("-inf"))
        top = gl.max(s, axis=1)
        e = gl.exp2(s - top[:, None])
        total = gl.sum(e, axis=1)
    own = (classes[:, None] == c[None, :]) & (i < n)[:, None]
    if SYMMETRIC:
        total_c = gl.sum(e, axis=0) - (N - n) * gl.exp2(-scale)
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
        of_column = 0.5 * follow * n / m / total_c
        e = e * gl.where((i < n)[:, None], (0.5 * follow / total)[:, None] + of_column[None, :], 0.0)
    else:
        e = e * gl.where(i < n, follow / total, 0.0)[:, None]
    G.store((e - gl.where(own, follow, 0.0)).to(gl.float16))
    fence_async_shared()
    gl.thread_barrier()


# A single step would be no loop, and the compiler would give memory that no later step needs to the sums' scratch while a product
# of another warp still reads it.
@gluon.jit(do_not_specialize=["steps"])
def onchip_kernel(
    text_gram,  # float32 (C, C)         T T'
    text_rows,  # int32   (P, m)         row of T of each train class, in each probe
    audio_gram,  # float32 (m, m)         X X'
    text_start,  # float32 (C, D)         T W_0
    audio_start,  # float32 (m, D)         X V_0
    schedule,  # float32 (steps, 3)     see `schedule_table`
    history,  # float16 (P, steps, 2, m, D)   dZ of either side, in units that `rates` undoes
    rates,  # float32 (P, steps, 4)   factor of U's moment into U, and units of dZ, of the texts and of the sounds
    loss,  # float32 (P,)           of the last step
    n_texts,
    m,
    steps,
    scale,  # 1 / (tau ln 2)
    unit,  # 1 / (n tau)
    dim,
    c1,
    c2,
    weight_decay,
    size_a,  # powers of two near the lengths of the rows of T W_0 and X V_0
    size_b,
    N: gl.constexpr,
    D: gl.constexpr,
    MINI: gl.constexpr,
    SYMMETRIC: gl.constexpr,
    SHIFTED: gl.constexpr,
    SHRINK: gl.constexpr,
    DECAY: gl.constexpr,
):
    W: gl.constexpr = gl.num_warps()
    by_row: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8] if D >= 64 else ([8, 4] if D == 32 else [16, 2]), [W, 1], [1, 0])
    of_z: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, D, 16])
    of_s: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, N, 16])
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, N], gl.float16)
    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, D], gl.float16)
    moments: gl.constexpr = own_places(N, D)
    p = gl.program_id(0).to(gl.int64)
    text_rows += p * m
    history += p * steps * 2 * m * D
    rates += p * steps * 4
    # K of either side.
    i = gl.arange(0, N, gl.SliceLayout(1, by_row))
    j = gl.arange(0, N, gl.SliceLayout(0, by_row))
    inside = (i < m)[:, None] & (j < m)[None, :]
    row = gl.load(text_rows + i, mask=i < m, other=0)
    column = gl.load(text_rows + j, mask=j < m, other=0)
    k_a = gl.load(text_gram + row[:, None] * n_texts + column[None, :], mask=inside, other=0.0)
    k_b = gl.load(audio_gram + i[:, None] * m + j[None, :], mask=inside, other=0.0)
    K_A = gl.allocate_shared_memory(gl.float16, [N, N], square, k_a.to(gl.float16))
    K_B = gl.allocate_shared_memory(gl.float16, [N, N], square, k_b.to(gl.float16))
    A = gl.allocate_shared_memory(gl.float16, [N, D], tall)
    B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
    G = gl.allocate_shared_memory(gl.float16, [N, N], square)
    # The state.
    rz = gl.arange(0, N, gl.SliceLayout(1, of_z))
    dz = gl.arange(0, D, gl.SliceLayout(0, of_z))
    row = gl.load(text_rows + rz, mask=rz < m, other=0)
    a_z = gl.load(text_start + row[:, None] * D + dz[None, :], mask=(rz < m)[:, None], other=0.0)
    b_z = gl.load(audio_start + rz[:, None] * D + dz[None, :], mask=(rz < m)[:, None], other=0.0)
    M_A = gl.allocate_shared_memory(gl.float32, [N, D], moments, gl.zeros([N, D], gl.float32, of_z))
    M_B = gl.allocate_shared_memory(gl.float32, [N, D], moments, gl.zeros([N, D], gl.float32, of_z))
    second_a = 0.0
    second_b = 0.0
    first_a = 0.0
    first_b = 0.0
    follow = 1.0  # power of two that keeps G and dZ about as large as in the first step
    rs = gl.arange(0, N, gl.SliceLayout(1, of_s))
    for step in range(steps):
        # Rows of padding have neither unit rows nor a gradient.
        inverse_a = gl.where(rz < m, inverse_length(a_z), 0.0)
        inverse_b = gl.where(rz < m, inverse_length(b_z), 0.0)
        A.store((a_z * inverse_a[:, None]).to(gl.float16))
        B.store((b_z * inverse_b[:, None]).to(gl.float16))
        store_gradient(A, B, G, rs, m, m, scale, follow, step == steps - 1, loss + p, N, SYMMETRIC, SHIFTED, of_s)
        # Made here, so that the sums over columns before may take the same memory.
        DZ_A = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        DZ_B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        db = warpgroup_mma(G, A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        da = warpgroup_mma(G.permute((1, 0)), B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        db = warpgroup_mma_wait(1, deps=[db])
        DZ_B.store(through_norm(b_z, inverse_b, db, size_b).to(gl.float16))
        fence_async_shared()
        gl.thread_barrier()
        kb = warpgroup_mma(K_B, DZ_B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        da = warpgroup_mma_wait(1, deps=[da])
        DZ_A.store(through_norm(a_z, inverse_a, da, size_a).to(gl.float16))
        fence_async_shared()
        gl.thread_barrier()
        ka = warpgroup_mma(K_A, DZ_A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        keep_rows(history + (2 * step) * m * D, DZ_A, m, N, D, by_row)
        keep_rows(history + (2 * step + 1) * m * D, DZ_B, m, N, D, by_row)
        # What undoes the units of dZ: gradient = unit_a (K dZ).
        unit_a = unit / (follow * size_a)
        unit_b = unit / (follow * size_b)
        kb = warpgroup_mma_wait(1, deps=[kb])
        part_b = gl.sum(DZ_B.load(of_z).to(gl.float32) * kb, axis=1)
        b_m = c1 * M_B.load(of_z) + (c2 * unit_b) * kb
        ka = warpgroup_mma_wait(0, deps=[ka])
        part_a = gl.sum(DZ_A.load(of_z).to(gl.float32) * ka, axis=1)
        a_m = c1 * M_A.load(of_z) + (c2 * unit_a) * ka
        if DECAY:
            a_m += weight_decay * a_z
            b_m += weight_decay * b_z
        square_a, square_b = gl.reduce((part_a, part_b), 0, _add_pairs)
        # Here, because a barrier of the sums lies between the loads and the stores, as the compiler wants it.
        M_A.store(a_m)
        M_B.store(b_m)
        square_a *= unit_a * unit_a
        square_b *= unit_b * unit_b
        rate = gl.load(schedule + step * 3)
        rate_a = rate
        rate_b = rate
        if MINI:
            second = gl.load(schedule + step * 3 + 1)
            second_a = _B2 * second_a + (1.0 - _B2) * (square_a / dim)
            second_b = _B2 * second_b + (1.0 - _B2) * (square_b / dim)
            rate_a = rate / gl.maximum(gl.sqrt_rn(second_a * second), _TINY)
            rate_b = rate / gl.maximum(gl.sqrt_rn(second_b * second), _TINY)
        if SHRINK:
            keep = gl.load(schedule + step * 3 + 2)
            a_z = keep * a_z - rate_a * a_m
            b_z = keep * b_z - rate_b * b_m
        else:
            a_z -= rate_a * a_m
            b_z -= rate_b * b_m
        gl.store(rates + step * 4, rate_a)
        gl.store(rates + step * 4 + 1, rate_b)
        gl.store(rates + step * 4 + 2, unit_a)
        gl.store(rates + step * 4 + 3, unit_b)
        if step == 0:
            first_a = square_a
            first_b = square_b
        follow = follow_gradient(square_a, square_b, first_a, first_b)


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


# Of device memory, for the dZ of all steps of the probes in one launch.
HISTORY_BYTES = 4 << 30
_FOLD_BLOCK = 1024


def fits(n_classes: int, width: int, symmetric: bool, temperature: float, precision: str, architecture: str) -> bool:
    """Whether one program holds a probe: at most 128 train classes and d = 64, on a device with `wgmma`.

    Under the symmetric loss both directions share one exponential, so temperatures are those where nothing underflows.
    """
    return (
        n_classes <= MAX_CLASSES
        and width <= MAX_WIDTH
        and (not symmetric or temperature >= MIN_SHIFTED)
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


def omega_of(schedule: torch.Tensor, momentum: float, weight_decay: float, mini: bool) -> float:
    """What is left of W_0 after all steps: W = omega W_0 - X' U."""
    omega, moment = 1.0, 0.0
    for rate, _, keep in schedule.double().tolist():
        if mini:
            omega *= keep
        else:
            moment = momentum * moment + weight_decay * omega
            omega -= rate * moment
    return omega


def put_heads_together(
    history: torch.Tensor,
    rates: torch.Tensor,
    schedule: torch.Tensor,
    c1: float,
    c2: float,
    weight_decay: float,
    flags: dict[str, bool],
    sides: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    omega: float,
) -> None:
    """W <- omega W_0 - X' U, in place, from the dZ of all steps.

    Parameters
    ----------
    history : float16 (at least P, steps, sides, m, D)
    sides : list of (table float32 (., r), rows int32 (P or 1, m), heads float32 (P, r, D))
    """
    width, steps = history.shape[-1], len(schedule)
    n_probes, m = len(sides[0][2]), history.shape[-2]
    numbers = m * width
    u = empty(n_probes, len(sides), m, width, device=rates.device)
    grid = n_probes * len(sides) * triton.cdiv(numbers, _FOLD_BLOCK)
    fold_kernel[(grid,)](
        history, rates, schedule, u, steps, numbers, c1, c2, float(weight_decay), SIDES=len(sides), BLOCK=_FOLD_BLOCK, **flags, num_warps=4
    )
    for side, (table, rows, heads) in enumerate(sides):
        stride = m if len(rows) > 1 else 0
        shape = {"SIDES": len(sides), "M": 64 if m <= 64 else 128, "D": width, "BK": FEATURE_ALIGN, "num_warps": 4}
        heads_kernel[(n_probes,)](table, rows, u, heads, omega, m, heads.shape[1], stride, side, **shape)


def train_onchip(
    text: torch.Tensor,
    text_rows: torch.Tensor,
    audio: torch.Tensor,
    audio_rows: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    schedule: torch.Tensor,
    *,
    row_classes: torch.Tensor,
    per_class: int,
    temperature: float,
    dim: int,
    optimizer: str,
    momentum: float,
    weight_decay: float,
    symmetric: bool,
    precision: str,
    architecture: str,
) -> torch.Tensor:
    """Train every probe in place; the loss of the last step comes back, float32 (P,). See `train_gram`.

    All probes start from the heads of the first. Symmetric losses and precisions are those of `fits`.
    """
    (n_probes, _, width), m, steps = w.shape, text_rows.shape[1], len(schedule)
    mini = optimizer == "adam-mini"
    texts, sounds = unit_rows(text), unit_rows(audio[audio_rows[0].long()])
    starts = texts @ w[0].double(), sounds @ v[0].double()
    grams = (texts @ texts.T).float(), (sounds @ sounds.T).float()
    omega = omega_of(schedule, momentum, weight_decay, mini)
    everyone = torch.arange(m, dtype=torch.int32, device=w.device)[None]
    loss = empty(n_probes, device=w.device)
    c1, c2 = (BETA1, 1.0 - BETA1) if mini else (float(momentum), 1.0)
    flags = {"SHRINK": weight_decay > 0 and mini, "DECAY": weight_decay > 0 and not mini}
    together = min(max(HISTORY_BYTES // (4 * steps * m * width), 1), n_probes)
    history = empty(together, steps, 2, m, width, device=w.device, dtype=torch.float16)
    rates = empty(together, steps, 4, device=w.device)
    for at in range(0, n_probes, together):
        some = slice(at, min(at + together, n_probes))
        rows = text_rows[some]
        onchip_kernel[(len(rows),)](
            grams[0],
            rows,
            grams[1],
            starts[0].float(),
            starts[1].float(),
            schedule,
            history,
            rates,
            loss[some],
            len(text),
            m,
            steps,
            1.0 / (temperature * math.log(2)),
            1.0 / (m * temperature),
            float(dim),
            c1,
            c2,
            float(weight_decay),
            typical_length(starts[0]),
            typical_length(starts[1]),
            N=64 if m <= 64 else 128,
            D=width,
            MINI=mini,
            SYMMETRIC=symmetric,
            SHIFTED=temperature >= MIN_SHIFTED,
            **flags,
            num_warps=4 if m <= 64 else 8,
        )
        sides = [(texts.float(), rows, w[some]), (sounds.float(), everyone, v[some])]
        put_heads_together(history, rates, schedule, c1, c2, weight_decay, flags, sides, omega)
    return loss
