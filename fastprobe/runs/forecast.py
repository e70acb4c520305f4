"""Before a long run: what it can show, how long it takes here, what it needs. Nothing is stored."""

from __future__ import annotations

import io
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..protocol.metrics import column_of, metric_of
from ..protocol.plan import Unit
from ..protocol.probes import is_similarity
from ..randomness import generator
from ..statistics.power import (
    EXCESS,
    Power,
    advised_permutations,
    intraclass_correlation,
    permutations_for,
    sd_of_splits,
    simulate_power,
    smallest_pvalue,
)
from ..storage.columns import to_arrow
from .run import Experiment

# Purpose of the stream that simulates power; it decides nothing that is stored.
_POWER = 101
SPLITS = (5, 10, 20)


class BySplits(NamedTuple):
    """What a number of splits would give, the rest as planned: sd of a replicate, power (None without an effect)."""

    n_splits: int
    null_sd: float
    power: float | None


@dataclass(frozen=True)
class RunPlan:
    """Result of `plan_run`.

    Attributes
    ----------
    n_pairs, n_cells, n_splits, n_seeds, n_permutations, n_classes : int
        Cells are pairs times probes.
    n_probes : int
        Probes to train, the observed ones included.
    smallest_pvalue : float
        1/(1 + B). The family-wise adjusted p cannot be smaller either.
    permutations_for_alpha : int
        The fewest permutations with which p <= alpha can be reached at all.
    alpha : float
    backend, device : str
    seconds_per_probe, probes_per_second : float
        Measured here, after a warm-up.
    seconds : float
        Expected for the whole run.
    calibration_probes : int
    memory_bytes : int
        Expected peak of this process: what the calibration reached, and the replicates in the end.
    disk_bytes : int
        Expected size of the run directory.
    observed, null_mean, null_sd : float
        Of the first pair in the calibration, from `calibration_permutations` permutations; rough.
    calibration_permutations : int
    effect : float or None
        For which the power is given, as asked.
    power : Power or None
        None where no effect was named, or the calibration gave no null sd.
    control : str
    stop : str or None
        The declared rule. Probes, time and disk are then the most it can come to; smallest p and power are those without it.
    select : str
        With ``nested`` each job trains twice, which is in the times.
    per_probe : dict of str to float
        Jobs per second of each probe and similarity.
    icc : float
        How alike the splits of one permutation are, in the calibration. Below 1 more splits lessen the noise.
    by_splits : tuple of BySplits
        The first pair at 5, 10 and 20 splits and as planned; empty where there is one split, or none.
    permutations_advised : int
        About 10 / alpha: more of them hardly changes whether p <= alpha.
    more_powerful : str or None
        A statistic that usually finds more than the one that is planned.
    """

    n_pairs: int
    n_cells: int
    n_splits: int
    n_seeds: int
    n_permutations: int
    n_classes: int
    n_probes: int
    smallest_pvalue: float
    permutations_for_alpha: int
    alpha: float
    backend: str
    device: str
    seconds_per_probe: float
    probes_per_second: float
    seconds: float
    calibration_probes: int
    memory_bytes: int
    disk_bytes: int
    observed: float
    null_mean: float
    null_sd: float
    calibration_permutations: int
    effect: float | None
    power: Power | None
    control: str = "permute"
    stop: str | None = None
    select: str = "best"
    per_probe: dict[str, float] = field(default_factory=dict)
    icc: float = float("nan")
    by_splits: tuple[BySplits, ...] = ()
    permutations_advised: int = 0
    more_powerful: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "by_splits": [s._asdict() for s in self.by_splits]}


def plan_run(experiment: Experiment, effect: float | None = None, alpha: float = 0.05, seconds: float = 5.0) -> RunPlan:
    """Calibrate on this machine and extrapolate.

    Computes a growing number of replicates of the first pair's first permutations, with every probe, until `seconds` have passed or 100
    permutations are done; time grows with probes, so the rate of the last and largest block of each is taken.

    Parameters
    ----------
    experiment : Experiment
        As `run.prepare` gives it.
    effect : float, optional
        Expected gain of the observed value over the null mean, in the statistic's unit; positive for ranks too. Without
        it no power is given: a number for an effect that nobody expects misleads.
    alpha : float
    seconds : float
        Time to spend, on all probes together. At least two blocks of each are computed whatever it says.

    Raises
    ------
    InputError
        No permutations planned; alpha, seconds or effect out of range.
    """
    plan = experiment.plan
    if plan.n_permutations < 1:
        raise InputError("`permutations` must be at least 1 to plan a test; got 0.")
    if not 0 < alpha < 1:
        raise InputError(f"`alpha` must lie between 0 and 1; got {alpha!r}.")
    if not seconds > 0:
        raise InputError(f"`seconds` must be above 0; got {seconds!r}.")
    if effect is not None and not np.isfinite(effect):
        raise InputError(f"`effect` must be a finite number; got {effect!r}.")
    # Every probe is measured on the first pair; those of other pairs take as long as their arithmetic says in proportion.
    measured = {name: _measure(experiment, cell, seconds / len(experiment.probes)) for cell, name in enumerate(_first_cells(experiment))}
    rate = {name: m.seconds_per_job for name, m in measured.items()}
    per_cell = [
        rate[cell.probe] * (experiment.flops(number) / plan.jobs(number)) / (experiment.flops(first) / plan.jobs(first))
        for number, cell in enumerate(experiment.cells)
        for first in [number % len(experiment.probes)]
    ]
    work = [plan.jobs(cell) for cell in range(plan.n_cells)]
    seconds_per_probe = float(np.average(per_cell, weights=work))
    shown = next(iter(measured.values()))
    t = shown.t
    n_tests = plan.n_tested // len(experiment.probes) if experiment.nested else plan.n_tested
    null_sd = float(t[1:].std(ddof=1)) if len(t) > 2 else float("nan")
    effect = None if effect is None else float(effect)
    similarity = is_similarity(experiment.cells[0].probe)
    metric = None if similarity else metric_of(experiment.statistic)
    skewness = _skewness(t[1:]) * (-1 if metric is not None and metric.lower_is_better else 1)
    null_mean = float(t[1:].mean()) if metric is not None and metric.proportion and len(t) > 1 else None

    def power_at(sd: float) -> Power | None:
        if effect is None or not sd > 0:
            return None
        rng = generator(experiment.seed, _POWER)
        shape: dict[str, Any] = {"null_mean": null_mean, "skewness": skewness, "excess": EXCESS}
        return simulate_power(effect, sd, plan.n_permutations, alpha, n_tests, rng=rng, **shape)

    power = power_at(null_sd)
    icc = intraclass_correlation(shown.per_split[1:])
    by_splits: list[BySplits] = []
    if np.isfinite(icc) and null_sd > 0:
        for n_splits in sorted({*SPLITS, plan.n_splits}):
            sd = sd_of_splits(null_sd, plan.n_splits, icc, n_splits)
            found = power_at(sd)
            by_splits.append(BySplits(n_splits, sd, None if found is None else found.power))
    return RunPlan(
        len(experiment.names),
        plan.n_cells,
        plan.n_splits,
        plan.n_seeds,
        plan.n_permutations,
        experiment.n_classes,
        plan.n_jobs,
        smallest_pvalue(plan.n_permutations),
        permutations_for(alpha),
        alpha,
        experiment.backend,
        experiment.device or "auto",
        seconds_per_probe,
        1 / seconds_per_probe,
        seconds_per_probe * plan.n_jobs,
        sum(m.jobs for m in measured.values()),
        _memory(plan.n_cells, plan.n_permutations),
        _disk(experiment, measured) + 64 * sum(len(p.labels) for p in experiment.pairs) * plan.n_splits,
        float(t[0]),
        float(t[1:].mean()) if len(t) > 1 else float("nan"),
        null_sd,
        len(t) - 1,
        effect,
        power,
        experiment.control,
        str(experiment.stop) if experiment.stop else None,
        experiment.request.select,
        {name: 1 / seconds for name, seconds in rate.items()},
        icc,
        tuple(by_splits),
        advised_permutations(alpha),
        "mean_log_rank" if metric is not None and metric.name == "acc@k" else None,
    )


def _skewness(values: np.ndarray) -> float:
    """Of a sample; 0 where it is too small or does not vary."""
    from scipy.stats import skew

    return float(skew(values)) if len(values) > 20 and np.ptp(values) > 0 else 0.0


class _Measured(NamedTuple):
    """What a few replicates of a cell showed: their values (n,) and by split (n, S), columns by block, time of a job, jobs."""

    t: np.ndarray
    per_split: np.ndarray
    blocks: list[dict[str, np.ndarray]]
    seconds_per_job: float
    jobs: int


def _first_cells(experiment: Experiment) -> list[str]:
    """Names of the probes, in the order of the cells of the first pair."""
    return [cell.probe for cell in experiment.cells[: len(experiment.probes)]]


def _measure(experiment: Experiment, cell: int, seconds: float) -> _Measured:
    """Compute growing blocks of a cell's first permutations; time grows with jobs, so that the last and largest block tells it."""
    plan = experiment.plan
    column = "similarity" if is_similarity(experiment.cells[cell].probe) else column_of(experiment.statistic, experiment.ks)
    experiment.compute(Unit(cell, 0, 1))  # warm-up: compilation, caches, the observed value
    begin, at, size, blocks = time.monotonic(), 0, 1, []
    rates: list[float] = []
    limit = min(plan.n_permutations, 100)
    while at <= limit and (len(rates) < 2 or time.monotonic() - begin < seconds):
        start = time.monotonic()
        stop = min(at + size, plan.n_permutations + 1)
        if stop <= at:
            break
        unit = Unit(cell, at, stop)
        blocks.append(experiment.compute(unit))
        rates.append((time.monotonic() - start) / plan.count([unit]))
        at, size = stop, min(size * 4, experiment.unit_size())
    per_split = np.concatenate([b[column].astype(np.float64) for b in blocks]).reshape(-1, *plan.shape(cell)).mean(axis=2)
    t = per_split.mean(axis=1)
    return _Measured(t, per_split, blocks, rates[-1], len(t) * plan.jobs(cell))


def _disk(experiment: Experiment, measured: dict[str, _Measured]) -> int:
    """Bytes of all shards: a similarity has fewer columns than a probe that ranks."""
    plan = experiment.plan
    row = {name: _bytes_per_row(m.blocks[-1]) for name, m in measured.items()}
    return int(sum(row[cell.probe] * plan.jobs(number) for number, cell in enumerate(experiment.cells)) * (plan.n_permutations + 1))


def _memory(n_cells: int, n_permutations: int) -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # In the end every replicate of the statistic is in memory, with what max-T makes of it.
    return int(peak + 6 * 8 * n_cells * (n_permutations + 1))


def _bytes_per_row(block: dict[str, np.ndarray]) -> float:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({k: to_arrow(v) for k, v in block.items()}), buffer, compression="zstd")
    rows = len(block["permutation"])
    fixed = io.BytesIO()
    pq.write_table(pa.table({k: to_arrow(v[:0]) for k, v in block.items()}), fixed, compression="zstd")
    return max((buffer.tell() - fixed.tell()) / rows, 8.0)


def describe(plan: RunPlan) -> list[str]:
    """The plan in sentences."""
    several = f"{plan.n_cells // plan.n_pairs} probes x " if plan.n_cells > plan.n_pairs else ""
    pairs, splits, seeds = (
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((plan.n_pairs, "pair"), (plan.n_splits, "split"), (plan.n_seeds, "seed"))
    )
    lines = [
        f"{pairs} x {several}{splits} x {seeds} x (1 + {plan.n_permutations:,} permutations) = {plan.n_probes:,} probes",
        f"smallest p within reach: {plan.smallest_pvalue:.2g} (p <= {plan.alpha:g} needs at least {plan.permutations_for_alpha} "
        f"permutations{'; so does the p adjusted for all pairs' if plan.n_cells > 1 else ''})",
        f"time: about {_duration(plan.seconds)} on this machine with backend {plan.backend} "
        f"({plan.probes_per_second:,.0f} probes/s, measured on {plan.calibration_probes:,})",
        f"memory: about {_bytes(plan.memory_bytes)}; disk: about {_bytes(plan.disk_bytes)}",
    ]
    if len(plan.per_probe) > 1:
        lines.append("per second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in plan.per_probe.items()))
    if plan.select == "nested":
        lines.append("select: nested; each job trains once more on a part of the train classes; power is that of the first probe alone")
    if plan.control != "permute":
        lines.append(f"control: {plan.control}")
    if plan.stop:
        lines.append(f"stop: {plan.stop}; probes, time and disk are the most there can be; smallest p and power are those without it")
    if plan.effect is None and plan.null_sd > 0:
        told = f"null sd {plan.null_sd:.3g}, from {plan.calibration_permutations} permutations of the first pair"
        lines.append(f"power: name the gain over the control that you expect with `effect` (in the shell --effect); {told}")
        return [*lines, *_advice(plan)]
    if plan.power is None:
        return [*lines, "power: unknown, because the control did not vary in the calibration"]
    p = plan.power
    return [
        *lines,
        f"power: {p.power:.0%} for an effect of {p.effect:.3g} above the control at level {p.alpha:g}"
        + (
            f", adjusted for {p.n_tests} {'pairs' if plan.n_cells == plan.n_pairs or plan.select == 'nested' else 'tests'}"
            if p.n_tests > 1
            else ""
        )
        + f" (null sd {p.null_sd:.3g}, from {plan.calibration_permutations} permutations of the first pair)",
        *_advice(plan),
    ]


def _advice(plan: RunPlan) -> list[str]:
    """Splits buy power, permutations resolution: what to change, and to what."""
    lines = []
    if plan.by_splits:
        shown = ", ".join(
            f"{s.n_splits}: sd {s.null_sd:.3g}" + ("" if s.power is None else f", power {s.power:.0%}") for s in plan.by_splits
        )
        lines.append(f"splits buy power: {shown} (splits of one permutation are alike by {plan.icc:.2f}, the intraclass correlation)")
    enough = plan.permutations_advised
    floor = f"p <= {plan.alpha:g} needs {plan.permutations_for_alpha}, adjusted by max-T or not; "
    planned = f"{plan.n_permutations:,} are planned"
    if plan.n_permutations < enough:
        lines.append(f"permutations buy resolution: {floor}about {enough:,} decide as well as any number; {planned}")
    elif plan.n_permutations > 10 * enough:
        lines.append(
            f"permutations buy resolution: {floor}{enough:,} would decide as well, and the time saved pays for "
            f"{plan.n_permutations // enough} times the splits; more show how small p is"
        )
    if plan.more_powerful:
        lines.append(
            f"statistic: {plan.more_powerful} usually finds more than acc@k, which sees the first places alone (.82 against .72 of a weak "
            "effect among 30 classes with 5 splits). Choose before the run"
        )
    return lines


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")
