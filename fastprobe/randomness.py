"""Where all random numbers come from: one stream per purpose and place, a pure function of the run's seed.

    rng(purpose, i, j, ...) = Philox(SeedSequence(seed, spawn_key=(purpose, i, j, ...)))

so that no draw depends on batch, order, thread, device, machine or the number of permutations asked for.
"""

from __future__ import annotations

import numpy as np

from .errors import InputError

# Part of the contract with stored runs: numbers are never reused for another purpose.
SPLIT, PERMUTATION, CLIPS, TEXT_START, AUDIO_START, SIMULATION, BOOTSTRAP, CONTROL, BASELINE, CEILING, INNER = range(1, 12)
CLIPS_KEPT, GALLERY = 12, 13


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
