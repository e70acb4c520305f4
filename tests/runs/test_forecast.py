"""`fastprobe plan`: arithmetic that can be checked, measurements that are at least possible."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fastprobe.cli.app import app
from fastprobe.errors import InputError
from fastprobe.runs.forecast import describe, plan_run
from fastprobe.runs.run import execute, open_store
from fastprobe.statistics.power import simulate_power
from support.small_runs import experiment, save_tables, tables


def test_a_plan_counts_what_the_run_will_train():
    chosen = experiment(999, seeds=2)
    found = plan_run(chosen, seconds=0.2)
    assert found.n_probes == chosen.plan.n_jobs == 2 * 2 * 2 * 1000
    assert found.smallest_pvalue == 1e-3 and found.permutations_for_alpha == 19
    assert found.seconds == pytest.approx(found.seconds_per_probe * found.n_probes) and found.seconds > 0
    assert found.memory_bytes > 10e6 and found.calibration_permutations >= 1


def test_no_power_without_an_effect():
    found = plan_run(experiment(199), seconds=0.2)
    assert found.power is None and found.effect is None and found.null_sd > 0
    assert any(line.startswith("power: name the gain") and f"{found.null_sd:.3g}" in line for line in describe(found))


def test_power_is_that_of_the_measured_null():
    chosen = experiment(199, statistic="mean_log_rank")
    found = plan_run(chosen, effect=0.5, alpha=0.1, seconds=0.2)
    assert found.power.null_sd == found.null_sd > 0 and found.power.n_tests == 2 and found.power.alpha == 0.1
    again = simulate_power(0.5, found.null_sd, 199, 0.1, 2)
    assert found.power.power == pytest.approx(again.power, abs=5 * max(again.standard_error, 1e-3))


def test_the_null_sd_is_that_of_the_first_permutations():
    chosen = experiment(60, statistic="mean_log_rank")
    found = plan_run(chosen, seconds=0.5)
    store = open_store(chosen, None)
    for _ in execute(chosen, store):
        pass
    t = store.replicates(["mean_log_rank"], chosen.plan)[0]["mean_log_rank"][0]
    assert found.null_sd == pytest.approx(np.std(t[1 : found.calibration_permutations + 1], ddof=1))


def test_disk_is_of_the_right_size(tmp_path):
    chosen = experiment(2000)
    found = plan_run(chosen, seconds=0.3)
    store = open_store(chosen, tmp_path / "r")
    for _ in execute(chosen, store):
        pass
    size = sum(p.stat().st_size for p in (tmp_path / "r" / "results").iterdir())
    assert 0.3 * size < found.disk_bytes < 4 * size


def test_the_shell_prints_it_and_gives_json(tmp_path):
    arguments = [
        "plan",
        *save_tables(tmp_path),
        "--permutations",
        "99",
        "--train-fraction",
        "0.5",
        "--seconds",
        "0.2",
        "--dim",
        "2",
        "--steps",
        "2",
        "--backend",
        "reference",
    ]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    for word in ("smallest p within reach: 0.01", "1,000 probes", "time: about", "memory: about", "disk: about", "power:"):
        assert word in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).output)
    assert found["n_probes"] == 1000 and found["smallest_pvalue"] == 0.01


def test_bad_input_is_named():
    for chosen, kwargs, match in (
        (experiment(0), {}, "`permutations`"),
        (experiment(9), {"alpha": 0.0}, "`alpha`"),
        (experiment(9), {"seconds": 0.0}, "`seconds`"),
    ):
        with pytest.raises(InputError, match=match):
            plan_run(chosen, **kwargs)


def test_sentences_fit_one_pair_too():
    text, audio = tables(1)
    lines = describe(plan_run(experiment(19, text=text, audio=audio), seconds=0.1))
    assert len(lines) == 5 and "adjusted" not in " ".join(lines)


def test_a_plan_knows_the_control_and_the_rule(tmp_path):
    arguments = [
        "plan",
        *save_tables(tmp_path, 1),
        "--permutations",
        "99",
        "--train-fraction",
        "0.5",
        "--seconds",
        "0.2",
        "--dim",
        "2",
        "--steps",
        "2",
        "--backend",
        "reference",
        "--control",
        "frozen",
        "--splits",
        "1",
        "--stop",
        "besag-clifford:h=5",
    ]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0 and "control: frozen" in shown.output and "stop: besag-clifford:h=5" in shown.output
    with pytest.raises(InputError, match="valid for one split"):
        app([*arguments, "--splits", "2"], standalone_mode=False)


def test_values_have_the_statistics_own_sign():
    chosen = experiment(19, statistic="mean_rank")
    found = plan_run(chosen, seconds=0.1)
    assert 1 <= found.observed <= chosen.n_classes and 1 <= found.null_mean <= chosen.n_classes
