"""`RunRequest`: what is asked of a run, every option once. The library, the shell, configuration files and manifests read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..kernels import BACKENDS
from ..protocol.cells import probe_names
from ..protocol.config import ProbeConfig, option
from ..protocol.controls import CONTROLS
from ..protocol.probes import Probe, as_probe, as_similarity, is_trained
from ..randomness import check_seed

CLASSES = ("strict", "common")
SELECTIONS = ("best", "nested")
RETRIEVALS = ("fused", "faiss")
BACKEND_NAMES = ("auto", *BACKENDS)
_NULL, _WHERE, _BESIDE = "The null", "Where it runs", "What it is held against"


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Every option of a run but its tables and where it is stored.

    Attributes
    ----------
    probe : ProbeConfig, Ridge or another closed form, their text form, or a list of these, optional
        Several make a cell each for every pair; by default a contrastive probe. "ridge:alpha=0.1,1,10" is a text form.
    similarity : Similarity, its text form, such as "knn:k=10", or a list of these
        Numbers over the class centroids, without split or query; a cell each for every pair.
    permutations : int
        B. Permutation b is the same for every pair and whatever the total.
    splits, seeds : int
        Random partitions of the classes; repeats of each, with other starts and clip draws.
    train_fraction : float
        Share of the classes to train on.
    clips : int, optional
        Clips of each class kept, drawn at random; classes that have fewer keep what they have. By default all.
    gallery_size : int, optional
        Texts that compete for a clip: those of the test classes, and of others drawn at random up to so many. By default all.
    statistic : str
        A stored metric: "acc@3" (macro), "acc@3_micro", "mrr", "mean_rank", "mean_log_rank", ...
    k : sequence of int, optional
        Further k to store, by default 1, 3, 5 and 10.
    classes : {"strict", "common"}
        Labels that a table lacks are an error, or are left out.
    control : str
        The null, by its name in `fastprobe.protocol.controls.CONTROLS`, where each says what it destroys. By default all text
        rows are shuffled and the probe is trained again.
    groups : path, mapping or sequence, optional
        For ``permute-within``: a CSV with a column `label` (or "fsd50k"), a mapping from label to group, or the
        groups in ascending order of the labels. Wherever they are known, with ``permute`` too, they are a baseline.
    within : str, optional
        The column of that CSV.
    select : {"best", "nested"}
        With several probes. ``best`` tests the largest studentised statistic of each pair, taken inside every replicate.
        ``nested`` chooses a probe for each pair on a split of the train classes, anew inside every replicate, and tests the
        chosen one: its accuracy is not inflated by the choice.
    stop : str or StopRule, optional
        "besag-clifford:h=10" or "anytime:alpha=0.05"; `permutations` is then the most that are run.
    covariates : path, mapping, Design, or a list of these, optional
        Taken out of both sides, with double residualisation: a CSV by label, a table as "table.npz:components=10",
        "char-ngrams:components=10", or a mapping from column to values in ascending order of the labels.
    baselines : bool
        Whether what the names alone carry, character n-grams and known categories, is tested beside the texts.
    baseline : table, path, (vectors, labels), or a list of these, optional
        Further texts that a model should beat, as word vectors.
    ceiling : bool
        Whether the sounds stand in for the texts too: class means of half of the clips against the other half, and of the
        other audio tables. A reference of what is within reach, without permutations.
    backend, device : str
        See `fastprobe.kernels`.
    seed : int
        Of all randomness.
    retrieval : {"fused", "faiss"}
        What serves the top-k lists of the observed run (``retrieved.parquet``). Ranks are counted by the backend.

    Raises
    ------
    InputError
        A value that cannot be, whatever the tables are; the message names the option, the rule and the value.

    Examples
    --------
    >>> from fastprobe.runs.request import RunRequest
    >>> RunRequest(permutations=199, statistic="mrr").splits
    5
    """

    probe: Any = None
    similarity: Any = ()
    permutations: int = option(1000, "B, how many shuffled repetitions are trained beside the observed run.")
    splits: int = option(5, "Random partitions of the classes.")
    seeds: int = option(1, "Repeats of each split, with other starts and clip draws.")
    train_fraction: float = option(0.7, "Share of the classes to train on.")
    clips: int | None = option(None, "Clips of each class to keep, drawn at random.", show_default="all")
    gallery_size: int | None = option(None, "Texts that compete: the test classes' and others up to so many.", show_default="all")
    statistic: str = option("acc@3", "Metric to test: acc@3 (macro), acc@3_micro, mrr, mean_log_rank ...")
    k: Sequence[int] | None = option(None, "k to store: 1,3 or repeated.", metavar="INT", show_default="1,3,5,10")
    classes: Literal["strict", "common"] = option("strict", "Labels that a table lacks: an error, or left out.", choices=CLASSES)
    control: str = option(
        "permute",
        "The null: " + "; ".join(f"{c.name}: {c.help}" for c in CONTROLS.values()) + ".",
        choices=tuple(CONTROLS),
        group=_NULL,
    )
    groups: Any = option(None, "CSV with a column label, or fsd50k: for permute-within, and a baseline.", group=_NULL)
    within: str | None = option(None, "The column of --groups that holds the group.", group=_NULL)
    select: Literal["best", "nested"] = option(
        "best",
        "Of several probes: the best inside every permutation, or (nested) one chosen on a split of the train classes inside each.",
        choices=SELECTIONS,
    )
    covariates: Sequence[Any] | None = option(
        None,
        "Taken out of both sides: CSV with a column label, TABLE:components=10, or char-ngrams:components=10; repeatable.",
        metavar="FILE",
        group=_NULL,
    )
    stop: Any = option(None, "End early: besag-clifford:h=10 or anytime:alpha=0.05.", group=_NULL)
    baselines: bool = option(True, "Test what the names alone carry too: character n-grams, categories.", group=_BESIDE)
    baseline: Sequence[Any] | None = option(
        None, "Further text table that a model should beat, as word vectors; repeatable.", metavar="FILE", group=_BESIDE
    )
    ceiling: bool = option(
        False, "The sounds in place of the texts: half of the clips against the other half, and other audio tables.", group=_BESIDE
    )
    backend: str = option("auto", "What trains the probes.", choices=BACKEND_NAMES, group=_WHERE)
    device: str | None = option(None, "cpu, cuda, cuda:1, mps.", group=_WHERE)
    seed: int = option(0, "Of all randomness.")
    retrieval: Literal["fused", "faiss"] = option(
        "fused", "What serves the stored top-k lists; ranks are the backend's.", choices=RETRIEVALS, group=_WHERE
    )

    def __post_init__(self) -> None:
        # Imported here, so that `fastprobe --help` does not load SciPy.
        from ..statistics.sequential import StopRule, parse_stop

        probes, similarities = _listed(self.probe), _listed(self.similarity)
        if not probes and not similarities:
            if self.probe is not None:
                raise InputError("`probe` needs at least one probe; got an empty list.")
            probes = [ProbeConfig()]
        given = [as_probe(p) for p in probes]
        object.__setattr__(self, "probe", tuple(given))
        object.__setattr__(self, "similarity", tuple(as_similarity(s) for s in similarities))
        probe_names(self.probes)
        for name in ("baselines", "ceiling"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"`{name}` must be true or false; got {getattr(self, name)!r}.")
        for name in ("covariates", "baseline"):
            object.__setattr__(self, name, tuple(_listed(getattr(self, name))))
        for name in ("classes", "control", "retrieval", "select"):
            value, choices = getattr(self, name), option_of(name)["choices"]
            if value not in choices:
                words = f"{', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
                raise InputError(f"`{name}` must be {'one of ' if len(choices) > 2 else ''}{words}; got {value!r}.")
        for name in ("train_fraction", "clips", "gallery_size"):
            if isinstance(getattr(self, name), (list, tuple)):
                raise InputError(f"`{name}` takes one value here; got {getattr(self, name)!r}. Several make a curve: `fastprobe.curve`.")
        for name in ("clips", "gallery_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"`{name}` must be a whole number of at least 1; got {value!r}.")
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not isinstance(self.statistic, str):
            raise InputError(f'`statistic` must name a stored metric, as "acc@3"; got {self.statistic!r}.')
        rule = parse_stop(self.stop) if isinstance(self.stop, str) else self.stop
        if not isinstance(rule, StopRule | None):
            raise InputError(f"`stop` must be besag-clifford:h=N or anytime:alpha=A; got {self.stop!r}.")
        object.__setattr__(self, "stop", rule)
        if self.k is not None:
            object.__setattr__(self, "k", (self.k,) if np.ndim(self.k) == 0 else tuple(self.k))
        if self.statistic == "loss" and not all(isinstance(p, ProbeConfig) and p.steps for p in given):
            raise InputError(
                '`statistic`="loss" needs `steps` of at least 1, and trained probes alone: without a step there is no training loss. '
                "Choose another."
            )
        untrained = [name for name in probe_names(self.probes) if not is_trained(name)]
        if untrained and CONTROLS[self.control].trained_only:
            others = " or ".join(c.name for c in CONTROLS.values() if not c.trained_only)
            raise InputError(f"`control`={self.control!r} is one of trained probes; got {', '.join(untrained)}. Use {others}.")

        if self.covariates and CONTROLS[self.control].trained_only:
            raise InputError(
                f"`covariates` are taken out of texts that are permuted and trained on again; got `control`={self.control!r}. "
                "Use permute or permute-within."
            )
        if self.select == "nested":
            self._check_nested()

    def _check_nested(self) -> None:
        """What a choice inside every replicate needs."""
        ranking = probe_names(self.probe)
        if len(ranking) < 2:
            raise InputError(
                f'`select`="nested" chooses among probes that rank clips, and needs at least 2; got {", ".join(ranking) or "none"}. '
                "Give several, as --temperature 0.1,0.25 or --probe contrastive --probe procrustes."
            )
        if self.stop is not None:
            raise InputError(
                f'`stop` watches the p of every probe, and `select`="nested" tests the chosen one; got `stop`={str(self.stop)!r}. '
                "Leave one of them out."
            )
        if self.control == "frozen":
            raise InputError(
                '`select`="nested" chooses anew among probes trained on permuted texts; got `control`="frozen", which trains once. '
                "Use permute or permute-within."
            )
        if self.statistic == "loss":
            raise InputError('`select`="nested" chooses by how unseen classes are ranked; got `statistic`="loss". Test acc@3 or another.')
        if not isinstance(self.permutations, bool) and isinstance(self.permutations, int) and self.permutations < 1:
            raise InputError(
                f'`select`="nested" repeats the choice inside every permutation; got `permutations`={self.permutations}. Give at least 1.'
            )

    @property
    def probes(self) -> tuple[Probe, ...]:
        """All probes, similarities last; each makes a cell of every pair."""
        return (*self.probe, *self.similarity)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def option_of(name: str) -> dict[str, Any]:
    """Help line, choices, group of an option."""
    return dict(next(f for f in fields(RunRequest) if f.name == name).metadata)
