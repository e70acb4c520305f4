"""Controls: the kinds of null. What each destroys, in one record that the shell and the reports read.

A *control* is the kind of null; a *permutation* is one draw from it. To add one: a record in `CONTROLS`, with its `draw` if
that is not any permutation of all texts; its outcome in `runs.outcomes` if it does not train again on permuted texts; a test.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import factorial, log10, prod
from typing import Any

import numpy as np

from ..errors import InputError
from ..randomness import CONTROL, SHUFFLES, shuffles
from ..tables.embeddings import first_few
from ..tables.spelling import near_misses
from ..tables.vocabulary import read_csv
from . import plan


@dataclass(frozen=True)
class Control:
    """What is known of a kind of null.

    Attributes
    ----------
    name : str
    help : str
        Words for the shell.
    null : str
        How a draw is made, for summaries.
    primer : str
        For readers who have not met permutation tests: "The control ...".
    methods : str
        For the methods paragraph; ``{b}`` permutations, ``{within}`` the grouping, ``{draw}`` how relabellings were drawn.
    title : str
        In a sentence: "against the ... control".
    grouped : bool
        Whether it needs `groups`.
    trained_only : bool
        Whether it replaces something else than text rows, so that closed forms and similarities have no such null.
    one_split : bool
        Whether it is valid for a single split only.
    trained_once : bool
        Whether one probe serves all permutations, so that a unit may hold many.
    caveat : str
        What it does not rule out, or the condition of its validity; may be empty.
    draw : callable (seed, number, n_classes, groups) -> int64 (C,), optional
        Relabelling `number`, the identity for 0; a function of its arguments alone. For p to be valid the draws are uniform over
        a group of relabellings, identity included. None draws from all of them, or from those within `groups`.
    distinct : callable (n_classes, groups) -> int, optional
        Relabellings that `draw` can give, where it does not draw from all of them. Such a control is drawn, never enumerated.
    """

    name: str
    help: str
    null: str
    primer: str
    methods: str
    title: str
    grouped: bool = False
    one_split: bool = False
    trained_only: bool = False
    trained_once: bool = False
    caveat: str = ""
    draw: Callable[[int, int, int, np.ndarray | None], np.ndarray] | None = None
    distinct: Callable[[int, np.ndarray | None], int] | None = None


_AGAIN = "so that only luck leads from a sound to its text"
CONTROLS: dict[str, Control] = {
    c.name: c
    for c in (
        Control(
            "permute",
            "shuffle all texts",
            "text rows permuted uniformly, the probe trained again",
            f"shuffles the texts among the classes and trains the probe again, {_AGAIN}",
            "the rows of the text table were permuted and the probe was trained again, for {b:,} uniformly drawn permutations, "
            "identity included (Hemerik & Goeman 2018)",
            "permuted",
            caveat="The null shuffles all texts. Rejecting it can mean no more than that coarse categories carry over (music, "
            "animals, vehicles); run with --control permute-within to ask for more than that.",
        ),
        Control(
            "permute-within",
            "shuffle within groups",
            "text rows permuted within groups, the probe trained again",
            "shuffles the texts within groups of classes and trains the probe again, so that beyond the group only "
            "luck leads from a sound to its text",
            'the rows of the text table were permuted only within the groups of "{within}", and the probe was trained again; {draw}',
            "permuted",
            grouped=True,
        ),
        Control(
            "frozen",
            "shuffle held-out texts of a probe trained once",
            "the probe trained once, the texts of the held-out classes permuted",
            f"shuffles the texts of the unseen classes and looks the sounds up again, {_AGAIN}",
            "the probe was trained once and the texts of the held-out classes were permuted {b:,} times",
            "permuted",
            one_split=True,
            trained_only=True,
            trained_once=True,
        ),
        Control(
            "gaussian",
            "Gaussian texts",
            "texts replaced by Gaussian draws of the same mean and covariance, the probe trained again",
            f"puts random vectors in place of the texts and trains the probe again, {_AGAIN}",
            "the texts were replaced {b:,} times by Gaussian draws of the same mean and covariance, and the probe was trained again",
            "Gaussian",
            trained_only=True,
            caveat="The Gaussian null is a reference, not a permutation group: its p holds as far as the texts are like Gaussian draws.",
        ),
    )
}
# Up to this many distinct relabellings are listed instead of drawn, when the run asks for no fewer.
ENUMERATE_UP_TO = 100_000


@dataclass(frozen=True)
class PermutationSource:
    """The relabellings of a run.

    Attributes
    ----------
    control : str
    distinct : int
        Distinct relabellings, identity included.
    enumerated : bool
        Whether each distinct one occurs exactly once (number 0 is the identity), which makes p exact.
    n_permutations : int
        B; `distinct` - 1 when enumerated.
    draw : callable (start, stop) -> int64 (stop - start, C)
        Relabellings by number: class c receives the text of class ``out[b, c]``.
    """

    control: str
    distinct: int
    enumerated: bool
    n_permutations: int
    draw: Callable[[int, int], np.ndarray]


def check_control(control: str, groups: np.ndarray | None, n_splits: int = 1) -> None:
    """Whether the parts of a control fit together.

    Raises
    ------
    InputError
        An unknown control; groups without ``permute-within`` or the other way round.
    """
    if control not in CONTROLS:
        raise InputError(f"`control` must be one of {', '.join(CONTROLS)}; got {control!r}.")
    rule = CONTROLS[control]
    if rule.grouped and groups is None:
        raise InputError(f'`control`="{control}" needs `groups`: a CSV with a column `label` and the column to stay within.')
    if rule.one_split and n_splits > 1:
        raise InputError(
            f'`control`="{control}" is valid for one split at a time, because its shuffles of different splits cannot '
            f'be matched; got `splits`={n_splits}. Use `splits`=1, or `control`="permute".'
        )
    if not rule.grouped and groups is not None:
        known = ", ".join(f'"{c.name}"' for c in CONTROLS.values() if c.grouped)
        raise InputError(f"`groups` belongs to `control`={known}; got `control`={control!r}. Choose one.")


def read_groups(path: str | os.PathLike, column: str, classes: Sequence[str] | np.ndarray) -> np.ndarray:
    """The group of each class, str (C,), from a CSV with a column `label`; "fsd50k" names the vocabulary that comes with fastprobe.

    Raises
    ------
    InputError
        A missing file or column, a class without a group, a label given two groups.
    """
    found: dict[str, str] = {}
    for row in read_csv(path, "groups", ("label", column)):
        label, group = row["label"], row[column]
        if found.setdefault(label, group) != group:
            raise InputError(f"`groups`: {path} puts label {label!r} into both {found[label]!r} and {group!r}. Keep one.")
    missing = [str(c) for c in classes if not found.get(str(c))]
    if missing:
        raise InputError(
            f"`groups`: {path} has no {column!r} for {len(missing)} of {len(classes)} classes: {first_few(missing)}."
            f"{near_misses(missing, found)}"
        )
    return np.array([found[str(c)] for c in classes])


def group_of(control: str, groups: Any, within: str | None, classes: np.ndarray, n_splits: int = 1) -> np.ndarray | None:
    """The group of each class for a run, str (C,), or None where the control has none.

    Parameters
    ----------
    groups : path, mapping from label to group, sequence (C,), or None
    within : str, optional
        Column, when `groups` is a file.
    classes : str (C,)
        Ascending.
    """
    check_control(control, groups, n_splits)
    return None if groups is None else groups_for(groups, within, classes)


def groups_for(groups: Any, within: str | None, classes: np.ndarray) -> np.ndarray:
    """The group of each class, str (C,), from a file, a mapping or a sequence."""
    if isinstance(groups, (str, os.PathLike)):
        if not within:
            raise InputError("`within` must name the column of `groups` to stay within; got none.")
        return read_groups(groups, within, classes)
    if isinstance(groups, Mapping):
        missing = [str(c) for c in classes if str(c) not in groups]
        if missing:
            raise InputError(
                f"`groups` lacks {len(missing)} of {len(classes)} classes: {first_few(missing)}.{near_misses(missing, groups)}"
            )
        return np.array([str(groups[str(c)]) for c in classes])
    if isinstance(groups, bytes) or not isinstance(groups, Iterable):
        raise InputError(f"`groups` must be a file, a mapping from label to group, or one group per class; got {groups!r}.")
    out = np.array([str(g) for g in groups])
    if len(out) != len(classes):
        raise InputError(f"`groups` must have one entry for each of the {len(classes)} classes; got {len(out)}.")
    return out


def count_distinct(n_classes: int, groups: np.ndarray | None = None) -> int:
    """Distinct relabellings, identity included:  C!  or, within groups, the product of n_g!. Exact."""
    if groups is None:
        return factorial(n_classes)
    return prod(factorial(int(n)) for n in np.unique(groups, return_counts=True)[1])


def say_count(n: int) -> int | str:
    """A count of relabellings as it is recorded: the number itself up to 10^15, else its power of ten."""
    return n if n <= 10**15 else f"10^{log10(n):.1f}"


def enumerate_distinct(n_classes: int, groups: np.ndarray | None = None) -> np.ndarray:
    """All distinct relabellings in lexicographic order, so the identity is number 0; int64 (distinct, C).

    Raises
    ------
    InputError
        More than 100,000 of them.
    """
    total = count_distinct(n_classes, groups)
    if total > ENUMERATE_UP_TO:
        raise InputError(f"{say_count(total)} distinct permutations are too many to list (at most {ENUMERATE_UP_TO}). Draw them at random.")
    blocks = [np.arange(n_classes)] if groups is None else [np.flatnonzero(groups == g) for g in np.unique(groups)]
    out = np.tile(np.arange(n_classes, dtype=np.int64), (total, 1))
    for i, choice in enumerate(itertools.product(*(itertools.permutations(block) for block in blocks))):
        for block, order in zip(blocks, choice):
            out[i, block] = order
    return out


def listed(groups: np.ndarray) -> np.ndarray:
    """`enumerate_distinct` of these groups, made once per process."""
    return _listed(tuple(groups.tolist()))


@lru_cache(maxsize=2)
def _listed(groups: tuple[str, ...]) -> np.ndarray:
    return enumerate_distinct(len(groups), np.array(groups))


def permutation_source(control: str, seed: int, n_classes: int, n_permutations: int, groups: np.ndarray | None = None) -> PermutationSource:
    """What a run trains on, for controls that relabel all texts.

    When there are no more distinct relabellings than the run asks for, each is trained once and p is exact;
    otherwise, and where a control has a way of its own to draw, they are drawn uniformly and independently.

    Parameters
    ----------
    control : {"permute", "permute-within"}
    n_permutations : int
        B asked for.
    groups : str (C,), optional

    Raises
    ------
    InputError
        Blocks of one class each: nothing can move.
    """
    check_control(control, groups)
    rule = CONTROLS[control]
    distinct = (rule.distinct or count_distinct)(n_classes, groups)
    if distinct == 1:
        raise InputError("`groups` leaves every class alone in its group, so nothing can be permuted. Choose a coarser column.")
    if rule.distinct is None and distinct - 1 <= n_permutations and distinct <= ENUMERATE_UP_TO:
        table = enumerate_distinct(n_classes, groups)
        return PermutationSource(control, distinct, True, distinct - 1, lambda start, stop: table[start:stop])
    return PermutationSource(
        control, distinct, False, n_permutations, lambda start, stop: relabellings(control, seed, start, stop, n_classes, groups)
    )


def relabellings(
    control: str, seed: int, start: int, stop: int, n_classes: int, groups: np.ndarray | None = None, way: int = SHUFFLES
) -> np.ndarray:
    """Relabellings `start` ... `stop`-1 as the control draws them, int64 (stop - start, C); `way` as `randomness.shuffles` has it."""
    draw = CONTROLS[control].draw
    if draw is None:
        return plan.permutations(seed, start, stop, n_classes, groups, way)
    return np.array([draw(seed, number, n_classes, groups) for number in range(start, stop)], np.int64).reshape(-1, n_classes)


def frozen_permutations(seed: int, split: int, start: int, stop: int, test_classes: np.ndarray, way: int = SHUFFLES) -> np.ndarray:
    """Shuffles of the held-out classes of a split: ``out[b, i]`` is the class whose text test class i receives.

    Number 0 is the identity. Each is a function of (seed, split, number) and of how many classes there are.

    Returns
    -------
    int64 (stop - start, n_test)
    """
    order = shuffles(seed, CONTROL, (split,), start, stop, len(test_classes), way=way)
    order[: max(1 - start, 0)] = np.arange(len(test_classes))
    return np.asarray(test_classes, np.int64)[order]


def frozen_ranks(scores: np.ndarray, query_classes: np.ndarray, test_classes: np.ndarray, relabelled: np.ndarray) -> np.ndarray:
    """Ranks of the queries under shuffled held-out texts, with the trained probe as it is.

        rank_bi = 1 + #{c != pi_b(y_i) : s(c, i) >= s(pi_b(y_i), i)}

    A rank depends on b only through the text that query i is asked for, so all C_test ranks of a query are
    found once and then looked up.

    Parameters
    ----------
    scores : float (Q, C)
        s(c, i) of the trained probe.
    query_classes : int64 (Q,)
    test_classes : int64 (n_test,)
        Ascending; holds every query class.
    relabelled : int64 (P, n_test)
        As `frozen_permutations` gives them.

    Returns
    -------
    int32 (P, Q)
    """
    # Position from the bottom with ties counted against the text asked for, as reference.ranks does.
    ordered = np.sort(scores, axis=1)
    table = np.empty((len(scores), len(test_classes)), np.int32)
    for i, row in enumerate(ordered):
        table[i] = scores.shape[1] - np.searchsorted(row, scores[i, test_classes], side="left")
    asked = np.searchsorted(test_classes, relabelled)[:, np.searchsorted(test_classes, query_classes)]
    return table[np.arange(len(scores)), asked]


def gaussian_texts(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts drawn from a Gaussian with the mean and covariance of the given ones.

        G = mean + Z (F - mean) / sqrt(C - 1),    Z ~ N(0, 1) of shape C x C

    Keeps the scale and the shape of the cloud, and destroys where each class lies in it. Draws lie in the
    row space of F, so a lossless basis stays lossless.

    Parameters
    ----------
    features : float (C, r)

    Returns
    -------
    float64 (C, r)
    """
    f = np.asarray(features, np.float64)
    if len(f) < 2:
        raise InputError(f"`features` must have at least two rows to have a covariance; got {len(f)}.")
    mean = f.mean(axis=0)
    return mean + rng.standard_normal((len(f), len(f))) @ (f - mean) / np.sqrt(len(f) - 1)


def selectivity(observed: float, control_mean: float) -> float:
    """Observed minus the mean of the control (Hewitt & Liang 2019): what the geometry adds."""
    return observed - control_mean
