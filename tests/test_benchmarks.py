"""Benchmarks of a CPU still run: what they call may change under them. Their figures are not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("driver", ["--jobs", "1000"], "jobs_per_cpu_second"),
        ("closed", ["--rounds", "1", "--jobs", "32", "--permutations", "32"], "ridge, cpp"),
        ("precision", ["--probes", "1"], "| A | outputs | bf16 |"),
    ],
)
def test_a_benchmark_runs_in_miniature(name, options, says):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
