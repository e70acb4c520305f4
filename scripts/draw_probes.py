r"""What every probe says of the same tables: README's second picture, and the table of docs/probes.md.

cd fastprobe/tables/data
fastprobe run --text demo_minilm.npz --text demo_word2vec.npz --text demo_char-ngrams.npz --audio demo_vggish.npz --no-baselines \
    --probe contrastive --probe ridge --probe ridge:csls=10 --probe procrustes --similarity cka --permutations 1000 --out ~/probes
python scripts/draw_probes.py ~/probes
python scripts/draw_probes.py --table RUN...     # Markdown: a line for each pair, a column for each probe
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fastprobe.report.data import RunData, load_run
from fastprobe.report.figures import BLUE, CONTROL, INK, STYLE, stars

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "probes.png"


@rc_context(STYLE)
def picture(run: RunData) -> Figure:
    """A panel for each probe with a scale of its own: bars of the texts over the middle 95% of their nulls."""
    groups = run.by_probe(range(len(run.records)))
    figure = Figure(figsize=(8, 2.7), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(groups), sharey=True)
    for ax, (probe, pairs) in zip(axes, groups):
        y = np.arange(len(pairs))[::-1]
        ax.barh(y, [run.records[i]["statistic"] for i in pairs], 0.6, color=BLUE, label="observed")
        low, high = np.quantile(run.t[pairs, 1:], [0.025, 0.975], axis=1)
        ax.barh(y, high - low, 0.28, left=low, color=CONTROL, label="null, middle 95%")
        for at, i in zip(y, pairs):
            value = max(run.records[i]["statistic"], high[list(pairs).index(i)])
            ax.text(value, at, " " + stars(run.records[i]["pvalue_maxT"]), va="center", color=INK)
        ax.set_yticks(y, [run.table_of(i) for i in pairs])
        ax.set_title(probe)
        ax.set_xlabel(run.records[pairs[0]]["metric"])
        ax.margins(x=0.18)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def table(runs: list[RunData]) -> str:
    """Markdown: the observed value, in brackets its distance from its own null in standard deviations; bold where adjusted p < .05."""
    probes = list(dict.fromkeys(p for run in runs for p in run.probes))
    lines = ["| text × audio | " + " | ".join(probes) + " |", "| --- |" + " --- |" * len(probes)]
    for run in runs:
        distance = run.distance()
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for i, r in enumerate(run.records):
            mark = "**" if r["pvalue_maxT"] < 0.05 else ""
            cells.setdefault((run.table_of(i), r["audio"]), {})[r["probe"]] = f"{mark}{r['statistic']:.3f}{mark} ({distance[i]:.1f})"
        lines += [f"| {t} × {a} | " + " | ".join(found.get(p, "") for p in probes) + " |" for (t, a), found in cells.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run directories")
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--table", action="store_true", help="print the table, draw nothing")
    arguments = parser.parse_args()
    runs = [load_run(run) for run in arguments.run]
    if arguments.table:
        print(table(runs))
        return
    picture(runs[0]).savefig(arguments.out, dpi=130)


if __name__ == "__main__":
    main()
