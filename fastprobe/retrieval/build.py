"""Building a `GalleryIndex` on disk from a table of any size: `fastprobe index build`.

    NAME/  meta.json   vectors.npy (float32, rows of length 1)   texts.arrow   index.faiss   probe.safetensors

It is made in a folder beside its place and moved there when it is whole; a killed build leaves no index.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..errors import InputError
from ..kernels.topk import load_faiss
from ..storage import is_url, local_path, open_folder, put_files
from ..tables.streams import TableStream
from .gallery import (
    FILES,
    FORMAT,
    KINDS,
    SMALLEST_APPROXIMATE,
    GalleryIndex,
    block_rows,
    build_faiss,
    choose_kind,
    memory_estimate,
    tune,
    unit_rows,
)
from .linear import LinearProbe, check_no_csls
from .probe import check_model


class IndexPlan(NamedTuple):
    """What a build will make, and what it will take; known before it begins."""

    source: TableStream
    kind: str
    rows: int
    width: int
    estimate: dict[str, int]
    available: int | None


def plan_index(source: str | os.PathLike, kind: str = "auto", probe: LinearProbe | None = None, any_model: bool = False) -> IndexPlan:
    """Check everything that can be checked beforehand, and estimate memory and disk.

    Parameters
    ----------
    source : path
        A text table: .npz, .safetensors or .parquet.
    kind : {"auto", "exact", "hnsw", "ivfpq"}
    probe : ContrastiveProbe or ClosedFormProbe, optional
        Projects the texts; sounds can then be looked up. Without it the index holds the embeddings themselves.
    any_model : bool
        Accept a table of another model than the probe's.

    Raises
    ------
    InputError
        A bad table, another model's, FAISS missing, more memory than there is.
    """
    stream = TableStream.open(source)
    if kind not in (*KINDS, "auto"):
        raise InputError(f"`kind` must be auto, {', '.join(KINDS)}; got {kind!r}.")
    kind = choose_kind(stream.rows) if kind == "auto" else kind
    if kind != "exact":
        load_faiss()
        if stream.rows < SMALLEST_APPROXIMATE:
            raise InputError(
                f"`kind`={kind!r} needs at least {SMALLEST_APPROXIMATE:,} rows; {stream.path} has {stream.rows:,}. "
                "Use kind exact, which is fast at that size."
            )
    if probe is not None:
        check_no_csls(probe, "an index")
        check_model(probe, "text", stream.meta, stream.width, str(stream.path), any_model)
    width = probe.width if probe is not None else stream.width
    estimate, available = memory_estimate(kind, stream.rows, width, stream.width), available_memory()
    if available is not None and estimate["build"] > available:
        raise InputError(
            f"an index of kind {kind} over {stream.rows:,} x {width} needs about {gib(estimate['build'])} to build; "
            f"{gib(available)} are free. Use kind "
            f"{'exact' if kind == 'ivfpq' else 'ivfpq or exact'}, or a machine with more memory."
        )
    return IndexPlan(stream, kind, stream.rows, width, estimate, available)


def build_index(
    plan: IndexPlan,
    out: str | os.PathLike,
    probe: LinearProbe | None = None,
    *,
    recall: float = 0.95,
    queries: np.ndarray | None = None,
    overwrite: bool = False,
) -> Iterator[int]:
    """Build a planned index. Yields the number of rows read, block by block; the index is there at the end.

    Parameters
    ----------
    out : path or URL
        The new folder. Behind a URL its ``meta.json`` comes last: what lacks it is no index.
    recall : float
        recall@10 that an approximate kind must reach.
    queries : float (n, d), optional
        What it is measured on (projected sounds); by default rows with noise.
    overwrite : bool
        Replace an index that is there.

    Raises
    ------
    InputError
        Something else in the place, a full disk, a damaged table.
    """
    if is_url(out):
        yield from _build_and_store(plan, str(out).rstrip("/"), probe, recall, queries, overwrite)
        return
    out = local_path(out)
    if out.exists() and not (overwrite and (out / "meta.json").is_file()):
        raise InputError(
            f"{out} exists. Choose another place"
            + (", or give --overwrite to replace this index." if (out / "meta.json").is_file() else "; it is not an index.")
        )
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        free = shutil.disk_usage(work).free
        if plan.estimate["disk"] > free:
            raise InputError(f"{out}: the index takes about {gib(plan.estimate['disk'])} on disk; {gib(free)} are free there.")
        yield from _write_rows(plan, work, probe)
        meta = {
            "format": "fastprobe-index",
            "version": FORMAT,
            "fastprobe": __version__,
            "kind": plan.kind,
            "rows": plan.rows,
            "width": plan.width,
            "source": plan.source.meta,
            "source_width": plan.source.width,
            "probe": None if probe is None else probe.digest,
        }
        if probe is not None:
            probe.save(work / "probe.safetensors")
        if plan.kind != "exact":
            meta.update(_write_faiss(plan, work, meta, recall, queries))
        _write(work / "meta.json", lambda file: file.write(json.dumps(meta, indent=2).encode()))
        _put_in_place(work, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}. Free space or choose another place.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build_and_store(
    plan: IndexPlan, url: str, probe: LinearProbe | None, recall: float, queries: np.ndarray | None, overwrite: bool
) -> Iterator[int]:
    """Build on this machine, then store file by file."""
    target = open_folder(url)
    there = target.names()
    if there and not (overwrite and "meta.json" in there):
        raise InputError(
            f"{url} exists. Choose another place"
            + (", or give --overwrite to replace this index." if "meta.json" in there else "; it is not an index.")
        )
    with tempfile.TemporaryDirectory(prefix="fastprobe-") as folder:
        made = Path(folder) / "index"
        yield from build_index(plan, made, probe, recall=recall, queries=queries)
        for name in reversed([n for n in FILES if n in there]):  # meta.json first: no index while it is being replaced
            target.remove(name)
        put_files(made, url, [n for n in FILES if (made / n).is_file()])


def _write_rows(plan: IndexPlan, work: Path, probe: LinearProbe | None) -> Iterator[int]:
    import pyarrow as pa

    schema = pa.schema([("text", pa.large_string())])
    with (
        open(work / "vectors.npy", "wb") as file,
        pa.OSFile(str(work / "texts.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as texts,
    ):
        np.lib.format.write_array_header_2_0(file, {"descr": "<f4", "fortran_order": False, "shape": (plan.rows, plan.width)})
        for block in plan.source.blocks(block_rows(plan.source.width)):
            vectors = probe.project_text(block.vectors) if probe is not None else block.vectors
            file.write(np.ascontiguousarray(unit_rows(vectors), "<f4").data)
            texts.write(pa.record_batch([pa.array(block.labels, pa.large_string())], schema=schema))
            yield block.start + len(block.labels)
        file.flush()
        os.fsync(file.fileno())


def _write_faiss(plan: IndexPlan, work: Path, meta: dict[str, Any], recall: float, queries: np.ndarray | None) -> dict[str, Any]:
    faiss = load_faiss()
    index = GalleryIndex.__new__(GalleryIndex)
    index.vectors, index._texts, index._shards = np.load(work / "vectors.npy", mmap_mode="r"), None, None
    index.meta = {k: meta[k] for k in ("kind", "rows", "width")}
    index._faiss = build_faiss(index.vectors, plan.kind)
    found = tune(index, recall, queries)
    faiss.write_index(index._faiss, str(work / "index.faiss"))
    return found


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(work: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.rename(out, old)  # a folder cannot be renamed over another one
    try:
        os.rename(work, out)
    except OSError:
        if old.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def available_memory() -> int | None:
    """Bytes that programs can still take, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def gib(size: int) -> str:
    """Bytes in words: 2.4 GiB, 180 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size, 0) / 2**20:.0f} MiB"
