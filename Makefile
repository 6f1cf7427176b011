# Every target makes and reuses .venv in this folder. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
HARNESS := .venv-harness
WORKERS ?= auto
# One thread per test process: processes that share cores wait for each other's threads (measured: 0.15 s become 7.5 s).
# Tests that wait are taken over by the process that is done first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-harnesses lint types check format goldens build clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# torch first and alone: a CPU build, where one is offered, then satisfies everything else.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "janus_hf needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev,train]' -c constraints.txt
	@touch $@

demo: $(STAMP)  ## ask about a photograph and draw a prompt with the embedded model
	$(BIN)/python scripts/demo.py

test: $(STAMP)  ## the test-suite without slow tests
	$(PYTEST) -m 'not slow and not gpu and not hub'

test-slow: $(STAMP)  ## the slow tests, one at a time: some launch processes of their own
	$(BIN)/python -m pip install -q -e '.[dev,train,quant,deepspeed]' -c constraints.txt
	JANUS_HF_REQUIRE_LAUNCHERS=1 $(PYTEST) -n 0 --dist no -m 'slow and not gpu and not hub'

# The harnesses pin old releases of what we need new, so they come without their dependencies; what their model classes
# import follows by name. The tests stand in for the rest.
$(HARNESS)/installed: pyproject.toml constraints.txt
	test -x $(HARNESS)/bin/python || $(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -m pip install -q torch -c constraints.txt
	$(HARNESS)/bin/python -m pip install -q -e '.[dev]' datasets matplotlib pandas requests -c constraints.txt
	$(HARNESS)/bin/python -m pip install -q --no-deps -c constraints.txt lmms-eval ms-vlmeval docopt json_repair loguru \
		num2words portalocker python-dotenv pytz sty tabulate termcolor validators
	@touch $@

test-harnesses: $(HARNESS)/installed  ## our adapters inside the real lmms-eval and VLMEvalKit, in an environment of their own
	JANUS_HF_REQUIRE_HARNESSES=1 OMP_NUM_THREADS=1 $(HARNESS)/bin/python -m pytest -q tests/integrations

lint: $(STAMP)  ## ruff, without changing anything
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

check: lint types test  ## what CI runs, and lint and types besides

format: $(STAMP)  ## ruff, with changes
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

goldens: $(STAMP)  ## print the largest deviation from the original implementation, per quantity
	$(BIN)/python scripts/golden_table.py

build: $(STAMP)  ## wheel and sdist in dist/, checked, and the wheel tried in an empty environment
	rm -rf dist build
	$(BIN)/python -m pip install -q build twine -c constraints.txt
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/check_build.py dist

clean:  ## remove the virtual environments and caches
	rm -rf $(VENV) $(HARNESS) .pytest_cache .ruff_cache .mypy_cache build dist
