"""One run at a time in a directory, and the holder named."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from fastprobe.errors import StoreError
from fastprobe.runs import lock, run
from fastprobe.runs.lock import RunLock, is_dead, read_lock
from fastprobe.storage import Folder
from support.small_runs import experiment, finish, sized


def held_by(folder, **changes):
    record = {**RunLock(folder).record, **changes}
    folder.write(lock.NAME, json.dumps(record).encode())
    return record


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_the_second_run_names_the_first(folder):
    with RunLock(folder), pytest.raises(StoreError, match=f"process {os.getpid()} on '{socket.gethostname()}' since 20"):
        RunLock(folder).__enter__()
    assert read_lock(folder) is None
    with RunLock(folder):
        pass


def test_a_run_directory_is_locked_while_it_runs(tmp_path):
    exp = experiment(20)
    steps = run.execute(exp, run.open_store(exp, tmp_path / "r"), sized(4))
    next(steps)
    with pytest.raises(StoreError, match="another run holds this directory"):
        finish(exp, run.open_store(exp, tmp_path / "r", resume=True))
    steps.close()
    finish(exp, run.open_store(exp, tmp_path / "r", resume=True))


def test_a_killed_holder_is_taken_over_at_once(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held_by(folder, pid=child.pid, started=lock.process_started(child.pid))
    with pytest.raises(StoreError, match=f"process {child.pid} "):
        RunLock(folder).__enter__()
    child.kill()
    time.sleep(0.2)  # now a zombie, since nobody has waited for it
    start = time.monotonic()
    with RunLock(folder):
        assert read_lock(folder)["pid"] == os.getpid()
    assert time.monotonic() - start < 2
    child.wait()
    held_by(folder, started="1")  # the number of a dead process, given to another (this one)
    with RunLock(folder):
        pass


def test_another_machine_is_watched_before_it_is_taken_for_dead(folder):
    held_by(folder, host="elsewhere", pid=1)
    assert not is_dead(read_lock(folder))
    start = time.monotonic()
    with RunLock(folder, patience=1.0, beat=0.2):
        assert time.monotonic() - start >= 1.0
    record = held_by(folder, host="elsewhere", pid=1)
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import json, sys, time\nr = json.loads(sys.argv[2])\n"
                "while True:\n    time.sleep(0.05); r['beat'] += 1\n"
                "    open(sys.argv[1] + '.new', 'w').write(json.dumps(r)); import os; os.replace(sys.argv[1] + '.new', sys.argv[1])"
            ),
            str(folder.path / lock.NAME),
            json.dumps(record),
        ]
    )
    try:
        time.sleep(0.5)
        with pytest.raises(StoreError, match="process 1 on 'elsewhere'"):
            RunLock(folder, patience=3.0, beat=0.2).__enter__()
    finally:
        writer.kill()
        writer.wait()


def test_who_lost_the_lock_stops(folder):
    with RunLock(folder, beat=0.05) as mine:
        mine.check()
        held_by(folder, token="another", host="elsewhere")
        time.sleep(0.3)
        with pytest.raises(StoreError, match="lost the directory to .*elsewhere"):
            mine.check()
    assert read_lock(folder)["host"] == "elsewhere", "another's lock is not ours to remove"


def test_a_torn_or_foreign_lock_is_no_lock(folder):
    for content in (b"", b"{", b"[1]", b'{"pid": "x"}', b"\x80\x04."):
        folder.write(lock.NAME, content)
        with RunLock(folder):
            pass


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Rates, beats and patience come from a monotonic clock."""
    exp, now = experiment(20), [1e9]

    def jumping(*_):
        now[0] -= 86400
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    store = finish(exp, run.open_store(exp, tmp_path / "r"))
    beat = json.loads(store.read_file("progress.json"))
    assert beat["done"] == exp.plan.n_jobs and 0 < beat["jobs_per_second"] < 1e7 and beat["seconds"] >= 0
