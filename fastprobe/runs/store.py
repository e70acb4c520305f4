"""`ResultStore`: a run on disk or in memory, as whole shards and a manifest.

A shard is whole or absent (see `storage`), and what is done is what is there, so resuming is a set
difference. Its name says what it contains (pair and permutations, numbers only: no name from outside ever
becomes part of a path) and its metadata carry a digest of its values.

    manifest.json   results/part-*.parquet   summary.json   summary.csv   observed.parquet
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..protocol.cells import Cell
from ..protocol.plan import JobPlan, Unit
from ..protocol.probes import is_similarity
from ..storage import Folder, RemoteFolder, open_folder
from ..storage.columns import to_arrow, to_numpy, words
from .manifest import cells_of, describe_difference, manifest_bytes, read_manifest, shapes_of, to_json

__all__ = ["ResultStore", "column_digest", "read_manifest"]

MAX_COLUMNS = 1000
_SHARD = re.compile(r"part-p(\d{1,6})-b(\d{1,12})-(\d{1,12})\.parquet")
_KEYS = ("split", "seed", "permutation")
_NAMES = ("text", "audio", "probe")


def column_digest(columns: dict[str, np.ndarray]) -> str:
    """SHA-256 over the values of a shard, independent of file format, compression and byte order."""
    h = hashlib.sha256()
    for name, values in columns.items():
        values = np.ascontiguousarray(values)
        h.update(f"{name}:{values.dtype.kind}{values.dtype.itemsize}:{len(values)};".encode())
        h.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return h.hexdigest()


class _Unreadable(Exception):
    """Why a shard cannot be read."""


class ResultStore:
    """Shards of a run.

    Parameters
    ----------
    path : path-like, optional
        The run directory; None keeps everything in memory.
    cells : list of Cell
        Names of the cells, by number.
    jobs : sequence of int, optional
        Of each cell in one replicate.
    """

    def __init__(
        self, path: str | os.PathLike | Folder | RemoteFolder | None, cells: Sequence[Cell], jobs: Sequence[int] | None = None
    ) -> None:
        folder = None if path is None else open_folder(path)
        self.folder = folder
        # A URL stays a string: pathlib would fold its slashes.
        self.path: Path | str | None = None if folder is None else str(folder) if isinstance(folder, RemoteFolder) else folder.path
        self.cells = list(cells)
        self.jobs = jobs
        self._memory: dict[Unit, dict[str, np.ndarray]] = {}

    # ---- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | os.PathLike | Folder | RemoteFolder | None, manifest: dict[str, Any], resume: bool = False) -> ResultStore:
        """A new run directory, or with `resume` the one that is there.

        Parameters
        ----------
        path : path-like, URL or Folder
            None keeps everything in memory.
        manifest : dict
            ``manifest["identity"]`` holds all that decides results, and must equal a resumed run's;
            ``manifest["identity"]["pairs"]`` lists the pairs.

        Raises
        ------
        StoreError
            When the directory holds another run, or results without `resume`.
        """
        store = cls(path, *_shape(manifest["identity"]))
        if store.folder is None:
            return store
        names = [n for n in _listing(store.folder) if not n.startswith(".") and n != "run.lock"]
        if "manifest.json" in names:
            old = read_manifest(store.folder)
            if difference := describe_difference(old["identity"], manifest["identity"]):
                raise StoreError(
                    f"{path} holds another run: {difference}. Choose another `out`, or give the same inputs and options to resume it."
                )
            if not resume:
                raise StoreError(f"{path} already holds this run. Add `--resume` (`resume=True`) to continue it, or choose another `out`.")
        elif [n for n in names if n != "results"] or _listing(store.folder, "results"):
            raise StoreError(f"{path} exists and is not a run directory. Choose another `out`.")
        else:
            store.folder.make("results")
            if not store.folder.create("manifest.json", manifest_bytes(manifest)):  # another run came first, just now
                return cls.create(store.folder, manifest, resume)
        return store

    @classmethod
    def open(cls, path: str | os.PathLike | Folder | RemoteFolder) -> ResultStore:
        """The run in a directory, for reading.

        Raises
        ------
        StoreError
            When there is none, or a newer version wrote it.
        """
        folder = open_folder(path)
        return cls(folder, *_shape(read_manifest(folder)["identity"]))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace manifest.json."""
        self.write_file("manifest.json", manifest_bytes(manifest))

    # ---- other files -----------------------------------------------------------------------------

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file of the run whole or not at all; nothing when the run is in memory."""
        if self.folder is not None:
            self.folder.write(name, data)

    def read_file(self, name: str) -> bytes | None:
        """A file of the run; None when there is none.

        Raises
        ------
        StoreError
            A file that is there and cannot be read.
        """
        try:
            return None if self.folder is None else self.folder.read(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.folder}/{name}: cannot be read: {error}.") from None

    # ---- shards ----------------------------------------------------------------------------------

    def done(self, plan: JobPlan | None = None) -> list[Unit]:
        """Units stored so far; with a plan, those that belong to it."""
        if self.folder is None:
            units = list(self._memory)
        else:
            units = [
                unit
                for n in _listing(self.folder, "results")
                if (found := _SHARD.fullmatch(n)) and self.shard_name(unit := Unit(*map(int, found.groups()))) == f"results/{n}"
            ]
        units = [u for u in units if u.cell < len(self.cells) and u.start < u.stop]
        if plan is not None:
            units = [u for u in units if u.cell < plan.n_cells and u.start <= plan.n_permutations]
        return sorted(units)

    @property
    def on_disk(self) -> Folder | RemoteFolder:
        """`folder`, for what only a run directory can be asked."""
        if self.folder is None:
            raise StoreError("this run is kept in memory and has no directory. Run it with `out`.")
        return self.folder

    @staticmethod
    def shard_name(unit: Unit) -> str:
        """Name of a unit's file below the run directory: numbers only."""
        return f"results/part-p{unit.cell:04d}-b{unit.start:09d}-{unit.stop:09d}.parquet"

    def shard_path(self, unit: Unit) -> Path | str:
        """Where a unit is stored."""
        name = self.shard_name(unit)
        return self.path / name if isinstance(self.path, Path) else f"{self.path}/{name}"

    def encode(self, unit: Unit, columns: dict[str, np.ndarray]) -> bytes:
        """A unit as the bytes of its Parquet file, a function of its content alone."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = len(columns["permutation"])
        names = {
            side: pa.DictionaryArray.from_arrays(to_arrow(np.zeros(rows, np.int32)), words([name]))
            for side, name in zip(_NAMES, self.cells[unit.cell])
        }
        table = pa.table({**names, **{n: to_arrow(v) for n, v in columns.items()}}).replace_schema_metadata(
            {"fastprobe_digest": column_digest(columns)}
        )
        buffer = io.BytesIO()
        # Measured: dictionaries of numbers cost twice the time and 6% more bytes; those of the names are free.
        pq.write_table(table, buffer, compression="zstd", use_dictionary=list(_NAMES), write_page_checksum=True)
        return buffer.getvalue()

    def write(self, unit: Unit, columns: dict[str, np.ndarray]) -> None:
        """Store a unit, whole or not at all.

        Parameters
        ----------
        columns : dict of (rows,)
            One row per job, ascending by (permutation, split, seed), without the names of the cell.
        """
        if self.folder is None:
            self._memory[unit] = columns
        else:
            self.folder.write(self.shard_name(unit), self.encode(unit, columns))

    def read(self, unit: Unit, columns: list[str] | None = None) -> dict[str, np.ndarray]:
        """Columns of a stored unit (all but the cell's names by default).

        Pages are verified against their checksums; `damage` verifies everything.

        Raises
        ------
        StoreError
            A damaged shard; the message says how to have it computed again.
        """
        if self.folder is None:
            stored = self._memory[unit]
            return {name: stored[name] for name in columns or stored}
        try:
            return self._decode(unit, columns)[0]
        except _Unreadable as error:
            raise StoreError(
                f"{self.shard_path(unit)}: not a readable shard ({error}). Run again with `--resume`: only its jobs are computed again."
            ) from None

    def _decode(self, unit: Unit, columns: list[str] | None) -> tuple[dict[str, np.ndarray], str]:
        """Values and digest; with `columns` None everything, and then the cell's names are checked too."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            data = self.on_disk.read(self.shard_name(unit))
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self._check_shape(unit, file)
            if absent := [c for c in columns or () if c not in file.schema_arrow.names]:
                raise ValueError(f"no column {', '.join(absent)}")
            table = file.read(columns=columns)
            for side, name in zip(_NAMES, self.cells[unit.cell]):
                # Shards from before there were several kinds of probe do not name theirs.
                if columns is None and side in table.column_names and table[side].unique().to_pylist() != [name]:
                    raise ValueError("it holds another cell than its name says")
            digest = (file.schema_arrow.metadata or {}).get(b"fastprobe_digest", b"").decode("ascii", "replace")
            return {n: to_numpy(table[n]) for n in table.column_names if n not in _NAMES}, digest
        except (OSError, pa.ArrowException, ValueError, LookupError, OverflowError, MemoryError) as error:
            raise _Unreadable((str(error).splitlines() or [type(error).__name__])[0]) from None

    def _check_shape(self, unit: Unit, file: Any) -> None:
        """Refuse, before anything is decoded, what is not a shard of this unit."""
        import pyarrow as pa

        schema, rows = file.schema_arrow, file.metadata.num_rows
        if self.jobs is not None and rows != (unit.stop - unit.start) * self.jobs[unit.cell]:
            raise ValueError(f"{rows} rows, and not {unit.stop - unit.start} x {self.jobs[unit.cell]}")
        if len(schema) > MAX_COLUMNS or len(set(schema.names)) < len(schema) or not {*_KEYS, "text", "audio"} <= set(schema.names):
            raise ValueError("not the columns of a shard")
        for field in schema:
            name = field.name in _NAMES
            if name != pa.types.is_dictionary(field.type) or not (
                name or pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
            ):
                raise ValueError(f"column `{field.name[:40]}` of type {field.type}")
        if sum(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)) != rows:
            raise ValueError("row groups that do not add up")

    def damage(self, unit: Unit) -> str | None:
        """What is wrong with a stored shard: unreadable, of another unit, or not the values it was written with.

        Returns
        -------
        str or None
            None when it is whole.
        """
        if self.folder is None:
            return None
        try:
            values, digest = self._decode(unit, None)
        except _Unreadable as error:
            return str(error)
        if digest != column_digest(values):
            return "its values are not those it was written with (digest)"
        per = len(values["permutation"]) // (unit.stop - unit.start)
        if not np.array_equal(values["permutation"], np.repeat(np.arange(unit.start, unit.stop), per)):
            return "it holds other permutations than its name says"
        return None

    def mend(self) -> Iterator[tuple[Unit, str]]:
        """Remove what a resume must compute again, and leftovers of killed writers. For who holds the lock.

        Yields
        ------
        Unit, str
            A removed shard, and why: damaged, or covered twice.
        """
        if self.folder is None:
            return
        self.folder.sweep()
        self.folder.sweep("results")
        last: Unit | None = None
        for unit in self.done():
            why = self.damage(unit)
            if why is None and last is not None and last.cell == unit.cell and unit.start < last.stop:
                why = f"some of its jobs are in {self.shard_name(last)} too"
            if why is None:
                last = unit
            else:
                self.folder.remove(self.shard_name(unit))
                yield unit, why

    def replicates(self, columns: Sequence[str], plan: JobPlan, damaged: str = "raise") -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Averages over splits and seeds.

        Parameters
        ----------
        columns : sequence of str
        damaged : {"raise", "skip"}
            What an unreadable shard does.

        Returns
        -------
        dict of float64 (cells, B+1)
            T_b of every cell, by column; NaN where nothing is stored.
        float64 (cells, splits)
            Observed value of each split, in the first column; NaN for a similarity, which has no splits and one value
            whatever the column.
        """
        t = {name: np.full((plan.n_cells, plan.n_permutations + 1), np.nan) for name in columns}
        per_split = np.full((plan.n_cells, plan.n_splits), np.nan)
        for unit in self.done(plan):
            alone = is_similarity(self.cells[unit.cell].probe)
            try:
                shard = self.read(unit, ["similarity"] if alone else list(columns))
            except StoreError:
                if damaged == "skip":
                    continue
                raise
            stop = min(unit.stop, plan.n_permutations + 1)
            for name in columns:
                column = shard["similarity" if alone else name]
                values = column.astype(np.float64).reshape(-1, *plan.shape(unit.cell))[: stop - unit.start]
                t[name][unit.cell, unit.start : stop] = values.reshape(len(values), -1).mean(axis=1)
                if unit.start == 0 and name == columns[0] and not alone:
                    per_split[unit.cell] = values[0].mean(axis=1)
        return t, per_split

    # ---- summaries -------------------------------------------------------------------------------

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, and its pairs as summary.csv."""
        self.write_file("summary.json", to_json(summary).encode())
        text = io.StringIO()
        flat = [{k: v for k, v in pair.items() if not isinstance(v, (dict, list))} for pair in summary["pairs"]]
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for record in flat for name in record)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        self.write_file("summary.csv", text.getvalue().encode())


def _listing(folder: Folder | RemoteFolder, below: str = "") -> list[str]:
    try:
        return folder.names(below)
    except NotADirectoryError:
        raise StoreError(f"{folder} exists and is not a run directory. Choose another `out`.") from None
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror or error}. Choose another `out`.") from None


def _shape(identity: dict[str, Any]) -> tuple[list[Cell], list[int] | None]:
    known = identity.get("splits") and identity.get("seeds")
    return cells_of(identity), [splits * repeats for splits, repeats in shapes_of(identity)] if known else None
