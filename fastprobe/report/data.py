"""What a report needs of a run, read once from its directory. Nothing here trains."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..protocol.metrics import column_of, lower_is_better, statistic_ks
from ..protocol.plan import JobPlan, train_count
from ..protocol.probes import is_similarity
from ..runs.manifest import cells_of, observed_only_of, shapes_of
from ..runs.siblings import Tried, tried
from ..runs.store import ResultStore, read_manifest
from ..runs.summary import layers
from ..statistics.intervals import class_interval
from ..statistics.significance import Interval
from ..storage import Folder, RemoteFolder, is_url, local_path, name_of, open_folder
from ..storage.columns import to_numpy
from ..tables.embeddings import EmbeddingTable
from ..tables.vocabulary import read_csv
from .procrustes import ProcrustesTest, centroids, protest


@dataclass(frozen=True, eq=False)
class Observed:
    """Outcomes of the observed run by class.

    Attributes
    ----------
    k : int
    classes : str (C,)
    accuracy : float64 (pairs, splits, C)
        acc@k on each class, seeds averaged; NaN where it was not tested.
    clips : int64 (C,)
        Queries of each class in one test of it.
    """

    k: int
    classes: np.ndarray
    accuracy: np.ndarray
    clips: np.ndarray

    def per_class(self, pair: int) -> np.ndarray:
        """acc@k of each class, averaged over the splits that tested it; NaN where none did."""
        tested = np.isfinite(self.accuracy[pair])
        total = np.where(tested, self.accuracy[pair], 0.0).sum(axis=0)
        return np.divide(total, tested.sum(axis=0), out=np.full(len(self.classes), np.nan), where=tested.any(axis=0))


@dataclass(frozen=True, eq=False)
class Curve:
    """acc@k for every stored k, and the middle 95% of the null; float64 (pairs, ks)."""

    ks: tuple[int, ...]
    observed: np.ndarray
    null_mean: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray


@dataclass(frozen=True, eq=False)
class RunData:
    """One run, ready to be shown.

    Attributes
    ----------
    path : Path or str
        The run directory; a str where it is a URL.
    manifest, summary : dict
    t : float64 (pairs, B+1)
        Replicates of the statistic; column 0 observed.
    per_split : float64 (pairs, J)
    curve : Curve
    observed : Observed or None
    intervals : list of Interval
        On the statistic of each pair, over fresh classes; NaN where there is a single split, or none.
    confusions : dict of pair -> list of (label, retrieved, share of the label's queries)
    categories : dict of label -> category
    tried : Tried or None
        Configurations and seeds of this run and of those beside it.
    notes : list of str
        What could not be shown, and why, in plain sentences.
    """

    path: Path | str
    manifest: dict[str, Any]
    summary: dict[str, Any]
    t: np.ndarray
    per_split: np.ndarray
    curve: Curve
    observed: Observed | None
    intervals: list[Interval]
    confusions: dict[int, list[tuple[str, str, float]]]
    categories: dict[str, str]
    notes: list[str] = field(default_factory=list)
    tried: Tried | None = None

    @property
    def name(self) -> str:
        """The run directory's name."""
        return name_of(self.path if isinstance(self.path, str) else self.path.resolve()).name

    @property
    def outcomes(self) -> Observed:
        """`observed`, for what is shown only where there is one."""
        if self.observed is None:
            raise StoreError(f"{self.path}: no outcomes could be read from observed.parquet, so there is no accuracy by class.")
        return self.observed

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the results."""
        return self.manifest["identity"]

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per pair."""
        return self.summary["pairs"]

    @property
    def statistic(self) -> str:
        """Name of the statistic."""
        return self.summary["statistic"]

    @property
    def lower_is_better(self) -> bool:
        """Whether small values are good."""
        return lower_is_better(self.statistic)

    @property
    def audios(self) -> list[str]:
        """Audio tables, in order."""
        return list(dict.fromkeys(r["audio"] for r in self.records))

    @property
    def texts(self) -> list[str]:
        """Text tables, in order."""
        return list(dict.fromkeys(r["text"] for r in self.records))

    @property
    def models(self) -> list[dict[str, Any]]:
        """The records of what is under test: all but those of baselines."""
        return [r for r in self.records if r.get("role") != "baseline"]

    @property
    def ceilings(self) -> list[dict[str, Any]]:
        """What the sounds reach in place of the texts, a record for each; references, which test nothing."""
        return self.summary.get("ceilings", [])

    def pairs_of(self, audio: str) -> list[int]:
        """Numbers of the pairs with this audio table."""
        return [i for i, r in enumerate(self.records) if r["audio"] == audio]

    def ranked(self, pairs: Iterable[int]) -> list[int]:
        """Those of some pairs whose probe ranks clips: all but similarities."""
        return [i for i in pairs if not is_similarity(self.records[i].get("probe", ""))]

    @property
    def probes(self) -> list[str]:
        """Names of the probes and similarities, in order."""
        return list(dict.fromkeys(r.get("probe", "contrastive") for r in self.records))

    def by_probe(self, pairs: Iterable[int]) -> list[tuple[str, list[int]]]:
        """Some pairs, probe by probe."""
        groups: dict[str, list[int]] = {}
        for i in pairs:
            groups.setdefault(self.records[i].get("probe", "contrastive"), []).append(i)
        return sorted(groups.items(), key=lambda group: self.probes.index(group[0]))

    def table_of(self, pair: int) -> str:
        """Name of a pair's text table; its `text` names the probe too, where there are several."""
        record = self.records[pair]
        return str(record.get("table", record["text"]))

    @property
    def n_permutations(self) -> int:
        """B: permutations that count."""
        return self.t.shape[1] - 1

    @property
    def stopped(self) -> bool:
        """Whether a stopping rule ended the run before its limit."""
        return self.n_permutations < self.identity.get("stop_limit", 0)

    def distance(self) -> np.ndarray:
        """How far each observed value lies on the good side of its null mean, in null standard deviations, float64 (pairs,).

        Without permutations: the observed value itself, larger being better.
        """
        alone = np.array([is_similarity(r.get("probe", "")) for r in self.records])  # larger is better, whatever the statistic
        t = np.where(alone[:, None], self.t, -self.t) if self.lower_is_better else self.t
        if not self.n_permutations:
            return t[:, 0]
        sd = t[:, 1:].std(axis=1)
        return (t[:, 0] - t[:, 1:].mean(axis=1)) / np.where(sd > 0, sd, 1.0)

    def strongest(self, pairs: list[int]) -> int:
        """The pair furthest above its null."""
        return max(pairs, key=self.distance().__getitem__)

    def layer_curves(self) -> dict[str, list[tuple[str, list[tuple[int, int]]]]]:
        """audio -> [(model, [(layer, pair)])], for models of which several layers were tested."""
        of = layers(self.identity["inputs"])
        out: dict[str, list[tuple[str, list[tuple[int, int]]]]] = {}
        for audio in self.audios:
            models: dict[str, list[tuple[int, int]]] = {}
            for i in self.pairs_of(audio):
                if self.table_of(i) in of:
                    model, layer = of[self.table_of(i)]
                    probe = f", {self.records[i]['probe']}" if len(self.probes) > 1 else ""
                    models.setdefault(model + probe, []).append((layer, i))
            if several := [(m, sorted(points)) for m, points in models.items() if len(points) > 1]:
                out[audio] = several
        return out


def load_run(path: str | os.PathLike, categories: str | os.PathLike | None = None) -> RunData:
    """Read a finished run, from a path or a URL.

    Raises
    ------
    StoreError
        No run there, or one without a summary yet.
    """
    folder = open_folder(path)
    manifest = read_manifest(folder)
    try:
        summary = json.loads(folder.read("summary.json").decode("utf-8"))
        _check_summary(summary)
    except FileNotFoundError:
        raise StoreError(f"{folder}: the run has no summary.json yet. Finish it with the command that began it and --resume.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{folder}/summary.json: cannot be read ({error}). Run again with --resume to write it anew.") from None
    identity: dict[str, Any] = manifest["identity"]
    notes: list[str] = []
    ks = tuple(identity["k"])
    cells = cells_of(identity)
    plan = JobPlan(
        len(cells), identity["splits"], identity["seeds"], manifest["permutations"], shapes_of(identity), observed_only_of(identity)
    )
    _tell_probes_apart(summary, identity)
    columns = list(dict.fromkeys([column_of(summary["statistic"], ks), *(f"acc@{k}_macro" for k in ks)]))
    replicates, per_split = ResultStore.open(folder).replicates(columns, plan)
    replicates = {name: t[: plan.n_tested] for name, t in replicates.items()}
    per_split = per_split[: plan.n_tested]
    if not np.isfinite(replicates[columns[0]]).all():
        raise StoreError(f"{folder}: some permutations are not stored yet. Finish the run with --resume, then report it.")
    curve = _curve(ks, replicates)
    k = (statistic_ks(summary["statistic"]) or ((3,) if 3 in ks else ks[:1]))[0]
    observed = _observed(folder, identity, k, notes)
    n_train = train_count(summary["n_classes"], identity["train_fraction"])
    intervals = [class_interval(row, n_train, summary["n_classes"] - n_train) for row in per_split]
    return RunData(
        str(path) if is_url(path) else local_path(path),
        manifest,
        summary,
        replicates[columns[0]],
        per_split,
        curve,
        observed,
        intervals,
        _confusions(folder, identity, notes),
        read_categories(categories, notes),
        notes,
        tried(path, manifest),
    )


def _check_summary(summary: Any) -> None:
    """Whether a document has the form of a summary; ValueError if not."""
    if not isinstance(summary, dict):
        raise ValueError("it is no object")
    records, statistic, n = (summary.get(name) for name in ("pairs", "statistic", "n_classes"))
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        raise ValueError("`pairs` is no list of records")
    if not isinstance(statistic, str):
        raise ValueError(f"`statistic` is {statistic!r}")
    if not isinstance(n, int) or isinstance(n, bool) or not 2 <= n <= 1 << 31:
        raise ValueError(f"`n_classes` is {n!r}")
    for r in records:
        if absent := [name for name in ("text", "audio") if not isinstance(r.get(name), str)]:
            raise ValueError(f"a record whose `{absent[0]}` is {r.get(absent[0])!r}")


def _curve(ks: tuple[int, ...], t: dict[str, np.ndarray]) -> Curve:
    stack = [t[f"acc@{k}_macro"] for k in ks]
    observed = np.stack([v[:, 0] for v in stack], axis=1)
    if stack[0].shape[1] == 1:
        nothing = np.full_like(observed, np.nan)
        return Curve(ks, observed, nothing, nothing, nothing)
    low, high = (np.stack([np.percentile(v[:, 1:], q, axis=1) for v in stack], axis=1) for q in (2.5, 97.5))
    return Curve(ks, observed, np.stack([v[:, 1:].mean(axis=1) for v in stack], axis=1), low, high)


def _read_parquet(folder: Folder | RemoteFolder, file: str, columns: list[str], strings: list[str], notes: list[str], what: str):
    """Columns of a table of the run, strings as (codes, values); None with a note when that is impossible."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.BufferReader(folder.read(file))
        present = set(pq.read_schema(source).names)
        columns, strings = ([c for c in names if c != "probe" or c in present] for names in (columns, strings))
        source.seek(0)
        # Not `read_table`, which imports pandas.
        table = pq.ParquetFile(source, read_dictionary=strings).read(columns=columns)
        out: dict[str, Any] = {}
        for name in columns:
            column = table[name].combine_chunks()
            if name in strings:
                column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                out[name] = (to_numpy(column.indices), np.array(column.dictionary.to_pylist(), dtype=str))
            else:
                out[name] = to_numpy(column)
        return out
    except FileNotFoundError:
        notes.append(f"{what} cannot be shown: this run has no {file}.")
        return None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        notes.append(f"{what} cannot be shown: {file} is not readable ({(str(error).splitlines() or [type(error).__name__])[0]}).")
        return None


def _tell_probes_apart(summary: dict[str, Any], identity: dict[str, Any]) -> None:
    """With several probes, the page shows "text, probe" where it otherwise shows the text table alone."""
    if len(identity.get("probes", ())) > 1:
        for record in summary["pairs"]:
            record["table"] = record["text"]
            record["text"] = f"{record['text']}, {record['probe']}"


def _cell_numbers(data: dict[str, Any], identity: dict[str, Any]) -> np.ndarray:
    """Number of the cell of each row; -1 for one that the run does not have."""
    number: dict[tuple[str, ...], int] = {tuple(cell): i for i, cell in enumerate(cells_of(identity))}
    (text, texts), (audio, audios) = data["text"], data["audio"]
    # Runs from before there were several kinds of probe do not name theirs.
    probe, probes = data.get("probe", (np.zeros(len(text), np.int64), np.array(["contrastive"])))
    lookup = np.array([[[number.get((t, a, p), -1) for p in probes] for a in audios] for t in texts], np.int64)
    return lookup[text, audio, probe]


def _observed(folder: Folder | RemoteFolder, identity: dict[str, Any], k: int, notes: list[str]) -> Observed | None:
    data = _read_parquet(
        folder,
        "observed.parquet",
        ["text", "audio", "probe", "split", "label", "rank"],
        ["text", "audio", "probe", "label"],
        notes,
        "Accuracy by class",
    )
    if data is None:
        return None
    (label, classes), pair = data["label"], _cell_numbers(data, identity)
    shape = (len(cells_of(identity)), identity["splits"], len(classes))
    keep = pair >= 0
    cell = np.ravel_multi_index((pair[keep], data["split"][keep], label[keep]), shape)
    count = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
    hits = np.bincount(cell, weights=data["rank"][keep] <= k, minlength=np.prod(shape)).reshape(shape)
    order = np.argsort(classes)
    accuracy = np.divide(hits, count, out=np.full(shape, np.nan), where=count > 0)[..., order]
    return Observed(k, classes[order], accuracy, count.max(axis=(0, 1))[order] // identity["seeds"])


def _confusions(
    folder: Folder | RemoteFolder, identity: dict[str, Any], notes: list[str], top: int = 12
) -> dict[int, list[tuple[str, str, float]]]:
    data = _read_parquet(
        folder,
        "retrieved.parquet",
        ["text", "audio", "probe", "label", "retrieved", "position"],
        ["text", "audio", "probe", "label", "retrieved"],
        notes,
        "What was retrieved instead",
    )
    if data is None or not len(data["position"]):
        return {}
    first = data["position"] == 1
    (label, labels), (retrieved, names) = data["label"], data["retrieved"]
    pair = _cell_numbers(data, identity)
    right = labels[label] == names[retrieved]
    out = {}
    for i in range(len(cells_of(identity)) - observed_only_of(identity)):
        rows = first & (pair == i)
        asked = np.bincount(label[rows], minlength=len(labels))
        wrong = rows & ~right
        cells, n = np.unique(label[wrong].astype(np.int64) * len(names) + retrieved[wrong], return_counts=True)
        # By how completely, then by how many clips: a class with many clips must not crowd the list.
        share = n / asked[cells // len(names)]
        best = np.lexsort((-n, -share))[:top]
        out[i] = [(str(labels[cells[j] // len(names)]), str(names[cells[j] % len(names)]), float(share[j])) for j in best]
    return out


def read_categories(path: str | os.PathLike | None, notes: list[str]) -> dict[str, str]:
    """label -> category from a CSV with the columns `label` and `category`."""
    if path is None:
        notes.append("Accuracy by category is not shown: no file of categories was given (--categories).")
        return {}
    return {row["label"]: row["category"] for row in read_csv(path, "categories", ("label", "category")) if row["category"]}


def n_classes_of(run: RunData) -> tuple[int, int, int]:
    """Classes in all, for training, for testing."""
    n = run.summary["n_classes"]
    n_train = train_count(n, run.identity["train_fraction"])
    return n, n_train, n - n_train


def procrustes_of(run: RunData, pair: int, permutations: int = 999) -> tuple[ProcrustesTest, np.ndarray] | str:
    """Alignment of the class centroids of a pair and the class names, or a sentence saying why there is none.

    The tables are read from where the run found them, and must be the ones it was run on.
    """
    tables = []
    for side in ("text", "audio"):
        name = run.table_of(pair) if side == "text" else run.records[pair]["audio"]
        path = (run.manifest.get("paths") or {}).get(f"{side}/{name}")
        if path is None:
            return (
                f"The Procrustes map of {run.table_of(pair)} x {run.records[pair]['audio']} is not shown: the {side} "
                "table did not come from a file."
            )
        try:
            table = EmbeddingTable.load(path)
        except InputError:
            return f"The Procrustes map is not shown: {name_of(path).name} is no longer where the run found it."
        known = next(t for t in run.identity["inputs"] if t["side"] == side and t["name"] == name)
        if table.digest != known["digest"]:
            return (
                f"The Procrustes map is not shown: {name_of(path).name} is not the table that was run (its digest differs): it "
                "has changed, or labels were left out with --classes common."
            )
        tables.append(table)
    text, audio = tables
    classes = np.array(sorted(set(text.labels.tolist()) & set(audio.labels.tolist())))
    rows = [np.flatnonzero(np.isin(t.labels, classes)) for t in tables]
    x, y = (centroids(t.vectors[r].astype(np.float64), np.searchsorted(classes, t.labels[r]), len(classes)) for t, r in zip(tables, rows))
    groups = run.identity.get("groups")
    # The blocks of the run are the blocks of its map; they are stored in ascending order of the labels, as `classes` is.
    blocks = np.array(groups) if groups is not None and len(groups) == len(classes) else None
    return protest(x, y, permutations=permutations, seed=run.identity["seed"], groups=blocks), classes
