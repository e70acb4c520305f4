"""`fastprobe plan`: arithmetic that can be checked, measurements that are at least possible."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fastprobe.cli.app import app
from fastprobe.errors import InputError
from fastprobe.protocol.plan import Unit
from fastprobe.runs.experiment import prepare
from fastprobe.runs.forecast import describe, plan_run
from fastprobe.runs.run import execute, open_store
from fastprobe.statistics.power import EXCESS, simulate_power
from fastprobe.tables.simulate import simulate_pair
from support.small_runs import experiment, save_tables, tables

STUDIES = 150


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
    again = simulate_power(0.5, found.null_sd, 199, 0.1, 2, excess=EXCESS)
    assert found.power.power == pytest.approx(again.power, abs=0.05)  # which knows nothing of the null's skewness


@pytest.mark.parametrize(("statistic", "effect"), [("acc@3", 0.09), ("mean_log_rank", 0.35), ("mrr", 0.06)])
def test_the_predicted_power_is_that_of_studies_carried_out(statistic, effect):
    """150 data sets of 30 classes with 99 permutations each: what 20 of them foretell, against the share of all that reject."""
    names, predicted, found, gains = [f"class {i}" for i in range(30)], [], [], []
    for seed in range(STUDIES):
        text, audio = simulate_pair(names, alignment=0.5, clips=8, text_width=48, audio_width=32, seed=seed)
        chosen = prepare(text, audio, permutations=99, probe="procrustes", statistic=statistic, baselines=False, seed=seed)
        column = "acc@3_macro" if statistic == "acc@3" else statistic
        t = chosen.compute(Unit(0, 0, 100))[column].reshape(100, -1).mean(axis=1)
        t = -t if statistic == "mean_log_rank" else t
        gains.append(t[0] - t[1:].mean())
        found.append((1 + np.sum(t[1:] >= t[0])) / 100 <= 0.05)
        if seed < 20:
            predicted.append([plan_run(chosen, effect=e, seconds=60).power.power for e in (effect, 1.1 * effect)])
    low, high = np.mean(predicted, axis=0)
    foretold = low + (high - low) * (np.mean(gains) - effect) / (0.1 * effect)  # at the effect that these data sets have on average
    print(statistic, foretold, np.mean(found))
    assert foretold == pytest.approx(np.mean(found), abs=0.03 + 2 * np.sqrt(0.2 / STUDIES))


def test_splits_buy_power_and_the_calibration_knows_how_much():
    """The sd at 20 splits, foretold from 5, is that of 20 splits."""
    few = plan_run(experiment(300, splits=5, statistic="mean_log_rank"), effect=0.3, seconds=60)
    many = plan_run(experiment(300, splits=20, statistic="mean_log_rank"), seconds=60)
    foretold = {s.n_splits: s for s in few.by_splits}
    assert sorted(foretold) == [5, 10, 20] and foretold[5].null_sd == pytest.approx(few.null_sd)
    assert foretold[20].null_sd == pytest.approx(many.null_sd, rel=0.25)
    assert foretold[5].power < foretold[10].power < foretold[20].power
    assert few.icc == pytest.approx(many.icc, abs=0.15)


def test_the_advice_names_what_to_change():
    told = "\n".join(describe(plan_run(experiment(39), seconds=0.2)))
    assert "permutations buy resolution: p <= 0.05 needs 19" in told and "about 199" in told and "39 are planned" in told
    assert "statistic: mean_log_rank usually finds more" in told and "splits buy power: 2: sd" in told
    told = "\n".join(describe(plan_run(experiment(5000, statistic="mean_log_rank"), seconds=0.2)))
    assert "199 would decide as well" in told and "25 times the splits" in told and "statistic:" not in told
    assert "permutations buy" not in "\n".join(describe(plan_run(experiment(999), seconds=0.2)))
    assert plan_run(experiment(39, splits=1), seconds=0.2).by_splits == ()


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
    assert "adjusted for" not in " ".join(lines)


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
