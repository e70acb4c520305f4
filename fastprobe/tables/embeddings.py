"""`EmbeddingTable`: labelled vectors in memory, and what several tables must have in common. `formats` has their files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..randomness import CLIPS_KEPT, generator
from ..storage import is_url, local_copy, local_path, name_of, new_file
from .arrow import Columns, read_arrow, split_location
from .formats import FORMATS, suffix_of_table
from .formats import SUFFIXES as SUFFIXES  # whoever has tables asks here
from .spelling import near_misses

# Without ids a table makes them, so `ids` is None on the way in only, and its type says what everybody reads.
_ROW_NUMBERS: Any = None


def _on_cpu(values: Any) -> Any:
    """A PyTorch tensor as NumPy can read it: on the CPU, without its graph, in a type that NumPy has; anything else as it is."""
    if not (hasattr(values, "detach") and hasattr(values, "cpu")):
        return values
    values = values.detach().cpu()
    return values.float() if values.is_floating_point() else values


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first names and the count of the rest, for messages."""
    shown = ", ".join(repr(str(n)) for n in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Labelled vectors: one row per class (a text table) or many (an audio table).

    Attributes
    ----------
    vectors : float32 (n, D)
        Finite, no row all zero.
    labels : str (n,)
        Class name of each row, not empty.
    ids : str (n,)
        Name of each row; by default its number.
    meta : dict
        Where the vectors come from (model, layer, pooling, ...), JSON-serialisable. ``meta["name"]`` is
        what the table is called in results; `load` sets it to the file's stem when absent.
    integer_labels : bool
        Whether the labels came as whole numbers; `labels` holds them as text, and matches those of other tables as text.

    Raises
    ------
    InputError
        NaN, infinite or zero vectors, wrong shapes or types, empty labels, with file, row and label.

    Examples
    --------
    >>> import numpy as np
    >>> import fastprobe as fp
    >>> text = fp.EmbeddingTable(np.eye(3), ["bell", "dog", "rain"], meta={"name": "toy"})
    >>> text
    EmbeddingTable('toy', 3 rows, width 3, 3 classes)
    >>> fp.EmbeddingTable([[1.0, float("nan")]], ["bell"])
    Traceback (most recent call last):
    ...
    fastprobe.errors.InputError: `vectors` must be finite; row 0 (label 'bell') holds NaN or infinity. Embed that row again or drop it.
    """

    vectors: np.ndarray
    labels: np.ndarray
    ids: np.ndarray = _ROW_NUMBERS
    meta: dict[str, Any] = field(default_factory=dict)
    integer_labels: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        where = self._where()
        vectors = np.asarray(_on_cpu(self.vectors))
        if vectors.dtype == object or not (np.issubdtype(vectors.dtype, np.floating) or np.issubdtype(vectors.dtype, np.integer)):
            raise InputError(f"`vectors`{where} must be numbers; got dtype {vectors.dtype}.")
        if vectors.ndim != 2 or vectors.shape[0] == 0 or vectors.shape[1] == 0:
            raise InputError(f"`vectors`{where} must have shape (rows, width), neither zero; got {vectors.shape}.")
        n = len(vectors)
        labels = self._strings("labels", self.labels, n, where)
        object.__setattr__(self, "integer_labels", np.asarray(self.labels).dtype.kind in "iu")
        ids = np.arange(n).astype(str) if self.ids is None else self._strings("ids", self.ids, n, where)
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._check_rows(vectors, labels, where)
        if not isinstance(self.meta, Mapping):
            raise InputError(f"`meta`{where} must be a mapping; got {type(self.meta).__name__}.")
        for name, value in (("vectors", vectors), ("labels", labels), ("ids", ids), ("meta", dict(self.meta))):
            object.__setattr__(self, name, value)

    def _where(self) -> str:
        source = self.meta.get("source") if isinstance(self.meta, Mapping) else None
        return f" of {source}" if source else ""

    @staticmethod
    def _strings(name: str, values: Any, n: int, where: str) -> np.ndarray:
        array = np.asarray(values)
        if array.dtype == object:  # a list of str subclasses, a pandas column: strings only, nothing else
            if not all(isinstance(v, str) for v in array.ravel()):
                raise InputError(f"`{name}`{where} must be strings; got objects of other types.")
            array = array.astype(str)
        if array.dtype.kind == "S":
            try:
                array = np.char.decode(array, "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"`{name}`{where} must be UTF-8 where they are bytes; got {error.object!r}. Save them as strings."
                ) from None
        if array.dtype.kind in "iu":
            array = array.astype(str)
        if array.dtype.kind != "U":
            raise InputError(f"`{name}`{where} must be strings; got dtype {array.dtype}.")
        if array.shape != (n,):
            raise InputError(f"`{name}`{where} must have one entry for each of the {n} vectors; got shape {array.shape}.")
        if name == "labels" and (empty := np.flatnonzero(np.char.strip(array) == "")).size:
            raise InputError(f"`labels`{where} has an empty label in row {empty[0]} ({empty.size} in all). Name the class or drop the row.")
        return array

    @staticmethod
    def _check_rows(vectors: np.ndarray, labels: np.ndarray, where: str) -> None:
        # One pass in blocks: a boolean copy of a large table would double its memory.
        for start in range(0, len(vectors), 65536):
            block = vectors[start : start + 65536]
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite)[0])
                raise InputError(
                    f"`vectors`{where} must be finite; row {row} (label {str(labels[row])!r}) holds NaN or "
                    "infinity. Embed that row again or drop it."
                )
            alive = block.any(axis=1)
            if not alive.all():
                row = start + int(np.flatnonzero(~alive)[0])
                raise InputError(
                    f"`vectors`{where} must not be zero, which has no direction; row {row} (label "
                    f"{str(labels[row])!r}) is. Embed that row again or drop it."
                )

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"EmbeddingTable({self.name!r}, {len(self)} rows, width {self.width}, {len(np.unique(self.labels))} classes)"

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.vectors.shape[1]

    @property
    def name(self) -> str:
        """What results call this table."""
        return str(self.meta.get("name", "table"))

    @property
    def digest(self) -> str:
        """SHA-256 over vectors, labels and ids, the same for every file format and byte order."""
        h = hashlib.sha256(np.asarray(self.vectors.shape, "<i8").tobytes())
        h.update(self.vectors.astype("<f4", copy=False).data)
        h.update("\0".join([*self.labels, *self.ids]).encode())
        return h.hexdigest()

    def select(self, rows: np.ndarray) -> EmbeddingTable:
        """The table with some of its rows (indices or a boolean mask).

        Examples
        --------
        >>> table = EmbeddingTable(np.eye(3), ["bell", "dog", "rain"])
        >>> table.select(table.labels != "dog").labels.tolist()
        ['bell', 'rain']
        """
        return EmbeddingTable(self.vectors[rows], self.labels[rows], self.ids[rows], self.meta)

    @classmethod
    def coerce(cls, value: Any, name: str) -> EmbeddingTable:
        """A table, a path, a pair (vectors, labels), or a frame; `name` is the argument, and the default name."""
        if isinstance(value, cls):
            return value if "name" in value.meta else cls(value.vectors, value.labels, value.ids, {**value.meta, "name": name})
        if isinstance(value, (str, os.PathLike)):
            return cls.load(value)
        if isinstance(value, tuple) and len(value) == 2:
            return cls(value[0], value[1], meta={"name": name})
        if hasattr(value, "__arrow_c_stream__"):
            return cls.from_frame(value, name=name)
        raise InputError(
            f"`{name}` must be an EmbeddingTable, a path, a pair (vectors, labels), or a frame of pandas or polars; got "
            f"{type(value).__name__}."
        )

    @classmethod
    def from_frame(
        cls, frame: Any, *, vector_column: str | None = None, label_column: str | None = None, name: str = "table"
    ) -> EmbeddingTable:
        """A table from a frame of pandas or polars, or from whatever else speaks Arrow's C stream interface.

        Parameters
        ----------
        frame : pandas.DataFrame, polars.DataFrame, pyarrow.Table, ...
            One column holds a list or array of numbers in every row, another the labels. A column `id` names the rows.
        vector_column, label_column : str, optional
            By default `vector` and `label`.
        name : str
            What results call the table.

        Raises
        ------
        InputError
            A column is missing (the message names those that it could be), or is not what it should be.

        Examples
        --------
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"text": ["bell", "dog"], "embedding": [[1.0, 0.0], [0.0, 1.0]]})
        >>> EmbeddingTable.from_frame(frame, vector_column="embedding", label_column="text", name="toy")
        EmbeddingTable('toy', 2 rows, width 2, 2 classes)
        """
        import pyarrow as pa

        try:
            table = pa.table(frame)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(
                f"`{name}`: {type(frame).__name__} has columns that Arrow cannot hold: {str(error).splitlines()[0]}."
            ) from None
        vectors, labels, ids = read_arrow(table, f"`{name}`", Columns(vector_column, label_column))
        return cls(vectors, labels, ids, {"name": name})

    # ---- files -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike, *, vector_column: str | None = None, label_column: str | None = None) -> EmbeddingTable:
        """Read a table; the format follows the suffix.

        Parameters
        ----------
        path : path or URL
            Of a Parquet file it may name the columns: ``names.parquet#vector=embedding&label=text``.
        vector_column, label_column : str, optional
            Columns of a Parquet file that was not written here, as by pandas or Hugging Face `datasets`; by default `vector`
            and `label`.

        Raises
        ------
        InputError
            A missing, truncated or foreign file, a missing array or column, pickled objects.
        """
        path, named = split_location(path)
        columns = Columns(vector_column or named.vector, label_column or named.label)
        shown = str(path) if is_url(path) else str(local_path(path))
        name = name_of(path)
        suffix = suffix_of_table(name, shown)
        if suffix != ".parquet" and columns != Columns():
            raise InputError(f"{shown}: only Parquet has columns to name; got {', '.join(f'`{c}`' for c in columns if c)}. Leave them out.")
        with local_copy(path) as file:
            vectors, labels, ids, meta = FORMATS[suffix].read(file, shown, columns)
        table = cls(vectors, labels, ids, {"name": name.stem, **meta, "source": shown})
        table.meta.pop("source")
        return table

    def save(self, path: str | os.PathLike) -> None:
        """Write the table, local or by URL, whole or not at all; the format follows the suffix."""
        write = FORMATS[suffix_of_table(name_of(path), str(path))].write
        with new_file(path) as file:
            write(self, file)


def check_labels(text: EmbeddingTable, audio: EmbeddingTable) -> None:
    """A text table has each class once, and both tables have the same classes.

    Raises
    ------
    InputError
        Duplicate text labels; labels in one table only, listed with their counts.
    """
    counts = Counter(text.labels.tolist())
    clips = Counter(audio.labels.tolist())
    if twice := [label for label, n in counts.items() if n > 1]:
        swapped = "Are text and audio swapped?" if max(clips.values()) == 1 else "Keep one row of each."
        raise InputError(f"text table {text.name!r} must have one row per class; duplicate labels: {first_few(twice)}. {swapped}")
    unknown = sorted(set(clips) - set(counts))
    if unknown:
        raise InputError(
            f"audio table {audio.name!r} has {len(unknown)} labels that text table {text.name!r} lacks "
            f"({sum(clips[u] for u in unknown)} clips): {first_few(unknown)}.{near_misses(unknown, counts)} Add their text rows, or drop "
            'these clips (`classes="common"`, in the shell `--classes common`).'
        )
    silent = sorted(set(counts) - set(clips))
    if silent:
        raise InputError(
            f"text table {text.name!r} has {len(silent)} classes without a clip in audio table "
            f"{audio.name!r}: {first_few(silent)}.{near_misses(silent, clips)} Add clips, or drop these rows "
            '(`classes="common"`, in the shell `--classes common`).'
        )


def keep_clips(audio: EmbeddingTable, clips: int, seed: int) -> EmbeddingTable:
    """An audio table with at most so many clips of each class, drawn at random; those of fewer are among those of more.

    Parameters
    ----------
    audio : EmbeddingTable
    clips : int
        At least 1; classes that have fewer keep what they have.
    seed : int

    Raises
    ------
    InputError
        No class has so many.

    Examples
    --------
    >>> audio = EmbeddingTable(np.ones((5, 2)), ["bell", "bell", "bell", "dog", "dog"])
    >>> keep_clips(audio, 2, seed=0).labels.tolist()
    ['bell', 'bell', 'dog', 'dog']
    """
    most = max(Counter(audio.labels.tolist()).values())
    if clips > most:
        raise InputError(f"`clips` must be at most {most}, the most that a class of audio table {audio.name!r} has; got {clips}. Lower it.")
    order = generator(seed, CLIPS_KEPT).permutation(len(audio))
    _, codes, counts = np.unique(audio.labels[order], return_inverse=True, return_counts=True)
    place = np.empty(len(audio), np.int64)  # of each row among those of its class, in the random order
    place[order[np.argsort(codes, kind="stable")]] = np.arange(len(audio)) - np.repeat(np.cumsum(counts) - counts, counts)
    return audio.select(place < clips)


def number_note(tables: Sequence[EmbeddingTable]) -> str | None:
    """What to say where some tables name the classes by whole numbers and others by text; None where all do alike.

    Examples
    --------
    >>> import numpy as np
    >>> number_note([EmbeddingTable(np.eye(2), [0, 1], meta={"name": "a"}), EmbeddingTable(np.eye(2), ["0", "1"], meta={"name": "b"})])
    "labels are whole numbers in 'a' and text in 'b': they are matched as text, 7 with '7'."
    """
    numbers = [t.name for t in tables if t.integer_labels]
    words = [t.name for t in tables if not t.integer_labels]
    if not numbers or not words:
        return None
    return f"labels are whole numbers in {first_few(numbers)} and text in {first_few(words)}: they are matched as text, 7 with '7'."


def keep_common(tables: Sequence[EmbeddingTable]) -> list[EmbeddingTable]:
    """All tables, cut to the classes that every one of them has.

    Raises
    ------
    InputError
        When no class is common to all.
    """
    common = set.intersection(*(set(t.labels.tolist()) for t in tables))
    if not common:
        raise InputError(
            f"the tables {', '.join(repr(t.name) for t in tables)} have no class in common. Labels must be spelled alike in all of them."
        )
    return [t.select(np.isin(t.labels, sorted(common))) for t in tables]
