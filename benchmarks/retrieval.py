"""Top-k by inner product: fastprobe's choice beside torch.topk, numpy.argpartition and FAISS, and approximate indexes.

    python benchmarks/retrieval.py exact --shape 10000 144          # one case; medians into results/retrieval.json
    python benchmarks/retrieval.py approximate --kind ivfpq --data clustered
    python benchmarks/retrieval.py build --rows 10000000            # memory of an index build, against the estimate
    python benchmarks/retrieval.py report                           # results/retrieval.md from what is measured

Peers take turns in one process, after their lists were seen to agree. `--lock FILE` holds a lock while the clock runs.
On a machine with other work, `OMP_NUM_THREADS=1 ... --clock cpu` counts the processor time of one thread instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastprobe.kernels.topk import choose_path, top_k
from fastprobe.retrieval.gallery import GalleryIndex

RESULTS = Path(__file__).parent / "results"
WIDTH, K = 64, 10


def rows(data: str, n: int, seed: int) -> np.ndarray:
    """Rows of length 1. `gaussian`: no structure at all. `clustered`: 4,000 centres in a space of 24 dimensions, as texts
    on shared topics lie, each row at cosine about .8 of its centre."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((n, WIDTH), dtype=np.float32)
    if data == "clustered":
        shared = np.random.default_rng(99)
        axes = shared.standard_normal((24, WIDTH), dtype=np.float32) / np.float32(np.sqrt(24))
        centres = shared.standard_normal((4000, 24), dtype=np.float32) @ axes
        own = rng.standard_normal((n, 24), dtype=np.float32) @ axes
        out *= np.float32(0.15)
        out += centres[rng.integers(0, 4000, n)]
        out += np.float32(0.7) * own
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def bare_numpy(q, g):
    """What one writes in NumPy: blocks of queries, a product, argpartition."""
    found = []
    step = max((64 << 20) // (4 * len(g)), 1)
    for start in range(0, len(q), step):
        s = q[start : start + step] @ g.T
        part = np.argpartition(s, len(g) - K, axis=1)[:, len(g) - K :]
        score = np.take_along_axis(s, part, 1)
        order = np.argsort(-score, axis=1)
        found.append((np.take_along_axis(score, order, 1), np.take_along_axis(part, order, 1)))
    return [np.concatenate(c) for c in zip(*found)]


def bare_torch(q, g):
    """What one writes in PyTorch: blocks of queries, a product, topk."""
    import torch

    a, b = torch.from_numpy(q), torch.from_numpy(g)
    step = max((256 << 20) // (4 * len(g)), 1)
    found = [(block @ b.T).topk(K, dim=1) for block in a.split(step)]
    return [torch.cat(c).numpy() for c in zip(*found)]


def bare_faiss(q, g):
    """The search of IndexFlatIP, without its copy of the gallery."""
    import faiss

    return faiss.knn(q, g, K, metric=faiss.METRIC_INNER_PRODUCT)


def interleaved(calls: dict, rounds: int, lock: str | None, clock: str) -> dict[str, float]:
    """Median seconds of each call, taking turns."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with held(lock):
        for _ in range(rounds):
            for name, call in calls.items():
                start = now()
                call()
                seconds[name].append(now() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def clock_name(clock: str) -> str:
    """What the seconds are."""
    import torch

    threads = torch.get_num_threads()
    return f"{'processor time' if clock == 'cpu' else 'wall'}, {threads} thread{'s' if threads > 1 else ''}"


@contextlib.contextmanager
def held(lock: str | None):
    """The exclusive lock on a file, or nothing."""
    if lock is None:
        yield
        return
    import fcntl

    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def gate(lists: dict) -> None:
    """Every peer finds the same rows, but where float32 cannot tell scores apart."""
    first = next(iter(lists.values()))
    for name, (scores, found) in lists.items():
        np.testing.assert_allclose(scores, first[0], atol=2e-6, err_msg=name)
        if (same := float((np.asarray(found) == np.asarray(first[1])).mean())) < 0.999:
            raise SystemExit(f"{name} agrees on {same:.4f} of the rows only: no timing is reported")


def exact(a) -> dict:
    """One shape, all peers and paths."""
    q, g = rows(a.data, a.shape[0], 1), rows(a.data, a.shape[1], 2)
    q = q[: a.queries] if a.queries else q
    calls = {
        "numpy argpartition": lambda: bare_numpy(q, g),
        "torch.topk": lambda: bare_torch(q, g),
        "FAISS flat": lambda: bare_faiss(q, g),
        **{f"path {p}": lambda p=p: top_k(q, g, K, path=p) for p in ("groups", "torch", "faiss") if len(g) >= 4096 or p != "groups"},
        "fastprobe (auto)": lambda: top_k(q, g, K),
    }
    few = {n: c for n, c in calls.items() if not a.skip or not any(s in n for s in a.skip)}
    q_all, q = q, q[: min(64, max(len(q) // 4, 1))]
    gate({n: c() for n, c in few.items()})
    q = q_all
    seconds = interleaved(few, a.rounds, a.lock, a.clock)
    return {
        "case": "exact",
        "clock": clock_name(a.clock),
        "data": a.data,
        "queries": len(q),
        "gallery": len(g),
        "asked": a.shape[0],
        "rounds": a.rounds,
        "chosen": choose_path(len(q), len(g), K),
        "us_per_query": {n: 1e6 * s / len(q) for n, s in seconds.items()},
    }


def approximate(a) -> dict:
    """Build one kind over `--rows` rows and compare it with exact search."""
    g, tune_on, q = rows(a.data, a.rows, 2), rows(a.data, 256, 3), rows(a.data, a.queries or 1000, 4)
    start = time.perf_counter()
    index = GalleryIndex(g, kind=a.kind, recall=a.recall, queries=tune_on, unit=True)
    built = time.perf_counter() - start
    gate({"exact": index.search(q[:64], K, exact=True), "faiss": bare_faiss(q[:64], g)})
    recall = index.recall(q)
    calls = {
        "FAISS flat": lambda: bare_faiss(q, g),
        "exact (auto)": lambda: index.search(q, K, exact=True),
        a.kind: lambda: index.search(q, K),
    }
    seconds = interleaved(calls, a.rounds, a.lock, a.clock)
    return {
        "case": "approximate",
        "clock": clock_name(a.clock),
        "kind": a.kind,
        "data": a.data,
        "rows": len(g),
        "queries": len(q),
        "rounds": a.rounds,
        "factory": index.meta["factory"],
        "effort": index.meta["effort"],
        "recall": recall,
        "build_s": built,
        "us_per_query": {n: 1e6 * s / len(q) for n, s in seconds.items()},
    }


def build(a) -> dict:
    """Peak memory and time of `index build`, in a process of its own, against the estimate."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path = Path(folder) / "t.parquet"
        schema = pa.schema([("label", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH))])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, a.rows, 1 << 18):
                block = rows(a.data, min(1 << 18, a.rows - start), start)
                labels = pa.array([f"caption number {i}" for i in range(start, start + len(block))])
                writer.write_table(pa.table([labels, pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), WIDTH)], schema=schema))
        code = (
            "import json, resource, sys, time, pyarrow.parquet, torch\n"
            "from fastprobe.retrieval.build import build_index, plan_index\n"
            "from fastprobe.retrieval.gallery import GalleryIndex\n"
            "def resident():\n"
            "    return next(1024 * int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
            "plan = plan_index(sys.argv[1], sys.argv[3]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "start = time.time(); n = 0; anon = 0\n"
            "for done in build_index(plan, sys.argv[2]): anon = max(anon, resident())\n"
            "seconds = time.time() - start; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "index = GalleryIndex.load(sys.argv[2]); q = index.vectors[:100]\n"
            "start = time.time(); rows = index.search(q, 1)[1]; search = time.time() - start\n"
            "print(json.dumps({'grown': peak - before, 'estimate': plan.estimate['build'], 'seconds': seconds,\n"
            "                  'search_100': search, 'found_itself': float((rows[:, 0] == range(100)).mean()), 'meta': index.meta}))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path), str(Path(folder) / "index"), a.kind], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return {"case": "build", "kind": a.kind, "data": a.data, "rows": a.rows, **json.loads(done.stdout)}


def machine() -> str:
    """Processor, cores and versions, in words."""
    import faiss
    import torch

    try:
        name = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"PyTorch {torch.__version__}, FAISS {faiss.__version__}"
    )


def report() -> str:
    """results/retrieval.md, from results/retrieval.json."""
    stored = json.loads((RESULTS / "retrieval.json").read_text())
    out = [
        "# Retrieval: the k = 10 nearest rows of width 64",
        "",
        stored["machine"] + ".",
        "Made by benchmarks/retrieval.py: peers take turns in one process after their lists were seen to agree; medians.",
        "`FAISS flat` and `path faiss` run the same search: where they differ, it is by what ran before them.",
        "",
        "## Exact search, microseconds per query",
        "",
    ]
    cases = [c for c in stored["cases"].values() if c["case"] == "exact"]
    names = list(dict.fromkeys(n for c in cases for n in c["us_per_query"]))
    out += [
        "| queries | gallery | data | clock | " + " | ".join(names) + " | chosen | against torch.topk | against FAISS flat |",
        "| --: | --: | --- | --- |" + " --: |" * len(names) + " --- | --: | --: |",
    ]
    for c in sorted(cases, key=lambda c: (c["gallery"], c["queries"])):
        t, mine = c["us_per_query"], c["us_per_query"]["fastprobe (auto)"]
        peers = [f"{t[p] / mine:.2f}x" if p in t else "" for p in ("torch.topk", "FAISS flat")]
        of = "" if c["queries"] == c["asked"] else f" (of {c['asked']:,})"
        each = [f"{t[n]:,.1f}" if n in t else "" for n in names]
        row = [f"{c['queries']:,}{of}", f"{c['gallery']:,}", c["data"], c["clock"], *each, c["chosen"], *peers]
        out.append("| " + " | ".join(row) + " |")
    out += [
        "",
        "## Approximate search",
        "",
        "recall@10 is measured on queries that the effort was not tuned on.",
        "",
        "| data | rows | clock | kind | recall@10 | us per query | exact (auto) | FAISS flat | faster than these | build, s |",
        "| --- | --: | --- | --- | --: | --: | --: | --: | --- | --: |",
    ]
    for c in stored["cases"].values():
        if c["case"] == "approximate":
            t = c["us_per_query"]
            out.append(
                f"| {c['data']} | {c['rows']:,} | {c['clock']} | {c['factory']}, effort {c['effort']} | {c['recall']:.3f} "
                f"| {t[c['kind']]:,.1f} | "
                f"{t['exact (auto)']:,.1f} | {t['FAISS flat']:,.1f} | {t['exact (auto)'] / t[c['kind']]:.1f}x, "
                f"{t['FAISS flat'] / t[c['kind']]:.1f}x | {c['build_s']:.0f} |"
            )
    out += [
        "",
        "## Building on disk",
        "",
        "Peak memory beyond the program, in a process of its own, and what was stated beforehand.",
        "",
        "| rows | kind | peak | stated | build, s | 100 queries, s |",
        "| --: | --- | --: | --: | --: | --: |",
    ]
    for c in stored["cases"].values():
        if c["case"] == "build":
            peak, stated = (f"{c[n] / 2**20:,.0f} MiB" for n in ("grown", "estimate"))
            out.append(f"| {c['rows']:,} | {c['kind']} | {peak} | {stated} | {c['seconds']:.0f} | {c['search_100']:.2f} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """One case, or the report."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["exact", "approximate", "build", "report"])
    p.add_argument("--shape", type=int, nargs=2, default=(10000, 144), metavar=("QUERIES", "GALLERY"))
    p.add_argument("--queries", type=int, help="measure on this many of the queries only")
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--data", choices=["gaussian", "clustered"], default="gaussian")
    p.add_argument("--kind", default="ivfpq", choices=["exact", "ivfpq", "hnsw"])
    p.add_argument("--recall", type=float, default=0.96, help="asked of the tuning queries")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--skip", nargs="*", default=[], help="leave out peers whose name holds this")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--lock", help="file to lock while the clock runs")
    p.add_argument("--folder", help="where `build` works")
    a = p.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "retrieval.json"
    if a.what != "report":
        found = {"exact": exact, "approximate": approximate, "build": build}[a.what](a)
        stored = json.loads(file.read_text()) if file.exists() else {"cases": {}}
        key = " ".join(str(found.get(k, "")) for k in ("case", "kind", "data", "queries", "gallery", "rows"))
        stored["machine"], stored["cases"][key] = machine(), found
        file.write_text(json.dumps(stored, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    (RESULTS / "retrieval.md").write_text(report())


if __name__ == "__main__":
    main()
