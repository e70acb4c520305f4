"""Embedding tables as Arrow has them: Parquet files, and frames of pandas, polars and others in memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..storage.columns import to_numpy

if TYPE_CHECKING:
    import pyarrow as pa

OWN = b"fastprobe"  # key of the meta in the schema of files that were written here
VECTOR, LABEL = "vector", "label"


class Columns(NamedTuple):
    """Which columns of a table hold the vectors and the labels; None for `vector` and `label`."""

    vector: str | None = None
    label: str | None = None


def split_location(path: Any) -> tuple[Any, Columns]:
    """A location as ``names.parquet#vector=embedding&label=text`` in its two parts; any other as it is.

    So a run's manifest, which records where each table lies, says too which of its columns were read.

    Examples
    --------
    >>> split_location("s3://bucket/names.parquet#vector=embedding&label=text")
    ('s3://bucket/names.parquet', Columns(vector='embedding', label='text'))
    >>> split_location("take#2.npz")
    ('take#2.npz', Columns(vector=None, label=None))
    """
    found = re.fullmatch(r"(.*\.parquet)#(?:vector=([^&]+))?&?(?:label=(.+))?", str(path), re.IGNORECASE | re.DOTALL)
    return (path, Columns()) if found is None else (found.group(1), Columns(found.group(2), found.group(3)))


def with_columns(path: Any, vector: str | None, label: str | None) -> Any:
    """A location that names its columns: the reverse of `split_location`. Only Parquet has any; other locations stay.

    Examples
    --------
    >>> with_columns("names.parquet", "embedding", None)
    'names.parquet#vector=embedding'
    """
    named = [f"{key}={value}" for key, value in (("vector", vector), ("label", label)) if value]
    return f"{path}#{'&'.join(named)}" if named and str(path).lower().endswith(".parquet") else path


def pick_columns(schema: pa.Schema, where: object, wanted: Columns = Columns()) -> tuple[str, str]:  # noqa: B008 (a tuple)
    """The columns of the vectors and of the labels.

    Parameters
    ----------
    schema : pyarrow.Schema
    where : str
        What messages call the table.
    wanted : Columns
        As the user named them. Files that fastprobe wrote have `vector` and `label` in any case, since a command may name
        the columns of another of its tables.

    Raises
    ------
    InputError
        A column is missing, or holds no lists; the message names the columns that it could be.
    """
    names = list(schema.names)
    own = OWN in (schema.metadata or {})
    picked = []
    missing = []
    for kind, given, default in (("vector", wanted.vector, VECTOR), ("label", wanted.label, LABEL)):
        name = default if given is None or (own and given not in names) else given
        picked.append(name)
        if name not in names:
            missing.append(_missing_column(schema, kind, name))
        elif names.count(name) > 1:
            missing.append(f"column `{name}` is there {names.count(name)} times: rename all but one.")
    if missing:
        raise InputError(f"{where}: {' '.join(missing)} Its columns: {', '.join(names) or 'none'}.")
    if not _is_list(kind := schema.field(picked[0]).type):
        raise InputError(f"{where}: column `{picked[0]}` must hold lists of numbers; got {kind}.")
    return picked[0], picked[1]


def _missing_column(schema: pa.Schema, kind: str, name: str) -> str:
    """What to say of a column that is not there: which others could be meant, and how to name one."""
    could = _candidates(schema, kind)
    option = f"--{kind}-column {could[0] if could else 'NAME'} (in the library {kind}_column={could[0] if could else 'NAME'!r})"
    if could:
        return f"column `{name}` is missing; the {kind}s could be in {' or '.join(f'`{c}`' for c in could)}: give {option}."
    what = "lists of numbers, a list per row" if kind == "vector" else "text or whole numbers"
    return f"column `{name}` is missing, and no column holds {what}. Write one, and name it `{name}` or give {option}."


def _candidates(schema: pa.Schema, kind: str) -> list[str]:
    """Columns whose type fits, those with a usual name first."""
    import pyarrow as pa

    def fits(type_: pa.DataType) -> bool:
        if kind == "vector":
            return _is_list(type_) and (pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type))
        return _is_text(type_.value_type if pa.types.is_dictionary(type_) else type_) or pa.types.is_integer(type_)

    usual = {"vector": ("embedding", "embeddings", "vectors"), "label": ("text", "name", "labels", "class", "category")}[kind]
    found = [f.name for f in schema if fits(f.type) and not f.name.startswith("__index_level")]
    return sorted(found, key=lambda name: (name.lower() not in usual, found.index(name)))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def vectors_of(column: pa.Array, where: object, name: str = VECTOR) -> np.ndarray:
    """A column of lists as a matrix, (n, D).

    Raises
    ------
    InputError
        Lists of several lengths, nulls, no numbers.
    """
    import pyarrow as pa

    widths = Counter(column.value_lengths().to_pylist())
    if len(widths) != 1 or None in widths or column.null_count:
        raise InputError(f"{where}: all vectors must have one width; got {dict(widths)}.")
    values = column.flatten()
    if values.null_count or not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"{where}: column `{name}` must hold numbers without nulls; got {column.type}.")
    return to_numpy(values).reshape(len(column), -1)


def class_names(schema: pa.Schema, name: str) -> list[str] | None:
    """Names that Hugging Face `datasets` keeps beside a column of class numbers (its `ClassLabel`), or None."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]
        return [str(n) for n in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def labels_of(column: pa.Array, names: list[str] | None) -> np.ndarray:
    """A column of labels as text, or as whole numbers where that is what it holds; a null as an empty label."""
    values = column.to_pylist()
    if names is not None:
        values = [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in values]
    if values and all(isinstance(v, int) for v in values):
        return np.asarray(values)
    return np.asarray(["" if v is None else str(v) for v in values], dtype=str)


def read_arrow(table: pa.Table, where: object, wanted: Columns = Columns()) -> tuple[np.ndarray, np.ndarray, Any]:  # noqa: B008
    """Vectors, labels and ids of an Arrow table; ids are those of a column `id`, if it has one.

    Raises
    ------
    InputError
        As `pick_columns` and `vectors_of`.
    """
    vector, label = pick_columns(table.schema, where, wanted)
    vectors = vectors_of(table[vector].combine_chunks(), where, vector) if len(table) else np.empty((0, 0))
    labels = labels_of(table[label], class_names(table.schema, label))
    ids = np.asarray([str(v) for v in table["id"].to_pylist()]) if "id" in table.column_names and label != "id" else None
    return vectors, labels, ids
