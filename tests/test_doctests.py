"""The examples in docstrings run, and the public names have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import fastprobe

WINGS = ("errors", "tables", "protocol", "kernels", "statistics", "runs", "retrieval")
# Whose docstrings are shown first in the reference.
EXPLAINED = ("EmbeddingTable", "ProbeConfig", "ContrastiveProbe", "permutation_test", "InputError", "available_backends")


def modules_with_examples():
    for name in WINGS:
        module = importlib.import_module(f"fastprobe.{name}")
        names = [module.__name__]
        if hasattr(module, "__path__"):
            names += [m.name for m in pkgutil.walk_packages(module.__path__, f"{module.__name__}.")]
        for full in names:
            if ".gpu" in full:  # imports Triton, which is absent where there is no GPU
                continue
            source = importlib.util.find_spec(full).loader.get_source(full) or ""
            if ">>> " in source:
                yield full


MODULES = sorted(modules_with_examples())


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module, globs={**vars(module), "np": np}) if t.examples]
    assert tests
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    output: list[str] = []
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


@pytest.mark.parametrize("name", EXPLAINED)
def test_public_names_have_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(fastprobe, name))
