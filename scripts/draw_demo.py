"""Draws README's picture, docs/images/demo.png, from a run of `fastprobe demo`: the null of every pair and its observed value.

fastprobe demo --permutations 1000 --out runs/picture
python scripts/draw_demo.py runs/picture
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastprobe.report.data import load_run
from fastprobe.report.figures import nulls

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.png"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw README's picture from a run of the demo.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    figure = nulls(run, run.records[0]["audio"])
    axes = figure.axes[0]
    axes.set_title(f"{run.n_permutations:,} shufflings of the names (grey), and the names as they are (orange)", loc="left", fontsize=9)
    axes.set_xlabel(f"{run.statistic} on recordings of classes that no probe has met")
    figure.set_size_inches(8, 2.9)
    figure.savefig(arguments.out, dpi=130)


if __name__ == "__main__":
    main()
