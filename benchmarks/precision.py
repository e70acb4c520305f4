"""What rounding the factors of every product does to a probe, on a CPU: the definition with rounded factors.

    python -m benchmarks.precision                              two simulated shapes, 12 probes of 100 steps each
    python -m benchmarks.precision --text T.npz --audio A.npz   a pair of tables instead

Matrix units round (or cut) factors to 10 or 7 bits of mantissa and add in float32. Here factors are rounded so and added in
float64: what is left out is the rounding of sums, which is that of float32. A GPU's own answer is in tests/test_cuda.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import triton_cases as cases
from fastprobe.config import ProbeConfig
from fastprobe.kernels import reference
from fastprobe.kernels.batch import ProbeBatch
from fastprobe.run import prepare

# Bits of mantissa kept, and whether the rest is rounded to nearest (else cut off).
ROUNDINGS = {"tf32": (10, True), "tf32, cut": (10, False), "bf16": (7, True)}


class Rounded(np.ndarray):
    """Float64 values whose matrix products round both factors first."""

    bits, nearest = 10, True

    def __matmul__(self, other):
        return np.matmul(self.rounded(self), self.rounded(other)).view(type(self))

    @classmethod
    def rounded(cls, x: np.ndarray) -> np.ndarray:
        """As float32 with so many bits of mantissa, ties away from zero; float64 again."""
        drop = 23 - cls.bits
        raw = np.asarray(x, np.float32).view(np.int32)
        if cls.nearest:
            raw = raw + np.int32(1 << (drop - 1))
        return (raw & np.int32(-(1 << drop))).view(np.float32).astype(np.float64)


def rounding(bits: int, nearest: bool) -> type[Rounded]:
    """The array type of one rounding."""
    return type("Rounded", (Rounded,), {"bits": bits, "nearest": nearest})


def compare(batch: ProbeBatch, kind: type[Rounded]) -> dict[str, float]:
    """Against the definition: share of equal acc@3 decisions and ranks after all steps, and errors of the heads early on."""
    def rounded(b: ProbeBatch) -> ProbeBatch:
        return dataclasses.replace(b, **{f: getattr(b, f).view(kind) for f in ("text", "audio", "text_start", "audio_start")})
    early = dataclasses.replace(batch, config=dataclasses.replace(batch.config, steps=6), permutations=batch.permutations[:3],
                                clips=None if batch.clips is None else batch.clips[:6])
    want, got = reference.train(batch), reference.train(rounded(batch))
    want6, got6 = reference.train(early, heads=True), reference.train(rounded(early), heads=True)
    return {"decisions": float(np.mean((got.ranks <= 3) == (want.ranks <= 3))), "ranks": float(np.mean(got.ranks == want.ranks)),
            "hits": float(abs(np.mean(got.ranks <= 3) - np.mean(want.ranks <= 3))),
            "heads": max(cases.relative(np.asarray(getattr(got6, f)), getattr(want6, f)) for f in ("text_heads", "audio_heads"))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text")
    parser.add_argument("--audio")
    parser.add_argument("--probes", type=int, default=12)
    given = parser.parse_args()
    if given.text:
        batches = {f"{s}": prepare(given.text, given.audio, permutations=given.probes, splits=1, backend="reference",
                                   probe=ProbeConfig(sampling=s)).batch(0, 0, 0, 0, given.probes) for s in ("clip", "centroid")}
    else:
        shapes = {"A": ((144, 100, 1440, 144, 144), "centroid"), "B": ((144, 100, 1440, 144, 768), "clip")}
        batches = {name: cases.make(*shape, probes=given.probes, steps=100, dim=64, sampling=sampling)
                   for name, (shape, sampling) in shapes.items()}
    print("| batch | products | equal acc@3 decisions | equal ranks | difference of acc@3 | error of the heads after 6 steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, batch in batches.items():
        for label, (bits, nearest) in ROUNDINGS.items():
            found = compare(batch, rounding(bits, nearest))
            print(f"| {name} | {label} | {found['decisions']:.4%} | {found['ranks']:.2%} | {found['hits']:.5f} | {found['heads']:.1e} |",
                  flush=True)


if __name__ == "__main__":
    main()
