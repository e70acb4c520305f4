"""What rounding the factors of every product does to a probe, on a CPU: the definition with rounded factors.

    python -m benchmarks.precision                              two simulated shapes, 12 probes of 100 steps each
    python -m benchmarks.precision --text T.npz --audio A.npz   a pair of tables instead

Matrix units round (or cut) factors to 10 or 7 bits of mantissa and add in float32. Here factors are rounded so and added in
float64: what is left out is the rounding of sums, which is that of float32. A GPU's own answer is in tests/kernels/test_cuda.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fastprobe.kernels import reference
from fastprobe.kernels.batch import BatchResult, ProbeBatch
from fastprobe.kernels.gpu.common import schedule_table
from fastprobe.kernels.ranking import ranks_of
from fastprobe.protocol.config import ProbeConfig
from fastprobe.runs.run import prepare
from support import triton_cases as cases

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


def by_heads(batch: ProbeBatch, kind: type[Rounded], heads: bool = False) -> BatchResult:
    """The definition with rounded factors."""
    tables = ("text", "audio", "text_start", "audio_start")
    return reference.train(dataclasses.replace(batch, **{f: getattr(batch, f).view(kind) for f in tables}), heads=heads)


class _Side:
    """A head that is stepped through its outputs alone, as `triton_gram` does, under adam-mini without decay.

    The first and the last product, tf32x3 there, are exact here.
    """

    def __init__(self, x: np.ndarray, w: np.ndarray, kind: type[Rounded]) -> None:
        self.x, self.w, self.k = x, w, (x @ x.T).view(kind)
        self.z = (x @ w).view(kind)
        self.zm, self.u, self.um, self.v = 0.0, 0.0, 0.0, 0.0

    def step(self, dz: np.ndarray, rate: float, second: float, dim: int) -> None:
        kdz = self.k @ dz
        self.v = 0.99 * self.v + 0.01 * np.sum(kdz * dz) / dim
        rate /= np.sqrt(self.v * second)
        self.zm, self.um = 0.9 * self.zm + 0.1 * kdz, 0.9 * self.um + 0.1 * dz
        self.z, self.u = self.z - rate * self.zm, self.u + rate * self.um

    def head(self) -> np.ndarray:
        return self.w - self.x.T @ np.asarray(self.u)


def by_gram(batch: ProbeBatch, kind: type[Rounded], heads: bool = False) -> BatchResult:
    """The same run through the Gram matrices with rounded factors; centroids, one-way loss."""
    c, results, schedule = batch.config, [], schedule_table(batch.config).astype(np.float64)
    m = len(batch.train_classes)
    for permutation in batch.permutations:
        text = batch.text[permutation]
        t, x = (
            _Side(rows, start, kind)
            for rows, start in ((text[batch.train_classes], batch.text_start), (batch.step_rows(0), batch.audio_start))
        )
        for rate, second, _ in schedule:
            (a, a_len), (b, b_len) = reference.norm(t.z), reference.norm(x.z)
            g = (softmax(b @ a.T / c.temperature, axis=1).view(kind) - np.eye(m)) / (m * c.temperature)
            da, db = g.T @ b, g @ a
            t.step((da - a * np.sum(a * da, axis=1, keepdims=True)) / a_len, rate, second, c.dim)
            x.step((db - b * np.sum(b * db, axis=1, keepdims=True)) / b_len, rate, second, c.dim)
        w, v = t.head(), x.head()
        a, b = reference.norm(text.view(kind) @ w)[0], reference.norm(batch.audio[batch.queries].view(kind) @ v)[0]
        scores, y = b @ a.T, batch.labels[batch.queries]
        results.append((0.0, ranks_of(scores, y), ranks_of(scores, y, batch.gallery), np.asarray(w), np.asarray(v)))
    return BatchResult(*(np.array(column) for column in zip(*results)))


def compare(batch: ProbeBatch, kind: type[Rounded], train: Callable[..., BatchResult]) -> dict[str, float]:
    """Against the definition: share of equal acc@3 decisions and ranks after all steps, and errors of the heads early on."""
    early = dataclasses.replace(
        batch,
        config=dataclasses.replace(batch.config, steps=6),
        permutations=batch.permutations[:3],
        clips=None if batch.clips is None else batch.clips[:6],
    )
    want, got = reference.train(batch), train(batch, kind)
    want6, got6 = reference.train(early, heads=True), train(early, kind, heads=True)
    return {
        "decisions": float(np.mean((got.ranks <= 3) == (want.ranks <= 3))),
        "ranks": float(np.mean(got.ranks == want.ranks)),
        "hits": float(abs(np.mean(got.ranks <= 3) - np.mean(want.ranks <= 3))),
        "heads": max(cases.relative(np.asarray(getattr(got6, f)), getattr(want6, f)) for f in ("text_heads", "audio_heads")),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text")
    parser.add_argument("--audio")
    parser.add_argument("--probes", type=int, default=12)
    given = parser.parse_args()
    if given.text:
        batches = {
            f"{s}": prepare(
                given.text, given.audio, permutations=given.probes, splits=1, backend="reference", probe=ProbeConfig(sampling=s)
            ).batch(0, 0, 0, 0, given.probes)
            for s in ("clip", "centroid")
        }
    else:
        shapes = {"A": ((144, 100, 1440, 144, 144), "centroid"), "B": ((144, 100, 1440, 144, 768), "clip")}
        batches = {
            name: cases.make(*shape, probes=given.probes, steps=100, dim=64, sampling=sampling)
            for name, (shape, sampling) in shapes.items()
        }
    print("| batch | stepped | products | equal acc@3 decisions | equal ranks | difference of acc@3 | error of the heads after 6 steps |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, batch in batches.items():
        for way, train in {"heads": by_heads, "outputs": by_gram}.items():
            if train is by_gram and batch.clips is not None:
                continue
            for label, (bits, nearest) in ROUNDINGS.items():
                found = compare(batch, rounding(bits, nearest), train)
                print(
                    f"| {name} | {way} | {label} | {found['decisions']:.4%} | {found['ranks']:.2%} | {found['hits']:.5f} | "
                    f"{found['heads']:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
