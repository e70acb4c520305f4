"""From scores to ranks, the definition: corrected for hubs or not, among all texts or among those of the unseen classes."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def csls_scores(scores: np.ndarray, k: int) -> np.ndarray:
    """Scores corrected for hubs: float64 (Q, C).

        s'(c, i) = 2 s(c, i) - mean of the k largest s(., i) - mean of the k largest s(c, .)

    Parameters
    ----------
    scores : float (Q, C)
        One row per clip, one column per text.
    k : int
        Neighbours on both sides; 0 returns the scores as they are.

    Raises
    ------
    InputError
        When `k` is above the number of texts or of clips.

    Source: Conneau et al., Word Translation Without Parallel Data (arXiv 1710.04087), equation 4.
    """
    if k == 0:
        return scores
    check_csls(k, *scores.shape)
    of_clips = np.sort(scores, axis=1)[:, -k:].mean(axis=1, keepdims=True)
    of_texts = np.sort(scores, axis=0)[-k:].mean(axis=0)
    return 2 * scores - of_clips - of_texts


def check_csls(k: int, n_queries: int, n_classes: int) -> None:
    """Refuse more neighbours than there are."""
    if k > min(n_queries, n_classes):
        raise InputError(
            f"`csls` must be at most the number of texts and of test clips; got {k} with {n_classes} texts and {n_queries} clips. Lower it."
        )


def ranks_of(scores: np.ndarray, labels: np.ndarray, gallery: np.ndarray | None = None) -> np.ndarray:
    """rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)}, int32 (Q,): ties count against us.

    Parameters
    ----------
    scores : float (Q, C)
    labels : int64 (Q,)
        True class of each clip.
    gallery : int64 (G,), optional
        Classes that may be answered, the true ones among them; all by default.
    """
    true = scores[np.arange(len(scores)), labels]
    among = scores if gallery is None else scores[:, gallery]
    # Classes minus the strictly smaller: the true class counts itself as the 1, and a NaN score comes last.
    return (among.shape[1] - np.sum(among < true[:, None], axis=1)).astype(np.int32)
