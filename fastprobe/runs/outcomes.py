"""What a control does with a permutation: losses and ranks of the probes of one (cell, split, repeat)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.reference import norm
from ..protocol.controls import frozen_permutation, frozen_ranks, gaussian_texts
from ..randomness import CONTROL, generator

if TYPE_CHECKING:
    from .experiment import Experiment

# Loss (P,), ranks (P, Q), classes of the queries (Q,).
Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]
Train = Callable[..., Any]


def trained_again(run: Experiment, train: Train, cell: int, split: int, repeat: int, start: int, stop: int) -> Outcome:
    """Text rows permuted, in whatever way the run draws permutations, and every probe trained on them."""
    batch = run.batch(cell, split, repeat, start, stop)
    result = train(batch, run.device)
    return result.loss, result.ranks, batch.labels[batch.queries]


def frozen(run: Experiment, train: Train, cell: int, split: int, repeat: int, start: int, stop: int) -> Outcome:
    """The observed probe as it is; the texts of the held-out classes are shuffled among these."""
    batch = run.batch(cell, split, repeat, 0, 1)
    result = train(batch, run.device, heads=True)
    a = norm(batch.text @ result.text_heads[0])[0]
    b = norm(batch.audio[batch.queries] @ result.audio_heads[0])[0]
    test, classes = run.split(split).test, batch.labels[batch.queries]
    orders = np.stack([frozen_permutation(run.seed, split, number, test) for number in range(start, stop)])
    return np.repeat(result.loss, stop - start), frozen_ranks(b @ a.T, classes, test, orders), classes


def gaussian(run: Experiment, train: Train, cell: int, split: int, repeat: int, start: int, stop: int) -> Outcome:
    """Random texts. The same draw for every text table, so that the replicates of all pairs go together, as max-T needs."""
    batch = run.batch(cell, split, repeat, 0, 1)
    results = [
        train(
            batch if number == 0 else replace(batch, text=gaussian_texts(batch.text, generator(run.seed, CONTROL, number))),
            run.device,
        )
        for number in range(start, stop)
    ]
    loss, ranks = (np.concatenate([getattr(r, name) for r in results]) for name in ("loss", "ranks"))
    return loss, ranks, batch.labels[batch.queries]


# By the name of the control; `trained_again` for the others.
OUTCOMES: dict[str, Callable[..., Outcome]] = {"frozen": frozen, "gaussian": gaussian}
