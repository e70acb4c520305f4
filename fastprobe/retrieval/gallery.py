"""`GalleryIndex`: the texts nearest to a sound, among a thousand classes or ten million captions.

    exact    every score, by the fastest path there is (`fastprobe.kernels.topk`); the gallery may be a file, or lie
             in parts on several GPUs
    hnsw     FAISS's graph (HNSW32): the fastest, 544 bytes per row of width 64 in memory
    ivfpq    FAISS's inverted lists of 4-bit codes (IVFn,PQmx4fs): 24 bytes per row of width 64; what it finds
             is scored again with the full vectors, which stay on disk

Rows and queries have length 1, so a score is a cosine. The approximate kinds need FAISS; their settings are tried
from cheap to thorough until the recall@10, measured against exact search, reaches what was asked for. Both are kept
with the index.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from ..errors import InputError, needs
from ..kernels.topk import check_shapes, is_tensor, load_faiss, merge_top_k, top_k
from ..storage import FetchedFolder, is_url, local_path
from ..storage.columns import to_arrow

__all__ = ["KINDS", "GalleryIndex", "memory_estimate", "top_k"]

KINDS = ("exact", "hnsw", "ivfpq")
FORMAT = 1
FILES = ("vectors.npy", "texts.arrow", "index.faiss", "probe.safetensors", "meta.json")  # meta.json last: with it the index is whole
APPROXIMATE_FROM = 1_000_000  # rows, for kind "auto"
SMALLEST_APPROXIMATE = 5000
RECALL_AT = 10
_HNSW_LINKS = 32
_ADD_ROWS = 65536
# Settings tried from cheap to thorough: (efSearch, 1) for HNSW; (lists searched, candidates per result that are scored
# again) for IVF-PQ.
_EFFORTS = {
    "hnsw": tuple((ef, 1) for ef in (16, 32, 64, 128, 256, 512, 1024)),
    "ivfpq": tuple((lists, again) for lists in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) for again in (5, 10, 20)),
}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, float32."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-30))


def _unit(vectors: Any) -> Any:
    """Rows of length 1, float32: an array or a tensor, as they came."""
    if is_tensor(vectors):
        import torch

        return torch.nn.functional.normalize(vectors.float(), dim=1)
    return unit_rows(vectors)


def inverted_lists(rows: int) -> int:
    """Number of lists: the power of two next to 4 sqrt(rows), with at least 39 rows each to learn from."""
    return int(2 ** np.clip(np.round(np.log2(4 * np.sqrt(rows))), 2, np.floor(np.log2(rows / 39))))


def code_parts(width: int) -> int:
    """Parts that a vector is cut into: the largest divisor of the width that leaves two numbers or more in each."""
    return next((m for m in range(width // 2, 0, -1) if width % m == 0), 1)


def factory(kind: str, rows: int, width: int) -> str:
    """FAISS's name (`index_factory`) of an approximate kind for a gallery of this shape."""
    return f"HNSW{_HNSW_LINKS}" if kind == "hnsw" else f"IVF{inverted_lists(rows)},PQ{code_parts(width)}x4fs"


def memory_estimate(kind: str, rows: int, width: int, source_width: int | None = None) -> dict[str, int]:
    """Bytes that an index takes beyond the program itself.

    Returns
    -------
    dict
        ``build`` (peak while it is built), ``search`` (resident while it is searched, without what the system keeps of the
        mapped vectors for as long as nobody needs the memory) and ``disk`` (without the texts).
    """
    vectors = 4 * rows * width
    # A block of the source: float32, float64 features, its projection; the labels' strings; what readers and allocators keep.
    stream = block_rows(source_width or width) * (28 * (source_width or width) + 16 * width + 400) + (160 << 20)
    query = 64 << 20
    if kind == "exact":
        return {"build": stream, "search": query, "disk": vectors}
    if kind == "hnsw":
        graph = vectors + rows * (2 * _HNSW_LINKS * 4 + 4 * 4 + 8 + 8)
        # The arrays of vectors and links grow by doubling while rows are added.
        return {"build": stream + 2 * graph, "search": query + graph, "disk": vectors + graph}
    lists = inverted_lists(rows)
    codes = rows * (-(-code_parts(width) // 2) + 8) + lists * width * 4
    sample = min(rows, lists * 64) * width * 4
    return {"build": stream + 2 * codes + 3 * sample + (256 << 20), "search": query + codes, "disk": vectors + codes}


def block_rows(width: int) -> int:
    """Rows of a source that are read at a time: about 64 MiB of work."""
    return int(np.clip((64 << 20) // (28 * width), 256, 65536))


class GalleryIndex:
    """Texts and their vectors, ready to be searched.

    Parameters
    ----------
    vectors : float (N, d)
        An array (a memory-mapped one stays on disk) or a torch tensor. Rows are divided by their length unless `unit`.
    texts : sequence of str (N,), optional
        What a row stands for; by default its number.
    kind : {"exact", "hnsw", "ivfpq", "auto"}
        ``auto`` is exact below a million rows, then ivfpq.
    recall : float
        recall@10 that an approximate kind must reach on `queries`.
    queries : float (n, d), optional
        What recall is measured on; by default rows of the gallery with noise added.
    devices : sequence of str, optional
        For exact search: the gallery is cut into equal parts, one on each ("cuda:0", "cuda:1"), searched side by side.
    unit : bool
        The rows have length 1 already.

    Attributes
    ----------
    meta : dict
        Kind, rows, width, FAISS's factory string and effort, measured recall, and where the vectors come from.

    Raises
    ------
    InputError
        An empty gallery, labels that do not fit, an approximate kind without FAISS or for fewer than 5,000 rows.
    """

    # Where it was opened from, and the copy of what lies behind a URL.
    _home: Path | None = None
    _fetched: FetchedFolder | None = None

    def __init__(
        self,
        vectors: Any,
        texts: Sequence[str] | np.ndarray | None = None,
        kind: str = "auto",
        *,
        recall: float = 0.95,
        queries: Any = None,
        devices: Sequence[str] | None = None,
        unit: bool = False,
    ) -> None:
        if kind not in (*KINDS, "auto"):
            raise InputError(f"`kind` must be auto, {', '.join(KINDS)}; got {kind!r}.")
        shape = tuple(vectors.shape)
        check_shapes((0, shape[-1] if len(shape) else 0), shape, 1)
        if texts is not None and len(texts) != shape[0]:
            raise InputError(f"`texts` must have one entry for each of the {shape[0]} vectors; got {len(texts)}.")
        if kind == "auto":
            kind = choose_kind(shape[0])
        if not unit:
            vectors = _unit(vectors)
        self.vectors, self._texts, self._faiss, self._shards = vectors, texts, None, None
        self.meta: dict[str, Any] = {"kind": kind, "rows": shape[0], "width": shape[1]}
        if devices is not None:
            if kind != "exact":
                raise InputError(f'`devices` splits an exact search; got kind {kind!r}. Use kind="exact".')
            self._shards = _place(vectors, devices)
        if kind != "exact":
            self._faiss = build_faiss(vectors, kind)
            self.meta.update(tune(self, recall, queries))

    def __len__(self) -> int:
        return self.meta["rows"]

    def __repr__(self) -> str:
        return f"GalleryIndex({self.meta['kind']}, {len(self):,} x {self.meta['width']})"

    # ---- searching -------------------------------------------------------------------------------

    def search(self, queries: Any, k: int = 5, *, exact: bool = False) -> tuple[Any, Any]:
        """The k nearest rows of each query.

        Parameters
        ----------
        queries : float (n, d)
            An array or a tensor; any length (they are divided by it).
        k : int
            1 ... N.
        exact : bool
            Score every row, whatever the kind.

        Returns
        -------
        scores : float32 (n, k)
            Cosines, descending; equal scores go by row (among what an approximate kind has found).
        rows : int64 (n, k)
            Tensors on the queries' device for tensors, else arrays.

        Raises
        ------
        InputError
            Another width, k above N.
        """
        check_shapes(tuple(queries.shape), (len(self), self.meta["width"]), k)
        queries = _unit(queries)
        if self._shards is not None:
            return _search_shards(queries, self._shards, k)
        if self._faiss is None or exact:
            return top_k(queries, self.vectors, k)
        if not is_tensor(queries):
            return self._search_faiss(self._faiss, queries, k)
        import torch

        scores, rows = self._search_faiss(self._faiss, queries.cpu().numpy(), k)
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(rows).to(queries.device)

    def _search_faiss(self, index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        kind = self.meta["kind"]
        effort, again = self.meta["effort"]
        fetch = min(again * k, len(self))
        if kind == "hnsw":
            index.hnsw.efSearch = max(effort, fetch)
        else:
            index.nprobe = min(effort, index.nlist)
        step = max((64 << 20) // (4 * fetch * self.meta["width"]), 1)
        out = []
        for start in range(0, len(queries), step):
            q = np.ascontiguousarray(queries[start : start + step], np.float32)
            rows = index.search(q, fetch)[1]
            missing = rows < 0  # fewer candidates than asked for
            if (short := (~missing).sum(axis=1) < k).any():
                rows[short, :k] = top_k(q[short], self.vectors, k)[1]
                missing[short] = np.arange(fetch) >= k
            # Scores of both kinds are taken from the full vectors: of one rounding, whatever the code.
            scores = np.matmul(self.vectors[np.where(missing, 0, rows)], q[:, :, None])[:, :, 0]
            scores[missing] = -np.inf
            order = np.lexsort((rows, -scores))[:, :k]
            out.append((np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)))
        if not out:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, rows = (np.concatenate(column) for column in zip(*out))
        return scores, rows

    def recall(self, queries: Any, k: int = RECALL_AT) -> float:
        """Share of the exact k nearest that `search` finds, over these queries."""
        k = min(k, len(self))
        found, true = self.search(queries, k)[1], self.search(queries, k, exact=True)[1]
        return _share_found(np.asarray(found), np.asarray(true))

    def texts(self, rows: np.ndarray) -> np.ndarray:
        """What rows stand for: str, of the shape of `rows`. Reads no other texts."""
        rows = np.asarray(rows)
        if self._texts is None:
            return rows.astype(str)
        if hasattr(self._texts, "take") and not isinstance(self._texts, np.ndarray):  # an Arrow column, mapped
            wanted, back = np.unique(rows, return_inverse=True)
            found = np.array(_taken(self._texts, wanted, self._home), dtype=str)
            return found[back].reshape(rows.shape)
        return np.asarray(self._texts, dtype=str)[rows]

    @property
    def probe_file(self) -> Path | None:
        """The probe that an index on disk carries; None when it carries none, or was made in memory."""
        file = None if self._home is None else self._home / "probe.safetensors"
        return file if file is not None and file.is_file() else None

    # ---- the probe it was made with ---------------------------------------------------------------

    def check_probe(self, digest: str) -> None:
        """An index of projected texts answers only the probe that projected them, known by its `ContrastiveProbe.digest`.

        Raises
        ------
        InputError
            No probe made this index, or another one.
        """
        made = self.meta.get("probe")
        if made is None:
            raise InputError(
                "this index was built without a probe, so no sound can be looked up in it. Build it again with "
                "`probe` (in the shell --probe)."
            )
        if made != digest:
            raise InputError(
                f"this index was built with another probe ({made[:12]}..., not {digest[:12]}...). Build it again with this one."
            )

    # ---- files -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike) -> GalleryIndex:
        """Open an index that `fastprobe.retrieval.build.build_index` wrote. Vectors and texts stay on disk, mapped.

        One behind a URL is fetched, and its copy removed with the object.

        Raises
        ------
        InputError
            No index there, a damaged one, one from a newer version, an approximate one without FAISS.
        """
        fetched = FetchedFolder(path, FILES) if is_url(path) else None
        home = local_path(path) if fetched is None else fetched.path
        try:
            meta = json.loads((home / "meta.json").read_text("utf-8"))
            whole = [meta["version"], meta["rows"], meta["width"], *(meta["effort"] if meta["kind"] != "exact" else (1, 1))]
            if (
                meta["format"] != "fastprobe-index"
                or not all(isinstance(n, int) and n > 0 for n in whole)
                or len(whole) != 5
                or (meta["kind"] not in KINDS and meta["version"] <= FORMAT)
            ):
                raise ValueError("a meta.json of something else")
        except FileNotFoundError:
            raise InputError(f"{path}: no index (no meta.json in it). `fastprobe index build` makes one.") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not an index, or a damaged one ({error}).") from None
        if meta["version"] > FORMAT:
            raise InputError(f"{path}: written by a newer fastprobe. Upgrade fastprobe.")
        import pyarrow as pa

        index = cls.__new__(cls)
        index.meta, index._faiss, index._shards, index._home, index._fetched = meta, None, None, home, fetched
        try:
            index.vectors = _mapped(home / "vectors.npy")
            with pa.memory_map(str(home / "texts.arrow")) as file:
                texts = pa.ipc.open_file(file).read_all()["text"]
            if not pa.types.is_large_string(texts.type):
                raise ValueError(f"texts of type {texts.type}")
            texts.validate()
            index._texts = texts
            if index.vectors.shape != (meta["rows"], meta["width"]) or len(index._texts) != meta["rows"]:
                raise ValueError(
                    f"vectors of shape {index.vectors.shape} and {len(index._texts)} texts, not {meta['rows']} x {meta['width']}"
                )
            if meta["kind"] != "exact":
                index._faiss = _read_faiss(home / "index.faiss", meta)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: a damaged index ({str(error).splitlines()[0]}). Build it again.") from None
        return index


def _mapped(file: Path) -> np.ndarray:
    """The vectors, on disk; ValueError for whatever a damaged header makes NumPy raise."""
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (EOFError, SyntaxError, OverflowError, MemoryError, TokenError, struct.error) as error:
        raise ValueError(f"vectors.npy: {error}") from None
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise ValueError("vectors.npy: no array of float32")
    return vectors


def _taken(column: Any, rows: np.ndarray, home: Path | None) -> list[str]:
    """Rows of a column of text. A position that points outside its file would end the process, so what is read is checked first.

    Only the blocks that hold a wanted row are checked: a query does not read the texts of a whole gallery.
    """
    import pyarrow as pa

    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    try:
        for i in np.unique(np.searchsorted(ends, rows, side="right")):
            column.chunk(int(i)).validate(full=True)
        return column.take(to_arrow(rows)).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{home}: a damaged index (texts.arrow: {str(error).splitlines()[0]}). Build it again.") from None


def choose_kind(rows: int) -> str:
    """`auto`: exact below a million rows, then ivfpq; exact at any size without FAISS."""
    from ..kernels.topk import faiss_installed

    return "ivfpq" if rows >= APPROXIMATE_FROM and faiss_installed() else "exact"


# ---- exact, on several devices -----------------------------------------------------------------------


def _place(vectors: Any, devices: Sequence[str]) -> list[tuple[int, Any]]:
    """(first row, tensor on its device) of every part."""
    with needs("`devices`", "torch"):
        import torch

    from ..kernels.torch_backend import resolve_device

    if isinstance(devices, str) or not devices:
        raise InputError(f"`devices` must be a list of device names; got {devices!r}.")
    found = [resolve_device(d) for d in devices]
    edges = np.linspace(0, len(vectors), len(found) + 1).astype(int)
    return [
        (int(a), torch.as_tensor(np.array(vectors[a:b]) if isinstance(vectors, np.ndarray) else vectors[a:b]).to(d))
        for a, b, d in zip(edges, edges[1:], found)
        if b > a
    ]


def _search_shards(queries: Any, shards: list[tuple[int, Any]], k: int) -> tuple[Any, Any]:
    """Every part's top k, each on its own device and that device's current stream, then one list of them."""
    import torch

    tensors = is_tensor(queries)
    q = queries if tensors else torch.from_numpy(queries)
    # All parts are set going before any result is waited for.
    found = [(first, top_k(q.to(part.device, non_blocking=True), part, min(k, len(part)))) for first, part in shards]
    home = q.device if tensors else torch.device("cpu")
    scores, rows = merge_top_k([(s.to(home), r.to(home) + first) for first, (s, r) in found], k)
    return (scores, rows) if tensors else (scores.numpy(), rows.numpy())


# ---- approximate -------------------------------------------------------------------------------------


def build_faiss(vectors: Any, kind: str) -> Any:
    """Train and fill a FAISS index, reading the vectors a block at a time.

    Raises
    ------
    InputError
        Without FAISS; for fewer than 5,000 rows.
    """
    faiss = load_faiss()
    rows, width = vectors.shape
    if rows < SMALLEST_APPROXIMATE:
        raise InputError(
            f'`kind`={kind!r} needs at least {SMALLEST_APPROXIMATE:,} rows; got {rows:,}. Use kind="exact", which is fast at that size.'
        )
    # Among rows of length 1 the largest inner product is the smallest distance, and codes of differences from a centre
    # (which FAISS makes for distances) found .93 where those for inner products found .83 (benchmarks/NOTES.md).
    metric = faiss.METRIC_INNER_PRODUCT if kind == "hnsw" else faiss.METRIC_L2
    index = faiss.index_factory(width, factory(kind, rows, width), metric)
    if kind == "hnsw":
        index.hnsw.efConstruction = 100
    else:
        index.cp.niter, index.cp.max_points_per_centroid = 8, 64
        wanted = min(rows, 64 * inverted_lists(rows))
        sample = np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))
        index.train(_rows(vectors, sample))
    for start in range(0, rows, _ADD_ROWS):
        index.add(_rows(vectors, slice(start, start + _ADD_ROWS)))
    return index


def _rows(vectors: Any, which: Any) -> np.ndarray:
    part = vectors[which]
    return np.ascontiguousarray(part if isinstance(part, np.ndarray) else part.cpu().numpy(), np.float32)


def _share_found(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true)]))


def tune(index: GalleryIndex, recall: float, queries: Any = None) -> dict[str, Any]:
    """Raise the effort until the measured recall@10 is reached.

    Returns
    -------
    dict
        ``factory``, ``effort`` (efSearch or lists looked into, and candidates per result), ``recall`` (measured),
        ``recall_wanted``, ``recall_on`` (what it was measured on).
    """
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise InputError(f"`recall` must lie in (0, 1]; got {recall!r}.")
    kind, k = index.meta["kind"], min(RECALL_AT, len(index))
    if queries is None:
        rng = np.random.default_rng(1)
        picked = _rows(index.vectors, np.sort(rng.choice(len(index), min(256, len(index)), replace=False)))
        noise = rng.standard_normal(picked.shape, dtype=np.float32) * np.float32(0.5 / np.sqrt(picked.shape[1]))
        queries, on = unit_rows(picked + noise), "256 rows of the gallery with noise of half their length"
    else:
        queries = unit_rows(_rows(queries, slice(0, 1024)))
        on = f"{len(queries)} queries"
        check_shapes(queries.shape, (len(index), index.meta["width"]), k)
    true = index.search(queries, k, exact=True)[1]
    for effort in _EFFORTS[kind]:
        index.meta["effort"] = list(effort)
        reached = _share_found(index.search(queries, k)[1], true)
        if reached >= recall:
            break
    return {
        "factory": factory(kind, len(index), index.meta["width"]),
        "effort": list(effort),
        "recall": round(reached, 4),
        "recall_wanted": recall,
        "recall_on": on,
    }


def _read_faiss(path: Path, meta: dict[str, Any]) -> Any:
    faiss = load_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError(
            f"{path}: not readable by FAISS {faiss.__version__} ({str(error).splitlines()[-1][:120]}). Build the index again."
        ) from None
    if index.d != meta["width"] or index.ntotal != meta["rows"]:
        raise InputError(f"{path}: holds {index.ntotal:,} x {index.d}, its meta says {meta['rows']:,} x {meta['width']}. Build it again.")
    return index
