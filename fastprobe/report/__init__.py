"""Figures, tables and one self-contained page, from stored results only.

from fastprobe.report import write_report
write_report(["runs/today"], categories="categories.csv")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..storage import within

__all__ = ["write_atlas", "write_report"]


def write_atlas(run_dirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> Path | str:
    """Write one page with every pair of some runs: heat map, each pair's null and classes, a table to sort and filter.

    Parameters
    ----------
    run_dirs : sequence of path-like or URL
        Finished run directories.
    out : path-like or URL, optional
        The page; by default ``atlas.html`` in the first run directory. ``atlas.csv`` and ``atlas.json``, a document for each model in
        the manner of MTEB's result files, go beside it.

    Raises
    ------
    InputError
        No run there, an unfinished one, one given twice.
    """
    from ..storage import beside, is_url, local_path, write_atomically
    from .atlas import make_atlas

    if isinstance(run_dirs, (str, os.PathLike)):
        run_dirs = [run_dirs]
    made = make_atlas(run_dirs)
    out = out or within(run_dirs[0], "atlas.html")
    if not is_url(out):
        local_path(out).parent.mkdir(parents=True, exist_ok=True)
    stem = os.fspath(out).rsplit("/", 1)[-1].removesuffix(".html")
    for name, text in ((f"{stem}.csv", made.csv), (f"{stem}.json", made.json)):
        write_atomically(beside(out, name), text.encode())
    write_atomically(out, made.html.encode())
    return str(out) if is_url(out) else local_path(out)


def write_report(
    run_dirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None, categories: str | os.PathLike | None = None
) -> Path | str:
    """Write the report of a run or a curve, or the comparison of two runs.

    Parameters
    ----------
    run_dirs : sequence of path-like or URL
        One run directory, or the folder of a curve; or two run directories.
    out : path-like or URL, optional
        The page; by default ``report.html`` in the run directory (``comparison.html`` in the first of two). Figures go
        into ``figures/`` beside it (SVG and PDF), tables into ``tables/`` (CSV and LaTeX).
    categories : path-like, optional
        CSV with the columns `label` and `category`.

    Returns
    -------
    Path or str
        The page; a URL is a str.

    Raises
    ------
    InputError
        No run there, an unfinished one, more than two, a file of categories without its columns.
    """
    if isinstance(run_dirs, (str, os.PathLike)):
        run_dirs = [run_dirs]
    if len(run_dirs) not in (1, 2):
        raise InputError(f"`report` takes one run directory, or two to compare; got {len(run_dirs)}.")
    from ..runs.curve import is_curve
    from ._write import write_comparison, write_curve, write_single

    if len(run_dirs) == 1 and is_curve(run_dirs[0]):
        return write_curve(run_dirs[0], out or within(run_dirs[0], "report.html"))
    if len(run_dirs) == 1:
        return write_single(run_dirs[0], out or within(run_dirs[0], "report.html"), categories)
    return write_comparison(run_dirs[0], run_dirs[1], out or within(run_dirs[0], "comparison.html"), categories)
