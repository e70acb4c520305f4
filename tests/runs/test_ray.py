"""A Ray cluster of several nodes inside this machine; nodes and workers are lost in mid-run."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from functools import partial

import pytest

from fastprobe.errors import InputError
from fastprobe.runs import run
from fastprobe.runs.engines import Pace, WorkerError
from fastprobe.runs.engines import ray as engine
from support.small_runs import experiment, finish, rows, same_rows

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False})
    made.others = [made.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@dataclasses.dataclass(frozen=True, eq=False)
class Slow(run.Experiment):
    """Takes its time, and can be told to die once at some units or to fail always."""

    marks: str = ""
    mood: str = "slow"

    def compute(self, unit):
        if self.mood == "slow":
            time.sleep(0.15)
        if self.mood == "fails" and unit.start > 8:
            raise RuntimeError("CUDA error: the GPU is gone")
        if self.mood == "dies" and unit.start in (4, 20, 36) and unit.cell == 0:
            try:
                os.mkdir(f"{self.marks}/{unit.cell}-{unit.start}")
            except FileExistsError:
                return super().compute(unit)
            os._exit(1)
        return super().compute(unit)


def slow(tmp_path, mood="slow"):
    exp = experiment(59)
    marks = tmp_path / "marks"
    marks.mkdir()
    return Slow(**{f.name: getattr(exp, f.name) for f in dataclasses.fields(exp)}, marks=str(marks), mood=mood)


def fours(task, work, pace):
    """Units of four permutations on the cluster that this process is joined to."""
    return engine.execute(task, work, Pace(4, 4), "auto")


@pytest.fixture(scope="module")
def want():
    exp = experiment(59)
    return finish(exp, run.open_store(exp, None))


def test_a_node_is_lost_in_mid_run_and_another_joins(cluster, tmp_path, want):
    exp = slow(tmp_path)
    store, workers, units = run.open_store(exp, tmp_path / "r"), set(), []
    for i, step in enumerate(run.execute(exp, store, fours)):
        workers.add(step.worker)
        units.append(step.unit)
        if i == 6:
            cluster.remove_node(cluster.others.pop(), allow_graceful=False)
        if i == 12:
            cluster.others.append(cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
    assert same_rows(store, want) and len(rows(store)) == exp.plan.n_jobs
    assert len(set(units)) == len(units) == len(store.done()) + 1, "no shard twice"
    # Whether the node that joined late gets a unit before the end is a matter of its start-up time.
    assert len(workers) >= 3, "a None at first, and at least two nodes worked"


def test_workers_that_die_are_replaced(cluster, tmp_path, want):
    exp = slow(tmp_path, "dies")
    store = finish(exp, run.open_store(exp, tmp_path / "r"), fours)
    assert len(os.listdir(tmp_path / "marks")) == 3 and same_rows(store, want)


@pytest.mark.parametrize("workers_write", [False, True])
def test_sizes_from_the_measured_rate(cluster, tmp_path, want, workers_write):
    exp = experiment(59)
    store = finish(exp, run.open_store(exp, tmp_path / "r"), partial(engine.execute, address="auto"), workers_write=workers_write)
    assert same_rows(store, want) and all(store.damage(u) is None for u in store.done())


def test_a_unit_that_fails_by_itself_is_named(cluster, tmp_path):
    exp = slow(tmp_path, "fails")
    store = run.open_store(exp, tmp_path / "r")
    with pytest.raises(WorkerError, match=r"permutations \d+ to \d+ failed on a Ray worker: RuntimeError: CUDA error: the GPU is"):
        finish(exp, store, fours)
    assert store.done() and "run.lock" not in os.listdir(tmp_path / "r")


def test_an_address_where_nothing_answers(tmp_path, monkeypatch):
    exp = experiment(5)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match=r"`address`='10.0.0.1:6379': no Ray cluster answers there.*`ray start --head`"):
        finish(exp, run.open_store(exp, tmp_path / "r"), partial(engine.execute, address="10.0.0.1:6379"))


def refuse(**_):
    """What `ray.init` does after its patience with an address (half a minute)."""
    raise ConnectionError("Ray is trying to start at 10.0.0.1:6379, but nothing is there")
