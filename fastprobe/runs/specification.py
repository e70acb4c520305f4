"""`Specification`: all that decides the results of a run but the vectors. Enough to analyse what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..protocol.cells import Cell, probe_names
from ..protocol.config import ProbeConfig
from ..protocol.covariates import Design, design
from ..protocol.metrics import lower_is_better
from ..protocol.plan import JobPlan
from ..protocol.probes import Probe, Similarity, is_similarity, read_probe
from ..randomness import SHUFFLES, SHUFFLES_OF_0_1_0
from ..statistics.sequential import StopRule
from .manifest import plan_of
from .references import BASELINE_ROLE, role_of, words_of
from .request import RunRequest

# Keys of an identity that are fields of their own; whatever else it holds came with the control or the stopping rule.
_OWN = ("pairs", "inputs", "probe", "probes", "splits", "seeds", "train_fraction", "k", "seed", "backend", "columns", "shuffles")


@dataclass(frozen=True, eq=False, kw_only=True)
class Specification:
    """What a run is, as its manifest tells it.

    Attributes
    ----------
    request : RunRequest
        As it was asked for.
    names : tuple of (str, str)
        (text, audio) of every pair.
    cells : tuple of Cell
        Every pair with every probe, pair by pair; units and shards go by their number.
    n_classes : int
        C, the same for all pairs.
    plan : JobPlan
    ks : tuple of int
        All k that are stored.
    columns : tuple of str
        Metrics that are stored. A run that an earlier version began keeps those that it began with.
    backend : str
        Chosen; never ``auto``.
    inputs : tuple of dict
        Name, rows, width and digest of every table.
    groups : str (C,) or None
        Blocks within which texts are permuted.
    enumerated : bool
        Every distinct relabelling is trained once, instead of random draws.
    meta : dict
        What the control, the stopping rule and the references add to the identity.
    design : Design or None
        Covariates that are taken out of both sides.
    shuffles : int
        How permutations are drawn (`randomness.shuffles`). A run that an earlier version began keeps its way.
    """

    request: RunRequest
    names: tuple[tuple[str, str], ...]
    n_classes: int
    plan: JobPlan
    ks: tuple[int, ...]
    columns: tuple[str, ...]
    backend: str
    inputs: tuple[dict[str, Any], ...]
    groups: np.ndarray | None
    enumerated: bool
    meta: dict[str, Any]
    design: Design | None = None
    shuffles: int = SHUFFLES

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe of the run; each makes a cell of every pair."""
        return self.request.probes

    @property
    def config(self) -> ProbeConfig:
        """How the first trained probe is trained; the defaults where none is."""
        return next((p for p in self.probes if isinstance(p, ProbeConfig)), ProbeConfig(precision="ieee"))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Names of every cell, in the order of their numbers."""
        return tuple(Cell(text, audio, name) for text, audio in self.names for name in probe_names(self.probes))

    @property
    def n_tested(self) -> int:
        """Cells that are tested; ceilings come after them."""
        return self.plan.n_tested

    @cached_property
    def baselines(self) -> dict[str, str]:
        """What each baseline among the text tables knows, by name: "the spelling does"."""
        return {t["name"]: words_of(t) for t in self.inputs if role_of(t) == BASELINE_ROLE}

    def baselines_of(self, cell: int) -> list[int]:
        """The cells of the baselines that a model's cell is compared with: same sounds, same probe. None for a baseline."""
        text, audio, probe = self.cells[cell]
        if text in self.baselines:
            return []
        return [i for i, c in enumerate(self.cells[: self.n_tested]) if c.text in self.baselines and c[1:] == (audio, probe)]

    def probe_of(self, cell: int) -> Probe:
        """The probe of a cell."""
        return self.probes[cell % len(self.probes)]

    def metric_of(self, cell: int) -> str:
        """What is tested in a cell: the statistic, or the similarity itself."""
        name = self.cells[cell].probe
        return name if is_similarity(name) else self.statistic

    @property
    def lower_is_better(self) -> list[bool]:
        """Whether small values are good, for each cell."""
        return [not is_similarity(cell.probe) and lower_is_better(self.statistic) for cell in self.cells]

    def oriented(self, t: np.ndarray) -> np.ndarray:
        """Replicates of the first cells, (n, B+1), turned so that larger is better."""
        return np.where(np.array(self.lower_is_better[: len(t)])[:, None], -t, t)

    @property
    def seed(self) -> int:
        """Of all randomness."""
        return self.request.seed

    @property
    def train_fraction(self) -> float:
        """Share of the classes to train on."""
        return float(self.request.train_fraction)

    @property
    def n_rivals(self) -> int:
        """Texts that a clip's own text is ranked among, itself included."""
        return self.request.gallery_size or self.n_classes

    @property
    def statistic(self) -> str:
        """What is tested."""
        return self.request.statistic

    @property
    def control(self) -> str:
        """What the permutations number 1, 2, ... destroy; see `protocol.controls`."""
        return self.request.control

    @property
    def nested(self) -> bool:
        """Whether a probe is chosen for each pair on a split of the train classes, inside every replicate."""
        return self.request.select == "nested"

    @property
    def stop(self) -> StopRule | None:
        """Declared before the first permutation."""
        return self.request.stop if isinstance(self.request.stop, StopRule) else None

    @property
    def device(self) -> str | None:
        """Where the backend trains."""
        return self.request.device

    def identity(self) -> dict[str, Any]:
        """All that decides results: what a resumed run must share. More permutations may be added later."""
        names = probe_names(self.probes)
        return {
            "pairs": [list(n) for n in self.names],
            "inputs": list(self.inputs),
            "probe": self.config.to_dict(),
            # A run of one contrastive probe is told as before there were others.
            **({} if names == ["contrastive"] else {"probes": dict(zip(names, (p.to_dict() for p in self.probes)))}),
            "splits": self.plan.n_splits,
            "seeds": self.plan.n_seeds,
            "train_fraction": self.train_fraction,
            "k": list(self.ks),
            "columns": list(self.columns),
            "seed": self.seed,
            **({} if self.shuffles == SHUFFLES_OF_0_1_0 else {"shuffles": self.shuffles}),
            "backend": self.backend,
            **self.meta,
        }


def stored_specification(manifest: dict[str, Any]) -> Specification:
    """What the run of a manifest is.

    Raises
    ------
    StoreError
        A manifest that lacks what an analysis needs.
    """
    identity = manifest["identity"]
    try:
        n = manifest["n_classes"]
        if type(n) is not int or not 2 <= n <= 10**7:
            raise ValueError(f"n_classes {n!r}"[:60])
        groups = identity.get("groups")
        plan = plan_of(manifest)
        confounds = identity.get("covariates")
        taken_out = None if confounds is None else design(np.array(confounds["matrix"], np.float64), confounds["names"])
        probes = [read_probe(p) for p in identity.get("probes", {"contrastive": identity["probe"]}).values()]
        request = RunRequest(
            probe=[p for p in probes if not isinstance(p, Similarity)],
            similarity=[p for p in probes if isinstance(p, Similarity)],
            permutations=plan.n_permutations,
            splits=plan.n_splits,
            seeds=plan.n_seeds,
            train_fraction=float(identity["train_fraction"]),
            statistic=manifest["statistic"],
            k=tuple(identity["k"]),
            classes=(manifest.get("options") or {}).get("classes", "strict"),
            control=identity.get("control", "permute"),
            groups=identity.get("categories") if groups is None else groups,
            covariates=None if taken_out is None else (taken_out,),
            baselines=bool(identity.get("baselines")),
            ceiling=bool(identity.get("ceiling")),
            within=identity.get("within"),
            select=identity.get("select", "best"),
            clips=identity.get("clips"),
            gallery_size=identity.get("gallery_size"),
            stop=identity.get("stop"),
            backend=identity["backend"],
            seed=identity["seed"],
        )
        return Specification(
            request=request,
            names=tuple((t, a) for t, a in identity["pairs"]),
            n_classes=n,
            plan=plan,
            ks=tuple(identity["k"]),
            columns=tuple(identity["columns"]),
            backend=identity["backend"],
            inputs=tuple(identity["inputs"]),
            groups=None if groups is None else np.array(groups),
            enumerated=bool(identity.get("enumerated", False)),
            meta={k: identity[k] for k in identity if k not in _OWN},
            design=taken_out,
            shuffles=int(identity.get("shuffles", SHUFFLES_OF_0_1_0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise StoreError(f"the manifest is damaged, or no run's ({type(error).__name__}: {str(error)[:80]}).") from None
