"""The stopping rule at work: on units as they arrive, and on what is stored."""

from __future__ import annotations

import numpy as np

from ..protocol.metrics import column_of
from ..protocol.plan import Unit
from ..statistics.sequential import SequentialFamily, StopRule
from .experiment import Experiment
from .store import ResultStore


class Watch:
    """Applies the stopping rule while a run computes.

    Units may arrive in any order. The rule sees a permutation as soon as it and all those before it are there for every
    cell, so that it stops at the same permutation whatever the order of arrival.

    Parameters
    ----------
    rule : StopRule
    experiment : Experiment
    store : ResultStore
        What it holds already is shown to the rule first.
    """

    def __init__(self, rule: StopRule, experiment: Experiment, store: ResultStore) -> None:
        self.column = column_of(experiment.statistic, experiment.ks)
        self.experiment = experiment
        self.rule, self.limit = rule, experiment.plan.n_permutations
        self.t = experiment.oriented(store.replicates([self.column], experiment.plan)[0][self.column])[: experiment.n_tested]
        self.family: SequentialFamily | None = None
        self.fed = 0
        self._feed()

    @property
    def done(self) -> bool:
        """Whether the family has stopped."""
        return self.family is not None and self.family.done

    @property
    def used(self) -> int:
        """B of the p-values: the permutations up to the stop, or all when the rule did not fire."""
        return self.family.seen if self.family is not None and self.family.done else self.limit

    def take(self, unit: Unit, columns: dict[str, np.ndarray]) -> bool:
        """Take one more unit, as it was computed; True when the run may end."""
        if unit.cell >= len(self.t):  # a ceiling, which decides nothing
            return self.done
        stop = min(unit.stop, self.t.shape[1])
        column = "similarity" if "similarity" in columns else self.column
        values = columns[column].astype(np.float64).reshape(unit.stop - unit.start, -1).mean(axis=1)
        sign = -1.0 if self.experiment.lower_is_better[unit.cell] else 1.0
        self.t[unit.cell, unit.start : stop] = sign * values[: stop - unit.start]
        self._feed()
        return self.done

    def _feed(self) -> None:
        complete = np.asarray(np.isfinite(self.t[:, self.fed :]).all(axis=0))
        upto = self.fed + (len(complete) if complete.all() else int(np.argmin(complete)))
        if upto == self.fed:
            return
        if self.family is None:
            self.family = SequentialFamily(self.rule, self.t[:, 0], self.limit)
        self.family.update(self.t[:, max(self.fed, 1) : upto])
        self.fed = upto


def replay(rule: StopRule, t: np.ndarray) -> SequentialFamily:
    """Apply a stopping rule to stored replicates, float (pairs, B+1), larger is better; NaN where nothing is stored."""
    outcome = SequentialFamily(rule, t[:, 0], t.shape[1] - 1)
    missing = np.flatnonzero(~np.isfinite(t).all(axis=0))
    outcome.update(t[:, 1 : missing[0] if len(missing) else t.shape[1]])
    return outcome
