"""The composer: plan minus stored -> batches -> store -> significance. No module below knows the whole."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from .compression import PairData, make_pair, table_features
from .config import ProbeConfig
from .controls import frozen_permutation, frozen_ranks, gaussian_texts, group_of, listed, permutation_source, say_count
from .embeddings import EmbeddingTable, check_labels, keep_common
from .engines import Finished, Pace, Task, local
from .errors import InputError
from .inference import extend, replay
from .kernels import ProbeBatch, device_name, make_batch, select_backend
from .lock import RunLock
from .metrics import LOWER_IS_BETTER, chance, check_ks, column_of, statistic_ks, summarise
from .observed import check_retrieval, write_observed
from .plan import CONTROL, JobPlan, Split, Unit, Work, generator, permutations, split_classes, train_count
from .progress import Heartbeat
from .sequential import SequentialFamily, StopRule, parse_stop
from .significance import PermutationTestResult, analyse_pairs
from .storage import absolute
from .store import ResultStore

DEFAULT_KS = (1, 3, 5, 10)
OBSERVED = ("observed.parquet", "retrieved.parquet")
# The first unit of a worker, before its rate is measured: about this much arithmetic, a few seconds.
UNIT_FLOPS = {"reference": 4e9, "torch": 1e11, "cpp": 4e11, "triton": 1e14}
UNIT_BYTES = 128 << 20
MAX_UNIT = 16384
FIRST_UNIT = 256  # small: the arithmetic says little about tiny probes, and the pace grows fourfold each time


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
    control : {"permute", "permute-within", "frozen", "gaussian"}
        What the permutations number 1, 2, ... destroy; see `controls`.
    groups : str (C,) or None
        Blocks within which texts are permuted.
    enumerated : bool
        Every distinct relabelling is trained once, instead of random draws.
    stop : StopRule or None
        Declared before the first permutation.
    paths : dict
        File of each table that came from one, by "side/name". Recorded, but no part of the identity.
    options : dict
        Arguments of `prepare` that the rest of a manifest does not tell, to prepare it again.
    retrieval : {"fused", "faiss"}
        What serves the top-k lists of the observed run. Ranks are the backend's in either case.
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
    control: str = "permute"
    groups: np.ndarray | None = None
    enumerated: bool = False
    stop: StopRule | None = None
    paths: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    retrieval: str = "fused"

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
        relabel = listed(self.groups)[start:stop] if self.enumerated else \
            _permutations(self.seed, start, stop, self.n_classes, None if self.groups is None else tuple(self.groups))
        return make_batch(self.pairs[pair], self.config, self.split(split), self.seed, split, repeat, relabel)

    def outcomes(self, train: Callable[..., Any], pair: int, split: int, repeat: int, start: int,
                 stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss (P,), ranks (P, Q) and classes of the queries (Q,), under the control of the run."""
        if self.control == "frozen":
            batch = self.batch(pair, split, repeat, 0, 1)
            result = train(batch, self.device, heads=True)
            a, b = (x @ h[0] for x, h in ((batch.text, result.text_heads), (batch.audio[batch.queries], result.audio_heads)))
            a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
            test, classes = self.split(split).test, batch.labels[batch.queries]
            orders = np.stack([frozen_permutation(self.seed, split, number, test) for number in range(start, stop)])
            return np.repeat(result.loss, stop - start), frozen_ranks(b @ a.T, classes, test, orders), classes
        if self.control == "gaussian":
            batch = self.batch(pair, split, repeat, 0, 1)
            # The same draw for every text table, so that the replicates of all pairs go together, as max-T needs.
            results = [train(batch if number == 0 else replace(
                batch, text=gaussian_texts(batch.text, generator(self.seed, CONTROL, number))), self.device)
                for number in range(start, stop)]
            loss, ranks = (np.concatenate([getattr(r, name) for r in results]) for name in ("loss", "ranks"))
            return loss, ranks, batch.labels[batch.queries]
        batch = self.batch(pair, split, repeat, start, stop)
        result = train(batch, self.device)
        return result.loss, result.ranks, batch.labels[batch.queries]

    def compute(self, unit: Unit) -> dict[str, np.ndarray]:
        """Train and rank all jobs of a unit: columns of one row per job, by (permutation, split, seed)."""
        train = select_backend(self.backend, self.config.precision, self.device).load()
        shape = (unit.stop - unit.start, self.plan.n_splits, self.plan.n_seeds)
        out: dict[str, np.ndarray] = {}
        for split in range(shape[1]):
            for repeat in range(shape[2]):
                loss, ranks, classes = self.outcomes(train, unit.pair, split, repeat, unit.start, unit.stop)
                values = summarise(ranks, classes, self.ks, self.n_classes)
                for name, column in {"loss": loss, **values}.items():
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

    def largest_unit(self) -> int:
        """Permutations of one unit at most: ranks that fit UNIT_BYTES."""
        by_memory = UNIT_BYTES / (12 * max(len(p.labels) for p in self.pairs))
        if self.stop is not None:  # look about fifty times, or there is little to save
            by_memory = min(by_memory, max(64, self.plan.n_permutations // 50))
        return int(np.clip(by_memory, 1, MAX_UNIT))

    def unit_size(self) -> int:
        """Permutations of the first unit: a few seconds of work by the arithmetic alone."""
        by_time = MAX_UNIT if self.control == "frozen" else UNIT_FLOPS.get(self.backend, 4e9) / self.flops_per_permutation()
        return int(np.clip(by_time, 1, min(FIRST_UNIT, self.largest_unit())))

    def identity(self) -> dict[str, Any]:
        """All that decides results: what a resumed run must share. More permutations may be added later."""
        return {"pairs": [list(n) for n in self.names], "inputs": list(self.inputs), "probe": self.config.to_dict(),
                "splits": self.plan.n_splits, "seeds": self.plan.n_seeds, "train_fraction": self.train_fraction,
                "k": list(self.ks), "seed": self.seed, "backend": self.backend, **self.meta}


@lru_cache(maxsize=1)
def _permutations(seed: int, start: int, stop: int, n_classes: int, groups: tuple[str, ...] | None) -> np.ndarray:
    """The relabellings of a unit, drawn once for all its splits and seeds (and for the next pair's)."""
    return permutations(seed, start, stop, n_classes, None if groups is None else np.array(groups))


class Progress(NamedTuple):
    """How far a run is, after a unit.

    Attributes
    ----------
    done, total, resumed : int
        Probes stored, of how many, and how many of them this call found stored.
    unit : Unit or None
        What was just stored; None for the first.
    worker : str or None
        Who computed it.
    seconds : float
        How long that took there.
    mended : tuple of (str, str)
        With the first: shards that were removed to be computed again, and why.
    """

    done: int
    total: int
    resumed: int
    unit: Unit | None = None
    worker: str | None = None
    seconds: float = 0.0
    mended: tuple[tuple[str, str], ...] = ()


@cache
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
            backend: str = "auto", device: str | None = None, seed: int = 0, classes: str = "strict",
            control: str = "permute", groups: Any = None, within: str | None = None,
            stop: str | StopRule | None = None, retrieval: str = "fused") -> Experiment:
    """Check all inputs and build the experiment; nothing is trained yet.

    Parameters
    ----------
    text, audio : table, path, (vectors, labels), or a list of these
        All pairs of the two lists are tested.
    classes : {"strict", "common"}
        What to do with labels that some table lacks: an error, or leave them out.
    control, groups, within, stop
        See `permutation_test`.

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
    check_retrieval(retrieval)
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
    blocks = group_of(control, groups, within, pairs[0].classes, splits)
    meta: dict[str, Any] = {} if control == "permute" else {"control": control}
    enumerated = False
    if control == "permute-within":
        source = permutation_source(control, seed, n_classes, permutations, blocks)
        enumerated, plan = source.enumerated, JobPlan(plan.n_pairs, splits, seeds, source.n_permutations)
        meta |= {"within": within, "groups": blocks.tolist(), "distinct_permutations": say_count(source.distinct), "enumerated": enumerated}
    rule = parse_stop(stop) if isinstance(stop, str) else stop
    if rule is not None:
        if enumerated:
            raise InputError(f"`stop` is of no use with all {plan.n_permutations + 1} distinct permutations listed. Leave it out.")
        meta |= {"stop": str(rule), "stop_limit": permutations, "stop_statistic": statistic}
    paths = {f"{side}/{table.name}": absolute(given) for side, values, tables in
             (("text", _as_list(text), texts), ("audio", _as_list(audio), audios))
             for given, table in zip(values, tables) if isinstance(given, (str, os.PathLike))}
    return Experiment(pairs, config, plan, int(seed), float(train_fraction), ks, statistic, chosen.name, device, inputs,
                      control, blocks, enumerated, rule, paths, meta, {"classes": classes}, retrieval)


def open_store(experiment: Experiment, out: str | os.PathLike | None, resume: bool = False) -> ResultStore:
    """Create the run directory, or open the one that is to be continued; `out` None stays in memory."""
    return ResultStore.create(out, manifest(experiment, "running"), resume)


def manifest(experiment: Experiment, status: str, seconds: float | None = None, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """What manifest.json holds. Where the tables lie is said beside the identity, never in it."""
    return {"status": status, "identity": experiment.identity(), "permutations": experiment.plan.n_permutations,
            "statistic": experiment.statistic, "part": list(part), "paths": experiment.paths,
            "options": experiment.options, "n_classes": experiment.n_classes,
            "backend": experiment.backend, "config": experiment.config.to_dict(), "inputs": list(experiment.inputs),
            "device": device_name(experiment.backend, experiment.device, experiment.config.precision),
            "precision": experiment.config.precision, "retrieval": experiment.retrieval, "versions": _versions(),
            "machine": platform.platform(), "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_seconds": seconds}


def execute(experiment: Experiment, store: ResultStore, engine: Callable[..., Iterator[Finished]] = local.execute,
            part: tuple[int, int] = (0, 1), workers_write: bool = False) -> Iterator[Progress]:
    """Compute what the store lacks. Yields after every unit; stopping the iteration keeps all finished ones.

    Parameters
    ----------
    engine : callable
        See `fastprobe.engines`.
    part : (int, int)
        I and N: only part I of N of the plan (``--shard I/N``).
    workers_write : bool
        Workers store what they compute, which needs a store that all of them reach.

    Raises
    ------
    StoreError
        Another run holds the directory, or the store cannot be written.
    """
    if store.folder is None:
        yield from _execute(experiment, store, engine, part, workers_write, None)
        return
    with RunLock(store.folder) as lock:
        yield from _execute(experiment, store, engine, part, workers_write, lock)


def _execute(experiment: Experiment, store: ResultStore, engine: Callable[..., Iterator[Finished]], part: tuple[int, int],
             workers_write: bool, lock: RunLock | None) -> Iterator[Progress]:
    plan, start, per = experiment.plan, time.monotonic(), experiment.plan.jobs_per_replicate
    if experiment.stop is not None and part[1] > 1:
        raise InputError(f"`stop` must see all permutations in order; got `shard` {part[0]}/{part[1]}. Leave one of them out.")
    wanted = plan.part(*part)
    store.write_manifest(manifest(experiment, "running", part=part))
    mended = tuple((store.shard_name(unit), why) for unit, why in store.mend())
    work = Work(plan.gaps(store.done(plan), wanted))
    total = per * sum(u.stop - u.start for u in wanted)
    resumed = done = total - per * work.replicates
    watch = None if experiment.stop is None else _Watch(experiment, store)
    if watch is not None and watch.done:
        work = Work([])
    heartbeat = Heartbeat(store, done, total, per)
    yield Progress(done, total, resumed, mended=mended)
    pace = Pace(experiment.unit_size(), experiment.largest_unit())
    task = Task(experiment, store if workers_write else None)
    finished = engine(task, work, pace)
    try:
        for unit, columns, worker, seconds in finished:
            if lock is not None:
                lock.check()
            if columns is not None:
                store.write(unit, columns)
            done += per * (unit.stop - unit.start)
            heartbeat.unit(unit, worker, seconds)
            yield Progress(done, total, resumed, unit, worker, seconds)
            if watch is not None and watch.take(unit, columns or store.read(unit)):
                break
    finally:
        finished.close()  # its workers end now, not when the garbage is collected
        heartbeat.write()
    if part[0] == 0 and store.folder is not None and any(store.read_file(n) is None for n in OBSERVED):
        write_observed(experiment, store)
    final = manifest(experiment, "done" if part[1] == 1 else "part done", round(time.monotonic() - start, 3), part)
    if watch is not None:
        final |= {"permutations": watch.used, "permutations_at_most": plan.n_permutations,
                  "stopped": watch.family.done if watch.family else False}
    store.write_manifest(final)


class _Watch:
    """Applies the stopping rule to the permutations that are complete for all pairs, in order of their numbers."""

    def __init__(self, experiment: Experiment, store: ResultStore) -> None:
        self.column = column_of(experiment.statistic, experiment.ks)
        self.sign = -1.0 if self.column in LOWER_IS_BETTER else 1.0
        self.rule, self.limit = experiment.stop, experiment.plan.n_permutations
        self.t = self.sign * store.replicates(self.column, experiment.plan)[0]
        self.family: SequentialFamily | None = None
        self.fed = 0
        self._feed()

    @property
    def done(self) -> bool:
        """Whether the family has stopped."""
        return self.family is not None and self.family.done

    @property
    def used(self) -> int:
        """Permutations that count."""
        return self.family.seen if self.done else self.limit

    def take(self, unit: Unit, columns: dict[str, np.ndarray]) -> bool:
        """One more unit; True when the run may end."""
        stop = min(unit.stop, self.t.shape[1])
        values = columns[self.column].astype(np.float64).reshape(unit.stop - unit.start, -1).mean(axis=1)
        self.t[unit.pair, unit.start:stop] = self.sign * values[:stop - unit.start]
        self._feed()
        return self.done

    def _feed(self) -> None:
        complete = np.isfinite(self.t[:, self.fed:]).all(axis=0)
        upto = self.fed + (len(complete) if complete.all() else int(np.argmin(complete)))
        if upto == self.fed:
            return
        if self.family is None:
            self.family = SequentialFamily(self.rule, self.t[:, 0], self.limit)
        self.family.update(self.t[:, max(self.fed, 1):upto])
        self.fed = upto


def is_complete(experiment: Experiment, store: ResultStore) -> bool:
    """Whether every job of the plan is stored."""
    return not experiment.plan.gaps(store.done(experiment.plan))


def analyse(experiment: Experiment, store: ResultStore) -> list[PermutationTestResult]:
    """Significance of every pair, from what is stored."""
    column = column_of(experiment.statistic, experiment.ks)
    replicates, per_split = store.replicates(column, experiment.plan)
    n_train = train_count(experiment.n_classes, experiment.train_fraction)
    family = None
    if experiment.stop is not None:
        family = replay(experiment.stop, -replicates if column in LOWER_IS_BETTER else replicates)
        replicates = replicates[:, :(family.seen if family.done else experiment.plan.n_permutations) + 1]
    results = analyse_pairs(replicates, per_split, experiment.names, metric=experiment.statistic,
                         chance=chance(column, experiment.n_classes), lower_is_better=column in LOWER_IS_BETTER,
                         n_train=n_train, n_test=experiment.n_classes - n_train, n_seeds=experiment.plan.n_seeds)
    if family is not None:
        return [replace(r, pvalue=float(p), pvalue_max_t=float(q), drawn="stopped")
                for r, p, q in zip(results, family.unadjusted, family.pvalues)]
    return [replace(r, drawn="all") for r in results] if experiment.enumerated else results


def summary(experiment: Experiment, results: list[PermutationTestResult], store: ResultStore) -> dict[str, Any]:
    """What summary.json holds; no times, so that equal runs have equal bytes."""
    pairs, families = extend(results, store, plan=experiment.plan, statistic=experiment.statistic, ks=experiment.ks,
                             seed=experiment.seed, inputs=list(experiment.inputs), stop=experiment.stop)
    return {"pairs": pairs, "families": families, "statistic": experiment.statistic, "n_classes": experiment.n_classes,
            "n_jobs": experiment.plan.n_jobs, "pvalue_rule": "(1 + #{b >= 1: T_b >= T_0}) / (1 + B), ties count against",
            "null": NULLS[experiment.control], "control": experiment.control,
            **({"stop": str(experiment.stop)} if experiment.stop else {}), "backend": experiment.backend,
            "precision": experiment.config.precision}


NULLS = {"permute": "text rows permuted uniformly, the probe trained again",
         "permute-within": "text rows permuted within groups, the probe trained again",
         "frozen": "the probe trained once, the texts of the held-out classes permuted",
         "gaussian": "texts replaced by Gaussian draws of the same mean and covariance, the probe trained again"}


def permutation_test(text: Any, audio: Any, *, probe: ProbeConfig | None = None, permutations: int = 10_000, splits: int = 5,
                     seeds: int = 1, train_fraction: float = 0.7, statistic: str = "acc@3", k: Sequence[int] | None = None,
                     backend: str = "auto", device: str | None = None, seed: int = 0, classes: str = "strict",
                     control: str = "permute", groups: Any = None, within: str | None = None,
                     stop: str | StopRule | None = None, retrieval: str = "fused",
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
    control : {"permute", "permute-within", "frozen", "gaussian"}
        The null: all text rows shuffled and the probe trained again; shuffled within groups only; the probe
        trained once and the held-out texts shuffled (one split); texts drawn from a Gaussian of the same covariance.
    groups : path, mapping or sequence, optional
        For ``permute-within``: a CSV with a column `label` (or "fsd50k"), a mapping from label to group, or the
        groups in ascending order of the labels.
    within : str, optional
        The column of that CSV.
    stop : str, optional
        "besag-clifford:h=10" or "anytime:alpha=0.05"; `permutations` is then the most that are run.
    retrieval : {"fused", "faiss"}
        What serves the top-k lists of the observed run (``retrieved.parquet``). Ranks are counted by the backend.
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
                         seed=seed, classes=classes, control=control, groups=groups, within=within, stop=stop, retrieval=retrieval)
    store = open_store(experiment, out, resume)
    for _ in execute(experiment, store):
        pass
    results = analyse(experiment, store)
    store.write_summary(summary(experiment, results, store))
    return results if isinstance(text, list) or isinstance(audio, list) else results[0]
