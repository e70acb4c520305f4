"""Exact top-k by inner product: several ways to the same lists, the fastest chosen by a written rule.

    s(q, c) = <q, g_c>        the k largest of each query, best first; equal scores: the lower gallery row first

    faiss    FAISS's flat search (`knn`; `knn_gpu` on torch's current stream for CUDA tensors)
    groups   scores of 32 gallery rows at a time are reduced to their maximum and never stored; the best
             groups are then scored again: every member of the top k lies in one of the k best groups
    torch    a product and `torch.topk`
    numpy    a product and `numpy.argpartition`, for arrays; it alone does without torch, whose import takes seconds, and
             is chosen by itself only where torch is not installed

The rule (`choose_path`) comes from benchmarks/retrieval.py; its results lie beside it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, needs

if TYPE_CHECKING:
    import torch

PATHS = ("faiss", "groups", "torch", "numpy")
_NOT_FINITE = "`queries` must be finite; got NaN or infinity. Embed these rows again or drop them."
INSTALL = "pip install faiss-cpu (or, for an NVIDIA GPU, faiss-gpu)"

# The bounds of the rule, on CPUs: see benchmarks/NOTES.md for what was measured on either side of each.
GROUPS_QUERIES, GROUPS_ROWS, GROUPS_ROWS_PER_K = 32, 32768, 2048
FAISS_ROWS = 4096
# FAISS's GPU selection keeps lists of at most this length.
FAISS_GPU_MAX_K = 2048
_GROUP = 32
_SPARE = 8  # groups beyond k, so that a near tie at the edge is seen and settled
_TILE_ROWS, _TILE_QUERIES = 2048, 256  # one tile of scores: 2 MiB, a core's cache
_CHUNK_ROWS = 131072
_BLOCK_FLOATS = {"cpu": 8 << 20, "cuda": 256 << 20, "mps": 64 << 20}


def torch_installed() -> bool:
    """Whether the module `torch` can be found (it is not imported)."""
    return importlib.util.find_spec("torch") is not None


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; who has one has imported torch, so nothing is imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def faiss_installed() -> bool:
    """Whether the module `faiss` can be found (it is not imported)."""
    return importlib.util.find_spec("faiss") is not None


def load_faiss() -> Any:
    """The module `faiss`.

    Raises
    ------
    InputError
        When it is not installed, or cannot be loaded; the message says what to install.
    """
    try:
        import faiss
    except ImportError as error:
        why = "is not installed" if not faiss_installed() else f"is installed but cannot be loaded ({error})"
        raise InputError(f"FAISS {why}. It serves approximate and stored indexes: {INSTALL}; exact search works without.") from None
    return faiss


def faiss_gpus() -> int:
    """GPUs that the installed FAISS can use: 0 for a CPU build, or when there is none."""
    if not faiss_installed():
        return 0
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def choose_path(queries: int, gallery: int, k: int, device: str = "cpu") -> str:
    """The rule: which exact way is taken, from the shape, the device and what is installed.

    ========  ==============================================================  ========
    device    shape                                                           path
    ========  ==============================================================  ========
    cuda      FAISS sees a GPU and k < 2048                                   faiss
    cpu       32 queries or more, and a gallery of max(32768, 2048 k) rows    groups
              or more
    cpu       2 queries or more, a gallery below 4096 rows, FAISS installed   faiss
    any       else                                                            torch
    ========  ==============================================================  ========
    """
    if device == "cuda":
        return "faiss" if k < FAISS_GPU_MAX_K and faiss_gpus() else "torch"
    if device != "cpu":
        return "torch"
    if queries >= GROUPS_QUERIES and gallery >= max(GROUPS_ROWS, GROUPS_ROWS_PER_K * k):
        return "groups"
    return "faiss" if queries > 1 and gallery < FAISS_ROWS and faiss_installed() else "torch"


def top_k(queries: Any, gallery: Any, k: int, *, path: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """The k gallery rows with the largest inner product with each query, exactly.

    Equal scores are ordered by gallery row, also where the list is cut, on every path. (Scores are float32
    and rounded as the path's product rounds them.)

    Parameters
    ----------
    queries : float (n, d)
    gallery : float (N, d)
        NumPy arrays (memory-mapped ones too: they are read in blocks) or torch tensors (not on path "numpy"), finite.
    k : int
        1 ... N.
    path : {"auto", "faiss", "groups", "torch", "numpy"}
        ``auto`` follows `choose_path`, and is "numpy" where torch is not installed.
    device : str, optional
        For two arrays: "cpu" (default) or "cuda:1", to which they are copied. Otherwise the tensor's device is taken (the
        queries', when both are tensors).

    Returns
    -------
    scores : float32 (n, k)
        Descending.
    rows : int64 (n, k)
        Tensors when the queries are one, else arrays.

    Raises
    ------
    InputError
        An empty gallery, different widths, k below 1 or above N, NaN or infinite queries, an unknown or
        missing path.
    """
    if path != "auto" and path not in PATHS:
        raise InputError(f"`path` must be auto, {', '.join(PATHS)}; got {path!r}.")
    if path == "numpy" or (path == "auto" and device in (None, "cpu") and not torch_installed()):
        return _numpy(_as_array(queries, "queries"), _as_array(gallery, "gallery"), k)
    with needs(f"`path`={path!r}" if device is None else f"`device`={device!r}", "torch"):
        import torch

    tensors = isinstance(queries, torch.Tensor)
    where = next((a.device for a in (queries, gallery) if isinstance(a, torch.Tensor)), torch.device(device or "cpu"))
    q, g = (_as_tensor(a, name, where) for a, name in ((queries, "queries"), (gallery, "gallery")))
    check_shapes(tuple(q.shape), tuple(g.shape), k)
    if not _finite(q):
        raise InputError(_NOT_FINITE)
    if path == "auto":
        path = choose_path(len(q), len(g), k, where.type)
    with torch.inference_mode():
        scores, rows = _settled(q, g, int(k), path) if len(q) else (q.new_empty(0, k), q.new_empty(0, k).long())
    return (scores, rows) if tensors else (scores.cpu().numpy(), rows.cpu().numpy())


def check_shapes(queries: tuple[int, ...], gallery: tuple[int, ...], k: Any) -> None:
    """Rows of one width, a gallery that is not empty, and a k that it can serve.

    Raises
    ------
    InputError
        Otherwise.
    """
    if len(gallery) != 2 or gallery[0] == 0:
        raise InputError(f"`gallery` must have at least one row, shape (rows, width); got shape {gallery}. Add texts.")
    if len(queries) != 2 or queries[1] != gallery[1]:
        raise InputError(
            f"`queries` must have the width of the gallery, {gallery[1]}; got shape {queries}. "
            "Use the embeddings, or the probe, that the gallery was made with."
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"`k` must be a whole number of at least 1; got {k!r}.")
    if k > gallery[0]:
        raise InputError(f"`k` must be at most the size of the gallery, {gallery[0]:,}; got {k:,}. Lower it.")


def merge_top_k(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One list per query from those of several parts of a gallery; rows already count over the whole."""
    import torch

    return _ordered(torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1), k)


def _as_array(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"`{name}` must be numbers; got dtype {array.dtype}.")
    return np.ascontiguousarray(array, np.float32)


def _as_tensor(value: Any, name: str, device: torch.device) -> torch.Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to(device, torch.float32)
    array = _as_array(value, name)
    if not array.flags.writeable:  # a memory-mapped file: torch only reads it, but warns that it could not write
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(array).to(device)
    return torch.from_numpy(array).to(device)


# ---- the paths -------------------------------------------------------------------------------------


def _settled(q: torch.Tensor, g: torch.Tensor, k: int, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one search path, then orders equal scores by gallery row, so that every path gives the same list."""
    import torch

    more = min(k + 1, len(g))  # one more than asked shows whether equal scores straddle the end of the list
    scores, rows, sure = {"faiss": _faiss, "groups": _groups, "torch": _torch}[path](q, g, more)
    scores, rows = _ordered(scores, rows, more)
    if more > k:
        sure = sure & (scores[:, k - 1] > scores[:, k])
    scores, rows = scores[:, :k], rows[:, :k]
    if not bool(sure.all()):
        again = torch.nonzero(~sure).squeeze(1)
        for part in again.split(256):
            scores[part], rows[part] = _in_order(q[part], g, k)
    return scores.contiguous(), rows.contiguous()


def _ordered(scores: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    if bool((scores[:, 1:] < scores[:, :-1]).all()):  # the usual case: descending, no two alike
        return scores[:, :k], rows[:, :k]
    rows, order = rows.sort(dim=1)
    scores, best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores[:, :k], rows.gather(1, best)[:, :k]


def _in_order(q: torch.Tensor, g: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stable selection in gallery order, for the few queries with equal scores where the list ends."""
    import torch

    scores, rows = q.new_full((len(q), k), -torch.inf), torch.full((len(q), k), -1, dtype=torch.int64, device=q.device)
    for start in range(0, len(g), 65536):
        s = q @ g[start : start + 65536].T
        better = (s > scores[:, -1:]).any(1) | (rows[:, -1] < 0)  # what only equals the last comes too late
        if not bool(better.any()):
            continue
        at = torch.nonzero(better).squeeze(1)
        own = torch.arange(start, start + s.shape[1], device=q.device).expand(len(at), -1)
        merged = torch.cat([scores[at], s[at]], 1).sort(dim=1, descending=True, stable=True)
        scores[at] = merged.values[:, :k]
        rows[at] = torch.cat([rows[at], own], 1).gather(1, merged.indices[:, :k])
    return scores, rows


def _finite(q: torch.Tensor) -> bool:
    # NaN and infinity survive a sum; only a sum that overflows needs the element-wise look.
    import torch

    return bool(torch.isfinite(q.sum())) or bool(torch.isfinite(q).all())


def _all_sure(q: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.ones(len(q), dtype=torch.bool, device=q.device)


def _faiss(q: torch.Tensor, g: torch.Tensor, k: int):
    faiss = load_faiss()
    if q.device.type == "cpu":
        import torch

        found = faiss.knn(q.numpy(), g.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
        return *(torch.from_numpy(a) for a in found), _all_sure(q)
    if q.device.type != "cuda" or q.device.index not in range(faiss_gpus()):
        raise InputError(f'`path`="faiss": the installed FAISS cannot use {q.device}. {INSTALL}, or path="torch".')
    if k > FAISS_GPU_MAX_K:
        raise InputError(f'`path`="faiss" on a GPU serves k below {FAISS_GPU_MAX_K}; got {k - 1}. Use path="torch".')
    return *_faiss_gpu(faiss, q.contiguous(), g.contiguous(), k), _all_sure(q)


_RESOURCES: dict[int, Any] = {}


def gpu_resources(faiss: Any, device: int) -> Any:
    """FAISS's scratch memory on a GPU: made once per device, since it is hundreds of megabytes."""
    if device not in _RESOURCES:
        _RESOURCES[device] = faiss.StandardGpuResources()
    return _RESOURCES[device]


def _faiss_gpu(faiss: Any, q: torch.Tensor, g: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`knn_gpu` on tensors where they lie, ordered with other work by torch's current stream."""
    import torch
    from faiss.contrib import torch_utils  # noqa: F401 (teaches knn_gpu about tensors and streams)

    with torch.cuda.device(q.device):
        return faiss.knn_gpu(gpu_resources(faiss, q.device.index), q, g, k, metric=faiss.METRIC_INNER_PRODUCT, device=q.device.index)


def _torch(q: torch.Tensor, g: torch.Tensor, k: int):
    import torch

    limit = _BLOCK_FLOATS[q.device.type]
    columns = min(len(g), max(limit // min(len(q), 64), 4 * k))
    rows = max(limit // columns, 1)
    out = []
    for block in q.split(rows):
        best: tuple[torch.Tensor, ...] = ()
        for start in range(0, len(g), columns):
            part = g[start : start + columns]
            scores, found = (block @ part.T).topk(min(k, len(part)), dim=1)
            if best:
                scores, found = torch.cat([best[0], scores], 1), torch.cat([best[1], found + start], 1)
                scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
                found = found.gather(1, order)
            best = (scores, found)
        out.append(best)
    return *(torch.cat(column) for column in zip(*out)), _all_sure(q)


def _groups(q: torch.Tensor, g: torch.Tensor, k: int):
    """Two passes: the maximum of every group of gallery rows, then the rows of the best groups.

    The scores of the first pass live in a cache-sized tile, gallery rows down, so that the maximum runs
    over contiguous queries. A row is certain when the worst group kept lies below its k-th score.
    """
    import torch

    whole = len(g) // _GROUP * _GROUP
    keep = min(k + _SPARE, whole // _GROUP)
    rest = torch.arange(whole, len(g), device=q.device)
    scratch = _Scratch(q)
    out = []
    for block in q.split(_TILE_QUERIES):
        transposed = block.T.contiguous()
        best: tuple[torch.Tensor, ...] = ()
        for start in range(0, whole, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, whole)
            peaks = scratch("peaks", (stop - start) // _GROUP, len(block))
            for at in range(start, stop, _TILE_ROWS):
                tile = g[at : min(at + _TILE_ROWS, stop)]
                scores = torch.mm(tile, transposed, out=scratch("tile", len(tile), len(block)))
                into = (at - start) // _GROUP
                torch.amax(scores.view(-1, _GROUP, len(block)), 1, out=peaks[into : into + len(tile) // _GROUP])
            value, group = peaks.T.contiguous().topk(min(keep, len(peaks)), dim=1)
            group += start // _GROUP
            if best:
                value, group = torch.cat([best[0], value], 1), torch.cat([best[1], group], 1)
                value, order = value.topk(min(keep, value.shape[1]), dim=1)
                group = group.gather(1, order)
            best = (value, group)
        value, group = best
        few = max(_TILE_ROWS * _TILE_QUERIES // (keep * _GROUP * q.shape[1]), 1)
        for part, peak, mine in zip(block.split(few), value.split(few), group.split(few)):
            rows = (mine.unsqueeze(2) * _GROUP + torch.arange(_GROUP, device=q.device)).flatten(1)
            rows = torch.cat([rows, rest.expand(len(part), -1)], 1)
            members = torch.index_select(g, 0, rows.flatten(), out=scratch("members", rows.numel(), q.shape[1]))
            scores = torch.bmm(members.view(*rows.shape, -1), part.unsqueeze(2)).squeeze(2)
            scores, order = scores.topk(k, dim=1)
            # Both passes round differently: a margin of some ulps of what a product of these lengths can reach.
            slack = 4e-6 * scores[:, 0].abs().clamp_min(1e-30)
            sure = (peak[:, -1] + slack < scores[:, -1]) if keep < whole // _GROUP else _all_sure(part)
            out.append((scores, rows.gather(1, order), sure))
    return tuple(torch.cat(column) for column in zip(*out))


class _Scratch:
    """Buffers that are used again, so that a tile stays in the cache instead of being paged in anew."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like = like
        self.kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        size = int(np.prod(shape))
        if name not in self.kept or len(self.kept[name]) < size:
            self.kept[name] = self.like.new_empty(size)
        return self.kept[name][:size].view(shape)


def _numpy(q: np.ndarray, g: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    check_shapes(q.shape, g.shape, k)
    if not np.isfinite(q).all():
        raise InputError(_NOT_FINITE)
    scores, rows = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    step = max(_BLOCK_FLOATS["cpu"] // len(g), 1)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        s = q[part] @ g.T
        found = np.sort(np.argpartition(s, len(g) - k, axis=1)[:, len(g) - k :], axis=1)
        last = np.take_along_axis(s, found, 1).min(axis=1, keepdims=True)
        open_ended = np.flatnonzero((s >= last).sum(axis=1) > k)  # equal scores straddle the end of the list
        found[open_ended] = np.argsort(-s[open_ended], axis=1, kind="stable")[:, :k]
        of_found = np.take_along_axis(s, found, 1)
        order = np.argsort(-of_found, axis=1, kind="stable")
        scores[part], rows[part] = np.take_along_axis(of_found, order, 1), np.take_along_axis(found, order, 1)
    return scores, rows
