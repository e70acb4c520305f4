"""Small CSV files about classes, and the one that comes with fastprobe: the vocabulary of FSD50K."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from ..storage import local_copy

_FSD50K = Path(__file__).parent / "data" / "fsd50k_classes.csv"


def read_csv(path: str | os.PathLike, argument: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a small CSV in UTF-8, its cells stripped; "fsd50k" names the vocabulary that comes with fastprobe.

    Raises
    ------
    InputError
        Not a readable CSV, or without one of the `columns`; the message names `argument`.
    """
    with local_copy(_FSD50K if str(path) == "fsd50k" else path) as source:
        try:
            text = source.read_text("utf-8-sig")
            reader = csv.DictReader(io.StringIO(text, newline=""))
            rows, names = list(reader), [name or "" for name in reader.fieldnames or []]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"`{argument}`: {path} cannot be read as CSV ({why}).") from None
    for column in columns:
        if column not in names:
            raise InputError(f"`{argument}`: {path} has no column {column!r}; it has {', '.join(names) or 'none'}.")
    return [{name: (row[name] or "").strip() for name in names} for row in rows]
