# fornix: everything a person does with a clone. Python 3.11 or newer and make are all it needs.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers

.DEFAULT_GOAL := help
.PHONY: help install run-local run-sequential test check format bench bench-run bench-peers bench-durability verify-stacks \
	verify-durability chaos clean

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

bench: $(INSTALLED) ## measure the replay engine against its floors
	$(BIN)/python benchmarks/bench_engine.py $(ARGS)

bench-run: $(INSTALLED) ## measure learning, weights and the world: the other figures that README quotes
	@set -e; for name in learning modes weights world; do \
	  echo "== $$name"; $(BIN)/python benchmarks/bench_$$name.py $(ARGS); done

bench-peers: $(INSTALLED) $(PEERS)/.installed ## measure it beside dm-reverb, cpprb and TorchRL (2.6 GB to install)
	$(BIN)/python benchmarks/bench_peers.py --peers-python $(PEERS)/bin/python --picture peers.png $(ARGS)

verify-stacks: $(INSTALLED) ## compare a million sampled stacks with what actors acted on
	$(BIN)/python benchmarks/verify_stacks.py $(ARGS)

bench-durability: $(INSTALLED) ## measure what it costs to keep the rows, and how fast they are there again
	$(BIN)/python benchmarks/bench_durability.py $(ARGS)

verify-durability: $(INSTALLED) ## cut the power under a simulated disk 20,000 times, and flip 10,000 bits
	$(BIN)/python benchmarks/verify_durability.py --power-cuts 20000 --kills 10000 --flips 10000 $(ARGS)

chaos: $(INSTALLED) ## kill everything at random and check that nothing is lost
	$(BIN)/python benchmarks/chaos.py $(ARGS)

clean: ## remove the environments and all caches; runs stay
	rm -rf $(VENV) $(PEERS) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
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

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' || { \
	  echo "dm-reverb has no wheels for $$($(PYTHON) -V 2>&1); name Python 3.10 or 3.11: make bench-peers PYTHON=python3.11"; \
	  exit 1; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
