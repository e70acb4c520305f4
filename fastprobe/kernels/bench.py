"""What this machine trains per second: every backend beside the machine's own ceiling, in one interleaved run.

The ceiling is a large float32 ``torch.mm`` (2048 cubed), what the machine reaches when nothing is in the way. Methods take
turns, so that a drift of the clock or of other load hits all alike; ratios are taken within a turn and their median is
reported. Nothing is timed before its losses (and ranks, where it has them) agree with `reference`.

GFLOP/s counts the operations of a step written out plainly, whatever a method really does:

    F = 4 m r_text d + 4 n r_audio d + 6 n m d          m train classes, n rows of a step
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError, needs
from ..protocol.config import ProbeConfig
from .batch import ProbeBatch

__all__ = ["METHODS", "SHAPES", "Method", "Prepared", "Shape", "environment", "main", "make_problem", "run", "table"]

CEILING = 2048  # side of the matrices of the ceiling's product
TURN_FLOPS = 1.5e10  # plain operations of one turn of a method: long against the clock, short against a minute


@dataclass(frozen=True)
class Shape:
    """One problem size, in the words of the protocol.

    Attributes
    ----------
    train : int
        m, train classes; a step has one sound row of each.
    text_width, audio_width, dim : int
        r_text, r_audio, d.
    sampling : {"centroid", "clip"}
    """

    name: str
    train: int
    text_width: int
    audio_width: int
    dim: int
    sampling: Literal["clip", "centroid"]

    @property
    def flops(self) -> float:
        """Plain operations of one step of one probe."""
        return 4.0 * self.train * (self.text_width + self.audio_width) * self.dim + 6.0 * self.train**2 * self.dim


SHAPES = {
    s.name: s
    for s in (
        Shape("A", 100, 144, 144, 64, "centroid"),
        Shape("B", 100, 144, 768, 64, "clip"),
        Shape("35", 35, 50, 96, 32, "centroid"),
        Shape("35-clip", 35, 50, 96, 32, "clip"),
        Shape("222", 222, 318, 128, 64, "centroid"),
        Shape("222-clip", 222, 318, 128, 64, "clip"),
        Shape("100w", 100, 144, 768, 256, "centroid"),
        Shape("100w-clip", 100, 144, 768, 256, "clip"),
        Shape("500", 500, 500, 512, 128, "centroid"),
        Shape("500-clip", 500, 500, 512, 128, "clip"),
    )
}


def make_problem(shape: Shape, config: ProbeConfig, probes: int, seed: int = 0, clips_per_class: int = 4) -> ProbeBatch:
    """A batch of that shape on simulated features: class means shared by both spaces, noise, a few unseen classes."""
    rng = np.random.default_rng(seed)
    n_classes = shape.train + 6
    labels = np.repeat(np.arange(n_classes), clips_per_class)
    latent = rng.standard_normal((n_classes, 16))
    text = latent @ rng.standard_normal((16, shape.text_width)) / 4 + rng.standard_normal((n_classes, shape.text_width))
    means = latent @ rng.standard_normal((16, shape.audio_width)) / 4
    audio = means[labels] + rng.standard_normal((len(labels), shape.audio_width))
    order = rng.permutation(n_classes)
    train, test = np.sort(order[: shape.train]), order[shape.train :]
    clips = None
    if config.sampling == "clip":
        clips = train * clips_per_class + rng.integers(0, clips_per_class, (config.steps, shape.train))
    permutations = np.stack([np.arange(n_classes)] + [rng.permutation(n_classes) for _ in range(probes - 1)])
    starts = (rng.standard_normal((r, shape.dim)) / np.sqrt(r) for r in (shape.text_width, shape.audio_width))
    return ProbeBatch(
        config,
        text / np.sqrt(2 * shape.text_width),
        audio / np.sqrt(2 * shape.audio_width),
        labels,
        train,
        clips,
        np.flatnonzero(np.isin(labels, test)),
        permutations,
        *starts,
    )


@dataclass(frozen=True)
class Prepared:
    """A method, set up for one problem.

    Attributes
    ----------
    call : callable () -> (loss (P,), ranks (P, Q) or None)
        One turn: all steps of all its probes.
    batch : ProbeBatch
        What it trains.
    """

    call: Callable[[], tuple[np.ndarray, np.ndarray | None]]
    batch: ProbeBatch


@dataclass(frozen=True)
class Method:
    """One way to train probes.

    Attributes
    ----------
    prepare : callable (shape, config, probes) -> Prepared
    probes : int, optional
        Probes of a turn; by default as many as TURN_FLOPS allow.
    raw_width : int, optional
        Trains on raw embeddings of this width, both sides, instead of the shape's.
    optimizer : str, optional
        The only optimiser it has; by default whatever is asked for.
    precision : str
        Of its products; bfloat16 is checked to its own resolution.
    """

    name: str
    prepare: Callable[[Shape, ProbeConfig, int], Prepared]
    probes: int | None = None
    raw_width: int | None = None
    optimizer: str | None = None
    precision: Literal["ieee", "bf16"] = "ieee"

    def on(self, shape: Shape) -> Shape:
        """The shape it trains in place of `shape`."""
        width = self.raw_width
        return shape if width is None else dataclasses.replace(shape, text_width=width, audio_width=width)


def _backend(name: str, **options: Any) -> Callable[[Shape, ProbeConfig, int], Prepared]:
    def prepare(shape: Shape, config: ProbeConfig, probes: int) -> Prepared:
        from . import select_backend

        train, batch = select_backend(name, device="cpu").load(), make_problem(shape, config, probes)

        def call():
            result = train(batch, "cpu", **options)
            return result.loss, result.ranks

        return Prepared(call, batch)

    return prepare


def _eager(shape: Shape, config: ProbeConfig, probes: int) -> Prepared:
    """The loop people write: nn.Linear heads, autograd, torch.optim, one probe at a time."""
    import torch
    import torch.nn.functional as F

    batch = make_problem(shape, config, probes)
    text, audio = torch.from_numpy(batch.text32), torch.from_numpy(batch.audio32)
    train, labels = torch.from_numpy(batch.train_classes), torch.arange(shape.train)
    sounds = None if batch.clips is not None else torch.from_numpy(batch.centroids.astype(np.float32))

    def one(permutation: np.ndarray) -> float:
        heads = [torch.nn.Linear(len(s), shape.dim, bias=False) for s in (batch.text_start, batch.audio_start)]
        with torch.no_grad():
            for head, s in zip(heads, (batch.text_start, batch.audio_start)):
                head.weight.copy_(torch.from_numpy(s.T))
        optimizer = torch.optim.Adam([h.weight for h in heads], lr=config.learning_rate(0))
        texts = text[torch.from_numpy(permutation)[train]]
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step)
            x = sounds if batch.clips is None else audio[torch.from_numpy(batch.clips[step])]
            a, b = F.normalize(heads[0](texts), dim=-1), F.normalize(heads[1](x), dim=-1)
            loss = F.cross_entropy(b @ a.T / config.temperature, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return Prepared(lambda: (np.array([one(p) for p in batch.permutations]), None), batch)


METHODS = {
    m.name: m
    for m in (
        Method("cpp", _backend("cpp")),
        Method("cpp, direct", _backend("cpp", algebra="direct")),
        Method("cpp, bf16", _backend("cpp"), precision="bf16"),
        Method("torch.bmm", _backend("torch")),
        Method("eager loop, raw 768", _eager, probes=1, raw_width=768, optimizer="adam"),
    )
}


class _Memory:
    """Peak resident memory of this process, over what it held before; None where Linux does not tell."""

    def __enter__(self) -> _Memory:
        self.mib: float | None = None
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier methods freed would hide what this one takes
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self.before: int | None = self._status("VmRSS")
        except (OSError, AttributeError):
            self.before = None
        return self

    def __exit__(self, *error) -> None:
        if self.before is not None:
            self.mib = max(self._status("VmHWM") - self.before, 0) / 1024

    @staticmethod
    def _status(field: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field))


def check(prepared: Prepared, result: tuple[np.ndarray, np.ndarray | None] | None = None) -> None:
    """Refuse a method whose losses are off by more than 0.1 % from `reference` (2 % under bf16), or more than 1 in 100 hits.

    Raises
    ------
    InputError
        With the largest deviation.
    """
    from .reference import train

    batch, (loss, ranks) = prepared.batch, result or prepared.call()
    some = min(2, batch.n_probes)
    truth = train(dataclasses.replace(batch, permutations=batch.permutations[:some]))
    off = np.abs(loss[:some] / truth.loss - 1).max()
    missed = 0.0 if ranks is None else np.mean((ranks[:some] <= 3) != (truth.ranks <= 3))
    bound = 0.02 if batch.config.precision == "bf16" else 1e-3
    if not (off < bound and missed <= 0.01):
        raise InputError(f"a benchmark method disagrees with the reference (loss by {off:.2g}, hits by {missed:.2%}), so it is not timed.")


def _timed(call: Callable[[], Any]) -> float:
    time.sleep(0.01)  # the last method's idle OpenMP threads spin for a moment
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(
    shapes: Iterable[Shape],
    methods: Sequence[Method] | None = None,
    optimizers: Sequence[str] = ("adam-mini",),
    rounds: int = 7,
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """Time methods on shapes, interleaved, after a check against the reference.

    Parameters
    ----------
    steps : int, optional
        Of a turn; by default 4 to 20, by TURN_FLOPS. What is done once for a probe weighs less in more of them.

    Returns
    -------
    list of dict
        One per (shape, optimiser, method): ``shape, optimizer, method, us`` (microseconds per probe-step), ``gflops``,
        ``ceiling`` (GFLOP/s of torch.mm in the same turns), ``share`` (median over turns of their ratio), ``mib`` (peak
        memory of a turn beyond what the process held), ``speedup`` (how many times faster the first method is).
    """
    import torch

    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1; got {rounds}.")
    methods = list(METHODS.values()) if methods is None else methods
    left, right = torch.randn(2, CEILING, CEILING, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(left)
    ceiling_flops = 2.0 * CEILING**3
    records = []
    for shape in shapes:
        for optimizer in optimizers:
            prepared, memory = {}, {}
            for method in methods:
                sized = method.on(shape)
                turn_steps = steps or int(np.clip(TURN_FLOPS / (32 * sized.flops), 4, 20))
                config = ProbeConfig(
                    dim=shape.dim,
                    steps=turn_steps,
                    sampling=shape.sampling,
                    optimizer=method.optimizer or optimizer,
                    precision=method.precision,
                )
                probes = method.probes or int(np.clip(TURN_FLOPS / (turn_steps * sized.flops), 8, 512)) // 8 * 8
                prepared[method.name] = method.prepare(sized, config, probes)
                with _Memory() as used:
                    first = prepared[method.name].call()
                check(prepared[method.name], first)
                memory[method.name] = used.mib
            turns: dict[str, list[float]] = {name: [] for name in (*prepared, "ceiling")}
            for _ in range(rounds):
                for name, p in prepared.items():
                    turns[name].append(_timed(p.call))
                turns["ceiling"].append(_timed(lambda: torch.mm(left, right, out=out)))
            by_name = {m.name: m for m in methods}
            per_step = {name: np.array(turns[name]) / (p.batch.n_probes * p.batch.config.steps) for name, p in prepared.items()}
            ceiling = ceiling_flops / np.array(turns["ceiling"])
            leader = per_step[next(iter(prepared))]
            for name, p in prepared.items():
                flops = by_name[name].on(shape).flops
                seconds = statistics.median(per_step[name])
                records.append(
                    {
                        "shape": shape.name,
                        "optimizer": p.batch.config.optimizer
                        if p.batch.config.optimizer == optimizer
                        else f"{p.batch.config.optimizer} (for {optimizer})",
                        "method": name,
                        "us": seconds * 1e6,
                        "gflops": flops / seconds / 1e9,
                        "ceiling": statistics.median(ceiling) / 1e9,
                        "share": float(np.median(flops / per_step[name] / ceiling)),
                        "mib": memory[name],
                        "speedup": float(np.median(per_step[name] / leader)),
                    }
                )
    return records


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    from .. import __version__

    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "fastprobe": __version__,
    }
    if "jax" in sys.modules:
        record["jax"] = sys.modules["jax"].__version__
    try:
        from .cpp_backend import instruction_set

        record["isa"] = instruction_set()
    except ImportError:
        record["isa"] = None
    return record


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| shape | optimiser | method | us / probe-step | GFLOP/s | of torch.mm | times the first | peak MiB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in records:
        mib = "" if r["mib"] is None else f"{r['mib']:.0f}"
        lines.append(
            f"| {r['shape']} | {r['optimizer']} | {r['method']} | {r['us']:.1f} | {r['gflops']:.0f} | {r['share']:.2f} | "
            f"{r['speedup']:.1f} | {mib} |"
        )
    return "\n".join(lines)


def _shape(name: str) -> Shape:
    """A shape by name, or spelled out: train,r_text,r_audio,d with clip sampling."""
    if name in SHAPES:
        return SHAPES[name]
    sizes = name.split(",")
    if len(sizes) != 4 or not all(s.strip().isdigit() and int(s) > 0 for s in sizes):
        raise InputError(f"`shape` must be one of {', '.join(SHAPES)}, or four whole numbers train,r_text,r_audio,d; got {name!r}.")
    train, text_width, audio_width, dim = map(int, sizes)
    return Shape(name, train, text_width, audio_width, dim, "clip")


def _has_bf16() -> bool:
    try:
        from .. import _cpp
    except ImportError:
        return False
    return _cpp.bf16_isa() is not None


def main(
    shapes: Sequence[str] = ("A", "B"),
    optimizers: Sequence[str] = ("adam-mini",),
    rounds: int = 7,
    as_json: bool = False,
    probes: Sequence[str] = (),
) -> str:
    """What ``fastprobe bench`` prints: the backends of this machine at the given shapes, in under a minute.

    Parameters
    ----------
    probes : sequence of str
        "contrastive", and closed forms and similarities by their text form; all kinds by default.

    Raises
    ------
    InputError
        An unknown shape or probe.
    """
    chosen = [_shape(s) for s in shapes]
    with needs("`bench`, whose yardstick is torch.mm,", "torch"):
        import torch  # noqa: F401 (asked for before anything is measured)
    from . import available_backends, bench_forms

    forms = [] if set(probes) == {"contrastive"} else bench_forms.named([p for p in probes if p != "contrastive"])
    records = []
    if not probes or "contrastive" in probes:
        here = available_backends()
        methods = [m for m in METHODS.values() if not m.name.startswith("cpp") or here["cpp"] is None]
        methods = [m for m in methods if m.precision == "ieee" or _has_bf16()]
        records = run(chosen, methods, optimizers, rounds)
    # The width of the spaces hardly matters to a closed form: one shape of each number of classes.
    sizes = {shape.train: shape for shape in reversed(chosen)}
    others = [r for shape in reversed(sizes.values()) for r in (bench_forms.measure(shape, forms, rounds) if forms else ())]
    if as_json:
        return json.dumps({"environment": environment(), "records": records, "forms": others}, indent=1)
    parts = [", ".join(f"{k} {v}" for k, v in environment().items() if v is not None)]
    if records:
        parts[0] += f"\ntorch.mm: {records[0]['ceiling']:.0f} GFLOP/s"
        parts.append(table(records))
    return "\n\n".join([*parts, *([bench_forms.table(others)] if others else [])])
