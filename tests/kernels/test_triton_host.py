"""The host's side of the Triton kernels: what is launched where, with which configuration. No GPU, no interpreter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import types
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.kernels.gpu import backend as triton_backend
from fastprobe.kernels.gpu import block as triton_block
from fastprobe.kernels.gpu import common as triton_common
from fastprobe.kernels.gpu import gram as triton_gram
from fastprobe.kernels.gpu import loss as triton_loss
from fastprobe.kernels.gpu import resident as triton_resident
from fastprobe.kernels.gpu import tiled as triton_tiled
from support import triton_cases as cases

CPU = torch.device("cpu")
TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "hip, capability, chip, expected",
    [
        (None, (8, 6), None, "sm80"),
        (None, (9, 0), None, "sm90"),
        (None, (12, 0), None, "sm120"),
        ("7.0", (9, 4), "gfx942:sramecc+:xnack-", "gfx942"),
        ("7.0", (9, 0), "gfx90a", "gfx90a"),
    ],
)
def test_architecture_tells_vendors_apart(monkeypatch, hip, capability, chip, expected):
    """AMD's gfx942 has PyTorch's capability 9.4, and is no Hopper."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(gcnArchName=chip))
    assert triton_common.architecture(torch.device("cuda:0")) == expected
    assert triton_common.architecture(CPU) == "cpu"


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_amd_has_tiles_of_its_own(precision):
    """Warps of 64 lanes: as many threads as on NVIDIA need half the warps."""
    assert triton_resident.resident_config(100, 64, precision, "sm90").warps == 8
    assert triton_resident.resident_config(100, 64, precision, "gfx942").warps == 4
    assert triton_resident.resident_config(100, 64, precision, "gfx90a").warps == 4


def test_no_two_threads_share_an_element_that_is_updated_in_place():
    """With fewer elements than threads, one would read a head that another has already moved."""
    for pinned, choose in ((triton_resident._PINNED, triton_resident.resident_config), (triton_gram._PINNED, triton_gram.gram_config)):
        for classes, width, products, *_ in pinned:
            for architecture, lanes in (("sm80", 32), ("sm90", 32), ("gfx942", 64)):
                if products == "tf32x3" and products not in triton_common.precisions(architecture):
                    continue
                config = choose(classes, width, products, architecture)
                narrowest = triton_common.MIN_WIDTH if width == 64 else width
                rows = min(config.bk, config.bs, triton_block.tile(1))
                assert rows * narrowest >= config.warps * lanes, (classes, width, products, architecture, config)


def test_a_precision_that_the_device_lacks_is_an_error(monkeypatch):
    batch = cases.make(9, 6, 20, 5, 7, steps=1, dim=4, precision="tf32x3")
    monkeypatch.setattr(triton_backend, "architecture", lambda _: "gfx942")
    with pytest.raises(BackendUnavailableError, match=r"'tf32x3' is not one that gfx942 has \(ieee, tf32, bf16\)"):
        triton_backend._train(batch, CPU, False)


@pytest.fixture
def applied(monkeypatch):
    """What the loss op was called with: precision, and the device whose context it ran in."""
    calls, inside = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor.device)
        yield
        inside.pop()

    def apply(text, audio, labels, temperature, precision):
        calls.append((precision, list(inside)))
        return text.sum((1, 2))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(triton_loss._ContrastiveLoss, "apply", apply)
    return calls


def test_the_loss_is_launched_on_the_device_of_its_operands(applied):
    triton_loss.contrastive_loss(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    assert applied == [("ieee", [CPU])]


@pytest.mark.parametrize("architecture, expected", [("sm90", "tf32"), ("gfx942", "tf32"), ("gfx90a", "ieee")])
def test_the_loss_multiplies_as_pytorch_does(applied, monkeypatch, architecture, expected):
    """Where there is no tf32, PyTorch's switch does nothing."""
    monkeypatch.setattr(triton_loss, "architecture", lambda _: architecture)
    operands = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        triton_loss.contrastive_loss(*operands)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert applied[0][0] == expected
    if architecture == "gfx90a":
        with pytest.raises(InputError, match="`precision` must be one of ieee, bf16 on gfx90a; got 'tf32'"):
            triton_loss.contrastive_loss(*operands, precision="tf32")


def test_operands_of_the_loss_lie_on_one_device():
    text, audio = torch.zeros(3, 4), torch.zeros(5, 4)
    with pytest.raises(InputError, match="must be on one device; got cpu, cpu and meta"):
        triton_loss.contrastive_loss(text, audio, torch.zeros(5, dtype=torch.int64, device="meta"))


def test_the_loss_has_no_second_derivative(monkeypatch):
    """It says so, instead of giving zero."""
    monkeypatch.setattr(triton_loss, "log_sum_exp", lambda rows, *_, **__: (rows.sum(2), rows.sum(2)))
    monkeypatch.setattr(triton_loss, "mean_loss", lambda lse, true: lse[0].mean(1))
    monkeypatch.setattr(triton_loss, "row_gradient", lambda rows, *_, **__: torch.ones_like(rows))
    text, audio = (torch.randn(n, 4, requires_grad=True) for n in (3, 5))
    loss = triton_loss.contrastive_loss(text, audio, torch.zeros(5, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss**2, text, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient**2).sum().backward()


def test_steps_are_captured_on_a_stream_of_their_own_device(monkeypatch):
    """PyTorch's own stream for captures lies on whatever device captured first."""
    seen = []

    class Graph:
        def replay(self):
            seen.append("replay")

    @contextlib.contextmanager
    def graph(_, stream, capture_error_mode):
        seen.append((stream, capture_error_mode))
        yield
        seen.append("captured")

    for name, value in {"CUDAGraph": Graph, "graph": graph, "Stream": str, "synchronize": lambda device: None}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    triton_tiled._repeat(lambda: seen.append("step"), 4, torch.device("cuda:1"))
    assert seen == ["step", ("cuda:1", "thread_local"), "step", "captured", "replay", "replay", "replay"]


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"optimizer": "adam"}, {"width": 192}], ids=str)
def test_a_captured_step_allocates_nothing(monkeypatch, options):
    """Beside its kernels a step only counts: memory of a graph's own would be freed with the graph, a transfer would break it."""
    ran, launched, options = [], [], dict(options)

    class Listing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            ran.append(str(function))
            return function(*args, **(kwargs or {}))

    def repeat(one_step, *_):
        one_step()
        first, launched[:] = list(launched), []
        with Listing():
            one_step()
        assert launched == first  # what the first step compiled is all that the capture launches

    monkeypatch.setattr(
        JITFunction,
        "run",
        lambda kernel, *args, **_: launched.append((kernel, [x.shape if isinstance(x, torch.Tensor) else x for x in args])),
    )
    monkeypatch.setattr(triton_tiled, "_repeat", repeat)
    meta = partial(torch.empty, device="meta")
    width, n, m = options.pop("width", 64), 200, 200
    triton_tiled.train_tiled(
        meta(300, 96),
        meta(4, m, dtype=torch.int32),
        meta(900, 64),
        meta(5, n, dtype=torch.int32),
        meta(4, 96, width),
        meta(4, 64, width),
        meta(5, 3),
        triton_common.TrainingOptions(
            row_classes=meta(n, dtype=torch.int32),
            per_class=1,
            temperature=0.25,
            dim=width,
            momentum=0.9,
            weight_decay=0.0,
            precision="tf32",
            architecture="sm90",
            **{"optimizer": "adam-mini", "symmetric": False, **options},
        ),
    )
    assert ran == ["aten.add_.Tensor"]


def test_a_failed_attempt_lets_go_of_its_memory_before_the_next(monkeypatch):
    """An exception under way keeps the tensors of its frames alive, and the allocator could not give them back."""
    attempts, freed = [], []

    class Shared:
        def __init__(self, *_):
            pass

        def train(self, permutations, heads):
            class Tensor:
                pass

            tensor = Tensor()
            attempts.append((len(permutations), weakref.ref(tensor)))
            if len(attempts) == 1:
                raise torch.OutOfMemoryError("simulated")
            return np.zeros(len(permutations)), np.zeros((len(permutations), 1)), None, None

    monkeypatch.setattr(triton_backend, "Shared", Shared)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(attempts[-1][1]() is None))
    result = triton_backend._train(cases.make(9, 6, 20, 5, 7, probes=4, steps=1, dim=4), CPU, False)
    assert [size for size, _ in attempts] == [4, 2, 2] and len(result.loss) == 4
    assert freed == [True]


@pytest.mark.parametrize(("version", "first"), [("3.1.0", "gram"), ("3.6.0", "onchip"), ("3.7.0", "gram")])
def test_the_onchip_trainer_is_taken_with_the_triton_it_was_measured_with(version, first):
    code = f"""
import sys, triton
triton.__version__ = {version!r}
if {version!r} == "3.1.0":
    sys.modules["triton.experimental"] = None  # Gluon came later
from fastprobe.kernels.gpu import backend
from support import triton_cases
for sampling in ("centroid", "clip"):
    batch = triton_cases.make(20, 9, 60, 128, 128, sampling=sampling, steps=100, precision="tf32")
    print(backend.trainers(batch, "sm90")[0], backend.trainers(batch, "sm80")[0])
"""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(TESTS)}, capture_output=True, text=True)
    assert run.stdout.split() == [first, "gram", "stream" if first == "onchip" else "resident", "resident"], run.stderr


OFF_CHIP = [
    *(
        {"sampling": sampling, **option}
        for sampling in ("centroid", "clip")
        for option in (
            {"symmetric": True, "temperature": 0.03},
            {"temperature": 1e-4},
            {"precision": "ieee"},
            {"dim": 129},
            {"optimizer": "adam"},
        )
    ),
    {"sampling": "clip", "dim": 65},
]


@pytest.mark.parametrize("option", OFF_CHIP, ids=str)
def test_what_the_trainers_on_the_chip_do_not_honour_goes_to_another(option):
    config = {"steps": 100, "precision": "tf32", **option}
    assert not {"onchip", "stream"} & set(triton_backend.trainers(cases.make(20, 9, 60, 128, 128, **config), "sm90"))


def test_clips_are_streamed_up_to_the_rows_of_a_tile():
    config = {"sampling": "clip", "steps": 3, "precision": "tf32"}
    first = [triton_backend.trainers(cases.make(60, 40, 150, 50, 50, clips_per_class=k, **config), "sm90")[0] for k in (1, 3, 4)]
    assert first == ["stream", "stream", "resident"]
