# Kumulus: what a developer does. `make help` lists it.
# Long steps say where their log is; set-up is done once and found done afterwards.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
HOSTS ?= 2
ARGS ?=
# Test processes side by side: tests of labs wait more than they work.
PROCESSES ?= 3
BIN := .venv/bin
# `make demo HOSTS=simulated` needs neither root nor libvirt.
# Only tests need the servers that they talk to.
SETUP := $(PYTHON) hack/setup.py $(if $(filter simulated,$(HOSTS)),--simulated) $(if $(filter test fault,$(MAKECMDGOALS)),--tests)

.PHONY: help setup demo demo-down test lint fmt generate verify lock bench fault fresh docs clean

help: ## List what can be made, one sentence each.
	@echo "usage: make TARGET [HOSTS=2|simulated] [ARGS='...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: ## Install distribution packages (as root, on Debian) and .venv with the locked dependencies.
	@$(SETUP)

demo: setup ## Run a cloud here: control plane, HOSTS hosts, controllers, agents, the quickstart's machines.
	@$(BIN)/kumulus-lab demo --hosts $(HOSTS)

demo-down: ## Take the demo down; nothing stays outside the cache.
	@if [ -x $(BIN)/kumulus-lab ]; then $(BIN)/kumulus-lab down; else echo "there is no demo: .venv is not there"; fi

test: setup lint verify ## Set up what tests need, check the sources, and run every test; ARGS go to pytest.
	@$(BIN)/kumulus-lab prepare --libvirt --control-plane
	$(BIN)/pytest --ignore=tests/fault -m 'not wide' --numprocesses=$(PROCESSES) --no-loadscope-reorder $(ARGS)

lint: setup ## Check style, types and layers of the sources.
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup ## Format the sources, and repair what can be repaired without thought.
	@$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: setup ## Write the CRDs, the reference and the table of states from what is in the code.
	@$(BIN)/python -m kumulus.crdgen
	$(BIN)/python -m kumulus_agents.agent.state_table
	$(BIN)/python -m kumulus_services.events.reference
	$(BIN)/python -m kumulus_lab.reference_metrics
	$(BIN)/python -m kumulus_lab.reference_commands

verify: setup ## Fail when generated files differ from what the code says.
	@$(BIN)/python -m kumulus.crdgen --check
	$(BIN)/python -m kumulus_agents.agent.state_table --check
	$(BIN)/python -m kumulus_services.events.reference --check
	$(BIN)/python -m kumulus_lab.reference_metrics --check
	$(BIN)/python -m kumulus_lab.reference_commands --check

lock: ## Write the lock files for what pyproject.toml asks for; what is locked and fits stays. ARGS=--upgrade takes the newest.
	@made=$$(mktemp -d)
	trap 'rm -rf "$$made"' EXIT
	$(PYTHON) -m venv "$$made"
	"$$made/bin/pip" install --quiet --disable-pip-version-check "$$(sed -n 's/^UV = "\(.*\)"/\1/p' hack/setup.py)"
	compile() { "$$made/bin/uv" pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 $(ARGS) "$$@"; }
	compile --extra controllers --extra agent --extra services --extra ovn --extra dev --extra docs pyproject.toml --output-file requirements.lock
	compile --constraint requirements.lock --extra controllers --extra services pyproject.toml --output-file images/controllers.lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "setuptools", "wheel", sep="\n")' \
	  | compile - --output-file images/build.lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["libvirt"])' \
	  | compile - --output-file requirements-libvirt.lock

bench: setup ## Measure creation, deletion, API writes and memory, beside the floor; results as JSON in bench-results/.
	@$(BIN)/kumulus-lab prepare
	$(BIN)/python -m tests.bench $(ARGS)

fault: setup ## Run plans with a crash at every deed and a thousand schedules, then power cuts, partitions, killed processes, full pools; ends with the table of plans and faults.
	@$(BIN)/kumulus-lab prepare --libvirt --control-plane
	failed=0
	$(BIN)/pytest tests/system/test_interruptions.py tests/system/test_lab.py $(wildcard tests/fault) $(ARGS) || failed=1
	$(BIN)/pytest -m wide tests --ignore=tests/fault --ignore=tests/system/test_interruptions.py --ignore=tests/system/test_lab.py $(ARGS) || failed=1
	exit $$failed

fresh: setup ## Try this commit where nothing was installed: demo and test in a minimal Debian with empty caches.
	@$(PYTHON) hack/fresh.py $(ARGS)

docs: generate ## Write the generated parts of the documentation, and build its site; a broken link fails.
	@$(BIN)/python hack/website.py

clean: ## Remove .venv and every lab of this checkout; the cache stays.
	@if [ -x $(BIN)/kumulus-lab ]; then $(BIN)/kumulus-lab down --all; fi
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
