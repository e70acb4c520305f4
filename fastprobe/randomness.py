"""Where all random numbers come from: one stream per purpose and place, a pure function of the run's seed.

    rng(purpose, i, j, ...) = Philox(SeedSequence(seed, spawn_key=(purpose, i, j, ...)))

so that no draw depends on batch, order, thread, device, machine or the number of permutations asked for. Shuffles,
of which a run draws millions, are numbered stretches of one such stream, so that many of them are one call.
"""

from __future__ import annotations

import numpy as np

from .errors import InputError

# Part of the contract with stored runs: numbers are never reused for another purpose.
SPLIT, PERMUTATION, CLIPS, TEXT_START, AUDIO_START, SIMULATION, BOOTSTRAP, CONTROL, BASELINE, CEILING, INNER = range(1, 12)
CLIPS_KEPT, GALLERY = 12, 13
# How shuffles are drawn, as manifests record it; 1 is the way of 0.1.0, in which its runs are continued.
SHUFFLES = 2
SHUFFLES_OF_0_1_0 = 1


def check_seed(seed: int) -> int:
    """A seed as SeedSequence takes it.

    Raises
    ------
    InputError
        Not a whole number of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"`seed` must be a whole number of at least 0; got {seed!r}.")
    return int(seed)


def generator(seed: int, purpose: int, *coordinates: int) -> np.random.Generator:
    """The stream of one purpose at one place of the plan."""
    key = (purpose, *(int(c) for c in coordinates))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(check_seed(seed), spawn_key=key)))


def shuffles(
    seed: int,
    purpose: int,
    coordinates: tuple[int, ...],
    start: int,
    stop: int,
    n: int,
    groups: np.ndarray | None = None,
    way: int = SHUFFLES,
) -> np.ndarray:
    """Uniformly random orders of 0 ... n-1, numbers `start` ... `stop`-1 of the purpose at one place of the plan.

        order_i = the positions 0 ... n-1 sorted by n random 64-bit words,    words 4 ceil(n / 4) i and on of the stream

    The low bits of each word give way to its position, which breaks ties in the same way on every machine; at 500
    classes the odds of one are 1 in 10^11.

    Parameters
    ----------
    groups : (n,), optional
        Labels; positions then move only within their group.
    way : {1, 2}
        2 is described above. 1 is that of 0.1.0: ``generator(seed, purpose, *coordinates, number).permutation(n)``, group by group.

    Returns
    -------
    int64 (stop - start, n)

    Examples
    --------
    >>> shuffles(0, PERMUTATION, (), 1, 3, 5).tolist() == [shuffles(0, PERMUTATION, (), i, i + 1, 5)[0].tolist() for i in (1, 2)]
    True
    """
    group = np.zeros(n, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    by_group = np.argsort(group, kind="stable")
    if way == SHUFFLES_OF_0_1_0:
        out = np.empty((stop - start, n), np.int64)
        members = np.split(by_group, np.cumsum(np.bincount(group))[:-1])
        for number, row in zip(range(start, stop), out):
            rng = generator(seed, purpose, *coordinates, number)
            for rows in members:
                row[rows] = rows[rng.permutation(len(rows))]
        return out
    blocks = -(-n // 4)  # Philox counts in blocks of four words, and can start at any block
    bits = np.random.Philox(np.random.SeedSequence(check_seed(seed), spawn_key=(purpose, *(int(c) for c in coordinates))))
    keys = bits.advance(start * blocks).random_raw((stop - start) * blocks * 4).reshape(stop - start, 4 * blocks)[:, :n]
    position = np.uint64((1 << (n - 1).bit_length()) - 1)
    if high := int(group.max()).bit_length():  # sorted by group first, so that the places of a group receive its own rows
        keys >>= np.uint64(high)
    keys &= ~position  # in place: a unit of 4,096 permutations of 500 classes is 16 MB
    keys |= np.arange(n, dtype=np.uint64)
    if high:
        keys |= group.astype(np.uint64) << np.uint64(64 - high)
    keys.sort(axis=1)
    keys &= position
    orders = np.ascontiguousarray(keys).view(np.int64)
    return orders[:, np.argsort(by_group)] if high else orders
