"""Counts per step of the trainers at the benchmark's shapes, written to counts.json: `python tests/ptx/count.py`.

A count is the difference between 17 and 9 steps of one probe, so what happens once cancels. L2 traffic is
sectors of 32 bytes that warps ask for; instructions are PTX, per warp; a barrier is counted per program. What
registers cannot hold goes through local memory, which PTX does not show: bytes a thread, as the assembler says, once for
each place in the program text.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parent), str(here.parent.parent)]

import torch
from triton import knobs

from ptx import emulator
from ptx.launch import backend, sources
from support import triton_cases as cases

TABLE = Path(__file__).with_name("counts.json")
FEW, MANY = 9, 17
A, B = (144, 100, 1440, 144, 144), (144, 100, 1440, 144, 768)
CELLS = {
    "A/onchip/tf32": (A, {"dim": 64, "sampling": "centroid", "precision": "tf32"}, "onchip"),
    "A/gram/tf32": (A, {"dim": 64, "sampling": "centroid", "precision": "tf32"}, "gram"),
    "A/gram/bf16": (A, {"dim": 64, "sampling": "centroid", "precision": "bf16"}, "gram"),
    "A/resident/tf32": (A, {"dim": 64, "sampling": "centroid", "precision": "tf32"}, "resident"),
    "A128/onchip/tf32": (A, {"dim": 128, "sampling": "centroid", "precision": "tf32"}, "onchip"),
    "A128/gram/tf32": (A, {"dim": 128, "sampling": "centroid", "precision": "tf32"}, "gram"),
    "B/stream/tf32": (B, {"dim": 64, "precision": "tf32"}, "stream"),
    "B/resident/tf32": (B, {"dim": 64, "precision": "tf32"}, "resident"),
}


def _of_a_run(shape: tuple[int, ...], config: dict, trainer: str, steps: int) -> tuple[dict[str, int], int]:
    """Counts of one probe's training, and the number of warps of its program."""
    from fastprobe.kernels.gpu.backend import Shared

    batch = cases.make(*shape, probes=1, **config, steps=steps)
    shared = Shared(batch, torch.device("cpu"))
    shared.trainers = [trainer]
    emulator.start_counting()
    shared.fit(torch.from_numpy(batch.permutations[:, batch.train_classes].astype("int32")))
    return emulator.counted(), emulator.most_warps()


def per_step(name: str, capability: int = 90) -> dict[str, float]:
    """What a step of `name`'s trainer costs, by kind."""
    emulator.lib.set_races(0)  # counting needs no shadows, and is several times faster without
    try:
        with backend(capability):
            few, _ = _of_a_run(*CELLS[name], FEW)
            many, warps = _of_a_run(*CELLS[name], MANY)
    finally:
        emulator.lib.set_races(1)
    step = {k: (many[k] - few[k]) / (MANY - FEW) for k in many}
    return {
        "l2_kb": round(32 * (step["load_sectors"] + step["store_sectors"]) / 1e3, 1),
        "barriers": round(step["barriers"] / warps, 1),
        "instructions": round(step["instructions"] / warps, 1),
        "wavefronts": round(step["lds_waves"] + step["sts_waves"] + step["ldmatrix_waves"], 1),
        "mflop": round(2 * step["macs"] / 1e6, 2),
        "warps": warps,
        "spill_bytes": spilled(sources[CELLS[name][2] + "_kernel"], capability),
    }


def spilled(ptx: str, capability: int) -> int:
    """Bytes that a thread of a program writes to and reads from local memory because registers ran out."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        suffix = "a" if capability >= 90 else ""
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name=sm_{capability}{suffix}", file.name, "-o", "/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill", told)))


# An H100 SXM by its data sheet, L2 by published microbenchmarks, and a guess of what a barrier of eight warps costs.
PROCESSORS, HERTZ, L2_BYTES, TF32_FLOPS, BARRIER_CYCLES = 132, 1.755e9, 5.5e12, 495e12, 40


def ceilings(step: dict[str, float]) -> dict[str, float]:
    """Million probe-steps a second that each resource allows when nothing else binds.

    A processor issues one instruction a cycle for each of four schedulers and serves one wavefront a cycle; a
    barrier's wait is taken as not hidden, as if one program had the processor to itself.
    """
    cycles = PROCESSORS * HERTZ
    return {
        "l2": L2_BYTES / (step["l2_kb"] * 1e3) / 1e6,
        "wavefronts": cycles / step["wavefronts"] / 1e6,
        "issue": cycles / (step["instructions"] * step["warps"] / 4) / 1e6,
        "matrix": TF32_FLOPS / (step["mflop"] * 1e6) / 1e6,
        "barriers": cycles / (step["barriers"] * BARRIER_CYCLES) / 1e6,
    }


if __name__ == "__main__":
    table = {f"{name}/cc9.0": per_step(name) for name in CELLS}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(TABLE.read_text())
    for name, step in table.items():
        print(name, {k: round(v, 1) for k, v in ceilings(step).items()})
