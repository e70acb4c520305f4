"""Data flows one way: no wing of the package imports one that comes after it."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import fastprobe

ROOT = Path(fastprobe.__file__).parent
# From the ground up. Wings on one line may not import each other.
ORDER = [
    {"errors"},
    {"randomness", "statistics", "storage"},
    {"tables"},
    {"extract", "protocol"},
    {"kernels"},
    {"runs", "retrieval"},
    {"report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: i for i, names in enumerate(ORDER) for name in names}
# What else a wing may import, beyond "everything below it".
ALONE = {"statistics": {"errors"}}


def imports(path: Path):
    """Name of the wing that each import of a file is from, those inside functions too."""
    inside = path.relative_to(ROOT).parts[:-1]
    tree = ast.parse(path.read_text())
    for_types = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test) for n in ast.walk(i)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            for target in [full] if full else [[alias.name] for alias in node.names]:
                yield target[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastprobe."):
            yield node.module.split(".")[1]


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the order: give it one"
    for target in imports(path):
        if target in LEVEL and target != own:
            assert LEVEL[target] < LEVEL[own], f"{own} imports {target}, which comes after it"
            assert target in ALONE.get(own, LEVEL), f"{own} may import {', '.join(ALONE[own])} only, and imports {target}"


def modules_below(path, inside):
    """Names of the modules of the same wing that a file imports when it is loaded, not inside a function."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            yield ".".join(full)
            yield from (".".join([*full, alias.name]) for alias in node.names)


def test_there_is_no_circle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph = {name: {t for t in modules_below(p, p.relative_to(ROOT).parts[:-1]) if t in names and t != name} for name, p in names.items()}
    # A package may gather what its modules define, and they may import its other modules.
    graph = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in graph.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_folder_list_is_a_table_of_contents():
    """A newcomer's first look: wings and little else."""
    entries = {p.name for p in ROOT.iterdir() if p.name != "__pycache__"}
    assert len(entries) <= 14, sorted(entries)
    assert len(ORDER) <= 9


def test_the_core_stays_light():
    code = (
        "import sys, fastprobe.runs.run, fastprobe.retrieval.probe\n"
        "heavy = {'transformers', 'ray', 'matplotlib', 'soundfile', 'torch', 'pandas', 'statsmodels'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_opening_a_run_imports_what_it_needs_alone(tmp_path):
    """pandas and scipy.stats cost more time than all else that `status`, or a small run, does. (The spelling baseline
    is scikit-learn's, which imports both.)"""
    code = (
        "import sys\nfrom fastprobe import permutation_test\nfrom fastprobe.tables.simulate import simulate_pair\n"
        "from fastprobe.cli import main\n"
        "text, audio = simulate_pair([f'class {i}' for i in range(9)], alignment=1.0, clips=2, text_width=5, audio_width=4)\n"
        f"permutation_test(text, audio, permutations=3, splits=2, backend='cpp', baselines=False, out={str(tmp_path / 'run')!r})\n"
        "heavy = {'pandas', 'statsmodels', 'scipy.stats', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        f"sys.argv = ['fastprobe', 'status', {str(tmp_path / 'run')!r}]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == said[-1] == "[]"


def test_a_run_on_the_cpu_does_without_torch(tmp_path):
    """Its import takes seconds and half a gigabyte; where no GPU driver is, nothing of a run needs it."""
    code = (
        "import sys\nfrom fastprobe import kernels, permutation_test\nfrom fastprobe.tables.simulate import simulate_pair\n"
        "text, audio = simulate_pair([f'class {i}' for i in range(9)], alignment=1.0, clips=2, text_width=5, audio_width=4)\n"
        f"permutation_test(text, audio, permutations=3, splits=2, backend='cpp', out={str(tmp_path / 'run')!r})\n"
        "print('torch' in sys.modules)\nkernels.select_backend('auto')\nprint('torch' in sys.modules, kernels._gpu_driver())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after_run, (after_auto, driver) = run.stdout.split()[0], run.stdout.split()[1:]
    assert after_run == "False" and after_auto == driver
