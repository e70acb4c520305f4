"""Ranks to metrics.

Ranks run from 1 to C, so f(rank) is looked up in a table of C values and averaged; the median alone needs the ranks
themselves. Columns that end in ``_unseen`` are of ranks among the texts of the test classes alone. To add a metric that is
a mean of f(rank): a record in `METRICS`, and a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError

_BLOCK_BYTES = 1 << 22
UNSEEN = "_unseen"


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes
    ----------
    name : str
        "acc@k" stands for every k.
    words : str
        What it is, after its name: "mrr is the mean of 1 / rank ..."; ``{k}`` is filled in.
    lower_is_better : bool
    continuous : bool
        Whether it takes so many values that a fit to the tail of its null makes sense.
    proportion : bool
        Whether it lies between 0 and 1, so that larger values vary more until one half.
    of_rank : callable, optional
        f of an array of ranks, for metrics that are a mean of f(rank): over the clips of a class and then over
        classes (macro, the plain name), and over clips (`_micro`). None for what is computed otherwise.
    """

    name: str
    words: str
    lower_is_better: bool = False
    continuous: bool = False
    proportion: bool = field(default=False, kw_only=True)
    of_rank: Callable[[np.ndarray], np.ndarray] | None = None

    def chance(self, n_classes: int) -> float:
        """Expected value for a uniformly random ranking; NaN where there is none."""
        r = np.arange(1, n_classes + 1, dtype=np.float64)
        if self.name == "median_rank":
            return float(np.median(r))
        return float("nan") if self.of_rank is None else float(np.mean(self.of_rank(r)))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("acc@k", "is the share of sounds whose own text is among the {k} nearest", proportion=True),
        Metric("hits@k", "is the number of sounds whose own text is among the {k} nearest"),
        Metric(
            "mrr",
            "is the mean of 1 / rank of a sound's own text",
            continuous=True,
            proportion=True,
            of_rank=lambda r: 1.0 / np.maximum(r, 1),
        ),
        Metric("mean_rank", "is the mean rank of a sound's own text", True, True, lambda r: r),
        Metric("mean_log_rank", "is the mean logarithm of the rank of a sound's own text", True, True, lambda r: np.log(np.maximum(r, 1))),
        Metric("median_rank", "is the median rank of a sound's own text", True),
        Metric("loss", "is the loss at the end of training", True, True),
    )
}
# Those that are means of f(rank), in the order of their columns.
MEANS = tuple(m.name for m in METRICS.values() if m.of_rank is not None)


def metric_of(column: str) -> Metric:
    """The record behind a stored column or a statistic: "acc@3_macro" and "acc@3_unseen" are of "acc@k".

    Raises
    ------
    InputError
        An unknown name.
    """
    name = re.sub(r"@\d+", "@k", column.removesuffix(UNSEEN).removesuffix("_micro").removesuffix("_macro"))
    if name not in METRICS:
        raise InputError(f"`statistic` must name a stored metric (of {', '.join(METRICS)}); got {column!r}.")
    return METRICS[name]


def lower_is_better(column: str) -> bool:
    """Whether smaller values of a column are better."""
    return metric_of(column).lower_is_better


def is_unseen(column: str) -> bool:
    """Whether a column or statistic is of ranks among the texts of the test classes alone."""
    return column.endswith(UNSEEN)


def unseen_names(ks: tuple[int, ...]) -> list[str]:
    """Columns that `summarise` gives of ranks among the texts of the test classes alone, in order; means are macro."""
    return [f"{name}{UNSEEN}" for name in (*(f"acc@{k}" for k in ks), *MEANS, "median_rank")]


def metric_names(ks: tuple[int, ...]) -> list[str]:
    """Columns that `summarise` gives of ranks among all texts, in order."""
    return [
        "n_queries",
        *(f"hits@{k}" for k in ks),
        *(f"acc@{k}_macro" for k in ks),
        *(f"acc@{k}_micro" for k in ks),
        *MEANS,
        *(f"{name}_micro" for name in MEANS),
        "median_rank",
    ]


def check_ks(ks, n_classes: int) -> tuple[int, ...]:
    """Ascending and without repetition.

    Raises
    ------
    InputError
        k below 1 or above the number of classes.
    """
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"`k` must be a whole number of at least 1; got {k!r}.")
        if k > n_classes:
            raise InputError(f"`k` must be at most the number of classes, {n_classes}; got {k}. Lower it.")
    return tuple(sorted({int(k) for k in ks}))


def column_of(statistic: str, ks: tuple[int, ...] = ()) -> str:
    """The stored column that a statistic names: "acc@3" is ``acc@3_macro``.

    Raises
    ------
    InputError
        An unknown statistic, or a k that is not among `ks`.
    """
    name = f"{statistic}_macro" if re.fullmatch(r"acc@\d+", statistic) else statistic
    known = ["loss", *metric_names(ks)[1:], *unseen_names(ks)]
    if name not in known:
        raise InputError(f"`statistic` must name a stored metric ({', '.join(known)}); got {statistic!r}. For another k, add it to `k`.")
    return name


def statistic_ks(statistic: str) -> tuple[int, ...]:
    """The k in "acc@3" or "hits@3"; empty for other statistics."""
    found = re.search(r"@(\d+)", statistic)
    return (int(found.group(1)),) if found else ()


def chance(statistic: str, n_classes: int, n_test: int | None = None) -> float:
    """Expected value for a uniformly random ranking: k/C for acc@k. The null of a fitted probe may differ.

    NaN for a statistic that has no such value (loss, hits).

    Parameters
    ----------
    n_classes, n_test : int
        C, and the test classes, which a statistic that ends in ``_unseen`` ranks among.
    """
    if is_unseen(statistic):
        assert n_test is not None
        n_classes = n_test
    if ks := statistic_ks(statistic):
        return min(ks[0], n_classes) / n_classes if metric_of(statistic).name == "acc@k" else float("nan")
    return metric_of(statistic).chance(n_classes)


def summarise(
    ranks: np.ndarray, query_classes: np.ndarray, ks: tuple[int, ...], n_classes: int, ranks_unseen: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """All metrics of each probe, from the ranks of its queries.

        macro f = mean over classes of the mean of f(rank) over the clips of a class
        micro f = mean of f(rank) over all clips;   f = 1[rank <= k], 1/rank, rank, log rank

    Parameters
    ----------
    ranks : int (P, Q)
    query_classes : int (Q,)
        Class of each query; the queries of a class are contiguous.
    ks : tuple of int
    n_classes : int
        C; ranks run from 1 to C.
    ranks_unseen : int (P, Q), optional
        Ranks among the texts of the test classes alone.

    Returns
    -------
    dict of float64 (P,)
        Names of `metric_names`, and of `unseen_names` with `ranks_unseen`; ``n_queries`` and ``hits@k`` are int64.
    """
    n_probes, n_queries = ranks.shape
    starts = np.flatnonzero(np.r_[True, query_classes[1:] != query_classes[:-1]])
    sizes = np.diff(np.r_[starts, n_queries])
    r = np.arange(n_classes + 1, dtype=np.float64)
    tables = {m.name: m.of_rank(r) for m in METRICS.values() if m.of_rank is not None}
    out = {
        name: np.empty(n_probes, np.int64 if name == "n_queries" or name.startswith("hits@") else np.float64)
        for name in (*metric_names(ks), *(unseen_names(ks) if ranks_unseen is not None else ()))
    }
    out["n_queries"][:] = n_queries
    rows = max(_BLOCK_BYTES // (8 * max(n_queries, 1)), 1)
    looked_up = np.empty((min(rows, n_probes), n_queries))
    for at in range(0, n_probes, rows):
        here = slice(at, at + rows)
        for of, end in ((ranks, ""), (ranks_unseen, UNSEEN)):
            if of is None:
                continue
            block = of[here].astype(np.intp)
            for k in ks:
                per_class = np.add.reduceat(block <= k, starts, axis=1, dtype=np.int64)
                out[f"acc@{k}{end or '_macro'}"][here] = (per_class / sizes).mean(axis=1)
                if not end:
                    out[f"hits@{k}"][here] = per_class.sum(axis=1)
            for name, table in tables.items():
                # With a place to write to and no check of the bounds, which ranks keep, it takes half the time.
                values = table.take(block, mode="clip", out=looked_up[: len(block)])
                per_class = np.add.reduceat(values, starts, axis=1)
                out[f"{name}{end}"][here] = (per_class / sizes).mean(axis=1)
                if not end:
                    out[f"{name}_micro"][here] = per_class.sum(axis=1) / n_queries
            out[f"median_rank{end}"][here] = _medians(of[here], n_classes)
    for k in ks:
        out[f"acc@{k}_micro"] = out[f"hits@{k}"] / n_queries
    return out


def _medians(ranks: np.ndarray, most: int) -> np.ndarray:
    """numpy.median of every row, ranks 1 ... `most`: by halving, which takes a third of the time of a partition."""
    low, high = (np.full((len(ranks), 1), x, ranks.dtype) for x in (1, most))
    lower, upper = (ranks.shape[1] + 1) // 2, ranks.shape[1] // 2 + 1  # the middle rank, or the two, counted from 1

    def at_most(values: np.ndarray) -> np.ndarray:
        return (ranks <= values).sum(axis=1, keepdims=True, dtype=np.int32)

    while np.any(low < high):  # the smallest value that at least `lower` ranks do not exceed
        middle = low + (high - low) // 2
        enough = at_most(middle) >= lower
        high, low = np.where(enough, middle, high), np.where(enough, low, middle + 1)
    second = low.copy()
    apart = np.flatnonzero(at_most(low) < upper)  # the next larger rank
    second[apart, 0] = np.where(ranks[apart] > low[apart], ranks[apart], most).min(axis=1)
    return (0.5 * (low + second.astype(np.float64)))[:, 0]
