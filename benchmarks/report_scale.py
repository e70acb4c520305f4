"""Summary and report of 100 pairs x 10,001 replicates: `python -m benchmarks.report_scale`. Limit: 30 s and 2 GiB.

The directory is simulated (5,000,500 rows in 100 shards, about 0.6 GB) and removed afterwards; writing it is not timed.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

LIMIT_SECONDS, LIMIT_GIB = 30.0, 2.0


def main() -> int:
    """Print seconds and peak memory; 1 when a limit is passed."""
    from fastprobe.report import write_report
    from support.simulated_run import write_run, write_summary

    with tempfile.TemporaryDirectory() as folder:
        run = write_run(
            Path(folder) / "run",
            [f"text-{i}" for i in range(10)],
            [f"audio-{i}" for i in range(10)],
            10_000,
            splits=5,
            n_classes=144,
            clips=15,
            ks=(1, 3, 5, 10),
            effect=np.where(np.arange(100) % 3 == 0, 0.08, 0.0),
        )
        start = time.perf_counter()
        write_summary(run)
        summary = time.perf_counter() - start
        write_report([run])
        total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 30 if sys.platform == "darwin" else 1 << 20)
    print(
        f"summary {summary:.1f} s, report {total - summary:.1f} s, together {total:.1f} s (limit {LIMIT_SECONDS:g}); "
        f"peak {peak:.2f} GiB (limit {LIMIT_GIB:g})"
    )
    return int(total > LIMIT_SECONDS or peak > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
