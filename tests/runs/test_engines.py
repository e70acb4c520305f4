"""Whoever executes the units, in whatever sizes and order: the same rows."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fastprobe import kernels
from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.protocol.plan import JobPlan, Unit, Work
from fastprobe.runs import run
from fastprobe.runs.engines import Pace, Task, WorkerError, local
from support.small_runs import experiment, finish, rows, same_rows, sized

plans = st.builds(JobPlan, st.integers(1, 5), st.integers(1, 2), st.integers(1, 2), st.integers(0, 60))


@given(plans, st.integers(1, 20))
def test_parts_are_a_partition_of_the_plan(plan, count):
    seen = []
    sizes = []
    for i in range(count):
        part = plan.part(i, count)
        jobs = [(u.cell, b) for u in part for b in range(u.start, u.stop)]
        seen += jobs
        sizes.append(len(jobs))
    assert sorted(seen) == [(p, b) for p in range(plan.n_cells) for b in range(plan.n_permutations + 1)]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(InputError, match="0 <= I < N"):
        plan.part(count, count)


@given(plans, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(1, 20)), max_size=8), st.integers(1, 30))
def test_gaps_and_work_cover_what_is_missing_once(plan, stored, size):
    done = [Unit(p, b, b + n) for p, b, n in stored if p < plan.n_cells]
    have = {(u.cell, b) for u in done for b in range(u.start, u.stop)}
    want = [(p, b) for p in range(plan.n_cells) for b in range(plan.n_permutations + 1) if (p, b) not in have]
    work, got = Work(plan.gaps(done)), []
    assert work.replicates == len(want)
    last = (-1, -1)
    while unit := work.take(size):
        assert 1 <= unit.stop - unit.start <= size and (unit.start, unit.cell) > last
        last = (unit.start, unit.cell)
        got += [(unit.cell, b) for b in range(unit.start, unit.stop)]
    assert sorted(got) == want and not work


def test_pace_follows_the_measured_rate():
    work, pace = Work([Unit(0, 0, 10**9)]), Pace(10, 5000, seconds=20)
    sizes = []
    for _ in range(10):
        unit = work.take(pace.size(work))
        sizes.append(unit.stop - unit.start)
        pace.record(unit, sizes[-1] / 100)  # 100 permutations per second
    assert sizes[:4] == [10, 40, 160, 640] and sizes[-1] == 2000
    assert Pace(10, 5).size(work) == 5
    assert pace.size(Work([Unit(0, 0, 900)]), workers=3) == 150, "what is left is shared"
    assert pace.size(Work([Unit(0, 0, 9)]), workers=3) == 100, "but not in units of a moment"


@pytest.mark.parametrize("backend", ["reference", *(n for n, why in kernels.available_backends().items() if n == "cpp" and not why)])
def test_rows_do_not_depend_on_unit_sizes(backend):
    exp = experiment(59, backend=backend)
    stores = [finish(exp, run.open_store(exp, None), sized(size)) for size in (1, 13, 1000)]
    stores.append(finish(exp, run.open_store(exp, None), local.execute))
    assert all(same_rows(stores[0], s) for s in stores[1:])
    assert len(rows(stores[0])) == exp.plan.n_jobs == 2 * 2 * 60


def test_seven_worker_processes_give_the_rows_of_one(tmp_path):
    exp = experiment(59)
    store = run.open_store(exp, tmp_path / "r")
    workers = set()
    for step in run.execute(exp, store, partial(local.execute, devices=["cpu"] * 7)):
        workers.add(step.worker)
    assert same_rows(store, finish(exp, run.open_store(exp, None)))
    assert workers <= {None, *(f"cpu:{i}" for i in range(7))} and len(workers) > 2


@dataclasses.dataclass(frozen=True, eq=False)
class Moody(run.Experiment):
    """Fails or dies at some units, as often as the file `marks` allows."""

    marks: str = ""
    mood: str = "dies"

    def compute(self, unit):
        if unit.start >= 8:
            if self.mood == "gpu":
                raise RuntimeError("CUDA error: device-side failure: GPU has fallen off the bus\nmore lines")
            if self.mood == "always" or not os.path.exists(f"{self.marks}/{unit.cell}-{unit.start}"):
                open(f"{self.marks}/{unit.cell}-{unit.start}", "w").close()
                os._exit(9)
        return super().compute(unit)


def moody(tmp_path, mood):
    exp = experiment(30)
    marks = tmp_path / "marks"
    marks.mkdir()
    return Moody(**{f.name: getattr(exp, f.name) for f in dataclasses.fields(exp)}, marks=str(marks), mood=mood)


def test_a_unit_whose_worker_dies_is_computed_by_another(tmp_path):
    exp = moody(tmp_path, "dies")
    store = finish(exp, run.open_store(exp, tmp_path / "r"), partial(local.execute, devices=["cpu", "cpu"]))
    assert os.listdir(tmp_path / "marks"), "some workers did die"
    assert same_rows(store, finish(experiment(30), run.open_store(experiment(30), None)))


@pytest.mark.parametrize(
    "mood, devices, words",
    [
        ("always", ["cpu", "cpu"], r"permutations \d+ to \d+ failed on cpu:\d: its process ended 3 times \(exit code 9\)"),
        ("gpu", ["cpu", "cpu"], r"failed on cpu: RuntimeError: CUDA error: device-side failure: GPU has fallen off the bus\. Every"),
        ("gpu", None, r"simulated-text x simulated-audio-\d, permutations \d+ to \d+ failed on this machine: RuntimeError: CUDA error"),
    ],
)
def test_a_device_that_disappears_is_named_and_nothing_is_lost(tmp_path, mood, devices, words):
    exp = moody(tmp_path, mood)
    store = run.open_store(exp, tmp_path / "r")

    def small(task, work, pace):
        return local.execute(task, work, Pace(4, 4), devices)

    with pytest.raises(WorkerError, match=words + r".*--resume"):
        finish(exp, store, small)
    kept = store.done()
    assert kept and all(store.damage(u) is None for u in kept)
    plain = experiment(30)
    finish(plain, run.open_store(plain, tmp_path / "r", resume=True))
    assert same_rows(store, finish(plain, run.open_store(plain, None)))


def test_an_abandoned_run_leaves_no_process_and_no_lock(tmp_path):
    exp = experiment(59)
    steps = run.execute(exp, run.open_store(exp, tmp_path / "r"), partial(local.execute, devices=["cpu", "cpu"]))
    next(steps), next(steps)
    import multiprocessing

    assert len(multiprocessing.active_children()) == 2
    start = time.monotonic()
    steps.close()
    assert time.monotonic() - start < 5 and not multiprocessing.active_children()
    assert "run.lock" not in os.listdir(tmp_path / "r")


def test_workers_map_the_experiment_instead_of_copying_it(tmp_path):
    value = {"large": np.arange(10**5, dtype=np.float64), "empty": np.zeros(0), "name": "x"}
    local.dump(value, tmp_path / "x")
    back = local.load(tmp_path / "x")
    assert np.array_equal(back["large"], value["large"]) and back["empty"].shape == (0,) and back["name"] == "x"
    assert not back["large"].flags.owndata and not back["large"].flags.writeable
    exp = experiment(5)
    assert len(pickle.dumps(Task(exp))) > 0


def test_devices_are_named_or_refused():
    assert local.device_names("cpu, cpu", "reference") == ["cpu", "cpu"]
    assert local.device_names(None, "reference") == [] and local.device_names(None, "torch", "cpu") == []
    with pytest.raises(InputError, match="must name devices of this machine \\(cpu.*; got 'cuda:77'"):
        local.device_names("77", "torch")
    with pytest.raises(InputError, match="name the same thing"):
        local.device_names("0", "torch", "cuda")


def test_ray_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    from fastprobe.runs.engines import ray

    exp = experiment(5)
    with pytest.raises(InputError, match=r"needs the package .ray., which is not installed: pip install .fastprobe\[ray\]."):
        finish(exp, run.open_store(exp, tmp_path / "r"), ray.execute)


def test_library_errors_pass_through_the_engine():
    exp = experiment(5)
    exp = dataclasses.replace(exp, request=dataclasses.replace(exp.request, device="cuda:99"))
    exp = dataclasses.replace(exp, backend="torch")
    with pytest.raises(BackendUnavailableError, match="cuda:99"):
        finish(exp, run.open_store(exp, None), local.execute)


def test_a_program_that_ends_after_an_early_stop_ends_well():
    """A unit handed out ahead is still computed when the last line of such a program has run."""
    code = (
        "import fastprobe as fp\nfrom fastprobe.tables.simulate import simulate_pair\n"
        "text, audio = simulate_pair([f'class {i}' for i in range(60)], alignment=0.0)\n"
        "fp.permutation_test(text, audio, permutations=500, splits=2, stop='besag-clifford:h=5', statistic='mrr', backend='cpp')\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
