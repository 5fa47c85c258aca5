# Two commands do everything: make demo, make test.  `make help` lists the rest.
.ONESHELL:
.SHELLFLAGS := -eu -c
SHELL := bash
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.ready
PYTEST := $(BIN)/python -m pytest
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help env servers demo check test test-slow test-gpu compatibility bench contracts lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

env: $(STAMP) ## make the environment in .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@python=""
	for candidate in $${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
	  if command -v "$$candidate" >/dev/null && "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python="$$candidate"; break; fi
	done
	if [ -z "$$python" ]; then echo "esper needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 1; fi
	if [ ! -x $(BIN)/python ]; then "$$python" -m venv .venv; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: env ## grow two real networks and hold them against their controls
	@$(BIN)/esper demo digits
	$(BIN)/esper demo spirals

check: env ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

servers: ## install redis-server for the tests of the bus, where it is missing
	@if command -v redis-server >/dev/null; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y -qq redis-server >/dev/null 2>&1; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >/dev/null 2>&1 \
	  && apt-get install -y -qq redis-server >/dev/null 2>&1; then exit 0; fi
	echo "redis-server is missing and cannot be installed here: the bus is tested on the valkey-server that the environment brings"

test: check servers ## all checks and the fast tests
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not chaos and not gpu" -q

test-slow: env servers ## slow and chaotic tests
	$(PYTEST) -n 2 --dist loadfile -m "(slow or chaos) and not gpu" -q

test-gpu: env ## the laws on a CUDA device; writes tests/gpu/results, to be committed
	$(PYTEST) -m gpu tests/gpu -q

compatibility: env ## run what shows which feature works in which setup, and write docs/compatibility.md
	$(PYTEST) -p tests.compatibility --compatibility docs/compatibility.md -n 2 --dist worksteal -q

bench: env ## run one benchmark: make bench NAME=dormant
	$(BIN)/python -m benchmarks $(NAME)

contracts: env ## write docs/topics.md, docs/benchmarks.md, contracts/schemas and contracts/openapi from code and results
	$(BIN)/python -m tools.contracts
	$(BIN)/python -m tools.openapi
	$(BIN)/python -m tools.benchmarks

lock: env ## pin every dependency again
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --allow-unsafe --no-annotate --output-file requirements.lock pyproject.toml
	sed -i -e "s/^\(torch==[0-9.]*\)+.*/\1/" -e "/^esper-morphogenesis /d" requirements.lock  # a build label or a path would bind it to one machine
	$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --allow-unsafe --no-annotate --constraint requirements.lock --output-file requirements-urza.lock requirements-urza.in

clean: ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
