"""One experiment: the tables checked and made ready, so that any unit of the run can be computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..kernels import BACKENDS, ProbeBatch, make_batch, select_backend
from ..kernels.ranking import check_csls
from ..protocol.cells import probe_names, shape_of
from ..protocol.config import ProbeConfig
from ..protocol.controls import CONTROLS, group_of, groups_for, listed, permutation_source, relabellings, say_count
from ..protocol.covariates import Design
from ..protocol.features import PairData, TableFeatures, make_pair, residual_pair, residual_text, table_features
from ..protocol.metrics import check_ks, column_of, is_unseen, metric_names, statistic_ks, summarise, unseen_names
from ..protocol.plan import JobPlan, Split, Unit, inner_split, split_classes, train_count
from ..protocol.probes import Probe, Similarity
from ..randomness import GALLERY, generator
from ..storage import absolute
from ..tables.embeddings import EmbeddingTable, check_labels, keep_clips, keep_common, number_note
from .designs import binned, read_design
from .observed import check_retrieval
from .outcomes import OUTCOMES, Outcome, closed, similar, trained_again
from .references import BASELINE_ROLE, CEILING_ROLE, GIVEN, SPELLING, Baseline, ceilings, is_spelling, surface_baselines
from .request import RunRequest
from .specification import Specification

__all__ = ["Experiment", "prepare"]

DEFAULT_KS = (1, 3, 5, 10)
UNIT_BYTES = 128 << 20
MAX_UNIT = 16384
FIRST_UNIT = 256  # small: the arithmetic says little about tiny probes, and the pace grows fourfold each time


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiment(Specification):
    """A specification with its data, ready to compute any unit of the run. Picklable.

    Attributes
    ----------
    pairs : tuple of PairData
        What the probes of each cell are trained on; cells whose features are the same share them.
    paths : dict
        File of each table that came from one, by "side/name". Recorded, but no part of the identity.
    notes : tuple of str
        What whoever reads the results should know of the way they were asked for, in sentences.
    """

    pairs: tuple[PairData, ...]
    paths: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def retrieval(self) -> str:
        """What serves the top-k lists of the observed run. Ranks are the backend's in either case."""
        return self.request.retrieval

    def split(self, number: int) -> Split:
        """Split `number` of the classes."""
        return split_classes(self.seed, number, self.n_classes, self.train_fraction)

    @cached_property
    def inner(self) -> Experiment:
        """The same experiment on the train classes alone, each split divided once more: what a nested choice looks at."""
        return _Inner(**{f.name: getattr(self, f.name) for f in fields(self)})

    def rivals(self, split: int) -> np.ndarray | None:
        """Further classes whose texts compete with those of the test classes; None where all do.

        Drawn at random from (seed, split), and those of a smaller gallery are among those of a larger one.
        """
        if self.request.gallery_size is None:
            return None
        test = self.split(split).test
        others = np.setdiff1d(np.arange(self.n_classes), test)
        return np.sort(generator(self.seed, GALLERY, split).permutation(others)[: self.request.gallery_size - len(test)])

    def relabellings(self, start: int, stop: int) -> np.ndarray:
        """Permutations `start` ... `stop`-1 of the text rows, int64 (stop - start, C)."""
        if self.enumerated and self.groups is not None:
            return listed(self.groups)[start:stop]
        groups = None if self.groups is None else tuple(self.groups)
        return _relabellings(self.control, self.seed, start, stop, self.n_classes, groups, self.shuffles)

    def batch(self, cell: int, split: int, repeat: int, start: int, stop: int) -> ProbeBatch:
        """Permutations `start` ... `stop`-1 at one (cell, split, repeat) of a trained probe; with covariates one at a time."""
        config = self.probe_of(cell)
        assert isinstance(config, ProbeConfig)
        relabellings = self.relabellings(start, stop)
        batch = make_batch(self.pairs[cell], config, self.split(split), self.seed, split, repeat, relabellings, self.rivals(split))
        if self.design is None:
            return batch
        (relabelling,) = relabellings  # residualised again after the rows have moved, so that each permutation has texts of its own
        text = residual_text(self.pairs[cell], self.design, relabelling)
        return replace(batch, text=text, permutations=np.arange(self.n_classes)[None])

    def trainer(self, cell: int, backend: str | None = None) -> Callable[..., Any]:
        """`train` of the run's backend, or of another, for a trained probe."""
        probe = self.probe_of(cell)
        assert isinstance(probe, ProbeConfig)
        return select_backend(backend or self.backend, probe.precision, self.device, probe.optimizer).load()

    def outcomes(self, cell: int, split: int, repeat: int, start: int, stop: int, backend: str | None = None) -> Outcome:
        """Losses, ranks and classes of the queries, under the control of the run; not for similarities.

        Parameters
        ----------
        backend : str, optional
            By default the run's own.
        """
        probe = self.probe_of(cell)
        if isinstance(probe, ProbeConfig):
            outcome = OUTCOMES.get(self.control, trained_again)
            found = outcome(self, self.trainer(cell, backend), cell, split, repeat, start, stop)
        else:
            assert not isinstance(probe, Similarity)
            found = closed(self, probe, cell, split, start, stop, backend or self.backend)
        return found if self.request.gallery_size is None else found.in_gallery()

    def similarities(self, cell: int, start: int, stop: int, backend: str | None = None) -> np.ndarray:
        """Values of a similarity's cell, float64 (stop - start,)."""
        probe = self.probe_of(cell)
        assert isinstance(probe, Similarity)
        return similar(self, probe, cell, start, stop, backend or self.backend)

    def compute(self, unit: Unit) -> dict[str, np.ndarray]:
        """Train and rank all jobs of a unit: columns of one row per job, by (permutation, split, seed)."""
        shape = (unit.stop - unit.start, *self.plan.shape(unit.cell))
        out: dict[str, np.ndarray] = {}
        if isinstance(self.probe_of(unit.cell), Similarity):
            out["similarity"] = self.similarities(unit.cell, unit.start, unit.stop)
        else:
            for split in range(shape[1]):
                for repeat in range(shape[2]):
                    found = self.outcomes(unit.cell, split, repeat, unit.start, unit.stop)
                    values = summarise(found.ranks, found.classes, self.ks, self.n_classes, found.ranks_unseen)
                    columns = {"loss": found.loss, **{name: values[name] for name in self.columns}}
                    if self.nested:
                        columns["inner"] = self.inner_values(unit, split, repeat)
                    for name, column in columns.items():
                        out.setdefault(name, np.empty(shape, column.dtype))[:, split, repeat] = column
        keys = dict(
            zip(
                ("permutation", "split", "seed"),
                np.meshgrid(np.arange(unit.start, unit.stop), np.arange(shape[1]), np.arange(shape[2]), indexing="ij"),
            )
        )
        order: dict[str, np.ndarray] = {
            "split": keys["split"].astype(np.int32),
            "seed": keys["seed"].astype(np.int32),
            "permutation": keys["permutation"].astype(np.int64),
            **out,
        }
        return {name: column.reshape(-1) for name, column in order.items()}

    def check_csls(self, cell: int) -> None:
        """Whether every split has the clips and texts that a cell's correction for hubs takes.

        Raises
        ------
        InputError
            One has fewer.
        """
        if neighbours := getattr(self.probe_of(cell), "csls", 0):
            for split in range(self.plan.n_splits):
                check_csls(neighbours, int(self.pairs[cell].count[self.split(split).test].sum()), self.n_classes)

    def inner_values(self, unit: Unit, split: int, repeat: int, backend: str | None = None) -> np.ndarray:
        """The statistic on the inner split, by which a nested choice is made: float64 (stop - start,)."""
        found = self.inner.outcomes(unit.cell, split, repeat, unit.start, unit.stop, backend)
        column = summarise(found.ranks, found.classes, self.ks, self.n_classes, found.ranks_unseen)[column_of(self.statistic, self.ks)]
        return column.astype(np.float64)

    def flops(self, cell: int) -> float:
        """Arithmetic of one replicate of a cell: training and ranking, all splits and repeats."""
        pair, c = self.pairs[cell], self.probe_of(cell)
        n_train = train_count(self.n_classes, self.train_fraction)
        if isinstance(c, Similarity):
            return float(self.n_classes**2)
        queries = len(pair.labels) * (1 - n_train / self.n_classes)
        if not isinstance(c, ProbeConfig):
            return 2.0 * queries * n_train * self.n_classes * self.plan.jobs(cell) * (2 if self.nested else 1)
        n = n_train * (c.clips_per_class if c.sampling == "clip" else 1)
        (rt, ra), d = (pair.text.shape[1], pair.audio.shape[1]), c.dim
        steps = c.steps * (4.0 * (n_train * rt + n * ra) * d + 6.0 * n * n_train * d)
        per_split = steps + 2.0 * queries * (ra + self.n_classes) * d + 2.0 * self.n_classes * rt * d
        return per_split * self.plan.jobs(cell) * (2 if self.nested else 1)

    def flops_per_permutation(self) -> float:
        """Arithmetic of one replicate of the largest cell."""
        return max(map(self.flops, range(len(self.cells))))

    def largest_unit(self) -> int:
        """Permutations of one unit at most: ranks that fit UNIT_BYTES."""
        by_memory = UNIT_BYTES / (12 * max(len(p.labels) for p in self.pairs))
        if self.stop is not None:  # look about fifty times, or there is little to save
            by_memory = min(by_memory, max(64, self.plan.n_permutations // 50))
        return int(np.clip(by_memory, 1, MAX_UNIT))

    def unit_size(self) -> int:
        """Permutations of the first unit: a few seconds of work by the arithmetic alone."""
        by_arithmetic = BACKENDS[self.backend].unit_flops / self.flops_per_permutation()
        by_time = MAX_UNIT if CONTROLS[self.control].trained_once else by_arithmetic
        return int(np.clip(by_time, 1, min(FIRST_UNIT, self.largest_unit())))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Inner(Experiment):
    """Train classes in place of all. The texts of all classes stay rivals, as in the outer split; the test classes' clips are gone."""

    def split(self, number: int) -> Split:
        return inner_split(self.seed, number, super().split(number), self.train_fraction)


@lru_cache(maxsize=1)
def _relabellings(control: str, seed: int, start: int, stop: int, n_classes: int, groups: tuple[str, ...] | None, way: int) -> np.ndarray:
    """The relabellings of a unit, drawn once for all its splits and seeds (and for the next pair's)."""
    return relabellings(control, seed, start, stop, n_classes, None if groups is None else np.array(groups), way)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def prepare(text: Any, audio: Any, request: RunRequest | None = None, **options: Any) -> Experiment:
    """Check all inputs and build the experiment; nothing is trained yet.

    Parameters
    ----------
    text, audio : table, path, (vectors, labels), or a list of these
        All pairs of the two lists are tested.
    request : RunRequest, optional
        Or its fields by name.

    Raises
    ------
    InputError
        Anything wrong with an argument or a table. The message names the argument, the rule, the value and the way out.
    """
    if request is None:
        request = RunRequest(**options)
    elif options:
        request = replace(request, **options)
    check_retrieval(request.retrieval)
    trained = [p for p in request.probes if isinstance(p, ProbeConfig)] or [ProbeConfig()]
    chosen = select_backend(request.backend, trained[0].precision, request.device, trained[0].optimizer)
    for probe in trained:
        chosen.check(probe.precision, probe.optimizer)
    if any(probe.precision == "auto" for probe in trained):  # what is stored says what was done
        settled = [chosen.settle(p, request.device) if isinstance(p, ProbeConfig) else p for p in request.probe]
        request = replace(request, probe=settled)
    given, rivals, audios, notes = _read_tables(text, audio, request)
    classes = np.unique(given[0].labels)
    n_classes = len(classes)
    JobPlan(1, request.splits, request.seeds, request.permutations)  # refuses impossible numbers first
    train_count(n_classes, request.train_fraction)
    blocks: np.ndarray | None = None
    categories: np.ndarray | None
    if request.groups is not None and request.baselines and request.control == "permute":
        categories = groups_for(request.groups, request.within, classes)
    else:
        blocks = categories = group_of(request.control, request.groups, request.within, classes, request.splits)
    confounds = read_design(request.covariates or (), classes)
    if blocks is not None and (column := binned(blocks, request.groups, request.within, classes, confounds)):
        notes.append(
            f"the groups are stretches of {column!r}. If they are bins of a continuous covariate, permuting within them is not exact: "
            "it rejects true nulls too often. `covariates` takes it out instead."
        )
    made = surface_baselines(given, classes, categories, request.seed) if request.baselines else []
    baselines = [*(Baseline(t, GIVEN) for t in rivals), *made]
    texts = [*given, *(b.table for b in baselines)]
    _check_names("text", texts)
    kinds = {b.table.name: b.kind for b in baselines}
    if request.baselines and len(given) > 1:
        kinds |= {t.name: SPELLING for t in given if is_spelling(t)}
    sounds = audios if request.clips is None else [keep_clips(a, request.clips, request.seed) for a in audios]
    beyond = ceilings(sounds, request.seed) if request.ceiling else []
    couples = [(t, a) for a in sounds for t in texts] + [(c.text, c.audio) for c in beyond]
    names = probe_names(request.probes) * len(couples)
    shapes = tuple(shape_of(name, request.splits, request.seeds) for name in names)
    plan = JobPlan(len(names), request.splits, request.seeds, request.permutations, shapes, len(beyond) * len(request.probes))
    ks = _stored_ks(request, n_classes)
    pairs = _cell_data(couples, request.probes, confounds)
    meta: dict[str, Any] = {} if request.control == "permute" else {"control": request.control}
    enumerated = False
    if blocks is not None:
        source = permutation_source(request.control, request.seed, n_classes, request.permutations, blocks)
        enumerated, plan = source.enumerated, replace(plan, n_permutations=source.n_permutations)
        meta |= {
            "within": request.within,
            "groups": blocks.tolist(),
            "distinct_permutations": say_count(source.distinct),
            "enumerated": enumerated,
        }
    elif categories is not None:
        meta["categories"] = categories.tolist()
    if made or (request.baselines and kinds):
        meta["baselines"] = True
    if beyond:
        meta["ceiling"] = len(beyond)
    if confounds is not None:
        meta["covariates"] = {"names": list(confounds.names), "matrix": confounds.matrix.tolist()}
    if request.stop is not None:
        if enumerated:
            raise InputError(f"`stop` is of no use with all {plan.n_permutations + 1} distinct permutations listed. Leave it out.")
        meta |= {"stop": str(request.stop), "stop_limit": request.permutations, "stop_statistic": request.statistic}
    for name in ("clips", "gallery_size"):
        if getattr(request, name) is not None:
            meta[name] = getattr(request, name)
    if request.select == "nested":
        meta |= {"select": request.select, "select_statistic": request.statistic}
    sources = (("text", [*_as_list(text), *(request.baseline or ())], [*given, *rivals]), ("audio", _as_list(audio), audios))
    paths = {
        f"{side}/{table.name}": absolute(where)
        for side, values, tables in sources
        for where, table in zip(values, tables)
        if isinstance(where, (str, os.PathLike))
    }
    experiment = Experiment(
        request=request,
        names=tuple((t.name, a.name) for t, a in couples),
        n_classes=n_classes,
        plan=plan,
        ks=ks,
        columns=(*metric_names(ks), *(unseen_names(ks) if request.gallery_size is None else ())),
        backend=chosen.name,
        inputs=(
            *(
                _described("text", t, **({"role": BASELINE_ROLE, "baseline": kinds[t.name]} if t.name in kinds else {}))
                for t in [*given, *rivals]
            ),
            *(_described("text", b.table, **_as_baseline(b.kind), made=True) for b in made),
            *(_described("text", t, role=CEILING_ROLE, made=True) for t in {c.text.name: c.text for c in beyond}.values()),
            *(_described("audio", a) for a in audios),
        ),
        groups=blocks,
        enumerated=enumerated,
        meta=meta,
        design=confounds,
        pairs=pairs,
        paths=paths,
        notes=tuple(notes),
    )
    if experiment.nested:
        _check_inner(experiment)
    for cell in range(len(experiment.cells)):  # what does not fit the tables is said before anything is created
        experiment.check_csls(cell)
        if isinstance(experiment.probe_of(cell), Similarity):
            experiment.similarities(cell, 0, 1)
        elif not isinstance(experiment.probe_of(cell), ProbeConfig):
            experiment.outcomes(cell, 0, 0, 0, 1)
    return experiment


def _check_inner(experiment: Experiment) -> None:
    """Whether the train classes can be divided once more, for every probe."""
    n_train = train_count(experiment.n_classes, experiment.train_fraction)
    try:
        train_count(n_train, experiment.train_fraction)
    except InputError:
        raise InputError(
            f'`select`="nested" divides the {n_train} train classes once more by `train_fraction`={experiment.train_fraction:g}, which '
            "must leave at least 2 on either side. Add classes, or move `train_fraction` towards 0.5."
        ) from None
    for cell in range(len(experiment.cells)):
        if not isinstance(experiment.probe_of(cell), (ProbeConfig, Similarity)):
            try:
                experiment.inner.outcomes(cell, 0, 0, 0, 1)
            except InputError as error:
                raise InputError(f'in the inner split of `select`="nested": {error}') from None


def _read_tables(
    text: Any, audio: Any, request: RunRequest
) -> tuple[list[EmbeddingTable], list[EmbeddingTable], list[EmbeddingTable], list[str]]:
    """The texts under test, the baselines that were given, and the sounds, once they fit together; and notes on how they do."""
    texts = [EmbeddingTable.coerce(t, "text") for t in _as_list(text)]
    rivals = [EmbeddingTable.coerce(t, "baseline") for t in request.baseline or ()]
    audios = [EmbeddingTable.coerce(a, "audio") for a in _as_list(audio)]
    for side, tables in (("text", texts), ("audio", audios)):
        if not tables:
            raise InputError(f"`{side}` needs at least one table.")
    _check_names("text", [*texts, *rivals])
    _check_names("audio", audios)
    note = number_note([*texts, *rivals, *audios])
    if request.classes == "common":
        kept = iter(keep_common([*texts, *rivals, *audios]))
        texts, rivals, audios = ([next(kept) for _ in tables] for tables in (texts, rivals, audios))
    for t in [*texts, *rivals]:
        for a in audios:
            check_labels(t, a)
    return texts, rivals, audios, [] if note is None else [note]


def _check_names(side: str, tables: Sequence[EmbeddingTable]) -> None:
    names = [t.name for t in tables]
    if len(set(names)) < len(names):
        raise InputError(
            f'`{side}` tables must have different names, which results go by; got {", ".join(names)}. Rename a file or set meta["name"].'
        )


def _as_baseline(kind: str) -> dict[str, str]:
    return {"role": BASELINE_ROLE, "baseline": kind}


def _described(side: str, table: EmbeddingTable, **role: Any) -> dict[str, Any]:
    """A table as the identity of a run holds it."""
    own = {"rows": len(table), "width": table.width, "digest": table.digest, "meta": table.meta}
    return {"side": side, "name": table.name, **own, **role}


def _cell_data(
    couples: Sequence[tuple[EmbeddingTable, EmbeddingTable]], probes: Sequence[Probe], confounds: Design | None
) -> tuple[PairData, ...]:
    """What each cell is trained on. Features are made once for all probes and pairs that want the same ones."""
    tables = {id(table): table for couple in couples for table in couple}

    @cache
    def features(table: int, basis: Literal["svd", "raw"] | None, energy: float | None, bias: bool) -> TableFeatures:
        return table_features(tables[table], ProbeConfig(basis=basis, energy=energy, bias=bias))

    @cache
    def pair(text: int, audio: int, *wanted: Any) -> PairData:
        found = make_pair(tables[text], tables[audio], ProbeConfig(), features(text, *wanted), features(audio, *wanted))
        return found if confounds is None else residual_pair(found, confounds)

    # Closed forms and similarities look at the lossless basis, as trained probes do by default.
    configs = [p if isinstance(p, ProbeConfig) else ProbeConfig() for p in probes]
    return tuple(pair(id(text), id(audio), c.basis, c.energy, c.bias) for text, audio in couples for c in configs)


def _stored_ks(request: RunRequest, n_classes: int) -> tuple[int, ...]:
    """All k of the run, those of the statistic included."""
    own = statistic_ks(request.statistic)
    n_test = n_classes - train_count(n_classes, request.train_fraction)
    size = request.gallery_size or n_classes
    if not n_test <= size <= n_classes:
        raise InputError(
            f"`gallery_size` must hold the texts of all {n_test} test classes, and there are {n_classes} in all; got {size}. Give "
            f"{n_test} to {n_classes}."
        )
    wanted = [x for x in DEFAULT_KS if x <= size] if request.k is None else list(request.k)
    ks = check_ks([*wanted, *own], size)
    column_of(request.statistic, ks)
    if request.gallery_size is not None and is_unseen(request.statistic):
        raise InputError(
            f"`statistic`={request.statistic!r} ranks among the test classes alone, whatever `gallery_size` says; got {size}. "
            "Leave one out."
        )
    if is_unseen(request.statistic) and own and own[0] > n_test:
        raise InputError(
            f"`statistic`={request.statistic!r} ranks among the {n_test} test classes alone, so its k must be at most {n_test}. "
            "Lower it, or lower `train_fraction`."
        )
    if request.statistic.startswith("hits@"):
        raise InputError(f'`statistic`={request.statistic!r} counts clips; test its average, "acc@{own[0]}_micro".')
    return ks
