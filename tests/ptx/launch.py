"""Triton and Gluon launches on CPU tensors that run the PTX of a compute capability in the executor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from . import emulator

HARMLESS = {"SAME_WW", "CPNOFENCE"}  # README.md says why
SHARED = {80: 166_912, 90: 232_448}  # bytes that a block may have, by compute capability
_TYPES = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_programs: dict = {}
sources: dict[str, str] = {}  # PTX of each kernel as it was last compiled


class Log(list):
    """(kernel, reports) of every launch, in order."""

    def bad(self) -> dict[str, int]:
        """Reports that are faults, by kind."""
        total: dict[str, int] = {}
        for _, found in self:
            for kind, n in found.items():
                if kind not in HARMLESS:
                    total[kind] = total.get(kind, 0) + n
        return total


def _compiled(kernel: JITFunction, values: dict, options: dict, capability: int, edit: Callable[[str], str] | None):
    """The decoded program, its shared memory and the arguments that it is passed."""
    signature, constants, attributes, passed = {}, {}, {}, []
    for position, name in enumerate(kernel.arg_names):
        v = values[name]
        if kernel.params[position].is_constexpr or (type(v) is int and v == 1 and not kernel.params[position].do_not_specialize):
            signature[name], constants[(position,)] = "constexpr", v
            continue
        passed.append(v)
        if isinstance(v, torch.Tensor):
            signature[name], aligned = _TYPES[v.dtype], v.data_ptr() % 16 == 0
        elif isinstance(v, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name], aligned = "i32", v % 16 == 0
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    kind = GluonASTSource if kernel.is_gluon() else ASTSource
    source = kind(kernel, signature=signature, constexprs=constants, attrs=attributes)
    key = (source.hash(), tuple(options.items()), capability, edit)
    if key not in _programs:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        if made.metadata.shared > SHARED[capability]:
            raise OutOfResources(made.metadata.shared, SHARED[capability], "shared memory")
        ptx = edit(made.asm["ptx"]) if edit else made.asm["ptx"]
        _programs[key] = emulator.Program(ptx), made.metadata.shared, ptx
    *program, sources[kernel.fn.__name__] = _programs[key]
    return *program, passed


@contextlib.contextmanager
def executing(capability: int, edit: Callable[[str], str] | None = None, seed: int = 0) -> Iterator[Log]:
    """While it lasts, every launch runs here; `edit` may change the PTX first, `seed` orders the warps."""
    log, real = Log(), JITFunction.run

    def run(kernel, *args, grid=None, warmup=False, **kwargs):
        options = {"num_warps": kwargs.get("num_warps", 4)}
        if not kernel.is_gluon():
            options["num_stages"] = kwargs.get("num_stages", 3)
        values = dict(zip(kernel.arg_names, args)) | {k: v for k, v in kwargs.items() if k not in ("num_warps", "num_stages")}
        program, shared, passed = _compiled(kernel, values, options, capability, edit)
        emulator.lib.clear_buffers()
        emulator.lib.clear_reports()
        stores = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in passed if isinstance(v, torch.Tensor)}
        for i, (base, size) in enumerate(stores.items()):
            if size:
                emulator.lib.add_buffer(base, size, i, 1)
        # Triton's PTX ends with two pointers to scratch memory, which these kernels do not have.
        arguments = [v.data_ptr() if isinstance(v, torch.Tensor) else v for v in passed] + [0, 0]
        shape = grid if isinstance(grid, tuple) else grid(values)
        code, _ = program.launch(shape[0], arguments, shared, seed)
        log.append((kernel.fn.__name__, emulator.counts()))
        if code and not log.bad():
            raise RuntimeError(f"{kernel.fn.__name__} stopped with code {code}: {emulator.reports()[:3]}")

    JITFunction.run = run
    try:
        yield log
    finally:
        JITFunction.run = real


@contextlib.contextmanager
def backend(capability: int) -> Iterator[Log]:
    """While it lasts, the GPU backend takes CPU tensors, plans for a capability and runs in the executor."""
    from fastprobe.kernels import torch_backend
    from fastprobe.kernels.gpu import backend as gpu
    from fastprobe.kernels.gpu import loss

    class Nowhere(contextlib.nullcontext):
        """In the place of torch.cuda.device_of, which wants a GPU's tensor."""

    replaced = [
        (gpu, "_device", lambda _: torch.device("cpu")),
        (gpu, "architecture", lambda _: f"sm{capability}"),
        (loss, "architecture", lambda _: f"sm{capability}"),
        (torch.cuda, "device_of", Nowhere),
        (torch_backend, "check_precision", lambda *_: None),
        (torch_backend, "_matmul_precision", lambda *_: contextlib.nullcontext()),
    ]
    kept = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, new in replaced:
            setattr(owner, name, new)
        with executing(capability) as log:
            yield log
    finally:
        for (owner, name, _), old in zip(replaced, kept):
            setattr(owner, name, old)
