"""What the driver itself costs: a backend that does nothing, through plan, store and statistics.

    python benchmarks/driver.py [--jobs 100000 1000000 10000000]

Each size runs in a fresh process. Printed: jobs per second of the whole job (plan, batches, metrics, shards with
fsync, p-values, summary; imports included) by the wall clock and by processor time, which other work on the machine
changes little; of a resume that finds everything done (digests of all shards); and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

SPLITS = 5


def train(batch, device=None, heads=False):
    """A backend without arithmetic: every loss 0, every rank 1."""
    import numpy as np

    from fastprobe.kernels import BatchResult

    ranks = np.ones((batch.n_probes, len(batch.queries)), np.int32)
    shapes = [(batch.n_probes, x.shape[1], batch.config.dim) for x in (batch.text, batch.audio)] if heads else []
    return BatchResult(np.zeros(batch.n_probes), ranks, ranks, *(np.ones(s) for s in shapes))


def measure(jobs: int, clips: int) -> dict[str, float]:
    """One run of about that many jobs, in this process."""
    from fastprobe import kernels
    from fastprobe.runs import run
    from fastprobe.tables.simulate import fsd50k_leaf_names, simulate_pair

    kernels.BACKENDS["null"] = kernels.Backend("null", "benchmarked_null", lambda: None)
    sys.modules["fastprobe.kernels.benchmarked_null"] = sys.modules[__name__]  # `train` above is what is loaded
    text, audio = simulate_pair(fsd50k_leaf_names(), alignment=0.5, clips=clips)
    exp = run.prepare(text, audio, permutations=jobs // SPLITS - 1, splits=SPLITS, backend="null")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        store = run.open_store(exp, f"{folder}/run")
        for _ in run.execute(exp, store):
            pass
        executed = time.perf_counter()
        during = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store.write_summary(run.summary(exp, run.analyse(exp, store), store))
        end, cpu = time.perf_counter(), time.process_time() - cpu
        size = sum(len(store.folder.read(store.shard_name(u))) for u in store.done())
        again = time.perf_counter()
        for _ in run.execute(exp, run.open_store(exp, f"{folder}/run", resume=True)):
            pass
        resumed = time.perf_counter() - again
        shards = len(store.done())
    n = exp.plan.n_jobs
    return {
        "jobs": n,
        "queries": 43 * clips,
        "jobs_per_second": n / (end - start),
        "jobs_per_cpu_second": n / cpu,
        "execute_per_second": n / (executed - start),
        "analyse_seconds": end - executed,
        "resume_per_second": n / resumed,
        "bytes_per_job": size / n,
        "shards": shards,
        "mb_start": before / 1024,
        "mb_execute": during / 1024,
        "mb_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Print a row for every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--clips", type=int, default=1, help="of each class; 43 classes are queried")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.clips)))
        return
    for jobs in given.jobs:
        out = subprocess.run(
            [sys.executable, __file__, "--one", str(jobs), "--clips", str(given.clips)], check=True, capture_output=True, text=True
        ).stdout
        print("  ".join(f"{k} {v:,.1f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in json.loads(out).items()))


if __name__ == "__main__":
    main()
