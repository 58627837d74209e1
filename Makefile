# make setup creates .venv from nothing; every other target calls it. A second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.kvsweep-setup

.PHONY: setup sweep test slow check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kvsweep needs Python 3.11 or newer; this is %d.%d (set PYTHON=...)" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: setup
	@$(BIN)/kvsweep run

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=25

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_import_boundaries.py -m 'slow or not slow'

bench: setup
	$(BIN)/python -m benchmarks.perplexity
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.rounding
	$(BIN)/python -m benchmarks.datasets
	$(BIN)/python -m benchmarks.driver
	$(BIN)/python -m benchmarks.scale

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
