"""Labels that nearly match are told apart in words, wherever a label is said to be lacking."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import InputError
from fastprobe.protocol.controls import groups_for
from fastprobe.protocol.covariates import covariates_of_file
from fastprobe.tables.embeddings import EmbeddingTable, check_labels
from fastprobe.tables.spelling import how_they_differ, near_misses

DAMAGE = {
    "Unicode form": lambda s: unicodedata.normalize("NFD", s),
    "spaces": lambda s: s + " ",
    "case": str.upper,
    "underscores or hyphens": lambda s: s.replace(" ", "_"),
}


@given(st.lists(st.sampled_from(sorted(DAMAGE)), min_size=1, unique=True))
def test_every_difference_is_named_and_no_other(kinds):
    label = damaged = "café door"
    for kind in kinds:
        damaged = DAMAGE[kind](damaged)
    assert sorted(how_they_differ(label, damaged)) == sorted(kinds)


def test_numbers_and_strangers():
    assert how_they_differ("7", "7.0") == ["the way a number is written"]
    assert how_they_differ("dog", "cat") == [] == how_they_differ("dog", "dog")
    assert near_misses(["owl"], ["dog"]) == "" and "'church bell'" in near_misses(["church bells"], ["church bell"])


@given(st.text(), st.lists(st.text(), max_size=4))
def test_any_text_will_do(label, present):
    said = near_misses([label], present)
    assert said == "" or (said.startswith(" ") and said.endswith("."))


@pytest.mark.parametrize("kind", DAMAGE)
def test_tables_groups_and_covariates_say_how_the_nearest_label_differs(kind, tmp_path):
    names = ["café door", "rain drop"]
    other = ["rain drop", DAMAGE[kind](names[0])]
    text, audio = (EmbeddingTable(np.eye(2, dtype="f4"), np.array(labels)) for labels in (names, other))
    (tmp_path / "c.csv").write_text("label,x\n" + "".join(f'"{n}",1\n' for n in other), "utf-8")
    for ask in (
        lambda: check_labels(text, audio),
        lambda: groups_for(dict.fromkeys(other, "a"), None, np.array(names)),
        # Files of columns are read without the spaces around a label.
        *([lambda: covariates_of_file(tmp_path / "c.csv", names)] if kind != "spaces" else []),
    ):
        with pytest.raises(InputError, match=f"is there as .*differs in {kind}"):
            ask()
