"""The covariates of a run: whatever was given, as one design."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..extract.names import natural_name
from ..extract.ngrams import MODEL, char_ngrams
from ..protocol.covariates import (
    Design,
    check_leverage,
    components,
    covariate_columns,
    covariates_of_file,
    cut_into_bins,
    design,
)
from ..tables.embeddings import SUFFIXES, EmbeddingTable
from ..tables.spelling import near_misses
from ..tables.vocabulary import read_csv

# What pandas.cut calls its bins.
_BIN = re.compile(r"[\[(]\s*[-+]?[\d.]+(e[-+]?\d+)?\s*,\s*[-+]?([\d.]+(e[-+]?\d+)?|inf)\s*[\])]")


def read_design(given: Sequence[Any], classes: np.ndarray) -> Design | None:
    """One design of all covariates that a run was given; None where it was given none.

    Parameters
    ----------
    given : sequence of path, mapping, Design
        A path may end in ":components=N", for a table.
    classes : str (C,)
        Ascending.

    Raises
    ------
    InputError
        What cannot be read, classes that lack a value, too many covariates for the classes.
    """
    if not given:
        return None
    found = [_columns(one, classes) for one in given]
    names = [name for part, _ in found for name in part]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"`covariates` has the column {twice[0]!r} twice. Give each once.")
    out = design(np.hstack([matrix for _, matrix in found]), names)
    if not out.degrees_of_freedom:
        raise InputError("`covariates` must vary over the classes; all columns are constant. Leave them out.")
    check_leverage(out, classes.tolist())
    return out


def _columns(given: Any, classes: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    if isinstance(given, Design):
        if len(given.matrix) != len(classes):
            raise InputError(f"`covariates` must have a row for each of the {len(classes)} classes; got {len(given.matrix)}.")
        return given.names, given.matrix
    if isinstance(given, EmbeddingTable):
        return _of_table(given, None, classes)
    if isinstance(given, Mapping):
        columns = {}
        for name, values in given.items():
            if isinstance(values, Mapping):
                if missing := [str(c) for c in classes if str(c) not in values]:
                    near = near_misses(missing, values)
                    raise InputError(f"`covariates` must have every class; {name!r} lacks {len(missing)}, such as {missing[:3]}.{near}")
                values = [values[str(c)] for c in classes]
            if len(values) != len(classes):
                raise InputError(f"`covariates` must have one value for each of the {len(classes)} classes; {name!r} has {len(values)}.")
            columns[str(name)] = values
        if not columns:
            raise InputError("`covariates` must have at least one column; got an empty mapping.")
        return covariate_columns(columns)
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"`covariates` must be a file, a table, or a mapping from column to values; got {type(given).__name__}.")
    path, _, count = os.fspath(given).partition(":components=")
    number = None
    if count:
        if not count.isdecimal():
            raise InputError(f"`components` must be a whole number of at least 1; got {count!r}.")
        number = int(count)
    if path == MODEL:
        return _of_table(char_ngrams([natural_name(str(c)) for c in classes]), number, classes, classes)
    if path.lower().endswith(SUFFIXES):
        return _of_table(EmbeddingTable.load(path), number, classes)
    if number is not None:
        raise InputError(f"`components` are taken of a table ({', '.join(SUFFIXES)}) or of {MODEL}; got {path!r}. Leave them out of a CSV.")
    return covariate_columns(covariates_of_file(path, classes.tolist()))


def _of_table(
    table: EmbeddingTable, number: int | None, classes: np.ndarray, labels: np.ndarray | None = None
) -> tuple[Sequence[str], np.ndarray]:
    labels = table.labels if labels is None else labels
    row = {str(label): i for i, label in enumerate(labels)}
    if len(row) < len(labels):
        raise InputError(f"`covariates` must give each label once; the table {table.name} has labels in several rows.")
    if missing := [str(c) for c in classes if str(c) not in row]:
        near = near_misses(missing, row)
        raise InputError(f"`covariates` must have every class; the table {table.name} lacks {len(missing)}, such as {missing[:3]}.{near}")
    vectors = table.vectors[[row[str(c)] for c in classes]]
    if number is None:
        if table.width >= len(classes):
            raise InputError(
                f"`covariates` must be fewer than the {len(classes)} classes; the table {table.name} has {table.width} columns. "
                f"Take its first components, as {table.name}:components=10."
            )
        return [f"{table.name}[{i}]" for i in range(table.width)], vectors.astype(np.float64)
    return [f"{table.name} component {i + 1}" for i in range(number)], components(vectors, number)


def binned(groups: np.ndarray, source: Any, within: str | None, classes: np.ndarray, covariates: Design | None) -> str | None:
    """The continuous covariate that the groups of ``permute-within`` are bins of, if they look like it.

    Parameters
    ----------
    groups : str (C,)
    source : Any
        What they were read from: of a file, the other columns are looked at too.
    """
    if all(_BIN.fullmatch(g.strip()) for g in groups.tolist()):
        return within or "groups"
    columns: dict[str, Sequence[Any]] = {}
    if isinstance(source, (str, os.PathLike)):
        rows = {row["label"]: row for row in read_csv(source, "groups", ("label",))}
        columns = {name: [rows[c][name] for c in classes.tolist()] for name in next(iter(rows.values())) if name not in ("label", within)}
    if covariates is not None:
        columns |= {name: covariates.matrix[:, i].tolist() for i, name in enumerate(covariates.names)}
    return cut_into_bins(groups, columns)
