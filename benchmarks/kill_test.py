"""Kill a run with kill -9 at random moments, resume it, and compare with an uninterrupted run, bit for bit.

    python benchmarks/kill_test.py [--engine local|ray] [--kills 200] [--permutations 600] [--longest SECONDS]

Every attempt is a real process: a fork of this one, so that it starts at once. With Ray a cluster of this
machine's own is started first; a kill then hits the driver or one of its workers.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet  # noqa: F401 (loaded once here, not in every fork)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fastprobe.runs import run
from fastprobe.runs.engines import Pace, local
from fastprobe.runs.store import ResultStore
from support.small_runs import experiment, finish, same_rows


def engine_of(name: str, address: str | None, number: int):
    """Small units, so that a kill meets many writes; every tenth local attempt has two processes."""

    def execute(task, work, pace):
        small = Pace(1 + number % 7, 8 + number % 13)
        if name == "ray":
            from fastprobe.runs.engines import ray

            return ray.execute(task, work, small, address)
        return local.execute(task, work, small, ["cpu", "cpu"] if number % 10 == 9 else None)

    return execute


def attempt(exp, out: str, engine) -> int:
    """Resume in a process of its own; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        finish(exp, run.open_store(exp, out, resume=True), engine)
        code = 0
    except BaseException as error:
        print(f"attempt failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def stored(out: str) -> int:
    """Shards in a run directory."""
    folder = Path(out, "results")
    return len(os.listdir(folder)) if folder.is_dir() else 0


def descendants(root: int, word: str) -> list[int]:
    """Processes below `root` whose command line begins with a word."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_text()
            except (OSError, IndexError):
                continue

    def below(pid: int) -> bool:
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == root:
                return True
        return False

    return [p for p in parents if lines.get(p, "").startswith(word) and below(p)]


def cluster() -> tuple[subprocess.Popen, str]:
    """A Ray head of two cores in a process tree of its own."""
    code = (
        "import ray, sys, time\n"
        "c = ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)\n"
        "print(c.address_info['address'], flush=True)\nsys.stdin.read()\n"
    )
    head = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": os.pathsep.join([*sys.path[:1], os.environ.get("PYTHONPATH", "")]),
        },
    )
    return head, head.stdout.readline().strip()


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--permutations", type=int, default=600, help="of each run: more of them, and more kills meet each")
    parser.add_argument("--longest", type=float, help="seconds an attempt lives at most", default=None)
    given = parser.parse_args()
    rng, longest = random.Random(given.seed), given.longest or (3.0 if given.engine == "local" else 8.0)
    exp = experiment(given.permutations)
    want = finish(exp, run.open_store(exp, None), partial(local.execute, devices=None))
    kills = finished = number = worker_kills = resumes = advanced = 0
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster is of this process alone; its drivers have no token
    head, address = cluster() if given.engine == "ray" else (None, None)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            while kills < given.kills or not finished:
                out = f"{folder}/run{finished}"
                while True:
                    before = stored(out)
                    pid = attempt(exp, out, engine_of(given.engine, address, number))
                    number += 1
                    resumes += Path(out, "manifest.json").exists()
                    end = time.monotonic() + (rng.random() * longest if kills < given.kills else 600)
                    while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
                        time.sleep(0.002)
                    if done == (0, 0):
                        workers = descendants(head.pid, "ray::_compute") if head and rng.random() < 0.4 else []
                        if workers:
                            os.kill(rng.choice(workers), signal.SIGKILL)
                            worker_kills += 1
                            time.sleep(rng.random() * 0.3)
                        os.kill(pid, signal.SIGKILL)
                        kills += 1 + bool(workers)
                        os.waitpid(pid, 0)
                        advanced += stored(out) > before
                        if number % 25 == 0:
                            print(f"{kills} kills, {finished} runs finished, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
                    elif os.waitstatus_to_exitcode(done[1]):
                        raise SystemExit("an attempt ended by itself with an error; see above")
                    else:
                        break
                store = ResultStore.open(out)
                if not same_rows(store, want):
                    raise SystemExit(f"rows differ from the uninterrupted run's after {kills} kills")
                if damaged := [u for u in store.done() if store.damage(u)]:
                    raise SystemExit(f"damaged shards: {damaged}")
                if left := [n for n in os.listdir(f"{out}/results") if not n.startswith("part-")]:
                    raise SystemExit(f"left behind: {left}")
                finished += 1
    finally:
        if head:
            head.stdin.close()
            head.wait(timeout=30)
    print(
        f"{given.engine}: {kills} kills ({worker_kills} of a worker), {advanced} of them after new shards, "
        f"{resumes} resumes, {finished} runs of {exp.plan.n_jobs:,} jobs "
        f"came to their end, each equal to the uninterrupted run row for row, bit for bit; {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
