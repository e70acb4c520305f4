"""Closed-form probes and similarities: `python benchmarks/closed.py` checks, then measures in one interleaved run.

ridge at 144 classes, 43 of them unseen with 30 clips each, against torch.bmm with a comparison, against the contrastive trainer at
shape A, and against what the machine's best matrix product would take for ridge's arithmetic alone;
similarities at 50 and 318 classes, in permutations per second
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch

from fastprobe.kernels import bench, cpp_backend
from fastprobe.kernels.closed import ClosedForm
from fastprobe.kernels.similarity import similarity
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.probes import Ridge, parse_similarity
from shapes import SHAPES


def interleaved(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method, turn by turn; the first turn warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ridge_problem(jobs: int) -> tuple[ClosedForm, np.ndarray]:
    """Ridge at 144 classes of 30 clips, 43 of them unseen."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(144), 30)
    text, audio = rng.standard_normal((144, 143)), rng.standard_normal((len(labels), 143))
    queries = np.flatnonzero(labels >= 101)
    permutations = np.stack([rng.permutation(144) for _ in range(jobs)])
    return ClosedForm(Ridge(), text, audio, labels, np.arange(101), queries), permutations


def with_bmm(form: ClosedForm, permutations: np.ndarray) -> Callable[[], np.ndarray]:
    """The same ranks by a batched product: K gathered, torch.matmul, one comparison; 32 jobs at once."""
    left = torch.from_numpy(form.form.smoother[0].astype(np.float32))
    kernel = torch.from_numpy((form.form.text @ form.form.unit.T).astype(np.float32))
    pi, labels = torch.from_numpy(permutations), torch.from_numpy(form.labels)
    train = torch.from_numpy(form.train)

    def ranks() -> np.ndarray:
        out = []
        for part in pi.split(32):
            scores = torch.matmul(left, kernel[part[:, train][:, :, None], part[:, None, :]])
            true = scores.gather(2, labels.expand(len(part), -1)[:, :, None])
            out.append(scores.shape[2] - (scores < true).sum(dim=2))
        return torch.cat(out).numpy()

    return ranks


def main() -> None:
    """Check that all give the same ranks, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=256)
    parser.add_argument("--permutations", type=int, default=20_000)
    options = parser.parse_args()
    form, permutations = ridge_problem(options.jobs)
    peer = with_bmm(form, permutations)
    different = np.mean(form.ranks(permutations)[0] != peer())
    if different > 1e-3:
        raise SystemExit(f"the peer ranks {different:.2%} of the queries otherwise: nothing is measured")
    batch = bench.make_problem(SHAPES["A"], ProbeConfig(dim=SHAPES["A"].dim, sampling=SHAPES["A"].sampling), 8)
    square = torch.ones(2048, 2048)
    methods = {
        "sgemm, 2048 wide": lambda: torch.mm(square, square),
        "ridge, cpp": lambda: form.ranks(permutations),
        "ridge, torch.matmul": peer,
        "contrastive, cpp, shape A": lambda: cpp_backend.train(batch),
    }
    # One job's product: every query with every train class, and that with every text.
    arithmetic = 2.0 * len(form.labels) * len(form.train) * len(permutations[0])
    jobs = {
        "sgemm, 2048 wide": 2.0 * 2048**3 / arithmetic,
        "ridge, cpp": options.jobs,
        "ridge, torch.matmul": options.jobs,
        "contrastive, cpp, shape A": batch.n_probes,
    }
    seconds = interleaved(methods, options.rounds)
    share = statistics.median(
        (t / jobs["sgemm, 2048 wide"]) / (u / options.jobs) for t, u in zip(seconds["sgemm, 2048 wide"], seconds["ridge, cpp"])
    )
    print(f"ridge, cpp reaches {share:.0%} of the rate of a large matrix product, gather and rank count included")
    for name, turns in seconds.items():
        ratio = statistics.median((t / jobs[name]) / (u / options.jobs) for t, u in zip(turns, seconds["ridge, cpp"]))
        print(f"{name:28s} {jobs[name] / statistics.median(turns):12,.0f} jobs/s   {ratio:6.2f} x the time of ridge, cpp")
    rng = np.random.default_rng(1)
    for classes in (50, 318):
        text, audio = rng.standard_normal((classes, 96)), rng.standard_normal((classes, 64))
        index = np.stack([rng.permutation(classes) for _ in range(options.permutations * 50 // classes)])
        runs = {name: partial(similarity, parse_similarity(name), text, audio, index) for name in ("cka", "rsa", "knn")}
        for name, turns in interleaved(runs, 1).items():
            print(f"{name}, {classes} classes".ljust(28), f"{len(index) / statistics.median(turns):12,.0f} permutations/s")


if __name__ == "__main__":
    main()
