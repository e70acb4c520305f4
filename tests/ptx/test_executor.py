"""What the executor reports of kernels with one known fault each, and that it reports nothing of sound ones."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ptx.launch import executing

N = 128  # four warps of 32 elements


@triton.jit
def reversed_through_memory(x, out, N: tl.constexpr, SYNC: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i))
    if SYNC:
        tl.debug_barrier()
    tl.store(x + i, tl.load(out + N - 1 - i))


@triton.jit
def total(x, out, N: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, N)), axis=0))


@triton.jit
def copy(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i % 64))


@gluon.jit
def from_shared(x, out, N: gl.constexpr, WRITTEN: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    i = gl.arange(0, N, layout)
    kept = gl.allocate_shared_memory(gl.float32, [N], plain)
    if WRITTEN:
        kept.store(gl.load(x + i))
    gl.store(out + i, kept.load(layout))


def without_barriers(ptx):
    return re.sub(r"bar\.sync\s+\d+;", "", ptx)


def data():
    return torch.arange(N, dtype=torch.float32) + 1, torch.zeros(N)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_race_in_device_memory_is_reported(capability):
    x, out = data()
    with executing(capability) as log:
        reversed_through_memory[(1,)](x, out, N, SYNC=False)
    assert {"RACE_WR", "RACE_RW"} & set(log.bad())


@pytest.mark.parametrize("capability", [80, 90])
def test_a_sound_kernel_reports_nothing_and_is_right(capability):
    x, out = data()
    want = x.flip(0).clone()
    with executing(capability) as log:
        reversed_through_memory[(1,)](x, out, N, SYNC=True)
    assert log.bad() == {} and torch.equal(x, want)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_missing_barrier_is_reported(capability):
    x, out = data()
    with executing(capability) as sound:
        total[(1,)](x, out, N)
    assert sound.bad() == {} and out[0] == N * (N + 1) / 2
    with executing(capability, edit=without_barriers) as log:
        total[(1,)](x, out, N)
    assert set(log.bad()) & {"RACE_WR", "RACE_RW", "UNINIT_SH"}


@pytest.mark.parametrize("capability", [80, 90])
def test_a_store_out_of_bounds_is_reported(capability):
    x, out = torch.ones(64), torch.zeros(N // 2)
    with executing(capability) as log:
        copy[(1,)](x, out, N)
    assert "OOB" in log.bad()


def test_an_uninitialised_read_is_reported():
    x, out = data()
    with executing(90) as sound:
        from_shared[(1,)](x, out, N, WRITTEN=True)
    assert sound.bad() == {} and torch.equal(out, x)
    with executing(90) as log:
        from_shared[(1,)](x, out, N, WRITTEN=False)
    assert "UNINIT_SH" in log.bad()
