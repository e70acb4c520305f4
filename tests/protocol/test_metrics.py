"""Ranks to metrics, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import InputError
from fastprobe.protocol import metrics
from support.strategies import SEEDS


@given(SEEDS, st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(3, 30))
def test_against_plain_loops(seed, n_probes, sizes, n_classes):
    y = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.random.default_rng(seed).integers(1, n_classes + 1, (n_probes, len(y)))
    out = metrics.summarise(ranks, y, (1, 3), n_classes)
    assert list(out) == metrics.metric_names((1, 3))
    for p in range(n_probes):
        r = ranks[p]

        def macro(f, r=r):
            return np.mean([np.mean([f(v) for v in r[y == c]]) for c in range(len(sizes))])

        assert out["hits@3"][p] == np.sum(r <= 3) and out["n_queries"][p] == len(y)
        for name, f in (("acc@3_macro", lambda v: v <= 3), ("mrr", lambda v: 1 / v), ("mean_rank", lambda v: v), ("mean_log_rank", np.log)):
            assert out[name][p] == pytest.approx(macro(f), rel=1e-12)
        assert out["acc@1_micro"][p] == pytest.approx(np.mean(r == 1))
        assert out["median_rank"][p] == np.median(r)


@given(SEEDS, st.lists(st.integers(1, 5), min_size=3, max_size=9))
def test_columns_of_the_unseen_are_those_of_their_own_ranks(seed, sizes):
    rng, y = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    unseen = rng.integers(1, len(sizes) + 1, (3, len(y)))
    ranks = unseen + rng.integers(0, 12, unseen.shape)
    out = metrics.summarise(ranks, y, (1, 3), 21, unseen)
    assert list(out) == [*metrics.metric_names((1, 3)), *metrics.unseen_names((1, 3))]
    for source, end in ((ranks, ""), (unseen, "_unseen")):
        alone = metrics.summarise(source, y, (1, 3), 21)
        for name in metrics.unseen_names((1, 3)):
            plain = metrics.column_of(name.removesuffix("_unseen"), (1, 3))
            assert np.array_equal(out[name if end else plain], alone[plain])


@given(SEEDS, st.integers(1, 300), st.integers(1, 40))
def test_medians_are_numpys(seed, most, n):
    ranks = np.random.default_rng(seed).integers(1, most + 1, (4, n)).astype(np.int32)
    assert np.array_equal(metrics.summarise(ranks, np.zeros(n, int), (1,), most)["median_rank"], np.median(ranks, axis=1))


@given(SEEDS)
def test_a_probe_does_not_see_its_batch(seed):
    rng = np.random.default_rng(seed)
    y, ranks = np.repeat(np.arange(7), 5), rng.integers(1, 21, (9, 35))
    whole = metrics.summarise(ranks, y, (1, 5), 20)
    one = metrics.summarise(ranks[4:5], y, (1, 5), 20)
    assert all(np.array_equal(whole[name][4:5], one[name]) for name in whole)


def test_chance_is_the_mean_over_uniform_ranks():
    ranks = np.arange(1, 51)[None]
    out = metrics.summarise(ranks, np.zeros(50, int), (3,), 50)
    for name in ("acc@3_macro", "acc@3_micro", "mrr", "mean_rank", "mean_log_rank", "median_rank", "mrr_micro"):
        assert metrics.chance(name, 50) == pytest.approx(out[name][0])
    assert metrics.chance("acc@3", 144) == 3 / 144
    assert metrics.chance("acc@3_unseen", 144, 43) == 3 / 43 and metrics.chance("acc@9_unseen", 144, 4) == 1
    for name in ("mrr", "mean_rank", "mean_log_rank", "median_rank"):
        assert metrics.chance(f"{name}_unseen", 144, 50) == metrics.chance(name, 50)


def test_names():
    assert metrics.column_of("acc@3", (3,)) == "acc@3_macro" and metrics.column_of("mrr") == "mrr"
    with pytest.raises(InputError, match="`statistic`.*'accuracy'"):
        metrics.column_of("accuracy", (3,))
    with pytest.raises(InputError, match="`k` must be at most the number of classes, 10; got 11"):
        metrics.check_ks((11,), 10)
    with pytest.raises(InputError, match="`k`.*got 0"):
        metrics.check_ks((0,), 10)
