"""GPU benchmarks: methods side by side, interleaved in one run, each behind a correctness gate.

    python -m benchmarks.gpu                 on an NVIDIA GPU; benchmarks/results/gpu-<device>.{json,md}
    python -m benchmarks.gpu --dry-run       tiny sizes on the CPU, Triton interpreted; checks the paths, writes nothing

A method that disagrees with float64 (heads after ten steps) gets no speed. Times are medians over rounds in which
every method runs once, so drift hits all alike. Ceilings are measured on the same device in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {
    "A": (100, 144, 144, 64, "centroid"),
    "B": (100, 144, 768, 64, "clip"),
    "esc50": (35, 50, 96, 32, "clip"),
    "audioset": (222, 318, 128, 64, "clip"),
    "large": (500, 500, 512, 128, "clip"),
}
TINY = {"A": (9, 11, 13, 8, "centroid"), "large": (17, 11, 13, 136, "clip")}
# Relative error of the heads after ten steps, against float64, that a precision may have.
GATE = {"ieee": 1e-4, "tf32x3": 2e-4, "tf32": 3e-2, "bf16": 2e-1}
# No new configuration of the sweep is begun so many seconds after the start.
SECONDS = 240
# Configurations of the trainers of one program per probe: GramConfig's bs, bn, bk, warps, fold; ResidentConfig's bs, bk, bu, warps,
# stages.
CANDIDATES = {
    "gram": (
        (128, 128, 128, 8, 8),
        (128, 128, 128, 8, 2),
        (128, 128, 128, 8, 32),
        (128, 128, 32, 8, 8),
        (32, 128, 128, 8, 8),
        (64, 64, 64, 4, 8),
        (32, 64, 64, 4, 8),
    ),
    "resident": ((32, 32, 64, 8, 1), (32, 32, 64, 8, 2), (32, 32, 0, 8, 1), (32, 32, 0, 8, 2), (32, 32, 0, 4, 1), (64, 32, 64, 8, 1)),
}


def relative_error(got, want) -> float:
    """|got - want| / |want|; infinite when anything is NaN."""
    import numpy as np

    error = float(np.linalg.norm(got.double().cpu().numpy() - want) / np.linalg.norm(want))
    return error if error == error else float("inf")


class Clock:
    """Times calls on a device and keeps the peak of its memory."""

    def __init__(self, device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def __call__(self, run: Callable[[], Any]) -> float:
        """Seconds of one call, the device idle before and after."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def interleaved(self, runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
        """Median, lowest and highest seconds of each, over rounds of all."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(self(run))
        return {name: {"median": statistics.median(t), "low": min(t), "high": max(t)} for name, t in times.items()}

    def memory(self, run: Callable[[], Any]) -> tuple[Any, int]:
        """What a call gives, and the bytes PyTorch allocates at its peak beyond those before it; 0 on a CPU."""
        import torch

        if not self.cuda:
            return run(), 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = run()
        torch.cuda.synchronize()
        return value, torch.cuda.max_memory_allocated() - before


def ceilings(clock: Clock, size: int) -> dict[str, float]:
    """Measured TFLOP/s of a large square product per precision, and TB/s of a large copy (read plus written)."""
    import torch

    out, flop = {}, 2 * size**3
    for precision, dtype in (("ieee", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
        out[precision] = flop / clock.interleaved({"mm": lambda a=a, b=b: [a @ b for _ in range(5)]}, 5)["mm"]["median"] * 5 / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    out["tf32x3"] = out["tf32"] / 3
    source = torch.randn(size * size * 4, device=clock.device)
    target = torch.empty_like(source)
    seconds = clock.interleaved({"copy": lambda: target.copy_(source)}, 7)["copy"]["median"]
    out["copy_TB_per_s"] = 2 * source.numel() * 4 / seconds / 1e12
    return out


def guarded(report: dict, name: str, call: Callable[[], Any]) -> Any:
    """The call's value; what it raises is written down instead, so that one failure costs one entry."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        report.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"[:500]
        return None


def training(
    report: dict,
    clock: Clock,
    shapes: dict,
    steps: int,
    gate_steps: int,
    rounds: int,
    probes: int | None,
    wanted: dict[str, tuple[str, ...]],
) -> None:
    """Probe-steps per second of every method at every shape."""
    import torch

    from fastprobe.kernels import reference
    from fastprobe.kernels.gpu.backend import trainers
    from fastprobe.kernels.gpu.common import architecture

    from .gpu_methods import METHODS, ours
    from .gpu_peers import flops

    for shape_name, shape in shapes.items():
        rows, runs, batches, memory = {}, {}, {}, {}
        trainer = trainers(next(m for m in METHODS if m.name == "ours, tf32").batch(shape, steps, 1), architecture(clock.device))[0]
        through_gram = [m.name for m in METHODS if m.prepare is ours and trainer in ("onchip", "gram")]
        for method in METHODS:
            if shape_name in wanted and method.name not in wanted[shape_name]:
                continue
            method = method if probes is None else method.scaled(probes)
            if shape_name == "large" or shape_name == "audioset":
                method = method.scaled(256)
            key = f"{shape_name}: {method.name}"
            rows[method.name] = {"precision": method.precision, "optimizer": method.optimizer, "error": None, "correct": False}
            if reason := method.why_not(clock.device):
                rows[method.name]["why_not"] = reason
                continue
            torch.backends.cuda.matmul.allow_tf32 = method.precision == "tf32"

            def prepared(count, probes=None, method=method, shape=shape):
                return method.prepare(method.batch(shape, count, probes), clock.device)

            def gate(method=method, shape=shape, prepared=prepared):
                want = reference.train(method.batch(shape, gate_steps, 2), heads=True)
                w, v = prepared(gate_steps, 2)()
                return max(relative_error(w[:2], want.text_heads), relative_error(v[:2], want.audio_heads))

            error = guarded(report, key, gate)
            rows[method.name] |= {"error": error, "correct": error is not None and error <= GATE[method.precision]}
            if rows[method.name]["correct"]:

                def ready(prepared=prepared):
                    run = prepared(steps)
                    run()
                    return run

                run, peak = guarded(report, key, lambda ready=ready: clock.memory(ready)) or (None, 0)
                if run is not None:

                    def with_setting(run=run, tf32=method.precision == "tf32"):
                        torch.backends.cuda.matmul.allow_tf32 = tf32
                        run()

                    runs[method.name], batches[method.name] = with_setting, method.probes
                    memory[method.name] = None if "JAX" in method.name else peak  # JAX has its own allocator
            print(f"{key}: error {error}", flush=True)
        for name, t in clock.interleaved(runs, rounds).items():
            rate = batches[name] * steps / t["median"]
            executed = executed_flops(shape) if name in through_gram else flops(*shape[:4])
            rows[name] |= {
                "probes": batches[name],
                "seconds": t,
                "probe_steps_per_s": rate,
                "memory_bytes": memory[name],
                "TFLOP_per_s": rate * flops(*shape[:4]) / 1e12,
                "executed_flops_per_step": executed,
                "ceiling_share": rate * executed / 1e12 / report["ceilings"][rows[name]["precision"]],
            }
        report["training"][shape_name] = {
            "shape": shape,
            "steps": steps,
            "flops_per_step": flops(*shape[:4]),
            "bytes_per_step": moved(shape),
            "methods": rows,
            "trainer": trainer,
        }
        torch.backends.cuda.matmul.allow_tf32 = False


def executed_flops(shape: tuple) -> int:
    """Operations of a step through the Gram matrices: K dZ of either head, the similarities and their gradients."""
    n, _, _, d, _ = shape
    return 10 * n * n * d


def moved(shape: tuple) -> dict[str, float]:
    """Bytes per probe-step that our trainers ask of L2, and the least any trainer must ask of device memory.

    resident: both heads and moments read twice (moments) or once and written once each, tables read twice, and the unit
    rows and their gradients written and read once. gram: of either head 9 1/2 passes over n x d (Z read and written, its
    moment read twice and written, dZ written and read three times, U and its moment read and written in every eighth step),
    and K once. onchip: dZ of either head written and read again, in float16. stream: V and its moment read and written once, the
    clips of this step and the next, K_t, dZ of the texts.
    Least: heads in and out once per training of 100 steps.
    """
    n, r_text, r_audio, d, _ = shape
    heads = 4 * (r_text + r_audio) * d
    return {
        "resident": 5 * heads + 2 * 4 * n * (r_text + r_audio) + 6 * 4 * n * d,
        "onchip": 2 * 2 * 2 * n * d,
        "stream": 4 * 4 * r_audio * d + 2 * (2 * n * r_audio + n * n + 2 * n * d),
        "gram": 2 * 4 * (9.5 * n * d + n * n),
        "least": 2 * heads / 100,
    }


def sweep(report: dict, clock: Clock, shapes: dict, steps: int, probes: int, rounds: int, precision: str, until: float) -> None:
    """Both trainers of one program per probe under candidate configurations that fit and are right, as many as can be compiled
    before `until`."""
    from fastprobe.kernels import reference
    from fastprobe.kernels.gpu import gram as triton_gram
    from fastprobe.kernels.gpu import resident as triton_resident

    from .gpu_methods import fused
    from .gpu_peers import problem

    places = {"gram": (triton_gram, "gram_config"), "resident": (triton_resident, "resident_config")}
    for name in ("A", "B"):
        if name not in shapes:
            continue
        runs = {}
        few = problem(*shapes[name], 2, min(steps, 10), precision=precision)
        want = reference.train(few, heads=True)
        trainers = [t for t in CANDIDATES if t != "gram" or few.clips is None]
        train = {t: fused(problem(*shapes[name], probes, steps, precision=precision), clock.device, t) for t in trainers}
        for trainer, candidate in ((t, c) for t in trainers for c in CANDIDATES[t]):
            if time.perf_counter() > until:
                break
            if trainer == "gram":
                config = triton_gram.GramConfig(*candidate[:4], "sweep", candidate[4])
                label = "gram, BS {}, BN {}, BK {}, {} warps, fold {}".format(*candidate)
            else:
                bs, bk, bu, warps, stages = candidate
                config = triton_resident.ResidentConfig(bs, bk, warps, "sweep", bu, stages)
                label = "resident, BS {}, BK {}, BU {}, {} warps, {} stages".format(*candidate)

            def run(train, config=config, place=places[trainer]):
                pinned = getattr(*place)
                setattr(*place, lambda *_: config)
                try:
                    return train()
                finally:
                    setattr(*place, pinned)

            def gate(run=run, few=few, want=want, trainer=trainer):
                w, v = run(fused(few, clock.device, trainer))
                return max(relative_error(w, want.text_heads), relative_error(v, want.audio_heads))

            notes = {}
            error = guarded(notes, label, gate)  # one that does not fit is left out, no failure of this run
            if error is not None and error <= GATE[precision]:
                runs[label] = functools.partial(run, train[trainer])
            else:
                print(f"sweep {name}, {label}: left out, {notes.get('errors', {}).get(label, f'error {error}')}", flush=True)
        report["sweep"][f"{name}, {precision}"] = {k: probes * steps / t["median"] for k, t in clock.interleaved(runs, rounds).items()}


def ranking(report: dict, clock: Clock, size: tuple[int, int, int, int, int], rounds: int) -> None:
    """Queries per second: project and rank against batched torch, which stores the scores."""
    import torch
    import torch.nn.functional as F

    from fastprobe.kernels.gpu.common import padded_width
    from fastprobe.kernels.gpu.project import project
    from fastprobe.kernels.gpu.rank import rank, unseen_texts

    n_probes, n_queries, n_gallery, r, d = size
    device = clock.device
    x, text = torch.randn(n_queries, r, device=device), torch.randn(n_gallery, r, device=device)
    w, v = (torch.randn(n_probes, r, padded_width(d), device=device) for _ in range(2))
    rows, all_texts = (torch.arange(k, dtype=torch.int32, device=device)[None] for k in (n_queries, n_gallery))
    classes = torch.randint(0, n_gallery, (n_queries,), device=device, dtype=torch.int32)
    permuted = torch.stack([torch.randperm(n_gallery, device=device) for _ in range(n_probes)]).int()
    unseen_classes = torch.unique(classes).long()
    unseen = unseen_texts(permuted, unseen_classes)

    def fused(precision):
        gallery, squares = project(text, all_texts, w, precision=precision)
        z, _ = project(x, rows, v, precision=precision, norms=False)
        return rank(z, gallery, squares, permuted, classes, unseen, len(unseen_classes), precision=precision)[0]

    def plain(tf32):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        gallery = F.normalize(text @ w, dim=-1)
        s = torch.bmm(x @ v, gallery.mT)
        own = permuted.long()[:, classes.long()].unsqueeze(-1)
        out = n_gallery - (s < s.gather(2, own)).sum(2)
        torch.backends.cuda.matmul.allow_tf32 = False
        return out

    with torch.inference_mode():
        runs = {"torch, tf32": lambda: plain(True), **{f"ours, {p}": lambda p=p: fused(p) for p in ("ieee", "tf32", "bf16")}}
        a = F.normalize(text.double() @ w[:2].double(), dim=-1)
        s = torch.bmm(x.double() @ v[:2].double(), a.mT)
        want = n_gallery - (s < s.gather(2, permuted[:2].long()[:, classes.long()].unsqueeze(-1))).sum(2)
        table, good = {}, {}
        for name, run in runs.items():
            got = guarded(report, f"rank: {name}", run)
            agree = None if got is None else float(((got[:2] <= 3) == (want <= 3)).double().mean())
            table[name] = {"acc3_agreement": agree, "correct": agree is not None and agree >= (0.97 if "bf16" in name else 0.995)}
            if table[name]["correct"]:
                good[name] = run
                table[name]["memory_bytes"] = clock.memory(run)[1]
        flop = n_probes * (2 * (n_queries + n_gallery) * r * d + 2 * n_queries * n_gallery * d)
        least = 4 * (x.numel() + text.numel() + w.numel() + v.numel() + n_probes * n_queries)
        for name, t in clock.interleaved(good, rounds).items():
            tflops = flop / t["median"] / 1e12
            table[name] |= {
                "seconds": t,
                "TFLOP_per_s": tflops,
                "least_TB_per_s": least / t["median"] / 1e12,
                "ceiling_share": tflops / report["ceilings"][name.split(", ")[1]],
                "queries_per_s": n_probes * n_queries / t["median"],
            }
    report["rank"] = {"probes, queries, gallery, r, d": size, "flop": flop, "least_bytes": least, "methods": table}


def loss_op(report: dict, clock: Clock, sizes: list[tuple[int, int, int, int]], rounds: int) -> None:
    """Contrastive loss, forward and backward; float32 with tf32 products, and bfloat16.

    Eager, torch.compile, ours, and of a single probe the published losses (gpu_losses.py) that are installed.
    """
    import torch

    from fastprobe.kernels import torch_backend
    from fastprobe.kernels.gpu import loss as triton_loss

    from .gpu_losses import PUBLISHED

    compiled = torch.compile(torch_backend.contrastive_loss, dynamic=False)
    for size in sizes:
        n_probes, m, n, d = size
        for dtype in (torch.float32, torch.bfloat16):
            text, audio = (
                torch.nn.functional.normalize(torch.randn(n_probes, k, d, device=clock.device), dim=-1).to(dtype).requires_grad_()
                for k in (m, n)
            )
            labels = torch.randint(0, m, (n_probes, n), device=clock.device)
            precision = "tf32" if dtype == torch.float32 else "bf16"

            def call(loss, text=text, audio=audio, labels=labels):
                text.grad = audio.grad = None
                torch.backends.cuda.matmul.allow_tf32 = True
                try:
                    loss(text, audio, labels, 0.1).sum().backward()
                finally:
                    torch.backends.cuda.matmul.allow_tf32 = False

            losses = {
                "eager": torch_backend.contrastive_loss,
                "torch.compile": compiled,
                "ours": functools.partial(triton_loss.contrastive_loss, precision=precision),
            }
            peers = {p.package: p for p in PUBLISHED if n_probes == 1}
            wide = [x.detach()[:1].double().requires_grad_() for x in (text, audio)]
            torch_backend.contrastive_loss(*wide, labels[:1], 0.1).sum().backward()
            table, good = {}, {}
            for name in (*losses, *peers):
                if name in peers and (reason := peers[name].why_not(m, n, d, dtype)):
                    table[name] = {"error": None, "correct": False, "why_not": reason}
                    continue
                run = functools.partial(call, losses[name] if name in losses else peers[name].loss)
                # What another package raises is a line of its own, no failure of this run.
                notes = {} if name in peers else report

                def gate(run=run, given=(text, audio), wide=wide):
                    run()
                    return max(relative_error(x.grad[:1], w.grad.cpu().numpy()) for x, w in zip(given, wide))

                error = guarded(notes, f"loss {size} {precision} {name}", gate)
                table[name] = {"error": error, "correct": error is not None and error < (5e-3 if precision == "tf32" else 5e-2)}
                if error is None and name in peers:
                    table[name]["why_not"] = " ".join(next(iter(notes["errors"].values())).split())[:120]
                if table[name]["correct"]:
                    good[name] = run
                    table[name]["memory_bytes"] = clock.memory(run)[1]
            for name, t in clock.interleaved(good, rounds).items():
                table[name] |= {"seconds": t, "TFLOP_per_s": n_probes * 6 * m * n * d / t["median"] / 1e12}
            report["loss"][f"{size}, {precision}"] = table


def versions(device) -> dict[str, str]:
    """What ran where."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {"python": platform.python_version(), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}
    for package in ("torch", "triton", "numpy", "jax", "liger-kernel", "cut-cross-entropy", "inf-cl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, Triton interpreted")
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import torch

    from .gpu_tables import markdown

    if not options.dry_run and not torch.cuda.is_available():
        print("benchmarks.gpu needs an NVIDIA GPU, and PyTorch sees none. `--dry-run` checks the paths on a CPU.", file=sys.stderr)
        return 2
    tiny = options.dry_run
    device = torch.device("cpu" if tiny else "cuda:0")
    clock, shapes, rounds = Clock(device), TINY if tiny else SHAPES, 1 if tiny else 5
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "dry_run": tiny,
        "versions": versions(device),
        "ceilings": ceilings(clock, 64 if tiny else 8192),
        "training": {},
        "sweep": {},
        "loss": {},
    }
    print(report["versions"], report["ceilings"], flush=True)
    start = time.perf_counter()
    # Every method at A and B; the other shapes against the strongest peers only.
    few = ("PyTorch bmm batch", "torch.compile batch, CUDA graph", "ours, ieee", "ours, tf32", "ours, bf16")
    wanted = (
        {"large": ("PyTorch bmm batch", "ours, tf32")}
        if tiny
        else {"large": few, "esc50": (few[0], *few[2:]), "audioset": (few[0], *few[2:])}
    )
    steps, gate_steps, probes = (3, 2, 3) if tiny else (100, 10, None)
    queries = (2, 40, 13, 32, 8) if tiny else (512, 10_000, 144, 768, 64)
    losses = [(2, 9, 17, 8), (1, 16, 64, 32)] if tiny else [(64, 1000, 1000, 128), (1, 8192, 8192, 256)]
    sections = {
        "training": lambda: training(report, clock, shapes, steps, gate_steps, rounds, probes, wanted),
        "rank": lambda: ranking(report, clock, queries, rounds),
        "sweep": lambda: sweep(report, clock, shapes, 2 if tiny else 50, 2 if tiny else 2112, rounds, "tf32", start + SECONDS),
        # Last, since it runs kernels of other packages: a fault in one ends the process.
        "loss": lambda: loss_op(report, clock, losses, rounds),
    }
    for name, section in sections.items():
        guarded(report, name, section)
        print(f"{name}: done after {time.perf_counter() - start:.0f} s", flush=True)
        if not tiny:  # written after every section, so that a crash loses one at most
            RESULTS.mkdir(exist_ok=True)
            stem = "gpu-" + "-".join(report["versions"]["device"].lower().split())
            (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
            (RESULTS / f"{stem}.md").write_text(markdown(report))
    print(markdown(report))
    return (
        1
        if report.get("errors")
        or any(not m["correct"] and "why_not" not in m for t in report["training"].values() for m in t["methods"].values())
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
