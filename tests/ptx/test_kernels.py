"""The PTX of every trainer and of rank, project and loss, executed at small odd shapes and compared with `reference`."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from fastprobe.kernels import reference
from fastprobe.kernels.gpu import heads
from fastprobe.kernels.gpu.common import padded_width
from ptx.launch import backend
from support import triton_cases as cases

# (classes, train classes, clips, r_text, r_audio): each below, above or beside a block's edge.
SMALL = (26, 20, 60, 41, 45)
TRAINERS = {
    "gram": (SMALL, {"dim": 20, "sampling": "centroid", "steps": 9}),
    "resident": (SMALL, {"dim": 20, "sampling": "clip"}),
    "tiled": (SMALL, {"dim": 20, "sampling": "clip", "optimizer": "adam"}),
}
# Against plain PyTorch in float32, and floors for what rounding the factors does by itself.
ALLOWED = {"ieee": 1e-6, "tf32": 1.5e-3}
LONG = {"tf32x3": 1e-5, "bf16": 1.1e-2} if os.environ.get("FASTPROBE_PTX") == "long" else {}


@pytest.fixture(params=[80, 90], ids=["cc8.0", "cc9.0"])
def log(request):
    """Launches go to the executor; a fault of any kind fails the test that made it."""
    with backend(request.param) as log:
        yield log
    assert log
    assert log.bad() == {}, log


@pytest.mark.parametrize("precision", [*ALLOWED, *LONG])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_agrees_with_reference(log, trainer, precision):
    shape, config = TRAINERS[trainer]
    ours, plain = cases.compare(shape, {**config, "precision": precision}, trainer)
    for key in ("text_heads", "audio_heads", "loss"):
        assert ours[key] <= max(2 * plain[key], (ALLOWED | LONG)[precision]), (key, ours, plain)
    if precision == "ieee":
        assert ours["ranks"] == ours["ranks_unseen"] == 0
    ran = {name for name, _ in log}
    assert len(ran) >= 3, ran  # a trainer, projections and ranks


# Of one tile and of several; queries beyond a block; k of one, and of all queries.
@pytest.mark.parametrize("n_queries, n_gallery, csls", [(19, 33, 0), (67, 150, 0), (19, 33, 19), (67, 150, 1), (35, 33, 10)])
def test_ranks_are_those_of_the_definition(log, n_queries, n_gallery, csls):
    got, want = cases.rank_case(2, n_queries, n_gallery, 16, duplicates=True, csls=csls)
    assert (got == want).all()


def test_a_probe_ranked_for_hubs_never_sees_its_batch(log):
    config = {"dim": 20, "sampling": "clip", "steps": 2, "csls": 4, "precision": "tf32"}
    assert cases.same_bits(SMALL, config, "resident", probes=3, parts=((2,), (2, 0))) == []


# A wide row is where one long sum loses most.
@pytest.mark.parametrize(("shared", "width"), [(True, 20), (False, 20), (False, 600)])
def test_the_loss_errs_little_more_than_plain_torch(log, shared, width):
    ours, plain = cases.loss_case((2,), 19, 35, width, shared)
    for key, error in ours.items():
        assert error <= max(2 * plain[key], 1e-6), (key, ours, plain)


# Rows of one, of several and of all warps; widths that fill a tile and that do not; the options that it honours.
ON_CHIP = {
    "small": (SMALL, {"dim": 20, "steps": 9}),
    "full": ((150, 128, 300, 150, 61), {"dim": 64, "steps": 5}),
    "sgd": ((80, 65, 200, 85, 70), {"dim": 33, "steps": 9, "optimizer": "sgd", "weight_decay": 1e-2, "lr": 1.0}),
    "decay": (SMALL, {"dim": 16, "steps": 9, "weight_decay": 1e-2}),
    "cold": (SMALL, {"dim": 20, "steps": 9, "temperature": 0.02}),
    "symmetric": (SMALL, {"dim": 20, "steps": 9, "symmetric": True}),
    "full, symmetric": ((150, 128, 300, 150, 61), {"dim": 64, "steps": 5, "symmetric": True}),
    "one step": (SMALL, {"dim": 20, "steps": 1}),
}
# The same, and features of several slabs and of parts of one; several clips of a class.
STREAMED = {
    **ON_CHIP,
    "slabs": ((60, 40, 150, 50, 203), {"dim": 64, "steps": 6}),
    "whole slabs": ((120, 100, 250, 110, 192), {"dim": 64, "steps": 4}),
    "three clips": ((50, 33, 150, 41, 150), {"dim": 33, "steps": 6, "clips_per_class": 3, "symmetric": True}),
}


# Moments in device memory, one product at a time.
ON_CHIP |= {
    "wide": ((60, 40, 150, 50, 61), {"dim": 100, "steps": 6}),
    "wide, full, symmetric": ((150, 128, 300, 150, 61), {"dim": 128, "steps": 4, "symmetric": True}),
    "wide, sgd": ((80, 65, 200, 85, 70), {"dim": 65, "steps": 6, "optimizer": "sgd", "weight_decay": 1e-2, "lr": 1.0}),
    "wide, decay": ((80, 65, 200, 85, 70), {"dim": 128, "steps": 6, "weight_decay": 1e-2}),
    "wide, cold, one step": (SMALL, {"dim": 128, "steps": 1, "temperature": 0.02}),
}


@pytest.mark.parametrize(("trainer", "case"), [*(("onchip", c) for c in ON_CHIP), *(("stream", c) for c in STREAMED)])
def test_a_trainer_on_the_chip_agrees_with_reference(trainer, case):
    """Its factors have tf32's bits: it may err as much as tf32 does. Without `wgmma` there is no such trainer."""
    shape, config = (ON_CHIP if trainer == "onchip" else STREAMED)[case]
    sampling = "centroid" if trainer == "onchip" else "clip"
    options, allowed = (
        {**config, "sampling": sampling, "precision": "tf32"},
        dict.fromkeys(("text_heads", "audio_heads", "loss"), ALLOWED["tf32"]),
    )
    with backend(90) as log:
        ours, _ = cases.compare(shape, options, trainer)
    if "cold" in case:  # a small temperature magnifies what tf32 does to scores: by how much, the trainer in tf32 proper says
        with backend(90):
            allowed = {key: max(error, ALLOWED["tf32"]) for key, error in cases.compare(shape, options, "resident")[0].items()}
    assert {name for name, _ in log} >= {f"{trainer}_kernel", "fold_kernel"}
    assert log.bad() == {}, log
    for key in ("text_heads", "audio_heads", "loss"):
        assert ours[key] <= allowed[key], (key, ours)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("sampling", "trainer"), [("centroid", "onchip"), ("clip", "stream")])
def test_texts_of_padding_weigh_nothing_beside_sounds_that_like_no_text(sampling, trainer, symmetric):
    """All cosines start near -1, so that exp of a padding's score of 0 would be 2e8 times the whole sum of a row."""
    config = {"dim": 20, "sampling": sampling, "steps": 4, "temperature": 0.1, "symmetric": symmetric, "precision": "tf32"}
    batch = cases.make(*SMALL, **config)
    one_text, one_sound = (np.eye(x.shape[1])[0] for x in (batch.text, batch.audio))
    start = 0.1 * batch.audio_start
    start[0] = -batch.text_start[0]
    batch = dataclasses.replace(batch, text=0.1 * batch.text + one_text, audio=0.1 * batch.audio + one_sound, audio_start=start)
    want = reference.train(batch, heads=True)
    with backend(90) as log:
        ours, plain = (cases.errors(cases.train(batch, t), want) for t in (trainer, "resident"))
    assert f"{trainer}_kernel" in {name for name, _ in log}
    for key in ("text_heads", "audio_heads"):  # rounding to tf32 alone costs as much here
        assert ours[key] <= 2 * plain[key], (key, ours, plain)


@pytest.mark.parametrize(("trainer", "sampling", "dim"), [("stream", "clip", 20), ("onchip", "centroid", 20), ("onchip", "centroid", 70)])
def test_probes_whose_history_has_no_room_are_trained_in_several_launches(monkeypatch, trainer, sampling, dim):
    batch = cases.make(*SMALL, probes=5, dim=dim, steps=3, sampling=sampling, precision="tf32")
    history = (2 if trainer == "stream" else 4) * 3 * len(batch.train_classes) * padded_width(dim)
    trained = []
    for room, launches in ((heads.HISTORY_BYTES, 1), (2 * history, 3)):
        monkeypatch.setattr(heads, "HISTORY_BYTES", room)
        with backend(90) as log:
            trained.append(cases.train(batch, trainer))
        assert log.bad() == {} and [name for name, _ in log].count(f"{trainer}_kernel") == launches
    for field in ("loss", "ranks", "text_heads", "audio_heads"):
        assert np.array_equal(*(getattr(t, field) for t in trained)), field


@pytest.mark.parametrize(("sampling", "first", "instead"), [("centroid", "onchip", "gram"), ("clip", "stream", "resident")])
def test_probes_that_leave_float16s_range_are_trained_again(sampling, first, instead):
    batch = cases.make(*SMALL, dim=20, sampling=sampling, steps=9, precision="tf32")
    tiny = batch.audio * np.where(batch.labels == batch.train_classes[0], 1e-9, 1.0)[:, None]
    batch = dataclasses.replace(batch, audio=tiny)
    want = reference.train(batch, heads=True)
    with backend(90) as log:
        got = cases.train(batch)
    assert {name for name, _ in log} >= {f"{first}_kernel", f"{instead}_kernel"}
    assert max(cases.errors(got, want)[key] for key in ("text_heads", "audio_heads")) <= ALLOWED["tf32"]
