# Two commands for a fresh machine: `make demo` and `make test`. Each installs what it needs into .venv.
# An engine whose packages conflict with ours has an environment of its own beside it, such as .venv-vllm.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
TEST := $(VENV)/.installed-test
VLLM := .venv-vllm
BENCHMARKS := $(filter-out endurance machine plugin process_cpu rollout_correction setup_time trl_settings trl_side vllm_engine,$(basename $(notdir $(wildcard benchmarks/*.py))))

# Images of containers often set this. Each process, of which a run has a dozen, would then compile all of its imports again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install engines demo test test-all test-engines check lint bench docs focus-validate lock wheels clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(TEST) ## create .venv with the package and its development tools

$(VENV)/bin/python $(VLLM)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing. On Debian 12: apt-get install python3.11 python3.11-venv; any Python from 3.11 on: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "make: venv support is missing. On Debian 12: apt-get install python3.11-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)/..

$(DEMO): requirements/demo.txt requirements/torch.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python requirements/install.py demo
	@touch $@

$(TEST): requirements/test.txt requirements/torch.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python requirements/install.py test
	@touch $(DEMO) $@

engines: $(VLLM)/.installed ## create .venv-vllm, the environment of the engine vllm (rollout.engine=vllm)

$(VLLM)/.installed: requirements/vllm.txt requirements/vllm-torch.txt pyproject.toml | $(VLLM)/bin/python
	$(VLLM)/bin/python requirements/install.py vllm
	@touch $@

demo: $(DEMO) ## cold start, then GRPO, on two CPU cores: watch a small MoE learn to reason
	$(BIN)/orchestrator run r1_demo

test: lint check ## lint, types, import contracts and the tests that CI runs
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'slow and not ray and not gpu and not engines and not long' --durations 10
	$(BIN)/pytest -n 2 --dist loadfile -m 'ray and not gpu and not engines and not long' --durations 10

test-all: test ## make test, then the long variants: every ZeRO stage, model family, weight channel and kill
	$(BIN)/pytest -m 'long and not gpu and not engines' --durations 10

test-engines: $(TEST) engines ## the tests of engines that have an environment of their own (vllm)
	$(BIN)/pytest -m 'engines and not gpu' --durations 10

check: $(TEST) ## the fast lane: unit, contracts on fakes, simulation, golden; no Ray, no network
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not gpu and not engines and not ray and not slow'

lint: $(TEST) ## ruff, pyright (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(TEST) ## every benchmark; each prints a table and writes benchmarks/results/*.json
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

docs: $(TEST) ## run every command in the docs and check every link
	$(BIN)/pytest -q tests/e2e/test_docs.py

focus-validate: $(TEST) ## the FinOps Foundation's validator over a FOCUS export (needs Python 3.12, gets .venv-focus)
	$(BIN)/python tests/focus/validate.py

lock: $(TEST) ## pin the versions that make demo and make test install (UPGRADE=--upgrade for newer ones)
	$(BIN)/python requirements/lock.py $(UPGRADE)

wheels: $(TEST) ## pack requirements/wheels again: packages that are published as source only
	$(BIN)/pip wheel --quiet --no-deps --no-binary :all: --wheel-dir requirements/wheels $(shell grep -E '^(deepspeed|antlr4-python3-runtime)==' requirements/demo.txt)

clean: ## remove what the other targets made, except .venv and .venv-vllm
	rm -rf runs dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache
