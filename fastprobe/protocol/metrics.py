"""Ranks to metrics. A rank is an integer, so every metric but the median is a mean over a table of C values."""

from __future__ import annotations

import re

import numpy as np

from ..errors import InputError

# Metrics for which smaller is better.
LOWER_IS_BETTER = frozenset({"loss", "mean_rank", "median_rank", "mean_log_rank", "mean_rank_micro", "mean_log_rank_micro"})
_BLOCK_BYTES = 32 << 20


def metric_names(ks: tuple[int, ...]) -> list[str]:
    """Columns that `summarise` gives, in order."""
    return [
        "n_queries",
        *(f"hits@{k}" for k in ks),
        *(f"acc@{k}_macro" for k in ks),
        *(f"acc@{k}_micro" for k in ks),
        "mrr",
        "mean_rank",
        "mean_log_rank",
        "mrr_micro",
        "mean_rank_micro",
        "mean_log_rank_micro",
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
    known = ["loss", *metric_names(ks)[1:]]
    if name not in known:
        raise InputError(f"`statistic` must name a stored metric ({', '.join(known)}); got {statistic!r}. For another k, add it to `k`.")
    return name


def statistic_ks(statistic: str) -> tuple[int, ...]:
    """The k in "acc@3" or "hits@3"; empty for other statistics."""
    found = re.search(r"@(\d+)", statistic)
    return (int(found.group(1)),) if found else ()


def chance(statistic: str, n_classes: int) -> float:
    """Expected value for a uniformly random ranking: k/C for acc@k. The null of a fitted probe may differ.

    NaN for a statistic that has no such value (loss, hits).
    """
    r = np.arange(1, n_classes + 1)
    base = statistic.removesuffix("_micro").removesuffix("_macro")
    if base.startswith("acc@"):
        return int(base[4:]) / n_classes
    values = {"mrr": np.mean(1.0 / r), "mean_rank": r.mean(), "median_rank": np.median(r), "mean_log_rank": np.mean(np.log(r))}
    return float(values.get(base, np.nan))


def summarise(ranks: np.ndarray, query_classes: np.ndarray, ks: tuple[int, ...], n_classes: int) -> dict[str, np.ndarray]:
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

    Returns
    -------
    dict of float64 (P,)
        Names of `metric_names`; ``n_queries`` and ``hits@k`` are int64.
    """
    n_probes, n_queries = ranks.shape
    starts = np.flatnonzero(np.r_[True, query_classes[1:] != query_classes[:-1]])
    sizes = np.diff(np.r_[starts, n_queries])
    r = np.arange(n_classes + 1, dtype=np.float64)
    tables = {"mrr": 1.0 / np.maximum(r, 1), "mean_rank": r, "mean_log_rank": np.log(np.maximum(r, 1))}
    out = {
        name: np.empty(n_probes, np.int64 if name == "n_queries" or name.startswith("hits@") else np.float64) for name in metric_names(ks)
    }
    out["n_queries"][:] = n_queries
    rows = max(_BLOCK_BYTES // (8 * max(n_queries, 1)), 1)
    for at in range(0, n_probes, rows):
        block, here = ranks[at : at + rows], slice(at, at + rows)
        for k in ks:
            per_class = np.add.reduceat((block <= k).astype(np.int64), starts, axis=1)
            out[f"hits@{k}"][here] = per_class.sum(axis=1)
            out[f"acc@{k}_macro"][here] = (per_class / sizes).mean(axis=1)
        for name, table in tables.items():
            per_class = np.add.reduceat(table[block], starts, axis=1)
            out[name][here] = (per_class / sizes).mean(axis=1)
            out[f"{name}_micro"][here] = per_class.sum(axis=1) / n_queries
        out["median_rank"][here] = np.median(block, axis=1)
    for k in ks:
        out[f"acc@{k}_micro"] = out[f"hits@{k}"] / n_queries
    return out
