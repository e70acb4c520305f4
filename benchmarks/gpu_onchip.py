"""The trainers on the chip against our others and against torch.compile and JAX with the same algebra, interleaved, behind a check.

    python -m benchmarks.gpu_onchip          needs an NVIDIA GPU of compute capability 9.0

Writes benchmarks/results/gpu-onchip-<device>.json after every shape. Rates are probe-steps a second; every method trains the same kind of
probes from tables to heads, peers so many at a time as `TOGETHER` lists. Decisions: share of queries whose rank is at most 3 under
ours and under `reference`.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np
import torch

from fastprobe.kernels import reference
from fastprobe.kernels.gpu import backend

from .gpu import GATE, RESULTS, Clock, relative_error, versions
from .gpu_methods import fused
from .gpu_peers import compiled_batch, jax_missing, problem
from .gpu_peers_gram import compiled_gram, jax_gram

SHAPES = {
    "A": (100, 144, 144, 64, "centroid"),
    "B": (100, 144, 768, 64, "clip"),
    "esc50": (35, 50, 96, 32, "centroid"),
    "A, wide audio": (100, 144, 768, 64, "centroid"),
    "128 classes": (128, 182, 182, 64, "centroid"),
    "A, d = 128": (100, 144, 144, 128, "centroid"),
}
STEPS, PROBES, ROUNDS = 100, 4224, 5
TOGETHER = (264, 1056, 4224)


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
        best, other = ("onchip", "gram") if shape[4] == "centroid" else ("stream", "resident")
        ways = {trainer: (PROBES, partial(fused, device=device, trainer=trainer)) for trainer in (best, other)}
        for probes in TOGETHER:
            ways[f"torch.compile, same algebra, {probes}"] = probes, partial(compiled_gram, device=device)
            if not jax_missing(device):
                ways[f"JAX, same algebra, {probes}"] = probes, partial(jax_gram, device=device)
        ways["torch.compile, heads"] = 1056, partial(compiled_batch, device=device)
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
                if way in (best, other):
                    row["acc3_agreement"] = decisions(shape, way, device)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:400]
            print(name, way, row, flush=True)
        for way, t in clock.interleaved(runs, ROUNDS).items():
            rows[way] |= {"seconds": t, "probe_steps_per_s": rows[way]["probes"] * STEPS / t["median"]}
            print(name, way, f"{rows[way]['probe_steps_per_s'] / 1e6:.2f} M probe-steps/s", t, flush=True)
        # The trainer's kernel by itself, from the profiler's clock on the device.
        if best in runs:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
                runs[best]()
                torch.cuda.synchronize()
            rows[best]["kernels_us"] = {e.key[:60]: e.device_time_total for e in profiled.key_averages() if e.device_time_total > 50}
            print(name, rows[best]["kernels_us"], flush=True)
        report["shapes"][name] = {"shape": shape, "methods": rows}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
