"""Tables that do not fit in memory, read block by block: .npz, .safetensors, .parquet.

The same files that `EmbeddingTable` reads, with the same checks, a bounded number of rows at a time.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..storage import Fetched, is_url, local_path, name_of, suffix_of
from .arrow import OWN, Columns, class_names, labels_of, pick_columns, split_location, vectors_of
from .formats import SUFFIXES, read_bfloat16, read_meta


class Block(NamedTuple):
    """Rows `start` ... of a table: vectors float32 (n, D), labels list of str."""

    start: int
    vectors: np.ndarray
    labels: list[str]


@dataclass(frozen=True)
class TableStream:
    """A table on disk whose rows come in blocks.

    Attributes
    ----------
    path : Path or str
        A str where it is a URL; the file is fetched, and its copy removed with the object.
    rows, width : int
        Known before any row is read.
    meta : dict
    columns : Columns
        Of a Parquet file, where the location named them.
    """

    path: Path | str
    rows: int
    width: int
    meta: dict[str, Any] = field(default_factory=dict)
    columns: Columns = Columns()
    _source: Fetched | Path | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike) -> TableStream:
        """Read the shape and the meta of a table, and nothing more. The path may name columns, as in `EmbeddingTable.load`.

        Raises
        ------
        InputError
            A missing, foreign or truncated file, no vectors or labels in it, no row.
        """
        path, columns = split_location(path)
        if suffix_of(path) not in SUFFIXES:
            raise InputError(f"{path}: the suffix {suffix_of(path)!r} is not one of {', '.join(SUFFIXES)}. Save the table as one of these.")
        source = Fetched(path) if is_url(path) else local_path(path)
        shown = str(path) if is_url(path) else local_path(path)
        file = source.path if isinstance(source, Fetched) else source
        if not file.is_file():
            raise InputError(f"{shown}: no such file." if not file.is_dir() else f"{shown}: a directory, not a file.")
        with _readable(shown):
            rows, width, meta = _HEADS[suffix_of(path)](_Source(file, str(shown), columns))
        if rows == 0 or width == 0:
            raise InputError(f"{shown}: an empty table, {rows} rows of width {width}. Embed some texts.")
        return cls(shown, rows, width, {"name": name_of(path).stem, **meta}, columns, source)

    def blocks(self, rows: int) -> Iterator[Block]:
        """All rows in order, at most `rows` at a time.

        Raises
        ------
        InputError
            NaN, infinite or zero vectors, an empty label, a damaged file; with the row.
        """
        start = 0
        file = self._source.path if isinstance(self._source, Fetched) else local_path(self.path)
        with _readable(self.path):
            for vectors, labels in _BLOCKS[suffix_of(self.path)](_Source(file, str(self.path), self.columns), rows):
                vectors = np.ascontiguousarray(vectors, np.float32)
                self._check(start, vectors, labels)
                yield Block(start, vectors, labels)
                start += len(vectors)
        if start != self.rows:
            raise InputError(f"{self.path}: holds {start} rows where its header promises {self.rows}. It is truncated: write it again.")

    def _check(self, start: int, vectors: np.ndarray, labels: list[str]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.width or len(labels) != len(vectors):
            raise InputError(
                f"{self.path}: rows {start} ... have shape {vectors.shape} and {len(labels)} labels; expected width "
                f"{self.width} and a label for each."
            )
        for wrong, what in (
            (~np.isfinite(vectors).all(axis=1), "holds NaN or infinity"),
            (~vectors.any(axis=1), "is zero, which has no direction"),
        ):
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise InputError(
                    f"`vectors` of {self.path}: row {start + row} (label {labels[row]!r}) {what}. Embed that row again or drop it."
                )
        for row, label in enumerate(labels):
            if not label or label.isspace():
                raise InputError(f"`labels` of {self.path} has an empty label in row {start + row}. Name it or drop the row.")


class _Source(NamedTuple):
    """A file on this machine, what messages call it, and the columns that were named."""

    file: Path
    shown: str
    columns: Columns = Columns()

    def __str__(self) -> str:
        return self.shown


class _readable:
    """Turn what a damaged file provokes in its reader into one message."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or isinstance(error, (InputError, GeneratorExit, KeyboardInterrupt, MemoryError)):
            return
        name = f"{kind.__module__}.{kind.__name__}"
        if isinstance(error, (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)) or name.startswith(
            ("zlib.", "struct.", "pyarrow.", "safetensors_rust.", "safetensors.")
        ):
            why = str(error).splitlines()[0] if str(error) else name
            raise InputError(
                f"{self.path}: not a readable {suffix_of(self.path)[1:]} table ({why}). It is truncated, or something "
                "else with this suffix: write it again."
            ) from None


# ---- .npz: the members are read as streams, compressed or not -----------------------------------------


def _npy_header(file: Any, path: _Source, name: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{path}: `{name}` holds pickled objects, which are never unpickled here. Save plain arrays.")
    if fortran and len(shape) > 1:
        raise InputError(f"{path}: `{name}` is stored column by column and cannot be read in blocks. Save it with np.ascontiguousarray.")
    return shape, dtype


def _npz_head(path: _Source) -> tuple[int, int, dict[str, Any]]:
    with zipfile.ZipFile(path.file) as archive:
        names = {n.removesuffix(".npy") for n in archive.namelist()}
        for name in ("vectors", "labels"):
            if name not in names:
                raise InputError(f"{path}: array `{name}` is missing; found {', '.join(sorted(names)) or 'nothing'}.")
        with archive.open("vectors.npy") as file:
            shape, dtype = _npy_header(file, path, "vectors")
        if len(shape) != 2 or dtype.kind not in "fiu":
            raise InputError(f"{path}: `vectors` must be numbers of shape (rows, width); got {dtype}, {shape}.")
        meta = {}
        if "meta" in names:
            with archive.open("meta.npy") as file:
                _, dtype = _npy_header(file, path, "meta")
                meta = read_meta(path, str(np.frombuffer(file.read(), dtype)[0]))
    return shape[0], shape[1], meta


def _npz_blocks(path: _Source, rows: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    with zipfile.ZipFile(path.file) as archive, archive.open("vectors.npy") as vectors, archive.open("labels.npy") as labels:
        (n, width), kind = _npy_header(vectors, path, "vectors")
        shape, text = _npy_header(labels, path, "labels")
        if shape != (n,) or text.kind not in "USiu":
            raise InputError(f"{path}: `labels` must be {n} strings; got {text}, {shape}.")
        for start in range(0, n, rows):
            count = min(rows, n - start)
            block = np.frombuffer(_exactly(vectors, count * width * kind.itemsize), kind).reshape(count, width)
            names = np.frombuffer(_exactly(labels, count * text.itemsize), text)
            yield block, (np.char.decode(names, "utf-8") if text.kind == "S" else names.astype(str)).tolist()


def _exactly(file: Any, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("ends too early")
    return data


# ---- .safetensors: slices of the mapped file ----------------------------------------------------------


def _safetensors_head(path: _Source) -> tuple[int, int, dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path.file, framework="numpy") as file:
        header = file.metadata() or {}
        if "vectors" not in file.keys() or "labels" not in header:  # noqa: SIM118 (not a dict)
            raise InputError(
                f"{path}: needs the tensor `vectors` and `labels` in its metadata; found {', '.join(file.keys()) or 'nothing'}."
            )
        shape = file.get_slice("vectors").get_shape()
    if len(shape) != 2:
        raise InputError(f"{path}: `vectors` must have shape (rows, width); got {tuple(shape)}.")
    return shape[0], shape[1], read_meta(path, header.get("meta"))


def _safetensors_blocks(path: _Source, rows: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    from safetensors import safe_open

    with safe_open(path.file, framework="numpy") as file:
        labels = [str(label) for label in json.loads(file.metadata()["labels"])]
        vectors = file.get_slice("vectors")
        if len(labels) != vectors.get_shape()[0]:
            raise InputError(f"{path}: {len(labels)} labels for {vectors.get_shape()[0]} vectors.")
        for start in range(0, len(labels), rows):
            stop = min(start + rows, len(labels))
            block = read_bfloat16(path.file, start, stop) if vectors.get_dtype() == "BF16" else vectors[start:stop]
            yield block, labels[start:stop]


# ---- .parquet: row groups -----------------------------------------------------------------------------


def _parquet_head(path: _Source) -> tuple[int, int, dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path.file) as file:
        schema = file.schema_arrow
        vector, _ = pick_columns(schema, path, path.columns)
        meta = read_meta(path, (schema.metadata or {}).get(OWN, b"").decode("utf-8", "replace"))
        first = next(file.iter_batches(1, columns=[vector]), None)
        width = 0 if first is None or not len(first) else first.column(0).value_lengths()[0].as_py() or 0
        return file.metadata.num_rows, width, meta


def _validated(batch: Any, path: _Source) -> None:
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{path}: a damaged Parquet file ({str(error).splitlines()[0]}). Write it again.") from None


def _parquet_blocks(path: _Source, rows: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    import pyarrow.parquet as pq

    # Read through a small buffer, one row group after the other: by default whole row groups are fetched ahead,
    # and a file of eight of them was held complete.
    with pq.ParquetFile(path.file, pre_buffer=False, buffer_size=1 << 20) as file:
        vector, label = pick_columns(file.schema_arrow, path, path.columns)
        names = class_names(file.schema_arrow, label)
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group], columns=[label, vector], use_threads=False):
                _validated(batch, path)
                found = labels_of(batch.column(batch.schema.get_field_index(label)), names)
                yield vectors_of(batch.column(batch.schema.get_field_index(vector)), path, vector), found.astype(str).tolist()


_HEADS = {".npz": _npz_head, ".safetensors": _safetensors_head, ".parquet": _parquet_head}
_BLOCKS = {".npz": _npz_blocks, ".safetensors": _safetensors_blocks, ".parquet": _parquet_blocks}
