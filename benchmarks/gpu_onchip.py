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

from .gpu import GATE, RESULTS, Clock, relative_error, versions
from .gpu_peers import bmm_batch, compiled_gram, fused, problem

SHAPES = {
    "A": (100, 144, 144, 64, "centroid"),
    "esc50": (35, 50, 96, 32, "centroid"),
    "A, wide audio": (100, 144, 768, 64, "centroid"),
    "128 classes": (128, 182, 182, 64, "centroid"),
}
STEPS, PROBES, ROUNDS = 100, 4224, 5


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
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(0)[0] != 9:
        print("benchmarks.gpu_onchip needs an NVIDIA GPU of compute capability 9.0, and PyTorch sees none.", file=sys.stderr)
        return 2
    device = torch.device("cuda:0")
    clock, report = Clock(device), {"versions": versions(device), "steps": STEPS, "shapes": {}}
    stem = "gpu-onchip-" + "-".join(report["versions"]["device"].lower().split())
    for name, shape in SHAPES.items():
        ways = {
            "on-chip": (PROBES, lambda b: fused(b, device, "onchip")),
            "gram": (PROBES, lambda b: fused(b, device, "gram")),
            "torch.compile, same algebra": (1056, lambda b: compiled_gram(b, device)),
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
