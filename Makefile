# Everything runs in .venv, which the first target that needs it creates (GNU Make 3.81 or newer, POSIX shell).
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help train test slow check style typecheck clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1	/' | expand -t 12

train: $(VENV)/.installed ## adapt a half-cheetah to running forwards or backwards, quick preset; ARGS="--seed 1 ..." is appended
	$(BIN)/python scripts/train_half_cheetah_dir.py --preset quick $(ARGS)

# One thread for torch in each worker: the workers share the cores.
test: $(VENV)/.installed-dev ## the fast tests; ARGS="-k name ..." is appended
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

slow: $(VENV)/.installed-dev ## the tests that learn something
	$(BIN)/python -m pytest -m slow $(ARGS)

check: style typecheck test ## all that continuous integration checks

style: $(VENV)/.installed-dev ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy follows folders, not the editable install's mapping, so it is shown the tree that a user gets.
typecheck: $(VENV)/.installed-dev ## mypy on the shipped tree
	rm -rf build
	$(INSTALL) --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p metarl

clean: ## remove what the targets built, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("MetaRL needs Python 3.11 or newer: make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	touch $(VENV)/.installed $@
