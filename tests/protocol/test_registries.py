"""Each growing thing has one record that all the rest reads: an unknown one is refused, never trained as another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from fastprobe.errors import BackendUnavailableError
from fastprobe.kernels import BACKENDS, reference
from fastprobe.protocol import controls, optimizers
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.metrics import METRICS, chance, column_of, metric_names, metric_of, summarise, unseen_names
from support.strategies import SEEDS, batch_of

MADE_UP = optimizers.Optimizer("made-up", 0.5, True, "none", "nothing", "Nothing")


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "made-up", MADE_UP)
    return batch_of(ProbeConfig(optimizer="made-up", steps=2, dim=3), seed=0)


def test_a_registered_optimiser_brings_its_default_rate_and_basis(made_up):
    assert made_up.config.lr == 0.5 and made_up.config.basis == "svd"


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_refuses_an_optimiser_that_it_does_not_honour(name, made_up):
    backend = BACKENDS[name]
    if name == "triton" and (why := backend.why_not()) and "not installed" in why:
        pytest.skip(f"the triton backend cannot be imported: {why}")
    with pytest.raises(BackendUnavailableError, match=f"optimizer.*made-up.*{', '.join(backend.optimizers)}"):
        backend.load()(made_up)


def test_the_definition_writes_no_update_that_it_does_not_know(made_up):
    with pytest.raises(ValueError, match="made-up"):
        reference.train(made_up)


def test_a_control_that_draws_in_its_own_way_is_never_replaced_by_a_list(monkeypatch):
    """Rotations within groups: a list of all orders within the groups would be another null."""

    def rotated(seed, number, n_classes, groups):
        order = np.arange(n_classes)
        for g in np.unique(groups):
            order[groups == g] = np.roll(order[groups == g], number)
        return order

    rule = replace(controls.CONTROLS["permute-within"], name="rotate", draw=rotated, distinct=lambda n, groups: 3)
    monkeypatch.setitem(controls.CONTROLS, "rotate", rule)
    source = controls.permutation_source("rotate", 0, 6, 10**6, np.repeat(["a", "b"], 3))
    assert not source.enumerated and source.distinct == 3 and source.n_permutations == 10**6
    np.testing.assert_array_equal(source.draw(0, 2), [[0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 3, 4]])


@given(SEEDS)
def test_every_mean_of_ranks_is_the_mean_of_its_record(seed):
    rng = np.random.default_rng(seed)
    ranks, classes = rng.integers(1, 10, (2, 12)), np.repeat([1, 4, 7], 4)
    found = summarise(ranks, classes, (1, 3), 9)
    assert list(found) == metric_names((1, 3))
    for metric in METRICS.values():
        if metric.of_rank is not None:
            np.testing.assert_allclose(found[metric.name + "_micro"], metric.of_rank(ranks.astype(float)).mean(axis=1))
            assert np.isfinite(chance(metric.name, 9))


@pytest.mark.parametrize("column", ["loss", *metric_names((1, 3))[1:], *unseen_names((1, 3))])
def test_every_stored_column_has_a_record(column):
    metric = metric_of(column)
    assert metric.words and column_of(column, (1, 3)) == column
    assert metric.continuous == (metric.name in ("mrr", "mean_rank", "mean_log_rank", "loss")), "a tail is fitted to these alone"
