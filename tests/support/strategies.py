"""Hypothesis strategies and small builders that several test files share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fastprobe.kernels import make_batch
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.features import make_pair
from fastprobe.protocol.optimizers import OPTIMIZERS
from fastprobe.protocol.plan import permutations, split_classes
from fastprobe.tables.embeddings import EmbeddingTable

SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def configs(draw, optimizers=tuple(OPTIMIZERS), **fixed) -> ProbeConfig:
    """A ProbeConfig with few steps, over all its choices, or over those optimisers alone; `fixed` pins fields."""
    fields = {
        "dim": draw(st.sampled_from([1, 3, 8, 17, 33])),
        "steps": draw(st.integers(0, 6)),
        "temperature": draw(st.sampled_from([0.05, 0.25, 1.0])),
        "schedule": draw(st.sampled_from(["cosine", "constant"])),
        "optimizer": draw(st.sampled_from(optimizers)),
        "weight_decay": draw(st.sampled_from([0.0, 0.01])),
        "sampling": draw(st.sampled_from(["clip", "centroid"])),
        "clips_per_class": draw(st.integers(1, 3)),
        "symmetric": draw(st.booleans()),
        "bias": draw(st.booleans()),
        # No more than the queries that a batch of the default shape has at the least.
        "csls": draw(st.sampled_from([0, 0, 1, 2])),
    }
    return ProbeConfig(**{**fields, **fixed})


def tables(
    classes: int = 9, clips: int = 4, text_width: int = 7, audio_width: int = 11, alignment: float = 0.7, seed: int = 0, ragged: bool = True
) -> tuple[EmbeddingTable, EmbeddingTable]:
    """A text and an audio table, aligned through a random map; classes have 1 ... `clips` clips when ragged."""
    rng = np.random.default_rng(seed)
    names = np.array([f"class {i:03d}" for i in range(classes)])
    texts = rng.standard_normal((classes, text_width))
    image = texts @ rng.standard_normal((text_width, audio_width)) / np.sqrt(text_width)
    centroids = alignment * image + np.sqrt(1 - alignment**2) * rng.standard_normal((classes, audio_width))
    count = rng.integers(1, clips + 1, classes) if ragged else np.full(classes, clips)
    labels = np.repeat(names, count)
    audio = np.repeat(centroids, count, axis=0) + 0.5 * rng.standard_normal((len(labels), audio_width))
    return (EmbeddingTable(texts + 0.3, names, meta={"name": "text"}), EmbeddingTable(audio - 0.2, labels, meta={"name": "audio"}))


def batch_of(config: ProbeConfig, n_probes: int = 5, seed: int = 0, split: int = 0, train_fraction: float = 0.7, **shape):
    """A ProbeBatch of the first permutations of simulated tables."""
    text, audio = tables(seed=seed, **shape)
    pair = make_pair(text, audio, config)
    n = len(pair.classes)
    return make_batch(pair, config, split_classes(seed, split, n, train_fraction), seed, split, 0, permutations(seed, 0, n_probes, n))
