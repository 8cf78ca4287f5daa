# Needs GNU make 3.81 or newer, bash 3.2 or newer and Python 3.11 or newer; everything else goes into .venv.
#   make PYTHON=/path/to/python3.12 …        another Python
#   make TORCH_INDEX_URL=https://… …         the package index that torch comes from (see scripts/install.sh)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
NEWEST := .venv-newest
# What packages say of each other's other versions is nothing that we could mend.
OTHER_VERSIONS := PYTEST_ADDOPTS="-W ignore::DeprecationWarning --ignore tests/docs"
MODEL := worker/tokenrelay/worker/models/weather
SOURCES := producer worker shared tests benchmarks

PYTHON ?=
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=
SECONDS ?= 120
RUNS ?= 20
FAULTS_ARGS ?=
BENCH_ARGS ?=
STEPS ?=
CLIENTS ?=
CLIENTS_ARGS ?=
export PYTHON TORCH_INDEX_URL VENV

.PHONY: help demo serve test slow compose faults chaos clients families lowest newest loaded nightly bench check train format clean

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z]+:.*##/ { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## ask two questions and watch Redis while they are answered
	@$(BIN)/tokenrelay demo

serve: $(INSTALLED)  ## serve HTTP with a Redis and a worker of its own; prints the address
	@$(BIN)/tokenrelay serve --demo

test: $(INSTALLED)  ## run the tests
	@$(BIN)/python scripts/run_tests.py $(PYTEST_ARGS)

slow: $(INSTALLED)  ## run the tests that take longer: mutants, process deaths
	@$(BIN)/python -m pytest -m "slow and not compose" $(PYTEST_ARGS)

compose: $(INSTALLED)  ## build the images, bring the whole system up with docker compose, break it, take it down
	@$(BIN)/python -m pytest -s tests/compose $(PYTEST_ARGS)

faults: $(INSTALLED)  ## break real workers and real Redis servers, RUNS=20 times each; prints the table
	@$(BIN)/python -m tests.faults --runs $(RUNS) $(FAULTS_ARGS)

chaos: $(INSTALLED)  ## break everything at once for SECONDS=120
	@$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) $(FAULTS_ARGS)

clients: $(INSTALLED)  ## call a gateway with unmodified packages; CLIENTS="openai curl" takes some (docs/clients.md)
	@$(BIN)/python -m tests.clients $(CLIENTS_ARGS) $(CLIENTS)

families: $(INSTALLED)  ## serve a tiny folder of every causal architecture of transformers; writes docs/models.md
	@$(BIN)/python -m tests.families $(FAMILIES)

lowest: $(LOWEST)/.installed  ## run the tests with the lowest version of every dependency
	@$(OTHER_VERSIONS) $(LOWEST)/bin/python scripts/run_tests.py $(PYTEST_ARGS)

newest: $(NEWEST)/.installed  ## run the tests on the newest Python of this machine
	@$(OTHER_VERSIONS) $(NEWEST)/bin/python scripts/run_tests.py $(PYTEST_ARGS)

loaded: $(INSTALLED)  ## run the tests three times beside busy loops on all cores
	@for run in 1 2 3; do bash scripts/loaded.sh $(MAKE) test || exit 1; done

nightly: $(INSTALLED)  ## run what takes too long for CI and write docs/nightly.md; STEPS="lowest loaded" takes some
	@$(BIN)/python scripts/nightly.py $(STEPS)

bench: $(INSTALLED)  ## measure; BENCH_ARGS="--model FOLDER --rounds 5": docs/performance.md says how
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

check: $(INSTALLED)  ## lint, formatting, types (the page's with npm), and that the generated docs are current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@bash scripts/page/check.sh
	@$(BIN)/python -m pytest -q tests/docs

train: $(INSTALLED)  ## train the bundled model again
	@$(BIN)/tokenrelay-worker train --out $(MODEL)

format: $(INSTALLED)  ## fix what ruff can fix, and rewrite the generated docs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/settings_docs.py
	@$(BIN)/python scripts/metrics_docs.py

clean:  ## remove .venv, .clients and everything that tools have cached
	rm -rf $(VENV) $(LOWEST) $(LOWEST).txt $(NEWEST) .clients .node build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

$(LOWEST)/.installed: pyproject.toml constraints.txt scripts/install.sh scripts/lowest.py $(INSTALLED)
	@$(BIN)/python scripts/lowest.py >$(LOWEST).txt
	@VENV=$(LOWEST) CONSTRAINTS=$(LOWEST).txt bash scripts/install.sh

$(NEWEST)/.installed: pyproject.toml constraints.txt scripts/install.sh scripts/newest.sh
	@PYTHON=$$(bash scripts/newest.sh) && VENV=$(NEWEST) PYTHON=$$PYTHON bash scripts/install.sh

$(INSTALLED): pyproject.toml constraints.txt scripts/install.sh
	@bash scripts/install.sh
