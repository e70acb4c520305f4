"""`ClosedFormProbe`: ridge, Procrustes or CCA as one fitted probe, to project, score, retrieve with, and keep on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..kernels.closed import ClosedForm, ranks_of
from ..protocol.config import ProbeConfig
from ..protocol.features import make_pair
from ..protocol.probes import CCA, ClosedProbe, Procrustes, Ridge, probe_from_dict
from .linear import LinearProbe, Stored, train_rows, vectors_of

__all__ = ["ClosedFormProbe"]


class ClosedFormProbe(LinearProbe):
    """Two linear maps that a closed form gives; nothing is trained and nothing is drawn.

        a_c = norm(W' (t_c - mean_t))        b_i = V' (x_i - mean_x)        s(c, i) = <a_c, b_i / |b_i|>
        with csls = K        s'(c, i) = 2 <a_c, b_i> - mean of the K largest <a_c, .> of the clips it was not fitted to

    Parameters
    ----------
    config : Ridge, Procrustes or CCA

    Attributes
    ----------
    classes_ : str (C,)
        Texts of the gallery, ascending.
    train_classes_ : str (n_train,)
        Those the probe was fitted to; the others are unseen.
    text_head_, audio_head_ : float64 (r_text, d), (r_audio, d)
        W and V. Ridge predicts texts, so its W is the identity.
    bank_ : float64 (n, d)
        With `csls`: b of the clips of the unseen classes, of all clips when there are none. They say how near a text is to
        everything; their labels are not used.

    Examples
    --------
    >>> import fastprobe as fp
    >>> names = [f"class {i}" for i in range(12)]
    >>> text, audio = fp.simulate.simulate_pair(names, alignment=1.0, clips=4, text_width=8, audio_width=8)
    >>> probe = fp.fit(text, audio, probe=fp.Ridge(alpha=[0.1, 1.0]), classes=names[:8])
    >>> probe.rank().shape  # clips of the four unseen classes
    (16,)
    >>> probe.retrieve(audio, k=3)[0].shape
    (48, 3)
    """

    config: ClosedProbe
    bank_: np.ndarray

    def __init__(self, config: ClosedProbe) -> None:
        if not isinstance(config, (Ridge, Procrustes, CCA)):
            raise InputError(f"`config` must be a Ridge, Procrustes or CCA; got {type(config).__name__}.")
        self.config = config
        super().__init__()

    @property
    def csls(self) -> int:  # type: ignore[override]  # a constant of probes that have no such option
        """Neighbours of the correction for hubs; 0 for none."""
        return self.config.csls

    def fit(self, text: Any, audio: Any, classes: Sequence[str] | None = None) -> ClosedFormProbe:
        """Solve for the train classes (all classes by default).

        Parameters
        ----------
        text, audio : EmbeddingTable, path, or (vectors, labels)
        classes : sequence of str, optional
            Labels to fit to; the rest stays unseen, for `score`.

        Returns
        -------
        self

        Raises
        ------
        InputError
            Tables that do not belong together, unknown classes, fewer than two, `dim` above the rank, `csls` above the
            number of clips or texts.
        """
        text, audio = self._tables_of(text, audio)
        pair = make_pair(text, audio, ProbeConfig())  # the lossless basis, as in a run
        train = train_rows(pair, classes)
        unseen = np.flatnonzero(~np.isin(pair.labels, train))
        bank = unseen if len(unseen) else np.arange(len(pair.labels))
        closed = ClosedForm(self.config, pair.text, pair.audio, pair.labels, train, bank, "reference")
        self.text_head_, self.audio_head_, self.text_mean_, self.audio_mean_ = closed.form.heads(np.arange(len(pair.classes)))
        self._keep(pair, train, text, audio)
        self.bank_ = self._audio(pair.audio[bank]) if self.csls else np.zeros((0, self.width))
        self.meta |= {"backend": "reference"}
        return self

    def queries(self, vectors: Any) -> np.ndarray:
        """Sounds as `search` takes them: with `csls` b itself, whose length weighs s against the correction."""
        if not self.csls:
            return self.project_audio(vectors)
        self._check_fitted()
        return self._audio(self.audio_preprocessing.apply(vectors_of(vectors)))

    def search(self, queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows (n, k) of the projected texts `gallery` nearest to `queries`, best first."""
        if not self.csls:
            return super().search(queries, gallery, k)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= len(gallery):
            raise InputError(f"`k` must be a whole number from 1 to the size of the gallery, {len(gallery):,}; got {k!r}.")
        scores = self._corrected(queries, np.asarray(gallery, np.float64))
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1).astype(np.float32), rows

    def _corrected(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """s' (n, C). The term of a clip is left out: it is the same for all its texts."""
        hub = np.sort(self.bank_ @ gallery.T, axis=0)[-self.csls :].mean(axis=0)
        return 2 * (queries @ gallery.T) - hub

    def _rank(self, features: np.ndarray, y: np.ndarray) -> np.ndarray:
        queries = self._audio(features)
        return ranks_of(self._corrected(queries, self.gallery_) if self.csls else queries @ self.gallery_.T, y)

    # ---- files -----------------------------------------------------------------------------------

    def _more_tensors(self) -> dict[str, np.ndarray]:
        return {"bank": self.bank_} if self.csls else {}

    def _restore(self, stored: Stored) -> None:
        if stored.kind == "contrastive":
            raise InputError("it holds a trained probe. Read it with `fastprobe.load_probe`.")
        config = probe_from_dict(stored.header["config"])
        assert isinstance(config, (Ridge, Procrustes, CCA))
        self.config = config
        super()._restore(stored)
        self.bank_ = stored.tensors["bank"] if config.csls else np.zeros((0, self.width))
