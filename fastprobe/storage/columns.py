"""Columns between NumPy and Arrow by their memory.

pyarrow's own conversions import pandas wherever it is installed, a quarter of a second for every command that opens a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def to_arrow(values: Any) -> pa.Array:
    """A column as Arrow has it, sharing its memory where that is contiguous; what is no plain numbers is returned as it is.

    Examples
    --------
    >>> to_arrow(np.array([1.5, 2.5])).to_pylist()
    [1.5, 2.5]
    """
    import pyarrow as pa

    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuf" or not values.dtype.isnative:
        return values
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def words(values: Sequence[str]) -> pa.Array:
    """Text as Arrow has it.

    Examples
    --------
    >>> words(["dog", "Küchenuhr"]).to_pylist()
    ['dog', 'Küchenuhr']
    """
    import pyarrow as pa

    encoded = [str(v).encode() for v in values]
    ends = np.cumsum([0, *map(len, encoded)])
    if ends[-1] > np.iinfo(np.int32).max:  # more than one array of 32-bit positions holds
        return pa.array(values, pa.large_string())
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded)))


def repeated(value: str, times: int) -> pa.Array:
    """The same text in every row."""
    return words([value]).take(to_arrow(np.zeros(times, np.int32)))


def to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column as NumPy has it; a copy where it lies in several chunks, holds nulls, or is not of plain numbers.

    Examples
    --------
    >>> import pyarrow as pa
    >>> to_numpy(pa.chunked_array([[1, 2], [3]])).tolist()
    [1, 2, 3]
    """
    import pyarrow as pa

    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not plain or not chunks or any(c.null_count for c in chunks):
        return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    parts = [np.from_dlpack(c) for c in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
