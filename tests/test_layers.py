"""Data flows one way: no module of the package imports one that comes after it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastprobe

ROOT = Path(fastprobe.__file__).parent
# From the ground up. Modules on one line may not import each other.
ORDER = [
    {"errors"}, {"interrupt", "storage", "topk"}, {"vocabulary"}, {"config"}, {"embeddings"}, {"streams"}, {"compression"}, {"plan"},
    {"controls"}, {"kernels"}, {"metrics"}, {"observed"}, {"lock", "manifest"}, {"store"}, {"retrieval"}, {"probe"}, {"indexing"},
    {"significance"}, {"intervals", "procrustes"}, {"multiplicity", "tail"}, {"sequential"}, {"comparison", "power"},
    {"inference"}, {"progress"}, {"engines"}, {"simulate"}, {"experiment"}, {"run"},
    {"audit", "planning", "doctor", "bench"}, {"merge"},
    {"extract"}, {"query"}, {"report"}, {"console", "options"}, {"cli_embed", "cli_query", "cli_runs"}, {"cli"}, {"__main__"},
]
LEVEL = {name: i for i, names in enumerate(ORDER) for name in names}
DELAYED: set[tuple[str, str]] = set()  # no exception so far


def imports(path: Path):
    """(name of the imported fastprobe module, whether inside a function) of every import in a file."""
    inside = path.relative_to(ROOT).parts[:-1]
    tree = ast.parse(path.read_text())
    delayed = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for_types = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test) for n in ast.walk(i)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[:len(inside) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            for target in ([full] if full else [[alias.name] for alias in node.names]):
                yield target[0], id(node) in delayed
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastprobe."):
            yield node.module.split(".")[1], id(node) in delayed


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the order: give it one"
    for target, delayed in imports(path):
        if target in LEVEL and target != own:
            below = LEVEL[target] < LEVEL[own] or (delayed and (own, target) in DELAYED)
            assert below, f"{own} imports {target}, which comes after it"


def test_the_core_stays_light():
    code = ("import sys, fastprobe.run, fastprobe.probe\n"
            "heavy = {'transformers', 'ray', 'matplotlib', 'soundfile', 'torch', 'pandas', 'statsmodels'}\n"
            "print(sorted(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_run_on_the_cpu_does_without_torch(tmp_path):
    """Its import takes seconds and half a gigabyte; where no GPU driver is, nothing of a run needs it."""
    code = ("import sys\nfrom fastprobe import kernels, permutation_test\nfrom fastprobe.simulate import simulate_pair\n"
            "text, audio = simulate_pair([f'class {i}' for i in range(9)], alignment=1.0, clips=2, text_width=5, audio_width=4)\n"
            f"permutation_test(text, audio, permutations=3, splits=2, backend='cpp', out={str(tmp_path / 'run')!r})\n"
            "print('torch' in sys.modules)\nkernels.select_backend('auto')\nprint('torch' in sys.modules, kernels._gpu_driver())")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after_run, (after_auto, driver) = run.stdout.split()[0], run.stdout.split()[1:]
    assert after_run == "False" and after_auto == driver
