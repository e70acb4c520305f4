"""What summary.json says beyond one pair's p: families, adjustments, selectivity, tails, the sequential outcome."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..protocol.cells import Cell
from ..protocol.controls import selectivity
from ..protocol.metrics import column_of, lower_is_better, metric_of
from ..protocol.plan import JobPlan
from ..protocol.probes import is_similarity, is_trained
from ..randomness import SIMULATION, generator
from ..statistics.calibration import calibrated
from ..statistics.multiplicity import best_of, family, max_t, min_p, step_down, weak_max_t
from ..statistics.selection import best_configuration
from ..statistics.sequential import StopRule
from ..statistics.significance import PermutationTestResult
from ..statistics.tail import tail_pvalue
from .choice import choice_family
from .store import ResultStore


def layers(inputs: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """(model, layer) of each text table that states its layer, by name; tables of one model form a layer curve.

    The layer is ``meta["layer"]`` and the model ``meta["model"]``; a name that ends in "-layer7", "_L7" or the like
    does as well.
    """
    out: dict[str, tuple[str, int]] = {}
    for table in inputs:
        if table["side"] != "text":
            continue
        meta, name = table.get("meta") or {}, table["name"]
        found = re.fullmatch(r"(.+?)[-_.@ ]+(?:layer|[lL])[-_.]?(\d+)", name)
        layer: Any = meta.get("layer", found.group(2) if found else None)
        try:
            out[name] = (str(meta.get("model") or (found.group(1) if found else name)), int(layer))
        except (TypeError, ValueError):
            continue
    return out


def _oriented(store: ResultStore, plan: JobPlan, column: str) -> np.ndarray:
    t = store.replicates([column], plan)[0][column]
    return -t if lower_is_better(column) else t


def extend(
    results: list[PermutationTestResult],
    store: ResultStore,
    *,
    plan: JobPlan,
    statistic: str,
    ks: tuple[int, ...],
    seed: int,
    inputs: list[dict[str, Any]],
    stop: StopRule | None,
    choice: list[PermutationTestResult] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the pairs, with every adjustment, and the families they were adjusted in.

    Families: all pairs; all pairs and all stored k (for acc@k); the best configuration, or the nested choice where `choice` has
    its results; the best layer of each model, where layers are given.
    """
    records = [r.to_dict() for r in results]
    for record, r in zip(records, results):
        sign = -1.0 if r.lower_is_better else 1.0
        record["selectivity"] = sign * selectivity(r.statistic, r.null_mean)
        if is_similarity(r.probe) and r.n_permutations:
            record["calibrated"] = _calibrated(r)
    if stop is not None:
        for record in records:
            record["stop"] = str(stop)
        return records, [
            {
                "name": f"all pairs, {statistic}, {stop}",
                "n_tests": len(records),
                "n_permutations": results[0].n_permutations,
                "tests": [{"test": _name(r), "pvalue": r.pvalue, "pvalue_maxT": r.pvalue_max_t} for r in results],
            }
        ]
    if plan.n_permutations == 0:
        return records, []
    t = np.stack([(-1.0 if r.lower_is_better else 1.0) * np.r_[r.statistic, r.null_distribution] for r in results])
    names = [_name(r) for r in results]
    pairs = family(f"all pairs, {statistic}", names, t, np.array([r.pvalue for r in results]))
    for record, down, holm, bh in zip(records, pairs.step_down, pairs.holm, pairs.bh):
        record.update(pvalue_stepdown=float(down), pvalue_holm=float(holm), pvalue_bh=float(bh))
    weak = weak_max_t(t)
    if len(records) > 1:
        for record, p in zip(records, min_p(t)):
            record["pvalue_minP"] = float(p)
    for i, record in enumerate(records):
        if is_similarity(record["probe"]) or metric_of(statistic).continuous:
            fit = tail_pvalue(t[i], record["pvalue"], generator(seed, SIMULATION, i))
            record["tail"] = (
                None
                if fit is None
                else {
                    "pvalue": fit.pvalue,
                    "low": fit.low,
                    "high": fit.high,
                    "shape": fit.shape,
                    "n_exceedances": fit.n_exceedances,
                    "check_pvalue": fit.check_pvalue,
                    "good": fit.good,
                }
            )
    families = [{**pairs.to_dict(), **({"weak_max_t": {names[row]: why for row, why in weak.items()}} if weak else {})}]
    own = re.fullmatch(r"acc@\d+(_micro|_unseen)?", statistic)
    if own and len(ks) > 1:
        columns = [column_of(f"acc@{k}{own.group(1) or ''}", ks) for k in ks]
        ranked = [i for i, r in enumerate(results) if not is_similarity(r.probe)]  # a similarity has no k
        rows = np.concatenate([_oriented(store, plan, c)[ranked] for c in columns]) if ranked else np.zeros((0, 0))
        members = [f"{names[i]}, acc@{k}" for k in ks for i in ranked]
        families += [family("all pairs and all k", members, rows).to_dict()] if ranked else []
    trained = [i for i, r in enumerate(results) if is_trained(r.probe)]
    if choice is not None:  # in place of the other: a second p for the same choice would be a choice again
        families.append(choice_family(choice))
    elif len({results[i].probe for i in trained}) > 1:
        families.append(_best_configuration([results[i] for i in trained], t[trained]))
    of = layers(inputs)
    groups = [f"{of[r.text][0]} x {r.audio}" if r.text in of else None for r in results]
    if len(set(groups) - {None}) < sum(g is not None for g in groups):
        rows = [i for i, g in enumerate(groups) if g is not None]
        models, winners, maxima = best_of(t[rows], [groups[i] for i in rows])
        families.append(
            {
                "name": "best layer of each model",
                "n_tests": len(models),
                "n_permutations": t.shape[1] - 1,
                "tests": [
                    {
                        "test": model,
                        "best_layer": of[results[rows[w]].text][1],
                        "pair": names[rows[w]],
                        "pvalue_maxT": float(p),
                        "pvalue_stepdown": float(q),
                    }
                    for model, w, p, q in zip(models, winners, max_t(maxima), step_down(maxima))
                ],
            }
        )
    return records, families


def _calibrated(r: PermutationTestResult) -> float:
    """The similarity as a share of what lies between its null's 95% quantile and 1, the most that any of them reaches; NaN where
    the null reaches 1 itself."""
    t = np.r_[r.statistic, r.null_distribution][None]
    return float(calibrated(t, 1.0)[0]) if np.quantile(r.null_distribution, 0.95) < 1 else float("nan")


def _best_configuration(results: list[PermutationTestResult], t: np.ndarray) -> dict[str, Any]:
    """One test per pair, of its best configuration. The maximum over configurations is taken inside every replicate, so
    that choosing the best on the observed run is paid for."""
    best = best_configuration(t, [f"{r.text} x {r.audio}" for r in results])
    out = best.family.to_dict()
    for test, row in zip(out["tests"], best.chosen):
        test["chosen"] = results[row].probe
    return {**out, "n_configurations": len({r.probe for r in results})}


def _name(r: PermutationTestResult) -> str:
    return str(Cell(r.text, r.audio, r.probe))
