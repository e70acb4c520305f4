"""Closed-form probes: everything that no permutation changes is made once per split, the rest is one product and a count.

    s(c, i) = <b_i, t_pi(c) / |t_pi(c)|>      rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)}

Where clips b_i and texts t_c lie under a permutation is the business of `forms`. `ClosedForm.scores` with `ranks_of` is the
definition, in float64; the backends are tested against it.
"""

from __future__ import annotations

from copy import copy

import numpy as np

from ..errors import InputError, needs
from ..protocol.probes import ClosedProbe
from .batch import check_cpu
from .forms import SplitData, form_of
from .ranking import check_csls, csls_scores, ranks_of

BACKENDS = ("cpp", "reference", "torch")
# Replicates of one native or batched call: a fixed number, so that bits do not depend on how many are asked for.
CHUNK = 32


class ClosedForm:
    """One closed-form probe at one split of a pair, ready for any number of permutations.

    Parameters
    ----------
    probe : ClosedProbe
    text : float64 (C, r_text)
        Features of all texts, not permuted: class c of replicate p has row ``permutations[p, c]``.
    audio : float64 (N, r_audio)
    labels : int64 (N,)
        Class of each clip.
    train_classes : int64 (n,)
    queries : int64 (Q,)
        Rows of `audio` that are ranked; their classes are the unseen gallery.
    backend : {"cpp", "reference", "torch"}
    device : str, optional
        For ``torch``.

    Raises
    ------
    InputError
        Unknown backend, `dim` above the rank, `csls` above the gallery.
    BackendUnavailableError
        A device that the backend does not have.
    """

    def __init__(
        self,
        probe: ClosedProbe,
        text: np.ndarray,
        audio: np.ndarray,
        labels: np.ndarray,
        train_classes: np.ndarray,
        queries: np.ndarray,
        backend: str = "cpp",
        device: str | None = None,
        rivals: np.ndarray | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise InputError(f"`backend` of {probe.name} must be one of {', '.join(BACKENDS)}; got {backend!r}.")
        if backend != "torch":
            check_cpu(backend, device)
        else:
            with needs("`backend`='torch'", "torch"):
                from .torch_backend import float64_device

            device = str(float64_device(device))
        check_csls(probe.csls, len(queries), len(text))
        self.probe, self.backend, self.device = probe, backend, device
        self.train, self.labels = np.asarray(train_classes), labels[queries]
        self.test = np.unique(self.labels) if rivals is None else np.union1d(self.labels, rivals)
        rest = np.setdiff1d(np.arange(len(text)), self.test)
        self._order = np.concatenate([self.test, rest])
        self._truth = np.searchsorted(self.test, self.labels)
        # Where this split puts clips and texts under a permutation.
        self.form = form_of(probe, SplitData(text, audio, labels, self.train, queries), backend == "cpp")

    def with_text(self, text: np.ndarray) -> ClosedForm:
        """The same probe, split and sounds with other texts, float64 (C, r_text): nothing of the audio side is made again."""
        other = copy(self)
        other.form = self.form.with_text(text)
        return other

    def scores(self, permutation: np.ndarray) -> np.ndarray:
        """s(c, i) of one replicate, float64 (Q, C): one row per query, one column per class."""
        queries, texts = self.form.place(permutation)
        return csls_scores(queries @ texts[permutation].T, self.probe.csls)

    def ranks(self, permutations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of the true class of every query among all C texts, and among those of the test classes.

        Parameters
        ----------
        permutations : int64 (P, C)

        Returns
        -------
        ranks, ranks_unseen : int32 (P, Q)
            From 1 (best); ties count against.
        """
        permutations = np.ascontiguousarray(permutations, np.int64)
        ranks, unseen = (np.empty((len(permutations), len(self.labels)), np.int32) for _ in range(2))
        for at in range(0, len(permutations), CHUNK):
            part = slice(at, at + CHUNK)
            {"reference": self._reference, "cpp": self._cpp, "torch": self._torch}[self.backend](
                permutations[part], ranks[part], unseen[part]
            )
        return ranks, unseen

    def _reference(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        for p, permutation in enumerate(permutations):
            scores = self.scores(permutation)
            ranks[p], unseen[p] = ranks_of(scores, self.labels), ranks_of(scores, self.labels, self.test)

    def _cpp(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        from .. import _cpp
        from .cpp_backend import instruction_set

        found = self.form.factors(permutations)
        _cpp.gathered_ranks(
            left=found.left,
            left_of=found.left_of,
            right=found.right,
            rows=np.ascontiguousarray(found.rows[:, self._order]),
            columns=found.columns,
            truth=self._truth,
            unseen=len(self.test),
            neighbours=self.probe.csls,
            ranks=ranks,
            unseen_ranks=unseen,
            isa=instruction_set(),
        )

    def _torch(self, permutations: np.ndarray, ranks: np.ndarray, unseen: np.ndarray) -> None:
        import torch

        n = len(permutations)
        # The last call is filled up with replicates of its first, so that every product has the same shape.
        filled = np.concatenate([permutations, np.repeat(permutations[:1], CHUNK - n, axis=0)])
        left, left_of, right, rows, columns = (torch.as_tensor(x, device=self.device) for x in self.form.factors(filled))
        rows = rows[:, torch.as_tensor(self._order, device=self.device)]
        truth = torch.as_tensor(self._truth, device=self.device)
        scores = torch.bmm(left[left_of], right[rows[:, :, None], columns[:, None, :]].transpose(1, 2))
        if self.probe.csls:
            scores = 2 * scores - scores.topk(self.probe.csls, dim=1).values.mean(dim=1, keepdim=True)
        true = scores.gather(2, truth.expand(len(filled), -1)[:, :, None])
        below = scores < true
        for out, classes in ((ranks, len(self._order)), (unseen, len(self.test))):
            out[:] = (classes - below[:n, :, :classes].sum(dim=2)).to(torch.int32).cpu().numpy()
