"""On-chip trainer: one program holds one probe from its first step to its last.

    X dW = K dZ      |dW|_F^2 = <dZ, K dZ>      K = X X'

The algebra is that of `gram`. Here Z stays in registers, and K, the unit rows, G and the moments in shared memory; see `chip`
for the factors. Above d = 64 the moments have no room there: they pass through device memory, which is to say L2. A step leaves
dZ behind, in float16, of which `heads` makes U and the heads in the end. Under `precision="bf16"` too the factors are float16.
"""

from __future__ import annotations

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from .block import MIN_SHIFTED
from .chip import (
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
from .common import TrainingOptions, empty
from .heads import probes_at_once, put_heads_together


@gluon.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@gluon.jit
def _step_of_side(
    z,
    second,
    K,
    DZ,
    moments,
    m,
    lasting,
    unit,
    c2,
    weight_decay,
    schedule,
    dim,
    step,
    N: gl.constexpr,
    D: gl.constexpr,
    MINI: gl.constexpr,
    SHRINK: gl.constexpr,
    DECAY: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """One side's K dZ and step, its moments in device memory: Z, |g|_F^2, adam-mini's second moment and the rate."""
    i = gl.arange(0, N, gl.SliceLayout(1, LAYOUT))
    k = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    cell = i[:, None] * D + k[None, :]
    gradient = warpgroup_mma(K, DZ, gl.zeros([N, D], gl.float32, LAYOUT), use_acc=False, is_async=True)
    gradient = warpgroup_mma_wait(0, deps=[gradient])
    square = gl.sum(gl.sum(DZ.load(LAYOUT).to(gl.float32) * gradient, axis=1), axis=0) * (unit * unit)
    # Nothing is there before the first step.
    moment = lasting * gl.load(moments + cell, mask=(i < gl.where(step == 0, 0, m))[:, None], other=0.0) + gradient
    if DECAY:
        moment += (weight_decay / (c2 * unit)) * z
    gl.store(moments + cell, moment, mask=(i < m)[:, None])
    rate = gl.load(schedule)
    if MINI:
        second, rate = mini_step(second, square, dim, rate, gl.load(schedule + 1))
    if SHRINK:
        z = gl.load(schedule + 2) * z
    return z + (-rate * (c2 * unit)) * moment, square, second, rate


# A single step would be no loop, and the compiler would give memory that no later step needs to the sums' scratch while a product
# of another warp still reads it.
@gluon.jit(do_not_specialize=["steps"])
def onchip_kernel(
    text_gram,  # float32 (C, C)         T T'
    text_rows,  # int32   (P, m)         row of T of each train class, in each probe
    audio_gram,  # float32 (m, m)         X X'
    text_start,  # float32 (C, D)         T W_0
    audio_start,  # float32 (m, D)         X V_0
    moments,  # float32 (P, 2, m, D)   first moments of either side; only if D > 64
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
    narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, 16], gl.float16)
    own: gl.constexpr = own_places(N, D)
    p = gl.program_id(0).to(gl.int64)
    text_rows += p * m
    history += p * steps * 2 * m * D
    rates += p * steps * 4
    moments += p * 2 * m * D
    # K of either side.
    k_a = load_text_gram(text_gram, text_rows, n_texts, m, N, by_row)
    i = gl.arange(0, N, gl.SliceLayout(1, by_row))
    j = gl.arange(0, N, gl.SliceLayout(0, by_row))
    k_b = gl.load(audio_gram + i[:, None] * m + j[None, :], mask=(i < m)[:, None] & (j < m)[None, :], other=0.0)
    K_A = gl.allocate_shared_memory(gl.float16, [N, N], square, k_a.to(gl.float16))
    K_B = gl.allocate_shared_memory(gl.float16, [N, N], square, k_b.to(gl.float16))
    A = gl.allocate_shared_memory(gl.float16, [N, D], tall)
    if D <= 64 or N < D:
        B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        G = gl.allocate_shared_memory(gl.float16, [N, N], square)
    if D > 64:  # the side whose turn it is not waits here
        waiting = gl.allocate_shared_memory(gl.float32, [N, D], own)
        if N == D:  # B and G have been read by then
            halves = waiting._reinterpret(gl.float16, [2, N, N], square)
            B = halves.index(0)
            G = halves.index(1)
    ones = gl.allocate_shared_memory(gl.float16, [N, 16], narrow)
    floor = gl.allocate_shared_memory(gl.float16, [N, 16], narrow)
    floor_of_scores(ones, floor, m, scale, N, SHIFTED, by_row)
    # The state.
    rz = gl.arange(0, N, gl.SliceLayout(1, of_z))
    dz = gl.arange(0, D, gl.SliceLayout(0, of_z))
    row = gl.load(text_rows + rz, mask=rz < m, other=0)
    a_z = gl.load(text_start + row[:, None] * D + dz[None, :], mask=(rz < m)[:, None], other=0.0)
    b_z = gl.load(audio_start + rz[:, None] * D + dz[None, :], mask=(rz < m)[:, None], other=0.0)
    if D <= 64:
        M_A = gl.allocate_shared_memory(gl.float32, [N, D], own, gl.zeros([N, D], gl.float32, of_z))
        M_B = gl.allocate_shared_memory(gl.float32, [N, D], own, gl.zeros([N, D], gl.float32, of_z))
    second_a = 0.0
    second_b = 0.0
    first_a = 0.0
    first_b = 0.0
    follow = 1.0  # power of two that keeps G and dZ about as large as in the first step
    before = 1.0  # its last value
    rs = gl.arange(0, N, gl.SliceLayout(1, of_s))
    for step in range(steps):
        # Rows of padding have neither unit rows nor a gradient.
        inverse_a = gl.where(rz < m, inverse_length(a_z), 0.0)
        inverse_b = gl.where(rz < m, inverse_length(b_z), 0.0)
        A.store((a_z * (inverse_a * scale)[:, None]).to(gl.float16))
        B.store((b_z * inverse_b[:, None]).to(gl.float16))
        store_gradient(A, B, ones, floor, G, rs, m, m, follow, step == steps - 1, loss + p, N, SYMMETRIC, SHIFTED, of_s)
        # Made here, so that the sums over columns before may take the same memory.
        DZ_B = gl.allocate_shared_memory(gl.float16, [N, D], tall)
        # What undoes the units of dZ: gradient = unit_a (K dZ). The moments are kept in units of c2 unit_a.
        lasting = c1 * follow / before
        before = follow
        unit_a = unit / (follow * size_a)
        unit_b = unit / (follow * size_b)
        if D <= 64:
            db = warpgroup_mma(G, A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            da = warpgroup_mma(G.permute((1, 0)), B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            db = warpgroup_mma_wait(1, deps=[db])
            DZ_B.store(through_norm(b_z, inverse_b, db, size_b / scale).to(gl.float16))
            fence_async_shared()
            gl.thread_barrier()
            kb = warpgroup_mma(K_B, DZ_B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            da = warpgroup_mma_wait(1, deps=[da])
            DZ_A = A  # whose rows all have read
            DZ_A.store(through_norm(a_z, inverse_a, da, size_a).to(gl.float16))
            fence_async_shared()
            gl.thread_barrier()
            ka = warpgroup_mma(K_A, DZ_A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            keep_rows(history + (2 * step) * m * D, DZ_A, m, N, D, by_row)
            keep_rows(history + (2 * step + 1) * m * D, DZ_B, m, N, D, by_row)
            kb = warpgroup_mma_wait(1, deps=[kb])
            part_b = gl.sum(DZ_B.load(of_z).to(gl.float32) * kb, axis=1)
            b_m = lasting * M_B.load(of_z) + kb
            ka = warpgroup_mma_wait(0, deps=[ka])
            part_a = gl.sum(DZ_A.load(of_z).to(gl.float32) * ka, axis=1)
            a_m = lasting * M_A.load(of_z) + ka
            if DECAY:
                a_m += (weight_decay / (c2 * unit_a)) * a_z
                b_m += (weight_decay / (c2 * unit_b)) * b_z
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
                bias = gl.load(schedule + step * 3 + 1)
                second_a, rate_a = mini_step(second_a, square_a, dim, rate, bias)
                second_b, rate_b = mini_step(second_b, square_b, dim, rate, bias)
            down_a = -rate_a * (c2 * unit_a)
            down_b = -rate_b * (c2 * unit_b)
            if SHRINK:
                keep = gl.load(schedule + step * 3 + 2)
                a_z = keep * a_z + down_a * a_m
                b_z = keep * b_z + down_b * b_m
            else:
                a_z += down_a * a_m
                b_z += down_b * b_m
        else:  # registers hold one product at a time
            db = warpgroup_mma(G, A, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            db = warpgroup_mma_wait(0, deps=[db])
            DZ_B.store(through_norm(b_z, inverse_b, db, size_b / scale).to(gl.float16))
            da = warpgroup_mma(G.permute((1, 0)), B, gl.zeros([N, D], gl.float32, of_z), use_acc=False, is_async=True)
            da = warpgroup_mma_wait(0, deps=[da])
            gl.thread_barrier()
            DZ_A = A  # whose rows all have read
            DZ_A.store(through_norm(a_z, inverse_a, da, size_a).to(gl.float16))
            fence_async_shared()
            gl.thread_barrier()
            keep_rows(history + (2 * step) * m * D, DZ_A, m, N, D, by_row)
            keep_rows(history + (2 * step + 1) * m * D, DZ_B, m, N, D, by_row)
            waiting.store(a_z)
            b_z, square_b, second_b, rate_b = _step_of_side(
                b_z,
                second_b,
                K_B,
                DZ_B,
                moments + m * D,
                m,
                lasting,
                unit_b,
                c2,
                weight_decay,
                schedule + step * 3,
                dim,
                step,
                N,
                D,
                MINI,
                SHRINK,
                DECAY,
                of_z,
            )
            a_z = waiting.load(of_z)
            waiting.store(b_z)
            a_z, square_a, second_a, rate_a = _step_of_side(
                a_z,
                second_a,
                K_A,
                DZ_A,
                moments,
                m,
                lasting,
                unit_a,
                c2,
                weight_decay,
                schedule + step * 3,
                dim,
                step,
                N,
                D,
                MINI,
                SHRINK,
                DECAY,
                of_z,
            )
            b_z = waiting.load(of_z)
            gl.thread_barrier()  # before another warp puts unit rows there
        gl.store(rates + step * 4, rate_a)
        gl.store(rates + step * 4 + 1, rate_b)
        gl.store(rates + step * 4 + 2, unit_a)
        gl.store(rates + step * 4 + 3, unit_b)
        if step == 0:
            first_a = square_a
            first_b = square_b
        follow = follow_gradient(square_a, square_b, first_a, first_b)


def train_onchip(
    text: torch.Tensor,
    text_rows: torch.Tensor,
    audio: torch.Tensor,
    audio_rows: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    schedule: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """Train every probe in place; the loss of the last step comes back, float32 (P,). See `train_gram`.

    All probes start from the heads of the first. Symmetric losses and precisions are those of `fits`.
    """
    (n_probes, _, width), m, steps = w.shape, text_rows.shape[1], len(schedule)
    texts, sounds = unit_rows(text), unit_rows(audio[audio_rows[0].long()])
    starts = texts @ w[0].double(), sounds @ v[0].double()
    grams = (texts @ texts.T).float(), (sounds @ sounds.T).float()
    everyone = torch.arange(m, dtype=torch.int32, device=w.device)[None]
    loss = empty(n_probes, device=w.device)
    together = probes_at_once(n_probes, 4 * steps * m * width, w.device)
    history = empty(together, steps, 2, m, width, device=w.device, dtype=torch.float16)
    rates = empty(together, steps, 4, device=w.device)
    moments = empty(together if width > 64 else 1, 2, m, width, device=w.device)
    for at in range(0, n_probes, together):
        some = slice(at, min(at + together, n_probes))
        rows = text_rows[some]
        onchip_kernel[(len(rows),)](
            grams[0],
            rows,
            grams[1],
            starts[0].float(),
            starts[1].float(),
            moments,
            schedule,
            history,
            rates,
            loss[some],
            len(text),
            m,
            steps,
            1.0 / (options.temperature * math.log(2)),
            1.0 / (m * options.temperature),
            float(options.dim),
            *options.moment,
            float(options.weight_decay),
            typical_length(starts[0]),
            typical_length(starts[1]),
            N=64 if m <= 64 else 128,
            D=width,
            MINI=options.mini,
            SYMMETRIC=options.symmetric,
            SHIFTED=options.temperature >= MIN_SHIFTED,
            **options.decay,
            num_warps=4 if m <= 64 else 8,
        )
        sides = [(texts.float(), rows, w[some]), (sounds.float(), everyone, v[some])]
        put_heads_together(history, rates, schedule, sides, options)
    return loss
