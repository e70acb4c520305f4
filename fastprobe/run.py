"""The composer: plan minus stored -> batches -> store -> significance. No module below knows the whole."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from .compression import PairData, make_pair, table_features
from .config import ProbeConfig
from .embeddings import EmbeddingTable, check_labels, keep_common
from .engines import local
from .errors import InputError
from .kernels import ProbeBatch, make_batch, select_backend
from .metrics import LOWER_IS_BETTER, chance, check_ks, column_of, statistic_ks, summarise
from .plan import JobPlan, Split, Unit, permutations, split_classes, train_count
from .significance import PermutationTestResult, analyse_pairs
from .store import ResultStore

DEFAULT_KS = (1, 3, 5, 10)
# One unit is small enough to lose: about this much arithmetic per device, a few seconds.
UNIT_FLOPS = {"reference": 4e9, "torch": 1e11, "cpp": 4e11, "triton": 1e14}
UNIT_BYTES = 128 << 20
MAX_UNIT = 16384


@dataclass(frozen=True, eq=False)
class Experiment:
    """All that decides the results of a run, ready to compute any unit of it. Picklable.

    Attributes
    ----------
    pairs : tuple of PairData
    config : ProbeConfig
    plan : JobPlan
    seed : int
    train_fraction : float
    ks : tuple of int
    statistic : str
    backend : str
        Chosen; never ``auto``.
    device : str or None
    inputs : tuple of dict
        Name, rows, width and digest of every table.
    groups : (C,) or None
        Blocks within which texts are permuted.
    """

    pairs: tuple[PairData, ...]
    config: ProbeConfig
    plan: JobPlan
    seed: int
    train_fraction: float
    ks: tuple[int, ...]
    statistic: str
    backend: str
    device: str | None
    inputs: tuple[dict[str, Any], ...]
    groups: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """C, the same for all pairs."""
        return len(self.pairs[0].classes)

    @property
    def names(self) -> list[tuple[str, str]]:
        """(text, audio) of every pair."""
        return [(p.text_name, p.audio_name) for p in self.pairs]

    def split(self, number: int) -> Split:
        """Split `number` of the classes."""
        return split_classes(self.seed, number, self.n_classes, self.train_fraction)

    def batch(self, pair: int, split: int, repeat: int, start: int, stop: int) -> ProbeBatch:
        """Permutations `start` ... `stop`-1 at one (pair, split, seed)."""
        return make_batch(self.pairs[pair], self.config, self.split(split), self.seed, split, repeat,
                          permutations(self.seed, start, stop, self.n_classes, self.groups))

    def compute(self, unit: Unit) -> dict[str, np.ndarray]:
        """Train and rank all jobs of a unit: columns of one row per job, by (permutation, split, seed)."""
        train = select_backend(self.backend, self.config.precision, self.device).load()
        shape = (unit.stop - unit.start, self.plan.n_splits, self.plan.n_seeds)
        out: dict[str, np.ndarray] = {}
        for split in range(shape[1]):
            for repeat in range(shape[2]):
                batch = self.batch(unit.pair, split, repeat, unit.start, unit.stop)
                result = train(batch, self.device)
                values = summarise(result.ranks, batch.labels[batch.queries], self.ks, self.n_classes)
                for name, column in {"loss": result.loss, **values}.items():
                    out.setdefault(name, np.empty(shape, column.dtype))[:, split, repeat] = column
        keys = dict(zip(("permutation", "split", "seed"),
                        np.meshgrid(np.arange(unit.start, unit.stop), np.arange(shape[1]), np.arange(shape[2]), indexing="ij")))
        order = {"split": keys["split"].astype(np.int32), "seed": keys["seed"].astype(np.int32),
                 "permutation": keys["permutation"].astype(np.int64), **out}
        return {name: column.reshape(-1) for name, column in order.items()}

    def flops_per_permutation(self) -> float:
        """Arithmetic of one replicate of the largest pair: training and ranking, all splits and seeds."""
        c, per_split = self.config, 0.0
        n_train = train_count(self.n_classes, self.train_fraction)
        n = n_train * (c.clips_per_class if c.sampling == "clip" else 1)
        for p in self.pairs:
            queries = len(p.labels) * (1 - n_train / self.n_classes)
            (rt, ra), d = (p.text.shape[1], p.audio.shape[1]), c.dim
            steps = c.steps * (4.0 * (n_train * rt + n * ra) * d + 6.0 * n * n_train * d)
            per_split = max(per_split, steps + 2.0 * queries * (ra + self.n_classes) * d + 2.0 * self.n_classes * rt * d)
        return per_split * self.plan.jobs_per_replicate

    def unit_size(self) -> int:
        """Permutations of one unit: a few seconds of work, and ranks that fit UNIT_BYTES."""
        by_time = UNIT_FLOPS[self.backend] / self.flops_per_permutation()
        by_memory = UNIT_BYTES / (12 * max(len(p.labels) for p in self.pairs))
        return int(np.clip(min(by_time, by_memory), 1, MAX_UNIT))

    def identity(self) -> dict[str, Any]:
        """All that decides results: what a resumed run must share. More permutations may be added later."""
        return {"pairs": [list(n) for n in self.names], "inputs": list(self.inputs), "probe": self.config.to_dict(),
                "splits": self.plan.n_splits, "seeds": self.plan.n_seeds, "train_fraction": self.train_fraction,
                "k": list(self.ks), "seed": self.seed, "backend": self.backend, **self.meta}


class Progress(NamedTuple):
    """How far a run is, after a unit."""

    done: int
    total: int
    resumed: int


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("fastprobe", "numpy", "scipy", "torch", "triton", "pyarrow", "faiss-cpu", "faiss-gpu"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def prepare(text: Any, audio: Any, *, probe: ProbeConfig | None = None, permutations: int = 1000, splits: int = 5,
            seeds: int = 1, train_fraction: float = 0.7, statistic: str = "acc@3", k: Sequence[int] | None = None,
            backend: str = "auto", device: str | None = None, seed: int = 0, classes: str = "strict") -> Experiment:
    """Check all inputs and build the experiment; nothing is trained yet.

    Parameters
    ----------
    text, audio : table, path, (vectors, labels), or a list of these
        All pairs of the two lists are tested.
    classes : {"strict", "common"}
        What to do with labels that some table lacks: an error, or leave them out.

    Raises
    ------
    InputError
        Anything wrong with an argument; see DESIGN, "Errors".
    """
    config = ProbeConfig() if probe is None else probe
    if not isinstance(config, ProbeConfig):
        raise InputError(f"`probe` must be a ProbeConfig; got {type(config).__name__}.")
    if classes not in ("strict", "common"):
        raise InputError(f"`classes` must be strict or common; got {classes!r}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"`seed` must be a whole number of at least 0; got {seed!r}.")
    chosen = select_backend(backend, config.precision, device)
    texts = [EmbeddingTable.coerce(t, "text") for t in _as_list(text)]
    audios = [EmbeddingTable.coerce(a, "audio") for a in _as_list(audio)]
    for side, tables in (("text", texts), ("audio", audios)):
        names = [t.name for t in tables]
        if not tables:
            raise InputError(f"`{side}` needs at least one table.")
        if len(set(names)) < len(names):
            raise InputError(f"`{side}` tables must have different names, which results go by; got {', '.join(names)}. "
                             "Rename a file or set meta[\"name\"].")
    if classes == "common":
        kept = keep_common([*texts, *audios])
        texts, audios = kept[:len(texts)], kept[len(texts):]
    for t in texts:
        for a in audios:
            check_labels(t, a)
    n_classes = len(texts[0])
    train_count(n_classes, train_fraction)
    plan = JobPlan(len(texts) * len(audios), splits, seeds, permutations)
    own = statistic_ks(statistic)
    ks = check_ks((*(k if k is not None else (x for x in DEFAULT_KS if x <= n_classes)), *own), n_classes)
    column_of(statistic, ks)
    if statistic.startswith("hits@"):
        raise InputError(f"`statistic`={statistic!r} counts clips; test its average, \"acc@{own[0]}_micro\".")
    text_features = [table_features(t, config) for t in texts]
    audio_features = [table_features(a, config) for a in audios]
    pairs = tuple(make_pair(t, a, config, tf, af) for a, af in zip(audios, audio_features)
                  for t, tf in zip(texts, text_features))
    inputs = tuple({"side": side, "name": t.name, "rows": len(t), "width": t.width, "digest": t.digest, "meta": t.meta}
                   for side, tables in (("text", texts), ("audio", audios)) for t in tables)
    return Experiment(pairs, config, plan, int(seed), float(train_fraction), ks, statistic, chosen.name, device, inputs)


def open_store(experiment: Experiment, out: str | os.PathLike | None, resume: bool = False) -> ResultStore:
    """Create the run directory, or open the one that is to be continued; `out` None stays in memory."""
    return ResultStore.create(out, manifest(experiment, "running"), resume)


def manifest(experiment: Experiment, status: str, seconds: float | None = None) -> dict[str, Any]:
    """What manifest.json holds."""
    return {"status": status, "identity": experiment.identity(), "permutations": experiment.plan.n_permutations,
            "statistic": experiment.statistic, "device": experiment.device or "auto", "precision": experiment.config.precision,
            "versions": _versions(), "machine": platform.platform(), "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_seconds": seconds}


def execute(experiment: Experiment, store: ResultStore,
            engine: Callable[..., Iterator] = local.execute) -> Iterator[Progress]:
    """Compute what the store lacks. Yields after every unit; stopping the iteration keeps all finished ones."""
    plan, start = experiment.plan, time.monotonic()
    todo = plan.missing(store.done(plan), experiment.unit_size())
    per = plan.jobs_per_replicate
    resumed = done = plan.n_jobs - per * sum(u.stop - u.start for u in todo)
    yield Progress(done, plan.n_jobs, resumed)
    for unit, columns in engine(experiment.compute, todo):
        store.write(unit, columns)
        done += per * (unit.stop - unit.start)
        yield Progress(done, plan.n_jobs, resumed)
    if store.path is not None and not (store.path / "observed.parquet").exists():
        store.write_table("observed.parquet", observed_queries(experiment))
    store.write_manifest(manifest(experiment, "done", round(time.monotonic() - start, 3)))


def observed_queries(experiment: Experiment) -> dict[str, Any]:
    """Rank of every query of the observed run, one row per (text, audio, split, seed, query)."""
    train = select_backend(experiment.backend, experiment.config.precision, experiment.device).load()
    parts: list[dict[str, Any]] = []
    for i, pair in enumerate(experiment.pairs):
        for split in range(experiment.plan.n_splits):
            for repeat in range(experiment.plan.n_seeds):
                batch = experiment.batch(i, split, repeat, 0, 1)
                n = len(batch.queries)
                parts.append({"text": np.full(n, pair.text_name), "audio": np.full(n, pair.audio_name),
                              "split": np.full(n, split, np.int32), "seed": np.full(n, repeat, np.int32),
                              "query": pair.clip_ids[batch.queries], "label": pair.classes[pair.labels[batch.queries]],
                              "rank": train(batch, experiment.device).ranks[0].astype(np.int32)})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def analyse(experiment: Experiment, store: ResultStore) -> list[PermutationTestResult]:
    """Significance of every pair, from what is stored."""
    column = column_of(experiment.statistic, experiment.ks)
    replicates, per_split = store.replicates(column, experiment.plan)
    n_train = train_count(experiment.n_classes, experiment.train_fraction)
    return analyse_pairs(replicates, per_split, experiment.names, metric=experiment.statistic,
                         chance=chance(column, experiment.n_classes), lower_is_better=column in LOWER_IS_BETTER,
                         n_train=n_train, n_test=experiment.n_classes - n_train, n_seeds=experiment.plan.n_seeds)


def summary(experiment: Experiment, results: list[PermutationTestResult]) -> dict[str, Any]:
    """What summary.json holds; no times, so that equal runs have equal bytes."""
    return {"pairs": [r.to_dict() for r in results], "statistic": experiment.statistic, "n_classes": experiment.n_classes,
            "n_jobs": experiment.plan.n_jobs, "pvalue_rule": "(1 + #{b >= 1: T_b >= T_0}) / (1 + B), ties count against",
            "null": "text rows permuted uniformly, the probe trained again", "backend": experiment.backend,
            "precision": experiment.config.precision}


def permutation_test(text: Any, audio: Any, *, probe: ProbeConfig | None = None, permutations: int = 10_000, splits: int = 5,
                     seeds: int = 1, train_fraction: float = 0.7, statistic: str = "acc@3", k: Sequence[int] | None = None,
                     backend: str = "auto", device: str | None = None, seed: int = 0, classes: str = "strict",
                     out: str | os.PathLike | None = None, resume: bool = False):
    """Does the geometry of the texts carry over to the sounds? A probe's accuracy on unseen classes, against
    the same probe trained again on permuted text rows.

        p = (1 + #{b >= 1 : T_b >= T_0}) / (1 + B),    T_b = mean over splits and seeds

    Parameters
    ----------
    text : EmbeddingTable, path, (vectors, labels), or a list of these
        One row per class.
    audio : likewise
        Clips; their labels are the classes.
    probe : ProbeConfig, optional
    permutations : int
        B. Permutation b is the same for every pair and whatever the total.
    splits, seeds : int
        Random partitions of the classes; starts and clip draws of each.
    train_fraction : float
        Share of the classes to train on.
    statistic : str
        A stored metric: "acc@3" (macro), "acc@3_micro", "mrr", "mean_rank", "mean_log_rank", ...
    k : sequence of int, optional
        Further k to store, by default 1, 3, 5 and 10.
    backend, device : str
        See `fastprobe.kernels`.
    seed : int
        Of all randomness.
    classes : {"strict", "common"}
        Labels that a table lacks are an error, or are left out.
    out : path-like, optional
        Run directory; by default nothing is written.
    resume : bool
        Continue what is in `out`.

    Returns
    -------
    PermutationTestResult
        Or a list, when `text` or `audio` is a list: one for each pair, audio by audio.

    Raises
    ------
    InputError
        Bad input; the message names the argument, the rule, the value and the way out.
    """
    experiment = prepare(text, audio, probe=probe, permutations=permutations, splits=splits, seeds=seeds,
                         train_fraction=train_fraction, statistic=statistic, k=k, backend=backend, device=device,
                         seed=seed, classes=classes)
    store = open_store(experiment, out, resume)
    for _ in execute(experiment, store):
        pass
    results = analyse(experiment, store)
    store.write_summary(summary(experiment, results))
    return results if isinstance(text, list) or isinstance(audio, list) else results[0]
