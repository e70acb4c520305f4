"""A nested choice among the probes of each pair, from what is stored: one test per pair, of the probe that was chosen.

    k_b = argmax_k mean_s inner_ksb        T_b = mean_s outer_(k_b)sb

`inner` is a column of the shards: the statistic on a split of the train classes. Every replicate chooses anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..protocol.metrics import chance, column_of, lower_is_better
from ..protocol.plan import train_count
from ..protocol.probes import is_similarity
from ..statistics.multiplicity import family
from ..statistics.selection import nested_choice
from ..statistics.significance import PermutationTestResult, analyse_pairs
from .specification import Specification
from .store import ResultStore

FAMILY = "nested choice"


def chosen(spec: Specification, store: ResultStore) -> list[PermutationTestResult]:
    """One result per pair, of the probe chosen inside every replicate; `probe` names the choice of the observed run."""
    column = column_of(spec.statistic, spec.ks)
    found, per_split = store.replicates([column, "inner"], spec.plan)
    sign = -1.0 if lower_is_better(spec.statistic) else 1.0
    members: dict[tuple[str, str], list[int]] = {}
    for number, cell in enumerate(spec.cells[: spec.n_tested]):
        if not is_similarity(cell.probe):  # it ranks no clip, so it cannot be compared with what does
            members.setdefault((cell.text, cell.audio), []).append(number)
    rows, names, splits = [], [], []
    for pair, cells in members.items():
        # A replicate is the mean over splits already, so that the splits count as one.
        inner, outer = (sign * found[name][cells][:, None] for name in ("inner", column))
        choice, t = nested_choice(inner, outer)
        rows.append(sign * t)
        names.append((*pair, spec.cells[cells[choice[0]]].probe))
        splits.append(per_split[cells[choice[0]]])
    n_train, n = train_count(spec.n_classes, spec.train_fraction), len(names)
    results = analyse_pairs(
        np.stack(rows),
        np.stack(splits),
        names,
        metrics=[spec.statistic] * n,
        chances=[chance(column, spec.n_rivals, spec.n_classes - n_train)] * n,
        lower_is_better=[sign < 0] * n,
        n_train=n_train,
        n_test=spec.n_classes - n_train,
        n_seeds=spec.plan.n_seeds,
    )
    drawn = "all" if spec.enumerated else "fixed"
    among = (tuple(spec.cells[i].probe for i in cells) for cells in members.values())
    return [replace(r, drawn=drawn, chosen_among=probes) for r, probes in zip(results, among)]


def choice_family(results: list[PermutationTestResult]) -> dict[str, Any]:
    """The family of summary.json: each pair's choice, its statistic and control, its p adjusted over the pairs."""
    t = np.stack([(-1.0 if r.lower_is_better else 1.0) * np.r_[r.statistic, r.null_distribution] for r in results])
    out = family(FAMILY, [f"{r.text} x {r.audio}" for r in results], t, np.array([r.pvalue for r in results])).to_dict()
    for test, r in zip(out["tests"], results):
        record = r.to_dict()
        test |= {"chosen": r.probe, **{k: record[k] for k in ("metric", "statistic", "null_mean", "null_sd", "sem_corrected", "chance")}}
    return {**out, "n_configurations": len(results[0].chosen_among)}
