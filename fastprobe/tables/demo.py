"""Real tables that come with fastprobe, for the demo: recordings of 60 classes of AudioSet, and the classes' names.

Provenance and licences lie beside the data (``tables/data/DEMO.md``); ``scripts/pack_demo.py`` makes the files.
"""

from __future__ import annotations

from pathlib import Path

from ..randomness import SIMULATION, generator
from .embeddings import EmbeddingTable

FOLDER = Path(__file__).parent / "data"
AUDIO = "vggish"
TEXTS = ("minilm", "word2vec", "char-ngrams")


def file_of(name: str) -> str:
    """The file that holds a table of the demo."""
    return f"demo_{name}.npz"


def demo_table(name: str) -> EmbeddingTable:
    """A table of the demo: "vggish" of recordings; "minilm", "word2vec" or "char-ngrams" of class names.

    Parameters
    ----------
    name : str
        "vggish": 720 clips of 60 AudioSet classes, 128 wide. The others: a row per class; all-MiniLM-L6-v2 (384 wide),
        word2vec averaged over the words of a name (300 wide), hashed character n-grams (256 wide).

    Raises
    ------
    KeyError
        Another name.

    Examples
    --------
    >>> demo_table("vggish")
    EmbeddingTable('vggish', 720 rows, width 128, 60 classes)
    >>> demo_table("minilm").labels[:3].tolist()
    ['a capella', 'alarm', 'arrow']
    """
    if name not in (AUDIO, *TEXTS):
        raise KeyError(name)
    return EmbeddingTable.load(FOLDER / file_of(name))


def shuffled(table: EmbeddingTable, seed: int) -> EmbeddingTable:
    """The same vectors dealt out to other labels at random: a pair with it is null by construction.

    Parameters
    ----------
    table : EmbeddingTable
        A text table, a row per class.
    seed : int
        Of the draw.

    Returns
    -------
    EmbeddingTable
        Labels and ids as they were, vectors permuted; its name ends in "-shuffled".

    Examples
    --------
    >>> import numpy as np
    >>> table = EmbeddingTable(np.eye(3), ["bell", "dog", "rain"], meta={"name": "toy"})
    >>> shuffled(table, 0).name, sorted(shuffled(table, 0).vectors.tolist()) == sorted(table.vectors.tolist())
    ('toy-shuffled', True)
    """
    order = generator(seed, SIMULATION, 2).permutation(len(table))
    return EmbeddingTable(table.vectors[order], table.labels, table.ids, {**table.meta, "name": f"{table.name}-shuffled", "shuffled": True})
