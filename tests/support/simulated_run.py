"""Run directories with simulated results, for what reads them: no probe is trained."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.metrics import metric_names
from fastprobe.protocol.plan import JobPlan, Unit, split_classes
from fastprobe.runs import run as fprun
from fastprobe.runs.specification import stored_specification
from fastprobe.runs.store import ResultStore


def write_run(
    path,
    texts,
    audios,
    permutations=40,
    *,
    splits=3,
    seeds=1,
    n_classes=20,
    clips=6,
    ks=(1, 3, 5),
    statistic="acc@3",
    effect=0.1,
    seed=0,
    inputs=None,
    rows_per_shard=1 << 14,
    retrieved=True,
    **identity,
):
    """Write the directory of a finished run whose observed values lie `effect` (one, or one per pair) above the null."""
    pairs = [[t, a] for a in audios for t in texts]
    rng = np.random.default_rng(seed + 1)
    effects = np.broadcast_to(effect, len(pairs))
    inputs = inputs or [
        {"side": s, "name": n, "rows": 20, "width": 8, "digest": f"{s}{n}".encode().hex() * 4, "meta": {}}
        for s, names in (("text", texts), ("audio", audios))
        for n in names
    ]
    manifest = {
        "status": "done",
        "permutations": permutations,
        "statistic": statistic,
        "n_classes": n_classes,
        "device": "auto",
        "precision": "ieee",
        "paths": {},
        "versions": {"fastprobe": "0.1.0", "numpy": np.__version__},
        "machine": "simulated",
        "updated": "2026-01-01T00:00:00Z",
        "identity": {
            "pairs": pairs,
            "inputs": inputs,
            "probe": ProbeConfig().to_dict(),
            "splits": splits,
            "seeds": seeds,
            "train_fraction": 0.7,
            "k": list(ks),
            "columns": metric_names(ks),
            "seed": seed,
            "backend": "reference",
            **identity,
        },
    }
    store = ResultStore.create(path, manifest)
    per, shared = splits * seeds, rng.standard_normal(permutations + 1)
    plan = JobPlan(len(pairs), splits, seeds, permutations)
    for pair in range(len(pairs)):
        for start in range(0, permutations + 1, rows_per_shard):
            stop = min(start + rows_per_shard, permutations + 1)
            n = (stop - start) * per
            b = np.repeat(np.arange(start, stop), per)
            level = (
                0.02 * np.repeat(0.6 * shared[start:stop] + 0.8 * rng.standard_normal(stop - start), per)
                + 0.02 * rng.standard_normal(n)
                + effects[pair] * (b == 0)
            )
            columns = {
                "split": np.tile(np.repeat(np.arange(splits, dtype=np.int32), seeds), stop - start),
                "seed": np.tile(np.arange(seeds, dtype=np.int32), (stop - start) * splits),
                "permutation": b.astype(np.int64),
                "loss": rng.uniform(1, 2, n),
            }
            for name in metric_names(ks):
                k = int(name.split("@")[1].split("_")[0]) if "@" in name else 0
                columns[name] = (
                    np.clip(k / n_classes + level * np.sqrt(max(k, 1)), 0, 1)
                    if name.startswith("acc")
                    else np.full(n, 6 * clips, np.int64)
                    if name == "n_queries"
                    else (100 * np.clip(level + 0.5, 0, 1)).astype(np.int64)
                    if name.startswith("hits")
                    else 1.5 - level
                )
            store.write(Unit(pair, start, stop), columns)
    classes = np.array([f"Class_{i:03d}" for i in range(n_classes)])
    parts = []
    for i, (t, a) in enumerate(pairs):
        for split in range(splits):
            test = split_classes(seed, split, n_classes, 0.7).test
            label = np.repeat(classes[test], clips)
            for repeat in range(seeds):
                rank = np.minimum(rng.geometric(1 / (1 + 0.4 * n_classes * (1 - effects[i])), len(label)), n_classes)
                parts.append(
                    {
                        "text": np.full(len(label), t),
                        "audio": np.full(len(label), a),
                        "label": label,
                        "split": np.full(len(label), split, np.int32),
                        "seed": np.full(len(label), repeat, np.int32),
                        "query": np.array([f"q{j}" for j in range(len(label))]),
                        "rank": rank.astype(np.int32),
                    }
                )
    observed = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    pq.write_table(pa.table(observed), path / "observed.parquet")
    if retrieved:
        first = np.where(observed["rank"] == 1, observed["label"], classes[rng.integers(0, 3, len(observed["rank"]))])
        lists = {
            **{k: observed[k] for k in ("text", "audio", "split", "seed", "query", "label")},
            "position": np.ones(len(first), np.int32),
            "retrieved": first,
            "score": np.zeros(len(first)),
        }
        pq.write_table(pa.table(lists), path / "retrieved.parquet")
    write_summary(path, store, manifest)
    assert plan.n_jobs == per * len(pairs) * (permutations + 1)
    return path


def write_summary(path, store=None, manifest=None):
    """Analyse what is stored and write summary.json and summary.csv."""
    from fastprobe.runs.store import read_manifest

    experiment = stored_specification(manifest or read_manifest(path))
    store = store or ResultStore.open(path)
    store.write_summary(fprun.summary(experiment, fprun.analyse(experiment, store), store))
