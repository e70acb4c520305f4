"""Kills and signals: out at once, nothing finished lost, and a resume ends in the same rows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fastprobe.runs import run
from fastprobe.runs.store import ResultStore
from support.small_runs import experiment, finish, same_rows, save_tables

PERMUTATIONS = 400


def command(tables, out, *more):
    return [
        sys.executable,
        "-c",
        "from fastprobe.cli.app import main; main()",
        "run",
        *tables,
        "--dim",
        "2",
        "--steps",
        "2",
        "--splits",
        "2",
        "--train-fraction",
        "0.5",
        "--backend",
        "reference",
        "--permutations",
        str(PERMUTATIONS),
        "--out",
        str(out),
        *more,
    ]


def started(process, out, timeout=60):
    """Wait until the run computes."""
    end = time.monotonic() + timeout
    while not (out / "progress.json").exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number, code, more", [(signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--devices", "cpu,cpu"])])
def test_signals_end_a_run_quickly_and_by_their_code(tmp_path, number, code, more):
    tables = save_tables(tmp_path / "tables", 1)
    out = tmp_path / "r"
    process = subprocess.Popen(command(tables, out, "--permutations", "200000", *more), stderr=subprocess.PIPE, text=True)
    started(process, out)
    time.sleep(1)
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and time.monotonic() - start < 5
    assert "everything finished is stored" in err and "--resume" in err and "Traceback" not in err
    store = ResultStore.open(out)
    assert all(store.damage(u) is None for u in store.done()) and not (out / "run.lock").exists()


STUCK = """
import ctypes, fastprobe.cli.runs as c
lock = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
libc.pthread_mutex_init(lock, None)
libc.pthread_mutex_lock(lock)
with c.interruptible("r"):
    print("ready", flush=True)
    libc.pthread_mutex_lock(lock)  # never returns, and no Python handler can run
"""


def test_a_main_thread_stuck_in_c_is_left_too(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - start < 5 and "finished is" in err


def test_kill_minus_nine_again_and_again(tmp_path):
    """The script benchmarks/kill_test.py does this 200 times."""
    tables, out, rng = save_tables(tmp_path / "tables", 1), tmp_path / "r", random.Random(7)
    kills, more = 0, []
    for attempt in range(40):
        process = subprocess.Popen(
            command(tables, out, *more, *(["--devices", "cpu,cpu"] if attempt % 3 == 2 else [])),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        if kills < 4:
            started(process, out)
            time.sleep(rng.random() * 0.3)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        more = ["--resume"]
        (out / "progress.json").unlink(missing_ok=True)
        if process.returncode == 0 and kills >= 4:
            break
    exp = experiment(PERMUTATIONS, text=tables[1], audio=tables[3])
    store = ResultStore.open(out)
    assert kills == 4 and same_rows(store, finish(exp, run.open_store(exp, None)))
    assert not [n for n in os.listdir(out / "results") if n.endswith(".tmp")]
