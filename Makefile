# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` work on a fresh clone with nothing but python3, its venv module and make.
#
#   PYTHON=python3.12      the interpreter to build the environment from (3.10 or newer)
#   PIP_ARGS=...           more arguments for pip; for torch without CUDA:
#                          make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   PYTEST_ARGS=...        more arguments for pytest: make test PYTEST_ARGS="-x -k settings"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := resilient tests examples benchmarks
# Two at a time: a test is mostly processes that it has started, and some of these are in a hurry.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# Each process that a test starts would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
# Silent in logs; on a terminal pip shows what it downloads, as torch takes a while.
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,--quiet) -c constraints.txt $(PIP_ARGS)

.PHONY: help demo test test-all lint style types bench clean

help:
	@echo "make demo      train, kill a worker half-way, and compare with an undisturbed training"
	@echo "make test      lint, types and the default tests"
	@echo "make test-all  the same, with the slow tests: 50 kills for each number of ranks"
	@echo "make lint      lint and types only"
	@echo "make bench     the benchmarks"
	@echo "make clean     remove everything that make made"

demo: $(VENV)/.runtime
	@$(BIN)/python examples/demo.py

test: lint
	@$(PYTEST) $(PYTEST_ARGS)

test-all: lint
	@$(PYTEST) -m "slow or not slow" --kills 50 $(PYTEST_ARGS)

lint: style types

types: $(VENV)/.develop
	@$(BIN)/mypy $(SOURCES)

style: $(VENV)/.develop
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "cannot pass: the files above are not formatted; run $(BIN)/ruff format $(SOURCES)"; exit 1; }

bench: $(VENV)/.runtime
	@set -e; for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

clean:
	@rm -rf $(VENV) build dist runs .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "cannot use $(PYTHON): Python 3.10 or newer is needed; say make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "cannot create $(VENV): see above; on Debian and Ubuntu install python3-venv"; exit 1; }

# Order-only: the interpreter's own time says nothing of what is installed.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing resilient into $(VENV) (once; torch is large)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.develop: $(VENV)/.runtime
	@echo "installing the test and lint tools into $(VENV) (once)"
	@$(PIP) --editable ".[s3,test,lint]"
	@touch $@
