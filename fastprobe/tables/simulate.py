"""Simulated tables with a known answer: for the demo, the tests and the power of a plan. Never data."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..randomness import SIMULATION, generator
from .embeddings import EmbeddingTable
from .vocabulary import read_csv


def fsd50k_leaf_names() -> list[str]:
    """Names of FSD50K's 144 leaf classes, as its labels spell them.

    The AudioSet ontology alone gives 143 leaves; the 144th taken here is "Fire", whose one descendant
    ("Crackle") belongs to several parents. For simulation only: a study takes its leaves from the data
    set's own ground truth.

    Examples
    --------
    >>> len(fsd50k_leaf_names())
    144
    """
    return sorted(
        row["label"]
        for row in read_csv("fsd50k", "classes", ("label", "is_leaf_in_ontology"))
        if row["is_leaf_in_ontology"] == "1" or row["label"] == "Fire"
    )


def simulate_pair(
    names: list[str],
    *,
    alignment: float,
    clips: int = 20,
    text_width: int = 384,
    audio_width: int = 128,
    spread: float = 1.0,
    seed: int = 0,
    number: int = 0,
) -> tuple[EmbeddingTable, EmbeddingTable]:
    """A text table and an audio table whose class centroids are correlated through a random linear map.

        t_c ~ N(0, I) shared by all `number`s,   mu_c = rho t_c M + sqrt(1 - rho^2) e_c,   x_i = mu_y(i) + spread e_i

    Parameters
    ----------
    names : list of str
        Classes.
    alignment : float
        rho in [0, 1]: correlation of sound centroids with a linear image of the texts; 0 is the null.
    clips : int
        Clips of each class.
    spread : float
        Standard deviation of clips about their centroid, in units of the centroids' own.
    seed, number : int
        Of the draw; `number` picks another audio table for the same texts.

    Raises
    ------
    InputError
        `alignment` outside [0, 1].

    Examples
    --------
    >>> text, audio = simulate_pair(["bell", "dog", "rain"], alignment=0.5, clips=4)
    >>> len(text), len(audio)
    (3, 12)
    """
    if not 0 <= alignment <= 1:
        raise InputError(f"`alignment` must lie in [0, 1]; got {alignment!r}.")
    texts = generator(seed, SIMULATION, 0).standard_normal((len(names), text_width))
    rng = generator(seed, SIMULATION, 1, number)
    image = texts @ rng.standard_normal((text_width, audio_width)) / np.sqrt(text_width)
    centroids = alignment * image + np.sqrt(1 - alignment**2) * rng.standard_normal((len(names), audio_width))
    labels = np.repeat(names, clips)
    vectors = np.repeat(centroids, clips, axis=0) + spread * rng.standard_normal((len(labels), audio_width))
    note = {"simulated": True, "alignment": alignment, "seed": seed}
    text = EmbeddingTable(texts, np.array(names), np.array(names), {"name": "simulated-text", **note})
    ids = np.array([f"{label}/{i % clips}" for i, label in enumerate(labels)])
    return text, EmbeddingTable(vectors, labels, ids, {"name": f"simulated-audio-{number}", **note})
