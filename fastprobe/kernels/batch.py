"""What a backend is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import BackendUnavailableError
from ..protocol.config import ProbeConfig
from ..protocol.features import PairData
from ..protocol.plan import Split, sample_clips, start_heads


@dataclass(frozen=True, eq=False)
class ProbeBatch:
    """Probes of one (pair, split, seed), which differ only in the permutation of the text rows.

    Attributes
    ----------
    config : ProbeConfig
    text : float64 (C, r_text)
        Features of all texts, not permuted: class c of probe p has row ``permutations[p, c]``.
    audio : float64 (N, r_audio)
        Features of all clips.
    labels : int64 (N,)
        Class of each clip.
    train_classes : int64 (n_train,)
        Ascending. Row i of a training step belongs to train class ``i // clips_per_class``
        (``i`` under centroid sampling).
    clips : int64 (steps, n_train * clips_per_class) or None
        Audio rows of each step; None under centroid sampling.
    queries : int64 (Q,)
        Audio rows to be ranked: all clips of the test classes, grouped by class.
    permutations : int64 (P, C)
    text_start, audio_start : float64 (r_text, d), (r_audio, d)
        Starts of the heads W and V, the same for every probe of the batch.
    rivals : int64 (R,), optional
        Train classes whose texts compete with those of the unseen in the second ranking.
    """

    config: ProbeConfig
    text: np.ndarray
    audio: np.ndarray
    labels: np.ndarray
    train_classes: np.ndarray
    clips: np.ndarray | None
    queries: np.ndarray
    permutations: np.ndarray
    text_start: np.ndarray
    audio_start: np.ndarray
    rivals: np.ndarray | None = None

    @property
    def n_probes(self) -> int:
        """P."""
        return len(self.permutations)

    @property
    def n_rows(self) -> int:
        """n, sound rows of one training step."""
        return len(self.train_classes) * (1 if self.clips is None else self.config.clips_per_class)

    @cached_property
    def gallery(self) -> np.ndarray:
        """The unseen classes, those of the queries, and `rivals` if there are any, ascending: int64 (G,)."""
        unseen = np.unique(self.labels[self.queries])
        return unseen if self.rivals is None else np.union1d(unseen, self.rivals)

    @cached_property
    def row_classes(self) -> np.ndarray:
        """Position among the train classes of each row of a step, int64 (n,)."""
        return np.arange(self.n_rows) // (self.n_rows // len(self.train_classes))

    @cached_property
    def centroids(self) -> np.ndarray:
        """Mean features of the clips of each train class, float64 (n_train, r_audio)."""
        return np.stack([self.audio[self.labels == c].mean(axis=0) for c in self.train_classes])

    def step_rows(self, step: int) -> np.ndarray:
        """The sound rows X of a step, float64 (n, r_audio)."""
        return self.centroids if self.clips is None else self.audio[self.clips[step]]

    @cached_property
    def audio32(self) -> np.ndarray:
        """`audio` in float32, C-contiguous."""
        return np.ascontiguousarray(self.audio, np.float32)

    @cached_property
    def text32(self) -> np.ndarray:
        """`text` in float32, C-contiguous."""
        return np.ascontiguousarray(self.text, np.float32)


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What training and ranking a batch gave.

    Attributes
    ----------
    loss : float64 (P,)
        Training loss of the last step, before its update (NaN when there was no step).
    ranks : int32 (P, Q)
        Rank of the true class among all C texts, from 1 (best); ties count against it.
    ranks_unseen : int32 (P, Q)
        The same among the texts of `ProbeBatch.gallery`, the unseen classes alone where there are no `rivals`.
    text_heads, audio_heads : float (P, r_text, d), (P, r_audio, d) or None
        The trained W and V, when asked for.
    """

    loss: np.ndarray
    ranks: np.ndarray
    ranks_unseen: np.ndarray
    text_heads: np.ndarray | None = None
    audio_heads: np.ndarray | None = None

    @classmethod
    def of_parts(cls, parts: Iterable[Sequence[np.ndarray | None]]) -> BatchResult:
        """The result of a batch that was trained in parts: each part's fields, one after the other."""
        return cls(*(None if field[0] is None else np.concatenate(field) for field in zip(*parts)))  # type: ignore[arg-type]


def check_cpu(backend: str, device: str | None) -> None:
    """For backends that train on the CPU alone.

    Raises
    ------
    BackendUnavailableError
        Another device was named.
    """
    if device not in (None, "cpu"):
        raise BackendUnavailableError(
            f"`device`={device!r} is not one the {backend} backend has: it trains on the CPU. "
            "Leave `device` out, or choose backend torch or triton."
        )


def make_batch(
    pair: PairData,
    config: ProbeConfig,
    split: Split,
    seed: int,
    split_number: int,
    repeat: int,
    permutations: np.ndarray,
    rivals: np.ndarray | None = None,
) -> ProbeBatch:
    """The batch of a pair at (split, seed), with the clip draws and starts that the plan gives there.

    Parameters
    ----------
    seed : int
        The run's seed.
    split_number, repeat : int
        Coordinates of the job: number of the split and of the seed r.
    permutations : int64 (P, C)
    rivals : int64 (R,), optional
        Seen classes whose texts compete in the second ranking, beside those of the unseen.
    """
    train, test = split
    clips = None
    if config.sampling == "clip":
        clips = sample_clips(seed, split_number, repeat, pair.first[train], pair.count[train], config.steps, config.clips_per_class)
    queries = np.flatnonzero(np.isin(pair.labels, test))
    text_start, audio_start = start_heads(seed, split_number, repeat, pair.text.shape[1], pair.audio.shape[1], config.dim)
    orders = np.ascontiguousarray(permutations)
    return ProbeBatch(config, pair.text, pair.audio, pair.labels, train, clips, queries, orders, text_start, audio_start, rivals)
