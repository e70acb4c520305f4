"""Many language models in order: rank intervals, groups of ties, and whether size goes with the order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..randomness import BOOTSTRAP, generator
from ..statistics.ranking import Ranking, Trend, rank_models, trend
from .data import RunData
from .html import Page
from .text import number, plural, pvalue

FEWEST = 3


class Ordered(NamedTuple):
    """The models of one audio table and probe in order; `pairs` are their numbers in the run."""

    audio: str
    probe: str
    pairs: list[int]
    ranking: Ranking
    trend: Trend | None


def ordered(run: RunData, fewest: int = FEWEST) -> list[Ordered]:
    """Every audio table and probe with enough models, baselines among them, by their acc@k on each class."""
    if run.observed is None:
        return []
    sizes = {t["name"]: (t.get("meta") or {}).get("parameters") for t in run.identity["inputs"] if t["side"] == "text"}
    out = []
    for audio in run.audios:
        for probe, pairs in run.by_probe(run.ranked(run.pairs_of(audio))):
            if len(pairs) < fewest:
                continue
            rng = generator(run.identity["seed"], BOOTSTRAP, 3)
            found = rank_models(np.stack([run.observed.per_class(i) for i in pairs]), rng)
            known = [n for n, i in enumerate(pairs) if isinstance(sizes.get(run.table_of(i)), (int, float))]
            of_size = trend(np.array([sizes[run.table_of(pairs[n])] for n in known]), found.mean[known], rng) if known else None
            out.append(Ordered(audio, probe, pairs, found, of_size))
    return out


def add_order(page: Page, run: RunData) -> None:
    """A table for each audio table and probe."""
    everything = ordered(run)
    if everything:
        page.heading("Language models in order")
    for some in everything:
        found = some.ranking
        page.heading(some.audio + (f", {some.probe}" if len(run.probes) > 1 else ""), 3)
        page.table(
            ["model", f"acc@{run.outcomes.k}", "rank", "95% interval of the rank", "group"],
            [
                [
                    run.table_of(some.pairs[m]),
                    number(found.mean[m]),
                    int(found.rank[m]),
                    f"{found.low[m]}–{found.high[m]}",
                    found.letters(m),
                ]
                for m in found.order
            ],
            1,
            "Models with a letter in common cannot be told apart at .05, all pairs of models together. Classes were drawn again, the same "
            "for all models; what training on other classes would change is not in it.",
        )
        if some.trend is not None:
            page.text(
                f"Size: Spearman's correlation of the number of parameters with acc@{run.outcomes.k} is {number(some.trend.rho, 2)} over "
                f"{plural(some.trend.n, 'model')}, p = {pvalue(some.trend.pvalue)}. Models are the unit, not chosen at random."
            )
