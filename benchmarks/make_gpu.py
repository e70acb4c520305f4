"""`make gpu`: CUDA tests, then GPU benchmarks. Needs torch, triton, numpy, scipy and pytest; run from the checkout.

    python -m benchmarks.make_gpu            on a machine with an NVIDIA GPU
    python -m benchmarks.make_gpu --dry-run  without one: collects the tests, runs the benchmarks in miniature

Most of the tests' time is the compiler's, on the CPU, so they are split over several processes that share the GPU
and Triton's cache. The benchmarks run alone. Either part is stopped when it takes far longer than it should: a kernel
that hangs must not cost the other part its turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """This checkout and its tests' helpers first on the path; plugins of other packages stay out of pytest."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def pytest_command(*arguments: str) -> list[str]:
    """pytest without the checkout's conftest, which imports what a GPU machine may lack."""
    return [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *arguments]


def missing() -> str | None:
    """What Triton lacks here to build its launchers, which it does with the first kernel."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: apt-get install gcc, or name one in CC"
    # Debian's own scheme names a folder that Triton does not look in.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not Path(sysconfig.get_paths(scheme)["include"], "Python.h").exists():
        return "Triton needs Python's headers: apt-get install python3-dev"
    return None


def collect() -> list[str]:
    """Identifiers of the CUDA tests."""
    command = pytest_command("--collect-only", "tests/kernels/test_cuda.py", "tests/retrieval/test_faiss_cuda.py")
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    names = [line for line in run.stdout.splitlines() if "::" in line]
    if not names:
        sys.exit(f"no CUDA test was collected:\n{run.stdout}{run.stderr}")
    return names


def run_tests(names: list[str], processes: int, seconds: float) -> int:
    """Run the tests in so many processes, for so many seconds at most; the number of processes in which something failed."""
    started, until = [], time.perf_counter() + seconds
    for shard in range(processes):
        mine = names[shard::processes]
        if mine:
            log = open(ROOT / f".gpu-tests-{shard}.tmp", "w+")  # noqa: SIM115  read and closed below
            process = subprocess.Popen(
                pytest_command("-vv", "--tb=short", "-ra", *mine),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | {"OMP_NUM_THREADS": "2"},
            )
            started.append((process, log))
    failed = 0
    for process, log in started:
        try:
            process.wait(max(until - time.perf_counter(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            log.seek(0, os.SEEK_END)
            log.write(f"\nstopped: not done after {seconds:.0f} s\n")
        failed += process.returncode != 0
        log.seek(0)
        lines = log.read().splitlines()
        log.close()
        Path(log.name).unlink()
        wrong = process.returncode != 0
        print("\n".join(lines[-250:] if wrong else lines[-1:]), flush=True)
    return failed


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="no GPU: collect the tests, run the benchmarks in miniature")
    parser.add_argument("--processes", type=int, default=max(min((os.cpu_count() or 2) // 2, 8), 1))
    parser.add_argument("--minutes", type=float, default=9, help="all is stopped after so many, tests after 45%% of them")
    options = parser.parse_args()
    if not options.dry_run and (reason := missing()):
        print(reason, file=sys.stderr)
        return 2
    start, names = time.perf_counter(), collect()
    print(f"{len(names)} CUDA tests in {options.processes} processes", flush=True)
    failed = run_tests(names[:4] if options.dry_run else names, options.processes, 27 * options.minutes)
    print(f"tests: {failed} of {options.processes} processes failed, {time.perf_counter() - start:.0f} s", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu", *(["--dry-run"] if options.dry_run else [])]
    try:
        bench = subprocess.run(
            command, cwd=ROOT, env=environment(), check=False, timeout=max(60 * options.minutes - (time.perf_counter() - start), 1)
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"benchmarks: stopped, {options.minutes:.3g} minutes are over; what was done before is in the tables", flush=True)
        bench = 124
    print(f"benchmarks: exit code {bench}; {time.perf_counter() - start:.0f} s in all", flush=True)
    return 1 if failed or bench else 0


if __name__ == "__main__":
    sys.exit(main())
