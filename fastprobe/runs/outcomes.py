"""What a control does with a permutation: losses and ranks of the probes of one (cell, split, repeat)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..kernels import BACKENDS, select_backend
from ..kernels.closed import ClosedForm
from ..kernels.ranking import csls_scores
from ..kernels.reference import norm
from ..kernels.similarity import similarity
from ..protocol.controls import frozen_permutations, frozen_ranks, gaussian_texts
from ..protocol.features import residual_text
from ..protocol.probes import ClosedProbe, Similarity
from ..randomness import CONTROL, generator

if TYPE_CHECKING:
    from .experiment import Experiment


class Outcome(NamedTuple):
    """Losses (P,), NaN where nothing is trained; ranks (P, Q); classes of the queries (Q,); ranks among the test classes (P, Q)."""

    loss: np.ndarray
    ranks: np.ndarray
    classes: np.ndarray
    ranks_unseen: np.ndarray | None

    def in_gallery(self) -> Outcome:
        """The same where a smaller gallery was the second ranking: it becomes the only one."""
        assert self.ranks_unseen is not None
        return self._replace(ranks=self.ranks_unseen, ranks_unseen=None)


Train = Callable[..., Any]


def trained_again(run: Experiment, train: Train, cell: int, split: int, repeat: int, start: int, stop: int) -> Outcome:
    """Text rows permuted, in whatever way the run draws permutations, and every probe trained on them."""
    if run.design is not None:
        batches = [run.batch(cell, split, repeat, number, number + 1) for number in range(start, stop)]
        results = [train(batch, run.device) for batch in batches]
        loss, ranks, unseen = (np.concatenate([getattr(r, name) for r in results]) for name in ("loss", "ranks", "ranks_unseen"))
        return Outcome(loss, ranks, batches[0].labels[batches[0].queries], unseen)
    batch = run.batch(cell, split, repeat, start, stop)
    result = train(batch, run.device)
    return Outcome(result.loss, result.ranks, batch.labels[batch.queries], result.ranks_unseen)


def frozen(run: Experiment, train: Train, cell: int, split: int, repeat: int, start: int, stop: int) -> Outcome:
    """The observed probe as it is; the texts of the held-out classes are shuffled among these."""
    batch = run.batch(cell, split, repeat, 0, 1)
    result = train(batch, run.device, heads=True)
    a = norm(batch.text @ result.text_heads[0])[0]
    b = norm(batch.audio[batch.queries] @ result.audio_heads[0])[0]
    test, classes = run.split(split).test, batch.labels[batch.queries]
    orders = frozen_permutations(run.seed, split, start, stop, test, run.shuffles)
    # The texts stay the same ones, and with them what the correction for hubs subtracts.
    scores = csls_scores(b @ a.T, batch.config.csls)
    ranks = frozen_ranks(scores, classes, test, orders)
    among = batch.gallery
    unseen = frozen_ranks(scores[:, among], np.searchsorted(among, classes), np.searchsorted(among, test), np.searchsorted(among, orders))
    return Outcome(np.repeat(result.loss, stop - start), ranks, classes, unseen)


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
    loss, ranks, unseen = (np.concatenate([getattr(r, name) for r in results]) for name in ("loss", "ranks", "ranks_unseen"))
    return Outcome(loss, ranks, batch.labels[batch.queries], unseen)


def closed_form(run: Experiment, probe: ClosedProbe, cell: int, split: int, backend: str) -> ClosedForm:
    """A closed-form probe of one (cell, split), ready for any permutations."""
    pair, (train, test) = run.pairs[cell], run.split(split)
    queries = np.flatnonzero(np.isin(pair.labels, test))
    backend = select_backend(backend).closed
    device = run.device if backend == "torch" else None
    # The texts of the observed run, by the path that those of every permutation take.
    text = pair.text if run.design is None else residual_text(pair, run.design, run.relabellings(0, 1)[0])
    return ClosedForm(probe, text, pair.audio, pair.labels, train, queries, backend, device, run.rivals(split))


def closed(run: Experiment, probe: ClosedProbe, cell: int, split: int, start: int, stop: int, backend: str) -> Outcome:
    """Text rows permuted, and the closed form taken for each; nothing is trained, so there is no loss."""
    form, relabellings = closed_form(run, probe, cell, split, backend), run.relabellings(start, stop)
    if run.design is None:
        ranks, unseen = form.ranks(relabellings)
    else:
        identity = np.arange(run.n_classes)[None]
        texts = (residual_text(run.pairs[cell], run.design, row) for row in relabellings)
        ranks, unseen = (np.concatenate(side) for side in zip(*(form.with_text(text).ranks(identity) for text in texts)))
    return Outcome(np.full(stop - start, np.nan), ranks, form.labels, unseen)


def similar(run: Experiment, probe: Similarity, cell: int, start: int, stop: int, backend: str) -> np.ndarray:
    """The similarity of the permuted texts and the class centroids, float64 (P,)."""
    pair = run.pairs[cell]
    centroids = np.add.reduceat(pair.audio, pair.first, axis=0) / pair.count[:, None]
    relabellings = run.relabellings(start, stop)
    backend, device = _place(backend, run.device)
    if run.design is None:
        return similarity(probe, pair.text, centroids, relabellings, backend, device)
    identity = np.arange(run.n_classes)[None]
    texts = (residual_text(pair, run.design, row) for row in relabellings)
    return np.concatenate([similarity(probe, text, centroids, identity, backend, device) for text in texts])


def _place(backend: str, device: str | None) -> tuple[str, str | None]:
    """What computes similarities: a GPU where one trains the probes, else the compiled extension, or NumPy where it is not built."""
    if select_backend(backend).closed == "torch":
        from ..kernels.torch_backend import float64_device

        if (chosen := float64_device(device)).type == "cuda":
            return "torch", str(chosen)
    return ("cpp" if backend != "reference" and BACKENDS["cpp"].why_not() is None else "reference"), None


# By the name of the control; `trained_again` for the others.
OUTCOMES: dict[str, Callable[..., Outcome]] = {"frozen": frozen, "gaussian": gaussian}
