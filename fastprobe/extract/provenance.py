"""What a model has been trained on, and the refusal of models that have seen the very labels under test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError
from ..tables.embeddings import first_few
from .names import fsd50k_vocabulary, natural_name

# Heads of published classifiers, by their width.
_HEADS = {527: "audioset", 200: "fsd50k", 50: "esc50", 20: "openmic", 10: "urbansound8k"}
_TITLES = {"audioset": "AudioSet", "fsd50k": "FSD50K", "esc50": "ESC-50", "openmic": "OpenMIC", "urbansound8k": "UrbanSound8K"}


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's training.

    Attributes
    ----------
    trained_on : tuple of str
        Data sets, each with what supervised it; empty for random weights.
    label_sets : frozenset of str
        Data sets whose labels it was tuned on: audioset, fsd50k, esc50, ...
    labels : frozenset of str
        Labels of its own classifier, where the checkpoint lists them.
    """

    trained_on: tuple[str, ...]
    label_sets: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()


UNTRAINED = Provenance(())


def of_checkpoint(source: str, head_width: int | None = None, labels: Iterable[str] = ()) -> Provenance:
    """What a local checkpoint tells: by the width and labels of its classifier, and by its file's name."""
    labels = frozenset(x for x in labels if not re.fullmatch(r"LABEL_\d+", x))
    sets = set(by_name(source))
    if head_width in _HEADS:
        sets.add(_HEADS[head_width])
    told = tuple(f"{_TITLES[s]} (labels; told by the checkpoint's classifier or name)" for s in sorted(sets))
    return Provenance((*told, "otherwise unknown (local checkpoint)"), frozenset(sets), labels)


def by_name(name: str) -> frozenset[str]:
    """Data sets named in a model's name: ``passt:fsd50k`` was tuned on FSD50K."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return frozenset(s for s in _TITLES if s in plain)


def tuned(published: Provenance, name: str) -> Provenance:
    """A published model under a name that tells what else it was tuned on."""
    sets = by_name(name) - published.label_sets
    return Provenance(
        (*published.trained_on, *(f"{_TITLES[s]} (labels; told by its name)" for s in sorted(sets))),
        published.label_sets | sets,
        published.labels,
    )


def leak(provenance: Provenance, labels: Iterable[str], dataset: str | None) -> str | None:
    """Why a model must not be tested on these labels, or None.

    AudioSet is no reason: nearly every audio model has heard it, and the table's meta says so. A model tuned on the labels
    under test is: held-out classes would not be held out from it.
    """
    labels = sorted(set(labels))
    tuned = provenance.label_sets - {"audioset"}
    if dataset in tuned:
        return f"it was fine-tuned on {_TITLES[dataset]}, the data set under test"
    natural = {natural_name(x): x for x in labels}
    if "fsd50k" in tuned:
        vocabulary = {natural_name(x) for x in fsd50k_vocabulary()}
        if seen := [natural[n] for n in natural if n in vocabulary]:
            return f"it was fine-tuned on FSD50K, whose labels include {len(seen)} of these {len(labels)}: {first_few(seen)}"
    if provenance.labels and "audioset" not in provenance.label_sets:
        own = {natural_name(x) for x in provenance.labels}
        if seen := [natural[n] for n in natural if n in own]:
            return f"its own classifier knows {len(seen)} of these {len(labels)} labels: {first_few(seen)}"
    return None


def refuse_leak(model: str, provenance: Provenance, labels: Iterable[str], dataset: str | None, allow: bool) -> str | None:
    """Raise on a leak unless it is allowed; the reason goes into the table's meta.

    Raises
    ------
    InputError
    """
    reason = leak(provenance, labels, dataset)
    if reason and not allow:
        raise InputError(
            f"`model` {model!r} leaks the labels under test: {reason}. Held-out classes would not be held out from "
            "it. Take a model that has not seen them, or say `allow_label_leak` (in the shell "
            "--allow-label-leak), which is then recorded in the table."
        )
    return reason
