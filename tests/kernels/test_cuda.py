"""The Triton backend on an NVIDIA GPU. Without one, each test says by name that it needs one.

The same cases as in test_triton.py, compiled, in every precision, at real sizes, plus what only a device can show:
the same bits from run to run, decisions after a whole training, memory.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fastprobe import kernels
from fastprobe.errors import OutOfMemoryError
from fastprobe.kernels import reference
from fastprobe.kernels.closed import ClosedForm
from fastprobe.kernels.similarity import similarity
from fastprobe.protocol.probes import Ridge, parse_similarity
from support import triton_cases as cases

pytestmark = pytest.mark.cuda

# (classes, train classes, clips, r_text, r_audio): the table of shapes, and odd ones.
A, B = (144, 100, 1440, 144, 144), (144, 100, 1440, 144, 768)
SHAPES = {
    "odd": ((13, 9, 40, 11, 19), {"dim": 20}),
    "A": (A, {"dim": 64, "sampling": "centroid"}),
    "B": (B, {"dim": 64}),
    "esc50": ((50, 35, 500, 50, 96), {"dim": 32}),
    "audioset": ((318, 222, 2000, 318, 128), {"dim": 64}),
    "wide": ((144, 100, 1440, 144, 768), {"dim": 256}),
    "large": ((715, 500, 4000, 500, 512), {"dim": 128}),
}


@pytest.fixture(autouse=True)
def gpu(request):
    """The device, or the reason why this test did not run."""
    if not torch.cuda.is_available():
        pytest.skip(f"{request.node.name} needs an NVIDIA GPU; PyTorch sees none")
    torch.cuda.empty_cache()
    return "cuda:0"


# The floors of tf32 and bf16 are three times what rounding the factors does by itself (benchmarks/precision.py).
@pytest.mark.parametrize(
    "precision, peer, factor, floor",
    [("ieee", "ieee", 2, 1e-6), ("tf32x3", "ieee", 4, 1e-5), ("tf32", "tf32", 3, 1.5e-3), ("bf16", "tf32", 12, 1.1e-2)],
)
@pytest.mark.parametrize("name", SHAPES)
def test_training_errs_little_more_than_plain_torch(gpu, name, precision, peer, factor, floor):
    """Six steps in every precision; `factor` times the error of plain torch in `peer` precision, or `floor`."""
    shape, config = SHAPES[name]
    ours, plain = cases.compare(shape, {"steps": 6, "precision": precision, **config}, None, gpu, peer, probes=3)
    for key in ("text_heads", "audio_heads", "loss"):
        assert ours[key] <= max(factor * plain[key], floor), (key, ours, plain)


OPTIONS = (
    {"optimizer": "adam", "weight_decay": 0.01},
    {"optimizer": "sgd", "weight_decay": 0.01},
    {"weight_decay": 0.01},
    {"symmetric": True},
    {"clips_per_class": 3, "symmetric": True},
    {"sampling": "centroid", "schedule": "constant"},
    {"dim": 100},
    {"dim": 3},
    {"steps": 0},
    {"steps": 1},
    {"steps": 2},
    {"temperature": 0.02},
    {"temperature": 0.02, "symmetric": True},
)
FIXED_ROWS = [
    {**options, "sampling": "centroid"}
    for options in OPTIONS
    if options.get("optimizer") != "adam" and "clips_per_class" not in options and "schedule" not in options
]


@pytest.mark.parametrize(
    "config, trainer", [(c, t) for c in OPTIONS for t in ("resident", "tiled")] + [(c, "gram") for c in FIXED_ROWS], ids=str
)
def test_every_option_in_ieee(gpu, trainer, config):
    ours, plain = cases.compare((50, 37, 300, 41, 77), {"steps": 5, "dim": 64, **config}, trainer, gpu, probes=3)
    # Adam divides by elementwise second moments, which magnifies rounding of gradients near zero.
    floor = 1e-4 if config.get("optimizer") == "adam" else 1e-6
    # A loss is a small difference of scores near 1 / tau.
    floors = {"text_heads": floor, "audio_heads": floor, "loss": max(floor, 1.2e-7 / config.get("temperature", 0.25))}
    for key in ("text_heads", "audio_heads") + (("loss",) if config.get("steps") != 0 else ()):
        assert ours[key] <= max(2 * plain[key], floors[key]), (key, ours, plain)


ON_CHIP = [options for options in FIXED_ROWS if options.get("steps") != 0 and options.get("temperature") is None]


@pytest.mark.parametrize(
    "config, trainer, sampling",
    [(c, "onchip", "centroid") for c in ON_CHIP] + [(c, "stream", "clip") for c in ON_CHIP if c.get("dim", 64) <= 64],
    ids=str,
)
def test_every_option_on_the_chip(gpu, trainer, sampling, config):
    if torch.cuda.get_device_capability(gpu)[0] != 9:
        pytest.skip(f"{trainer} needs compute capability 9.0")
    config = {"steps": 5, "dim": 64, **config, "sampling": sampling, "precision": "tf32"}
    for shape in ((50, 37, 300, 41, 77), (150, 128, 600, 150, 192)):
        ours, _ = cases.compare(shape, config, trainer, gpu, "tf32", probes=3)
        for key in ("text_heads", "audio_heads", "loss"):
            assert ours[key] <= 1.5e-3, (key, ours)


@pytest.mark.parametrize("csls", [0, 5])
def test_closed_forms_and_similarities_are_the_definitions(gpu, csls):
    """Float64 on the device: the same ranks, where scores are not equal but for rounding, and the same similarities."""
    batch = cases.make(40, 28, 200, 17, 23, probes=70)
    arrays = batch.text.astype(np.float64), batch.audio.astype(np.float64), batch.labels, batch.train_classes, batch.queries
    forms = [ClosedForm(Ridge(csls=csls), *arrays, backend=b, device=d) for b, d in (("torch", gpu), ("reference", None))]
    assert forms[0].device == gpu
    for got, want in zip(*(f.ranks(batch.permutations) for f in forms)):
        assert np.array_equal(got, want)
    for name in ("cka", "rsa", "knn:k=5", "protest"):
        tables = batch.text[:, :9].astype(np.float64), batch.text[:, 9:].astype(np.float64), batch.permutations
        found = [similarity(parse_similarity(name), *tables, backend=b, device=d) for b, d in (("torch", gpu), ("reference", None))]
        np.testing.assert_allclose(*found, atol=1e-9)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fixed_rows_may_be_stepped_either_way(gpu, precision, symmetric):
    """At A the Gram trainer is chosen; its error is near that of the one that steps the heads."""
    shape, config = SHAPES["A"]
    config = {"steps": 6, "precision": precision, "symmetric": symmetric, **config}
    (gram, _), (heads, _) = (cases.compare(shape, config, trainer, gpu, "tf32", probes=16) for trainer in ("gram", "resident"))
    for key in ("text_heads", "audio_heads", "loss"):
        assert gram[key] <= max(3 * heads[key], 1e-5), (key, gram, heads)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["A", "B", "audioset"])
def test_a_job_has_the_same_bits_in_any_batch_and_run(gpu, name, precision):
    """300 probes at once against some of them alone; a difference is a race or a batch that is seen."""
    shape, config = SHAPES[name]
    parts = ((7,), (299, 0, 150), tuple(range(40, 173)))
    assert cases.same_bits(shape, {"steps": 20, "precision": precision, **config}, None, gpu, 300, parts) == []


@pytest.mark.parametrize("precision, share", [("ieee", 0.999), ("tf32x3", 0.999), ("tf32", 0.995), ("bf16", 0.995)])
@pytest.mark.parametrize("name", ["A", "B"])
def test_decisions_after_a_whole_training(gpu, name, precision, share):
    """acc@3 of 100 steps: the same yes or no as the definition on nearly all queries."""
    shape, config = SHAPES[name]
    batch = cases.make(*shape, probes=12, steps=100, precision=precision, **config)
    want, got = reference.train(batch), cases.train(batch, None, gpu)
    assert np.mean((got.ranks <= 3) == (want.ranks <= 3)) >= share


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("n_queries, n_gallery, width", [(1, 5, 16), (1000, 144, 64), (777, 1001, 128), (130, 318, 192)])
def test_ranks_are_the_definitions(gpu, n_queries, n_gallery, width, precision):
    got, want = cases.rank_case(3, n_queries, n_gallery, width, precision, gpu)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("n_gallery", [32, 144, 1000])
def test_exact_ties_count_against_us(gpu, n_gallery, precision):
    got, want = cases.rank_case(3, 500, n_gallery, 64, precision, gpu, duplicates=True)
    assert np.array_equal(got, want)
    assert got[0].min() >= 2


@pytest.mark.parametrize(
    "leading, m, n, d, shared",
    [
        ((2,), 7, 33, 5, False),
        ((), 70, 129, 31, True),
        ((2, 3), 300, 500, 64, False),
        ((4,), 1000, 1000, 128, True),
        ((1,), 511, 513, 768, False),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_op_errs_little_more_than_plain_torch(gpu, leading, m, n, d, shared, dtype):
    ours, plain = cases.loss_case(leading, m, n, d, shared, dtype, gpu)
    for key in ours:
        assert ours[key] <= max(2 * plain[key], 1e-6), (key, ours, plain)


def test_loss_op_does_not_store_the_scores(gpu):
    """Peak memory beyond inputs and gradients stays far below one n x m matrix."""
    n, d = 8192, 64
    text, audio = (torch.randn(n, d, device=gpu, requires_grad=True) for _ in range(2))
    labels = torch.arange(n, device=gpu)
    kernels.contrastive_loss(text, audio, labels).backward()
    text.grad = audio.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.contrastive_loss(text, audio, labels).backward()
    assert torch.cuda.max_memory_allocated() - before - 2 * 4 * n * d < n * n * 4 / 20


def test_out_of_memory_says_what_fits_and_leaves_the_device_usable(gpu):
    batch = cases.make(*B, probes=4, steps=2, dim=64)
    want = cases.train(batch, None, gpu)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            cases.train(batch, None, gpu)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.array_equal(cases.train(batch, None, gpu).ranks, want.ranks)


def test_fewer_probes_at_a_time_when_memory_runs_short(gpu, monkeypatch):
    from fastprobe.kernels.gpu import backend as triton_backend

    batch = cases.make(*A, probes=20, steps=3, dim=64)
    want = cases.train(batch, None, gpu)
    monkeypatch.setattr(triton_backend, "probes_that_fit", lambda *_: 3)
    assert np.array_equal(cases.train(batch, None, gpu).ranks, want.ranks)


def test_auto_takes_triton_and_a_device_by_index(gpu):
    assert kernels.select_backend("auto").name == "triton"
    batch = cases.make(*SHAPES["odd"][0], probes=2)
    last = f"cuda:{torch.cuda.device_count() - 1}"
    assert np.array_equal(cases.train(batch, None, last).ranks, cases.train(batch, None, gpu).ranks)


@pytest.mark.parametrize("shape, sampling", [(A, "centroid"), (B, "clip")])
def test_moments_do_not_race(gpu, shape, sampling):
    """The same probes 20 times over; every run has the same bits."""
    batch = cases.make(*shape, probes=264, steps=10, dim=64, precision="tf32", sampling=sampling)
    first = cases.train(batch, None, gpu)
    for _ in range(19):
        again = cases.train(dataclasses.replace(batch), None, gpu)
        assert again.text_heads.tobytes() == first.text_heads.tobytes()
        assert again.audio_heads.tobytes() == first.audio_heads.tobytes()
