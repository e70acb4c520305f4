"""The gallery's scripts run, the shell's page is the shell's, and the chart's names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from fastprobe.cli.app import app
from fastprobe.protocol.controls import CONTROLS
from fastprobe.protocol.metrics import column_of
from support.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_gallery_script_runs(script, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


NOTEBOOKS = sorted((ROOT / "examples" / "gallery").glob("*.ipynb"))


def shown(notebook):
    """What the cells of a notebook print and give, as text; colours and pictures aside."""
    out = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output.evalue
            out.append(output.text if output.output_type == "stream" else output.data.get("text/html", output.data["text/plain"]))
    return out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_gives_what_it_shows(path, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    stored = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(again, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(stored) and shown(again) == shown(stored)
    assert any("<progress" not in text and "training" in text for text in shown(stored))


def test_the_gallery_has_at_least_six():
    assert len(SCRIPTS) >= 6 and NOTEBOOKS


def test_the_charts_name_what_exists():
    page = (ROOT / "docs" / "choosing.md").read_text("utf-8")
    keys = set(re.findall(r'class="key"[^>]*>([^<]+)<', page))
    nulls = set(re.findall(r'class="key"[^>]*>([^<]+)<', page.split("</svg>")[0])) - {"fastprobe report A B"}
    assert "permute" in nulls and nulls <= set(CONTROLS)
    for statistic in ("mean_log_rank", "mrr", "acc@3_micro"):
        assert statistic in keys and column_of(statistic, (3,))


def test_every_control_has_its_row():
    page = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    assert not [name for name in CONTROLS if not re.search(rf"^\| `{name}[ `]", page, re.M)]


def test_every_command_and_option_has_its_row():
    page = load_script(ROOT / "docs" / "site_pages.py").shell_page()
    sections = dict(re.findall(r"^## (fastprobe [^\n]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert page.count("\nExample:\n") == len(sections)
    run = typer.main.get_command(app).commands["run"]
    assert {"fastprobe run", "fastprobe embed audio", "fastprobe index build"} <= set(sections)
    for parameter in run.params:
        assert re.search(rf"^\| `[^`]*{parameter.opts[0]}\b", sections["fastprobe run"], re.M), parameter.name
