"""ProbeConfig: defaults by optimiser, ranges, schedules."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastprobe import ProbeConfig
from fastprobe.errors import InputError


def test_defaults_follow_the_optimiser():
    assert (ProbeConfig().lr, ProbeConfig().basis) == (1.0, "svd")
    assert (ProbeConfig(optimizer="adam").lr, ProbeConfig(optimizer="adam").basis) == (3e-3, "raw")
    assert ProbeConfig(optimizer="sgd").lr == 3.0


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": 0},
        {"dim": 2.5},
        {"dim": True},
        {"steps": -1},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"lr": -1.0},
        {"lr": float("inf")},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"clips_per_class": 0},
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"sampling": "all"},
        {"basis": "pca"},
        {"precision": "fp8"},
        {"symmetric": "yes"},
        {"energy": 0.0},
        {"energy": 0.9, "basis": "raw"},
        {"energy": True},
    ],
)
def test_bad_fields_are_named_with_their_value(fields):
    with pytest.raises(InputError, match=f"`{next(iter(fields))}`.*got"):
        ProbeConfig(**fields)


def test_numpy_numbers_are_taken_and_stored_as_plain_ones():
    config = ProbeConfig(dim=np.int64(8), steps=np.int32(3), lr=np.float32(0.5), temperature=np.float64(1), energy=np.float64(0.5))
    assert config == ProbeConfig(dim=8, steps=3, lr=0.5, temperature=1.0, energy=0.5)
    assert {type(v) for v in config.to_dict().values()} <= {int, float, str, bool}


def test_frozen_and_plain():
    config = ProbeConfig(dim=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 9
    assert ProbeConfig(**config.to_dict()) == config


def test_schedules():
    cosine = ProbeConfig(steps=10, lr=2.0)
    assert cosine.learning_rate(0) == 2.0 and cosine.learning_rate(5) == pytest.approx(1.0)
    assert all(cosine.learning_rate(t) > cosine.learning_rate(t + 1) > 0 for t in range(8))
    assert {ProbeConfig(schedule="constant", lr=0.5).learning_rate(t) for t in range(5)} == {0.5}
