"""Settings that all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Two workers with two spinning threads each take ten times as long on two cores. Tests of threads say so themselves.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/, whatever pytest was started with

# Timing differs wildly between machines: laws are about values, so no deadline.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def shell(tmp_path):
    """Run `fastprobe` in a fresh process: shell("run", "--text", ...) -> CompletedProcess."""
    import subprocess

    def call(*arguments, timeout=120, **kwargs):
        command = [sys.executable, "-c", "from fastprobe.cli.app import main; main()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=kwargs.pop("cwd", tmp_path), **kwargs)

    return call
