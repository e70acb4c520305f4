"""Spelling alone as a text table: `char_ngrams`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..tables.embeddings import EmbeddingTable

MODEL = "char-ngrams"


def char_ngrams(labels: Sequence[str], n: tuple[int, int] = (2, 3), width: int = 256) -> EmbeddingTable:
    """Hashed counts of the character n-grams of each label, scaled to length 1; no language model is read.

    Parameters
    ----------
    labels
        Texts, one row each.
    n
        Shortest and longest n-gram, in characters; words are padded with a space on both sides.
    width
        Columns that the n-grams are hashed into.

    Raises
    ------
    InputError
        No label, an empty one, n-gram lengths that are not ascending, a width below 1.

    Source
    ------
    scikit-learn's ``HashingVectorizer`` (MurmurHash3, alternating signs).
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    names = list(labels)
    if not names or not all(isinstance(x, str) and x.strip() for x in names):
        raise InputError(f"`labels` must be texts that are not empty, at least one; got {names[:3]!r}.")
    if len(n) != 2 or not 1 <= n[0] <= n[1]:
        raise InputError(f"`n` must be the shortest and the longest n-gram, 1 <= shortest <= longest; got {n!r}.")
    if width < 1:
        raise InputError(f"`width` must be at least 1; got {width!r}.")
    hashing = HashingVectorizer(analyzer="char_wb", ngram_range=tuple(n), n_features=width, dtype=np.float32)
    meta = {"name": MODEL, "kind": "text", "model": MODEL, "ngrams": list(n), "width": width}
    return EmbeddingTable(hashing.transform(names).toarray(), np.array(names), meta=meta)
