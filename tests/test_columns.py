"""Columns pass between NumPy and Arrow unchanged, whatever they hold and however they lie."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastprobe.storage.columns import repeated, to_arrow, to_numpy, words

NUMBERS = st.sampled_from(["i1", "u2", "i4", "i8", "f2", "f4", "f8", ">f4", "?"]).flatmap(lambda d: hnp.arrays(d, st.integers(0, 20)))


@given(NUMBERS, st.integers(1, 3))
def test_there_and_back(values, step):
    values = values[::step]
    got = pa.array(to_arrow(values) if values.dtype.isnative else values.astype(values.dtype.newbyteorder("=")))
    assert got.equals(pa.array(values.astype(values.dtype.newbyteorder("=")))) or np.isnan(values).any()
    np.testing.assert_array_equal(to_numpy(got), values)


@given(st.lists(hnp.arrays("f4", st.integers(0, 5)), max_size=4))
def test_chunks_are_joined(parts):
    column = pa.chunked_array([pa.array(p) for p in parts], type=pa.float32())
    np.testing.assert_array_equal(to_numpy(column), np.concatenate([np.empty(0, "f4"), *parts]))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.text(max_size=3), st.integers(0, 4))
def test_words_are_those_of_arrow(values, one, times):
    got = words(values)
    got.validate(full=True)
    assert got.equals(pa.array(values, pa.string())) and repeated(one, times).equals(pa.array([one] * times, pa.string()))


def test_nulls_slices_and_words():
    assert np.isnan(to_numpy(pa.array([1, None, 3]))).tolist() == [False, True, False]
    assert to_numpy(pa.array([1, 2, 3, 4])[1:3]).tolist() == [2, 3]
    assert to_numpy(pa.array(["a", "b"])).tolist() == ["a", "b"] and to_numpy(pa.array([True, False])).tolist() == [True, False]
    text = np.array(["a"])
    assert to_arrow(text) is text
