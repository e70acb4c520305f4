"""`ResultStore`: a run on disk or in memory, as whole shards and a manifest.

A shard is written under a temporary name in its folder, flushed to the disk and renamed: it is whole or
absent. What is done is what is there, so resuming is a set difference.

    manifest.json   results/part-*.parquet   summary.json   summary.csv   observed.parquet
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreError
from .plan import JobPlan, Unit

FORMAT_VERSION = 1
_SHARD = re.compile(r"part-p(\d{1,6})-b(\d{1,12})-(\d{1,12})\.parquet")
_KEYS = ("split", "seed", "permutation")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    StoreError
        A full disk, a read-only folder; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}. Everything stored before is kept; free "
                         "space or choose another `out`, then continue with `--resume`.") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is gone or read-only: nothing is left to clean
            temporary = None


def to_json(value: Any) -> str:
    """JSON with sorted-as-written keys; NaN and infinity become null, which every reader accepts."""
    def plain(v: Any) -> Any:
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(x) for x in v]
        if isinstance(v, np.generic):
            v = v.item()
        return None if isinstance(v, float) and not math.isfinite(v) else v
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def column_digest(columns: dict[str, np.ndarray]) -> str:
    """SHA-256 over the values of a shard, independent of file format, compression and byte order."""
    h = hashlib.sha256()
    for name, values in columns.items():
        values = np.ascontiguousarray(values)
        h.update(f"{name}:{values.dtype.kind}{values.dtype.itemsize}:{len(values)};".encode())
        h.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return h.hexdigest()


class ResultStore:
    """Shards of a run.

    Parameters
    ----------
    path : path-like, optional
        The run directory; None keeps everything in memory.
    pairs : list of (text, audio)
        Names of the pairs, by number.
    """

    def __init__(self, path: str | os.PathLike | None, pairs: list[tuple[str, str]]) -> None:
        self.path = None if path is None else Path(path)
        self.pairs = list(pairs)
        self._memory: dict[Unit, dict[str, np.ndarray]] = {}

    # ---- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | os.PathLike | None, manifest: dict[str, Any], resume: bool = False) -> ResultStore:
        """A new run directory, or with `resume` the one that is there.

        Parameters
        ----------
        manifest : dict
            ``manifest["identity"]`` holds all that decides results, and must equal a resumed run's;
            ``manifest["identity"]["pairs"]`` lists the pairs.

        Raises
        ------
        StoreError
            When the directory holds another run, or results without `resume`.
        """
        pairs = [tuple(pair) for pair in manifest["identity"]["pairs"]]
        store = cls(path, pairs)
        if store.path is None:
            return store
        if (store.path / "manifest.json").exists():
            old = read_manifest(store.path)
            if changed := sorted(k for k in {*old["identity"], *manifest["identity"]}
                                 if old["identity"].get(k) != json.loads(to_json(manifest["identity"].get(k)))):
                first = changed[0]
                raise StoreError(f"{path} holds another run: `{first}` was {_short(old['identity'].get(first))} there and is "
                                 f"{_short(manifest['identity'].get(first))} now"
                                 f"{' (also differing: ' + ', '.join(changed[1:]) + ')' if changed[1:] else ''}. "
                                 "Choose another `out`, or give the same inputs and options to resume it.")
            if not resume:
                raise StoreError(f"{path} already holds this run. Add `--resume` (`resume=True`) to continue it, "
                                 "or choose another `out`.")
        elif store.path.exists() and (not store.path.is_dir() or any(store.path.iterdir())):
            raise StoreError(f"{path} exists and is not a run directory. Choose another `out`.")
        try:
            (store.path / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created: {error.strerror}. Choose another `out`.") from None
        store.write_manifest(manifest)
        return store

    @classmethod
    def open(cls, path: str | os.PathLike) -> ResultStore:
        """The run in a directory, for reading.

        Raises
        ------
        StoreError
            When there is none, or a newer version wrote it.
        """
        return cls(path, [tuple(pair) for pair in read_manifest(Path(path))["identity"]["pairs"]])

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace manifest.json."""
        if self.path is not None:
            write_atomically(self.path / "manifest.json", to_json({"format_version": FORMAT_VERSION, **manifest}).encode())

    # ---- shards ----------------------------------------------------------------------------------

    def done(self, plan: JobPlan | None = None) -> list[Unit]:
        """Units stored so far; with a plan, those that belong to it."""
        if self.path is None:
            units = list(self._memory)
        else:
            names = os.listdir(self.path / "results") if (self.path / "results").is_dir() else []
            units = [Unit(*map(int, found.groups())) for name in names if (found := _SHARD.fullmatch(name))]
        if plan is not None:
            units = [u for u in units if u.pair < plan.n_pairs and u.start <= plan.n_permutations]
        return sorted(units)

    def shard_path(self, unit: Unit) -> Path:
        """Where a unit is stored."""
        return self.path / "results" / f"part-p{unit.pair:04d}-b{unit.start:09d}-{unit.stop:09d}.parquet"

    def write(self, unit: Unit, columns: dict[str, np.ndarray]) -> None:
        """Store a unit, whole or not at all.

        Parameters
        ----------
        columns : dict of (rows,)
            One row per job, ascending by (permutation, split, seed), without the names of the pair.
        """
        if self.path is None:
            self._memory[unit] = columns
            return
        import pyarrow as pa
        import pyarrow.parquet as pq
        rows = len(columns["permutation"])
        names = {side: pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([name]))
                 for side, name in zip(("text", "audio"), self.pairs[unit.pair])}
        table = pa.table({**names, **columns}).replace_schema_metadata({"fastprobe_digest": column_digest(columns)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomically(self.shard_path(unit), buffer.getvalue())

    def read(self, unit: Unit, columns: list[str] | None = None) -> dict[str, np.ndarray]:
        """Columns of a stored unit (all but the pair's names by default).

        Raises
        ------
        StoreError
            A damaged shard; the message says how to have it computed again.
        """
        if self.path is None:
            stored = self._memory[unit]
            return {name: stored[name] for name in columns or stored}
        import pyarrow as pa
        import pyarrow.parquet as pq
        path = self.shard_path(unit)
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()), columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{path}: not a readable shard ({str(error).splitlines()[0]}). Delete it and run again with "
                             "`--resume`: only its jobs are computed again.") from None
        return {name: table[name].to_numpy() for name in table.column_names if name not in ("text", "audio")}

    def check(self, unit: Unit) -> bool:
        """Whether a stored shard is readable, complete and has the digest it was written with."""
        if self.path is None:
            return True
        import pyarrow as pa
        import pyarrow.parquet as pq
        try:
            metadata = pq.read_schema(pa.BufferReader(self.shard_path(unit).read_bytes())).metadata or {}
            return metadata.get(b"fastprobe_digest", b"").decode() == column_digest(self.read(unit))
        except (OSError, pa.ArrowException, StoreError):
            return False

    def shards(self, columns: list[str], plan: JobPlan) -> Iterator[tuple[Unit, dict[str, np.ndarray]]]:
        """All stored units of a plan with some of their columns, one at a time."""
        for unit in self.done(plan):
            yield unit, self.read(unit, [*_KEYS, *columns])

    def replicates(self, column: str, plan: JobPlan) -> tuple[np.ndarray, np.ndarray]:
        """Averages over splits and seeds of one column.

        Returns
        -------
        float64 (pairs, B+1)
            T_b of every pair; NaN where nothing is stored.
        float64 (pairs, splits)
            Observed value of each split.
        """
        t = np.full((plan.n_pairs, plan.n_permutations + 1), np.nan)
        per_split = np.full((plan.n_pairs, plan.n_splits), np.nan)
        for unit, shard in self.shards([column], plan):
            values = shard[column].astype(np.float64).reshape(-1, plan.n_splits, plan.n_seeds)
            stop = min(unit.stop, plan.n_permutations + 1)
            t[unit.pair, unit.start:stop] = values.reshape(len(values), -1).mean(axis=1)[:stop - unit.start]
            if unit.start == 0:
                per_split[unit.pair] = values[0].mean(axis=1)
        return t, per_split

    # ---- summaries -------------------------------------------------------------------------------

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, and its pairs as summary.csv."""
        if self.path is None:
            return
        write_atomically(self.path / "summary.json", to_json(summary).encode())
        text = io.StringIO()
        flat = [{k: v for k, v in pair.items() if not isinstance(v, (dict, list))} for pair in summary["pairs"]]
        writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        write_atomically(self.path / "summary.csv", text.getvalue().encode())

    def write_table(self, name: str, columns: dict[str, Any]) -> None:
        """Another Parquet file of the run (``observed.parquet``), whole or not at all."""
        if self.path is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd")
        write_atomically(self.path / name, buffer.getvalue())


def _short(value: Any, limit: int = 80) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def read_manifest(path: Path) -> dict[str, Any]:
    """manifest.json of a run directory.

    Raises
    ------
    StoreError
        No run there, a damaged manifest, or one written by a newer version.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
        version, identity = manifest["format_version"], manifest["identity"]
        ok = isinstance(version, int) and isinstance(identity, dict) and isinstance(identity["pairs"], list) \
            and all(isinstance(p, list) and len(p) == 2 and all(isinstance(n, str) for n in p) for p in identity["pairs"])
    except FileNotFoundError:
        raise StoreError(f"{path}: no run directory (no manifest.json in it).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: cannot be read: {error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreError(f"{file}: not a fastprobe manifest, or a damaged one.") from None
    if ok and version > FORMAT_VERSION:
        raise StoreError(f"{file}: written by a newer fastprobe (format {version}, this one reads up to {FORMAT_VERSION}). "
                         "Upgrade fastprobe.")
    if not ok:
        raise StoreError(f"{file}: not a fastprobe manifest, or a damaged one.")
    return manifest
