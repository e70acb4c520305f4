"""The gallery's scripts run, the shell's page is the shell's, and the chart's names exist."""

from __future__ import annotations

import importlib.util
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

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_gallery_script_runs(script, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_gallery_has_at_least_six():
    assert len(SCRIPTS) >= 6


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
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.shell_page()
    sections = dict(re.findall(r"^## (fastprobe [^\n]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    run = typer.main.get_command(app).commands["run"]
    assert {"fastprobe run", "fastprobe embed audio", "fastprobe index build"} <= set(sections)
    for parameter in run.params:
        assert re.search(rf"^\| `[^`]*{parameter.opts[0]}\b", sections["fastprobe run"], re.M), parameter.name
