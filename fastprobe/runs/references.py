"""What a model is held against: surface baselines, which it should beat, and ceilings, which show what is within reach.

Baselines are text tables, and their cells are like any other. Ceilings are cells that are never permuted: they test nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..extract.names import natural_name
from ..extract.ngrams import MODEL, char_ngrams
from ..protocol.features import canonical_order
from ..randomness import BASELINE, CEILING, generator
from ..tables.embeddings import EmbeddingTable, first_few

BASELINE_ROLE, CEILING_ROLE = "baseline", "ceiling"
SPELLING, CATEGORIES, GIVEN = "spelling", "categories", "given"
# What a baseline knows, to follow "than"; a given table goes by its name.
WORDS = {SPELLING: "the spelling does", CATEGORIES: "the categories do"}
# Length of the random part of a category's text, to its one: it breaks the ties within a category, and carries nothing else.
JITTER = 0.01


class Baseline(NamedTuple):
    """A text table that a model should beat, and what kind it is: "spelling", "categories" or "given"."""

    table: EmbeddingTable
    kind: str


class Ceiling(NamedTuple):
    """Class means of sounds in place of the texts, and the clips that are looked up among them."""

    text: EmbeddingTable
    audio: EmbeddingTable


def role_of(table: dict[str, Any]) -> str:
    """What an input of a run is there for: "model", "baseline" or "ceiling"."""
    return str(table.get("role", "model"))


def words_of(table: dict[str, Any]) -> str:
    """What a baseline among the inputs of a run knows, to follow "than"."""
    return WORDS.get(str(table.get("baseline")), f"{table['name']} does")


def is_made(table: dict[str, Any]) -> bool:
    """Whether the run makes this input itself, from the labels or from the sounds; such a table has no file."""
    return bool(table.get("made"))


def has_spelling(labels: np.ndarray) -> bool:
    """Whether labels are words: class numbers have no spelling to speak of."""
    return any(c.isalpha() for label in labels for c in str(label))


def is_spelling(table: EmbeddingTable) -> bool:
    """Whether a table holds character n-grams already."""
    return table.name == MODEL or table.meta.get("model") == MODEL


def surface_baselines(texts: Sequence[EmbeddingTable], classes: np.ndarray, categories: np.ndarray | None, seed: int) -> list[Baseline]:
    """What the names alone carry: their character n-grams and, where they are known, their categories.

    Parameters
    ----------
    texts : sequence of EmbeddingTable
        The tables under test. One that holds n-grams already is a baseline as it is, unless it is the only one.
    classes : str (C,)
        Ascending.
    categories : str (C,), optional
    seed : int
        Of the run.
    """
    out: list[Baseline] = []
    if not any(map(is_spelling, texts)) and has_spelling(classes):
        made = char_ngrams([natural_name(str(c)) for c in classes])
        out.append(Baseline(EmbeddingTable(made.vectors, classes, meta=made.meta), SPELLING))
    if categories is not None and len(set(categories)) > 1:
        out.append(Baseline(category_table(classes, categories, seed), CATEGORIES))
    return out


def category_table(classes: np.ndarray, categories: np.ndarray, seed: int) -> EmbeddingTable:
    """The category of each class as a one among zeros, with a hundredth of noise.

    Without it all texts of a category would tie, and ties count against the true one: a baseline that knows the category
    would score nothing. With it the ranking within a category is by chance, which is what the category alone can do.
    """
    levels, number = np.unique(categories, return_inverse=True)
    noise = generator(seed, BASELINE).standard_normal((len(classes), len(classes)))
    noise *= JITTER / np.linalg.norm(noise, axis=1, keepdims=True)
    return EmbeddingTable(np.hstack([np.eye(len(levels))[number], noise]), classes, meta={"name": "categories", "model": "categories"})


def ceilings(audios: Sequence[EmbeddingTable], seed: int) -> list[Ceiling]:
    """For each audio table: the class means of a random half of its clips against the other half, and those of every other
    audio table against all of its clips.

    Raises
    ------
    InputError
        A class with a single clip.
    """
    out = []
    for audio in audios:
        order = canonical_order(audio)
        labels = audio.labels[order]
        classes, first, count = np.unique(labels, return_index=True, return_counts=True)
        if (count < 2).any():
            raise InputError(
                f"`ceiling` needs two clips of every class, one for each half; {audio.name} has one of "
                f"{first_few(classes[count < 2].tolist())}. Leave `ceiling` out, or these classes."
            )
        shuffled = np.lexsort((generator(seed, CEILING).random(len(order)), labels))
        half = np.zeros(len(order), bool)
        half[shuffled[np.arange(len(order)) - np.repeat(first, count) < np.repeat(count // 2, count)]] = True
        out.append(Ceiling(_class_means(audio.select(order[half]), f"{audio.name}, half of its clips"), audio.select(order[~half])))
        out += [Ceiling(_class_means(other, f"{other.name}, class means"), audio) for other in audios if other is not audio]
    return out


def _class_means(audio: EmbeddingTable, name: str) -> EmbeddingTable:
    classes, number = np.unique(audio.labels, return_inverse=True)
    means = np.zeros((len(classes), audio.width))
    np.add.at(means, number, audio.vectors.astype(np.float64))
    return EmbeddingTable(means / np.bincount(number)[:, None], classes, meta={"name": name})
