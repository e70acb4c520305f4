"""What the Triton kernels compile to, on a machine without a GPU.

    python -m benchmarks.aot              compile everything, write benchmarks/results/aot.md
    python -m benchmarks.aot --budget     and tests/data/triton_budget.json, which tests compare with
    python -m benchmarks.aot --check K..  compile only entries whose name contains one of K, print JSON

The launches are recorded from the library's own wrappers, run on tensors without data ("meta"), and specialised
as Triton's launcher would (16-byte aligned pointers, sizes divisible by 16, sizes equal to 1; on AMD also tensors
below 2 GiB). Instructions are counted in the disassembly: spills are loads and stores of local memory (LDL, STL;
scratch_load and scratch_store on AMD), matrix instructions HMMA (per warp), HGMMA (per warp group, Hopper), UTC*MMA
(tensor memory, Blackwell) and v_mfma (AMD).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.runtime.jit import JITFunction

from fastprobe.kernels.gpu import chip
from fastprobe.kernels.gpu import gram as triton_gram
from fastprobe.kernels.gpu import loss as triton_loss
from fastprobe.kernels.gpu import onchip as triton_onchip
from fastprobe.kernels.gpu import resident as triton_resident
from fastprobe.kernels.gpu import stream as triton_stream
from fastprobe.kernels.gpu import tiled as triton_tiled
from fastprobe.kernels.gpu.common import FEATURE_ALIGN, TrainingOptions, padded_width, precisions, round_up
from fastprobe.kernels.gpu.project import norm_blocks, project
from fastprobe.kernels.gpu.rank import rank

# Name in the table -> the architecture that configurations go by, and the compiler's target.
TARGETS = {
    "cc8.0": ("sm80", GPUTarget("cuda", 80, 32)),
    "cc9.0": ("sm90", GPUTarget("cuda", 90, 32)),
    "cc10.0": ("sm100", GPUTarget("cuda", 100, 32)),
    "gfx90a": ("gfx90a", GPUTarget("hip", "gfx90a", 64)),
    "gfx942": ("gfx942", GPUTarget("hip", "gfx942", 64)),
}
ROOT = Path(__file__).resolve().parent.parent
BUDGET = ROOT / "tests" / "data" / "triton_budget.json"
TABLE = ROOT / "benchmarks" / "results" / "aot.md"


@dataclass(frozen=True)
class Shape:
    """One row of the table: n_train classes, features on either side, d, and what is trained on it."""

    name: str
    classes: int
    r_text: int
    r_audio: int
    dim: int
    sampling: str = "clip"
    precision: str = "tf32"
    optimizer: str = "adam-mini"
    symmetric: bool = False


SHAPES = (
    Shape("A", 100, 144, 144, 64, "centroid"),
    Shape("A-ieee", 100, 144, 144, 64, "centroid", "ieee"),
    Shape("A-tf32x3", 100, 144, 144, 64, "centroid", "tf32x3"),
    Shape("A-bf16", 100, 144, 144, 64, "centroid", "bf16"),
    Shape("A-adam", 100, 144, 144, 64, "centroid", "tf32", "adam"),
    Shape("A-symmetric", 100, 144, 144, 64, "centroid", "tf32", "adam-mini", True),
    Shape("A-d128", 100, 144, 144, 128, "centroid"),
    Shape("B", 100, 144, 768, 64),
    Shape("esc50", 35, 50, 96, 32),
    Shape("audioset", 222, 318, 128, 64),
    Shape("wide", 100, 144, 768, 256),
    Shape("large", 500, 500, 512, 128),
)
PROBES, STEPS, CLIPS, QUERIES, GALLERY = 64, 100, 10_000, 4096, 144


def launches(shape: Shape, architecture: str) -> Iterator[tuple[JITFunction, tuple, dict[str, Any]]]:
    """Every kernel launch of training (one step, where steps are launches) and ranking at a shape."""

    def meta(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    n, width = shape.classes, padded_width(shape.dim)
    r_text, r_audio = (round_up(r, FEATURE_ALIGN) for r in (shape.r_text, shape.r_audio))
    resident, gram = (module.fits(n, width, shape.precision) for module in (triton_resident, triton_gram))
    fixed = gram and shape.sampling == "centroid" and shape.optimizer != "adam"
    gallery = max(GALLERY, round(n / 0.7))
    steps = STEPS if shape.sampling == "clip" else 1
    w, v = meta(PROBES, r_text, width), meta(PROBES, r_audio, width)
    row_classes = meta(n, dtype=torch.int32)
    options = TrainingOptions(row_classes, 1, 0.25, shape.dim, shape.optimizer, 0.9, 0.0, shape.symmetric, shape.precision, architecture)
    with _recorded(amd=architecture.startswith("gfx")) as calls:
        trainers = [triton_resident.train_resident if resident else triton_tiled.train_tiled] + [triton_gram.train_gram] * fixed
        if shape.optimizer != "adam" and chip.fits(n, width, shape.symmetric, 0.25, shape.precision, architecture):
            trainers.append(triton_onchip.train_onchip if shape.sampling == "centroid" else triton_stream.train_stream)
        for trainer in trainers:
            # The trainers on the chip look at numbers before they launch anything.
            made = torch.zeros if trainer in (triton_onchip.train_onchip, triton_stream.train_stream) else meta
            trainer(
                made(gallery, r_text),
                made(PROBES, n, dtype=torch.int32),
                made(CLIPS, r_audio),
                made(steps, n, dtype=torch.int32),
                made(*w.shape),
                made(*v.shape),
                made(STEPS if resident else 1, 3),
                options,
            )
        queries, texts = meta(1, QUERIES, dtype=torch.int32), meta(1, gallery, dtype=torch.int32)
        z, _ = project(meta(CLIPS, r_audio), queries, v, precision=shape.precision, norms=False)
        project(meta(gallery, r_text), texts, w, precision=shape.precision)
        rank(
            z,
            meta(PROBES, gallery, width),
            meta(PROBES, gallery, norm_blocks(width)),
            meta(PROBES, gallery, dtype=torch.int32),
            queries[0],
            meta(PROBES, gallery, dtype=torch.int32),
            gallery // 3,
            precision=shape.precision,
        )
        if shape.name == "large":
            text, audio = meta(PROBES, n, width), meta(PROBES, n, width)
            keys, up = meta(1, n, dtype=torch.int32), meta(PROBES)
            lse = triton_loss.log_sum_exp(audio, text, keys, keys, 0.25, shape.precision, true=meta(PROBES, n))
            triton_loss.row_gradient(audio, text, keys, keys, up, audio, 0.25, shape.precision, row_lse=lse)
    yield from calls


class _recorded:
    """While it lasts, kernels are not run: what they are called with is listed, as PyTorch for `amd` or NVIDIA would."""

    def __init__(self, amd: bool = False) -> None:
        self.amd = amd

    def __enter__(self) -> list[tuple[JITFunction, tuple, dict[str, Any]]]:
        self.calls, self.run, self.hip = [], JITFunction.run, torch.version.hip
        torch.version.hip = "0" if self.amd else None
        calls = self.calls
        JITFunction.run = lambda kernel, *args, grid=None, warmup=False, **kwargs: calls.append((kernel, args, kwargs))
        return calls

    def __exit__(self, *_: object) -> None:
        JITFunction.run, torch.version.hip = self.run, self.hip


_TYPES = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def source_of(kernel: JITFunction, args: tuple, kwargs: dict[str, Any], backend: str = "cuda") -> tuple[ASTSource, dict[str, int]]:
    """The compiler's input for a launch, specialised as the launcher does, and its options."""
    small = [["tt.pointer_range", 32]] if backend == "hip" else []
    options = {"num_warps": kwargs["num_warps"], "num_stages": kwargs.get("num_stages", 3)}
    values = dict(zip(kernel.arg_names, args)) | {k: v for k, v in kwargs.items() if k not in options}
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = values[name]
        if kernel.params[position].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(position,)] = _TYPES[value.dtype], [["tt.divisibility", 16]] + small * (value.nbytes < 2**31)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    form = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    return form(kernel, signature=signature, constexprs=constants, attrs=attributes), options


def disassembled(compiled: Any, flag: str) -> str:
    """What cuobjdump, which comes with Triton, prints of a compiled kernel: "-sass", "-res-usage"."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout


_MATRIX = re.compile(r"\b(UTC\w*MMA|HGMMA|HMMA)\b")


def measure(source: ASTSource, options: dict[str, int], target: GPUTarget) -> dict[str, Any]:
    """Registers, spills, shared memory and matrix instructions of one kernel on one architecture."""
    compiled = triton.compile(source, target=target, options=options)
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def count(pattern: str) -> int:
            return len(re.findall(rf"^\s*{pattern}", text, re.MULTILINE))

        mfma = count(r"v_mfma_")
        return {
            "warps": options["num_warps"],
            "registers": int(re.findall(r"\.vgpr_count:\s+(\d+)", text)[0]),
            "spill_loads": count("scratch_load"),
            "spill_stores": count("scratch_store"),
            "shared": int(compiled.metadata.shared),
            "matrix": {"MFMA": mfma} if mfma else {},
            "ffma": count(r"v_(?:pk_)?(?:fma|fmac)_f32"),
            # Barriers that order device memory too, which those between phases of a kernel must.
            "fences": compiled.asm["llir"].count('fence syncscope("workgroup") release'),
        }
    usage, listing = disassembled(compiled, "-res-usage"), disassembled(compiled, "-sass")
    matrix = {name: sum(1 for found in _MATRIX.findall(listing) if found == name) for name in set(_MATRIX.findall(listing))}
    return {
        "warps": options["num_warps"],
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "spill_loads": len(re.findall(r"\bLDL\b", listing)),
        "spill_stores": len(re.findall(r"\bSTL\b", listing)),
        "shared": int(compiled.metadata.shared),
        "matrix": dict(sorted(matrix.items())),
        "ffma": len(re.findall(r"\bFFMA\w*\b", listing)),
    }


def entries(wanted: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, measurement) of every kernel at every shape and architecture; names are shape/kernel/architecture."""
    for shape in SHAPES:
        for label, (architecture, target) in TARGETS.items():
            if shape.precision not in precisions(architecture):
                continue
            seen: dict[str, int] = {}
            distinct = set()
            for kernel, args, kwargs in launches(shape, architecture):
                source, options = source_of(kernel, args, kwargs, target.backend)
                if source.hash() in distinct:
                    continue
                distinct.add(source.hash())
                name = kernel.fn.__name__.removesuffix("_kernel")
                seen[name] = seen.get(name, 0) + 1
                full = f"{shape.name}/{name}{'' if seen[name] == 1 else f'-{seen[name]}'}/{label}"
                if not wanted or any(w in full for w in wanted):
                    yield full, measure(source, options, target)


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "# What the Triton kernels compile to",
        "",
        f"Triton {triton.__version__}, `python -m benchmarks.aot`; no GPU was involved and nothing here is a speed.",
        "Counts are of instructions in the program text, not of executions. Warps have 32 lanes on NVIDIA and 64 on AMD; registers "
        "of AMD are vector and accumulator registers together. Shapes (train classes, r_text, r_audio, d; "
        "tf32 and adam-mini unless named): " + ", ".join(f"{s.name} ({s.classes}, {s.r_text}, {s.r_audio}, {s.dim})" for s in SHAPES) + ".",
        "",
        "| shape | kernel | architecture | warps | registers | spill loads | spill stores | shared KiB | matrix instructions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, m in measured.items():
        shape, kernel, architecture = name.split("/")
        matrix = ", ".join(f"{k} {v}" for k, v in m["matrix"].items()) or f"none (FFMA {m['ffma']})"
        lines.append(
            f"| {shape} | {kernel} | {architecture.removeprefix('cc')} | {m['warps']} | {m['registers']} | {m['spill_loads']} | "
            f"{m['spill_stores']} | {m['shared'] / 1024:.0f} | {matrix} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", action="store_true", help="write the budget that tests compare with")
    parser.add_argument("--check", nargs="+", default=(), metavar="NAME", help="measure some entries, print JSON")
    options = parser.parse_args()
    measured = {}
    for name, m in entries(tuple(options.check)):
        measured[name] = m
        if not options.check:
            print(f"{name:40} {m}", flush=True)
    if options.check:
        print(json.dumps({"triton": triton.__version__, "kernels": measured}))
        return
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(measured))
    if options.budget:
        BUDGET.parent.mkdir(parents=True, exist_ok=True)
        BUDGET.write_text(json.dumps({"triton": triton.__version__, "kernels": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
