# Two commands for a fresh machine: `make demo` and `make test`. Each installs what it needs into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := $(filter-out machine process_cpu trl_side,$(basename $(notdir $(wildcard benchmarks/*.py))))

.PHONY: help install demo test check lint bench docs focus-validate clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP) ## create .venv with the package and its development tools
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing. On Debian 12: apt-get install python3.11 python3.11-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "make: venv support is missing. On Debian 12: apt-get install python3.11-venv" >&2; exit 1; }
	@command -v g++ >/dev/null || { echo "make: g++ is missing (torch needs a compiler on the PATH). On Debian 12: apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## cold start, then GRPO, on two CPU cores: watch a small MoE learn to reason
	$(BIN)/orchestrator run r1_demo

test: $(STAMP) ## lint, types, import contracts and every test that needs no GPU
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory check
	$(BIN)/pytest -m '(ray or slow) and not gpu'

check: $(STAMP) ## the fast lane: unit, contracts on fakes, simulation, golden; no Ray, no network; under 60 s
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not gpu and not ray and not slow'

lint: $(STAMP) ## ruff, pyright (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(STAMP) ## every benchmark; each prints a table and writes benchmarks/results/*.json
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

docs: $(STAMP) ## run every command in the docs and check every link
	$(BIN)/pytest -q tests/e2e/test_docs.py

focus-validate: $(STAMP) ## the FinOps Foundation's validator over a FOCUS export (needs Python 3.12, gets .venv-focus)
	$(BIN)/python tests/focus/validate.py

clean: ## remove what the other targets made, except .venv
	rm -rf runs dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache
