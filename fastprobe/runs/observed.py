"""What the observed run retrieved: the rank of every query, and the texts that stood nearest to it.

    observed.parquet    text, audio, probe, split, seed, query, label, rank
    retrieved.parquet   text, audio, probe, split, seed, query, label, position (1 is best), retrieved, score

The probes of permutation 0 are trained once more, with their heads kept; the ranks are the backend's own,
bit for bit those behind the stored metrics. A list has the rivals by score (equal scores: the class that
comes first in the alphabet first) and the true class at its rank, so the true class is in the first k
positions exactly when its rank is at most k, with ties too: they count against it in both.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..kernels.ranking import csls_scores
from ..kernels.reference import norm
from ..kernels.topk import faiss_gpus, load_faiss, top_k, torch_installed
from ..protocol.config import ProbeConfig
from ..protocol.probes import ClosedProbe, Similarity
from ..storage.columns import repeated, to_arrow, words
from .outcomes import closed_form
from .request import RETRIEVALS

_QUERY_BLOCK = 16384
_ROW_GROUP = 1 << 17
_IN_MEMORY = 64 << 20


def check_retrieval(retrieval: str) -> str:
    """`fused` or `faiss`, and FAISS must be there when it is asked for.

    Raises
    ------
    InputError
        Otherwise; the message says what to install.
    """
    from ..errors import InputError

    if retrieval not in RETRIEVALS:
        raise InputError(f"`retrieval` must be fused or faiss; got {retrieval!r}.")
    if retrieval == "faiss":
        load_faiss()
    return retrieval


def top_lists(
    gallery: np.ndarray, queries: np.ndarray, y: np.ndarray, ranks: np.ndarray, k: int, path: str = "numpy", device: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest classes of each query, with the true class at the position that its rank says.

    Parameters
    ----------
    gallery, queries : float32 (C, d), (n, d)
    y, ranks : int (n,)
        True class of each query, and its rank.
    k : int
        1 ... C.
    path, device
        As in `top_k`.

    Returns
    -------
    int64 (n, k)
        Classes, best first.
    float32 (n, k)
        Their scores.
    """
    scores, rows = top_k(queries, gallery, min(k + 1, len(gallery)), path=path, device=device)
    order = np.argsort(rows == y[:, None], axis=1, kind="stable")  # rivals first, in their order
    position = np.arange(k)
    at = np.minimum(position - (position >= ranks[:, None]), max(rows.shape[1] - 2, 0))
    at = np.take_along_axis(order, at, 1)
    rows, scores = np.take_along_axis(rows, at, 1), np.take_along_axis(scores, at, 1)
    seen = np.flatnonzero(ranks <= k)
    rows[seen, ranks[seen] - 1] = y[seen]
    scores[seen, ranks[seen] - 1] = np.einsum("ij,ij->i", queries[seen], gallery[y[seen]])
    return rows, scores


def observed(experiment: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Columns of observed.parquet and retrieved.parquet, a block of queries of one (cell, split, repeat) at a time.

    Parameters
    ----------
    experiment : fastprobe.runs.experiment.Experiment
    """
    path = "faiss" if experiment.retrieval == "faiss" else "numpy"
    device = "cuda:0" if path == "faiss" and faiss_gpus() and _cuda() else None
    k = max(experiment.ks)
    for i, pair in enumerate(experiment.pairs):
        probe, name = experiment.probe_of(i), experiment.cells[i].probe
        if isinstance(probe, Similarity):
            continue
        classes, clips = words(pair.classes.tolist()), words(pair.clip_ids.tolist())
        splits, repeats = experiment.plan.shape(i)
        for split in range(splits):
            queries = np.flatnonzero(np.isin(pair.labels, experiment.split(split).test))
            for repeat in range(repeats):
                blocks = (
                    _trained_lists(experiment, i, split, repeat, k, path, device)
                    if isinstance(probe, ProbeConfig)
                    else _closed_lists(experiment, probe, i, split, k)
                )
                for start, ranks, found, scores in blocks:
                    rows = queries[start : start + len(ranks)]

                    def columns(copies: int, pair=pair, name=name, split=split, repeat=repeat, rows=rows, clips=clips, classes=classes):
                        n = len(rows) * copies
                        return {
                            "text": repeated(pair.text_name, n),
                            "audio": repeated(pair.audio_name, n),
                            "probe": repeated(name, n),
                            "split": np.full(n, split, np.int32),
                            "seed": np.full(n, repeat, np.int32),
                            "query": clips.take(to_arrow(np.repeat(rows, copies))),
                            "label": classes.take(to_arrow(np.repeat(pair.labels[rows], copies))),
                        }

                    yield (
                        {**columns(1), "rank": ranks},
                        {
                            **columns(k),
                            "position": np.tile(np.arange(1, k + 1, dtype=np.int32), len(rows)),
                            "retrieved": classes.take(to_arrow(found.reshape(-1))),
                            "score": scores.reshape(-1),
                        },
                    )


# First query of a block, ranks (n,), classes (n, k) and scores (n, k) of the lists.
_Block = tuple[int, np.ndarray, np.ndarray, np.ndarray]


def _trained_lists(experiment: Any, cell: int, split: int, repeat: int, k: int, path: str, device: str | None) -> Iterator[_Block]:
    pair, batch = experiment.pairs[cell], experiment.batch(cell, split, repeat, 0, 1)
    result = experiment.trainer(cell)(batch, experiment.device, heads=True)
    among, all_ranks = _competing(experiment, batch.gallery, result.ranks[0], result.ranks_unseen[0])
    gallery = norm(batch.text @ result.text_heads[0].astype(np.float64))[0].astype(np.float32)
    head = result.audio_heads[0].astype(np.float64)
    if csls := batch.config.csls:  # corrected for hubs, scores hang on all queries
        queries, labels = norm(pair.audio[batch.queries] @ head)[0], pair.labels[batch.queries]
        scores = csls_scores(queries @ gallery.T.astype(np.float64), csls)[:, among]
        rows, found = lists_of(scores, np.searchsorted(among, labels), all_ranks, k)
        yield 0, all_ranks, among[rows], found
        return
    for start in range(0, len(batch.queries), _QUERY_BLOCK):
        rows = batch.queries[start : start + _QUERY_BLOCK]
        ranks = all_ranks[start : start + _QUERY_BLOCK].astype(np.int32)
        queries = norm(pair.audio[rows] @ head)[0].astype(np.float32)
        found, scores = top_lists(gallery[among], queries, np.searchsorted(among, pair.labels[rows]), ranks, k, path, device)
        yield start, ranks, among[found], scores


def _closed_lists(experiment: Any, probe: ClosedProbe, cell: int, split: int, k: int) -> Iterator[_Block]:
    form = closed_form(experiment, probe, cell, split, experiment.backend)
    identity = experiment.relabellings(0, 1)
    among, ranks = _competing(experiment, form.test, *(side[0] for side in form.ranks(identity)))
    rows, found = lists_of(form.scores(identity[0])[:, among], np.searchsorted(among, form.labels), ranks, k)
    yield 0, ranks, among[rows], found


def _competing(experiment: Any, gallery: np.ndarray, ranks: np.ndarray, in_gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes among which the run ranks, ascending, and the ranks there."""
    if experiment.request.gallery_size is None:
        return np.arange(experiment.n_classes), ranks
    return gallery, in_gallery


def lists_of(scores: np.ndarray, labels: np.ndarray, ranks: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What `top_lists` gives, of the scores (n, C) themselves, which are overwritten."""
    # Rivals by score; the true class is taken out and put back at the position that its rank says.
    true = scores[np.arange(len(scores)), labels]
    scores[np.arange(len(scores)), labels] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    at = np.arange(k) - (np.arange(k) >= ranks[:, None])
    rows = np.take_along_axis(order, np.maximum(at, 0), 1)
    found = np.take_along_axis(scores, rows, 1)
    seen = np.flatnonzero(ranks <= k)
    rows[seen, ranks[seen] - 1] = labels[seen]
    found[seen, ranks[seen] - 1] = true[seen]
    return rows, found.astype(np.float32)


def write_observed(experiment: Any, store: Any) -> None:
    """Write both files of a run directory, each whole or not at all, with a bounded amount in memory."""
    with _Spool() as ranks, _Spool() as lists:
        for rank_columns, list_columns in observed(experiment):
            ranks.add(rank_columns)
            lists.add(list_columns)
        store.write_file("retrieved.parquet", lists.data())
        store.write_file("observed.parquet", ranks.data())


def _cuda() -> bool:
    if not torch_installed():
        return False
    import torch

    return torch.cuda.is_available()


class _Spool:
    """A Parquet file that grows in a temporary file, part by part."""

    def __enter__(self) -> _Spool:
        self.file = tempfile.TemporaryFile()
        self.writer: Any = None  # of pyarrow, which has no stubs
        self.waiting: list[Any] = []
        return self

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.close()
        self.file.close()

    def add(self, columns: dict[str, Any]) -> None:
        """Append rows; they are written once a row group is full."""
        import pyarrow as pa

        self.waiting.append(pa.table({n: to_arrow(v) for n, v in columns.items()}))
        if sum(len(t) for t in self.waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.waiting:
            return
        table, self.waiting = pa.concat_tables(self.waiting), []
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.file, table.schema, compression="zstd")
        self.writer.write_table(table)

    def data(self) -> bytes | mmap.mmap:
        """The whole file."""
        self._flush()
        self.writer.close()
        self.file.flush()
        size = self.file.seek(0, 2)
        self.file.seek(0)
        return self.file.read() if size <= _IN_MEMORY else mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
