# Needs GNU make 3.81 or newer, bash 3.2 or newer and Python 3.11 or newer; everything else is installed into .venv.
#   make PYTHON=/path/to/python3.12 …        another Python
#   make TORCH_INDEX_URL=https://… …         the package index for torch (see scripts/install.sh)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
NEWEST := .venv-newest
# With other versions, packages' deprecation warnings about each other aren't ours to fix.
OTHER_VERSIONS := PYTEST_ADDOPTS="-W ignore::DeprecationWarning --ignore tests/docs"
MODEL := worker/tokenrelay/worker/models/weather
# What `make slow` runs with the queues on one Redis and the streams on another: tests/two_planes.py.
TWO_PLANES := $(addprefix tests/integration/test_,worker.py producer.py consumer.py async_producer.py idempotency.py stopping.py \
	lost_ends.py repairs.py orphans.py cancel_under_load.py) $(addprefix tests/gateway/test_,requests.py openai.py)
SOURCES := producer worker shared tests benchmarks

PYTHON ?=
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=
SECONDS ?= 120
RUNS ?= 20
FAULTS_ARGS ?=
RESUMES_ARGS ?=
BENCH_ARGS ?=
STEPS ?=
CLIENTS ?=
CLIENTS_ARGS ?=
export PYTHON TORCH_INDEX_URL VENV

.PHONY: help demo serve test slow compose faults chaos resumes clients families lowest newest loaded nightly bench check train format clean

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z]+:.*##/ { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## ask two questions and show Redis while they are answered
	@$(BIN)/tokenrelay demo

serve: $(INSTALLED)  ## serve HTTP with a temporary Redis and worker; prints the address
	@$(BIN)/tokenrelay serve --demo

test: $(INSTALLED)  ## run the tests
	@$(BIN)/python scripts/run_tests.py $(PYTEST_ARGS)

slow: $(INSTALLED)  ## run the slow tests: mutants, process deaths
	@$(BIN)/python -m pytest -m "slow and not compose" $(PYTEST_ARGS)
	@TEST_PLANES=2 $(BIN)/python -m pytest -m "not slow" $(TWO_PLANES) $(PYTEST_ARGS)

compose: $(INSTALLED)  ## build the images and test the docker compose system, faults included
	@$(BIN)/python -m pytest -s tests/compose $(PYTEST_ARGS)

faults: $(INSTALLED)  ## inject faults into real workers and Redis servers, RUNS=20 times each; prints the table
	@$(BIN)/python -m tests.faults --runs $(RUNS) $(FAULTS_ARGS)

chaos: $(INSTALLED)  ## inject all faults at once for SECONDS=120
	@$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) $(FAULTS_ARGS)

resumes: $(INSTALLED)  ## resume streams of every option at random tokens, in float64 and float32; RESUMES_ARGS="--model FOLDER"
	@$(BIN)/python -m tests.resumes $(RESUMES_ARGS)
	@$(BIN)/python -m tests.resumes --dtype float32 $(RESUMES_ARGS)

clients: $(INSTALLED)  ## test a gateway with unmodified client packages; CLIENTS="openai curl" selects some (docs/clients.md)
	@$(BIN)/python -m tests.clients $(CLIENTS_ARGS) $(CLIENTS)

families: $(INSTALLED)  ## serve a tiny model of every causal architecture in transformers; writes docs/models.md
	@$(BIN)/python -m tests.families $(FAMILIES)

lowest: $(LOWEST)/.installed  ## run the tests with the lowest version of every dependency
	@$(OTHER_VERSIONS) $(LOWEST)/bin/python scripts/run_tests.py $(PYTEST_ARGS)

newest: $(NEWEST)/.installed  ## run the tests with the newest Python installed
	@$(OTHER_VERSIONS) $(NEWEST)/bin/python scripts/run_tests.py $(PYTEST_ARGS)

loaded: $(INSTALLED)  ## run the tests three times with busy loops on all cores
	@for run in 1 2 3; do bash scripts/loaded.sh $(MAKE) test || exit 1; done

nightly: $(INSTALLED)  ## run the suites that are too long for CI and write docs/nightly.md; STEPS="lowest loaded" selects some
	@$(BIN)/python scripts/nightly.py $(STEPS)

bench: $(INSTALLED)  ## run the benchmarks; BENCH_ARGS="--model FOLDER --rounds 5" (docs/performance.md)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

check: $(INSTALLED)  ## check lint, formatting, types (the page's need npm) and generated docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@bash scripts/page/check.sh
	@$(BIN)/python -m pytest -q tests/docs

train: $(INSTALLED)  ## train the bundled model again
	@$(BIN)/tokenrelay-worker train --out $(MODEL)

format: $(INSTALLED)  ## apply ruff's fixes, and regenerate docs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/settings_docs.py
	@$(BIN)/python scripts/metrics_docs.py
	@$(BIN)/python scripts/lifecycle_docs.py

clean:  ## remove .venv, .clients and all caches
	rm -rf $(VENV) $(LOWEST) $(LOWEST).txt $(NEWEST) .clients .node build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

$(LOWEST)/.installed: pyproject.toml constraints.txt scripts/install.sh scripts/lowest.py $(INSTALLED)
	@$(BIN)/python scripts/lowest.py >$(LOWEST).txt
	@VENV=$(LOWEST) CONSTRAINTS=$(LOWEST).txt bash scripts/install.sh

$(NEWEST)/.installed: pyproject.toml constraints.txt scripts/install.sh scripts/newest.sh
	@PYTHON=$$(bash scripts/newest.sh) && VENV=$(NEWEST) PYTHON=$$PYTHON bash scripts/install.sh

$(INSTALLED): pyproject.toml constraints.txt scripts/install.sh
	@bash scripts/install.sh
