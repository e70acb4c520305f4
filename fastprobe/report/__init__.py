"""Figures, tables and one self-contained page, from stored results only.

from fastprobe.report import write_report
write_report(["runs/today"], categories="categories.csv")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError

__all__ = ["write_report"]


def write_report(
    run_dirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None, categories: str | os.PathLike | None = None
) -> Path:
    """Write the report of a run, or the comparison of two.

    Parameters
    ----------
    run_dirs : sequence of path-like
        One run directory, or two.
    out : path-like, optional
        The page; by default ``report.html`` in the run directory (``comparison.html`` in the first of two). Figures go
        into ``figures/`` beside it (SVG and PDF), tables into ``tables/`` (CSV and LaTeX).
    categories : path-like, optional
        CSV with the columns `label` and `category`.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        No run there, an unfinished one, more than two, a file of categories without its columns.
    """
    paths = [Path(p) for p in run_dirs]
    if len(paths) not in (1, 2):
        raise InputError(f"`report` takes one run directory, or two to compare; got {len(paths)}.")
    from ._write import write_comparison, write_single

    category_file = None if categories is None else Path(categories)
    if len(paths) == 1:
        return write_single(paths[0], Path(out) if out else paths[0] / "report.html", category_file)
    return write_comparison(paths[0], paths[1], Path(out) if out else paths[0] / "comparison.html", category_file)
