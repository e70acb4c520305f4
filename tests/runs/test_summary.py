"""Controls, families and stopping rules, through a whole run."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from fastprobe.errors import InputError, StoreError
from fastprobe.protocol.config import ProbeConfig
from fastprobe.runs import experiment as fpexperiment
from fastprobe.runs import run as fprun
from fastprobe.runs.run import permutation_test
from fastprobe.runs.store import read_manifest
from fastprobe.statistics.significance import confidence_sequence, pvalue_interval
from fastprobe.tables.embeddings import EmbeddingTable
from fastprobe.tables.simulate import simulate_pair

NAMES = [f"class {i:02d}" for i in range(14)]
QUICK = ProbeConfig(dim=8, steps=4, sampling="centroid")
COMMON = {"probe": QUICK, "splits": 2, "backend": "reference", "k": (1, 2), "baselines": False}


def tables(alignment=0.9, seed=0, number=0, name="audio"):
    text, audio = simulate_pair(NAMES, alignment=alignment, clips=4, text_width=12, audio_width=10, seed=seed, number=number)
    audio.meta["name"] = name
    return text, audio


def test_summary_states_every_adjustment_and_its_families(tmp_path):
    text, planted = tables(name="planted")
    _, null = tables(0.0, number=1, name="null")
    fp_results = permutation_test(text, [planted, null], permutations=39, statistic="acc@2", out=tmp_path / "r", **COMMON)
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert [f["name"] for f in summary["families"]] == ["all pairs, acc@2", "all pairs and all k"]
    assert [f["n_tests"] for f in summary["families"]] == [2, 4]
    for record, result, test in zip(summary["pairs"], fp_results, summary["families"][0]["tests"]):
        assert record["pvalue_maxT"] == test["pvalue_maxT"] == result.pvalue_max_t
        assert record["pvalue"] <= record["pvalue_stepdown"] <= record["pvalue_maxT"]
        assert record["selectivity"] == pytest.approx(record["statistic"] - record["null_mean"])


def test_best_layer_family_appears_when_layers_are_given(tmp_path):
    audio = tables()[1]
    layered = []
    for layer in range(3):
        t, _ = tables(seed=layer)
        layered.append(EmbeddingTable(t.vectors, t.labels, meta={"name": f"gpt-L{layer}", "model": "gpt", "layer": layer}))
    permutation_test(layered, audio, permutations=19, statistic="mean_log_rank", out=tmp_path / "r", **COMMON)
    family = json.loads((tmp_path / "r/summary.json").read_text())["families"][-1]
    assert family["name"] == "best layer of each model" and family["n_tests"] == 1
    assert family["tests"][0]["test"] == "gpt x audio" and family["tests"][0]["pair"].startswith("gpt-L")


def test_tail_is_printed_beside_the_exact_pvalue(tmp_path):
    text, audio = tables()
    result = permutation_test(text, audio, permutations=520, statistic="mean_log_rank", out=tmp_path / "r", **COMMON)
    record = json.loads((tmp_path / "r/summary.json").read_text())["pairs"][0]
    assert record["pvalue"] == result.pvalue < 0.1 and 0 < record["tail"]["pvalue"] < 0.1
    permutation_test(text, audio, permutations=5, statistic="acc@2", out=tmp_path / "d", **COMMON)
    assert "tail" not in json.loads((tmp_path / "d/summary.json").read_text())["pairs"][0], "accuracies have atoms"


def test_within_groups_of_two_every_relabelling_is_listed(tmp_path):
    text, audio = tables()
    groups = {name: str(min(i // 2, 3)) for i, name in enumerate(NAMES)}  # 2, 2, 2 and 8 classes
    some = permutation_test(text, audio, permutations=30, control="permute-within", groups=groups, **COMMON)
    assert some.n_permutations == 30 and some.drawn == "fixed"
    small = {name: ("rest-" + name if i > 5 else str(i // 2)) for i, name in enumerate(NAMES)}
    few = permutation_test(text, audio, permutations=500, control="permute-within", groups=small, out=tmp_path / "r", **COMMON)
    assert few.n_permutations == 7 and few.drawn == "all" and few.confidence_interval() == (few.pvalue, few.pvalue)
    identity = read_manifest(tmp_path / "r")["identity"]
    assert identity["distinct_permutations"] == 8 and identity["enumerated"] is True
    with pytest.raises(InputError, match="distinct permutations listed"):
        permutation_test(text, audio, permutations=500, control="permute-within", groups=small, stop="anytime:alpha=0.05", **COMMON)


def test_frozen_trains_once_and_agrees_with_the_loop_over_permuted_galleries():
    text, audio = tables()
    experiment = fprun.prepare(text, audio, permutations=5, control="frozen", **{**COMMON, "splits": 1})
    columns = experiment.compute(fprun.Unit(0, 0, 6))
    assert len(set(columns["loss"])) == 1, "one training"
    from fastprobe.kernels import reference
    from fastprobe.protocol.controls import frozen_permutations

    batch = experiment.batch(0, 0, 0, 0, 1)
    result = reference.train(batch, heads=True)
    test = experiment.split(0).test
    for b in range(6):
        gallery = np.arange(14)
        gallery[test] = frozen_permutations(0, 0, b, b + 1, test)[0]
        a = reference.norm(batch.text[gallery] @ result.text_heads[0])[0]
        q = reference.norm(batch.audio[batch.queries] @ result.audio_heads[0])[0]
        ranks = reference.ranks(a, q, batch.labels[batch.queries])
        assert columns["mean_rank_micro"][b] == pytest.approx(ranks.mean())
    with pytest.raises(InputError, match="one split at a time"):
        fprun.prepare(text, audio, permutations=5, control="frozen", **COMMON)


def test_frozen_keeps_its_level():
    rejected = 0
    for study in range(100):
        text, audio = tables(0.0, seed=study, number=study)
        rejected += (
            permutation_test(
                text, audio, permutations=19, control="frozen", statistic="mean_log_rank", seed=study, **{**COMMON, "splits": 1}
            ).pvalue
            <= 0.05
        )
    assert rejected <= binom.ppf(0.999, 100, 0.05)


def test_gaussian_replaces_the_texts_of_every_replicate_but_the_observed():
    text, audio = tables()
    plain = permutation_test(text, audio, permutations=4, **COMMON, statistic="acc@2")
    gaussian = permutation_test(text, audio, permutations=30, control="gaussian", **COMMON, statistic="acc@2")
    assert gaussian.statistic == plain.statistic and gaussian.null_mean < gaussian.statistic
    experiment = fprun.prepare(text, audio, permutations=6, control="gaussian", **COMMON)
    whole, part = experiment.compute(fprun.Unit(0, 0, 7)), experiment.compute(fprun.Unit(0, 3, 5))
    for name in ("loss", "mean_rank"):  # a function of the permutation's number alone
        np.testing.assert_array_equal(whole[name].reshape(7, -1)[3:5], part[name].reshape(2, -1))


@pytest.mark.parametrize("stop,found", [("besag-clifford:h=5", "null"), ("anytime:alpha=0.05", "null"), ("anytime:alpha=0.05", "planted")])
def test_a_run_stops_by_its_rule_wherever_the_units_end(stop, found, tmp_path, monkeypatch):
    text, audio = tables(0.0 if found == "null" else 1.0)
    kwargs = {**COMMON, "permutations": 400, "stop": stop, "statistic": "mean_log_rank"}
    result = permutation_test(text, audio, out=tmp_path / "a", **kwargs)
    manifest = read_manifest(tmp_path / "a")
    assert manifest["stopped"] and manifest["permutations"] == result.n_permutations < 400
    assert manifest["permutations_at_most"] == 400 and manifest["identity"]["stop"].startswith(stop)
    assert result.drawn == "stopped"
    rule = json.loads((tmp_path / "a/summary.json").read_text())["pvalue_rule"]
    assert ("5/t" in rule) == stop.startswith("besag") and ("anytime" in rule) == stop.startswith("anytime")
    assert result.confidence_interval() == confidence_sequence(result.n_exceed, result.n_permutations)
    assert (result.pvalue <= 0.05) == (found == "planted")
    monkeypatch.setattr(fpexperiment, "MAX_UNIT", 7)
    again = permutation_test(text, audio, out=tmp_path / "b", **kwargs)
    assert (again.pvalue, again.n_permutations) == (result.pvalue, result.n_permutations)
    np.testing.assert_array_equal(again.null_distribution, result.null_distribution)


def test_a_stopped_family_resumes_to_the_same_answer(tmp_path):
    text, planted = tables(1.0, name="planted")
    _, null = tables(0.0, number=1, name="null")
    kwargs = {**COMMON, "permutations": 300, "stop": "besag-clifford:h=4,burn_in=20", "statistic": "mean_log_rank", "seed": 3}
    experiment = fprun.prepare(text, [planted, null], **kwargs)
    store = fprun.open_store(experiment, tmp_path / "r")
    assert read_manifest(tmp_path / "r")["identity"]["stop"] == "besag-clifford:h=4,burn_in=20", "declared before the first"
    steps = fprun.execute(experiment, store)
    for _ in range(3):
        next(steps)
    steps.close()
    resumed = permutation_test(text, [planted, null], out=tmp_path / "r", resume=True, **kwargs)
    fresh = permutation_test(text, [planted, null], out=tmp_path / "f", **kwargs)
    assert [r.pvalue_max_t for r in resumed] == [r.pvalue_max_t for r in fresh]
    assert (tmp_path / "r/summary.json").read_bytes() == (tmp_path / "f/summary.json").read_bytes()
    with pytest.raises(StoreError, match="`stop`"):
        permutation_test(text, [planted, null], out=tmp_path / "r", resume=True, **{**kwargs, "stop": "besag-clifford:h=9"})


@pytest.mark.parametrize("stop", ["besag-clifford:h=4,burn_in=20", "anytime:alpha=0.05,burn_in=20"])
def test_p_and_interval_of_each_pair_of_a_stopped_family_count_the_same_permutations(stop):
    """The null pair's own rule fires first; the run goes on for the other."""
    text, planted = tables(1.0, name="planted")
    nulls = [tables(0.0, number=i, name=f"null{i}")[1] for i in (1, 2)]
    results = permutation_test(text, [planted, *nulls], permutations=300, stop=stop, statistic="mean_log_rank", seed=3, **COMMON)
    assert min(r.n_counted for r in results) < max(r.n_counted for r in results) <= results[0].n_permutations
    for r in results:
        counted = -r.null_distribution[: r.n_counted] >= -r.statistic
        low, high = r.confidence_interval()
        assert (low, high) == confidence_sequence(int(counted.sum()), r.n_counted)
        assert low <= r.pvalue <= high


def test_a_fixed_number_has_clopper_pearson(tmp_path):
    text, audio = tables(0.3)
    result = permutation_test(text, audio, permutations=60, **COMMON)
    assert result.drawn == "fixed" and result.confidence_interval() == pvalue_interval(result.n_exceed, 60)


def test_type_one_error_of_a_whole_run():
    """The planted alignment is zero: p <= .1 in at most a tenth of the runs (binomial bound)."""
    rejected = sum(
        permutation_test(*tables(0.0, seed=s, number=s), permutations=19, statistic="mean_log_rank", seed=s, **COMMON).pvalue <= 0.1
        for s in range(50)
    )
    assert rejected <= binom.ppf(0.999, 50, 0.1)


def test_bad_combinations_are_named():
    text, audio = tables()
    for kwargs, match in (
        ({"control": "permute-within"}, "needs `groups`"),
        ({"groups": {"a": "b"}}, "belongs to"),
        ({"control": "permute-within", "groups": {"a": "b"}}, "lacks 14 of 14"),
        ({"control": "permute-within", "groups": "x.csv"}, "`within`"),
        ({"control": "permute-within", "groups": ["a"]}, "one entry for each of the 14"),
        ({"stop": "soon"}, "besag-clifford"),
        ({"control": "magic"}, "must be one of"),
    ):
        with pytest.raises(InputError, match=match):
            permutation_test(text, audio, permutations=5, **COMMON, **kwargs)
