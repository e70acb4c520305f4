"""From what a run stored to its results: significance, what came of the baselines, the record that summary.json holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..protocol.controls import CONTROLS
from ..protocol.metrics import chance, column_of
from ..protocol.plan import train_count
from ..protocol.probes import is_similarity
from ..statistics.baselines import BaselineTest, beats_baselines
from ..statistics.significance import PermutationTestResult, analyse_pairs, standard_errors
from .choice import chosen
from .specification import Specification
from .stopping import replay
from .store import ResultStore
from .summary import extend

PVALUE_RULE = "(1 + #{b >= 1: T_b >= T_0}) / (1 + B), ties count against"


def analyse(experiment: Specification, store: ResultStore) -> list[PermutationTestResult]:
    """Significance of every pair that is tested, from what is stored, and what came of its baselines."""
    column = column_of(experiment.statistic, experiment.ks)
    found, per_split = store.replicates([column], experiment.plan)
    cells = experiment.cells[: experiment.n_tested]
    replicates, per_split = found[column][: len(cells)], per_split[: len(cells)]
    n_train = train_count(experiment.n_classes, experiment.train_fraction)
    expected = chance(column, experiment.n_rivals, experiment.n_classes - n_train)
    family = None
    if experiment.stop is not None:
        family = replay(experiment.stop, experiment.oriented(replicates))
        replicates = replicates[:, : (family.seen if family.done else experiment.plan.n_permutations) + 1]
    results = analyse_pairs(
        replicates,
        per_split,
        cells,
        metrics=[experiment.metric_of(cell) for cell in range(len(cells))],
        chances=[float("nan") if is_similarity(c.probe) else expected for c in cells],
        lower_is_better=experiment.lower_is_better[: len(cells)],
        n_train=n_train,
        n_test=experiment.n_classes - n_train,
        n_seeds=experiment.plan.n_seeds,
    )
    if family is not None:
        results = [
            replace(r, pvalue=float(p), pvalue_max_t=float(q), drawn="stopped", n_counted=own.permutations)
            for r, p, q, own in zip(results, family.unadjusted, family.pvalues, family.own)
        ]
    elif experiment.enumerated:
        results = [replace(r, drawn="all") for r in results]
    return [replace(r, beats_baseline=_against_baselines(experiment, results, cell)) for cell, r in enumerate(results)]


def _against_baselines(experiment: Specification, results: list[PermutationTestResult], cell: int) -> BaselineTest | None:
    """A model against the baselines with the same sounds and the same probe; None where there is none."""
    rivals = experiment.baselines_of(cell)
    if not rivals:
        return None
    sign = -1.0 if results[cell].lower_is_better else 1.0
    t, splits = (
        {i: sign * row(results[i]) for i in (cell, *rivals)}
        for row in (lambda r: np.r_[r.statistic, r.null_distribution], lambda r: r.per_split)
    )
    names = [results[i].text for i in rivals]
    return beats_baselines(
        t[cell],
        np.stack([t[i] for i in rivals]),
        splits[cell],
        np.stack([splits[i] for i in rivals]),
        names,
        results[cell].n_train,
        results[cell].n_test,
        [experiment.baselines[name] for name in names],
    )


def ceilings(experiment: Specification, store: ResultStore) -> list[dict[str, Any]]:
    """What the sounds reach in place of the texts: a record for each reference cell, without a test."""
    column = column_of(experiment.statistic, experiment.ks)
    found, per_split = store.replicates([column], experiment.plan)
    n_train = train_count(experiment.n_classes, experiment.train_fraction)
    return [
        {
            **dict(zip(("text", "audio", "probe"), experiment.cells[cell])),
            "metric": experiment.metric_of(cell),
            "statistic": float(found[column][cell, 0]),
            "sem_corrected": standard_errors(per_split[cell], n_train, experiment.n_classes - n_train)[1],
        }
        for cell in range(experiment.n_tested, len(experiment.cells))
    ]


def summary(experiment: Specification, results: list[PermutationTestResult], store: ResultStore) -> dict[str, Any]:
    """What summary.json holds; no times, so that equal runs have equal bytes."""
    pairs, families = extend(
        results,
        store,
        plan=experiment.plan,
        statistic=experiment.statistic,
        ks=experiment.ks,
        seed=experiment.seed,
        inputs=list(experiment.inputs),
        stop=experiment.stop,
        choice=chosen(experiment, store) if experiment.nested else None,
    )
    for record in pairs if experiment.baselines else ():
        record["role"] = "baseline" if record["text"] in experiment.baselines else "model"
    design = experiment.design
    return {
        "pairs": pairs,
        **({"ceilings": ceilings(experiment, store)} if experiment.plan.observed_only else {}),
        **({"covariates": {"names": list(design.names), "degrees_of_freedom": design.degrees_of_freedom}} if design else {}),
        "families": families,
        "statistic": experiment.statistic,
        "n_classes": experiment.n_classes,
        "n_jobs": experiment.plan.n_jobs,
        "pvalue_rule": experiment.stop.pvalue_rule if experiment.stop else PVALUE_RULE,
        "null": CONTROLS[experiment.control].null,
        "control": experiment.control,
        **({"stop": str(experiment.stop)} if experiment.stop else {}),
        **({"select": "nested"} if experiment.nested else {}),
        "backend": experiment.backend,
        "precision": experiment.config.precision,
    }
