# One door: `make help` lists it all.  Everything is set up in .venv when it is first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := node gateway replicator tests
PYTEST := $(BIN)/python -m pytest
# Processes that run tests; the slow suites start more of their own, and wait for those.
JOBS ?= 2

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help serve demo test torture bench setup lock proto proto-check fmt lint type check \
	quick slow programs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' Makefile

##### for a newcomer

serve: $(READY) ## Run a site at 127.0.0.1:5000, with its data in ./data
	@$(BIN)/entrepot serve

demo: $(READY) ## Run two sites, at 127.0.0.1:5000 and :5100, with their data in ./demo
	@$(BIN)/entrepot demo

test: programs check slow ## Check and test everything

##### for a developer

setup: $(READY) ## Make .venv with all that is locked

check: lint type proto-check quick ## Lint, types, import contracts, generated code, quick tests

quick: $(READY) ## Run the tests that need no other process
	@$(PYTEST) -q -n $(JOBS) -m "not slow and not torture"

slow: $(READY) ## Run the tests with real processes and real clients
	@$(PYTEST) -q -n $(JOBS) --dist loadfile -m "slow and not torture" --durations 15

torture: $(READY) programs ## Run the long tests: hundreds of kills, cuts, seeds
	@ENTREPOT_SEEDS=50000 $(PYTEST) -q -n $(JOBS) -m "not slow and not torture" tests/scenario
	@$(PYTEST) -m torture --timeout 3600

bench: $(READY) programs ## Measure side by side with docker-registry
	@$(BIN)/python -m tests.bench

fmt: $(READY) ## Format the sources
	@$(BIN)/ruff check --fix --quiet $(SOURCES) || true
	@$(BIN)/ruff format $(SOURCES)

lint: $(READY) ## Check style, format and the directions of imports
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "run: make fmt" >&2; exit 1; }
	@found=$$($(BIN)/lint-imports --no-logo) || { echo "$$found"; exit 1; }
	@git ls-files '*.py' | grep -v _pb2 | xargs -r wc -l | \
		awk '$$1 > 400 && $$2 != "total" {print "longer than 400 lines: " $$2 " (" $$1 ")"}'

type: $(READY) ## Check the types
	@$(BIN)/mypy

# Messages of both files, services of feed.proto only.
define generate
PATH="$(CURDIR)/$(BIN):$$PATH"; \
	$(BIN)/python -m grpc_tools.protoc -I proto \
		--python_out=$(1) --mypy_out=quiet:$(1) proto/node/wire/*.proto; \
	$(BIN)/python -m grpc_tools.protoc -I proto \
		--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) proto/node/wire/feed.proto
endef

proto: $(READY) ## Generate node/wire from proto/
	@$(call generate,.)

proto-check: $(READY) ## Check that node/wire is what proto/ generates
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call generate,$$fresh); \
	for file in "$$fresh"/node/wire/*; do \
		diff -u "node/wire/$${file##*/}" "$$file" || { echo "run: make proto" >&2; exit 1; }; \
	done

lock: $(READY) ## Choose the newest versions that pyproject.toml allows
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
		--no-header --no-annotate --generate-hashes pyproject.toml -o requirements.lock

programs: ## Install the other programs that tests use (Debian, as root), or say what is missing
	@.ci/programs

clean: ## Remove what was built, but no data
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis tests/clients/dockerode/node_modules

$(READY): pyproject.toml requirements.lock
	@.ci/venv $(PYTHON) $(VENV)
	@touch $@
