"""Reads run directories, draws their figures and writes the page, the figures and the tables."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..randomness import BOOTSTRAP, generator
from ..runs.curve import load_curve
from ..statistics.comparison import Comparison, compare_many
from ..storage import beside, is_url, local_path, name_of, write_atomically
from . import compare_page, curve_page, page, probes, tables
from .data import RunData, load_run, n_classes_of, procrustes_of
from .html import Page

# One map for each audio model, and no more: each needs the tables themselves and 999 decompositions.
MAX_MAPS = 4
Location = str | os.PathLike


def write_single(run_dir: Location, out: Location, categories: Location | None) -> Path | str:
    """See `fastprobe.report.write_report`."""
    run = load_run(run_dir, categories)
    found = tables.comparisons(run)
    maps = []
    for audio in run.audios[:MAX_MAPS]:
        pair = run.strongest([i for i in run.pairs_of(audio) if run.records[i] in run.models])
        aligned = procrustes_of(run, pair)
        if isinstance(aligned, str):
            if aligned not in run.notes:
                run.notes.append(aligned)
        else:
            maps.append((pair, aligned))
    made = page.single(run, found, maps)
    texts = {
        "results.csv": tables.to_csv(*tables.results(run)),
        "results.tex": tables.to_latex(run),
        "families.csv": tables.to_csv(*tables.families(run)),
    }
    if len(run.probes) > 1:
        texts["probes.csv"] = tables.to_csv(*probes.rows(run))
    if found:
        texts["comparisons.csv"] = tables.to_csv(tables.COMPARISON_HEADER, tables.comparison_rows(found))
    if run.observed is not None:
        texts["classes.csv"] = tables.to_csv(*tables.per_class(run))
    if run.confusions:
        texts["confusions.csv"] = tables.to_csv(*tables.confusions(run))
    return _write(made, out, texts)


def write_curve(folder: Location, out: Location) -> Path | str:
    """See `fastprobe.report.write_report`."""
    found = load_curve(folder)
    made = curve_page.page_of(found, name_of(folder if is_url(folder) else local_path(folder).resolve()).name)
    header = list(found.records[0])
    rows = [[str(r[name]) for name in header] for r in found.records]
    return _write(made, out, {"curve.csv": tables.to_csv(header, rows)})


def write_comparison(first_dir: Location, second_dir: Location, out: Location, categories: Location | None) -> Path | str:
    """See `fastprobe.report.write_report`."""
    first, second = (load_run(path, categories) for path in (first_dir, second_dir))
    matched = match_pairs(first, second)
    why_not = not_paired(first, second, matched)
    found: list[Comparison] = []
    if matched and why_not is None:
        _, n_train, n_test = n_classes_of(first)
        sign = -1.0 if first.lower_is_better else 1.0
        a, b = (np.array([m[j] for m in matched]) for j in range(2))
        of_first: np.ndarray | None = None
        of_second: np.ndarray | None = None
        if (
            first.observed is not None
            and second.observed is not None
            and first.observed.k == second.observed.k
            and np.array_equal(first.observed.classes, second.observed.classes)
        ):
            of_first, of_second = (np.stack([run.outcomes.per_class(i) for i in rows]) for run, rows in ((first, a), (second, b)))
        names = [(_pair_name(first, i), _pair_name(second, j)) for i, j in matched]
        found = compare_many(
            names,
            first.statistic,
            sign * first.per_split[a],
            sign * second.per_split[b],
            n_train,
            n_test,
            of_first,
            of_second,
            generator(first.identity["seed"], BOOTSTRAP, 2),
        )
    made = compare_page.compared(first, second, matched, found, why_not)
    texts = {"comparisons.csv": tables.to_csv(tables.COMPARISON_HEADER, tables.comparison_rows(found))} if found else {}
    return _write(made, out, texts, "comparison-")


def _pair_name(run: RunData, pair: int) -> str:
    return f"{run.name}: {run.records[pair]['text']} × {run.records[pair]['audio']}"


def match_pairs(first: RunData, second: RunData) -> list[tuple[int, int]]:
    """Pairs of the same names; failing any, pairs in the same place of two runs of equal size."""
    number = {(r["text"], r["audio"]): j for j, r in enumerate(second.records)}
    named = [(i, number[r["text"], r["audio"]]) for i, r in enumerate(first.records) if (r["text"], r["audio"]) in number]
    if not named and len(first.records) == len(second.records):
        return [(i, i) for i in range(len(first.records))]
    return named


def not_paired(first: RunData, second: RunData, matched: list[tuple[int, int]]) -> str | None:
    """Why differences cannot be paired over splits, in a sentence; None when they can."""
    if not matched:
        return None
    if first.statistic != second.statistic:
        return f"The runs test different statistics ({first.statistic} and {second.statistic}), so no difference is tested."
    for name, words in (("seed", "seeds"), ("splits", "numbers of splits"), ("train_fraction", "train fractions")):
        if first.identity[name] != second.identity[name]:
            return (
                f"The runs have different {words} ({first.identity[name]} and {second.identity[name]}), hence different splits: no "
                "difference is tested. Run the second with the settings of the first."
            )
    same = first.summary["n_classes"] == second.summary["n_classes"]
    if same and first.observed is not None and second.observed is not None:
        same = np.array_equal(first.observed.classes, second.observed.classes)
    if not same:
        return "The runs do not have the same classes, hence different splits: no difference is tested."
    return None


def _write(made: Page, out: Location, texts: dict[str, str], prefix: str = "") -> Path | str:
    if not is_url(out):
        for folder in ("figures", "tables"):
            Path(beside(out, folder)).mkdir(parents=True, exist_ok=True)
    for name, data in made.files.items():
        write_atomically(beside(out, "figures", f"{prefix}{name}"), data)
    for name, text in texts.items():
        write_atomically(beside(out, "tables", f"{prefix}{name}"), text.encode())
    write_atomically(out, made.html().encode())
    return str(out) if is_url(out) else local_path(out)
