"""Corpora on disk -> labelled clips: FSD50K, ESC-50, UrbanSound8K, a folder of folders, a CSV manifest.

A class is a leaf of FSD50K by the data set's own propagated ground truth (every label implies its ancestors):

    A is an ancestor of B  iff  every clip labelled B is labelled A, and not the other way round
    leaves = labels that are nobody's ancestor

taken over dev and eval together. (By the AudioSet ontology file alone 143 of the 200 are leaves; the data set says 144.)
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..tables.embeddings import first_few
from .names import fsd50k_vocabulary
from .sounds import AUDIO_SUFFIXES


class Clip(NamedTuple):
    """A labelled sound file."""

    path: str
    label: str
    id: str


@dataclass(frozen=True)
class Corpus:
    """Clips of a data set, and what a table's meta says of it."""

    clips: list[Clip]
    name: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def classes(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted({c.label for c in self.clips})

    def missing(self) -> list[str]:
        """Paths of the clips whose file is not there."""
        return [c.path for c in self.clips if not os.path.isfile(c.path)]


def _rows(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """The rows of a CSV that must have these columns."""
    if not path.is_file():
        raise InputError(f"{what}: {path} is missing. Give the folder that holds it, laid out as it is published.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if absent := [c for c in columns if c not in (reader.fieldnames or [])]:
                raise InputError(
                    f"{path}: must have the columns {', '.join(columns)}; {', '.join(absent)} is missing, found "
                    f"{', '.join(reader.fieldnames or []) or 'nothing'}."
                )
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV in UTF-8 ({error}).") from None
    for number, row in enumerate(rows, start=2):
        if short := [c for c in columns if not (row[c] or "").strip()]:
            raise InputError(f"{path}: line {number} has an empty `{short[0]}`. Fill it in or drop the line.")
    return rows


def find_leaves(label_sets: Sequence[Sequence[str]]) -> list[str]:
    """Labels that are nobody's ancestor, by the propagated labels of clips; sorted.

    Two labels that are on exactly the same clips imply each other: the packaged vocabulary's parents then decide, and where
    they are silent both stay.
    """
    names = sorted({x for labels in label_sets for x in labels})
    place = {n: i for i, n in enumerate(names)}
    present = np.zeros((len(label_sets), len(names)), dtype=np.float32)
    for row, labels in enumerate(label_sets):
        present[row, [place[x] for x in labels]] = 1
    together = present.T @ present
    count = np.diag(together)
    implied = (together == count[None, :]) & (count[:, None] > count[None, :])  # [a, b]: b implies a, a is wider
    same = (together == count[None, :]) & (count[:, None] == count[None, :]) & ~np.eye(len(names), dtype=bool)
    for a, b in np.argwhere(same):
        implied[a, b] = names[a] in _ancestors(names[b])
    return [n for n, above in zip(names, implied.any(axis=1)) if not above]


def _ancestors(label: str) -> set[str]:
    """Ancestors of a label by the packaged vocabulary."""
    vocabulary = fsd50k_vocabulary()
    by_mid = {row["mid"]: name for name, row in vocabulary.items()}
    found: set[str] = set()
    open_labels = [label]
    while open_labels:
        row = vocabulary.get(open_labels.pop())
        for mid in row["parent_mids"].split("|") if row else []:
            if (parent := by_mid.get(mid)) and parent not in found:
                found.add(parent)
                open_labels.append(parent)
    return found


def fsd50k(folder: str | os.PathLike, subset: str = "all", multi: str = "drop", leaves: str = "ground-truth") -> Corpus:
    """FSD50K (arXiv 2010.00475), as its archives unpack.

    Parameters
    ----------
    folder
        Holds ``FSD50K.ground_truth/{dev,eval}.csv`` and ``FSD50K.dev_audio/``, ``FSD50K.eval_audio/`` (one of the two is enough).
    subset
        ``dev``, ``eval``, ``all`` (what is there), or a half of dev: ``train``, ``val``.
    multi
        A clip with several leaf labels is dropped (``drop``), or stands once for each (``repeat``). One without any is dropped.
    leaves
        ``ground-truth`` (above) or ``ontology``.

    Raises
    ------
    InputError
        Files missing, an unknown choice, no clip left.
    """
    folder = Path(folder)
    for name, value, choices in (
        ("subset", subset, ("all", "dev", "eval", "train", "val")),
        ("multi", multi, ("drop", "repeat")),
        ("leaves", leaves, ("ground-truth", "ontology")),
    ):
        if value not in choices:
            raise InputError(f"`{name}` of fsd50k must be one of {', '.join(choices)}; got {value!r}.")
    truth = {part: folder / "FSD50K.ground_truth" / f"{part}.csv" for part in ("dev", "eval")}
    rows = {
        part: _rows(path, ("fname", "labels") + (("split",) if part == "dev" else ()), "fsd50k")
        for part, path in truth.items()
        if path.is_file()
    }
    if not rows:
        raise InputError(
            f"fsd50k: {folder} holds neither FSD50K.ground_truth/dev.csv nor eval.csv. Give the folder into which the "
            "archives of FSD50K were unpacked."
        )
    wanted = {"all": tuple(rows), "train": ("dev",), "val": ("dev",)}.get(subset, (subset,))
    if absent := [p for p in wanted if p not in rows]:
        raise InputError(f"fsd50k: `subset` {subset!r} needs {truth[absent[0]]}, which is missing.")
    split = {part: [[x.strip() for x in r["labels"].split(",") if x.strip()] for r in rows[part]] for part in rows}
    if leaves == "ontology":
        leaf = {name for name, row in fsd50k_vocabulary().items() if row["is_leaf_in_ontology"] == "1"}
    else:
        leaf = set(find_leaves([labels for part in rows for labels in split[part]]))
    clips, several, none = [], 0, 0
    for part in wanted:
        for row, labels in zip(rows[part], split[part]):
            if subset in ("train", "val") and row["split"] != subset:
                continue
            own = [x for x in dict.fromkeys(labels) if x in leaf]
            several, none = several + (len(own) > 1), none + (not own)
            path = str(folder / f"FSD50K.{part}_audio" / f"{row['fname']}.wav")
            if len(own) == 1:
                clips.append(Clip(path, own[0], row["fname"]))
            elif multi == "repeat":
                clips += [Clip(path, x, f"{row['fname']}#{x}") for x in own]
    if not clips:
        raise InputError(
            f"fsd50k: no clip of {folder} ({subset}) has exactly one leaf label ({several} have several, {none} none). "
            'With `multi`="repeat" those with several count for each.'
        )
    return Corpus(
        clips,
        "fsd50k",
        {
            "subset": subset,
            "leaves": leaves,
            "n_leaves": len(leaf),
            "multi": multi,
            "clips_with_several_leaves": several,
            "clips_without_leaf": none,
        },
    )


def esc50(folder: str | os.PathLike) -> Corpus:
    """ESC-50, as its repository lies on disk: ``meta/esc50.csv``, ``audio/``.

    Raises
    ------
    InputError
        Files missing or without the columns ``filename``, ``category``.
    """
    folder = Path(folder)
    rows = _rows(folder / "meta" / "esc50.csv", ("filename", "category"), "esc50")
    return _corpus([Clip(str(folder / "audio" / r["filename"]), r["category"], Path(r["filename"]).stem) for r in rows], "esc50", folder)


def urbansound8k(folder: str | os.PathLike) -> Corpus:
    """UrbanSound8K, as its archive unpacks: ``metadata/UrbanSound8K.csv``, ``audio/fold1`` ... ``fold10``.

    Raises
    ------
    InputError
        Files missing or without the columns ``slice_file_name``, ``fold``, ``class``.
    """
    folder = Path(folder)
    rows = _rows(folder / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fold", "class"), "urbansound8k")
    return _corpus(
        [
            Clip(str(folder / "audio" / f"fold{r['fold']}" / r["slice_file_name"]), r["class"], Path(r["slice_file_name"]).stem)
            for r in rows
        ],
        "urbansound8k",
        folder,
    )


def _corpus(clips: list[Clip], name: str | None, source: Path) -> Corpus:
    if not clips:
        raise InputError(f"{source}: holds no clip.")
    return Corpus(clips, name)


def from_folder(folder: str | os.PathLike) -> Corpus:
    """A folder with one subfolder per class; sound files anywhere below it are its clips.

    Raises
    ------
    InputError
        No folder, or no sound file in a subfolder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"`folder` must be a folder with one subfolder per class; {root} is not a folder.")
    clips = [
        Clip(str(path), path.relative_to(root).parts[0], path.relative_to(root).as_posix())
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and len(path.relative_to(root).parts) > 1
    ]
    if not clips:
        raise InputError(
            f"`folder` {root} has no sound file in a subfolder named after its class (looked for {', '.join(AUDIO_SUFFIXES)})."
        )
    return Corpus(clips, None, {"folder": str(root.resolve())})


def from_manifest(path: str | os.PathLike) -> Corpus:
    """A CSV with columns ``path``, ``label`` and perhaps ``id``; a relative path counts from the CSV's folder.

    Raises
    ------
    InputError
        A missing file or column, an empty field (with its line), the same id twice, no clip.
    """
    path = Path(path)
    rows = _rows(path, ("path", "label"), "`manifest`")
    clips = [Clip(str(path.parent / r["path"].strip()), r["label"].strip(), (r.get("id") or "").strip() or r["path"].strip()) for r in rows]
    if twice := [i for i, n in Counter(c.id for c in clips).items() if n > 1 and any(r.get("id") for r in rows)]:
        raise InputError(f"{path}: each `id` must be there once; found again: {first_few(twice)}. Correct them or drop the column.")
    return _corpus(clips, None, path)


DATASETS: dict[str, Callable[..., Corpus]] = {"fsd50k": fsd50k, "esc50": esc50, "urbansound8k": urbansound8k}


def load_dataset(name: str, folder: str | os.PathLike, **options: Any) -> Corpus:
    """A data set by its name; `options` go to its loader (fsd50k: `subset`, `multi`, `leaves`).

    Raises
    ------
    InputError
        An unknown name, an option the data set has not, and as its loader.
    """
    if name not in DATASETS:
        raise InputError(f"`dataset` must be one of {', '.join(DATASETS)}; got {name!r}. For other corpora give `folder` or `manifest`.")
    if not Path(folder).is_dir():
        raise InputError(f"`dataset` {name}: {folder} is not a folder. Give the folder the data set lies in.")
    options = {k: v for k, v in options.items() if v is not None}
    if options and name != "fsd50k":
        raise InputError(f"`{next(iter(options))}` is an option of fsd50k; got data set {name!r}. Leave it out.")
    return DATASETS[name](folder, **options)
