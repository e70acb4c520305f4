"""Splits, seeds, permutations and clip draws: all randomness of a run is made here.

Every draw is a pure function of the run's seed and the coordinates of the job,

    rng(purpose, i, j, ...) = Philox(SeedSequence(seed, spawn_key=(purpose, i, j, ...)))

and never of batch, order, thread, device, machine or the number of permutations asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..randomness import AUDIO_START, CLIPS, INNER, PERMUTATION, SHUFFLES, SPLIT, TEXT_START, generator, shuffles

# Beyond these no run is planned, and nothing is allocated for a manifest from outside that says so.
LIMITS = {"splits": 10**5, "seeds": 10**5, "permutations": 10**10}


class Split(NamedTuple):
    """One partition of the classes; both parts ascending, int64."""

    train: np.ndarray
    test: np.ndarray


def train_count(n_classes: int, train_fraction: float) -> int:
    """Number of train classes: `train_fraction` of all, rounded half up (101 of 144 at 0.7).

    Raises
    ------
    InputError
        Unless at least 2 classes remain on either side.
    """
    if not isinstance(train_fraction, (int, float)) or not 0 < train_fraction < 1:
        raise InputError(f"`train_fraction` must lie between 0 and 1; got {train_fraction!r}.")
    n_train = int(np.floor(train_fraction * n_classes + 0.5))
    if n_classes - n_train < 2:
        raise InputError(
            f"`train_fraction` must leave at least 2 test classes; got {train_fraction:g} of {n_classes} classes. Lower it or add classes."
        )
    if n_train < 2:
        raise InputError(
            f"`train_fraction` must leave at least 2 train classes; got {train_fraction:g} of {n_classes} classes. Raise it or add classes."
        )
    return n_train


def split_classes(seed: int, split: int, n_classes: int, train_fraction: float) -> Split:
    """Split number `split`: a uniformly random set of train classes, the rest for testing.

    Examples
    --------
    >>> split = split_classes(seed=0, split=0, n_classes=10, train_fraction=0.7)
    >>> len(split.train), len(split.test)
    (7, 3)
    """
    n_train = train_count(n_classes, train_fraction)
    order = generator(seed, SPLIT, split).permutation(n_classes)
    return Split(np.sort(order[:n_train]), np.sort(order[n_train:]))


def inner_split(seed: int, number: int, outer: Split, train_fraction: float) -> Split:
    """The train classes of split `number`, divided once more: on these a configuration is chosen, without the test classes.

    Raises
    ------
    InputError
        Unless at least 2 classes remain on either side.

    Examples
    --------
    >>> outer = split_classes(seed=0, split=0, n_classes=20, train_fraction=0.7)
    >>> inner = inner_split(0, 0, outer, 0.7)
    >>> len(inner.train), len(inner.test), sorted({*inner.train, *inner.test}) == outer.train.tolist()
    (10, 4, True)
    """
    n_train = train_count(len(outer.train), train_fraction)
    order = outer.train[generator(seed, INNER, number).permutation(len(outer.train))]
    return Split(np.sort(order[:n_train]), np.sort(order[n_train:]))


def permutation(seed: int, number: int, n_classes: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Relabelling number `number` of the text rows: class c receives the text of class ``out[c]``.

    Number 0 is the identity, the observed run. The others are drawn uniformly and independently,
    identity included (Hemerik & Goeman, arXiv 1411.7565), from all permutations or, with `groups`
    ((n_classes,) of labels), from those that move rows only within a group.

    Returns
    -------
    int64 (n_classes,)
    """
    return permutations(seed, number, number + 1, n_classes, groups)[0]


def permutations(seed: int, start: int, stop: int, n_classes: int, groups: np.ndarray | None = None, way: int = SHUFFLES) -> np.ndarray:
    """Relabellings `start` ... `stop`-1, int64 (stop - start, n_classes); many cost little more than one."""
    out = shuffles(seed, PERMUTATION, (), start, stop, n_classes, groups, way)
    out[: max(1 - start, 0)] = np.arange(n_classes)
    return out


def sample_clips(seed: int, split: int, repeat: int, first: np.ndarray, count: np.ndarray, steps: int, clips_per_class: int) -> np.ndarray:
    """The audio rows of every step: `clips_per_class` clips of each train class, with replacement.

    Parameters
    ----------
    repeat : int
        Number of the seed r. Permutations do not enter: every one sees the same clips.
    first, count : int64 (n_train,)
        Row of each train class's first clip (clips of a class are contiguous), and how many there are.

    Returns
    -------
    int64 (steps, n_train * clips_per_class)
        Row i of a step is a clip of train class ``i // clips_per_class``.
    """
    first, count = (np.repeat(a, clips_per_class) for a in (first, count))
    uniform = generator(seed, CLIPS, split, repeat).random((steps, len(first)))
    return first + np.minimum((uniform * count).astype(np.int64), count - 1)


def start_heads(seed: int, split: int, repeat: int, r_text: int, r_audio: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Random starts of both heads, N(0, 1/r): float64 (r_text, dim) and (r_audio, dim)."""
    return tuple(
        generator(seed, purpose, split, repeat).standard_normal((r, dim)) / np.sqrt(r)
        for purpose, r in ((TEXT_START, r_text), (AUDIO_START, r_audio))
    )


class Job(NamedTuple):
    """One probe to train; `seed` is the number of the repeat, not the seed of the run."""

    cell: int
    split: int
    seed: int
    permutation: int


class Unit(NamedTuple):
    """The smallest thing that is computed and stored as a whole: all splits and repeats of one cell
    for permutations `start` ... `stop`-1."""

    cell: int
    start: int
    stop: int


@dataclass(frozen=True)
class JobPlan:
    """All jobs of a run: cells x splits x repeats x (the observed run and `n_permutations` more).

    Attributes
    ----------
    n_cells : int
        Combinations of a text table, an audio table and a probe.
    n_splits, n_seeds : int
        Partitions of the classes, and repeats of each.
    n_permutations : int
        B, how many shuffled repetitions are trained beside the observed run.
    shapes : tuple of (int, int)
        Splits and repeats of each cell, where they differ: a closed-form probe has no repeats, a similarity no splits
        either. Empty when all cells have all of them.
    observed_only : int
        How many cells, the last ones, have the observed run alone: references, which test nothing.
    """

    n_cells: int
    n_splits: int
    n_seeds: int
    n_permutations: int
    shapes: tuple[tuple[int, int], ...] = ()
    observed_only: int = 0

    def __post_init__(self) -> None:
        for name, low in (("n_cells", 1), ("n_splits", 1), ("n_seeds", 1), ("n_permutations", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
                raise InputError(f"`{name[2:]}` must be a whole number of at least {low}; got {value!r}.")
            if value > LIMITS.get(name[2:], value):
                raise InputError(f"`{name[2:]}` must be at most {LIMITS[name[2:]]:,}; got {value:,}. Lower it.")

    def shape(self, cell: int) -> tuple[int, int]:
        """Splits and repeats of a cell."""
        return self.shapes[cell] if self.shapes else (self.n_splits, self.n_seeds)

    @property
    def n_tested(self) -> int:
        """Cells with permutations; they come first."""
        return self.n_cells - self.observed_only

    def replicates(self, cell: int) -> int:
        """Replicates of a cell, the observed run included."""
        return self.n_permutations + 1 if cell < self.n_tested else 1

    def jobs(self, cell: int) -> int:
        """Jobs of a cell in one replicate."""
        splits, repeats = self.shape(cell)
        return splits * repeats

    def count(self, units: Iterable[Unit]) -> int:
        """Jobs of some units."""
        return sum(self.jobs(u.cell) * (u.stop - u.start) for u in units)

    @property
    def n_jobs(self) -> int:
        """All jobs of the run."""
        return sum(self.jobs(cell) * self.replicates(cell) for cell in range(self.n_cells))

    def __iter__(self) -> Iterator[Job]:
        """Every job, in storage order."""
        for cell in range(self.n_cells):
            splits, repeats = self.shape(cell)
            for b in range(self.replicates(cell)):
                for split in range(splits):
                    for repeat in range(repeats):
                        yield Job(cell, split, repeat, b)

    def part(self, index: int, count: int) -> list[Unit]:
        """Part `index` of `count`: a partition of the plan that depends on the plan and `count` alone.

        Replicates are numbered b * n_cells + cell, permutations first; a part is one stretch of these
        numbers, so that parts differ by one replicate at most (and by cells of which only the observed run is wanted).

        Returns
        -------
        list of Unit
            One range of permutations for each cell that the part touches.

        Raises
        ------
        InputError
            Unless 0 <= index < count.
        """
        if not 0 <= index < count:
            raise InputError(f"`shard` I/N must have 0 <= I < N; got {index}/{count}.")
        total = self.n_cells * (self.n_permutations + 1)
        low, high = index * total // count, (index + 1) * total // count
        ranges = (
            Unit(p, -((p - low) // self.n_cells), min(-((p - high) // self.n_cells), self.replicates(p))) for p in range(self.n_cells)
        )
        return [u for u in ranges if u.stop > u.start]

    def gaps(self, done: Iterable[Unit], wanted: list[Unit] | None = None) -> list[Unit]:
        """The set difference `wanted` (by default the whole plan) minus `done`, as the widest ranges."""
        by_cell: dict[int, list[Unit]] = {}
        for unit in done:
            by_cell.setdefault(unit.cell, []).append(unit)
        out = []
        for cell, at, end in wanted if wanted is not None else self.part(0, 1):
            for unit in sorted(by_cell.get(cell, ())):
                if unit.start >= end:
                    break
                if unit.start > at:
                    out.append(Unit(cell, at, unit.start))
                at = max(at, unit.stop)
            if at < end:
                out.append(Unit(cell, at, end))
        return out

    def missing(self, done: Iterable[Unit], size: int, wanted: list[Unit] | None = None) -> list[Unit]:
        """The gaps, cut into units of at most `size` permutations, in the order of `Work`."""
        work, out = Work(self.gaps(done, wanted)), []
        while unit := work.take(size):
            out.append(unit)
        return out


class Work:
    """What is left of a plan, handed out in pieces of any size.

    The order runs over permutations first and cells second, so that an interrupted run of many cells
    holds the same replicates of each. It holds the gaps only, so a million units cost no memory.

    Parameters
    ----------
    gaps : list of Unit
        Disjoint ranges.
    """

    def __init__(self, gaps: Iterable[Unit]) -> None:
        self._heap = [(u.start, u.cell, u.stop) for u in gaps]
        heapq.heapify(self._heap)
        self.replicates = sum(stop - start for start, _, stop in self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def take(self, size: int) -> Unit | None:
        """The next unit, of at most `size` permutations; None when nothing is left."""
        if not self._heap:
            return None
        start, cell, stop = heapq.heappop(self._heap)
        end = min(start + max(int(size), 1), stop)
        if end < stop:
            heapq.heappush(self._heap, (end, cell, stop))
        self.replicates -= end - start
        return Unit(cell, start, end)
