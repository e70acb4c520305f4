"""Real tables that come with fastprobe, for the demo: recordings of 60 classes of AudioSet, and the classes' names.

Provenance and licences lie beside the data (``tables/data/DEMO.md``); ``scripts/pack_demo.py`` makes the files.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .embeddings import EmbeddingTable

FOLDER = Path(__file__).parent / "data"
AUDIO = "vggish"
TEXTS = ("minilm", "word2vec", "char-ngrams", "minilm-shuffled")


def demo_file(name: str) -> Path:
    """The file that holds a table of the demo, named as in `demo_table`.

    Raises
    ------
    InputError
        Another name.
    """
    if name not in (AUDIO, *TEXTS):
        raise InputError(f"`name` must be one of {', '.join((AUDIO, *TEXTS))}; got {name!r}.")
    return FOLDER / f"demo_{name}.npz"


def demo_table(name: str) -> EmbeddingTable:
    """A table of the demo: "vggish" of recordings, the others of class names.

    Parameters
    ----------
    name : str
        "vggish": 720 clips of 60 AudioSet classes, 128 wide. Others have a row per class: all-MiniLM-L6-v2 ("minilm", 384 wide),
        word2vec averaged over the words of a name (300 wide), hashed character n-grams ("char-ngrams", 256 wide). In
        "minilm-shuffled" the vectors of "minilm" belong to other names, drawn at random: a pair with it is null.

    Raises
    ------
    InputError
        Another name.

    Examples
    --------
    >>> demo_table("vggish")
    EmbeddingTable('vggish', 720 rows, width 128, 60 classes)
    >>> demo_table("minilm").labels[:3].tolist()
    ['a capella', 'alarm', 'arrow']
    """
    return EmbeddingTable.load(demo_file(name))
