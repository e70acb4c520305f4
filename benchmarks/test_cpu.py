"""CPU benchmarks: `pytest benchmarks/test_cpu.py --benchmark-only` times one turn of each method.

Ratios come from `python benchmarks/cpu.py`, which interleaves the methods and writes benchmarks/results/cpu.{md,json}.
Either way a method is timed only after its losses agree with the reference.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastprobe.kernels import cpp_backend
from fastprobe.kernels.bench import check, make_problem
from fastprobe.protocol.config import ProbeConfig
from peers import PEERS
from shapes import SHAPES

METHODS = {m.name: m for m in PEERS}
CASES = [(s, "adam-mini", m) for s in ("A", "B") for m in METHODS] + [
    (s, o, m)
    for s in SHAPES
    for o in ("adam-mini", "sgd", "adam")
    for m in ("cpp", "torch.bmm")
    if (s, o) not in (("A", "adam-mini"), ("B", "adam-mini"))
]


@pytest.mark.parametrize(("shape", "optimizer", "method"), CASES)
def test_probe_steps(benchmark, shape, optimizer, method):
    shape, method = SHAPES[shape], METHODS[method]
    shape = method.on(shape)
    config = ProbeConfig(
        dim=shape.dim, steps=4, sampling=shape.sampling, optimizer=method.optimizer or optimizer, precision=method.precision
    )
    prepared = method.prepare(shape, config, method.probes or 16)
    check(prepared)
    benchmark.extra_info.update(flops=4 * shape.flops * prepared.batch.n_probes, probe_steps=4 * prepared.batch.n_probes)
    benchmark.pedantic(prepared.call, rounds=3, iterations=1, warmup_rounds=1)


@pytest.mark.parametrize("shape", ["A", "B"])
def test_ranking(benchmark, shape):
    """10,000 queries of one split against 144 texts: no training steps."""
    shape = dataclasses.replace(SHAPES[shape], train=138)
    batch = make_problem(shape, ProbeConfig(dim=shape.dim, steps=0), 4, clips_per_class=70)
    batch = dataclasses.replace(batch, queries=np.arange(len(batch.labels)))
    benchmark.extra_info.update(flops=4 * cpp_backend.probe_flops(batch), queries=len(batch.queries))
    ranks = benchmark.pedantic(cpp_backend.train, (batch,), rounds=3, iterations=1, warmup_rounds=1).ranks
    assert ranks.min() >= 1 and ranks.max() <= 144
