"""Class labels and the words that stand for them: what a language model is given to read."""

from __future__ import annotations

import csv
import os
from functools import cache
from typing import NamedTuple

from ..errors import InputError
from ..storage import is_url, local_copy, local_path, suffix_of
from ..tables.embeddings import SUFFIXES, EmbeddingTable, first_few
from ..tables.vocabulary import read_csv


class ClassName(NamedTuple):
    """A class: its label, as the audio table spells it, and the name that is embedded."""

    label: str
    name: str


@cache
def fsd50k_vocabulary() -> dict[str, dict[str, str]]:
    """The 200 labels of FSD50K, each with its row of the packaged vocabulary (AudioSet name, parents, ...)."""
    return {row["label"]: row for row in read_csv("fsd50k", "classes", ("label", "audioset_name"))}


def natural_name(label: str) -> str:
    """The words for a label.

    A label of FSD50K becomes its AudioSet name in lower case (``Accelerating_and_revving_and_vroom`` ->
    ``accelerating, revving, vroom``). Any other label without a space is read as an identifier
    (``gun_shot`` -> ``gun shot``); one with spaces is already natural and kept.
    """
    label = label.strip()
    if row := fsd50k_vocabulary().get(label):
        return row["audioset_name"].lower()
    if " " in label:
        return label
    return " ".join(label.replace("_", " ").split()).lower() or label


def read_classes(path: str | os.PathLike) -> list[ClassName]:
    """The classes listed in a file, in its order.

    Parameters
    ----------
    path
        A text file with one label per line (empty lines and lines that start with ``#`` are skipped); a ``.csv``
        with a column ``label`` and perhaps ``name``, which then is what is embedded; or an embedding table,
        whose distinct labels are taken, sorted (so ``--classes audio.npz`` names exactly the classes of that table).

    Raises
    ------
    InputError
        No file, no class, a label twice, no column ``label``, an empty label, bytes that are not UTF-8.
    """
    if not is_url(path) and not local_path(path).is_file():
        raise InputError(
            f"`classes`: {path}: no such file. Give a text file with one label per line, a .csv with a column "
            "`label`, or an embedding table."
        )
    if suffix_of(path) in SUFFIXES:
        labels = sorted(set(EmbeddingTable.load(path).labels.tolist()))
        return [ClassName(label, natural_name(label)) for label in labels]
    try:
        with local_copy(path) as source:
            text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`classes`: {path}: not UTF-8 text (byte {error.start}). Save the list as UTF-8.") from None
    rows = (
        _csv_rows(path, text)
        if suffix_of(path) == ".csv"
        else [
            ClassName(line.strip(), natural_name(line)) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
        ]
    )
    if not rows:
        raise InputError(f"`classes`: {path}: holds no class. Write one label per line.")
    seen: set[str] = set()
    twice = []
    for row in rows:
        if row.label in seen:
            twice.append(row.label)
        seen.add(row.label)
    if twice:
        raise InputError(f"`classes`: {path}: each class must be listed once; listed again: {first_few(twice)}. Drop the copies.")
    return rows


def _csv_rows(path: str | os.PathLike, text: str) -> list[ClassName]:
    try:
        reader = csv.DictReader(text.splitlines())
        fields, lines = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise InputError(f"`classes`: {path}: cannot be read as CSV ({error}).") from None
    if "label" not in fields:
        raise InputError(f"`classes`: {path}: must have a column `label`; found {', '.join(fields) or 'nothing'}.")
    rows = []
    for number, row in enumerate(lines, start=2):
        label = (row["label"] or "").strip()
        if not label:
            raise InputError(f"`classes`: {path}: line {number} has an empty `label`. Fill it in or drop the line.")
        rows.append(ClassName(label, (row.get("name") or "").strip() or natural_name(label)))
    return rows
