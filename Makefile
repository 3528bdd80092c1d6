# make quickstart trains a small model on this machine's CPU; make test checks everything. `make help` lists the rest.
#
# One environment, .venv, in two layers: what training needs, and on top of it the test tools. A layer is installed
# again when its stamp is missing, and the stamp's name holds a checksum of the files that decide what is installed
# (and of this directory, since an editable install points at it). So a second call starts at once.

PYTHON ?= python3
PYTEST_ARGS ?=
CONFIG ?= configs/quickstart.yaml

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/.installed-run-$(KEY)
TEST_STAMP := $(VENV)/.installed-test-$(KEY)

PIP_INSTALL = $(PY) -m pip install -qq --disable-pip-version-check --progress-bar off -c constraints.txt

# Threads of torch that have nothing to do sleep instead of spinning: generation in one process and rewards in others
# share the cores.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format install install-test clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(RUN_STAMP)  ## Install what training needs and train a small model (minutes, 2 CPU cores)
	$(PY) -m grpo_lightning fit --config $(CONFIG)

test: $(TEST_STAMP)  ## Install the test tools and run all tests (PYTEST_ARGS="-k losses" for some)
	HF_HUB_OFFLINE=1 $(PY) -m pytest $(PYTEST_ARGS)

lint: $(TEST_STAMP)  ## Check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TEST_STAMP)  ## Rewrite files to the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

install: $(RUN_STAMP)  ## Only install what training needs

install-test: $(TEST_STAMP)  ## Only install the test tools as well

clean:  ## Remove .venv and caches (not runs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "grpo_lightning needs Python 3.11 or later; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.11 ..." % v[:2])'
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(RUN_STAMP): | $(PY)
	@echo "Installing grpo_lightning and the pinned packages that training needs into $(VENV) (minutes the first time)"
	@rm -f $(VENV)/.installed-*
	@$(PIP_INSTALL) -e .
	@touch $@

$(TEST_STAMP): | $(RUN_STAMP)
	@echo "Installing the pinned test tools into $(VENV)"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@
