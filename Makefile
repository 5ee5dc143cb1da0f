# fornix: everything a person does with a clone. Python 3.11 or newer and make are all it needs.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run-local run-sequential test check format bench verify-stacks clean

help: ## show this help
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(INSTALLED) ## make .venv with everything that the other targets need

run-local: $(INSTALLED) ## train the treasure hunters: server, actors and learner as processes
	$(BIN)/fornix run configs/treasurehunt.yaml $(ARGS)

run-sequential: $(INSTALLED) ## train them in one process, the same to the bit for the same seed
	$(BIN)/fornix run configs/treasurehunt.yaml --mode sequential $(ARGS)

test: $(INSTALLED) ## run the whole suite
	$(BIN)/pytest $(ARGS)

check: $(INSTALLED) ## check format, lint, types and import borders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## measure the figures that README quotes
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

verify-stacks: $(INSTALLED) ## compare a million sampled stacks with what actors acted on
	$(BIN)/python benchmarks/verify_stacks.py $(ARGS)

clean: ## remove .venv and all caches; runs stay
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again only when what is to be installed changes.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "there is no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fornix needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name a newer one: make PYTHON=python3.12"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
