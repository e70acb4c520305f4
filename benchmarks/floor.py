"""How much of what the cores can do is used: `python benchmarks/floor.py` (needs g++ and AVX-512).

A small loop of independent multiply-adds gives the machine's peak in the same interleaved run; a step's products alone, counted by the
algebra that `cpp` chooses, give its share. Softmax, norms, optimiser, gathers and ranks are in the time and not in the count.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fastprobe.kernels import bench, cpp_backend
from fastprobe.protocol.config import ProbeConfig
from shapes import SHAPES, Shape


def products(shape: Shape) -> float:
    """Operations of the products of one step: similarities and their two gradients, and each side by Gram matrix or by its head."""
    n, d = shape.train, shape.dim
    text, audio = (min(2.0 * n * n * d, 4.0 * n * r * d) for r in (shape.text_width, shape.audio_width))
    if shape.sampling == "clip":
        audio = 4.0 * n * shape.audio_width * d
    return 6.0 * n * n * d + text + audio


def main() -> None:
    """Build the loop, interleave, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["A", "B", "35", "222", "500"], choices=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floor"
        source = Path(__file__).with_name("floor.cpp")
        subprocess.run(["g++", "-O3", "-march=native", "-fopenmp", "-o", program, source], check=True)

        def peak() -> list[float]:
            command = [program, str(options.threads), "20000000"]
            return [float(v) for v in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

        print("| shape | products | us / probe-step | GFLOP/s | peak | share | left at most |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for name in options.shapes:
            shape = SHAPES[name]
            for column, precision in enumerate(("ieee", "bf16")):
                config = ProbeConfig(dim=shape.dim, steps=20, sampling=shape.sampling, precision=precision)
                batch = bench.make_problem(shape, config, max(8, int(64 * (100 / shape.train) ** 2) // 8 * 8))
                bench.check(bench.Prepared(lambda batch=batch: _losses(batch, options.threads), batch))
                shares, seconds, peaks = [], [], []
                for turn in range(options.rounds + 1):
                    peaks.append(peak()[column])
                    start = time.perf_counter()
                    cpp_backend.train(batch, threads=options.threads)
                    seconds.append((time.perf_counter() - start) / (batch.n_probes * config.steps))
                    shares.append(products(shape) / seconds[-1] / 1e9 / peaks[-1])
                    if turn == 0:  # warms up
                        shares, seconds, peaks = [], [], []
                share, second = statistics.median(shares), statistics.median(seconds)
                kind, rate = "float32" if precision == "ieee" else "bfloat16", products(shape) / second / 1e9
                measured = f"{1e6 * second:.1f} | {rate:.0f} | {statistics.median(peaks):.0f} | {share:.0%} | {1 / share:.2f} x"
                print(f"| {name} | {kind} | {measured} |", flush=True)


def _losses(batch, threads):
    result = cpp_backend.train(batch, threads=threads)
    return result.loss, result.ranks


if __name__ == "__main__":
    main()
