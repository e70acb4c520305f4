"""The demo: what it finds in the tables that come with fastprobe, and that its words say no more than its numbers."""

from __future__ import annotations

import json

import pytest

from fastprobe.cli.demo import meaning


def test_demo_finds_the_models_and_not_the_shuffled_table(shell, tmp_path):
    done = shell("demo", "--out", "d", "--permutations", "40", "--splits", "3")
    assert done.returncode == 0, done.stderr
    records = {r["text"]: r for r in json.loads((tmp_path / "d/summary.json").read_text())["pairs"]}
    assert set(records) == {"minilm", "word2vec", "char-ngrams", "minilm-shuffled"}
    assert records["minilm"]["pvalue_maxT"] == records["word2vec"]["pvalue_maxT"] == 1 / 41
    assert records["minilm-shuffled"]["pvalue_maxT"] > 0.05
    assert records["minilm"]["statistic"] > records["char-ngrams"]["statistic"] > records["minilm-shuffled"]["null_mean"]
    assert done.stdout.startswith("WHAT CAME OUT") and done.stdout.index("minilm and word2vec") < done.stdout.index("acc@3")
    assert "720 real recordings of 60 kinds" in done.stderr and "fastprobe report d" in done.stderr


def test_demo_without_permutations_claims_nothing(shell):
    done = shell("demo", "--out", "d", "--permutations", "0", "--splits", "1", "-q")
    assert done.returncode == 0, done.stderr
    assert "nothing to compare" in done.stdout and "WHAT CAME OUT" not in done.stdout and not done.stderr.startswith("Does")


def summary(**pvalues):
    """Four pairs with these p-values, 0.5 for the others."""
    names = ("minilm", "word2vec", "char-ngrams", "minilm-shuffled")
    pairs = []
    for i, name in enumerate(names):
        p = pvalues.get(name.replace("-", "_"), 0.5)
        pairs.append(
            {
                "text": name,
                "metric": "acc@3",
                "chance": 0.05,
                "statistic": 0.1 * (i + 1),
                "null_mean": 0.034,
                "pvalue": p,
                "pvalue_maxT": p,
                "n_permutations": 99,
            }
        )
    return {"pairs": pairs}


@pytest.mark.parametrize(
    ("pvalues", "said", "unsaid"),
    [
        ({}, ["no evidence that these models", "Spelling alone gives no evidence", "nothing is found"], ["shufflings did as well"]),
        ({"minilm": 0.01}, ["So minilm arranges", "none of 99 shufflings", "p = 0.01,"], ["word2vec arrange", "and word2vec"]),
        ({"minilm": 0.01, "word2vec": 0.04}, ["minilm and word2vec arrange names", "at most 3 of 99", "p = 0.04,"], ["none of"]),
        ({"char_ngrams": 0.01}, ["no evidence that these models", "Spelling carries over"], ["shufflings did as well"]),
        ({"minilm_shuffled": 0.01}, ["a false alarm"], ["nothing is found"]),
    ],
    ids=["nothing", "one model", "two models", "spelling", "false alarm"],
)
def test_words_follow_the_numbers(pvalues, said, unsaid):
    text = "\n".join(meaning(summary(**pvalues)))
    assert all(words in text for words in said), text
    assert not any(words in text for words in unsaid), text
    assert "first 3 of 60 in 10.0% by MiniLM" in text and "it is in 3.4%" in text
