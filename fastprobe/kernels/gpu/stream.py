"""Streaming trainer: `onchip` for clips that change from step to step, whose head V goes through the chip once a step.

    dV = X_t' dZ      |dV|_F^2 = <dZ, K_t dZ>      K_t = X_t X_t'      Z_b = X_(t+1) V

Texts are stepped as in `onchip`. V and its moment lie in L2, a slab of features at a time comes by: its gradient, its step and
its part of the next Z_b are made in one go, since the size of the whole gradient, which adam-mini's step needs, follows from
K_t beforehand. All probes see the same clips, so every K_t is made once. Factors are float16 and scaled as `onchip` says; V and
the moments are float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from .block import MIN_SHIFTED
from .chip import (
    MAX_CLASSES,
    floor_of_scores,
    follow_gradient,
    inverse_length,
    keep_rows,
    load_text_gram,
    mini_step,
    own_places,
    store_gradient,
    through_norm,
    typical_length,
    unit_rows,
)
from .chip import fits as chip_fits
from .common import TrainingOptions, empty, round_up
from .heads import probes_at_once, put_heads_together

SLAB = 64  # features that come by at a time
_STEPS_AT_ONCE = 64  # whose K_t are made in one product


@gluon.jit
def _load_slab(to, sounds, rows, n, at, N: gl.constexpr, BK: gl.constexpr, LAYOUT: gl.constexpr):
    """Start to copy features from `at` of a step's clips into shared memory; `rows` are where the clips begin in `sounds`."""
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    k = gl.arange(0, BK, gl.SliceLayout(0, LAYOUT))
    async_copy.async_copy_global_to_shared(to, sounds + (rows + at)[:, None] + k[None, :], mask=(i < n)[:, None])


@gluon.jit(do_not_specialize=["steps"])  # see `onchip_kernel`
def stream_kernel(
    text_gram,  # float32 (C, C)         T T'
    text_rows,  # int32   (P, m)         row of T of each train class, in each probe
    text_start,  # float32 (C, D)         T W_0
    sounds,  # float16 (clips, r_sounds)   those that are drawn, columns padded to whole slabs
    audio_rows,  # int32   (steps, n)     clips of each step
    row_classes,  # int32   (n,)           train class of each
    clip_grams,  # float16 (steps, N, N)  K_t
    audio_start,  # float32 (n, D)         X_0 V_0
    v,  # float32 (P, r, D)      head of the sounds: start in, trained out
    moment,  # float32 (P, r, D)      its first moment, zero
    schedule,  # float32 (steps, 3)     see `schedule_table`
    history,  # float16 (P, steps, m, D)    dZ of the texts, in units that `rates` undoes
    rates,  # float32 (P, steps, 4)   factor of U's moment into U; third: units of dZ
    loss,  # float32 (P,)           of the last step
    n_texts,
    m,
    n,
    r,
    r_sounds,
    steps,
    scale,  # 1 / (tau ln 2)
    unit,  # 1 / (n tau)
    dim,
    c1,
    c2,
    weight_decay,
    size_a,  # powers of two near the lengths of the rows of T W_0 and X_0 V_0
    size_b,
    N: gl.constexpr,
    D: gl.constexpr,
    BK: gl.constexpr,
    WHOLE: gl.constexpr,  # r is so many whole slabs
    MINI: gl.constexpr,
    SYMMETRIC: gl.constexpr,
    SHIFTED: gl.constexpr,
    SHRINK: gl.constexpr,
    DECAY: gl.constexpr,
):
    W: gl.constexpr = gl.num_warps()
    by_row: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8] if D >= 64 else ([8, 4] if D == 32 else [16, 2]), [W, 1], [1, 0])
    of_clips: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [W, 1], [1, 0])
    of_square: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // N, N // 8], [W, 1], [1, 0])
    of_z: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, D, 16])
    of_s: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, N, 16])
    of_v: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, W // 4], [16, 4 * D // W, 16])
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, N], gl.float16)
    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, D], gl.float16)
    slab: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, BK], gl.float16)
    narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, 16], gl.float16)
    moments: gl.constexpr = own_places(N, D)
    head: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BK, D], gl.float16)
    p = gl.program_id(0).to(gl.int64)
    text_rows += p * m
    history += p * steps * m * D
    rates += p * steps * 4
    v += p * r * D
    moment += p * r * D
    slabs = gl.cdiv(r, BK)
    k_a = load_text_gram(text_gram, text_rows, n_texts, m, N, by_row)
    K = gl.allocate_shared_memory(gl.float16, [N, N], square, k_a.to(gl.float16))
    G = gl.allocate_shared_memory(gl.float16, [N, N], square)  # then K_t
    X = gl.allocate_shared_memory(gl.float16, [2, N, BK], slab)  # of this step
    # The unit rows have been read when the first slab comes in.
    if D == BK:
        A = X.index(0)
        B = X.index(1)
    else:
        A = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
    Y = gl.allocate_shared_memory(gl.float16, [3, N, BK], slab)  # of the next
    V = gl.allocate_shared_memory(gl.float16, [2, BK, D], head)
    # What the scores begin with lies where the last product of a step has not read, and is written again in each.
    free = Y.index(slabs % 3)
    ones = free._reinterpret(gl.float16, [BK // 16, N, 16], narrow).index(0)
    floor = free._reinterpret(gl.float16, [BK // 16, N, 16], narrow).index(1)
    # The state.
    rz = gl.arange(0, N, gl.SliceLayout(1, of_z))
    dz = gl.arange(0, D, gl.SliceLayout(0, of_z))
    row = gl.load(text_rows + rz, mask=rz < m, other=0)
    a_z = gl.load(text_start + row[:, None] * D + dz[None, :], mask=(rz < m)[:, None], other=0.0)
    b_z = gl.load(audio_start + rz[:, None] * D + dz[None, :], mask=(rz < n)[:, None], other=0.0)
    M_A = gl.allocate_shared_memory(gl.float32, [N, D], moments, gl.zeros([N, D], gl.float32, of_z))
    second_a = 0.0
    second_b = 0.0
    first_a = 0.0
    first_b = 0.0
    follow = 1.0  # power of two that keeps G and dZ about as large as in the first step
    before = 1.0  # its last value
    rs = gl.arange(0, N, gl.SliceLayout(1, of_s))
    classes = gl.load(row_classes + rs, mask=rs < n, other=0)
    kv = gl.arange(0, BK, gl.SliceLayout(1, of_v))
    dv = gl.arange(0, D, gl.SliceLayout(0, of_v))
    cell = kv[:, None] * D + dv[None, :]
    qi = gl.arange(0, N, gl.SliceLayout(1, of_square))
    qj = gl.arange(0, N, gl.SliceLayout(0, of_square))
    in_square = qi[:, None] * N + qj[None, :]
    ic = gl.arange(0, N, gl.SliceLayout(1, of_clips))
    head_v = gl.load(v + cell, mask=(kv < r)[:, None], other=0.0)
    head_m = gl.zeros([BK, D], gl.float32, of_v)
    for step in range(steps):
        # Features go up in one step and down in the next: the slab at the turn stays in the registers.
        up = step % 2 == 0
        rows_x = gl.load(audio_rows + step * n + ic, mask=ic < n, other=0) * r_sounds
        rows_y = gl.load(audio_rows + gl.minimum(step + 1, steps - 1) * n + ic, mask=ic < n, other=0) * r_sounds
        # Rows of padding have neither unit rows nor a gradient.
        inverse_a = gl.where(rz < m, inverse_length(a_z), 0.0)
        inverse_b = gl.where(rz < n, inverse_length(b_z), 0.0)
        A.store((a_z * (inverse_a * scale)[:, None]).to(gl.float16))
        B.store((b_z * inverse_b[:, None]).to(gl.float16))
        floor_of_scores(ones, floor, m, scale, N, SHIFTED, by_row)
        store_gradient(A, B, ones, floor, G, classes, n, m, follow, step == steps - 1, loss + p, N, SYMMETRIC, SHIFTED, of_s)
        # Made here, so that the sums over columns before may take the same memory.
        DZ_A = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        DZ_B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        db = warpgroup_mma(G, A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        da = warpgroup_mma(G.permute((1, 0)), B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        db = warpgroup_mma_wait(1, deps=[db])
        DZ_B.store(through_norm(b_z, inverse_b, db, size_b / scale).to(gl.float16))
        da = warpgroup_mma_wait(0, deps=[da])
        DZ_A.store(through_norm(a_z, inverse_a, da, size_a).to(gl.float16))
        fence_async_shared()
        gl.thread_barrier()
        ka = warpgroup_mma(K, DZ_A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        # G has been read by all, so K_t may take its place.
        async_copy.async_copy_global_to_shared(G, clip_grams + step * N * N + in_square, mask=(qi < n)[:, None])
        async_copy.commit_group()
        first = gl.where(up, 0, slabs - 1) * BK
        _load_slab(X.index(0), sounds, rows_x, n, first, N, BK, of_clips)
        _load_slab(Y.index(0), sounds, rows_y, n, first, N, BK, of_clips)
        async_copy.commit_group()
        keep_rows(history + step * m * D, DZ_A, m, N, D, by_row)
        async_copy.wait_group(1)
        fence_async_shared()
        kb = warpgroup_mma(G, DZ_B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
        # What undoes the units of dZ: gradient = unit_a (K dZ). The moments are kept in units of c2 unit_a and c2 unit_b.
        lasting = c1 * follow / before
        before = follow
        unit_a = unit / (follow * size_a)
        unit_b = unit / (follow * size_b)
        ka = warpgroup_mma_wait(1, deps=[ka])
        square_a = gl.sum(gl.sum(DZ_A.load(of_z).to(gl.float32) * ka, axis=1), axis=0) * unit_a * unit_a
        a_m = lasting * M_A.load(of_z) + ka
        if DECAY:
            a_m += (weight_decay / (c2 * unit_a)) * a_z
        kb = warpgroup_mma_wait(0, deps=[kb])
        square_b = gl.sum(gl.sum(DZ_B.load(of_z).to(gl.float32) * kb, axis=1), axis=0) * unit_b * unit_b
        M_A.store(a_m)
        rate = gl.load(schedule + step * 3)
        rate_a = rate
        rate_b = rate
        if MINI:
            bias = gl.load(schedule + step * 3 + 1)
            second_a, rate_a = mini_step(second_a, square_a, dim, rate, bias)
            second_b, rate_b = mini_step(second_b, square_b, dim, rate, bias)
        down_a = -rate_a * (c2 * unit_a)
        down_b = -rate_b * (c2 * unit_b)
        keep = 1.0
        if SHRINK:
            keep = gl.load(schedule + step * 3 + 2)
            a_z = keep * a_z + down_a * a_m
        else:
            a_z += down_a * a_m
        gl.store(rates + step * 4, rate_a)
        gl.store(rates + step * 4 + 2, unit_a)
        # The head of the sounds, slab by slab. While one is stepped, the next one's clips come in, and the one before makes its part
        # of Z_b: three buffers, because that one is still read when the next is filled.
        b_z = gl.zeros([N, D], gl.float32, of_z)
        for f in range(slabs):
            at = gl.where(up, f, slabs - 1 - f)
            after = gl.where(up, f + 1, slabs - 2 - f)
            turn = f + 1 == slabs
            async_copy.wait_group(0)
            fence_async_shared()
            dw = warpgroup_mma(X.index(f % 2).permute((1, 0)), DZ_B, gl.zeros([BK, D], gl.float32, of_v), use_acc=False, is_async=True)
            if not turn:
                _load_slab(X.index((f + 1) % 2), sounds, rows_x, n, after * BK, N, BK, of_clips)
                _load_slab(Y.index((f + 1) % 3), sounds, rows_y, n, after * BK, N, BK, of_clips)
            async_copy.commit_group()
            if f > 0:
                b_z = warpgroup_mma(Y.index((f + 2) % 3), V.index((f + 1) % 2), b_z, is_async=False)
            dw = warpgroup_mma_wait(0, deps=[dw])
            head_m = lasting * head_m + dw
            if DECAY:
                head_m += (weight_decay / (c2 * unit_b)) * head_v
            head_v = keep * head_v + down_b * head_m if SHRINK else head_v + down_b * head_m
            V.index(f % 2).store(head_v.to(gl.float16))
            there = (kv < gl.where((not turn) | (step == steps - 1), (BK if WHOLE else r - at * BK), 0))[:, None]
            gl.store(v + at * BK * D + cell, head_v, mask=there)
            gl.store(moment + at * BK * D + cell, head_m, mask=there)
            there = (kv < gl.where(turn, 0, (BK if WHOLE else r - after * BK)))[:, None]
            head_v = gl.load(v + after * BK * D + cell, mask=there, other=head_v)
            head_m = gl.load(moment + after * BK * D + cell, mask=there, other=head_m)
        fence_async_shared()
        gl.thread_barrier()
        b_z = warpgroup_mma(Y.index((slabs + 2) % 3), V.index((slabs + 1) % 2), b_z, is_async=False)
        if step == 0:
            first_a = square_a
            first_b = square_b
        follow = follow_gradient(square_a, square_b, first_a, first_b)


def fits(n_rows: int, numbers: int, n_classes: int, width: int, *chip: Any) -> bool:
    """Whether one program holds a probe: what `chip` holds, with at most 128 clips a step and d = 64.

    Parameters
    ----------
    numbers : int
        In all clips that are drawn, columns padded; places among them have 32 bits.
    """
    return n_rows <= MAX_CLASSES and numbers < 2**31 and width <= 64 and chip_fits(n_classes, width, *chip)


def clip_grams(sounds: torch.Tensor, audio_rows: torch.Tensor, size: int) -> torch.Tensor:
    """K_t of every step, float16 (steps, size, size), zero beyond its clips, from rows in float64."""
    steps, n = audio_rows.shape
    out = torch.zeros(steps, size, size, dtype=torch.float16, device=sounds.device)
    for at in range(0, steps, _STEPS_AT_ONCE):
        x = sounds[audio_rows[at : at + _STEPS_AT_ONCE].long()]
        out[at : at + len(x), :n, :n] = (x @ x.mT).to(torch.float16)
    return out


def train_stream(
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

    All probes start from the heads of the first. Symmetric losses and precisions are those of `fits`.
    """
    (n_probes, _, width), r, m = w.shape, v.shape[1], text_rows.shape[1]
    steps, n = audio_rows.shape
    size = 64 if max(m, n) <= 64 else 128
    used, places = torch.unique(audio_rows, return_inverse=True)  # a table may hold far more clips than are drawn
    audio_rows = places.to(torch.int32)
    texts, sounds = unit_rows(text), unit_rows(audio[used.long()])
    starts = texts @ w[0].double(), sounds[audio_rows[0].long()] @ v[0].double()
    wide = torch.zeros(len(used), round_up(r, SLAB), dtype=torch.float16, device=w.device)
    wide[:, :r] = sounds
    text_gram, grams = (texts @ texts.T).float(), clip_grams(sounds, audio_rows, size)
    loss = empty(n_probes, device=w.device)
    together = probes_at_once(n_probes, 2 * steps * m * width, w.device)
    history = empty(together, steps, m, width, device=w.device, dtype=torch.float16)
    rates = empty(together, steps, 4, device=w.device)
    moment = torch.zeros_like(v[:together])
    for at in range(0, n_probes, together):
        some = slice(at, min(at + together, n_probes))
        rows = text_rows[some]
        stream_kernel[(len(rows),)](
            text_gram,
            rows,
            starts[0].float(),
            wide,
            audio_rows,
            options.row_classes,
            grams,
            starts[1].float(),
            v[some],
            moment.zero_(),
            schedule,
            history,
            rates,
            loss[some],
            len(text),
            m,
            n,
            r,
            wide.shape[1],
            steps,
            1.0 / (options.temperature * math.log(2)),
            1.0 / (n * options.temperature),
            float(options.dim),
            *options.moment,
            float(options.weight_decay),
            typical_length(starts[0]),
            typical_length(starts[1]),
            N=size,
            D=width,
            BK=SLAB,
            WHOLE=r % SLAB == 0,
            MINI=options.mini,
            SYMMETRIC=options.symmetric,
            SHIFTED=options.temperature >= MIN_SHIFTED,
            **options.decay,
            num_warps=4 if size == 64 else 8,
        )
        put_heads_together(history, rates, schedule, [(texts.float(), rows, w[some])], options)
    return loss
