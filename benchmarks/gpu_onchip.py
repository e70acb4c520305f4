"""The on-chip trainer against the Gram trainer and against PyTorch with the same algebra, interleaved, behind a check.

    python -m benchmarks.gpu_onchip          needs an NVIDIA GPU of compute capability 9.0

Writes benchmarks/results/gpu-onchip-<device>.json after every shape. Rates are probe-steps a second; every method trains
the same probes from tables to heads. Decisions: share of queries whose rank is at most 3 under ours and under `reference`.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from fastprobe.kernels import reference
from fastprobe.kernels.gpu import backend
from fastprobe.kernels.gpu.common import schedule_table

from .gpu import GATE, RESULTS, Clock, relative_error, versions
from .gpu_peers import bmm_batch, fused, problem, put

SHAPES = {
    "A": (100, 144, 144, 64, "centroid"),
    "esc50": (35, 50, 96, 32, "centroid"),
    "A, wide audio": (100, 144, 768, 64, "centroid"),
    "128 classes": (128, 182, 182, 64, "centroid"),
}
STEPS, PROBES, ROUNDS = 100, 4224, 5


def gram_compiled(batch, device, graph=True):
    """All probes at once through their Gram matrices: torch.compile's step, replayed as a CUDA graph; tf32 products."""
    t, c = put(batch, device), batch.config
    x, n, count = t.sounds(0), len(batch.train_classes), len(t.text)
    k_a, k_b = t.text @ t.text.mT, (x @ x.T).contiguous()
    za, zb = t.text @ t.w, (x @ t.v).expand(count, -1, -1)
    schedule = torch.from_numpy(schedule_table(c)).to(device)
    state = [torch.empty(count, n, c.dim, device=device) for _ in range(8)] + [torch.empty(count, 1, 1, device=device) for _ in range(2)]
    at = torch.zeros(1, dtype=torch.int64, device=device)
    eye = torch.eye(n, device=device)

    def step(za, zb, ma, mb, ua, ub, na, nb, sa, sb, at):
        la, lb = (torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(1e-12) for z in (za, zb))
        a, b = za / la, zb / lb
        g = (torch.softmax(b @ a.mT / c.temperature, dim=-1) - eye) / (n * c.temperature)
        da, db = g.mT @ b, g @ a
        da = (da - a * (a * da).sum(-1, keepdim=True)) / la
        db = (db - b * (b * db).sum(-1, keepdim=True)) / lb
        rate, second = schedule[at, 0], schedule[at, 1]
        for z, m, u, moment, s, k, dz in ((za, ma, ua, na, sa, k_a, da), (zb, mb, ub, nb, sb, k_b, db)):
            kd = k @ dz
            s.mul_(0.99).add_((dz * kd).sum(dim=(1, 2), keepdim=True) / c.dim, alpha=0.01)
            m.mul_(0.9).add_(kd, alpha=0.1)
            moment.mul_(0.9).add_(dz, alpha=0.1)
            size = rate / (s * second).sqrt().clamp_min(1e-30)
            z.sub_(size * m)
            u.add_(size * moment)
        at.add_(1)

    def reset():
        state[0].copy_(za)
        state[1].copy_(zb)
        for tensor in (*state[2:], at):
            tensor.zero_()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        for _ in range(3):
            reset()
            compiled(*state, at)
        torch.cuda.synchronize()
        replayed = torch.cuda.CUDAGraph()
        with torch.cuda.graph(replayed):
            compiled(*state, at)

    def run():
        with torch.inference_mode():
            reset()
            for _ in range(c.steps):
                replayed.replay()
            return t.w - t.text.mT @ state[4], t.v - x.T @ state[5]

    return run


def decisions(shape: tuple, trainer: str, device: torch.device) -> float:
    """Share of queries of four probes on which `trainer` and `reference` agree whether the rank is at most 3, after 200 steps."""
    batch = problem(*shape, 4, 200)
    chosen = backend.trainers
    backend.trainers = lambda *_: [trainer]
    try:
        got = backend.train(batch, str(device))
    finally:
        backend.trainers = chosen
    return float(np.mean((got.ranks <= 3) == (reference.train(batch).ranks <= 3)))


def main() -> int:
    """See the module."""
    device = torch.device("cuda:0")
    clock, report = Clock(device), {"versions": versions(torch.device("cuda:0")), "steps": STEPS, "shapes": {}}
    stem = "gpu-onchip-" + "-".join(report["versions"]["device"].lower().split())
    for name, shape in SHAPES.items():
        ways = {
            "on-chip": (PROBES, lambda b: fused(b, device, "onchip")),
            "gram": (PROBES, lambda b: fused(b, device, "gram")),
            "torch.compile, same algebra": (1056, lambda b: gram_compiled(b, device)),
            "PyTorch bmm, heads": (1056, lambda b: bmm_batch(b, device)),
        }
        rows, runs = {}, {}
        for way, (probes, make) in ways.items():
            row = rows[way] = {"probes": probes}
            torch.backends.cuda.matmul.allow_tf32 = "torch" in way.lower()
            try:
                few = problem(*shape, 2, 10)
                want = reference.train(few, heads=True)
                got = make(few)()
                row["error"] = max(relative_error(g[:2], w) for g, w in zip(got, (want.text_heads, want.audio_heads)))
                if row["error"] <= GATE["tf32"]:
                    run = make(problem(*shape, probes, STEPS))

                    def timed(run=run, tf32=torch.backends.cuda.matmul.allow_tf32):
                        torch.backends.cuda.matmul.allow_tf32 = tf32
                        run()

                    timed()
                    runs[way] = timed
                if way in ("on-chip", "gram"):
                    row["acc3_agreement"] = decisions(shape, {"on-chip": "onchip"}.get(way, way), device)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:400]
            print(name, way, row, flush=True)
        for way, t in clock.interleaved(runs, ROUNDS).items():
            rows[way] |= {"seconds": t, "probe_steps_per_s": rows[way]["probes"] * STEPS / t["median"]}
            print(name, way, f"{rows[way]['probe_steps_per_s'] / 1e6:.2f} M probe-steps/s", t, flush=True)
        # The trainer's kernel by itself, from the profiler's clock on the device.
        if "on-chip" in runs:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
                runs["on-chip"]()
                torch.cuda.synchronize()
            rows["on-chip"]["kernels_us"] = {e.key[:60]: e.device_time_total for e in profiled.key_averages() if e.device_time_total > 50}
            print(name, rows["on-chip"]["kernels_us"], flush=True)
        report["shapes"][name] = {"shape": shape, "methods": rows}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
